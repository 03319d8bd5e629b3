"""The two exporters of PyTorch, called quietly: what they say is collected, what they fail with is explained."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench.errors import BenchError, ExecutionError, UnsupportedError
from onnxbench.model import Model, load
from onnxbench.pytorch import require_torch
from onnxbench.pytorch._dynamic import Axes
from onnxbench.pytorch._findings import Frozen, watch_python_values
from onnxbench.pytorch._mapping import map_program, map_torchscript
from onnxbench.pytorch.sources import Leaf, Source, describe_error, leaf_name, user_lines

if TYPE_CHECKING:
    from collections.abc import Iterable

_LARGE = 1 << 30
"""Bytes of weights from which on the exporter is told to write them beside the file."""
_LEAST_OPSET = 18
"""The oldest opset that the default exporter translates to by itself."""
_SYMBOLS = "torch.fx.experimental.symbolic_shapes"
_CREATED = re.compile(r"create_symbol (\w+) = (\d+) for L\['([^\]]+)'\](\S*?)\.size\(\)\[(\d+)\]")
_FIXED = re.compile(r"eval Eq\((\w+), (\d+)\) \[guard added\].*?(?P<place>[^\s(]+\.py:\d+) in (?P<function>\w+)")
_CONFLICT = re.compile(r"inferred a static shape of (\d+) for dimension inputs\['([^']+)'\](\S*?)\.shape\[(\d+)\]")


@dataclass(slots=True)
class RawExport:
    """What an exporter made, before anything of ours was done to it.

    Attributes:
        model: The model.
        inputs: For each input of the file, in order, the position of its value among the source's leaves.
        outputs: Names for the outputs that the structure of the results suggests; empty if it suggests none.
        program: The ``ExportedProgram``, with the default exporter.
        said: What the exporter said that a user should know.
        frozen: Python values taken from tensors while the model was traced.
        caught: The warnings that were raised.
        is_strict: Whether the default exporter fell back to its strict mode, which looks at bytecode.
    """

    model: Model
    inputs: list[int]
    outputs: list[str] = field(default_factory=list)
    program: Any = None
    said: list[str] = field(default_factory=list)
    frozen: list[Frozen] = field(default_factory=list)
    caught: list[warnings.WarningMessage] = field(default_factory=list)
    is_strict: bool = False


def export_program(
    source: Source,
    leaves: Sequence[Leaf],
    folder: Path,
    *,
    opset: int | None,
    dynamic: Mapping[str, Axes],
    optimize: bool,
    translations: Mapping[Callable[..., Any], Callable[..., Any]],
) -> RawExport:
    """Returns what the default exporter, based on ``torch.export``, makes of a model.

    Args:
        source: The model, with example inputs.
        leaves: Its example inputs one by one.
        folder: Where the file is written.
        opset: The opset; one that the exporter does not know by itself is left to the caller.
        dynamic: Open dimensions by input.
        optimize: Let the exporter optimize the graph.
        translations: How further PyTorch operators become ONNX (``custom_translation_table``).

    Raises:
        UnsupportedError: A dimension cannot be open, or an operator has no translation.
        ExecutionError: The model cannot be exported; the user's own line is named.
    """
    opset = None if opset is None else max(opset, _LEAST_OPSET)
    with _exported(source, dynamic, translations, opset=opset, optimize=optimize) as (program, heard):
        file = folder / "exported.onnx"
        size = sum(each.numel() * each.element_size() for each in program.exported_program.state_dict.values())
        program.save(file, external_data=size > _LARGE)
    model = load(file)
    map_program(model, program.exported_program)
    raw = RawExport(model, [], program=program.exported_program, caught=heard.caught)
    raw.is_strict = getattr(program, "_capture_strategy", None) == "TorchExportStrictStrategy"
    raw.said = [line for line in heard.said if "opset" in line.lower() and "convers" in line.lower()]
    raw.inputs = _input_positions(program.exported_program, model, leaves)
    raw.outputs = _result_names(program.exported_program)
    return raw


def exported_program(
    source: Source, dynamic: Mapping[str, Axes], translations: Mapping[Callable[..., Any], Callable[..., Any]]
) -> Any:
    """Returns the ``ExportedProgram`` that the default exporter makes of a model on its way to ONNX.

    Args:
        source: The model, with example inputs.
        dynamic: Open dimensions by input.
        translations: As for ``export_program``: PyTorch does not decompose what these translate.

    Raises:
        UnsupportedError: A dimension cannot be open, or an operator has no translation.
        ExecutionError: The model cannot be exported.
    """
    with _exported(source, dynamic, translations, opset=None, optimize=False) as (program, _):
        return program.exported_program


@contextlib.contextmanager
def _exported(
    source: Source,
    dynamic: Mapping[str, Axes],
    translations: Mapping[Callable[..., Any], Callable[..., Any]],
    *,
    opset: int | None,
    optimize: bool,
) -> Iterator[tuple[Any, _Heard]]:
    """Runs the default exporter; yields its ``ONNXProgram`` and what was said, which is collected until the end."""
    torch = require_torch()
    shapes = None if source.kind == "program" else _dynamic_shapes(source, dynamic)
    with _quietly() as heard:
        try:
            program = torch.onnx.export(
                source.module, _positional(source), kwargs=dict(source.kwargs) or None, dynamo=True, verbose=False,
                opset_version=opset, dynamic_shapes=shapes, optimize=optimize,
                custom_translation_table=dict(translations) or None,
            )  # fmt: skip
        except Exception as error:  # PyTorch's exporter, and the user's module in it, raise anything
            raise _explained(error, source, dynamic, heard.symbols) from None
        yield program, heard


def _positional(source: Source) -> tuple[Any, ...]:
    """Returns the positional inputs; both exporters take a dict at the end for keyword arguments unless one follows."""
    is_last = bool(source.args) and isinstance(source.args[-1], dict) and not source.kwargs
    return (*source.args, {}) if is_last else source.args


def _dynamic_shapes(source: Source, dynamic: Mapping[str, Axes]) -> dict[str, Any] | None:
    """Returns the open dimensions in the structure of the arguments, as torch.export wants them."""
    if not dynamic:
        return None
    from torch.utils import _pytree as pytree

    def axes(path: Sequence[Any], value: Any) -> Any:
        return dict(dynamic.get(leaf_name(path), {})) or None

    made: dict[str, Any] = pytree.tree_map_with_path(axes, source.arguments())
    return made


def _input_positions(program: Any, model: Model, leaves: Sequence[Leaf]) -> list[int]:
    """Returns which leaf each input of the file is: both are in the order of the program's signature."""
    said = [each.arg for each in program.graph_signature.input_specs if each.kind.name == "USER_INPUT"]
    given = [arg for arg in said if getattr(arg, "value", 0) is not None]  # a None among the inputs is no leaf
    graph = model.proto.graph
    if len(given) == len(leaves):
        tensors = [at for at, arg in enumerate(given) if not hasattr(arg, "value")]
        if len(tensors) == len(graph.input):
            return tensors
    known = {leaf.name: at for at, leaf in enumerate(leaves)}
    return [known[info.name] for info in graph.input if info.name in known]


def _result_names(program: Any) -> list[str]:
    """Returns names for the outputs made of the keys of a dict or dataclass; empty where there are none."""
    from torch.utils import _pytree as pytree

    spec = program.call_spec.out_spec
    said = [each.arg for each in program.graph_signature.output_specs if each.kind.name == "USER_OUTPUT"]
    leaves = [None if getattr(arg, "value", 0) is None else at for at, arg in enumerate(said)]
    try:
        return _key_names(pytree.tree_unflatten(leaves, spec))
    except Exception:  # a structure of the user's that does not take numbers
        return []


def _key_names(results: Any) -> list[str]:
    from torch.utils import _pytree as pytree

    paths = [path for path, value in pytree.tree_flatten_with_path(results)[0] if value is not None]
    if not paths or any(not path or not isinstance(getattr(path[0], "key", None), str) for path in paths):
        return []
    names = [leaf_name(path) for path in paths]
    return names if len(set(names)) == len(names) else []


def export_torchscript(
    source: Source, leaves: Sequence[Leaf], folder: Path, *, opset: int | None, dynamic: Mapping[str, Axes]
) -> RawExport:
    """Returns what the TorchScript exporter makes of a model.

    Args:
        source: The model, with example inputs.
        leaves: Its example inputs one by one; numbers among them become inputs too.
        folder: Where the file is written.
        opset: The opset; None: the default of PyTorch.
        dynamic: Open dimensions by input.

    Raises:
        UnsupportedError: The source is an exported program, or an input is no example input.
        ExecutionError: The model cannot be exported; the user's own line is named.
    """
    torch = require_torch()
    if source.kind == "program":
        raise UnsupportedError("the TorchScript exporter takes no exported program", hint="Leave --exporter out.")
    # TorchScript makes inputs of plain numbers, too.
    tensors = [at for at, leaf in enumerate(leaves) if isinstance(leaf.value, (torch.Tensor, bool, int, float))]
    names = [leaves[at].name for at in tensors]
    axes = {name: dict(each) for name, each in dynamic.items()}
    file = folder / "exported.onnx"
    with (
        _quietly() as heard,
        _onnx_log_off(torch),
        _all_positional(source) as (args, results),
        watch_python_values(torch) as frozen,
    ):
        try:
            torch.onnx.export(
                source.module, args, str(file), dynamo=False, verbose=True, opset_version=opset,
                input_names=names, dynamic_axes=axes,
            )  # fmt: skip
        except Exception as error:  # PyTorch's exporter, and the user's module in it, raise anything
            raise _explained(error, source, dynamic, None) from None
    model = load(file)
    strange = [info.name for info in model.proto.graph.input if info.name not in names]
    if strange:
        raise UnsupportedError(
            f"the TorchScript exporter made inputs of what is no example input: {', '.join(strange)}",
            hint="Give every tensor argument of forward an example, or use the default exporter.",
        )
    map_torchscript(model, source.module)
    at_name = dict(zip(names, tensors, strict=True))
    inputs = [at_name[info.name] for info in model.proto.graph.input if info.name in at_name]
    outputs = _key_names(results[0]) if results else []
    is_told = len(outputs) == len(model.proto.graph.output)
    return RawExport(model, inputs, outputs if is_told else [], frozen=frozen, caught=heard.caught)


@contextlib.contextmanager
def _all_positional(source: Source) -> Iterator[tuple[tuple[Any, ...], list[Any]]]:
    """Gives the example inputs by position, for a ``forward`` that passes them on as they were, and what it returned.

    The exporter fills in the defaults of the other parameters, and traces numbers among them as tensors:
    ``logits_to_keep=0`` becomes an input, and code that asks whether it is an int goes another way.
    """
    module, count = source.module, len(source.args)
    if source.kind != "module":
        yield _positional(source), []
        return
    results: list[Any] = []
    own = vars(module).get("forward")
    forward = module.forward

    def passing(*values: Any) -> Any:
        results[:] = [forward(*values[:count], **dict(zip(source.kwargs, values[count:], strict=False)))]
        return results[0]

    module.forward = passing
    try:
        given = (*source.args, *source.kwargs.values())
        yield ((*given, {}) if given and isinstance(given[-1], dict) else given), results
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


@contextlib.contextmanager
def _onnx_log_off(torch: Any) -> Iterator[None]:
    """Keeps the exporter from printing the graph, which it does when it is told to keep source lines."""
    wanted = torch._C._jit_set_onnx_log_enabled
    enable, torch._C._jit_set_onnx_log_enabled = wanted, lambda _: None
    enable(False)
    try:
        yield
    finally:
        torch._C._jit_set_onnx_log_enabled = enable


# ---------------------------------------------------------------- what is said


@dataclass(slots=True)
class _Heard:
    said: list[str] = field(default_factory=list)
    symbols: list[str] = field(default_factory=list)
    caught: list[warnings.WarningMessage] = field(default_factory=list)


class _Collector(logging.Handler):
    def __init__(self, heard: _Heard) -> None:
        super().__init__(logging.INFO)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == _SYMBOLS:
            self._heard.symbols.append(record.getMessage())
        if record.levelno >= logging.WARNING:
            self._heard.said.append(record.getMessage())


@contextlib.contextmanager
def _quietly() -> Iterator[_Heard]:
    """Collects what PyTorch logs, warns and prints; nothing reaches the terminal."""
    heard = _Heard()
    collector = _Collector(heard)
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir", _SYMBOLS)]
    loggers += [
        each
        for name, each in list(logging.root.manager.loggerDict.items())
        if isinstance(each, logging.Logger) and each.handlers and name.startswith(("torch.", "onnxscript.", "onnx_ir."))
    ]
    before = [(each, each.handlers[:], each.level, each.propagate) for each in dict.fromkeys(loggers)]
    for logger, _, _, _ in before:
        logger.handlers[:], logger.propagate = [collector], False
    logging.getLogger(_SYMBOLS).setLevel(logging.INFO)
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("always")
            heard.caught = caught
            yield heard
    finally:
        for logger, handlers, level, propagate in before:
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)


# ---------------------------------------------------------------- why it failed


def _explained(
    error: BaseException, source: Source, dynamic: Mapping[str, Axes], symbols: Iterable[str] | None
) -> BenchError:
    """Returns what an exporter failed with as one error: the cause in short, the user's line, what to do.

    Args:
        error: What it raised.
        source: The model.
        dynamic: The open dimensions.
        symbols: What torch.export said of symbolic sizes; None for the TorchScript exporter.
    """
    chain = list(_chain(error))
    own = next((each for each in chain if isinstance(each, BenchError)), None)
    if own is not None:
        return own
    root = chain[-1]
    conflict = next((match for each in chain if (match := _CONFLICT.search(str(each)))), None)
    if conflict is not None:
        return _fixed_dimension(conflict, dynamic, list(symbols or ()), root, source)
    missing = next((each for each in chain if type(each).__name__ == "DispatchError"), None)
    if missing is not None:
        text = str(missing)
        operator = re.search(r"OpOverload\(op='([^']+)'", text) or re.search(r"No ONNX function found for (\S+)", text)
        name = operator[1] if operator else "an operator"
        return UnsupportedError(
            f"PyTorch's exporter has no translation of {name} to ONNX",
            hint="Give its bundle (--plugin), or a translation: "
            f"onnxbench.rewrites.symbolic({name.rpartition('.')[0]!r}), in a file for --rewrites.",
            details=_lines(chain, source),
        )
    names = {type(each).__name__ for each in chain}
    unknown = re.search(r"the operator '([\w:.]+)' to ONNX", str(root)) if "UnsupportedOperatorError" in names else None
    if unknown is not None:
        hint = (
            "The default exporter may take it: leave --exporter out. Or say what it becomes: "
            f"onnxbench.rewrites.symbolic({unknown[1]!r}), in a file for --rewrites."
        )
    elif symbols is None:
        hint = "The default exporter may take it: leave --exporter out."
    elif names & {"GuardOnDataDependentSymNode", "UserError", "Unsupported", "DataDependentOutputException"}:
        hint = (
            "The graph depends on values of tensors. Use torch.cond, torch.where or torch._check, "
            "or --exporter torchscript, which freezes the branch that the example takes."
        )
    else:
        hint = "--exporter torchscript may still take it."
    return ExecutionError(
        f"PyTorch cannot export the model: {describe_error(root)}", hint=hint, details=_lines(chain, source)
    )


def _lines(chain: Sequence[BaseException], source: Source) -> list[str]:
    for each in reversed(chain):
        lines = user_lines(each, source.file)
        lines = [line for line in lines if "/onnxbench/pytorch/" not in line]
        if lines:
            return lines
    named = [
        f"{file}:{number}" for each in chain for file, number in re.findall(r'File "([^"]+)", line (\d+)', str(each))
    ]
    return named[-1:]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yields an exception and what caused it, without end only if it is its own cause."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _fixed_dimension(
    conflict: re.Match[str], dynamic: Mapping[str, Axes], symbols: list[str], root: BaseException, source: Source
) -> BenchError:
    """Returns the error that a dimension which was to be open is fixed by the model, with the line that fixes it."""
    size, parameter, rest, axis = conflict.groups()
    name = re.sub(r"\W+", "_", parameter + rest.replace("'", "").replace("]", "")).strip("_")
    symbol = dynamic.get(name, {}).get(int(axis))
    created = {
        match[1] for line in symbols for match in _CREATED.finditer(line) if match[5] == axis and match[2] == size
    }
    places = [
        (match["place"], match["function"])
        for line in symbols
        if (match := _FIXED.search(line)) and match[1] in created
    ]
    details = [_place(place, function, source) for place, function in dict.fromkeys(places)]
    return UnsupportedError(
        f"dimension {axis} of {name}{f' ({symbol})' if symbol else ''} cannot be open: the model fixes it to {size}",
        hint="A Python loop over it, int() of it, or a comparison with a number does that. "
        "Rewrite that line, or leave the dimension fixed.",
        details=list(dict.fromkeys(details))[:3] or _lines([root], source),
    )


def _place(place: str, function: str, source: Source) -> str:
    """Returns ``file.py:12, in forward: code`` of a place whose path PyTorch cut short at the front."""
    import linecache
    import sys

    tail, _, number = place.rpartition(":")
    files = [str(source.file.resolve())] if source.file is not None else []
    files += [str(getattr(each, "__file__", "") or "") for each in list(sys.modules.values())]
    file = next((each for each in files if each.endswith(tail)), tail)
    code = linecache.getline(file, int(number)).strip()
    return f"{file}:{number}, in {function}" + (f": {code}" if code else "")
