"""Sets of values that are needed again and again: in memory as far as they are small, in a temporary file beyond.

A search runs a model on the same sets of inputs a hundred times, and calibration two or three times. Where they come
from may be slow to read, or a script that yields other ones the next time. So they are read once; what does not fit
into a bound lies in one temporary file, from which a set is read when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from onnxbench.captures import Value, check_feeds, input_ports
from onnxbench.errors import FeedsError
from onnxbench.feeding import FeedOptions, feed_sets
from onnxbench.scratch import Scratch
from onnxbench.weights import ByteRange, read_bytes

if TYPE_CHECKING:
    import numpy as np

    from onnxbench.model import Model

MOST_HELD = 1 << 28
"""Bytes of values that are held in memory; more lie in a file."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """An array in the file."""

    where: ByteRange
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def read(self) -> Value:
        import numpy as np

        return np.frombuffer(bytearray(read_bytes(self.where)), self.dtype).reshape(self.shape)


class Samples(Sequence[dict[str, Value]]):
    """Sets of values by name, in the order in which they were added; each is made anew when it is asked for.

    Args:
        sets: The first ones.
        most: How many bytes of them may be in memory.
    """

    def __init__(self, sets: Iterable[Mapping[str, Value]] = (), *, most: int = MOST_HELD) -> None:
        self._entries: list[dict[str, Any]] = []
        self._free, self._file = most, Scratch(what="values")
        for values in sets:
            self.append(values)

    def append(self, values: Mapping[str, Value]) -> None:
        """Adds a set.

        Raises:
            OutputError: There is no space for it.
        """
        self._entries.append({name: self._kept(value) for name, value in values.items()})

    def _kept(self, value: Value) -> Any:
        import numpy as np

        if not isinstance(value, np.ndarray) or value.dtype.hasobject or value.dtype.kind in "US":
            return value  # text and sequences, which are small as a rule
        self._free -= value.nbytes
        if self._free >= 0 or not value.nbytes:
            return value
        where = self._file.append([np.ascontiguousarray(value).tobytes()])
        return _Stored(where, value.dtype, value.shape)

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, which: int) -> dict[str, Value]: ...
    @overload
    def __getitem__(self, which: slice) -> Samples: ...
    def __getitem__(self, which: int | slice) -> dict[str, Value] | Samples:
        if isinstance(which, slice):
            part = Samples(most=0)
            part._entries, part._file = self._entries[which], self._file
            return part
        return {
            name: value.read() if isinstance(value, _Stored) else value for name, value in self._entries[which].items()
        }


def gather(
    model: Model, feeds: FeedOptions | Sequence[Mapping[str, Value]] | None, *, most: int = MOST_HELD
) -> tuple[Samples, tuple[str, ...]]:
    """Returns sets of inputs for a model, and what was decided about them without being told.

    Args:
        model: The model.
        feeds: The sets, or what a user says about them; None draws one from seed 0.
        most: How many bytes of them may be in memory.

    Raises:
        FeedsError: They do not fit the model, or there are none.
        OutputError: There is no space for them.
    """
    samples = Samples(most=most)
    choices: dict[str, None] = {}
    if isinstance(feeds, Samples):
        samples = feeds
    elif feeds is not None and not isinstance(feeds, FeedOptions):
        ports = input_ports(model.proto.graph)
        for given in feeds:
            samples.append(check_feeds(given, ports))
    else:
        for each in feed_sets(model, feeds):
            samples.append(each.feeds)
            choices.update(dict.fromkeys(each.choices))
    if not len(samples):
        raise FeedsError("the data holds no set of inputs")
    return samples, tuple(choices)


def hold_out(samples: Samples, count: int, purpose: str) -> tuple[Samples, Samples]:
    """Returns all but the last sets, and these.

    Args:
        samples: The sets.
        count: How many are held out.
        purpose: What the others are for: "search".

    Raises:
        FeedsError: None would be left.
    """
    if not 0 <= count < len(samples):
        raise FeedsError(
            f"{count} samples are to be held out, and there are {len(samples)}",
            hint=f"At least one is for the {purpose}.",
        )
    return samples[: len(samples) - count], samples[len(samples) - count :]
