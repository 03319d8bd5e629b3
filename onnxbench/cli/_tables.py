"""Plain text tables and fields: one line per row, however long the names; linear, so that 100,000 rows are no trouble.

On a terminal a table fits its width: columns of names are shortened in the middle, the widest first, and keep more of
the end, where paths differ. Where too little would be left of them, each row becomes a block of a few lines in which
every name is whole. In a pipe or file every name is whole, and a very long cell shifts its own row rather
than all of them. Characters that would break a line or steer a terminal are shown escaped. (rich's tables wrap in
pipes, and take 20 s for 100,000 rows.)
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

NBSP = "\N{NO-BREAK SPACE}"
_GAP = "  "
_NARROWEST = 10
_READABLE = {"name": 24, "list": 32}
"""Fewer characters of a longer cell say too little."""
_LONGEST = 400
_WIDEST_PIPED = 120
_WIDEST_WHOLE = 40
_PROSE = 110


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its heading.
        kind: ``name`` may be shortened in the middle, ``list`` item by item (items end in a comma), ``whole`` only
            when it is very long, ``number`` never, and is right-aligned.
    """

    name: str
    kind: Literal["name", "list", "whole", "number"] = "name"


def terminal_width() -> int | None:
    """Returns the columns of the terminal that stdout is, or None if it is none."""
    return shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else None


def print_top(columns: Sequence[Column], rows: Sequence[Sequence[str]], most: int, what: str, where: str) -> None:
    """Prints a table of the first rows, and how many more there are.

    Args:
        columns: The columns.
        rows: At least one row.
        most: How many are shown.
        what: What rows are: ``nodes``.
        where: What shows all of them.
    """
    print_table(columns, rows[:most])
    print_more(len(rows), most, what, where)


def print_more(count: int, shown: int, what: str, where: str) -> None:
    """Prints how many of something were not shown, and what shows all."""
    if count > shown:
        print(f"and {count - shown:,} more {what} ({where})")


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table; a column with nothing in it is left out.

    Args:
        columns: The columns.
        rows: The cells, as many in each row as there are columns; at least one row.
    """
    texts = [[column.name, *map(plain, cells)] for column, cells in zip(columns, zip(*rows, strict=True), strict=True)]
    filled = [number for number, cells in enumerate(texts) if any(cells[1:])]
    shown, texts = [columns[number] for number in filled], [texts[number] for number in filled]
    natural = [max(map(_width, cells)) for cells in texts]
    room = terminal_width()
    if room is None:
        widths = [min(size, max(_WIDEST_PIPED, len(column.name))) for size, column in zip(natural, shown, strict=True)]
    else:
        widths = _fit(natural, shown, room - len(_GAP) * (len(shown) - 1))
        least = [min(size, _READABLE.get(column.kind, 0)) for size, column in zip(natural, shown, strict=True)]
        if any(width < size for width, size in zip(widths, least, strict=True)):
            sys.stdout.write("\n".join(_blocks(shown, texts, room)) + "\n")
            return
        texts = [
            [cell if _width(cell) <= width else _SHORTENERS[column.kind](cell, width) for cell in cells]
            for cells, width, column in zip(texts, widths, shown, strict=True)
        ]
    padded = [_padded(*column) for column in zip(texts, widths, shown, strict=True)]
    head, *lines = [_GAP.join(cells).rstrip() for cells in zip(*padded, strict=True)]
    bold, end = _style(1)
    rule = _GAP.join(("─" if _is_unicode() else "-") * size for size in widths)
    sys.stdout.write("\n".join([f"{bold}{head}{end}", rule, *lines]) + "\n")


def _blocks(columns: Sequence[Column], texts: Sequence[Sequence[str]], room: int) -> Iterator[str]:
    """Yields each row as a block: its first cell, then short cells side by side, then names below each other."""
    short = [number for number, column in enumerate(columns) if number and column.kind in ("whole", "number")]
    long = [number for number in range(1, len(columns)) if number not in short]
    labels = max((_width(columns[number].name) for number in long), default=0) + len(_GAP)
    bold, end = _style(1)
    dim, _ = _style(2)
    for row in zip(*(cells[1:] for cells in texts), strict=True):
        for line in _folded(row[0], room):
            yield f"{bold}{line}{end}"
        line, left = "", 0
        for number in short:
            if not row[number]:
                continue
            name, cell = columns[number].name, shorten(row[number], room - _NARROWEST)
            size = len(_GAP) + _width(name) + 1 + _width(cell)
            if size > left and line:
                yield line
                line = ""
            left = (left if line else room) - size
            line += f"{_GAP}{dim}{name}{end} {cell}"
        if line:
            yield line
        for number in long:
            label = columns[number].name.ljust(labels)
            for part in _folded(row[number], room - len(_GAP) - labels) if row[number] else ():
                yield f"{_GAP}{dim}{label}{end}{part}"
                label = " " * labels


def _folded(text: str, room: int) -> list[str]:
    """Returns a text in lines of at most ``room`` columns, broken between the items of a list where possible."""
    text, room = shorten(text, _LONGEST), max(room, _NARROWEST)
    lines: list[str] = []
    line = ""
    for number, item in enumerate(text.split(", ")):
        word = f", {item}" if number else item
        if _width(line) + _width(word) + 1 <= room or not line:
            line += word
        else:
            lines.append(f"{line},")
            line = item
        while _width(line) > room:
            at = room
            while _width(line[:at]) > room:  # wide characters
                at -= 1
            lines.append(line[:at])
            line = line[at:]
    return [*lines, line]


def print_heading(text: str) -> None:
    """Prints a heading, in bold on a terminal."""
    bold, end = _style(1)
    print(f"{bold}{plain(text)}{end}")


def print_fields(fields: Iterable[tuple[str, str]], *, indent: int = 0, labels: int = 0) -> None:
    """Prints named values, one below the other; long ones are wrapped at words, under themselves.

    A name that repeats the one before is not shown again. Words joined by ``NBSP`` stay on one line.

    Args:
        fields: Names and values.
        indent: Spaces before the names.
        labels: The least room for the names.
    """
    found = [(label, NBSP.join(map(plain, text.split(NBSP)))) for label, text in fields]
    labels = max([labels, *(len(label) for label, _ in found)]) + 2
    width = min(terminal_width() or _PROSE, _PROSE)
    dim, end = _style(2)
    before = None
    for label, text in found:
        room = max(20, width - indent - labels)
        lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
        name = "" if label == before else label
        before = label
        print(f"{' ' * indent}{dim}{name:<{labels}}{end}{lines[0].replace(NBSP, ' ')}".rstrip())
        for line in lines[1:]:
            print(" " * (indent + labels) + line.replace(NBSP, " "))


def plain(text: str) -> str:
    """Returns a text on one line, with characters that a terminal would act on shown escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shorten(text: str, width: int) -> str:
    """Returns a text in at most ``width`` columns, its middle replaced by an ellipsis if it is longer."""
    if _width(text) <= width:
        return text
    mark = "…" if _is_unicode() else "..."
    room = max(0, width - len(mark))
    head, tail = room // 3, room - room // 3
    while _width(text[:head]) + _width(text[len(text) - tail :]) > room:  # wide characters
        head, tail = (head - 1, tail) if head > tail // 2 else (head, tail - 1)
    return f"{text[:head]}{mark}{text[len(text) - tail :]}"


def _shorten_list(text: str, width: int) -> str:
    """Shortens each item of a list; what does not fit even so is counted."""
    items = text.split(", ")
    for count in range(len(items), 0, -1):
        more = f" +{len(items) - count}" if count < len(items) else ""
        room = width - len(more) - 2 * (count - 1)
        if room >= _NARROWEST * count or count == 1:
            sizes = _share([_width(item) for item in items[:count]], room)
            return ", ".join(map(shorten, items[:count], sizes)) + more
    return shorten(text, width)


def _fit(natural: Sequence[int], columns: Sequence[Column], room: int) -> list[int]:
    """Returns widths of columns that fit the room if they can: names and lists give way, the widest first."""
    fixed = {"number": room, "whole": _WIDEST_WHOLE}
    most = [min(size, fixed.get(column.kind, size)) for size, column in zip(natural, columns, strict=True)]
    giving = [number for number, column in enumerate(columns) if column.kind not in fixed]
    left = room - sum(size for number, size in enumerate(most) if number not in giving)
    for number, size in zip(giving, _share([most[number] for number in giving], left), strict=True):
        most[number] = size
    return most


def _share(sizes: Sequence[int], room: int) -> list[int]:
    """Returns the sizes capped so that their sum is at most ``room``: what is small stays whole."""
    left, cap = room, max(sizes, default=0)
    for number, size in enumerate(sorted(sizes)):
        share = left // (len(sizes) - number)
        if size > share:
            cap = max(_NARROWEST, share)
            break
        left -= size
    return [min(size, cap) for size in sizes]


def _leave(text: str, width: int) -> str:
    return text


_SHORTENERS: dict[str, Callable[[str, int], str]] = {
    "name": shorten, "list": _shorten_list, "whole": shorten, "number": _leave,
}  # fmt: skip


def _padded(cells: Sequence[str], width: int, column: Column) -> list[str]:
    if all(map(str.isascii, cells)):
        return [cell.rjust(width) if column.kind == "number" else cell.ljust(width) for cell in cells]
    padding = [" " * (width - _width(cell)) for cell in cells]
    if column.kind == "number":
        return [space + cell for space, cell in zip(padding, cells, strict=True)]
    return [cell + space for space, cell in zip(padding, cells, strict=True)]


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _is_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")


def _style(code: int) -> tuple[str, str]:
    """Returns what switches a style on and off, or nothing where there is no terminal or no wish for it."""
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
        return f"\033[{code}m", "\033[0m"
    return "", ""
