"""Tokens of the text syntax, and errors that point at them."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from onnxbench import literals
from onnxbench.errors import SpecError
from onnxbench.modeltext._originals import ErrorAt

SPACE = re.compile(r"(?:[ \t\n\v\f\r]+|#[^\n]*)*")
WHITE = " \t\n\v\f\r"
NAME_KINDS = ("id", "str", "bytes")
_TOKEN = re.compile(
    r"""(?:[ \t\n\v\f\r]+|\#[^\n]*)*
    (?:(?P<bytes>b"[^"\\]*(?:\\.[^"\\]*)*")
      |(?P<id>[A-Za-z_][A-Za-z0-9_]*)
      |(?P<str>"[^"\\]*(?:\\.[^"\\]*)*")
      |(?P<num>[+-]?(?:0[xX][0-9a-fA-F]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
              |-(?:[iI][nN][fF](?:[iI][nN][iI][tT][yY])?|[nN][aA][nN])(?![A-Za-z0-9_]))
      |(?P<dots>\.\.\.)
      |(?P<mark>[<>(){}\[\],:=@.?])
      |(?P<end>\Z)
      |(?P<bad>.))""",
    re.VERBOSE | re.DOTALL,
)
_SHOWN = 110  # characters of a line that an error quotes


class Lines(Sequence[str]):
    """The lines of a text, split when one is asked for (which an error does, once)."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __getitem__(self, number: Any) -> Any:
        return self._text.split("\n")[number]

    def __len__(self) -> int:
        return self._text.count("\n") + 1


def quoted(lines: Sequence[str], line: int, column: int = 0, *, shown_as: int | None = None) -> tuple[str, ...]:
    """Returns a line of a file with its number, and a caret under a column.

    Args:
        lines: The lines of the file; the result is empty if it has no such line.
        line: The line, from 1.
        column: The column, from 1; 0 for none.
        shown_as: The number to show, if ``lines`` are only a part of the file.
    """
    if not 0 < line <= len(lines):
        return ()
    left = max(0, column - 70)
    shown = "".join(c if c.isprintable() else " " for c in lines[line - 1][left : left + _SHOWN]).rstrip()
    gutter = f"{line if shown_as is None else shown_as} | "
    caret = (f"{' ' * (len(gutter) - 2)}| {' ' * (column - 1 - left)}^",) if column else ()
    return (f"{gutter}{shown}", *caret)


class Tokens(ErrorAt):
    """A text, token by token, with one token of look-ahead.

    Attributes:
        text: The whole text.
        source: What errors call it.
        kind: Kind of the current token: ``id``, ``str``, ``bytes``, ``num``, ``dots``, ``end``, or the punctuation
            character itself.
        value: The token as it stands in the text.
        start: Its offset.
        end: The offset behind it.
    """

    def __init__(
        self, text: str, source: str, *, first_line: int = 1, first_column: int = 1, context: Sequence[str] = ()
    ) -> None:
        self.text = text
        self._context = context
        self.source = source
        self._first_line, self._first_column = first_line, first_column
        self._line_ends = [match.start() for match in re.finditer("\n", text)]
        self.start = self.end = 0
        self.kind = self.value = ""
        self.advance()

    def advance(self) -> None:
        """Goes to the next token."""
        match = _TOKEN.match(self.text, self.end)
        assert match is not None  # its last alternatives take any character, and the end
        kind = match.lastgroup
        assert kind is not None
        self.value = match[kind]
        self.start, self.end = match.span(kind)
        self.kind = self.value if kind == "mark" else kind
        if kind == "bad":
            if self.value == '"':
                hint = 'It ends at the next quote; write \\" for a quote inside a string.'
                raise self.error("this string does not end", hint=hint)
            raise self.error(f"{self.value!r} means nothing here", hint='A name with special characters: "a/b:0".')

    def take(self, kind: str) -> bool:
        """Goes on if the current token is of this kind; tells whether it was."""
        if self.kind == kind:
            self.advance()
            return True
        return False

    def expect(self, kind: str, where: str) -> None:
        """Goes on, or raises if the current token is of another kind."""
        if self.kind != kind:
            raise self.error(f"expected {kind!r} {where}, found {self.found()}")
        self.advance()

    def found(self) -> str:
        """Returns the current token in words."""
        return "the end of the text" if self.kind == "end" else repr(self.value[:40])

    def following(self) -> str:
        """Returns the first character after the current token and the space behind it."""
        space = SPACE.match(self.text, self.end)
        at = space.end() if space else self.end
        return self.text[at : at + 1]

    def line_of(self, offset: int) -> int:
        """Returns the line of an offset, from 1."""
        return bisect_right(self._line_ends, offset - 1) + self._first_line

    def error(self, message: str, *, at: int | None = None, hint: str | None = None) -> SpecError:
        """Returns an error that shows the line and points at the current token, or at an offset."""
        offset = self.start if at is None else at
        start = self.text.rfind("\n", 0, offset) + 1
        line = self.line_of(offset)
        column = offset - start + (self._first_column if start == 0 else 1)
        if self._context:
            quote = quoted(self._context, line, column)
        else:
            quote = quoted(Lines(self.text), line - self._first_line + 1, offset - start + 1, shown_as=line)
        return SpecError(f"{self.source}:{line}:{column}: {message}", hint=hint, details=quote)

    def name(self, what: str) -> str:
        """Reads a name, quoted or not."""
        if self.kind == "id":
            value = self.value
            self.advance()
            return value
        if self.kind in NAME_KINDS:
            return self.string()
        raise self.error(f"expected {what}, found {self.found()}")

    def string(self) -> str:
        """Reads a string that must be text."""
        start, value = self.start, self.any_string()
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise self.error("this string must be text, and its bytes are not UTF-8", at=start) from None

    def any_string(self) -> bytes:
        """Reads a string of any bytes."""
        if self.kind == "str":
            value = literals.unquote(self.value[1:-1])
        elif self.kind == "bytes":
            value = literals.unquote(self.value[2:-1], escapes=True)
        else:
            raise self.error(f"expected a string in quotes, found {self.found()}")
        self.advance()
        return value

    def integer(self, what: str) -> int:
        """Reads an integer of 64 bits."""
        if self.kind != "num" or not re.fullmatch(r"[+-]?[0-9]+", self.value):
            raise self.error(f"expected {what}, found {self.found()}")
        value = int(self.value)
        if not -(1 << 63) <= value < 1 << 63:
            raise self.error(f"{self.value} does not fit 64 bits")
        self.advance()
        return value
