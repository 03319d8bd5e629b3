"""A bundle as C++: the source of a TensorRT plugin library around the same kernel, with CMake.

The shape function and the numbers that the kernel gets are Python. Called with sizes and attributes that only record
what is done with them, they tell their arithmetic, which is then written as C++. A function that branches on a size or
an attribute cannot be told so, and is refused. How many dimensions there are decides what arithmetic it is, so it is
asked for each way in which the bundle's own cases have them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench.bundles import INCLUDE, KERNEL_HEADER, is_required, kind_of
from onnxbench.bundles._kernels import casts
from onnxbench.errors import BenchError, OutputError, SpecError

if TYPE_CHECKING:
    from onnxbench.bundles import Bundle

_TYPES = {"float32": "kFLOAT", "float16": "kHALF", "bfloat16": "kBF16", "int32": "kINT32", "int64": "kINT64"}
_DIMENSIONS = {"+": "kSUM", "-": "kSUB", "*": "kPROD", "//": "kFLOOR_DIV", "min": "kMIN", "max": "kMAX"}


def _recording(operation: str, *, turned: bool = False) -> Callable[[Any, Any], _Recorded]:
    """Returns a method that records what is done with a number."""

    def apply(self: _Recorded, other: Any) -> _Recorded:
        if not isinstance(other, (_Recorded, int, float)):
            raise SpecError(f"{type(other).__name__} in the arithmetic of sizes")
        return _Recorded(operation, other, self) if turned else _Recorded(operation, self, other)

    return apply


class _Recorded:
    """A number of which only what is done with it is known."""

    def __init__(self, operation: str, *parts: Any) -> None:
        self.operation, self.parts = operation, parts

    __add__, __radd__ = _recording("+"), _recording("+", turned=True)
    __sub__, __rsub__ = _recording("-"), _recording("-", turned=True)
    __mul__, __rmul__ = _recording("*"), _recording("*", turned=True)
    __floordiv__, __rfloordiv__ = _recording("//"), _recording("//", turned=True)
    __truediv__, __rtruediv__ = _recording("/"), _recording("/", turned=True)
    smaller, larger = _recording("min"), _recording("max")

    def equal(self, other: Any) -> _Recorded:
        return _Recorded("==", self, other)

    def __neg__(self) -> _Recorded:
        return _Recorded("-", 0, self)

    def _refuse(self, *_: Any) -> Any:
        raise SpecError("a size or an attribute decides which way the function goes, or is made an int")

    __bool__ = __int__ = __index__ = __float__ = __lt__ = __le__ = __gt__ = __ge__ = __mod__ = _refuse
    __eq__ = __ne__ = __hash__ = _refuse


def export_cpp(bundle: Bundle, folder: Path) -> list[Path]:
    """Writes the C++ form of a bundle into a new folder and returns the files.

    Raises:
        SpecError: Its shape function or its kernel's numbers are no plain arithmetic.
        OutputError: The folder exists, or cannot be written.
    """
    files = {
        "CMakeLists.txt": _CMAKE, "plugin.cpp": _PLUGIN, "launch.h": _LAUNCH_H, "launch.cu": _LAUNCH_CU,
        "README.md": _README,
    }  # fmt: skip
    words = _words(bundle)
    texts = {name: re.sub(r"@(\w+)@", lambda match: words[match[1]], text) for name, text in files.items()}
    copies = [*bundle.sources(), INCLUDE / KERNEL_HEADER]
    try:
        folder.mkdir(parents=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        for file in copies:
            (folder / file.name).write_bytes(file.read_bytes())
    except FileExistsError:
        raise OutputError(f"{folder} exists already", hint="Name a new folder.") from None
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from None
    return [*(folder / name for name in texts), *(folder / file.name for file in copies)]


def _words(bundle: Bundle) -> dict[str, str]:
    """Returns what the templates leave open."""
    shapes, numbers, rooms = [], [], []
    for ranks, lengths in dict.fromkeys(_form(bundle, inputs, attributes) for inputs, attributes in bundle.cases()):
        traced = _traced(bundle, ranks, dict(lengths))
        fits = " && ".join([
            *(f"a.{name}.size() == {length}" for name, length in lengths),
            *([f"nbInputs == {len(ranks)}"] if bundle.inputs[-1] in bundle.optional else []),
            *(f"in[{at}].nbDims == {rank}" for at, rank in enumerate(ranks)),
        ])  # fmt: skip
        lines = []
        for at, shape in enumerate(traced.shapes):
            lines.append(f"out[{at}].nbDims = {len(shape)};")
            lines += [f"out[{at}].d[{axis}] = {_dimension(size)};" for axis, size in enumerate(shape)]
        for at, (name, axis) in enumerate(bundle.counted.items(), start=len(bundle.outputs)):
            size = f"out[{bundle.outputs.index(name)}].d[{axis}]"
            lines += [
                f"out[{at}].nbDims = 0;",
                f"{size} = b.declareSizeTensor({at}, *b.operation(DimensionOperation::kCEIL_DIV, *{size}, "
                f"*b.constant(2)), *{size});",
            ]
        shapes.append(_branch(fits, [*lines, "return 0;"]))
        fits = fits.replace("in[", "inDesc[").replace(".nbDims", ".dims.nbDims").replace("nbInputs", "given")
        lines = [f"n.i[{at}] = {_number(value)};" for at, value in enumerate(traced.integers)]
        lines += [f"n.f[{at}] = static_cast<float>({_number(value)});" for at, value in enumerate(traced.floats)]
        lines += [f"counts[{at}] = {_number(value)};" for at, value in enumerate(traced.counts)]
        numbers.append(_branch(fits, [*lines, "fits = true;"]))
        fits = fits.replace("inDesc[", "in[").replace(".dims.", ".desc.dims.").replace("given", "nbInputs")
        rooms.append(_branch(fits, [f"return {_number(traced.room, largest=True)};"]))
    launches, cases, kinds = [], [], []
    several = [name for name in bundle.inputs if len(bundle.types.get(name, ())) > 1]
    typed = bundle.leading()
    for number, (suffix, types) in enumerate(bundle.suffixes()):
        passed = []
        for at, cast in enumerate(casts(bundle, types)):
            of = (f"in[{at}]" if at < len(bundle.inputs) else "workspace" if cast == "void*"
                  else f"out[{at - len(bundle.inputs)}]")  # fmt: skip
            passed.append(f"static_cast<{cast}>({of})")
        calls = "".join(
            f"      if (blocks({at})) {launch.entry}_{suffix}<<<blocks({at}), {launch.threads}, 0, stream>>>("
            f"{', '.join(passed)}, p);\n" for at, launch in enumerate(bundle.kernel.all_launches())
        )  # fmt: skip
        launches.append(f"    case {number}:\n{calls}      break;\n")
        are = [f"inDesc[{bundle.inputs.index(name)}].type == DataType::{_TYPES[types[name]]}"
               for name in (bundle.inputs[typed], *several)]  # fmt: skip
        cases.append(f"    if ({' && '.join(are)}) type = {number};\n")
    for at, name in enumerate(bundle.inputs):
        if name in bundle.any_dtype:
            kinds.append(f"    if (pos == {at}) return true;\n")
        elif name in bundle.types:
            kinds.append(f"    if (pos == {at}) return {_one_of(bundle.types[name])};\n")
    outs = [f"DataType::{_TYPES[bundle.types[name][0]]}" if name in bundle.types else f"in[{typed}]"
            for name in bundle.outputs]  # fmt: skip
    outs += ["DataType::kINT64"] * len(bundle.counted)
    made = "".join(
        f"    if (pos == nbInputs + {at}) return type == {each.replace(f'in[{typed}]', f'desc[{typed}].desc.type')};\n"
        for at, each in enumerate(outs)
    )
    groups = [1 if launch.together else launch.threads for launch in bundle.kernel.all_launches()]
    return {
        "name": bundle.name, "op": bundle.op, "domain": bundle.domain, "version": bundle.version,
        "outputs": str(len(outs)), "typed": str(typed), "source": bundle.kernel.source,
        "shapes": "".join(shapes), "numbers": "".join(numbers), "launches": "".join(launches), "cases": "".join(cases),
        "rooms": "".join(rooms) if bundle.kernel.workspace is not None else "", "kinds": "".join(kinds), "made": made,
        "types": _one_of(bundle.dtypes), "launch_count": str(len(groups)), "groups": ", ".join(map(str, groups)),
        "out_types": "".join(f"    out[{at}] = {each};\n" for at, each in enumerate(outs)),
        "all_inputs": str(len(bundle.inputs)), **_attribute_words(bundle),
    }  # fmt: skip


def _branch(fits: str, lines: Sequence[str]) -> str:
    return f"    if ({fits}) {{\n" + "".join(f"      {line}\n" for line in lines) + "    }\n"


def _one_of(dtypes: Sequence[str]) -> str:
    are = [f"type == DataType::{_TYPES[dtype]}" for dtype in dtypes]
    return are[0] if len(are) == 1 else f"({' || '.join(are)})"


def _attribute_words(bundle: Bundle) -> dict[str, str]:
    members, reads, fields, names = [], [], [], []
    for name, value in bundle.attributes.items():
        kind, is_list = kind_of(value)
        cpp, field = ("float", "kFLOAT32") if kind is float else ("int32_t", "kINT32")
        default = kind() if is_required(value) else value
        if is_list:
            few = (
                "" if is_required(value) else ", ".join(f"{each!r}f" if kind is float else str(each) for each in value)
            )
            members.append(f"  std::vector<{cpp}> {name}{{{few}}};\n")
            reads.append(f'  if (!std::strcmp(field.name, "{name}")) to.{name} = numbers<{cpp}>(field);\n')
            fields.append(
                f'{{"{name}", a.{name}.data(), PluginFieldType::{field}, static_cast<int32_t>(a.{name}.size())}}'
            )
            names.append(f'{{"{name}", nullptr, PluginFieldType::{field}, 0}}')
        elif kind is str:
            members.append(f'  std::string {name} = "{default}";\n')
            reads.append(f'  if (!std::strcmp(field.name, "{name}")) to.{name} = text(field);\n')
            fields.append(
                f'{{"{name}", a.{name}.data(), PluginFieldType::kCHAR, static_cast<int32_t>(a.{name}.size())}}'
            )
            names.append(f'{{"{name}", nullptr, PluginFieldType::kCHAR, 0}}')
        else:
            members.append(f"  {cpp} {name} = {f'{default!r}f' if kind is float else int(default)};\n")
            reads.append(f'  if (!std::strcmp(field.name, "{name}")) to.{name} = static_cast<{cpp}>(number(field));\n')
            fields.append(f'{{"{name}", &a.{name}, PluginFieldType::{field}, 1}}')
            names.append(f'{{"{name}", nullptr, PluginFieldType::{field}, 1}}')
    return {
        "members": "".join(members), "reads": "".join(reads), "fields": ", ".join(fields), "names": ", ".join(names)
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Traced:
    """What a bundle's functions make of sizes that only record what is done with them."""

    shapes: list[list[Any]]
    integers: list[Any]
    floats: list[Any]
    counts: list[Any]
    room: Any


_Form = tuple[tuple[int, ...], tuple[tuple[str, int], ...]]


def _form(bundle: Bundle, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> _Form:
    """Returns what decides the arithmetic of a case: dimensions of its inputs, lengths of its list attributes."""
    filled = bundle.filled(attributes)
    lists = [name for name, value in bundle.attributes.items() if kind_of(value)[1]]
    return tuple(value.ndim for value in inputs), tuple((name, len(filled[name])) for name in lists)


def _traced(bundle: Bundle, ranks: Sequence[int], lengths: Mapping[str, int]) -> _Traced:
    sizes = bundle.padded([[_Recorded("size", at, axis) for axis in range(rank)] for at, rank in enumerate(ranks)])
    attributes: dict[str, Any] = {
        name: [_Recorded("attribute", f"{name}[{at}]") for at in range(lengths[name])]
        if name in lengths
        else _Recorded("attribute", name)
        for name in bundle.attributes
    }
    kernel, what = bundle.kernel, "shape function"
    try:
        shapes = [list(shape) for shape in bundle.shapes(sizes, attributes)]
        made: list[list[Any]] = [
            [_Recorded("made", at, axis) for axis in range(len(shape))] for at, shape in enumerate(shapes)
        ]
        what = "kernel's numbers (scalars)"
        integers, floats = kernel.scalars(sizes, made, attributes)
        what = "count of a launch, or the workspace,"
        counts = [launch.count(sizes, made, attributes) for launch in kernel.all_launches()]
        room = kernel.workspace(sizes, made, attributes) if kernel.workspace is not None else 0
    except BenchError as error:
        reason = error.message
    except Exception as error:  # the user's own function, given what it does not know
        reason = f"{type(error).__name__}: {error}"
    else:
        return _Traced(shapes, list(integers), list(floats), counts, room)
    raise SpecError(
        f"bundle {bundle.name}: its {what} cannot be written in C++: {reason}",
        hint="Use + - * // and onnxbench.bundles.product, smaller and larger alone; let the kernel decide the rest.",
    )


def _dimension(value: Any) -> str:
    """Returns a size of an output as an expression of TensorRT's."""
    if not isinstance(value, _Recorded):
        return f"b.constant({int(value)})"
    if value.operation == "size":
        return f"in[{value.parts[0]}].d[{value.parts[1]}]"
    if value.operation == "attribute":
        return f"b.constant(a.{value.parts[0]})"
    if value.operation not in _DIMENSIONS:
        raise SpecError(f"TensorRT has no {value.operation} of sizes")
    first, second = map(_dimension, value.parts)
    return f"b.operation(DimensionOperation::{_DIMENSIONS[value.operation]}, *{first}, *{second})"


def _number(value: Any, *, largest: bool = False) -> str:
    """Returns a number of the kernel's as C++, of the sizes that there are, or of the largest that there can be."""
    if isinstance(value, str):
        return f'"{value}"'
    if not isinstance(value, _Recorded):
        return f"{int(value)}LL" if isinstance(value, int) else repr(float(value))
    if value.operation in ("size", "made"):
        given = value.operation == "size"
        if largest:
            return f"{'in' if given else 'out'}[{value.parts[0]}].max.d[{value.parts[1]}]"
        return f"{'inDesc' if given else 'outDesc'}[{value.parts[0]}].dims.d[{value.parts[1]}]"
    if value.operation == "attribute":
        return f"a.{value.parts[0]}"
    first, second = (_number(part, largest=largest) for part in value.parts)
    if value.operation == "==":
        return f"({first} == {second} ? 1LL : 0LL)"
    if value.operation in ("min", "max"):
        return f"std::{value.operation}<int64_t>({first}, {second})"
    if value.operation == "/":
        return f"(static_cast<float>({first}) / {second})"
    return f"({first} {'/' if value.operation == '//' else value.operation} {second})"


_CMAKE = """cmake_minimum_required(VERSION 3.20)
project(@name@ LANGUAGES CXX)

if(NOT TENSORRT_ROOT AND DEFINED ENV{TENSORRT_ROOT})
  set(TENSORRT_ROOT $ENV{TENSORRT_ROOT})
endif()
if(NOT TENSORRT_ROOT)
  message(FATAL_ERROR "TENSORRT_ROOT is not set: the folder of TensorRT 10 or 11 that has include/NvInferRuntime.h, "
                      "as in cmake -DTENSORRT_ROOT=/opt/TensorRT-10.13")
endif()
find_path(TENSORRT_INCLUDE NvInferRuntime.h HINTS ${TENSORRT_ROOT} PATH_SUFFIXES include include/x86_64-linux-gnu)
if(NOT TENSORRT_INCLUDE)
  message(FATAL_ERROR "there is no NvInferRuntime.h in TENSORRT_ROOT (${TENSORRT_ROOT})")
endif()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 75-virtual)  # runs on this GPU and on every newer one
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

add_library(@name@ SHARED plugin.cpp launch.cu)
target_include_directories(@name@ PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
target_include_directories(@name@ SYSTEM PRIVATE ${TENSORRT_INCLUDE} ${CUDAToolkit_INCLUDE_DIRS})
target_compile_features(@name@ PRIVATE cxx_std_17 cuda_std_17)
target_link_libraries(@name@ PRIVATE CUDA::cudart_static)
set_target_properties(@name@ PROPERTIES CUDA_RUNTIME_LIBRARY Static CXX_VISIBILITY_PRESET hidden
                                        CUDA_VISIBILITY_PRESET hidden)
"""
_LAUNCH_H = """// How plugin.cpp launches the kernel.
#pragma once
#include <cstdint>
#include <cuda_runtime_api.h>

struct Numbers {  // onnxbench_params, without the kernel's header
  long long i[16];
  float f[8];
};

// type: which functions of the kernel, by their number; counts: of each launch the threads, or blocks
cudaError_t launch(int type, void const* const* in, void* const* out, void* workspace, Numbers const& numbers,
                   int64_t const* counts, cudaStream_t stream);
"""
_LAUNCH_CU = """// The kernel of the bundle, compiled as it is, and its launch.
#include "launch.h"
#include "@source@"

static_assert(sizeof(Numbers) == sizeof(onnxbench_params), "they are the same");

cudaError_t launch(int type, void const* const* in, void* const* out, void* workspace, Numbers const& numbers,
                   int64_t const* counts, cudaStream_t stream) {
  (void)workspace;
  onnxbench_params const& p = reinterpret_cast<onnxbench_params const&>(numbers);
  int const groups[] = {@groups@};
  auto const blocks = [&](int at) { return static_cast<unsigned>((counts[at] + groups[at] - 1) / groups[at]); };
  switch (type) {
@launches@    default: return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}
"""
_PLUGIN = """// @domain@::@op@ as a TensorRT plugin, written by 'onnxbench plugins export'.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include <NvInferRuntime.h>

#include "launch.h"

using namespace nvinfer1;

namespace {

struct Attributes {
@members@};

[[maybe_unused]] double number(PluginField const& field) {
  switch (field.type) {
    case PluginFieldType::kFLOAT32: return *static_cast<float const*>(field.data);
    case PluginFieldType::kFLOAT64: return *static_cast<double const*>(field.data);
    case PluginFieldType::kINT64: return static_cast<double>(*static_cast<int64_t const*>(field.data));
    default: return *static_cast<int32_t const*>(field.data);
  }
}

template <typename T>
[[maybe_unused]] std::vector<T> numbers(PluginField const& field) {
  std::vector<T> made;
  for (int32_t at = 0; at < field.length; ++at)
    switch (field.type) {
      case PluginFieldType::kFLOAT32: made.push_back(static_cast<T>(static_cast<float const*>(field.data)[at])); break;
      case PluginFieldType::kFLOAT64: made.push_back(static_cast<T>(static_cast<double const*>(field.data)[at])); break;
      case PluginFieldType::kINT64: made.push_back(static_cast<T>(static_cast<int64_t const*>(field.data)[at])); break;
      default: made.push_back(static_cast<T>(static_cast<int32_t const*>(field.data)[at]));
    }
  return made;
}

[[maybe_unused]] std::string text(PluginField const& field) {
  std::string const all(static_cast<char const*>(field.data), field.length);
  return all.c_str();  // up to the first NUL
}

[[maybe_unused]] void read(PluginField const& field, [[maybe_unused]] Attributes& to) {
  if (!field.data) return;
@reads@}

class Plugin final : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuild, public IPluginV3OneRuntime {
 public:
  explicit Plugin(Attributes const& attributes) : a(attributes) {}

  IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
    switch (type) {
      case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
      case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
      case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }
  IPluginV3* clone() noexcept override { return new Plugin(a); }
  char const* getPluginName() const noexcept override { return "@op@"; }
  char const* getPluginVersion() const noexcept override { return "@version@"; }
  char const* getPluginNamespace() const noexcept override { return "@domain@"; }

  int32_t getNbOutputs() const noexcept override { return @outputs@; }
  int32_t getOutputDataTypes(DataType* out, int32_t, DataType const* in, int32_t) const noexcept override {
    (void)in;
@out_types@    return 0;
  }
  int32_t getOutputShapes(DimsExprs const* in, int32_t nbInputs, DimsExprs const*, int32_t, DimsExprs* out, int32_t,
                          IExprBuilder& b) noexcept override {
    (void)b, (void)nbInputs;
@shapes@    return -1;
  }
  bool supportsFormatCombination(int32_t pos, DynamicPluginTensorDesc const* desc, int32_t nbInputs,
                                 int32_t) noexcept override {
    if (desc[pos].desc.format != TensorFormat::kLINEAR) return false;
    DataType const type = desc[pos].desc.type;
@made@@kinds@    return @types@ && (pos <= @typed@ || type == desc[@typed@].desc.type);
  }
  int32_t configurePlugin(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*,
                          int32_t) noexcept override {
    return 0;
  }

  size_t getWorkspaceSize(DynamicPluginTensorDesc const* in, int32_t nbInputs, DynamicPluginTensorDesc const* out,
                          int32_t) const noexcept override {
    (void)in, (void)nbInputs, (void)out;
@rooms@    return 0;
  }

  int32_t onShapeChange(PluginTensorDesc const*, int32_t nbInputs, PluginTensorDesc const*,
                        int32_t) noexcept override {
    given = nbInputs;
    return 0;
  }
  int32_t enqueue(PluginTensorDesc const* inDesc, PluginTensorDesc const* outDesc, void const* const* in,
                  void* const* out, void* workspace, cudaStream_t stream) noexcept override {
    (void)outDesc;
    Numbers n{};
    int64_t counts[@launch_count@] = {};
    bool fits = false;
@numbers@    int type = -1;
@cases@    if (!fits || type < 0) return -1;
    void const* every[@all_inputs@] = {};  // those that a node leaves out are null
    std::copy_n(in, given, every);
    return launch(type, every, out, workspace, n, counts, stream) == cudaSuccess ? 0 : -1;
  }
  IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }
  PluginFieldCollection const* getFieldsToSerialize() noexcept override {
    fields = {@fields@};
    collection = {static_cast<int32_t>(fields.size()), fields.data()};
    return &collection;
  }

 private:
  Attributes a;
  int32_t given = 0;
  std::vector<PluginField> fields;
  PluginFieldCollection collection{};
};

class Creator final : public IPluginCreatorV3One {
 public:
  IPluginV3* createPlugin(char const*, PluginFieldCollection const* fc, TensorRTPhase) noexcept override {
    Attributes attributes;
    for (int32_t at = 0; fc && at < fc->nbFields; ++at) read(fc->fields[at], attributes);
    return new Plugin(attributes);
  }
  PluginFieldCollection const* getFieldNames() noexcept override {
    collection = {static_cast<int32_t>(names.size()), names.data()};
    return &collection;
  }
  char const* getPluginName() const noexcept override { return "@op@"; }
  char const* getPluginVersion() const noexcept override { return "@version@"; }
  char const* getPluginNamespace() const noexcept override { return "@domain@"; }

 private:
  std::vector<PluginField> names{@names@};
  PluginFieldCollection collection{};
};

}  // namespace

#ifdef _WIN32
#define EXPORTED __declspec(dllexport)
#else
#define EXPORTED __attribute__((visibility("default")))
#endif

// What IPluginRegistry::loadLibrary looks for.
extern "C" EXPORTED void setLoggerFinder(ILoggerFinder*) {}
extern "C" EXPORTED IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static Creator creator;
  static IPluginCreatorInterface* const creators[] = {&creator};
  count = 1;
  return creators;
}
"""
_README = """# @name@

`@domain@::@op@` as a plugin library for TensorRT 10 and 11, written by `onnxbench plugins export`. The kernel
(`@source@`) is the bundle's own; `plugin.cpp` is generated.

    cmake -B build -DTENSORRT_ROOT=/opt/TensorRT-10.13    # needs include/NvInferRuntime.h there, and nvcc
    cmake --build build
    onnxbench build-trt model.onnx model.engine --plugin build/lib@name@.so --embed-plugins
    trtexec --onnx=model.onnx --dynamicPlugins=build/lib@name@.so
"""
