"""Values of a model's tensors, recorded once and kept on disk: what flows into any part of it that is cut out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from onnxbench.captures import Capture, CaptureWriter, Value
from onnxbench.errors import ExecutionError

Stream = Callable[[int, Sequence[Sequence[str]]], Iterator[dict[str, Value]]]
"""Called with the number of a set of inputs and batches of tensors; yields the values of batch after batch."""
_BATCH = 32


class Records:
    """Recorded values, by tensor and set of inputs.

    About ``_BATCH`` tensors are in memory at a time, and what later nodes read. A tensor that cannot be had, because
    the run fails before it is made, is not ``known``.

    Args:
        stream: What runs the model.
        sets: The model's inputs, one mapping a set.
    """

    def __init__(self, stream: Stream, sets: Sequence[Mapping[str, Value]]) -> None:
        self._stream, self.sets = stream, sets
        self._folder = tempfile.TemporaryDirectory(prefix="onnxbench-")
        self._places: list[dict[str, Capture]] = [{} for _ in sets]
        self._lost: list[set[str]] = [set() for _ in sets]
        self._files: list[Capture] = []

    def record(self, names: Sequence[str]) -> None:
        """Records tensors, in the order of the model, as far as the run goes; those that are known are left out."""
        for number, inputs in enumerate(self.sets):
            told = self._places[number]
            left = [n for n in names if n not in told and n not in inputs and n not in self._lost[number]]
            size = _BATCH
            while left:
                done = self._record(left, number, size)
                left = left[done:]
                if left and size == 1:
                    self._lost[number].update(left)
                    break
                size = 1

    def _record(self, names: Sequence[str], number: int, size: int) -> int:
        """Writes tensors to a file of their own until the run fails; returns how many."""
        batches = [names[at : at + size] for at in range(0, len(names), size)]
        path = Path(self._folder.name) / f"{len(self._files)}.npz"
        done = 0
        with CaptureWriter(path) as writer:
            try:
                for values in self._stream(number, batches):
                    for name, value in values.items():
                        writer.write(name, value)
                    done += len(values)
            except ExecutionError:
                pass
        capture = Capture(path)
        self._files.append(capture)
        self._places[number].update((name, capture) for name in names[:done])
        return done

    def has(self, names: Collection[str]) -> bool:
        """Tells whether the values of all these tensors are recorded, or inputs, on all sets."""
        return all(
            name in inputs or name in told
            for inputs, told in zip(self.sets, self._places, strict=True)
            for name in names
        )

    def value(self, name: str, number: int) -> Value:
        """Returns a value, read from disk."""
        inputs = self.sets[number]
        return inputs[name] if name in inputs else self._places[number][name][name]

    def feeds(self, names: Sequence[str], number: int) -> Mapping[str, Value]:
        """Returns values by name, each read when it is asked for."""
        return _Lazy(self, names, number)

    def close(self) -> None:
        """Removes what was recorded."""
        for capture in self._files:
            capture.close()
        self._folder.cleanup()


class _Lazy(Mapping[str, Value]):
    def __init__(self, records: Records, names: Sequence[str], number: int) -> None:
        self._records, self._names, self._number = records, dict.fromkeys(names), number

    def __getitem__(self, name: str) -> Value:
        if name not in self._names:
            raise KeyError(name)
        return self._records.value(name, self._number)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
