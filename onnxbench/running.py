"""Running a model: feeds in; values, statistics, a comparison, the source of NaN, and a latency table out.

Memory is bounded by what the caller keeps: values stream from the runtime through statistics, comparison and file,
in batches of ``max_bytes``, and are dropped.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from onnxbench import backends, select
from onnxbench.captures import Capture, CaptureWriter, Port, Value, check_feeds, input_ports
from onnxbench.cut import require_main
from onnxbench.datafiles import load
from onnxbench.drift import BITWISE, DriftReport, TensorDrift, Tolerance, compare_values
from onnxbench.errors import (
    ExecutionError,
    FeedsError,
    NotFoundError,
    OutputError,
    UnsupportedError,
    UsageError,
    did_you_mean,
)
from onnxbench.feeding import FeedOptions, FeedSet, choices_explained, feed_sets, refuse_to_overwrite
from onnxbench.graph import GraphIndex
from onnxbench.model import Model
from onnxbench.model import load as load_model
from onnxbench.nonfinite import NonFinite, find_nonfinite
from onnxbench.progress import track
from onnxbench.specs import parse_tolerances
from onnxbench.tensorstats import Gathered, TensorStats
from onnxbench.timing import Latency as Latency
from onnxbench.timing import summarize

_HALF = (10, 16)
_HALF_ON_CPU = (
    "half precision on a CPU: ONNX Runtime computes most of it in float32 and rounds now and then, so what overflows "
    "on a GPU may not here ('onnxbench precision --search' runs what a GPU would compute)"
)
_MANY_NODES = 20_000


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run showed.

    Attributes:
        model: The model file, or None for a model in memory.
        backend: What ran it, with its version.
        provider: Execution provider.
        optimization: Graph optimizations.
        threads: Threads within an operator; 0 is the runtime's choice.
        sets: How many sets of inputs were run.
        choices: What was decided about the inputs without being told.
        notes: What else a user should know.
        inputs: Statistics of the inputs, over all sets.
        outputs: Statistics of the outputs (or the tensors asked for), over all sets.
        latency: The latency table, if one was asked for.
        drift: The comparison with expected values, if there were any.
        nonfinite: Where NaN or infinite values come from, if there are any.
        searched: Whether the whole graph was searched for them, as asked.
        validated: Whether the outputs had to be finite.
        saved: Files that were written.
        values: The outputs of each set, if they were to be kept.
    """

    model: Path | None
    backend: str
    provider: str
    optimization: str
    threads: int
    sets: int
    choices: tuple[str, ...]
    notes: tuple[str, ...]
    inputs: tuple[TensorStats, ...]
    outputs: tuple[TensorStats, ...]
    latency: Latency | None
    drift: DriftReport | None
    nonfinite: NonFinite | None
    searched: bool
    validated: bool
    saved: tuple[Path, ...]
    values: tuple[dict[str, Value], ...] = ()

    @property
    def nonfinite_outputs(self) -> tuple[str, ...]:
        """The outputs (or tensors asked for) that hold NaN or infinite values."""
        return tuple(stats.name for stats in self.outputs if not stats.finite)

    @property
    def passed(self) -> bool:
        """Whether nothing that was asked about is wrong: no drift, and no NaN where they were looked for."""
        found = (self.searched and self.nonfinite is not None) or (self.validated and bool(self.nonfinite_outputs))
        return not found and (self.drift is None or self.drift.passed)

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain values, without the tensors."""
        names = [name for name in self.__slots__ if name != "values"]
        judged = {"passed": self.passed, "nonfinite_outputs": self.nonfinite_outputs}
        return judged | {name: getattr(self, name) for name in names}


def run(
    source: Model | str | os.PathLike[str],
    feeds: Mapping[str, Value] | FeedOptions | None = None,
    *,
    outputs: Sequence[str] = (),
    backend: str = "ort",
    options: backends.Options | None = None,
    expect: Sequence[str] | Mapping[str, Value] = (),
    atol: Sequence[str] | float = (),
    rtol: Sequence[str] | float = (),
    bitwise: bool = False,
    find_nan: bool | None = None,
    validate: bool = False,
    bench: int = 0,
    warmup: int = 5,
    save: str | os.PathLike[str] | None = None,
    save_inputs: str | os.PathLike[str] | None = None,
    max_bytes: int = backends.MAX_BYTES,
    keep_values: bool = True,
    allow_outside: bool = False,
) -> RunResult:
    """Returns what a run of a model shows: values, statistics, drift, the source of NaN, latency.

    Args:
        source: A model or a model file.
        feeds: Values by input, or what a user says about them; None draws one set from seed 0.
        outputs: Selectors of tensors of the main graph to look at in place of the outputs; inner ones need no change to
            the model. What none of them needs is not run.
        backend: ``ort``, ``reference``, or one that another package offers (docs/backends.md).
        options: How sessions are set up. The optimization level ``auto`` (the default here) is ``all``, but ``none``
            for more than 20,000 nodes, unless runs are timed.
        expect: What should come out: files as for feeds (one set each), or values. Tensors in them that are not looked
            at already are, too.
        atol: Absolute tolerance: a number, or words such as ``1e-3`` and ``out:1e-2``. Given alone, ``rtol`` is 0; with
            neither, each element type has its own default (``onnxbench.drift.default_tolerance``).
        rtol: Relative tolerance, likewise.
        bitwise: Every bit must agree.
        find_nan: Search the whole graph for the first NaN or infinity. None: only if an output has one.
        validate: The run fails if an output (or tensor asked for) has a NaN or infinity, whatever the tolerances.
        bench: Time this many runs of the model with its own outputs on the first set of inputs.
        warmup: Runs before the timed ones.
        save: Save the values: a ``.npz`` file, or for several sets a folder, with a file each.
        save_inputs: Save the inputs, likewise.
        max_bytes: Inner tensors are computed in batches of about this many bytes.
        keep_values: Keep the values in the result.
        allow_outside: For a model file: follow external data that leaves its folder.

    Raises:
        FeedsError: The inputs do not fit.
        NotFoundError: A selector matches nothing, or there is no such file.
        ExecutionError: The run failed.
        OutputError: A file could not be written.
        UsageError: Something would be ignored: a tolerance without expected values, threads of the reference evaluator.
    """
    _refuse_ignored(expect, atol, rtol, bitwise, backend, options)
    model = source if isinstance(source, Model) else load_model(source, allow_outside=allow_outside)
    index = GraphIndex(model.proto)
    chosen, notes = _settled(options or backends.Options("auto"), index, timed=bool(bench))
    if backends.backend(backend).name == "ort" and {*chosen.providers} == {"cpu"} and _has_half_weights(index):
        notes += (_HALF_ON_CPU,)
    tolerances = _Tolerances(index, atol, rtol, bitwise=bitwise)
    expected = _Expected(model, expect) if expect else None
    names = _with_expected(index, _chosen_names(index, outputs), expected)
    sets = _Sets(_feed_sets(model, feeds, index))
    words = [*(feeds.sources if isinstance(feeds, FeedOptions) else ()), *(expect if isinstance(expect, list) else ())]
    refuse_to_overwrite(model, words, save, save_inputs, chosen.profile)
    runner = _Runner(model, names, backend, chosen, max_bytes)
    with (
        _Files(save, several=sets.several) as values_out,
        _Files(save_inputs, several=sets.several) as inputs_out,
        track("running", len(runner.names), "tensors") as advance,
    ):
        watch = _Watch(runner.names, expected, tolerances, keep=keep_values, several=sets.several)
        for feed_set in sets:
            watch.begin(feed_set)
            for name, value in feed_set.feeds.items():
                inputs_out.write(name, value)
            for name, value in _explained(runner.stream(feed_set.feeds), feed_set):
                watch.take(name, value)
                values_out.write(name, value)
                advance(1)
            watch.end()
            values_out.next_set()
            inputs_out.next_set()
        runner.close()
    if watch.first is None:
        raise FeedsError("the data holds no set of inputs")
    nonfinite, notes = _search(model, watch, find_nan, backend, chosen, notes)
    return RunResult(
        model=model.origin,
        backend=f"{runner.backend.name} {runner.backend.version()}",
        provider=runner.device,
        optimization=chosen.optimization,
        threads=chosen.threads,
        sets=watch.sets,
        choices=tuple(watch.choices),
        notes=notes,
        inputs=tuple(gathered.stats() for gathered in watch.inputs.values()),
        outputs=tuple(gathered.stats() for gathered in watch.outputs.values()),
        latency=_bench(model, watch.first, backend, chosen, bench, warmup) if bench else None,
        drift=None if expected is None else DriftReport(tuple(watch.drifts), tuple(watch.missing)),
        nonfinite=nonfinite,
        searched=bool(find_nan),
        validated=validate,
        saved=(*values_out.written, *inputs_out.written),
        values=tuple(watch.values),
    )


def _refuse_ignored(
    expect: Sequence[str] | Mapping[str, Value],
    atol: Sequence[str] | float,
    rtol: Sequence[str] | float,
    bitwise: bool,
    backend: str,
    options: backends.Options | None,
) -> None:
    """Raises UsageError for what would be ignored without a word."""
    tolerances = [word for word, given in (("atol", atol != ()), ("rtol", rtol != ())) if given]
    if bitwise and tolerances:
        raise UsageError(f"bitwise and {tolerances[0]} contradict each other")
    if not expect and (bitwise or tolerances):
        raise UsageError(f"{'bitwise' if bitwise else tolerances[0]} means nothing without expected values")
    known = backends.backend(backend).name
    if options is None or known in backends.ENGINES:
        return
    plain, heeded = backends.Options(), backends.heeded(known)
    what = "the reference evaluator" if known == "reference" else f"the backend {known}"
    for name in ("providers", "threads", "libraries", "profile"):
        if name not in heeded and getattr(options, name) != getattr(plain, name):
            raise UsageError(f"{what} has no {name}; they are for the backend ort")


def _settled(options: backends.Options, index: GraphIndex, *, timed: bool) -> tuple[backends.Options, tuple[str, ...]]:
    """Returns the options with the optimization level decided, and what to say about it.

    ONNX Runtime's optimizer takes time quadratic in the number of readers of a weight: minutes for 100,000 nodes.
    """
    if options.optimization != "auto":
        return options, ()
    count = sum(len(scope.nodes) for scope in index.scopes)
    if timed or count <= _MANY_NODES:
        return replace(options, optimization="all"), ()
    note = f"optimizations none, since the model has {count:,} nodes (--optimization-level all may take minutes)"
    return replace(options, optimization="none"), (note,)


def _has_half_weights(index: GraphIndex) -> bool:
    return any(tensor.data_type in _HALF for tensor in index.proto.graph.initializer)


def _search(
    model: Model, watch: _Watch, find_nan: bool | None, backend: str, options: backends.Options, notes: tuple[str, ...]
) -> tuple[NonFinite | None, tuple[str, ...]]:
    """Looks for the source of NaN: when told to, or by itself when an output has one (and then it may fail)."""
    feeds = watch.suspect or watch.first
    if find_nan is False or feeds is None or (find_nan is None and watch.suspect is None):
        return None, notes
    try:
        return find_nonfinite(model, feeds, backend=backend, options=options), notes
    except (ExecutionError, UnsupportedError) as error:
        if find_nan:
            raise
        return None, (*notes, f"an output has NaN or Inf, whose source could not be searched: {error.message}")


class _Runner:
    """Runs a model on one set of inputs after the other and streams the values that are looked at."""

    def __init__(
        self, model: Model, names: list[str] | None, backend: str, options: backends.Options, max_bytes: int
    ) -> None:
        self._model, self._options, self._max_bytes = model, options, max_bytes
        self.backend = backends.backend(backend)
        self._session = None
        self.device = ", ".join(options.providers).upper() if self.backend.name == "ort" else self.backend.name
        if self.backend.name == "reference":
            self.device = "Python"
        if names is None:
            self._session = self.backend.open(model, outputs=None, options=options)
            self.device = self._session.device
        self.names = names or list(dict.fromkeys(info.name for info in model.proto.graph.output))

    def stream(self, feeds: Mapping[str, Value]) -> Iterator[tuple[str, Value]]:
        """Yields (name, value) of everything that is looked at."""
        if self._session is not None:
            yield from self._session.run(feeds, self.names).items()
            return
        yield from backends.stream_outputs(
            self._model, feeds, self.names, backend=self.backend.name, options=self._options, max_bytes=self._max_bytes
        )

    def close(self) -> None:
        if self._session is not None:
            self._session.close()


class _Watch:
    """What is learnt from the values as they pass by."""

    def __init__(
        self, names: Sequence[str], expected: _Expected | None, tolerances: _Tolerances, *, keep: bool, several: bool
    ) -> None:
        self._expected, self._tolerances, self._keep, self._several = expected, tolerances, keep, several
        self.sets = 0
        self.first: Mapping[str, Value] | None = None
        self.suspect: Mapping[str, Value] | None = None
        self.choices: dict[str, None] = {}
        self.inputs: dict[str, Gathered] = {}
        self.outputs = {name: Gathered(name) for name in names}
        self.drifts: list[TensorDrift] = []
        self.missing: list[str] = []
        self.values: list[dict[str, Value]] = []
        self._feeds: Mapping[str, Value] = {}
        self._wanted: Mapping[str, Value] = {}
        self._unseen: set[str] = set()

    def begin(self, feed_set: FeedSet) -> None:
        """Starts a set."""
        self._feeds = feed_set.feeds
        self.first = feed_set.feeds if self.first is None else self.first
        self.choices.update(dict.fromkeys(feed_set.choices))
        for name, value in feed_set.feeds.items():
            self.inputs.setdefault(name, Gathered(name)).add(value)
        self._wanted = self._expected.next_set(self.sets) if self._expected else {}
        self._unseen = set(self._wanted)
        if self._keep:
            self.values.append({})

    def take(self, name: str, value: Value) -> None:
        """Looks at one value."""
        self.outputs[name].add(value)
        if self.suspect is None and not self.outputs[name].finite:
            self.suspect = self._feeds
        if name in self._unseen:
            self._unseen.remove(name)
            wanted = self._wanted[name]
            label = f"{name} (set {self.sets})" if self._several else name
            self.drifts += compare_values(label, wanted, value, tolerance=self._tolerances.of(name))
        if self._keep:
            self.values[-1][name] = value

    def end(self) -> None:
        """Ends a set."""
        self.missing += [name for name in self._wanted if name in self._unseen]
        self.sets += 1


def _explained(stream: Iterator[tuple[str, Value]], feed_set: FeedSet) -> Iterator[tuple[str, Value]]:
    """Passes a stream on; a failure while running on drawn inputs says what was drawn."""
    with choices_explained(feed_set.choices):
        yield from stream


# ---------------------------------------------------------------- what to look at, and on what


def _chosen_names(index: GraphIndex, selectors: Sequence[str]) -> list[str] | None:
    """Returns the tensors that selectors stand for, None for the model's own outputs.

    A pattern means what nodes of the main graph make; inputs, weights and inner tensors of bodies are meant only where
    nothing else is.
    """
    if not selectors:
        return None
    words = ["*"] if [word.lower() for word in selectors] == ["mark", "all"] else list(selectors)
    names: dict[str, None] = {}
    for word in words:
        refs = select.tensors(index, [word], what="--outputs")
        main = [ref for ref in refs if ref.scope is index.main]
        made = [ref for ref in main if ref.name in index.main.producers]
        names.update(dict.fromkeys(require_main(made or main or refs, what="--outputs")))
    return list(names)


def _with_expected(index: GraphIndex, names: list[str] | None, expected: _Expected | None) -> list[str] | None:
    """Adds the tensors that values are expected of; None still stands for the model's own outputs."""
    if expected is None:
        return names
    there = list(dict.fromkeys(index.main.outputs)) if names is None else names
    further = [name for name in expected.names if name not in set(there)]
    for name in further:
        if not index.main.defines(name):
            raise NotFoundError(
                f"values are expected of {name!r}, and the model has no such tensor",
                hint=did_you_mean(name, index.main.tensor_names()),
            )
    return [*there, *further] if further else names


def _feed_sets(model: Model, feeds: Mapping[str, Value] | FeedOptions | None, index: GraphIndex) -> Iterator[FeedSet]:
    if isinstance(feeds, Mapping):
        return iter([FeedSet(check_feeds(feeds, input_ports(model.proto.graph)))])
    return feed_sets(model, feeds, index=index)


class _Sets:
    """Sets of inputs, of which it is known whether more than one comes."""

    def __init__(self, sets: Iterator[FeedSet]) -> None:
        self._rest = sets
        self._ahead = list(islice(sets, 2))
        self.several = len(self._ahead) > 1

    def __iter__(self) -> Iterator[FeedSet]:
        while self._ahead:
            yield self._ahead.pop(0)
        yield from self._rest


class _Expected:
    """Sets of expected values; an ``.npz`` file is read value by value."""

    def __init__(self, model: Model, given: Sequence[str] | Mapping[str, Value]) -> None:
        outputs = [Port(info.name, info.type if info.HasField("type") else None) for info in model.proto.graph.output]
        self._sets: Iterator[Mapping[str, Value]]
        if isinstance(given, Mapping):
            self._sets = iter([given])
        else:
            self._sets = chain.from_iterable(self._load(word, outputs) for word in given)
        self._ahead = next(self._sets, None)
        if not self._ahead:
            raise FeedsError("the expected values are empty, so nothing could be compared")
        self.names = list(self._ahead)

    @staticmethod
    def _load(word: str, outputs: Sequence[Port]) -> Iterator[Mapping[str, Value]]:
        if word.lower().endswith(".npz") and Path(word).is_file():
            return iter([Capture(word)])
        return load(word, outputs, prefix="output")

    def next_set(self, number: int) -> Mapping[str, Value]:
        """Returns the expected values of the next set."""
        values, self._ahead = self._ahead if self._ahead is not None else next(self._sets, None), None
        if values is None:
            raise FeedsError(f"there are more sets of inputs than sets of expected values, which are {number}")
        return values


class _Tolerances:
    """What is allowed, by tensor."""

    def __init__(
        self, index: GraphIndex, atol: Sequence[str] | float, rtol: Sequence[str] | float, *, bitwise: bool
    ) -> None:
        self._bitwise = bitwise
        names = set(index.main.tensor_names())
        self._atol = self._read(atol, names, "--atol")
        self._rtol = self._read(rtol, names, "--rtol")

    @staticmethod
    def _read(given: Sequence[str] | float, names: set[str], what: str) -> dict[str | None, float]:
        if isinstance(given, (int, float)):
            return {None: float(given)}
        return parse_tolerances(given, names, what=what)

    def of(self, name: str) -> Tolerance | None:
        """Returns what is allowed for a tensor; None is its element type's default, where nothing is given."""
        if self._bitwise:
            return BITWISE
        atol, rtol = (given.get(name, given.get(None)) for given in (self._atol, self._rtol))
        return None if atol is None and rtol is None else Tolerance(atol or 0.0, rtol or 0.0)


# ---------------------------------------------------------------- files and clocks


class _Files:
    """Values going to a ``.npz`` file (one set) or to a folder with one such file per set; all appear, or none."""

    def __init__(self, target: str | os.PathLike[str] | None, *, several: bool) -> None:
        self._target = None if target is None else Path(target)
        self._single = self._target is not None and self._target.suffix.lower() == ".npz"
        self._staging: Path | None = None
        self._writer: CaptureWriter | None = None
        self._number = 0
        self.written: tuple[Path, ...] = ()
        if self._target is None:
            return
        if self._target.suffix and not self._single and not self._target.is_dir():
            raise UsageError(f"{self._target}: values are saved as .npz, or in a folder", hint="Name it so: values.npz")
        if self._single and several:
            raise UsageError(
                f"{self._target} holds one set of values, and there are several",
                hint=f"Name a folder: {self._target.with_suffix('')}",
            )
        if not self._single and self._target.is_dir() and any(self._target.iterdir()):
            raise OutputError(f"the folder {self._target} is not empty")

    def __enter__(self) -> _Files:
        return self

    def write(self, name: str, value: Value) -> None:
        """Adds a value to the current set."""
        if self._target is None:
            return
        if self._writer is None:
            self._writer = CaptureWriter(self._place()).__enter__()
        self._writer.write(name, value)

    def _place(self) -> Path:
        assert self._target is not None
        if self._single:
            return self._target
        if self._staging is None:
            try:
                staging = tempfile.mkdtemp(dir=self._target.resolve().parent, prefix=f".{self._target.name}.")
            except OSError as error:
                raise OutputError(f"{self._target} cannot be written: {error.strerror}") from None
            self._staging = Path(staging)
        return self._staging / f"{self._number:04}.npz"

    def next_set(self) -> None:
        """Ends the current set."""
        if self._writer is not None and not self._single:
            self._writer.__exit__(None, None, None)
            self._writer = None
        self._number += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            if self._writer is not None:
                self._writer.__exit__(kind, error, trace)
            if kind is None and self._target is not None:
                if self._staging is not None:
                    os.chmod(self._staging, 0o755)
                    os.replace(self._staging, self._target)
                    self._staging = None
                self.written = (self._target,)
        except OSError as failure:
            raise OutputError(f"{self._target} cannot be written: {failure.strerror}") from None
        finally:
            if self._staging is not None:
                shutil.rmtree(self._staging, ignore_errors=True)


def _bench(
    model: Model, feeds: Mapping[str, Value], backend: str, options: backends.Options, runs: int, warmup: int
) -> Latency:
    """Times runs of the model with its own outputs, one after the other."""
    session = backends.open_session(model, backend, options=replace(options, profile=None))
    taken = time_session(session, feeds, runs, warmup)
    session.close()
    return taken


def time_session(session: backends.Session, feeds: Mapping[str, Value], runs: int, warmup: int) -> Latency:
    """Returns how long runs of an open session take, one after the other.

    Args:
        session: The session.
        feeds: Its inputs.
        runs: How many runs are timed.
        warmup: How many come before them.
    """
    times = []
    with track("timing", runs + warmup, "runs") as advance:
        for number in range(warmup + runs):
            start = time.perf_counter()
            session.run(feeds)
            taken = (time.perf_counter() - start) * 1e3
            if number >= warmup:
                times.append(taken)
            advance(1)
    return summarize(times, warmup)
