"""Command lines of trtexec and Polygraphy, found in scripts, Makefiles, Dockerfiles and text: words with their lines.

Nothing is run and no shell is asked: lines that go on are joined, quotes are taken off, variables of the same file that
hold options are put in, and the rest of the shell's language is left as it is written (``$MODEL`` stays ``$MODEL``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

PROGRAMS = ("trtexec", "polygraphy")
_SUBCOMMANDS = frozenset({
    "run", "convert", "inspect", "surgeon", "check", "template", "debug", "data", "plugin", "multi-device",
})  # fmt: skip
_PROGRAM = re.compile(
    r"""(?<![\w$/{(.-])                       # not within a longer word
        (?:\$[({]?(?P<variable>\w*(?:trtexec|polygraphy)\w*)[)}]?      # $TRTEXEC, ${POLYGRAPHY_BIN}
        | (?:[\w.~${}()+-]*/)*(?P<name>trtexec|polygraphy)(?:\.exe)?)
        (?P<end>["']?)(?=$|[\s,])""",
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_ASSIGNED = re.compile(r"""^\s*(?:export\s+|ENV\s+|ARG\s+|local\s+)?(\w+)\s*[:?+]?=\s*(.*-.*)$""")
_REFERENCE = re.compile(r"\$[({]?(\w+)[)}]?$")
_CONTINUED = {".bat": "^", ".cmd": "^", ".ps1": "`"}
_COMMENTED = (".md", ".txt", ".rst")
_STOPS = ("|", ";", "&", ">", "<")


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a command line.

    Attributes:
        text: The word, quotes taken off.
        line: The line of the file that it stands on, from 1.
    """

    text: str
    line: int


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A command line as it was found.

    Attributes:
        program: ``trtexec`` or ``polygraphy``.
        words: What stands behind the program's name.
        line: Where it begins.
    """

    program: str
    words: tuple[Word, ...]
    line: int

    def text(self) -> str:
        """Returns the command in one line."""
        return " ".join([self.program, *(word.text for word in self.words)])


def find_in_text(text: str, ending: str = "") -> list[CommandLine]:
    """Returns the command lines in a script or in prose.

    Args:
        text: The file.
        ending: The file's ending, which says how lines go on and what a comment is.
    """
    lines = text.splitlines()
    variables = _variables(lines)
    found = []
    for numbered in _logical_lines(lines, _CONTINUED.get(ending, "\\"), keeps_comments=ending in _COMMENTED):
        joined = "".join(part for part, _ in numbered)
        for match in _PROGRAM.finditer(joined):
            name = (match["name"] or match["variable"]).lower()
            program = next(each for each in PROGRAMS if each in name)
            words = _json_words(joined, match, numbered) if match["end"] else None
            if words is None:
                words = list(_split(joined, match.end(), numbered))
            words = [inner for word in words for inner in _expanded(word, variables)]
            if is_command(program, [word.text for word in words]):
                found.append(CommandLine(program, tuple(words), _line_at(numbered, match.start())))
    return found


def is_command(program: str, words: list[str]) -> bool:
    """Tells whether words behind a program's name make a command, and not a sentence about the program."""
    if program == "polygraphy":
        return bool(words) and words[0] in _SUBCOMMANDS and len(words) > 1
    return any(word.startswith("--") and len(word) > 2 for word in words[:40])


def _variables(lines: list[str]) -> dict[str, tuple[str, int]]:
    """Returns what variables hold that hold options, with the line that says so."""
    found: dict[str, tuple[str, int]] = {}
    for number, line in enumerate(lines, 1):
        match = _ASSIGNED.match(line)
        if match is not None and re.search(r"(?:^|[\s\"'(])--\w", match[2]) and not _PROGRAM.search(match[2]):
            value = match[2].strip().strip("()").strip()
            if value[:1] in "\"'" and value[-1:] == value[:1]:
                value = value[1:-1]
            found[match[1]] = (value, number)
    return found


def _expanded(word: Word, variables: Mapping[str, tuple[str, int]]) -> Iterator[Word]:
    match = _REFERENCE.match(word.text.removesuffix("[@]}").removesuffix('"'))
    if match is None or match[1] not in variables:
        yield word
        return
    value, line = variables[match[1]]
    yield from _split(value, 0, [(value, line)])


_Numbered = list[tuple[str, int]]


def _logical_lines(lines: list[str], mark: str, *, keeps_comments: bool) -> Iterator[_Numbered]:
    """Yields lines that belong together, each part with its number."""
    held: _Numbered = []
    for number, line in enumerate(lines, 1):
        bare = line.lstrip()
        if not keeps_comments and (bare.startswith("#") or bare.lower().startswith(("rem ", "::"))):
            if held:  # a comment within a command that goes on
                continue
            continue
        if line.rstrip().endswith(mark):
            held.append((line.rstrip()[: -len(mark)] + " ", number))
            continue
        yield [*held, (line, number)]
        held = []
    if held:
        yield held


def _line_at(numbered: _Numbered, offset: int) -> int:
    for part, number in numbered:
        if offset < len(part):
            return number
        offset -= len(part)
    return numbered[-1][1]


def _split(text: str, at: int, numbered: _Numbered) -> Iterator[Word]:
    """Yields the words from an offset on, up to the end of the command."""
    word, start, quote = "", -1, ""
    while at < len(text):
        char = text[at]
        if quote:
            if char == quote:
                quote = ""
            elif char == "\\" and quote == '"' and text[at + 1 : at + 2] in ('"', "\\"):
                at += 1
                word += text[at]
            else:
                word += char
        elif char in "\"'":
            if start < 0 and (at == 0 or not text[at - 1].isspace()) and not word and _closes(text, at):
                break  # the quote in which the whole command stands ends here
            quote, start = char, at if start < 0 else start
        elif char.isspace():
            if start >= 0:
                yield Word(word, _line_at(numbered, start))
            word, start = "", -1
        elif (
            (char in _STOPS and not word.endswith("$"))
            or (char == "#" and start < 0)
            or (char in "`)" and "(" not in word and "{" not in word)
        ):
            word = "" if char == ">" and word.isdigit() else word
            break
        else:
            word, start = word + char, at if start < 0 else start
        at += 1
    if start >= 0 and word:
        yield Word(word, _line_at(numbered, start))


def _closes(text: str, at: int) -> bool:
    return text[at + 1 : at + 2] in ("", ",", ")", "]", " ")


def _json_words(text: str, match: re.Match[str], numbered: _Numbered) -> list[Word] | None:
    """Returns the words of a command that is a list: ``CMD ["trtexec", "--onnx=m.onnx"]``."""
    begin, end = text.rfind("[", 0, match.start()), text.find("]", match.end())
    if begin < 0 or end < 0:
        return None
    try:
        parts = json.loads(text[begin : end + 1].replace("'", '"'))
    except ValueError:
        return None
    if not all(isinstance(part, str) for part in parts):
        return None
    while parts and not parts.pop(0).lower().rpartition("/")[2].startswith(PROGRAMS):
        pass
    words, at = [], match.end()
    for part in parts:
        at = max(text.find(part, at), at)
        words.append(Word(part, _line_at(numbered, at)))
    return words
