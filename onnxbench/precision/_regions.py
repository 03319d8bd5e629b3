"""Nodes that stay in their types for what they compute: quantized regions, indices and sizes.

What lies between DequantizeLinear and QuantizeLinear is run on integers, in the precision that its scales state; what
is made of the scales of dynamic quantization is a scale, too, and may be far below what a small type holds. Floats that
are computed of sizes alone and become sizes or indices again must be exact, which a small type is up to 2048.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from onnxbench.graph import Scope
from onnxbench.precision._signatures import element
from onnxbench.precision._typing import Typing
from onnxbench.steering import steering

if TYPE_CHECKING:
    from onnx import NodeProto

Reasons = dict[Scope, dict[int, tuple[str, str]]]


def find_reasons(typing: Typing) -> Reasons:
    """Returns the nodes that stay, by graph and position, with the reason and details."""
    reasons: Reasons = defaultdict(dict)
    quantizing = {scope: {at for at, sig in enumerate(typing.signatures(scope)) if sig is not None and sig.quantizes}
                  for scope in typing.known}  # fmt: skip
    for scope, nodes in quantizing.items():
        if nodes:
            for position in _between(typing, scope, nodes) | _scaling(typing, scope, nodes):
                reasons[scope][position] = "quantized", ""
    if any(_makes_integers(typing, scope, node) for scope in typing.known for node in scope.nodes):
        for scope, name in steering(typing.index):
            maker = scope.producers.get(name)
            if scope in typing.known and maker is not None and element(typing.known[scope].get(name, "")):
                reasons[scope].setdefault(maker, ("indices", ""))
    return reasons


def _is_float(typing: Typing, scope: Scope, name: str) -> bool:
    word = typing.type_of(scope, name) if name else None
    return word is not None and element(word) > 0


def _makes_integers(typing: Typing, scope: Scope, node: NodeProto) -> bool:
    """Tells whether a node makes other than floats of floats, or resizes."""
    if node.op_type not in ("Cast", "Resize", "Upsample"):
        return False
    if node.op_type != "Cast":
        return any(name in scope.producers for name in node.input[1:])
    return _is_float(typing, scope, node.input[0]) and not _is_float(typing, scope, node.output[0])


def _between(typing: Typing, scope: Scope, quantizing: set[int]) -> set[int]:
    """Returns the nodes whose floats all come from quantizing nodes, each other or weights, and go there."""
    inside = {
        at for at, node in enumerate(scope.nodes)
        if at not in quantizing and at not in scope.bodies and node.input
        and any(_is_float(typing, scope, name) for name in node.input)
    }  # fmt: skip
    weights = set(scope.constants) - set(scope.inputs)
    weights.update(node.output[0] for node in scope.nodes if node.op_type == "Constant" and node.output)
    outputs = set(scope.outputs)
    captured = {name for bodies in scope.bodies.values() for body in bodies for name in body.captures}

    def fits(at: int) -> bool:
        node = scope.nodes[at]
        sources = [name for name in node.input if name and name not in weights and _is_float(typing, scope, name)]
        if not sources:
            return False
        for name in sources:
            maker = scope.producers.get(name)
            if maker is None or (maker not in inside and maker not in quantizing):
                return False
        for name in node.output:
            if not name or not _is_float(typing, scope, name):
                continue
            readers = scope.consumers.get(name, ())
            if name in outputs or name in captured or not readers:
                return False
            if any(reader not in inside and reader not in quantizing for reader in readers):
                return False
        return True

    pending = list(inside)
    while pending:
        at = pending.pop()
        if at not in inside or fits(at):
            continue
        inside.discard(at)
        pending += [scope.producers[name] for name in scope.reads[at] if scope.producers.get(name) in inside]
        pending += [reader for name in scope.writes[at] for reader in scope.consumers.get(name, ()) if reader in inside]
    return inside


def _scaling(typing: Typing, scope: Scope, quantizing: set[int]) -> set[int]:
    """Returns the nodes that turn integers of quantizing nodes into floats and that multiply by their scales."""
    found: set[int] = set()
    scales: set[str] = set()
    sums: set[str] = set()
    for at in quantizing:
        sig = typing.signatures(scope)[at]
        for slot, name in enumerate(scope.nodes[at].output):
            is_float = _is_float(typing, scope, name)
            if is_float and sig is not None and sig.schema.outputs[slot].name.endswith("scale"):
                scales.add(name)
            elif name and not is_float:
                sums.add(name)
    pending = list(scales | sums)
    while pending:
        name = pending.pop()
        for at in scope.consumers.get(name, ()):
            node = scope.nodes[at]
            makes = [made for made in node.output if _is_float(typing, scope, made)]
            if at in quantizing or at in found or not makes:
                continue
            if name in sums and node.op_type == "Cast":
                found.add(at)
            elif name in scales:
                found.add(at)
                stored = scope.constants
                if all(each in scales or each in stored for each in node.input):
                    scales.update(makes)
                    pending += makes
    return found
