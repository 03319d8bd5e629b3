"""The values of an exported program's fx nodes, each computed once, and dropped when nothing reads it any more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnxbench.captures import Value
from onnxbench.errors import ExecutionError, FeedsError, UsageError
from onnxbench.provenance import provenance_of_call
from onnxbench.pytorch import require_torch
from onnxbench.pytorch._value_source import ROOT, Kind, TorchValue, TorchValues, as_leaf, running
from onnxbench.pytorch._verification import as_array
from onnxbench.pytorch.sources import Source

if TYPE_CHECKING:
    pass


class ProgramValues(TorchValues):
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
        """Returns the names of what the model returns (see ``ValueSource``)."""
        said = [each.arg for each in self.program.graph_signature.output_specs if each.kind.name == "USER_OUTPUT"]
        return [arg.name for arg in said if hasattr(arg, "name")]

    def recompute(self, names: Sequence[str], given: Mapping[str, Value]) -> dict[str, Value] | None:
        """Returns values computed anew from given ones (see ``ValueSource``); None too where PyTorch fails on them."""
        from torch.fx import Interpreter

        runner = Interpreter(self.program.graph_module, garbage_collect_values=False)
        env = runner.env
        leaves = {self.inputs[each]: value for each, value in given.items() if each in self.inputs}
        for node, at, value in self._placeholders:
            if at is None:
                env[node] = value
            elif self._leaves[at].name in leaves:
                leaf = self._leaves[at]
                env[node] = as_leaf(leaf.name, leaves[leaf.name], leaf.value)
        for each, value in given.items():
            weight = self._weights.get(each)
            if weight is not None:
                env[weight] = as_leaf(each, value, env[weight])
            node = self._nodes.get(each)
            if node is not None and each not in self.inputs:
                env[node] = as_leaf(each, value, node.meta["val"])
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
            with running(self.source):
                for node in self._nodes.values():
                    if node in needed:
                        env[node] = runner.run_node(node)
        except Exception:  # these values may be none that PyTorch takes there
            return None
        return {name: as_array(env[self._nodes[name]]) for name in names}

    def call(self, name: str) -> str:
        """Returns the call that gives a value, in words: ``aten.gelu.default(linear)``, its part in brackets."""
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
            with running(self.source):
                if state is not None:
                    torch.random.set_rng_state(state)
                for node in part:
                    try:
                        env[node] = runner.run_node(node)
                    except Exception as error:  # the seam: an operator raises whatever it likes
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
