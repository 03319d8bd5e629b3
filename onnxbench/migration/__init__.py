"""What scripts for older TensorRT must change: command lines, Polygraphy, MMDeploy, Python; nothing of it is run.

The facts are one table (``onnxbench.migration._rules``). Command lines are found in ``_words`` and put into ours in
``_translation``; Python is read off its syntax tree in ``_python``.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from onnxbench.errors import NotFoundError, SpecError, UsageError, did_you_mean
from onnxbench.migration._python import read_script
from onnxbench.migration._rules import RULES, TARGETS, Rule
from onnxbench.migration._translation import translate
from onnxbench.migration._words import CommandLine, find_in_text
from onnxbench.version import __version__

__all__ = ["RULES", "TARGETS", "Change", "Command", "Migration", "Rule", "migrate", "to_sarif"]

_ENDINGS = frozenset({
    ".sh", ".bash", ".zsh", ".bat", ".cmd", ".ps1", ".py", ".ipynb", ".mk", ".cmake", ".txt", ".md", ".rst", ".yaml",
    ".yml", ".json", ".toml", ".cfg", ".ini", ".dockerfile", ".in",
})  # fmt: skip
_NAMES = ("makefile", "gnumakefile", "dockerfile", "containerfile", "jenkinsfile", "justfile", "readme")
_SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages"})
_WORDS = (b"tensorrt", b"trtexec", b"polygraphy", b"backend_config")
"""A file without any of them is not looked into further."""
_LARGEST = 4 << 20


@dataclass(frozen=True, slots=True)
class Change:
    """One thing to change.

    Attributes:
        file: The file.
        line: The line, from 1.
        level: ``must`` (it fails, is ignored, or gives another engine than asked for) or ``should``.
        code: The rule's word.
        word: What stands there.
        what: What became of it.
        instead: What replaces it.
        source: Where this is known from.
    """

    file: str
    line: int
    level: str
    code: str
    word: str
    what: str
    instead: str
    source: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command that builds or runs, and what it is here.

    Attributes:
        file: The file.
        line: Where it begins.
        written: The command as it stands there, in one line; for Python that uses the API, as trtexec would have it.
        here: The onnxbench command; None where there is none.
        notes: What is left out of it, and what must be done before.
    """

    file: str
    line: int
    written: str
    here: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Migration:
    """What files must change for a newer TensorRT.

    Attributes:
        target: ``10``, ``11`` or ``rtx``.
        files: The files that were read.
        changes: What to change, by file and line.
        commands: The commands that were found, with what they are here.
        notes: Files that could not be read.
    """

    target: str
    files: tuple[str, ...]
    changes: tuple[Change, ...]
    commands: tuple[Command, ...]
    notes: tuple[str, ...] = ()

    @property
    def must_change(self) -> bool:
        """Whether anything has to change."""
        return any(change.level == "must" for change in self.changes)


def migrate(paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str], *, to: str = "11") -> Migration:
    """Returns what files must change for a newer TensorRT, line by line, and their build commands as onnxbench's.

    Nothing is run or imported: Python is parsed, commands are read as words.

    Args:
        paths: Files, and folders that are looked through (scripts, Makefiles, Dockerfiles, Python, notebooks, text).
        to: ``10``, ``11`` or ``rtx``.

    Raises:
        UsageError: There is no such target, or no path was given.
        NotFoundError: A path does not exist.
        SpecError: A file that was named cannot be read.
    """
    target = to.lower().removeprefix("tensorrt").strip("- ") or to
    if target not in TARGETS:
        hint = did_you_mean(target, TARGETS) or "Targets: 10, 11, rtx."
        raise UsageError(f"{to!r} is no TensorRT that can be migrated to", hint=hint)
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not given:
        raise UsageError("no file is named")
    files: dict[Path, bool] = {}
    for each in map(Path, given):
        if not each.exists():
            raise NotFoundError(f"there is no file or folder {each}")
        files |= dict.fromkeys(_within(each), False) if each.is_dir() else {each: True}
    changes: list[Change] = []
    commands: list[Command] = []
    notes: list[str] = []
    for file, is_named in files.items():
        try:
            more = _read_file(file, target)
        except (OSError, ValueError, SyntaxError) as error:
            reason = f"no Python (line {error.lineno}: {error.msg})" if isinstance(error, SyntaxError) else str(error)
            if is_named:
                raise SpecError(f"{file} cannot be read: {reason}") from None
            notes.append(f"{file} was not looked at: {reason}")
            continue
        changes += more[0]
        commands += more[1]
    return Migration(target, tuple(map(str, files)), tuple(changes), tuple(commands), tuple(notes))


def _within(folder: Path) -> Iterator[Path]:
    """Yields the files of a folder that may hold commands, in order."""
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(
            each for each in folders
            if each not in _SKIPPED and not each.startswith(".") and not Path(where, each, "pyvenv.cfg").exists()
        )  # fmt: skip
        for name in sorted(names):
            file = Path(where, name)
            is_one = file.suffix.lower() in _ENDINGS or name.lower().startswith(_NAMES) or _is_script(file)
            if is_one and file.is_file() and file.stat().st_size <= _LARGEST:
                yield file


def _is_script(file: Path) -> bool:
    """Tells whether a file without an ending begins as a script."""
    if file.suffix or not file.is_file():
        return False
    try:
        with open(file, "rb") as handle:
            return handle.read(2) == b"#!"
    except OSError:
        return False


def _read_file(file: Path, target: str) -> tuple[list[Change], list[Command]]:
    data = file.read_bytes()
    if b"\0" in data[:4096]:
        raise ValueError("it is not text")
    if not any(word in data.lower() for word in _WORDS):
        return [], []
    text = data.decode("utf-8", "replace")
    name, ending = str(file), file.suffix.lower()
    if ending == ".ipynb":
        return _read_notebook(name, text, target)
    if ending == ".py" or (not ending and text.startswith("#!") and "python" in text.splitlines()[0]):
        return _read_python(name, text, target)
    return _judge_commands(name, find_in_text(text, ending), target)


def _read_python(name: str, text: str, target: str, *, offset: int = 0) -> tuple[list[Change], list[Command]]:
    script = read_script(text)
    changes = [_change(each.rule, name, each.line + offset, each.word, target) for each in script.found]
    more, commands = _judge_commands(name, script.commands, target, offset=offset)
    found = sorted((change for change in (*changes, *more) if change is not None), key=lambda change: change.line)
    if "mmdeploy" in script.uses and any(change.code == "mmdeploy-backend" for change in found):
        line = next(change.line for change in found if change.code == "mmdeploy-backend")
        notes = ("MODEL.onnx: what MMDeploy exports (end2end.onnx)",)
        here = f"onnxbench build-trt MODEL.onnx MODEL.engine --config {shlex.quote(name)}"
        commands.append(Command(name, line, "backend_config", here, notes))
    if script.build is not None:
        commands.append(_command(name, script.build, target, offset=offset))
    return found, commands


def _read_notebook(name: str, text: str, target: str) -> tuple[list[Change], list[Command]]:
    """Reads the code cells of a notebook; a line is counted from the first line of code of the first cell."""
    cells = json.loads(text).get("cells", [])
    changes: list[Change] = []
    commands: list[Command] = []
    offset = 0
    for cell in cells:
        source = cell.get("source", "")
        lines = ("".join(source) if isinstance(source, list) else str(source)).splitlines()
        if cell.get("cell_type") == "code":
            shell = [line.lstrip("! \t") if line.lstrip().startswith(("!", "%%")) else "" for line in lines]
            found = _judge_commands(name, find_in_text("\n".join(shell), ".sh"), target, offset=offset)
            changes, commands = changes + found[0], commands + found[1]
            code = "\n".join("" if line.lstrip().startswith(("!", "%")) else line for line in lines)
            try:
                found = _read_python(name, code, target, offset=offset)
            except SyntaxError:
                found = ([], [])
            changes, commands = changes + found[0], commands + found[1]
        offset += len(lines)
    return changes, commands


def _judge_commands(
    name: str, lines: Sequence[CommandLine], target: str, *, offset: int = 0
) -> tuple[list[Change], list[Command]]:
    changes = [change for line in lines for change in _judge_command(name, line, target, offset)]
    return changes, [_command(name, line, target, offset=offset) for line in lines]


def _command(name: str, line: CommandLine, target: str, *, offset: int = 0) -> Command:
    made = translate(line, target)
    return Command(name, line.line + offset, line.text(), made.text(), tuple(dict.fromkeys(made.notes)))


def _judge_command(name: str, line: CommandLine, target: str, offset: int) -> Iterator[Change]:
    texts = [word.text for word in line.words]
    for rule in RULES:
        if rule.where != line.program or rule.level(target) is None:
            continue
        for wanted in rule.names:
            for at, word in _matches(wanted, line, texts):
                change = _change(rule, name, at + offset, word, target)
                if change is not None:
                    yield change


def _matches(wanted: str, line: CommandLine, texts: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yields line and word of what a rule looks for: the program, a subcommand, an option, or one of its values."""
    if wanted == line.program:
        yield line.line, line.program
    elif not wanted.startswith("-"):
        parts = wanted.split()
        if list(texts[: len(parts)]) == parts:
            yield line.words[0].line, wanted
    else:
        name, sign, value = wanted.partition("=")
        for number, text in enumerate(texts):
            said, _, given = text.partition("=")
            if said == name and (not sign or value.lower() in given.lower()):
                yield line.words[number].line, text if sign else said


def _change(rule: Rule, file: str, line: int, word: str, target: str) -> Change | None:
    level = rule.level(target)
    return None if level is None else Change(file, line, level, rule.code, word, rule.what, rule.instead, rule.source)


def to_sarif(found: Migration) -> dict[str, Any]:
    """Returns a SARIF 2.1.0 log with one result for each change."""
    rules = [
        {
            "id": rule.code,
            "shortDescription": {"text": rule.what},
            "help": {"text": f"{rule.instead} ({rule.source})"},
        }
        for rule in RULES
        if any(change.code == rule.code for change in found.changes)
    ]
    results = [
        {
            "ruleId": change.code,
            "level": "error" if change.level == "must" else "warning",
            "message": {"text": f"{change.word}: {change.what}. {change.instead}"},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": quote(Path(change.file).as_posix())},
                        "region": {"startLine": change.line},
                    }
                }
            ],
        }
        for change in found.changes
    ]
    driver = {"name": "onnxbench", "version": __version__, "rules": rules}
    return {
        "$schema": "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }
