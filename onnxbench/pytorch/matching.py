"""Which values of an ONNX model are which values of PyTorch: by metadata, by names of modules, by the values alone.

*Metadata.* The default exporter names a value after the fx node that it ends, and writes that node into the metadata.
It counts only if what is written there is that fx node of this program, as it is printed.

*Names.* Both exporters tell the module of a node: the TorchScript one in its name. A value that leaves all the nodes
of a module's call is the module's output. A convolution into which a batch normalization was folded keeps the module
of the convolution: if the normalization that reads it has no nodes, the value is the normalization's.

*Values.* Both sides run on the same inputs, two sets of them. Values can only be the same if their shapes are, on both
sets. Of each value a sketch is kept: 256 sums of its elements, each element added to a sum, with a sign, as a hash of
its position says. The length of the difference of two sketches is that of the two values to within a tenth, so what is
near to what is known without keeping any value. A value is matched if the nearest one is within rounding, and the next
is not: 20 times as far, unless both are the same tensor, handed on. Else it is listed as ambiguous. What holds too
little to tell (a single size, a mask that is all ones) is never matched: another value may be equal by chance.

(Rejected: comparing all pairs of values. It needs all values of one side at a time, or many runs.)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from onnxbench import backends
from onnxbench.boundary import depends_on
from onnxbench.errors import UsageError, did_you_mean
from onnxbench.graph import GraphIndex
from onnxbench.parts import Parts
from onnxbench.provenance import FX_NODE, ModuleCall, fx_name, fx_values
from onnxbench.pytorch._mapping import fx_nodes, is_value
from onnxbench.pytorch.values import ROOT, TorchValue, TorchValues, similar_inputs
from onnxbench.select import origins

if TYPE_CHECKING:
    import numpy as np
    from onnx import NodeProto

    from onnxbench.captures import Value
    from onnxbench.graph import Scope
    from onnxbench.model import Model

    Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

By = Literal["metadata", "names", "values"]
WAYS: tuple[By, ...] = ("metadata", "names", "values")
_BATCH = 256 << 20
_SUMS = 256
_HUGE = 1e30
ROUNDING = {"float64": 1e-10, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""What values of an element type may be apart, relatively, and still be the same, computed otherwise."""
_FLOOR = {"float64": 1e-15, "float32": 5e-7, "float16": 2e-3, "bfloat16": 1e-2}
"""What rounding alone is at least."""
_FACTOR, _DRIFTING_FACTOR = 20.0, 4.0
_LEAST = 8
_MOST_MOVES = 12
_NEARBY = 40
_MOST_LEAVING = 6


@dataclass(frozen=True, slots=True)
class Pair:
    """An ONNX value and the value of PyTorch that it is.

    Attributes:
        onnx: The ONNX value.
        torch: The name of the other (``TorchValue.name``).
        how: What told.
        apart: How far they are apart, relatively, where values told.
        others: Further names of the same: values that PyTorch only hands on, unchanged.
    """

    onnx: str
    torch: str
    how: By
    apart: float | None = None
    others: tuple[str, ...] = ()


@dataclass(slots=True)
class Matching:
    """Which ONNX values are which values of PyTorch.

    Attributes:
        pairs: What was told, by ONNX value.
        ambiguous: Values that may be any of several, with these.
        unmatched: The other values of the main graph, with the reason.
    """

    pairs: dict[str, Pair] = field(default_factory=dict)
    ambiguous: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unmatched: dict[str, str] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, str]:
        """The ONNX values to those of PyTorch."""
        return {name: pair.torch for name, pair in self.pairs.items()}

    @property
    def how(self) -> str:
        """The ways that told something, in words: ``metadata, values``."""
        used = {pair.how for pair in self.pairs.values()}
        return ", ".join(way for way in WAYS if way in used)


def require_way(by: str) -> None:
    """Raises UsageError if there is no such way to match values."""
    if by != "auto" and by not in WAYS:
        hint = did_you_mean(by, [*WAYS, "auto"]) or f"Ways: auto, {', '.join(WAYS)}."
        raise UsageError(f"there is no way {by!r} to match values", hint=hint)


def match(
    model: Model,
    side: TorchValues,
    *,
    by: str = "auto",
    feeds: Sequence[Mapping[str, Value]] = (),
    drift: float | None = None,
    parts: Parts | None = None,
) -> Matching:
    """Returns which values of a model's main graph are which values of PyTorch.

    Args:
        model: The ONNX model, without local functions (see ``onnxbench.inlining``).
        side: The PyTorch model.
        by: One way: ``metadata``, ``names`` or ``values``; ``auto`` takes each for what those before leave open.
        feeds: Sets of inputs to match values on, by the names of the model's inputs; by default the example inputs,
            and others like them (``input_sets``).
        drift: How far a value may be apart, relatively, and still be matched by value; None: rounding only.
        parts: The model ready to run, if it is already.

    Raises:
        UsageError: There is no such way.
        ExecutionError: A side failed.
    """
    require_way(by)
    made = [name for names in GraphIndex(model.proto).main.writes for name in names]
    found = Matching()
    if by in ("auto", "metadata"):
        found.pairs.update(match_metadata(model, side))
    if by == "names" or (by == "auto" and any(name not in found.pairs for name in made)):
        found.pairs.update((name, pair) for name, pair in match_names(model, side).items() if name not in found.pairs)
    left = [name for name in made if name not in found.pairs]
    if by == "auto":
        steps = _steps(model, side)
        found.unmatched = {name: f"a step within {steps[name]}" for name in left if name in steps}
        left = [name for name in left if name not in steps]
    if by in ("auto", "values") and left:
        taken = set(found.tensors.values())
        told = match_values(model, side, feeds=feeds, among=left, taken=taken, drift=drift, parts=parts)
        found.pairs.update(told.pairs)
        found.ambiguous = told.ambiguous
        found.unmatched.update(told.unmatched)
    elif by != "auto":
        found.unmatched = dict.fromkeys(left, f"its {by} {'tell' if by == 'names' else 'tells'} of no value of PyTorch")
    return found


# ---------------------------------------------------------------- by metadata


def match_metadata(model: Model, side: TorchValues) -> dict[str, Pair]:
    """Returns the values that are those of fx nodes by the exporter's metadata, held against the program."""
    if side.kind != "program":
        return {}
    known = dict(fx_nodes(side.program.graph_module))
    found = {}
    for node, said in _told_nodes(model):
        for output, name in zip(node.output, fx_values(node), strict=True):
            if output and name is not None and name in side.values and is_value(known.get(name), said):
                found[output] = Pair(output, name, "metadata")
    if found:
        _add_outputs(model, side, found)
    return found


def _told_nodes(model: Model) -> Iterator[tuple[NodeProto, str]]:
    """Yields the nodes whose metadata names an fx node, with what it says."""
    for node in model.proto.graph.node:
        said = next((e.value for e in node.metadata_props if e.key == FX_NODE and isinstance(e.value, str)), None)
        if said is not None:
            yield node, said


def _add_outputs(model: Model, side: TorchValues, found: dict[str, Pair]) -> None:
    """Adds the outputs that no node tells of (behind a Mark, say): they are in the order of the program's.

    Only where those that are told are at the same place in both.
    """
    ours, theirs = [info.name for info in model.proto.graph.output], side.outputs()
    if len(ours) != len(theirs):
        return
    pairs = dict(zip(ours, theirs, strict=True))
    if all(found[name].torch == value for name, value in pairs.items() if name in found):
        left = {name: value for name, value in pairs.items() if name not in found and value in side.values}
        found.update((name, Pair(name, value, "metadata")) for name, value in left.items())


def _steps(model: Model, side: TorchValues) -> dict[str, str]:
    """Returns the values that are steps within an fx node, and no value of their own, with that fx node."""
    if side.kind != "program":
        return {}
    known = dict(fx_nodes(side.program.graph_module))
    found: dict[str, str] = {}
    for node, said in _told_nodes(model):
        within = fx_name(node)
        if within is not None and is_value(known.get(within), said):
            found.update((output, within) for output in node.output if output)
    return found


# ---------------------------------------------------------------- by names


def call_name(call: ModuleCall) -> str:
    """Returns what the call of a module is called among a PyTorch model's values: ``layers.0.act@1``."""
    return (call.path or ROOT) + "".join(f"@{number}" for number in call.calls)


def module_outputs(model: Model) -> dict[str, list[str]]:
    """Returns the values that leave each module's call, by ``call_name``, as far as names and metadata tell.

    Where several leave it and one of them is made of all the others, it is that one: a cast of the input, or a constant
    that the exporter shares among modules, is read elsewhere too and is nobody's output.
    """
    index = GraphIndex(model.proto)
    known, main = origins(index), index.main
    inside = [{call_name(call) for call in known.modules(node)} for node in main.nodes]
    found: dict[str, list[str]] = {}
    ends = set(main.outputs)
    for position, names in enumerate(main.writes):
        for name in names:
            readers = [inside[at] for at in main.consumers.get(name, ())]
            left = set.union(set(), *(inside[position] - each for each in readers))
            for call in inside[position] if name in ends or not readers else left:
                found.setdefault(call, []).append(name)
    varying = depends_on(main, main.true_inputs())
    for call, names in found.items():
        several = [name for name in names if name in varying or name in ends] or names
        if 1 < len(several) <= _MOST_LEAVING:
            last = several[-1]
            if all(_is_made_of(main, last, name) for name in several[:-1]):
                several = [last]
        found[call] = several
    return found


def match_names(model: Model, side: TorchValues) -> dict[str, Pair]:
    """Returns the values that are outputs of modules by the names (or scopes) of nodes.

    Only modules whose call has one output on both sides are told: several could be swapped.
    """
    outputs = module_outputs(model)
    of_call: dict[str, list[TorchValue]] = {}
    readers: dict[str, list[TorchValue]] = {}
    for value in side.values.values():
        for call in value.calls:
            of_call.setdefault(call, []).append(value)
        for name in value.inputs:
            readers.setdefault(name, []).append(value)
    told: dict[str, str] = {}
    contradicted: set[str] = set()
    for call in sorted(of_call, key=lambda each: -each.count(".")):  # innermost first: the others hand its output on
        if len(outputs.get(call, ())) != 1 or len(of_call[call]) != 1:
            continue
        name, value = outputs[call][0], _folded(of_call[call][0], readers, outputs)
        if name in told and _end(told[name], side) != _end(value.name, side):
            contradicted.add(name)
        told.setdefault(name, value.name)
    return {name: Pair(name, value, "names") for name, value in told.items() if name not in contradicted}


def _folded(value: TorchValue, readers: Mapping[str, Sequence[TorchValue]], outputs: Collection[str]) -> TorchValue:
    """Returns the output of the batch normalization that was folded into what makes a value, if one was."""
    after = readers.get(value.name, ())
    if len(after) != 1 or ".batchnorm." not in (after[0].origin.module_class or ""):
        return value
    is_gone = after[0].calls and not any(call in outputs for call in after[0].calls if _is_norm(call, after[0]))
    return after[0] if is_gone else value


def _is_norm(call: str, value: TorchValue) -> bool:
    return call.split("@")[0] == value.origin.scope


def _end(name: str, side: TorchValues) -> str:
    """Returns the value that this one is under its first name."""
    value = side.values[name]
    while value.same_as is not None:
        value = side.values[value.same_as]
    return value.name


# ---------------------------------------------------------------- by values


def input_sets(side: TorchValues) -> list[dict[str, Value]]:
    """Returns two sets of inputs by the ONNX model's names: the examples, and others like them."""
    return [similar_inputs(side.examples(), number) for number in range(2)]


def match_values(
    model: Model,
    side: TorchValues,
    *,
    feeds: Sequence[Mapping[str, Value]] = (),
    among: Collection[str] | None = None,
    taken: Collection[str] = (),
    drift: float | None = None,
    parts: Parts | None = None,
) -> Matching:
    """Returns which values are the same on all sets of inputs (see ``match`` and the top of this module).

    Args:
        model: The ONNX model.
        side: The PyTorch model.
        feeds: The sets of inputs.
        among: The values to match; None: all that nodes of the main graph make.
        taken: Values of PyTorch that are known to be others: of several names for the same, the next is taken.
        drift: How far they may be apart.
        parts: The model ready to run.
    """
    parts = parts or Parts(model, "ort", backends.Options("none"))
    made = dict.fromkeys(name for names in parts.scope.writes for name in names)
    asked = parts.in_order(name for name in made if among is None or name in among)
    sets = list(feeds) or input_sets(side)
    ours: dict[str, list[_Sketch]] = {name: [] for name in asked}
    theirs: dict[str, list[_Sketch]] = {name: [] for name in side.values}
    for each in sets:
        for name, value in _onnx_values(parts, each, asked):
            if hasattr(value, "dtype") and value.dtype.kind != "O":
                ours[name].append(_sketch(value))
        for batch in side.stream(each, side.batches(_BATCH)):
            for name, value in batch.items():
                theirs[name].append(_sketch(value))
            batch.clear()
    return _decide(asked, ours, theirs, side, drift, parts.scope, taken)


def _onnx_values(parts: Parts, feeds: Mapping[str, Value], names: Sequence[str]) -> Iterator[tuple[str, Value]]:
    for batch in parts.stream(feeds, parts.batches(feeds, names, _BATCH)):
        yield from batch.items()
        batch.clear()


@dataclass(slots=True)
class _Sketch:
    """What is kept of a value.

    Attributes:
        key: What has to be equal: kind of number, shape.
        dtype: Its element type.
        sums: The sums of its elements.
        odd: Sums over what is no plain number: NaN, infinite, or as large as a mask's -3e38; None if there is none.
        length: Its length as a vector.
        tells: Whether it holds enough to tell it from others.
    """

    key: tuple[str, tuple[int, ...]]
    dtype: str
    sums: Array
    odd: Array | None
    length: float
    tells: bool


def _sketch(value: Array) -> _Sketch:
    import numpy as np

    is_float = value.dtype.kind in "fV" or "float" in value.dtype.name
    kind = "f" if is_float else "b" if value.dtype.kind == "b" else "c" if value.dtype.kind == "c" else "i"
    with np.errstate(all="ignore"):
        flat = np.abs(value).reshape(-1) if kind == "c" else value.reshape(-1)
        flat = flat.astype(np.float64)
        where, signs = _places(flat.size)
        odd = None
        plain = np.abs(flat) < _HUGE  # false for NaN
        if not plain.all():
            marks = np.where(plain, 0.0, np.where(np.isnan(flat), 3.0, np.sign(flat)))
            odd = np.bincount(where, weights=marks * signs, minlength=_SUMS)
            flat = np.where(plain, flat, 0.0)
        sums = np.bincount(where, weights=flat * signs, minlength=_SUMS)
        length = float(np.sqrt(np.dot(flat, flat)))
    return _Sketch((kind, value.shape), value.dtype.name, sums, odd, length, _tells(kind, flat))


def _tells(kind: str, flat: Array) -> bool:
    """Tells whether a value is unlikely to be equal to another by chance."""
    import numpy as np

    if flat.size < 2 or flat.min() == flat.max():
        return False
    if kind in "fc" and np.count_nonzero(flat != np.round(flat)) >= 2:
        return True
    return flat.size >= _LEAST and len(np.unique(flat[:4096])) >= (2 if kind == "b" else _LEAST)


@lru_cache(maxsize=4)
def _places(size: int) -> tuple[Array, Array]:
    """Returns the sum that each of so many elements is added to, and its sign."""
    import numpy as np

    draw = np.random.default_rng(size)
    return draw.integers(0, _SUMS, size, dtype=np.uint16).astype(np.intp), draw.integers(0, 2, size) * 2.0 - 1.0


def _decide(
    asked: Sequence[str],
    ours: Mapping[str, Sequence[_Sketch]],
    theirs: Mapping[str, Sequence[_Sketch]],
    side: TorchValues,
    drift: float | None,
    scope: Scope,
    taken: Collection[str],
) -> Matching:
    sets = max(map(len, theirs.values()), default=0)
    groups: dict[Any, _Group] = {}
    for name, sketches in theirs.items():
        if len(sketches) == sets:
            groups.setdefault(_key(sketches), _Group()).add(name, sketches)
    lengths = {
        name: (math.prod(sketches[0].key[1]), tuple(each.length for each in sketches))
        for name, sketches in theirs.items()
        if len(sketches) == sets
    }
    for each in groups.values():
        each.close(side, lengths)
    found = Matching()
    for name in asked:
        sketches = ours[name]
        if len(sketches) != sets:
            found.unmatched[name] = "it is no tensor of numbers"
            continue
        group = groups.get(_key(sketches))
        if group is None:
            found.unmatched[name] = f"PyTorch has no value of its shape {list(sketches[0].key[1])}"
        elif not any(each.tells for each in sketches):
            found.unmatched[name] = "it holds too little to tell it from others"
        elif sketches[0].key[0] in "ib" and _is_same(sketches):
            found.unmatched[name] = "it does not depend on the inputs, so others may be equal by chance"
        else:
            _find(name, sketches, group, drift, found)
    _resolve_chains(ours, groups, found, scope, side)
    _share_out(found, taken)
    _drop_claimed(found, side, groups.values(), taken)
    return found


def _share_out(found: Matching, taken: Collection[str]) -> None:
    """Gives values that are all the same, handed on, the names that this has in PyTorch, in order."""
    used = set(taken)
    for name, pair in found.pairs.items():
        if not pair.others:
            continue
        names = (pair.torch, *pair.others)
        free = [each for each in names if each not in used]
        own = free[0] if free else names[-1]
        used.add(own)
        if own != pair.torch:
            found.pairs[name] = replace(pair, torch=own, others=tuple(each for each in names if each != own))


def _drop_claimed(found: Matching, side: TorchValues, groups: Iterable[_Group], taken: Collection[str]) -> None:
    """Drops pairs of values that would have drifted, where the value of PyTorch is nearer to another, or known.

    What comes before a bias is added is not far from what comes after it.
    """
    same: dict[str, tuple[_Group, int]] = {}  # the same value, handed on, under any of its names
    for group in groups:
        same.update((name, (group, chain)) for name, chain in zip(group.names, group.chain, strict=True))

    def claims(pair: Pair) -> set[tuple[_Group, int]]:
        return {same[name] for name in (pair.torch, *pair.others) if name in same}

    claimed = {same[name] for name in taken if name in same}
    drifted: list[Pair] = []
    for pair in found.pairs.values():
        if pair.apart is not None and pair.apart > ROUNDING.get(side.values[pair.torch].dtype, 1e-4):
            drifted.append(pair)
        else:
            claimed |= claims(pair)
    for pair in sorted(drifted, key=lambda each: each.apart or 0.0):
        if not claimed.isdisjoint(claims(pair)):
            del found.pairs[pair.onnx]
            found.unmatched[pair.onnx] = (
                f"the nearest value of PyTorch, {pair.torch}, is another's ({pair.apart:.2g} apart)"
            )
        claimed |= claims(pair)


def _resolve_chains(
    ours: Mapping[str, Sequence[_Sketch]],
    groups: Mapping[Any, _Group],
    found: Matching,
    scope: Scope,
    side: TorchValues,
) -> None:
    """Tells values apart that are near to each other because one is made of the other: ``x`` and ``x + 1e-6``.

    As many values of PyTorch as of ONNX are near to one another, both are computed one out of the other, and the
    distances have nothing against that order: then they are the same in that order.
    """
    order = {name: at for at, name in enumerate(side.values)}
    sets: dict[tuple[str, ...], list[str]] = {}
    for name, rivals in found.ambiguous.items():
        sets.setdefault(rivals, []).append(name)
    for rivals, names in sets.items():
        group = groups[_key(ours[names[0]])]
        heads: dict[int, list[str]] = {}  # the rivals, those that are the same and handed on taken together
        for rival in sorted(rivals, key=order.__getitem__):
            heads.setdefault(group.chain[group.names.index(rival)], []).append(rival)
        chain = list(heads.values())
        if len(names) != len(chain) or not all(_is_made_of(scope, b, a) for a, b in pairwise(names)):
            continue
        if not all(_is_computed_from(side, b[0], a[0]) for a, b in pairwise(chain)):
            continue
        apart = [group.apart(ours[name]) for name in names]
        ats = [group.names.index(each[0]) for each in chain]
        if any(distances[ats[own]] > min(distances[at] for at in ats) for own, distances in enumerate(apart)):
            continue
        for name, same, distances, at in zip(names, chain, apart, ats, strict=True):
            found.pairs[name] = Pair(name, same[0], "values", float(distances[at]), tuple(same[1:]))
            del found.ambiguous[name]


def _is_made_of(scope: Scope, name: str, source: str) -> bool:
    """Tells whether a value is made of another one, over a few nodes."""
    pending, seen = [name], {name}
    while pending and len(seen) < _NEARBY:
        maker = scope.producers.get(pending.pop(0))
        for each in scope.reads[maker] if maker is not None else ():
            if each == source:
                return True
            if each not in seen:
                seen.add(each)
                pending.append(each)
    return False


def _is_computed_from(side: TorchValues, name: str, source: str) -> bool:
    pending, seen = [name], {name}
    while pending and len(seen) < _NEARBY:
        value = side.values.get(pending.pop(0))
        for each in value.inputs if value is not None else ():
            if each == source:
                return True
            if each not in seen:
                seen.add(each)
                pending.append(each)
    return False


def _alike(one: tuple[int, tuple[float, ...]], other: tuple[int, tuple[float, ...]]) -> bool:
    lengths = zip(one[1], other[1], strict=True)
    return one[0] == other[0] and all(math.isclose(a, b, rel_tol=1e-9) for a, b in lengths)


def _key(sketches: Sequence[_Sketch]) -> Any:
    return tuple(each.key for each in sketches)


def _is_same(sketches: Sequence[_Sketch]) -> bool:
    import numpy as np

    return len(sketches) > 1 and all(np.array_equal(each.sums, sketches[0].sums) for each in sketches)


def _find(name: str, sketches: Sequence[_Sketch], group: _Group, drift: float | None, found: Matching) -> None:
    import numpy as np

    apart = group.apart(sketches)
    nearest = int(np.argmin(apart))
    best = float(apart[nearest])
    dtype = min((sketches[0].dtype, group.dtype(nearest)), key=lambda word: -ROUNDING.get(word, 0.0))
    exact = sketches[0].key[0] in "ib"
    most = 0.0 if exact else max(ROUNDING.get(dtype, 1e-4), drift or 0.0)
    if not best <= most:
        about = f" {best:.2g} apart" if np.isfinite(best) else ""
        found.unmatched[name] = (
            f"no value of PyTorch is the same (the nearest is {group.names[nearest]},{about or ' and far away'})"
        )
        return
    factor = _FACTOR if best <= ROUNDING.get(dtype, 1e-4) else _DRIFTING_FACTOR
    near = apart <= (0.0 if exact else factor * max(best, _FLOOR.get(dtype, 5e-7)))
    rivals = [int(at) for at in np.flatnonzero(near)]
    chains = {group.chain[at] for at in rivals}
    if len(chains) > 1:
        found.ambiguous[name] = tuple(group.names[at] for at in rivals)
        return
    same = [group.names[at] for at in rivals]
    found.pairs[name] = Pair(name, same[0], "values", best, tuple(same[1:]))


class _Group:
    """The values of PyTorch that have one shape (on each set of inputs) and kind of number.

    Attributes:
        names: Their names, in the order of the program.
        chain: For each, a number that it shares with those that are the same value, handed on.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.chain: list[int] = []
        self._sketches: list[Sequence[_Sketch]] = []

    def add(self, name: str, sketches: Sequence[_Sketch]) -> None:
        self.names.append(name)
        self._sketches.append(sketches)

    def close(self, side: TorchValues, lengths: Mapping[str, tuple[int, tuple[float, ...]]]) -> None:
        """Finds out which values are the same and handed on, once all have been added.

        Args:
            side: The PyTorch model.
            lengths: For each of its values, how many elements it has, and its length as a vector on each set.
        """
        import numpy as np

        self._sums = [np.stack([each[at].sums for each in self._sketches]) for at in range(len(self._sketches[0]))]
        self._odd = [
            np.stack([np.zeros(_SUMS) if (odd := each[at].odd) is None else odd for each in self._sketches])
            for at in range(len(self._sketches[0]))
        ]
        self._length = [np.array([each[at].length for each in self._sketches]) for at in range(len(self._sketches[0]))]
        at_name = {name: at for at, name in enumerate(self.names)}
        for at, name in enumerate(self.names):
            links = [at_name[each] for each in self._handed_on(name, side, lengths) if each in at_name]
            equal = [link for link in links if link < at and self._are_equal(link, at)]
            self.chain.append(self.chain[equal[0]] if equal else at)

    @staticmethod
    def _handed_on(name: str, side: TorchValues, lengths: Mapping[str, tuple[int, tuple[float, ...]]]) -> list[str]:
        """Returns the values before one that hold the same elements, in any order: what only moves them is between."""
        found: list[str] = []
        pending, seen = [name], {name}
        while pending and len(found) < _MOST_MOVES:
            value = side.values[pending.pop()]
            before = [value.same_as] if value.same_as is not None else list(value.inputs)
            for each in before:
                if each not in seen and each in lengths and _alike(lengths[each], lengths[name]):
                    seen.add(each)
                    found.append(each)
                    pending.append(each)
        return found

    def _are_equal(self, one: int, other: int) -> bool:
        import numpy as np

        return all(
            np.array_equal(sums[one], sums[other]) and np.array_equal(odd[one], odd[other])
            for sums, odd in zip(self._sums, self._odd, strict=True)
        )

    def dtype(self, at: int) -> str:
        """The element type of a value."""
        return self._sketches[at][0].dtype

    def apart(self, sketches: Sequence[_Sketch]) -> Array:
        """Returns how far each of these values is from another, relatively, on the set where it is farthest."""
        import numpy as np

        worst = np.zeros(len(self.names))
        for sketch, sums, odd, length in zip(sketches, self._sums, self._odd, self._length, strict=True):
            apart = np.sqrt(np.square(sums - sketch.sums).sum(axis=1))
            size = np.maximum(length, 1e-300)
            worst = np.maximum(worst, np.where(apart == 0, 0.0, apart / size))
            own = sketch.odd if sketch.odd is not None else np.zeros(_SUMS)
            worst[np.any(odd != own, axis=1)] = np.inf
        return worst


def aliases(side: TorchValues, names: Iterable[str]) -> dict[str, str]:
    """Returns values that are another one under a further name, with that one."""
    return {name: _end(name, side) for name in names if side.values[name].same_as is not None}
