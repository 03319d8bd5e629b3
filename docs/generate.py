"""Writes the generated pages of the documentation: errors, the command line, the rules of ``check``.

``python docs/generate.py`` writes them, ``--check`` exits 1 and names those that are out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

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
| 130 | | | interrupted (Ctrl-C); nothing was written but the best result so far, by `reduce` and `precision --search` |
"""


SECOND_NAMES_HEAD = """## Second names

What users of Polygraphy, trtexec, onnxsim, onnxslim and sne4onnx type means the same here, in every command that has
the option (and `--onnx FILE` is the model):
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


EDIT_HEAD = """# Operations of `onnxbench edit`

Generated from the operations themselves by `python docs/generate.py`. Each one is a flag of `onnxbench edit`, a line of
a recipe ([how recipes work](recipes.md), [JSON Schema](recipe.schema.json)), and a class of `onnxbench.operations`:

```yaml
steps:
  - set_op: {at: op:Add, to: Sub}      # its fields
  - set_op: op:Mul=Div                 # or its short spelling, as on the command line: --set-op op:Mul=Div
```

*Expects* is how many targets a step must match unless it says `expect:`. *Changes* is what it may change of what the
model computes, as `--verify` judges it: `nothing` (equal bit for bit), `rounding`, `numerics` (reported, and judged by
`atol` and `rtol` if the step has them), `interface` (inputs and outputs come, go, or change their type).
"""


def operations_page() -> str:
    """Returns the reference of the operations of ``edit``."""
    import dataclasses

    from onnxbench.operations import OPERATIONS, spelled_form
    from onnxbench.recipeschema import field_docs

    parts = [EDIT_HEAD]
    for word, operation in OPERATIONS.items():
        short = spelled_form(operation) or "'{...}'"
        said = field_docs(operation)
        flag = f"--{word.replace('_', '-')} {short}"
        parts += [f"## {word}", "", (operation.__doc__ or "").strip().splitlines()[0], ""]
        parts += [f"`{flag}` · expects {operation.expects} · changes {operation.effect}", ""]
        rows = []
        for each in dataclasses.fields(operation):
            text = said.get(each.name, "").replace("``", "`").replace("|", "\\|")
            rows.append(f"| `{each.name}` | {_default(each)} | {text} |")
        if rows:
            parts += ["| field | default | |", "|---|---|---|", *rows, ""]
    return "\n".join(parts)


def _default(field: Any) -> str:
    import dataclasses

    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()!r}`"
    if field.default is dataclasses.MISSING:
        return "required"
    if field.default is None:
        return ""
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def schema_page() -> str:
    """Returns the JSON Schema of recipes."""
    import json

    from onnxbench.recipeschema import json_schema

    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def suite_schema_page() -> str:
    """Returns the JSON Schema of suites."""
    import json

    from onnxbench.suite import suite_schema

    return json.dumps(suite_schema(), indent=1, ensure_ascii=False) + "\n"


PAGES = {
    "errors.md": errors_page,
    "cli.md": cli_page,
    "rules.md": rules_page,
    "operations.md": operations_page,
    "recipe.schema.json": schema_page,
    "suite.schema.json": suite_schema_page,
}


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
