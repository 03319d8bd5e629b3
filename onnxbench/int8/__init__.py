"""int8 models, made and measured: what each tensor and node loses, and what to leave in float so that outputs hold.

    made = quantize("model.onnx", feeds=FeedOptions(["samples/"]))
    print(made.verdict, made.nodes[0].own, made.weights[0].sqnr_db)
    made = quantize("model.onnx", feeds=FeedOptions(["samples/"]), metric="sqnr", tolerance=["20"])
    print([each.node for each in made.kept])

``onnxbench.quantizing`` makes the model. ``_placement`` knows where it quantizes and takes nodes out of that, without
calibrating again; ``_measures`` looks at tensors, ``onnxbench.tuning`` ranks nodes by their own error and searches.
``_page`` is the report. Everything runs in ONNX Runtime without optimization: each QuantizeLinear and DequantizeLinear
computes what its definition says, and what is between computes in float32, as int8 kernels that sum up in int32 do but
for the rounding of their sums.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from onnxbench import backends
from onnxbench.bisection import model_digest, value_digest
from onnxbench.drift import TensorDrift, compare_all
from onnxbench.errors import NotFoundError, UsageError, did_you_mean
from onnxbench.feeding import FeedOptions, choices_explained, refuse_to_overwrite
from onnxbench.graph import GraphIndex, NodeRef
from onnxbench.int8._measures import TensorError, activation_errors, weight_errors
from onnxbench.int8._page import COMMAND, write_quantization
from onnxbench.int8._placement import Placement
from onnxbench.int8._result import OutputError, Quantization
from onnxbench.model import Model, load
from onnxbench.progress import track
from onnxbench.quantizing import Calibrated, Method, Quantizer, Target, calibrate, restore_names
from onnxbench.reporting import require_report
from onnxbench.samples import gather, hold_out
from onnxbench.tuning import (
    MAX_RUNS,
    Budget,
    Candidate,
    Criterion,
    Ended,
    Evaluator,
    Rank,
    Score,
    Search,
    State,
    Together,
    Tuning,
    alone,
    cost_digest,
    costs_of,
    digest,
    frontier,
    node_selectors,
    open_together,
    place_of,
    rank,
)
from onnxbench.version import __version__
from onnxbench.wording import plural
from onnxbench.writer import SaveOptions, held_back, save, write_whole

if TYPE_CHECKING:
    from onnxbench.bisection import Place
    from onnxbench.captures import Value

__all__ = [
    "OutputError", "Quantization", "TensorError", "quantize", "quantize_file", "write_quantization",
]  # fmt: skip

PLACE = "ONNX Runtime on the CPU, as QuantizeLinear and DequantizeLinear are defined"
_FLOAT = backends.Options(optimization="none")
_ENDED: Mapping[Ended, str] = {
    "enough": "all nodes can be in int8", "smallest": "no single node can be quantized as well",
    "spent": "the runs or the time were used up", "stopped": "it was interrupted",
}  # fmt: skip
_SAVED = 3
"""Bytes that an element takes less in int8."""
_SHOWN = 6
_RANKING = 4
"""Runs that a ranking takes, as a rule."""


def quantize(
    model: Model | str | os.PathLike[str],
    *,
    feeds: FeedOptions | Sequence[Mapping[str, Value]] | None = None,
    target: Target = "tensorrt",
    quantizer: Quantizer = "onnxruntime",
    method: Method = "auto",
    percentile: float | None = None,
    per_channel: bool = True,
    operators: Sequence[str] | None = None,
    keep: Collection[NodeRef] = (),
    tolerance: Sequence[str] | float | None = None,
    metric: str = "max",
    holdout: int = 0,
    cost: str = "count",
    on: str | None = None,
    max_runs: int | None = MAX_RUNS,
    budget: float | None = None,
    resume: str | os.PathLike[str] | None = None,
    allow_outside: bool = False,
) -> Quantization:
    """Returns an int8 model with what is known of its errors; with a tolerance, as many nodes in int8 as that allows.

    Args:
        model: A float model or a model file; it is not changed.
        feeds: Samples like the inputs that it will get: by name, one mapping each, or what a user says about them. None
            draws one from seed 0, which is good for a trial at most.
        target: ``tensorrt`` (zero points 0, bias in float, outputs left alone) or ``onnxruntime`` (what its quantizer
            does by itself: uint8 activations, int8 weights, int32 bias).
        quantizer: ``onnxruntime``, or ``modelopt``: NVIDIA's, if it is installed.
        method: How ranges are taken: ``mse``, ``minmax``, ``entropy``, ``percentile``, or ``auto``, the best.
        percentile: The share of values within the range, in percent.
        per_channel: Whether weights have a scale for each channel.
        operators: Types of nodes that are quantized; None: those that the target gains by.
        keep: Nodes that stay in float in any case.
        tolerance: What outputs may be off by the metric. None does not search: all nodes are quantized.
        metric: As for ``onnxbench.tuning.tune``.
        holdout: So many samples, the last ones, are neither calibrated with nor shown to the search.
        cost: What is made small: ``count``, ``bytes``, ``time``, or a table in a YAML or JSON file.
        on: What runs the models that are tried: ``ort-cuda``, ``trt``, or a place as for ``bisect``. None: ONNX Runtime
            on the CPU, without optimization.
        max_runs: How often the model may run in a search; None: any number.
        budget: Seconds that the search may take; None: any number.
        resume: A file that has what was found of every set, and is read by a later search.
        allow_outside: For a model file: follow external data that leaves its folder.

    Raises:
        BenchError: As for ``onnxbench.quantizing.calibrate`` and ``onnxbench.tuning.tune``.
    """
    whole = model if isinstance(model, Model) else load(model, allow_outside=allow_outside)
    criterion = None
    if tolerance is not None:
        words = [f"{tolerance!r}"] if isinstance(tolerance, (int, float)) else tolerance
        criterion = Criterion(metric, words, [info.name for info in whole.proto.graph.output])
    place = place_of(on)
    samples, choices = gather(whole, feeds)
    seen, held = hold_out(samples, holdout, "calibration")
    with choices_explained(choices):
        made = calibrate(
            whole, seen, target=target, quantizer=quantizer, method=method, percentile=percentile,
            per_channel=per_channel, operators=operators,
        )  # fmt: skip
        placement = Placement(made, GraphIndex(whole.proto), writes=target == "onnxruntime")
        job = _Job(whole, placement, keep, seen, held, place)
        found = None
        question = [target, quantizer, method, percentile, per_channel, sorted(made.operators)]
        if criterion is not None:
            if max_runs is not None and max_runs < len(seen) + 1:
                raise UsageError(
                    f"{max_runs} runs are too few: the float model alone runs {len(seen)} times",
                    hint="Allow more runs, or give fewer samples.",
                )
            state = None if resume is None else Path(resume)
            found = job.search(criterion, Budget(max_runs, budget), state, question, cost)
        kept = job.kept
        done = None if found is not None and not found.found else placement.leave(kept)
        outputs = job.compare(placement.leave(kept) if done is None else done)
        nodes = tuple(job.candidates())
        if done is not None:
            restore_names(done, made)
    activations = activation_errors(placement, seen)
    return Quantization(
        source=whole.origin.name if whole.origin is not None else "the model",
        target=target,
        quantizer=quantizer,
        method=made.method,
        per_channel=per_channel,
        samples=len(seen),
        sha256=made.digest,
        nodes=nodes,
        outputs=outputs,
        weights=weight_errors(placement),
        activations=activations,
        search=found,
        choices=choices,
        notes=(*_doubts(feeds, made, activations), *_notes(made, placement, criterion)),
        refs=tuple(placement.units[unit].ref for unit in sorted(kept)),
        model=done,
    )


def _doubts(
    feeds: FeedOptions | Sequence[Mapping[str, Value]] | None, made: Calibrated, activations: Sequence[TensorError]
) -> Iterator[str]:
    """Yields what is wrong with the data that ranges were taken from."""
    if feeds is None or (isinstance(feeds, FeedOptions) and not feeds.sources):
        yield "calibrated with drawn inputs, for a trial at most: --feeds names data like the inputs that it will get"
    yield from made.doubts
    flat = [each.tensor for each in activations if each.elements > made.sets and each.smallest == each.largest]
    flat = [name for name in flat if name not in made.one_valued]
    if flat:
        names = ", ".join(map(repr, flat[:_SHOWN])) + (", ..." if len(flat) > _SHOWN else "")
        yield f"{plural(len(flat), 'activation')} had one value throughout, so there was no range to take: {names}"


def _notes(made: Calibrated, placement: Placement, criterion: Criterion | None) -> Iterator[str]:
    if made.tried:
        words = ", ".join(f"{name} {ratio:.1f}" for name, ratio in made.tried.items())
        yield f"ranges by {made.method}: the outputs' lowest signal to noise in dB is, by method: {words}"
    if placement.unnamed:
        yield f"{placement.unnamed} quantized nodes came with the opset that the quantizer needs: they stay quantized"
    if criterion is not None and criterion.unjudged:
        yield f"no tolerance was given for {', '.join(criterion.unjudged)}: not judged"


class _Job:
    """A calibrated model with the samples that it is judged on.

    Attributes:
        kept: The units that are left in float.
        ranks: What is known of the units; empty before it was asked for.
    """

    def __init__(
        self,
        model: Model,
        placement: Placement,
        keep: Collection[NodeRef],
        samples: Sequence[Mapping[str, Value]],
        held: Sequence[Mapping[str, Value]],
        place: Place | None,
    ) -> None:
        self._model, self._placement, self._samples, self._held = model, placement, samples, held
        self._place = place
        self._costs = [1.0] * len(placement.units)
        named = {(ref.scope.path, ref.position) for ref in keep}
        units = [(unit.ref.scope.path, unit.ref.position) for unit in placement.units]
        self._always = frozenset(number for number, place in enumerate(units) if place in named)
        self._free = [number for number in range(len(units)) if number not in self._always]
        if not self._free:
            raise NotFoundError(
                "no node is left to quantize", hint="Keep fewer nodes in float, or name other operators."
            )
        self.kept = self._always
        self.ranks: tuple[Rank, ...] = ()

    def _units(self, kept: Collection[int]) -> frozenset[int]:
        """Returns the units that a set of the search means."""
        return self._always | {self._free[number] for number in kept}

    def _open(self, sets: Iterator[frozenset[int]], most: float) -> Together:
        if self._place is not None:
            made = self._placement.leave(self._units(next(sets)))
            return alone(backends.open_session(made, self._place.backend, options=self._place.options))
        return open_together((self._placement.leave(self._units(kept)) for kept in sets), most=most)

    def rank(self) -> int:
        """Measures the nodes by themselves, on the first sample; returns how many runs of the model that took."""
        self.ranks, runs = rank(self._placement, self._samples[0])
        return math.ceil(runs)

    def search(
        self, criterion: Criterion, budget: Budget, resume: Path | None, question: Sequence[Any], cost: str
    ) -> Tuning:
        """Returns what the search finds; what is to be kept is in ``kept`` then."""
        units = [self._placement.units[number] for number in self._free]
        place = PLACE if self._place is None else self._place.text
        state = State(resume, self._key(criterion, [*question, place, cost_digest(cost)]))
        self._costs, runs = costs_of(self._placement, cost, self._samples[0], saved=_SAVED)
        budget.count(runs)

        costs = [self._costs[number] for number in self._free]

        def ranked() -> Sequence[Rank]:
            budget.take(_RANKING)
            budget.count(max(0, self.rank() - _RANKING))
            return [self.ranks[number] for number in self._free]

        with track("looking for what to leave in float", budget.runs or MAX_RUNS, "runs") as advance:
            budget.heard = advance
            evaluator = Evaluator(
                self._open, lambda sample: sample, self._placement.model, self._samples, criterion, budget, state
            )
            search = Search(evaluator, costs, [unit.op_type for unit in units], criterion.power)
            ended = search.run(ranked)
        best = search.best
        self.kept = self._units(best.kept if best is not None else ())
        nothing = Score(math.inf, problem="not tried")
        plain = next((trial.score for trial in evaluator.trials if not trial.kept), nothing)
        return Tuning(
            model=self._model.origin.name if self._model.origin is not None else "the model",
            to="int8",
            criterion=criterion.text,
            place=place,
            candidates=tuple(self.candidates()),
            found=best is not None,
            score=best.score if best is not None else plain,
            plain=plain,
            cost=search.cost(best.kept) if best is not None else math.inf,
            frontier=frontier(evaluator.trials, search),
            ended=_ENDED[ended],
            interrupted=ended == "stopped",
            untried=search.untried,
            runs=budget.spent,
            sets=len(evaluator.trials),
            samples=len(self._samples),
            held_out=len(self._held),
            holdout=self._held_out(best.kept, criterion) if best is not None and self._held else None,
            casts=0,
        )

    def _held_out(self, kept: Collection[int], criterion: Criterion) -> Score:
        """Returns the worst score on samples that the search did not see."""
        judge = Evaluator(
            self._open, lambda sample: sample, self._placement.model, self._held, criterion, Budget(),
            State(None, {}),
        )  # fmt: skip
        return judge.worst(kept)

    def _key(self, criterion: Criterion, question: Sequence[Any]) -> dict[str, str]:
        """Returns digests of what a search is about."""
        inputs = [{name: value_digest(sample[name]) for name in sorted(sample)} for sample in self._samples]
        paths = [self._placement.units[number].path for number in self._free]
        return {
            "the model": model_digest(self._model),
            "the inputs": digest(inputs),
            "the options": digest([__version__, "int8", criterion.question, list(question), paths]),
        }

    def compare(self, model: Model) -> tuple[OutputError, ...]:
        """Returns how outputs compare with those of the float model, on all samples."""
        found: dict[str, list[TensorDrift]] = {}
        reference, quantized = (
            backends.open_session(each, options=_FLOAT) for each in (self._placement.model, model)
        )  # fmt: skip
        for sample in (*self._samples, *self._held):
            for drift in compare_all(reference.run(sample), quantized.run(sample)).tensors:
                found.setdefault(drift.name, []).append(drift)
        for session in (reference, quantized):
            session.close()
        return tuple(OutputError.of(name, drifts) for name, drifts in found.items())

    def candidates(self) -> Iterator[Candidate]:
        """Yields the nodes that can be in int8, measured."""
        if not self.ranks:
            self.rank()
        units = self._placement.units
        before = self._inputs_of_units()
        for number, (unit, known) in enumerate(zip(units, self.ranks, strict=True)):
            yield Candidate(
                unit.path, unit.op_type, number in self.kept, self._costs[number], known.own, known.gain, known.effect,
                tuple(units[each].path for each in before[number]),
            )  # fmt: skip

    def _inputs_of_units(self) -> list[list[int]]:
        """Returns for each unit those whose outputs it reads, directly or through nodes that are none."""
        main = self._placement.index.main
        found: list[list[int]] = [[] for _ in self._placement.units]
        reaching: dict[str, set[int]] = {}
        for position, names in enumerate(main.reads):
            arriving: set[int] = set().union(*(reaching.get(name, set()) for name in names))
            units = self._placement.units_of(position)
            for unit in units:
                found[unit] = sorted(arriving)
            for name in main.writes[position]:
                reaching[name] = set(units) or arriving
        return found


def quantize_file(
    model: str | os.PathLike[str],
    target_file: str | os.PathLike[str] | None,
    *,
    options: SaveOptions | None = None,
    keep: Sequence[str] = (),
    save_set: str | os.PathLike[str] | None = None,
    report: str | os.PathLike[str] | None = None,
    allow_outside: bool = False,
    **how: Any,
) -> Quantization:
    """Writes an int8 model, and returns it with what is known of its errors.

    Args:
        model: The model file.
        target_file: The file to write; None writes none.
        options: How it is stored.
        keep: Selectors of nodes that stay in float.
        save_set: Write the nodes left in float here, as selectors, for ``--keep @FILE``.
        report: Write ``report.json`` and ``report.html`` here.
        allow_outside: Follow external data that leaves the model's folder.
        how: As for ``quantize``.

    Raises:
        OutputError: A file cannot be written.
        MissingDependencyError: A package is missing that reports are made with.
        BenchError: As for ``quantize``. Without a set within the tolerance, only the report is written.
    """
    from onnxbench.select import nodes

    for name, words in (("target", get_args(Target)), ("method", get_args(Method)), ("quantizer", get_args(Quantizer))):
        if how.get(name, words[0]) not in words:
            hint = did_you_mean(how[name], words) or f"There are: {', '.join(words)}."
            raise UsageError(f"--{name} {how[name]!r} is not known", hint=hint)
    whole = load(model, allow_outside=allow_outside)
    said = how.get("feeds")
    sources = list(said.sources) if isinstance(said, FeedOptions) else []
    sources += [how[name] for name in ("metric", "cost") if name in how]  # a function or a table in a file, perhaps
    refuse_to_overwrite(whole, sources, target_file, save_set, how.get("resume"))
    if report is not None:
        require_report(report, COMMAND)
    index = GraphIndex(whole.proto)
    found = quantize(whole, keep=nodes(index, keep, what="--keep") if keep else (), **how)
    if found.model is not None:
        with held_back(save_set) as set_file:
            if set_file is not None:
                head = f"# {found.source}: left in float\n# {found.verdict}\n"
                text = "".join(f"{selector}\n" for selector in node_selectors(index, found.refs))
                write_whole(set_file, [(head + text).encode("utf-8", "surrogateescape")])
            if target_file is not None:
                found = replace(found, saved=save(found.model, target_file, options=options or SaveOptions()))
    if report is not None:
        write_quantization(report, found)
    return found
