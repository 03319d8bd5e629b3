"""Where a PyTorch model comes from: a factory in a file, a class, an exported program, a TorchScript file.

    model.py:make          a function (or class, or object) of a file
    package.module:Class   one of an importable module
    program.pt2            what torch.export.save wrote
    scripted.pt            what torch.jit.save wrote

A factory returns a module, or ``(module, inputs)``, or ``(module, args, kwargs)``, or an ``ExportedProgram``.
``inputs`` is one tensor, a tuple of positional arguments, or a dict of keyword arguments. Loading one runs its code:
the folder of a file goes to the front of ``sys.path`` and stays there, as for a script that Python runs.
"""

from __future__ import annotations

import importlib
import inspect
import linecache
import os
import re
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from onnxbench.errors import (
    BenchError,
    ExecutionError,
    FeedsError,
    NotFoundError,
    UsageError,
    did_you_mean,
    near_file,
    nearest,
)
from onnxbench.pytorch import require_torch

if TYPE_CHECKING:
    import torch

Kind = Literal["module", "program", "torchscript"]
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_FORMS = "Write model.py:factory, package.module:Class, program.pt2, or a TorchScript file."
_SHOWN = 6
_STDLIB = sysconfig.get_path("stdlib")


@dataclass(frozen=True, slots=True)
class Leaf:
    """One value among the (nested) example inputs of a model.

    Attributes:
        name: The path to it, joined by underscores as exporters do: ``x``, ``features_0``, ``batch_mask``.
        value: A tensor, or what else was given.
    """

    name: str
    value: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class Source:
    """A PyTorch model and example inputs for it.

    Attributes:
        module: An ``nn.Module``, a ``ScriptModule``, or an ``ExportedProgram``.
        args: Positional example inputs.
        kwargs: Example inputs by keyword.
        kind: ``module``, ``program`` or ``torchscript``.
        spelling: How it was named.
        file: The file that it comes from, if it was named by one.
        notes: What was decided without being told.
    """

    module: Any = field(repr=False)
    args: tuple[Any, ...] = field(default=(), repr=False)
    kwargs: Mapping[str, Any] = field(default_factory=dict, repr=False)
    kind: Kind = "module"
    spelling: str = ""
    file: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def has_inputs(self) -> bool:
        """Whether there are example inputs."""
        return bool(self.args or self.kwargs)

    def call(self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None) -> Any:
        """Returns what the model computes, without gradients: for its example inputs, or for these.

        Raises:
            ExecutionError: The model failed; its own line is named.
        """
        torch = require_torch()
        run = self.module.module() if self.kind == "program" else self.module
        given = self.args if args is None else args, self.kwargs if kwargs is None else kwargs
        with torch.no_grad(), own_errors("running the model", self.file):
            return run(*given[0], **given[1])

    def arguments(self) -> dict[str, Any]:
        """Returns the example inputs by the parameter that takes them, in order; ``*args`` as a tuple.

        Raises:
            FeedsError: They do not fit the signature of ``forward``.
        """
        signature = self._signature()
        if signature is None:
            return {**{f"input_{at}": value for at, value in enumerate(self.args)}, **self.kwargs}
        try:
            bound = signature.bind(*self.args, **self.kwargs)
        except TypeError as error:
            raise FeedsError(
                f"the example inputs do not fit forward{signature}: {error}",
                hint="A tuple is positional arguments, a dict keyword arguments: return (module, (x, mask)).",
            ) from None
        return dict(bound.arguments)

    def in_order(self) -> Source:
        """Returns the source with its example inputs in the order of the parameters, by position where they can be."""
        signature = self._signature()
        if signature is None:
            return self
        self.arguments()
        bound = signature.bind(*self.args, **self.kwargs)
        return replace(self, args=bound.args, kwargs=bound.kwargs)

    def parameters(self) -> list[str]:
        """Returns the names of the parameters of ``forward``; empty if it does not tell."""
        signature = self._signature()
        return list(signature.parameters) if signature is not None else []

    def _signature(self) -> inspect.Signature | None:
        if self.kind == "torchscript":
            return _script_signature(self.module)
        if self.kind == "program":
            return None
        return inspect.signature(self.module.forward)

    def leaves(self) -> list[Leaf]:
        """Returns the example inputs one by one, those within lists, tuples and dicts too, None left out."""
        require_torch()
        from torch.utils import _pytree as pytree

        found, _ = pytree.tree_flatten_with_path(self.arguments())
        return [Leaf(leaf_name(path), value) for path, value in found if value is not None]


def leaf_name(path: Sequence[Any]) -> str:
    """Returns the name of a value by the keys that lead to it: ``features_0``."""
    keys = [getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))) for key in path]
    return re.sub(r"\W", "_", "_".join(map(str, keys)))


def load_source(spelling: str) -> Source:
    """Returns the model that a spelling names, with its example inputs if it brings any.

    Args:
        spelling: See the top of this module.

    Raises:
        MissingDependencyError: torch is not installed.
        NotFoundError: There is no such file, module or name.
        UsageError: It is not one of the spellings, or what it gives is no model.
        ExecutionError: The factory or the file failed; its own line is named.
    """
    if not spelling.strip():
        raise UsageError("no PyTorch model is named", hint=_FORMS)
    head, colon, name = spelling.rpartition(":")
    if colon and _NAME.fullmatch(name) and (head.endswith(".py") or not Path(spelling).exists()):
        require_torch(f"loading {spelling}")
        if head.endswith(".py"):
            file = _require_file(Path(head))
            return replace(_of_name(run_file(file), name, spelling, file), spelling=spelling, file=file)
        return replace(_of_name(_import(head, spelling), name, spelling, None), spelling=spelling)
    file = Path(spelling)
    if file.suffix == ".py":
        _require_file(file)
        require_torch(f"loading {spelling}")
        names = _models_in(run_file(file))
        raise UsageError(
            f"{spelling} does not say which function or class of the file makes the model",
            hint=f"Write {spelling}:{names[0]}." if len(names) == 1 else f"Write {spelling}:NAME.",
            details=[f"{spelling}:{each}" for each in names[:_SHOWN]] if len(names) > 1 else (),
        )
    if not file.exists() and re.fullmatch(r"[\w.]+", spelling) and file.suffix not in (".pt", ".pt2", ".pth"):
        module, _, last = spelling.rpartition(".")
        raise UsageError(f"{spelling!r} is not understood", hint=f"Write {module}:{last}." if module else _FORMS)
    _require_file(file)
    require_torch(f"loading {spelling}")
    return _of_file(file, spelling)


def as_source(value: Source | str | os.PathLike[str] | Any) -> Source:
    """Returns the source that is meant: one already, how one is spelled, or what a factory returns.

    Raises:
        NotFoundError: There is no such model or file.
        UsageError: It is no model.
        ExecutionError: The file or the factory failed.
    """
    if isinstance(value, (str, os.PathLike)):
        return load_source(os.fspath(value))
    return value if isinstance(value, Source) else source_of(value)


def source_of(value: Any, spelling: str = "the model") -> Source:
    """Returns what a factory returned (see the top of this module) as a source.

    Raises:
        UsageError: It is no model.
    """
    torch = require_torch()
    if isinstance(value, (tuple, list)) and len(value) in (2, 3) and _is_model(value[0]):
        module, given = value[0], value[1]
        if len(value) == 3:
            args, kwargs = given, value[2]
            if not isinstance(args, (tuple, list)) or not isinstance(kwargs, (dict, type(None))):
                raise UsageError(
                    f"{spelling} returned ({_kind(module)}, {_kind(args)}, {_kind(kwargs)})",
                    hint="Return (module, args, kwargs): args a tuple, kwargs a dict.",
                )
            return _source(torch, module, tuple(args), kwargs or {}, spelling)
        if isinstance(given, dict):
            return _source(torch, module, (), given, spelling)
        return _source(torch, module, given if isinstance(given, tuple) else (given,), {}, spelling)
    if _is_model(value):
        return _source(torch, value, (), {}, spelling)
    hint = "It has to return a torch.nn.Module, (module, inputs) or (module, args, kwargs)."
    if isinstance(value, Mapping) and value and all(isinstance(each, torch.Tensor) for each in value.values()):
        hint = "That looks like a state dict: name a factory of the module, and give the weights as --state-dict FILE."
    raise UsageError(f"{spelling} returned {_kind(value)}, which is no model", hint=hint)


def _source(torch: Any, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], spelling: str) -> Source:
    kind: Kind = "module"
    if isinstance(module, torch.export.ExportedProgram):
        kind = "program"
        if not args and not kwargs and module.example_inputs is not None:
            args, kwargs = module.example_inputs
    elif isinstance(module, torch.jit.ScriptModule):
        kind = "torchscript"
    return Source(module, tuple(args), dict(kwargs), kind, spelling)


def _is_model(value: Any) -> bool:
    torch = require_torch()
    return isinstance(value, (torch.nn.Module, torch.export.ExportedProgram))


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {', '.join(type(each).__name__ for each in value[:4]) or 'nothing'}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}" if type(value).__module__ == "builtins" else name


# ---------------------------------------------------------------- names in Python code


def _of_name(module: ModuleType, name: str, spelling: str, file: Path | None) -> Source:
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            near = nearest(part, [each for each in vars(value) if not each.startswith("_")] or _models_in(module))
            known = _models_in(module)
            hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else None
            raise NotFoundError(
                f"{file or module.__name__} has no {name!r}",
                hint=hint or (f"It has: {', '.join(known[:_SHOWN])}." if known else None),
            )
        value = getattr(value, part)
    if callable(value) and not _is_model(value):
        needed = _needed(value)
        if needed:
            raise UsageError(
                f"{spelling} cannot be called without arguments: it needs {', '.join(needed)}",
                hint="Write a factory that takes none: def make(): return Model(...), inputs",
            )
        with own_errors(f"{name}()", file):
            value = value()
    return source_of(value, spelling)


def _needed(call: Callable[..., Any]) -> list[str]:
    """Returns the parameters that a callable cannot do without."""
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return []
    fixed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [each.name for each in parameters if each.default is each.empty and each.kind not in fixed]


def _models_in(module: ModuleType) -> list[str]:
    """Returns the names of a module that may make a model: its own functions, classes and objects that are modules."""
    torch = require_torch()
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (
            _is_model(value)
            or (isinstance(value, type) and issubclass(value, torch.nn.Module) and value.__module__ == module.__name__)
            or (inspect.isfunction(value) and value.__module__ == module.__name__ and not _needed(value))
        )
    ]


def load_function(spelling: str) -> Callable[..., Any]:
    """Returns the function that ``file.py:func`` or ``package.module:func`` names.

    Raises:
        NotFoundError: There is none.
        UsageError: It is no function.
        ExecutionError: The file failed.
    """
    head, _, name = spelling.rpartition(":")
    if not head or not _NAME.fullmatch(name):
        raise UsageError(f"{spelling!r} names no function", hint="Write file.py:function.")
    file = _require_file(Path(head)) if head.endswith(".py") else None
    module = run_file(file) if file is not None else _import(head, spelling)
    value = getattr(module, name, None)
    if value is None:
        hint = did_you_mean(name, [each for each in vars(module) if not each.startswith("_")])
        raise NotFoundError(f"{head} has no {name!r}", hint=hint)
    if not callable(value):
        raise UsageError(f"{spelling} is {_kind(value)}, not a function")
    return value  # type: ignore[no-any-return]


def run_file(file: Path) -> ModuleType:
    """Returns a Python file as a module, run anew; it is compiled in memory, so no cache file is left.

    It stands in ``sys.modules`` under its own name while that is free, for dataclasses and pickles look there.
    """
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name, number = file.stem, 1
    while name in sys.modules and getattr(sys.modules[name], "__file__", None) != str(file.resolve()):
        name, number = f"{file.stem}_{number}", number + 1
    module = ModuleType(name)
    module.__file__ = str(file.resolve())
    before = sys.modules.get(name)
    sys.modules[name] = module
    linecache.checkcache(str(file.resolve()))
    try:
        with own_errors(f"{file}", file):
            exec(compile(file.read_bytes(), str(file.resolve()), "exec"), module.__dict__)
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    return module


def loaded_file(file: Path) -> ModuleType:
    """Returns the module that a file was run as last."""
    path = str(file.resolve())
    return next(each for each in reversed(list(sys.modules.values())) if getattr(each, "__file__", None) == path)


def _import(name: str, spelling: str) -> ModuleType:
    try:
        with own_errors(f"importing {name}", None):
            return importlib.import_module(name)
    except ExecutionError as error:
        cause = error.__cause__
        if (
            isinstance(cause, ModuleNotFoundError)
            and cause.name is not None
            and f"{name}.".startswith(f"{cause.name}.")
        ):
            hint = "For a file, write path/to/file.py:NAME." if "/" in name or Path(f"{name}.py").exists() else None
            raise NotFoundError(
                f"there is no module {cause.name!r}", hint=hint or "Is it installed in this environment?"
            ) from None
        raise
    except (TypeError, ValueError):
        raise UsageError(f"{spelling!r} is not understood", hint=_FORMS) from None


@contextmanager
def own_errors(what: str, file: Path | None) -> Iterator[None]:
    """Turns whatever the user's code raises into one ExecutionError that names the user's own line.

    Args:
        what: What was being done: ``make()``, ``running the model``.
        file: The user's file, if known: its innermost line is named; otherwise the innermost outside of PyTorch.
    """
    try:
        with redirect_stdout(sys.stderr):  # what the user's code prints is no result of ours
            yield
    except BenchError:
        raise
    except (Exception, SystemExit) as error:
        raise ExecutionError(f"{what} failed: {describe_error(error)}", details=user_lines(error, file)) from error


def describe_error(error: BaseException) -> str:
    """Returns an exception in one or two lines: its type and the start of what it says."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    said = " ".join(lines[:2])
    return f"{type(error).__name__}: {said[:400]}" if said else type(error).__name__


def user_lines(error: BaseException, file: Path | None = None) -> list[str]:
    """Returns the innermost lines of a traceback that are the user's: ``file.py:12, in forward: x = ...``."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return [f"{error.filename}:{error.lineno}: {(error.text or '').strip()}"]
    frames = traceback.extract_tb(error.__traceback__)
    here = str(Path(__file__).resolve().parent.parent)
    own = [each for each in frames if not each.filename.startswith(here) and not is_library(each.filename)]
    if file is not None:
        of_file = [each for each in own if each.filename == str(file.resolve())]
        own = own if own and of_file and own[-1] not in of_file else of_file or own
    return [
        f"{each.filename}:{each.lineno}, in {each.name}: {(each.line or '').strip()}"
        for each in own[-3:]
        if each.filename and not each.filename.startswith("<")
    ]


def is_library(filename: str) -> bool:
    """Tells whether a file belongs to Python or to an installed package rather than to the user."""
    parts = Path(filename).parts
    return "site-packages" in parts or "dist-packages" in parts or filename.startswith(("<frozen", _STDLIB))


# ---------------------------------------------------------------- files


def _require_file(file: Path) -> Path:
    if file.is_file():
        return file
    if file.is_dir():
        raise UsageError(f"{file} is a folder, not a file", hint=_FORMS)
    raise NotFoundError(f"there is no file {file}", hint=near_file(file))


def _of_file(file: Path, spelling: str) -> Source:
    torch = require_torch()
    if file.suffix == ".pt2":
        with own_errors(f"loading {file} as an exported program", None):
            program = torch.export.load(file)
        return replace(source_of(program, spelling), file=file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript as such is deprecated
            scripted = torch.jit.load(file, map_location="cpu")
    except Exception:  # any of several kinds, for what is no TorchScript archive
        raise UsageError(
            f"{file} is neither TorchScript nor an exported program (.pt2)",
            hint="A file of weights alone has no code: name a factory of the module, and this as --state-dict FILE.",
        ) from None
    return replace(source_of(scripted, spelling), file=file)


def _script_signature(module: Any) -> inspect.Signature | None:
    try:
        arguments = module.forward.schema.arguments[1:]
    except (AttributeError, RuntimeError):
        return None
    make = inspect.Parameter
    return inspect.Signature([make(each.name, make.POSITIONAL_OR_KEYWORD, default=None) for each in arguments])


# ---------------------------------------------------------------- inputs, weights, element types


def with_inputs(source: Source, words: Sequence[str], *, seed: int = 0) -> Source:
    """Returns a source with drawn example inputs in place of its own: ``x:[1,3,224,224]``, ``ids:[1,16]:int64``.

    Floats are normal, integers 0 to 9, truth values all true; each parameter has a stream of its own.

    Raises:
        NotFoundError: A word names no parameter of ``forward``.
        UsageError: A word has no shape of whole numbers, or the model takes no new inputs.
    """
    from onnxbench.specs import parse_tensor_specs
    from onnxbench.tensortype import dtype_name

    torch = require_torch()
    names = source.parameters()
    if source.kind == "program":
        raise UsageError("an exported program brings its own example inputs", hint="Leave --shape out.")
    specs = parse_tensor_specs(words, names or None, what="--shape")
    kwargs: dict[str, Any] = {}
    for spec in specs:
        if spec.shape is None or not all(isinstance(size, int) for size in spec.shape):
            raise UsageError(f"--shape {spec.name} has to give every size of an example", hint="x:[1,3,224,224]")
        dtype = torch_dtype(dtype_name(spec.dtype)) if spec.dtype else torch.float32
        generator = torch.Generator().manual_seed(seed * 1_000_003 + sum(spec.name.encode()))
        shape = tuple(spec.shape)
        if dtype.is_floating_point or dtype.is_complex:
            kwargs[spec.name] = torch.randn(shape, generator=generator).to(dtype)
        elif dtype is torch.bool:
            kwargs[spec.name] = torch.ones(shape, dtype=dtype)
        else:
            kwargs[spec.name] = torch.randint(0, 10, shape, generator=generator).to(dtype)
    note = f"example inputs were drawn: {', '.join(spec.name for spec in specs)}"
    if source.kind == "torchscript" or not names:
        return replace(source, args=tuple(kwargs.values()), kwargs={}, notes=(*source.notes, note))
    positional = []
    for name in names:  # exporters name inputs after parameters, and TorchScript's wants them by position
        if name not in kwargs:
            break
        positional.append(kwargs.pop(name))
    return replace(source, args=tuple(positional), kwargs=kwargs, notes=(*source.notes, note))


def require_inputs(source: Source) -> None:
    """Raises UsageError if a source has no example inputs."""
    if not source.has_inputs:
        names = source.parameters()
        word = f"{names[0]}:[1,3,224,224]" if names else "x:[1,3,224,224]"
        raise UsageError(
            f"there are no example inputs for {source.spelling}",
            hint=f"Let the factory return (module, inputs), or say --shape '{word}'.",
        )


def with_weights(source: Source, file: Path, *, rules: Sequence[str] = ()) -> Source:
    """Returns a source whose module has the weights of a file.

    Args:
        source: The source; its module is changed.
        file: A state dict (``torch.save``, read as data only), a checkpoint that holds one, or ``.safetensors``.
        rules: ``OLD=>NEW``: keys that begin with OLD begin with NEW instead; the first rule that fits a key counts.

    Raises:
        NotFoundError: There is no such file.
        UsageError: Its keys are not those of the module; rules that would fit are named.
    """
    if source.kind != "module":
        raise UsageError("weights can be given to a module, not to an exported program or TorchScript")
    said = _parse_rules(rules)
    state = _state_dict(_require_file(file))
    used: set[str] = set()
    renamed: dict[str, Any] = {}
    for key, value in state.items():
        old = next((old for old in said if key.startswith(old)), None)
        if old is not None:
            used.add(old)
        now = key if old is None else said[old] + key[len(old) :]
        if now in renamed:
            raise UsageError(f"two keys of {file} become {now!r}", hint="Make the --key rules narrower.")
        renamed[now] = value
    idle = [old for old in said if old not in used]
    if idle:
        raise UsageError(f"--key '{idle[0]}=>{said[idle[0]]}' fits no key of {file}", hint=did_you_mean(idle[0], state))
    _load_state(source.module, renamed, file)
    return source


def _parse_rules(rules: Sequence[str]) -> dict[str, str]:
    said: dict[str, str] = {}
    for rule in rules:
        old, arrow, new = rule.partition("=>")
        if not arrow:
            raise UsageError(f"--key {rule!r} is no rule", hint="Write 'OLD=>NEW', as in 'module.=>'.")
        said[old.strip()] = new.strip()
    return said


def _state_dict(file: Path) -> Mapping[str, Any]:
    torch = require_torch()
    if file.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError:
            from onnxbench.errors import MissingDependencyError

            raise MissingDependencyError(f"{file} needs safetensors", hint="pip install safetensors") from None
        return dict(load_file(file))
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's and torch's own kinds
        raise UsageError(
            f"{file} cannot be read as a state dict: {describe_error(error)}",
            hint="It is read as data only; a file with code in it has to be loaded by the factory.",
        ) from None
    for key in ("state_dict", "model_state_dict", "model", "weights"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise UsageError(f"{file} holds {_kind(found)}, not a state dict")
    return found


def _load_state(module: Any, state: Mapping[str, Any], file: Path) -> None:
    own = module.state_dict()
    missing = [key for key in own if key not in state]
    extra = [key for key in state if key not in own]
    shapes = [
        f"{key}: {list(state[key].shape)} in the file, {list(own[key].shape)} in the module"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if missing or extra or shapes:
        details = [f"missing in the file: {key}" for key in missing[:_SHOWN]]
        details += [f"unknown to the module: {key}" for key in extra[:_SHOWN]]
        details += shapes[:_SHOWN]
        hint = _fitting_rule(own, state)
        raise UsageError(
            f"{file} does not fit the module: {len(missing)} keys are missing, {len(extra)} unknown, "
            f"{len(shapes)} of another shape",
            hint=f"--key '{hint}' would fit." if hint else None,
            details=details,
        )
    module.load_state_dict(state, strict=True)


def _fitting_rule(own: Mapping[str, Any], state: Mapping[str, Any]) -> str | None:
    """Returns the rule that makes all keys fit, if one prefix more or less is all the difference."""
    if not own or not state:
        return None
    mine, theirs = next(iter(own)), next(iter(state))
    if any(each.endswith(mine) for each in state):
        prefix = next(each for each in state if each.endswith(mine)).removesuffix(mine)
        if {each.removeprefix(prefix) for each in state} == set(own):
            return f"{prefix}=>"
    if any(each.endswith(theirs) for each in own):
        prefix = next(each for each in own if each.endswith(theirs)).removesuffix(theirs)
        if {prefix + each for each in state} == set(own):
            return f"=>{prefix}"
    return None


def with_dtype(source: Source, name: str) -> Source:
    """Returns a source whose floating-point weights and example inputs have another element type.

    Raises:
        UsageError: It is no floating-point type, or the model cannot be changed.
    """
    torch = require_torch()
    dtype = torch_dtype(name)
    if not dtype.is_floating_point:
        raise UsageError(f"--dtype {name} is no floating-point type", hint="float32, float16, bfloat16 or float64.")
    if source.kind != "module":
        raise UsageError("the element type can be changed of a module, not of an exported program or TorchScript")
    from torch.utils import _pytree as pytree

    def cast(value: Any) -> Any:
        is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if is_float else value

    args, kwargs = pytree.tree_map(cast, (source.args, dict(source.kwargs)))
    return replace(source, module=source.module.to(dtype), args=args, kwargs=kwargs)


def torch_dtype(name: str) -> torch.dtype:
    """Returns the element type that a word means: ``float16``, ``fp16``, ``half``, ``bf16``, ``int64``.

    Raises:
        UsageError: It means none.
    """
    torch = require_torch()
    from onnxbench.tensortype import dtype_name, dtype_number, is_dtype

    plain = {"half": "float16", "double": "float64", "float": "float32"}.get(name, name)
    word = dtype_name(dtype_number(plain)) if is_dtype(plain) else plain
    found = getattr(torch, word, None)
    if not isinstance(found, torch.dtype):
        raise UsageError(
            f"{name!r} is no element type of PyTorch",
            hint=did_you_mean(name, ["float32", "float16", "bfloat16", "float64", "int64", "int32", "bool"]),
        )
    return found
