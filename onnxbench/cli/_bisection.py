"""What bisect prints: the culprits, what makes more of their errors, the outputs, modules, and what to do next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxbench.bisection import Amplifier, Bisection, Culprit, FailingPiece, Judgement, ModuleError

_MOST_MODULES = 24


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: folders and a file, None for what was not."""

    repro: Path | None
    report: Path | None
    baseline: Path | None


def show(
    found: Bisection,
    judgement: Judgement | None,
    model: str,
    wrote: Written,
    *,
    limit: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Prints what was found: culprits, amplifiers, outputs, a baseline's judgement, and what was written.

    Args:
        found: What was found.
        judgement: How it compares with a baseline, if there is one.
        model: The suspect, as the user named it.
        wrote: What was written.
        limit: Culprits and amplifiers that are listed in text; 0 lists all.
        as_json: Print JSON.
        quiet: Leave out notes on stderr.
    """
    from onnxbench.cli._render import chosen, note, print_json

    note(*found.notes, *chosen(found.choices), *(judgement.notes if judgement else ()), quiet=quiet)
    if as_json:
        print_json("bisect", {**found.to_json(), "baseline": judgement})
        return
    many = f", {found.sets} sets of inputs" if found.sets > 1 else ""
    print(f"suspect:   {found.suspect}")
    if found.failure is not None:
        _show_failure(found.failure, wrote.repro)
        print(_coloured(found.verdict, "red"))
        return
    print(f"reference: {found.reference}")
    print(f"compared {found.matched:,} tensors, matched by {found.how} ({found.unmatched:,} without a partner){many}")
    _show_tables(found, limit)
    if judgement is not None:
        _show_judgement(judgement, limit)
    for line in _next_steps(found, model, wrote):
        print(line)
    print(_coloured(found.verdict, "green" if found.passed else "red"))
    if judgement is not None:
        print(_coloured(judgement.verdict, "green" if judgement.passed else "red"))


def _show_judgement(judgement: Judgement, limit: int) -> None:
    from onnxbench.cli._records import listed

    for each in judgement.worse[: limit or None]:
        print(f"worse: {each.text}")
    for names, what in ((judgement.new, "not in the baseline"), (judgement.vanished, "only in the baseline")):
        if names:
            print(f"{what}: {len(names):,} tensors: {listed(list(names), most=4)}")


def _show_failure(failure: FailingPiece, repro: Path | None) -> None:
    from onnxbench.cli._records import listed

    print(f"it {failure.text}" + (f", on set {failure.number}" if failure.number else ""))
    for line in (failure.message, *failure.details):
        print(f"  {line}")
    print(f"{failure.runs} parts of its {failure.before:,} nodes were tried; the smallest that does the same:")
    print(f"  nodes: {listed(list(failure.nodes), most=8)}")
    for text in failure.inputs[:8]:
        print(f"  input {text}")
    for word, value in (("module", failure.module), ("source", failure.source), ("function", failure.function)):
        if value:
            print(f"  {word}: {value}")
    if repro is not None:
        print(f"wrote {repro}: run {_python(repro)}")
    else:
        print("next: --repro DIR writes this part with what flows into it and a script")


def _show_tables(found: Bisection, limit: int) -> None:
    from onnxbench.cli._render import console

    most = limit or len(found.culprits) + len(found.amplifiers)
    if found.culprits:
        _show_culprits(found, most)
    if found.amplifiers and not found.passed:
        _show_amplifiers(found.amplifiers[:most])
    _show_outputs(found)
    if found.modules and not found.passed:
        console().print(_module_tree(found.modules))


def _show_culprits(found: Bisection, most: int) -> None:
    from onnxbench.cli._render import console, table

    columns = ["culprit", "operator", "module", ">own error", ">inherited", ">x rounding", ">of the outputs' error"]
    console().print(table(columns, [_culprit_row(culprit) for culprit in found.culprits[:most]]))
    for culprit in found.culprits[:most]:
        for line in _detail_lines(culprit, found.sets):
            print(line)
    if len(found.culprits) > most:
        print(f"and {len(found.culprits) - most:,} more (--limit 0 shows all)")
    if found.explained is not None and len(found.culprits) > 1:
        print(f"all of them together: {found.explained:.0%} of the outputs' error")


def _show_amplifiers(amplifiers: Sequence[Amplifier]) -> None:
    from onnxbench.cli._render import console, table

    rows = [
        (entry.node, entry.op_type, f"{entry.before:.1e}", f"{entry.after:.1e}", f"{entry.growth:,.0f}")
        for entry in amplifiers
    ]
    columns = ["amplifier (right, but makes more of it)", "operator", ">error in", ">out", ">times"]
    console().print(table(columns, rows))


def _show_outputs(found: Bisection) -> None:
    from onnxbench.cli._render import console, table

    several = found.sets > 1
    outputs: list[tuple[str, ...]] = [
        (
            drift.name, found.judged(drift), _number(drift.max_abs), _number(drift.sqnr_db),
            *([f"{number}"] if several else []), drift.reason,
        )
        for drift, number in zip(found.outputs, found.worst_sets, strict=True)
    ]  # fmt: skip
    columns = ["output", "verdict", ">max abs", ">SQNR dB", *([">worst on set"] if several else []), "why"]
    console().print(table(columns, outputs))


def _culprit_row(culprit: Culprit) -> tuple[str, ...]:
    inherited = culprit.inherited.text if culprit.inherited is not None else "-"
    excess = "-" if math.isinf(culprit.excess) else f"{culprit.excess:,.0f}"
    effect = "-" if culprit.effect is None else f"{round(culprit.effect, 2) + 0.0:.0%}"
    return (
        culprit.node, culprit.op_type, culprit.module or "-", culprit.own.text, inherited, excess, effect,
    )  # fmt: skip


def _detail_lines(culprit: Culprit, sets: int) -> Iterator[str]:
    if culprit.narrowed:
        yield f"{culprit.node}: {culprit.narrowed}"
    else:
        partner = f" ({culprit.partner})" if culprit.partner != culprit.tensor else ""
        yield f"{culprit.node} makes {culprit.tensor}{partner}"
    if len(culprit.region) > 1:
        from onnxbench.cli._records import listed

        yield f"  one of {listed(list(culprit.region), most=6)}: what lies between is not in the reference"
    if culprit.reference_region and culprit.reference_region != culprit.region:
        from onnxbench.cli._records import listed

        yield f"  in the reference: {listed(list(culprit.reference_region), most=6)}"
    words = {
        "attributes": culprit.attributes, "source": culprit.source, "code": culprit.code, "function": culprit.function
    }  # fmt: skip
    for word, value in words.items():
        if value:
            yield f"  {word}: {value}"
    for reason in culprit.why:
        yield f"  differs here: {reason}"
    if sets > 1:
        yield f"  seen on set {culprit.number}"
    when = f" in iteration {culprit.iteration}, the first that goes wrong" if culprit.iteration is not None else ""
    for inner in culprit.inner:
        yield f"  within{when}: {inner.place}: own error {inner.own.text}"
        for line in _detail_lines(inner, 1):
            yield f"  {line}"


def _python(repro: Path) -> str:
    """Returns the command line that runs a repro, in quotes of a kind that it does not have itself."""
    plain = str(repro)
    if shlex.quote(plain) == plain:
        return f"'python {plain}/reproduce.py'"
    return f"`python {shlex.quote(f'{plain}/reproduce.py')}`"


def _next_steps(found: Bisection, model: str, wrote: Written) -> Iterator[str]:
    from onnxbench.engine import is_engine

    if wrote.report is not None:
        yield f"wrote {wrote.report}: open {wrote.report / 'report.html'}"
    if wrote.baseline is not None:
        yield f"wrote {wrote.baseline}: --baseline {shlex.quote(str(wrote.baseline))} holds later runs against it"
    if wrote.repro is not None:
        yield f"wrote {wrote.repro}: run {_python(wrote.repro)}"
    elif found.culprits:
        yield "next: --repro DIR writes the first culprit as a small model with its inputs and a script"
    if wrote.report is None and not found.passed:
        yield "next: --report DIR writes a page with the graph around it, errors along depth, and all tensors"
    if found.culprits and not is_engine(Path(model)):
        command = f"onnxbench run {shlex.quote(model)} --outputs '{found.culprits[0].tensor}'"
        yield f"next: {command} shows what the tensor holds"
    elif found.kind == "spread":
        yield "next: onnxbench diff shows how the two models differ"
    elif not found.passed:
        yield "next: more inputs (--samples 8), or inputs that are like real ones (--feeds), may tell more"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _module_tree(modules: tuple[ModuleError, ...]) -> Any:
    """Returns the modules as a tree, red where a node has an error of its own, yellow where errors are inherited."""
    from rich.text import Text
    from rich.tree import Tree

    root = Tree("modules (own error in red, inherited in yellow)")
    places: dict[str, Any] = {"": root}
    off = [entry for entry in modules if entry.own > 1 or entry.total > 0]
    shown = _worst_modules(off)
    for entry in (entry for entry in off if entry.path in shown):
        above = entry.path.rpartition(".")[0]
        while above not in places:
            above = above.rpartition(".")[0]
        colour = "red" if entry.own > 1 else "yellow" if entry.total > 1e-5 else "green"
        size = "NaN, Inf or shape" if math.isinf(entry.total) else f"{entry.total:.1e}"
        own = f", {entry.own:,.0f} x rounding of its own" if 1 < entry.own < math.inf else ", its own" * (entry.own > 1)
        places[entry.path] = places[above].add(Text(f"{entry.path}  {size}{own}", style=colour))
    if len(shown) < len(off):
        root.add(Text(f"and {len(off) - len(shown):,} more with errors that they inherit (--report shows all)"))
    return root


def _worst_modules(modules: list[ModuleError]) -> set[str]:
    """Returns the modules that a short tree shows: the worst ones, with all that they lie in."""
    known = {entry.path for entry in modules}
    shown: set[str] = set()
    for entry in sorted(modules, key=_shown_first):
        path, whole = entry.path, set()
        while path:
            whole |= {path} & known
            path = path.rpartition(".")[0]
        if len(shown | whole) <= _MOST_MODULES:
            shown |= whole
    return shown


def _shown_first(entry: ModuleError) -> tuple[float, int, float]:
    """Returns what modules of a short tree are chosen by: their own errors, then outer ones before inner ones."""
    return -entry.own if entry.own > 1 else 0.0, entry.path.count("."), -entry.total


def _coloured(text: str, colour: str) -> str:
    import os
    import sys

    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\033[{'32' if colour == 'green' else '31'}m{text}\033[0m"
