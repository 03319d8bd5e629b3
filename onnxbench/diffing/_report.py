"""What a comparison of two models finds: changes, the kinds there are, and renames put together where they are many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from onnxbench.errors import UsageError, did_you_mean
from onnxbench.wording import plural

KINDS: dict[str, str] = {
    "node": "nodes added and removed",
    "op": "operators of nodes",
    "attribute": "attributes of nodes and functions",
    "default": "attributes that only state what the operator's default is",
    "wiring": "what nodes read, and what outputs return",
    "input": "inputs added, removed, reordered",
    "output": "outputs added, removed, reordered",
    "type": "element types, shapes and dimension names of inputs and outputs",
    "value-info": "stated types of inner tensors",
    "weight": "stored values: initializers and Constant nodes",
    "quantization": "quantization annotations",
    "name": "names of tensors, nodes, graphs and functions",
    "function": "local functions added and removed",
    "metadata": "metadata at every level",
    "doc": "doc strings at every level",
    "opset": "opset imports",
    "ir-version": "the IR version",
    "producer": "producer, domain and version of the model",
    "training": "training information",
    "configuration": "device configurations",
    "unknown": "fields that this version of onnx does not know",
}
"""Every kind of change, and what it is about."""

_BULK = 4
_MOST_SINGLE = 24


@dataclass(frozen=True, slots=True)
class Change:
    """One difference.

    Attributes:
        kind: One of ``KINDS``.
        where: Path of the node or tensor, as the first model has it (of what was added, as the second one has it);
            of many at once, path of their graph.
        what: Which part of it, in words: ``attribute pads``, ``input 1``, ``node``.
        before: What it was; None if it was not there.
        after: What it is; None if it is not there.
        graph: Path of the graph around it; ``""`` for the main graph.
        op: The node's operator, if it is about one.
        note: More in words: how far values are apart.
        count: How many tensors or nodes were renamed, for a change that stands for many.
        pairs: Old and new name of each of these.
    """

    kind: str
    where: str
    what: str
    before: Any = None
    after: Any = None
    graph: str = ""
    op: str = ""
    note: str = ""
    count: int = 1
    pairs: tuple[tuple[str, str], ...] = ()

    @property
    def sign(self) -> str:
        """``+`` added, ``-`` removed, ``=>`` renamed, ``~`` changed."""
        if self.kind == "name":
            return "=>"
        return "+" if self.before is None else "-" if self.after is None else "~"

    def to_json(self) -> dict[str, Any]:
        """Returns the change as plain values."""
        row = {name: getattr(self, name) for name in ("kind", "where", "what", "before", "after", "graph")}
        row["sign"] = self.sign
        if self.op:
            row["op"] = self.op
        if self.note:
            row["note"] = self.note
        if self.pairs:
            row["count"], row["pairs"] = self.count, self.pairs
        return row


@dataclass(frozen=True, slots=True)
class DiffReport:
    """How two models differ.

    Attributes:
        changes: The differences, in the order of the model: what belongs to the whole, then graph by graph.
        a: What the first model is called: its file name, or ``""``.
        b: What the second model is called.
        ignored: Kinds that were not looked at.
        notes: What differs and is no change: the stamp of an edit.
    """

    changes: tuple[Change, ...]
    a: str = ""
    b: str = ""
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether nothing differs, apart from what was ignored."""
        return not self.changes

    @property
    def counts(self) -> dict[str, int]:
        """How many changes of each kind there are, in the order of ``KINDS``."""
        found = Counter(change.kind for change in self.changes)
        return {kind: found[kind] for kind in KINDS if kind in found}

    @property
    def summary(self) -> str:
        """One line: ``3 changes: 1 attribute, 2 name``, or ``no difference``."""
        ignored = f" (not looked at: {', '.join(self.ignored)})" if self.ignored else ""
        if self.equal:
            return f"no difference{ignored}"
        total = len(self.changes)
        words = ", ".join(f"{count:,} {kind}" for kind, count in self.counts.items())
        return f"{plural(total, 'change')}: {words}{ignored}"

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain values."""
        return {
            "equal": self.equal,
            "a": self.a,
            "b": self.b,
            "ignored": self.ignored,
            "summary": self.summary,
            "counts": self.counts,
            "notes": self.notes,
            "changes": [change.to_json() for change in self.changes],
        }


def to_kinds(words: Iterable[str]) -> tuple[str, ...]:
    """Returns the kinds that words mean (``weights``, ``value_info``, ``names,docs``), in the order of ``KINDS``.

    Raises:
        UsageError: A word means none.
    """
    spelled = {spelling: kind for kind in KINDS for spelling in (kind, f"{kind}s")}
    spelled |= {"ir": "ir-version", "values": "weight", "initializers": "weight", "producer-version": "producer"}
    found = set()
    for word in (part.strip() for text in words for part in text.split(",")):
        kind = spelled.get(word.lower().replace("_", "-"))
        if kind is None:
            hint = did_you_mean(word.lower(), KINDS) or f"Kinds: {', '.join(KINDS)}."
            raise UsageError(f"{word!r} is no kind of change that can be ignored", hint=hint)
        found.add(kind)
    return tuple(kind for kind in KINDS if kind in found)


class Rename(NamedTuple):
    """One tensor or node that has another name.

    Attributes:
        noun: ``tensor``, ``weight``, ``input``, ``output``, ``node``.
        path: Its path in the first model; of a node, its label.
        before: Its old name.
        after: Its new name.
    """

    noun: str
    path: str
    before: str
    after: str


def rename_changes(renames: list[Rename], graph: str, plural: str) -> list[Change]:
    """Returns the renames of one graph as changes: those that follow one pattern are one.

    Old and new name share an end and, of what is left, a beginning; what is between them is replaced. Renames that
    replace the same by the same belong together: ``*`` to ``model/*``, ``layer.*`` to ``block.*``. Where many are left
    that have no pattern in common, they are one change too, and its ``pairs`` say which.

    Args:
        renames: The renames, in the order of the graph.
        graph: Path of the graph.
        plural: What they are, for those that are put together: ``tensors``.
    """
    groups: dict[tuple[str, str], list[Rename]] = {}
    for rename in renames:
        groups.setdefault(_replaced(rename.before, rename.after), []).append(rename)
    changes, single = [], []
    for members in groups.values():
        if len(members) < _BULK:
            single += members
        else:
            changes.append(_bulk(members, graph, plural, *_pattern(members)))
    if len(single) > _MOST_SINGLE:
        changes.append(_bulk(single, graph, plural, "names without a pattern", "other names"))
    else:
        changes += [
            Change("name", rename.path, rename.noun, rename.before, rename.after, graph=graph) for rename in single
        ]
    return changes


def _replaced(before: str, after: str) -> tuple[str, str]:
    """Returns what stands between the common beginning and end of two names."""
    if not before or not after:
        return ("", "\0named") if not before else ("\0unnamed", "")
    start, end = _common(before, after)
    return before[start : len(before) - end], after[start : len(after) - end]


def _common(before: str, after: str) -> tuple[int, int]:
    """Returns the lengths of the common beginning and end; the end is taken first."""
    room = min(len(before), len(after))
    if before.endswith(after) or after.endswith(before):
        return 0, room
    end = 0
    while end < room and before[-1 - end] == after[-1 - end]:
        end += 1
    start = 0
    while start < room - end and before[start] == after[start]:
        start += 1
    return start, end


def _pattern(members: list[Rename]) -> tuple[str, str]:
    """Returns the old and the new names of a group with ``*`` for what differs among them."""
    if not members[0].before:
        return "(no name)", "names"
    if not members[0].after:
        return "names", "(no name)"
    parts = [(rename, *_common(rename.before, rename.after)) for rename in members]
    heads = {rename.before[:start] for rename, start, _ in parts}
    tails = {rename.before[len(rename.before) - end :] for rename, _, end in parts}
    head = heads.pop() if len(heads) == 1 else "*"
    tail = tails.pop() if len(tails) == 1 else "*"
    old, new = _replaced(members[0].before, members[0].after)
    return f"{head}{old}{tail}", f"{head}{new}{tail}"


def _bulk(members: list[Rename], graph: str, plural: str, before: str, after: str) -> Change:
    pairs = tuple((rename.before or rename.path, rename.after) for rename in members)
    what = f"{len(members):,} {plural}"
    return Change("name", graph, what, before, after, graph=graph, count=len(members), pairs=pairs)
