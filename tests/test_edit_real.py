"""Every operation of ``onnxbench edit`` on real models, and on fixtures with bodies and functions.

The table says, for each operation, a recipe that fits most models (or None where a model has nothing for it), and
which lists of the model it may change. Each one is applied to a few models, chosen by a seed, with verification in
ONNX Runtime: the result is valid, loads and runs; what it changes of the results is what the operation says; nothing
outside these lists changes, and what stays keeps its order; and the edit undone is the original, byte for byte.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cases import all_cases
from corpus import fetch
from engines import ort_session

import onnxbench
from onnxbench import reversal
from onnxbench.branching import taken_branch
from onnxbench.draft import Draft
from onnxbench.errors import GuardError, NotFoundError, RefusedResultError, UnsupportedError, UsageError
from onnxbench.graph import GraphIndex, NodeRef, Scope
from onnxbench.model import Model, load
from onnxbench.operations import OPERATIONS
from onnxbench.recipe import Step, parse_recipe
from onnxbench.surgery import Edited, edit, edit_file, undo_file
from onnxbench.tensortype import elem_type

REAL = (
    "attacut_c", "attacut_sc", "basic_pitch", "eeg_seizure_lstm", "eeg_spindle_unet", "magika", "nakdimon_loop",
    "oskut_scads", "ppocr_v2_cls", "ppocr_v4_det", "silero_vad", "silero_vad_16k_op15", "silero_vad_ifless", "swift_f0",
    "tashkeel_seq2seq",
)  # fmt: skip
MODELS_EACH = 2
"""On so many real models each operation is tried, but those that take long."""
SLOW = {"make_batch_dynamic", "make_dynamic", "simplify"}
FIXTURES_EACH = 4
RARE = {"take_branches"}
"""Operations for which few models have anything."""
MADE_FOR = {"count_loops", "dequantize", "symmetric_quantization", "resize_by_sizes"}
"""Operations that mend what one program writes: tests/test_ops_tensorrt.py makes such models."""

Steps = list[dict[str, Any]]


@dataclass(frozen=True)
class Subject:
    """A model, and choices that a seed makes in it."""

    model: Model
    chance: random.Random
    feeds: dict[str, Any]

    @cached_property
    def index(self) -> GraphIndex:
        return GraphIndex(self.model.proto)

    @property
    def main(self) -> Scope:
        return self.index.main

    def node(
        self, *ops: str, main: bool = False, where: Callable[[NodeRef], bool] = lambda ref: True
    ) -> NodeRef | None:
        """Returns a node of one of these operators (any, if none is named)."""
        found = [
            ref
            for ref in self.index.nodes()
            if (not ops or ref.node.op_type in ops)
            and not (main and ref.scope.path)
            and not any(root.is_function for root in _around(ref.scope))
            and where(ref)
        ]
        return self.chance.choice(found) if found else None

    def smooth(self, *, main: bool = False) -> NodeRef | None:
        """Returns a node that gives numbers of the type and shape that it is given."""
        return self.node("Relu", "Sigmoid", "Tanh", main=main)

    def edge(self) -> str | None:
        """Returns a tensor of floats in the main graph that a node makes and another reads."""
        draft = Draft.of(self.model)
        names = [name for name in self.main.producers if name in self.main.consumers and name not in self.main.outputs]
        self.chance.shuffle(names)
        for name in names[:10]:
            found = draft.index.tensor(name)
            kind = draft.type_of(found) if found is not None else None
            if kind is not None and elem_type(kind) in (1, 11):
                return name
        return None

    def weight(self, where: Callable[[onnx.TensorProto], bool] = lambda tensor: True) -> onnx.TensorProto | None:
        """Returns an initializer of floats of the main graph that is no input."""
        found = [
            tensor
            for tensor in self.model.proto.graph.initializer
            if tensor.data_type == 1 and tensor.name not in self.main.inputs and tensor.name in self.main.consumers
            and where(tensor)
        ]  # fmt: skip
        return self.chance.choice(found) if found else None

    def port(self, kind: str, *types: int) -> str | None:
        """Returns an input or output of one of these element types."""
        infos = getattr(self.model.proto.graph, kind)
        names = [
            info.name
            for info in infos
            if elem_type(info.type) in types and (kind == "output" or info.name not in self.main.constants)
        ]
        return self.chance.choice(names) if names else None

    def open_dim(self) -> tuple[str, int, int] | None:
        """Returns an input, one of its dimensions with a name or of no size, and the size that the feeds have."""
        found = [
            (info.name, axis, np.shape(self.feeds[info.name])[axis])
            for info in self.model.proto.graph.input
            if info.name in self.feeds
            for axis, dim in enumerate(info.type.tensor_type.shape.dim)
            if not dim.HasField("dim_value")
        ]
        return self.chance.choice(found) if found else None


def _around(scope: Scope) -> list[Scope]:
    found = [scope]
    while found[-1].parent is not None:
        found.append(found[-1].parent)
    return found


def at(ref: NodeRef) -> str:
    """Returns a selector of one node."""
    return f'node:"{ref.path}"' if "#" not in ref.path else f"node:{ref.path}"


def quoted(name: str) -> str:
    return f'"{name}"'


def one(word: str, **fields: Any) -> Steps:
    return [{word: fields}]


def on_node(word: str, find: Callable[[Subject], NodeRef | None], **fields: Any) -> Callable[[Subject], Steps | None]:
    """Returns a recipe of one step on a node that is found in a model."""

    def make(subject: Subject) -> Steps | None:
        ref = find(subject)
        return None if ref is None else one(word, at=tensor_of(ref), **fields)

    return make


def tensor_of(ref: NodeRef) -> str:
    """Returns a selector of a node by what it makes, for a node may share its name with others."""
    made = next(name for name in ref.scope.writes[ref.position] if name)
    return quoted(f"{ref.scope.path}/{made}" if ref.scope.path else made)


def always(word: str, **fields: Any) -> Callable[[Subject], Steps]:
    return lambda subject: one(word, **fields)


def other_op(subject: Subject) -> Steps | None:
    ref = subject.smooth()
    to = {"Relu": "Sigmoid", "Sigmoid": "Tanh", "Tanh": "Relu"}
    return None if ref is None else one("set_op", at=tensor_of(ref), to=to[ref.node.op_type])


def deleted_attribute(subject: Subject) -> Steps | None:
    def is_default(ref: NodeRef) -> bool:
        return any(a.name == "group" and a.i == 1 for a in ref.node.attribute)

    ref = subject.node("Conv", where=is_default)
    return None if ref is None else one("delete_attribute", at=tensor_of(ref), name="group")


def inserted(subject: Subject) -> Steps | None:
    edge = subject.edge()
    return None if edge is None else one("insert", at=quoted(edge), op="Identity")


def added(subject: Subject) -> Steps | None:
    edge = subject.edge()
    return None if edge is None else one("add_nodes", text=f"added_by_a_test = Abs ({quoted(edge)})")


def marked(subject: Subject) -> Steps | None:
    """Puts a Mark behind a tensor, and takes it out again."""
    edge = subject.edge()
    if edge is None:
        return None
    said = {"func": "a_test", "func_id": 0, "type": "input", "name": "x", "id": 0}
    mark = {"at": quoted(edge), "op": "onnxbench::Mark", "to": "marked_by_a_test", "attributes": said}
    return [{"insert": mark, "changes": "nothing"}, {"unmark": "all"}]


def to_a_copy(word: str) -> Callable[[Subject], Steps | None]:
    def make(subject: Subject) -> Steps | None:
        edge = subject.edge()
        if edge is None:
            return None
        reader = NodeRef(subject.main, subject.main.consumers[edge][0])
        steps = one("add_nodes", text=f"copied_by_a_test = Identity ({quoted(edge)})")
        if word == "redirect":
            last = {"at": quoted(edge), "to": "copied_by_a_test", "readers": tensor_of(reader)}
        else:
            if edge not in reader.node.input:
                return None
            last = {"at": tensor_of(reader), "input": list(reader.node.input).index(edge), "to": "copied_by_a_test"}
        return [*steps, {word: last, "changes": "nothing"}]

    return make


def renamed(word: str) -> Callable[[Subject], Steps | None]:
    def make(subject: Subject) -> Steps | None:
        edge = subject.edge()
        return None if edge is None else one(word, at=quoted(edge), to="renamed/by:a test")

    return make


def outlined(subject: Subject) -> Steps | None:
    ref = subject.node("Relu", "Sigmoid", "Add", "Mul", "MatMul", "Conv", main=True)
    return None if ref is None else one("outline", at=tensor_of(ref), name="local::Part")


def outlined_then(word: str) -> Callable[[Subject], Steps | None]:
    def make(subject: Subject) -> Steps | None:
        ref = subject.smooth(main=True)
        if ref is None:
            return None
        source = subject.main.producers.get(ref.node.input[0])
        if source is None or subject.main.nodes[source].op_type in ("Constant", "If", "Loop"):
            return None
        both = [f"{tensor_of(ref)} | {tensor_of(NodeRef(subject.main, source))}"]
        steps = one("outline", at=both, name="local::Part")
        if word == "inline_functions":
            return [*steps, {word: {"at": "all"}}]
        return [*steps, {"move": {"at": quoted(f"local::Part/{ref.node.output[0]}"), "to": "out"}}]

    return make


def higher_opset(subject: Subject) -> Steps:
    return one("set_opset", version=Draft.of(subject.model).opset(None, "") + 1)


def higher_ir(subject: Subject) -> Steps | None:
    version = subject.model.proto.ir_version
    return one("set_ir_version", version=version + 1) if version < 10 else None


def of_port(word: str, kind: str, **fields: Any) -> Callable[[Subject], Steps | None]:
    def make(subject: Subject) -> Steps | None:
        name = subject.port(kind, *range(1, 17))
        return None if name is None else one(word, at=quoted(name), **fields)

    return make


def retyped(word: str, kind: str) -> Callable[[Subject], Steps | None]:
    def make(subject: Subject) -> Steps | None:
        name = subject.port(kind, 1)
        return None if name is None else one(word, at=quoted(name), to="float64")

    return make


def last_first(word: str, kind: str) -> Callable[[Subject], Steps | None]:
    def make(subject: Subject) -> Steps | None:
        names = [info.name for info in getattr(subject.model.proto.graph, kind)]
        return one(word, names=[names[-1]]) if len(names) > 1 else None

    return make


def one_output_less(subject: Subject) -> Steps | None:
    names = [info.name for info in subject.model.proto.graph.output]
    return one("remove_output", at=quoted(names[-1]), prune=True) if len(names) > 1 else None


def more_output(subject: Subject) -> Steps | None:
    edge = subject.edge()
    return None if edge is None else one("add_output", at=quoted(edge), name="handed_out")


def shaped(subject: Subject) -> Steps | None:
    found = subject.open_dim()
    if found is None or any(c in found[0] for c in ":,"):
        return None
    shape = np.shape(subject.feeds[found[0]])
    return one("set_shape", shape=f"{found[0]}:[{','.join(map(str, shape))}]")


def dimmed(word: str, value: str) -> Callable[[Subject], Steps | None]:
    def make(subject: Subject) -> Steps | None:
        found = subject.open_dim()
        if found is None or ":" in found[0]:
            return None
        return one(word, dim=f"{found[0]}:{found[1]}={value.format(size=found[2])}")

    return make


def freed_dim(subject: Subject) -> Steps | None:
    """Fixes an open dimension, and lets it vary again."""
    found = subject.open_dim()
    if found is None or ":" in found[0] or found[1] != 0:
        return None
    fixed = f"{found[0]}:0={found[2]}"
    return [{"set_dim": fixed}, {"make_dynamic": {"dim": f"{found[0]}:0=many"}}]


def freed_batch(subject: Subject) -> Steps | None:
    ports = subject.model.proto.graph.input
    names = [info.name for info in ports if info.name not in subject.main.constants]
    if len(names) != 1:
        return None
    (name,) = names
    dims = ports[0].type.tensor_type.shape.dim
    if ":" in name or len(dims) < 2 or dims[0].HasField("dim_value"):
        return None
    size = np.shape(subject.feeds[name])
    shape = f"{name}:[1,{','.join(map(str, size[1:]))}]"
    return [{"set_dim": f"{name}:0=1"}, {"make_batch_dynamic": {"to": "many", "inputs": [name], "shapes": [shape]}}]


def new_weight(subject: Subject) -> Steps | None:
    tensor = subject.weight(lambda each: len(each.dims) > 0)
    return None if tensor is None else one(
        "set_weight", at=quoted(tensor.name), value={"random": "normal", "seed": 7, "shape": list(tensor.dims)}
    )  # fmt: skip


def on_weight(word: str, rank: int | None = None, **fields: Any) -> Callable[[Subject], Steps | None]:
    def make(subject: Subject) -> Steps | None:
        tensor = subject.weight(lambda each: rank is None or len(each.dims) == rank)
        return None if tensor is None else one(word, at=quoted(tensor.name), **fields)

    return make


def decided(subject: Subject) -> Steps | None:
    """Fixes the sample rate of a model that asks for it in an If, so that the answer is constant."""
    if any(taken_branch(draft, ref) is not None for draft in [Draft.of(subject.model)] for ref in draft.index.nodes()):
        return one("take_branches")
    if "sr" not in subject.main.inputs or len(subject.main.bodies) != 1:
        return None
    return [*one("remove_input", at="sr", value=16000), *one("fold_constants", max_bytes="64K"), *one("take_branches")]


def where_there_is_any(word: str) -> Callable[[Subject], Steps | None]:
    """Returns the operation where it has something to do and does it: few models have such nodes."""

    def make(subject: Subject) -> Steps | None:
        steps = one(word)
        try:
            done = edit(subject.model, recipe_of(steps), stamp=False)
        except (GuardError, NotFoundError, RefusedResultError, UnsupportedError, UsageError):
            return None
        return steps if done.changes else None

    return make


NEG_TWICE = {
    "pattern": "f (x) => (y) { y = Relu (x) }",
    "replacement": "f (x) => (y) { a = Neg (x) b = Neg (a) y = Relu (b) }",
}
_NODES = {"graph.node", "graph.value_info"}
_WIRING = {"graph.node", "graph.value_info", "opset_import"}
_WEIGHTS = {"graph.node", "graph.initializer", "graph.value_info"}
_PORTS = {"graph.input", "graph.output", "graph.value_info"}
_ALL = {"graph.node", "graph.initializer", "graph.value_info", "graph.input", "graph.output", "graph.metadata_props",
        "graph.quantization_annotation", "functions", "opset_import", "metadata_props"}  # fmt: skip

TABLE: dict[str, tuple[Callable[[Subject], Steps | None], set[str]]] = {
    "set_op": (other_op, _NODES),
    "set_attribute": (on_node("set_attribute", lambda s: s.node("Conv"), name="auto_pad", value="NOTSET"), _NODES),
    "delete_attribute": (deleted_attribute, _NODES),
    "rename_node": (on_node("rename_node", lambda s: s.node(), to="renamed by a test"), _NODES),
    "rename_nodes": (
        lambda s: one("rename_nodes", prefix="t/") if s.node(where=lambda r: bool(r.node.name)) else None,
        _NODES | {"functions"},
    ),
    "insert": (inserted, _WIRING),
    "add_nodes": (added, _WIRING),
    "delete": (on_node("delete", lambda s: s.smooth()), _WIRING),
    "replace": (on_node("replace", lambda s: s.smooth(), op="Softsign"), _WIRING),
    "duplicate": (on_node("duplicate", lambda s: s.smooth(), name="copied by a test"), _WIRING),
    "rewire": (to_a_copy("rewire"), _WIRING),
    "redirect": (to_a_copy("redirect"), _WIRING),
    "rename_tensor": (renamed("rename_tensor"), _WIRING),
    "rename_tensors": (
        always("rename_tensors", prefix="t/", keep_interface=True),
        _WEIGHTS | {"graph.quantization_annotation", "functions", "graph.sparse_initializer"},
    ),
    "outline": (outlined, _WIRING | {"functions"}),
    "inline_functions": (outlined_then("inline_functions"), _WIRING | {"functions"}),
    "move": (outlined_then("move"), _WIRING | {"functions"}),
    "simplify": (always("simplify", tool="onnxslim"), _ALL),
    "fold_constants": (always("fold_constants", max_bytes="64K"), _WEIGHTS),
    "take_branches": (decided, _WEIGHTS | {"graph.input"}),
    "clean": (
        lambda s: [*(decided(s) or [])[:1], *one("clean", max_bytes="64K")],
        _WEIGHTS | {"graph.input", "functions", "opset_import"},
    ),
    "cse": (always("cse"), _WEIGHTS),
    "remove_dead": (always("remove_dead"), _WEIGHTS | {"functions", "opset_import"}),
    "sort": (always("sort", by="depth"), {"graph.node", "functions"}),
    "dedupe_names": (always("dedupe_names"), _WIRING | {"functions"}),
    "name_nodes": (always("name_nodes", pattern="n{position}", all=True), _NODES | {"functions"}),
    "set_opset": (higher_opset, _ALL),
    "set_ir_version": (higher_ir, set()),
    "import_opset": (always("import_opset", domain="acme", version=3), {"opset_import"}),
    "remove_opset_import": (
        lambda s: [{"import_opset": "acme=3"}, {"import_opset": "acme.more=1"}, {"remove_opset_import": "acme"}],
        {"opset_import"},
    ),
    "set_metadata": (always("set_metadata", key="k", value="v"), {"metadata_props"}),
    "delete_metadata": (
        lambda s: [{"set_metadata": "a=1"}, {"set_metadata": "b=2"}, {"delete_metadata": "a"}],
        {"metadata_props"},
    ),
    "set_doc": (always("set_doc", text="what a test says"), set()),
    "set_producer": (always("set_producer", producer="a test", version="1"), set()),
    "set_model_version": (always("set_model_version", version=77), set()),
    "set_domain": (always("set_domain", domain="com.example.test"), set()),
    "set_graph_name": (always("set_graph_name", to="named by a test"), set()),
    "add_input": (always("add_input", name="extra", type="float32[1]"), {"graph.input"}),
    "remove_input": (
        lambda s: [{"add_input": "a1:float32[1]"}, {"add_input": "a2:float32[1]"}, {"remove_input": "a1"}],
        {"graph.input"},
    ),
    "add_output": (more_output, {"graph.node", "graph.output", "opset_import"}),
    "remove_output": (one_output_less, _WEIGHTS | {"graph.output"}),
    "reorder_inputs": (last_first("reorder_inputs", "input"), set()),
    "reorder_outputs": (last_first("reorder_outputs", "output"), set()),
    "rename_input": (of_port("rename_input", "input", to="input of a test"), _WIRING | {"graph.input", "graph.output"}),
    "rename_output": (
        of_port("rename_output", "output", to="output of a test"),
        _WIRING | {"graph.input", "graph.output", "graph.initializer"},
    ),
    "retype_input": (retyped("retype_input", "input"), _WIRING | {"graph.input"}),
    "retype_output": (retyped("retype_output", "output"), _WIRING | {"graph.output"}),
    "set_shape": (shaped, _PORTS | _NODES),
    "set_dim": (dimmed("set_dim", "{size}"), _PORTS | _NODES),
    "name_dim": (dimmed("name_dim", "named_by_a_test"), _PORTS | _NODES),
    "make_dynamic": (freed_dim, _PORTS | _NODES),
    "make_batch_dynamic": (freed_batch, _PORTS | _WEIGHTS),
    "add_weight": (
        always("add_weight", name="added by a test", value=[0.5, 1.5], dtype="float16"),
        {"graph.initializer"},
    ),
    "set_weight": (new_weight, {"graph.initializer"}),
    "cast_weight": (on_weight("cast_weight", to="bfloat16"), _WEIGHTS),
    "transpose_weight": (on_weight("transpose_weight", 2), _WEIGHTS),
    "to_constant": (on_weight("to_constant"), _WEIGHTS),
    "to_initializer": (
        on_node("to_initializer", lambda s: s.node("Constant")),
        _WEIGHTS | {"graph.sparse_initializer"},
    ),
    "share_equal_weights": (always("share_equal_weights"), _WEIGHTS | {"graph.sparse_initializer"}),
    "strip_weights": (always("strip_weights", seed=1), _WEIGHTS | {"functions", "graph.sparse_initializer"}),
    "externalize": (always("externalize"), set()),
    "inline_weights": (always("inline_weights"), set()),
    "unmark": (marked, _WIRING | {"functions"}),
    "set_precision": (always("set_precision", to="fp16", weights="clamp"), _ALL | {"graph.sparse_initializer"}),
    "count_loops": (where_there_is_any("count_loops"), _WEIGHTS),
    "dequantize": (where_there_is_any("dequantize"), _ALL),
    "symmetric_quantization": (where_there_is_any("symmetric_quantization"), _WEIGHTS),
    "resize_by_sizes": (where_there_is_any("resize_by_sizes"), _WEIGHTS),
    "rewrite": (lambda s: one("rewrite", **NEG_TWICE, max=2) if s.node("Relu") else None, _WIRING),
}
REORDERS = {"sort", "simplify", "inline_functions", "reorder_inputs", "reorder_outputs"}


def test_the_table_has_every_operation():
    assert set(TABLE) == set(OPERATIONS)


def recipe_of(steps: Steps) -> list[Step]:
    return list(parse_recipe(onnxbench_yaml(steps)).steps)


def onnxbench_yaml(steps: Steps) -> str:
    import yaml

    return yaml.safe_dump({"steps": steps}, sort_keys=False, allow_unicode=True)


def check(word: str, subject: Subject, path: Path, steps: Steps, tmp_path: Path, *, verify: bool) -> Edited:
    """Applies a recipe, and checks what every edit must keep."""
    recipe = recipe_of(steps)
    out, patch = tmp_path / "out.onnx", tmp_path / "back.undo"
    done = edit_file(
        path, out, recipe, verify=subject.feeds if verify else False, stamp=False, save_undo=patch
    )  # fmt: skip
    assert done.edited.passed, [step.drift for step in done.edited.steps]

    # onnx's strict inference has no notion of sparse initializers
    is_sparse = len(done.edited.model.proto.graph.sparse_initializer) > 0
    onnx.checker.check_model(str(out), full_check=not is_sparse)
    if not done.edited.repairs:
        allowed = TABLE[word][1] | {"graph.output" for change in done.edited.changes if change.kind == "output"}
        unchanged(word, subject.model.proto, done.edited.model.proto, allowed)
    undo_file(out, tmp_path / "again.onnx", patch)
    onnxbench.save(load(path), tmp_path / "plain.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()
    return done.edited


def unchanged(word: str, before: onnx.ModelProto, after: onnx.ModelProto, allowed: set[str]) -> None:
    """Compares two models list by list: only some may change, and what is in both stands in the same order."""
    for (name, old), (_, new) in zip(reversal._lists(before), reversal._lists(after), strict=True):
        first, second = ([item.SerializeToString(deterministic=True) for item in each] for each in (old, new))
        if word not in REORDERS:
            if name not in allowed:
                assert first == second, f"{word} changed {name}"
            common = set(first) & set(second)
            assert [x for x in first if x in common] == [x for x in second if x in common] or len(common) != len(
                set(first)
            ), name
        elif name not in allowed:
            assert sorted(first) == sorted(second), f"{word} changed {name}"


@cache
def real(path: Path) -> Model:
    return load(path)


def subject_of(model: Model, feeds: dict[str, Any], *seeds: str) -> Subject:
    return Subject(model, random.Random(zlib.crc32("/".join(seeds).encode())), feeds)


@pytest.mark.corpus
@pytest.mark.parametrize("word", [word for word in OPERATIONS if word not in MADE_FOR])
def test_an_operation_on_real_models(corpus, word, tmp_path):
    tried = 0
    order = random.Random(zlib.crc32(word.encode())).sample(REAL, len(REAL))
    for name in ("magika", *order) if word in SLOW else order:
        path, entry = corpus(name)
        feeds = fetch.seeded_feeds(path, entry)
        subject = subject_of(real(path), feeds, word, name)
        steps = TABLE[word][0](subject)
        if steps is None:
            continue
        folder = tmp_path / name
        folder.mkdir()
        check(word, subject, path, steps, folder, verify=True)
        session = ort_session(folder / "out.onnx")
        assert session.get_outputs()
        tried += 1
        if tried == (1 if word in SLOW else MODELS_EACH):
            break
    assert tried >= (1 if word in SLOW | RARE else 2), "the table gives no recipe for this operation"


# -- fixtures: bodies, functions, captures, external data, sparse weights ------------------------------------------

RUNNABLE = [case for case in all_cases() if case.valid == "yes" and case.engine == "ort"]


@pytest.mark.parametrize("word", [word for word in OPERATIONS if word not in MADE_FOR])
def test_an_operation_on_fixtures(word, tmp_path):
    """The same on fixtures, which have much that an operation must refuse: such are left out."""
    done = 0
    for case in random.Random(zlib.crc32(word.encode())).sample(RUNNABLE, len(RUNNABLE)):
        subject = subject_of(real(case.path), case.feeds(), word, case.name)
        steps = TABLE[word][0](subject)
        if steps is None:
            continue
        folder = tmp_path / str(done)
        folder.mkdir(exist_ok=True)
        try:
            check(word, subject, case.path, steps, folder, verify=True)
        except (GuardError, RefusedResultError, UnsupportedError, UsageError):
            continue
        done += 1
        if done == FIXTURES_EACH:
            break
    assert done >= (1 if word in RARE else FIXTURES_EACH)
