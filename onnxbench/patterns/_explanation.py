"""Why a rule does not match: the first difference on the alignment that fits best, in words.

For a node, every step of every variant that could be the node gives an alignment: the anchors that lie downstream of
it, as far as the pattern is deep. Each is tried for real, and the attempt that came furthest is kept. Where the
wiring itself is wrong, the number of steps that fit decides, counted on a fit that goes on past differences: a
pattern that differs in one constant near its end fits better than one that stops there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxbench.graph import NodeRef, Scope
from onnxbench.patterns._facts import Facts
from onnxbench.patterns._fitting import (
    capture_attributes,
    constant_difference,
    count_difference,
    node_words,
    operator_difference,
    origin_words,
    output_difference,
    read_names,
)
from onnxbench.patterns._matcher import Attempt, Difference, Search
from onnxbench.patterns._pattern import Pattern, Step, Value, permutations_of

if TYPE_CHECKING:
    from onnxbench.patterns._rules import Rule

_MOST_ANCHORS = 64
_MOST_FITS = 4000
_MOST_LOOKS = 20_000
_NEAR = 0.5


@dataclass(frozen=True, slots=True)
class Explanation:
    """What stands between a rule and a node.

    Attributes:
        rule: The rule.
        node: The node that it is about, by its path.
        anchor: The node that would make the pattern's first output; None where no alignment makes sense.
        matches: Whether the rule matches with that anchor.
        fitting: How many nodes of the pattern fit.
        steps: How many nodes it has.
        difference: The first difference; None if it matches.
        aligned: Which nodes of the model were taken for which of the pattern.
        differences: How many differences a node by node look at that anchor finds.
    """

    rule: str
    node: str
    anchor: str | None
    matches: bool
    fitting: int
    steps: int
    difference: Difference | None
    aligned: tuple[tuple[str, str], ...] = ()
    differences: int = 0

    def sentences(self) -> list[str]:
        """The explanation, a line each."""
        if self.matches:
            where = "" if self.anchor == self.node else f", which is part of the match at {self.anchor}"
            return [f"rule {self.rule} matches at {self.node}{where}"]
        assert self.difference is not None
        if self.anchor is None:
            return [f"rule {self.rule} does not match at {self.node}: {self.difference.sentence()}"]
        where = "" if self.anchor == self.node else f", taken for a part of a match at {self.anchor}"
        fits = f"{self.fitting} of {self.steps} nodes of the pattern fit"
        return [
            f"rule {self.rule} does not match at {self.node}{where} ({fits})",
            f"first difference: {self.difference.sentence()}",
        ]

    def to_json(self) -> dict[str, Any]:
        """Returns the explanation as JSON values."""
        return {
            "rule": self.rule,
            "node": self.node,
            "anchor": self.anchor,
            "matches": self.matches,
            "fitting": self.fitting,
            "steps": self.steps,
            "difference": None if self.difference is None else self.difference.sentence(),
            "sentences": self.sentences(),
        }


def explain(rule: Rule, facts: Facts, ref: NodeRef) -> Explanation:
    """Returns why a rule matches or does not match at a node.

    Args:
        rule: The rule.
        facts: What is known of the model.
        ref: The node: the one that makes the output, or any other that should be in the match.
    """
    words = node_words(ref.scope, ref.position)
    best: Explanation | None = None
    for pattern in rule.patterns:
        for anchor, step in _alignments(pattern, facts, ref):
            found = explain_anchor(rule, pattern, facts, ref.scope, anchor, through=(step, ref.position), words=words)
            if found.matches:
                return found
            if best is None or _rank(found) > _rank(best):
                best = found
    if best is not None:
        return best
    operators = sorted({step.spelled for pattern in rule.patterns for step in pattern.steps})
    difference = Difference("", "", f"the pattern has no such operator; it is made of {', '.join(operators)}")
    if any(step.accepts(ref.node.domain, ref.node.op_type) for each in rule.patterns for step in each.steps):
        ends = sorted({each.anchor.spelled for each in rule.patterns})
        difference = Difference("", "", f"nothing below it is {' or '.join(ends)}, in which the pattern ends")
    steps = max(len(pattern.steps) for pattern in rule.patterns)
    return Explanation(rule.name, words, None, False, 0, steps, difference)


def _rank(found: Explanation) -> tuple[float, int, int]:
    return found.fitting / max(found.steps, 1), -found.differences, found.fitting


def near_misses(rule: Rule, facts: Facts, *, limit: int = 5) -> list[Explanation]:
    """Returns the places where a rule nearly matches, best first: at least half of its nodes fit there.

    In a very large graph only its beginning is looked at.
    """
    ranked: list[tuple[float, int, Scope, int]] = []
    budget = [_MOST_LOOKS]
    for scope in facts.index.scopes:
        for position, node in enumerate(scope.nodes):
            if budget[0] < 0:
                break
            shares = [
                share
                for pattern in rule.patterns
                if pattern.anchor.accepts(node.domain, node.op_type)
                and (share := _share(pattern, facts, scope, position, budget)) >= _NEAR
            ]
            if shares:
                ranked.append((-max(shares), len(ranked), scope, position))
    found: list[Explanation] = []
    for _, _, scope, position in sorted(ranked, key=lambda each: each[:2]):
        each = [
            explain_anchor(rule, pattern, facts, scope, position)
            for pattern in rule.patterns
            if pattern.anchor.accepts(scope.nodes[position].domain, scope.nodes[position].op_type)
        ]
        if not any(explanation.matches for explanation in each):
            found.append(max(each, key=_rank))
        if len(found) == limit:
            break
    return sorted(found, key=_rank, reverse=True)


def _share(pattern: Pattern, facts: Facts, scope: Scope, position: int, budget: list[int]) -> float:
    """Returns how much of a pattern fits at an anchor; of one or two nodes, an operator alone is half."""
    fitting, _ = _fit(pattern, facts, scope, position, budget)
    if len(pattern.steps) <= 2:
        return max(fitting / len(pattern.steps), _NEAR)
    return fitting / len(pattern.steps) if fitting > 1 else 0


def explain_anchor(
    rule: Rule,
    pattern: Pattern,
    facts: Facts,
    scope: Scope,
    anchor: int,
    *,
    through: tuple[Step, int] | None = None,
    words: str = "",
) -> Explanation:
    """Returns why a variant matches or does not match with a node as its anchor."""
    attempt = Attempt()
    where = node_words(scope, anchor)
    steps = len(pattern.steps)
    for match in Search(rule, pattern, facts, scope, attempt).matches(anchor):
        if through is None or through[1] in match.nodes.values():
            return Explanation(rule.name, words or where, where, True, steps, steps, None)
    fitting, differences = _fit(pattern, facts, scope, anchor)
    difference = attempt.difference  # nodes may all fit, each for itself, and not together
    if attempt.score > steps:  # all nodes fit, and the match as a whole does not
        fitting = steps
    else:
        fitting = min(fitting, steps - 1)
        difference = differences[0] if differences else difference
    if difference is None:
        difference = Difference("", "", "the node is in no match that ends there")
    nodes = {step.number: step for step in pattern.steps}
    aligned = tuple((nodes[number].label, node_words(scope, at)) for number, at in attempt.nodes.items())
    return Explanation(rule.name, words or where, where, False, fitting, steps, difference, aligned, len(differences))


def _alignments(pattern: Pattern, facts: Facts, ref: NodeRef) -> Iterator[tuple[int, Step]]:
    """Yields the anchors for which a node may be a step of a pattern, with the step."""
    scope, node = ref.scope, ref.node
    below: dict[int, set[int]] = {}
    for step in pattern.steps:
        for value in step.inputs:
            if value is not None and value.step is not None:
                below.setdefault(value.step.number, set()).add(step.number)
    by_number = {step.number: step for step in pattern.steps}
    count = 0
    for step in pattern.steps:
        if not step.accepts(node.domain, node.op_type):
            continue
        pending, seen = [(step.number, ref.position)], {(step.number, ref.position)}
        while pending and count < _MOST_ANCHORS:
            number, position = pending.pop()
            if number == pattern.anchor.number:
                count += 1
                yield position, step
                continue
            for reader in (each for name in scope.writes[position] for each in scope.consumers.get(name, ())):
                other = scope.nodes[reader]
                for following in sorted(below.get(number, ())):
                    key = following, reader
                    if key not in seen and by_number[following].accepts(other.domain, other.op_type):
                        seen.add(key)
                        pending.append(key)


def _fit(
    pattern: Pattern, facts: Facts, scope: Scope, anchor: int, budget: list[int] | None = None
) -> tuple[int, list[Difference]]:
    """Returns how many steps fit at an anchor, and the differences in the order of the pattern from its end.

    Wiring is followed past a difference. That one captured tensor is the same wherever it stands is not looked at.
    """
    known: dict[tuple[int, int], tuple[frozenset[int], tuple[Difference, ...]]] = {}
    left = budget if budget is not None else [_MOST_FITS]

    def fit(step: Step, position: int) -> tuple[frozenset[int], tuple[Difference, ...]]:
        key = step.number, position
        if key not in known:
            known[key] = frozenset(), ()
            known[key] = fit_new(step, position)
        return known[key]

    def fit_new(step: Step, position: int) -> tuple[frozenset[int], tuple[Difference, ...]]:
        left[0] -= 1
        node = scope.nodes[position]
        where = node_words(scope, position)
        names = read_names(node)
        wrong = operator_difference(step, facts, node)
        if wrong is None:
            captured = capture_attributes(step, facts, scope, node)
            wrong = captured if isinstance(captured, str) else count_difference(step, names)
            wrong = wrong or output_difference(step, facts, scope, node)
        own = (Difference(step.label, where, wrong),) if wrong is not None else ()
        best: tuple[frozenset[int], tuple[Difference, ...]] | None = None
        for order in permutations_of(step, names) if left[0] > 0 else [tuple(names)]:
            fitting: frozenset[int] = frozenset()
            constants: tuple[Difference, ...] = ()
            others: tuple[Difference, ...] = ()
            for at, value in enumerate(step.inputs):
                if value is None or at >= len(order):
                    continue
                if value.constant is not None:
                    wrong = constant_difference(value, facts, scope, order[at])
                    constants += (Difference(step.label, where, wrong),) if wrong is not None else ()
                    continue
                more, inner = fit_value(value, order[at], step, where)
                fitting, others = fitting | more, others + inner
            if not own and not constants:
                fitting |= {step.number}
            found = fitting, own + constants + others
            if best is None or (len(fitting), -len(found[1])) > (len(best[0]), -len(best[1])):
                best = found
        assert best is not None
        return best

    def fit_value(value: Value, name: str, step: Step, where: str) -> tuple[frozenset[int], tuple[Difference, ...]]:
        if value.step is None or not name:
            return frozenset(), ()
        producer = scope.producers.get(name)
        if producer is None:
            said = f"the pattern has {value.step.spelled} there, and {origin_words(facts, scope, name)}"
            return frozenset(), (Difference(step.label, where, said),)
        return fit(value.step, producer)

    fitting, differences = fit(pattern.anchor, anchor)
    return len(fitting), list(differences)


def shared_words(explanations: Sequence[Explanation]) -> list[str]:
    """Returns near misses in a line each."""
    return [
        f"{each.anchor or each.node} ({each.fitting} of {each.steps} nodes fit): {each.difference.sentence()}"
        for each in explanations
        if each.difference is not None
    ]
