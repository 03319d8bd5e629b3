"""Local functions that are called with several types, or partly kept: one function for each way to call them.

Within a function every tensor has one type, as in any graph, so a function that is called with float32 here and with
int64 there, or by a call that is to stay as it is, becomes several. The first way to call it keeps the name.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from onnxbench.graph import GraphIndex, NodeRef
from onnxbench.messages import copy_of
from onnxbench.precision._typing import Call, Typing

if TYPE_CHECKING:
    from onnx import ModelProto


def specialize(proto: ModelProto, typing: Typing) -> list[str]:
    """Gives each way to call a function a function of its own, in place, and returns what was done, in words.

    Functions that these call may need the same afterwards, when types were found anew.
    """
    notes = []
    taken = {(each.domain, each.name) for each in proto.functions}
    taken.update((ref.node.domain, ref.node.op_type) for ref in typing.index.nodes())
    for function, calls in typing.calls.items():
        if len(calls) < 2:
            continue
        original = function.graph
        ways = sorted(calls, key=lambda call: call[2])  # one that stays is the copy
        for number, call in enumerate(ways[1:], 2):
            copy = copy_of(original)
            name = f"{original.name}_{_ending(call, number)}"
            while (original.domain, name) in taken:
                name += "_"
            taken.add((original.domain, name))
            copy.name = name
            copy.ClearField("overload")
            proto.functions.append(copy)
            _retarget(calls[call], name)
        notes.append(f"function {function.path} became {len(ways)}, for it is called with several types or partly kept")
    return notes


def _ending(call: Call, number: int) -> str:
    return "kept" if call[2] else str(number)


def _retarget(refs: Collection[NodeRef], name: str) -> None:
    for ref in refs:
        ref.node.op_type = name
        ref.node.ClearField("overload")


def has_several(index: GraphIndex, typing: Typing) -> bool:
    """Tells whether a function is called in more than one way."""
    return bool(index.functions) and any(len(calls) > 1 for calls in typing.calls.values())
