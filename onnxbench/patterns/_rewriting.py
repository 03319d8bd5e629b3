"""Replacing until nothing matches any more.

One pass finds matches that have no node in common and replaces all of them at once; the next one sees what came of
it. A rule that makes the model smaller comes to an end by itself. One that does not may be at it forever (its
replacement is a match again), which nobody can tell beforehand in general: after a number of passes without the
model becoming smaller it is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxbench.errors import NotFoundError, RefusedResultError
from onnxbench.patterns._facts import Facts
from onnxbench.patterns._matcher import find_matches
from onnxbench.patterns._replacement import Replacer

if TYPE_CHECKING:
    from onnxbench.draft import Draft
    from onnxbench.patterns._rules import Rule

_MOST_IDLE_PASSES = 24


def rewrite(draft: Draft, rule: Rule, *, at: str | None = None, most: int | None = None) -> int:
    """Replaces the matches of a rule in a draft until there are none; returns how many there were.

    Args:
        draft: The draft.
        rule: The rule.
        at: Only where the node that makes the pattern's first output is one of those that this selector stands for.
        most: So many matches at most, the first ones.

    Raises:
        RefusedResultError: The rule matches what it made again and again, or the opset is too old for it.
        UnsupportedError: The pattern has too many ways to match somewhere.
    """
    replacer = Replacer(draft)
    idle, size = 0, _size(draft)
    while most is None or replacer.count < most:
        among = None
        if at is not None:
            try:
                among = frozenset(draft.nodes(at))
            except NotFoundError:
                if not replacer.count:
                    raise
                break  # the nodes that it stood for are replaced
        limit = None if most is None else most - replacer.count
        matches = find_matches(rule, Facts(draft), among=among, limit=limit)
        if not matches:
            break
        if idle >= _MOST_IDLE_PASSES:
            raise RefusedResultError(
                f"rule {rule.name!r} does not come to an end: after {idle} passes and {replacer.count} replacements it "
                f"still matches at {matches[0].scope.label(matches[0].anchor)}",
                hint="Its replacement is a match again. Give it a condition, or say how many at most (max).",
            )
        replacer.replace(matches)
        now = _size(draft)
        idle = 0 if now < size else idle + 1
        size = min(now, size)
    return replacer.count


def _size(draft: Draft) -> int:
    return sum(len(scope.nodes) for scope in draft.index.scopes)
