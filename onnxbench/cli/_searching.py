"""The options of ``onnxbench precision --search``, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from onnxbench.feeding import FeedOptions
    from onnxbench.tuning import Tuning
    from onnxbench.writer import SaveOptions

INTERRUPTED = 130
_SHOWN = 12

SearchOption = Annotated[
    bool,
    typer.Option("--search", help="Find the smallest set of nodes to keep, so that outputs are within --tolerance."),
]
Tolerance = Annotated[
    list[str] | None,
    typer.Option(
        "--tolerance", metavar="TOL...", show_default=False,
        help="What outputs may be off by the metric: 1e-2, out:1e-3, '>=0.99'. Implies --search.",
    ),
]  # fmt: skip
Metric = Annotated[
    str,
    typer.Option(
        "--metric", metavar="NAME",
        help="max (|difference| <= TOL + TOL * |expected|), abs, rel (as a whole), cosine, sqnr, FILE.py:FUNC.",
    ),
]  # fmt: skip
Samples = Annotated[
    int | None,
    typer.Option("--samples", "--iterations", min=1, show_default=False, help="Sets of inputs to take (all, or 1)."),
]
Holdout = Annotated[
    int,
    typer.Option("--holdout", min=0, metavar="N", help="Judge the result on the last N sets, unseen by the search."),
]
MaxRuns = Annotated[
    int, typer.Option("--max-runs", min=1, metavar="N", help="How often the model may run, on one set of inputs each.")
]
BudgetOption = Annotated[
    str | None,
    typer.Option("--budget", metavar="TIME", show_default=False, help="How long the search may take: 10m, 90s."),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume", metavar="FILE", show_default=False,
        help="Save what is found of every set there, and go on from it if it is there already.",
    ),
]  # fmt: skip
Cost = Annotated[
    str,
    typer.Option(
        "--cost",
        metavar="COST",
        help="What is made small: count, bytes, time (measured), or a table in .yaml or .json.",
    ),
]
On = Annotated[
    str | None,
    typer.Option(
        "--on", metavar="PLACE", show_default=False,
        help="Run the models that are tried there (ort-cuda, trt, ort:all), not by definition on the CPU.",
    ),
]  # fmt: skip
SaveSet = Annotated[
    Path | None,
    typer.Option("--save-set", metavar="FILE", show_default=False, help="Write the kept nodes, for --keep-fp32 @FILE."),
]
Report = Annotated[
    Path | None,
    typer.Option("--report", metavar="DIR", show_default=False, help="Write report.json and report.html there."),
]


def search(
    model: Path,
    target: Path | None,
    feeds: FeedOptions,
    storing: SaveOptions,
    *,
    budget: str | None,
    as_json: bool,
    quiet: bool,
    **how: Any,
) -> None:
    """Searches, prints what was found, and ends the command: 0, 1 without a set within the tolerance, 130 on Ctrl-C."""
    from onnxbench import specs, tuning
    from onnxbench.cli._render import chosen, note, print_json

    found = tuning.tune_file(
        model, target, feeds=feeds, options=storing,
        budget=None if budget is None else specs.parse_duration(budget), **how,
    )  # fmt: skip
    note(*found.notes, *chosen(found.choices), quiet=quiet)
    if as_json:
        print_json("precision", found)
    else:
        _print(found)
    raise typer.Exit(INTERRUPTED if found.interrupted else 0 if found.passed else 1)


def _print(found: Tuning) -> None:
    from onnxbench.cli._render import print_written
    from onnxbench.cli._tables import Column, print_top

    print_frontier(found)
    if found.found and found.kept:
        rows = [(each.node, each.op_type, _error(each.own), _error(each.effect)) for each in found.kept]
        columns = [Column("kept in float32"), Column("operator", "whole"), Column("own error", "number"),
                   Column("effect", "number")]  # fmt: skip
        print_top(columns, rows, _SHOWN, "nodes", "--save-set writes all")
    print_end(found)
    if found.saved is not None:
        print_written(found.saved)
    print(found.verdict)


def print_frontier(found: Tuning) -> None:
    """Prints the sets than which no cheaper one had a smaller error."""
    from onnxbench.cli._tables import Column, print_table

    print(f"run by {found.place}")
    points = [
        (f"{point.nodes:,}", f"{point.cost:,.6g}", point.score.text, "yes" if point.passed else "no")
        for point in found.frontier
    ]
    if points:  # none if the time was over before anything was tried
        print_table(
            [Column("kept", "number"), Column("cost", "number"), Column("error", "whole"), Column("passes", "whole")],
            points,
        )


def print_end(found: Tuning) -> None:
    """Prints how a search ended."""
    from onnxbench.wording import plural

    print(f"{plural(found.sets, 'set')} tried in {plural(found.runs, 'run')}; {found.ended}")
    if found.found and found.untried and found.kept:
        print(f"{found.untried:,} of the kept nodes were not left out by themselves: a longer search may need fewer")
    if found.interrupted:
        print("interrupted: this is the best set so far" if found.found else "interrupted: no set passed so far")


def _error(value: float | None) -> str:
    return "-" if value is None else "overflows" if value == float("inf") else f"{value:.1e}"
