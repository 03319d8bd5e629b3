"""Marks in PyTorch code: points with names that an exported model keeps.

    from onnxbench import mark

    @mark("detector_forward", inputs=["input"], outputs=["dets", "labels"])
    def forward(self, x): ...

    feats = mark.tensor(feats, "neck")

    with marked(model.backbone, "backbone", outputs=["feats"]):
        torch.onnx.export(model, args, custom_translation_table=translation_table())

Outside of an export a marked function is called as it is, after one look whether an export runs. In an export every
tensor that goes in or comes out passes through a Mark node, in lists, tuples, dicts and dataclasses too: their names
get suffixes (``pred_maps.0``). What is no tensor is passed on. The n-th call of a function in one export has number n,
from 0; a new export begins where PyTorch makes a new tracer.

Whether an export runs: ``torch.compiler.is_exporting`` says so for all of ``torch.export``, on which the default
exporter is built; ``torch.onnx.is_in_onnx_export`` says so under the TorchScript one, where marks are made only after
``register``, because an operator without a symbolic would end the export. torch is imported by whoever has tensors;
here, nothing does before the first mark in an export.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from onnxbench.errors import UsageError
from onnxbench.marks import add_functions, marks
from onnxbench.pytorch import require_torch

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.nn import Module

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

_OWN_ATTRIBUTES = frozenset({"func", "func_id", "type", "name", "id", "dtype", "shape"})
_state = {"torchscript": False}
_probes: list[Callable[[], bool]] = []


class Marker:
    """Marks functions, methods and tensors: ``mark`` is the one of it.

    ``@mark("detector_forward", inputs=["input"], outputs=["dets", "labels"])`` marks a function or method,
    ``mark.tensor(x, "neck")`` a value inside of one. Outside of an export to ONNX both do nothing (docs/marks.md).
    """

    def __call__(
        self,
        name: str | Callable[..., Any] | None = None,
        inputs: Sequence[str] | str | None = None,
        outputs: Sequence[str] | str | None = None,
        **attributes: Any,
    ) -> Any:
        """Returns a decorator that marks what goes into a function and what comes out.

        Args:
            name: What its points are called; by default the function's own name.
            inputs: Names of the tensors that go in. As many as the function has parameters (``self`` aside): one for
                each. Otherwise they go, in order, to the arguments that hold tensors. None: the parameters' names; an
                empty list: inputs are not marked.
            outputs: Names of what comes out, one for each part; one text (or a single name) is the name of it all,
                to which parts add ``.0`` or ``.key``. None: the name of the function; an empty list: not marked.
            attributes: Further attributes of the Mark nodes: numbers, texts, and lists of one kind of them.

        Raises:
            UsageError: An attribute has a name of a Mark's own, or a value that ONNX has no kind of attribute for. At
                an export: there are more tensors than names.
        """
        text = _as_text(attributes)
        if callable(name):
            return _decorated(name, None, inputs, outputs, text)

        def decorate(function: F) -> F:
            return _decorated(function, name, inputs, outputs, text)

        return decorate

    def tensor(self, value: T, name: str, **attributes: Any) -> T:
        """Returns a tensor, or a structure of them, as it was; in an export, behind a Mark.

        Its point is ``name:output``, the n-th time ``name[n]:output``.

        Args:
            value: The tensor.
            name: What the point is called.
            attributes: As for ``mark``.
        """
        if not is_exporting():
            return value
        walk = _Walk(name, _calls.next(name, [value]), "output", _as_text(attributes))
        made: T = walk.mark(value, name)
        return made


mark = Marker()
"""Marks functions and methods (``@mark(...)``) and values inside of them (``mark.tensor``)."""


@contextmanager
def marked(
    module: Module,
    name: str,
    inputs: Sequence[str] | str | None = None,
    outputs: Sequence[str] | str | None = None,
    *,
    method: str = "forward",
    **attributes: Any,
) -> Iterator[Module]:
    """Marks what goes into a module and comes out, while the block lasts; its class is not touched.

    Args:
        module: The module, or any other object.
        name: What its points are called.
        inputs: As for ``mark``.
        outputs: As for ``mark``.
        method: Which of its methods is marked.
        attributes: As for ``mark``.

    Raises:
        UsageError: As ``mark``.
    """
    own = vars(module)
    before = own.get(method)
    had = method in own
    own[method] = mark(name, inputs=inputs, outputs=outputs, **attributes)(getattr(module, method))
    try:
        yield module
    finally:
        if had:
            own[method] = before
        else:
            own.pop(method, None)


def is_exporting() -> bool:
    """Tells whether an export runs in which marks are made."""
    asked = _probes or _find_probes()
    if not asked:
        return False
    return asked[0]() or (_state["torchscript"] and asked[1]() and asked[2]())


def _find_probes() -> list[Callable[[], bool]]:
    """Finds what tells whether an export runs, once: to look it up costs more than to ask it."""
    torch = sys.modules.get("torch")
    if torch is not None:
        _probes.extend((torch.compiler.is_exporting, torch.onnx.is_in_onnx_export, torch.jit.is_tracing))
    return _probes


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Returns what ``torch.onnx.export(..., custom_translation_table=...)`` needs to keep marks.

    Without it, an export of marked code shows no marks. ``finish`` the file afterwards.

    Raises:
        MissingDependencyError: torch or onnxscript is not installed.
    """
    require_torch("a mark in an export")
    from onnxbench.pytorch import _mark_operator

    return _mark_operator.translations()


def register() -> None:
    """Makes ``torch.onnx.export(..., dynamo=False)``, the TorchScript exporter, keep marks from now on.

    Raises:
        MissingDependencyError: torch or onnxscript is not installed.
    """
    require_torch("a mark in an export")
    from onnxbench.pytorch import _mark_operator

    if not _state["torchscript"]:
        _mark_operator.register()
        _state["torchscript"] = True


def unregister() -> None:
    """Makes the TorchScript exporter see no marks, as it was before ``register``."""
    from onnxbench.pytorch import _mark_operator

    if _state["torchscript"]:
        _state["torchscript"] = False
        _mark_operator.unregister()


@contextmanager
def registered() -> Iterator[None]:
    """Makes the TorchScript exporter keep marks within the block, and as before after it (see ``register``)."""
    before = _state["torchscript"]
    register()
    try:
        yield
    finally:
        if not before:
            unregister()


def finish(proto: ModelProto) -> ModelProto:
    """Gives an exported model's Marks a body (Identity), in place, so that any runtime runs it; returns that model.

    Do it last: an optimizer that sees the body inlines it, and the marks are gone.
    """
    from onnxbench.graph import GraphIndex

    for ref in marks(GraphIndex(proto)):
        ordered = sorted(ref.node.attribute, key=lambda each: each.name)
        copies = [type(each).FromString(each.SerializeToString()) for each in ordered]
        del ref.node.attribute[:]
        ref.node.attribute.extend(copies)
    return add_functions(proto)


# ---- calls


class _Calls(threading.local):
    """How often each name was called in the export that runs in this thread."""

    def __init__(self) -> None:
        self._tracer: Callable[[], object] = lambda: None
        self._counts: dict[str, int] = {}

    def next(self, name: str, values: Sequence[Any]) -> int:
        """Returns the number of this call."""
        torch = sys.modules["torch"]
        if torch.compiler.is_dynamo_compiling():  # strict export, which puts back what it changed: counts begin anew
            number = _strict_counts.get(name, 0)
            _strict_counts[name] = number + 1
            return number
        tracer = next(
            (each.fake_mode for value in values for each in _tensors(value) if hasattr(each, "fake_mode")), None
        )
        if tracer is None and not torch.compiler.is_exporting():
            tracer = torch._C._get_tracing_state()
        if tracer is not None and tracer is not self._tracer():
            self._counts = {}
            self._tracer = _reference(tracer)
        number = self._counts.get(name, 0)
        self._counts[name] = number + 1
        return number


def _reference(tracer: object) -> Callable[[], object]:
    try:
        return weakref.ref(tracer)
    except TypeError:  # TorchScript's state takes no weak references
        return lambda: tracer


_calls = _Calls()
_strict_counts: dict[str, int] = {}


def _decorated(
    function: F,
    name: str | None,
    inputs: Sequence[str] | str | None,
    outputs: Sequence[str] | str | None,
    attributes: str,
) -> F:
    called = name or str(getattr(function, "__name__", type(function).__name__))
    naming = _Naming(function, called, inputs, outputs)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not is_exporting():
            return function(*args, **kwargs)
        number = _calls.next(called, [*args, *kwargs.values()])
        args, kwargs = naming.mark_inputs(_Walk(called, number, "input", attributes), args, kwargs)
        return naming.mark_outputs(_Walk(called, number, "output", attributes), function(*args, **kwargs))

    return call  # type: ignore[return-value]


class _Naming:
    """The names of what goes into a function and comes out of it."""

    def __init__(
        self,
        function: Callable[..., Any],
        called: str,
        inputs: Sequence[str] | str | None,
        outputs: Sequence[str] | str | None,
    ) -> None:
        self._called = called
        self._inputs = (inputs,) if isinstance(inputs, str) else None if inputs is None else tuple(inputs)
        self._outputs = called if outputs is None else outputs if isinstance(outputs, str) else tuple(outputs)
        self._parameters: list[str] = []
        self._places: list[str] = []
        self._rest = ""
        self._is_fixed = True
        for parameter in _parameters(function):
            if parameter.kind is parameter.VAR_POSITIONAL:
                self._rest = parameter.name
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                self._is_fixed = False
            else:
                self._parameters.append(parameter.name)
                if parameter.kind is not parameter.KEYWORD_ONLY:
                    self._places.append(parameter.name)
        self._skipped = 1 if self._parameters[:1] in (["self"], ["cls"]) else 0

    def mark_inputs(
        self, walk: _Walk, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the arguments of a call, marked."""
        if self._inputs == ():
            return args, kwargs
        names, places = self._parameters, self._places
        told = list(args[: self._skipped])
        given = self._given(len(names) - self._skipped)
        for position, value in enumerate(args[self._skipped :], self._skipped):
            plain = places[position] if position < len(places) else f"{self._rest}.{position - len(places)}"
            told.append(self._marked(walk, value, plain, position - self._skipped, given))
        order = {name: position for position, name in enumerate(names)}
        words = dict(kwargs)
        for key in sorted(kwargs, key=lambda each: order.get(each, len(order))):
            words[key] = self._marked(walk, kwargs[key], key, order.get(key, len(order)) - self._skipped, given)
        return tuple(told), words

    def _given(self, parameters: int) -> _Given | None:
        if self._inputs is None:
            return None
        return _Given(self._inputs, by_place=self._is_fixed and len(self._inputs) == parameters)

    def _marked(self, walk: _Walk, value: Any, plain: str, position: int, given: _Given | None) -> Any:
        if not any(True for _ in _tensors(value)):
            return value
        name = plain if given is None else given.name(position, f"{self._called}: its inputs")
        return walk.mark(value, name)

    def mark_outputs(self, walk: _Walk, result: Any) -> Any:
        """Returns what a call gave, marked."""
        names = self._outputs
        if names == ():
            return result
        parts = parts_of(result)
        if isinstance(names, str):
            return walk.mark(result, names)
        if parts is None or (len(names) == 1 and len(parts) != 1):
            return walk.mark(result, names[0])
        given = _Given(names, by_place=len(names) == len(parts))
        made = []
        for position, (_, part) in enumerate(parts):
            holds = any(True for _ in _tensors(part))
            made.append(walk.mark(part, given.name(position, f"{self._called}: its outputs")) if holds else part)
        return _rebuilt(result, made)


class _Given:
    """Names that the user gave, for parts by their place or, where they are not as many, in order."""

    def __init__(self, names: Sequence[str], *, by_place: bool) -> None:
        self._names = names
        self._by_place = by_place
        self._next = 0

    def name(self, position: int, whose: str) -> str:
        if self._by_place:
            return self._names[position]
        if self._next == len(self._names):
            raise UsageError(
                f"mark: {whose} hold more tensors than the {len(self._names)} names that are given",
                hint=f"Given: {', '.join(self._names)}. Name all of them, or leave the names out.",
            )
        self._next += 1
        return self._names[self._next - 1]


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a function in C that tells nothing of itself
        return []


# ---- structures


class _Walk:
    """Marks the tensors of a structure, one Mark for each tensor, however often it stands there."""

    def __init__(self, function: str, call: int, side: str, attributes: str) -> None:
        self._operator = _operator()
        self._function, self._call, self._side = function, call, side
        self._attributes = attributes
        self._made: dict[int, tuple[Any, Any]] = {}

    def mark(self, value: Any, name: str) -> Any:
        """Returns a value with its tensors marked."""
        if _is_tensor(value):
            if id(value) not in self._made:
                number = len(self._made)
                passed = self._operator(
                    value, self._function, self._call, self._side, name, number, self._attributes
                )  # fmt: skip
                self._made[id(value)] = (value, passed)
            return self._made[id(value)][1]
        parts = parts_of(value)
        if not parts or not any(True for _ in _tensors(value)):
            return value
        return _rebuilt(value, [self.mark(part, f"{name}.{key}") for key, part in parts])


def _operator() -> Any:
    """Returns the operator that a mark is. Strict export traces this, and can follow no import."""
    if "onnxbench.pytorch._mark_operator" not in sys.modules:
        require_torch("a mark in an export")
        import onnxbench.pytorch._mark_operator  # noqa: F401 - it makes the operator
    return sys.modules["torch"].ops.onnxbench.mark


def _is_tensor(value: Any) -> bool:
    return isinstance(value, sys.modules["torch"].Tensor)


def parts_of(value: Any) -> list[tuple[Any, Any]] | None:
    """Returns the parts of a list, tuple, dict or dataclass with their keys; None for anything else."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [
            (each.name, getattr(value, each.name)) for each in dataclasses.fields(value) if hasattr(value, each.name)
        ]
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    return None


def _rebuilt(value: Any, parts: Sequence[Any]) -> Any:
    """Returns a structure like the given one, with other parts; the given one stays as it is."""
    if type(value) is list:  # strict export can follow no copying of lists and dicts but this
        return list(parts)
    if type(value) is dict:
        return dict(zip(value, parts, strict=True))
    if isinstance(value, tuple):
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    made: Any = copy.copy(value)
    if dataclasses.is_dataclass(value):
        for (name, before), part in zip(parts_of(value) or (), parts, strict=True):
            if part is not before:
                _set(made, name, part)
    elif isinstance(value, dict):
        for key, part in zip(value, parts, strict=True):
            made[key] = part
    else:
        made[:] = parts
    return made


def _set(holder: Any, name: str, value: Any) -> None:
    try:
        setattr(holder, name, value)
    except dataclasses.FrozenInstanceError:
        object.__setattr__(holder, name, value)


def _tensors(value: Any) -> Iterator[Any]:
    """Yields the tensors of a structure."""
    pending = [value]
    while pending:
        each = pending.pop()
        if _is_tensor(each):
            yield each
        else:
            pending.extend(part for _, part in reversed(parts_of(each) or ()))


def _as_text(attributes: Mapping[str, Any]) -> str:
    """Returns further attributes in the form in which the operator takes them: JSON."""
    if not attributes:
        return "{}"
    for name, value in attributes.items():
        if name in _OWN_ATTRIBUTES:
            raise UsageError(f"mark: {name!r} is an attribute that every Mark has", hint="Choose another name.")
        parts = list(value) if isinstance(value, (list, tuple)) else [value]
        kinds = {bool if isinstance(part, bool) else type(part) for part in parts}
        if not kinds <= {bool, int} and kinds not in ({float}, {str}):
            raise UsageError(
                f"mark: attribute {name!r} is {value!r}, which ONNX has no kind of attribute for",
                hint="Numbers, texts, and lists of one kind of them.",
            )
    return json.dumps({key: _plain(value) for key, value in sorted(attributes.items())})


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return int(value) if isinstance(value, bool) else value
