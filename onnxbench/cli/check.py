"""``onnxbench check``: what is wrong with a model, or will be where it is deployed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxbench.cli._options import AllowOutside, AsJson, ModelArgument, Quiet

if TYPE_CHECKING:
    from onnxbench.lint import Finding, Findings, Severity

_PER_RULE = 10


def check(
    model: ModelArgument,
    select: Annotated[
        list[str] | None,
        typer.Option("--select", metavar="RULE...", help="Only these: OB105, OB1, unsorted-nodes.", show_default=False),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option("--ignore", metavar="RULE...", help="All but these, spelled alike.", show_default=False),
    ] = None,
    severity: Annotated[
        str, typer.Option("--severity", metavar="LEVEL", help="Show what is at least so bad: error, warning, info.")
    ] = "info",
    fail_on: Annotated[
        str, typer.Option("--fail-on", metavar="LEVEL", help="Exit 1 at: error, warning, info, or never.")
    ] = "error",
    target: Annotated[
        str | None,
        typer.Option(
            "--target", metavar="RUNTIME", help="Judge for one runtime: onnxruntime, tensorrt.", show_default=False
        ),
    ] = None,
    ort: Annotated[bool, typer.Option("--ort", help="Also make a session in ONNX Runtime.")] = False,
    custom_ops: Annotated[
        list[Path] | None,
        typer.Option(
            "--custom-ops",
            metavar="LIB...",
            help="With --ort: libraries with custom operators (they are code).",
            show_default=False,
        ),
    ] = None,
    values: Annotated[
        bool, typer.Option("--values", help="Also read the weights: NaN, Inf, what float16 or int32 cannot hold.")
    ] = False,
    format_: Annotated[
        str,
        typer.Option("--format", "--output-format", "-f", metavar="FORMAT", help="text, json, sarif, or github."),
    ] = "text",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write the report to a file.", show_default=False),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=0, help="In text: findings shown for each rule (0: all).")
    ] = _PER_RULE,
    allow_outside: AllowOutside = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check a model: the onnx checker in full, and what it does not look at; every finding with its place.

    Reads no weights unless --values is given. 'onnxbench explain CODE' says why a rule matters and how to mend what it
    finds. Findings marked [mendable] go away when onnxbench writes the model.

    \b
    Examples:
      onnxbench check model.onnx
      onnxbench check model.onnx --ort --values
      onnxbench check model.onnx --target tensorrt --fail-on warning
      onnxbench check model.onnx --select OB1 OB3 --ignore unnamed-nodes
      onnxbench check model.onnx --format sarif -o model.sarif
      onnxbench check model.onnx --json
    """
    from onnxbench import lint
    from onnxbench.model import load

    form = _format("json" if as_json else format_)
    worst = None if fail_on == "never" else lint.to_severity(fail_on)
    found = lint.check(
        load(model, allow_outside=allow_outside, require_weights=False),
        select=select or (), ignore=ignore or (), target=target, values=values,
        openers={"ONNX Runtime": _opener(custom_ops or [])} if ort else None,
    )  # fmt: skip
    _deliver(found, lint.to_severity(severity), form, output, limit=limit, quiet=quiet)
    raise typer.Exit(1 if found.fails(worst) else 0)


def _opener(libraries: list[Path]) -> object:
    from onnxbench.backends import Options, open_session

    return lambda model: open_session(model, "ort", options=Options(libraries=tuple(libraries)))
