"""Callables replaced by their dotted name, in one thread, wherever they are bound; and put back.

A callable is replaced by a dispatcher at every place that holds it: its class, or, for a function, every loaded module
that binds it (``from torch import topk``) and every attribute of the submodules at hand (``self.act = F.relu``). The
dispatcher looks which contexts are active in the thread that calls; where none is, it calls the original, so other
threads compute what they always did. Contexts may nest and overlap in any order: a patch is counted, and taken back
with the last one.

Four calls reach the original although a rewrite is active: those that the rewrite itself makes (for a method of a
class of the user's: on the same object, so that a block within a block is rewritten too), and those that PyTorch's own
tracing, decompositions and shape functions make, which are no code of the model.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Protocol

from onnxbench.errors import NotFoundError, UsageError, did_you_mean

_MISSING: Any = object()
_OWN = ("torch._tensor", "torch._jit_internal", "torch._VF", "torch._linalg_utils", "torch._lowrank")
"""Modules of PyTorch with an underscore through which a model's own calls go."""
_INTERNAL = (
    "torch._", "torch.export", "torch.fx", "torch.jit", "torch.library", "torch.onnx", "torch.utils", "onnxscript",
    "onnx_ir",
)  # fmt: skip


class Replacement(Protocol):
    """What an active context knows of a patch."""

    def replacement_of(self, patch: Patch) -> Callable[..., Any] | None:
        """Returns what is called in place of the original, or None."""
        ...


active: ContextVar[tuple[Any, ...]] = ContextVar("onnxbench_rewrites", default=())
"""The contexts that are active in this thread, outermost first."""
_busy: ContextVar[frozenset[tuple[int, int]]] = ContextVar("onnxbench_rewriting", default=frozenset())
_lock = threading.RLock()


@dataclass(slots=True, eq=False)
class Patch:
    """A callable that dispatches, and where it was put.

    Attributes:
        target: The dotted name under which it was asked for first.
        holder: The module, class or object that has it.
        name: Its name there.
        original: What a rewrite gets to call; for a class method, without the class.
        is_method: Whether it is a method of a class that is no tensor: then the guard looks at the object.
        count: How many contexts want it.
        sites: What was there before, by object and name.
        dispatcher: What is put there.
    """

    target: str
    holder: Any
    name: str
    original: Callable[..., Any]
    is_method: bool
    count: int = 0
    sites: list[tuple[Any, str, Any]] = field(default_factory=list)
    dispatcher: Any = None


_patches: list[Patch] = []
_dispatchers: dict[int, Patch] = {}


def resolve(target: str) -> tuple[Any, str, Any]:
    """Returns what holds the object of a dotted name, the last part of the name, and the object.

    Raises:
        NotFoundError: There is no such name; the message says up to where there is.
        UsageError: It is not a dotted name.
    """
    parts = target.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise UsageError(
            f"{target!r} is not a dotted name", hint="Write package.function, package.Class or package.Class.method."
        )
    holder: Any = None
    at = 0
    for end in range(len(parts) - 1, 0, -1):
        holder = _module(".".join(parts[:end]))
        if holder is not None:
            at = end
            break
    if holder is None:
        raise NotFoundError(
            f"there is no module {parts[0]!r}, so no {target!r}",
            hint=did_you_mean(parts[0], {name.split(".")[0] for name in sys.modules})
            or "Is it installed? The name of a file's module is that of the file, without .py.",
        )
    for part in parts[at:-1]:
        holder = _attribute(holder, part, target)
    return holder, parts[-1], _attribute(holder, parts[-1], target)


def _module(name: str) -> ModuleType | None:
    if name in sys.modules:
        return sys.modules[name]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            return None
        raise NotFoundError(f"{name} cannot be imported: {error}") from error
    except Exception as error:  # a package runs whatever it likes
        raise NotFoundError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error


def _attribute(holder: Any, name: str, target: str) -> Any:
    found = getattr(holder, name, _MISSING)
    if found is _MISSING:
        where = getattr(holder, "__qualname__", None) or getattr(holder, "__name__", None) or type(holder).__name__
        if isinstance(holder, type):
            where = f"{holder.__module__}.{where}"
        raise NotFoundError(f"{where} has no {name!r}, so there is no {target!r}", hint=did_you_mean(name, dir(holder)))
    return found


def patch_of(target: str) -> Patch:
    """Returns the patch of a dotted name: the one that is in force, or a new one, not yet put anywhere.

    Raises:
        NotFoundError: There is no such name.
        UsageError: It is no function or method, or one that cannot be replaced.
    """
    with _lock:
        holder, name, found = resolve(target)
        raw = _raw(holder, name, found)
        known = _dispatchers.get(id(getattr(raw, "__func__", raw)))
        if known is not None:
            return known
        if isinstance(found, type):
            raise UsageError(
                f"{target} is a class, and not a function or method",
                hint=f"Name a method ({target}.forward), or use rewrites.module({target!r}) to replace its instances.",
            )
        if not callable(found):
            raise UsageError(f"{target} is {type(found).__name__}, and not a function or method")
        return _patch(target, holder, name, found, raw)


def _patch(target: str, holder: Any, name: str, found: Any, raw: Any) -> Patch:
    is_class = isinstance(holder, type)
    original = raw.__func__ if isinstance(raw, (staticmethod, classmethod)) else raw if is_class else found
    if not callable(original):
        raise UsageError(f"{target} is {type(original).__name__}, and not a function or method")
    patch = Patch(target, holder, name, original, is_class and not _is_tensor(holder))
    dispatcher = _dispatcher(patch)
    wrap = type(raw) if isinstance(raw, (staticmethod, classmethod)) and is_class else None
    patch.dispatcher = wrap(dispatcher) if wrap is not None else dispatcher
    return patch


def is_same(one: Patch, other: Patch) -> bool:
    """Tells whether two patches replace the same callable: a function by two names, a method of one class."""
    if isinstance(one.holder, type) or isinstance(other.holder, type):
        return one.holder is other.holder and one.name == other.name
    return one.original is other.original


def patch_of_attribute(holder: type, name: str, target: str) -> Patch:
    """Returns the patch of a class's attribute, as ``patch_of`` does of a dotted name."""
    with _lock:
        found = getattr(holder, name)
        raw = _raw(holder, name, found)
        known = _dispatchers.get(id(getattr(raw, "__func__", raw)))
        return known if known is not None else _patch(target, holder, name, found, raw)


def _raw(holder: Any, name: str, found: Any) -> Any:
    """Returns an attribute as its class holds it, so that static and class methods are seen as such."""
    return inspect.getattr_static(holder, name, found) if isinstance(holder, type) else found


def _is_tensor(holder: type) -> bool:
    return any(base.__module__ == "torch" and base.__name__ == "Tensor" for base in holder.__mro__)


def _dispatcher(patch: Patch) -> Callable[..., Any]:
    original = patch.original

    def dispatch(*args: Any, **kwargs: Any) -> Any:
        if not active.get():
            return original(*args, **kwargs)
        return _call(patch, args, kwargs, sys._getframe(1).f_globals.get("__name__", ""))

    functools.update_wrapper(dispatch, original, updated=())
    return dispatch


def _call(patch: Patch, args: tuple[Any, ...], kwargs: Mapping[str, Any], caller: str) -> Any:
    replaced = next((found for each in reversed(active.get()) if (found := each.replacement_of(patch))), None)
    if replaced is None or (not patch.is_method and _is_internal(caller)):
        return patch.original(*args, **kwargs)
    guard = id(patch), id(args[0]) if patch.is_method and args else 0
    running = _busy.get()
    if guard in running:
        return patch.original(*args, **kwargs)
    token = _busy.set(running | {guard})
    try:
        return replaced(*args, **kwargs)
    finally:
        _busy.reset(token)


def _is_internal(name: str) -> bool:
    return name.startswith(_INTERNAL) and not name.startswith(_OWN)


def apply(patches: Iterable[Patch], modules: Iterable[Any]) -> None:
    """Puts dispatchers where their originals are.

    Args:
        patches: What is wanted; all or none of it is done.
        modules: Objects whose attributes may hold an original.

    Raises:
        UsageError: A class does not let its methods be replaced.
    """
    with _lock:
        wanted = list(patches)
        done: list[Patch] = []
        try:
            for patch in wanted:
                if patch.count == 0:
                    _put(patch, patch.holder, patch.name)
                    _patches.append(patch)
                    _dispatchers[id(_function(patch))] = patch
                patch.count += 1
                done.append(patch)
            functions = {id(patch.original): patch for patch in wanted if not isinstance(patch.holder, type)}
            for owner, name, patch in _bindings(functions, modules):
                _put(patch, owner, name)
        except BaseException:
            revert(done)
            raise


def revert(patches: Iterable[Patch]) -> None:
    """Takes ``apply`` back; what nobody else wants is put back as it was, also where it was bound meanwhile."""
    with _lock:
        gone = []
        for patch in patches:
            patch.count -= 1
            if patch.count == 0:
                gone.append(patch)
                _patches.remove(patch)
        for patch in gone:
            for owner, name, before in reversed(patch.sites):
                if before is _MISSING:
                    delattr(owner, name)
                else:
                    _set(owner, name, before)
            patch.sites.clear()
        functions = {id(patch.dispatcher): patch for patch in gone if not isinstance(patch.holder, type)}
        for owner, name, patch in _bindings(functions, ()):
            _set(owner, name, patch.original)
        for patch in gone:
            _dispatchers.pop(id(_function(patch)), None)


def _function(patch: Patch) -> Any:
    return getattr(patch.dispatcher, "__func__", patch.dispatcher)


def _put(patch: Patch, owner: Any, name: str) -> None:
    before = vars(owner).get(name, _MISSING) if hasattr(owner, "__dict__") else getattr(owner, name)
    try:
        setattr(owner, name, patch.dispatcher)
    except (TypeError, AttributeError) as error:
        raise UsageError(
            f"{patch.target} cannot be replaced: {error}", hint="Name the class or function that the model calls."
        ) from None
    patch.sites.append((owner, name, before))


def _set(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, (type, ModuleType)):
        setattr(owner, name, value)
    else:
        vars(owner)[name] = value


def _bindings(functions: Mapping[int, Patch], objects: Iterable[Any]) -> Iterator[tuple[Any, str, Patch]]:
    """Yields where functions, given by identity, are bound in loaded modules and in objects."""
    if not functions:
        return
    modules = [each for each in list(sys.modules.values()) if isinstance(each, ModuleType)]
    for owner in (*modules, *objects):
        for name, value in list(vars(owner).items()):
            patch = functions.get(id(value))
            if patch is not None and owner is not _HERE:
                yield owner, name, patch


_HERE = sys.modules[__name__]


# ---------------------------------------------------------------- indexing


def is_indexing(patch: Patch) -> bool:
    """Tells whether a patch is of a tensor's indexing.

    To set ``__getitem__`` of a class makes it a sequence for the interpreter, and to delete it again does not undo
    that: PyTorch then takes a tensor with no dimensions for a list. So indexing is caught by a mode of PyTorch's.
    """
    return isinstance(patch.holder, type) and _is_tensor(patch.holder) and patch.name in ("__getitem__", "__setitem__")


def catch_indexing(patches: Iterable[Patch]) -> Callable[[], None]:
    """Sends indexing of tensors in this thread through patches; returns what takes that back."""
    from torch import overrides

    found = {patch.name: patch for patch in patches}

    class Indexing(overrides.TorchFunctionMode):  # type: ignore[misc]  # torch is not read by mypy
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = getattr(func, "__name__", "")
            if name in found and func is found[name].original:
                return _call(found[name], args, kwargs or {}, "")
            return func(*args, **(kwargs or {}))

    mode = Indexing()
    overrides._push_mode(mode)

    def undo() -> None:
        above = []
        while True:  # contexts may end in any order
            top = overrides._pop_mode()
            if top is mode:
                break
            above.append(top)
        for each in reversed(above):
            overrides._push_mode(each)

    return undo
