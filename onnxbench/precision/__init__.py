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

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from onnxbench import select
from onnxbench.errors import NotFoundError, UsageError
from onnxbench.feeding import FeedOptions, feed_sets, refuse_to_overwrite
from onnxbench.graph import GraphIndex, NodeRef, cycles_left
from onnxbench.inference import TypeSource
from onnxbench.model import Model, load
from onnxbench.precision._headroom import (
    Headroom,
    Magnitudes,
    find_headroom,
    find_magnitudes,
    overflowing,
    runtime_types,
)
from onnxbench.writer import Saved, SaveOptions, save

if TYPE_CHECKING:
    from onnxbench.captures import Value

__all__ = [
    "Converted",
    "ConvertedFile",
    "Headroom",
    "Kept",
    "Lost",
    "Magnitudes",
    "convert",
    "convert_file",
    "find_headroom",
    "find_magnitudes",
]

Reason = Literal["asked", "schema", "unknown", "quantized", "overflow", "range", "indices", "value", "between"]
"""Why a node keeps its types.

``asked``: by the caller. ``schema``: its operator does not take the type in this opset. ``unknown``: nothing tells what
types its operator takes. ``quantized``: it lies between DequantizeLinear and QuantizeLinear, or is one of them.
``overflow``: it reads a weight that the type does not reach. ``range``: it makes or reads values that the type does not
reach. ``indices``: it computes sizes or indices. ``value``: it has to do with what has no Cast, as a sequence that
stays. ``between``: it only moves or compares values, and stands between nodes that stay.
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
    headroom: Collection[Headroom] = (),
    sources: Sequence[TypeSource] = (),
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
        headroom: Nodes that make or read one of these tensors stay, too, if it goes beyond the type.
        sources: Further places to ask for the types of what operators make that onnx does not know.

    Raises:
        UsageError: There is no such precision or choice.
        RefusedResultError: A weight does not fit (with ``refuse``), or the result would not be valid.
    """
    from onnxbench.precision._converting import convert_model

    with cycles_left():
        kept = _kept(model, keep, headroom)
        return convert_model(model, to=to, keep=kept, io=io, weights=weights, opset=opset, sources=sources)[0]


def _kept(model: Model, keep: Collection[NodeRef], headroom: Collection[Headroom]) -> dict[NodeRef, tuple[Reason, str]]:
    """Returns the nodes that stay whatever their operators take, with why."""
    kept: dict[NodeRef, tuple[Reason, str]] = {}
    if headroom:
        ranges = overflowing(GraphIndex(model.proto), headroom)
        kept.update((ref, ("range", detail)) for ref, detail in ranges.items())
    kept.update((ref, ("asked", "")) for ref in keep)
    return kept


@dataclass(frozen=True, slots=True)
class ConvertedFile:
    """A model file in another precision.

    Attributes:
        converted: What was done.
        saved: What was written; None if nothing was to be written.
        headroom: Tensors with little headroom in the type, the worst first; empty without feeds.
        keep: Selectors of the nodes that stayed because they were asked for or because of their range, for a recipe.
        unseen: Bodies and functions of which ``headroom`` says nothing: they could not be looked into.
        nonfinite: Tensors that are NaN or infinite somewhere on the feeds; ``headroom`` is about their other elements.
    """

    converted: Converted
    saved: Saved | None
    headroom: tuple[Headroom, ...]
    keep: tuple[str, ...]
    unseen: tuple[str, ...] = ()
    nonfinite: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        done = self.converted
        return {
            "to": done.to, "casts": done.casts, "casts_removed": done.removed, "nodes": done.nodes,
            "weights": done.weights, "opset": {"before": done.opset[0], "after": done.opset[1]}, "kept": done.kept,
            "lost": done.lost, "headroom": self.headroom, "unseen": self.unseen, "keep": self.keep,
            "nonfinite": self.nonfinite, "notes": done.notes, "saved": self.saved,
        }  # fmt: skip


def convert_file(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    *,
    to: str,
    keep: Sequence[str] = (),
    keep_named: Sequence[str] = (),
    io: Literal["keep", "convert"] = "keep",
    weights: Literal["refuse", "clamp", "keep"] = "refuse",
    opset: Literal["raise", "keep"] = "raise",
    feeds: FeedOptions | Mapping[str, Value] | None = None,
    keep_overflowing: bool = False,
    options: SaveOptions | None = None,
    beside: Sequence[str | os.PathLike[str] | None] = (),
    allow_outside: bool = False,
) -> ConvertedFile:
    """Converts a model file and writes the result (see ``convert``).

    Args:
        source: The model file.
        out: The file to write; None writes nothing.
        to: As for ``convert``.
        keep: Selectors of nodes that stay (see ``onnxbench.select``).
        keep_named: Regular expressions; nodes whose name begins with a match stay.
        io: As for ``convert``.
        weights: As for ``convert``.
        opset: As for ``convert``.
        feeds: Run the model on these inputs and list the tensors that have little headroom in the type, in bodies and
            functions too.
        keep_overflowing: Nodes that make or read a tensor that went beyond the type stay.
        options: How weights are stored.
        beside: Further files that the caller is going to write: none of them may be one that is read.
        allow_outside: Follow external data that leaves the model's folder.

    Raises:
        BenchError: As ``convert`` and ``onnxbench.writer.save`` do; nothing was written then.
    """
    from onnxbench.precision._converting import convert_model

    model = load(source, allow_outside=allow_outside)
    refuse_to_overwrite(model, feeds.sources if isinstance(feeds, FeedOptions) else (), out, *beside)
    index = GraphIndex(model.proto) if keep or keep_named or keep_overflowing else None
    refs = select.nodes(index, keep) if index is not None and keep else []
    named = [] if index is None else list(dict.fromkeys(ref for each in keep_named for ref in _named(index, each)))
    headroom: tuple[Headroom, ...] = ()
    unseen: tuple[str, ...] = ()
    nonfinite: tuple[str, ...] = ()
    if feeds is not None:
        sets: list[Mapping[str, Value]]
        sets = [feeds] if isinstance(feeds, Mapping) else [each.feeds for each in feed_sets(model, feeds)]
        magnitudes = find_magnitudes(model, sets)
        headroom = find_headroom(model, magnitudes.largest, to=to)
        unseen, nonfinite = magnitudes.missed, magnitudes.nonfinite
    staying = headroom if keep_overflowing else ()
    with cycles_left():
        kept = _kept(model, [*refs, *named], staying)
        done, lost = convert_model(
            model, to=to, keep=kept, io=io, weights=weights, opset=opset, sources=(runtime_types,),
            defers=out is not None,
        )  # fmt: skip
        saved = save(done.model, out, options=options, is_valid=True) if out is not None else None
    done = replace(done, lost=lost())
    names = [f'node:"{ref.path}"' for ref in (*named, *(overflowing(index, staying) if index is not None else ()))]
    return ConvertedFile(done, saved, headroom, (*keep, *names), unseen, nonfinite)


def _named(index: GraphIndex, pattern: str) -> list[NodeRef]:
    """Returns the nodes whose name begins with a match of a regular expression."""
    try:
        matcher = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{pattern!r} is no regular expression: {error}") from None
    found = [ref for ref in index.nodes() if ref.node.name and matcher.match(ref.node.name)]
    if not found:
        raise NotFoundError(f"no node has a name that {pattern!r} matches", hint="Selectors do more: --keep-fp32.")
    return found
