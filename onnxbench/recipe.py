"""Recipes: the steps of an edit as data, read from YAML, and written to YAML.

    description: subtract instead of add
    variables: {what: op:Add}
    steps:
      - set_op: {at: "${what}", to: Sub}
        expect: 1
      - rename_node: node:#1=difference       # the spelling of the command line

A step is one operation with its fields, or in its short spelling, and what the step itself says: ``expect`` (how many
targets it must match), ``changes`` (what it may change of the results, for ``--verify``), ``atol`` and ``rtol``, and
``name``. ``include`` puts the steps of another file in place. ``${variable}`` stands for a value of ``variables``; a
scalar that is nothing else takes the variable's own type.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from onnxbench.documents import Item, from_python, from_yaml, plain_float, scalar_kind, to_integer
from onnxbench.errors import NotFoundError, SpecError, UsageError, did_you_mean, near_file
from onnxbench.operations import (
    OPERATIONS,
    Effect,
    Operation,
    content_digest,
    field_form,
    files_of,
    spelled_fields,
    spelled_form,
)

VERSION = 1
_STEP_KEYS = ("name", "expect", "changes", "atol", "rtol")
_TOP_KEYS = ("version", "description", "variables", "include", "steps")
_STEP_EXAMPLE = "- set_op: {at: op:Add, to: Sub}"
_EFFECTS = get_args(Effect)
_EXPECT = re.compile(r"(?P<word>all|optional|any)|(?P<sign>>=|<=|==?|>|<)?\s*(?P<count>\d+)")
_VARIABLE = re.compile(r"\$\$\{|\$\{(?P<name>[^}]*)\}")
_DEEPEST_INCLUDE = 20


@dataclass(frozen=True)
class Step:
    """One step of a recipe.

    Attributes:
        operation: What is done.
        expect: How many targets it must match: ``1``, ``all`` (one or more), ``optional`` (any number), ``>=2``;
            None: what the operation expects by itself.
        changes: What it may change of the results; None: what the operation says by itself.
        atol: Absolute tolerance of the results under ``--verify``.
        rtol: Relative tolerance.
        name: What the step is called in messages.
        place: Where it was written: ``recipe.yaml:4``.
        folder: What files that it names are relative to; None: the current folder.
    """

    operation: Operation
    expect: str | None = None
    changes: Effect | None = None
    atol: float | None = None
    rtol: float | None = None
    name: str = ""
    place: str = field(default="", compare=False)
    folder: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.expect is not None and _EXPECT.fullmatch(self.expect) is None:
            raise UsageError(
                f"expect: {self.expect!r} is no number of targets", hint="Write 1, all, optional, >=2 or <=3."
            )

    @property
    def effect(self) -> Effect:
        """What it may change of the results."""
        return self.changes or self.operation.effect

    def accepts(self, count: int) -> bool:
        """Tells whether the step may go ahead with this many targets."""
        match = _EXPECT.fullmatch(self.expect or self.operation.expects)
        assert match is not None
        if match["word"]:
            return count > 0 or match["word"] != "all"
        wanted = int(match["count"])
        return {
            ">=": count >= wanted, "<=": count <= wanted, ">": count > wanted, "<": count < wanted,
        }.get(match["sign"] or "=", count == wanted)  # fmt: skip

    def title(self) -> str:
        """The step in a few words: its name, or the operation with what it is about."""
        return self.name or f"{self.operation.word} {_short(self.operation)}".rstrip()

    def to_data(self) -> dict[str, Any]:
        """The step as plain values, as it stands in YAML."""
        said = {key: value for key in _STEP_KEYS if (value := getattr(self, key)) not in (None, "")}
        if self.expect is not None and self.expect.isdigit():
            said["expect"] = int(self.expect)
        return {self.operation.word: operation_data(self.operation), **said}


@dataclass(frozen=True)
class Recipe:
    """A list of steps.

    Attributes:
        steps: The steps.
        description: What it is for.
        files: The files that it was read from.
    """

    steps: tuple[Step, ...]
    description: str = ""
    files: tuple[Path, ...] = field(default=(), compare=False)

    def read_files(self) -> Iterator[Path]:
        """Yields the files that it was read from and those that its steps refer to: weights, tables, rules."""
        yield from self.files
        for step in self.steps:
            yield from files_of(step.operation, step.folder or Path.cwd()).values()

    def digest(self) -> str:
        """Returns ``sha256:...`` of the steps, variables and includes filled in, and of the files that they refer to.

        Beside the name of a file its whole content counts: of rules, tables of names, lists of selectors, scripts
        (not of what these import) and data, and of weights, which are read for this in blocks.

        Raises:
            NotFoundError: A file is not there any more.
        """
        known: dict[Path, str] = {}
        steps = [{**step.to_data(), **_file_digests(step, known)} for step in self.steps]
        text = json.dumps(steps, sort_keys=True, ensure_ascii=False, default=_plain)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    def to_yaml(self) -> str:
        """Returns the recipe as YAML that ``read`` reads back."""
        head: dict[str, Any] = {"version": VERSION}
        if self.description:
            head["description"] = self.description
        return _dump({**head, "steps": [step.to_data() for step in self.steps]})


def _file_digests(step: Step, known: dict[Path, str]) -> dict[str, Any]:
    """Returns what the digest of a recipe says of the files of a step: nothing if it has none."""
    found = {}
    for name, path in files_of(step.operation, step.folder or Path.cwd()).items():
        if path not in known:
            try:
                known[path] = content_digest(path)
            except OSError as error:
                raise NotFoundError(
                    f"{path}, which the step {step.title()!r} refers to, cannot be read: {error.strerror}"
                ) from None
        found[name] = known[path]
    return {"files": found} if found else {}


def load_recipe(
    path: str | Path, *, variables: Mapping[str, Any] | None = None, allow_outside: bool = False
) -> Recipe:  # fmt: skip
    """Returns the recipe in a YAML (or JSON) file, its includes and variables filled in.

    Args:
        path: The file.
        variables: Values that replace those of the file's own ``variables``.
        allow_outside: Follow includes out of the folder that the file lies in.

    Raises:
        NotFoundError: There is no such file.
        SpecError: It has a mistake; the message names the line.
        UsageError: A variable is given that the recipe does not have.
    """
    return _Reader(variables or {}, allow_outside=allow_outside).recipe(Path(path))


def parse_recipe(
    text: str | Item,
    *,
    source: str = "<recipe>",
    folder: Path | None = None,
    variables: Mapping[str, Any] | None = None,
) -> Recipe:
    """Returns the recipe that a YAML text (or part of a document) holds; else as ``load_recipe``."""
    root = from_yaml(text, source) if isinstance(text, str) else text
    return _Reader(variables or {}).read(root, folder or Path.cwd(), ())


def step_from_flag(word: str, text: str, *, expect: str | None = None) -> Step:
    """Returns the step that a flag of the command line means: ``--set-op op:Add=Sub``.

    Args:
        word: The operation.
        text: Its short spelling, or a YAML mapping of its fields and of what a step says: ``{at: x, expect: all}``.
        expect: The guard, unless the text has one.

    Raises:
        SpecError: The text has a mistake.
        UsageError: It has not the form of the operation.
    """
    flag = f"--{word.replace('_', '-')}"
    is_mapping = re.match(r"\s*\{(?!\w+\})", text) is not None  # a mapping, and not a name in braces
    item = _flow(text, flag) if is_mapping else None
    reader = _Reader({})
    if item is None:
        item = _spelled(OPERATIONS[word], text, flag)
        said: dict[str, Item] = {}
    else:
        said = {key: item.entries.pop(key)[1] for key in _STEP_KEYS if key in item.entries and not _owns(word, key)}
    step = reader.step(word, item, said, flag)
    return step if step.expect is not None or expect is None else dataclasses.replace(step, expect=expect)


def step_from_text(text: str, *, source: str = "--step") -> Step:
    """Returns the one step that a line means, as it stands in a recipe: ``set_op: {at: op:Add, to: Sub}``.

    Raises:
        SpecError: The text has a mistake.
    """
    recipe = parse_recipe(f"- {text.strip()}", source=source)
    if len(recipe.steps) != 1:
        raise SpecError(f"{source}: {text!r} is {len(recipe.steps)} steps, and one is wanted")
    return dataclasses.replace(recipe.steps[0], place=source)


def _owns(word: str, key: str) -> bool:
    return any(each.name == key for each in dataclasses.fields(OPERATIONS[word]))


def operation_data(operation: Operation) -> dict[str, Any]:
    """Returns the fields of an operation that differ from their defaults, as plain values."""
    found = {}
    for each in dataclasses.fields(operation):
        value = getattr(operation, each.name)
        default = each.default
        if each.default_factory is not dataclasses.MISSING:
            default = each.default_factory()
        if default is dataclasses.MISSING or value != default:
            found[each.name] = _plain(value)
    return found


class _Reader:
    """Reads a recipe and what it includes."""

    def __init__(self, variables: Mapping[str, Any], *, allow_outside: bool = False) -> None:
        self._given = variables
        self._allow_outside = allow_outside
        self._root: Path | None = None
        self._unused = set(variables)
        self._named: set[str] = set()
        self._files: list[Path] = []

    def recipe(self, path: Path, around: tuple[Path, ...] = ()) -> Recipe:
        resolved = path.resolve()
        if resolved in around or len(around) > _DEEPEST_INCLUDE:
            raise SpecError(f"{path} includes itself: {' -> '.join(each.name for each in (*around, resolved))}")
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except FileNotFoundError:
            raise NotFoundError(f"there is no recipe {path}", hint=near_file(path)) from None
        except IsADirectoryError:
            raise UsageError(f"{path} is a folder, not a recipe") from None
        except UnicodeDecodeError:
            raise SpecError(f"{path} is not UTF-8 text, so it is no recipe") from None
        except OSError as error:
            raise SpecError(f"{path} cannot be read: {error.strerror}") from None
        self._files.append(resolved)
        return self.read(from_yaml(text, str(path)), resolved.parent, (*around, resolved))

    def read(self, root: Item, folder: Path, around: tuple[Path, ...]) -> Recipe:
        self._root = self._root or folder.resolve()
        if root.kind == "list":
            root = Item(root.document, "map", entries={"steps": (root, root)}, line=root.line, column=root.column)
        root.require_map("a recipe", _TOP_KEYS)
        version = root.get("version")
        if version is not None and version.require_integer("the version") != VERSION:
            raise version.error(f"this is a recipe of version {version.text}, and {VERSION} is understood")
        variables = self._variables(root.get("variables"))
        steps: list[Step] = []
        included = root.get("include")
        for each in self._list(included, "the files to include") if included is not None else ():
            steps += self._included(self._filled(each, variables), folder, around)
        listed = root.get("steps")
        if listed is None and included is None:
            raise root.error("a recipe needs steps", hint="steps:\n  - set_op: {at: op:Add, to: Sub}")
        for each in listed.require_list("the steps") if listed is not None else ():
            steps += self._steps(self._filled(each, variables), folder, around)
        if len(around) <= 1 and self._unused:
            name = min(self._unused)
            hint = did_you_mean(name, self._named) or f"It has: {', '.join(sorted(self._named)) or 'none'}."
            raise UsageError(f"the recipe has no variable {name!r}", hint=hint)
        description = root.get("description")
        said = description.require_text("the description") if description is not None else ""
        return Recipe(tuple(steps), said, tuple(self._files))

    def _variables(self, item: Item | None) -> dict[str, Item]:
        """Returns the values of variables: of one file, each of which may use those above it, and the given ones."""
        found = {name: from_python(value, f"variable {name}") for name, value in self._given.items()}
        for name, _, value in item.require_map("the variables").pairs() if item is not None else ():
            self._named.add(name)
            if name in self._given:
                self._unused.discard(name)
            else:
                found[name] = self._filled(value, found)
        return found

    @staticmethod
    def _list(item: Item, what: str) -> list[Item]:
        return [item] if item.kind == "str" else item.require_list(what)

    def _included(self, item: Item, folder: Path, around: tuple[Path, ...]) -> Sequence[Step]:
        path = folder / item.require_text("a file to include")
        if self._root is not None and not self._allow_outside and not path.resolve().is_relative_to(self._root):
            raise item.error(
                f"{item.text} lies outside of the recipe's folder", hint="--allow-outside follows it, if you trust it."
            )
        try:
            return self.recipe(path, around or (folder / "<recipe>",)).steps
        except NotFoundError as error:
            raise item.error(error.message, hint=error.hint) from None

    def _steps(self, item: Item, folder: Path, around: tuple[Path, ...]) -> Iterator[Step]:
        if item.kind == "str" and item.text in OPERATIONS:  # an operation without fields
            item = dataclasses.replace(item, kind="map", text="", entries={item.text: (item, _nothing(item))})
        if item.kind != "map":
            raise item.error(f"expected a step as a mapping, found {item.described()}", hint=_STEP_EXAMPLE)
        words = [key for key in item.entries if key not in _STEP_KEYS]
        if words == ["include"]:
            for each in self._list(item.entries["include"][1], "the files to include"):
                yield from self._included(each, folder, around)
            return
        known = [word for word in words if word in OPERATIONS or word == "include"]
        strange = [word for word in words if word not in known]
        if len(known) == 1 and strange:
            hint = did_you_mean(strange[0], _STEP_KEYS) or f"Beside its operation a step has: {', '.join(_STEP_KEYS)}."
            raise item.entries[strange[0]][0].error(f"{strange[0]!r} is no key of a step", hint=hint)
        if len(words) != 1:
            found = f"found {', '.join(words)}" if words else "found none"
            raise item.error(f"a step is one operation; {found}", hint=_STEP_EXAMPLE)
        (word,) = words
        if word not in OPERATIONS:
            hint = did_you_mean(word, [*OPERATIONS, "include"]) or f"Operations: {', '.join(OPERATIONS)}."
            raise item.entries[word][0].error(f"there is no operation {word!r}", hint=hint)
        said = {key: item.entries[key][1] for key in _STEP_KEYS if key in item.entries}
        place = f"{item.document.source}:{item.line}" if item.line else ""
        yield dataclasses.replace(self.step(word, item.entries[word][1], said, place), folder=folder)

    def step(self, word: str, item: Item, said: Mapping[str, Item], place: str) -> Step:
        """Returns a step of an operation, its fields, and what the step itself says."""
        numbers = {key: _tolerance(said[key], key) for key in ("atol", "rtol") if key in said}
        changes = said["changes"].require_text("what the step changes") if "changes" in said else None
        if changes is not None and changes not in _EFFECTS:
            raise said["changes"].error(f"changes: {changes!r} is not known", hint=f"One of {', '.join(_EFFECTS)}.")
        name = said["name"].require_text("the name of a step") if "name" in said else ""
        expect = said["expect"].require_text("a number of targets") if "expect" in said else None
        operation = _operation(OPERATIONS[word], item)
        try:
            effect = typing.cast("Effect | None", changes)
            return Step(operation, expect, effect, numbers.get("atol"), numbers.get("rtol"), name, place)
        except UsageError as error:
            raise said["expect"].error(error.message, hint=error.hint) from None

    def _filled(self, item: Item, variables: Mapping[str, Item]) -> Item:
        """Returns an item with the variables in it replaced; the item itself stays."""
        if item.kind == "str" and "${" in item.text:
            return self._filled_text(item, variables)
        if item.kind not in ("list", "map"):
            return item
        copy = dataclasses.replace(item)
        copy.items = [self._filled(each, variables) for each in item.items]
        copy.entries = {key: (at, self._filled(value, variables)) for key, (at, value) in item.entries.items()}
        return copy

    def _filled_text(self, item: Item, variables: Mapping[str, Item]) -> Item:
        def value(match: re.Match[str]) -> Item:
            name = match["name"]
            if name not in variables:
                hint = did_you_mean(name, variables) or (
                    f"Give it with --var {name}=..., or name it under variables:, above what uses it. For the"
                    " characters themselves write $${."
                )
                raise item.error(f"there is no variable {name!r}", hint=hint)
            self._unused.discard(name)
            self._named.add(name)
            return variables[name]

        whole = _VARIABLE.fullmatch(item.text)
        if whole is not None and whole["name"] is not None:
            found = value(whole)
            return dataclasses.replace(found, document=item.document, line=item.line, column=item.column)
        text = _VARIABLE.sub(
            lambda m: "${" if m["name"] is None else value(m).require_text("a variable within a text"), item.text
        )
        kind = item.kind if item.style else scalar_kind(text)
        return dataclasses.replace(item, text=text, kind=kind)


def _nothing(item: Item) -> Item:
    return Item(item.document, "null", line=item.line, column=item.column)


def _tolerance(item: Item, key: str) -> float:
    value = item.require_float(key)
    if not 0 <= value < math.inf:
        raise item.error(f"{key} must be a number from 0 up, and is {item.text}")
    return value


def _operation(kind: type[Operation], item: Item) -> Operation:
    """Returns an operation of the fields that an item spells."""
    if item.kind in ("str", "int", "float", "bool"):
        item = _spelled(kind, item.require_text("an operation"), "", at=item)
    hints = get_type_hints(kind)
    fields = {each.name: each for each in dataclasses.fields(kind)}
    if item.kind == "list":  # the first field is what it is about
        item = Item(
            item.document, "map", entries={next(iter(fields), ""): (item, item)}, line=item.line, column=item.column
        )
    if item.kind == "null":
        item = Item(item.document, "map", line=item.line, column=item.column, path=item.path)
    item.require_map(f"the fields of {kind.word}")
    for name, key, _ in item.pairs():
        if name not in fields:
            hint = did_you_mean(name, fields) or f"Its fields: {', '.join(fields)}."
            if name in _STEP_KEYS:
                hint = f"{name}: stands beside {kind.word}:, not among its fields."
            raise key.error(f"{kind.word} has no field {name!r}", hint=hint)
    values = {
        name: read_value(value, hints[name], f"{name!r} of {kind.word}")
        for name, _, value in item.pairs()
        if value.kind != "null" or hints[name] is Any
    }
    missing = [
        name
        for name, each in fields.items()
        if name not in values and each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise item.error(f"{kind.word} needs {' and '.join(map(repr, missing))}", hint=example(kind))
    try:
        return kind(**values)
    except UsageError as error:
        raise item.error(error.message, hint=error.hint) from None


def needs_fields(kind: type[Operation]) -> bool:
    """Tells whether an operation has fields that must be given."""
    return any(
        each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        for each in dataclasses.fields(kind)
    )


def example(kind: type[Operation]) -> str:
    """Returns an operation with its fields, to show how it is written."""
    return f"- {kind.word}: {field_form(kind)}"


def _spelled(kind: type[Operation], text: str, flag: str, *, at: Item | None = None) -> Item:
    """Returns the short spelling of an operation as an item of its fields; values that are no text are read as YAML."""
    try:
        found = spelled_fields(kind, text)
    except UsageError:
        if at is None:
            raise
        short = f"- {kind.word}: {spelled_form(kind)}, or " if kind.spelling else ""
        raise at.error(f"{kind.word}: {text!r} is not understood", hint=f"Write {short}{example(kind)}") from None
    hints = get_type_hints(kind)
    document = at.document if at is not None else from_python(None, flag or kind.word).document
    item = Item(document, "map", line=at.line if at else 0, column=at.column if at else 0)
    for name, word in found.items():
        value = Item(document, "str", word, line=item.line, column=item.column)
        if not _is_text(hints[name]):
            value = _flow(word, flag or kind.word)
        item.entries[name] = (value, value)
    return item


def _flow(text: str, source: str) -> Item:
    item = from_yaml(text, source)
    pending = [item]
    while pending:  # one line on the command line has no line numbers worth telling
        each = pending.pop()
        each.line = 0
        pending += each.items
        pending += [part for pair in each.entries.values() for part in pair]
    return item


def _is_text(hint: Any) -> bool:
    return hint is str or (get_origin(hint) in (typing.Union, types.UnionType) and str in get_args(hint))


def read_value(item: Item, hint: Any, what: str) -> Any:
    """Returns the value of an item as a field of a type has it.

    Args:
        item: The item.
        hint: The type: a scalar, ``Literal``, ``Any``, a list, tuple or dict of these, or any of several.
        what: What it is, for messages.

    Raises:
        SpecError: It is something else.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return to_python(item)
    if origin in (typing.Union, types.UnionType):
        kinds = [each for each in arguments if each is not type(None)]
        fitting = [each for each in kinds if _fits(item, each)]
        return read_value(item, (fitting or kinds)[0], what)
    if origin is Literal:
        text = item.require_text(what)
        if text not in arguments:
            hint_text = did_you_mean(text, map(str, arguments)) or f"One of {', '.join(map(str, arguments))}."
            raise item.error(f"{what} cannot be {text!r}", hint=hint_text)
        return text
    if origin in (list, tuple):
        items = item.items if item.kind == "list" else [item]
        return origin(read_value(each, arguments[0], what) for each in items)
    if origin is dict:
        item.require_map(what)
        return {key: read_value(value, arguments[1], what) for key, _, value in item.pairs()}
    if hint is bool:
        if item.kind != "bool":
            raise item.error(f"expected {what} as true or false, found {item.described()}")
        return item.text.lower() == "true"
    if hint is int:
        return item.require_integer(what)
    if hint is float:
        return item.require_float(what)
    if item.kind in ("list", "map", "array"):
        raise item.error(f"expected {what} as text, found {item.described()}")
    return item.require_text(what)


def _fits(item: Item, hint: Any) -> bool:
    kind = {list: "list", tuple: "list", dict: "map"}.get(get_origin(hint) or hint, "")
    plain = {bool: ("bool",), int: ("int",), float: ("float", "int"), str: ("str",)}
    return hint is Any or item.kind == kind or item.kind in plain.get(hint, ())


def to_python(item: Item) -> Any:
    """Returns an item as Python values: dicts, lists, numbers, strings, None."""
    if item.kind == "list":
        return [to_python(each) for each in item.items]
    if item.kind == "map":
        return {key: to_python(value) for key, _, value in item.pairs()}
    if item.kind == "array":
        return item.array
    if item.kind == "int":
        return to_integer(item.text)
    if item.kind == "float":
        return float(plain_float(item.text))
    if item.kind == "bool":
        return item.text.lower() == "true"
    return None if item.kind == "null" else item.text


def _plain(value: Any) -> Any:
    """Returns a value as JSON and YAML have it: tuples as lists, arrays as lists of numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _short(operation: Operation) -> str:
    words = []
    for name, value in operation_data(operation).items():
        if isinstance(value, bool):
            words.append(name if value else f"{name}: false")
        elif isinstance(value, (str, int, float)):
            words.append(str(value))
    text = " ".join(" ".join(words).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _dump(data: Any) -> str:
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes the strings that would be read back as something else."""

    def text(dumper: Any, value: str) -> Any:
        style = None
        if scalar_kind(value) != "str" or value in ("", "~") or value.lower() == "null":
            style = '"'
        elif "\n" in value:
            style = "|"
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
