"""Runs a TensorRT engine with TensorRT, NumPy and the CUDA driver alone, and compares what comes out.

This file stands alone: it imports nothing of onnxbench. 'onnxbench bisect' with --record or --repro copies it as
onnxbench_engines.py. 'onnxbench build-trt --verify' copies it beside an engine as verify.py, with verify.json and the
values to compare:

    python verify.py [--engine FILE] [--json]

Exit codes: 0 all outputs agree, 1 some do not, 2 a file is missing or cannot be read, 10 an input does not fit the
engine, 16 there is no GPU, or it did not run the engine.

It was written without a GPU, after TensorRT's documented API: what runs on a GPU was not run yet.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

AGREES, DIFFERS, UNREADABLE, UNFIT, NO_DEVICE = 0, 1, 2, 10, 16
NUMPY_TYPES: dict[str, Any] = {
    "float": np.float32, "half": np.float16, "bf16": np.uint16, "int8": np.int8, "int32": np.int32, "int64": np.int64,
    "bool": np.bool_, "uint8": np.uint8, "fp8": np.uint8,
}  # fmt: skip
"""TensorRT's element types to what holds their bits."""
RAW_TYPES = {"bf16": "bfloat16", "fp8": "float8_e4m3fn"}
TORCH_TYPES = {
    "torch.float32": "float", "torch.float16": "half", "torch.bfloat16": "bf16", "torch.int8": "int8",
    "torch.int32": "int32", "torch.int64": "int64", "torch.bool": "bool", "torch.uint8": "uint8",
    "torch.float8_e4m3fn": "fp8",
}  # fmt: skip
MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
KINDS = ("min", "opt", "max")


class RunError(Exception):
    """What keeps an engine from running; ``code`` is the exit code that it ends a script with."""

    def __init__(self, message: str, code: int, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.code, self.hint = message, code, hint


# ---------------------------------------------------------------- inputs (no GPU needed)


def choose_profile(inputs: Sequence[Mapping[str, Any]], profiles: Sequence[Any], feeds: Mapping[str, Any]) -> int:
    """Returns the number of the first profile that inputs fit.

    Args:
        inputs: Name, dtype and shape (-1 where it varies) of the engine's inputs.
        profiles: Input to min, opt and max: of its shape, or of its values where these are sizes.
        feeds: The values.

    Raises:
        RunError: An input is missing, unknown, or out of bounds; it says which bound of which input is broken.
    """
    names = [each["name"] for each in inputs]
    missing = [name for name in names if name not in feeds]
    if missing:
        raise RunError(f"input {', '.join(map(repr, missing))} is missing", UNFIT)
    unknown = [name for name in feeds if name not in names]
    if unknown:
        known = ", ".join(names)
        raise RunError(f"the engine has no input {', '.join(map(repr, unknown))}", UNFIT, f"Its inputs: {known}.")
    broken: list[str] = []
    for number, profile in enumerate(profiles or [{}]):
        found = [each for port in inputs for each in _broken(port, profile.get(port["name"]), feeds[port["name"]])]
        if not found:
            return number
        broken += [f"profile {number}: {each}" if len(profiles) > 1 else each for each in found]
    raise RunError(broken[0], UNFIT, "; ".join(broken[1:4]))


def _broken(port: Mapping[str, Any], bounds: Any, value: Any) -> list[str]:
    """Returns the bounds that a value of one input breaks, in words."""
    name, shape, stated = port["name"], tuple(int(size) for size in value.shape), port.get("shape")
    if stated is not None and len(shape) != len(stated):
        return [f"input {name!r} has {len(shape)} dimensions, and the engine wants {len(stated)}"]
    found = [
        f"input {name!r}: dimension {axis} is {size}, and the engine was built for {fixed} only"
        for axis, (size, fixed) in enumerate(zip(shape, stated or (), strict=False))
        if fixed >= 0 and size != fixed
    ]
    if found or bounds is None:
        return found
    if stated is not None and all(size >= 0 for size in stated):
        sizes, what = tuple(int(each) for each in np.asarray(_host(value)).reshape(-1)), "value"
    else:
        sizes, what = shape, "dimension"
    if len(sizes) != len(bounds["min"]):
        return [f"input {name!r} has {len(sizes)} {what}s, and its profile {len(bounds['min'])}"]
    for axis, (size, low, high) in enumerate(zip(sizes, bounds["min"], bounds["max"], strict=True)):
        if not low <= size <= high:
            side, bound = ("below the smallest", low) if size < low else ("above the largest", high)
            found.append(f"input {name!r}: {what} {axis} is {size}, {side} ({bound}) that the engine was built for")
    return found


def _host(value: Any) -> Any:
    return value.cpu().numpy() if is_torch(value) else value


def is_torch(value: Any) -> bool:
    """Tells whether a value is a tensor of PyTorch."""
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "data_ptr")


def fit(name: str, value: Any, wanted: str) -> Any:
    """Returns an array with the bits that an input of a TensorRT element type wants, contiguous.

    int64 becomes int32, and float64 float32, where the engine has that; integers that do not fit are refused.

    Raises:
        RunError: The element type is another one.
    """
    if wanted not in NUMPY_TYPES:
        raise RunError(f"input {name!r} is {wanted} in the engine, which cannot be given from here", UNFIT)
    array = np.asarray(value)
    kind: Any = np.dtype(NUMPY_TYPES[wanted])
    if wanted in RAW_TYPES:
        if array.dtype.name == RAW_TYPES[wanted] or array.dtype == kind:
            return np.ascontiguousarray(array).view(kind)
    elif array.dtype == kind:
        return np.ascontiguousarray(array)
    elif array.dtype == np.float64 and wanted == "float":
        return np.ascontiguousarray(array, dtype=kind)
    elif array.dtype.kind in "iu" and wanted in ("int32", "int64"):
        limits = np.iinfo(kind)
        if array.size and (int(array.max()) > limits.max or int(array.min()) < limits.min):
            raise RunError(f"input {name!r} holds integers that {wanted} cannot", UNFIT)
        return np.ascontiguousarray(array, dtype=kind)
    stated = RAW_TYPES.get(wanted, kind.name)
    raise RunError(f"input {name!r} is {stated} in the engine, and {array.dtype.name} was given", UNFIT)


def widen(array: Any, kind: str) -> Any:
    """Returns an output with a NumPy type of its own where there is one: bfloat16 and float8 need ml_dtypes."""
    if kind not in RAW_TYPES:
        return array
    try:
        return array.view(getattr(import_module("ml_dtypes"), RAW_TYPES[kind]))
    except ImportError:
        return (array.astype(np.uint32) << 16).view(np.float32) if kind == "bf16" else array


def compare(expected: Any, actual: Any, rtol: float, atol_of_largest: float) -> tuple[bool, str]:
    """Returns whether two arrays agree, and in words how far they are apart; NaN and Inf are judged first."""
    if expected.shape != actual.shape:
        return False, f"shape {list(actual.shape)} in place of {list(expected.shape)}"
    if expected.dtype.kind in "biu":
        wrong = int((expected != actual).sum())
        return wrong == 0, f"{wrong:,} of {expected.size:,} elements differ" if wrong else "equal"
    one, other = expected.astype(np.float64), actual.astype(np.float64)
    odd = ~np.isfinite(one) | ~np.isfinite(other)
    same = (np.isnan(one) & np.isnan(other)) | (one == other)
    if (odd & ~same).any():
        return False, f"{int((odd & ~same).sum()):,} elements are NaN or Inf on one side only"
    one, other = one[~odd], other[~odd]
    if not one.size:
        return True, "equal"
    gap = np.abs(one - other)
    allowed = rtol * np.abs(one) + atol_of_largest * float(np.abs(one).max())
    failing = int((gap > allowed).sum())
    words = f"max abs {float(gap.max()):.3g}"
    return failing == 0, f"{failing:,} of {expected.size:,} elements are off, {words}" if failing else words


# ---------------------------------------------------------------- the build (no GPU needed with TensorRT-RTX)

_LOADED: dict[str, Any] = {}


def load(kind: str) -> tuple[Any, Any]:
    """Returns TensorRT's module and its logger; one only may exist in a process.

    Raises:
        RunError: It is not installed.
    """
    if kind not in _LOADED:
        try:
            api = import_module(MODULES[kind])
        except ImportError:
            raise RunError(f"{kind} is not installed", NO_DEVICE, f"pip install {kind}") from None
        _LOADED[kind] = api, api.Logger(api.Logger.ERROR)
    found: tuple[Any, Any] = _LOADED[kind]
    return found


def build(model: Path, kind: str, target: Path, *, tf32: bool = True) -> None:
    """Builds an engine of an ONNX file whose inputs have fixed shapes.

    Raises:
        RunError: TensorRT is not installed, or refuses the model.
    """
    api, logger = load(kind)
    builder = api.Builder(logger)
    flags = api.NetworkDefinitionCreationFlag.__members__
    strongly = 1 << int(flags["STRONGLY_TYPED"]) if "STRONGLY_TYPED" in flags and kind == "tensorrt" else 0
    network = builder.create_network(strongly)
    parser = api.OnnxParser(network, logger)
    if not parser.parse_from_file(os.fspath(model)):
        words = "; ".join(str(parser.get_error(number).desc()) for number in range(min(3, parser.num_errors)))
        raise RunError(f"{kind} {api.__version__} refuses {model.name}: {words}", UNFIT)
    config = builder.create_builder_config()
    if not tf32:
        config.clear_flag(api.BuilderFlag.TF32)
    memory = builder.build_serialized_network(network, config)
    if memory is None:
        raise RunError(f"{kind} {api.__version__} parses {model.name} and cannot build an engine of it", UNFIT)
    target.write_bytes(memory)


# ---------------------------------------------------------------- the GPU


class Cuda:
    """The CUDA driver, through ctypes: memory, copies and a stream in a device's primary context.

    Raises:
        RunError: There is no driver, or no GPU.
    """

    def __init__(self, device: int = 0) -> None:
        name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
        try:
            self._driver = ctypes.CDLL(name)
        except OSError:
            raise RunError(f"there is no GPU here ({name} is not installed)", NO_DEVICE,
                           "Engines run on a machine with an NVIDIA GPU and its driver.") from None  # fmt: skip
        count, number = ctypes.c_int(0), ctypes.c_int(0)
        if self._driver.cuInit(0) or self._driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
            raise RunError("there is no GPU here", NO_DEVICE, "Engines run on a machine with an NVIDIA GPU.")
        if not 0 <= device < count.value:
            raise RunError(f"there is no GPU {device}; there are {count.value}", NO_DEVICE)
        self._call("cuDeviceGet", ctypes.byref(number), device)
        self._context, self.stream = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), number)
        self.activate()
        self._call("cuStreamCreate", ctypes.byref(self.stream), 0)
        self._held: dict[str, tuple[int, int]] = {}

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._driver, function)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(status, ctypes.byref(text))
            words = (text.value or b"").decode() or f"error {status}"
            hint = "Free some of the GPU's memory, or use smaller inputs." if status == 2 else ""
            raise RunError(f"the GPU failed in {function}: {words}", NO_DEVICE, hint)

    def activate(self) -> None:
        """Makes the context current in this thread."""
        self._call("cuCtxSetCurrent", self._context)

    def buffer(self, key: str, size: int) -> int:
        """Returns the address of device memory of at least ``size`` bytes, kept under a key."""
        address, held = self._held.get(key, (0, 0))
        if held < max(1, size):
            if address:
                self._call("cuMemFree_v2", ctypes.c_uint64(address))
            made = ctypes.c_uint64()
            self._call("cuMemAlloc_v2", ctypes.byref(made), ctypes.c_size_t(max(1, size)))
            address = int(made.value)
            self._held[key] = (address, max(1, size))
        return address

    def upload(self, address: int, array: Any) -> None:
        """Copies an array to the device."""
        if array.nbytes:
            self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), ctypes.c_void_p(array.ctypes.data),
                       ctypes.c_size_t(array.nbytes))  # fmt: skip

    def download(self, array: Any, address: int) -> None:
        """Fills an array from the device."""
        if array.nbytes:
            self._call("cuMemcpyDtoH_v2", ctypes.c_void_p(array.ctypes.data), ctypes.c_uint64(address),
                       ctypes.c_size_t(array.nbytes))  # fmt: skip

    def synchronize(self) -> None:
        """Waits for all that the context has to do."""
        self._call("cuCtxSynchronize")

    def close(self) -> None:
        """Frees the memory."""
        for address, _ in self._held.values():
            self._driver.cuMemFree_v2(ctypes.c_uint64(address))
        self._held.clear()


class Engine:
    """An engine on a GPU.

    Args:
        path: The file.
        kind: ``tensorrt-rtx`` or ``tensorrt``.
        device: Number of the GPU.
        api: TensorRT's module, if it is loaded already.
        logger: Its logger; one only may exist in a process.
        host_code: The engine may carry code for the host (plugin libraries), which is run.

    Raises:
        RunError: There is no GPU or no TensorRT, or the engine is not for them.
    """

    def __init__(
        self, path: Path, kind: str, *, device: int = 0, api: Any = None, logger: Any = None, host_code: bool = False
    ) -> None:
        self.cuda = Cuda(device)
        if api is None:
            api, logger = load(kind)
        self._api = api
        self._logger = logger if logger is not None else api.Logger(api.Logger.ERROR)
        self._runtime = api.Runtime(self._logger)
        if host_code:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise RunError(f"TensorRT {api.__version__} does not load {path.name}", NO_DEVICE,
                           "It is of another version, for other GPUs, or has a plugin that is missing.")  # fmt: skip
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise RunError(f"{path.name} loads and cannot be run: TensorRT made no context", NO_DEVICE,
                           "The GPU's memory may not suffice.")  # fmt: skip
        names = [str(self._engine.get_tensor_name(number)) for number in range(self._engine.num_io_tensors)]
        is_input = {name: self._engine.get_tensor_mode(name) == api.TensorIOMode.INPUT for name in names}
        self.inputs = [self._port(name) for name in names if is_input[name]]
        self.outputs = [self._port(name) for name in names if not is_input[name]]
        self._kept: list[Any] = []

    def _port(self, name: str) -> dict[str, Any]:
        return {
            "name": name, "dtype": str(self._engine.get_tensor_dtype(name)).rpartition(".")[2].lower(),
            "shape": [int(size) for size in self._engine.get_tensor_shape(name)],
        }  # fmt: skip

    def run(self, feeds: Mapping[str, Any], profile: int = 0) -> dict[str, Any]:
        """Returns the outputs: tensors of PyTorch if an input is one on the GPU, else NumPy arrays.

        Raises:
            RunError: An input does not fit, or the GPU failed.
        """
        like = next((value for value in feeds.values() if is_torch(value) and value.is_cuda), None)
        self._bind(feeds, profile)
        fetch = {port["name"]: self._bind_output(port, like) for port in self.outputs}
        self._enqueue()
        return {name: take() for name, take in fetch.items()}

    def time(self, feeds: Mapping[str, Any], runs: int, warmup: int, profile: int = 0) -> list[float]:
        """Returns how long runs took, in milliseconds, copies of inputs and outputs aside."""
        self._bind(feeds, profile)
        for port in self.outputs:
            self._bind_output(port, None)
        taken = []
        for number in range(warmup + runs):
            start = time.perf_counter()
            self._enqueue()
            if number >= warmup:
                taken.append((time.perf_counter() - start) * 1e3)
        return taken

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self.cuda.stream.value):
            raise RunError("TensorRT did not run the engine", NO_DEVICE)
        self.cuda.synchronize()

    def _bind(self, feeds: Mapping[str, Any], profile: int) -> None:
        self.cuda.activate()
        self._kept.clear()
        if self._engine.num_optimization_profiles > 1:
            self._context.set_optimization_profile_async(profile, self.cuda.stream.value)
        self.cuda.synchronize()  # what PyTorch still has to do with the inputs, too
        for port in self.inputs:
            name, value = port["name"], feeds[port["name"]]
            if not self._context.set_input_shape(name, tuple(value.shape)):
                raise RunError(f"TensorRT refuses the shape {list(value.shape)} of input {name!r}", UNFIT)
            self._context.set_tensor_address(name, self._place(name, value, port["dtype"]))
        try:
            open_ones = [str(name) for name in self._context.infer_shapes()]
        except RuntimeError as error:
            raise RunError(f"TensorRT cannot work out the shapes: {error}", UNFIT) from None
        if open_ones:
            raise RunError(f"TensorRT cannot work out the shapes: {', '.join(open_ones)}", UNFIT)

    def _place(self, name: str, value: Any, wanted: str) -> int:
        """Returns where the values of an input are: on the device, or on the host for those that are sizes."""
        on_host = self._engine.get_tensor_location(name) == self._api.TensorLocation.HOST
        if is_torch(value) and value.is_cuda and not on_host:
            given = TORCH_TYPES.get(str(value.dtype))
            if given != wanted:
                raise RunError(f"input {name!r} is {wanted} in the engine, and {value.dtype} was given", UNFIT)
            value = value.contiguous()
            self._kept.append(value)
            return int(value.data_ptr()) or self.cuda.buffer(name, 1)
        array = fit(name, _host(value), wanted)
        if on_host:
            self._kept.append(array)
            return int(array.ctypes.data)
        address = self.cuda.buffer(name, array.nbytes)
        self.cuda.upload(address, array)
        return address

    def _bind_output(self, port: Mapping[str, Any], like: Any) -> Any:
        """Gives an output its memory and returns a function that takes the value out of it."""
        name, kind = port["name"], port["dtype"]
        if kind not in NUMPY_TYPES:
            raise RunError(f"output {name!r} is {kind}, which cannot be taken from here", UNFIT)
        shape = tuple(int(size) for size in self._context.get_tensor_shape(name))
        if self._engine.get_tensor_location(name) == self._api.TensorLocation.HOST:
            array: Any = np.empty(shape, NUMPY_TYPES[kind])
            self._context.set_tensor_address(name, int(array.ctypes.data))
            return lambda: widen(array, kind)
        if any(size < 0 for size in shape):  # it depends on values
            allocator = make_allocator(self._api, self.cuda)
            self._kept.append(allocator)
            self._context.set_output_allocator(name, allocator)
            return lambda: self._taken(allocator.address, allocator.shape, kind, like)
        if like is not None:
            torch = sys.modules["torch"]
            word = next(word for word, each in TORCH_TYPES.items() if each == kind).removeprefix("torch.")
            tensor = torch.empty(shape, dtype=getattr(torch, word), device=like.device)
            self._context.set_tensor_address(name, int(tensor.data_ptr()) or self.cuda.buffer(name, 1))
            return lambda: tensor
        address = self.cuda.buffer(name, int(np.prod(shape)) * np.dtype(NUMPY_TYPES[kind]).itemsize)
        self._context.set_tensor_address(name, address)
        return lambda: self._taken(address, shape, kind, None)

    def _taken(self, address: int, shape: tuple[int, ...], kind: str, like: Any) -> Any:
        array: Any = np.empty(shape, NUMPY_TYPES[kind])
        self.cuda.download(array, address)
        if like is None:
            return widen(array, kind)
        return sys.modules["torch"].from_numpy(array).to(like.device)

    def close(self) -> None:
        """Frees what the engine holds on the GPU."""
        self.cuda.activate()
        self._context = self._engine = self._runtime = None
        self.cuda.close()


def make_allocator(api: Any, cuda: Cuda) -> Any:
    """Returns an object that gives memory to an output whose size is known only when it is computed."""
    base = api.IOutputAllocator

    class Allocator(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)
            self.address = 0
            self.shape: tuple[int, ...] = ()

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            self.address = cuda.buffer(f"allocated {tensor_name}", size)
            return self.address

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return int(self.reallocate_output(tensor_name, memory, size, alignment))

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shape = tuple(int(size) for size in shape)

    return Allocator()


# ---------------------------------------------------------------- the script


def read_values(path: Path) -> dict[str, Any]:
    """Returns the arrays of a .npz file; inputs in bfloat16 and float8 are stored as bits."""
    with np.load(path, allow_pickle=False) as held:
        return {name: held[name] for name in held.files}


def verify(folder: Path, engine_file: Path | None = None) -> dict[str, Any]:
    """Runs the engine on every case of a folder and returns how its outputs compare with the expected ones.

    Raises:
        RunError: A file is missing, or there is no GPU.
    """
    try:
        plan = json.loads((folder / "verify.json").read_text(encoding="utf-8"))
        cases = [(case, read_values(folder / case["feeds"]), read_values(folder / case["expected"]))
                 for case in plan["cases"]]  # fmt: skip
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{folder / 'verify.json'}, or what it names, cannot be read: {error}", UNREADABLE) from None
    path = engine_file or (folder / plan["engine"])
    if not path.is_file():
        raise RunError(f"there is no engine {path}", UNREADABLE, "Name it: --engine FILE")
    chosen = [choose_profile(plan["inputs"], plan["profiles"], feeds) for _, feeds, _ in cases]
    engine = open_engine(path, plan)
    results = []
    for (case, feeds, expected), profile in zip(cases, chosen, strict=True):
        outputs = engine.run(feeds, profile)
        for name, wanted in expected.items():
            agrees, words = compare(wanted, np.asarray(outputs[name]).astype(wanted.dtype), **plan["tolerance"])
            results.append({"case": case["name"], "output": name, "agrees": agrees, "difference": words})
    return {"engine": os.fspath(path), "agrees": all(each["agrees"] for each in results), "outputs": results}


def open_engine(path: Path, plan: Mapping[str, Any]) -> Any:
    """Returns the engine; one with plugins is opened by onnxbench, which loads them."""
    if not plan.get("plugins"):
        return Engine(path, plan["builder"])
    Cuda()
    try:
        opened: Any = import_module("onnxbench.engine").open_engine(path, plugins=plan["plugins"])
    except ImportError:
        raise RunError("the engine has plugins, and onnxbench, which loads them, is not installed", NO_DEVICE) from None
    return opened


def main(words: Sequence[str]) -> int:
    """Verifies the engine that this script lies beside, and returns the exit code."""
    if not {"--help", "-h"}.isdisjoint(words):
        print(__doc__)
        return AGREES
    as_json = "--json" in words
    at = words.index("--engine") if "--engine" in words else -1
    engine = Path(words[at + 1]) if 0 <= at < len(words) - 1 else None
    try:
        found = verify(Path(__file__).resolve().parent, engine)
    except RunError as error:
        if as_json:
            print(json.dumps({"error": error.message, "hint": error.hint}))
        print(f"verify: {error.message}{'. ' + error.hint if error.hint else ''}", file=sys.stderr)
        return error.code
    if as_json:
        print(json.dumps(found))
    else:
        for each in found["outputs"]:
            print(f"{'ok  ' if each['agrees'] else 'OFF '} {each['case']}: {each['output']}: {each['difference']}")
        print("AGREES with ONNX Runtime" if found["agrees"] else "DIFFERS from ONNX Runtime")
    return AGREES if found["agrees"] else DIFFERS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
