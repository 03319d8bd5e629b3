"""``onnxbench explain``: what a rule of ``check`` is about, and how to mend what it finds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from onnxbench.cli._options import AsJson

if TYPE_CHECKING:
    from onnxbench.lint import Rule


def explain(
    rule: Annotated[
        str | None, typer.Argument(metavar="[RULE]", help="A code or name; none: list all.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Explain a rule of 'check': why it matters, how to mend it, and an example. Without one, list them all.

    \b
    Examples:
      onnxbench explain OB105
      onnxbench explain unsorted-nodes
      onnxbench explain
      onnxbench explain --json
    """
    from onnxbench import lint
    from onnxbench.cli._render import print_json

    rules = [lint.find_rule(rule)] if rule else lint.all_rules()
    if as_json:
        print_json("explain", [entry.to_json() for entry in rules])
    elif rule:
        _print_rule(rules[0])
    else:
        _print_list()


def _print_rule(rule: Rule) -> None:
    from onnxbench.cli._tables import print_fields, print_heading

    print_heading(f"{rule.code} {rule.name} ({rule.severity_text()})")
    print(rule.summary)
    print()
    print_fields([("why", rule.why), ("mend", rule.mend), *(("looked at", text) for text in rule.conditions())])
    print("\nexample")
    for line in rule.example_text().splitlines():
        print(f"  {line}")


def _print_list() -> None:
    from onnxbench.cli._tables import Column, print_heading, print_table
    from onnxbench.lint import rules_by_theme

    columns = [Column("code", "whole"), Column("rule", "whole"), Column("severity", "whole"), Column("finds")]
    for title, rules in rules_by_theme():
        print_heading(title)
        print_table(columns, [(rule.code, rule.name, str(rule.severity), rule.summary) for rule in rules])
        print()
