"""Rules: a pattern, what takes its place, and the conditions under which that is right.

A rule file is YAML, with a pattern and a replacement as ONNX text functions:

    pattern: |
      gelu (x) => (y) { ... }
    replacement: |
      <opset_import: ["": 20]>
      gelu (x) => (y) { y = Gelu (x) }
    where: ["rank(x) >= 1"]

or ONNX text, in which functions of domain ``pattern`` and ``replacement`` with one name are a rule, and the
conditions stand in the pattern's ``metadata_props`` (``"where": "rank(x) >= 1"``).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from onnxbench.documents import Item, from_yaml
from onnxbench.errors import NotFoundError, SpecError, UsageError, did_you_mean, near_file
from onnxbench.modeltext import read_functions
from onnxbench.patterns._conditions import FUNCTIONS
from onnxbench.patterns._expressions import Expression
from onnxbench.patterns._pattern import Pattern, compile_pattern, plain_name
from onnxbench.schemas import plain_domain, standard_operators

if TYPE_CHECKING:
    from onnx import FunctionProto

RuleEffect = Literal["nothing", "rounding", "numerics"]
"""What the replacement may change: no bit, the rounding, or more."""

_KEYS = ("doc", "pattern", "replacement", "constants", "functions", "let", "where", "keep", "effect")
_ROLES = ("pattern", "replacement", "constants")
_ENDINGS = (".yaml", ".yml", ".json", ".onnxtxt", ".onnxtext", ".txt", ".py")
_MOST_BYTES = 1 << 24


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """What to look for and what takes its place.

    Attributes:
        name: Its name.
        doc: What it is for, and when it does not apply; the first line is a summary.
        patterns: Variants of what to look for, the largest first.
        replacement: What takes its place.
        constants: A function that calculates constants for it from constants of the match.
        functions: Local functions that the replacement calls.
        let: Values that attributes of the replacement and conditions refer to.
        where: Conditions.
        keep: Whether nodes of the match that others read stay; otherwise there is no match then.
        effect: What the replacement may change.
    """

    name: str
    doc: str
    patterns: tuple[Pattern, ...]
    replacement: FunctionProto
    constants: FunctionProto | None = None
    functions: tuple[FunctionProto, ...] = ()
    let: Mapping[str, Expression] = field(default_factory=dict)
    where: tuple[Expression, ...] = ()
    keep: bool = False
    effect: RuleEffect = "rounding"
    _needed: dict[int, frozenset[int]] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The first line of its documentation."""
        return self.doc.strip().partition("\n")[0]

    def needed_steps(self, pattern: Pattern) -> frozenset[int]:
        """Returns the nodes of a variant that stay because the replacement reads what they make."""
        known = self._needed.get(id(pattern))
        if known is None:
            read = {plain_name(name) for node in self.replacement.node for name in node.input}
            steps = {
                value.step.number
                for name, value in pattern.values.items()
                if name in read and value.step is not None and name in self.replacement.input
            }
            known = self._needed[id(pattern)] = frozenset(steps.union(*(pattern.steps_before[each] for each in steps)))
        return known


def make_rule(
    name: str,
    *,
    patterns: Sequence[FunctionProto],
    replacement: FunctionProto,
    doc: str = "",
    constants: FunctionProto | None = None,
    functions: Iterable[FunctionProto] = (),
    let: Mapping[str, str] | None = None,
    where: Sequence[str] = (),
    keep: bool = False,
    effect: str = "rounding",
) -> Rule:
    """Returns a rule whose parts fit together.

    Args:
        name: Its name.
        patterns: Functions whose nodes are looked for; each may stand for several variants.
        replacement: The function whose nodes take their place.
        doc: What it is for; the first line is a summary.
        constants: A function that calculates constants for the replacement from those of the match.
        functions: Local functions that the replacement calls.
        let: Expressions by the name that attributes of the replacement and conditions use.
        where: Conditions, as expressions.
        keep: Let nodes of the match that others read stay.
        effect: What the replacement may change (``RuleEffect``).

    Raises:
        SpecError: They do not.
    """
    if effect not in get_args(RuleEffect):
        raise SpecError(f"rule {name!r}: {effect!r} is no effect", hint=f"There are {', '.join(get_args(RuleEffect))}.")
    variants = tuple(variant for function in patterns for variant in compile_pattern(function))
    known = frozenset(FUNCTIONS)
    rule = Rule(
        name, doc, variants, replacement, constants, tuple(functions),
        {key: Expression(text, known) for key, text in (let or {}).items()},
        tuple(Expression(text, known) for text in where), keep, effect,  # type: ignore[arg-type]  # one of them, as seen above
    )  # fmt: skip
    _require_sound(rule)
    return rule


def _require_sound(rule: Rule) -> None:
    """Raises SpecError if the parts of a rule do not fit together."""
    _require_operators(rule)
    what = f"rule {rule.name!r}"
    made = set(rule.constants.output) if rule.constants is not None else set()
    taken = {plain_name(name) for name in rule.replacement.input}
    for pattern in rule.patterns:
        if len(pattern.outputs) != len(rule.replacement.output):
            raise SpecError(
                f"{what}: the pattern has {len(pattern.outputs)} output{'' if len(pattern.outputs) == 1 else 's'}, and "
                f"the replacement {len(rule.replacement.output)}"
            )
        names = {*pattern.values, *pattern.aliases}
        wanted = taken - made
        if rule.constants is not None:
            wanted |= {plain_name(name) for name in rule.constants.input}
        for name in sorted(wanted - names):
            hint = did_you_mean(name, names | made) or f"The pattern has: {', '.join(sorted(names))}."
            raise SpecError(f"{what}: the replacement takes {name!r}, which the pattern does not have", hint=hint)
        sizes = {
            dim.dim_param for value in pattern.types.values() for dim in value.tensor_type.shape.dim if dim.dim_param
        }
        usable = {*names, *pattern.captured_attributes, *rule.let, *sizes}
        for expression in (*rule.where, *rule.let.values()):
            for name in expression.names:
                if name not in usable:
                    hint = did_you_mean(name, usable) or f"There are: {', '.join(sorted(usable))}."
                    raise SpecError(f"{what}: '{expression.text}' reads {name!r}, which there is not", hint=hint)
        for function in (rule.replacement, rule.constants) if rule.constants is not None else (rule.replacement,):
            for node in function.node:
                for attribute in node.attribute:
                    if attribute.ref_attr_name and attribute.ref_attr_name not in usable:
                        near = did_you_mean(attribute.ref_attr_name, usable)
                        raise SpecError(
                            f"{what}: the replacement has @{attribute.ref_attr_name}, which the pattern does not have",
                            hint=near,
                        )
    _require_order(rule, taken)
    for name in rule.let:
        if name in rule.let[name].names:
            raise SpecError(f"{what}: {name!r} is calculated from itself")
    _require_no_circle(rule)


def _require_operators(rule: Rule) -> None:
    """Raises SpecError for an operator or an attribute that no version of ai.onnx has: such a pattern never matches."""
    known = standard_operators()
    what = f"rule {rule.name!r}"
    steps = [step for pattern in rule.patterns for step in pattern.steps]
    written = [("the pattern", op_type) for step in steps for domain, op_type in step.operators if not domain]
    written += [
        ("the replacement", node.op_type)
        for node in rule.replacement.node
        if not plain_domain(node.domain) and all(attribute.name != "_op" for attribute in node.attribute)
    ]
    for part, op_type in written:
        if op_type != "*" and op_type not in known:
            raise SpecError(
                f"{what}: {part} has {op_type!r}, and no version of ai.onnx has such an operator",
                hint=did_you_mean(op_type, known) or "An operator of another domain is written DOMAIN.NAME.",
            )
    for step in steps:
        names = [known.get(op_type) for domain, op_type in step.operators if not domain]
        if not names or None in names or len(names) < len(step.operators):
            continue
        has = frozenset().union(*(each or () for each in names))
        for name in (*step.attributes, *step.captures):
            if name not in has:
                hint = did_you_mean(name, has) or f"It has: {', '.join(sorted(has)) or 'none'}."
                raise SpecError(f"{what}: no version of {step.spelled} has an attribute {name!r}", hint=hint)


def _require_order(rule: Rule, taken: set[str]) -> None:
    known = set(taken)
    for node in rule.replacement.node:
        for attribute in node.attribute:
            if attribute.type in (5, 10):
                raise SpecError(f"rule {rule.name!r}: nodes with bodies in a replacement are not supported")
        for name in node.input:
            if name and plain_name(name) not in known:
                hint = did_you_mean(name, known) or "Inputs of the replacement are names of the pattern."
                raise SpecError(
                    f"rule {rule.name!r}: the replacement reads {name!r}, which it does not have", hint=hint
                )
        for name in node.output:
            if name and name in known:
                raise SpecError(f"rule {rule.name!r}: the replacement makes {name!r} twice")
        known.update(name for name in node.output if name)
    for name in rule.replacement.output:
        if plain_name(name) not in known:
            raise SpecError(f"rule {rule.name!r}: the replacement does not make its output {name!r}")


def _require_no_circle(rule: Rule) -> None:
    done: set[str] = set()
    for _ in range(len(rule.let) + 1):
        done |= {
            name
            for name, each in rule.let.items()
            if all(other in done or other not in rule.let for other in each.names)
        }
    if len(done) < len(rule.let):
        raise SpecError(f"rule {rule.name!r}: {sorted(rule.let.keys() - done)[0]!r} is calculated from itself")


# -- reading -----------------------------------------------------------------------------------------------------


def shipped_rules() -> dict[str, Rule]:
    """Returns the rules that come with onnxbench, by name."""
    found: dict[str, Rule] = {}
    folder = resources.files("onnxbench.patterns") / "shipped"
    for file in sorted(folder.iterdir(), key=lambda each: each.name):
        if file.name.endswith(".yaml"):
            found.update(_shipped(file.name))
    return found


@cache
def _shipped(name: str) -> dict[str, Rule]:
    text = (resources.files("onnxbench.patterns") / "shipped" / name).read_text(encoding="utf-8")
    return rules_of_text(text, name, Path(name).stem)


def find_rules(reference: str, folder: Path | None = None) -> list[Rule]:
    """Returns the rules that a word stands for: one that is shipped, or those of a file.

    Args:
        reference: A name, ``FILE`` or ``FILE:name``.
        folder: What a file is relative to; the current one by default.

    Raises:
        NotFoundError: There is no such rule or file.
        SpecError: The file has a mistake.
    """
    file, name = split_reference(reference)
    if file is None:
        shipped = shipped_rules()
        if reference not in shipped:
            hint = did_you_mean(reference, shipped) or f"Rules: {', '.join(shipped)}. A file is FILE.yaml[:rule]."
            raise NotFoundError(f"there is no rule {reference!r}", hint=hint)
        return [shipped[reference]]
    path = (folder or Path.cwd()) / file
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {file}", hint=near_file(path)) from None
    except OSError as error:
        raise SpecError(f"{file} cannot be read: {error.strerror}") from None
    if len(data) > _MOST_BYTES:
        raise SpecError(f"{file} has {len(data):,} bytes, which is too many for rules")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SpecError(f"{file} is not UTF-8 text") from None
    found = rules_of_text(text, file, path.stem)
    if name is None:
        return list(found.values())
    if name not in found:
        hint = did_you_mean(name, found) or f"It has: {', '.join(found)}."
        raise NotFoundError(f"{file} has no rule {name!r}", hint=hint)
    return [found[name]]


def split_reference(reference: str) -> tuple[str | None, str | None]:
    """Returns file and rule of ``FILE:rule``; the file is None where the word is the name of a rule."""
    if not reference.strip():
        raise UsageError("a rule is needed", hint="onnxbench rewrite --list shows those that come with onnxbench.")
    file, colon, name = reference.rpartition(":")
    if colon and file.lower().endswith(_ENDINGS):
        return file, name
    if reference.lower().endswith(_ENDINGS) or "/" in reference:
        return reference, None
    return None, reference


def rules_of_text(text: str, source: str, stem: str) -> dict[str, Rule]:
    """Returns the rules of a file by name.

    Args:
        text: The file.
        source: What errors call it; a YAML file by its ending.
        stem: The name of a rule that has none.
    """
    if not source.lower().endswith((".yaml", ".yml", ".json")):
        return _from_functions(text, source)
    root = from_yaml(text, source).require_map("a rule file")
    if root.get("rules") is None:
        return {stem: _from_item(stem, root)}
    root.require_map("a rule file", ("rules", "doc"))
    rules = root.entries["rules"][1].require_map("rules")
    return {name: _from_item(name, item) for name, _, item in rules.pairs()}


def _from_item(name: str, item: Item) -> Rule:
    item.require_map("a rule", _KEYS)
    pattern, replacement = item.get("pattern"), item.get("replacement")
    if pattern is None or replacement is None:
        raise item.error(f"rule {name!r} needs a pattern and a replacement")
    texts = pattern.items if pattern.kind == "list" else [pattern]
    patterns = [function for text in texts for function in _functions(text)]
    replacements = _functions(replacement)
    if len(replacements) != 1:
        raise replacement.error("a rule has one replacement", hint="Functions that it calls stand under functions.")
    constants, functions = item.get("constants"), item.get("functions")
    let, where, doc, keep, effect = (item.get(key) for key in ("let", "where", "doc", "keep", "effect"))
    conditions = [] if where is None else where.items if where.kind == "list" else [where]
    try:
        return make_rule(
            name,
            patterns=patterns,
            replacement=replacements[0],
            doc=doc.require_text("doc") if doc is not None else "",
            constants=_functions(constants)[0] if constants is not None else None,
            functions=_functions(functions) if functions is not None else (),
            let={key: value.require_text(key) for key, _, value in let.require_map("let").pairs()} if let else {},
            where=[each.require_text("a condition") for each in conditions],
            keep=keep is not None and keep.require_text("keep").lower() == "true",
            effect=effect.require_text("effect") if effect is not None else "rounding",
        )
    except SpecError as error:
        said = [*conditions, *(value for _, _, value in (let.pairs() if let else ()))]
        blamed = next((each for each in said if f"'{each.text}'" in error.message), None)
        if blamed is None:
            part = [replacement] if "replacement" in error.message else texts
            blamed = _where_it_says(part, error.message) or (replacement if part != texts else None)
        raise (blamed or item).error(error.message, hint=error.hint) from None


def _where_it_says(texts: Sequence[Item], message: str) -> Item | None:
    """Returns the place in some texts of the first name that a message quotes after the rule's own."""
    for name in re.findall(r"'([^']+)'", message)[1:]:
        word = re.compile(rf"(?<![\w.]){re.escape(name)}(?![\w.])")
        for text in texts:
            first = max(text.line, 1)
            for number, line in enumerate(text.document.lines[first - 1 : first + text.text.count("\n")], first):
                found = word.search(line)
                if found is not None:
                    return dataclasses.replace(text, line=number, column=found.start() + 1)
    return None


def _functions(item: Item) -> list[FunctionProto]:
    text = item.require_text("ONNX text functions")
    line = item.line + (1 if item.style in ("|", ">") else 0)
    found, _ = read_functions(text, source=item.document.source, line=max(line, 1))
    return found


def _from_functions(text: str, source: str) -> dict[str, Rule]:
    """Returns the rules of a file of ONNX text."""
    functions, _ = read_functions(text, source=source)
    by_role: dict[str, dict[str, list[FunctionProto]]] = {role: {} for role in _ROLES}
    along = [function for function in functions if function.domain not in _ROLES]
    for function in functions:
        if function.domain in _ROLES:
            by_role[function.domain].setdefault(function.name, []).append(function)
    if not by_role["pattern"]:
        raise SpecError(
            f"{source} has no pattern",
            hint='A pattern is a function of domain "pattern": <domain: "pattern"> f (x) => (y) {...}',
        )
    found: dict[str, Rule] = {}
    for name, patterns in by_role["pattern"].items():
        replacements = by_role["replacement"].get(name, [])
        if len(replacements) != 1:
            hint = did_you_mean(name, by_role["replacement"]) if not replacements else None
            raise SpecError(
                f"{source}: pattern {name!r} has {len(replacements)} replacements, and needs one", hint=hint
            )
        said = [(entry.key, entry.value) for function in patterns for entry in function.metadata_props]
        keys = {key.partition(" ")[0] for key, _ in said}
        for key in sorted(keys - {"where", "let", "keep", "effect"}):
            raise SpecError(
                f"{source}: {key!r} is no part of a rule", hint="There are where, 'let NAME', keep, effect."
            )
        try:
            found[name] = make_rule(
                name,
                patterns=patterns,
                replacement=replacements[0],
                doc=patterns[0].doc_string,
                constants=next(iter(by_role["constants"].get(name, [])), None),
                functions=along,
                let={key.removeprefix("let").strip(): value for key, value in said if key.startswith("let ")},
                where=[value for key, value in said if key == "where"],
                keep=any(key == "keep" and value.lower() == "true" for key, value in said),
                effect=next((value for key, value in said if key == "effect"), "rounding"),
            )
        except SpecError as error:
            raise SpecError(f"{source}: {error.message}", hint=error.hint) from None
    return found
