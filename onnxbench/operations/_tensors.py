"""Operations on the names of tensors and nodes."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from onnxbench.documents import from_yaml
from onnxbench.errors import NotFoundError, RefusedResultError, SpecError, UsageError, did_you_mean, near_file
from onnxbench.graph import TensorRef, root_of, tree_of
from onnxbench.operations._base import Operation, TensorOperation
from onnxbench.schemas import FIRST_IR_WITH_WEIGHTS_APART

if TYPE_CHECKING:
    from onnxbench.draft import Draft
    from onnxbench.graph import NodeRef, Scope


@dataclass(frozen=True)
class RenameTensor(TensorOperation):
    """Rename a tensor wherever it is made, read, described or captured.

    Attributes:
        at: Selector of the tensor.
        to: Its new name.
    """

    word: ClassVar[str] = "rename_tensor"
    spelling: ClassVar[str] = "{at}={to}"
    keeps_types: ClassVar[bool] = True

    to: str

    def apply(self, draft: Draft) -> None:
        """Renames it."""
        refs = self.find(draft)
        if len(refs) > 1:
            raise UsageError(
                f"{len(refs)} tensors cannot all be called {self.to!r}",
                hint="rename_tensors renames several by a rule.",
            )
        _rename_all(draft, [(ref, self.to) for ref in refs])


@dataclass(frozen=True)
class _Rule:
    """How names become others.

    Attributes:
        map: New names by old ones.
        file: A file of them: YAML or JSON (``old: new``), or CSV with two columns.
        pattern: A regular expression that a whole name matches, ``re:`` before it or not; with ``to``.
        to: What such a name becomes; ``\\1`` and ``\\g<name>`` are groups.
        prefix: What comes before every name.
        suffix: What comes behind every name.
        at: Selector that narrows the rule; by default all.
    """

    map: dict[str, str] | None = None
    file: str | None = None
    pattern: str | None = None
    to: str | None = None
    prefix: str = ""
    suffix: str = ""
    at: str | None = None

    def files(self, folder: Path) -> Sequence[str]:
        """Returns the table of names."""
        return () if self.file is None else (self.file,)

    def table(self, draft: Draft) -> dict[str, str]:
        """Returns the names that are spelled out, by ``map`` or ``file``.

        Raises:
            UsageError: The rule says nothing, or too much.
            SpecError: The file is no table of names.
        """
        ways = [
            name
            for name, given in (
                ("map", self.map), ("file", self.file), ("pattern", self.pattern),
                ("prefix and suffix", self.prefix or self.suffix),
            )
            if given
        ]  # fmt: skip
        if len(ways) != 1 or (self.pattern is None) != (self.to is None):
            found = " and ".join(ways) or "nothing"
            raise UsageError(
                f"a rule for names is one of map, file, pattern with to, or prefix and suffix; found {found}",
                hint=r"{pattern: 'block(\d+)/(.*)', to: 'layer\1.\2'}",
            )
        return dict(self.map or {}) if self.file is None else _read_names(draft, self.file)

    def renamed(self, name: str, compiled: re.Pattern[str] | None) -> str:
        """Returns what the rule makes of a name, if it is no table."""
        if compiled is not None and self.to is not None:
            return compiled.sub(self.to, name, count=1) if compiled.match(name) else name
        return f"{self.prefix}{name}{self.suffix}"

    def compiled(self) -> re.Pattern[str] | None:
        """Returns the pattern, compiled."""
        if self.pattern is None:
            return None
        pattern = self.pattern.removeprefix("re:")  # as selectors spell it
        try:
            re.compile(pattern)
            compiled = re.compile(rf"\A(?:{pattern})\Z")
            compiled.sub(self.to or "", "")
        except (re.error, IndexError) as error:
            raise UsageError(f"the pattern '{self.pattern}' with '{self.to}' cannot be used: {error}") from None
        return compiled


@dataclass(frozen=True)
class RenameTensors(_Rule, Operation):
    """Rename many tensors by a table, a regular expression, a prefix or a suffix.

    Attributes:
        map: New names by old ones.
        file: A file of them: YAML or JSON (``old: new``), or CSV with two columns.
        pattern: A regular expression that a whole name matches, ``re:`` before it or not; with ``to``.
        to: What such a name becomes; ``\\1`` and ``\\g<name>`` are groups.
        prefix: What comes before every name.
        suffix: What comes behind every name.
        at: Selector of the tensors that are renamed; by default all, in bodies and functions too.
        keep_interface: Leave the inputs and outputs of the model as they are called.
    """

    word: ClassVar[str] = "rename_tensors"
    spelling: ClassVar[str] = "{pattern}={to}"
    expects: ClassVar[str] = "all"
    keeps_types: ClassVar[bool] = True
    tells_draft: ClassVar[bool] = True

    keep_interface: bool = False

    def find(self, draft: Draft) -> list[TensorRef]:
        """Returns the tensors whose name changes."""
        return [ref for ref, _ in draft.once(self, lambda: self._pairs(draft))]

    def apply(self, draft: Draft) -> None:
        """Renames them, as one step: names may be swapped."""
        _rename_all(draft, draft.once(self, lambda: self._pairs(draft)))

    def _pairs(self, draft: Draft) -> list[tuple[TensorRef, str]]:
        table, compiled, by_table = self.table(draft), self.compiled(), bool(self.map or self.file)
        found: Iterable[tuple[Scope, str]]
        if self.at is None:
            found = ((scope, name) for scope in draft.index.scopes for name in scope.tensor_names())
        else:
            found = ((ref.scope, ref.name) for ref in draft.tensors(self.at))
        kept = _interface(draft) if self.keep_interface else set()
        pairs = []
        for scope, name in found:
            if name in kept and scope is draft.main:
                continue
            new = table.pop(TensorRef(scope, name).path, None) if by_table else self.renamed(name, compiled)
            if new is not None and new != name:
                pairs.append((TensorRef(scope, name), new))
        if table:
            name = next(iter(table))
            hint = did_you_mean(name, (ref.path for ref in draft.index.tensors()))
            raise NotFoundError(f"there is no tensor {name!r} to rename", hint=hint)
        return pairs


@dataclass(frozen=True)
class RenameNodes(_Rule, Operation):
    """Rename many nodes by a table, a regular expression, a prefix or a suffix.

    Attributes:
        map: New names by old ones.
        file: A file of them: YAML or JSON (``old: new``), or CSV with two columns.
        pattern: A regular expression that a whole name matches, ``re:`` before it or not; with ``to``.
        to: What such a name becomes; ``\\1`` and ``\\g<name>`` are groups.
        prefix: What comes before every name.
        suffix: What comes behind every name.
        at: Selector of the nodes that are renamed; by default all that have a name, in bodies and functions too.
    """

    word: ClassVar[str] = "rename_nodes"
    spelling: ClassVar[str] = "{pattern}={to}"
    expects: ClassVar[str] = "all"
    keeps_types: ClassVar[bool] = True

    def find(self, draft: Draft) -> list[NodeRef]:
        """Returns the nodes whose name changes."""
        return [ref for ref, _ in draft.once(self, lambda: self._pairs(draft))]

    def apply(self, draft: Draft) -> None:
        """Renames them."""
        pairs = draft.once(self, lambda: self._pairs(draft))
        for ref, new in pairs:
            draft.record("node", ref.path, "renamed", before=ref.node.name, after=new)
        for ref, new in pairs:
            ref.node.name = new
        draft.touch()

    def _pairs(self, draft: Draft) -> list[tuple[NodeRef, str]]:
        table, compiled = self.table(draft), self.compiled()
        pairs = []
        for ref in draft.index.nodes() if self.at is None else draft.nodes(self.at):
            name = ref.node.name
            new = table.pop(ref.path, None) if self.map or self.file else self.renamed(name, compiled) if name else None
            if new is not None and new != name:
                pairs.append((ref, new))
        if table:
            name = next(iter(table))
            hint = did_you_mean(name, (ref.path for ref in draft.index.nodes()))
            raise NotFoundError(f"there is no node {name!r} to rename", hint=hint)
        return pairs


def _interface(draft: Draft) -> set[str]:
    """Returns the names that a caller of the model may use; before IR version 4 every weight was an input, too."""
    is_old = draft.model.proto.ir_version < FIRST_IR_WITH_WEIGHTS_APART
    return {*(draft.main.true_inputs() if is_old else draft.main.inputs), *draft.main.outputs}


def _rename_all(draft: Draft, pairs: list[tuple[TensorRef, str]]) -> None:
    """Renames tensors as one step, after a look whether the new names are free.

    Raises:
        RefusedResultError: A new name is taken, or wanted twice.
    """
    pairs = [(ref, new) for ref, new in pairs if ref.name != new]
    by_scope: dict[Scope, dict[str, str]] = {}
    for ref, new in pairs:
        by_scope.setdefault(ref.scope, {})[ref.name] = new
    by_root: dict[Scope, dict[Scope, dict[str, str]]] = {}
    for scope, names in by_scope.items():
        by_root.setdefault(root_of(scope), {})[scope] = names
    steps: list[dict[Scope, dict[str, str]]] = []
    for root, tables in by_root.items():
        leaving = {old for names in tables.values() for old in names}
        for names in tables.values():
            _require_free(names, draft.taken(root) - leaving)
        if root.bodies:
            _refuse_hiding(root, tables)
        if len(tables) > 1 and any(new in leaving for names in tables.values() for new in names.values()):
            steps += _through_other_names(draft, tables)
        else:
            steps.append(tables)
    for ref, new in pairs:
        draft.record("tensor", ref.path, "renamed", before=ref.name, after=new)
    for tables in steps:
        now = draft.index.scope_paths
        for scope, names in [(now[scope.path], names) for scope, names in tables.items()]:
            draft.rename(scope, names)


def _through_other_names(draft: Draft, tables: Mapping[Scope, Mapping[str, str]]) -> list[dict[Scope, dict[str, str]]]:
    """Returns a renaming within a graph and its bodies as two: to names that nothing has, and from these to the new.

    Else a name that moves from a graph to a body would, between the one and the other, belong to both.
    """
    first: dict[Scope, dict[str, str]] = {}
    second: dict[Scope, dict[str, str]] = {}
    for scope, names in tables.items():
        first[scope] = {old: draft.fresh(scope, f"{old}_renamed") for old in names}
        second[scope] = {first[scope][old]: new for old, new in names.items()}
    return [first, second]


def _refuse_hiding(root: Scope, tables: Mapping[Scope, Mapping[str, str]]) -> None:
    """Raises RefusedResultError if a tensor of a body would get the name of one around it, and so hide it.

    Where both had one name before, they may have one again.
    """
    wanted = {new for names in tables.values() for new in names.values()}
    before: dict[tuple[Scope, str], str] = {}
    for scope in tree_of(root):
        names = tables.get(scope, {})
        before.update(((scope, new), old) for old in scope.tensor_names() if (new := names.get(old, old)) in wanted)
    for (scope, new), old in before.items():
        around = scope.parent
        while around is not None:
            hidden = before.get((around, new), old)
            if hidden != old:
                raise RefusedResultError(
                    f"{around.path + '/' if around.path else ''}{hidden} and {scope.path}/{old} would both be called"
                    f" {new!r}, and the one in the body would hide the other",
                    hint="Give them different names, or narrow the rule by 'at'.",
                )
            around = around.parent


def _require_free(names: Mapping[str, str], taken: set[str]) -> None:
    seen: dict[str, str] = {}
    for old, new in names.items():
        if not new:
            raise RefusedResultError(f"tensor {old!r} would have no name")
        if new in taken:
            raise RefusedResultError(f"{old!r} cannot be called {new!r}: there is a tensor of this name already")
        if new in seen:
            raise RefusedResultError(f"{seen[new]!r} and {old!r} would both be called {new!r}")
        seen[new] = old


def _read_names(draft: Draft, file: str) -> dict[str, str]:
    """Returns a table of names from a file."""
    path = draft.folder / file
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}", hint=near_file(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} cannot be read as text: {error}") from None
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        root = from_yaml(text, str(path)).require_map("a table of names")
        return {old: new.require_text("a name") for old, _, new in root.pairs()}
    found = {}
    for number, row in enumerate(csv.reader(text.splitlines()), 1):
        if row and len(row) != 2:
            raise SpecError(f"{path}:{number}: expected two columns, old name and new name, found {len(row)}")
        if row:
            found[row[0].strip()] = row[1].strip()
    return found
