"""Rewriting by pattern."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from onnxbench import patterns
from onnxbench.errors import NotFoundError, UsageError
from onnxbench.graph import NodeRef
from onnxbench.modeltext import read_functions
from onnxbench.operations._base import Effect, Operation

if TYPE_CHECKING:
    from onnxbench.draft import Draft
    from onnxbench.patterns import Rule

_SHOWN = 5


@dataclass(frozen=True)
class Rewrite(Operation):
    """Replace what a pattern matches by another piece of graph.

    Attributes:
        rule: A rule that comes with onnxbench (``gelu_erf``), or ``FILE[:rule]``: YAML or ONNX text, or a Python file
            with a rule of onnxscript's rewriter, which is run.
        at: Only matches whose last node is among those of this selector.
        max: So many at most, the first ones.
        pattern: Instead of a rule: the pattern as an ONNX text function, and
        replacement: what takes its place.
        where: Conditions of these.
        let: Values that attributes of the replacement refer to, as expressions.
        keep: Whether nodes of a match that others read stay, instead of there being no match.
    """

    word: ClassVar[str] = "rewrite"
    spelling: ClassVar[str] = "{rule}"
    expects: ClassVar[str] = "all"
    effect: ClassVar[Effect] = "rounding"

    rule: str = ""
    at: str | None = None
    max: int | None = None
    pattern: str | None = None
    replacement: str | None = None
    where: Any = None
    let: Any = None
    keep: bool = False

    def find(self, draft: Draft) -> Sequence[NodeRef]:
        """Returns the nodes that make the first output of each match; not those that come up by replacing.

        Raises:
            NotFoundError: There is no match; the details say where there nearly is one, and what is different there.
        """
        found = self.find_all(draft)
        if found:
            return found
        where = f" among {self.at}" if self.at is not None else ""
        if self.is_script:
            raise NotFoundError(f"{self.rule} matches nowhere{where}")
        facts = patterns.Facts(draft)
        near = [line for rule in self.rules(draft) for line in patterns.shared_words(patterns.near_misses(rule, facts))]
        names = ", ".join(rule.name for rule in self.rules(draft))
        hint = "These come near it; onnxbench rewrite MODEL --rule RULE --why NODE looks at one node."
        hint = hint if near else "Nothing in the model comes near it."
        raise NotFoundError(f"rule {names} matches nowhere{where}", details=near[:_SHOWN], hint=hint)

    def find_all(self, draft: Draft) -> list[NodeRef]:
        """Returns the nodes that ``find`` does, or none."""
        if self.is_script:
            return patterns.find_script_matches(draft, self._script(draft), at=self.at)
        found: dict[NodeRef, None] = {}
        among = frozenset(draft.nodes(self.at)) if self.at is not None else None
        facts = patterns.Facts(draft)
        for rule in self.rules(draft):
            matches = patterns.find_matches(rule, facts, among=among, limit=self.max)
            found.update((NodeRef(match.scope, match.anchor), None) for match in matches)
        return list(found)

    def apply(self, draft: Draft) -> None:
        """Replaces until nothing matches any more."""
        if self.max is not None and self.max < 1:
            raise UsageError(f"max is {self.max}, and must be 1 or more")
        if self.is_script:
            patterns.apply_script(draft, self._script(draft), at=self.at, most=self.max)
            return
        left = self.max
        for rule in self.rules(draft):
            count = patterns.rewrite(draft, rule, at=self.at, most=left)
            left = None if left is None else left - count

    def files(self, folder: Path) -> Sequence[str]:
        """Returns the file of the rule, unless it is one that comes with onnxbench."""
        file = patterns.split_reference(self.rule)[0] if self.rule else None
        return () if file is None else (file,)

    def require_known(self, draft: Draft) -> None:
        """Raises NotFoundError if there is no such rule."""
        super().require_known(draft)
        if not self.is_script:
            self.rules(draft)

    @property
    def is_script(self) -> bool:
        """Whether the rule is one of onnxscript's rewriter."""
        file, _ = patterns.split_reference(self.rule) if self.rule else (None, None)
        return file is not None and file.lower().endswith(".py")

    def _script(self, draft: Draft) -> patterns.ScriptRule:
        return patterns.load_script(self.rule, draft.folder)

    def rules(self, draft: Draft) -> list[Rule]:
        """Returns the rules of the operation.

        Raises:
            UsageError: It names none, or both a rule and a pattern.
            NotFoundError: There is no such rule.
            SpecError: A rule has a mistake.
        """
        inline = self.pattern is not None or self.replacement is not None
        if inline == bool(self.rule):
            raise UsageError("rewrite takes a rule, or a pattern and a replacement", hint="rule: gelu_erf")
        if not inline:
            return patterns.find_rules(self.rule, draft.folder)
        if self.pattern is None or self.replacement is None:
            raise UsageError("a pattern needs a replacement, and a replacement a pattern")
        found, _ = read_functions(self.pattern, source="the pattern")
        others, _ = read_functions(self.replacement, source="the replacement")
        where = self.where if isinstance(self.where, (list, tuple)) else [] if self.where is None else [self.where]
        let = self.let if isinstance(self.let, dict) else {}
        return [
            patterns.make_rule(
                found[0].name,
                patterns=found,
                replacement=others[0],
                functions=others[1:],
                where=[str(each) for each in where],
                let={str(name): str(text) for name, text in let.items()},
                keep=self.keep,
            )
        ]
