"""TensorRT itself: the only module that loads it, and the only one that knows how its three forms differ.

It runs in a process of its own (``onnxbench.engine._worker``), because TensorRT is C++ that may end the process, and
because what it loads, plugins above all, cannot be unloaded. What the rest of onnxbench sees of it are plain values.

Four habits of TensorRT are dealt with here. Failures are return values (None, False, -1) and become errors. Only one
logger may ever exist, or plugins that hold the first one crash, so there is one for the process. The Linux wheel of
TensorRT-RTX lacks the library name that its own ONNX parser opens when a plugin is added, which aborts the process,
so the name is supplied before the import. And each error on a machine without a GPU is followed by a line on CUDA error
35 that has nothing to do with it, so it is filtered.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from onnxbench.engine._flavors import FULL, MODULES, RTX
from onnxbench.errors import BenchError, EngineError, MissingDependencyError, UsageError, did_you_mean, nearest

Say = Callable[..., None]
"""Called with the name of an event and its fields."""

_SEVERITIES = ("internal error", "error", "warning", "info", "verbose")
_NOISE = re.compile(
    r".*(catchCudaError|cudaError(?: ?35)?\b|CUDA (?:error|initialization failure)[^|]*35"
    r"|Attribute onnxbench_ptx not found).*"
)
_PARSING = re.compile(r"(?:Static check for parsing|Parsing) node: (.*) \[(\S+)\]$")
_FIRST_NETWORK = "Unnamed Network 0"
"""How TensorRT names the first network of a process. The name is in the engine, and would count what came before."""
_SEPARATOR = re.compile(r"-{5,}$")

FLAGS: dict[str, str] = {
    "refit": "REFIT",
    "strip_weights": "STRIP_PLAN",
    "weight_streaming": "WEIGHT_STREAMING",
    "version_compatible": "VERSION_COMPATIBLE",
    "exclude_lean_runtime": "EXCLUDE_LEAN_RUNTIME",
    "sparse_weights": "SPARSE_WEIGHTS",
    "direct_io": "DIRECT_IO",
    "gpu_fallback": "GPU_FALLBACK",
    "strict_nans": "STRICT_NANS",
    "monitor_memory": "MONITOR_MEMORY",
    "disable_timing_cache": "DISABLE_TIMING_CACHE",
    "error_on_timing_cache_miss": "ERROR_ON_TIMING_CACHE_MISS",
    "fp16": "FP16", "bf16": "BF16", "int8": "INT8", "fp8": "FP8", "int4": "INT4",
    "obey_precision_constraints": "OBEY_PRECISION_CONSTRAINTS",
    "prefer_precision_constraints": "PREFER_PRECISION_CONSTRAINTS",
}  # fmt: skip
"""Field of a BuildSpec to the builder flag that it sets."""
_POOLS = {
    "workspace": "WORKSPACE", "dla_sram": "DLA_MANAGED_SRAM", "dla_local_dram": "DLA_LOCAL_DRAM",
    "dla_global_dram": "DLA_GLOBAL_DRAM", "tactic_dram": "TACTIC_DRAM", "tactic_shared_mem": "TACTIC_SHARED_MEMORY",
}  # fmt: skip


@cache
def load_module(name: str) -> Any:
    """Returns the Python module of the TensorRT of that name, its libraries put right.

    Raises:
        MissingDependencyError: It cannot be loaded.
    """
    if name == RTX:
        _supply_library_names(MODULES[name])
    try:
        return import_module(MODULES[name])
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            f"{name} is installed and cannot be loaded: {error}",
            hint="Its libraries come in packages of their own; reinstall it with 'pip install --force-reinstall'.",
        ) from None


class TensorRT:
    """One loaded TensorRT, with its one logger.

    Attributes:
        name: Which one it is: ``tensorrt`` or ``tensorrt-rtx``.
        api: The Python module.
        version: What it says itself.
        say: Is told what goes on.
        messages: What it logged so far, as (severity, text), without noise; no verbose lines.
        plugin_failures: What methods of plugins written in Python raised.
    """

    def __init__(self, name: str, say: Say) -> None:
        self.api = load_module(name)
        self.name = name
        self.version = str(self.api.__version__)
        self.messages: list[tuple[str, str]] = []
        self.plugin_failures: list[str] = []
        self.say = say
        self.bundles: list[Any] = []
        self.logger = _make_logger(self)
        self._builder = self.api.Builder(self.logger)
        if self._builder is None:
            raise self.error("TensorRT did not start")

    # ------------------------------------------------------------ what it says

    def error(self, message: str, *, hint: str | None = None, since: int = 0) -> EngineError:
        """Returns an error with what TensorRT logged as errors, from message number ``since`` on."""
        said = [text for severity, text in self.messages[since:] if severity in ("error", "internal error")]
        return EngineError(message, hint=hint, details=[line for text in said[-6:] for line in text.splitlines()[:6]])

    def hear(self, severity: int, text: str) -> None:
        """Takes one line of TensorRT's log."""
        if severity >= 4:
            match = _PARSING.match(text)
            if match is not None:
                self.say("node", name=match[1], op=match[2])
            return
        lines = [line for line in text.splitlines() if not _NOISE.match(line) and not _SEPARATOR.match(line)]
        if lines:
            words = _SEVERITIES[severity] if severity < len(_SEVERITIES) else "info"
            self.messages.append((words, "\n".join(lines)))
            self.say("log", severity=words, text="\n".join(lines))

    # ------------------------------------------------------------ plugins

    def load_library(self, path: Path) -> int:
        """Loads a library with plugins and returns how many creators it registered.

        Raises:
            EngineError: It cannot be loaded, or registers nothing.
        """
        registry, since = self._builder.get_plugin_registry(), len(self.messages)
        before = set(self.creators())
        handle = registry.load_library(os.fspath(path.resolve()))
        made = set(self.creators()) - before
        if handle is not None and made:
            return len(made)
        try:
            ctypes.CDLL(os.fspath(path.resolve()), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise EngineError(
                f"plugin {path}: the library cannot be loaded: {error}", hint=_library_hint(str(error))
            ) from None
        made = set(self.creators()) - before
        if made:
            return len(made)
        raise self.error(
            f"plugin {path}: the library loads and registers no plugin with {self.name} {self.version}",
            since=since,
            hint="It must export getCreators and setLoggerFinder (V3 plugins), or register itself with the library of "
            "this very TensorRT (REGISTER_TENSORRT_PLUGIN).",
        )

    def register(self, creator: Any, namespace: str) -> bool:
        """Registers a Python creator and returns whether it was taken (False: one of that name was there)."""
        return bool(self._builder.get_plugin_registry().register_creator(creator, namespace))

    def creators(self) -> list[tuple[str, str, str]]:
        """Returns (namespace, name, version) of every plugin creator there is."""
        found: dict[tuple[str, str, str], None] = {}
        for registry in (self._builder.get_plugin_registry(), self.api.get_plugin_registry()):
            for each in registry.all_creators:
                found[(str(each.plugin_namespace), str(each.name), str(each.plugin_version))] = None
        return list(found)

    def supports(self, operator: str) -> bool:
        """Tells whether the parser has an importer for an ONNX operator."""
        network = self._builder.create_network(self._network_flags())
        return bool(self.api.OnnxParser(network, self.logger).supports_operator(operator))

    # ------------------------------------------------------------ parse and build

    def parse(
        self, model: Path, *, content: bytes | None = None, strongly_typed: bool = True, has_attention: bool = False
    ) -> tuple[Any, list[dict[str, Any]]]:
        """Returns the network of a model, and what the parser refuses in it (empty: nothing).

        Args:
            model: The model's file.
            content: What is parsed in place of what is in the file.
            strongly_typed: Keep to the types in the graph.
            has_attention: The model has Attention, which is then computed by other operators where no kernel fits.
        """
        network = self._builder.create_network(self._network_flags(strongly_typed))
        network.name = _FIRST_NETWORK
        parser = self._parser_of(network)
        path = os.fspath(model)
        if has_attention:
            content = _with_decomposable_attention(model, content)
        ok = parser.parse_from_file(path) if content is None else parser.parse(content, path)
        problems = [self._problem(parser.get_error(number)) for number in range(parser.num_errors)]
        if not ok and not problems:
            problems = [{"code": "", "text": "the parser failed and does not say why", "node": -1, "name": "", "op": "",
                         "stack": [], "function": ""}]  # fmt: skip
        if ok and not problems and network.num_layers == 0 and network.num_outputs == 0:
            problems = [{"code": "", "text": "the parser made an empty network of it", "node": -1, "name": "", "op": "",
                         "stack": [], "function": ""}]  # fmt: skip
        self._parser = parser  # the network refers to weights that the parser holds
        return network, problems

    def forget(self) -> None:
        """Drops what was parsed and said so far."""
        self._parser = None
        self.messages.clear()

    def query_support(
        self, model: Path, *, content: bytes | None = None
    ) -> tuple[list[list[int]], list[dict[str, Any]]]:
        """Returns the runs of nodes (positions in the main graph) that the parser can take, and what it refuses.

        The parser's own verdict on a run is left aside: it is the one on the whole model.
        """
        network = self._builder.create_network(self._network_flags())
        parser = self._parser_of(network)
        parser.supports_model_v2(model.read_bytes() if content is None else content, os.fspath(model))
        runs = [[int(node) for node in parser.get_subgraph_nodes(number)] for number in range(parser.num_subgraphs)]
        return runs, [self._problem(parser.get_error(number)) for number in range(parser.num_errors)]

    def _parser_of(self, network: Any) -> Any:
        """Returns a parser that takes a plugin for an operator that it knows itself, if there is one for the node."""
        parser = self.api.OnnxParser(network, self.logger)
        if any(parser.supports_operator(bundle.op) for bundle in self.bundles):
            parser.set_flag(self.api.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE)
        return parser

    def _network_flags(self, strongly_typed: bool = True) -> int:
        kinds = self.api.NetworkDefinitionCreationFlag
        flags = 0
        if strongly_typed and "STRONGLY_TYPED" in kinds.__members__ and self.name == FULL:
            flags |= 1 << int(kinds.STRONGLY_TYPED)
        if "EXPLICIT_BATCH" in kinds.__members__ and self.version.startswith(("8.", "9.")):
            flags |= 1 << int(kinds.EXPLICIT_BATCH)
        return flags

    def _problem(self, error: Any) -> dict[str, Any]:
        lines = [line for line in str(error.desc()).splitlines() if line.strip() and not _NOISE.match(line)]
        return {
            "code": str(error.code()).rpartition(".")[2],
            "text": " ".join(" ".join(lines).split()),
            "node": int(error.node()),
            "name": str(error.node_name()),
            "op": str(error.node_operator()),
            "stack": [str(each) for each in error.local_function_stack()],
            "function": str(error.func()),
        }

    def configure(self, network: Any, spec: Mapping[str, Any]) -> Any:
        """Returns a builder configuration as a build spec says.

        Raises:
            UsageError: This TensorRT does not have what is asked for.
            EngineError: It refuses a profile.
        """
        config = self._builder.create_builder_config()
        self._set_flags(config, spec)
        self._set_limits(config, spec)
        self._set_hardware(config, spec)
        for number, profile in enumerate(spec["profiles"]):
            self._add_profile(network, config, number, profile)
        if not spec["profiles"]:
            self._require_no_shape_inputs(network)
        return config

    def _set_flags(self, config: Any, spec: Mapping[str, Any]) -> None:
        for field, flag in FLAGS.items():
            if spec.get(field):
                config.set_flag(self._member("BuilderFlag", flag, field))
        if spec.get("tf32") is False:
            config.clear_flag(self._member("BuilderFlag", "TF32", "no_tf32"))

    def _set_limits(self, config: Any, spec: Mapping[str, Any]) -> None:
        for pool, size in spec["pools"].items():
            config.set_memory_pool_limit(self._member("MemoryPoolType", _POOLS.get(pool, pool.upper()), "pools"), size)
        for field, attribute in (
            ("optimization_level", "builder_optimization_level"), ("max_aux_streams", "max_aux_streams"),
            ("avg_timing", "avg_timing_iterations"), ("max_tactics", "max_num_tactics"), ("dla_core", "DLA_core"),
        ):  # fmt: skip
            if spec.get(field) is not None:
                self._require_attribute(config, attribute, field)
                setattr(config, attribute, spec[field])
        if spec.get("dla_core") is not None:
            config.default_device_type = self.api.DeviceType.DLA
        for field, kind, attribute in (
            ("profiling_verbosity", "ProfilingVerbosity", "profiling_verbosity"),
            ("hardware_compatibility", "HardwareCompatibilityLevel", "hardware_compatibility_level"),
            ("runtime_platform", "RuntimePlatform", "runtime_platform"),
            ("tiling_level", "TilingOptimizationLevel", "tiling_optimization_level"),
        ):
            if spec.get(field):
                self._require_attribute(config, attribute, field)
                setattr(config, attribute, self._member(kind, spec[field].upper(), field))
        for name, on in spec.get("preview", {}).items():
            config.set_preview_feature(self._member("PreviewFeature", name.upper(), "preview"), on)
        if spec.get("tactic_sources"):
            config.set_tactic_sources(self._source_mask(config.get_tactic_sources(), spec["tactic_sources"]))

    def _source_mask(self, mask: int, words: Sequence[str]) -> int:
        """Returns the bits of tactic sources: ``+CUBLAS`` and ``-CUBLAS`` change the default, names replace it."""
        if not any(word[:1] in "+-" for word in words):
            mask = 0
        for word in words:
            bit = 1 << int(self._member("TacticSource", word.lstrip("+-").upper(), "tactic_sources"))
            mask = mask & ~bit if word.startswith("-") else mask | bit
        return mask

    def _set_hardware(self, config: Any, spec: Mapping[str, Any]) -> None:
        chosen = spec["compute_capabilities"]
        if not chosen:
            return
        if not hasattr(config, "num_compute_capabilities"):
            raise UsageError(
                f"{self.name} {self.version} builds for the GPU of this machine and takes no --compute-capability",
                hint="Leave it out, or use --engine tensorrt-rtx.",
            )
        config.num_compute_capabilities = len(chosen)
        members = self.api.ComputeCapability.__members__
        for slot, word in enumerate(chosen):
            if word not in members:
                known = ", ".join(_dotted(each) for each in members if each.startswith("SM"))
                raise UsageError(
                    f"{self.name} {self.version} does not build for compute capability {_dotted(word)}",
                    hint=f"It builds for {known}.",
                )
            config.set_compute_capability(members[word], slot)

    def _member(self, kind: str, name: str, field: str) -> Any:
        members = getattr(self.api, kind).__members__ if hasattr(self.api, kind) else {}
        if name not in members:
            hint = did_you_mean(name, members) or (f"It has: {', '.join(members)}." if members else None)
            raise UsageError(f"{self.name} {self.version} has no {name} (--{field.replace('_', '-')})", hint=hint)
        return members[name]

    def _require_attribute(self, config: Any, attribute: str, field: str) -> None:
        if not hasattr(config, attribute):
            raise UsageError(f"{self.name} {self.version} has no --{field.replace('_', '-')}")

    # ------------------------------------------------------------ profiles

    def _require_no_shape_inputs(self, network: Any) -> None:
        for tensor in _inputs(network):
            if tensor.is_shape_tensor:
                raise self._without_values(tensor)

    def _without_values(self, tensor: Any) -> UsageError:
        count = max(1, _volume(tensor.shape))
        example = ",".join("1" * count)
        return UsageError(
            f"input {tensor.name!r} holds sizes that shapes are made of: a profile must say which values it may have",
            hint=f"Give them like a shape: --min-shapes {tensor.name}:[{example}], and --opt-shapes and --max-shapes.",
        )

    def _add_profile(self, network: Any, config: Any, number: int, wanted: Mapping[str, Any]) -> None:
        profile = self._builder.create_optimization_profile()
        since, seen = len(self.messages), set()
        for tensor in _inputs(network):
            seen.add(tensor.name)
            said = wanted.get(tensor.name)
            if tensor.is_shape_tensor:
                if said is None:
                    raise self._without_values(tensor)
                profile.set_shape_input(tensor.name, said["min"], said["opt"], said["max"])
            elif said is not None and (-1 in tuple(tensor.shape) or not said.get("fixed")):
                profile.set_shape(tensor.name, said["min"], said["opt"], said["max"])
        if not profile or config.add_optimization_profile(profile) < 0:
            raise self.error(f"TensorRT refuses profile {number}", since=since)

    def build(self, network: Any, config: Any) -> Any:
        """Returns the engine, in TensorRT's memory, or None if it built nothing."""
        if hasattr(config, "progress_monitor"):
            config.progress_monitor = self._monitor = _make_monitor(self.api, self.say)
        return self._builder.build_serialized_network(network, config)

    def load_timing_cache(self, config: Any, file: Path) -> Any:
        """Gives the configuration a timing cache, filled from a file if it exists, and returns it."""
        cache = config.create_timing_cache(file.read_bytes() if file.exists() else b"")
        if cache is None or not config.set_timing_cache(cache, False):
            raise self.error(f"the timing cache {file} is not one of this TensorRT", hint="Delete it, or name another.")
        return cache


def _with_decomposable_attention(model: Path, content: bytes | None) -> bytes:
    """Returns a model that tells the parser that Attention may be taken apart.

    Without it TensorRT has a kernel for it or builds nothing. The attribute is the parser's own and not in the
    standard, so it is in no file.
    """
    import onnx

    proto = onnx.ModelProto.FromString(model.read_bytes() if content is None else content)
    graphs = [proto.graph, *proto.functions]
    while graphs:
        for node in graphs.pop().node:
            if node.op_type == "Attention" and node.domain in ("", "ai.onnx"):
                node.attribute.add(name="TRT_decomposable", type=onnx.AttributeProto.INT, i=1)
            for attribute in node.attribute:
                graphs += [each for each in (attribute.g, *attribute.graphs) if each.node]
    data: bytes = proto.SerializeToString()
    return data


def write_engine(memory: Any, target: Path) -> dict[str, Any]:
    """Writes an engine into a file and returns its size and digest."""
    digest = hashlib.sha256()
    digesting = threading.Thread(target=digest.update, args=(memory,))
    digesting.start()
    try:
        with open(target, "wb") as out:
            out.write(memory)
    finally:
        digesting.join()
    return {"bytes": int(memory.nbytes), "sha256": digest.hexdigest()}


def describe_network(network: Any) -> dict[str, Any]:
    """Returns what a network takes, gives and consists of."""
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    kinds: dict[str, int] = {}
    nodes: dict[str, list[str]] = {}
    for layer in layers:
        kind = str(layer.type).rpartition(".")[2]
        kinds[kind] = kinds.get(kind, 0) + 1
        origin = re.search(r"\[ONNX Layer: ([^\]]*)\]", str(getattr(layer, "metadata", "") or ""))
        if origin is not None:
            nodes.setdefault(origin[1], []).append(str(layer.name))
    outputs = [network.get_output(number) for number in range(network.num_outputs)]
    return {
        "inputs": [_port(tensor) for tensor in _inputs(network)],
        "outputs": [_port(tensor) for tensor in outputs],
        "layers": len(layers),
        "kinds": dict(sorted(kinds.items())),
        "nodes": nodes,
    }


def _inputs(network: Any) -> list[Any]:
    return [network.get_input(number) for number in range(network.num_inputs)]


def _port(tensor: Any) -> dict[str, Any]:
    try:
        shape: list[int] | None = [int(size) for size in tensor.shape]
    except ValueError:  # the length of a shape that is not known yet
        shape = None
    return {"name": str(tensor.name), "dtype": str(tensor.dtype).rpartition(".")[2].lower(), "shape": shape}


def _volume(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _dotted(word: str) -> str:
    digits = word.removeprefix("SM")
    return f"{digits[:-1]}.{digits[-1]}" if digits.isdigit() else word.lower()


def _make_logger(owner: TensorRT) -> Any:
    base = owner.api.ILogger

    class Logger(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            owner.hear(int(severity), message)

    return Logger()


def _make_monitor(api: Any, say: Say) -> Any:
    base = api.IProgressMonitor

    class Monitor(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            say("phase", name=phase, parent=parent or "", steps=steps)

        def step_complete(self, phase: str, step: int) -> bool:
            say("step", name=phase, step=step)
            return True

        def phase_finish(self, phase: str) -> None:
            say("phase_end", name=phase)

    return Monitor()


def _library_hint(words: str) -> str:
    if "undefined symbol" in words:
        return "It was linked against another TensorRT, or lacks a library: build it against this one."
    if "libcuda" in words or "libcudart" in words:
        return "It needs CUDA libraries that are not here; link the CUDA runtime statically and libcuda not at all."
    if "cannot open shared object" in words:
        return "The file, or a library that it needs, is not there ('ldd' lists them)."
    return "It must be a shared library for this system."


def _supply_library_names(module: str) -> None:
    """Loads the libraries of TensorRT-RTX from a folder of links that also has the name its parser asks for.

    ``libtensorrt_rtx.so`` without a number is not in the wheel, and the parser opens it from its own folder.

    Raises:
        MissingDependencyError: TensorRT was loaded before.
    """
    if sys.platform == "win32":
        return
    if module in sys.modules:
        raise MissingDependencyError("TensorRT-RTX was loaded before its libraries could be put right")
    spec = find_spec("tensorrt_rtx_libs")
    if spec is None or spec.origin is None:
        return
    source = Path(spec.origin).parent
    libraries = sorted(each.name for each in source.iterdir() if ".so" in each.name)
    core = next((name for name in libraries if name.startswith("libtensorrt_rtx.so")), None)
    if core is None or core == "libtensorrt_rtx.so":
        return
    farm = Path(tempfile.mkdtemp(prefix="onnxbench-trt-"))
    atexit.register(shutil.rmtree, farm, True)
    for name in libraries:
        (farm / name).symlink_to(source / name)
    (farm / "libtensorrt_rtx.so").symlink_to(source / core)
    for name in reversed(libraries):
        ctypes.CDLL(os.fspath(farm / name))


def as_dict(error: BenchError) -> dict[str, Any]:
    """Returns an error as plain values, to be sent to another process."""
    return {"class": type(error).__name__, "message": error.message, "hint": error.hint, "details": list(error.details)}


def near_creators(name: str, creators: Sequence[tuple[str, str, str]]) -> list[str]:
    """Returns the names of registered plugins that look like one."""
    return nearest(name, [each[1] for each in creators])
