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

import copy
import inspect
import json
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, wraps
from pathlib import Path
from types import MappingProxyType, ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from onnxbench.errors import NotFoundError, UsageError, did_you_mean
from onnxbench.pytorch import _patching, _symbolics, require_torch
from onnxbench.pytorch._findings import Finding
from onnxbench.pytorch.sources import run_file

if TYPE_CHECKING:
    from torch.nn import Module

Kind = Literal["function", "module", "symbolic"]
BACKENDS = ("default", "onnxruntime", "tensorrt")
"""Backends that everybody knows; ``rewrites.register_backend`` adds others."""
_known_backends = dict.fromkeys(BACKENDS)
_MADE = "__onnxbench_rewrites__"
"""Where rewrites are kept: on what was decorated, and in the globals of the module that did it."""
SHIPPED = "shipped"
"""The word for all rewrites that come along."""


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
    import linecache

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
    word = name.replace("-", "_")
    if word in known:
        return [replace(each, is_shipped=False) for each in _shipped(word)]
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


# ---------------------------------------------------------------- the context


class RewriteContext:
    """Rewrites switched on while the block lasts, in this thread; everything is as it was afterwards.

    Attributes:
        module: The module to export: the one given, or what replaces it. Until the block begins, the one given.
        backend: The backend.
        config: What the user gave.
        opset: The opset of the file; None: the exporter's own.
        translations: The ``custom_translation_table`` of ``torch.onnx.export``.
        fired: How often each rewrite was used so far, 0 included, by its name; of a module rewrite, how many instances
            it replaced.
    """

    def __init__(
        self,
        module: Module | None = None,
        *,
        backend: str = "default",
        config: Mapping[str, Any] | None = None,
        rewrites: Sequence[Any] = (),
        opset: int | None = None,
    ) -> None:
        """Chooses the rewrites; nothing is changed yet.

        Args:
            module: The module that is exported. Its submodules are replaced where rewrites say so.
            backend: The backend that it is exported for.
            config: What the rewrites get as ``ctx.config``.
            rewrites: Files, names, modules, or what was decorated (see ``load_rewrites``).
            opset: The opset of the file; None: the exporter's own.

        Raises:
            MissingDependencyError: torch is not installed.
            UsageError: Something is no rewrite or backend, or two rewrites of one target are equally good.
            NotFoundError: There is no such file or name.
            ExecutionError: A file failed.
        """
        require_torch("a rewrite")
        given = [rewrites] if isinstance(rewrites, (str, Path)) else list(rewrites)
        found = list(dict.fromkeys(each for item in given for each in load_rewrites(item)))
        require_backend(backend)
        self.module: Any = module
        self.backend = backend
        self.config: Mapping[str, Any] = MappingProxyType(dict(config or {}))
        self.translations: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._given = module
        self.opset = opset
        self._chosen = _chosen(found, backend)
        self._counts = dict.fromkeys(self._chosen, 0)
        self._calls: dict[int, Callable[..., Any]] = {}
        self._bodies: dict[str, list[tuple[int, _symbolics.Body, Rewrite]]] = {}
        self._undo: list[Callable[[], None]] = []
        self._hidden: list[tuple[str, int, int]] = []
        self._entered = False

    @property
    def fired(self) -> Mapping[str, int]:
        """How often each rewrite was used, by its name."""
        found: dict[str, int] = {}
        for rewrite, count in self._counts.items():
            found[rewrite.name] = found.get(rewrite.name, 0) + count
        return found

    def used(self) -> list[Rewrite]:
        """Returns the rewrites that were used, in the order they were given."""
        return [each for each, count in self._counts.items() if count]

    def unused(self) -> list[Rewrite]:
        """Returns those that were not, without those of ``shipped``: they are there in case they are needed."""
        used = {each.name for each in self.used() if each.kind == "symbolic"}
        return [
            each for each, count in self._counts.items() if not count and not each.is_shipped and each.name not in used
        ]

    def hides(self, file: str, line: int) -> bool:
        """Tells whether a line is of a ``forward`` that a symbolic stands for: what it does is not in the graph."""
        return any(file == each and first <= line <= last for each, first, last in self._hidden)

    def replacement_of(self, patch: _patching.Patch) -> Callable[..., Any] | None:
        """Returns what is called in place of a patched callable, or None."""
        return self._calls.get(id(patch))

    def __enter__(self) -> Self:
        """Switches the rewrites on.

        Raises:
            NotFoundError: A target is not there.
            UsageError: A rewrite does not fit its target.
        """
        if self._entered:
            raise UsageError("a RewriteContext is entered once", hint="Make another one for another block.")
        self._entered = True
        try:
            self._swap()
            self._patch()
            self._translate()
            _patching.active.set((*_patching.active.get(), self))
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Puts everything back."""
        self._restore()

    def _restore(self) -> None:
        _patching.active.set(tuple(each for each in _patching.active.get() if each is not self))
        self.module = self._given
        try:
            while self._undo:
                self._undo.pop()()
        finally:
            if self._undo:  # one failed: the others all the same
                self._restore()
        self._calls.clear()

    def _info(self, origin: Any) -> RewriteInfo:
        return RewriteInfo(origin, self.backend, self.config, self.opset)

    def _firing(self, rewrite: Rewrite) -> Callable[[], None]:
        def fire() -> None:
            self._counts[rewrite] += 1

        return fire

    # functions

    def _patch(self) -> None:
        patches: list[_patching.Patch] = []
        owners: dict[Rewrite, _patching.Patch] = {}
        for rewrite in self._chosen:
            if rewrite.kind != "function" or _is_out_of_reach(rewrite, rewrite.target):
                continue
            try:
                patch = _patching.patch_of(rewrite.target)
            except NotFoundError:
                if rewrite.is_shipped:
                    continue
                raise
            other = next((each for each, known in owners.items() if _patching.is_same(known, patch)), None)
            if other is not None and other.apply is rewrite.apply:
                continue
            owners[rewrite] = patch
            if other is not None:
                raise UsageError(f"{rewrite.target} and {patch.target} are one function, and both are rewritten")
            _require_signature(rewrite, patch.original)
            self._calls[id(patch)] = self._replacement(rewrite, patch.original)
            patches.append(patch)
        self._put([each for each in patches if not _patching.is_indexing(each)])
        indexing = [each for each in patches if _patching.is_indexing(each)]
        if indexing:
            self._undo.append(_patching.catch_indexing(indexing))

    def _put(self, patches: list[_patching.Patch]) -> None:
        if patches:
            modules = [] if self._given is None else list(self._given.modules())
            _patching.apply(patches, modules)
            self._undo.append(lambda: _patching.revert(patches))

    def _replacement(self, rewrite: Rewrite, original: Callable[..., Any]) -> Callable[..., Any]:
        info, function = self._info(original), rewrite.apply

        def call(*args: Any, **kwargs: Any) -> Any:
            self._counts[rewrite] += 1
            return function(info, *args, **kwargs)

        return call

    # modules

    def _swap(self) -> None:
        torch = require_torch()
        wanted = [each for each in self._chosen if each.kind == "module"]
        kinds: list[tuple[type, Rewrite]] = []
        for rewrite in wanted:
            if _is_out_of_reach(rewrite, rewrite.name):
                continue
            kind = _patching.resolve(rewrite.target)[2] if isinstance(rewrite.target, str) else rewrite.target
            if not (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
                hint = "rewrites.function replaces functions and methods." if callable(kind) else None
                raise UsageError(f"{rewrite.name} is no class of modules", hint=hint)
            kinds.append((kind, rewrite))
        if not kinds or not isinstance(self._given, torch.nn.Module):
            return
        with _swap_lock:
            known: dict[int, _StandIn | None] = {}
            for parent, name, module in _slots(self._given):
                fitting = _fitting(type(module), kinds)
                if fitting is None:
                    continue
                if id(module) not in known:
                    made = self._made(fitting, module, torch)
                    below = module if parent is None else parent._modules[name]
                    known[id(module)] = None if made is module else _StandIn(self, made, below)
                    if (new := known[id(module)]) is not None:
                        self._undo.append(new.take_away)
                record = known[id(module)]
                if record is not None and parent is not None:
                    record.hang(parent, name)
                elif record is not None:
                    self.module = record.made

    def _made(self, rewrite: Rewrite, module: Any, torch: Any) -> Any:
        made = rewrite.apply(self._info(module), module)
        if not isinstance(made, torch.nn.Module):
            raise UsageError(
                f"{rewrite.label} ({rewrite.place}) gave {type(made).__name__}, and not a module",
                hint="Return a torch.nn.Module, or the module itself to leave it as it is.",
            )
        if made is module:
            return module
        if any(made is each for each in module.modules()):
            made = copy.copy(made)  # the original still calls it as its own
        made.train(module.training)
        self._counts[rewrite] += 1
        return made

    # operators

    def _translate(self) -> None:
        torch = require_torch()
        from torch.onnx import _constants  # the default opset has no public name

        opset = self.opset if self.opset is not None else int(_constants.ONNX_DEFAULT_OPSET)
        functions: dict[Any, list[Rewrite]] = {}
        operators: dict[Any, list[Rewrite]] = {}
        for rewrite in self._chosen:
            if rewrite.kind != "symbolic":
                continue
            target = rewrite.target
            if isinstance(target, str) and "::" not in target:
                if _is_out_of_reach(rewrite, target):
                    continue
                target = _patching.resolve(target)[2]
            if isinstance(target, type):
                if not issubclass(target, torch.autograd.Function):
                    raise UsageError(
                        f"{rewrite.name} is no autograd Function",
                        hint="rewrites.module replaces modules, rewrites.function functions and methods.",
                    )
                functions.setdefault(target, []).append(rewrite)
                continue
            if not (isinstance(target, str) or hasattr(target, "overloads") or hasattr(target, "_schema")):
                raise UsageError(
                    f"{rewrite.name} is neither an operator nor an autograd Function",
                    hint="rewrites.function replaces functions and methods.",
                )
            try:
                fitting = self._fitting_operators(rewrite, target)
            except NotFoundError:
                if rewrite.is_shipped:
                    continue
                raise
            for operator in fitting:
                operators.setdefault(operator, []).append(rewrite)
        for operator, found in operators.items():
            self._translate_operator(operator, found, opset)
        self._translate_functions(functions, opset)

    def _fitting_operators(self, rewrite: Rewrite, target: Any) -> list[Any]:
        """Returns the overloads of an operator whose arguments a rewrite takes: at least one of them."""
        found = _symbolics.operators_of(target)
        fitting = []
        problems = []
        for operator in found:
            try:
                self._body(rewrite, _symbolics.parameters_of(operator))
            except UsageError as error:
                problems.append(error)
            else:
                fitting.append(operator)
        if not fitting:
            raise problems[0]
        return fitting

    def _translate_operator(self, operator: Any, found: Sequence[Rewrite], opset: int) -> None:
        parameters = _symbolics.parameters_of(operator)
        bodies = [(each.opset or 0, self._body(each, parameters), each) for each in found]
        chosen = _for_opset(bodies, max(opset, 18))
        if chosen is not None:
            self.translations[operator] = _symbolics.translation(chosen[1], self._firing(chosen[2]))
        name = operator._schema.name
        if name not in self._bodies:
            self._undo.append(_symbolics.register_symbolic(name, _active_body))
        self._bodies.setdefault(name, []).extend(bodies)

    def _translate_functions(self, functions: Mapping[Any, Sequence[Rewrite]], opset: int) -> None:
        patches = []
        for function, found in functions.items():
            parameters = _symbolics.function_parameters(function)
            bodies = [(each.opset or 0, self._body(each, parameters), each) for each in found]
            name = f"{function.__module__}.{function.__qualname__}"
            self._bodies[name] = bodies
            code = function.forward.__code__
            last = max((each[2] for each in code.co_lines() if each[2] is not None), default=code.co_firstlineno)
            self._hidden.append((code.co_filename, code.co_firstlineno, last))
            chosen = _for_opset(bodies, max(opset, 18))
            if chosen is not None:
                operator = _symbolics.operator_of(function, chosen[2].fake)
                self.translations[operator] = _symbolics.function_translation(chosen[1], self._firing(chosen[2]))
                patch = _patching.patch_of_attribute(function, "apply", f"{name}.apply")
                self._calls[id(patch)] = _symbolics.routed(function, operator, patch.original)
                patches.append(patch)
            before = vars(function).get("symbolic")
            known = getattr(function, "symbolic", None)
            mine = _symbolics.function_symbolic(partial(_active_body, name), known)
            function.symbolic = staticmethod(mine)

            def undo(function: Any = function, before: Any = before) -> None:
                if before is None:
                    del function.symbolic
                else:
                    function.symbolic = before

            self._undo.append(undo)
        self._put(patches)

    def _body(self, rewrite: Rewrite, parameters: Sequence[_symbolics.Parameter]) -> _symbolics.Body:
        return _symbolics.make_body(f"{rewrite.label} ({rewrite.place})", parameters, rewrite.apply)

    def body_of(self, name: str, opset: int, count: int) -> tuple[_symbolics.Body, Callable[[], None]] | None:
        """Returns what an operator with so many arguments becomes at an opset, and what counts that."""
        known = self._bodies.get(name, ())
        chosen = _for_opset([each for each in known if len(each[1].parameters) == count] or known, opset)
        return None if chosen is None else (chosen[1], self._firing(chosen[2]))


def unused_findings(context: RewriteContext, *, is_strict: bool = False) -> list[Finding]:
    """Returns a finding for each rewrite that was switched on and never used.

    Args:
        context: What was switched on.
        is_strict: Whether the export is one of PyTorch's strict mode, which sees no rewritten functions.
    """
    why = {
        "function": "the model does not call it by that name while it is exported",
        "module": "the model has no instance of that class",
        "symbolic": "the exported program has no such operator",
    }
    found = []
    if is_strict:
        why["function"] = "PyTorch could export the model only in its strict mode, which no such rewrite reaches"
    missed = [each for each in context.used() if is_strict and each.kind == "function"]
    for rewrite in (*context.unused(), *missed):
        reason = why[rewrite.kind]
        if rewrite.opset is not None and context.opset is not None and rewrite.opset > context.opset:
            reason = f"it is for opset {rewrite.opset} and later, and this is an export to opset {context.opset}"
        found.append(
            Finding("unused-rewrite", f"{rewrite.label} was never used: {reason}", rewrite.place, hint=_hint(rewrite))
        )
    return found


def _hint(rewrite: Rewrite) -> str | None:
    if rewrite.kind == "function" and rewrite.name.startswith("torch.") and not rewrite.name.startswith("torch.nn"):
        torch, twin = require_torch(), rewrite.name.rpartition(".")[2]
        is_method = rewrite.name == f"torch.Tensor.{twin}"
        if hasattr(torch if is_method else torch.Tensor, twin):
            other = f"torch.{twin}" if is_method else f"torch.Tensor.{twin}"
            return f"Calls of {other} are another target: rewrites.function takes several."
    if rewrite.kind == "module" and not rewrite.subclasses:
        return "Instances of subclasses count with subclasses=True."
    return None


def _active_body(name: str, opset: int, count: int) -> tuple[_symbolics.Body, Callable[[], None]] | None:
    contexts = reversed(_patching.active.get())
    return next((found for each in contexts if (found := each.body_of(name, opset, count))), None)


def _for_opset(
    bodies: Sequence[tuple[int, _symbolics.Body, Rewrite]], opset: int
) -> tuple[int, _symbolics.Body, Rewrite] | None:
    fitting = [each for each in bodies if each[0] <= opset]
    return max(fitting, key=lambda each: each[0]) if fitting else None


def _chosen(found: Sequence[Rewrite], backend: str) -> list[Rewrite]:
    """Returns the rewrites for a backend, the best for each target.

    Raises:
        UsageError: Two are equally good.
    """
    best: dict[Any, Rewrite] = {}
    for rewrite in found:
        if rewrite.backends is not None and backend not in rewrite.backends:
            continue
        key = rewrite.kind, rewrite.name, rewrite.opset
        other = best.get(key)
        if other is None or _rank(rewrite) > _rank(other):
            best[key] = rewrite
        elif _rank(rewrite) == _rank(other) and rewrite.apply is not other.apply:
            raise UsageError(
                f"{rewrite.name} is rewritten twice"
                + (f" for {backend}" if rewrite.backends is not None else " for all backends"),
                details=[other.place, rewrite.place],
                hint="Leave one out, or say a backend of one of them.",
            )
    return [each for each in found if best.get((each.kind, each.name, each.opset)) is each]


def _rank(rewrite: Rewrite) -> tuple[bool, bool]:
    return not rewrite.is_shipped, rewrite.backends is not None


def _is_out_of_reach(rewrite: Rewrite, target: str) -> bool:
    """Tells whether a rewrite that comes along is for a package that nobody has imported."""
    return rewrite.is_shipped and target.split(".")[0] not in sys.modules


def _require_signature(rewrite: Rewrite, original: Callable[..., Any]) -> None:
    """Raises a UsageError if a rewrite cannot take what its target is called with."""
    try:
        theirs = list(inspect.signature(original).parameters.values())
        ours = list(inspect.signature(rewrite.apply).parameters.values())[1:]
    except (TypeError, ValueError):
        return
    kinds = inspect.Parameter
    by_place = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    has_more = any(each.kind is kinds.VAR_POSITIONAL for each in theirs)
    has_words = any(each.kind is kinds.VAR_KEYWORD for each in theirs)
    takes_more = any(each.kind is kinds.VAR_POSITIONAL for each in ours)
    takes_words = any(each.kind is kinds.VAR_KEYWORD for each in ours)
    names = [each.name for each in ours]
    placed, wanted = ([each for each in side if each.kind in by_place] for side in (ours, theirs))
    problem = ""
    if (
        not takes_more
        and len(placed) < len(wanted)
        and not (takes_words and all(each.default is not each.empty for each in wanted[len(placed) :]))
    ):
        problem = f"{wanted[len(placed)].name!r} is missing"
    needed = [each for each in placed if each.default is each.empty]
    if not has_more and len(needed) > len(wanted):
        problem = f"there is no {needed[len(wanted)].name!r}"
    for each in theirs:
        if each.kind is kinds.KEYWORD_ONLY and not takes_words and each.name not in names:
            problem = f"{each.name!r} is missing"
    if not has_words:
        strange = next(
            (each for each in ours if each.kind is kinds.KEYWORD_ONLY and each.default is each.empty
             and each.name not in [other.name for other in theirs]), None,
        )  # fmt: skip
        if strange is not None:
            problem = f"there is no {strange.name!r}"
    if problem:
        raise UsageError(
            f"{rewrite.place}: the rewrite of {rewrite.name} does not take what that is called with: {problem}",
            details=[
                f"it takes {inspect.signature(rewrite.apply)}", f"{rewrite.name} takes {inspect.signature(original)}"
            ],
            hint="Write (ctx, *args, **kwargs), or the parameters of the original after ctx.",
        )  # fmt: skip


# ---------------------------------------------------------------- modules replaced


_swap_lock = threading.RLock()
_stand_ins: weakref.WeakKeyDictionary[Any, _StandIn] = weakref.WeakKeyDictionary()


class _StandIn:
    """A module in place of another one, wherever that hangs.

    Another thread that runs the same model finds the stand-in there, and its ``forward`` calls what hung there before.
    Contexts of two threads may end in any order, so what is below may itself be a stand-in that is taken away.
    """

    def __init__(self, context: RewriteContext, made: Any, below: Any) -> None:
        self.context, self.made, self.below = context, made, below
        self.slots: list[tuple[Any, str]] = []
        own = made.forward

        @wraps(own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            call = own if context in _patching.active.get() else self.below
            return call(*args, **kwargs)

        made.forward = forward
        _stand_ins[made] = self

    def hang(self, parent: Any, name: str) -> None:
        """Puts the module into a place."""
        parent._modules[name] = self.made
        self.slots.append((parent, name))

    def take_away(self) -> None:
        """Puts back what was there, or takes the module out from under those that were put there since."""
        with _swap_lock:
            for parent, name in self.slots:
                top = parent._modules.get(name)
                if top is self.made:
                    parent._modules[name] = self.below
                    continue
                above = _stand_ins.get(top)
                while above is not None and above.below is not self.made:
                    above = _stand_ins.get(above.below)
                if above is not None:
                    above.below = self.below
            _stand_ins.pop(self.made, None)
            vars(self.made).pop("forward", None)


def _visible(module: Any) -> Any:
    """Returns the module that hangs in a place as this thread sees it."""
    record = _stand_ins.get(module)
    while record is not None and record.context not in _patching.active.get():
        module = record.below
        record = _stand_ins.get(module)
    return module


def _slots(root: Any) -> list[tuple[Any, str, Any]]:
    """Returns the places of modules, the deepest first: what holds one, under which name, and the module.

    So what is made of a module finds its submodules replaced. The root hangs nowhere: its place has no parent.
    """
    order: list[Any] = []
    seen: set[int] = set()
    pending = [(_visible(root), False)]
    while pending:
        module, is_done = pending.pop()
        if is_done:
            order.append(module)
        elif id(module) not in seen:
            seen.add(id(module))
            pending.append((module, True))
            pending += [(_visible(each), False) for each in module._modules.values() if each is not None]
    found = [
        (parent, name, _visible(each))
        for parent in order
        for name, each in list(parent._modules.items())
        if each is not None
    ]
    return [*found, (None, "", order[-1])]


def _fitting(kind: type, kinds: Sequence[tuple[type, Rewrite]]) -> Rewrite | None:
    """Returns the rewrite for a class: one for itself, else one for the nearest base that takes subclasses."""
    for base in kind.__mro__:
        for each, rewrite in kinds:
            if each is base and (base is kind or rewrite.subclasses):
                return rewrite
    return None
