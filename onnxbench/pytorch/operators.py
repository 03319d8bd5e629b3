"""The PyTorch side of plugin bundles: each custom operator as an operator of PyTorch, and how exporters write it.

    resize = torch_operator("plugins/dynamic_resize")
    y = resize(x, size_tensor, align_corners=1)

It computes what the bundle's NumPy reference does, on the CPU; ``torch.export`` asks the bundle's shape function, so
open sizes stay open. An operator that PyTorch has already under that name (a library of the user's) is left as it is
and only gets its translations. Importing this imports torch.
"""

from __future__ import annotations

import contextlib
import keyword
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from onnxbench.bundles import Bundle, Case, TorchCall, is_required, kind_of, load_bundle
from onnxbench.bundles._onnx import Unknown
from onnxbench.bundles._proof import allowed_in, difference, expected_of, some_of
from onnxbench.errors import SpecError, UsageError
from onnxbench.pytorch import require_torch
from onnxbench.pytorch._verification import as_array

_OPSETS = range(9, 31)
"""Where symbolics are registered: PyTorch has its own for single opsets, and takes the nearest."""
_KINDS = {int: "int", float: "float", str: "str"}
_COMPUTING: dict[str, Bundle] = {}
"""What computes an operator now, by its name: PyTorch takes each name once in a process."""


def torch_operator(bundle: Bundle | str | os.PathLike[str]) -> Any:
    """Returns the operator of a bundle for use in PyTorch code (``torch.ops.library.operator``).

    Args:
        bundle: A bundle, or its folder, whose code is run.

    Raises:
        MissingDependencyError: torch is not installed.
        SpecError: The bundle's name in PyTorch cannot be one, or its arguments are not those of PyTorch's operator.
        UsageError: In this process it was defined with other inputs or attributes.
    """
    torch = require_torch("an operator of PyTorch")
    found = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    name = torch_call(found).name
    if not re.fullmatch(r"[A-Za-z_]\w*::[A-Za-z_]\w*", name):
        raise SpecError(f"bundle {found.name}: {name!r} is no name in PyTorch", hint="Write library::operator.")
    library, _, operator = name.partition("::")
    schema = _schema(found)
    before = _COMPUTING.get(name)
    if before is not None and _schema(before) != schema:
        raise UsageError(f"{name} was defined with {_schema(before)} in this process, and not with {schema}")
    if before is None and hasattr(getattr(torch.ops, library), operator):
        _arguments(found, name, torch)  # not ours
    else:
        _COMPUTING[name] = found
        if before is None:
            _define(name, schema, torch)
    return getattr(getattr(torch.ops, library), operator)


def torch_call(bundle: Bundle) -> TorchCall:
    """Returns how a bundle's operator is called in PyTorch: as it says, or as its domain and name say."""
    if bundle.torch is not None:
        return bundle.torch
    return TorchCall(f"{re.sub(r'[^0-9A-Za-z_]', '_', bundle.domain)}::{bundle.op}")


def _schema(bundle: Bundle) -> str:
    """Returns the operator's signature as PyTorch writes it."""
    words = [f"Tensor? {name}=None" if name in bundle.optional else f"Tensor {name}" for name in bundle.inputs]
    if bundle.attributes and bundle.inputs[-1] in bundle.optional:
        words.append("*")  # what follows a default needs one too, or is given by name
    for name, value in bundle.attributes.items():
        kind, is_list = kind_of(value)
        word = f"{_KINDS[kind]}{'[]' if is_list else ''} {name}"
        if not is_required(value):
            default = f'"{value}"' if kind is str else repr(list(value) if is_list else value)
            word += f"={default}"
        words.append(word)
    results = ", ".join(["Tensor"] * len(bundle.outputs))
    return f"({', '.join(words)}) -> {results if len(bundle.outputs) == 1 else f'({results})'}"


def _define(name: str, schema: str, torch: Any) -> None:
    """Defines an operator that asks ``_COMPUTING`` for what it computes."""

    def compute(*args: Any, **kwargs: Any) -> Any:
        bundle = _COMPUTING[name]
        tensors, attributes = _sorted_arguments(bundle, args, kwargs)
        made = bundle.reference([None if each is None else as_array(each) for each in tensors], attributes)
        device = tensors[bundle.leading()].device
        results = [_as_tensor(value, torch).to(device) for value in made]
        return results[0] if len(results) == 1 else tuple(results)

    def fake(*args: Any, **kwargs: Any) -> Any:
        bundle = _COMPUTING[name]
        tensors, attributes = _sorted_arguments(bundle, args, kwargs)
        sizes = [None if each is None else [_Size.of(size, torch) for size in each.shape] for each in tensors]
        typing = tensors[bundle.leading()]
        results = []
        for output, shape in zip(bundle.outputs, bundle.shapes(sizes, attributes), strict=True):
            told = [size.value if isinstance(size, _Size) else size for size in shape]
            if output in bundle.counted:
                told[bundle.counted[output]] = torch.library.get_ctx().new_dynamic_size()
            results.append(typing.new_empty(told, dtype=_dtype(bundle, output, torch)))
        return results[0] if len(results) == 1 else tuple(results)

    made = torch.library.custom_op(name, compute, mutates_args=(), schema=schema)
    made.register_fake(fake)


def _dtype(bundle: Bundle, output: str, torch: Any) -> Any:
    """Returns the element type of an output; None if it is that of the inputs."""
    return getattr(torch, bundle.types[output][0]) if output in bundle.types else None


def _sorted_arguments(bundle: Bundle, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], Any]:
    names = [*bundle.inputs, *bundle.attributes]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    attributes = {name: value for name, value in given.items() if name in bundle.attributes}
    return [given.get(name) for name in bundle.inputs], bundle.filled(attributes)


def _as_tensor(value: Any, torch: Any) -> Any:
    """Returns an array as a tensor of its own, of ``ml_dtypes`` too."""
    import numpy as np

    array = np.array(value, copy=True, order="C")
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


class _Size:
    """A size that is open while ``torch.export`` traces: the same arithmetic as of integers, without a guard on it."""

    def __init__(self, value: Any, torch: Any) -> None:
        self.value, self._torch = value, torch

    @classmethod
    def of(cls, size: Any, torch: Any) -> Any:
        return cls(size, torch) if isinstance(size, torch.SymInt) else size

    def _with(self, other: Any, apply: Callable[[Any, Any], Any]) -> _Size:
        return _Size(apply(self.value, other.value if isinstance(other, _Size) else other), self._torch)

    def __add__(self, other: Any) -> _Size:
        return self._with(other, lambda a, b: a + b)

    __radd__ = __add__

    def __mul__(self, other: Any) -> _Size:
        return self._with(other, lambda a, b: a * b)

    __rmul__ = __mul__

    def __sub__(self, other: Any) -> _Size:
        return self._with(other, lambda a, b: a - b)

    def __rsub__(self, other: Any) -> _Size:
        return self._with(other, lambda a, b: b - a)

    def __floordiv__(self, other: Any) -> _Size:
        return self._with(other, lambda a, b: a // b)

    def __rfloordiv__(self, other: Any) -> _Size:
        return self._with(other, lambda a, b: b // a)

    def smaller(self, other: Any) -> _Size:
        return self._with(other, self._torch.sym_min)

    def larger(self, other: Any) -> _Size:
        return self._with(other, self._torch.sym_max)


# ---------------------------------------------------------------- exporters


def _arguments(bundle: Bundle, name: str, torch: Any) -> list[str]:
    """Returns the names of the arguments of PyTorch's operator, which have to be the bundle's.

    Raises:
        SpecError: PyTorch has no such operator, or an argument is neither an input nor an attribute.
    """
    library, _, operator = name.partition("::")
    packet = getattr(getattr(torch.ops, library), operator, None)
    if packet is None:
        raise SpecError(f"bundle {bundle.name}: PyTorch has no operator {name}")
    names = [argument.name for argument in packet.default._schema.arguments]
    missing = [each for each in bundle.inputs if each not in names]
    unknown = [each for each in names if each not in bundle.inputs and each not in bundle.attributes]
    if missing or unknown:
        raise SpecError(
            f"bundle {bundle.name}: {name}({', '.join(names)}) cannot be written as {bundle.op}: "
            + (f"there is no argument {missing[0]!r}" if missing else f"{unknown[0]!r} is no input and no attribute"),
            hint="Inputs and attributes of the bundle need the names of PyTorch's arguments.",
        )
    return names


def _operators(bundle: Bundle, torch: Any) -> Iterator[tuple[str, list[str]]]:
    """Yields the operators of PyTorch that an export writes as a bundle's, with the names of their arguments."""
    torch_operator(bundle)
    call = torch_call(bundle)
    for name in (call.name, *call.stands_for):
        yield name, _arguments(bundle, name, torch)


def translations(bundles: Sequence[Bundle]) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Returns the ``custom_translation_table`` by which the default exporter writes the operators of bundles.

    Raises:
        SpecError: See ``torch_operator``.
    """
    torch = require_torch("an export with plugins")
    table: dict[Callable[..., Any], Callable[..., Any]] = {}
    for bundle in bundles:
        for name, arguments in _operators(bundle, torch):
            library, _, operator = name.partition("::")
            table[getattr(getattr(torch.ops, library), operator).default] = _translation(bundle, arguments)
    return table


def _translation(bundle: Bundle, arguments: Sequence[str]) -> Callable[..., Any]:
    """Returns a function of these arguments: the exporter looks at their names, and at what is annotated."""
    from onnxscript.values import Op, Opset

    operator = Op(Opset(bundle.domain, 1), bundle.op, bundle.schema())

    def write(given: Mapping[str, Any]) -> Any:
        attributes = _as_attributes(bundle, given)
        return operator(*_given_inputs(bundle, given), **attributes)

    safe = [f"{name}_" if keyword.iskeyword(name) else name for name in arguments]
    words = []
    for name in safe:
        if name in bundle.inputs:
            words.append(f"{name}=None" if name in bundle.optional else name)
            continue
        if "*" not in words and bundle.inputs[-1] in bundle.optional:
            words.append("*")
        value = bundle.attributes[name]
        kind, is_list = kind_of(value)
        word = f"{name}: {f'Sequence[{kind.__name__}]' if is_list else kind.__name__}"
        words.append(word if is_required(value) else f"{word} = {value!r}")
    passed = ", ".join(f"{name!r}: {each}" for name, each in zip(arguments, safe, strict=True))
    space: dict[str, Any] = {"write": write, "Sequence": Sequence}
    exec(f"def translate({', '.join(words)}):\n    return write({{{passed}}})", space)
    made: Callable[..., Any] = space["translate"]
    return made


def _given_inputs(bundle: Bundle, given: Mapping[str, Any]) -> list[Any]:
    """Returns the inputs that are given; those that are left out are the last ones."""
    return [given[name] for name in bundle.inputs if given.get(name) is not None]


def _as_attributes(bundle: Bundle, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns attributes in the types that the bundle says: PyTorch's bools are numbers in ONNX."""
    said = {name: value for name, value in given.items() if name in bundle.attributes and value is not None}
    filled = bundle.filled(said)
    made = {}
    for name, value in filled.items():
        kind, is_list = kind_of(bundle.attributes[name])
        made[name] = [kind(each) for each in value] if is_list else kind(value)
    return made


@contextlib.contextmanager
def symbolics(bundles: Sequence[Bundle]) -> Iterator[None]:
    """Makes the TorchScript exporter write the operators of bundles within the block.

    Raises:
        SpecError: See ``torch_operator``.
    """
    torch = require_torch("an export with plugins")
    from torch.onnx import register_custom_op_symbolic, unregister_custom_op_symbolic

    done: list[tuple[str, int]] = []
    try:
        for bundle in bundles:
            for name, arguments in _operators(bundle, torch):
                symbolic = _symbolic(bundle, arguments)
                for opset in _OPSETS:
                    register_custom_op_symbolic(name, symbolic, opset)
                    done.append((name, opset))
        yield
    finally:
        for name, opset in done:
            unregister_custom_op_symbolic(name, opset)


def _symbolic(bundle: Bundle, arguments: Sequence[str]) -> Callable[..., Any]:
    letters = {int: "i", float: "f", str: "s"}
    torch = require_torch()

    def write(g: Any, *values: Any) -> Any:
        from torch.onnx.symbolic_helper import _get_const  # no public name; parse_args would read it the same way

        given = dict(zip(arguments, values, strict=False))
        for name, value in bundle.attributes.items():
            if name in given:
                kind, is_list = kind_of(value)
                given[name] = _get_const(given[name], letters[kind] + ("s" if is_list else ""), name)
        attributes = _as_attributes(bundle, given)
        keywords = {f"{name}_{letters[kind_of(value)[0]]}": value for name, value in attributes.items()}
        inputs = [each for each in _given_inputs(bundle, given) if not each.node().mustBeNone()]
        made = g.op(f"{bundle.domain}::{bundle.op}", *inputs, outputs=len(bundle.outputs), **keywords)
        results = [made] if len(bundle.outputs) == 1 else list(made)
        shapes = _known_shapes(bundle, inputs, attributes)
        for name, result, shape in zip(bundle.outputs, results, shapes or (), strict=False):
            kind = inputs[bundle.leading()].type().with_sizes(shape)
            dtype = _dtype(bundle, name, torch)
            result.setType(kind if dtype is None else kind.with_dtype(dtype))
        return made

    return write


def _known_shapes(
    bundle: Bundle, inputs: Sequence[Any], attributes: Mapping[str, Any]
) -> list[list[int | None]] | None:
    """Returns the shapes of outputs as far as they follow from those of inputs; None if a rank is not known."""
    sizes = []
    for value in inputs:
        kind = value.type()
        known = kind.varyingSizes() if hasattr(kind, "varyingSizes") else None
        if known is None:
            return None
        sizes.append([Unknown() if size is None else size for size in known])
    told = bundle.shapes(bundle.padded(sizes), attributes)
    return [
        [size if isinstance(size, int) and not bundle.is_counted(name, axis) else None
         for axis, size in enumerate(shape)]
        for name, shape in zip(bundle.outputs, told, strict=True)
    ]  # fmt: skip


# ---------------------------------------------------------------- the proof


def prove(bundle: Bundle, cases: Sequence[Case]) -> str:
    """Returns what was tested of a bundle's PyTorch side, for ``onnxbench plugins test``.

    Raises:
        AssertionError: It is not as the reference is, or PyTorch's own operator computes something else.
        BenchError: It cannot be exported.
    """
    torch = require_torch("an operator of PyTorch")
    operator = torch_operator(bundle)
    few = some_of(cases, 6)
    for inputs, attributes in few:
        tensors = [_as_tensor(value, torch) for value in inputs]
        made = operator(*tensors, **bundle.filled(attributes))
        results = [made] if len(bundle.outputs) == 1 else list(made)
        for result, expected in zip(results, expected_of(bundle, inputs, attributes), strict=True):
            differs = difference(as_array(result), expected, (0, 0))
            assert differs is None, f"{torch_call(bundle).name} is not the reference: {differs}"
        torch.library.opcheck(
            operator.default, tuple(tensors), bundle.filled(attributes), test_utils=("test_schema", "test_faketensor")
        )
    said = [f"{len(few)} cases"]
    said += [_compare(bundle, name, cases, torch) for name in torch_call(bundle).stands_for]
    full = next(case for case in cases if all(value.size for value in case[0]))
    said.append(f"exported by {' and '.join(_export(bundle, full))}")
    return ", ".join(said)


def _compare(bundle: Bundle, name: str, cases: Sequence[Case], torch: Any) -> str:
    """Compares PyTorch's own operator with the reference on all finite cases."""
    import numpy as np

    library, _, word = name.partition("::")
    operator = getattr(getattr(torch.ops, library), word)
    kinds = {each.name: str(each.type) for each in operator.default._schema.arguments}
    finite = [case for case in cases if all(value.size and np.isfinite(value).all() for value in case[0])]
    for inputs, attributes in finite:
        filled = bundle.filled(attributes)
        given: dict[str, Any] = {
            name: _as_tensor(value, torch) for name, value in zip(bundle.inputs, inputs, strict=False)
        }
        given |= {
            name: bool(filled[name]) if kinds[name] == "bool" else filled[name] for name in kinds if name in filled
        }
        made = operator(*(given[each] for each in kinds))
        results = [made] if len(bundle.outputs) == 1 else list(made)
        for result, expected in zip(results, expected_of(bundle, inputs, attributes), strict=True):
            differs = difference(as_array(result), expected, allowed_in(bundle, expected))
            shapes = [value.shape for value in inputs]
            assert differs is None, f"{name} is something else, inputs {shapes}, attributes {attributes}: {differs}"
    return f"{len(finite)} finite cases equal to {name}"


def _export(bundle: Bundle, case: Case) -> list[str]:
    """Exports a module that calls the operator with both exporters, each compared with PyTorch."""
    torch = require_torch()
    from onnxbench.pytorch.exporting import ExportOptions, export

    operator, attributes = torch_operator(bundle), bundle.filled(case[1])

    class Calling(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, *tensors: Any) -> Any:
            return operator(*tensors, **attributes)

    done = []
    inputs = tuple(_as_tensor(value, torch) for value in case[0])
    for exporter in ("torch.export", "torchscript"):
        made = export(
            (Calling(), inputs), None, options=ExportOptions(exporter=exporter, plugins=[os.fspath(bundle.folder)])
        )
        assert made.passed, f"what {exporter} writes is not what PyTorch computes"
        done.append(exporter)
    return done
