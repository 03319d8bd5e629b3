"""What an operation of ``onnxbench edit`` does not touch stays as it was, byte for byte: all operations, all fixtures.

Each operation that has something to do in a fixture is applied to it (``test_edit_real.TABLE`` says how). Then

- every field of model and graph that is no list is as it was, but those that the operation is about;
- so is every list that the operation has no business with, unknown fields and order included;
- in the lists that it may change, each item that is not there any more, and each new one, has to do with something
  that the operation reports as changed;
- the recorded way back leads to the model before, byte for byte.
"""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import onnx
import pytest
from cases import Case, cases
from test_edit_real import REORDERS, TABLE, Subject, recipe_of

from onnxbench import reversal
from onnxbench.draft import Change
from onnxbench.errors import (
    ExecutionError,
    GuardError,
    NotFoundError,
    RefusedResultError,
    UnsupportedError,
    UsageError,
)
from onnxbench.graph import GraphIndex
from onnxbench.model import Model, load
from onnxbench.operations import OPERATIONS
from onnxbench.patterns._replacement import RULE_KEY
from onnxbench.surgery import edit

FIELDS = {
    "set_opset": {"ir_version"},
    "outline": {"ir_version"},
    "set_ir_version": {"ir_version"},
    "set_producer": {"producer_name", "producer_version"},
    "set_model_version": {"model_version"},
    "set_domain": {"domain"},
    "set_doc": {"graph.doc_string", "doc_string"},
    "set_graph_name": {"graph.name"},
    "set_precision": {"ir_version", "graph.name"},  # a graph without a name gets one, and a note says so
}
WHOLE = {
    "simplify", "set_opset", "strip_weights", "make_batch_dynamic", "name_nodes", "rename_nodes", "rename_tensors",
    "take_branches", "inline_functions", "clean", "set_precision", "dequantize", "symmetric_quantization",
}  # fmt: skip
"""Operations that may change any item of their lists."""
FOLLOWS = {
    "graph.value_info": "types of what is computed from a change are inferred anew",
    "graph.quantization_annotation": "an annotation goes by the name of its tensor, and goes with it",
}
"""Lists that may follow a change elsewhere, and why."""
RETIES = {"redirect", "rewire"}
"""Operations after which a node may have to stand elsewhere."""


def scalars(proto: onnx.ModelProto) -> dict[str, Any]:
    """Returns the fields of model and graph that are no lists, unknown ones too (as bytes, under no name)."""
    found: dict[str, Any] = {}
    for prefix, message in (("", proto), ("graph.", proto.graph)):
        rest = type(message)()
        rest.CopyFrom(message)
        for field, value in message.ListFields():
            rest.ClearField(field.name)
            if not field.is_repeated and field.name != "graph":
                found[prefix + field.name] = value
        found[prefix] = rest.SerializeToString(deterministic=True)
    return found


def names_in(item: Any) -> Iterator[str]:
    """Yields all names in an item of a model: of nodes, tensors, functions, keys, domains, in bodies too."""
    pending = [item]
    while pending:
        message = pending.pop()
        for field, value in message.ListFields():
            values = value if field.is_repeated else [value]
            if field.message_type is not None:
                pending.extend(values)
            elif field.name in ("name", "input", "output", "key", "domain", "tensor_name", "op_type", "dim_param"):
                yield from values


def touched(changes: tuple[Change, ...], *indices: GraphIndex) -> set[str]:
    """Returns the names that changes are about; of a node that is told by its label, also those of its tensors.

    So a node that reads or makes one of these tensors has to do with the change.
    """
    labels: dict[str, list[str]] = {}
    for index in indices:
        for ref in index.nodes():
            labels.setdefault(ref.path, []).extend((*ref.node.input, *ref.node.output, ref.node.name))
    found: set[str] = set()
    for change in changes:
        if change.kind == "model" and change.what.startswith("metadata "):
            found.add(change.what.split(" ")[1])
        for text in (change.where, change.before, change.after):
            if isinstance(text, str) and text:
                found.update((text, text.rpartition("/")[2], text.partition(" ")[0], *labels.get(text, ())))
                parts = text.split("/")
                for end in range(1, len(parts)):  # the node whose body it is in
                    found.update(labels.get("/".join(parts[:end]), ()))
    return found - {""}


def complaints(word: str, before: Model, after: Model, changes: tuple[Change, ...]) -> Iterator[str]:
    first, second = scalars(before.proto), scalars(after.proto)
    for name in first.keys() | second.keys():
        if first.get(name) != second.get(name) and name not in FIELDS.get(word, ()):
            yield f"{name or 'an unknown field'}: {first.get(name)!r} -> {second.get(name)!r}"
    allowed = TABLE[word][1] | {f"graph.{change.kind}" for change in changes if change.kind in ("input", "output")}
    if word not in FIELDS:
        allowed |= FOLLOWS.keys()
    if before.proto.ir_version < 4:  # every initializer is an input, too
        allowed |= {"graph.input"} if "graph.initializer" in allowed else set()
    known = touched(changes, GraphIndex(before.proto), GraphIndex(after.proto))
    if word == "rewrite":
        known.add(RULE_KEY)  # which new nodes have in their metadata
    for (name, old), (_, new) in zip(reversal._lists(before.proto), reversal._lists(after.proto), strict=True):
        items = [{item.SerializeToString(deterministic=True): item for item in each} for each in (old, new)]
        counts = [Counter(item.SerializeToString(deterministic=True) for item in each) for each in (old, new)]
        moved = [*(counts[0] - counts[1]), *(counts[1] - counts[0])]
        if name not in allowed and moved:
            yield f"{name} changed"
        if word not in REORDERS | RETIES:
            kept = [[b for b in each if b in counts[0] and b in counts[1]] for each in counts]
            if kept[0] != kept[1]:
                yield f"the order in {name} changed"
        if word not in WHOLE and name not in FOLLOWS:
            for data in moved:
                item = items[0].get(data) or items[1].get(data)
                if known.isdisjoint(names_in(item)):
                    yield f"{name}: no change tells of {str(item)[:300]!r}"


@cases(lambda case: case.valid != "no")
def test_what_is_not_touched_stays(case: Case, tmp_path):
    model = load(case.path)
    feeds = case.feeds() if case.engine else {}
    bytes_before = model.proto.SerializeToString(deterministic=True)
    for word in OPERATIONS:
        chance = random.Random(zlib.crc32(f"{word}/{case.name}".encode()))
        steps = TABLE[word][0](Subject(model, chance, feeds))
        if steps is None:
            continue
        try:
            edited = edit(model, recipe_of(steps), stamp=False)
        except (ExecutionError, GuardError, NotFoundError, RefusedResultError, UnsupportedError, UsageError):
            continue
        assert model.proto.SerializeToString(deterministic=True) == bytes_before, f"{word} changed its input"
        if edited.repairs:
            continue
        assert not list(complaints(word, model, edited.model, edited.changes)), (word, edited.changes)
        patch = reversal.save_patch(tmp_path / "back.undo", model, edited.model)
        again = reversal.undo(edited.model, patch)
        assert reversal.fingerprint(again.proto) == reversal.fingerprint(model.proto), word


@pytest.mark.parametrize("word", sorted(WHOLE | FIELDS.keys()))
def test_the_tables_name_operations(word):
    assert word in OPERATIONS
