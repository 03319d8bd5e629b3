"""Writes docs/rules.md from the rules of ``onnxbench check`` themselves.

``python docs/make_rules.py`` writes the page, ``--check`` exits 1 if it is out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parent / "rules.md"

HEAD = """# Rules of `onnxbench check`

Generated from the rules themselves by `python docs/make_rules.py`; `onnxbench explain CODE` prints the same.

An **error** means that the model is not valid ONNX or that the target refuses it, a **warning** that it runs and likely
not as meant or not everywhere, an **info** what is worth knowing before the model is changed or deployed. With
`--target` severities are those for one runtime. A finding marked *mendable* goes away when onnxbench writes the model.
Codes are stable: one that is no longer used is not given to another rule.
"""


def rules_page() -> str:
    """Returns the page."""
    from onnxbench.lint import rules_by_theme

    parts = [HEAD]
    for title, rules in rules_by_theme():
        parts += [f"## {title}", "", "| code | name | severity | finds |", "|---|---|---|---|"]
        for rule in rules:
            link = f"[{rule.code}](#{rule.code.lower()}-{rule.name})"
            parts.append(f"| {link} | `{rule.name}` | {rule.severity_text()} | {rule.summary} |")
        parts.append("")
        for rule in rules:
            notes = [*(["mendable"] if rule.mendable else []), *rule.conditions()]
            parts += [
                f"### {rule.code} {rule.name}",
                "",
                f"{rule.summary} ({'; '.join([rule.severity_text(), *notes])})",
                "",
                f"{rule.why}",
                "",
                f"**Mend:** {rule.mend}",
                "",
                "```text",
                rule.example_text(),
                "```",
                "",
            ]
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    """Writes or checks the page; returns the exit status."""
    text = rules_page()
    if "--check" in arguments:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
            print(f"{PAGE.name} is out of date; run 'python docs/make_rules.py'")
            return 1
        return 0
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
