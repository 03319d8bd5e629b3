"""What to build: a ``BuildSpec``, from flags, from YAML, or from the ``backend_config`` of MMDeploy."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench.engine._flavors import RTX, Flavor
from onnxbench.engine._profiles import Profile, profiles_from_data
from onnxbench.errors import NotFoundError, SpecError, UsageError, did_you_mean
from onnxbench.specs import parse_memory

if TYPE_CHECKING:
    from onnxbench.documents import Item

POOLS: dict[str, str] = {
    "workspace": "workspace", "dlasram": "dla_sram", "dlalocaldram": "dla_local_dram",
    "dlaglobaldram": "dla_global_dram", "tacticsharedmem": "tactic_shared_mem", "tacticdram": "tactic_dram",
    "dlamanagedsram": "dla_sram", "tacticsharedmemory": "tactic_shared_mem",
}  # fmt: skip
_PRECISIONS = ("fp16", "bf16", "int8", "fp8", "int4")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSpec:
    """Everything that decides what comes out of a build, except for the model and the plugins.

    Attributes:
        engine: ``tensorrt`` or ``tensorrt-rtx``; None: chosen by what is installed.
        profiles: Optimization profiles: input to its ``Range``.
        propose: Build for shapes guessed from the model's dimensions where no profile is given at all.
        compute_capabilities: For which GPUs: ``8.9``, ``sm_120``; empty: TensorRT's default, or the GPU here.
        pools: Memory pools to their bytes.
        optimization_level: 0 (fast to build) to 5.
        timing_cache: A file of measured timings, read and written back.
        precisions: Of ``fp16``, ``bf16``, ``int8``, ``fp8``, ``int4``: what a weakly typed TensorRT may use.
        strongly_typed: Keep to the types in the graph, where this TensorRT can do both.
        refit: Weights can be exchanged later.
        strip_weights: Leave out weights that a refit brings.
        weight_streaming: Weights may stay in the host's memory.
        version_compatible: The engine runs in later versions.
        exclude_lean_runtime: With ``version_compatible``: without the runtime for it inside.
        hardware_compatibility: ``ampere_plus``, ``same_compute_capability`` or ``none``.
        runtime_platform: ``same_as_build`` or ``windows_amd64``.
        sparse_weights: Use structured sparsity.
        tf32: False: float32 is computed in float32.
        strict_nans: NaN comes out where it must.
        direct_io: No reformatting of inputs and outputs.
        dla_core: Build for this DLA core.
        gpu_fallback: What a DLA cannot run goes to the GPU.
        device: Number of the GPU that builds.
        profiling_verbosity: ``layer_names_only``, ``detailed`` or ``none``.
        tactic_sources: ``+CUBLAS``, ``-CUDNN``, or bare names for these alone.
        max_aux_streams: The most further streams.
        max_tactics: The most tactics that are tried for a layer.
        avg_timing: Runs that are averaged for a timing.
        tiling_level: ``none``, ``fast``, ``moderate`` or ``full``.
        preview: Preview features by name, on or off.
        embed_plugins: Put plugin libraries into the engine.
    """

    engine: str | None = None
    profiles: tuple[Profile, ...] = ()
    propose: bool = True
    compute_capabilities: tuple[str, ...] = ()
    pools: Mapping[str, int] = field(default_factory=dict)
    optimization_level: int | None = None
    timing_cache: Path | None = None
    precisions: tuple[str, ...] = ()
    strongly_typed: bool = True
    refit: bool = False
    strip_weights: bool = False
    weight_streaming: bool = False
    version_compatible: bool = False
    exclude_lean_runtime: bool = False
    hardware_compatibility: str | None = None
    runtime_platform: str | None = None
    sparse_weights: bool = False
    tf32: bool | None = None
    strict_nans: bool = False
    direct_io: bool = False
    dla_core: int | None = None
    gpu_fallback: bool = False
    device: int | None = None
    profiling_verbosity: str | None = None
    tactic_sources: tuple[str, ...] = ()
    max_aux_streams: int | None = None
    max_tactics: int | None = None
    avg_timing: int | None = None
    tiling_level: str | None = None
    preview: Mapping[str, bool] = field(default_factory=dict)
    embed_plugins: bool = False

    def to_data(self) -> dict[str, Any]:
        """Returns what is not as by default, as plain values."""
        data: dict[str, Any] = {}
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            default = each.default if each.default is not dataclasses.MISSING else {}
            if value != default:
                data[each.name] = _plain(value)
        return data

    def options(self) -> list[str]:
        """Returns what was asked for beyond shapes and hardware, as ``name=value``."""
        left_out = ("profiles", "compute_capabilities", "propose", "engine")
        return [f"{name}={value}" for name, value in self.to_data().items() if name not in left_out]

    def for_worker(self) -> dict[str, Any]:
        """Returns the plain values that TensorRT's process needs."""
        data = {each.name: _plain(getattr(self, each.name)) for each in dataclasses.fields(self)}
        return {**data, **dict.fromkeys(self.precisions, True)}


def _plain(value: Any) -> Any:
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def parse_capability(text: str) -> list[str]:
    """Returns compute capabilities as TensorRT spells them, ``SM89``, from ``8.9``, ``89``, ``sm_89,sm_120``.

    Raises:
        UsageError: A word is none.
    """
    found = []
    for part in text.split(","):
        word = part.strip().lower()
        match = re.fullmatch(r"(?:sm|compute)?_?(\d{1,2})\.?(\d)[af]?", word)
        if word in ("current", "none"):
            found.append(word.upper())
        elif match is None:
            raise UsageError(f"{part.strip()!r} is not a compute capability", hint="Write it as 8.9, or sm_89.")
        else:
            found.append(f"SM{match[1]}{match[2]}")
    return found


def parse_pool(text: str) -> dict[str, int]:
    """Returns memory pools from ``workspace:4G``, ``dlaSRAM=1M``, ``4G`` (the workspace), several by commas.

    Raises:
        UsageError: There is no such pool, or the size cannot be read.
    """
    pools: dict[str, int] = {}
    for part in text.split(","):
        name, sign, size = part.rpartition(":" if ":" in part else "=")
        key = re.sub("[_-]", "", name.strip().lower()) if sign else "workspace"
        if key not in POOLS:
            raise UsageError(f"{name.strip()!r} is not a memory pool", hint=did_you_mean(key, POOLS)
                             or f"Pools: {', '.join(sorted(set(POOLS.values())))}.")  # fmt: skip
        pools[POOLS[key]] = parse_memory(size)
    return pools


def graph_precision(precisions: Sequence[str], flavor: Flavor) -> str | None:
    """Returns the precision that a graph is converted to: the one asked for, if TensorRT takes types from the graph.

    None where TensorRT chooses types itself, or where that is no single ``fp16`` or ``bf16``.
    """
    return precisions[0] if flavor.is_strongly_typed and tuple(precisions) in (("fp16",), ("bf16",)) else None


def check_spec(spec: BuildSpec, flavor: Flavor, *, element_types: frozenset[int], gpu: bool) -> list[str]:
    """Checks what can be known to fail or to mean nothing before anything is built; returns notes.

    Raises:
        UsageError: A flag means nothing with this TensorRT, or a combination is known to fail.
    """
    if spec.precisions and flavor.is_strongly_typed:
        flags = ", ".join(f"--{precision}" for precision in spec.precisions)
        raise UsageError(
            f"{flavor.name} {flavor.version} has no precision flags ({flags}): it computes in the types that the "
            "graph has",
            hint=" ".join(_PRECISION_HELP[each] for each in spec.precisions),
        )
    if not spec.strongly_typed and flavor.is_strongly_typed:
        raise UsageError(
            f"{flavor.name} {flavor.version} has no --weakly-typed: it computes in the types that the graph has",
            hint="Leave it out; --fp16 and --bf16 convert the model.",
        )
    if spec.strip_weights and not spec.refit and flavor.name != RTX:
        raise UsageError("--strip-weights means nothing without --refit", hint="Add --refit.")
    if spec.exclude_lean_runtime and not spec.version_compatible:
        raise UsageError("--exclude-lean-runtime means nothing without --version-compatible")
    if spec.gpu_fallback and spec.dla_core is None:
        raise UsageError("--gpu-fallback means nothing without --dla-core")
    if spec.optimization_level is not None and not 0 <= spec.optimization_level <= 5:
        raise UsageError(f"--optimization-level is 0 to 5, not {spec.optimization_level}")
    for name in ("max_aux_streams", "max_tactics", "avg_timing", "dla_core", "device"):
        if (number := getattr(spec, name)) is not None and number < 0:
            raise UsageError(f"--{name.replace('_', '-')} is 0 or more, not {number}")
    if flavor.name != RTX:
        return []
    _refuse_on_rtx(spec, flavor, gpu)
    _refuse_capability(spec, element_types)
    notes = []
    if spec.optimization_level is not None:
        notes.append("TensorRT-RTX takes --optimization-level and builds the same engine for every level")
    if spec.device is not None and not gpu:
        notes.append(f"there is no GPU here, so --device {spec.device} changes nothing")
    if "workspace" in spec.pools:
        notes.append("TensorRT-RTX takes a workspace limit for tactics at run time; it does not limit this build")
    return notes


_PRECISION_HELP = {
    "fp16": "--fp16: convert the model by 'onnxbench precision --to fp16' (build-trt --fp16 alone does it).",
    "bf16": "--bf16: convert the model by 'onnxbench precision --to bf16' (build-trt --bf16 alone does it).",
    "int8": "--int8: give inputs to calibrate with (--calibration DATA), or make an int8 model first: "
    "'onnxbench quantize', whose --tolerance leaves in float what has to stay.",
    "fp8": "--fp8: give the model float8 QuantizeLinear/DequantizeLinear nodes (ModelOpt).",
    "int4": "--int4: give the model int4 weights with DequantizeLinear (ModelOpt).",
}
_WITHOUT_RTX: tuple[tuple[str, str], ...] = (
    ("timing_cache", "It measures nothing while it builds; a second build of the same model is skipped anyway."),
    ("dla_core", "DLA is in TensorRT for Jetson: --engine tensorrt there."),
    ("runtime_platform", "Build on the system where the engine will run."),
    ("hardware_compatibility", "Name the GPUs: --compute-capability 8.6 8.9 12.0."),
    ("max_tactics", "It picks kernels on the machine that runs the engine."),
    ("avg_timing", "It measures nothing while it builds."),
)


def _refuse_on_rtx(spec: BuildSpec, flavor: Flavor, gpu: bool) -> None:
    name = f"{flavor.name} {flavor.version}"
    for each, instead in _WITHOUT_RTX:
        if getattr(spec, each) is not None:
            raise UsageError(f"{name} has no --{each.replace('_', '-')}", hint=instead)
    for each in ("refit", "strip_weights"):
        if getattr(spec, each) and not gpu:
            raise UsageError(f"{name} builds with --{each.replace('_', '-')} on a machine with a GPU only",
                             hint="Build there, or leave it out.")  # fmt: skip
    if spec.version_compatible and not spec.exclude_lean_runtime:
        raise UsageError(
            f"{name} comes without the lean runtime that --version-compatible puts into an engine",
            hint="Add --exclude-lean-runtime.",
        )
    if "CURRENT" in spec.compute_capabilities and not gpu:
        raise UsageError("--compute-capability current needs a GPU, and none is here", hint="Name it: 8.9, say.")
    if "NONE" in spec.compute_capabilities:
        raise UsageError("--compute-capability none builds nothing", hint="Leave it out for the portable default.")


_BF16, _FP8, _INT4 = frozenset({16}), frozenset({17, 18, 19, 20}), frozenset({21, 22})
_NEEDS: tuple[tuple[frozenset[int], str, int], ...] = (
    (_BF16, "bfloat16", 80), (_FP8, "float8", 89), (_INT4, "4-bit weights", 80),
)  # fmt: skip


def _refuse_capability(spec: BuildSpec, element_types: frozenset[int]) -> None:
    """Refuses element types that a compute capability is known not to have (the build would fail late, or worse)."""
    numbers = {word: int(word[2:]) for word in spec.compute_capabilities if word.startswith("SM")}
    for types, words, least in _NEEDS:
        if not types & element_types:
            continue
        dotted = f"{least // 10}.{least % 10}"
        for word, number in numbers.items():
            if number < least:
                raise UsageError(
                    f"the model computes in {words}, which needs compute capability {dotted} or newer, not "
                    f"{number // 10}.{number % 10}",
                    hint=f"Leave {word} out, or convert the model.",
                )
        if not numbers and least > 80:
            raise UsageError(
                f"the model computes in {words}, and the portable default claims GPUs that have none",
                hint=f"Name the GPUs: --compute-capability {dotted}.",
            )


# ---------------------------------------------------------------- configuration files


def load_config(file: Path, names: Sequence[str] | None) -> dict[str, Any]:
    """Returns the fields of a ``BuildSpec`` that a configuration file gives.

    Beside them ``plugins`` (paths) and ``calibration`` (data as for ``FeedOptions``), if it names any.

    Args:
        file: YAML or JSON with the fields of ``BuildSpec`` (and ``backend_config`` as MMDeploy has it), or an MMDeploy
            ``.py`` file, of which only literal values are read: nothing in it is run.
        names: The model's inputs.

    Raises:
        NotFoundError: There is no such file.
        SpecError: It has a mistake.
    """
    from onnxbench.documents import from_python, from_yaml

    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {file}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{file} cannot be read: {error}") from None
    root = from_python(_literal_assignments(text, file), file.name) if file.suffix == ".py" else from_yaml(
        text, file.name
    )  # fmt: skip
    if root.kind == "null":
        return {}
    known = [*(each.name for each in dataclasses.fields(BuildSpec)), "plugins", "calibration", "backend_config",
             "compute_capability"]  # fmt: skip
    if file.suffix != ".py":
        root.require_map("a build configuration", known)
    fields: dict[str, Any] = {}
    for key, _, value in root.pairs():
        if key == "backend_config":
            fields |= _from_mmdeploy(value, names)
        elif key in known and value.kind != "null":
            fields |= _field(key, value, names, file.parent)
    return fields


def _field(key: str, item: Item, names: Sequence[str] | None, folder: Path) -> dict[str, Any]:
    """Returns one entry of a configuration as fields, by the type of the default."""
    try:
        if key == "profiles":
            data = [_value(each) for each in item.items] if item.kind == "list" else [_value(item)]
            return {key: tuple(profiles_from_data(data, names))}
        if key in ("compute_capabilities", "compute_capability"):
            words = [each.require_text("a compute capability") for each in _listed(item)]
            return {"compute_capabilities": tuple(sm for word in words for sm in parse_capability(word))}
        if key == "pools":
            pools: dict[str, int] = {}
            for name, _, size in item.require_map("memory pools").pairs():
                pools |= parse_pool(f"{name}:{size.require_text('a size')}")
            return {key: pools}
        if key == "preview":
            return {key: {name: _bool(value) for name, _, value in item.require_map("preview features").pairs()}}
        if key == "timing_cache":
            return {key: folder / item.require_text("a file")}
        if key == "plugins":
            return {key: tuple(folder / each.require_text("a plugin") for each in _listed(item))}
        if key == "calibration":
            return {key: tuple(_data_source(each.require_text("calibration data"), folder) for each in _listed(item))}
        kind = str(BuildSpec.__annotations__[key])
        if kind.startswith("tuple"):
            return {key: tuple(each.require_text(key) for each in _listed(item))}
        if kind.startswith("bool"):
            return {key: _bool(item)}
        return {key: item.require_integer(key) if kind.startswith("int") else item.require_text(key)}
    except (UsageError, NotFoundError) as error:
        raise item.error(error.message, hint=error.hint, details=error.details) from None


def _data_source(text: str, folder: Path) -> str:
    """Returns a source of data (``images/``, ``script.py:func``, ``x:x.npy``) with its path from here."""
    name, sign, path = text.partition(":")
    if sign and Path(name).suffix != ".py" and not Path(text).is_absolute():
        return f"{name}:{folder / path}"
    return str(folder / text)


def _listed(item: Item) -> list[Item]:
    return item.items if item.kind == "list" else [item]


def _bool(item: Item) -> bool:
    if item.kind != "bool":
        raise item.error(f"expected true or false, found {item.described()}")
    return item.text in ("true", "True", "TRUE")


def _value(item: Item) -> Any:
    if item.kind == "map":
        return {key: _value(value) for key, _, value in item.pairs()}
    return [_value(each) for each in item.items] if item.kind == "list" else item.text


_MMDEPLOY_KEYS = ("type", "common_config", "model_inputs")
_MMDEPLOY_COMMON = ("fp16_mode", "int8_mode", "max_workspace_size", "log_level", "device_id", "explicit_quant_mode")


def _from_mmdeploy(item: Item, names: Sequence[str] | None) -> dict[str, Any]:
    """Returns the fields that MMDeploy's ``backend_config`` means."""
    item.require_map("backend_config", _MMDEPLOY_KEYS)
    kind = item.get("type")
    if kind is not None and kind.require_text("a backend") != "tensorrt":
        raise kind.error(f"this configuration is for the backend {kind.text!r}, not for tensorrt")
    fields: dict[str, Any] = {}
    common = item.get("common_config")
    if common is not None:
        common.require_map("common_config", _MMDEPLOY_COMMON)
        modes = [precision for precision in ("fp16", "int8") if (on := common.get(f"{precision}_mode")) and _bool(on)]
        fields |= {"precisions": tuple(modes)} if modes else {}
        space = common.get("max_workspace_size")
        if space is not None and (size := space.require_integer("a workspace size", low=0)):
            fields["pools"] = {"workspace": size}
        device = common.get("device_id")
        fields |= {} if device is None else {"device": device.require_integer("a device", low=0)}
    profiles = []
    inputs = item.get("model_inputs")
    for each in [] if inputs is None else inputs.require_list("model_inputs"):
        shapes = each.require_map("an entry of model_inputs", ("input_shapes", "save_file")).get("input_shapes")
        if shapes is None:
            continue
        data = {name: _value(shape) for name, _, shape in shapes.require_map("input_shapes").pairs()}
        try:
            profiles += profiles_from_data([data], names)
        except (UsageError, NotFoundError) as error:
            raise shapes.error(error.message, hint=error.hint) from None
    return fields | ({"profiles": tuple(profiles)} if profiles else {})


def _literal_assignments(text: str, file: Path) -> dict[str, Any]:
    """Returns the top-level assignments of a Python file whose values are literals, ``dict(...)`` and arithmetic."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise SpecError(f"{file.name}:{error.lineno}: this is no Python: {error.msg}") from None
    found: dict[str, Any] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name = statement.targets[0].id
            try:
                found[name] = _literal(statement.value)
            except ValueError as error:
                if name == "backend_config":
                    raise SpecError(f"{file.name}:{statement.lineno}: {error}") from None
    if "backend_config" not in found:
        base = " (it has a _base_, which is not followed: name that file)" if "_base_" in found else ""
        raise SpecError(f"{file.name} has no backend_config{base}")
    return {"backend_config": found["backend_config"]}


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {str(each.arg): _literal(each.value) for each in node.keywords}
    if isinstance(node, ast.Dict):
        return {str(_literal(k)): _literal(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(each) for each in node.elts]
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.LShift, ast.Mult)):
        left, right = _literal(node.left), _literal(node.right)
        if isinstance(left, int) and isinstance(right, int) and 0 <= right < 1 << 40:
            if isinstance(node.op, ast.Mult):
                return left * right
            if right < 64:
                return left << right
    if isinstance(node, ast.Constant):
        return node.value
    raise ValueError(f"{ast.unparse(node)} is not a literal value, and nothing in this file is run")
