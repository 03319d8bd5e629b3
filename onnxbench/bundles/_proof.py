"""The tests that every bundle has without writing any: its parts against each other, on its own cases."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxbench.bundles import raised_in
from onnxbench.bundles._kernels import HostKernel, compile_ptx
from onnxbench.bundles._onnx import OPSET
from onnxbench.errors import BenchError, ExecutionError

if TYPE_CHECKING:
    from onnxbench.bundles import Bundle, Case

Build = Callable[[Path, Path, "Bundle"], bytes]
"""Builds an engine of a model file with a bundle, and returns its bytes."""


Test = tuple[str, Callable[["Bundle", "list[Case]"], str]]
"""A further test: what is tested, and a function that returns what was measured, or raises AssertionError."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one test.

    Attributes:
        name: What is tested.
        passed: Whether it holds; None if it was not run.
        detail: What was measured, what differs, or why it was not run.
    """

    name: str
    passed: bool | None
    detail: str


def prove_bundle(bundle: Bundle, *, build: Build | None = None, tests: Sequence[Test] = ()) -> list[Outcome]:
    """Returns the outcomes of all tests of a bundle.

    Args:
        bundle: The bundle.
        build: Builds engines; None: TensorRT is not there.
        tests: Further tests.
    """
    cases = list(bundle.cases())
    own: list[tuple[str, Callable[[], str | None]]] = [
        ("shape function", lambda: _shapes(bundle, cases)),
        ("onnx reference evaluator", lambda: _evaluator(bundle, cases)),
        ("kernel on the CPU", lambda: _host(bundle, cases)),
        ("kernel compiled to PTX", lambda: _ptx(bundle)),
        ("ONNX Runtime", lambda: _onnxruntime(bundle, cases)),
        ("TensorRT engine", lambda: _engine(bundle, cases, build)),
    ]
    own += [(name, partial(test, bundle, cases)) for name, test in tests]
    outcomes = []
    for name, test in own:
        try:
            detail = test()
        except NotRunError as reason:
            outcomes.append(Outcome(name, None, str(reason)))
        except (BenchError, AssertionError) as error:
            outcomes.append(Outcome(name, False, str(error)))
        except Exception as error:  # a plugin's own code; what is not raised there goes on
            place = raised_in(error, bundle.folder)
            if place is None:
                raise
            outcomes.append(Outcome(name, False, f"{place}: {type(error).__name__}: {error}"))
        else:
            outcomes.append(Outcome(name, True, detail or ""))
    return outcomes


_OPSETS = (OPSET, 21)
"""Opsets at which bodies are tried: operators change."""
_THREADS = 3
"""Threads of the CPU that are a block whose threads work together: no divisor of anything."""


class NotRunError(Exception):
    """A test cannot be run here."""


def difference(actual: np.ndarray, expected: np.ndarray, tolerance: tuple[float, float]) -> str | None:
    """Returns how two arrays differ beyond a tolerance (relative, absolute), NaN and infinities first; None if not."""
    if actual.shape != expected.shape:
        return f"shape {actual.shape} in place of {expected.shape}"
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    for words, test in (("NaN", np.isnan), ("infinities", np.isinf)):
        if not np.array_equal(test(a), test(b)):
            return f"{words} at {int((test(a) != test(b)).sum())} places that do not agree"
    finite = np.isfinite(b)
    if not np.array_equal(np.sign(a[~finite]), np.sign(b[~finite]), equal_nan=True):
        return "infinities of the other sign"
    gap = np.abs(a[finite] - b[finite])
    allowed = tolerance[1] + tolerance[0] * np.abs(b[finite])
    if (gap > allowed).any():
        return f"{int((gap > allowed).sum())} of {gap.size} values, the largest difference {gap.max():.3g}"
    return None


def _in(dtype: str, bundle: Bundle, case: Case) -> list[np.ndarray]:
    import ml_dtypes

    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    others = {*bundle.any_dtype, *bundle.types}
    with np.errstate(over="ignore", invalid="ignore"):
        return [v if n in others else v.astype(kind) for n, v in zip(bundle.inputs, case[0], strict=False)]


def some_of(cases: Sequence[Case], count: int) -> list[Case]:
    """Returns about so many cases, one every so often, and besides all those in which an input has no elements."""
    step = max(1, len(cases) // count)
    return [
        case for at, case in enumerate(cases) if at % step == 0 or not all(value.size for value in case[0])
    ]  # fmt: skip


def expected_of(bundle: Bundle, inputs: Sequence[np.ndarray], attributes: Mapping[str, Any]) -> Sequence[np.ndarray]:
    """Returns what the reference makes of inputs."""
    return bundle.reference(bundle.padded(inputs), bundle.filled(attributes))


def allowed_in(bundle: Bundle, value: np.ndarray) -> tuple[float, float]:
    """Returns how far values of an array's element type may be off; integers may not at all."""
    return bundle.tolerance.get(value.dtype.name, (0, 0))


def _shapes(bundle: Bundle, cases: list[Case]) -> str:
    for inputs, attributes in cases:
        told = bundle.shapes(bundle.padded([value.shape for value in inputs]), bundle.filled(attributes))
        made = [tuple(value.shape) for value in expected_of(bundle, inputs, attributes)]
        fits = [
            len(size) == len(says) and all(
                a <= b if bundle.is_counted(name, axis) else a == b
                for axis, (a, b) in enumerate(zip(size, says, strict=True))
            )
            for name, size, says in zip(bundle.outputs, made, told, strict=True)
        ]  # fmt: skip
        assert all(fits), f"it says {told} where the reference makes {made} of {[v.shape for v in inputs]}"
    return f"{len(cases)} cases"


def _evaluator(bundle: Bundle, cases: list[Case]) -> str:
    from onnx.reference import ReferenceEvaluator

    operator = bundle.evaluator()
    few = some_of(cases, 8)
    for inputs, attributes in few:
        session = ReferenceEvaluator(bundle.model(inputs, attributes), new_ops=[operator])
        made = session.run(None, dict(zip(bundle.inputs, inputs, strict=False)))
        for value, expected in zip(made, expected_of(bundle, inputs, attributes), strict=True):
            assert value.dtype == expected.dtype, f"it gives {value.dtype} where the reference gives {expected.dtype}"
            assert difference(value, expected, (0, 0)) is None, "it runs, and gives other values than the reference"
    return f"{len(few)} cases"


def _host(bundle: Bundle, cases: list[Case]) -> str:
    """Compares the device code, run on the CPU, with the reference in each element type."""
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        raise NotRunError("there is no C++ compiler")
    kernel = HostKernel(bundle)
    count, worst = 0, 0.0
    several = [1, *[_THREADS] * any(launch.together for launch in bundle.kernel.launches)]
    for dtype in bundle.dtypes:
        for at, case in enumerate(cases):
            inputs = _in(dtype, bundle, case)
            expected = expected_of(bundle, inputs, case[1])
            for together in several if at % max(1, len(cases) // 8) == 0 else several[:1]:
                made = kernel.run(inputs, case[1], together=together)
                for actual, wanted in zip(made, expected, strict=True):
                    differs = difference(actual, wanted, allowed_in(bundle, wanted))
                    shapes = [value.shape for value in inputs]
                    among = f", {together} threads together" if together > 1 else ""
                    assert differs is None, f"{dtype}, inputs {shapes}, attributes {case[1]}{among}: {differs}"
                    if wanted.dtype == np.float32:
                        finite = np.isfinite(wanted)
                        gaps = np.abs(actual[finite] - wanted[finite])
                        worst = max(worst, float(gaps.max(initial=0) / np.abs(wanted[finite]).max(initial=1)))
            count += 1
    among = f"; {_THREADS} threads of a block at the same time in some" if len(several) > 1 else ""
    return (
        f"{count} cases in {', '.join(bundle.dtypes)}; in float32 off by at most {worst:.2g} of the largest value"
        f"{among}"
    )


def _ptx(bundle: Bundle) -> str:
    text = bundle.ptx()
    for suffix, _ in bundle.suffixes():
        for launch in bundle.kernel.all_launches():
            name = f"{launch.entry}_{suffix}"
            assert f".entry {name}(" in text, f"{bundle.kernel.ptx} has no function {name}"
    if shutil.which("nvcc") is None:
        return "it is of the source as it is; there is no nvcc to compile it again"
    with tempfile.TemporaryDirectory() as folder:
        copy = dataclasses.replace(bundle, folder=Path(folder, bundle.folder.name))
        shutil.copytree(bundle.folder, copy.folder)
        compile_ptx(copy)
    return "it compiles; what lies there is of the source as it is"


def _onnxruntime(bundle: Bundle, cases: list[Case]) -> str:
    """Runs the operator in ONNX Runtime: by its body where it has one, and in Python."""
    from onnxbench import backends

    said = []
    everywhere = [*some_of(cases, 40), *cases[-4:]]
    for opset in _OPSETS:
        bodies = [case for case in everywhere if bundle.function(case[1], opset, len(case[0])) is not None]
        refused = 0
        for inputs, attributes in bodies:
            try:
                _run_in_onnxruntime(bundle, bundle, inputs, attributes, opset)
            except ExecutionError:
                if _makes_something(bundle, inputs, attributes):
                    raise
                refused += 1
        if bodies:
            but = f", {refused} of which it refuses: there is nothing to make" if refused else ""
            said.append(f"{len(bodies)} cases by its body at opset {opset}{but}")
        for dtype in bundle.dtypes[1:]:
            for inputs, attributes in bodies[:: max(1, len(bodies) // 3)]:
                if _makes_something(bundle, inputs, attributes):
                    _run_in_onnxruntime(bundle, bundle, _in(dtype, bundle, (inputs, attributes)), attributes, opset)
    few = some_of(cases, 6)
    if backends.has_python_operators():
        bodiless = dataclasses.replace(bundle, body=None)
        for inputs, attributes in few:
            _run_in_onnxruntime(bundle, bodiless, inputs, attributes, OPSET)
        said.append(f"{len(few)} cases through onnxruntime-extensions")
    elif not said:
        raise NotRunError("onnxruntime-extensions is not installed, and it has no body")
    return ", ".join(said)


def _makes_something(bundle: Bundle, inputs: Sequence[np.ndarray], attributes: dict[str, Any]) -> bool:
    """Tells whether all outputs of a case have elements: ONNX Runtime refuses to resize to nothing, say."""
    return all(value.size for value in expected_of(bundle, inputs, attributes))


def _run_in_onnxruntime(
    bundle: Bundle,
    taught: Bundle,
    inputs: Sequence[np.ndarray],
    attributes: dict[str, Any],
    opset: int,
) -> None:
    from onnxbench import backends
    from onnxbench.model import from_proto

    options = backends.Options("none", operators=(taught.operator(),))
    proto = bundle.model(inputs, bundle.filled(attributes))
    proto.opset_import[0].version, proto.ir_version = opset, 10
    session = backends.open_session(from_proto(proto), options=options)
    made = session.run(dict(zip(bundle.inputs, inputs, strict=False)))
    session.close()
    how = "by its body" if taught.body is not None else "in Python"
    for value, expected in zip(made.values(), expected_of(bundle, inputs, attributes), strict=True):
        assert value.dtype == expected.dtype, f"computed {how}, it gives {value.dtype}, not {expected.dtype}"
        differs = difference(value, expected, allowed_in(bundle, expected) if taught.body is not None else (0, 0))
        shapes = [each.shape for each in inputs]
        assert differs is None, f"computed {how}, inputs {shapes}, attributes {attributes}: {differs}"


def _engine(bundle: Bundle, cases: list[Case], build: Build | None) -> str:
    """Builds an engine in each element type, the last for empty inputs, and looks for plugin and kernel in it."""
    import onnx

    if build is None:
        raise NotRunError("TensorRT is not installed (pip install 'onnxbench[trt]')")
    full = next(case for case in cases if all(value.size for value in case[0]))
    empty = next((case for case in cases if not all(value.size for value in case[0])), full)
    done = []
    with tempfile.TemporaryDirectory() as folder:
        for dtype, dynamic in _forms(bundle):
            model = Path(folder, f"{dtype}.onnx")
            is_last = dtype == bundle.dtypes[-1] and not dynamic
            case = empty if is_last and len(bundle.dtypes) > 1 else full
            onnx.save(bundle.model(_in(dtype, bundle, case), case[1], dynamic=dynamic), model)
            data = build(model, Path(folder, f"{dtype}.engine"), bundle)
            assert bundle.op.encode() in data, "the engine does not name the plugin"
            assert bundle.ptx().encode() in data, "the engine does not carry the compiled kernel"
            how = ", dynamic shapes" if dynamic else ", nothing in it" if case is not full else ""
            done.append(f"{dtype}{how}")
    return f"built with the kernel in it: {'; '.join(done)}"


def _forms(bundle: Bundle) -> Iterator[tuple[str, bool]]:
    for dtype in bundle.dtypes:
        yield dtype, False
    yield bundle.dtypes[0], True
