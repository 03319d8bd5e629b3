"""The PyTorch operator behind a mark, and what each exporter makes of it. Imports torch.

A mark must be an operator of its own to be seen by ``torch.export``: an ``autograd.Function`` is traced through. It may
not alias what it is given, so it is a clone. Three things are said of it. Under the default exporter, a translation
table makes it an ``onnxbench::Mark``, typed by a schema that is made here (onnx has none); without that table it is
decomposed, so that a plain ``torch.onnx.export`` of marked code works and shows no marks. Under the TorchScript
exporter, a symbolic does it, once that is registered.
"""

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from onnxbench.marks import DOMAIN, MARK

NAME = f"{DOMAIN}::mark"
_SCHEMA = "(Tensor x, str func, int func_id, str type, str name, int id, str attrs) -> Tensor"
_LOWEST_OPSET = 9


def _clone(x: torch.Tensor, func: str, func_id: int, type: str, name: str, id: int, attrs: str) -> torch.Tensor:
    return x.clone()


def _fake(x: torch.Tensor, func: str, func_id: int, type: str, name: str, id: int, attrs: str) -> torch.Tensor:
    return torch.empty_like(x)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None, None, None]:
    return (grad, None, None, None, None, None, None)


operator = torch.library.custom_op(NAME, _clone, mutates_args=(), schema=_SCHEMA)
operator.register_fake(_fake)
operator.register_autograd(_backward)


def _decompose() -> None:
    """Says what a mark is made of where no table says more; where PyTorch has moved the place, marks need the table."""
    try:
        from torch._decomp import register_decomposition
    except ImportError:
        return
    register_decomposition(torch.ops.onnxbench.mark.default)(_clone)


_decompose()


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Returns the ``custom_translation_table`` that makes marks ``onnxbench::Mark`` nodes."""

    def translate(x: Any, func: str, func_id: int, type: str, name: str, id: int, attrs: str) -> Any:
        more: dict[str, Any] = json.loads(attrs)
        shape = [size if isinstance(size, int) else -1 for size in x.shape] if x.shape is not None else None
        said = {"func": func, "func_id": func_id, "type": type, "name": name, "id": id, **more}
        if x.dtype is not None:
            said["dtype"] = int(x.dtype)
        if shape:
            said["shape"] = shape
        return _onnx_operator(tuple(sorted((key, _letter(value)) for key, value in said.items())))(x, **said)

    return {torch.ops.onnxbench.mark.default: translate}


@cache
def _onnx_operator(attributes: tuple[tuple[str, str], ...]) -> Any:
    """Returns ``onnxbench::Mark`` for onnxscript, with a schema that has these attributes."""
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    kinds = OpSchema.AttrType
    by_letter = {
        "i": kinds.INT, "f": kinds.FLOAT, "s": kinds.STRING, "is": kinds.INTS, "fs": kinds.FLOATS, "ss": kinds.STRINGS
    }  # fmt: skip
    schema = OpSchema(
        MARK, DOMAIN, 1,
        inputs=[OpSchema.FormalParameter("x", "T")],
        outputs=[OpSchema.FormalParameter("y", "T")],
        type_constraints=[("T", _tensor_types(), "Any tensor.")],
        attributes=[OpSchema.Attribute(name, by_letter[letter], required=False) for name, letter in attributes],
    )  # fmt: skip
    return Op(Opset(DOMAIN, 1), MARK, schema)


def _tensor_types() -> list[str]:
    from onnx import defs

    allowed = defs.get_schema("Identity").type_constraints[0].allowed_type_strs
    return sorted(kind for kind in allowed if kind.startswith("tensor("))


def _letter(value: Any) -> str:
    """Returns the kind of an attribute: ``i``, ``f``, ``s``, and with another ``s`` for a list of them."""
    if isinstance(value, list):
        return f"{_letter(value[0]) if value else 'i'}s"
    return "s" if isinstance(value, str) else "f" if isinstance(value, float) else "i"


def register() -> None:
    """Makes marks ``onnxbench::Mark`` nodes under the TorchScript exporter, until ``unregister``."""
    from torch.onnx import register_custom_op_symbolic

    register_custom_op_symbolic(NAME, _symbolic, _LOWEST_OPSET)


def unregister() -> None:
    """Takes ``register`` back."""
    from torch.onnx import unregister_custom_op_symbolic

    unregister_custom_op_symbolic(NAME, _LOWEST_OPSET)


def _symbolic(g: Any, x: Any, func: Any, func_id: Any, type: Any, name: Any, id: Any, attrs: Any) -> Any:
    from torch.onnx.symbolic_helper import _get_const  # no public name; parse_args would read it the same way

    words = [_get_const(value, "s", "mark") for value in (func, type, name, attrs)]
    numbers = [int(_get_const(value, "i", "mark")) for value in (func_id, id)]
    kind = x.type()
    said: dict[str, Any] = {
        "func": words[0], "func_id": numbers[0], "type": words[1], "name": words[2], "id": numbers[1],
        **json.loads(words[3]),
    }  # fmt: skip
    dtype = _scalar_type(x)
    if dtype is not None:
        said["dtype"] = dtype
    shape = _sizes(kind)
    if shape:
        said["shape"] = shape
    keywords = {f"{key}_{_letter(value)[0]}": value for key, value in sorted(said.items())}
    return g.op(f"{DOMAIN}::{MARK}", x, **keywords).setType(kind)


def _scalar_type(x: Any) -> int | None:
    from torch.onnx import JitScalarType

    kind = JitScalarType.from_value(x, JitScalarType.UNDEFINED)
    return None if kind == JitScalarType.UNDEFINED else int(kind.onnx_type())


def _sizes(kind: Any) -> Sequence[int]:
    sizes = kind.varyingSizes() if hasattr(kind, "varyingSizes") else None
    return [-1 if size is None else int(size) for size in sizes or ()]
