"""What outputs must be like: a measure of each, a bound, and NaN and Inf judged before either.

    max      the largest of |difference| / (1 + |expected|): the tolerance is atol and rtol at once
    abs      the largest |difference|
    rel      the length of the difference over the length of what is expected, both as vectors
    cosine   the cosine similarity, at least so much
    sqnr     signal to quantization noise in dB, at least so much
    FILE.py:FUNCTION   a function of (reference, outputs): two sequences of outputs by name, one entry per sample

A value that is NaN or infinite on one side only fails whatever the measure says.
"""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from onnxbench.bisection import measure
from onnxbench.captures import Value
from onnxbench.errors import SpecError, UsageError, did_you_mean
from onnxbench.specs import parse_named

METRICS = ("max", "abs", "rel", "cosine", "sqnr")
_AT_LEAST = frozenset({"cosine", "sqnr"})
_AT_LEAST_SIGN, _AT_MOST_SIGN = "\N{GREATER-THAN OR EQUAL TO}", "\N{LESS-THAN OR EQUAL TO}"
"""Of one character, since a tolerance is cut at its equals sign (``out=1e-3``)."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What a measure may be.

    Attributes:
        value: The limit.
        at_least: Whether that is the least it may be, not the most.
    """

    value: float
    at_least: bool = False

    @property
    def text(self) -> str:
        """The bound in a few words: ``<= 0.001``."""
        return f"{'>=' if self.at_least else '<='} {self.value:g}"


@dataclass(frozen=True, slots=True)
class Score:
    """How good outputs are.

    Attributes:
        ratio: 1 at the bound, less within, infinite for NaN, Inf or another shape. Scores are compared by this.
        value: What was measured; None where nothing could be.
        output: The output that is worst; ``""`` for a function of all of them.
        sample: The sample that is worst.
        problem: What is wrong in kind, in words; ``""`` for plain numbers.
    """

    ratio: float = 0.0
    value: float | None = None
    output: str = ""
    sample: int = 0
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether this is within the bound."""
        return self.ratio <= 1.0

    @property
    def text(self) -> str:
        """The score in a few words."""
        return self.problem or ("-" if self.value is None else f"{self.value:.3g}")


class Criterion:
    """A measure with its bounds.

    Args:
        metric: One of ``METRICS``, or ``FILE.py:FUNCTION``.
        tolerances: ``1e-3``, ``out:1e-3``, ``>=0.99``.
        outputs: The names of the model's outputs.

    Attributes:
        metric: As given.
        function: The user's own function, or None.

    Raises:
        UsageError: There is no such measure, no tolerance, or one that cannot be read.
        NotFoundError: There is no such output or file.
        SpecError: The file fails, or has no such function.
    """

    def __init__(self, metric: str, tolerances: Sequence[str], outputs: Sequence[str]) -> None:
        self.metric = metric
        file, sign, name = metric.rpartition(":")
        is_own = bool(sign) and file.endswith(".py")
        if not is_own and metric not in METRICS:
            raise UsageError(
                f"there is no metric {metric!r}",
                hint=did_you_mean(metric, METRICS) or f"Metrics: {', '.join(METRICS)}, FILE.py:FUNCTION.",
            )
        words = [word.replace(">=", _AT_LEAST_SIGN).replace("<=", _AT_MOST_SIGN) for word in tolerances]
        bounds = parse_named(
            words, outputs, lambda text: _bound(text, metric in _AT_LEAST, must_say=is_own), what="--tolerance"
        )
        if is_own and set(bounds) - {None}:
            raise UsageError("--tolerance names an output, and the metric is a function of all of them")
        if not bounds:
            raise UsageError("a search needs to know what outputs may be off", hint="Say it: --tolerance 1e-3.")
        missing = [name for name in outputs if name not in bounds and None not in bounds]
        self._bounds = bounds
        self.unjudged = tuple(missing)
        self.function = _function(Path(file), name) if is_own else None
        self._code = Path(file).read_text(encoding="utf-8", errors="replace") if is_own else ""

    @property
    def text(self) -> str:
        """The criterion in words: ``max <= 0.001``."""
        return ", ".join(
            f"{self.metric}{f' of {name}' if name else ''} {bound.text}" for name, bound in self._bounds.items()
        )

    def judges(self, output: str) -> bool:
        """Tells whether something is said of an output."""
        return output in self._bounds or None in self._bounds

    @property
    def power(self) -> float:
        """The power of a score's ratio that independent errors add up in: 2 for lengths, 1 for squares of them."""
        return 1.0 if self.metric == "cosine" else 2.0

    @property
    def question(self) -> list[str]:
        """All that decides what passes: the criterion in words, and the code of a user's own function."""
        return [self.text, self._code]

    def judge(self, reference: Mapping[str, Value], outputs: Mapping[str, Value], sample: int) -> Score:
        """Returns the score of one sample: that of its worst output. With a function, only what is wrong in kind."""
        worst = Score(sample=sample)
        for name, expected in reference.items():
            bound = self._bounds.get(name, self._bounds.get(None))
            if bound is None:
                continue
            for one, other in _pairs(expected, outputs.get(name)):
                score = self._score(name, one, other, bound, sample)
                if worst.value is None or score.ratio > worst.ratio:
                    worst = score
        return worst

    def _score(self, name: str, expected: Value, actual: Value, bound: Bound, sample: int) -> Score:
        distance = measure(expected, actual)
        if distance.problem:
            return Score(math.inf, None, name, sample, distance.text)
        if self.function is not None:
            return Score(0.0, None, name, sample)
        value = distance.rel
        if self.metric == "abs":
            value = distance.max_abs
        elif self.metric == "max":
            value = 0.0 if distance.equal else _largest_scaled(expected, actual)
        elif self.metric == "cosine":
            value = 1.0 if distance.equal else _cosine(expected, actual)
        elif self.metric == "sqnr":
            value = math.inf if not value else -math.inf if math.isinf(value) else -20 * math.log10(value)
        return Score(_ratio(self.metric, value, bound), value, name, sample)

    def judge_all(self, reference: Sequence[Mapping[str, Value]], outputs: Sequence[Mapping[str, Value]]) -> Score:
        """Returns the score that the user's function gives to all samples.

        Raises:
            SpecError: It fails, or returns no number.
        """
        assert self.function is not None
        bound = self._bounds[None]
        with _told(f"metric {self.metric}"):
            made: Any = self.function(reference, outputs)
            value = float(made)
        if math.isnan(value):
            return Score(math.inf, None, problem="the metric is NaN")
        return Score(_ratio("", value, bound), value)


def _ratio(metric: str, value: float, bound: Bound) -> float:
    """Returns how far a value is on the way to its bound: 1 at it, more beyond."""
    limit = bound.value
    if metric == "sqnr" and bound.at_least:
        return float(10 ** max(-300.0, min((limit - value) / 20, 300.0)))
    if metric == "cosine" and bound.at_least and limit < 1:
        return max(0.0, 1 - value) / (1 - limit)
    if bound.at_least:
        return 1 + limit - value
    if limit > 0 and value >= 0:
        return value / limit
    return 0.0 if value <= limit else 1 + value - limit


def _largest_scaled(expected: Any, actual: Any) -> float:
    import numpy as np

    with np.errstate(all="ignore"):
        e, a = _numbers(expected), _numbers(actual)
        agree = (e == a) | (np.isnan(e) & np.isnan(a))
        apart = np.where(agree, 0.0, np.abs(e - a) / (1 + np.abs(e)))
    return float(apart.max(initial=0.0))


def _cosine(expected: Any, actual: Any) -> float:
    import numpy as np

    e, a = _numbers(expected).reshape(-1), _numbers(actual).reshape(-1)
    finite = np.isfinite(e) & np.isfinite(a)
    e, a = e[finite], a[finite]
    e, a = (each / (np.abs(each).max(initial=0.0) or 1.0) for each in (e, a))
    norm = float(np.linalg.norm(e)) * float(np.linalg.norm(a))
    return min(1.0, float(np.dot(e, a)) / norm) if norm else float(not e.any() and not a.any())


def _numbers(value: Any) -> Any:
    import numpy as np

    if value.dtype.kind in "OUS":
        return np.zeros(value.shape)  # texts that differ have a distance of their own kind
    return value.astype(np.complex128 if value.dtype.kind == "c" else np.float64)


def _pairs(expected: Value, actual: Value) -> Iterator[tuple[Value, Value]]:
    """Yields the tensors of two values side by side; of values of unlike make, these themselves."""
    if isinstance(expected, (list, tuple)) and isinstance(actual, (list, tuple)) and len(expected) == len(actual):
        for one, other in zip(expected, actual, strict=True):
            yield from _pairs(one, other)
    elif isinstance(expected, Mapping) and isinstance(actual, Mapping) and set(expected) == set(actual):
        import numpy as np

        for key in expected:
            yield np.asarray(expected[key]), np.asarray(actual[key])
    else:
        yield expected, actual


def _bound(text: str, at_least: bool, *, must_say: bool) -> Bound:
    said = text.strip()
    sign = said[:1] if said[:1] in (_AT_LEAST_SIGN, _AT_MOST_SIGN) else ""
    if must_say and not sign:
        raise UsageError(
            f"--tolerance {text!r} does not say whether the metric may be at most or at least that",
            hint="Write --tolerance '>=0.99' or '<=0.01'.",
        )
    try:
        value = float(said.removeprefix(sign))
    except ValueError:
        value = math.nan
    if math.isnan(value) or (not at_least and not sign and value < 0):
        raise UsageError(f"--tolerance {text!r} is no tolerance", hint="Write --tolerance 1e-3 or out:1e-3.")
    return Bound(value, sign == _AT_LEAST_SIGN if sign else at_least)


def _function(file: Path, name: str) -> Callable[..., Any]:
    """Returns a function of a Python file, which is run; it is compiled in memory, so no cache file is left."""
    from onnxbench.captures import require_file

    require_file(file)
    module = ModuleType(f"onnxbench_metric_{file.stem}")
    module.__file__ = str(file)
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)
    try:
        with _told(str(file)):
            exec(compile(file.read_bytes(), str(file), "exec"), module.__dict__)
    finally:
        with suppress(ValueError):
            sys.path.remove(folder)
    found = module.__dict__.get(name)
    if not callable(found):
        names = [each for each, value in module.__dict__.items() if callable(value) and not each.startswith("_")]
        raise SpecError(f"{file} has no function {name}()", hint=did_you_mean(name, names))
    made: Callable[..., Any] = found
    return made


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Makes an error of a user's own code one that says where it is."""
    try:
        yield
    except (Exception, SystemExit) as error:  # anything may come out of it
        frames = traceback.extract_tb(error.__traceback__)[1:]
        at = f", {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        raise SpecError(f"{what}{at} failed: {type(error).__name__}: {error}") from None
