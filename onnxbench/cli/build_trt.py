"""``onnxbench build-trt``: a TensorRT engine of a model, or what stands in its way."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxbench.cli._building import ComputeCapability, EngineName, capabilities_of, shape_option, shape_words
from onnxbench.cli._command import means_nothing_without
from onnxbench.cli._options import AllowOutside, AsJson, ModelArgument, Quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from onnxbench.bundles import Plugin
    from onnxbench.engine import BuildSpec, Built, Diagnosis, Observed, Prepared, Problem, Verification
    from onnxbench.model import Model

_SHOWN = 8
"""Problems of one operator that are printed."""


@means_nothing_without(
    apply_=("doctor", "engine_file"),
    no_trial="doctor",
    save_model=("apply_", "fix", "calibration", "config", "fp16", "bf16"),
    save_recipe=("apply_", "fix", "config", "fp16", "bf16"),
    log_file="engine_file",
    verify=("engine_file", "output"),
    embed_plugins=("plugin", "config"),
    calibration="int8",
    tolerance=("fp16", "bf16", "config"),
)
def build_trt(
    model: ModelArgument,
    engine_file: Annotated[
        Path | None, typer.Argument(metavar="[ENGINE]", help="The engine to write.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="The same.", show_default=False)
    ] = None,
    min_shapes: Annotated[
        list[str] | None, shape_option("--min-shapes", "Smallest shapes: x:[1,3,224,224], x:1x3x224x224.")
    ] = None,
    opt_shapes: Annotated[
        list[str] | None, shape_option("--opt-shapes", "Shapes that the engine is tuned for.")
    ] = None,
    max_shapes: Annotated[
        list[str] | None,
        shape_option("--max-shapes", "Largest shapes. An input named once more begins the next profile."),
    ] = None,
    shapes: Annotated[list[str] | None, shape_option("--shapes", "Smallest, tuned and largest shape at once.")] = None,
    profile: Annotated[
        list[int] | None,
        typer.Option("--profile", metavar="N", help="The shapes behind it are of profile N.", show_default=False),
    ] = None,
    from_feeds: Annotated[
        list[str] | None,
        typer.Option(
            "--from-feeds",
            metavar="DATA...",
            show_default=False,
            help="Shapes from real inputs: a folder of .npz and all else that 'onnxbench run --feeds' takes.",
        ),
    ] = None,
    propose: Annotated[
        bool, typer.Option("--propose/--no-propose", help="Choose shapes where none at all are given.")
    ] = True,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            show_default=False,
            help="A YAML file with all of this, or an MMDeploy configuration; flags go before it.",
        ),
    ] = None,
    engine: EngineName = None,
    compute_capability: ComputeCapability = None,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin",
            metavar="PATH...",
            show_default=False,
            help="Custom operators: a bundle's folder, a .py file, a library (they are code and are run).",
        ),
    ] = None,
    embed_plugins: Annotated[
        bool, typer.Option("--embed-plugins", help="Put plugin libraries into the engine.")
    ] = False,
    pool_limit: Annotated[
        list[str] | None,
        typer.Option("--pool-limit", metavar="POOL:SIZE...", help="workspace:4G, tactic_dram:1G.", show_default=False),
    ] = None,
    mem_pool_size: Annotated[
        list[str] | None, typer.Option("--mem-pool-size", hidden=True, help="trtexec's --memPoolSize, in MiB.")
    ] = None,
    workspace: Annotated[
        str | None, typer.Option("--workspace", metavar="SIZE", help="The same as workspace:SIZE.", show_default=False)
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option("--optimization-level", metavar="0-5", help="How hard to try.", show_default=False)
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option("--timing-cache", metavar="FILE", help="Timings, read and written back.", show_default=False),
    ] = None,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Convert to float16; let a weakly typed TensorRT 10 use it.")
    ] = False,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(
            "--tolerance",
            metavar="TOL...",
            show_default=False,
            help="With --fp16 or --bf16: keep the fewest nodes in float32 for which outputs are within 1e-2, out:1e-3, "
            "on --from-feeds or one set of drawn inputs (see 'onnxbench precision --search').",
        ),
    ] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Convert to bfloat16; the same.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Allow int8 (TensorRT 10); with --calibration anywhere.")
    ] = False,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            "--calibration",
            metavar="DATA...",
            help="With --int8: quantize the model for inputs like these (npz, folder, script.py:func).",
            show_default=False,
        ),
    ] = None,
    fp8: Annotated[bool, typer.Option("--fp8", help="Allow float8 (the same).")] = False,
    int4: Annotated[bool, typer.Option("--int4", help="Allow 4-bit weights (the same).")] = False,
    best: Annotated[bool, typer.Option("--best", help="Allow every precision (the same).")] = False,
    weakly_typed: Annotated[
        bool, typer.Option("--weakly-typed", help="TensorRT 10: choose types by the precision flags.")
    ] = False,
    no_tf32: Annotated[bool, typer.Option("--no-tf32", help="Compute float32 in float32.")] = False,
    refit: Annotated[bool, typer.Option("--refit", help="Let weights be exchanged later.")] = False,
    strip_weights: Annotated[
        bool, typer.Option("--strip-weights", help="Leave out weights that a refit brings.")
    ] = False,
    weight_streaming: Annotated[bool, typer.Option("--weight-streaming", help="Let weights stay on the host.")] = False,
    sparse_weights: Annotated[bool, typer.Option("--sparse-weights", help="Use structured sparsity.")] = False,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Make an engine for later versions too.")
    ] = False,
    exclude_lean_runtime: Annotated[
        bool, typer.Option("--exclude-lean-runtime", help="Without the runtime for that inside.")
    ] = False,
    hardware_compatibility: Annotated[
        str | None,
        typer.Option("--hardware-compatibility", metavar="LEVEL", help="ampere_plus, ...", show_default=False),
    ] = None,
    runtime_platform: Annotated[
        str | None, typer.Option("--runtime-platform", metavar="NAME", help="windows_amd64, ...", show_default=False)
    ] = None,
    strict_nans: Annotated[bool, typer.Option("--strict-nans", help="Keep NaN where it arises.")] = False,
    direct_io: Annotated[bool, typer.Option("--direct-io", help="Do not reformat inputs and outputs.")] = False,
    dla_core: Annotated[
        int | None, typer.Option("--dla-core", metavar="N", help="Build for this DLA core.", show_default=False)
    ] = None,
    gpu_fallback: Annotated[bool, typer.Option("--gpu-fallback", help="Let the GPU do what the DLA cannot.")] = False,
    device: Annotated[
        int | None, typer.Option("--device", metavar="N", help="The GPU that builds.", show_default=False)
    ] = None,
    profiling_verbosity: Annotated[
        str | None,
        typer.Option(
            "--profiling-verbosity", metavar="LEVEL", help="detailed, layer_names_only, none.", show_default=False
        ),
    ] = None,
    tactic_sources: Annotated[
        list[str] | None,
        typer.Option("--tactic-sources", metavar="NAME...", help="+CUBLAS -CUDNN, or names.", show_default=False),
    ] = None,
    max_aux_streams: Annotated[
        int | None, typer.Option("--max-aux-streams", metavar="N", help="Further streams.", show_default=False)
    ] = None,
    max_tactics: Annotated[
        int | None, typer.Option("--max-tactics", metavar="N", help="Tactics tried for a layer.", show_default=False)
    ] = None,
    avg_timing: Annotated[
        int | None, typer.Option("--avg-timing", metavar="N", help="Runs averaged for a timing.", show_default=False)
    ] = None,
    tiling_level: Annotated[
        str | None, typer.Option("--tiling-level", metavar="LEVEL", help="none, fast, ...", show_default=False)
    ] = None,
    doctor: Annotated[
        bool, typer.Option("--doctor", help="Say what TensorRT refuses, by node, with the ways out; write nothing.")
    ] = False,
    apply_: Annotated[
        bool, typer.Option("--apply", help="Take the ways out that are known, then build (or judge) the result.")
    ] = False,
    fix: Annotated[
        list[str] | None,
        typer.Option("--fix", metavar="INPUT=VALUE...", help="Give inputs one value for good.", show_default=False),
    ] = None,
    save_model: Annotated[
        Path | None,
        typer.Option(
            "--save-model", metavar="FILE", help="Keep the model as --apply or --fix edited it.", show_default=False
        ),
    ] = None,
    save_recipe: Annotated[
        Path | None,
        typer.Option(
            "--save-recipe",
            metavar="FILE",
            help="Write what --fix and --apply did as a recipe of 'onnxbench edit'.",
            show_default=False,
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Compare with ONNX Runtime at all ends of the profiles, on a GPU; leaves a script for it.",
        ),
    ] = False,
    no_trial: Annotated[bool, typer.Option("--no-trial", help="With --doctor: parse only, do not build.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Build even if nothing changed.")] = False,
    log_file: Annotated[
        Path | None,
        typer.Option("--log-file", metavar="FILE", help="All that TensorRT logs.", show_default=False),
    ] = None,
    allow_outside: AllowOutside = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Build a TensorRT engine, on any machine: TensorRT-RTX ('pip install onnxbench[trt]') needs no GPU for it.

    Shapes are checked against the model first. Beside ENGINE a JSON says what it was built from ('onnxbench inspect
    ENGINE' shows it); building the same again does nothing. TensorRT runs in a process of its own. Flags that the
    installed TensorRT does not have are refused. With --doctor: exit code 1 if TensorRT does not take the model.

    \b
    Examples:
      onnxbench build-trt model.onnx model.engine --compute-capability 8.9
      onnxbench build-trt model.onnx model.engine --min-shapes x:1x8 --opt-shapes x:4x8 --max-shapes x:32x8
      onnxbench build-trt model.onnx model.engine --config build.yaml
      onnxbench build-trt model.onnx model.engine --from-feeds recorded_inputs --verify
      onnxbench build-trt model.onnx --doctor
      onnxbench build-trt model.onnx model.engine --apply --save-recipe edits.yaml
      onnxbench build-trt model.onnx model.engine --fp16 --tolerance 1e-2 --from-feeds recorded_inputs
      onnxbench build-trt model.onnx model.engine --int8 --calibration images.npz --save-model int8.onnx
      onnxbench build-trt model.onnx model.engine --plugin plugins/dynamic_resize
    """
    from onnxbench import engine as engines

    target = _target(engine_file, output, is_needed=not doctor)
    with engines.standby(engine):
        changes = (apply_, fix, config, plugin, fp16, bf16, int8, fp8, int4, best, weakly_typed)
        if not any(changes) and (target is None or force or not target.exists()):
            engines.look_ahead(model)
        from onnxbench.feeding import FeedOptions, refuse_to_overwrite
        from onnxbench.model import load

        named = engines.load_config(config, None) if config is not None else {}
        data = [*map(str, calibration or named.get("calibration", ()))]
        asked = _precisions(fp16=fp16, bf16=bf16, int8=int8, fp8=fp8, int4=int4, best=best)
        types = _types(asked or tuple(named.get("precisions", ())), data, engine or named.get("engine"))
        loaded = load(model, allow_outside=allow_outside)
        refuse_to_overwrite(loaded, [*data, *(from_feeds or ())], target, save_model, save_recipe, log_file)
        observed = _observed(loaded, from_feeds, config, quiet=quiet)
        flags = {
            "engine": engine, "propose": None if propose else False, "embed_plugins": embed_plugins,
            "compute_capabilities": capabilities_of(compute_capability),
            "pools": _pools(pool_limit or [], mem_pool_size or [], workspace), "optimization_level": optimization_level,
            "timing_cache": timing_cache, "refit": refit, "strip_weights": strip_weights,
            "precisions": types.flags, "strongly_typed": False if weakly_typed or types.flags else None,
            "tf32": False if no_tf32 else None, "weight_streaming": weight_streaming, "sparse_weights": sparse_weights,
            "version_compatible": version_compatible, "exclude_lean_runtime": exclude_lean_runtime,
            "hardware_compatibility": hardware_compatibility, "runtime_platform": runtime_platform,
            "strict_nans": strict_nans, "direct_io": direct_io, "dla_core": dla_core, "gpu_fallback": gpu_fallback,
            "device": device, "profiling_verbosity": profiling_verbosity, "tactic_sources": tuple(tactic_sources or ()),
            "max_aux_streams": max_aux_streams, "max_tactics": max_tactics, "avg_timing": avg_timing,
            "tiling_level": tiling_level,
        }  # fmt: skip
        spec_for = partial(_spec, config=config, flags=flags, observed=observed)
        plugins = _plugins([*map(str, named.get("plugins", ())), *(plugin or [])])
        prepared = engines.prepare(
            loaded, fix=fix or (), engine=engine, plugins=plugins, precision=types.graph,
            keep=_search(types.graph, tolerance, from_feeds, quiet=quiet),
            calibration=FeedOptions(data) if data else None,
            spec_for=spec_for if apply_ else None,
        )  # fmt: skip
        edited = prepared.model
        source = model if edited is loaded else edited
        _keep(prepared, save_model, save_recipe, quiet=quiet)
        spec = spec_for(edited)
        if doctor:
            found = prepared.diagnosis if not no_trial else None
            found = found or engines.diagnose(
                source, spec, plugins=plugins, trial=not no_trial, allow_outside=allow_outside
            )
            _print_diagnosis(found, target, as_json=as_json, quiet=quiet)
            raise typer.Exit(1 if found.problems or found.builds is False else 0)
        assert target is not None
        built = engines.build_engine(
            source, target, spec, plugins=plugins, calibration=prepared.calibration, force=force, log=log_file,
            allow_outside=allow_outside,
        )  # fmt: skip
    verified = engines.verify_engine(target, edited, built.record, plugins=plugins) if verify else None
    _print_built(built, verified, as_json=as_json, quiet=quiet)
    raise typer.Exit(1 if verified is not None and verified.holds is False else 0)


def _plugins(words: list[str]) -> list[Plugin]:
    if not words:
        return []
    from onnxbench.bundles import find_plugins

    return find_plugins(words)


@dataclass(frozen=True, slots=True)
class _Types:
    """What becomes of the precisions that were asked for.

    Attributes:
        graph: The one that the graph is converted to; None if TensorRT chooses types, or none was asked for.
        flags: Those that TensorRT is told, and chooses types by.
    """

    graph: str | None
    flags: tuple[str, ...]


def _types(precisions: tuple[str, ...], calibration: list[str], engine: str | None) -> _Types:
    from onnxbench.engine import choose, graph_precision

    asked = tuple(each for each in precisions if each != "int8" or not calibration)  # calibrated int8 is in the graph
    graph = graph_precision(asked, choose(engine)) if asked else None
    return _Types(graph, () if graph is not None else asked)


def _keep(prepared: Prepared, model_file: Path | None, recipe_file: Path | None, *, quiet: bool) -> None:
    """Tells what was done to the model, and writes what is to be kept of it."""
    from onnxbench.cli._render import note

    note(*prepared.notes, quiet=quiet)
    if model_file is not None:
        from onnxbench.writer import save

        save(prepared.model, model_file)
        note(f"wrote {model_file}", quiet=quiet)
    if recipe_file is not None:
        from onnxbench.recipe import Recipe
        from onnxbench.writer import write_whole

        write_whole(recipe_file, [(prepared.recipe or Recipe(())).to_yaml().encode()])
        note(f"wrote {recipe_file}", quiet=quiet)


def _search(
    precision: str | None, tolerance: list[str] | None, feeds: list[str] | None, *, quiet: bool
) -> Callable[[Model], list[str]] | None:
    """Returns what finds the nodes that stay in float32, if a tolerance was given."""
    if tolerance is None:
        return None
    from onnxbench.errors import RefusedResultError, UsageError

    if precision is None:
        raise UsageError("--tolerance is for a model that is converted, and none is",
                         hint="Say --fp16 or --bf16; a weakly typed TensorRT chooses types by itself.")  # fmt: skip

    def keep(model: Model) -> list[str]:
        from onnxbench.cli._render import chosen, note
        from onnxbench.feeding import FeedOptions
        from onnxbench.graph import GraphIndex
        from onnxbench.tuning import node_selectors, tune

        found = tune(model, to=precision, tolerance=tolerance, feeds=FeedOptions(feeds) if feeds else None)
        note(*found.notes, *chosen(found.choices), found.verdict, quiet=quiet)
        if not found.passed:
            raise RefusedResultError(
                f"no {precision} model within the tolerance was found", details=[found.verdict],
                hint="'onnxbench precision --search' shows what was tried, and takes more runs.",
            )  # fmt: skip
        return node_selectors(GraphIndex(model.proto), found.refs)

    return keep


def _target(engine_file: Path | None, output: Path | None, *, is_needed: bool) -> Path | None:
    """Returns the one file to write."""
    from onnxbench.errors import UsageError

    if engine_file is not None and output is not None and engine_file != output:
        raise UsageError("the engine is named twice")
    if engine_file is None and output is None and is_needed:
        raise UsageError("ENGINE is missing", hint="Name the file to write, or ask with --doctor.")
    return engine_file or output


def _observed(model: Model, sources: list[str] | None, config: Path | None, *, quiet: bool) -> Observed | None:
    """Returns the shapes that real inputs have, and tells of them."""
    from onnxbench.cli._render import note
    from onnxbench.engine import load_config, observe, spelled
    from onnxbench.errors import UsageError
    from onnxbench.wording import plural

    if not sources:
        return None
    if shape_words() or (config is not None and load_config(config, None).get("profiles")):
        raise UsageError("shapes are given and --from-feeds too", hint="Give one of the two.")
    found = observe(model, sources)
    if found.profile:
        note(f"of {plural(found.sets, 'set')} of inputs: {spelled(found.profile)}", quiet=quiet)
    return found


def _spec(model: Model, *, config: Path | None, flags: dict[str, Any], observed: Observed | None) -> BuildSpec:
    """Returns what the flags and the configuration file say together."""
    from onnxbench.captures import input_ports
    from onnxbench.engine import BuildSpec, load_config, parse_profiles, without_missing

    names = [port.name for port in input_ports(model.proto.graph) if port.required]
    fields = load_config(config, names) if config is not None else {}
    for settled in ("plugins", "calibration", "precisions"):
        fields.pop(settled, None)
    profiles = parse_profiles(shape_words(), names)
    fields |= {
        name: value for name, value in flags.items() if not (value is None or value is False or value in ((), {}))
    }
    fields |= {name: False for name in ("propose", "strongly_typed", "tf32") if flags[name] is False}
    if observed is not None:
        now = without_missing(observed, model).profile
        profiles = [now] if now else []
    if profiles:
        fields["profiles"] = tuple(profiles)
    return BuildSpec(**fields)


def _pools(limits: list[str], megabytes: list[str], workspace: str | None) -> dict[str, int]:
    from onnxbench.engine import parse_pool

    pools: dict[str, int] = {}
    for word in limits:
        pools |= parse_pool(word)
    for word in megabytes:
        pools |= parse_pool(",".join(f"{part}M" if part[-1:].isdigit() else part for part in word.split(",")))
    return pools | (parse_pool(f"workspace:{workspace}") if workspace is not None else {})


def _precisions(*, best: bool, **wanted: bool) -> tuple[str, ...]:
    return tuple(name for name, on in wanted.items() if on or (best and name in ("fp16", "bf16", "int8")))


def _print_built(built: Built, verified: Verification | None, *, as_json: bool, quiet: bool) -> None:
    from onnxbench.cli._render import note, print_json
    from onnxbench.envelope import jsonable

    note(*built.notes, *(f"TensorRT warns: {text}" for text in built.warnings[:5]), quiet=quiet)
    note(*(verified.notes if verified is not None else ()), quiet=quiet)
    if as_json:
        print_json("build-trt", {**jsonable(built), **({"verification": verified} if verified is not None else {})})
        return
    _print_summary(built)
    if verified is None:
        return
    if verified.holds is None:
        print(f"NOT VERIFIED: {verified.reason}")
        return
    for each in verified.outputs:
        print(f"{'ok ' if each['agrees'] else 'OFF'} {each['case']}: {each['output']}: {each['difference']}")
    print("VERIFIED: the engine agrees with ONNX Runtime" if verified.holds else "FAILED: the engine differs")


def _print_summary(built: Built) -> None:
    from onnxbench.cli._render import format_bytes
    from onnxbench.wording import plural

    data = built.record.data
    if not built.fresh:
        print(f"{built.path}: nothing to do, it was built of the same model in the same way (--force builds it again)")
        return
    hardware = ", ".join(data["compute_capabilities"] or ["TensorRT's default GPUs"])
    print(
        f"{built.path}: {format_bytes(data['engine']['bytes'])} for {hardware}, {data['builder']['name']} "
        f"{data['builder']['version']}, {plural(data['layers'], 'layer')}, {built.seconds:.1f} s "
        f"(build {data['seconds']['build']:.1f} s, {format_bytes(data['peak_bytes'])} of memory)"
    )


def _problem_lines(problems: Sequence[Problem]) -> Iterator[str]:
    """Yields problems by their way out, of each operator the first ones."""
    ways: dict[str, dict[str, list[Problem]]] = {}
    for problem in problems:
        ways.setdefault(problem.way_out or "", {}).setdefault(problem.op, []).append(problem)
    for way, operators in ways.items():
        for op, alike in operators.items():
            yield from (problem.sentence() for problem in alike[:_SHOWN])
            if len(alike) > _SHOWN:
                yield f"... and {len(alike) - _SHOWN:,} more{f' of {op}' if op else ''} (--json lists all)"
        if way:
            remedy = any(problem.remedy for alike in operators.values() for problem in alike)
            yield f"  -> {way}{' (--apply does it)' if remedy else ''}"


def _print_diagnosis(found: Diagnosis, target: Path | None, *, as_json: bool, quiet: bool) -> None:
    from onnxbench.cli._render import note, print_json
    from onnxbench.cli._tables import plain

    note(*found.notes, quiet=quiet)
    if target is not None:
        note(f"--doctor only looks: {target} was not written", quiet=quiet)
    if as_json:
        print_json("build-trt", found)
        return
    for line in _problem_lines(found.problems):
        print(plain(line))
    count = len(found.problems)
    if count:
        print(f"{found.builder} does not take the model: {count} problem{'' if count == 1 else 's'}")
    elif found.builds is None:
        print(f"{found.builder} parses the model; only a build proves that it can be built")
    else:
        print(f"{found.builder} takes the model: a trial build made an engine")
