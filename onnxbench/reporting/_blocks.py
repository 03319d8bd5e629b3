"""What a page is made of, as data."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, TypeAlias

HOTTEST = 9
_PLACE = re.compile(r"(.+):(\d+)")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


@dataclass(frozen=True, slots=True)
class Number:
    """A number in a table.

    Attributes:
        value: What it is sorted by; None comes last. May be infinite, not NaN.
        text: What is shown.
        heat: How bad it is, from 0 to ``HOTTEST``.
    """

    value: float | None
    text: str
    heat: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """A line of source code.

    Attributes:
        text: ``file.py:12``.
        href: A link to the file, or None where its path is relative to who knows what.
    """

    text: str
    href: str | None = None

    @property
    def short(self) -> str:
        """The same without the folder."""
        return re.split(r"[\\/]", self.text)[-1]


Rows: TypeAlias = tuple[tuple[int | None, str], ...]
"""Tensors that a cell names: the row of each in the page's subject, if it has one there, and its name."""
Cell: TypeAlias = str | Number | Place | Rows


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its heading.
        kind: ``text``, ``number``, ``place`` or ``rows``: what its cells are.
        help: What its cells mean, in a few words.
        is_detail: Whether it is shown only when a row is opened.
    """

    title: str
    kind: str = "text"
    help: str = ""
    is_detail: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table that can be sorted; a long one can be filtered, too, and is shown in pages.

    Attributes:
        name: Its name in the page, of letters.
        columns: Its columns.
        rows: Its rows, one cell for each column.
        sort_by: The column that it is sorted by at first, descending; None: as the rows stand.
        module_column: The column with the path that an entry of a ``Tree`` selects; None without.
        opens: Whether a click opens a row and shows all of its columns.
    """

    name: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    sort_by: int | None = None
    module_column: int | None = None
    opens: bool = False

    def hidden(self) -> set[int]:
        """Returns the columns that are not shown: those for opened rows, and those with nothing in them."""
        empty = set(range(len(self.columns)))
        for row in self.rows:
            empty -= {at for at in empty if row[at] not in ("", Place(""), ())}
            if not empty:
                break
        return {at for at, column in enumerate(self.columns) if column.is_detail or (self.rows and at in empty)}


@dataclass(frozen=True, slots=True)
class Node:
    """A box in a drawing.

    Attributes:
        title: Its first line: an operator.
        name: Its second line; the end of a long one is shown.
        note: Its third line.
        heat: How bad it is, from 0 to ``HOTTEST``.
        row: Its row in the page's subject, or None.
        kind: ``node``, or ``input``.
        is_focus: Whether the drawing is about it.
        is_margin: Whether it has neighbours that are not drawn.
    """

    title: str
    name: str
    note: str = ""
    heat: int = 0
    row: int | None = None
    kind: str = "node"
    is_focus: bool = False
    is_margin: bool = False


@dataclass(frozen=True, slots=True)
class Drawing:
    """A graph, drawn from top to bottom.

    Attributes:
        title: What it shows.
        nodes: Its nodes.
        edges: Pairs of positions in ``nodes``; they go round in no circle.
        is_open: Whether it is seen at once.
    """

    title: str
    nodes: Sequence[Node]
    edges: Sequence[tuple[int, int]]
    is_open: bool = True


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of plotly's.

    Attributes:
        name: Its name in the page, of letters.
        title: Its title.
        text: What it shows, for those who do not see it.
        traces: Plotly's traces. Any string may be ``var(--name)``, a colour of the page; ``customdata`` is rows of the
            page's subject.
        layout: Plotly's layout, likewise.
    """

    name: str
    title: str
    text: str
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """A place in a tree.

    Attributes:
        name: What it is called there.
        path: Its path, as the subject's ``module_column`` has it; None where there is nothing to select.
        cells: One for each of the tree's columns.
        children: What is in it.
        is_open: Whether these are seen at once.
    """

    name: str
    path: str | None
    cells: Sequence[Number]
    children: Sequence[TreeEntry] = ()
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree as a heat map.

    Attributes:
        columns: The headings of the numbers.
        entries: The outermost entries.
        separator: What stands between the parts of a path.
    """

    columns: Sequence[str]
    entries: Sequence[TreeEntry]
    separator: str = "."


@dataclass(frozen=True, slots=True)
class Facts:
    """Terms and what there is to say of each.

    Attributes:
        items: Pairs of a term and a cell.
        title: A heading, or ``""``.
    """

    items: Sequence[tuple[str, str | Place | Rows]]
    title: str = ""


@dataclass(frozen=True, slots=True)
class Prose:
    """Lines of text, each a paragraph, or an entry of a list."""

    lines: Sequence[str]
    is_list: bool = False


Block: TypeAlias = Table | Drawing | Chart | Tree | Facts | Prose


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page under a heading.

    Attributes:
        name: Its name in the page, of letters.
        title: The heading.
        blocks: What it holds.
        lead: What to know before looking.
    """

    name: str
    title: str
    blocks: Sequence[Block]
    lead: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """A page.

    Attributes:
        title: Its title.
        verdict: The one line that says it all.
        passed: Whether that is good.
        subject: The name of the table whose rows the other blocks refer to.
        facts: What was looked at.
        sections: Its parts.
        footer: The last line.
    """

    title: str
    verdict: str
    passed: bool
    subject: str
    facts: Facts
    sections: Sequence[Section]
    footer: str = ""


def heat_of(value: float, *, cold: float, hot: float) -> int:
    """Returns how bad a number is on a logarithmic scale: 0 up to ``cold``, ``HOTTEST`` from ``hot`` on."""
    if not value > cold:
        return 0
    if value >= hot:
        return HOTTEST
    share = math.log(value / cold) / math.log(hot / cold)
    return 1 + int(share * (HOTTEST - 1))


def place_of(source: str | None) -> Place:
    """Returns a line of source code, ``/home/me/net.py:12``, with a link to the file if its path is absolute."""
    match = _PLACE.fullmatch(source or "")
    if source is None or match is None:
        return Place(source or "")
    windows = bool(_DRIVE.match(match[1]))
    path = PureWindowsPath(match[1]) if windows else PurePosixPath(match[1])
    if not path.is_absolute():
        return Place(source)
    try:
        return Place(source, path.as_uri())
    except UnicodeEncodeError:
        return Place(source)
