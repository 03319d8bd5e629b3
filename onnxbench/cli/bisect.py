"""``onnxbench bisect``: where and why a model drifts from a reference."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxbench.cli._command import means_nothing_without
from onnxbench.cli._options import (
    AllowOutside,
    AsJson,
    Cast,
    DimOption,
    FeedsOption,
    Fill,
    ModelArgument,
    Quiet,
    RangeOption,
    Seed,
    ShapeOption,
)

if TYPE_CHECKING:
    from onnxbench.bisection import Bisection, Culprit, FailingPiece, Judgement, ModuleError, Reference

_MOST_MODULES = 24


@means_nothing_without(
    fill="feeds",
    cast="feeds",
    reference_dtype="torch",
    argument="torch",
    state_dict="torch",
    key="state_dict",
    baseline_factor="baseline",
    anonymize="repro",
)
def bisect(
    model: ModelArgument,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            "--reference",
            metavar="REF.onnx",
            show_default=False,
            help="The model that is right; without it and --load-outputs, the same model on --reference-on.",
        ),
    ] = None,
    torch: Annotated[
        str | None,
        typer.Option(
            "--torch",
            metavar="FILE.py:FACTORY",
            show_default=False,
            help="The PyTorch model that is right, as 'onnxbench export' takes it; its example inputs are the inputs.",
        ),
    ] = None,
    reference_dtype: Annotated[
        str | None,
        typer.Option(
            "--reference-dtype", metavar="TYPE", show_default=False, help="What PyTorch computes in, say float64."
        ),
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            "--by",
            metavar="WAY",
            help="How tensors are matched with PyTorch's: metadata, names, values; auto: all in turn.",
        ),
    ] = "auto",
    argument: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME=ARG...",
            show_default=False,
            help="Which argument of the PyTorch model an input is, where names do not tell.",
        ),
    ] = None,
    state_dict: Annotated[
        Path | None,
        typer.Option(
            "--state-dict", metavar="FILE", show_default=False, help="Weights for the PyTorch model, as for export."
        ),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", metavar="FROM=>TO...", show_default=False, help="How its keys become the module's."),
    ] = None,
    load_outputs: Annotated[
        list[str] | None,
        typer.Option(
            "--load-outputs",
            "--expect",
            metavar="DATA...",
            show_default=False,
            help="Recorded values that are right, of any tensors: .npz, Polygraphy .json, a folder.",
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            metavar="PLACE",
            show_default=False,
            help="What runs MODEL: ort:all, ort:none,threads=1, ort:extended,provider=cuda, reference, trt.",
        ),
    ] = None,
    reference_on: Annotated[
        str | None,
        typer.Option(
            "--reference-on", metavar="PLACE", show_default=False, help="What runs the reference, likewise (ort:none)."
        ),
    ] = None,
    level: Annotated[
        str | None,
        typer.Option(
            "--optimization-level",
            metavar="LEVEL",
            show_default=False,
            help="The level of --on: none, basic, extended, all (none; all if the reference is the same model).",
        ),
    ] = None,
    reference_level: Annotated[
        str | None,
        typer.Option("--reference-level", metavar="LEVEL", show_default=False, help="That of --reference-on (none)."),
    ] = None,
    feeds: FeedsOption = None,
    shape: ShapeOption = None,
    dim: DimOption = None,
    val_range: RangeOption = None,
    seed: Seed = 0,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            "--iterations",
            min=1,
            show_default=False,
            help="Sets of inputs to compare on (all in the data, or 1); the worst is told.",
        ),
    ] = None,
    fill: Fill = False,
    cast: Cast = False,
    atol: Annotated[
        list[str] | None,
        typer.Option(
            "--atol",
            "--abs",
            metavar="TOL...",
            show_default=False,
            help="What outputs may be off: 1e-5, out:1e-3 (by element type; rounding alone is no drift then).",
        ),
    ] = None,
    rtol: Annotated[
        list[str] | None,
        typer.Option("--rtol", "--rel", metavar="TOL...", show_default=False, help="Relative tolerance, likewise."),
    ] = None,
    auto_tolerance: Annotated[
        bool,
        typer.Option(
            "--auto-tolerance",
            help="Allow each tensor ten times what rounding does to it in the reference (PyTorch: in float64).",
        ),
    ] = False,
    keep_fusions: Annotated[
        bool,
        typer.Option(
            "--keep-fusions",
            help="Compare only at tensors that ONNX Runtime's optimized graph of MODEL still has (--on ort:all).",
        ),
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            show_default=False,
            help="What the search may hold; refused if one node takes more (about a quarter of what is free).",
        ),
    ] = None,
    repro: Annotated[
        Path | None,
        typer.Option(
            "--repro",
            metavar="DIR",
            show_default=False,
            help="Write the first culprit there: a small model, inputs, expected outputs, and a script that shows it.",
        ),
    ] = None,
    anonymize: Annotated[
        bool,
        typer.Option(
            "--anonymize",
            help="In --repro, replace names, texts, metadata, weights and inputs, where the failure still shows.",
        ),
    ] = False,
    record: Annotated[
        Path | None,
        typer.Option(
            "--record",
            metavar="DIR",
            show_default=False,
            help="Compare nothing; write what records MODEL's values on --on (trt) elsewhere, for --load-outputs.",
        ),
    ] = None,
    over: Annotated[
        str | None,
        typer.Option(
            "--over",
            metavar="WHAT",
            show_default=False,
            help="Find what was done to MODEL that makes it drift: optimizers, recipe.yaml, opset, opset:N, providers.",
        ),
    ] = None,
    isolate: Annotated[
        bool, typer.Option("--isolate", help="Try MODEL in a process of its own before anything else.")
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, metavar="S", help="Seconds that one call of the runtime may take.")
    ] = 300.0,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="DIR",
            show_default=False,
            help="Write report.json and report.html there: all that was measured, and a page to look at.",
        ),
    ] = None,
    save_baseline: Annotated[
        Path | None,
        typer.Option(
            "--save-baseline",
            metavar="FILE",
            show_default=False,
            help="Write the errors to a file that later runs are held against.",
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline",
            metavar="FILE",
            show_default=False,
            help="Exit 0 if nothing is worse than there, 1 if anything is, whether or not there is drift.",
        ),
    ] = None,
    baseline_factor: Annotated[
        float,
        typer.Option("--baseline-factor", metavar="X", help="Worse is more than X times the baseline's error."),
    ] = 2.0,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin",
            metavar="PATH...",
            show_default=False,
            help="Custom operators: bundles by name or folder (they are code and are run).",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=0, metavar="N", help="In text: culprits and amplifiers listed (0: all).")
    ] = 10,
    allow_outside: AllowOutside = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find where a model drifts from a reference: the nodes whose own computation goes wrong; exit code 1 if any does.

    Every tensor that both sides know is compared, and each node is fed the reference's values, so that its own error is
    told from what it inherits. Culprits are ranked by how much of the outputs' error goes away when they are mended.
    Rounding is no drift, unless --atol or --rtol say so. Without --against and --load-outputs, the model as ONNX
    Runtime optimizes it is compared with the model as it stands. Where MODEL crashes, hangs or is refused, the part of
    it that does so is found.

    \b
    Examples:
      onnxbench bisect exported.onnx --against original.onnx
      onnxbench bisect fp16.onnx --against fp32.onnx --feeds x.npz --repro culprit/
      onnxbench bisect model.onnx --torch model.py:make --reference-dtype float64
      onnxbench bisect model.onnx --optimization-level all
      onnxbench bisect model.onnx --on ort:none --reference-on reference
      onnxbench bisect model.onnx --feeds x.npz --load-outputs golden.npz
      onnxbench bisect model.onnx --on trt
      onnxbench bisect model.engine --feeds x.npz
      onnxbench bisect model.onnx --on trt --feeds x.npz --record there/
      onnxbench bisect a.onnx --against b.onnx --samples 8 --memory 2GiB --json
      onnxbench bisect model.onnx --over optimizers --atol 1e-4
      onnxbench bisect model.onnx --over recipe.yaml
      onnxbench bisect detector.onnx --torch detector.py:make --plugin multi_level_roi_align batched_nms
      onnxbench bisect crashing.onnx --feeds x.npz --timeout 20 --repro culprit/
      onnxbench bisect fp16.onnx --against fp32.onnx --report report/
      onnxbench bisect fp16.onnx --against fp32.onnx --save-baseline drift.json
      onnxbench bisect fp16.onnx --against fp32.onnx --baseline drift.json
    """
    from onnxbench.cli._supervision import after_a_crash

    if record is not None:
        from onnxbench.cli._recording import write_recording

        write_recording(
            model, record, on=_place(on, level, "--optimization-level"), feeds=(feeds, shape, dim, val_range, seed),
            samples=samples, fill=fill, cast=cast, memory=memory, plugins=plugin, allow_outside=allow_outside,
            unused={"--against": against, "--torch": torch, "--load-outputs": load_outputs, "--repro": repro,
                    "--over": over, "--report": report, "--baseline": baseline, "--save-baseline": save_baseline},
            as_json=as_json, quiet=quiet,
        )  # fmt: skip
        return
    isolate = after_a_crash(timeout) or isolate
    from onnxbench import bisection, feeding, specs
    from onnxbench.bundles import load_bundles, operators_of

    if over is not None:
        from onnxbench.cli._over import search_over

        search_over(
            model, over, on=_place(on, level, "--optimization-level"),
            reference_on=_place(reference_on, reference_level, "--reference-level"),
            feeds=feeding.FeedOptions(feeds or (), shape or (), dim or (), val_range or (), seed, samples, fill, cast),
            atol=atol or (), rtol=rtol or (), isolate=timeout if isolate else 0.0, allow_outside=allow_outside,
            unused={"--against": against, "--load-outputs": load_outputs, "--repro": repro, "--memory": memory,
                    "--report": report, "--baseline": baseline, "--save-baseline": save_baseline,
                    "--auto-tolerance": auto_tolerance or None, "--keep-fusions": keep_fusions or None,
                    "--plugin": plugin},
            as_json=as_json, quiet=quiet,
        )  # fmt: skip
    before = bisection.open_baseline(baseline, save_to=save_baseline, factor=baseline_factor)
    reference = (
        against if torch is None else _torch(torch, reference_dtype, by, argument, shape, state_dict, key, against)
    )
    found = bisection.bisect(
        model, against=reference, recorded=load_outputs or (), on=_place(on, level, "--optimization-level"),
        reference_on=_place(reference_on, reference_level, "--reference-level"),
        feeds=feeding.FeedOptions(feeds or (), shape or (), dim or (), val_range or (), seed, samples, fill, cast),
        atol=atol or (), rtol=rtol or (), auto_tolerance=auto_tolerance, keep_fusions=keep_fusions,
        memory=None if memory is None else specs.parse_memory(memory), repro=repro,
        anonymize=anonymize,
        report=report, evidence=bool(baseline or save_baseline),
        isolate=isolate, timeout=timeout, operators=operators_of(load_bundles(plugin or ())),
        allow_outside=allow_outside,
    )  # fmt: skip
    if found.failure is not None:  # nothing was compared: there is nothing to report, or to hold against a baseline
        before = report = save_baseline = None
    judgement = None if before is None else before.judge(found, factor=baseline_factor)
    if save_baseline is not None:
        bisection.Baseline.of(found).save(save_baseline)
    wrote = _Written(repro if found.culprits or found.failure else None, report, save_baseline)
    _show(found, judgement, str(model), wrote, limit=limit, as_json=as_json, quiet=quiet)
    raise typer.Exit(0 if (judgement or found).passed else 1)


def _torch(
    source: str, dtype: str | None, by: str, inputs: list[str] | None, shapes: list[str] | None,
    state_dict: Path | None, keys: list[str] | None, against: Path | None,
) -> Reference:  # fmt: skip
    from onnxbench.errors import UsageError
    from onnxbench.pytorch.reference import torch_reference
    from onnxbench.specs import parse_pairs

    if against is not None:
        raise UsageError("--torch and --against both name a reference")
    pairs = parse_pairs(inputs or (), what="--input", example="NAME=ARG: --input input.1=x")
    return torch_reference(
        source, dtype=dtype, by=by, inputs=pairs, shapes=shapes or (),
        state_dict=state_dict, keys=keys or (),
    )  # fmt: skip


def _place(place: str | None, level: str | None, option: str) -> str | None:
    """Returns the place with a level that is typed in an option of its own."""
    from onnxbench.errors import UsageError

    if level is None:
        return place
    head, comma, rest = (place or "ort").partition(",")
    if ":" in head or "level=" in rest:
        raise UsageError(f"{option} and {place!r} both name a level")
    return f"{head}:{level}{comma}{rest}"


@dataclass(frozen=True, slots=True)
class _Written:
    """What was written: folders and a file, None for what was not."""

    repro: Path | None
    report: Path | None
    baseline: Path | None


def _show(
    found: Bisection,
    judgement: Judgement | None,
    model: str,
    wrote: _Written,
    *,
    limit: int,
    as_json: bool,
    quiet: bool,
) -> None:
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
        print(f"wrote {repro}: run 'python {repro}/reproduce.py'")
    else:
        print("next: --repro DIR writes this part with what flows into it and a script")


def _show_tables(found: Bisection, limit: int) -> None:
    from onnxbench.cli._render import console, table

    screen = console()
    most = limit or len(found.culprits) + len(found.amplifiers)
    if found.culprits:
        columns = ["culprit", "operator", "module", ">own error", ">inherited", ">x rounding", ">of the outputs' error"]
        screen.print(table(columns, [_culprit_row(culprit) for culprit in found.culprits[:most]]))
        for culprit in found.culprits[:most]:
            for line in _detail_lines(culprit, found.sets):
                print(line)
        if len(found.culprits) > most:
            print(f"and {len(found.culprits) - most:,} more (--limit 0 shows all)")
        if found.explained is not None and len(found.culprits) > 1:
            print(f"all of them together: {found.explained:.0%} of the outputs' error")
    if found.amplifiers and not found.passed:
        rows = [
            (entry.node, entry.op_type, f"{entry.before:.1e}", f"{entry.after:.1e}", f"{entry.growth:,.0f}")
            for entry in found.amplifiers[:most]
        ]
        screen.print(
            table(["amplifier (right, but makes more of it)", "operator", ">error in", ">out", ">times"], rows)
        )
    several = found.sets > 1
    outputs: list[tuple[str, ...]] = [
        (
            drift.name, found.judged(drift), _number(drift.max_abs), _number(drift.sqnr_db),
            *([f"{number}"] if several else []), drift.reason,
        )
        for drift, number in zip(found.outputs, found.worst_sets, strict=True)
    ]  # fmt: skip
    columns = ["output", "verdict", ">max abs", ">SQNR dB", *([">worst on set"] if several else []), "why"]
    screen.print(table(columns, outputs))
    if found.modules and not found.passed:
        screen.print(_module_tree(found.modules))


def _culprit_row(culprit: Culprit) -> tuple[str, ...]:
    inherited = culprit.inherited.text if culprit.inherited is not None else "-"
    excess = "-" if math.isinf(culprit.excess) else f"{culprit.excess:,.0f}"
    effect = "-" if culprit.effect is None else f"{culprit.effect:.0%}"
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


def _next_steps(found: Bisection, model: str, wrote: _Written) -> Iterator[str]:
    from onnxbench.engine import is_engine

    if wrote.report is not None:
        yield f"wrote {wrote.report}: open {wrote.report / 'report.html'}"
    if wrote.baseline is not None:
        yield f"wrote {wrote.baseline}: --baseline {wrote.baseline} holds later runs against it"
    if wrote.repro is not None:
        yield f"wrote {wrote.repro}: run 'python {wrote.repro}/reproduce.py'"
    elif found.culprits:
        yield "next: --repro DIR writes the first culprit as a small model with its inputs and a script"
    if wrote.report is None and not found.passed:
        yield "next: --report DIR writes a page with the graph around it, errors along depth, and all tensors"
    if found.culprits and not is_engine(Path(model)):
        yield f"next: onnxbench run {model} --outputs '{found.culprits[0].tensor}' shows what the tensor holds"
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
