"""``onnxbench bisect --over``: which of the things done to a model introduces its drift."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from onnxbench.cli._options import refuse_given

if TYPE_CHECKING:
    from onnxbench.changes import ChangeSearch
    from onnxbench.feeding import FeedOptions


def search_over(
    model: Path,
    over: str,
    *,
    on: str | None,
    reference_on: str | None,
    feeds: FeedOptions,
    atol: Sequence[str],
    rtol: Sequence[str],
    isolate: float,
    allow_outside: bool,
    unused: Mapping[str, Any],
    as_json: bool,
    quiet: bool,
) -> None:
    """Searches, shows what was found, and ends the command: with 0 without drift, with 1 otherwise."""
    from onnxbench import changes

    refuse_given(unused, "--over, which compares MODEL with itself")
    found = changes.bisect_over(
        model, over, on=on, reference_on=reference_on, feeds=feeds, atol=_one_number(atol, "--atol"),
        rtol=_one_number(rtol, "--rtol"), isolate=isolate, allow_outside=allow_outside,
    )  # fmt: skip
    _show(found, as_json=as_json, quiet=quiet)
    raise typer.Exit(0 if found.passed else 1)


def _one_number(words: Sequence[str], option: str) -> float | None:
    from onnxbench.errors import UsageError
    from onnxbench.specs import parse_tolerances

    told = parse_tolerances(words, set(), what=option)
    if len(told) > 1:
        raise UsageError(f"{option} takes one number with --over")
    return next(iter(told.values()), None)


def _show(found: ChangeSearch, *, as_json: bool, quiet: bool) -> None:
    from onnxbench.cli._render import chosen, console, note, print_json, table

    note(*found.notes, *chosen(found.choices), quiet=quiet)
    if as_json:
        print_json("bisect", found)
        return
    print(f"suspect:   {found.suspect}")
    print(f"reference: {found.reference}")
    rows = [
        ("*" if row.culprit else "", row.name, _number(row.error), _number(row.total), row.output, row.note)
        for row in found.changes
    ]
    if rows:
        console().print(table(["", found.over, ">off by", ">in all", "output", ""], rows))
    print(found.verdict)


def _number(error: float | None) -> str:
    return "-" if error is None else "NaN, Inf, shape" if math.isinf(error) else f"{error:.1e}"
