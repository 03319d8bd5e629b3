"""ONNX Runtime behind the seam: the only module that imports it.

How a session gets its weights. A ``Model`` holds its structure alone, and the runtime must come by gigabytes of
weights without a copy in Python. The structure is handed over as bytes in which every weight outside of it is
external data: an offset and a length in the very file that holds it today (the model file itself, where it was
inline), named relative to the root of the file system, which the session is told to take for the model's folder. So
the runtime reads each weight once, straight into its own aligned buffer, no matter in how many files they lie;
whether the model may refer to those files was decided by ``Model.byte_range`` before. This holds for initializers of
the main graph and of bodies alike, and for ``Constant`` nodes, also in functions. Measured with 1.6 GB inline: 2.1 s
and 1.6 GB, where loading the file takes 4.0 s and 1.6 GB. Rejected: ``add_external_initializers`` (main graph only)
and ``add_external_initializers_from_files_in_memory`` (not for Constants, and copies), files of links (refused).
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench import weights
from onnxbench.backends._deadline import deadline
from onnxbench.backends._operators import Taught, failure
from onnxbench.backends._structure import distinct_node_names, expose, inline_weights, require_tensors
from onnxbench.captures import Feeds, Port, Value, check_feeds, input_ports, numpy_dtype
from onnxbench.errors import ExecutionError, MissingDependencyError, OutputError, UnsupportedError, UsageError
from onnxbench.messages import copy_of, delete_named
from onnxbench.tensortype import dtype_number, elem_type, initializer_type, is_complete, make_type

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto, TypeProto

    from onnxbench.backends import Options
    from onnxbench.model import Model

_FOLDER_ENTRY = "session.model_external_initializers_file_folder_path"
_INLINE_BELOW = 1024
_QUIET, _VERBOSE = 4, 1  # log severities: fatal errors only (all others arrive as exceptions), and nearly everything
_BITS_ONLY = {16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26}
_LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_MOST_THREADS = 1024
_TYPE_WORDS = {"float": "float32", "double": "float64"}


class OrtBackend:
    """ONNX Runtime as a backend."""

    name = "ort"
    heeds = ("optimization", "providers", "threads", "libraries", "profile")

    def version(self) -> str:
        """Returns the version of ONNX Runtime."""
        return str(_runtime().__version__)

    def providers(self) -> list[str]:
        """Returns the execution providers that this build of ONNX Runtime has."""
        return list(_runtime().get_available_providers())

    def open(self, model: Model, *, outputs: Sequence[str] | None, options: Options) -> OrtSession:
        """Returns a session (see ``onnxbench.backends.open_session``)."""
        taught = Taught(distinct_node_names(model.proto), options.operators)
        proto = expose(taught.proto, outputs)
        data, folder = serialize(model, proto)
        options = replace(options, libraries=(*options.libraries, *taught.libraries))
        return OrtSession(data, folder, proto, options, taught)


BACKEND = OrtBackend()


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            f"onnxruntime cannot be imported: {error}", hint="Install it with: pip install onnxruntime"
        ) from None
    return onnxruntime


class OrtSession:
    """A model loaded into ONNX Runtime."""

    def __init__(
        self, data: bytes, folder: str | None, proto: ModelProto, options: Options, taught: Taught | None = None
    ) -> None:
        runtime = _runtime()
        self._taught = taught
        self._profile = options.profile
        self._traces = Path(tempfile.mkdtemp(prefix="onnxbench-")) if options.profile else None
        settings = _settings(runtime, options, folder, self._traces)
        wanted = _providers(runtime, options.providers)
        try:
            with deadline():
                self._session = runtime.InferenceSession(data, settings, providers=wanted, **_disabled(options))
        except Exception as error:  # the seam: the runtime raises a dozen unrelated classes from C++
            raise translate(error, "does not take the model") from None
        self.providers = tuple(self._session.get_providers())
        if self.providers[0] != wanted[0]:
            raise ExecutionError(
                f"ONNX Runtime could not start its {wanted[0]} and fell back on {self.providers[0]}",
                hint="Its own libraries are missing, perhaps; --provider cpu works.",
            )
        self.device = self.providers[0].removesuffix("ExecutionProvider")
        self.inputs = input_ports(proto.graph)
        declared = {info.name: info.type for info in proto.graph.output if info.HasField("type")}
        self.outputs = [
            Port(node.name, declared[node.name] if is_complete(declared.get(node.name)) else _type_of(node), False)
            for node in self._session.get_outputs()
        ]
        self._kinds = {port.name: port for port in self.outputs}
        self._run_options = runtime.RunOptions()
        self._run_options.log_severity_level = _VERBOSE if options.verbose else _QUIET

    def run(self, feeds: Mapping[str, Value], outputs: Sequence[str] | None = None) -> dict[str, Value]:
        """Returns outputs by name (see ``onnxbench.backends.Session``)."""
        fitted = check_feeds(feeds, self.inputs)
        names = [port.name for port in self.outputs] if outputs is None else list(dict.fromkeys(outputs))
        try:
            with deadline():
                made = {} if not names else self._run(fitted, names)
        except Exception as error:  # the seam, as above
            if isinstance(error, UnsupportedError):
                raise
            self._refuse_raised()
            raise translate(error, "failed while it ran the model") from None
        self._refuse_raised()
        return made

    def _refuse_raised(self) -> None:
        """Raises ExecutionError for what an operator in Python raised, which cannot be said any earlier."""
        raised = failure() if self._taught is not None and self._taught.libraries else None
        if raised is not None:
            raise ExecutionError(f"the reference of a custom operator raised {raised}")

    def _run(self, feeds: Feeds, names: list[str]) -> dict[str, Value]:
        """Chooses the way in and out: the plain one, or ``OrtValue`` for element types that NumPy lacks.

        The plain call converts to and from NumPy's own types only; ``OrtValue`` carries bits of any type, but neither
        strings nor sequences in, and no sequences out. Where outputs need both ways, the model runs twice.
        """
        inputs = {port.name: port for port in self.inputs}
        odd_inputs = [name for name in feeds if inputs[name].dtype in _BITS_ONLY]
        odd = [name for name in names if _is_odd(self._kinds.get(name))]
        if not odd_inputs and not odd:
            return dict(zip(names, self._session.run(names, feeds, self._run_options), strict=True))
        plain = [name for name in names if name not in set(odd) and self._kinds[name].kind != "tensor"]
        values = {name: _to_ort(name, value, inputs[name]) for name, value in feeds.items()}
        direct = [name for name in names if name not in set(plain)]
        made = dict(zip(direct, self._session.run_with_ort_values(direct, values, self._run_options), strict=True))
        results = {name: _from_ort(value, self._kinds[name]) for name, value in made.items()}
        if plain and odd_inputs:
            raise UnsupportedError(
                f"output {plain[0]!r} is no tensor and input {odd_inputs[0]!r} has a type that NumPy lacks; "
                "ONNX Runtime's Python interface cannot do both in one run",
                hint="Ask for tensors only, or use --backend reference.",
            )
        if plain:
            results.update(zip(plain, self._session.run(plain, feeds, self._run_options), strict=True))
        return {name: results[name] for name in names}

    def close(self) -> None:
        """Ends the session and writes the profile, where one was asked for."""
        if self._taught is not None:
            self._taught.close()
        session, self._session = self._session, None
        if self._traces is None or self._profile is None:
            return
        traces, self._traces = self._traces, None
        try:
            shutil.move(session.end_profiling(), self._profile)
        except OSError as error:
            raise OutputError(f"the profile {self._profile} cannot be written: {error.strerror}") from None
        finally:
            shutil.rmtree(traces, ignore_errors=True)


def _settings(runtime: Any, options: Options, folder: str | None, traces: Path | None) -> Any:
    settings = runtime.SessionOptions()
    if options.threads > _MOST_THREADS:
        raise UsageError(f"{options.threads:,} threads are too many", hint=f"At most {_MOST_THREADS:,}.")
    level = _LEVELS.get(options.optimization)
    if level is None:
        raise UsageError(f"{options.optimization!r} is no optimization level", hint=f"Levels: {', '.join(_LEVELS)}.")
    settings.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, level)
    settings.log_severity_level = _VERBOSE if options.verbose else _QUIET
    if options.threads:
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
    if options.frugal:
        # Of the nodes that are ready, the first in the file runs next: probes run before what comes after them.
        settings.execution_order = runtime.ExecutionOrder.PRIORITY_BASED
        settings.enable_cpu_mem_arena = settings.enable_mem_pattern = False
    if options.unpacked:
        settings.add_session_config_entry("session.disable_prepacking", "1")
    if folder is not None:
        settings.add_session_config_entry(_FOLDER_ENTRY, folder)
    for library in options.libraries:
        if not Path(library).is_file():
            raise UsageError(f"there is no custom operator library {library}")
        try:
            settings.register_custom_ops_library(os.fspath(library))
        except Exception as error:  # the seam: a library can fail in any way
            raise translate(error, f"cannot use the custom operator library {library}") from None
    if traces is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(traces / "trace")
    return settings


def _providers(runtime: Any, asked: Sequence[str]) -> list[str]:
    """Returns the runtime's names of providers spelled ``cpu``, ``CUDA``, ``TensorrtExecutionProvider``, ``trt``."""
    there = {name.lower().removesuffix("executionprovider"): name for name in runtime.get_available_providers()}
    chosen = []
    for name in asked:
        word = name.lower().removesuffix("executionprovider")
        word = {"trt": "tensorrt", "gpu": "cuda", "directml": "dml"}.get(word, word)
        if word not in there:
            raise MissingDependencyError(
                f"this onnxruntime has no execution provider {name!r}", hint=f"It has: {', '.join(there.values())}."
            )
        chosen.append(there[word])
    return chosen or [there["cpu"]]


def optimized(model: Model, options: Options, folder: Path) -> Path:
    """Writes the graph that the runtime makes of a model and returns the file (see ``onnxbench.backends``)."""
    runtime = _runtime()
    written = folder / "optimized.onnx"
    data, root = serialize(model, distinct_node_names(model.proto))
    settings = _settings(runtime, options, root, None)
    settings.optimized_model_filepath = str(written)
    settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.data")
    settings.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "65536")
    try:
        wanted = _providers(runtime, options.providers)
        with deadline():
            runtime.InferenceSession(data, settings, providers=wanted, **_disabled(options))
    except Exception as error:  # the seam, as above
        raise translate(error, "cannot write the graph that it makes of the model") from None
    return written


def open_verbosely(file: Path, root: str | None, options: Options) -> None:
    """Opens a model and lets the runtime write all that it does to standard error."""
    runtime = _runtime()
    settings = _settings(runtime, options, root, None)
    settings.log_severity_level = 0
    try:
        runtime.InferenceSession(file.read_bytes(), settings, providers=_providers(runtime, options.providers))
    except Exception as error:  # the seam, as above
        raise translate(error, "does not take the model") from None


def _disabled(options: Options) -> dict[str, list[str]]:
    return {"disabled_optimizers": list(options.disabled)} if options.disabled else {}


# ---------------------------------------------------------------- structure and weights


def serialize(model: Model, proto: ModelProto) -> tuple[bytes, str | None]:
    """Returns a model as the session wants it, and the folder that its external data is relative to, if it has any."""
    outside = any(weights.is_outside(tensor) for tensor in weights.tensors(proto))
    if outside or proto.training_info:
        if proto is model.proto:
            proto = copy_of(model.proto)
        proto.ClearField("training_info")
    root = _refer_to_files(model, proto) if outside else None
    try:
        return proto.SerializeToString(), root
    except ValueError:
        raise UnsupportedError(
            "the model holds more than 2 GiB in memory, which no runtime takes in one message",
            hint="Save it with external data, and run that file.",
        ) from None


def _refer_to_files(model: Model, proto: ModelProto) -> str | None:
    """Makes every tensor outside the structure external data of the file that holds it; small ones come inside."""
    root: str | None = None
    real: dict[Path, str] = {}
    inside = []
    for tensor in weights.tensors(proto):
        if not weights.is_outside(tensor):
            continue
        where = model.byte_range(tensor)
        if where is None:
            continue
        if where.file not in real:
            real[where.file] = os.path.realpath(where.file)
        file = real[where.file]
        root = root or Path(file).anchor
        if where.length < _INLINE_BELOW or Path(file).anchor != root:
            inside.append(tensor)
            continue
        del tensor.external_data[:]
        for key, value in (
            ("location", os.path.relpath(file, root)),
            ("offset", str(where.offset)),
            ("length", str(where.length)),
        ):
            tensor.external_data.add(key=key, value=value)
    inline_weights(model, inside)
    return root


# ---------------------------------------------------------------- types that the runtime gives


def session_types(model: Model, names: Sequence[str]) -> dict[str, TypeProto]:
    """Returns the types that ONNX Runtime gives to tensors of the main graph (see ``onnxbench.backends``).

    The tensors are listed as value infos (or outputs, if they are that) without a type, the runtime infers what they
    are, and the model that it writes back tells. (Its own list of outputs does not tell a scalar from an unknown
    rank.) It only writes its own view of a graph that it had to change, so it is given a function to inline. Weights
    need not be there for this: large ones are made inputs.

    That view is not always the model's: float16 nodes without a kernel run in float32, and the casts around them are
    moved. What is an output keeps its type, so where float16 occurs all tensors are made outputs. That is not done
    in general because it takes time quadratic in their number. The same way is taken, with the weights, for tensors
    that the first one leaves open: a kernel insisted on a constant weight, or a node was dropped as leading nowhere.
    """
    require_tensors(model.proto, names)
    given = {info.name: info.type for info in model.proto.graph.input}
    given |= {tensor.name: initializer_type(tensor) for tensor in model.proto.graph.initializer}
    found = {name: _without_negative_dims(given[name]) for name in names if is_complete(given.get(name))}
    rest = [name for name in names if name not in found]
    if not rest:
        return found
    halves = _holds_half_floats(model.proto)
    told = _written_types(model, rest, as_outputs=halves)
    missing = [name for name in rest if not is_complete(told.get(name))]
    if missing:
        from onnxbench.backends import Options

        ports = BACKEND.open(model, outputs=missing, options=Options(optimization="none")).outputs
        told |= {port.name: _without_negative_dims(port.type) for port in ports if port.type is not None}
    found |= {name: told[name] for name in rest if is_complete(told.get(name))}
    return {name: found[name] for name in names if name in found}


def _written_types(model: Model, names: Sequence[str], *, as_outputs: bool) -> dict[str, TypeProto]:
    """Returns the types in the model that the runtime writes back; {} where it refuses the model without weights."""
    from onnxbench.backends import Options

    runtime = _runtime()
    options = Options(optimization="none")
    wanted = set(names)
    proto = type(model.proto)()
    distinct = distinct_node_names(model.proto)
    proto.CopyFrom(expose(distinct, names) if as_outputs else distinct)
    graph = proto.graph
    for info in graph.output:
        if info.name in wanted:
            info.ClearField("type")
    delete_named(graph.value_info, wanted)
    outputs = {info.name for info in graph.output}
    for name in names:
        if name not in outputs:
            graph.value_info.add(name=name)
    _make_inputs_of_weights(proto)
    _add_function(proto)
    with tempfile.TemporaryDirectory(prefix="onnxbench-") as folder:
        written = Path(folder) / "typed.onnx"
        data, root = serialize(model, proto)
        settings = _settings(runtime, options, root, None)
        settings.optimized_model_filepath = str(written)
        try:
            runtime.InferenceSession(data, settings, providers=_providers(runtime, options.providers))
            typed = type(proto).FromString(written.read_bytes()).graph
        except Exception:  # any refusal: the whole model decides
            return {}
    return {info.name: info.type for info in (*typed.value_info, *typed.output)}


def _holds_half_floats(proto: ModelProto) -> bool:
    """Tells whether any tensor of the main graph may be float16 or bfloat16."""
    halves = (10, 16)
    graph = proto.graph
    infos = (*graph.input, *graph.output, *graph.value_info)
    if any(info.type.tensor_type.elem_type in halves for info in infos):
        return True
    if any(tensor.data_type in halves for tensor in weights.tensors(proto)):
        return True
    return any(attribute.i in halves for node in graph.node for attribute in node.attribute if attribute.type == 2)


def _without_negative_dims(value: TypeProto) -> TypeProto:
    """Returns a type in which a dimension of -1, as old exporters write it, is unknown."""
    if not any(dim.dim_value < 0 for dim in value.tensor_type.shape.dim):
        return value
    mended = copy_of(value)
    for dim in mended.tensor_type.shape.dim:
        if dim.dim_value < 0:
            dim.ClearField("dim_value")
    return mended


def _make_inputs_of_weights(proto: ModelProto) -> None:
    """Turns the main graph's initializers that lie outside the structure into inputs of the same type, in place."""
    graph = proto.graph
    listed = {info.name for info in graph.input}
    for position in reversed(range(len(graph.initializer))):
        tensor = graph.initializer[position]
        if weights.is_outside(tensor):
            if tensor.name not in listed:
                graph.input.add(name=tensor.name).type.CopyFrom(initializer_type(tensor))
            del graph.initializer[position]


def _add_function(proto: ModelProto) -> None:
    """Adds a call of a function that makes one constant, in place."""
    from onnx import TensorProto, helper

    domain = "onnxbench.rewrite"
    versions = {opset.domain: opset.version for opset in proto.opset_import}
    version = versions.get("", versions.get("ai.onnx", 0))
    if not version:
        version = 13
        proto.opset_import.add(domain="", version=version)
    constant = helper.make_node("Constant", [], ["made"], value=helper.make_tensor("", TensorProto.FLOAT, [], [0.0]))
    imports = [helper.make_opsetid("", version)]
    proto.functions.append(helper.make_function(domain, "Rewrite", [], ["made"], [constant], imports))
    proto.opset_import.add(domain=domain, version=1)
    proto.ir_version = max(proto.ir_version, 8)
    proto.graph.node.add(op_type="Rewrite", domain=domain, output=["onnxbench.rewrite"])
    proto.graph.output.add(name="onnxbench.rewrite")


def symbolic_types(model: Model, names: Sequence[str]) -> dict[str, TypeProto]:
    """Returns the types that ONNX Runtime's symbolic shape inference finds; {} where it gives up.

    Its own entry point writes a file into the working folder when it fails, so its loop is driven from here.
    Dimensions that it names itself become unknown: a name promises equality.
    """
    import logging

    try:
        from onnxruntime.tools import symbolic_shape_infer
    except ImportError:
        return {}
    proto = copy_of(model.proto)
    known = _symbols(proto)
    _make_inputs_of_weights(proto)
    inline_weights(model, [tensor for tensor in weights.tensors(proto) if weights.is_outside(tensor)])
    logger = logging.getLogger(symbolic_shape_infer.__name__)
    before = logger.disabled
    logger.disabled = True
    try:
        inference = symbolic_shape_infer.SymbolicShapeInference(2**31 - 1, True, False, 0)
        inference._preprocess(proto)
        while inference.run_:
            if not inference._infer_impl():
                break
        typed = inference.out_mp_.graph
    except Exception:  # a research tool in pure Python: whatever it trips over, it knows nothing then
        return {}
    finally:
        logger.disabled = before
    wanted = set(names)
    found: dict[str, TypeProto] = {}
    for info in (*typed.value_info, *typed.output):
        if info.name in wanted and is_complete(info.type):
            found[info.name] = _without_foreign_symbols(info.type, known)
    return found


def _symbols(proto: ModelProto) -> set[str]:
    infos = (*proto.graph.input, *proto.graph.output, *proto.graph.value_info)
    return {
        word
        for info in infos
        for dim in info.type.tensor_type.shape.dim
        for word in re.findall(r"[A-Za-z_]\w*", dim.dim_param)
    }


def _without_foreign_symbols(value: TypeProto, known: set[str]) -> TypeProto:
    for dim in value.tensor_type.shape.dim if value.WhichOneof("value") == "tensor_type" else ():
        if dim.dim_param and not set(re.findall(r"[A-Za-z_]\w*", dim.dim_param)) <= known:
            dim.ClearField("dim_param")
    return value


def _type_of(node: Any) -> TypeProto | None:
    """Returns the type of a ``NodeArg``. It shows a scalar and an unknown rank alike: both come without a shape."""
    return _parse_type(str(node.type), list(node.shape or ()) or None)


def _parse_type(text: str, shape: list[Any] | None) -> TypeProto | None:
    """Reads ``tensor(float)``, ``seq(tensor(int64))``, ``optional(seq(...))``, ``map(string,tensor(float))``."""
    from onnx import TypeProto

    outer, _, inner = text.partition("(")
    inner = inner.removesuffix(")")
    value = TypeProto()
    if outer == "tensor":
        return make_type(_number(inner), None if shape is None else [dim or None for dim in shape])
    if outer == "sparse_tensor":
        value.sparse_tensor_type.elem_type = _number(inner)
        return value
    if outer == "map":
        key, _, rest = inner.partition(",")
        below = _parse_type(rest, None)
        if below is None:
            return None
        value.map_type.key_type = _number(key)
        value.map_type.value_type.CopyFrom(below)
        return value
    below = _parse_type(inner, shape if outer == "optional" else None) if outer in ("seq", "optional") else None
    if below is None:
        return None
    (value.sequence_type if outer == "seq" else value.optional_type).elem_type.CopyFrom(below)
    return value


def _number(word: str) -> int:
    return dtype_number(_TYPE_WORDS.get(word, word))


# ---------------------------------------------------------------- values whose element type NumPy lacks


def _is_odd(port: Port | None) -> bool:
    return port is not None and port.type is not None and elem_type(port.type) in _BITS_ONLY


def _to_ort(name: str, value: Value, port: Port) -> Any:
    """Returns an ``OrtValue`` of the very bits.

    Types under a byte are packed into the start of a buffer of their shape. The runtime takes the shape from the
    array and the type from us, and looks at no more bytes than that type needs.
    """
    import numpy as np

    ort_value = _runtime().OrtValue
    if not isinstance(value, np.ndarray) or value.dtype.kind in "OUS":
        raise UnsupportedError(
            f"input {name!r} ({port.kind or 'unknown'}) cannot be fed beside tensors of types that NumPy lacks",
            hint="Use --backend reference.",
        )
    if port.dtype not in _BITS_ONLY:
        return ort_value.ortvalue_from_numpy(value)
    array = value
    bits = _bits(port.dtype)
    if bits < 8:
        array = np.zeros(value.shape, dtype=np.uint8)
        packed = _pack(value, bits)
        array.reshape(-1)[: packed.size] = packed
    return ort_value.ortvalue_from_numpy_with_onnx_type(array, port.dtype)


def _from_ort(value: Any, port: Port) -> Value:
    import numpy as np

    if not value.has_value():
        return None
    if port.dtype not in _BITS_ONLY:
        return value.numpy()
    shape = tuple(value.shape())
    target = numpy_dtype(port.dtype)
    if 0 in shape:
        return np.empty(shape, dtype=target)
    data = bytearray(ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes()))
    bits = _bits(port.dtype)
    if bits < 8:
        return _unpack(np.frombuffer(data, dtype=np.uint8), bits, shape).view(target)
    return np.frombuffer(data, dtype=target).reshape(shape)


def _bits(number: int) -> int:
    """Returns the bits of one element."""
    from onnxbench.tensortype import dtype_bits

    return dtype_bits(number)


def _pack(array: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Returns elements of less than a byte (one per byte) packed, the first in the lowest bits."""
    import numpy as np

    per_byte = 8 // bits
    flat = array.reshape(-1).view(np.uint8) & ((1 << bits) - 1)
    padded = np.zeros(-(-flat.size // per_byte) * per_byte, dtype=np.uint8)
    padded[: flat.size] = flat
    packed = np.zeros(padded.size // per_byte, dtype=np.uint8)
    for place in range(per_byte):
        packed |= padded[place::per_byte] << (place * bits)
    return packed


def _unpack(packed: np.ndarray[Any, Any], bits: int, shape: Sequence[int]) -> np.ndarray[Any, Any]:
    """Returns packed elements one per byte, in the low bits (``ml_dtypes`` ignores the others)."""
    import numpy as np

    per_byte = 8 // bits
    flat = np.empty(packed.size * per_byte, dtype=np.uint8)
    for place in range(per_byte):
        flat[place::per_byte] = (packed >> (place * bits)) & ((1 << bits) - 1)
    return flat[: int(np.prod(shape, dtype=np.int64))].reshape(shape)


# ---------------------------------------------------------------- errors

_HEAD = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SOURCE = re.compile(  # file, line and signature of the C++ function
    r"(?:[A-Za-z]:)?[/\\]\S+\.(?:cc|cpp|h|hpp|cu|cuh):\d+ .*?\)(?:::<lambda[^>]*>)?\s*"
    r"(?:const\s*)?(?:\[with [^\]]*\]\s*)?(?=[^\s,>&*])"
)
_CONDITION = re.compile(r"^[^.]{1,200}? was false\.\s+(?=\S)")
_RUNNING = re.compile(r"Non-zero status code returned while running (\S+) node\. Name:'([^']*)' Status Message: ")
_PLACES = (
    re.compile(r"implementation for (?P<op>[\w.:]+)\(\S+\) node with name '(?P<name>[^']*)'"),
    re.compile(r"operator \((?P<op>[^)]*)\) in node \((?P<name>[^)]*)\)"),
    re.compile(r"Node ?\((?P<name>[^)]*)\) Op \((?P<op>[^)]*)\)"),
    re.compile(r'In Node, \("(?P<name>[^"]*)", (?P<op>\w+)'),
    re.compile(r"Node:(?P<name>\S*) Op:? ?\(?(?P<op>\w+)"),
)
_NOISE = tuple(
    re.compile(pattern)
    for pattern in (
        r"\[ONNXRuntimeError\] : \d+ : \w+ : ",
        r"^This is an invalid model\.\s*",
        r"^Exception during \w+:\s*",
        r"^\w+\.(?:cc|h):\d+ \w+\s+",
        r"^status\.IsOK\(\) was false\.\s*",
        r"^\w+\.(?:cc|h):\d+ \w+\s+",
        r"^In Node, .*? Error (?=\S)",
        r"^Node ?\([^)]*\) Op \([^)]*\)\s*",
        r"^\[\w+InferenceError\]\s*",
        r"^Graph attribute inferencing failed:\s*",
        r"^(?:Fatal error|Error|Type Error):\s*",
        r"^==> Context:\s*",
    )
)
_REFERENCE = "The runtime has no kernel for these types; --backend reference may."
_CUSTOM = "Give the custom operator: --plugin BUNDLE, or a library: --custom-ops FILE."
_HINTS = (
    ("is under development", "This runtime is too old for the model's opset; --backend reference may run it."),
    ("Unsupported model IR version", "This runtime is too old for the model's IR version."),
    ("Could not find an implementation", _REFERENCE),
    ("MLDataType for", _REFERENCE),
    ("is not a registered function/op", _CUSTOM),
    ("No Op registered for", "The opset that the model imports has no such operator; see 'onnxbench check'."),
    ("allocat", "Memory ran out; smaller inputs (--shape) need less."),
)


def translate(error: Exception, doing: str) -> ExecutionError:
    """Returns an exception of ONNX Runtime as ours: the node it names, and the first line that says something."""
    text = _HEAD.sub("", str(error).strip())
    chain = _RUNNING.findall(text)
    text = _RUNNING.split(text)[-1]
    reason = next((line for line in (_clean(line) for line in text.splitlines()) if line), type(error).__name__)
    details = []
    place = ""
    if chain:
        op, name = chain[-1]
        place = f" in {_node(op, name)}"
        details = [f"inside {_node(op, name)}" for op, name in reversed(chain[:-1])]
    else:
        for pattern in _PLACES:
            match = pattern.search(text)
            if match:
                place = f" because of {_node(match['op'], match['name'])}"
                break
    hint = next((hint for words, hint in _HINTS if words in text), None)
    return ExecutionError(f"ONNX Runtime {doing}{place}: {reason}", details=details, hint=hint)


def _node(op: str, name: str) -> str:
    return f"node {name!r} ({op})" if name else f"a {op} node without a name"


def _clean(line: str) -> str:
    """Returns a line of a message without source positions and without what the sentence around it says already."""
    line = _SOURCE.sub("", line).strip()
    line = _CONDITION.sub("", line).strip()
    for noise in _NOISE:
        line = noise.sub("", line)
    return line.strip().rstrip(".")
