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

from onnxbench.bundles._tensorrt import Params, pack
from onnxbench.errors import ExecutionError, MissingDependencyError

if TYPE_CHECKING:
    from onnxbench.bundles import Bundle

INCLUDE = Path(__file__).resolve().parent / "include"
ARCHITECTURE = "compute_75"
"""What PTX is compiled for: it runs on this and every newer GPU."""
_C_TYPES = {"float32": "float", "float16": "onnxbench_half", "bfloat16": "onnxbench_bfloat16"}


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
        _run([compiler, "-O1", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=off", "-I", INCLUDE,
              "-I", bundle.folder, "-o", library, source], bundle)  # fmt: skip
        self._library = ctypes.CDLL(os.fspath(library))

    def _wrapper(self) -> str:
        bundle = self._bundle
        lines = [f'#include "{bundle.kernel.source}"']
        turns = "threads" if bundle.kernel.blocks is None else "1"  # else the kernel itself has the threads take turns
        for dtype in bundle.dtypes:
            kind = _C_TYPES[dtype]
            given = ["const void*" if name in bundle.any_dtype else f"const {kind}*" for name in bundle.inputs]
            casts = [*given, *[f"{kind}*"] * len(bundle.outputs)]
            passed = ", ".join(f"({cast})p[{at}]" for at, cast in enumerate(casts))
            lines.append(
                f'extern "C" void host_{dtype}(void** p, const onnxbench_params* n, unsigned blocks, unsigned threads)'
                "\n{\n"
                f"  gridDim.x = blocks; blockDim.x = threads;\n"
                f"  for (unsigned b = 0; b < blocks; ++b) for (unsigned t = 0; t < {turns}; ++t) {{\n"
                f"    blockIdx.x = b; threadIdx.x = t; {bundle.kernel.entry}_{dtype}({passed}, *n);\n  }}\n}}"
            )
        return "\n".join(lines) + "\n"

    def run(self, dtype: str, inputs: Sequence[np.ndarray], attributes: Mapping[str, Any]) -> list[np.ndarray]:
        """Returns what the kernel makes of inputs of an element type, every thread of every block in turn.

        Memory of outputs is not zero at first: what the kernel leaves out shows.
        """
        bundle = self._bundle
        filled = bundle.filled(attributes)
        shapes = [tuple(int(size) for size in s) for s in bundle.shapes([value.shape for value in inputs], filled)]
        leading = next(at for at, name in enumerate(bundle.inputs) if name not in bundle.any_dtype)
        outputs = [np.full(shape, 77, inputs[leading].dtype) for shape in shapes]
        held = [np.ascontiguousarray(value) for value in inputs]
        places = [value.ctypes.data for value in held] + [None] * (len(bundle.inputs) - len(held))
        places += [value.ctypes.data for value in outputs]
        pointers = (ctypes.c_void_p * len(places))(*places)
        integers, floats = bundle.kernel.scalars([value.shape for value in held], shapes, filled)
        numbers: Params = pack(integers, floats)
        threads = bundle.kernel.threads
        blocks = bundle.kernel.count([value.shape for value in held], shapes, filled)
        if blocks:
            getattr(self._library, f"host_{dtype}")(pointers, ctypes.byref(numbers), blocks, threads)
        return outputs
