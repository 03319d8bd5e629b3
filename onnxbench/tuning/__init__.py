"""The smallest set of nodes to keep in float32, so that a model in half precision stays within a tolerance.

    found = tune("model.onnx", to="fp16", tolerance=["1e-2"], feeds=samples)
    print(found.verdict, [each.node for each in found.kept])

``_criteria`` says what outputs must be like, ``_emulation`` what a model computes in half precision, ``_ranking`` which
nodes lose most by it, ``_search`` how sets are chosen, and ``_evaluation`` how they are tried. ``_page`` is the report.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onnxbench import backends
from onnxbench.bisection import as_dtype, model_digest, parse_place, value_digest
from onnxbench.captures import Value
from onnxbench.errors import UnsupportedError, UsageError
from onnxbench.feeding import FeedOptions, choices_explained, refuse_to_overwrite
from onnxbench.graph import GraphIndex, NodeRef
from onnxbench.model import Model, from_proto, load
from onnxbench.precision import convert
from onnxbench.progress import track
from onnxbench.reporting import require_report
from onnxbench.samples import gather, hold_out
from onnxbench.tensortype import dtype_name, dtype_number
from onnxbench.tuning._costs import costs_of
from onnxbench.tuning._criteria import METRICS, Criterion, Score
from onnxbench.tuning._emulation import BFLOAT16, FLOAT16, Emulation, Unit, round_feeds
from onnxbench.tuning._evaluation import Budget, Evaluator, State, Trial
from onnxbench.tuning._page import COMMAND, frontier_chart, write_tuning
from onnxbench.tuning._ranking import Rank, merge, rank
from onnxbench.tuning._result import Candidate, Point, Tuning
from onnxbench.tuning._search import Ended, Search
from onnxbench.tuning._selectors import node_selectors, selector_file
from onnxbench.tuning._sharing import Together, alone, open_together
from onnxbench.version import __version__
from onnxbench.writer import SaveOptions, held_back, save, write_whole

if TYPE_CHECKING:
    from onnxbench.bisection import Place

__all__ = [
    "MAX_RUNS", "METRICS", "Budget", "Candidate", "Criterion", "Ended", "Evaluator", "Point", "Rank", "Score", "Search",
    "State", "Together", "Tuning", "Unit", "alone", "cost_digest", "costs_of", "digest", "frontier", "frontier_chart",
    "node_selectors", "open_together", "place_of", "rank", "tune", "tune_file", "write_tuning",
]  # fmt: skip

Weights = Literal["refuse", "clamp", "keep"]
MAX_RUNS = 200
EMULATED = "ONNX Runtime on the CPU in float32, rounded at the inputs and outputs of each node"
_MOST_RANKED = 3
_RANKING = 4
"""Runs that a ranking takes, as a rule; counted before it begins, and mended after."""
_CUDA, _TENSORRT = "ort:all,provider=cuda", "ort:all,provider=tensorrt+cuda"
_NATIVE = {"ort-cuda": _CUDA, "cuda": _CUDA, "ort-trt": _TENSORRT, "trt": _TENSORRT, "tensorrt": _TENSORRT}
_ENDED: Mapping[Ended, str] = {
    "enough": "nothing has to be kept", "smallest": "no single node can be left out",
    "spent": "the runs or the time were used up", "stopped": "it was interrupted",
}  # fmt: skip


def tune(
    model: Model | str | os.PathLike[str],
    *,
    to: str,
    tolerance: Sequence[str] | float,
    metric: str = "max",
    feeds: FeedOptions | Sequence[Mapping[str, Value]] | None = None,
    holdout: int = 0,
    keep: Collection[NodeRef] = (),
    io: Literal["keep", "convert"] = "keep",
    weights: Weights = "refuse",
    opset: Literal["raise", "keep"] = "raise",
    cost: str = "count",
    on: str | None = None,
    max_runs: int | None = MAX_RUNS,
    budget: float | None = None,
    resume: str | os.PathLike[str] | None = None,
    allow_outside: bool = False,
) -> Tuning:
    """Returns the smallest set of nodes to keep in float32 that was found, with the converted model.

    Args:
        model: A float32 model or a model file; it is not changed.
        to: The half type: ``fp16`` or ``bf16``.
        tolerance: What outputs may be off by the metric: a number, or words: ``1e-3``, ``out:1e-2``, ``>=0.99``.
        metric: ``max``, ``abs``, ``rel``, ``cosine``, ``sqnr``, or ``FILE.py:FUNCTION`` (see ``_criteria``).
        feeds: Samples: inputs by name, one mapping each, or what a user says about them; None draws one from seed 0.
        holdout: So many samples, the last ones, are not shown to the search and judged at the end.
        keep: Nodes that stay in float32 in any case, and count for nothing.
        io: As for ``onnxbench.precision.convert``.
        weights: Likewise.
        opset: Likewise.
        cost: What is made small: ``count``, ``bytes``, ``time``, or a table in a YAML or JSON file.
        on: What runs the sets of nodes: ``ort-cuda``, ``trt``, or a place as for ``bisect``, where the converted model
            runs as it is. None emulates half precision on the CPU.
        max_runs: How often the model may run, on one sample each; None: any number. What runs on held-out samples is
            not counted.
        budget: Seconds that the search may take; None: any number.
        resume: A file that has what was found of every set, and is read by a later search.
        allow_outside: For a model file: follow external data that leaves its folder.

    Raises:
        UsageError: There is no such type, metric, cost or place, or the file to resume from is of another search.
        FeedsError: The inputs do not fit, or none are left for the search.
        UnsupportedError: There is nothing to convert, or the model makes random numbers.
        RefusedResultError: The model cannot be converted at all.
        ExecutionError: ONNX Runtime does not run the model.
    """
    number = dtype_number(to)
    if number not in (FLOAT16, BFLOAT16):
        raise UsageError(f"a search is for fp16 or bf16, not for {to!r}")
    whole = model if isinstance(model, Model) else load(model, allow_outside=allow_outside)
    job = _Job(
        whole, number, keep, io, weights, opset, place_of(on),
        Criterion(metric, [f"{tolerance!r}"] if isinstance(tolerance, (int, float)) else tolerance, _outputs(whole)),
    )  # fmt: skip
    samples, choices = gather(whole, feeds)
    seen, held = hold_out(samples, holdout, "search")
    if max_runs is not None and max_runs < len(seen) + 1:
        raise UsageError(
            f"{max_runs} runs are too few: the float32 model alone runs {len(seen)} times",
            hint="Allow more runs, or give fewer samples.",
        )
    with choices_explained(choices):
        return job.run(seen, held, choices, cost, Budget(max_runs, budget), None if resume is None else Path(resume))


def _outputs(model: Model) -> list[str]:
    return [info.name for info in model.proto.graph.output]


def place_of(on: str | None) -> Place | None:
    """Returns where converted models run: ``ort-cuda``, ``trt``, or a place as for ``bisect``; None for the CPU.

    A model of one node is opened there, so that what cannot run is known before anything long begins.

    Raises:
        UsageError: There is no such place.
        MissingDependencyError: The runtime there lacks what it takes.
        ExecutionError: It has it, and that does not run.
    """
    from onnx import parser

    if on in (None, "emulated"):
        return None
    place = parse_place(_NATIVE.get(str(on), str(on)), level="all")
    proto = parser.parse_model('<ir_version: 8, opset_import: ["": 17]> g (float[1] x) => (float[1] y) {y = Abs(x)}')
    backends.open_session(from_proto(proto), place.backend, options=place.options).close()
    return place


class _Job:
    """One search with what it is about."""

    def __init__(
        self,
        model: Model,
        to: int,
        keep: Collection[NodeRef],
        io: Literal["keep", "convert"],
        weights: Weights,
        opset: Literal["raise", "keep"],
        place: Place | None,
        criterion: Criterion,
    ) -> None:
        self._model, self._to, self._always, self._place = model, to, list(keep), place
        self._how: dict[str, Any] = {"to": dtype_name(to), "io": io, "weights": weights, "opset": opset,
                                     "sources": [backends.session_types]}  # fmt: skip
        self._criterion = criterion
        plain = convert(model, keep=self._always, **self._how)  # refuses early what cannot be converted at all
        self._emulation = Emulation(model, to, stays=[each.node for each in plain.kept], clamp=weights == "clamp")
        if not self._emulation.units:
            raise UnsupportedError(
                f"no node of the model can be converted to {dtype_name(to)}", hint="Is it in half precision already?"
            )
        self._notes = [*plain.notes]
        if criterion.unjudged:
            self._notes.append(f"no tolerance was given for {', '.join(criterion.unjudged)}: not judged")

    def _open(self, sets: Iterator[frozenset[int]], most: float) -> Together:
        if self._place is None:
            return open_together((self._emulation.emulated(kept) for kept in sets), most=most)
        made = convert(self._model, keep=self._refs(next(sets)), **self._how).model
        return alone(_Fitted(backends.open_session(made, self._place.backend, options=self._place.options)))

    def _refs(self, kept: Collection[int]) -> list[NodeRef]:
        return [*self._always, *(self._emulation.units[unit].ref for unit in sorted(kept))]

    def _fed(self, sample: Mapping[str, Value]) -> Mapping[str, Value]:
        """Returns a sample as the emulated model reads it: rounded, if the converted one has half inputs."""
        emulated = self._place is None and self._how["io"] == "convert"
        return round_feeds(sample, self._to) if emulated else sample

    def run(
        self,
        samples: Sequence[Mapping[str, Value]],
        held: Sequence[Mapping[str, Value]],
        choices: tuple[str, ...],
        cost: str,
        budget: Budget,
        resume: Path | None,
    ) -> Tuning:
        """Returns what the search finds."""
        state = State(resume, self._key(samples, cost))
        costs, runs = costs_of(self._emulation, cost, samples[0])
        budget.count(runs)
        ranks: list[Rank] = []
        with track("looking for what to keep", budget.runs or MAX_RUNS, "runs") as advance:
            budget.heard = advance
            evaluator = Evaluator(self._open, self._fed, self._model, samples, self._criterion, budget, state)
            search = Search(evaluator, costs, [unit.op_type for unit in self._emulation.units], self._criterion.power)

            def ranked() -> Sequence[Rank]:
                ranks.extend(self._ranked(search, evaluator, samples, state))
                return ranks

            ended = search.run(ranked)
        return self._result(search, evaluator, ranks, ended, samples, held, choices)

    def _ranked(
        self, search: Search, evaluator: Evaluator, samples: Sequence[Mapping[str, Value]], state: State
    ) -> tuple[Rank, ...]:
        """Returns what is measured of the nodes, on the samples that show what goes wrong."""
        ranks: tuple[Rank, ...] = ()
        trial = evaluator.trials[-1]
        seen: set[int] = set()
        while not trial.passed and trial.failing not in seen and len(seen) < _MOST_RANKED:
            seen.add(trial.failing)
            here = self._rank(trial.failing, samples[trial.failing], evaluator.budget, state)
            ranks = merge(ranks, here) if ranks else here
            overflowing = [unit for unit, each in enumerate(ranks) if math.isinf(each.effect)]
            if not overflowing:
                break
            trial = search.try_out(overflowing)
            if math.isfinite(trial.score.ratio):
                break
        return ranks

    def _rank(self, number: int, sample: Mapping[str, Value], budget: Budget, state: State) -> tuple[Rank, ...]:
        known = state.ranking.get(str(number))
        if known is not None:
            return tuple(
                Rank(None if own is None else float(own), float(gain), float(effect)) for own, gain, effect in known
            )
        budget.take(_RANKING)
        ranks, runs = rank(self._emulation, self._fed(sample))
        budget.count(max(0, math.ceil(runs) - _RANKING))
        plain = [[None if value is None else str(value) for value in asdict(each).values()] for each in ranks]
        state.remember_ranking({**state.ranking, str(number): plain})
        return ranks

    def _key(self, samples: Sequence[Mapping[str, Value]], cost: str) -> dict[str, str]:
        """Returns digests of what a search is about."""
        question = [
            __version__, self._criterion.question, cost_digest(cost), self._place.text if self._place else EMULATED,
            {name: value for name, value in self._how.items() if name != "sources"},
            sorted(ref.path for ref in self._always), [unit.path for unit in self._emulation.units],
        ]  # fmt: skip
        inputs = [{name: value_digest(sample[name]) for name in sorted(sample)} for sample in samples]
        return {
            "the model": model_digest(self._model),
            "the inputs": digest(inputs),
            "the options": digest(question),
        }

    def _result(
        self,
        search: Search,
        evaluator: Evaluator,
        ranks: Sequence[Rank],
        ended: Ended,
        samples: Sequence[Mapping[str, Value]],
        held: Sequence[Mapping[str, Value]],
        choices: tuple[str, ...],
    ) -> Tuning:
        best = search.best
        kept = best.kept if best is not None else frozenset(range(len(self._emulation.units)))
        refs = self._refs(kept)
        converted = None if best is None else convert(self._model, keep=refs, **self._how)
        plain = next(
            (trial.score for trial in evaluator.trials if not trial.kept), Score(math.inf, problem="not tried")
        )
        return Tuning(
            model=self._model.origin.name if self._model.origin is not None else "the model",
            to=dtype_name(self._to),
            criterion=self._criterion.text,
            place=EMULATED if self._place is None else self._place.text,
            candidates=tuple(self._candidates(kept, search.costs, ranks)),
            found=best is not None,
            score=best.score if best is not None else plain,
            plain=plain,
            cost=search.cost(kept),
            frontier=frontier(evaluator.trials, search),
            ended=_ENDED[ended],
            interrupted=ended == "stopped",
            untried=search.untried,
            runs=evaluator.budget.spent,
            sets=len(evaluator.trials),
            samples=len(samples),
            held_out=len(held),
            holdout=self._held_out(kept, held) if held and best is not None else None,
            casts=converted.casts if converted is not None else 0,
            choices=choices,
            notes=(*self._notes, *(note for note in (converted.notes if converted else ()) if note not in self._notes)),
            refs=tuple(refs),
            converted=converted,
        )

    def _held_out(self, kept: Collection[int], held: Sequence[Mapping[str, Value]]) -> Score:
        """Returns the worst score on samples that the search did not see."""
        judge = Evaluator(self._open, self._fed, self._model, held, self._criterion, Budget(), State(None, {}))
        return judge.worst(kept)

    def _candidates(self, kept: Collection[int], costs: Sequence[float], ranks: Sequence[Rank]) -> Iterator[Candidate]:
        before = self._emulation.inputs_of_units()
        paths = [unit.path for unit in self._emulation.units]
        for number, unit in enumerate(self._emulation.units):
            known = ranks[number] if ranks else Rank(None, math.nan, math.nan)
            yield Candidate(
                unit.path, unit.op_type, number in kept, costs[number], known.own,
                known.gain if ranks else None, known.effect if ranks else None,
                tuple(paths[each] for each in before[number]),
            )  # fmt: skip


class _Fitted:
    """A session that is given values in the element types that it wants."""

    def __init__(self, session: backends.Session) -> None:
        self._session = session
        self.inputs, self.outputs = session.inputs, session.outputs
        self.providers, self.device = session.providers, session.device

    def run(self, feeds: Mapping[str, Value], outputs: Sequence[str] | None = None) -> dict[str, Value]:
        """Returns outputs by name."""
        wanted = {port.name: port.dtype for port in self.inputs}
        return self._session.run({name: as_dtype(value, wanted[name]) for name, value in feeds.items()}, outputs)

    def close(self) -> None:
        """Ends the session."""
        self._session.close()


def frontier(trials: Sequence[Trial], search: Search) -> tuple[Point, ...]:
    """Returns the sets than which no cheaper one had a smaller error."""
    points: list[Point] = []
    for trial in sorted(trials, key=lambda each: (search.cost(each.kept), each.score.ratio)):
        if not points or trial.score.ratio < points[-1].score.ratio:
            points.append(Point(len(trial.kept), search.cost(trial.kept), trial.score, trial.passed))
    return tuple(points)


def cost_digest(cost: str) -> str:
    """Returns a cost by name, or the digest of the file that has its table."""
    return hashlib.sha256(Path(cost).read_bytes()).hexdigest() if Path(cost).is_file() else cost


def digest(data: Any) -> str:
    """Returns the sha256 of plain values."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def tune_file(
    model: str | os.PathLike[str],
    target: str | os.PathLike[str] | None,
    *,
    options: SaveOptions | None = None,
    keep: Sequence[str] = (),
    save_set: str | os.PathLike[str] | None = None,
    save_recipe: str | os.PathLike[str] | None = None,
    report: str | os.PathLike[str] | None = None,
    allow_outside: bool = False,
    **how: Any,
) -> Tuning:
    """Writes a model in half precision that is within a tolerance, and returns what was kept for that.

    Args:
        model: The model file.
        target: The file to write; None writes none.
        options: How it is stored.
        keep: Selectors of nodes that stay in float32 in any case.
        save_set: Write the kept nodes here, as selectors, for ``--keep-fp32 @FILE``.
        save_recipe: Write the conversion here, as a recipe.
        report: Write ``report.json`` and ``report.html`` here.
        allow_outside: Follow external data that leaves the model's folder.
        how: As for ``tune``.

    Raises:
        OutputError: A file cannot be written.
        MissingDependencyError: A package is missing that reports are made with.
        BenchError: As for ``tune``. Without a set within the tolerance, only the report is written.
    """
    from onnxbench.select import nodes

    whole = load(model, allow_outside=allow_outside)
    said = how.get("feeds")
    sources = list(said.sources) if isinstance(said, FeedOptions) else []
    sources += [how[name] for name in ("metric", "cost") if name in how]  # a function or a table in a file, perhaps
    refuse_to_overwrite(whole, sources, target, save_set, save_recipe, how.get("resume"))
    if report is not None:
        require_report(report, COMMAND)
    index = GraphIndex(whole.proto)
    found = tune(whole, keep=nodes(index, keep, what="--keep-fp32") if keep else (), **how)
    if found.converted is not None:
        selectors = node_selectors(index, found.refs)
        with held_back(save_set) as set_file, held_back(save_recipe) as recipe_file:
            if set_file is not None:
                selector_file(set_file, selectors, found)
            if recipe_file is not None:
                _write_recipe(recipe_file, selectors, found, how)
            if target is not None:
                found = replace(found, saved=save(found.converted.model, target, options=options or SaveOptions()))
    if report is not None:
        write_tuning(report, found)
    return found


def _write_recipe(path: Path, selectors: Sequence[str], found: Tuning, how: Mapping[str, Any]) -> None:
    from onnxbench.operations import SetPrecision
    from onnxbench.recipe import Recipe, Step

    given = {name: how[name] for name in ("io", "weights", "opset") if name in how}
    step = SetPrecision(to=str(how["to"]), keep=list(selectors) or None, **given)
    text = Recipe((Step(step),), f"{found.model} in {found.to}: {found.criterion}").to_yaml()
    write_whole(path, [text.encode("utf-8")])
