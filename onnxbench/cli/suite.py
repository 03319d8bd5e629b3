"""``onnxbench suite``: models through pipelines, as a table of what works."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxbench.cli._command import means_nothing_without
from onnxbench.cli._options import AllowOutside, AsJson, PluginBundles, Quiet, Warmup, refuse_given

if TYPE_CHECKING:
    from onnxbench.drift import TensorDrift
    from onnxbench.suite import Cell, SuiteResult, SuiteTable

_WORDS = {"pass": "pass", "fail": "FAIL", "error": "ERROR", "built": "build only", "skip": "skip", "planned": "planned"}
_DETAILS = 4
Patterns = list[str] | None


@means_nothing_without(warmup="time")
def suite(
    files: Annotated[
        list[Path], typer.Argument(metavar="SUITE...", help="Suite files (YAML): one table each.", show_default=False)
    ],
    model: Annotated[
        Patterns, typer.Option("--model", metavar="PATTERN...", show_default=False, help="Only models of these names.")
    ] = None,
    pipeline: Annotated[
        Patterns,
        typer.Option("--pipeline", metavar="PATTERN...", show_default=False, help="Only pipelines of these names."),
    ] = None,
    on: Annotated[
        Patterns,
        typer.Option("--on", "--backend", metavar="NAME...", show_default=False, help="Only those on these backends."),
    ] = None,
    time: Annotated[
        int, typer.Option("--time", "--bench", metavar="N", min=0, help="Time this many runs of each cell.")
    ] = 0,
    warmup: Warmup = 5,
    markdown: Annotated[
        Path | None,
        typer.Option("--markdown", metavar="FILE.md", show_default=False, help="Write the support table."),
    ] = None,
    junit: Annotated[
        Path | None,
        typer.Option("--junit", metavar="FILE.xml", show_default=False, help="Write JUnit's XML, a test case a cell."),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option("--keep", metavar="DIR", show_default=False, help="Write converted models of wrong cells."),
    ] = None,
    isolate: Annotated[
        float,
        typer.Option(
            "--isolate", min=0, metavar="S",
            help="Run models in a process of its own, which may crash; one call may take S seconds (0: in this one).",
        ),
    ] = 0.0,
    plugin: PluginBundles = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells and run nothing.")] = False,
    allow_outside: AllowOutside = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Take models through pipelines (convert, check, run, compare) as YAML files say; exit code 1 if a cell is wrong.

    A cell that fails does not stop the others, and where a backend is not there cells are skipped and say why. Recipes,
    steps, precision and where it runs make a pipeline; docs/suite.md has all keys. A suite is trusted: feeds may be
    scripts, and PyTorch models are code.

    \b
    Examples:
      onnxbench suite suite.yaml
      onnxbench suite suite.yaml --model 'resnet*' --on ort
      onnxbench suite vision.yaml speech.yaml --markdown support.md --junit results.xml
      onnxbench suite suite.yaml --pipeline half --time 50
      onnxbench suite suite.yaml --isolate 60 --json
      onnxbench suite suite.yaml --dry-run
    """
    from onnxbench.cli._render import note, print_json
    from onnxbench.suite import junit_report, load_suite, require_targets, run_suite, support_table
    from onnxbench.writer import write_whole

    def heard(cell: Cell, number: int, count: int) -> None:
        note(f"[{number}/{count}] {cell.model}, {cell.pipeline}: {_WORDS[cell.status]}", quiet=quiet)

    if dry_run:
        refuse_given({"--markdown": markdown, "--junit": junit, "--keep": keep}, "--dry-run")
    suites = [load_suite(file, allow_outside=allow_outside) for file in files]
    require_targets(suites, markdown, junit)
    found = run_suite(
        suites, models=model or (), pipelines=pipeline or (), on=on or (), time=time,
        warmup=warmup, isolate=isolate, plugins=plugin or (), keep=keep, dry_run=dry_run,
        allow_outside=allow_outside, heard=heard,
    )  # fmt: skip
    reports = ((markdown, support_table), (junit, junit_report))
    written = [(path, make(found)) for path, make in reports if path is not None]
    for path, text in written:
        write_whole(path, [text.encode()])
    if as_json:
        print_json("suite", found)
    else:
        _show(found)
        for path, _ in written:
            print(f"wrote {path}")
    raise typer.Exit(0 if found.passed else 1)


def _show(found: SuiteResult) -> None:
    from onnxbench.cli._render import console, table

    for each in found.tables:
        print(f"{each.title} ({each.path})")
        rows = [[model, *(_shown(each.cell(model, name)) for name in each.pipelines)] for model in each.models]
        console().print(table(["model", *each.pipelines], rows))
        _show_cells(each)
        _show_times(each)
        print(each.verdict)


def _shown(cell: Cell) -> str:
    word = _WORDS[cell.status]
    return word if cell.latency is None else f"{word} {cell.latency.median_ms:.3f} ms"


def _told_together(cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """Yields cells one by one, but those of a model that could not be loaded, which all say the same, at once."""
    for (_, unloaded), group in groupby(cells, key=lambda cell: (cell.model, cell.step == "load")):
        if unloaded:
            yield list(group)
        else:
            yield from ([cell] for cell in group)


def _show_cells(table: SuiteTable) -> None:
    """Prints what is to be said of single cells."""
    for cells in _told_together(table.cells):
        cell = cells[0]
        headline = _headline(cells, table)
        if headline:
            print(headline)
        if cell.status == "fail" and cell.worst is not None:
            print(f"  {_measures(cell.worst)}")
        for line in cell.details[:_DETAILS]:
            print(f"  {line}")
        for line in cell.notes:
            print(f"{cell.model}, {cell.pipeline}: {line}")
        if cell.is_wrong and cell.hint:
            print(f"  {cell.hint}")
        for line in cell.next:
            print(f"  next: {line}")


def _headline(cells: Sequence[Cell], table: SuiteTable) -> str:
    """Returns the line that says what became of cells that are told together; ``""`` where that goes without saying."""
    cell = cells[0]
    where = f"{cell.model}, {', '.join(each.pipeline for each in cells)}"
    if cell.status == "planned":
        return f"{where}: {table.pipelines[cell.pipeline] or 'as it is'}; on {cell.on}; against {cell.against}"
    step = f" (step {cell.step})" if cell.step else ""
    return f"{where}: {_WORDS[cell.status]}{step}: {cell.message}" if cell.message else ""


def _measures(worst: TensorDrift) -> str:
    from onnxbench.cli._drift import number

    measures = {"max abs": worst.max_abs, "max rel": worst.max_rel, "SQNR dB": worst.sqnr_db}
    return ", ".join(f"{name} {number(value)}" for name, value in measures.items())


def _show_times(table: SuiteTable) -> None:
    """Prints the latencies, if any were measured."""
    from onnxbench.cli._render import console
    from onnxbench.cli._render import table as made

    timed = [(cell, cell.latency) for cell in table.cells if cell.latency is not None]
    rows = [
        (cell.model, cell.pipeline, *(f"{value:.3f}" for value in (t.mean_ms, t.median_ms, t.min_ms, t.max_ms)))
        for cell, t in timed
    ]
    if rows:
        console().print(made(["latency", "pipeline", ">mean ms", ">median ms", ">min ms", ">max ms"], rows))
