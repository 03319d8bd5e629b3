"""A TensorRT plugin made of a bundle, and plugins of others in Python files. Runs in TensorRT's process only.

What TensorRT does to plugins written in Python shapes this. It prints the exceptions of their methods and goes on, even
to an engine that lacks what a method should have given, so every method is guarded and what it raised is an error of
the build. It keeps no reference to instances, so they are kept here. It hands attributes over only if the creator
lists their names. Of an engine's host code nothing is in the engine but the fields that a plugin serializes: the
compiled kernel (PTX) is one of them, and is launched through the CUDA driver where the engine runs.
"""

from __future__ import annotations

import ctypes
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench.bundles import kind_of, run_file
from onnxbench.errors import EngineError, SpecError

if TYPE_CHECKING:
    from onnxbench.bundles import Bundle

_KEPT: list[Any] = []
_PTX = "onnxbench_ptx"


class _Size:
    """A size in TensorRT: an expression that is made by the same arithmetic as of integers."""

    def __init__(self, rt: Any, builder: Any, expression: Any) -> None:
        self._rt, self._builder, self.expression = rt, builder, expression

    def _apply(self, operation: str, first: Any, second: Any) -> _Size:
        operations = self._rt.api.DimensionOperation
        made = self._builder.operation(
            getattr(operations, operation), _expression(self, first), _expression(self, second)
        )
        return _Size(self._rt, self._builder, made)

    def constant(self, value: int) -> Any:
        return self._builder.constant(int(value))

    def __add__(self, other: Any) -> _Size:
        return self._apply("SUM", self, other)

    __radd__ = __add__

    def __mul__(self, other: Any) -> _Size:
        return self._apply("PROD", self, other)

    __rmul__ = __mul__

    def __sub__(self, other: Any) -> _Size:
        return self._apply("SUB", self, other)

    def __rsub__(self, other: Any) -> _Size:
        return self._apply("SUB", other, self)

    def __floordiv__(self, other: Any) -> _Size:
        return self._apply("FLOOR_DIV", self, other)

    def __rfloordiv__(self, other: Any) -> _Size:
        return self._apply("FLOOR_DIV", other, self)

    def smaller(self, other: Any) -> _Size:
        return self._apply("MIN", self, other)

    def larger(self, other: Any) -> _Size:
        return self._apply("MAX", self, other)


def _expression(size: _Size, value: Any) -> Any:
    return value.expression if isinstance(value, _Size) else size.constant(value)


def _guarded(failed: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns a decorator for methods that records what one raises; ``failed`` is returned then, or what it makes."""

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def guarded(self: Any, *arguments: Any, **named: Any) -> Any:
            try:
                return method(self, *arguments, **named)
            except Exception as error:  # a plugin's own code; TensorRT would only print it
                frames = traceback.extract_tb(error.__traceback__)
                place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
                self.rt.plugin_failures.append(
                    f"plugin {self.bundle.op} raised in {method.__name__}: {type(error).__name__}: {error}{place}"
                )
                return failed(self) if callable(failed) else failed

        return guarded

    return decorate


def register_bundle(rt: Any, bundle: Bundle) -> None:
    """Registers the plugin of a bundle.

    Raises:
        BenchError: Its kernel is not compiled, or TensorRT does not take it.
    """
    ptx = bundle.ptx()
    for each in bundle.named():
        for op in [each.op, *([_free_name(each.op)] if rt.supports(each.op) else [])]:
            creator = _creator(rt, replace(each, op=op), ptx)
            _KEPT.append(creator)
            if not rt.register(creator, each.domain):
                raise EngineError(f"TensorRT does not take the plugin {op!r}: there is one of that name and version")
        rt.bundles.append(each)


def _free_name(op: str) -> str:
    """Returns what a plugin is called too whose operator TensorRT's parser has one of its own of that name."""
    return f"{op}Plugin"


def fit_to_parser(rt: Any, model: Path) -> bytes | None:
    """Returns a model as TensorRT's parser has to be given it, or None if that is how it is.

    The parser wants a name for each output of a plugin, those that a node leaves out and counted sizes too. And an
    operator that it knows itself it takes by its name, whatever the domain; by the node's ``plugin_namespace`` it finds
    the plugin, and still treats it as it does its own (a ScatterND gets int32 where int64 goes in). So it is given the
    plugin's other name.
    """
    known = {(bundle.domain, bundle.op): bundle for bundle in rt.bundles}
    native = {key for key in known if rt.supports(key[1])}
    unusual = {key for key, bundle in known.items() if key in native or bundle.counted or bundle.optional}
    if not unusual:
        return None
    import onnx

    from onnxbench.graph import GraphIndex

    proto = onnx.load(model, load_external_data=False)
    changed = 0
    for ref in GraphIndex(proto).nodes():
        key = (ref.node.domain, ref.node.op_type)
        if key not in unusual:
            continue
        wanted = len(known[key].outputs) + len(known[key].counted)
        missing = [*(at for at, name in enumerate(ref.node.output) if not name), *range(len(ref.node.output), wanted)]
        for at in missing:
            changed += 1
            name = f"onnxbench_unused_{changed}"
            if at < len(ref.node.output):
                ref.node.output[at] = name
            else:
                ref.node.output.append(name)
        if key in native and not any(each.name == "plugin_namespace" for each in ref.node.attribute):
            changed += 1
            ref.node.op_type = _free_name(key[1])
    return proto.SerializeToString() if changed else None


def _creator(rt: Any, bundle: Bundle, ptx: str) -> Any:
    """Returns what makes the plugins of a bundle: a class of TensorRT's, with what it does from ``_Creator``."""
    base = rt.api.IPluginCreatorV3One
    made = type("Creator", (_Creator, base), {"rt": rt, "bundle": bundle, "bases": (base,)})
    return made(_plugin_class(rt, bundle), ptx)


def _plugin_class(rt: Any, bundle: Bundle) -> Any:
    """Returns the class of the plugins of a bundle: a class of TensorRT's, with what it does from ``_Plugin``."""
    api = rt.api
    bases = (api.IPluginV3, api.IPluginV3OneCore, api.IPluginV3OneBuild, api.IPluginV3OneRuntime)
    return type("Plugin", (_Plugin, *bases), {"rt": rt, "bundle": bundle, "bases": bases})


class _Creator:
    """Makes plugins of the attributes of a node, or of what an engine keeps."""

    rt: Any
    bundle: Bundle
    bases: tuple[Any, ...]

    def __init__(self, plugin_class: Any, ptx: str) -> None:
        for base in self.bases:
            base.__init__(self)
        api, bundle = self.rt.api, self.bundle
        self.name, self.plugin_version, self.plugin_namespace = bundle.op, bundle.version, bundle.domain
        fields = [api.PluginField(name, b"", _field_type(api, value)) for name, value in bundle.attributes.items()]
        fields.append(api.PluginField(_PTX, b"", api.PluginFieldType.CHAR))
        self.field_names = api.PluginFieldCollection(fields)
        self._plugin_class, self._ptx = plugin_class, ptx

    @_guarded(None)
    def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
        attributes, carried = {}, self._ptx
        for field in fields:
            if field.name == _PTX:
                carried = bytes(field.data).rstrip(b"\0").decode()
            elif field.name in self.bundle.attributes:
                attributes[field.name] = _read_field(field, self.bundle.attributes[field.name])
        return self._plugin_class(self.bundle.filled(attributes), carried)


def _field_type(api: Any, value: Any) -> Any:
    kinds = api.PluginFieldType
    return {str: kinds.CHAR, float: kinds.FLOAT32, int: kinds.INT32}[kind_of(value)[0]]


def _read_field(field: Any, default: Any) -> Any:
    data = field.data
    kind, is_list = kind_of(default)
    if kind is str:
        return bytes(data).rstrip(b"\0").decode()
    values = [kind(value) for value in data] if hasattr(data, "__getitem__") else [kind(data)]
    return values if is_list else values[0]


def _serialized(api: Any, bundle: Bundle, attributes: dict[str, Any], ptx: str) -> list[Any]:
    """Returns what an engine keeps of a plugin: its kernel and its attributes."""
    import numpy as np

    kinds = api.PluginFieldType
    fields = [api.PluginField(_PTX, ptx.encode(), kinds.CHAR)]
    for name, value in attributes.items():
        if isinstance(value, str):
            fields.append(api.PluginField(name, value.encode(), kinds.CHAR))
        else:
            kind, is_list = kind_of(bundle.attributes[name])
            values = np.array(value if is_list else [value], np.float32 if kind is float else np.int32)
            fields.append(api.PluginField(name, values, _field_type(api, bundle.attributes[name])))
    return fields


def _shapes(rt: Any, bundle: Bundle, attributes: dict[str, Any], inputs: Any, builder: Any) -> list[Any]:
    """Returns the shapes of a plugin's outputs as TensorRT's expressions of those of its inputs."""
    sizes = [[_Size(rt, builder, dims[axis]) for axis in range(len(dims))] for dims in inputs]
    made = []
    for name, shape in zip(bundle.outputs, bundle.shapes(bundle.padded(sizes), attributes), strict=True):
        dims = rt.api.DimsExprs(len(shape))
        for axis, size in enumerate(shape):
            dims[axis] = size.expression if isinstance(size, _Size) else builder.constant(int(size))
            if bundle.is_counted(name, axis):
                half = builder.operation(rt.api.DimensionOperation.CEIL_DIV, dims[axis], builder.constant(2))
                number = len(bundle.outputs) + list(bundle.counted).index(name)
                dims[axis] = builder.declare_size_tensor(number, half, dims[axis])
        made.append(dims)
    return [*made, *(rt.api.DimsExprs(0) for _ in bundle.counted)]


def _takes(bundle: Bundle, position: int, dtype: str, typed: str) -> bool:
    """Tells whether an input may have an element type, where that which varies is of another."""
    name = bundle.inputs[position]
    if name in bundle.any_dtype:
        return True
    if dtype not in bundle.types.get(name, bundle.dtypes):
        return False
    return name in bundle.types or position <= bundle.leading() or dtype == typed


_TYPES = {
    "float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int32": "INT32", "int64": "INT64",
}  # fmt: skip
"""Element types as bundles name them, to TensorRT's names."""


class _Plugin:
    """What TensorRT asks of a plugin in a network, and where the engine runs."""

    rt: Any
    bundle: Bundle
    bases: tuple[Any, ...]

    def __init__(self, attributes: dict[str, Any], ptx: str) -> None:
        for base in self.bases:
            base.__init__(self)
        self.plugin_name, self.plugin_version = self.bundle.op, self.bundle.version
        self.plugin_namespace = self.bundle.domain
        self.timing_cache_id = ""
        self._outputs = [*self.bundle.outputs, *[None] * len(self.bundle.counted)]  # a counted size has no name
        self.num_outputs = len(self._outputs)
        self.attributes, self.ptx = attributes, ptx
        self._launcher: _Launcher | None = None
        self._fields: list[Any] = []
        _KEPT.append(self)

    def get_capability_interface(self, kind: Any) -> Any:
        return self

    def _output_type(self, name: str | None, typed: Any) -> Any:
        """Returns the type of an output; ``typed`` is that of the input that it follows."""
        kinds, stated = self.rt.api.DataType, self.bundle.types
        if name is None:
            return kinds.INT64
        return getattr(kinds, _TYPES[stated[name][0]]) if name in stated else typed

    def _type_name(self, kind: Any) -> str:
        return next((name for name, word in _TYPES.items() if getattr(self.rt.api.DataType, word) == kind), "")

    @_guarded(lambda plugin: [])
    def get_output_data_types(self, input_types: Any) -> Any:
        return [self._output_type(name, input_types[self.bundle.leading()]) for name in self._outputs]

    @_guarded(lambda plugin: [])
    def get_output_shapes(self, inputs: Any, shape_inputs: Any, builder: Any) -> Any:
        return _shapes(self.rt, self.bundle, self.attributes, inputs, builder)

    @_guarded(False)
    def supports_format_combination(self, position: int, in_out: Any, num_inputs: int) -> bool:
        desc, typed = in_out[position].desc, in_out[self.bundle.leading()].desc.type
        if desc.format != self.rt.api.TensorFormat.LINEAR:
            return False
        if position >= num_inputs:
            return bool(desc.type == self._output_type(self._outputs[position - num_inputs], typed))
        return _takes(self.bundle, position, self._type_name(desc.type), self._type_name(typed))

    def configure_plugin(self, inputs: Any, outputs: Any) -> int:
        return 0

    def get_valid_tactics(self) -> list[int]:
        return []

    @_guarded(lambda plugin: plugin.rt.api.PluginFieldCollection([]))
    def get_fields_to_serialize(self) -> Any:
        self._fields = _serialized(self.rt.api, self.bundle, self.attributes, self.ptx)
        return self.rt.api.PluginFieldCollection(self._fields)

    def clone(self) -> Any:
        return type(self)(dict(self.attributes), self.ptx)

    def attach_to_context(self, context: Any) -> Any:
        return self.clone()

    def set_tactic(self, tactic: int) -> int:
        return 0

    @_guarded(0)
    def get_workspace_size(self, inputs: Any, outputs: Any) -> int:
        bundle = self.bundle
        if bundle.kernel.workspace is None:
            return 0
        given, made = ([tuple(each.max) for each in descs] for descs in (inputs, outputs[: len(bundle.outputs)]))
        return int(bundle.kernel.workspace(bundle.padded(given), made, self.attributes))

    def on_shape_change(self, inputs: Any, outputs: Any) -> int:
        return 0

    def enqueue(self, input_desc: Any, output_desc: Any, inputs: Any, outputs: Any, workspace: int, stream: int) -> int:
        bundle = self.bundle
        if self._launcher is None:
            self._launcher = _Launcher(self.ptx)
        given = [tuple(desc.dims) for desc in input_desc]
        made = [tuple(desc.dims) for desc in output_desc[: len(bundle.outputs)]]
        space = [] if bundle.kernel.workspace is None else [workspace]
        pointers = [*(each or 0 for each in bundle.padded(inputs)), *outputs, *space]
        suffix = bundle.suffix([self._type_name(desc.type) for desc in input_desc])
        self._launcher.launch_all(bundle, suffix, given, made, self.attributes, pointers, stream)
        return 0


class Params(ctypes.Structure):
    """The numbers that a kernel gets beside its pointers (``onnxbench_params`` in the kernel's source)."""

    _fields_ = [("i", ctypes.c_longlong * 16), ("f", ctypes.c_float * 8)]


def pack(integers: Any, floats: Any) -> Params:
    """Returns numbers in the form in which a kernel gets them."""
    if len(integers) > 16 or len(floats) > 8:
        raise SpecError(f"a kernel gets at most 16 integers and 8 floats, not {len(integers)} and {len(floats)}")
    made = Params()
    for at, value in enumerate(integers):
        made.i[at] = int(value)
    for at, value in enumerate(floats):
        made.f[at] = float(value)
    return made


class _Launcher:
    """Loads PTX into the current CUDA context and launches its functions, through the driver alone."""

    def __init__(self, ptx: str) -> None:
        self._cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        self._module = ctypes.c_void_p()
        self._functions: dict[str, ctypes.c_void_p] = {}
        self._check(self._cuda.cuModuleLoadData(ctypes.byref(self._module), ptx.encode() + b"\0"), "load the kernel")

    def _check(self, status: int, what: str) -> None:
        if status:
            name = ctypes.c_char_p()
            self._cuda.cuGetErrorName(status, ctypes.byref(name))
            raise RuntimeError(f"CUDA could not {what}: {(name.value or b'').decode() or status}")

    def launch_all(
        self, bundle: Bundle, suffix: str, inputs: list[Any], outputs: list[Any], attributes: dict[str, Any],
        pointers: list[int], stream: int,
    ) -> None:  # fmt: skip
        """Launches what a bundle's kernel consists of, one after the other, for these shapes."""
        kernel, given = bundle.kernel, bundle.padded(inputs)
        integers, floats = kernel.scalars(given, outputs, attributes)
        for each in kernel.all_launches():
            count = int(each.count(given, outputs, attributes))
            blocks = count if each.together else (count + each.threads - 1) // each.threads
            self.launch(f"{each.entry}_{suffix}", pointers, integers, floats, blocks, each.threads, stream)

    def launch(
        self, entry: str, pointers: Any, integers: Any, floats: Any, blocks: int, threads: int, stream: int
    ) -> None:  # fmt: skip
        """Launches one function over blocks of threads on a stream."""
        function = self._functions.get(entry)
        if function is None:
            function = ctypes.c_void_p()
            self._check(
                self._cuda.cuModuleGetFunction(ctypes.byref(function), self._module, entry.encode()), f"find {entry}"
            )
            self._functions[entry] = function
        if not blocks:
            return
        values = [*(ctypes.c_void_p(pointer) for pointer in pointers), pack(integers, floats)]
        arguments = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        status = self._cuda.cuLaunchKernel(
            function, blocks, 1, 1, threads, 1, 1, 0, ctypes.c_void_p(stream), arguments, None
        )
        self._check(status, f"launch {entry}")


def register_script(rt: Any, file: Path) -> None:
    """Runs a Python file and registers the plugin creators that it defines, or its bundle.

    A file that imports ``tensorrt`` gets TensorRT-RTX under that name where that is what is used.

    Raises:
        BenchError: It raises, or defines no plugin.
    """
    from onnxbench.bundles import bundles_of, read_bundles

    sys.modules.setdefault("tensorrt", rt.api)
    before = set(rt.creators())
    module = run_file(file)
    if bundles_of(module):
        for bundle in read_bundles(file):
            register_bundle(rt, bundle)
        return
    for value in list(vars(module).values()):
        is_creator = isinstance(value, type) and issubclass(value, rt.api.IPluginCreatorV3One)
        if not is_creator or value.__module__ != module.__name__:
            continue
        try:
            creator = value()
        except Exception as error:  # the user's own code
            raise SpecError(f"plugin {file}: {value.__name__}() raised {type(error).__name__}: {error}") from None
        _KEPT.append(creator)
        key = (str(creator.plugin_namespace), str(creator.name), str(creator.plugin_version))
        if key not in rt.creators():
            rt.register(creator, creator.plugin_namespace)
    if set(rt.creators()) == before:
        raise SpecError(
            f"plugin {file} registers no plugin",
            hint="It must define BUNDLE, or a class that derives from IPluginCreatorV3One.",
        )
