"""The map from the values of an ONNX model to PyTorch: read from the file, held against PyTorch, made where missing.

Without a PyTorch model the map is what metadata and names of the file tell (``onnxbench.origins``). With one, each
value that the file tells of is compared with the value of PyTorch that it is said to be; what is told wrongly, or not
at all, is looked for among all values of PyTorch (``matching``); what is left lies within what the next known value
computes. The result can be written into the metadata of a copy, where ``inspect``, ``find``, selectors and ``bisect``
read it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from onnxbench import backends, select
from onnxbench.captures import check_feeds, input_ports
from onnxbench.drift import Tolerance, default_tolerance
from onnxbench.errors import FeedsError, UsageError
from onnxbench.feeding import FeedOptions, feed_sets, refuse_to_overwrite
from onnxbench.graph import GraphIndex, TensorRef
from onnxbench.inlining import inline_functions
from onnxbench.model import Model, load
from onnxbench.origins import origins_of
from onnxbench.parts import Parts
from onnxbench.progress import track
from onnxbench.provenance import (
    CLASS_HIERARCHY,
    FX_NODE,
    MAP,
    NAME_SCOPES,
    ORIGINS,
    STACK_TRACE,
    SUMMARY,
    TRACE,
    Frame,
    Provenance,
    ValueOrigin,
    coverage,
    set_fx_values,
    set_metadata,
    spelled_scopes,
)
from onnxbench.pytorch import require_torch
from onnxbench.pytorch._mapping import fx_nodes, fx_origins, is_element
from onnxbench.pytorch.matching import (
    ROUNDING,
    WAYS,
    Matching,
    Pair,
    input_sets,
    match_metadata,
    match_names,
    match_values,
)
from onnxbench.pytorch.sources import Source, as_source, with_inputs
from onnxbench.pytorch.values import TorchValues, torch_values
from onnxbench.version import __version__
from onnxbench.writer import Saved, SaveOptions, save

if TYPE_CHECKING:
    import numpy as np
    from onnx import NodeProto

    from onnxbench.captures import Value

_BATCH = 256 << 20
_HUGE = 1e30
_MARKS = "onnxbench::Mark/"
"""The body that all marks share: no value of the model."""

Kind = Literal["value", "inside", "module", "unknown"]
How = Literal["metadata", "names", "values", "region", ""]


@dataclass(frozen=True, slots=True)
class MappedValue:
    """What one value of an ONNX model is in PyTorch.

    Attributes:
        value: The value, with the path of its graph.
        node: The node that makes it, likewise.
        op: Its operator.
        kind: ``value`` if it is a value of PyTorch; ``inside`` if it is a step within what one computes; ``module`` if
            only the module is known; ``unknown``.
        torch: That value of PyTorch: an fx node, or the call of a module; None if neither is known.
        scope: Module path.
        module_class: The module's class.
        source: ``file.py:12``.
        code: What is written there.
        how: What told: ``metadata``, ``names``, ``values``, ``region`` (it is read, in the end, by ``torch``).
        max_abs: The largest difference from PyTorch's value; None if it was not compared.
        rel: The length of the difference over that of PyTorch's value, on the set of inputs where it is largest.
        agrees: Whether the two agree; None if they were not compared.
        said: What the file says instead, where that is wrong: an fx node, or a module.
        others: Further names of the same value in PyTorch.
        origins: The fx nodes that went into it, where there are several that the file has no value of.
        rule: The rule of the exporter's optimizer that made its node.
        reason: Why it maps to no value.
    """

    value: str
    node: str
    op: str
    kind: Kind
    torch: str | None = None
    scope: str | None = None
    module_class: str | None = None
    source: str | None = None
    code: str | None = None
    how: How = ""
    max_abs: float | None = None
    rel: float | None = None
    agrees: bool | None = None
    said: str | None = None
    others: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    rule: str | None = None
    reason: str = ""

    @property
    def is_placed(self) -> bool:
        """Whether module path and source line are both known."""
        return self.scope is not None and self.source is not None


@dataclass(frozen=True, slots=True)
class Mapped:
    """The map of a model.

    Attributes:
        values: Its values, in the order of the file.
        torch: What they were compared with, in words; None without a PyTorch model.
        torch_kind: ``program`` for fx nodes, ``modules`` for outputs of modules.
        sets: On how many sets of inputs.
        notes: What else a user should know.
        saved: The written files.
    """

    values: tuple[MappedValue, ...]
    torch: str | None = None
    torch_kind: str | None = None
    sets: int = 0
    notes: tuple[str, ...] = ()
    saved: Saved | None = None

    def count(self, kind: Kind) -> int:
        """Returns how many values are of a kind."""
        return sum(each.kind == kind for each in self.values)

    @property
    def share(self) -> float:
        """The share of values with a module path, and a source line where PyTorch tells lines; 1 without values."""
        return self.placed / len(self.values) if self.values else 1.0

    @property
    def placed(self) -> int:
        """How many these are."""
        lines = self.torch_kind != "modules"
        return sum(each.is_placed if lines else each.scope is not None for each in self.values)

    @property
    def compared(self) -> tuple[MappedValue, ...]:
        """The values that were compared."""
        return tuple(each for each in self.values if each.agrees is not None)

    @property
    def differing(self) -> tuple[MappedValue, ...]:
        """Those that do not agree with PyTorch."""
        return tuple(each for each in self.values if each.agrees is False)

    @property
    def corrected(self) -> tuple[MappedValue, ...]:
        """Those of which the file says something else, wrongly."""
        return tuple(each for each in self.values if each.said is not None)

    @property
    def rest(self) -> tuple[MappedValue, ...]:
        """Those that map to nothing, or without a module or a line."""
        lines = self.torch_kind != "modules"
        return tuple(
            each
            for each in self.values
            if each.kind == "unknown" or not (each.is_placed if lines else each.scope is not None)
        )

    @property
    def passed(self) -> bool:
        """Whether all values that were compared agree with PyTorch."""
        return not self.differing

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "torch": self.torch,
            "torch_kind": self.torch_kind,
            "sets": self.sets,
            "passed": self.passed,
            "counts": {
                "values": len(self.values),
                **{kind: self.count(kind) for kind in ("value", "inside", "module", "unknown")},
                "placed": self.placed,
                "compared": len(self.compared),
                "differing": len(self.differing),
                "corrected": len(self.corrected),
            },
            "share": self.share,
            "values": self.values,
            "notes": self.notes,
            "saved": self.saved,
        }


def map_values(
    model: Model | str | os.PathLike[str],
    torch: Source | str | Any = None,
    *,
    by: str = "auto",
    selectors: Sequence[str] = (),
    program: Any = None,
    how: Literal["auto", "program", "modules"] = "auto",
    shapes: Sequence[str] = (),
    inputs: Mapping[str, str] | None = None,
    feeds: Mapping[str, Value] | FeedOptions | None = None,
    tolerance: Tolerance | None = None,
    translations: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
    write: str | os.PathLike[str] | None = None,
    storing: SaveOptions | None = None,
    allow_outside: bool = False,
) -> Mapped:
    """Returns what each value of a model is in PyTorch, and, given the PyTorch model, whether that is so.

    Args:
        model: The ONNX model or its file; it is not changed.
        torch: The PyTorch model: how it is named (see ``onnxbench.pytorch.sources``), a ``Source``, or what a factory
            returns. None: what the file itself tells.
        by: ``metadata``, ``names`` or ``values`` alone; ``auto`` takes each for what those before leave open.
        selectors: Only these values (or those that these nodes make).
        program: The ``ExportedProgram`` that the export used, if this process made one (``Exported.program``).
        how: ``program`` for fx nodes, ``modules`` for outputs of modules; ``auto`` for what PyTorch can do.
        shapes: Example inputs to draw, for a factory that gives none: ``x:[1,3,224,224]``.
        inputs: Which argument of the PyTorch model an input of the ONNX model is, where that cannot be told.
        feeds: Values by ONNX input, or what a user says about them. None: the example inputs of the PyTorch model, and
            others like them.
        tolerance: What is allowed; None: what rounding explains for the element type.
        translations: As in ``ExportOptions``.
        write: Write a copy of the model there, with the map in its metadata. Needs ``torch``.
        storing: How its weights are stored.
        allow_outside: Follow external data that leaves the model's folder.

    Raises:
        MissingDependencyError: A PyTorch model is given and torch is not installed.
        NotFoundError: There is no such file, factory, input or value.
        UsageError: An argument cannot be understood.
        FeedsError: The inputs of the two models do not fit: it is another model's file.
        ExecutionError: A side failed.
    """
    if by != "auto" and by not in WAYS:
        raise UsageError(f"there is no way {by!r} to map values", hint=f"auto, {', '.join(WAYS)}.")
    if torch is None and by == "values":
        raise UsageError("values can be mapped by what they are only with the PyTorch model", hint="Give --torch too.")
    if torch is None and write is not None:
        raise UsageError("without a PyTorch model there is nothing to write that the file does not say", hint="--torch")
    if torch is not None:
        require_torch("comparing with PyTorch")
    loaded = model if isinstance(model, Model) else load(model, allow_outside=allow_outside)
    index = GraphIndex(loaded.proto)
    chosen = _chosen(index, selectors)
    told = [each for each in origins_of(loaded, index) if not each.value.startswith(_MARKS)]
    operators = {path: ref.node.op_type for ref in index.nodes() for path in _outputs(ref.node, ref.scope.path)}
    if torch is None:
        rows = [_as_told(each, operators[each.value], by) for each in told]
        return Mapped(tuple(each for each in rows if chosen is None or each.value in chosen))
    source = as_source(torch)
    if shapes:
        source = with_inputs(source, shapes)
    read = [*feeds.sources] if isinstance(feeds, FeedOptions) else []
    refuse_to_overwrite(loaded, [*read, *([os.fspath(source.file)] if source.file is not None else [])], write)
    side = torch_values(
        source, program=program, model=loaded, how=how, inputs=inputs, translations=translations
    )  # fmt: skip
    work = _Work(loaded, index, side, told, operators, by, chosen, tolerance)
    with track("mapping", len(work.asked), "values") as advance:
        work.run(feeds, advance)
    rows = work.rows()
    shown = tuple(each for each in rows if chosen is None or each.value in chosen)
    notes = [*side.notes, *work.notes]
    result = Mapped(shown, side.label, side.kind, len(work.sets), tuple(notes))
    if write is None:
        return result
    saved = save(_written(loaded, rows, side, result), write, options=storing)
    return replace(result, saved=saved)


def _chosen(index: GraphIndex, selectors: Sequence[str]) -> set[str] | None:
    if not selectors:
        return None
    found: set[TensorRef] = set()
    for each in selectors:
        found |= select.select(index, each).as_tensors()
    return {ref.path for ref in found}


def _outputs(node: Any, path: str) -> Iterator[str]:
    return (f"{path}/{name}" if path else name for name in node.output if name)


def _as_told(origin: ValueOrigin, op: str, by: str = "auto") -> MappedValue:
    """Returns what the file tells of a value, in the words of a map."""
    how: How = origin.by
    reason = "" if how else "neither metadata nor a name tells of PyTorch"
    if by != "auto" and how and how != by:
        return MappedValue(origin.value, origin.node, op, "unknown", reason=f"its {by} tells nothing of PyTorch")
    return MappedValue(
        origin.value, origin.node, op, origin.kind, origin.fx, origin.scope, origin.module_class, origin.source,
        origin.code, how, origins=origin.origins, rule=origin.rule, reason=reason,
    )  # fmt: skip


# ---------------------------------------------------------------- held against PyTorch


@dataclass(slots=True)
class _Apart:
    """How far a value is from PyTorch's, on the set of inputs where it is farthest."""

    max_abs: float | None = None
    rel: float | None = None
    agrees: bool = True
    reason: str = ""


class _Work:
    """One map being made."""

    def __init__(
        self,
        model: Model,
        index: GraphIndex,
        side: TorchValues,
        told: Sequence[ValueOrigin],
        operators: Mapping[str, str],
        by: str,
        chosen: set[str] | None,
        tolerance: Tolerance | None,
    ) -> None:
        self._model, self._index, self._side, self._by, self._tolerance = model, index, side, by, tolerance
        self._told = {each.value: each for each in told}
        self._operators = operators
        plain, _ = inline_functions(model)
        self._plain = plain
        self._parts = Parts(plain, "ort", backends.Options("none"), index=index if plain is model else None)
        main = [name for names in index.main.writes for name in names]
        there = set(self._parts.scope.producers)
        self.asked = [name for name in dict.fromkeys(main) if name in there and (chosen is None or name in chosen)]
        self._pairs: dict[str, Pair] = {}
        self._apart: dict[str, _Apart] = {}
        self._said: dict[str, str] = {}
        self._reasons: dict[str, str] = {}
        self._known = dict(fx_nodes(side.program.graph_module)) if side.program is not None else {}
        self.sets: list[Mapping[str, Value]] = []
        self.notes: list[str] = []

    def run(self, feeds: Mapping[str, Value] | FeedOptions | None, advance: Callable[[int], None]) -> None:
        """Finds out what each value is, and how far it is from PyTorch's."""
        self.sets = self._feed_sets(feeds)
        claims = self._claims()
        self._compare(claims)
        wrong = [name for name in claims if not self._apart[name].agrees]
        if self._by in ("auto", "values"):
            left = [name for name in self.asked if name not in claims or name in wrong]
            told = Matching()
            if left:
                taken = {pair.torch for name, pair in claims.items() if self._apart[name].agrees}
                told = match_values(
                    self._plain, self._side, feeds=self.sets, among=left, taken=taken, parts=self._parts
                )  # fmt: skip
            inside = self._inside() if self._by == "auto" else {}
            for name, pair in list(told.pairs.items()):
                if name in inside and inside[name].isdisjoint((pair.torch, *pair.others)):
                    del told.pairs[name]  # equal to another value, but a step within what its metadata says
                elif name in claims and claims[name].how == "metadata":
                    self._said[name] = claims[name].torch
            self._compare(told.pairs)
            claims = {**claims, **told.pairs}
            self._reasons.update(told.unmatched)
            self._reasons.update(
                (name, f"it may be any of {', '.join(rivals[:6])}{', ...' if len(rivals) > 6 else ''}")
                for name, rivals in told.ambiguous.items()
            )
        self._pairs = claims
        advance(len(self.asked))
        agreeing = sum(self._apart[name].agrees for name in claims)
        if self.asked and 2 * agreeing <= len(claims):
            known = f"{agreeing:,} of {len(claims):,} values agree" if claims else "no value is known"
            self.notes.append(f"{known}: is it the PyTorch model of this file, with the same weights?")

    def _feed_sets(self, feeds: Mapping[str, Value] | FeedOptions | None) -> list[Mapping[str, Value]]:
        ports = input_ports(self._model.proto.graph)
        if feeds is None:
            sets: list[Mapping[str, Value]] = [check_feeds(each, ports, cast=True) for each in input_sets(self._side)]
        elif isinstance(feeds, Mapping):
            sets = [check_feeds(feeds, ports)]
        else:
            sets = [each.feeds for each in feed_sets(self._model, feeds, index=self._index)]
        if not sets:
            raise FeedsError("the data holds no set of inputs")
        return sets

    def _claims(self) -> dict[str, Pair]:
        """Returns what the file says its values are, as far as PyTorch has such values."""
        asked, claims = set(self.asked), dict[str, Pair]()
        if self._by in ("auto", "metadata"):
            claims.update(match_metadata(self._model, self._side))
            weak = {
                name: told.fx
                for name, told in self._told.items()
                if name in asked and name not in claims and told.kind == "value" and told.fx is not None
            }
            claims.update((name, Pair(name, fx, "metadata")) for name, fx in weak.items() if fx in self._side.values)
            if weak and self._side.kind == "program":
                self.notes.append(
                    f"the metadata of {len(weak):,} values is of another exported program (another version of PyTorch, "
                    "other options, or other code); they are told by their values"
                )
        if self._by in ("auto", "names"):
            claims.update((name, p) for name, p in match_names(self._model, self._side).items() if name not in claims)
        return {name: pair for name, pair in claims.items() if name in asked}

    def _inside(self) -> dict[str, set[str]]:
        """Returns the fx node (and the elements of it) that values lie in by metadata of this very program."""
        printed = {str(node.format_node()): node for node in self._known.values() if node.op == "call_function"}
        found: dict[str, set[str]] = {}
        for node in self._model.proto.graph.node:
            said = next((e.value for e in node.metadata_props if e.key == FX_NODE), None)
            if said in printed:
                names = {printed[said].name, *(user.name for user in printed[said].users if is_element(user))}
                found.update(dict.fromkeys(node.output, names))
        return found

    def _compare(self, pairs: Mapping[str, Pair]) -> None:
        """Measures how far values are from PyTorch's, one batch of both sides at a time."""
        names = self._parts.in_order(pairs)
        for number, feeds in enumerate(self.sets):
            batches = self._parts.batches(feeds, names, _BATCH)
            theirs = self._side.stream(feeds, [[pairs[name].torch for name in batch] for batch in batches])
            for batch, got, wanted in zip(batches, self._parts.stream(feeds, batches), theirs, strict=True):
                for name in batch:
                    found = _measure(wanted[pairs[name].torch], got[name], self._tolerance)
                    before = self._apart.get(name) if number else None
                    self._apart[name] = found if before is None else _worse(before, found)

    # ---- rows

    def rows(self) -> list[MappedValue]:
        """Returns all values of the file."""
        ends = self._ends()
        origins = self._origins()
        return [self._row(told, ends, origins) for told in self._told.values()]

    def _row(self, told: ValueOrigin, ends: Mapping[str, str], origins: Mapping[str, tuple[str, ...]]) -> MappedValue:
        name, op = told.value, self._operators[told.value]
        plain = _as_told(told, op, self._by)
        if plain.how == "":
            told = ValueOrigin(told.value, told.node, "unknown", rule=told.rule)
        pair = self._pairs.get(name)
        if pair is not None:
            apart, value = self._apart[name], self._side.values[pair.torch]
            origin = value.origin
            said = self._said.get(name)
            if said is None and told.scope is not None and origin.scope is not None and plain.how == "names":
                said = told.scope or None if not _is_within(told.scope, origin.scope) else None
            return MappedValue(
                name, told.node, op, "value", pair.torch, origin.scope if origin.scope is not None else told.scope,
                origin.module_class or told.module_class, origin.source or told.source, origin.code or told.code,
                pair.how, apart.max_abs, apart.rel, apart.agrees, said, pair.others, origins.get(name, ()), told.rule,
                apart.reason,
            )  # fmt: skip
        if self._index.main.producers.get(name) is None or name not in self._parts.scope.producers:
            reason = "it is in a body or a function, where values are not compared"
            return replace(plain, reason=plain.reason or reason)
        reason = self._reasons.get(name, "")
        fx = told.fx if told.fx in self._known else None
        if plain.how == "metadata" and fx is not None:
            return replace(plain, kind="inside", reason=reason)
        end = ends.get(name)
        if end is None:
            kind: Kind = "unknown" if plain.kind == "unknown" else "module"
            return replace(plain, kind=kind, torch=None, reason=reason or "nothing that is known reads it")
        origin = self._near(end, told.scope)
        return replace(
            plain, kind="inside", torch=end, scope=told.scope if told.scope is not None else origin.scope,
            module_class=told.module_class or origin.module_class, source=told.source or origin.source,
            code=told.code or origin.code, how=plain.how or "region", reason=reason,
        )  # fmt: skip

    def _ends(self) -> dict[str, str]:
        """Returns the first value of PyTorch, in its order, that is made of each value that is none itself."""
        order = {name: at for at, name in enumerate(self._side.values)}
        scope, parts = self._parts.scope, self._parts
        found: dict[str, str] = {}
        for position in sorted(range(len(scope.nodes)), key=parts.rank.__getitem__, reverse=True):
            for name in scope.writes[position]:
                after = [
                    self._pairs[each].torch if each in self._pairs else found[each]
                    for reader in scope.consumers.get(name, ())
                    for each in scope.writes[reader]
                    if each in self._pairs or each in found
                ]
                if after:
                    found[name] = min(after, key=order.__getitem__)
        return found

    def _near(self, end: str, scope: str | None) -> Provenance:
        """Returns where a value that lies within what makes another one comes from: of its module, if that is known."""
        origin = self._side.values[end].origin
        if scope is None or origin.scope == scope:
            return origin
        pending, seen = [end], {end}
        while pending and len(seen) < 24:
            value = self._side.values.get(pending.pop(0))
            if value is not None and value.origin.scope == scope:
                return value.origin
            fresh = [each for each in (value.inputs if value is not None else ()) if each not in seen]
            seen.update(fresh)
            pending += fresh
        return replace(origin, scope=scope, classes=())

    def _origins(self) -> dict[str, tuple[str, ...]]:
        """Returns the fx nodes between a value and those before it that the file has, where there are several."""
        if not self._known:
            return {}
        order = {name: at for at, name in enumerate(self._known)}
        exact = {pair.torch for pair in self._pairs.values()}
        exact.update(each for pair in self._pairs.values() for each in pair.others)
        found = {}
        for name, pair in self._pairs.items():
            gone = fx_origins([self._known[pair.torch]], exact, order) if pair.torch in self._known else []
            if len(gone) > 1:
                found[name] = tuple(gone)
        return found


def _is_within(one: str, other: str) -> bool:
    """Tells whether one module path is the other, or around it or within it."""
    return not one or not other or f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _measure(expected: Value, actual: Value, tolerance: Tolerance | None) -> _Apart:
    """Returns how far a value is from what it should be; of numbers as large as a mask's -3e38 only the sign counts."""
    import numpy as np

    if not hasattr(actual, "dtype") or actual.dtype.kind == "O":
        return _Apart(agrees=False, reason="it is no tensor of numbers")
    if expected.shape != actual.shape:
        return _Apart(agrees=False, reason=f"its shape is {list(actual.shape)}, and {list(expected.shape)} in PyTorch")
    if not expected.size:
        return _Apart(0.0, 0.0)
    is_complex = expected.dtype.kind == "c"
    with np.errstate(all="ignore"):
        wide = np.complex128 if is_complex else np.float64
        one, other = expected.astype(wide).reshape(-1), actual.astype(wide).reshape(-1)
        plain = (np.abs(one) < _HUGE) & (np.abs(other) < _HUGE)
        odd = ~plain
        if odd.any() and not np.array_equal(_odd(one[odd]), _odd(other[odd])):
            return _Apart(agrees=False, reason="it is not finite, or as large as a mask, in other places")
        one, other = one[plain], other[plain]
        apart = np.abs(one - other)
        most = float(apart.max(initial=0.0))
        length = float(np.linalg.norm(one))
        rel = float(np.linalg.norm(apart)) / length if length else (math.inf if most else 0.0)
        allowed = tolerance or _coarser(expected.dtype, actual.dtype)
        failing = bool((apart > allowed.atol + allowed.rtol * np.abs(one)).any())
    rounding = 0.0 if tolerance is not None else _rounding(expected.dtype, actual.dtype)
    agrees = not failing or rel <= rounding
    return _Apart(most, rel, agrees, "" if agrees else "its values differ from PyTorch's")


def _odd(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import numpy as np

    return np.where(np.isnan(values), 3.0, np.sign(values.real))


def _coarser(one: Any, other: Any) -> Tolerance:
    both = default_tolerance(one), default_tolerance(other)
    return Tolerance(max(each.atol for each in both), max(each.rtol for each in both))


def _rounding(one: Any, other: Any) -> float:
    return max(ROUNDING.get(one.name, 0.0), ROUNDING.get(other.name, 0.0))


def _worse(one: _Apart, other: _Apart) -> _Apart:
    if one.agrees != other.agrees:
        return one if not one.agrees else other
    return one if (one.rel if one.rel is not None else math.inf) >= (other.rel or 0.0) else other


# ---------------------------------------------------------------- written into a copy


def _written(model: Model, rows: Sequence[MappedValue], side: TorchValues, result: Mapped) -> Model:
    """Returns a copy of the model with the map in its metadata.

    A node takes the entries that the default exporter would have written, of the first of its values that maps.
    """
    proto = type(model.proto)()
    proto.CopyFrom(model.proto)
    known = dict(fx_nodes(side.program.graph_module)) if side.program is not None else {}
    by_value = {each.value: each for each in rows}
    main = {name: by_value[name] for node in proto.graph.node for name in node.output if name}
    for node in proto.graph.node:
        found = [main[name] if name else None for name in node.output]
        first = next(
            (each for each in found if each is not None and each.torch is not None and each.agrees is not False), None
        )
        if first is None or first.torch is None:
            continue
        value = side.values.get(first.torch)
        if value is None:
            continue
        origin = value.origin
        if first.how != "metadata":
            said = _entries(origin, first.scope, first.torch, node)
            fx = known.get(first.torch)
            if fx is not None:
                said[FX_NODE] = _printed(fx)
            if first.origins:
                said[ORIGINS] = " ".join(first.origins)
            set_metadata(node, said)
        if any(each is not None and each.kind == "value" for each in found) and known:
            is_value = [each is not None and each.kind == "value" and each.agrees is not False for each in found]
            set_fx_values(
                node,
                [each.torch if each is not None and yes else None for each, yes in zip(found, is_value, strict=True)],
            )
    copy = model.derive(proto)
    covered = coverage(origins_of(copy))
    told = {"torch": side.source.spelling, "kind": side.kind, "onnxbench": __version__}
    summary = {
        "values": covered.values, "exact": covered.exact, "inside": covered.inside, "placed": covered.placed,
        "fused": covered.fused, "share": round(covered.share, 6),
    }  # fmt: skip
    entries = {entry.key: entry for entry in proto.metadata_props}
    for key, said_of in ((MAP, told), (SUMMARY, summary)):
        text = json.dumps(said_of, ensure_ascii=False)
        if key in entries:
            entries[key].value = text
        else:
            proto.metadata_props.add(key=key, value=text)
    return copy


def _printed(node: Any) -> str:
    """Returns an fx node as the exporter writes it: an element of a tuple as the tuple."""
    node = node.args[0] if is_element(node) else node
    return str(node.format_node())


def _entries(origin: Provenance, scope: str | None, name: str, node: NodeProto) -> dict[str, str]:
    scopes, classes = spelled_scopes(origin)
    if not scopes and scope is None:
        return {}
    said = {NAME_SCOPES: repr([*scopes, name]), CLASS_HIERARCHY: repr([*classes, name])}
    if origin.frames:
        said[STACK_TRACE] = "\n  ".join(map(_frame_text, origin.frames))
    else:
        said.update((STACK_TRACE, entry.value) for entry in node.metadata_props if entry.key == TRACE)
    return said


def _frame_text(frame: Frame) -> str:
    place = f'File "{frame.file}", line {frame.line}' + (f", in {frame.function}" if frame.function else "")
    return f"{place}\n    {frame.code}" if frame.code else place
