"""Which of the things that were done to a model introduces its drift: an optimizer, an edit, an opset, a provider.

    found = onnxbench.bisect_over("model.onnx", "optimizers", atol=1e-4)
    print(found.verdict)

Each is a list of changes, and outputs are compared on the same inputs. Steps of a recipe and of a conversion come one
after the other, so each is judged by what it adds. Providers are judged each by itself. Optimizers work on each
other's results, so there delta debugging looks for the fewest that, with all others off, show the drift.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from onnxbench import backends
from onnxbench.bisection import Place, measure, parse_place
from onnxbench.captures import Value, check_feeds, input_ports
from onnxbench.changes._optimizers import optimizer_names
from onnxbench.drift import DriftReport, Tolerance, compare_values
from onnxbench.errors import (
    ExecutionError,
    FeedsError,
    MissingDependencyError,
    UnsupportedError,
    UsageError,
    did_you_mean,
)
from onnxbench.feeding import FeedOptions, feed_sets
from onnxbench.model import Model, load
from onnxbench.opsets import convert_opset, opset_number, standard_opset
from onnxbench.progress import track
from onnxbench.recipe import load_recipe
from onnxbench.shrinking import fewest
from onnxbench.surgery import edit

__all__ = ["Change", "ChangeSearch", "bisect_over"]

_LARGE = {"float16": 1e-2, "bfloat16": 5e-2}
_PLAIN_LARGE = 1e-3
_NOTHING = object()
"""Stands for an output of a model that does not run."""
_KINDS = ("optimizers", "opset", "providers")
_RECIPES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that was done to a model.

    Attributes:
        name: What: an optimizer, a step, an opset version, a provider.
        error: How far the worst output is off because of it: length of the difference over that of what should be;
            infinite for other shapes, NaN and Inf on one side, None where it could not be tried.
        output: That output.
        total: The same against the model as it was; None where changes do not build on each other.
        culprit: Whether that is drift.
        note: What a user should know, or ``""``.
    """

    name: str
    error: float | None
    output: str = ""
    total: float | None = None
    culprit: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class ChangeSearch:
    """Which changes introduce drift.

    Attributes:
        over: What was searched: ``optimizers``, ``recipe``, ``opset``, ``providers``.
        passed: Whether there is no drift.
        verdict: One line.
        suspect: The changed model, in words.
        reference: What it is compared with.
        error: How far its worst output is off with all changes; None where these do not build on each other.
        changes: All changes, in order.
        culprits: Names of those that introduce drift.
        runs: How many models were run.
        sets: On how many sets of inputs.
        choices: What was decided about the inputs without being told.
        notes: What else a user should know.
    """

    over: str
    passed: bool
    verdict: str
    suspect: str
    reference: str
    error: float | None
    changes: tuple[Change, ...]
    culprits: tuple[str, ...]
    runs: int
    sets: int
    choices: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def bisect_over(
    source: Model | str | os.PathLike[str],
    over: str,
    *,
    on: Place | str | None = None,
    reference_on: Place | str | None = None,
    feeds: Mapping[str, Value] | FeedOptions | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    isolate: float = 0.0,
    allow_outside: bool = False,
) -> ChangeSearch:
    """Returns which of the changes that a model goes through introduces drift.

    Args:
        source: A model or a model file, before the changes.
        over: ``optimizers``: those of ONNX Runtime at the level of ``on``; a YAML file: the steps of a recipe;
            ``opset``, ``opset:21``: conversion to that version (the newest by default), version by version;
            ``providers``: each execution provider of this ONNX Runtime.
        on: What runs the changed model; for ``optimizers`` and ``providers`` with all optimizations, else with none.
        reference_on: What runs it as it was: ``ort:none``.
        feeds: Values by input, or what a user says about them; None draws one set from seed 0.
        atol: What an element may be off. With neither this nor ``rtol``, an output has drifted when it is off by 1e-3
            as a whole (1e-2 in float16, 5e-2 in bfloat16).
        rtol: The same, relative to the expected value.
        isolate: Seconds that a run of the changed model may take in a process of its own; 0 for this process.
        allow_outside: Follow external data that leaves the model's folder.

    Raises:
        UsageError: There is no such kind of change.
        ExecutionError: The model as it was does not run.
    """
    kind, _, version = over.partition(":")
    is_recipe = over.lower().endswith(_RECIPES)
    if not is_recipe and (kind not in _KINDS or (version and kind != "opset")):
        near = None if kind in _KINDS else did_you_mean(kind, _KINDS)
        raise UsageError(
            f"--over {over!r} is no kind of change",
            hint=near or "Kinds: optimizers, opset, opset:N, providers, or a recipe (.yaml).",
        )
    model = source if isinstance(source, Model) else load(source, allow_outside=allow_outside)
    level = "none" if is_recipe or kind == "opset" else "all"
    place = on if isinstance(on, Place) else parse_place(on or "ort", level=level, what="--on")
    right = (
        reference_on if isinstance(reference_on, Place)
        else parse_place(reference_on or "ort", level="none", what="--reference-on")
    )  # fmt: skip
    tolerance = None if atol is None and rtol is None else Tolerance(atol or 0.0, rtol or 0.0)
    job = _Job(model, place, right, tolerance, isolate)
    if is_recipe:
        return job.recipe(over, feeds, allow_outside=allow_outside)
    if kind == "optimizers" and not place.optimizes:
        raise UsageError(
            "--over optimizers is about what ONNX Runtime makes of the model, and --on leaves it as it is",
            hint="Say --on ort:all, ort:extended or ort:basic.",
        )
    job.take(feeds)
    if kind == "optimizers":
        return job.optimizers()
    return job.providers() if kind == "providers" else job.opset(version or "latest")


class _Job:
    """One search over changes."""

    def __init__(self, model: Model, place: Place, right: Place, tolerance: Tolerance | None, isolate: float) -> None:
        self._model, self._place, self._right, self._tolerance = model, place, right, tolerance
        self._isolate = isolate
        self._sets: list[Mapping[str, Value]] = []
        self._expected: list[dict[str, Value]] = []
        self._choices: tuple[str, ...] = ()
        self._notes: list[str] = []
        self._runs = 0
        self._failure = ""

    def take(self, feeds: Mapping[str, Value] | FeedOptions | None) -> None:
        """Runs the model as it was."""
        if isinstance(feeds, Mapping):
            self._sets = [check_feeds(feeds, input_ports(self._model.proto.graph))]
        else:
            found = list(feed_sets(self._model, feeds))
            self._sets = [each.feeds for each in found]
            self._choices = tuple(dict.fromkeys(word for each in found for word in each.choices))
        if not self._sets:
            raise FeedsError("the data holds no set of inputs")
        session = backends.open_session(self._model, self._right.backend, options=self._right.options)
        self._expected = [session.run(each) for each in self._sets]
        session.close()
        self._runs += 1

    def _outputs(self, model: Model, options: backends.Options) -> list[dict[str, Value]]:
        self._runs += 1
        options = replace(options, isolate=self._isolate)
        session = backends.open_session(model, self._place.backend, options=options)
        try:
            return [session.run(each) for each in self._sets]
        finally:
            session.close()

    def _attempt(self, options: backends.Options) -> list[dict[str, Value]]:
        """Returns the outputs, or what stands for them where the model does not run; the first failure is kept."""
        try:
            return self._outputs(self._model, options)
        except ExecutionError as error:
            self._failure = self._failure or error.message
            return [dict.fromkeys(right, _NOTHING) for right in self._expected]

    def _compare(
        self, expected: Sequence[Mapping[str, Value]], actual: Sequence[Mapping[str, Value]]
    ) -> tuple[float, str, bool]:
        """Returns how far the worst output is off, which it is, and whether that is drift."""
        worst, output, drifts = 0.0, "", False
        for right, made in zip(expected, actual, strict=True):
            for name in right:
                if name not in made:
                    continue
                error, off = self._judge(right[name], made[name])
                drifts = drifts or off
                if error > worst or not output:
                    worst, output = error, name
        return worst, output, drifts

    def _judge(self, right: Value, made: Value) -> tuple[float, bool]:
        if made is _NOTHING:
            return math.inf, True
        if not hasattr(right, "dtype") or not hasattr(made, "dtype"):
            drifts = compare_values("", right, made, tolerance=self._tolerance, check_dtype=False)
            off = not all(drift.passed for drift in drifts)
            return (math.inf if off else 0.0), off
        distance = measure(right, made)
        error = math.inf if distance.problem else distance.rel
        if self._tolerance is not None:
            drifts = compare_values("", right, made, tolerance=self._tolerance, check_dtype=False)
            return error, not all(drift.passed for drift in drifts)
        limit = max(_LARGE.get(name, _PLAIN_LARGE) for name in distance.dtypes)
        return error, error > limit

    def _told(
        self, over: str, suspect: str, error: float | None, changes: Sequence[Change], verdict: str
    ) -> ChangeSearch:
        culprits = tuple(change.name for change in changes if change.culprit)
        name = self._model.origin.name if self._model.origin is not None else "the model"
        return ChangeSearch(
            over=over, passed=not culprits and verdict.startswith("no drift"), verdict=verdict, suspect=suspect,
            reference=f"{name} on {self._right.text}", error=error, changes=tuple(changes), culprits=culprits,
            runs=self._runs, sets=len(self._sets), choices=self._choices, notes=tuple(self._notes),
        )  # fmt: skip

    # ---- optimizers

    def optimizers(self) -> ChangeSearch:
        """Searches the optimizers of ONNX Runtime."""
        suspect = f"the model on {self._place.text}"
        options = self._place.options
        error, output, drifts = self._compare(self._expected, self._attempt(options))
        failure = self._failure
        off = failure or f"output {output} is off by {_number(error)}"
        if not drifts:
            return self._told("optimizers", suspect, error, (), f"no drift: {_within(error)}")
        changed, others = optimizer_names(self._model, replace(options, isolate=max(self._isolate, 300.0)))
        everything = changed
        if self._drifts_without(everything):
            everything = [*changed, *others]
            if self._drifts_without(everything):
                self._notes.append("with every optimizer off that has a name the drift is the same")
                return self._told(
                    "optimizers", suspect, error, [Change(name, None) for name in changed],
                    f"no optimizer is to blame: without them too, {off}",
                )  # fmt: skip
        groups: list[tuple[str, ...]] = []
        left = list(everything)
        with track("trying optimizers", len(everything), "optimizers") as advance:
            while self._drifts_with(left, everything):
                found = fewest(left, lambda names: self._drifts_with(names, everything))
                groups.append(tuple(found))
                left = [name for name in left if name not in found]
                advance(len(found))
        rows = []
        blamed = [name for group in groups for name in group]
        for group in groups:
            apart, where, _ = self._compare(self._expected, self._with(group, everything))
            note = f"together with {', '.join(name for name in group[1:])}" if len(group) > 1 else ""
            rows += [
                Change(name, apart, where, culprit=True, note=note if at == 0 else "") for at, name in enumerate(group)
            ]
        for name in everything:
            if name not in blamed:
                apart, where, _ = self._compare(self._expected, self._with([name], everything))
                rows.append(Change(name, apart, where))
        together = self._compare(self._expected, self._attempt(replace(options, disabled=tuple(blamed))))
        self._notes.append(
            f"with disabled_optimizers={blamed!r} the worst output is off by {_number(together[0])}"
            + (", which still is too much: others change in turn" if together[2] else "")
        )
        words = " and ".join(" with ".join(group) for group in groups)
        without = f"by {_number(together[0])} without {'it' if len(blamed) == 1 else 'them'}"
        verdict = (
            f"the failure comes from {words}: {off}" if failure else f"drift comes from {words}: {off}, and {without}"
        )
        return self._told("optimizers", suspect, error, rows, verdict)

    def _with(self, names: Sequence[str], everything: Sequence[str]) -> list[dict[str, Value]]:
        off = tuple(name for name in everything if name not in set(names))
        return self._attempt(replace(self._place.options, disabled=off))

    def _drifts_with(self, names: Sequence[str], everything: Sequence[str]) -> bool:
        return bool(names) and self._compare(self._expected, self._with(names, everything))[2]

    def _drifts_without(self, names: Sequence[str]) -> bool:
        made = self._attempt(replace(self._place.options, disabled=tuple(names)))
        return self._compare(self._expected, made)[2]

    # ---- providers

    def providers(self) -> ChangeSearch:
        """Compares every execution provider with the reference."""
        rows = []
        for name in backends.available_providers():
            try:
                made = self._outputs(self._model, replace(self._place.options, providers=(name,)))
            except (ExecutionError, MissingDependencyError) as error:
                rows.append(Change(name, None, note=error.message))
                continue
            off, output, drifts = self._compare(self._expected, made)
            rows.append(Change(name, off, output, culprit=drifts))
        bad = [row for row in rows if row.culprit]
        ran = [row for row in rows if row.error is not None]
        if not ran:
            raise ExecutionError("no execution provider runs the model", details=[f"{r.name}: {r.note}" for r in rows])
        worst = max((row.error or 0.0 for row in ran), default=0.0)
        if bad:
            told = ", ".join(f"{row.name} ({_number(row.error)})" for row in bad)
            verdict = f"drift on {told}: output {bad[0].output}"
        else:
            verdict = f"no drift on {', '.join(row.name for row in ran)}: {_within(worst)}"
        return self._told(
            "providers", f"the model, optimizations {self._place.options.optimization}", None, rows, verdict
        )

    # ---- opset

    def opset(self, wanted: str) -> ChangeSearch:
        """Converts the model version by version, and compares after each."""
        target = opset_number(wanted)
        now = standard_opset(self._model.proto)
        if now is None:
            raise UsageError("the model imports no standard opset, so there is nothing to convert")
        step = 1 if target > now else -1
        versions = list(range(now + step, target + step, step)) if target != now else []
        model, before = self._model, self._expected
        rows: list[Change] = []
        with track("converting", len(versions), "versions") as advance:
            for version in versions:
                try:
                    model = convert_opset(model, version)[0]
                    made = self._outputs(model, self._place.options)
                except (ExecutionError, UnsupportedError) as error:
                    if wanted == "latest":
                        self._notes.append(f"opset {version} and later were left out: {error.message}")
                        target = version - step
                        break
                    if isinstance(error, UnsupportedError):
                        raise
                    rows.append(Change(f"opset {version - step} -> {version}", None, culprit=True, note=error.message))
                    break
                rows.append(self._step(f"opset {version - step} -> {version}", before, made))
                before = made
                advance(1)
        return self._steps_told("opset", f"the model at opset {target}", rows)

    def _step(self, name: str, before: Sequence[Mapping[str, Value]], made: Sequence[Mapping[str, Value]]) -> Change:
        own, output, drifts = self._compare(before, made)
        return Change(name, own, output, self._compare(self._expected, made)[0], drifts)

    def _steps_told(self, over: str, suspect: str, rows: Sequence[Change]) -> ChangeSearch:
        culprits = [row for row in rows if row.culprit]
        total = next((row.total for row in reversed(rows) if row.total is not None), None)
        if not culprits:
            most = max((row.error or 0.0 for row in rows), default=0.0)
            verdict = f"no drift: {_within(most)}" if rows else "no drift: nothing was done"
            return self._told(over, suspect, total, rows, verdict)
        first = culprits[0]
        more = f", and in {len(culprits) - 1} more" if len(culprits) > 1 else ""
        if first.error is None:
            return self._told(
                over, suspect, total, rows, f"the model does not run after {first.name}: {first.note}{more}"
            )
        return self._told(
            over, suspect, total, rows,
            f"drift starts at {first.name}: output {first.output} is off by {_number(first.error)}{more}",
        )  # fmt: skip

    # ---- recipe

    def recipe(
        self, file: str, feeds: Mapping[str, Value] | FeedOptions | None, *, allow_outside: bool
    ) -> ChangeSearch:
        """Applies a recipe step by step; each is run before and after."""
        if self._place.optimizes or self._place.backend != "ort":
            raise UsageError("--over with a recipe compares on ONNX Runtime without optimizations; leave --on out")
        recipe = load_recipe(file, allow_outside=allow_outside)
        said = feeds if feeds is not None else True
        done = edit(self._model, recipe, verify=said, allow_outside=allow_outside)
        self._runs, self._sets, self._choices = len(done.steps) + 1, [{}], done.choices
        rows = []
        for number, step in enumerate(done.steps, 1):
            name = f"step {number} ({step.step.title()})"
            if step.drift is None:
                rows.append(Change(name, None, note="nothing could be compared"))
                continue
            error, output, drifts = self._of_report(step.drift)
            note = "it may change numbers" if step.step.effect == "numerics" else ""
            rows.append(Change(name, error, output, culprit=drifts, note="; ".join(filter(None, [note, *step.notes]))))
        return self._steps_told("recipe", f"the model after {file}", rows)

    def _of_report(self, report: DriftReport) -> tuple[float, str, bool]:
        worst, output, drifts = 0.0, "", bool(report.missing)
        for drift in report.tensors:
            if drift.bitwise_equal:
                error = 0.0
            elif drift.nonfinite or drift.expected_shape != drift.actual_shape or drift.sqnr_db is None:
                error = math.inf if not drift.passed else 0.0
            else:
                error = float(10 ** (-drift.sqnr_db / 20))
            if error > worst or not output:
                worst, output = error, drift.name
            if self._tolerance is None:
                limit = max(_LARGE.get(word, _PLAIN_LARGE) for word in (drift.expected_dtype, drift.actual_dtype))
                drifts = drifts or error > limit
            else:
                most = drift.max_abs or 0.0
                drifts = drifts or math.isinf(error) or most > self._tolerance.atol + self._tolerance.rtol * most
        return worst, output, drifts


def _within(error: float) -> str:
    return f"outputs agree within {_number(error)}" if error else "outputs are equal"


def _number(error: float | None) -> str:
    return "NaN, Inf or another shape" if error is None or math.isinf(error) else f"{error:.1e}"
