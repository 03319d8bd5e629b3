"""Rewrites of PyTorch code for an export: other functions, other modules, other ONNX nodes, by backend.

    from onnxbench import RewriteContext, rewrites

    @rewrites.function("torch.Tensor.repeat", backend="tensorrt")
    def repeat(ctx, tensor, *sizes): ...

    @rewrites.module("package.Norm")
    class Norm(torch.nn.Module):
        def __init__(self, ctx, module): ...

    @rewrites.symbolic("aten::asinh")
    def asinh(x): return op.Asinh(x)

    with RewriteContext(module, backend="tensorrt", rewrites=["my_rewrites.py"]) as ctx:
        torch.onnx.export(ctx.module, args, custom_translation_table=ctx.translations)

A decorator says where a rewrite belongs, and gives back what it decorates; nothing is switched on by that. A context
chooses: for one target, a rewrite for the backend beats one for all, and the user's own beat those that come along.
"""

from __future__ import annotations

import inspect
import json
import linecache
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from onnxbench.errors import NotFoundError, UsageError, did_you_mean
from onnxbench.pytorch import _symbolics, require_torch
from onnxbench.pytorch.sources import is_library, run_file

Kind = Literal["function", "module", "symbolic"]
BACKENDS = ("default", "onnxruntime", "tensorrt")
"""Backends that everybody knows; ``rewrites.register_backend`` adds others."""
_known_backends = dict.fromkeys(BACKENDS)
_MADE = "__onnxbench_rewrites__"
"""Where rewrites are kept: on what was decorated, and in the globals of the module that did it."""
SHIPPED = "shipped"
"""The word for all rewrites that come along."""
_HOME = Path(__file__).parent


@dataclass(frozen=True, slots=True, eq=False)
class Rewrite:
    """One rewrite of one target.

    Attributes:
        kind: ``function``, ``module`` or ``symbolic``.
        target: A dotted name, ``domain::op``, or what it stands for.
        apply: What takes its place: a function or class, or, of a symbolic, ONNX text.
        backends: The backends that it is for; None: all.
        place: Where it is written: ``file.py:12``.
        opset: The lowest opset that a symbolic is for; None: any.
        subclasses: Whether instances of subclasses are replaced too.
        fake: What gives the shapes of an autograd Function's results.
        is_shipped: Whether it comes along with onnxbench.
        asked_as: Of one that comes along: the name by which it was asked for; empty where all of them were.
    """

    kind: Kind
    target: Any
    apply: Any
    backends: tuple[str, ...] | None
    place: str
    opset: int | None = None
    subclasses: bool = False
    fake: Callable[..., Any] | None = None
    is_shipped: bool = False
    asked_as: str = ""

    @property
    def name(self) -> str:
        """Its target in words: ``torch.Tensor.repeat``, ``aten::asinh``."""
        if isinstance(self.target, str):
            return self.target
        if isinstance(self.target, type):
            return f"{self.target.__module__}.{self.target.__qualname__}"
        return str(self.target)

    @property
    def label(self) -> str:
        """Its kind and target, for messages."""
        return f"the {self.kind} rewrite of {self.name}"


@dataclass(frozen=True, slots=True)
class RewriteInfo:
    """What a rewrite gets as its first argument.

    Attributes:
        origin: The original: the function, or the module that is to be replaced. It is that one also where other
            rewrites are active.
        backend: The backend that is exported for.
        config: What the user gave: ``--rewrite-config key=value``.
        opset: The opset of the file; None: the exporter's own.
    """

    origin: Any
    backend: str
    config: Mapping[str, Any]
    opset: int | None = None

    def warn(self, message: str, *, hint: str | None = None) -> None:
        """Tells the user what a rewrite decided: a finding of the export, with the line of the model's code.

        Args:
            message: What happened, in one sentence.
            hint: What to do.
        """
        frame: Any = sys._getframe(1)
        while frame.f_back is not None and (
            is_library(frame.f_code.co_filename) or Path(frame.f_code.co_filename).is_relative_to(_HOME)
        ):
            frame = frame.f_back
        place = frame.f_code.co_filename, frame.f_lineno
        warnings.warn_explicit(RewriteWarning(message, hint), RewriteWarning, *place)


class RewriteWarning(UserWarning):
    """What a rewrite decided and a user may not expect (``ctx.warn``).

    Attributes:
        message: What happened, in one sentence.
        hint: What to do.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


class Rewrites:
    """Says what replaces what in an export: ``rewrites`` is the one of it."""

    def function(self, *targets: str, backend: str | Sequence[str] | None = None) -> Callable[[Any], Any]:
        """Returns a decorator: the function is called in place of the targets, as ``(ctx, *args, **kwargs)``.

        ``ctx.origin`` is the original; a call of the target by its name within the rewrite reaches the original too.

        Args:
            targets: Dotted names of functions and methods: ``torch.topk``, ``package.Class.forward``.
            backend: The backend that it is for, or several; None: all.

        Raises:
            UsageError: A name or backend is none, or the function does not take ``ctx``.
        """
        frame = sys._getframe(1)
        if not targets or not all(isinstance(each, str) for each in targets):
            raise UsageError(
                "rewrites.function takes the dotted name of what is replaced",
                hint="Write @rewrites.function('torch.Tensor.repeat').",
            )
        backends = _backends(backend)

        def decorate(function: Any) -> Any:
            place = _place(function, frame)
            _require_ctx(function, place, "a function rewrite gets (ctx, *args, **kwargs)")
            return _kept(function, [Rewrite("function", each, function, backends, place) for each in targets], frame)

        return decorate

    def module(
        self, *targets: str | type, backend: str | Sequence[str] | None = None, subclasses: bool = False
    ) -> Callable[[Any], Any]:
        """Returns a decorator: instances of the targets are replaced by what ``(ctx, module)`` gives.

        The class or function gets the instance, shares its parameters, and returns another module, or the instance
        itself to leave it as it is.

        Args:
            targets: Dotted names of classes, or classes.
            backend: The backend that it is for, or several; None: all.
            subclasses: Replace instances of subclasses too.

        Raises:
            UsageError: A name or backend is none, or what is decorated does not take ``ctx`` and a module.
        """
        frame = sys._getframe(1)
        if not targets or not all(isinstance(each, (str, type)) for each in targets):
            raise UsageError(
                "rewrites.module takes the class that is replaced, or its dotted name",
                hint="Write @rewrites.module('package.Class').",
            )
        backends = _backends(backend)

        def decorate(made: Any) -> Any:
            place = _place(made, frame)
            _require_ctx(made, place, "a module rewrite gets (ctx, module)", exactly=2)
            return _kept(
                made, [Rewrite("module", each, made, backends, place, subclasses=subclasses) for each in targets], frame
            )

        return decorate

    def symbolic(
        self,
        target: Any,
        text: str | None = None,
        *,
        backend: str | Sequence[str] | None = None,
        opset: int | None = None,
        fake: Callable[..., Any] | None = None,
    ) -> Any:
        """Returns a decorator: an operator becomes what the onnxscript function does; with a text, a rewrite.

        The function takes the operator's arguments, tensors as ONNX values and the rest as Python values. The inputs
        of a text are the operator's tensors in order, or its arguments of those names; its attributes are arguments.

        Args:
            target: ``domain::op``, ``domain::op.overload``, ``torch.ops.domain.op``, or an autograd Function (the
                class, or its dotted name).
            text: One ONNX text function.
            backend: The backend that it is for, or several; None: all.
            opset: The lowest opset that it is for. Of several for one operator, the highest that the file has counts.
            fake: For an autograd Function whose ``forward`` needs values: takes its arguments, and returns tensors
                that have the shape and type of its results.

        Raises:
            UsageError: The target or a backend is none.
            SpecError: The text does not parse; the line is named.
        """
        frame = sys._getframe(1)
        backends = _backends(backend)
        if not (isinstance(target, (str, type)) or hasattr(target, "overloads") or hasattr(target, "_schema")):
            raise UsageError(
                f"rewrites.symbolic takes an operator or an autograd Function, and not {type(target).__name__}",
                hint="Write 'aten::asinh', torch.ops.my.op.default, or the class.",
            )
        if isinstance(target, str) and "::" not in target and "." not in target:
            raise UsageError(f"{target!r} is no operator", hint=f"Write domain::op, such as aten::{target}.")
        if text is None:

            def decorate(function: Any) -> Any:
                if isinstance(function, str):
                    raise UsageError("the text of a symbolic is its second argument", hint="symbolic(target, text)")
                place = _place(function, frame)
                made = Rewrite("symbolic", target, function, backends, place, opset=opset, fake=fake)
                return _kept(function, [made], frame)

            return decorate
        line = _text_line(frame, text)
        file = frame.f_code.co_filename
        function = _symbolics.read_text(text, file, line)
        made = Rewrite("symbolic", target, function, backends, f"{file}:{frame.f_lineno}", opset=opset, fake=fake)
        _remember(frame, [made])
        return made

    def register_backend(self, name: str) -> None:
        """Makes a word a backend that rewrites can be for.

        Raises:
            UsageError: It is no word.
        """
        if not name.replace("-", "_").isidentifier():
            raise UsageError(f"{name!r} is no name of a backend", hint="Use letters, digits, - and _.")
        _known_backends.setdefault(name)

    def shipped(self) -> dict[str, list[Rewrite]]:
        """Returns the rewrites that come along, by the name that ``--rewrites`` takes."""
        return {name: _shipped(name) for name in _shipped_names()}


rewrites = Rewrites()
"""``rewrites.function``, ``rewrites.module`` and ``rewrites.symbolic`` say what replaces what in an export."""


def _backends(given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    words = (given,) if isinstance(given, str) else tuple(given)
    for word in words:
        require_backend(word)
    return words


def require_backend(word: str) -> None:
    """Raises a UsageError if a backend is unknown."""
    if word not in _known_backends:
        raise UsageError(
            f"there is no backend {word!r}",
            hint=did_you_mean(word, _known_backends)
            or f"Known are {', '.join(_known_backends)}; rewrites.register_backend({word!r}) adds yours.",
        )


def _place(made: Any, frame: Any) -> str:
    code = getattr(getattr(made, "function", made), "__code__", None)
    if code is not None:
        return f"{code.co_filename}:{code.co_firstlineno}"
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _text_line(frame: Any, text: str) -> int:
    """Returns the line of a file that a text begins at: where it stands there, else that of the call."""
    code = "".join(linecache.getlines(frame.f_code.co_filename))
    at = code.find(text)
    return code.count("\n", 0, at) + 1 if at >= 0 else int(frame.f_lineno)


def _require_ctx(made: Any, place: str, rule: str, *, exactly: int | None = None) -> None:
    """Raises a UsageError if what is decorated cannot be called as a rewrite is."""
    if not callable(made):
        raise UsageError(f"{place}: {type(made).__name__} cannot be called", hint=f"{rule[0].upper()}{rule[1:]}.")
    try:
        signature = inspect.signature(made)
    except (TypeError, ValueError):
        return
    try:
        if exactly is None:
            by_place = [each for each in signature.parameters.values() if each.kind != each.KEYWORD_ONLY]
            if not by_place or by_place[0].kind is by_place[0].VAR_KEYWORD:
                raise TypeError
        else:
            signature.bind(*[None] * exactly)
    except TypeError:
        name = getattr(made, "__name__", type(made).__name__)
        raise UsageError(f"{place}: {name}{signature} cannot be a rewrite: {rule}") from None


def _kept(made: Any, found: list[Rewrite], frame: Any) -> Any:
    before = vars(made).get(_MADE, ()) if hasattr(made, "__dict__") else ()
    setattr(made, _MADE, (*before, *found))
    _remember(frame, found)
    return made


def _remember(frame: Any, found: Sequence[Rewrite]) -> None:
    """Keeps rewrites that a module makes while it is imported, so that a file can be named for all of its own."""
    if frame.f_code.co_name == "<module>":
        frame.f_globals.setdefault(_MADE, []).extend(found)


# ---------------------------------------------------------------- where rewrites come from


def load_rewrites(given: Any) -> list[Rewrite]:
    """Returns the rewrites that something stands for.

    Args:
        given: A file of Python code, the name of one that comes along, ``shipped`` for all of them, a module, a
            ``Rewrite``, or what was decorated.

    Raises:
        NotFoundError: There is no such file or name.
        UsageError: It is or has no rewrite.
        ExecutionError: The file failed; its line is named.
    """
    if isinstance(given, Rewrite):
        return [given]
    if isinstance(given, (str, Path)):
        return _named(str(given))
    if isinstance(given, ModuleType):
        found = list(vars(given).get(_MADE, ()))
        if not found:
            raise UsageError(f"{given.__name__} has no rewrites", hint="Decorate them: @rewrites.function(...).")
        return found
    found = list(vars(given).get(_MADE, ())) if hasattr(given, "__dict__") else []
    if not found:
        raise UsageError(
            f"{getattr(given, '__name__', type(given).__name__)} is no rewrite",
            hint="Give a file, what @rewrites.function, module or symbolic decorated, or a name that comes along.",
        )
    return found


def _named(name: str) -> list[Rewrite]:
    if name.endswith(".py"):
        file = Path(name)
        if not file.is_file():
            raise NotFoundError(f"there is no file {name}")
        module = run_file(file)
        found = list(vars(module).get(_MADE, ()))
        if not found:
            raise UsageError(f"{name} has no rewrites", hint="Decorate them: @rewrites.function('package.function').")
        return found
    known = _shipped_names()
    if name == SHIPPED:
        return [each for word in known for each in _shipped(word)]
    word = name.removeprefix(f"{SHIPPED}:").replace("-", "_")
    if word in known:
        return [replace(each, asked_as=word) for each in _shipped(word)]
    raise NotFoundError(
        f"there are no rewrites {name!r}",
        hint=did_you_mean(name, [*known, SHIPPED]) or f"Give a file.py, {SHIPPED!r}, or one of {', '.join(known)}.",
    )


def _shipped_names() -> list[str]:
    folder = Path(__file__).with_name("shipped")
    return sorted(file.stem for file in folder.glob("*.py") if not file.stem.startswith("_"))


def _shipped(name: str) -> list[Rewrite]:
    from importlib import import_module

    require_torch("a rewrite")
    module = import_module(f"onnxbench.pytorch.shipped.{name}")
    return [replace(each, is_shipped=True) for each in vars(module).get(_MADE, ())]


def parse_config(words: Sequence[str]) -> dict[str, Any]:
    """Returns ``key=value`` words as a dict: numbers, lists, true and false as JSON, the rest as text.

    Raises:
        UsageError: A word is none.
    """
    found: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageError(f"{word!r} is not understood", hint="Write key=value.")
        if key in found:
            raise UsageError(f"{key!r} is given twice")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found
