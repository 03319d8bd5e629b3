"""Sets of kept nodes, tried: each is a model that is run on all samples, and judged; nothing is run twice.

What limits a search is how often the model runs, so that is what is counted: one run is the model on one sample. A set
that fails is known to fail after one sample, so the one that failed last, or was the worst, is tried first. Sets that
are alike can be looked at in one session, which computes once what they have in common (``_sharing``); that counts as
many runs as it is long. What was found is saved after every set, if a file is named, and a later search with the same
model, inputs and question starts from there.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench import backends
from onnxbench.captures import Value
from onnxbench.errors import ExecutionError, FeedsError, UsageError
from onnxbench.samples import Samples
from onnxbench.tuning._criteria import Criterion, Score
from onnxbench.tuning._sharing import Together
from onnxbench.wording import plural
from onnxbench.writer import write_whole

if TYPE_CHECKING:
    from onnxbench.model import Model

_VERSION = 1


class OutOfBudgetError(Exception):
    """The runs or the time that a search may take are used up."""


@dataclass(slots=True)
class Budget:
    """What a search may take.

    Attributes:
        runs: Runs of the model, all in all; None: any number.
        seconds: Seconds; None: any number.
        spent: Runs so far, without those of an earlier search that is resumed.
        heard: Called with every number of runs that is taken.
    """

    runs: int | None = None
    seconds: float | None = None
    spent: int = 0
    heard: Callable[[int], None] = field(default=lambda amount: None)
    _begun: float = field(default_factory=time.monotonic)

    def take(self, runs: int = 1) -> None:
        """Takes so many runs.

        Raises:
            OutOfBudgetError: They are not there any more.
        """
        if self.runs is not None and self.spent + runs > self.runs:
            raise OutOfBudgetError
        if self.seconds is not None and time.monotonic() - self._begun > self.seconds:
            raise OutOfBudgetError
        self.count(runs)

    @property
    def left(self) -> float:
        """The runs that may still be taken."""
        return math.inf if self.runs is None else self.runs - self.spent

    def count(self, runs: int) -> None:
        """Counts runs that are made whatever is left."""
        self.spent += runs
        self.heard(runs)


@dataclass(frozen=True, slots=True)
class Trial:
    """A set of kept nodes that was tried.

    Attributes:
        kept: The units that stay in float32.
        score: The worst score of all samples, or of those up to the first that fails.
        failing: The sample that failed first; -1 where none did.
    """

    kept: frozenset[int]
    score: Score
    failing: int = -1

    @property
    def passed(self) -> bool:
        """Whether all samples are within the bounds."""
        return self.failing < 0


Open = Callable[[Iterator[frozenset[int]], float], Together]
"""Opens a session for sets of kept units: as many of the first as together are not longer than so many runs, or one."""
_MOST_AT_ONCE = 32
_MOST_BYTES = 1 << 28
"""So much may the outputs of sets in one session take."""
_LONGEST = 8.0
"""So many runs may one session be long."""


def _refuse_nan(expected: Sequence[Mapping[str, Value]], criterion: Criterion) -> None:
    """Raises a FeedsError for an output that is NaN throughout on all samples: whatever is done to it would pass."""
    for name in expected[0]:
        if criterion.judges(name) and all(_is_nan_throughout(sample[name]) for sample in expected):
            raise FeedsError(
                f"output {name!r} of the model as it is is NaN throughout, on {plural(len(expected), 'sample')}",
                hint="Give inputs that it was made for (--feeds), or judge other outputs: --tolerance OUTPUT:VALUE.",
            )


def _is_nan_throughout(value: Value) -> bool:
    import numpy as np

    if not isinstance(value, np.ndarray) or not value.size or value.dtype.kind in "OUS":
        return False
    return bool(np.isnan(value).all())


class Evaluator:
    """Tries sets of kept nodes on samples.

    Args:
        open_kept: Opens sessions in which all but these units are in low precision.
        fed: Returns a sample as such a session reads it.
        reference: The model as it is, which says what is expected.
        samples: Inputs by name.
        criterion: What outputs must be like.
        budget: What may be spent.
        state: What is known from before, and where it is saved.

    Attributes:
        expected: The reference's outputs, one entry per sample.
        trials: What was tried, in order.
    """

    def __init__(
        self,
        open_kept: Open,
        fed: Callable[[Mapping[str, Value]], Mapping[str, Value]],
        reference: Model,
        samples: Sequence[Mapping[str, Value]],
        criterion: Criterion,
        budget: Budget,
        state: State,
    ) -> None:
        self._open, self._fed, self._samples, self._criterion = open_kept, fed, samples, criterion
        self.budget, self.state = budget, state
        self._order = list(range(len(samples)))
        self.trials: list[Trial] = []
        self._known = {trial.kept: trial for trial in state.trials}
        session = backends.open_session(reference, options=backends.Options(optimization="none"))
        self.expected = Samples()
        for sample in samples:
            budget.count(1)
            self.expected.append(session.run(sample))
        session.close()
        _refuse_nan(self.expected, criterion)
        self._looked: dict[tuple[frozenset[int], int], Score] = {}
        size = sum(getattr(value, "nbytes", 0) for value in self.expected[0].values())
        self._at_once = 1 if criterion.function else min(_MOST_AT_ONCE, max(1, _MOST_BYTES // max(1, size)))

    def __call__(self, kept: Collection[int]) -> Trial:
        """Returns what comes of a set of kept units.

        Raises:
            OutOfBudgetError: There is nothing left to try it with.
        """
        chosen = frozenset(kept)
        trial = self._known.get(chosen)
        if trial is None:
            trial = self._add(self._try(chosen))
        if trial not in self.trials:
            self.trials.append(trial)
        first = trial.failing if trial.failing >= 0 else trial.score.sample
        self._order.remove(first)
        self._order.insert(0, first)
        return trial

    def _add(self, trial: Trial) -> Trial:
        self._known[trial.kept] = trial
        self.state.add(trial)
        return trial

    def look(self, sets: Sequence[frozenset[int]]) -> list[Score]:
        """Returns the scores of sets that are alike, of as many of the first as one session takes, on one sample.

        That is the sample that failed last, or was the worst of a set that passed. A set that fails on it is tried; one
        that passes is so only if there is no other sample.

        Raises:
            OutOfBudgetError: There is nothing left to look at the first one with.
        """
        number = self._order[0]
        new = [kept for kept in sets if kept not in self._known and (kept, number) not in self._looked]
        if new:
            self._look(new[: self._at_once], number)
        found = []
        for kept in sets:
            if kept in self._known:
                found.append(self(kept).score)
            elif (kept, number) in self._looked:
                found.append(self._looked[kept, number])
            else:
                break
        return found

    def _look(self, sets: Sequence[frozenset[int]], number: int) -> None:
        try:
            session = self._open(iter(sets), min(_LONGEST, self.budget.left))
        except ExecutionError:
            self(sets[0])
            return
        try:
            if len(session.names) == 1:
                self._add(self._judged(sets[0], session))
                return
            self.budget.take(math.ceil(session.cost))
            outputs = session.run(self._fed(self._samples[number]))
        except ExecutionError:
            self(sets[0])
            return
        finally:
            session.close()
        expected = self.expected[number]
        for kept, made in zip(sets, outputs, strict=False):  # it may have taken the first ones alone
            score = self._criterion.judge(expected, made, number)
            if score.passed and len(self._samples) > 1:
                self._looked[kept, number] = score
            else:
                self._add(Trial(kept, score, -1 if score.passed else number))

    def _try(self, kept: frozenset[int]) -> Trial:
        try:
            session = self._open(iter([kept]), 1.0)
        except ExecutionError as error:
            return Trial(kept, Score(math.inf, problem=error.message), self._order[0])
        try:
            return self._judged(kept, session)
        finally:
            session.close()

    def _judged(self, kept: frozenset[int], session: Together) -> Trial:
        worst = Score()
        if self._criterion.function is not None:
            worst = self._by_function(session)
            return Trial(kept, worst, -1 if worst.passed else worst.sample)
        for number in self._order:
            score = self._looked.get((kept, number)) or self._score(number, session)
            if not score.passed:
                return Trial(kept, score, number)
            worst = _worse(worst, score)
        return Trial(kept, worst)

    def _by_function(self, session: Together) -> Score:
        """Returns what the user's function says of all samples, or what is wrong in kind with one of them."""
        made = Samples()
        for number in range(len(self._samples)):
            score = self._score(number, session, made)
            if not score.passed:
                return score
        return self._criterion.judge_all(self.expected, made)

    def _score(self, number: int, session: Together, made: Samples | None = None) -> Score:
        """Returns the score of one sample; its outputs are added to what is made."""
        try:
            self.budget.take()
            outputs = session.run(self._fed(self._samples[number]))[0]
        except ExecutionError as error:
            return Score(math.inf, sample=number, problem=error.message)
        if made is not None:
            made.append(outputs)
        return self._criterion.judge(self.expected[number], outputs, number)

    def worst(self, kept: Collection[int]) -> Score:
        """Returns the worst score of all samples, whether they pass or not."""
        session = self._open(iter([frozenset(kept)]), 1.0)
        try:
            if self._criterion.function is not None:
                return self._by_function(session)
            worst = Score()
            for number in range(len(self._samples)):
                worst = _worse(worst, self._score(number, session))
            return worst
        finally:
            session.close()


def _worse(one: Score, other: Score) -> Score:
    is_first = one.value is None and not one.problem
    return other if is_first or other.ratio > one.ratio else one


class State:
    """What a search knows, and the file in which it is kept for the next one.

    Args:
        file: The file, or None for none.
        key: What the knowledge is about: digests of the model, the inputs and the question.

    Attributes:
        trials: What an earlier search tried.
        ranking: Its scores of the units by sample, as written by ``rank``.

    Raises:
        UsageError: The file is about something else, or is none of these.
        OutputError: It cannot be written.
    """

    def __init__(self, file: Path | None, key: Mapping[str, str]) -> None:
        self._file, self._key = file, dict(key)
        self.trials: list[Trial] = []
        self.ranking: dict[str, Any] = {}
        if file is not None and file.exists():
            self._load(file)
        elif file is not None:
            self._save()

    def _load(self, file: Path) -> None:
        strange = UsageError(f"{file} is no state of a search", hint="Name a new file, or remove it.")
        try:
            said = json.loads(file.read_text(encoding="utf-8"))
            version, key = said["onnxbench_search"], dict(said["about"])
        except (OSError, ValueError, KeyError, TypeError):
            raise strange from None
        if version != _VERSION:
            raise UsageError(f"{file} was written by another version of onnxbench", hint="Name a new file.")
        if key != self._key:
            other = [name for name in self._key if key.get(name) != self._key[name]]
            raise UsageError(
                f"{file} is of another search: {' and '.join(other)} {'is' if len(other) == 1 else 'are'} not the same",
                hint="Name a new file with --resume, or remove this one.",
            )
        try:
            self.ranking = dict(said["ranking"])
            self.trials = [
                Trial(_from_mask(entry["kept"]), Score(**{**entry["score"], "ratio": float(entry["score"]["ratio"])}),
                      int(entry["failing"]))
                for entry in said["trials"]
            ]  # fmt: skip
        except (ValueError, KeyError, TypeError):
            raise strange from None

    def add(self, trial: Trial) -> None:
        """Remembers a trial."""
        self.trials.append(trial)
        self._save()

    def remember_ranking(self, ranking: Mapping[str, Any]) -> None:
        """Remembers a ranking."""
        self.ranking = dict(ranking)
        self._save()

    def _save(self) -> None:
        if self._file is None:
            return
        said = {
            "onnxbench_search": _VERSION,
            "about": self._key,
            "ranking": self.ranking,
            "trials": [
                {"kept": _mask(trial.kept), "failing": trial.failing,
                 "score": {**asdict(trial.score), "ratio": str(trial.score.ratio)}}
                for trial in self.trials
            ],
        }  # fmt: skip
        write_whole(self._file, [json.dumps(said).encode()])


def _mask(kept: Collection[int]) -> str:
    """Returns a set of units as a hexadecimal number whose bits they are."""
    return f"{sum(1 << unit for unit in kept):x}"


def _from_mask(text: str) -> frozenset[int]:
    bits = int(text, 16)
    found = []
    while bits:
        low = bits & -bits
        found.append(low.bit_length() - 1)
        bits ^= low
    return frozenset(found)
