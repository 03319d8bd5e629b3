"""``onnxbench run``: a model's values, their statistics, drift, the source of NaN, and latency."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    OnPlace,
    OperatorLibraries,
    Quiet,
    RangeOption,
    RelativeTolerances,
    Seed,
    ShapeOption,
    Warmup,
)
from onnxbench.wording import plural

if TYPE_CHECKING:
    from onnxbench.backends import Options
    from onnxbench.nonfinite import NonFinite, Origin
    from onnxbench.running import Latency, RunResult
    from onnxbench.tensorstats import TensorStats


@means_nothing_without(atol="expect", rtol="expect", bitwise="expect", warmup="bench", fill="feeds", cast="feeds")
def run(
    model: ModelArgument,
    feeds: FeedsOption = None,
    shape: ShapeOption = None,
    dim: DimOption = None,
    val_range: RangeOption = None,
    seed: Seed = 0,
    iterations: Annotated[
        int | None,
        typer.Option(
            "--iterations",
            min=1,
            show_default=False,
            help="Sets of inputs to run (all in the data, or 1).",
        ),
    ] = None,
    fill: Fill = False,
    cast: Cast = False,
    outputs: Annotated[
        list[str] | None,
        typer.Option(
            "--outputs",
            "--onnx-outputs",
            metavar="SEL...",
            show_default=False,
            help="Tensors to look at in place of the outputs; inner ones too ('*' for all).",
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            "--save-outputs",
            "--save-results",
            metavar="F.npz",
            show_default=False,
            help="Save the values (several sets: to a folder).",
        ),
    ] = None,
    save_inputs: Annotated[
        Path | None,
        typer.Option(
            "--save-inputs",
            "--save-input-data",
            metavar="F.npz",
            show_default=False,
            help="Save the inputs.",
        ),
    ] = None,
    max_memory: Annotated[
        str,
        typer.Option("--max-memory", metavar="SIZE", help="Compute inner tensors in batches of this size."),
    ] = "1GiB",
    expect: Annotated[
        list[str] | None,
        typer.Option(
            "--expect",
            "--load-outputs",
            metavar="DATA...",
            show_default=False,
            help="Compare with saved values; exit code 1 if they drift.",
        ),
    ] = None,
    atol: Annotated[
        list[str] | None,
        typer.Option(
            "--atol",
            "--abs",
            metavar="TOL...",
            show_default=False,
            help="Absolute tolerance: 1e-5, out:1e-3.",
        ),
    ] = None,
    rtol: RelativeTolerances = None,
    bitwise: Annotated[bool, typer.Option("--bitwise", help="Every bit must agree.")] = False,
    find_nan: Annotated[
        bool | None,
        typer.Option(
            "--find-nan/--no-find-nan",
            show_default=False,
            help="Search all nodes for the first NaN or Inf: exit code 1 (by default only if an output has one).",
        ),
    ] = None,
    validate: Annotated[
        bool,
        typer.Option("--validate", help="Exit code 1 if an output, or a tensor asked for, holds NaN or Inf."),
    ] = False,
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend",
            metavar="NAME",
            show_default=False,
            help="ort (the default), reference (onnx's evaluator), trt, or one of another package.",
        ),
    ] = None,
    on: OnPlace = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(
            "--provider",
            "--providers",
            metavar="EP...",
            show_default=False,
            help="Execution providers, best first (cpu).",
        ),
    ] = None,
    optimization_level: Annotated[
        str,
        typer.Option(
            "--optimization-level",
            metavar="LEVEL",
            help="Graph optimizations: none, basic, extended, all; auto is all, or none for very large graphs.",
        ),
    ] = "auto",
    threads: Annotated[
        int, typer.Option("--threads", min=0, help="Threads within an operator; 0: as many as suit.")
    ] = 0,
    custom_ops: OperatorLibraries = None,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin",
            metavar="PATH...",
            show_default=False,
            help="Custom operators: folders of bundles; for an engine, libraries too (they are code and are run).",
        ),
    ] = None,
    bench: Annotated[int, typer.Option("--bench", min=0, help="Time this many runs.")] = 0,
    warmup: Warmup = 5,
    profile: Annotated[
        Path | None,
        typer.Option("--profile", metavar="F.json", show_default=False, help="Save the runtime's own trace."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Let the runtime write its log to stderr.")] = False,
    allow_outside: AllowOutside = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run a model, or a TensorRT engine on a GPU: statistics, drift from saved values, the first NaN, and latency.

    Without --feeds, inputs are drawn from a seed: the same seed gives the same values. What was decided about them is
    said. --outputs looks at inner tensors without a change to the model. NaN and Inf in an output are told, and their
    source is searched; the exit code is 1 for them with --validate or --find-nan.

    \b
    Examples:
      onnxbench run model.onnx
      onnxbench run model.onnx --feeds x.npz --save y.npz
      onnxbench run model.onnx --shape x:[1,3,640,640] --outputs 'op:Conv' --optimization-level none
      onnxbench run model.onnx --feeds x.npz --expect y.npz --atol 1e-4 out:1e-2
      onnxbench run model.onnx --validate --outputs '*'
      onnxbench run model.onnx --find-nan
      onnxbench run model.onnx --plugin plugins/dynamic_resize
      onnxbench run model.onnx --bench 100 --threads 1
      onnxbench run model.onnx --on ort:basic,threads=1
      onnxbench run model.engine --feeds x.npz --bench 100
    """
    from onnxbench import backends, bundles, feeding, running, specs
    from onnxbench.cli import _engines

    if _engines.is_engine(model):
        _engines.refuse_for_models(
            outputs=outputs, bitwise=bitwise, find_nan=find_nan, validate=validate, provider=provider, profile=profile,
            custom_ops=custom_ops, backend=backend, on=on, iterations=iterations, threads=threads, verbose=verbose,
        )  # fmt: skip
        said = feeding.FeedOptions(feeds or (), shape or (), dim or (), val_range or (), seed, None, fill, cast)
        _engines.run(
            model, said, plugin=plugin, expect=expect or (), atol=atol or (), rtol=rtol or (), bench=bench,
            warmup=warmup, save=save, save_inputs=save_inputs, as_json=as_json, quiet=quiet,
        )  # fmt: skip
        return
    options = backends.Options(
        optimization_level, tuple(provider or ("cpu",)), threads, tuple(custom_ops or ()), profile, verbose,
        operators=bundles.operators_of(bundles.load_bundles(plugin or [])),
    )  # fmt: skip
    name, options = (backend or "ort", options) if on is None else _placed(on, backend, options)
    result = running.run(
        model,
        feeding.FeedOptions(feeds or (), shape or (), dim or (), val_range or (), seed, iterations, fill, cast),
        outputs=outputs or (), backend=name, expect=expect or (), atol=atol or (), rtol=rtol or (), bitwise=bitwise,
        options=options,
        find_nan=find_nan, validate=validate, bench=bench, warmup=warmup, save=save, save_inputs=save_inputs,
        max_bytes=specs.parse_memory(max_memory), keep_values=False, allow_outside=allow_outside,
    )  # fmt: skip
    _show(result, as_json=as_json, quiet=quiet)
    raise typer.Exit(0 if result.passed else 1)


def _placed(on: str, backend: str | None, options: Options) -> tuple[str, Options]:
    """Returns the backend and the options that a place means; what it does not say is as in these options."""
    from dataclasses import replace

    from onnxbench.bisection import parse_place
    from onnxbench.errors import UsageError

    if backend is not None:
        raise UsageError("--on and --backend both say what runs the model")
    level = options.optimization
    place = parse_place(on, level="all" if level == "auto" else level, options=options)
    head, _, settings = on.partition(",")
    if place.backend == "ort" and ":" not in head and "level=" not in settings:
        return place.backend, replace(place.options, optimization=level)
    return place.backend, place.options


def _show(result: RunResult, *, as_json: bool, quiet: bool) -> None:
    from onnxbench.cli._drift import print_drift
    from onnxbench.cli._render import chosen, console, note, print_json

    note(*result.notes, *chosen(result.choices), *_warnings(result), quiet=quiet)
    if as_json:
        print_json("run", result)
        return
    screen = console()
    threads = f"{result.threads} thread{'s' if result.threads != 1 else ''}" if result.threads else "default threads"
    sets = f", {result.sets} sets of inputs" if result.sets > 1 else ""
    print(f"{result.backend} on {result.provider}, optimizations {result.optimization}, {threads}{sets}")
    screen.print(stats_table("inputs", result.inputs))
    screen.print(stats_table("outputs", result.outputs))
    if result.latency is not None:
        screen.print(latency_table(result.latency))
    if result.nonfinite is not None:
        print("\n".join(_nonfinite_lines(result.nonfinite)))
    elif result.searched:
        print("no NaN and no Inf in any tensor")
    for path in result.saved:
        print(f"wrote {path}")
    if result.drift is not None:
        print_drift(result.drift)
    if result.validated:
        print(_validity(result))


def _validity(result: RunResult) -> str:
    if not result.nonfinite_outputs:
        return f"PASSED: no NaN and no Inf in {plural(len(result.outputs), 'tensor')}"
    return f"FAILED: NaN or Inf in {len(result.nonfinite_outputs):,} of {plural(len(result.outputs), 'tensor')}"


def _warnings(result: RunResult) -> Iterator[str]:
    """Yields one line on outputs with NaN or Inf, and how to find where these come from."""
    from onnxbench.cli._records import listed

    wrong = [
        f"{entry.name} ({entry.nans:,} NaN, {entry.infs:,} Inf of {entry.elements:,})"
        for entry in result.outputs
        if not entry.finite
    ]
    if wrong:
        how = "" if result.nonfinite else "; --find-nan shows the first node that makes any"
        yield f"warning: NaN or Inf in {listed(wrong, most=4)}{how}"


def stats_table(title: str, stats: tuple[TensorStats, ...]) -> object:
    """Returns a table of statistics of tensors."""
    from onnxbench.cli._drift import number
    from onnxbench.cli._render import format_bytes, table
    from onnxbench.tensortype import format_shape

    rows = [
        (
            entry.name, f"{entry.dtype}{format_shape(entry.shape)}", number(entry.min), number(entry.max),
            number(entry.mean), number(entry.std), f"{entry.zeros / entry.elements:.1%}" if entry.elements else "-",
            f"{entry.nans:,}", f"{entry.infs:,}", format_bytes(entry.bytes),
        )
        for entry in stats
    ]  # fmt: skip
    return table([title, "type", ">min", ">max", ">mean", ">std", ">zeros", ">NaN", ">Inf", ">bytes"], rows)


def latency_table(latency: Latency) -> object:
    """Returns the latency table."""
    from onnxbench.cli._render import table

    times = (latency.mean_ms, latency.median_ms, latency.p95_ms, latency.min_ms, latency.max_ms, latency.std_ms)
    row = (
        f"{latency.runs:,} runs after {latency.warmup:,} to warm up",
        *(f"{time:.3f}" for time in times),
        f"{latency.fps:.1f}",
    )
    return table(["latency", ">mean ms", ">median ms", ">p95 ms", ">min ms", ">max ms", ">std ms", ">FPS"], [row])


def _nonfinite_lines(found: NonFinite) -> list[str]:
    lines = [f"{found.affected:,} of {found.examined:,} floating-point tensors hold NaN or Inf"]
    lines += [
        f"  {entry.name} does from the start: {entry.nans:,} NaN, {entry.infs:,} Inf of {entry.elements:,} elements"
        for entry in found.sources
    ]
    if found.origin is None:
        lines.append("  no node makes any out of finite inputs")
    else:
        lines += _origin_lines("first", found.origin)
    if found.nan_origin is not None:
        lines += _origin_lines("first NaN", found.nan_origin)
    return lines


def _origin_lines(which: str, origin: Origin) -> list[str]:
    from onnxbench.cli._drift import number
    from onnxbench.tensortype import format_shape

    lines = [f"{which}: node {origin.node} ({origin.op_type}) makes {origin.makes}"]
    lines += [f"  inside {place}" for place in origin.within]
    lines += [
        f"  {word} {value}"
        for word, value in (("module", origin.scope), ("source", origin.source), ("note:", origin.note))
        if value
    ]
    for word, entries in (("in ", origin.inputs), ("out", origin.outputs)):
        lines += [
            f"  {word} {entry.name}: {entry.dtype}{format_shape(entry.shape)} min {number(entry.min)} "
            f"max {number(entry.max)} NaN {entry.nans:,} Inf {entry.infs:,}"
            for entry in entries
        ]
    return lines
