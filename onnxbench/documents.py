"""YAML, JSON and Python values as a tree of items that know where they stand.

The tree is made from YAML events and not with a YAML loader, for three reasons: errors need the line of every
value; names such as ``on``, ``no`` and ``1`` must stay what was typed, while ``1e-5`` is a number (YAML 1.1 says
otherwise in each case, so plain scalars follow the rules of YAML 1.2); and PyYAML's fast loader recurses in C, so
that a file of brackets ends the process. Events do not recurse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxbench.errors import SpecError, did_you_mean
from onnxbench.modeltext import quoted

if TYPE_CHECKING:
    import numpy as np

_MAX_DEPTH = 100
_MAX_ITEMS = 20_000_000  # aliases spelled out: a small file can mean billions of values
_INTEGER = re.compile(r"[+-]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?\.?(?:inf|Inf|INF)|\.?(?:nan|NaN|NAN)")
_NULLS = ("", "~", "null", "Null", "NULL")
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


@dataclass(slots=True)
class Document:
    """Where a tree of items comes from.

    Attributes:
        source: What errors call it.
        lines: Its lines, to be quoted; none for Python values.
    """

    source: str
    lines: list[str] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Item:
    """One value of a specification.

    Attributes:
        document: What it is a part of.
        kind: ``null``, ``bool``, ``int``, ``float``, ``str``, ``list``, ``map`` or ``array`` (of NumPy).
        text: A scalar as it was typed.
        items: The elements of a list.
        entries: The entries of a map, with the item of each key.
        array: The array, for ``array``.
        line: Its line, from 1; 0 for Python values.
        column: Its column, from 1.
        path: Where it is, for Python values: ``nodes[2].inputs``.
        size: How many items it stands for, itself included.
        style: How a string was written: a quote, ``|`` or ``>``; empty if plain.
    """

    document: Document
    kind: str
    text: str = ""
    items: list[Item] = field(default_factory=list)
    entries: dict[str, tuple[Item, Item]] = field(default_factory=dict)
    array: np.ndarray | None = None
    line: int = 0
    column: int = 0
    path: str = ""
    size: int = 1
    style: str = ""

    def place(self) -> str:
        """Returns where this item stands, to begin a message with."""
        if self.line:
            return f"{self.document.source}:{self.line}:{self.column}: "
        return f"{self.document.source}: {self.path}: " if self.path else f"{self.document.source}: "

    def error(self, message: str, *, hint: str | None = None, details: Sequence[str] = ()) -> SpecError:
        """Returns an error that points at this item."""
        quote = quoted(self.document.lines, self.line, self.column)
        return SpecError(f"{self.place()}{message}", hint=hint, details=(*quote, *details))

    def get(self, key: str) -> Item | None:
        """Returns the value of a key of a map, or None if it is absent or null."""
        entry = self.entries.get(key)
        return None if entry is None or entry[1].kind == "null" else entry[1]

    def pairs(self) -> Iterator[tuple[str, Item, Item]]:
        """Yields key, item of the key, and value of a map's entries, in order."""
        for key, (key_item, value) in self.entries.items():
            yield key, key_item, value

    def require_map(self, what: str, keys: Sequence[str] | None = None) -> Item:
        """Returns this item, which must be a map (with only these keys, if they are given).

        Raises:
            SpecError: It is something else, or has another key.
        """
        if self.kind != "map":
            raise self.error(f"expected {what} as a mapping, found {self.described()}")
        for key, key_item, _ in self.pairs() if keys is not None else ():
            if keys is not None and key not in keys:
                hint = did_you_mean(key, keys) or f"Keys here: {', '.join(keys)}."
                raise key_item.error(f"{key!r} is no key of {what}", hint=hint)
        return self

    def require_list(self, what: str) -> list[Item]:
        """Returns the elements of this item, which must be a list.

        Raises:
            SpecError: It is something else.
        """
        if self.kind != "list":
            raise self.error(f"expected {what} as a list, found {self.described()}")
        return self.items

    def require_text(self, what: str) -> str:
        """Returns a scalar as it was typed; null is the empty string.

        Raises:
            SpecError: It is a list or a map.
        """
        if self.kind in ("list", "map", "array"):
            raise self.error(f"expected {what}, found {self.described()}")
        return "" if self.kind == "null" else self.text

    def require_integer(self, what: str, *, low: int = -(1 << 63), high: int = (1 << 63) - 1) -> int:
        """Returns an integer.

        Raises:
            SpecError: It is something else, or out of range.
        """
        if self.kind not in ("int", "bool"):
            raise self.error(f"expected {what} as an integer, found {self.described()}")
        value = _BOOLS[self.text] if self.kind == "bool" else to_integer(self.text)
        if not low <= value <= high:
            raise self.error(f"{what} must be {low} to {high}, and is {value}")
        return int(value)

    def require_float(self, what: str) -> float:
        """Returns a number.

        Raises:
            SpecError: It is something else.
        """
        if self.kind not in ("int", "float"):
            raise self.error(f"expected {what} as a number, found {self.described()}")
        return float(to_integer(self.text)) if self.kind == "int" else float(plain_float(self.text))

    def described(self) -> str:
        """Returns what this item is, in words."""
        if self.kind in ("list", "map", "array"):
            return {"list": "a list", "map": "a mapping", "array": "an array"}[self.kind]
        return "nothing" if self.kind == "null" else f"{self.text[:40]!r}"


def to_integer(text: str) -> int:
    """Returns the value of an integer scalar (decimal, 0x or 0o)."""
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


def plain_float(text: str) -> str:
    """Returns a float scalar without the point that YAML puts before inf and nan."""
    lowered = text.lower()
    return lowered.replace(".", "") if lowered.endswith(("inf", "nan")) else text


def from_yaml(text: str, source: str) -> Item:
    """Returns the tree of a YAML (or JSON) document.

    Raises:
        SpecError: It is not well formed, holds several documents, or is nested too deep.
    """
    import yaml

    document = Document(source, text.splitlines())
    # JSON may be indented with tabs, which YAML forbids; a tab inside of a JSON string is always escaped.
    if text.lstrip()[:1] in ("{", "["):
        text = text.replace("\t", " ")
    fast: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        try:
            return _compose(yaml.parse(text, Loader=fast), document)
        except yaml.MarkedYAMLError as error:
            if "nesting depth" not in str(error.problem):
                raise
            # libyaml looks ahead into brackets that are nested too deep for it; the other parser sees where they begin.
            return _compose(yaml.parse(text, Loader=yaml.SafeLoader), document)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        words = " ".join(part for part in (error.context, error.problem) if part)
        if error.context and error.context_mark and error.context_mark.line + 1 != line:
            words += f" (it began in line {error.context_mark.line + 1})"
        hint = "Quote values that have [ ] { } , : or # in them."
        before = document.lines[line - 1][:column] if line <= len(document.lines) else ""
        if "\t" in before and not before.strip():
            hint = "YAML is indented by spaces, not by tabs."
        raise SpecError(
            f"{source}:{line}:{column}: not well-formed YAML: {words}",
            hint=hint,
            details=quoted(document.lines, line, column),
        ) from None
    except yaml.YAMLError as error:
        raise SpecError(f"{source}: not well-formed YAML: {error}") from None


@dataclass(slots=True)
class _Open:
    """A list or map whose end has not come yet."""

    item: Item
    anchor: str | None
    key: Item | None = None


def _compose(events: Iterator[Any], document: Document) -> Item:
    import yaml

    anchors: dict[str, Item] = {}
    stack: list[_Open] = []
    root: Item | None = None
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent) and root is not None:
            raise _item(event, document, "null").error("a specification is one YAML document, and here begins another")
        done: Item | None = None
        if isinstance(event, yaml.AliasEvent):
            done = anchors.get(str(event.anchor))
            if done is None:
                place = _item(event, document, "null")
                raise place.error(f"*{event.anchor} refers to an anchor that is not there, or not complete")
        elif isinstance(event, yaml.ScalarEvent):
            done = _scalar(event, document)
            if event.anchor:
                anchors[event.anchor] = done
        elif isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            kind = "list" if isinstance(event, yaml.SequenceStartEvent) else "map"
            opened = _item(event, document, kind)
            if len(stack) >= _MAX_DEPTH:
                raise opened.error(f"lists and mappings nested more than {_MAX_DEPTH} deep")
            stack.append(_Open(opened, event.anchor))
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            ended = stack.pop()
            done = ended.item
            if ended.anchor:
                anchors[ended.anchor] = done
        if done is not None:
            if stack:
                _put(stack[-1], done)
            else:
                root = done
    if root is None:
        raise SpecError(f"{document.source}: the specification is empty")
    return root


def _put(parent: _Open, child: Item) -> None:
    item = parent.item
    item.size += child.size
    if item.size > _MAX_ITEMS:
        raise child.error(f"the specification stands for more than {_MAX_ITEMS:,} values")
    if item.kind == "list":
        item.items.append(child)
    elif parent.key is None:
        if child.kind in ("list", "map"):
            raise child.error(f"a key must be a word, and this is {child.described()}")
        parent.key = child
    else:
        key, parent.key = parent.key, None
        if key.text == "<<" and child.kind == "map":
            for inherited, entry in child.entries.items():
                item.entries.setdefault(inherited, entry)
            return
        name = "" if key.kind == "null" else key.text
        before = item.entries.get(name)
        if before is not None and before[0].document is item.document and before[0].line >= item.line:
            raise key.error(f"the key {name!r} stands here for the second time", details=_first_time(before[0]))
        item.entries[name] = (key, child)


def _first_time(key: Item) -> tuple[str, ...]:
    return (f"first in line {key.line}",) if key.line else ()


def _item(event: Any, document: Document, kind: str, text: str = "") -> Item:
    return Item(document, kind, text, line=event.start_mark.line + 1, column=event.start_mark.column + 1)


def _scalar(event: Any, document: Document) -> Item:
    text: str = event.value
    if not event.implicit[0]:  # quoted, a block, or with a tag
        made = _item(event, document, "str", text)
        made.style = event.style or ""
        return made
    if text in _NULLS:
        return _item(event, document, "null", text)
    return _item(event, document, scalar_kind(text), text)


def scalar_kind(text: str) -> str:
    """Returns what a plain scalar is, by the rules of YAML 1.2."""
    if text in _BOOLS:
        return "bool"
    if _INTEGER.fullmatch(text):
        return "int"
    return "float" if _FLOAT.fullmatch(text) else "str"


def from_python(value: object, source: str) -> Item:
    """Returns the tree of Python values: dicts, lists, scalars and NumPy arrays.

    Raises:
        SpecError: A value is of another kind, or nested too deep (or in itself).
    """
    return _from_python(value, Document(source), "", 0)


def _from_python(value: object, document: Document, path: str, depth: int) -> Item:
    made = Item(document, "null", path=path)
    if depth > _MAX_DEPTH:
        raise made.error(f"lists and mappings nested more than {_MAX_DEPTH} deep")
    if value is None:
        return made
    if isinstance(value, bool):
        made.kind, made.text = "bool", str(value)
    elif isinstance(value, int):
        made.kind, made.text = "int", str(value)
    elif isinstance(value, float):
        made.kind, made.text = "float", repr(value)
    elif isinstance(value, str):
        made.kind, made.text = "str", value
    elif isinstance(value, Mapping):
        made.kind = "map"
        for key, inner in value.items():
            key_item = Item(document, "str", str(key), path=path)
            below = f"{path}.{key}" if path else str(key)
            made.entries[str(key)] = (key_item, _from_python(inner, document, below, depth + 1))
    elif isinstance(value, (list, tuple)):
        made.kind = "list"
        made.items = [_from_python(v, document, f"{path}[{at}]", depth + 1) for at, v in enumerate(value)]
    elif hasattr(value, "dtype") and hasattr(value, "shape"):
        import numpy as np

        made.kind, made.array = "array", np.asarray(value)
    else:
        raise made.error(f"a {type(value).__name__} has no place in a specification")
    return made
