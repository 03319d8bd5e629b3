"""Pattern rewriting: rules that look for a piece of a graph and put another in its place, and say why where not.

A rule is a pattern, a replacement and conditions (``docs/rewriting.md``); its patterns and replacements are ONNX text
functions. ``find_matches`` looks for one, ``rewrite`` replaces until nothing matches any more, ``explain`` and
``near_misses`` say what is in the way.
"""

from __future__ import annotations

from onnxbench.patterns._explanation import Explanation, explain, near_misses, shared_words
from onnxbench.patterns._expressions import Expression
from onnxbench.patterns._facts import Facts
from onnxbench.patterns._matcher import Difference, Match, Search, find_matches
from onnxbench.patterns._onnxscript import ScriptRule, apply_script, find_script_matches, load_script
from onnxbench.patterns._pattern import Pattern, compile_pattern
from onnxbench.patterns._replacement import RULE_KEY, require_opsets
from onnxbench.patterns._rewriting import rewrite
from onnxbench.patterns._rules import (
    Rule,
    find_rules,
    make_rule,
    rules_of_text,
    shipped_rules,
    split_reference,
)

__all__ = [
    "RULE_KEY",
    "Difference",
    "Explanation",
    "Expression",
    "Facts",
    "Match",
    "Pattern",
    "Rule",
    "ScriptRule",
    "Search",
    "apply_script",
    "compile_pattern",
    "explain",
    "find_matches",
    "find_rules",
    "find_script_matches",
    "load_script",
    "make_rule",
    "near_misses",
    "require_opsets",
    "rewrite",
    "rules_of_text",
    "shared_words",
    "shipped_rules",
    "split_reference",
]
