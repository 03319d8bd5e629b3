"""What culprits do to the outputs, why they do it, and which nodes only pass errors on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from onnxbench.bisection._finding import FACTOR, mended
from onnxbench.bisection._measures import measure
from onnxbench.bisection._report import Amplifier, Culprit, ModuleError, Row
from onnxbench.bisection._sides import ModelReference, as_dtype
from onnxbench.boundary import reach_back
from onnxbench.captures import Value, onnx_dtype
from onnxbench.drift import Tolerance
from onnxbench.errors import BenchError, ExecutionError
from onnxbench.graph import GraphIndex, Scope
from onnxbench.provenance import RULE, ModuleCall, Origins
from onnxbench.records import attribute_value

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

    from onnxbench.bisection._finding import Finding
    from onnxbench.bisection._search import Search
    from onnxbench.provenance import Provenance

MOST_RANKED = 12
"""So many culprits are ranked by their effect, each with a run of the model; those furthest off."""
_WHY = ("names", "metadata", "docs", "value-info", "producer", "opset", "input", "output", "ir-version")
_MOST_REASONS = 4
_MUCH_GROWTH = 10.0
_DECIDING = {
    "TopK", "ArgMax", "ArgMin", "Round", "Floor", "Ceil", "Sign", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
    "Equal", "NonMaxSuppression", "Hardmax", "Unique", "QuantizeLinear", "DynamicQuantizeLinear", "Cast", "Mod",
}  # fmt: skip
"""Operators that jump: two results of rounding may be a whole step apart behind them."""
_LAYOUT = {"ReorderInput", "ReorderOutput", "Reshape", "Transpose"}
"""Operators that compute nothing, and that ONNX Runtime puts around what it fuses."""


class Telling:
    """Says of nodes what they are called, which module they belong to, and which line made them.

    Args:
        search: The search, when it is done.
    """

    def __init__(self, search: Search) -> None:
        self._search = search
        self._scope: Scope = search.parts.scope
        plain = GraphIndex(search.suspect.plain.proto)
        nodes = [node for scope in plain.scopes for node in scope.nodes]
        self._origins = Origins(nodes, plain.main.constants)
        self._main = plain.main

    def _plain_node(self, position: int) -> NodeProto:
        """Returns the node of the model before optimization that made the same tensor, which knows more of itself."""
        node = self._scope.nodes[position]
        for name in node.output:
            if name in self._main.producers:
                return self._main.nodes[self._main.producers[name]]
        return node

    def label(self, position: int) -> str:
        """Returns a node's label; in the original where it came out of a function."""
        return self._scope.label(position)

    def op_type(self, position: int) -> str:
        """Returns a node's operator, with the domain if it is not the standard one."""
        node = self._scope.nodes[position]
        return f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type

    def culprit(self, findings: Sequence[Finding], median: float) -> Culprit:
        """Returns what there is to say of a node with an error of its own."""
        worst = max(findings, key=lambda finding: (finding.excess(median), finding.own.rel if finding.own else 0.0))
        assert worst.own is not None
        reasons, changed, theirs = self.reasons(worst)
        position = changed[0] if changed else self._computing(worst)
        whence = self._whence(position, worst.partner)
        function = self._search.suspect.functions.get(worst.tensor, "").rpartition("/")[0]
        return Culprit(
            node=self.label(position),
            op_type=self.op_type(position),
            tensor=worst.tensor,
            partner=worst.partner,
            region=tuple(self.label(at) for at in worst.nodes if at == worst.maker or not self._is_right_constant(at)),
            own=worst.own,
            inherited=worst.inherited,
            total=worst.total,
            excess=worst.excess(median),
            reference_region=theirs,
            why=reasons,
            module=whence.scope or None,
            source=whence.source,
            code=whence.code,
            function=function or None,
            number=worst.number,
            attributes=self._attributes(position),
        )

    def _computing(self, finding: Finding) -> int:
        """Returns the last node of a region, but not one that the runtime added and that computes nothing."""
        at = finding.maker
        while (node := self._scope.nodes[at]).op_type in _LAYOUT and self._plain_node(at).op_type != node.op_type:
            before = self._scope.producers.get(node.input[0])
            if before not in finding.nodes:
                break
            at = before
        return at

    def _is_right_constant(self, position: int) -> bool:
        """Tells whether a node makes constants that are the reference's, bit for bit."""
        findings = self._search.findings
        varying = self._search.parts.varying
        made = self._scope.writes[position]
        return all(name not in varying and name in findings and findings[name].total.equal for name in made)

    def lacking(self, culprit: Culprit, nodes: Sequence[int], partners: Sequence[str], note: str) -> Culprit:
        """Returns a culprit before whose nodes something is missing.

        Args:
            culprit: The culprit.
            nodes: Positions of the nodes that read what should be made first, from front to back.
            partners: What the reference calls what is missing, in its order.
            note: How that is known.
        """
        explain = getattr(self._search.reference, "explain", str)
        moved = self.moved(culprit, nodes, nodes[0], partners[-1], note)
        return replace(moved, reference_region=tuple(explain(each) for each in partners))

    def deciding(self, finding: Finding) -> str:
        """Returns what node of a region rounding makes decide otherwise, in a phrase; else the one that it ends in."""
        nodes = [self._scope.nodes[at] for at in finding.nodes]
        chosen = [at for at, node in zip(finding.nodes, nodes, strict=True) if node.op_type in _DECIDING]
        position = chosen[0] if chosen else finding.maker
        return f"{self.label(position)} ({self.op_type(position)})"

    def moved(self, culprit: Culprit, nodes: Sequence[int], position: int, partner: str, note: str) -> Culprit:
        """Returns a culprit told of another node of its region.

        Args:
            culprit: The culprit.
            nodes: Positions of the nodes that may be meant.
            position: That of the one to name.
            partner: What the reference calls what it should make.
            note: How that is known.
        """
        whence = self._whence(position, partner)
        explain = getattr(self._search.reference, "explain", None)
        return replace(
            culprit,
            node=self.label(position),
            op_type=self.op_type(position),
            region=tuple(self.label(at) for at in nodes),
            reference_region=(explain(partner),) if explain is not None else (partner,),
            module=whence.scope or None,
            source=whence.source,
            code=whence.code,
            attributes=self._attributes(position),
            narrowed=note,
        )

    def _attributes(self, position: int) -> str:
        return ", ".join(
            f"{attribute.name}={_short(attribute_value(attribute))}"
            for attribute in sorted(self._scope.nodes[position].attribute, key=lambda each: each.name)
        )

    def _whence(self, position: int, partner: str) -> Provenance:
        """Returns where a node comes from: what it says itself, else what the reference knows of its tensor."""
        own = self._origins.of(self._plain_node(position))
        tell = getattr(self._search.reference, "origin", None)
        if tell is None or (own.scope is not None and own.source is not None):
            return own
        known: Provenance = tell(partner)
        return known if own.scope is None else replace(own, frames=own.frames or known.frames)

    def _modules(self, finding: Finding) -> Iterable[ModuleCall]:
        """Returns the modules that a tensor is computed in, outermost first."""
        told = self._origins.modules(self._plain_node(finding.maker))
        if told or not hasattr(self._search.reference, "origin"):
            return told
        parts = (self._whence(finding.maker, finding.partner).scope or "").split(".")
        return [ModuleCall(".".join(parts[:end])) for end in range(1, len(parts) + 1) if parts[0]]

    def reasons(self, finding: Finding) -> tuple[tuple[str, ...], list[int], tuple[str, ...]]:
        """Returns what differs in the files between a region and its partner.

        Returns:
            The differences in words, the positions of the region's nodes that these concern, and the labels of the
            reference's nodes that do what the region does.
        """
        from onnxbench.diffing import diff

        reference = self._search.reference
        if not isinstance(reference, ModelReference):
            explain = getattr(reference, "explain", None)
            return self._weight_reasons(finding), [], (explain(finding.partner),) if explain is not None else ()
        theirs, mine = reference.side.parts, self._search.parts
        match = self._search.match.tensors
        stops = {match[name] for name in finding.inputs if name in match} | set(theirs.scope.true_inputs())
        start = theirs.scope.producers.get(finding.partner)
        if start is None:
            return (), [], ()
        nodes = {start, *reach_back(theirs.scope, theirs.scope.reads[start], stops).nodes}
        names = tuple(theirs.scope.label(at) for at in sorted(nodes, key=theirs.rank.__getitem__))
        if self._search.suspect.place.optimizes or reference.side.place.optimizes:
            return (), [], names  # graphs that a runtime rewrote: everything differs
        try:
            one = theirs.proto(nodes, dict.fromkeys(sorted(stops)), [finding.partner])[0]
            two = mine.proto(finding.nodes, dict.fromkeys(finding.inputs), [finding.tensor])[0]
            report = diff(theirs.model.derive(one), mine.model.derive(two), ignore=_WHY)
        except BenchError:
            return (), [], names
        labels = GraphIndex(two).main.labels()
        ordered = sorted(finding.nodes, key=mine.rank.__getitem__)
        whole = dict(zip(GraphIndex(one).main.labels(), names, strict=True))
        whole |= {label: self.label(at) for label, at in zip(labels, ordered, strict=True)}
        by_label = dict(zip(labels, ordered, strict=True))
        reasons: list[str] = []
        changed: list[int] = []
        for change in report.changes:
            if change.kind in ("wiring", "name", "type"):
                continue
            position = by_label.get(change.where)
            adds = position is not None and change.kind == "node" and change.sign == "+"
            if adds and mine.varying.isdisjoint(mine.scope.writes[by_label[change.where]]):
                position = None  # a constant that only stands elsewhere is none to blame
            if position is not None and position not in changed:
                changed.append(position)
            elif position is None and change.kind == "weight":
                readers = [at for at in ordered if change.where in mine.scope.reads[at]]
                changed += [at for at in readers if at not in changed]
            head, slash, rest = change.where.partition("/")
            where = self.label(position) if position is not None else f"{whole.get(head, head)}{slash}{rest}"
            values = " -> ".join(_short(value) for value in (change.before, change.after) if value is not None)
            sign = f"{change.sign} " if change.sign in "+-" else ""
            what = "" if change.what == change.kind else f" {change.what}"
            note = f" ({change.note})" if change.note else ""
            reasons.append(f"{sign}{change.kind} {where}{what}: {values}{note}")
        if not reasons:
            reasons += _other_version(
                (theirs.model.proto, theirs.scope.nodes[start]), (mine.model.proto, mine.scope.nodes[finding.maker])
            )
        return tuple(reasons[:_MOST_REASONS]), sorted(changed, key=mine.rank.__getitem__), names

    def _weight_reasons(self, finding: Finding) -> tuple[str, ...]:
        """Returns which weights of a region are not what the reference has under the same name.

        A node that was made of several by an exporter has other weights than any of them. So do nodes that a runtime
        made, so weights are those of the model before it was optimized.
        """
        find = getattr(self._search.reference, "weight", None)
        if find is None:
            return ()
        found = []
        nodes = self._main.nodes
        said = [at for at in self._plain_region(finding) if all(e.key != RULE for e in nodes[at].metadata_props)]
        stored = {tensor.name: tensor for tensor in self._main.graph.initializer}
        for name in dict.fromkeys(name for at in said for name in self._main.reads[at]):
            wanted = find(name) if name in stored else None
            if wanted is None:
                continue
            value = self._search.suspect.plain.array(stored[name])
            if value.shape == wanted.shape and (apart := measure(wanted, value, Tolerance())).failing:
                many = f"{apart.failing:,} of {apart.elements:,} elements"
                found.append(f"weight {name}: {many} are not the reference's, by up to {apart.max_abs:.1e}")
        return tuple(found[:_MOST_REASONS])

    def _plain_region(self, finding: Finding) -> Iterable[int]:
        """Returns the nodes before optimization that do what a region does."""
        if not self._search.suspect.place.optimizes:
            return finding.nodes
        start = self._main.producers.get(finding.tensor)
        if start is None:
            return ()
        return sorted({start, *reach_back(self._main, self._main.reads[start], set(finding.inputs)).nodes})

    def rows(self, median: float) -> list[Row]:
        """Returns a row for every tensor that was compared."""
        search = self._search
        found = [search.findings[name] for name in search.names if name in search.findings]
        rows = []
        for f in found:
            whence = self._whence(f.maker, f.partner)
            rows.append(
                Row(
                    f.tensor, f.partner, self.label(f.maker), self.op_type(f.maker), f.total, f.own, f.inherited,
                    f.excess(median), f.number, f.note, f.inputs, len(f.nodes), f.precision, whence.scope or None,
                    whence.source, whence.code, f.allowed, f.settled,
                    f.drift,
                )
            )  # fmt: skip
        return rows

    def furthest_off(self) -> str:
        """Returns which node is furthest off by itself, in words; ``""`` if none is."""
        found = [f for f in self._search.findings.values() if f.own is not None and f.own.rel and not f.own.problem]
        if not found:
            return ""
        most = max(found, key=lambda f: f.own.rel if f.own is not None else 0.0)
        assert most.own is not None
        return f"{self.label(most.maker)} the most: {most.own.text}"

    def amplifiers(self, median: float) -> list[Amplifier]:
        """Returns nodes that make ten times and more of what they inherit, where that is more than rounding."""
        found = []
        for f in self._search.findings.values():
            inherits = f.before is not None and f.before.rel > f.precision > 0
            if inherits and f.growth >= _MUCH_GROWTH and f.total.rel > FACTOR * f.precision and f.excess(median) <= 1:
                before = f.total.rel / f.growth
                label, op_type = self.label(f.maker), self.op_type(f.maker)
                found.append(Amplifier(label, op_type, f.tensor, before, f.total.rel, f.growth))
        return sorted(found, key=lambda entry: -entry.growth)

    def modules(self, median: float) -> list[ModuleError]:
        """Returns the errors by PyTorch module, outer modules before inner ones, in the order of the model."""
        found: dict[str, list[Finding]] = {}
        for name in self._search.names:
            finding = self._search.findings.get(name)
            if finding is None:
                continue
            for call in self._modules(finding):
                found.setdefault(str(call), []).append(finding)
        return [
            ModuleError(
                path,
                len(members),
                max(member.excess(median) for member in members),
                max(member.total.severity for member in members),
            )
            for path, members in found.items()
        ]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _other_version(one: tuple[ModelProto, NodeProto], other: tuple[ModelProto, NodeProto]) -> list[str]:
    """Returns that two nodes that look the same are of other versions of their operator, if they are."""
    import onnx

    versions = []
    for proto, node in (one, other):
        known = {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}
        version = known.get(node.domain or "ai.onnx", 0)
        if not onnx.defs.has(node.op_type, version, node.domain):
            return []
        versions.append((node.op_type, onnx.defs.get_schema(node.op_type, version, node.domain).since_version))
    (op_type, before), (_, after) = versions
    return [f"{op_type} of opset {before} -> {after}"] if before != after else []


def ranked(
    search: Search,
    culprits: Sequence[Culprit],
    groups: Sequence[Sequence[Finding]],
    feeds: Sequence[Mapping[str, Value]],
) -> tuple[list[Culprit], float | None]:
    """Returns culprits by their effect on the outputs, and what all of them together explain.

    Each is mended in a run of the suspect: how much of the final error goes away? A mended tensor is the suspect's
    value less the node's own error, so that what it inherits from other culprits stays. (The reference's value would
    take away the effect of all culprits before it too, and the last one would look like the worst.) Where the own
    error is no number (NaN, another shape), and for all culprits together, it is the reference's value.

    Culprits whose values cannot all be held are returned as they are.

    Args:
        search: The search, when it is done.
        culprits: The culprits.
        groups: What was found of each.
        feeds: All sets of inputs.
    """
    if not culprits:
        return [], None
    outputs = [name for name in dict.fromkeys(search.parts.scope.outputs) if name in search.reference_outputs]
    order = sorted(range(len(culprits)), key=lambda at: (-culprits[at].excess, -culprits[at].own.rel))
    number = culprits[order[0]].number
    inputs = feeds[number]
    if not search.fits([*outputs, *(name for group in groups for f in group for name in (f.tensor, *f.inputs))]):
        return list(culprits), None
    effects: dict[int, float] = {}
    together: float | None = None
    try:
        mending = _Mending(search, inputs, outputs, [finding for group in groups for finding in group])
        if mending.base:
            for at in order[:MOST_RANKED]:
                effect = mending.effect(groups[at])
                if effect is not None:
                    effects[at] = effect
            together = mending.effect_of_all() if len(groups) > 1 else effects.get(0)
    except ExecutionError:
        pass
    made = [replace(culprit, effect=effects.get(at)) for at, culprit in enumerate(culprits)]
    place = {at: number for number, at in enumerate(order)}
    unknown = [1.0 if culprit.own.problem else -math.inf for culprit in culprits]
    chosen = sorted(range(len(made)), key=lambda at: (-round(effects.get(at, unknown[at]), 2), place[at]))
    return [made[at] for at in chosen], together


class _Mending:
    """Runs of the suspect in which culprits are mended."""

    def __init__(
        self, search: Search, feeds: Mapping[str, Value], outputs: Sequence[str], findings: Sequence[Finding]
    ) -> None:
        self._search, self._feeds, self._outputs = search, feeds, outputs
        self._names = list(dict.fromkeys(finding.tensor for finding in findings))
        kept = search.kept
        self._forced: dict[str, Value] = {}
        if kept.number == findings[0].number and kept.values.keys() >= set(self._names):
            values = {name: kept.values[name] for name in self._names}
            self._wanted = {**kept.reference_outputs, **{name: each[0] for name, each in values.items()}}
            self._plain = {**kept.outputs, **{name: each[1] for name, each in values.items()}}
            self._forced = {name: each[2] for name, each in values.items()}
        else:
            inner = [name for finding in findings for name in finding.inputs if name not in feeds]
            self._wanted = search.values([*outputs, *self._names, *inner], feeds, findings[0].number)
            self._plain = search.with_values({}, feeds, list(dict.fromkeys([*outputs, *self._names, *inner])))
        self.base = _error(outputs, self._wanted, self._plain)

    def effect(self, group: Sequence[Finding]) -> float | None:
        """Returns the share of the outputs' error that goes away when one node is mended; None if it cannot be.

        Values that the suspect's element type cannot hold cannot be put in.
        """
        if any(self._unfit(finding.tensor) for finding in group):
            return None
        forced = self._forced or self._run_on_the_references(group)
        names = [finding.tensor for finding in group]
        return self._less({name: mended(self._as_suspects(name), self._plain[name], forced[name]) for name in names})

    def _run_on_the_references(self, group: Sequence[Finding]) -> dict[str, Value]:
        given = {
            name: self._feeds[name] if name in self._feeds else self._as_suspects(name) for name in group[0].inputs
        }
        return self._search.parts.run(group[0].nodes, given, [finding.tensor for finding in group])

    def effect_of_all(self) -> float | None:
        """Returns the same for all culprits together."""
        if any(self._unfit(name) for name in self._names):
            return None
        return self._less({name: self._as_suspects(name) for name in self._names})

    def _unfit(self, name: str) -> bool:
        return bool(measure(self._wanted[name], self._as_suspects(name)).problem)

    def _as_suspects(self, name: str) -> Value:
        plain = self._plain[name]
        return as_dtype(self._wanted[name], onnx_dtype(plain.dtype) if hasattr(plain, "dtype") else 0)

    def _less(self, values: Mapping[str, Value]) -> float:
        if self._search.kept.mended == values.keys() and self._forced:
            got: Mapping[str, Value] = self._search.kept.mended_outputs
        else:
            got = self._search.with_values(values, self._feeds, self._outputs)
        return 1 - _error(self._outputs, self._wanted, got) / self.base


def _error(names: Iterable[str], wanted: Mapping[str, Value], got: Mapping[str, Value]) -> float:
    """Returns the error of all outputs in one number: relative, and larger than any such for what is wrong in kind."""
    squares = 0.0
    for name in names:
        distance = measure(wanted[name], got[name])
        size = 1e6 * (1 + distance.nonfinite / max(1, distance.elements)) if distance.problem else distance.rel
        if not math.isfinite(size):
            size = min(distance.max_abs, 1e6)
        squares += size * size
    return math.sqrt(squares)
