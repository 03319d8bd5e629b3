"""``onnxbench migrate``: what scripts for older TensorRT must change, and what replaces it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxbench.cli._options import AsJson, Quiet

if TYPE_CHECKING:
    from onnxbench.migration import Migration

_FORMATS = ("text", "json", "sarif")


def migrate(
    paths: Annotated[
        list[Path], typer.Argument(metavar="FILE|DIR...", help="Scripts, or folders of them.", show_default=False)
    ],
    to: Annotated[str, typer.Option("--to", metavar="VERSION", help="10, 11, or rtx (TensorRT-RTX).")] = "11",
    form: Annotated[
        str, typer.Option("--format", "--output-format", "-f", metavar="FORMAT", help="text, json, or sarif.")
    ] = "text",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say what TensorRT 10, 11 or TensorRT-RTX removed of what scripts use, line by line, and what replaces it.

    Reads trtexec and polygraphy commands (in shell scripts, Makefiles, Dockerfiles, text, Python), Python that uses
    TensorRT or Polygraphy, and MMDeploy configurations; nothing in them is run. Build commands are put into
    onnxbench's. Exit code 1 if something must change.

    \b
    Examples:
      onnxbench migrate build_engines.sh
      onnxbench migrate scripts Dockerfile --to rtx
      onnxbench migrate . --format sarif > migrate.sarif
    """
    from onnxbench import migration
    from onnxbench.cli._render import note, print_json
    from onnxbench.errors import UsageError, did_you_mean

    if form not in _FORMATS:
        raise UsageError(f"{form!r} is no format", hint=did_you_mean(form, _FORMATS) or "Formats: text, json, sarif.")
    found = migration.migrate(paths, to=to)
    note(*found.notes, quiet=quiet)
    if as_json or form == "json":
        print_json("migrate", found)
    elif form == "sarif":
        import json

        print(json.dumps(migration.to_sarif(found), indent=1))
    else:
        _print_text(found)
    raise typer.Exit(1 if found.must_change else 0)


def _print_text(found: Migration) -> None:
    from onnxbench.cli._tables import Column, plain, print_table
    from onnxbench.wording import plural

    if found.changes:
        rows = [(f"{each.file}:{each.line}", each.level, each.word, each.what) for each in found.changes]
        print_table(
            [Column("where"), Column("", "whole"), Column("word", "whole"), Column("what became of it", "whole")], rows
        )
        print()
        for instead in dict.fromkeys(each.instead for each in found.changes):
            words = dict.fromkeys(each.word for each in found.changes if each.instead == instead)
            print(f"{', '.join(map(plain, words))}\n  -> {instead}")
        print()
    for command in found.commands:
        if command.here is None:
            continue
        print(f"{command.file}:{command.line}: {plain(command.written)}")
        print(f"  -> {plain(command.here)}")
        for line in command.notes:
            print(f"     ({plain(line)})")
    must = sum(each.level == "must" for each in found.changes)
    should = len(found.changes) - must
    name = "TensorRT-RTX" if found.target == "rtx" else f"TensorRT {found.target}"
    print(f"{plural(len(found.files), 'file')} read; for {name}: {plural(must, 'place')} must change, {should} should")
