"""The rewrites that are switched on while a block lasts: chosen, put in place, counted, taken away again."""

from __future__ import annotations

import copy
import inspect
import linecache
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from onnxbench.errors import NotFoundError, UsageError
from onnxbench.pytorch import _autograd, _patching, _stand_ins, _symbolics, _torchscript, require_torch
from onnxbench.pytorch._findings import Finding
from onnxbench.pytorch.rewriters import SHIPPED, Rewrite, RewriteInfo, RewriteWarning, load_rewrites, require_backend

if TYPE_CHECKING:
    from torch.nn import Module

_HOME = Path(__file__).parent


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
        _require_some(found, backend)
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
        """Returns those that were not, without those of ``shipped``: they are there in case they are needed.

        Of those that come along under one name, the first stands for all, and is there if none of them was used.
        """
        used = {each.name for each in self.used() if each.kind == "symbolic"}
        sets = {each.asked_as for each in self.used()}
        found = []
        for each, count in self._counts.items():
            if count or each.name in used or (each.is_shipped and (not each.asked_as or each.asked_as in sets)):
                continue
            sets.update([each.asked_as] if each.is_shipped else [])
            found.append(each)
        return found

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
        with _stand_ins.lock:
            known: dict[int, _stand_ins.StandIn | None] = {}
            for parent, name, module in _stand_ins.slots(self._given):
                fitting = _fitting_class(type(module), kinds)
                if fitting is None:
                    continue
                if id(module) not in known:
                    made = self._made(fitting, module, torch)
                    below = module if parent is None else parent._modules[name]
                    known[id(module)] = None if made is module else _stand_ins.StandIn(self, made, below)
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
            if isinstance(target, str) and _is_out_of_reach(rewrite, target):
                continue
            if isinstance(target, str) and "::" not in target:
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
            self._undo.append(_torchscript.register_symbolic(name, _active_body))
        self._bodies.setdefault(name, []).extend(bodies)

    def _translate_functions(self, functions: Mapping[Any, Sequence[Rewrite]], opset: int) -> None:
        patches = []
        for function, found in functions.items():
            parameters = _autograd.function_parameters(function)
            bodies = [(each.opset or 0, self._body(each, parameters), each) for each in found]
            name = f"{function.__module__}.{function.__qualname__}"
            self._bodies[name] = bodies
            code = function.forward.__code__
            last = max((each[2] for each in code.co_lines() if each[2] is not None), default=code.co_firstlineno)
            self._hidden.append((code.co_filename, code.co_firstlineno, last))
            chosen = _for_opset(bodies, max(opset, 18))
            if chosen is not None:
                operator = _autograd.operator_of(function, chosen[2].fake)
                self.translations[operator] = _autograd.function_translation(chosen[1], self._firing(chosen[2]))
                patch = _patching.patch_of_attribute(function, "apply", f"{name}.apply")
                self._calls[id(patch)] = _autograd.routed(function, operator, patch.original)
                patches.append(patch)
            before = vars(function).get("symbolic")
            known = getattr(function, "symbolic", None)
            mine = _autograd.function_symbolic(partial(_active_body, name), known)
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
        if rewrite.asked_as and rewrite not in missed:
            found.append(Finding("unused-rewrite", f"no rewrite of {SHIPPED}:{rewrite.asked_as} was ever used"))
            continue
        reason = why[rewrite.kind]
        if rewrite.opset is not None and context.opset is not None and rewrite.opset > context.opset:
            reason = f"it is for opset {rewrite.opset} and later, and this is an export to opset {context.opset}"
        found.append(
            Finding("unused-rewrite", f"{rewrite.label} was never used: {reason}", rewrite.place, hint=_hint(rewrite))
        )
    return found


def warned_findings(caught: Sequence[warnings.WarningMessage]) -> list[Finding]:
    """Returns a finding for each thing that a rewrite said with ``ctx.warn``, each place once.

    Args:
        caught: The warnings that were raised during the export.
    """
    found: dict[tuple[str, str, int], Finding] = {}
    for each in caught:
        said = each.message
        if isinstance(said, RewriteWarning):
            is_own = Path(each.filename).is_relative_to(_HOME)
            code = linecache.getline(each.filename, each.lineno).strip() or None
            place = None if is_own else f"{each.filename}:{each.lineno}"
            finding = Finding("rewrite", said.message, place, None if is_own else code, hint=said.hint)
            found.setdefault((said.message, each.filename, each.lineno), finding)
    return list(found.values())


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


def _require_some(found: Sequence[Rewrite], backend: str) -> None:
    """Raises a UsageError if rewrites that come along were asked for by a name, and none of them is for the backend."""
    sets: dict[str, dict[str, None]] = {}
    for rewrite in found:
        if rewrite.asked_as:
            words = (backend,) if rewrite.backends is None else rewrite.backends
            sets.setdefault(rewrite.asked_as, {}).update(dict.fromkeys(words))
    for name, backends in sets.items():
        if backend not in backends:
            known = " or ".join(backends)
            raise UsageError(
                f"the rewrites {SHIPPED}:{name} are for {known}, and this is an export for {backend}",
                hint=f"--backend {next(iter(backends))}",
            )


def _rank(rewrite: Rewrite) -> tuple[bool, bool]:
    return not rewrite.is_shipped, rewrite.backends is not None


def _is_out_of_reach(rewrite: Rewrite, target: str) -> bool:
    """Tells whether a rewrite that comes along is for a package that nobody has imported."""
    if not rewrite.is_shipped:
        return False
    if "::" not in target:
        return target.split(".")[0] not in sys.modules
    domain, _, name = target.partition("::")
    return not hasattr(getattr(require_torch().ops, domain), name.partition(".")[0])


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


def _fitting_class(kind: type, kinds: Sequence[tuple[type, Rewrite]]) -> Rewrite | None:
    """Returns the rewrite for a class: one for itself, else one for the nearest base that takes subclasses."""
    for base in kind.__mro__:
        for each, rewrite in kinds:
            if each is base and (base is kind or rewrite.subclasses):
                return rewrite
    return None
