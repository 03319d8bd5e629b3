"""One search from inputs to verdict: every set of inputs compared, what is found said, and the outputs judged."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from onnxbench.bisection._bodies import body_run
from onnxbench.bisection._effects import Telling, ranked
from onnxbench.bisection._evidence import Evidence, gather
from onnxbench.bisection._failing import require_sound
from onnxbench.bisection._finding import FACTOR
from onnxbench.bisection._measures import Distance, measure
from onnxbench.bisection._narrowing import narrowed, told_once
from onnxbench.bisection._report import CLEAN, DRIFT, ROUNDING, SPREAD, Bisection, Culprit, Row, verdict
from onnxbench.bisection._repro import write_repro
from onnxbench.bisection._search import Search, make_twins
from onnxbench.bisection._sides import ModelReference, RecordedReference, Reference, Suspect
from onnxbench.bisection._unexercised import UnrunBody, doubt_about, unrun_bodies
from onnxbench.captures import Value, check_feeds, input_ports
from onnxbench.drift import TensorDrift, Tolerance, are_nan, compare_values
from onnxbench.errors import BenchError, FeedsError, UnsupportedError
from onnxbench.feeding import FeedOptions, choices_explained, feed_sets
from onnxbench.graph import GraphIndex
from onnxbench.progress import track
from onnxbench.specs import parse_tolerances
from onnxbench.wording import plural

if TYPE_CHECKING:
    from onnxbench.bisection._finding import Finding


_LARGE = 1e-3
"""Outputs that are off by more, relatively, have drifted, even if no node does more than round."""
_MOST_NAMED = 8
_ENGINE_FACTOR = 10.0
"""In units of TF32: what the outputs of a finished engine may be off without a search."""


class Bisector:
    """One search from inputs to verdict."""

    def __init__(
        self,
        suspect: Suspect,
        reference: Reference,
        atol: Sequence[str] | float,
        rtol: Sequence[str] | float,
        memory: int,
        *,
        auto_tolerance: bool = False,
        keep_fusions: bool = False,
        strict: bool = False,
        thorough: bool = False,
    ) -> None:
        self._strict = strict
        self._keep_fusions = keep_fusions
        self._suspect, self._reference = suspect, reference
        names = set(suspect.parts.scope.tensor_names())
        self._atol, self._rtol = _tolerances(atol, names, "--atol"), _tolerances(rtol, names, "--rtol")
        self._memory = memory
        self._is_told = bool(self._atol or self._rtol) or auto_tolerance
        twins = make_twins(suspect, reference) if isinstance(reference, ModelReference) else _no_twins
        self._search = Search(
            suspect,
            reference,
            max_bytes=memory,
            tolerance=self._tolerance,
            twins=twins,
            strict=strict,
            calibrate=auto_tolerance,
            thorough=thorough,
        )
        if any(name not in self._search.match.tensors for name in suspect.parts.scope.outputs):
            for side in (suspect, *([reference.side] if isinstance(reference, ModelReference) else [])):
                require_sound(side.model)
        self._notes: list[str] = [*getattr(reference, "notes", ())]
        if not self._search.names:
            hint = "Are these two forms of one model? 'onnxbench diff' shows what they have in common."
            if isinstance(reference, RecordedReference):
                hint = f"Recorded are: {', '.join(list(reference.recorded[0])[:_MOST_NAMED])}."
            raise UnsupportedError(f"no tensor of the suspect is known to the reference ({reference.label})", hint=hint)
        self._outputs: dict[str, list[TensorDrift]] = {}
        self._worst: dict[str, int] = {}
        self._disturbed: dict[str, Distance] = {}
        self._choices: dict[str, None] = {}
        self._feeds: list[Mapping[str, Value]] = []

    def _tolerance(self, name: str) -> Tolerance | None:
        atol, rtol = (given.get(name, given.get(None)) for given in (self._atol, self._rtol))
        return None if atol is None and rtol is None else Tolerance(atol or 0.0, rtol or 0.0)

    def run(
        self,
        feeds: Mapping[str, Value] | FeedOptions | None,
        repro: str | os.PathLike[str] | None = None,
        sources: Mapping[str, Sequence[str]] | None = None,
        *,
        anonymize: bool = False,
    ) -> Bisection:
        """Returns what the search finds, with evidence if it is said which files the sides were given as."""
        search = self._search
        sets = self._sets(feeds)
        if self._suspect.engine is not None or getattr(self._reference, "engine", None) is not None:
            given = list(sets)
            if given and self._engines_agree([values for values, _ in given]):
                return self._agreed(given)
            self._notes.append("the model was built again as the engine was, with its tensors as outputs")
            sets = iter(given)
        for number, (values, choices) in enumerate(sets):
            self._choices.update(dict.fromkeys(choices))
            self._feeds.append(values)
            with choices_explained(choices), track("comparing", len(search.names), "tensors") as advance:
                search.take(values, number, advance)
                self._compare_outputs(values, number)
        if not self._feeds:
            raise FeedsError("the data holds no set of inputs")
        return self._result(repro, sources, anonymize)

    def _sets(
        self, feeds: Mapping[str, Value] | FeedOptions | None
    ) -> Iterator[tuple[Mapping[str, Value], tuple[str, ...]]]:
        model, most = self._suspect.model, self._reference.sets
        if isinstance(feeds, Mapping):
            yield check_feeds(feeds, input_ports(model.proto.graph)), ()
            return
        own = getattr(self._reference, "inputs", None)
        if own is not None and (feeds is None or feeds.says_nothing):
            sets = 1 if feeds is None or feeds.iterations is None else feeds.iterations
            yield from ((check_feeds(own(number), input_ports(model.proto.graph)), ()) for number in range(sets))
            return
        asked = None if feeds is None else feeds.iterations
        if most is not None and asked is not None and asked > most:
            raise FeedsError(
                f"{asked:,} sets of inputs are asked for, and the values of {plural(most, 'set')} are recorded",
                hint="Name a file for each set with --load-outputs.",
            )
        recorded = self._recorded_feeds() if feeds is None or not feeds.sources else None
        if recorded is not None:
            yield from ((values, ()) for values in recorded[:asked])
            return
        if most is not None and (feeds is None or not feeds.sources):
            self._notes.append("the inputs were drawn; the recorded values have to come from the same ones (--feeds)")
        for feed_set in islice(feed_sets(model, feeds, index=GraphIndex(model.proto)), most):
            yield feed_set.feeds, feed_set.choices

    def _engines_agree(self, sets: Sequence[Mapping[str, Value]]) -> bool:
        """Tells whether finished engines give what the other side gives, within what TF32 does; keeps the drifts."""
        match = self._search.match.tensors
        names = [name for name in dict.fromkeys(self._search.parts.scope.outputs) if name in match]
        agree = bool(names)
        for number, feeds in enumerate(sets):
            values = self._suspect.outputs(feeds)
            wanted = self._plain_reference(names, feeds, number)
            for name in names:
                drifts = compare_values(
                    name, wanted[match[name]], values[name], check_dtype=False, tolerance=self._tolerance(name)
                )
                self._keep_worst(name, drifts, number)
                apart = measure(wanted[match[name]], values[name])
                unit = self._suspect.place.unit or getattr(self._reference, "unit", 0.0)
                rounds = not self._is_told and not apart.problem and apart.rel <= max(_LARGE, _ENGINE_FACTOR * unit)
                agree &= rounds or all(drift.passed for drift in drifts)
        return agree

    def _plain_reference(self, names: Sequence[str], feeds: Mapping[str, Value], number: int) -> Mapping[str, Value]:
        """Returns the reference's outputs by its own names, with nothing looked at within."""
        if isinstance(self._reference, ModelReference):
            return self._reference.side.outputs(self._reference.own_feeds(feeds))
        partners = [self._search.match.tensors[name] for name in names]
        return next(iter(self._reference.stream(feeds, [partners], number=number)))

    def _agreed(self, given: Sequence[tuple[Mapping[str, Value], tuple[str, ...]]]) -> Bisection:
        """Returns the verdict on engines whose outputs are right: nothing within was looked at."""
        outputs = tuple(drift for drifts in self._outputs.values() for drift in drifts)
        return Bisection(
            suspect=self._suspect.label, reference=self._reference.label, kind=CLEAN, passed=True,
            verdict=f"no drift: {plural(len(outputs), 'output')} compared, the same within rounding",
            how="names", matched=len(outputs), unmatched=self._search.unmatched, sets=len(given), outputs=outputs,
            culprits=(), explained=None, median=0.0, amplifiers=(), modules=(), tensors=(),
            choices=tuple(dict.fromkeys(word for _, choices in given for word in choices)),
            worst_sets=tuple(self._worst[drift.name] for drift in outputs),
            notes=(*self._notes, "only the outputs were compared: an engine shows nothing within"),
        )  # fmt: skip

    def _keep_worst(self, name: str, drifts: list[TensorDrift], number: int) -> None:
        known = self._outputs.get(name)
        if known is None or max(map(_badness, drifts)) > max(map(_badness, known)):
            self._outputs[name] = drifts
            self._worst.update((drift.name, number) for drift in drifts)

    def _recorded_feeds(self) -> list[Mapping[str, Value]] | None:
        """Returns the inputs, if they are recorded with the reference's values."""
        if not isinstance(self._reference, RecordedReference):
            return None
        return list(self._reference.feeds(self._suspect.ports)) or None

    def _compare_outputs(self, feeds: Mapping[str, Value], number: int) -> None:
        """Compares the outputs of the suspect itself, as they are with nothing looked at within."""
        search = self._search
        names = [name for name in dict.fromkeys(search.parts.scope.outputs) if name in search.reference_outputs]
        if not names:
            return
        values = search.outputs if search.is_undisturbed else self._suspect.outputs(feeds)
        for name in names:
            apart = measure(values[name], search.outputs[name])
            if not apart.equal:
                self._disturbed[name] = max(apart, self._disturbed.get(name, apart), key=lambda each: each.severity)
            drifts = compare_values(
                name, search.reference_outputs[name], values[name], check_dtype=False,
                tolerance=self._tolerance(name) or search.calibrated.get(name),
            )  # fmt: skip
            self._keep_worst(name, drifts, number)

    def _result(
        self, repro: str | os.PathLike[str] | None, sources: Mapping[str, Sequence[str]] | None, anonymize: bool
    ) -> Bisection:
        search = self._search
        median = search.median
        groups = search.culprits()
        telling = Telling(search)
        culprits = [telling.culprit(group, median) for group in groups]
        finding = {culprit.tensor: group for culprit, group in zip(culprits, groups, strict=True)}
        ordered, explained = ranked(search, culprits, groups, self._feeds)
        if ordered and all(culprit.effect is None for culprit in ordered) and self._strict:
            self._notes.append(
                "effects on the outputs were not measured: that takes more memory, or the outputs are equal"
            )
        ordered = [self._with_inner(culprit, finding[culprit.tensor]) for culprit in ordered]
        ordered = told_once(
            [self._narrowed(culprit, finding[culprit.tensor], telling) for culprit in ordered], explained
        )
        outputs = tuple(drift for drifts in self._outputs.values() for drift in drifts)
        kind, passed = self._judge(outputs, bool(culprits), median)
        rows = tuple(telling.rows(median))
        judged = sum(row.is_judged for row in rows)
        self._add_notes(rows, outputs, bool(culprits))
        unrun, told = unrun_bodies(self._suspect, self._reference, self._feeds)
        self._notes += told
        if repro is not None and ordered:
            first = ordered[0]
            worst = next(f for f in finding[first.tensor] if f.tensor == first.tensor)
            self._notes += write_repro(
                repro, search, first, worst, self._feeds[first.number], median, anonymize=anonymize
            )
        elif repro is not None:
            self._notes.append("no culprit was found, so nothing was written")
        said = verdict(kind, tuple(ordered), outputs, median, judged, self._unstable(telling), telling.furthest_off())
        return Bisection(
            suspect=self._suspect.label,
            reference=self._reference.label,
            kind=kind,
            passed=passed,
            verdict="; but ".join([said, *self._doubts(unrun)] if passed else [said]),
            how=search.match.how,
            matched=len(search.names),
            unmatched=search.unmatched,
            sets=len(self._feeds),
            outputs=outputs,
            culprits=tuple(ordered),
            explained=explained,
            median=median,
            amplifiers=tuple(telling.amplifiers(median)),
            modules=tuple(telling.modules(median)),
            tensors=rows,
            choices=tuple(self._choices),
            notes=tuple(self._notes),
            worst_sets=tuple(self._worst[drift.name] for drift in outputs),
            evidence=None if sources is None else self._evidence(ordered, finding, sources),
            unrun=unrun,
        )

    def _doubts(self, unrun: Sequence[UnrunBody]) -> list[str]:
        """Returns what was not compared although there is something to compare, for the verdict that all is well."""
        left = self._reference.notes if isinstance(self._reference, ModelReference) else ()
        return [*left, *doubt_about(unrun)]

    def _unstable(self, telling: Telling) -> str:
        found = self._search.unstable()
        if found is None:
            return ""
        return (
            f"moving what {telling.deciding(found)} reads by one unit of precision does as much "
            "(ties, or terms that cancel)"
        )

    def _evidence(
        self,
        culprits: Sequence[Culprit],
        groups: Mapping[str, Sequence[Finding]],
        sources: Mapping[str, Sequence[str]],
    ) -> Evidence:
        worst = [next(f for f in groups[each.tensor] if f.tensor == each.tensor) for each in culprits]
        return gather(self._search, worst, self._feeds, sources)

    def _narrowed(self, culprit: Culprit, group: Sequence[Finding], telling: Telling) -> Culprit:
        worst = next(finding for finding in group if finding.tensor == culprit.tensor)
        return narrowed(self._search, telling, culprit, worst, self._feeds[worst.number])

    def _with_inner(self, culprit: Culprit, group: Sequence[Finding]) -> Culprit:
        """Returns an If, a Loop or a Scan with the culprits in its body; any other node as it is."""
        if not isinstance(self._reference, ModelReference):
            return culprit
        search = self._search
        worst = next(finding for finding in group if finding.tensor == culprit.tensor)
        try:
            run = body_run(search, worst, self._feeds[worst.number])
            if run is None:
                return culprit
            places = [self._suspect.place, self._reference.side.place]
            plain = [replace(place, options=replace(place.options, optimization="none")) for place in places]
            suspect, reference = Suspect(run.suspect, plain[0]), ModelReference(run.reference, plain[1])
            inner = Bisector(suspect, reference, (), (), self._memory, strict=self._strict).run(run.feeds)
        except BenchError as error:
            self._notes.append(f"the body of {culprit.node} could not be searched: {error.message}")
            return culprit
        return replace(culprit, iteration=run.iteration, inner=tuple(_below(each, run.path) for each in inner.culprits))

    def _judge(self, outputs: Sequence[TensorDrift], found: bool, median: float) -> tuple[str, bool]:
        if found:
            return DRIFT, False
        if all(drift.passed for drift in outputs):
            return CLEAN, not are_nan(outputs)
        worst = max(10 ** (-drift.sqnr_db / 20) if drift.sqnr_db is not None else math.inf for drift in outputs)
        precision = max((f.precision for f in self._search.findings.values()), default=0.0)
        kind = SPREAD if median > FACTOR * precision else ROUNDING
        return kind, kind == ROUNDING and not self._is_told and worst <= max(_LARGE, FACTOR * precision)

    def _add_notes(self, rows: Sequence[Row], outputs: Sequence[TensorDrift], found: bool) -> None:
        search = self._search
        unjudged = [row for row in rows if not row.is_judged]
        if unjudged:
            self._notes.append(
                f"the own error of {len(unjudged):,} tensors could not be told: "
                f"{unjudged[0].tensor!r}: {unjudged[0].note}"
            )
        missing = [name for name in dict.fromkeys(search.parts.scope.outputs) if name not in search.match.tensors]
        if missing:
            self._notes.append(f"the reference has no output {missing[0]!r}, so it was not compared")
        types = [row for row in rows if row.total.dtypes[0] != row.total.dtypes[1]]
        if types:
            one, other = types[0].total.dtypes
            self._notes.append(f"{len(types):,} tensors are of another element type ({other}, {one} in the reference)")
        if self._keep_fusions:
            words = [f"output {name!r} by {apart.text}" for name, apart in self._disturbed.items()]
            self._notes.append(
                f"looking at tensors changes what is computed: {words[0]}"
                if words
                else "fusions are as in use: the graph that was searched gives the outputs of the model, bit for bit"
            )
        for drift in outputs:
            if drift.both_nan:
                self._notes.append(
                    f"output {drift.name!r} is NaN on both sides in {drift.both_nan:,} of {drift.elements:,} elements: "
                    "those say nothing; the first node that makes NaN: onnxbench run MODEL --find-nan"
                )
        within = all(search.findings[d.name].total.passed for d in outputs if d.name in search.findings)
        if found and outputs and all(drift.passed for drift in outputs):
            self._notes.append("the outputs are within the tolerance all the same")
        if outputs and within and not all(drift.passed for drift in outputs):
            self._notes.append(
                "the outputs drift only while nothing is looked at within: exposing tensors changes what is fused"
            )


def _no_twins(position: int, partner: str) -> bool:
    return False


def _below(culprit: Culprit, path: str) -> Culprit:
    """Returns a culprit in a body with the path of that body before its names."""
    return replace(
        culprit,
        node=f"{path}/{culprit.node}",
        region=tuple(f"{path}/{name}" for name in culprit.region),
        inner=tuple(_below(each, path) for each in culprit.inner),
    )


def _badness(drift: TensorDrift) -> tuple[bool, float, float]:
    noise = -drift.sqnr_db if drift.sqnr_db is not None else math.inf
    return not drift.passed, drift.nonfinite, noise if not drift.bitwise_equal else -math.inf


def _tolerances(given: Sequence[str] | float, names: set[str], what: str) -> dict[str | None, float]:
    if isinstance(given, (int, float)):
        return {None: float(given)}
    return parse_tolerances(given, names, what=what)
