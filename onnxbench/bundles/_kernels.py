"""Kernels: compiled to PTX for GPUs, and as C++ for the CPU, where the same device code is tested."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxbench.bundles import INCLUDE
from onnxbench.bundles._onnx import element_type
from onnxbench.bundles._tensorrt import Params, pack
from onnxbench.errors import ExecutionError, MissingDependencyError

if TYPE_CHECKING:
    from onnxbench.bundles import Bundle

ARCHITECTURE = "compute_75"
"""What PTX is compiled for: it runs on this and every newer GPU."""
C_TYPES = {
    "float32": "float", "float16": "onnxbench_half", "bfloat16": "onnxbench_bfloat16",
    "int32": "int", "int64": "long long",
}  # fmt: skip
_TOGETHER = """#include <barrier>
#include <thread>
#include <vector>
static std::barrier<>* onnxbench_barrier = nullptr;
#define ONNXBENCH_SYNC() do { if (onnxbench_barrier) onnxbench_barrier->arrive_and_wait(); } while (0)
"""
"""Threads of a block that wait for each other: threads of the CPU, or a single one, which waits for nobody."""
_GARBAGE = 0xA5
"""What memory is filled with that a kernel has to write before it reads: on a GPU there is anything in it."""


def compile_ptx(bundle: Bundle) -> Path:
    """Compiles a bundle's kernel to PTX, into its folder, and returns the file. No GPU is needed.

    Raises:
        MissingDependencyError: There is no nvcc.
        ExecutionError: It does not compile.
    """
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=os.path.join(os.environ.get("CUDA_HOME", ""), "bin"))
    if nvcc is None:
        raise MissingDependencyError(
            "compiling a kernel needs nvcc", hint="Install the CUDA toolkit, or set CUDA_HOME."
        )
    target = bundle.folder / bundle.kernel.ptx
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "kernel.ptx")
        _run([nvcc, "-ptx", f"-arch={ARCHITECTURE}", "-std=c++17", "-I", INCLUDE, "-o", made,
              bundle.folder / bundle.kernel.source], bundle)  # fmt: skip
        text = made.read_text(encoding="utf-8")
    target.write_text(f"// onnxbench: compiled from {bundle.kernel.source}, sha256 {bundle.source_digest()}\n{text}",
                      encoding="utf-8")  # fmt: skip
    return target


def _run(command: Sequence[Any], bundle: Bundle) -> None:
    done = subprocess.run([os.fspath(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise ExecutionError(f"the kernel of bundle {bundle.name} does not compile", details=lines[:12])


class HostKernel:
    """The device code of a bundle as a library for the CPU.

    Args:
        bundle: The bundle.

    Raises:
        MissingDependencyError: There is no C++ compiler.
        ExecutionError: It does not compile.
    """

    def __init__(self, bundle: Bundle) -> None:
        compiler = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
        if compiler is None:
            raise MissingDependencyError("testing a kernel on the CPU needs a C++ compiler", hint="Install g++.")
        self._bundle = bundle
        self._folder = tempfile.TemporaryDirectory(prefix="onnxbench-kernel-")
        source, library = (Path(self._folder.name, name) for name in ("host.cpp", "host.so"))
        source.write_text(self._wrapper(), encoding="utf-8")
        _run([compiler, "-O1", "-std=c++20", "-pthread", "-shared", "-fPIC", "-ffp-contract=off", "-I", INCLUDE,
              "-I", bundle.folder, "-o", library, source], bundle)  # fmt: skip
        self._library = ctypes.CDLL(os.fspath(library))

    def _wrapper(self) -> str:
        kernel = self._bundle.kernel
        lines = [_TOGETHER if any(launch.together for launch in kernel.launches) else ""]
        lines.append(f'#include "{kernel.source}"')
        for suffix, types in self._bundle.suffixes():
            passed = ", ".join(f"({cast})p[{at}]" for at, cast in enumerate(casts(self._bundle, types)))
            for launch in kernel.all_launches():
                name = f"{launch.entry}_{suffix}"
                call = f"{name}({passed}, *n)"
                lines.append(
                    f'extern "C" void host_{name}(void** p, const onnxbench_params* n, unsigned blocks, '
                    "unsigned threads)\n{\n"
                    + (_BLOCKS_TOGETHER if launch.together else _BLOCKS).replace("@call@", call)
                )
        return "\n".join(lines) + "\n"

    def run(
        self, inputs: Sequence[np.ndarray], attributes: Mapping[str, Any], *, together: int = 1
    ) -> list[np.ndarray]:
        """Returns what the kernel makes of inputs, every thread of every block in turn.

        Args:
            inputs: The inputs; their element types say which function is run.
            attributes: The attributes.
            together: How many threads are in a block of those whose threads work together.
        """
        bundle, kernel = self._bundle, self._bundle.kernel
        filled = bundle.filled(attributes)
        held = [np.ascontiguousarray(value) for value in inputs]
        given = bundle.padded([value.shape for value in held])
        shapes = [tuple(int(size) for size in shape) for shape in bundle.shapes(given, filled)]
        typed = held[bundle.leading()].dtype
        outputs = [
            _unwritten(shape, element_type(bundle, name, typed))
            for name, shape in zip(bundle.outputs, shapes, strict=True)
        ]
        counted = [_unwritten((1,), np.dtype(np.int64)) for _ in bundle.counted]
        room = kernel.workspace(given, shapes, filled) if kernel.workspace is not None else 0
        every = [*bundle.padded(held), *outputs, *counted, _unwritten((room,), np.dtype(np.uint8))]
        pointers = (ctypes.c_void_p * len(every))(*(None if each is None else each.ctypes.data for each in every))
        integers, floats = kernel.scalars(given, shapes, filled)
        numbers: Params = pack(integers, floats)
        suffix = bundle.suffix([value.dtype.name for value in held])
        for launch in kernel.all_launches():
            count = int(launch.count(given, shapes, filled))
            threads = together if launch.together else launch.threads
            blocks = count if launch.together else (count + threads - 1) // threads
            if blocks:
                getattr(self._library, f"host_{launch.entry}_{suffix}")(
                    pointers, ctypes.byref(numbers), blocks, threads
                )
        for (name, axis), number in zip(bundle.counted.items(), counted, strict=True):
            at = bundle.outputs.index(name)
            outputs[at] = outputs[at].take(range(int(number[0])), axis)
        return outputs


def _unwritten(shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return np.full(size, _GARBAGE, np.uint8).view(dtype).reshape(shape)


def casts(bundle: Bundle, types: Mapping[str, str]) -> list[str]:
    """Returns the C++ types of the pointers that a kernel's function takes, for element types of inputs and outputs."""
    given = ["const void*" if name in bundle.any_dtype else f"const {C_TYPES[types[name]]}*" for name in bundle.inputs]
    space = ["void*"] if bundle.kernel.workspace is not None else []
    made = [f"{C_TYPES[types[name]]}*" for name in bundle.outputs]
    return [*given, *made, *["long long*"] * len(bundle.counted), *space]


_BLOCKS = """  gridDim.x = blocks; blockDim.x = threads;
  for (unsigned b = 0; b < blocks; ++b) for (unsigned t = 0; t < threads; ++t) {
    blockIdx.x = b; threadIdx.x = t; @call@;
  }
}"""
_BLOCKS_TOGETHER = """  std::barrier<> all(threads);
  onnxbench_barrier = threads > 1 ? &all : nullptr;
  auto work = [&](unsigned t) {
    gridDim.x = blocks; blockDim.x = threads; threadIdx.x = t;
    for (unsigned b = 0; b < blocks; ++b) { blockIdx.x = b; ONNXBENCH_SYNC(); @call@; }
  };
  std::vector<std::thread> others;
  for (unsigned t = 1; t < threads; ++t) others.emplace_back(work, t);
  work(0);
  for (auto& each : others) each.join();
}"""
