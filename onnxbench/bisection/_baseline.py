"""Baselines: what a search measured, kept in a file, and later searches held against it.

*Worse* is an error that rounding does not explain and that is larger than the baseline's, times a factor. Two machines
round differently; so what is within the limits of the search (``_search``) is never worse, whatever the baseline has.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxbench.bisection._evidence import Evidence
from onnxbench.bisection._finding import FACTOR
from onnxbench.bisection._report import Bisection, Row
from onnxbench.drift import TensorDrift
from onnxbench.envelope import jsonable
from onnxbench.errors import NotFoundError, OutputError, SpecError, UsageError
from onnxbench.version import SCHEMA_VERSION, __version__
from onnxbench.writer import write_whole

KIND = "onnxbench bisect baseline"
WORSE = 2.0
_SINGLE = 2.0**-23


@dataclass(frozen=True, slots=True)
class Level:
    """How large an error is.

    Attributes:
        rel: Relative to the reference; infinite for what is wrong in kind.
        peak: At its worst element.
        nonfinite: How many elements are NaN or infinite on one side only.
        problem: ``shape``, ``kind``, ``nonfinite``, or ``""``.
    """

    rel: float
    peak: float = 0.0
    nonfinite: int = 0
    problem: str = ""

    @property
    def text(self) -> str:
        """In a few words."""
        if self.problem:
            return f"{self.nonfinite:,} NaN or Inf" if self.problem == "nonfinite" else f"another {self.problem}"
        return (
            f"{self.rel:.1e} (worst element {self.peak:.1e})" if self.peak else f"{self.rel:.1e}" if self.rel else "0"
        )


@dataclass(frozen=True, slots=True)
class Worse:
    """Something that became worse.

    Attributes:
        what: ``own error`` or ``output``.
        tensor: Of which tensor.
        node: The node that makes it, or ``""``.
        before: How it was; None for a tensor that the baseline does not know.
        now: How it is.
    """

    what: str
    tensor: str
    node: str
    before: Level | None
    now: Level

    @property
    def text(self) -> str:
        """In one line."""
        node = f" of {self.node}" if self.node else ""
        before = f", {self.before.text} in the baseline" if self.before is not None else ", and not in the baseline"
        return f"{self.what}{node} ({self.tensor}): {self.now.text}{before}"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A search held against a baseline.

    Attributes:
        passed: Whether nothing is worse.
        verdict: One line.
        factor: How many times larger an error may be.
        worse: What became worse, the worst first.
        new: Tensors that the baseline does not know.
        vanished: Tensors that only the baseline knows.
        notes: What else differs: models, inputs, versions.
    """

    passed: bool
    verdict: str
    factor: float
    worse: tuple[Worse, ...]
    new: tuple[str, ...]
    vanished: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a search measured, as far as later ones are held against it.

    Attributes:
        own: The own errors, by tensor; a tensor that could not be judged has None.
        outputs: The errors of the outputs, by name.
        digests: Digests by what they are of: ``suspect``, ``reference``, ``inputs``.
        versions: Versions of what took part.
        verdict: What the search said.
    """

    own: Mapping[str, Level | None]
    outputs: Mapping[str, Level]
    digests: Mapping[str, str]
    versions: Mapping[str, str]
    verdict: str

    @classmethod
    def of(cls, found: Bisection) -> Baseline:
        """Returns the baseline that a search makes.

        Raises:
            UsageError: The search was made without ``evidence``.
        """
        evidence = _evidence(found)
        return cls(
            {row.tensor: _own(row) for row in found.tensors},
            {name: max(map(_level, drifts), key=lambda level: level.rel) for name, drifts in _by_name(found).items()},
            _digests(evidence),
            dict(evidence.versions),
            found.verdict,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it to a file, in one piece; the same search gives the same bytes.

        Raises:
            OutputError: The file cannot be written, or is one that is no baseline.
        """
        target = Path(path)
        _require_place(target)
        data = {"schema_version": SCHEMA_VERSION, "onnxbench": __version__, "kind": KIND, **jsonable(self)}
        text = json.dumps(data, indent=1, ensure_ascii=False, sort_keys=True, allow_nan=False)
        write_whole(target, [f"{text}\n".encode("utf-8", "backslashreplace")])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Baseline:
        """Returns the baseline in a file.

        Raises:
            NotFoundError: There is no such file.
            SpecError: It is no baseline, or one of a later version.
        """
        data = _read(Path(path))
        try:
            own = {str(name): None if each is None else _from_json(each) for name, each in data["own"].items()}
            outputs = {str(name): _from_json(each) for name, each in data["outputs"].items()}
            return cls(own, outputs, dict(data["digests"]), dict(data["versions"]), str(data["verdict"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SpecError(f"{path} is a baseline with something missing or mistaken in it: {error}") from None

    def judge(self, found: Bisection, *, factor: float = WORSE) -> Judgement:
        """Returns what is worse than this baseline.

        Args:
            found: A search with ``evidence``.
            factor: How many times larger an error may be, at least 1.

        Raises:
            UsageError: The factor is less than 1, or the search was made without ``evidence``.
        """
        _require_factor(factor)
        evidence = _evidence(found)
        worse = tuple(
            sorted(
                (*self._worse_rows(found, factor), *self._worse_outputs(found, factor)),
                key=lambda each: (each.what == "output", -each.now.rel),
            )
        )
        names = {row.tensor for row in found.tensors}
        new = tuple(row.tensor for row in found.tensors if row.tensor not in self.own)
        vanished = tuple(name for name in self.own if name not in names)
        outputs = set(_by_name(found))
        gone = tuple(name for name in self.outputs if name not in outputs)
        verdict = (
            f"worse than the baseline: {worse[0].text}{f', and {len(worse) - 1} more' if len(worse) > 1 else ''}"
            if worse
            else f"no worse than the baseline: nothing beyond {factor:g} times what it has, or beyond rounding"
        )
        notes = [*self._differences(evidence), *(f"the baseline's output {name!r} was not compared" for name in gone)]
        return Judgement(not worse, verdict, factor, worse, new, vanished, tuple(notes))

    def _worse_rows(self, found: Bisection, factor: float) -> Iterator[Worse]:
        for row in found.tensors:
            now = _own(row)
            if now is None or row.excess <= 1:
                continue
            before = self.own.get(row.tensor)
            if before is None or _is_worse(before, now, factor, floor=0.0):
                yield Worse("own error", row.tensor, row.node, before, now)

    def _worse_outputs(self, found: Bisection, factor: float) -> Iterator[Worse]:
        floors = {row.tensor: FACTOR * row.precision for row in found.tensors}
        for name, drifts in _by_name(found).items():
            now = max(map(_level, drifts), key=lambda level: level.rel)
            before = self.outputs.get(name)
            if _is_worse(before or Level(0.0), now, factor, floor=floors.get(name, FACTOR * _SINGLE)):
                yield Worse("output", name, "", before, now)

    def _differences(self, evidence: Evidence) -> Iterator[str]:
        now = _digests(evidence)
        for what, words in (
            ("suspect", "the suspect is another file than in the baseline"),
            ("reference", "the reference is another than in the baseline"),
            ("inputs", "the inputs are others than in the baseline, so errors may differ for that alone"),
        ):
            if self.digests.get(what) != now.get(what):
                yield words
        for name, version in evidence.versions.items():
            before = self.versions.get(name)
            if before is not None and before != version and name != "python":
                yield f"{name} is {version}, {before} in the baseline"


def open_baseline(
    path: str | os.PathLike[str] | None,
    *,
    save_to: str | os.PathLike[str] | None = None,
    factor: float = WORSE,
) -> Baseline | None:
    """Returns the baseline in a file, None for None; what a search would stumble over afterwards is told before it.

    Args:
        path: The file.
        save_to: Where another one will be saved.
        factor: What ``Baseline.judge`` will be asked with.

    Raises:
        NotFoundError: There is no such file.
        SpecError: It is no baseline.
        UsageError: The factor says nothing.
        OutputError: The other one cannot be saved there.
    """
    _require_factor(factor)
    if save_to is not None:
        _require_place(Path(save_to))
    return None if path is None else Baseline.load(path)


def _require_factor(factor: float) -> None:
    """Raises UsageError for a factor that says nothing."""
    if not (math.isfinite(factor) and factor >= 1):
        raise UsageError(f"an error may be 1 or more times the baseline's, not {factor:g} times")


def _require_place(path: Path) -> None:
    """Raises OutputError where no baseline can be written: there is a file that is none, or no folder."""
    if not path.parent.is_dir():
        raise OutputError(f"there is no folder {path.parent}", hint="Make it first.")
    if not path.exists():
        return
    try:
        _read(path)
    except (SpecError, NotFoundError):
        raise OutputError(f"{path} is there already and is no baseline", hint="Name a new file.") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = json.loads(file.read()) if file.read(1) == b"{" and not file.seek(0) else None
    except (FileNotFoundError, IsADirectoryError):
        raise NotFoundError(f"there is no file {path}", hint="--save-baseline makes one.") from None
    except (OSError, ValueError):
        data = None
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise SpecError(f"{path} is no baseline of 'onnxbench bisect'", hint="--save-baseline makes one.")
    if data.get("schema_version", 0) > SCHEMA_VERSION:
        raise SpecError(f"{path} was written by a later onnxbench ({data.get('onnxbench')})", hint="Update onnxbench.")
    return data


def _evidence(found: Bisection) -> Evidence:
    if found.evidence is None:
        raise UsageError("a baseline needs the digests of what was compared", hint="bisect(..., evidence=True)")
    return found.evidence


def _digests(evidence: Evidence) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for model in evidence.models:
        found.setdefault(model.role, []).extend([model.sha256, *model.weights.values()])
    found["inputs"] = [feeds.sha256 for feeds in evidence.feeds]
    return {what: " ".join(each) for what, each in found.items()}


def _by_name(found: Bisection) -> dict[str, list[TensorDrift]]:
    """Returns what was measured of each output: of a sequence, of each of its elements."""
    drifts: dict[str, list[TensorDrift]] = {}
    for drift in found.outputs:
        drifts.setdefault(drift.name, []).append(drift)
    return drifts


def _own(row: Row) -> Level | None:
    own = row.own
    return None if own is None else Level(own.severity, own.peak, own.nonfinite, own.problem)


def _level(drift: TensorDrift) -> Level:
    if drift.bitwise_equal:
        return Level(0.0)
    if drift.expected_shape != drift.actual_shape:
        return Level(math.inf, problem="shape")
    if drift.nonfinite:
        return Level(math.inf, nonfinite=drift.nonfinite, problem="nonfinite")
    if drift.sqnr_db is None:
        return Level(0.0 if drift.passed else math.inf, problem="" if drift.passed else "kind")
    return Level(float(10 ** (-drift.sqnr_db / 20)))


def _is_worse(before: Level, now: Level, factor: float, *, floor: float) -> bool:
    if now.problem:
        return before.problem != now.problem or now.nonfinite > factor * before.nonfinite
    if before.problem:
        return False
    return now.rel > factor * max(before.rel, floor) or now.peak > factor * max(before.peak, floor)


def _from_json(each: Mapping[str, Any]) -> Level:
    return Level(float(each["rel"]), float(each["peak"]), int(each["nonfinite"]), str(each["problem"]))
