"""A PyTorch model as a source of values: those of its fx nodes, or of the outputs of its modules.

    side = torch_values(load_source("model.py:make"), model=model)
    side.values["layers_0_relu"].origin.source          # model.py:12
    for batch in side.stream(feeds, [["conv2d"], ["relu", "linear"]]):
        ...                                             # {"conv2d": array}, then {"relu": array, "linear": array}

*Nodes of a program.* The default exporter turns a model into an ``ExportedProgram`` of core operators. Where an export
was made in this process its program is to be given (``program``): names and numbers of fx nodes are those of that
program only. Otherwise the model is exported again by ``torch.onnx.export``, with the sizes open that the ONNX file
leaves open: that gives the same program for the same model and version of PyTorch, and whoever matches values holds
the file's metadata against it all the same. Nodes run in the order in which values are asked for, each once, and a
value is dropped as soon as nothing reads it any more.

*Outputs of modules.* A model that ``torch.export`` cannot take is called as it is, and forward hooks give what its
modules return: copies, for the code after a module may change a tensor in place. The model runs once per batch, up to
the last value that the batch asks for; so no more than one batch is held.

Both run without gradients, and from the same random state each time.
"""

from __future__ import annotations

import math
import weakref
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from onnxbench.captures import Feeds, Port, Value, input_ports
from onnxbench.errors import BenchError, ExecutionError, FeedsError, NotFoundError, UsageError, did_you_mean
from onnxbench.provenance import Provenance, provenance_of_call
from onnxbench.pytorch import marks, require_torch
from onnxbench.pytorch._dynamic import Axes
from onnxbench.pytorch._exporters import exported_program
from onnxbench.pytorch._verification import as_array, tensors_of
from onnxbench.pytorch.sources import Leaf, Source, own_errors, require_inputs

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxbench.model import Model

Kind = Literal["program", "modules"]
ROOT = "(model)"
"""What the model itself is called among its modules."""


@dataclass(frozen=True, slots=True)
class TorchValue:
    """One value that PyTorch computes.

    Attributes:
        name: The fx node; or the call of a module, ``layers.0.bn``, ``act@1`` for the second one, ``rotary:0`` and
            ``(model):logits`` for parts of a nested result.
        shape: Its shape for the example inputs; a size that is open in an exported program is None.
        dtype: Its element type, ``float32``.
        origin: Module path, classes, source lines.
        inputs: The values that it is computed from, as far as they have names here.
        same_as: The value that it is, the very same tensor under another name (a module's output that is the output of
            a module within it), or None.
        calls: The module calls whose output it is: ``layers.0.bn``, ``act@1``.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    origin: Provenance
    inputs: tuple[str, ...] = ()
    same_as: str | None = None
    calls: tuple[str, ...] = ()


class TorchValues(ABC):
    """The values of a PyTorch model.

    Attributes:
        source: The model.
        kind: ``program`` for the values of fx nodes, ``modules`` for the outputs of modules.
        label: What this is, in words.
        values: The values by name, in the order in which PyTorch computes them.
        notes: What was decided without being told.
        inputs: Which argument each input of the ONNX model is (see ``bind``).
        program: The ``ExportedProgram``; None for outputs of modules.
    """

    kind: Kind
    label: str
    values: Mapping[str, TorchValue]
    program: Any = None

    def __init__(self, source: Source, notes: Sequence[str] = ()) -> None:
        self.source = source
        self.notes = tuple(notes)
        self.inputs: dict[str, str] = {}
        self._leaves = source.leaves()

    def bind(self, ports: Sequence[Port], said: Mapping[str, str] | None = None) -> dict[str, str]:
        """Finds and returns which argument of the model each input of an ONNX model is.

        Told, else called the same, else the only way in which the others fit in order.

        Args:
            ports: The inputs of the ONNX model.
            said: What a user says: ONNX input to argument.

        Raises:
            NotFoundError: ``said`` names no input or no argument.
            FeedsError: An input cannot be told, or does not fit its argument.
        """
        self.inputs = _bound([port for port in ports if port.required], self._leaves, said or {}, self.label)
        return self.inputs

    def examples(self) -> Feeds:
        """Returns the example inputs by the names of the ONNX model's inputs (``bind`` comes first)."""
        known = {leaf.name: leaf.value for leaf in self._leaves}
        return {name: as_array(known[leaf]) for name, leaf in self.inputs.items()}

    def stream(self, feeds: Mapping[str, Value], batches: Sequence[Sequence[str]]) -> Iterator[dict[str, Value]]:
        """Yields values as arrays, batch after batch; a batch is not kept once the next one is asked for.

        Args:
            feeds: The inputs, by the names of the ONNX model's inputs (``bind`` comes first). Arguments that are no
                input of the ONNX model have their example values.
            batches: Names of values. Any order is right; that of ``values`` needs the least memory.

        Raises:
            NotFoundError: There is no such value.
            FeedsError: An input does not fit the model.
            ExecutionError: The model failed.
        """
        for name in (name for batch in batches for name in batch):
            if name not in self.values:
                raise NotFoundError(f"{self.label} has no value {name!r}", hint=did_you_mean(name, self.values))
        yield from self._stream(self._arguments(feeds), batches)

    def batches(self, max_bytes: int, names: Collection[str] | None = None) -> list[list[str]]:
        """Returns values, in order, in batches that take about so many bytes for the example inputs."""
        found: list[list[str]] = []
        room = 0
        for name, value in self.values.items():
            if names is not None and name not in names:
                continue
            size = math.prod(each or 1 for each in value.shape) * (8 if "64" in value.dtype else 4)
            if not found or size > room:
                found.append([])
                room = max_bytes
            found[-1].append(name)
            room -= size
        return found

    def call(self, name: str) -> str:
        """Returns how a value is computed, in words: ``aten.gelu.default(linear)``, or the class of the module."""
        return self.values[name].origin.module_class or "the model"

    def outputs(self) -> list[str]:
        """Returns the names of what the model returns, in order; what is no tensor is left out."""
        return []

    def recompute(self, names: Sequence[str], given: Mapping[str, Value]) -> dict[str, Value] | None:
        """Returns values computed anew from given ones; None where they do not suffice.

        Args:
            names: The values.
            given: Values by their names here, inputs by the names of the ONNX model's inputs; weights by theirs, which
                have the place of the model's own.
        """
        return None

    def rerun(self, name: str, given: Mapping[str, Value]) -> Value | None:
        """Returns one value computed anew (see ``recompute``)."""
        made = self.recompute([name], given)
        return None if made is None else made[name]

    def within(self, name: str, given: Mapping[str, Value]) -> dict[str, Value]:
        """Returns what the steps make that a value is computed by, where that is one call; none if it is one step.

        Args:
            name: The value.
            given: Values, as for ``rerun``.

        Returns:
            The values in their order, named after the operators: ``bmm``, ``bmm_1``.
        """
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        from onnxbench.pytorch._steps import Steps

        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), Steps() as steps:  # others are one step each
            made = self.rerun(name, given)
        return {} if made is None or len(steps.values) < 2 else {n: as_array(v) for n, v in steps.values.items()}

    def weight(self, name: str) -> Value | None:
        """Returns the values of a parameter or buffer, or None."""
        state = self.source.module.state_dict if self.source.kind == "program" else self.source.module.state_dict()
        return as_array(state[name]) if name in state else None

    def returned(self, feeds: Mapping[str, Value]) -> list[Value]:
        """Returns the tensors that the model itself returns, in order, as arrays; ``feeds`` as for ``stream``.

        Raises:
            FeedsError: An input does not fit the model.
            ExecutionError: The model failed.
        """
        args, kwargs = self._filled(self._arguments(feeds))
        with _running(self.source):
            return tensors_of(self.source.call(args, kwargs))

    def _filled(self, given: Sequence[Any]) -> tuple[Any, Any]:
        """Returns positional arguments and those by keyword, with these leaves in them."""
        from torch.utils import _pytree as pytree

        flat, spec = pytree.tree_flatten((self.source.args, dict(self.source.kwargs)))
        values = iter(given)
        args, kwargs = pytree.tree_unflatten([None if each is None else _copied(next(values)) for each in flat], spec)
        return args, kwargs

    @abstractmethod
    def _stream(self, given: Sequence[Any], batches: Sequence[Sequence[str]]) -> Iterator[dict[str, Value]]: ...

    def _arguments(self, feeds: Mapping[str, Value]) -> list[Any]:
        """Returns the leaves of the arguments with these feeds in place of the examples."""
        fed = {self.inputs[name]: (name, value) for name, value in feeds.items() if name in self.inputs}
        unknown = next((name for name in feeds if name not in self.inputs), None)
        if unknown is not None:
            raise FeedsError(
                f"input {unknown!r} is no argument of {self.source.spelling}",
                details=[f"{name} is {leaf}" for name, leaf in self.inputs.items()],
            )
        return [_as_leaf(*fed[leaf.name], leaf.value) if leaf.name in fed else leaf.value for leaf in self._leaves]


def torch_values(
    source: Source,
    *,
    program: Any = None,
    model: Model | None = None,
    how: Literal["auto", "program", "modules"] = "auto",
    inputs: Mapping[str, str] | None = None,
    translations: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
) -> TorchValues:
    """Returns the values of a PyTorch model, ready to be asked for; its module is put into evaluation mode.

    Args:
        source: The model, with example inputs.
        program: The ``ExportedProgram`` that an export of it used, if this process made one (``Exported.program``).
        model: The ONNX model whose inputs are fed, and whose open sizes stay open.
        how: ``program`` for fx nodes, ``modules`` for hooks; ``auto`` takes hooks where PyTorch cannot export.
        inputs: Which argument an input of ``model`` is, where names do not tell.
        translations: As in ``ExportOptions``, for a model that was exported with them.

    Raises:
        UsageError: There are no example inputs.
        FeedsError: The inputs of the ONNX model are not those of the PyTorch model.
        UnsupportedError: ``program`` was asked for and an operator has no translation to ONNX.
        ExecutionError: The model failed, or was to be exported and cannot be.
    """
    require_torch("comparing with PyTorch")
    require_inputs(source)
    if source.kind != "program" and source.module.training:
        source.module.eval()
    source = source.in_order()
    ports = input_ports(model.proto.graph) if model is not None else []
    # First, for it is quick, and says what is wrong where this is another model's file.
    bound = _bound([port for port in ports if port.required], source.leaves(), inputs or {}, source.spelling)
    made: TorchValues
    if how == "modules" or (how == "auto" and program is None and source.kind == "torchscript"):
        made = _Modules(source)
    elif program is not None:
        made = _Program(source, program, ("the exported program of the export itself",))
    else:
        made = _exported(source, _open_sizes(ports, bound), translations or {}, or_modules=how == "auto")
    made.inputs = bound
    return made


def _exported(
    source: Source, dynamic: Mapping[str, Axes], translations: Mapping[Callable[..., Any], Callable[..., Any]],
    *, or_modules: bool,
) -> TorchValues:  # fmt: skip
    """Returns the values of the program that ``torch.onnx.export`` makes, or else of what can be had."""
    table = {**marks.translation_table(), **translations}
    attempts = [dynamic, {}] if dynamic else [{}]
    failed: BenchError | None = None
    for at, axes in enumerate(attempts):
        try:
            program = exported_program(source, axes, table)
        except BenchError as error:
            failed = failed or error
            continue
        notes = ["exported again to get the values of fx nodes"]
        if at:
            notes.append("its sizes are those of the example inputs: with the file's open ones it cannot be exported")
        return _Program(source, program, notes)
    assert failed is not None
    if not or_modules:
        raise failed
    return _Modules(source, [f"values are outputs of modules, for {failed.message}"])


# ---------------------------------------------------------------- inputs


def similar_inputs(examples: Mapping[str, Value], number: int) -> Feeds:
    """Returns inputs like the given ones: number 0 are these, any other has others in their place.

    Floating-point numbers are drawn with the mean and spread of the example's, the elements of all others are put in
    another order: so indices stay within their tables.
    """
    import numpy as np

    if number == 0:
        return dict(examples)
    made: Feeds = {}
    for at, (name, value) in enumerate(examples.items()):
        draw = np.random.default_rng(1000 * number + at)
        if value.dtype.kind in "iub" or value.dtype.kind not in "fV":
            made[name] = draw.permutation(value.reshape(-1)).reshape(value.shape)
            continue
        wide = value.astype(np.float64)
        made[name] = draw.normal(float(wide.mean()), float(wide.std()) or 1.0, value.shape).astype(value.dtype)
    return made


def _bound(ports: Sequence[Port], leaves: Sequence[Leaf], said: Mapping[str, str], label: str) -> dict[str, str]:
    known = {leaf.name: leaf for leaf in leaves}
    names = {port.name for port in ports}
    for name, leaf in said.items():
        if ports and name not in names:
            raise NotFoundError(f"the model has no input {name!r}", hint=did_you_mean(name, names))
        if leaf not in known:
            raise NotFoundError(f"{label} has no argument {leaf!r}", hint=did_you_mean(leaf, known))
    bound = {name: leaf for name, leaf in said.items() if name in names}
    taken = set(bound.values())
    for port in ports:
        if port.name not in bound and port.name in known and port.name not in taken:
            bound[port.name] = port.name
            taken.add(port.name)
    _require_fits(ports, known, bound, label)
    rest = [port for port in ports if port.name not in bound]
    free = [leaf for leaf in leaves if leaf.name not in taken and hasattr(leaf.value, "shape")]
    if rest:
        ways = _ways(rest, free)
        if len(ways) != 1:
            raise FeedsError(
                f"it cannot be told which argument of {label} the input {rest[0].name!r} is"
                if ways or len(rest) > len(free) or _fits(rest[0], free[0]) == ""
                else f"input {rest[0].name!r} does not fit the arguments of {label}: {_fits(rest[0], free[0])}",
                details=[f"arguments: {', '.join(map(_described, leaves))}"],
                hint=f"Is it the PyTorch model of this file? If so, say --input '{rest[0].name}=ARGUMENT'.",
            )
        bound.update(zip((port.name for port in rest), (leaf.name for leaf in ways[0]), strict=True))
    return {port.name: bound[port.name] for port in ports}


def _require_fits(
    ports: Sequence[Port], known: Mapping[str, Leaf], bound: Mapping[str, str], label: str
) -> None:  # fmt: skip
    for port in ports:
        reason = _fits(port, known[bound[port.name]]) if port.name in bound else ""
        if reason:
            raise FeedsError(
                f"input {port.name!r} does not fit the argument {bound[port.name]!r} of {label}: {reason}",
                hint="Is it the PyTorch model of this file, with example inputs as it was exported with?",
            )


def _ways(ports: Sequence[Port], leaves: Sequence[Leaf]) -> list[list[Leaf]]:
    """Returns the ways in which inputs are arguments, in order: two at most, so that one is known to be the only."""
    ways: list[list[Leaf]] = [[]]
    starts = [0]
    for port in ports:
        found: list[tuple[list[Leaf], int]] = []
        for way, start in zip(ways, starts, strict=True):
            found += [([*way, leaf], at + 1) for at, leaf in enumerate(leaves) if at >= start and not _fits(port, leaf)]
        if len(ports) == len(leaves):  # all of them, so each has its place
            found = [each for each in found if each[1] == len(each[0])]
        ways, starts = [way for way, _ in found[:64]], [start for _, start in found[:64]]
    return ways[:2]


def _fits(port: Port, leaf: Leaf) -> str:
    """Returns why an argument cannot be an input, or nothing."""
    from onnxbench.captures import FLOATS, onnx_dtype

    value, shape = leaf.value, port.shape
    if not hasattr(value, "shape"):
        return "" if isinstance(value, (bool, int, float)) else f"the argument is {type(value).__name__}, no tensor"
    number = onnx_dtype(as_array(value[(0,) * value.ndim] if value.numel() else value).dtype)
    if port.dtype and number and (port.dtype in FLOATS) != (number in FLOATS):
        return f"one holds floating-point numbers, the other ({value.dtype}) does not"
    if shape is not None and len(shape) != value.ndim:
        return f"it has {len(shape)} dimensions, the example input {list(value.shape)}"
    if shape is not None:
        for axis, (size, own) in enumerate(zip(shape, value.shape, strict=True)):
            if isinstance(size, int) and size != own:
                return f"dimension {axis} is {size}, and {own} in the example input {list(value.shape)}"
    return ""


def _described(leaf: Leaf) -> str:
    value = leaf.value
    return f"{leaf.name} {list(value.shape)} {value.dtype}" if hasattr(value, "shape") else f"{leaf.name}={value!r}"


def _open_sizes(ports: Sequence[Port], bound: Mapping[str, str]) -> dict[str, Axes]:
    """Returns which sizes of the arguments an ONNX model leaves open, with its names for them."""
    found: dict[str, Axes] = {}
    for port in ports:
        leaf = bound[port.name]
        axes = {
            axis: size if isinstance(size, str) and size.isidentifier() else f"{leaf}_dim{axis}"
            for axis, size in enumerate(port.shape or ())
            if not isinstance(size, int)
        }
        if axes:
            found[leaf] = axes
    return found


def _as_leaf(name: str, value: Any, example: Any) -> Any:
    """Returns an array as the argument that an example shows: a tensor of its type and place, or a number."""
    import numpy as np

    torch = require_torch()
    array = np.asarray(value)
    if not isinstance(example, torch.Tensor):
        if array.size != 1:
            raise FeedsError(f"input {name!r} is a number in PyTorch, and is given the shape {list(array.shape)}")
        return type(example)(array.reshape(()).item())
    if array.ndim != example.ndim:
        raise FeedsError(
            f"input {name!r} is given the shape {list(array.shape)}, and its argument is {list(example.shape)}"
        )
    return as_tensor(array).to(device=example.device, dtype=example.dtype)


def as_tensor(array: Any) -> Any:
    """Returns an array, of ``ml_dtypes`` too, as a tensor with memory of its own."""
    import numpy as np

    torch = require_torch()
    narrow = {
        "bfloat16": (np.int16, torch.bfloat16),
        "float8_e4m3fn": (np.int8, torch.float8_e4m3fn),
        "float8_e5m2": (np.int8, torch.float8_e5m2),
    }
    if array.dtype.name in narrow:
        plain, dtype = narrow[array.dtype.name]
        return torch.from_numpy(np.ascontiguousarray(array).view(plain).copy()).view(dtype).reshape(array.shape)
    try:
        return torch.from_numpy(np.array(array, order="C", copy=True))
    except TypeError:
        raise FeedsError(f"PyTorch has no tensors of {array.dtype}") from None


@contextmanager
def _running(source: Source) -> Iterator[None]:
    """Runs PyTorch without gradients, from the same random state each time, its errors told as the user's."""
    torch = require_torch()
    with torch.no_grad(), torch.random.fork_rng(devices=[]), own_errors("running the model", source.file):
        torch.manual_seed(0)
        yield


# ---------------------------------------------------------------- the nodes of a program


class _Program(TorchValues):
    """The fx nodes of an exported program."""

    kind: Kind = "program"

    def __init__(self, source: Source, program: Any, notes: Sequence[str] = ()) -> None:
        super().__init__(source, notes)
        self.program = program
        self.label = f"{source.spelling} in PyTorch"
        self._nodes = {node.name: node for node in program.graph.nodes}
        self._placeholders = self._bind_placeholders()
        self._weights = {
            each.target: self._nodes[each.arg.name]
            for each in program.graph_signature.input_specs
            if each.target is not None and each.arg.name in self._nodes
        }
        self.values = self._describe()

    def _bind_placeholders(self) -> list[tuple[Any, int | None, Any]]:
        """Returns the placeholders, each with the leaf that it is, or else with its value: weights, constants."""
        program, signature = self.program, self.program.graph_signature
        state = {**program.state_dict, **program.constants}
        given = [each.arg for each in signature.input_specs if each.kind.name == "USER_INPUT"]
        given = [arg for arg in given if getattr(arg, "value", 0) is not None]  # a None among them is no leaf
        positions = {arg.name: at for at, arg in enumerate(given)}
        if len(given) != len(self._leaves):
            raise UsageError(
                f"the exported program takes {len(given)} inputs, and the example inputs of {self.source.spelling} "
                f"are {len(self._leaves)}"
            )
        specs = {each.arg.name: each for each in signature.input_specs if hasattr(each.arg, "name")}
        found: list[tuple[Any, int | None, Any]] = []
        for node in program.graph.nodes:
            if node.op != "placeholder":
                continue
            spec = specs[node.name]
            found.append((node, positions.get(node.name), None if spec.target is None else state.get(spec.target)))
        return found

    def _describe(self) -> dict[str, TorchValue]:
        torch = require_torch()
        stacks = {node: _stack(node) for node in self._nodes.values()}
        found: dict[str, TorchValue] = {}
        for name, node in self._nodes.items():
            value = node.meta.get("val")
            if node.op in ("placeholder", "output", "get_attr") or not isinstance(value, torch.Tensor):
                continue
            after = [set() if user.op == "output" else stacks[user].keys() for user in node.users]
            left = [key for key in stacks[node] if any(key not in each for each in after)]
            scopes = [path for path, _ in stacks[node].values()]
            classes = [kind for _, kind in stacks[node].values()]
            found[name] = TorchValue(
                name,
                tuple(size if isinstance(size, int) else None for size in value.shape),
                str(value.dtype).removeprefix("torch."),
                provenance_of_call(scopes, classes, node.meta.get("stack_trace") or ""),
                tuple(dict.fromkeys(_named_inputs(node))),
                calls=tuple(stacks[node][key][0] or ROOT for key in left),
            )
        return found

    def outputs(self) -> list[str]:
        said = [each.arg for each in self.program.graph_signature.output_specs if each.kind.name == "USER_OUTPUT"]
        return [arg.name for arg in said if hasattr(arg, "name")]

    def recompute(self, names: Sequence[str], given: Mapping[str, Value]) -> dict[str, Value] | None:
        from torch.fx import Interpreter

        runner = Interpreter(self.program.graph_module, garbage_collect_values=False)
        env = runner.env
        leaves = {self.inputs[each]: value for each, value in given.items() if each in self.inputs}
        for node, at, value in self._placeholders:
            if at is None:
                env[node] = value
            elif self._leaves[at].name in leaves:
                leaf = self._leaves[at]
                env[node] = _as_leaf(leaf.name, leaves[leaf.name], leaf.value)
        for each, value in given.items():
            weight = self._weights.get(each)
            if weight is not None:
                env[weight] = _as_leaf(each, value, env[weight])
            node = self._nodes.get(each)
            if node is not None and each not in self.inputs:
                env[node] = _as_leaf(each, value, node.meta["val"])
        needed: set[Any] = set()
        pending = [self._nodes[name] for name in names]
        for node in pending:
            env.pop(node, None)
        while pending:
            node = pending.pop()
            if node in env or node in needed:
                continue
            if node.op == "placeholder":
                return None
            needed.add(node)
            pending.extend(node.all_input_nodes)
        try:
            with _running(self.source):
                for node in self._nodes.values():
                    if node in needed:
                        env[node] = runner.run_node(node)
        except Exception:  # these values may be none that PyTorch takes there
            return None
        return {name: as_array(env[self._nodes[name]]) for name in names}

    def call(self, name: str) -> str:
        node, part = self._nodes[name], ""
        if getattr(node.target, "__name__", "") == "getitem":
            node, part = node.args[0], f"[{node.args[1]}]"
        words = [*map(str, node.args), *(f"{key}={value}" for key, value in node.kwargs.items())]
        return f"{node.target}({', '.join(words)}){part}"

    def _stream(self, given: Sequence[Any], batches: Sequence[Sequence[str]]) -> Iterator[dict[str, Value]]:
        from torch.fx import Interpreter

        torch = require_torch()
        self._require_sizes(given)
        runner = Interpreter(self.program.graph_module, garbage_collect_values=False)
        env = runner.env
        for node, leaf, value in self._placeholders:
            env[node] = value if leaf is None else given[leaf]
        parts, last = self._plan(batches)
        state = None
        at = 0
        for part, batch in zip(parts, batches, strict=True):
            with _running(self.source):
                if state is not None:
                    torch.random.set_rng_state(state)
                for node in part:
                    try:
                        env[node] = runner.run_node(node)
                    except Exception as error:
                        frame = self.values[node.name].origin.frame if node.name in self.values else None
                        raise ExecutionError(
                            f"PyTorch fails at {node.name} on these inputs: {' '.join(str(error).split())[:300]}",
                            details=[f"{frame.place}: {frame.code or ''}"] if frame is not None else (),
                            hint="Sizes that are no example input's may have been fixed by torch.export.",
                        ) from error
                    for each in (*node.all_input_nodes, node):
                        if last.get(each) == at:
                            env.pop(each, None)
                    at += 1
                state = torch.random.get_rng_state()
            yield {name: as_array(env[self._nodes[name]]) for name in batch}
            for name in batch:
                if last.get(self._nodes[name]) == at:
                    env.pop(self._nodes[name], None)
            at += 1

    def _require_sizes(self, given: Sequence[Any]) -> None:
        """Raises FeedsError where an input has a size that the program fixes otherwise: it may not fail by itself."""
        for node, leaf, _ in self._placeholders:
            value = node.meta.get("val")
            if leaf is None or not hasattr(given[leaf], "shape") or not hasattr(value, "shape"):
                continue
            for axis, (size, own) in enumerate(zip(given[leaf].shape, value.shape, strict=False)):
                if isinstance(own, int) and own != size:
                    raise FeedsError(
                        f"dimension {axis} of {self._leaves[leaf].name} is {size}, and {own} in the PyTorch program",
                        hint="It was exported with that size fixed: give inputs of that size.",
                    )

    def _plan(self, batches: Sequence[Sequence[str]]) -> tuple[list[list[Any]], dict[Any, int]]:
        """Returns the nodes to run for each batch, and when each value is needed for the last time.

        Moments are counted in nodes run and batches handed over. Placeholders are never dropped: they are the
        caller's, or weights.
        """
        order = {node: at for at, node in enumerate(self._nodes.values())}
        done: set[Any] = set()
        parts: list[list[Any]] = []
        for batch in batches:
            pending = [self._nodes[name] for name in batch]
            part: set[Any] = set()
            while pending:
                node = pending.pop()
                if node.op == "placeholder" or node in done:
                    continue
                done.add(node)
                part.add(node)
                pending.extend(node.all_input_nodes)
            parts.append(sorted(part, key=order.__getitem__))
        last: dict[Any, int] = {}
        at = 0
        for nodes, batch in zip(parts, batches, strict=True):
            for node in nodes:
                last.update((each, at) for each in (*node.all_input_nodes, node) if each.op != "placeholder")
                at += 1
            last.update((self._nodes[name], at) for name in batch if self._nodes[name].op != "placeholder")
            at += 1
        return parts, last


def _stack(node: Any) -> dict[str, tuple[str, str]]:
    """Returns the module calls around a node, outermost first: path (``act@1``) and class."""
    found: dict[str, tuple[str, str]] = {}
    for key, (path, kind) in (node.meta.get("nn_module_stack") or {}).items():
        found[key] = (path, kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}")
    return found


def _named_inputs(node: Any) -> Iterator[str]:
    """Yields the nodes that a node reads; in place of one that gives a tuple, those that it reads."""
    pending = list(reversed(node.all_input_nodes))
    while pending:
        each = pending.pop()
        if isinstance(each.meta.get("val"), (tuple, list)):
            pending.extend(reversed(each.all_input_nodes))
        else:
            yield each.name


# ---------------------------------------------------------------- the outputs of modules


class _Enough(BaseException):  # not an Exception: the model's own code may catch those
    """Ends a run of a model once all values that were asked for are known."""


class _Modules(TorchValues):
    """What the modules of a model return."""

    kind: Kind = "modules"

    def __init__(self, source: Source, notes: Sequence[str] = ()) -> None:
        super().__init__(source, notes)
        self.label = f"the modules of {source.spelling} in PyTorch"
        self._modules: dict[str, Any] = {ROOT: source.module}
        if source.kind == "module":
            self._modules = {path or ROOT: module for path, module in source.module.named_modules()}
        elif source.kind == "program":
            self._modules = {}
        self.values = self._describe()

    def _describe(self) -> dict[str, TorchValue]:
        """Runs the example inputs through the model, and returns what its modules gave."""
        found: dict[str, TorchValue] = {}
        made: dict[int, tuple[Any, int, str]] = {}  # tensors by identity: which value they were last

        def seen(tensor: Any) -> tuple[str, bool] | None:
            known = made.get(id(tensor))
            if known is None or known[0]() is not tensor:
                return None
            return known[2], known[1] == tensor._version

        def take(name: str, call: str, path: str, tensor: Any, given: Any) -> None:
            known = seen(tensor)
            inputs = [known[0] for each in _flat(given) if (known := seen(each[1])) is not None]
            parts = [] if path == ROOT else path.split(".")
            around = ["", *(".".join(parts[:end]) for end in range(1, len(parts) + 1))]
            scopes = [each for each in around if (each or ROOT) in self._modules]
            classes = [_class_name(self._modules[each or ROOT]) for each in scopes]
            number = call.rpartition("@")[2] if "@" in call else "0"
            origin = Provenance(
                "" if path == ROOT else path, tuple(scopes), tuple(classes), call=int(number), kind="module"
            )
            same = seen(tensor)
            found[name] = TorchValue(
                name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), origin,
                tuple(dict.fromkeys(inputs)), same[0] if same is not None and same[1] else None, (call,),
            )  # fmt: skip
            made[id(tensor)] = (weakref.ref(tensor), tensor._version, name)

        self._run([leaf.value for leaf in self._leaves], list(self._modules), take)
        return found

    def _run(self, given: Sequence[Any], paths: Sequence[str], take: Callable[[str, str, str, Any, Any], None]) -> None:
        """Runs the model, and hands over what modules return: name, call, path, tensor, arguments."""
        counts: dict[str, int] = {}
        handles = []

        def hand(path: str, result: Any, arguments: Any) -> None:
            number = counts[path] = counts.get(path, -1) + 1
            call = f"{path}@{number}" if number else path
            for key, tensor in _flat(result):
                take(f"{call}:{key}" if key else call, call, path, tensor, arguments)

        def hook(path: str) -> Callable[..., None]:
            def hear(_: Any, args: Any, kwargs: Any, result: Any) -> None:
                hand(path, result, (args, kwargs))

            return hear

        args, kwargs = self._filled(given)
        if self.source.kind == "module":
            handles = [
                self._modules[path].register_forward_hook(hook(path), with_kwargs=True)
                for path in paths
                if path != ROOT
            ]
        try:
            with _running(self.source):
                result = self.source.call(args, kwargs)
                if ROOT in paths or self.source.kind == "program":
                    hand(ROOT, result, (args, kwargs))
        except _Enough:
            pass
        finally:
            for each in handles:
                each.remove()

    def _stream(self, given: Sequence[Any], batches: Sequence[Sequence[str]]) -> Iterator[dict[str, Value]]:
        for batch in batches:
            wanted = set(batch)
            caught: dict[str, Value] = {}

            def take(name: str, call: str, path: str, tensor: Any, arguments: Any) -> None:
                if name in wanted:  # noqa: B023 - it is called within this turn
                    caught[name] = as_array(tensor.clone())  # noqa: B023
                    if len(caught) == len(wanted):  # noqa: B023
                        raise _Enough

            if wanted:
                paths = {(each.origin.scope or ROOT) for each in map(self.values.__getitem__, batch)}
                self._run(given, sorted(paths), take)
            missing = [name for name in batch if name not in caught]
            if missing:
                raise ExecutionError(
                    f"on these inputs PyTorch computes no {missing[0]!r}",
                    hint="The model went another way than on its example inputs.",
                )
            yield {name: caught[name] for name in batch}


def _flat(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields the tensors of a structure, each with the keys that lead to it, joined by dots."""
    torch = require_torch()
    pending: list[tuple[str, Any]] = [("", value)]
    while pending:
        key, each = pending.pop()
        if isinstance(each, torch.Tensor):
            yield key, each
            continue
        parts = marks.parts_of(each) or ()
        pending.extend((f"{key}.{name}" if key else str(name), part) for name, part in reversed(parts))


def _copied(value: Any) -> Any:
    return value.detach().clone() if hasattr(value, "detach") else value


def _class_name(module: Any) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
