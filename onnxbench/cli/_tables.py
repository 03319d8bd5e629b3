"""Plain text tables and fields: one line per row, however long the names; linear, so that 100,000 rows are no trouble.

On a terminal a table fits its width: columns of text are shortened in the middle, the widest first, since both ends
of a name say more than its middle. In a pipe or file every name is whole, and a very long cell shifts its own row
rather than all of them. Characters that would break a line or steer a terminal are shown escaped.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Sequence

NBSP = "\N{NO-BREAK SPACE}"
_GAP = "  "
_NARROWEST = 8
_WIDEST_PIPED = 64
_PROSE = 110


def terminal_width() -> int | None:
    """Returns the columns of the terminal that stdout is, or None if it is none."""
    if not sys.stdout.isatty():
        return None
    import shutil

    return shutil.get_terminal_size((100, 24)).columns


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, width: int | None = None) -> None:
    """Prints a table; a column whose name starts with ``>`` is right-aligned and never shortened.

    A column with nothing in it is left out.

    Args:
        columns: Their headings.
        rows: The cells, as many in each row as there are columns.
        width: The room there is; None: the terminal's, or in a pipe as much as it takes.
    """
    width = terminal_width() if width is None else width
    cells = [[plain(cell) for cell in row] for row in rows]
    filled = [number for number in range(len(columns)) if any(row[number] for row in cells)]
    names = [columns[number].removeprefix(">") for number in filled]
    right = [columns[number].startswith(">") for number in filled]
    natural = [
        max([_columns(name), *(_columns(row[number]) for row in cells)])
        for name, number in zip(names, filled, strict=True)
    ]
    if width is None:
        widths = [min(size, max(_WIDEST_PIPED, len(name))) for size, name in zip(natural, names, strict=True)]
    else:
        widths = _fit(natural, right, width - len(_GAP) * (len(names) - 1))
    head = _line(names, widths, right, shorten=False)
    rule = _GAP.join(("─" if _is_unicode() else "-") * size for size in widths)
    emphasis = ("\033[1m", "\033[0m") if _is_colored() else ("", "")
    out = [f"{emphasis[0]}{head}{emphasis[1]}", rule]
    out += [_line([row[number] for number in filled], widths, right, shorten=width is not None) for row in cells]
    sys.stdout.write("\n".join(out) + "\n")


def print_heading(text: str) -> None:
    """Prints a heading in bold, on a terminal."""
    emphasis = ("\033[1m", "\033[0m") if _is_colored() else ("", "")
    print(f"{emphasis[0]}{plain(text)}{emphasis[1]}")


def print_fields(fields: Iterable[tuple[str, str]], *, indent: int = 0) -> None:
    """Prints named values, one below the other; long ones are wrapped at words, under themselves.

    A name that repeats the one before is not shown again. Words joined by ``NBSP`` stay on one line.
    """
    found = [(label, NBSP.join(map(plain, text.split(NBSP)))) for label, text in fields]
    labels = max((len(label) for label, _ in found), default=0) + 2
    width = min(terminal_width() or _PROSE, _PROSE)
    dim = ("\033[2m", "\033[0m") if _is_colored() else ("", "")
    before = ""
    for label, text in found:
        room = max(20, width - indent - labels)
        lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
        name = "" if label == before else label
        before = label
        print(f"{' ' * indent}{dim[0]}{name:<{labels}}{dim[1]}{lines[0].replace(NBSP, ' ')}".rstrip())
        for line in lines[1:]:
            print(" " * (indent + labels) + line.replace(NBSP, " "))


def plain(text: str) -> str:
    """Returns a text on one line, with characters that a terminal would act on shown escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shorten(text: str, width: int) -> str:
    """Returns a text in at most ``width`` columns, its middle replaced by an ellipsis if it is longer."""
    if _columns(text) <= width:
        return text
    mark = "…" if _is_unicode() else "..."
    room = max(0, width - len(mark))
    head, tail = (room + 1) // 2, room // 2
    while head + tail > 0 and _columns(text[:head]) + _columns(text[len(text) - tail :]) > room:
        head, tail = head - (head >= tail), tail - (tail > head)
    return f"{text[:head]}{mark}{text[len(text) - tail :]}"


def _fit(natural: Sequence[int], fixed: Sequence[bool], room: int) -> list[int]:
    """Returns widths of columns that fit the room: those that are not fixed are capped, the widest first."""
    left = room - sum(size for size, stays in zip(natural, fixed, strict=True) if stays)
    free = sorted(size for size, stays in zip(natural, fixed, strict=True) if not stays)
    cap = max(free, default=0)
    for number, size in enumerate(free):
        share = left // (len(free) - number)
        if size > share:
            cap = max(_NARROWEST, share)
            break
        left -= size
    return [size if stays else min(size, cap) for size, stays in zip(natural, fixed, strict=True)]


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool], *, shorten: bool) -> str:
    parts = []
    for cell, width, is_right in zip(cells, widths, right, strict=True):
        shown = _shortened(cell, width) if shorten else cell
        padding = " " * (width - _columns(shown))
        parts.append(padding + shown if is_right else shown + padding)
    return _GAP.join(parts).rstrip()


def _shortened(cell: str, width: int) -> str:
    return cell if len(cell) <= width and cell.isascii() else shorten(cell, width)


def _columns(text: str) -> int:
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _is_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")


def _is_colored() -> bool:
    import os

    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
