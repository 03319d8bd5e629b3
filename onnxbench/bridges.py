"""Simplifiers of other projects behind one function: a model goes out and comes back, what got lost is put back.

onnxslim, onnxsim and onnxscript's optimizer know hundreds of rewrites, and each forgets some of what a model says of
itself: metadata and scopes of nodes, doc strings, the producer, quantization annotations, functions. So a tool gets a
copy, in a process of its own (some are native code that can crash), and what it returns is compared with what was
there. Inputs and outputs must be the same. What the tool forgot is put back where its bearer is still there: a node is
the same if it makes the same tensor. What cannot be put back is told.

Tools read all weights. A model of more than ``limit`` bytes of them is refused, unless large weights are kept away from
the tool: then they are inputs on the way, so that it neither reads nor folds them. Weights that come back as they went
are the original ones again, wherever they lie.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench import weights
from onnxbench.errors import ExecutionError, MissingDependencyError, RefusedResultError, UnsupportedError
from onnxbench.graph import GraphIndex, Scope
from onnxbench.messages import carry_field, carry_unknown, copy_of, delete_named
from onnxbench.schemas import plain_domain
from onnxbench.tensortype import initializer_type

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

    from onnxbench.draft import Draft
    from onnxbench.messages import carry_field, carry_unknown
from onnxbench.model import Model

TOOLS: dict[str, str] = {"onnxslim": "onnxslim", "onnxsim": "onnxsim", "onnxscript": "onnxscript"}
"""Name of a tool to the package that has it."""
LARGE = 64 << 10
"""Weights of more bytes are kept away from a tool that shall not read them."""
_LISTED = 6
_MOST_OF_PROTOBUF = (1 << 31) - 1


def run_tool(
    draft: Draft, tool: str, *, limit: int, keep_large_away: bool = False, timeout: float | None = None
) -> None:  # fmt: skip
    """Simplifies a model by a tool, and puts back what the tool forgot.

    Args:
        draft: The model.
        tool: One of ``TOOLS``.
        limit: The most bytes of weights that are handed to the tool.
        keep_large_away: Hand only small weights to the tool.
        timeout: Seconds that it may take.

    Raises:
        MissingDependencyError: The tool is not installed.
        UnsupportedError: There are more weights than ``limit``.
        ExecutionError: The tool fails, crashes or takes too long.
        RefusedResultError: What comes back has other inputs or outputs.
    """
    if find_spec(TOOLS[tool]) is None:
        raise MissingDependencyError(
            f"{tool} is not installed",
            hint=f"pip install {TOOLS[tool]}, or all simplifiers: pip install onnxbench[simplify]",
        )
    model = draft.model
    sent, away = _outgoing(model, limit=limit, keep_large_away=keep_large_away)
    before = _Record.of(model)
    returned = _call(tool, sent, timeout)
    _take_weights_back(model, returned, away, before)
    _require_interface(tool, model.proto, returned)
    lost = _put_back(model.proto, returned, before)
    _tell(draft, tool, model.proto, returned, lost)
    model.proto.CopyFrom(returned)
    draft.touch()


# -- out and back --------------------------------------------------------------------------------------------------


def _outgoing(model: Model, *, limit: int, keep_large_away: bool) -> tuple[ModelProto, set[str]]:
    """Returns a copy with its weights in it, and the names of those that are inputs of it instead."""
    proto = copy_of(model.proto)
    away: set[str] = set()
    if keep_large_away:
        inputs = {info.name for info in proto.graph.input}
        away = {t.name for t in proto.graph.initializer if weights.tensor_bytes(t) > LARGE} - inputs
        for position in reversed(range(len(proto.graph.initializer))):
            tensor = proto.graph.initializer[position]
            if tensor.name in away:
                proto.graph.input.add(name=tensor.name).type.CopyFrom(initializer_type(tensor))
                del proto.graph.initializer[position]
    total = sum(weights.tensor_bytes(tensor) for tensor in weights.tensors(proto))
    if total > limit:
        raise UnsupportedError(
            f"the tool would read {total:,} bytes of weights, and the limit is {limit:,}",
            hint="weights: small keeps large ones away from it; limit: 1.5G lets it read more.",
        )
    if total + proto.ByteSize() > _MOST_OF_PROTOBUF:
        raise UnsupportedError(
            "the tool would be handed more than 2 GB, which no single ONNX file can hold",
            hint="weights: small keeps large weights away from it.",
        )
    for tensor in weights.tensors(proto):
        where = model.byte_range(tensor)
        if where is not None:
            data = weights.read_bytes(where)
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = data
    return proto, away


def _call(tool: str, proto: ModelProto, timeout: float | None) -> ModelProto:
    """Returns what a tool makes of a model, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="onnxbench-") as folder:
        sent, returned = Path(folder) / "sent.onnx", Path(folder) / "returned.onnx"
        sent.write_bytes(proto.SerializeToString())
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-m", "onnxbench.bridges", tool, str(sent), str(returned)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=timeout, env=environment, cwd=folder
            )
        except subprocess.TimeoutExpired:
            raise ExecutionError(f"{tool} took longer than {timeout:g} seconds") from None
        if done.returncode or not returned.is_file():
            lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip(" ^~")]
            how = f"crashed (signal {-done.returncode})" if done.returncode < 0 else "does not take the model"
            # of a traceback, the last line says what is wrong
            raise ExecutionError(f"{tool} {how}", details=lines[-3:] if done.returncode < 0 else lines[-1:])
        made = type(proto)()
        made.ParseFromString(returned.read_bytes())
        return made


def _take_weights_back(model: Model, returned: ModelProto, away: set[str], before: _Record) -> None:
    """Makes weights of the inputs that stood for some, and the original ones of those that did not change."""
    original = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    graph = returned.graph
    delete_named(graph.input, away)
    index = GraphIndex(returned)
    for name in sorted(away):
        if index.main.consumers.get(name) or name in index.main.outputs:
            graph.initializer.add().CopyFrom(original[name])
    for tensor in graph.initializer:
        known = original.get(tensor.name)
        if known is None or tensor.name in away or tensor.data_type != known.data_type or tensor.dims != known.dims:
            continue
        if before.digest(tensor.name) == _content(tensor):
            tensor.CopyFrom(known)


def _content(tensor: Any) -> bytes:
    from onnx import numpy_helper

    if tensor.data_type == 8:
        return hashlib.sha256(repr(list(tensor.string_data)).encode()).digest()
    if tensor.HasField("raw_data"):
        return hashlib.sha256(tensor.raw_data).digest()
    return hashlib.sha256(numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data).digest()


def _require_interface(tool: str, before: ModelProto, after: ModelProto) -> None:
    for what, old, new in (
        ("inputs", before.graph.input, after.graph.input),
        ("outputs", before.graph.output, after.graph.output),
    ):
        stored = {tensor.name for tensor in before.graph.initializer} if what == "inputs" else set()
        gone = [info.name for info in old if info.name not in stored and info.name not in {i.name for i in new}]
        come = [info.name for info in new if info.name not in {i.name for i in old}]
        if gone or come:
            words = [f"without {', '.join(gone[:_LISTED])}"] if gone else []
            words += [f"with {', '.join(come[:_LISTED])}"] if come else []
            raise RefusedResultError(f"{tool} returns a model with other {what}: {' and '.join(words)}")


# -- what tools forget ---------------------------------------------------------------------------------------------

Place = tuple[str, ...]
"""A graph, as it can be found again: what its owner makes, and the attribute that holds it, from the outside in."""


@dataclass(slots=True)
class _Record:
    """What a model says of itself and tools forget.

    Attributes:
        makers: The nodes by graph and by what they make.
    """

    model: Model
    makers: dict[Place, dict[str, NodeProto]] = field(default_factory=dict)
    _stored: dict[str, TensorProto] = field(default_factory=dict)
    _digests: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Model) -> _Record:
        """Returns the record of a model."""
        proto = copy_of(model.proto)
        record = cls(model.derive(proto))
        record._stored.update((tensor.name, tensor) for tensor in proto.graph.initializer)
        for place, scope in _places(proto):
            record.makers[place] = {name: scope.nodes[at] for name, at in scope.producers.items()}
        return record

    def digest(self, name: str) -> bytes:
        """Returns the digest of the content of an initializer."""
        if name not in self._digests:
            tensor = self._stored[name]
            where = self.model.byte_range(tensor)
            data = hashlib.sha256(weights.read_bytes(where)).digest() if where is not None else _content(tensor)
            self._digests[name] = data
        return self._digests[name]


def _places(proto: ModelProto) -> Iterator[tuple[Place, Scope]]:
    known: dict[int, Place] = {}
    for scope in GraphIndex(proto).scopes:
        if scope.parent is None:
            known[id(scope)] = (scope.path,)
        else:
            made = next(iter(scope.parent.writes[scope.owner]), "")
            known[id(scope)] = (*known[id(scope.parent)], made, scope.body_name)
        yield known[id(scope)], scope


def _put_back(original: ModelProto, returned: ModelProto, before: _Record) -> list[str]:
    """Puts back what a tool forgot, in place, and returns what could not be put back, in words."""
    lost: list[str] = []
    for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        carry_field(original, returned, name)
    carry_unknown(original, returned)
    del returned.metadata_props[:]  # tools leave statistics of their own there
    returned.metadata_props.extend(original.metadata_props)
    imported = {plain_domain(o.domain) for o in returned.opset_import}
    for opset in original.opset_import:
        if plain_domain(opset.domain) not in imported:
            returned.opset_import.add().CopyFrom(opset)
    if not returned.training_info:
        returned.training_info.extend(original.training_info)
    if not returned.configuration:
        returned.configuration.extend(original.configuration)
    there = {(f.domain, f.name, f.overload) for f in returned.functions}
    gone = [f for f in original.functions if (f.domain, f.name, f.overload) not in there]
    if gone:
        lost.append(f"functions, which are inlined: {_some([f'{f.domain}::{f.name}' for f in gone])}")
    functions = {(f.domain, f.name, f.overload): f for f in original.functions}
    for function in returned.functions:
        known = functions.get((function.domain, function.name, function.overload))
        if known is not None:
            carry_field(known, function, "doc_string")
            carry_unknown(known, function)
            _add_missing(known.metadata_props, function.metadata_props)
    graph = returned.graph
    carry_field(original.graph, graph, "name")
    carry_field(original.graph, graph, "doc_string")
    carry_unknown(original.graph, graph)
    _add_missing(original.graph.metadata_props, graph.metadata_props)
    _restore_interface(original.graph, graph)
    _restore_nodes(returned, before)
    _restore_sparse(original.graph, returned)
    _restore_value_infos(original.graph, graph)
    lost += _restore_annotations(original.graph, graph)
    return lost


def _add_missing(source: Any, target: Any) -> None:
    known = {entry.key for entry in target}
    for entry in source:
        if entry.key not in known:
            target.add().CopyFrom(entry)


def _restore_interface(original: GraphProto, graph: GraphProto) -> None:
    """Puts inputs and outputs back as they were, in their order; initializers that are inputs stay if they were."""
    stored = {tensor.name for tensor in graph.initializer}
    there = {info.name for info in graph.input}
    before = {tensor.name for tensor in original.initializer}
    inputs = [info for info in original.input if info.name in there or (info.name in before and info.name in stored)]
    for target, wanted in ((graph.input, inputs), (graph.output, list(original.output))):
        copies = [copy_of(info) for info in wanted]
        del target[:]
        target.extend(copies)


def _restore_nodes(returned: ModelProto, before: _Record) -> None:
    for place, scope in _places(returned):
        makers = before.makers.get(place, {})
        for position, node in enumerate(scope.nodes):
            known = next((makers[name] for name in scope.writes[position] if name in makers), None)
            if known is None:
                continue
            _add_missing(known.metadata_props, node.metadata_props)
            if known.op_type == node.op_type and known.domain == node.domain:
                node.name = known.name
                carry_field(known, node, "doc_string")
                carry_unknown(known, node)
                if not node.device_configurations:
                    node.device_configurations.extend(known.device_configurations)


def _restore_sparse(original: GraphProto, returned: ModelProto) -> None:
    """Puts back sparse initializers that are still read and that nothing else gives."""
    index = GraphIndex(returned)
    for sparse in original.sparse_initializer:
        name = sparse.values.name
        if not index.main.defines(name) and (index.main.consumers.get(name) or name in index.main.outputs):
            returned.graph.sparse_initializer.add().CopyFrom(sparse)


def _restore_value_infos(original: GraphProto, graph: GraphProto) -> None:
    made = {name for node in graph.node for name in node.output}
    made.update(tensor.name for tensor in graph.initializer)
    stated = {info.name: info for info in graph.value_info}
    for info in original.value_info:
        if info.name not in made:
            continue
        known = stated.get(info.name)
        if known is None:
            graph.value_info.add().CopyFrom(info)
        else:
            _add_missing(info.metadata_props, known.metadata_props)
            carry_field(info, known, "doc_string")
            carry_unknown(info, known)


def _restore_annotations(original: GraphProto, graph: GraphProto) -> list[str]:
    known = {annotation.tensor_name for annotation in graph.quantization_annotation}
    made = {name for node in graph.node for name in node.output}
    made.update(info.name for info in graph.input)
    stored = {tensor.name for tensor in graph.initializer}
    initializers = {tensor.name: tensor for tensor in original.initializer}
    lost = []
    for annotation in original.quantization_annotation:
        if annotation.tensor_name not in made | stored:
            lost.append(annotation.tensor_name)
            continue
        for entry in annotation.quant_parameter_tensor_names:
            if entry.value not in made | stored and entry.value in initializers:
                graph.initializer.add().CopyFrom(initializers[entry.value])
                stored.add(entry.value)
        if annotation.tensor_name not in known:
            graph.quantization_annotation.add().CopyFrom(annotation)
    return [f"quantization annotations of tensors that are gone: {_some(lost)}"] if lost else []


def _tell(draft: Draft, tool: str, before: ModelProto, after: ModelProto, lost: list[str]) -> None:
    """Records what a tool did to nodes and weights, and what got lost on the way."""
    old, new = (dict(_nodes_by_output(proto)) for proto in (before, after))
    gone, come = [each for each in old if each not in new], [each for each in new if each not in old]
    for name in gone:
        draft.record("node", name, f"removed by {tool}", before=old[name].op_type)
    for name in come:
        draft.record("node", name, f"made by {tool}", after=new[name].op_type)
    for name, node in new.items():
        if name in old and node.op_type != old[name].op_type:
            draft.record("node", name, f"op_type by {tool}", before=old[name].op_type, after=node.op_type)
    if before.ir_version != after.ir_version:
        draft.record("model", "", "ir_version", before=str(before.ir_version), after=str(after.ir_version))
    traced = [name for name in gone if old[name].metadata_props]
    if traced:
        lost = [*lost, f"metadata of {len(traced)} nodes that are gone: {_some(traced)}"]
    sparse = [s.values.name for s in before.graph.sparse_initializer]
    if sparse and not after.graph.sparse_initializer:
        lost = [*lost, f"sparseness of initializers: {_some(sparse)}"]
    removed, made = Counter(old[name].op_type for name in gone), Counter(new[name].op_type for name in come)
    words = f"{tool}: {len(old)} nodes before, {len(new)} after"
    draft.notes.append(f"{words}{_counted('; gone: ', removed)}{_counted('; new: ', made)}")
    for each in lost:
        draft.notes.append(f"{tool} lost {each}")
        draft.record("model", "", f"lost by {tool}", before=each)


def _nodes_by_output(proto: ModelProto) -> Iterator[tuple[str, NodeProto]]:
    for place, scope in _places(proto):
        path = "/".join(part for part in place if part)
        for position, node in enumerate(scope.nodes):
            name = next(iter(scope.writes[position]), node.name)
            yield f"{path}/{name}" if path else name, node


def _counted(words: str, counts: Counter[str]) -> str:
    if not counts:
        return ""
    return words + ", ".join(f"{count} {name}" for name, count in counts.most_common(_LISTED))


def _some(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


# -- the tools -----------------------------------------------------------------------------------------------------


def _onnxslim(proto: ModelProto) -> ModelProto:
    import onnxslim

    made: ModelProto = onnxslim.slim(proto)
    return made


def _onnxsim(proto: ModelProto) -> ModelProto:
    import onnxsim

    made, is_same = onnxsim.simplify(proto)
    if not is_same:
        raise RuntimeError("its own check failed: the simplified model computes something else")
    result: ModelProto = made
    return result


def _onnxscript(proto: ModelProto) -> ModelProto:
    from onnxscript import optimizer

    made: ModelProto = optimizer.optimize(proto)
    return made


def main(tool: str, sent: str, returned: str) -> None:
    """Runs a tool on a file; what a child process does."""
    import onnx

    run: Callable[[ModelProto], ModelProto] = {
        "onnxslim": _onnxslim,
        "onnxsim": _onnxsim,
        "onnxscript": _onnxscript,
    }[tool]
    proto = onnx.load(sent)
    Path(returned).write_bytes(run(proto).SerializeToString())


if __name__ == "__main__":
    main(*sys.argv[1:])
