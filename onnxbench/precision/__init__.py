"""A model in another floating-point precision: typed by the operators' schemas, with as few Casts as there can be.

    done = convert(model, to="fp16", keep=nodes)
    done.model, done.kept, done.casts, done.lost

Which inputs and outputs of a node may change their type, and which must change together, is what the operator's schema
says (``_signatures``). Every tensor that floats gets a place in a plan (``_plan``): the new type, or its old one where
a schema, a quantized region or the caller wants that. Nodes that only move values take the side on which fewer bytes
are cast. Then weights are converted block by block (``_values``), types are restated, and the few Casts are put in
(``_carrying``). The full checker with strict type inference judges the result.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from onnxbench.graph import NodeRef
    from onnxbench.model import Model

__all__ = ["Converted", "Kept", "Lost", "convert"]

Reason = Literal["asked", "schema", "unknown", "quantized", "overflow", "indices", "value"]
"""Why a node keeps its types.

``asked``: by the caller. ``schema``: its operator does not take the type in this opset. ``unknown``: nothing tells what
types its operator takes. ``quantized``: it lies between DequantizeLinear and QuantizeLinear, or is one of them.
``overflow``: it reads a weight that the type does not reach. ``indices``: it computes indices or sizes.
``value``: it makes or takes something that has no Cast, as a sparse tensor.
"""


@dataclass(frozen=True, slots=True)
class Kept:
    """A node that stays in its types.

    Attributes:
        node: Its path.
        op_type: Its operator.
        reason: Why (see ``Reason``).
        detail: More words: the type that the schema does not admit, the weight.
    """

    node: str
    op_type: str
    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Lost:
    """A weight with values that the type does not reach.

    Attributes:
        weight: Its path.
        elements: How many values it has.
        overflows: How many lie beyond the largest value of the type.
        vanished: How many were not zero and are.
        largest: The largest magnitude among the overflows.
        action: What was done: ``clamped``, ``kept`` (what reads it stays in its type), or ``rounded`` (some of many
            small values became 0).
    """

    weight: str
    elements: int
    overflows: int
    vanished: int
    largest: float
    action: Literal["clamped", "kept", "rounded"]


@dataclass(frozen=True, slots=True)
class Converted:
    """A model in another precision.

    Attributes:
        model: The new model.
        to: Its precision: ``float16``, ``bfloat16``, ``float32``, ``float64``.
        kept: Nodes that stay in their types, and why, in the order of the graphs.
        casts: How many Casts were put in.
        removed: How many Casts of the model are no longer needed and gone.
        nodes: How many nodes compute in the new precision.
        weights: How many weights were converted.
        lost: Weights with values that the type does not reach.
        opset: The opset before and after.
        notes: What a user should know beyond that.
    """

    model: Model
    to: str
    kept: tuple[Kept, ...]
    casts: int
    removed: int
    nodes: int
    weights: int
    lost: tuple[Lost, ...]
    opset: tuple[int, int]
    notes: tuple[str, ...] = ()


def convert(
    model: Model,
    *,
    to: str,
    keep: Collection[NodeRef] = (),
    io: Literal["keep", "convert"] = "keep",
    weights: Literal["refuse", "clamp", "keep"] = "refuse",
    opset: Literal["raise", "keep"] = "raise",
) -> Converted:
    """Returns a model whose floating-point tensors are of another element type, and what was done.

    Args:
        model: The model; it is not changed.
        to: The precision: ``fp16``, ``bf16``, ``fp32``, ``fp64``, or another spelling of these.
        keep: Nodes of the model (of any ``GraphIndex`` of it) that stay as they are. With a node its bodies stay; a
            call of a local function gets a copy of the function that stays.
        io: ``keep``: inputs and outputs stay as they are, with a Cast where that is needed. ``convert``: they have
            the new type.
        weights: What to do with weights of which values lie beyond the type, or that vanish in it whole: ``refuse``,
            ``clamp`` to the nearest value that the type has, or ``keep`` what reads them in its type.
        opset: ``raise`` it where operators take the type only in a later one, or ``keep`` it (and such nodes).

    Raises:
        UsageError: There is no such precision or choice.
        RefusedResultError: A weight does not fit (with ``refuse``), or the result would not be valid.
    """
    from onnxbench.precision._converting import convert_model

    return convert_model(model, to=to, keep=keep, io=io, weights=weights, opset=opset)
