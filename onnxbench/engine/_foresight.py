"""What the parser takes and the builder is known to refuse, told before a build.

Each rule was found where a build failed, and is held against the builder by ``benchmarks/engines.py --verdicts``. A
build that succeeds all the same goes before them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from onnxbench.graph import GraphIndex, NodeRef, home_of
from onnxbench.inference import TypeFinder
from onnxbench.schemas import plain_domain
from onnxbench.tensortype import dtype_name, elem_type

if TYPE_CHECKING:
    from onnxbench.model import Model

_FLOAT8 = frozenset({17, 18, 19, 20})
_SMALL = frozenset({17, 18, 19, 20, 21, 22, 23})
"""Element types of 8 bits and fewer that only quantizing nodes make and take."""


def foresee(model: Model, index: GraphIndex, types: Collection[int]) -> Iterator[tuple[NodeRef, str]]:
    """Yields the nodes of a model that parses and that no engine can be built of, with the reason.

    Args:
        model: The model.
        index: Its index.
        types: The element types that it names.
    """
    finder: TypeFinder | None = None
    for ref in index.nodes():
        node = ref.node
        if plain_domain(node.domain) or index.function_of(node) is not None:
            continue
        if node.op_type == "NonMaxSuppression":
            yield ref, "TensorRT parses NonMaxSuppression and has nothing that runs it"
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            home = home_of(ref.scope, node.input[2]) if len(node.input) > 2 and node.input[2] else None
            given = home is index.main and node.input[2] in home.true_inputs()
            if given and elem_type(index.main.stated[node.input[2]].type) not in _FLOAT8:
                yield ref, f"its zero point {node.input[2]!r} is an input of the model, and TensorRT must know it"
        elif node.op_type in ("Cast", "CastLike") and not _SMALL.isdisjoint(types):
            finder = finder or TypeFinder(model, index)
            names = [*node.input[:1], *node.output[:1]]
            found = finder.find(ref.scope, names)
            small = {elem_type(found[name]) for name in names if name in found} & _SMALL
            if small:
                said = ", ".join(map(dtype_name, sorted(small)))
                yield (
                    ref,
                    f"it casts from or to {said}, which TensorRT does with QuantizeLinear and DequantizeLinear only",
                )
