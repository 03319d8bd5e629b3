"""The files of a new bundle: an operator that multiplies by a number, working and tested, to be changed."""

from __future__ import annotations

import re
from pathlib import Path

from onnxbench.errors import OutputError, UsageError

_PLUGIN = '''"""{domain}::{op}: y = alpha * x. Change this, kernel.cu and the cases; `onnxbench plugins test` says what differs."""

from __future__ import annotations

import numpy as np

from onnxbench.bundles import Bundle, Kernel, product


def shapes(inputs, attributes):
    """From the shapes of the inputs to those of the outputs; sizes may be symbols (+ - * //, smaller, larger)."""
    return [inputs[0]]


def reference(inputs, attributes):
    """What the operator computes, in NumPy: the truth that everything else is held against."""
    (x,) = inputs
    return [(x.astype(np.float32) * np.float32(attributes["alpha"])).astype(x.dtype)]


def scalars(inputs, outputs, attributes):
    """Integers and floats that the kernel gets beside its pointers: n.i[0], n.f[0], ..."""
    return [product(outputs[0])], [attributes["alpha"]]


def body(attributes, opset):
    """The same made of ONNX operators, by which ONNX Runtime computes it; None where that cannot be said."""
    return f"""(x) => (y) {{{{
        alpha = Constant <value = float {{{{{{attributes["alpha"]}}}}}}> ()
        float = Cast <to = 1> (x)
        scaled = Mul (float, alpha)
        y = CastLike (scaled, x)
    }}}}""" if opset >= 15 else None


def cases():
    """Inputs and attributes to test with: ordinary ones, and the edges (empty, one element, NaN, infinities)."""
    random = np.random.default_rng(0)
    for shape in [(1,), (7,), (2, 3), (1, 3, 8, 8), (2, 5, 17), (300,), (0, 4)]:
        for alpha in (1.0, -0.5, 0.0, 3.25):
            yield [random.standard_normal(shape).astype(np.float32)], {{"alpha": alpha}}
    yield [np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], np.float32)], {{"alpha": 2.0}}


BUNDLE = Bundle(
    name="{name}",
    op="{op}",
    domain="{domain}",
    description="y = alpha * x",
    inputs=("x",),
    outputs=("y",),
    attributes={{"alpha": 1.0}},
    shapes=shapes,
    reference=reference,
    cases=cases,
    body=body,
    kernel=Kernel(source="kernel.cu", entry="{name}", scalars=scalars),
)
'''
_KERNEL = """#include "onnxbench_kernel.h"

// One thread makes one element. n.i[0] is the number of elements, n.f[0] is alpha (see scalars() in plugin.py).
template <typename T>
ONNXBENCH_DEVICE void compute(const T* x, T* y, const onnxbench_params& n) {{
  long long at = ONNXBENCH_THREAD();
  if (at >= n.i[0]) return;
  onnxbench_store(y + at, onnxbench_load(x + at) * n.f[0]);
}}

ONNXBENCH_KERNEL {name}_float32(const float* x, float* y, onnxbench_params n) {{ compute(x, y, n); }}
ONNXBENCH_KERNEL {name}_float16(const onnxbench_half* x, onnxbench_half* y, onnxbench_params n) {{ compute(x, y, n); }}
ONNXBENCH_KERNEL {name}_bfloat16(const onnxbench_bfloat16* x, onnxbench_bfloat16* y, onnxbench_params n) {{
  compute(x, y, n);
}}
"""
_README = """# {name}

`{domain}::{op}`: what it computes, in a sentence.

    onnxbench plugins compile {folder}     # kernel.cu to kernel.ptx (nvcc, no GPU needed)
    onnxbench plugins test {folder}        # every part against every other
    onnxbench export model.py:make model.onnx --plugin {folder}     # torch.ops.{torch_name} in PyTorch
    onnxbench run model.onnx --plugin {folder}
    onnxbench build-trt model.onnx model.engine --plugin {folder}
    onnxbench plugins export {folder} cpp                           # the TensorRT plugin in C++, with CMake
"""
_TEST = '''"""The bundle's parts agree: run with pytest."""

from pathlib import Path

from onnxbench.proving import prove_plugin


def test_bundle():
    failed = [outcome for outcome in prove_plugin(Path(__file__).parent) if outcome.passed is False]
    assert not failed, failed
'''


def make_skeleton(folder: Path, op: str) -> list[Path]:
    """Writes the files of a new bundle and returns them.

    Args:
        folder: Its folder, which must not exist; its name is the bundle's.
        op: The operator, ``Domain::Op``, or ``Op`` for the domain ``custom``.

    Raises:
        UsageError: A name cannot be one.
        OutputError: The folder exists, or cannot be written.
    """
    domain, _, word = op.rpartition("::")
    domain, name = domain or "custom", re.sub(r"\W", "_", folder.name).lower()
    if not re.fullmatch(r"[A-Za-z_]\w*", word) or not re.fullmatch(r"[A-Za-z_][\w.]*", domain):
        raise UsageError(f"{op!r} cannot name an operator", hint="Write MyOp, or my.domain::MyOp.")
    if not re.fullmatch(r"[a-z_]\w*", name):
        raise UsageError(f"{folder.name!r} cannot name a bundle", hint="Letters, digits and _, a letter first.")
    words = {"name": name, "op": word, "domain": domain, "folder": folder.as_posix(),
             "torch_name": f"{re.sub(r'[^0-9A-Za-z_]', '_', domain)}.{word}"}  # fmt: skip
    files = {"plugin.py": _PLUGIN, "kernel.cu": _KERNEL, "README.md": _README}
    try:
        folder.mkdir(parents=True)
        for file, text in files.items():
            (folder / file).write_text(text.format(**words), encoding="utf-8")
        (folder / f"test_{name}.py").write_text(_TEST, encoding="utf-8")
    except FileExistsError:
        raise OutputError(f"{folder} exists already", hint="Name a new folder.") from None
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}") from None
    return [*(folder / file for file in files), folder / f"test_{name}.py"]
