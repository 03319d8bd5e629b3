"""``onnxbench diff``: what differs between two models, as a review."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxbench.cli._options import AllowOutside, AsJson, Quiet

if TYPE_CHECKING:
    from onnxbench.diffing import Change, DiffReport

_LISTED = 20
_LONGEST = 160
_EXAMPLES = 3


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="The first model.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="The second model.", show_default=False)],
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore",
            metavar="KIND...",
            help="Kinds of changes to leave out: names, metadata, docs, weights, value-info, producer, opset, ...",
            show_default=False,
        ),
    ] = None,
    atol: Annotated[float, typer.Option("--atol", "--abs", metavar="TOL", help="Weights may be so far apart.")] = 0.0,
    rtol: Annotated[
        float, typer.Option("--rtol", "--rel", metavar="TOL", help="The same, relative to the value in A.")
    ] = 0.0,
    stat: Annotated[bool, typer.Option("--stat", help="Only count the changes.")] = False,
    limit: Annotated[
        int, typer.Option("--limit", min=0, metavar="N", help="In text: changes listed of a kind in a graph (0: all).")
    ] = _LISTED,
    allow_outside: AllowOutside = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show what differs between two models: nodes, wiring, weights, types, names, metadata; exit code 1 if any does.

    Nodes and tensors are matched by what they compute, so renamed tensors, reordered nodes and weights that are stored
    otherwise hide nothing: a rename is one change (=>), an inserted node is one (+), the input that reads it another
    (~). Weights are read in blocks, and not at all where both models refer to the same bytes. Kinds of changes: node,
    op, attribute, default (an attribute that only states its default), wiring, input, output, type, value-info, weight,
    quantization, name, function, metadata, doc, opset, ir-version, producer, training, configuration, unknown. The
    stamp of an edit (metadata onnxbench.recipe) is only told in a note.

    \b
    Examples:
      onnxbench diff before.onnx after.onnx
      onnxbench diff before.onnx after.onnx --ignore names metadata docs value-info
      onnxbench diff fp32.onnx tuned.onnx --atol 1e-6 --rtol 1e-3
      onnxbench diff before.onnx after.onnx --stat
      onnxbench diff before.onnx after.onnx --json
    """
    from onnxbench import diffing

    report = diffing.diff(a, b, ignore=ignore or (), atol=atol, rtol=rtol, allow_outside=allow_outside)
    _show(report, str(a), str(b), stat=stat, limit=limit, as_json=as_json, quiet=quiet)
    raise typer.Exit(0 if report.equal else 1)


def _show(report: DiffReport, a: str, b: str, *, stat: bool, limit: int, as_json: bool, quiet: bool) -> None:
    from onnxbench.cli._render import note, print_json

    if as_json:
        result = report.to_json()
        if stat:
            del result["changes"]
        print_json("diff", result)
        return
    note(*report.notes, quiet=quiet)
    if stat:
        for kind, count in report.counts.items():
            print(f"{count:>9,}  {kind}")
    elif not report.equal:
        for line in _lines(report, a, b, limit):
            print(line)
    print(report.summary)


def _lines(report: DiffReport, a: str, b: str, limit: int) -> Iterator[str]:
    """Yields the changes as a review: graph by graph, in the order of each."""
    from onnxbench.cli._tables import plain

    yield f"--- {plain(a)}"
    yield f"+++ {plain(b)}"
    for title, members in groupby(report.changes, key=_title):
        yield plain(title)
        shown: dict[str, int] = {}
        for change in members:
            count = shown[change.kind] = shown.get(change.kind, 0) + 1
            if not limit or count <= limit:
                yield from _change_lines(change)
        left = {kind: count - limit for kind, count in shown.items() if limit and count > limit}
        if left:
            words = ", ".join(f"{count:,} {kind}" for kind, count in left.items())
            yield f"  ... and {words} more (--limit 0 shows all)"
        yield ""


def _title(change: Change) -> str:
    if not change.graph:
        return "model"
    return f"function {change.graph}" if "::" in change.graph.partition("/")[0] else f"body {change.graph}"


def _change_lines(change: Change) -> Iterator[str]:
    from onnxbench.cli._tables import plain

    start, end = _style(change.sign)
    what = change.what if change.what not in ("node", "weight", "input", "output") or change.sign == "~" else ""
    if change.kind == "name":
        before, after = (
            (change.before, change.after) if change.count > 1 else (_name(change.before), _name(change.after))
        )
        head = f"{change.what}{':' if change.count > 1 else ''} {before} => {after}"
    else:
        noun = {"node": "node", "weight": "weight", "input": "input", "output": "output"}.get(change.kind, "")
        owner = f"{change.where} ({change.op})" if change.op and change.kind != "node" else change.where
        values = _values(change)
        words = (noun if change.kind == "node" or not change.op else "", owner, "" if what == noun else what)
        head = f"{' '.join(word for word in words if word)}: {values}"
    yield f"  {start}{change.sign:<2}{end} {plain(head)}"
    if change.note:
        yield f"       {plain(change.note)}"
    for before, after in change.pairs[:_EXAMPLES]:
        yield f"       {plain(f'{_name(before)} => {_name(after)}')}"
    if len(change.pairs) > _EXAMPLES:
        yield f"       ... (--json has all {len(change.pairs):,})"


def _name(name: str) -> str:
    return _value(name) if name else "(no name)"


def _values(change: Change) -> str:
    if change.before is None:
        return _value(change.after)
    if change.after is None:
        return _value(change.before)
    before, after = _value(change.before), _value(change.after)
    if before != after:
        return f"{before} -> {after}"
    return before if change.note else f"{before} -> (another, which differs further on)"


def _value(value: Any) -> str:
    from onnxbench.cli._records import attribute_text

    text = '""' if value == "" else attribute_text(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _style(sign: str) -> tuple[str, str]:
    """Returns what colours a sign on a terminal."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return "", ""
    return {"+": "\033[32m", "-": "\033[31m", "=>": "\033[36m"}.get(sign, "\033[33m"), "\033[0m"
