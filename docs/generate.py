"""Writes the generated pages of the documentation: errors, the command line, the rules of ``check``.

``python docs/generate.py`` writes them, ``--check`` exits 1 and names those that are out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent


def errors_page() -> str:
    """Returns the page on exit codes and error kinds, from the error tree itself."""
    from onnxbench.errors import error_kinds

    rows = "\n".join(
        f"| {error.exit_code} | `{error.kind}` | `{error.__name__}` | {(error.__doc__ or '').strip().splitlines()[0]} |"
        for error in error_kinds()
    )
    return f"""# Errors and exit codes

Every command ends with one of these. An error is one message on stderr: what is wrong and where, details, and what to
do next. With `--json` the same stands on stdout as an object: `schema_version`, `command`, and `error` with `kind`,
`exit_code`, `message`, `hint`, `details` (and `missing` and `proposals` for a cut).

| exit code | kind | Python class (`onnxbench.errors`) | meaning |
|---|---|---|---|
| 0 | | | fine |
| 1 | | | a check found something: findings, a difference, a proof that failed |
{rows}
| 70 | | | a bug in onnxbench; a report with versions and the traceback is saved, and its path is shown |
| 130 | | | interrupted (Ctrl-C); nothing was written |
"""


SECOND_NAMES_HEAD = """## Second names

What users of Polygraphy, trtexec, onnxsim, onnxslim and sne4onnx type means the same here, in every command that has
the option:
"""


def cli_page() -> str:
    """Returns the command-line reference: every command's own help."""
    import os

    os.environ["COLUMNS"] = "110"
    from typer.testing import CliRunner

    from onnxbench.cli import COMMANDS, app
    from onnxbench.cli._command import SECOND_NAMES

    runner = CliRunner(env={"COLUMNS": "110", "TERM": "dumb", "NO_COLOR": "1"})
    parts = ["# Command line", "", "Generated from the commands' own help by `python docs/generate.py`.", ""]
    for words in ([], *([name] for name in COMMANDS)):
        title = " ".join(["onnxbench", *words])
        text = runner.invoke(app, [*words, "--help"], prog_name="onnxbench").output
        text = "\n".join(line.rstrip() for line in text.strip().splitlines())
        parts += [f"## {title}", "", "```", text, "```", ""]
    parts += [SECOND_NAMES_HEAD, "| typed | means |", "|---|---|"]
    parts += [f"| `{name}` | `{' '.join(first)}` |" for name, first in sorted(SECOND_NAMES.items())]
    return "\n".join([*parts, ""])


RULES_HEAD = """# Rules of `onnxbench check`

Generated from the rules themselves by `python docs/generate.py`; `onnxbench explain CODE` prints the same.

An **error** means that the model is not valid ONNX or that the target refuses it, a **warning** that it runs and likely
not as meant or not everywhere, an **info** what is worth knowing before the model is changed or deployed. With
`--target` severities are those for one runtime. A finding marked *mendable* goes away when onnxbench writes the model.
Codes are stable: one that is no longer used is not given to another rule.
"""


def rules_page() -> str:
    """Returns the page on the rules of ``check``."""
    from onnxbench.lint import rules_by_theme

    parts = [RULES_HEAD]
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


PAGES = {"errors.md": errors_page, "cli.md": cli_page, "rules.md": rules_page}


def main(arguments: list[str]) -> int:
    """Writes or checks the pages; returns the exit status."""
    stale = []
    for name, make in PAGES.items():
        text = make()
        path = DOCS / name
        if "--check" in arguments:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                stale.append(name)
        else:
            path.write_text(text, encoding="utf-8")
    if stale:
        print(f"out of date: {', '.join(stale)}; run 'python docs/generate.py'")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
