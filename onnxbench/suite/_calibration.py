"""What an int8 cell is calibrated with: other inputs than those that it is judged on, wherever there are others.

A model that is judged on the very inputs that its ranges were taken from looks better than it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from onnxbench.feeding import FeedOptions, feed_sets
from onnxbench.samples import Samples
from onnxbench.wording import plural

if TYPE_CHECKING:
    from pathlib import Path

    from onnxbench.captures import Feeds
    from onnxbench.model import Model
    from onnxbench.suite._file import ReferenceKind, SuiteModel
    from onnxbench.suite._references import References

_DRAWN = 8
_MOST = 64
"""So many sets are taken of data that goes on behind those that are judged: a script may never end."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Sets of inputs that ranges are taken from.

    Attributes:
        sets: The sets, by the model's names.
        held_out: How many of the sets that are right for the model these are, the first ones: they are not judged.
        text: What they are, in words.
    """

    sets: Samples
    held_out: int
    text: str


def choose_calibration(
    model: Model, entry: SuiteModel, folder: Path, references: References, kind: ReferenceKind, word: str
) -> Calibration:
    """Returns what a model is calibrated with: what is named for it, else what is not judged, as far as there is any.

    Args:
        model: The model as it is in its file.
        entry: What the suite says of it.
        folder: That of the suite.
        references: What is right for it.
        kind: What says so in this cell.
        word: The same, as it is spelled.

    Raises:
        BenchError: The inputs cannot be had.
    """
    said = entry.feed_options(folder)
    if entry.calibration:
        sets = _sets(model, replace(said, sources=entry.calibration_files(folder), iterations=None))
        return Calibration(sets, 0, f"{plural(len(sets), 'set')} of inputs from {', '.join(entry.calibration)}")
    comes_along = kind in ("recorded", "torch") and said.says_nothing
    if not said.sources and not comes_along:
        other = replace(said, seed=said.seed + 1, iterations=max(_DRAWN, said.iterations or 1))
        return Calibration(_sets(model, other), 0, f"{other.iterations} sets of inputs drawn with seed {other.seed}")
    judged = Samples(feeds for feeds, _ in references.expected(kind, word)) if comes_along else _sets(model, said)
    others, text = Samples(), ""
    if comes_along and kind == "torch":
        others, text = Samples(_similar(judged[0], len(judged))), "like the example inputs"
    elif said.sources and said.iterations:
        rest = islice(feed_sets(model, replace(said, iterations=None)), said.iterations, said.iterations + _MOST)
        others, text = Samples(each.feeds for each in rest), "behind those that are judged"
    if len(others):
        return Calibration(others, 0, f"{plural(len(others), 'set')} of inputs {text}")
    if half := len(judged) // 2:
        return Calibration(
            judged[:half], half, f"the first {half:,} of {len(judged):,} sets of inputs, and judged on the others"
        )
    return Calibration(judged, 0, "the one set of inputs that it is judged on; the model's 'calibration:' names others")


def _sets(model: Model, said: FeedOptions) -> Samples:
    return Samples(each.feeds for each in feed_sets(model, said))


def _similar(examples: Feeds, first: int) -> Iterator[Feeds]:
    from onnxbench.pytorch.values import similar_inputs

    return (similar_inputs(examples, number) for number in range(first, first + _DRAWN))
