"""How an ``autograd.Function`` becomes ONNX by a user's rewrite, under both exporters.

An ``autograd.Function`` is traced through by ``torch.export``. While one runs, ``apply`` calls an operator made for the
class instead. Its arguments are not known before, so all such operators have one schema: the tensors, the integers
(sizes may be open) and the floats as lists, and the way they make up the arguments as text.
"""

from __future__ import annotations

import inspect
import json
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from onnxbench.errors import UnsupportedError, UsageError
from onnxbench.pytorch import _symbolics, _torchscript

_NAMESPACE = "onnxbench_functions"
_SCHEMA = "(Tensor[] tensors, SymInt[] ints, float[] floats, str layout) -> Tensor[]"
_lock = threading.RLock()


class _Forward:
    """What a ``forward`` gets for its context outside of autograd: it takes anything, and forgets it."""

    needs_input_grad: tuple[bool, ...] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None


def _has_setup(function: Any) -> bool:
    """Tells whether ``forward`` takes no context, because ``setup_context`` does."""
    import torch

    return function.setup_context is not torch.autograd.Function.setup_context


def function_parameters(function: Any) -> list[_symbolics.Parameter]:
    """Returns the arguments of an autograd Function: those of its ``forward`` but the context."""
    parameters = list(inspect.signature(function.forward).parameters.values())
    if not _has_setup(function):
        parameters = parameters[1:]
    return [
        _symbolics.Parameter(each.name, True, _symbolics.REQUIRED if each.default is each.empty else each.default, "")
        for each in parameters
    ]


def _forward(function: Any, args: Sequence[Any]) -> Any:
    import torch

    with torch.no_grad():
        return function.forward(*args) if _has_setup(function) else function.forward(_Forward(), *args)


@dataclass(slots=True)
class _Made:
    operator: Any
    library: Any
    fake: Callable[..., Any] | None = None


_made: dict[Any, _Made] = {}


def operator_of(function: Any, fake: Callable[..., Any] | None) -> Any:
    """Returns the operator that stands for an autograd Function in an export; made once for each class.

    Args:
        function: The class.
        fake: What gives the results of ``forward`` in shape and type alone; None: ``forward`` itself does.
    """
    import torch

    with _lock:
        if function in _made:
            _made[function].fake = fake
            return _made[function].operator
        word = re.sub(r"\W", "_", f"{function.__module__}_{function.__qualname__}_{len(_made)}")
        library = torch.library.Library(_NAMESPACE, "FRAGMENT")
        library.define(f"{word}{_SCHEMA}")

        def run(tensors: list[Any], ints: list[int], floats: list[float], layout: str) -> list[Any]:
            return _listed(_forward(function, _unpacked(tensors, ints, floats, layout)), tensors)

        def run_fake(tensors: list[Any], ints: list[int], floats: list[float], layout: str) -> list[Any]:
            args = _unpacked(tensors, ints, floats, layout)
            own = _made[function].fake
            try:
                return _listed(_forward(function, args) if own is None else own(*args), tensors)
            except Exception as error:  # the user's own code, on tensors without values
                raise UsageError(
                    f"the results of {function.__qualname__}.forward have no shape without values: "
                    f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
                    hint=f"Say what they are like: rewrites.symbolic({function.__qualname__}, fake=function), "
                    "which takes the same arguments and returns torch.empty(...) of the right shape.",
                ) from error

        library.impl(word, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{_NAMESPACE}::{word}", run_fake, lib=library)
        operator = getattr(getattr(torch.ops, _NAMESPACE), word).default
        _made[function] = _Made(operator, library, fake)
        return operator


def _listed(result: Any, inputs: Sequence[Any]) -> list[Any]:
    import torch

    found = list(result) if isinstance(result, (tuple, list)) else [result]
    wrong = next((each for each in found if not isinstance(each, torch.Tensor)), None)
    if wrong is not None:
        raise UsageError(f"forward returns {type(wrong).__name__} among its results, and only tensors can be exported")
    return [each.clone() if any(each is other for other in inputs) else each for each in found]


def routed(function: Any, operator: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    """Returns what is called in place of ``function.apply``: in an export by the default exporter, the operator."""
    import torch

    def call(cls: Any, *args: Any) -> Any:
        if cls is not function or not torch.compiler.is_exporting():
            return original(cls, *args)
        tensors, ints, floats, layout = _packed(function, args)
        results = operator(tensors, ints, floats, layout)
        return results[0] if len(results) == 1 else tuple(results)

    return call


def _packed(function: Any, args: Sequence[Any]) -> tuple[list[Any], list[Any], list[float], str]:
    import torch

    tensors: list[Any] = []
    ints: list[Any] = []
    floats: list[float] = []

    def pack(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            tensors.append(value)
            return "t"
        if value is None or isinstance(value, (bool, str)):
            return {"c": value}
        if isinstance(value, (int, torch.SymInt)):
            ints.append(value)
            return "i"
        if isinstance(value, float):
            floats.append(value)
            return "f"
        if isinstance(value, (list, tuple)):
            return [pack(each) for each in value]
        raise UnsupportedError(
            f"{function.__qualname__} is called with {type(value).__name__}, which no operator takes",
            hint="Tensors, numbers, texts, None and lists of them can be exported. Or rewrite what calls it: "
            "@rewrites.function('package.Class.forward').",
        )

    layout = [pack(each) for each in args]
    return tensors, ints, floats, json.dumps(layout)


def _unpacked(tensors: Sequence[Any], ints: Sequence[Any], floats: Sequence[float], layout: str) -> list[Any]:
    left = {"t": iter(tensors), "i": iter(ints), "f": iter(floats)}

    def unpack(said: Any) -> Any:
        if isinstance(said, list):
            return [unpack(each) for each in said]
        return said["c"] if isinstance(said, dict) else next(left[said])

    return [unpack(each) for each in json.loads(layout)]


def function_translation(body: _symbolics.Body, fire: Callable[[], None]) -> Callable[..., Any]:
    """Returns what the default exporter calls to translate the operator of an autograd Function."""

    def translate(tensors: Any, ints: Any, floats: Any, layout: str) -> Any:
        fire()
        made = _symbolics.translated(body, body.values(_unpacked(tensors, ints, floats, layout), {}))
        return list(made) if isinstance(made, (list, tuple)) else [made]

    return translate


def function_symbolic(
    body_of: Callable[[int, int], tuple[_symbolics.Body, Callable[[], None]] | None], previous: Any
) -> Callable[..., Any]:
    """Returns what the TorchScript exporter takes as ``symbolic`` of an autograd Function."""

    def translate(g: Any, *args: Any) -> Any:
        found = body_of(g.opset, len(args))
        if found is None:
            if previous is None:
                raise UnsupportedError("an autograd Function has no symbolic, and no rewrite is active in this thread")
            return previous(g, *args)
        body, fire = found
        fire()
        return _torchscript.scripted(g, body, body.values(args, {}))

    return translate
