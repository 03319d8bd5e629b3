"""Batches that keep a search within the memory that a user gave, or a refusal that says what it would take.

What a search holds is known before it runs, since the sizes of all tensors are. At each batch there are three moments:
the reference runs, the suspect runs, and regions are run on the reference's values (and on moved ones, to measure their
noise). At each there are

* what either side needs later, and the reference's values that later regions read;
* the batch itself on both sides; while a session runs, its outputs twice, for the runtime hands over copies;
* what a session makes and nobody asked for, at its most, and the weights that it reads, the largest of them twice (it
  repacks one at a time);
* the work space of the comparison.

Batches that are too large are halved until everything fits. If a single node does not, the search is refused.

What is counted is what is in use. The C library keeps more: once a large block was freed, glibc takes blocks of that
size from its heaps, where freed ones leave gaps that the next tensor may not fit in. A search that held 125 MiB grew by
171 to 219 MiB so, another amount each time. ``returned_memory`` has them returned to the system one by one.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxbench.captures import Value
from onnxbench.errors import UsageError
from onnxbench.tensortype import raw_size

if TYPE_CHECKING:
    from onnxbench.parts import Parts, Step

_DEFAULT_MEMORY = 512 << 20
_SHARE = 8
"""One part in so many is for what is kept of suspicious tensors."""
WORKSPACE = 8 << 20
"""What comparing takes: a few arrays of one block, in several threads."""
_M_MMAP_THRESHOLD = -3  # malloc.h
_OWN_MAPPING, _LARGEST_ON_HEAP = 1 << 18, 32 << 20


def free_memory() -> int:
    """Returns a quarter of the memory that is free now, in bytes (512 MiB where that cannot be told)."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = {line.split(":")[0]: line.split()[1] for line in file}
        return int(found["MemAvailable"]) * 1024 // 4
    except (OSError, KeyError, IndexError, ValueError):
        return _DEFAULT_MEMORY


@contextmanager
def returned_memory() -> Iterator[None]:
    """Has glibc map blocks of 256 KiB and more apart and unmap them when they are freed; does nothing elsewhere.

    This holds for the whole process. Afterwards blocks of 32 MiB and more are mapped so, which is where glibc's own
    rule ends in a process that works on large arrays; that rule cannot be turned on again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_ON_HEAP)


@dataclass(frozen=True, slots=True)
class Side:
    """A side that runs in parts, with the sizes of its tensors.

    Attributes:
        parts: Its parts.
        sizes: Bytes by tensor.
        stored: Bytes by initializer.
    """

    parts: Parts
    sizes: Mapping[str, int]
    stored: Mapping[str, int]

    @classmethod
    def of(cls, parts: Parts, feeds: Mapping[str, Value]) -> Side:
        """Returns a side whose tensors' sizes are found out for these inputs."""
        made = [name for names in parts.scope.writes for name in names if name in parts.varying]
        stored = {t.name: raw_size(t.dims, t.data_type) for t in parts.scope.graph.initializer}
        return cls(parts, parts.sizes(feeds, made), stored)

    def bytes_of(self, names: Iterable[str]) -> int:
        """Returns what some tensors take together."""
        return sum(self.sizes.get(name, 0) for name in names)

    def inner(self, step: Step) -> int:
        """Returns the most bytes that a step holds at one time of tensors that it hands to nobody, and its weights."""
        scope, rank = self.parts.scope, self.parts.rank
        ordered = sorted(step.nodes, key=rank.__getitem__)
        given = set(step.outputs)
        last = {name: at for at, position in enumerate(ordered) for name in scope.reads[position]}
        ends: dict[int, list[str]] = {}
        for name, at in last.items():
            ends.setdefault(at, []).append(name)
        alive = most = 0
        mine: set[str] = set()
        for at, position in enumerate(ordered):
            made = [name for name in scope.writes[position] if name not in given]
            mine.update(made)
            alive += self.bytes_of(made)
            most = max(most, alive)
            alive -= self.bytes_of(name for name in ends.get(at, ()) if name in mine)
            alive -= self.bytes_of(name for name in made if name not in last)
        return most + self._weights(ordered)

    def _weights(self, nodes: Sequence[int]) -> int:
        scope = self.parts.scope
        read = {name for position in nodes for name in scope.reads[position] if name in scope.constants}
        sizes = [self.stored.get(name, 0) for name in read]
        return sum(sizes) + max(sizes, default=0)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a search of these sides would hold.

    Attributes:
        most: What it may hold, in bytes.
        suspect: The suspect.
        reference: The reference, if it is a model that runs in parts; else it is taken to hold what the suspect does.
        match: The suspect's tensors to the reference's.
        last_reads: Tells the last batch in which a region reads each tensor.
        inputs_of: Tells which tensors the regions of some tensors read.
        streams: How many times the reference is computed at once.
        recorded: Whether the reference's values come from a file.
        reserve: What is held all the time: the inputs.
    """

    most: int
    suspect: Side
    reference: Side | None
    match: Mapping[str, str]
    last_reads: Callable[[Sequence[Sequence[str]]], Mapping[str, int]]
    inputs_of: Callable[[Sequence[str]], Collection[str]]
    streams: int = 1
    recorded: bool = False
    reserve: int = 0

    @property
    def _room(self) -> int:
        return self.most - self.most // _SHARE

    def split(self, names: Sequence[str]) -> list[list[str]]:
        """Returns tensors, in the order given, in the fewest batches that fit, all of one node in one batch.

        Raises:
            UsageError: One node alone takes more.
        """
        producers = self.suspect.parts.scope.producers
        whole: list[list[str]] = []
        for name in names:
            if whole and producers[whole[-1][-1]] == producers[name]:
                whole[-1].append(name)
            else:
                whole.append([name])
        batches = [whole]
        while True:
            needs = self.needs([_flat(batch) for batch in batches])
            if all(need <= self._room for need in needs):
                return [_flat(batch) for batch in batches]
            if any(need > self._room and len(batch) == 1 for batch, need in zip(batches, needs, strict=True)):
                self._refuse(whole)
            halved: list[list[list[str]]] = []
            for batch, need in zip(batches, needs, strict=True):
                middle = len(batch) // 2
                halved += [batch] if need <= self._room else [batch[:middle], batch[middle:]]
            batches = halved

    def _refuse(self, units: Sequence[Sequence[str]]) -> None:
        """Raises UsageError for the node at which most is held, if each has a batch of its own."""
        needs = self.needs(units)
        names = units[needs.index(max(needs))]
        need = -(-max(needs) * _SHARE // (_SHARE - 1))
        scope = self.suspect.parts.scope
        position = scope.producers[names[0]]
        read, made = self.suspect.bytes_of(set(scope.reads[position])), self.suspect.bytes_of(names)
        raise UsageError(
            f"a memory of {_text(self.most)} is too little for {scope.label(position)} alone "
            f"({scope.nodes[position].op_type}), which reads {_text(read)} and makes {_text(made)}: with what both "
            f"sides hold at that point, it takes {_text(need)}",
            hint=f"Give {_text(need)} or more, or smaller inputs (--shape).",
        )

    def fits(self, names: Iterable[str]) -> bool:
        """Tells whether some tensors can be held at once, on both sides and while they are computed."""
        return 4 * self.suspect.bytes_of(set(names)) + self.reserve + WORKSPACE <= self._room

    def needs(self, batches: Sequence[Sequence[str]]) -> list[int]:
        """Returns the most bytes that are held at one time, by batch."""
        mine, other = self.suspect, self.reference or self.suspect
        steps = mine.parts.plan(batches)
        others = other.parts.plan([self._partners(batch) for batch in batches])
        last = self.last_reads(batches)
        held: set[str] = set()
        held_other: set[str] = set()
        read_later: set[str] = set()
        found = []
        for at, (batch, step, step_other) in enumerate(zip(batches, steps, others, strict=True)):
            before = mine.bytes_of(held) + other.bytes_of(held_other.union(self._partners(read_later)))
            held.update(name for name in step.outputs if name in mine.parts.varying)
            held_other.update(name for name in step_other.outputs if name in other.parts.varying)
            read_later.update(batch)
            references = other.bytes_of(held_other.union(self._partners(read_later)))
            both = mine.bytes_of(held.union(batch)) + references
            inner = mine.inner(step)
            running = 0 if self.recorded else before + 2 * other.bytes_of(step_other.outputs) + other.inner(step_other)
            suspect = both + mine.bytes_of(step.outputs) + inner
            forced = both + 3 * mine.bytes_of(batch) + 2 * mine.bytes_of(self.inputs_of(batch)) + inner
            more = (self.streams - 1) * references
            found.append(max(running, suspect, forced) + more + self.reserve + WORKSPACE)
            held.difference_update(step.last)
            held_other.difference_update(step_other.last)
            read_later = {name for name in read_later if last.get(name, -1) > at}
        return found

    def _partners(self, names: Iterable[str]) -> list[str]:
        """Returns what the side that stands for the reference calls tensors."""
        return [self.match[name] for name in names] if self.reference is not None else list(names)


def _flat(batch: Iterable[Sequence[str]]) -> list[str]:
    return [name for unit in batch for name in unit]


def _text(size: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= scale:
            return f"{-(-size * 10 // scale) / 10:g} {unit}"
    return f"{size} bytes"
