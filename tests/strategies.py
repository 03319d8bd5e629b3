"""Random models for property tests: valid ones, with all that makes cutting hard.

Tensors keep the shape [2, 3] (or [1, 3] behind a Split), so that any two of one element type fit together and every
model runs on any feeds. What varies is the structure: dead ends, nodes of several outputs of which some are left out,
empty optional inputs, If with nested bodies that capture from any graph around them, Loop, local functions, constants
as initializers (dense, sparse, listed as inputs) or nodes, missing, equal and awkward names, nodes out of order, value
infos for some tensors.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto as T
from onnx import helper, numpy_helper

SHAPE = (2, 3)
_HALF = (1, 3)
_ARITHMETIC = (T.FLOAT, T.DOUBLE, T.INT64, T.INT32)
_OTHER = (T.BOOL, T.FLOAT16, T.UINT8)
Kind = tuple[int, tuple[int, ...]]
"""Element type and shape."""


def _info(name: str, kind: Kind) -> onnx.ValueInfoProto:
    """Returns a value info; of what a Loop collects the first size is not known, for it may not run at all."""
    return helper.make_tensor_value_info(name, kind[0], [None, *kind[1][1:]] if len(kind[1]) == 3 else kind[1])


@dataclass
class RandomModel:
    """A model and inputs for it."""

    proto: onnx.ModelProto
    feeds: dict[str, np.ndarray]


@st.composite
def models(draw: st.DrawFn, *, most_nodes: int = 14, sorted_nodes: bool | None = None) -> RandomModel:
    """Draws a model that ONNX Runtime runs; ``sorted_nodes`` says whether its nodes are in order (None: either)."""
    chance = draw(st.randoms(use_true_random=False))
    return _Builder(chance).build(draw(st.integers(1, most_nodes)), sorted_nodes)


@st.composite
def dags(draw: st.DrawFn, *, most_nodes: int = 9) -> onnx.ModelProto:
    """Draws the bare structure of a graph: custom operators, no types; for questions about reachability alone."""
    chance = draw(st.randoms(use_true_random=False))
    inputs = [f"in{number}" for number in range(draw(st.integers(1, 3)))]
    constants = [f"w{number}" for number in range(draw(st.integers(0, 2)))]
    known = [*inputs, *constants]
    nodes = []
    for number in range(draw(st.integers(1, most_nodes))):
        reads = [chance.choice(known) for _ in range(chance.randint(0, 3))]
        writes = [f"t{number}" if made == 0 else f"t{number}_{made}" for made in range(chance.choice([1, 1, 1, 2]))]
        nodes.append(helper.make_node("Op", reads, writes, domain="any"))
        known += writes
    if draw(st.booleans()):
        chance.shuffle(nodes)
    made = [name for node in nodes for name in node.output]
    ends = chance.sample(made, chance.randint(1, min(3, len(made))))
    graph = helper.make_graph(
        nodes,
        "g",
        [onnx.ValueInfoProto(name=name) for name in inputs],
        [onnx.ValueInfoProto(name=name) for name in ends],
        [numpy_helper.from_array(np.zeros(1, np.float32), name) for name in constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("any", 1)])


@dataclass
class _Level:
    """One graph that is being built: its nodes, its constants, and what it can read, graphs around it included."""

    seen: dict[str, Kind]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    own: list[str] = field(default_factory=list)

    def inner(self) -> _Level:
        return _Level(dict(self.seen))

    def add(self, name: str, kind: Kind) -> str:
        self.seen[name] = kind
        self.own.append(name)
        return name


class _Builder:
    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._count = 0
        self._functions: dict[str, onnx.FunctionProto] = {}
        self._node_names: set[str] = set()
        self._sparse_constants: list[onnx.SparseTensorProto] = []

    # ---- whole models

    def build(self, count: int, sorted_nodes: bool | None) -> RandomModel:
        chance = self._chance
        main = _Level({})
        inputs, feeds = [], {}
        for _ in range(chance.randint(1, 3)):
            kind = (chance.choice((*_ARITHMETIC, T.FLOAT, *_OTHER)), SHAPE)
            name = main.add(self._name("in"), kind)
            dims = list(SHAPE) if chance.random() < 0.7 else ["batch", None]
            inputs.append(helper.make_tensor_value_info(name, kind[0], dims))
            feeds[name] = self._values(kind)
        condition = main.add(self._name("cond"), (T.BOOL, ()))
        inputs.append(helper.make_tensor_value_info(condition, T.BOOL, []))
        feeds[condition] = np.array(chance.random() < 0.5)
        for _ in range(count):
            self._node(main, 0)
        made = [name for node in main.nodes for name in node.output if name]
        listed = [name for name in main.own if name not in feeds] if chance.random() < 0.2 else made
        ends = dict.fromkeys(chance.sample(listed, min(len(listed), chance.randint(1, 3))))
        outputs = [_info(name, main.seen[name]) for name in ends]
        graph = helper.make_graph(main.nodes, "random", inputs, outputs, main.constants)
        graph.sparse_initializer.extend(self._sparse_constants)
        for constant in main.constants:  # a default that a caller may override
            if chance.random() < 0.1:
                graph.input.append(helper.make_tensor_value_info(constant.name, constant.data_type, constant.dims))
        shown = chance.choice((0.0, 0.5, 1.0))
        graph.value_info.extend(
            _info(name, main.seen[name]) for name in made if name not in ends and chance.random() < shown
        )
        if sorted_nodes is False or (sorted_nodes is None and chance.random() < 0.2):
            shuffled = list(graph.node)
            chance.shuffle(shuffled)
            del graph.node[:]
            graph.node.extend(shuffled)
        imports = [helper.make_opsetid("", 17)]
        if self._functions or chance.random() < 0.2:
            imports.append(helper.make_opsetid("local", 1))
        proto = helper.make_model(graph, opset_imports=imports, functions=list(self._functions.values()))
        proto.ir_version = 8
        proto.metadata_props.add(key="kept", value="yes")
        return RandomModel(proto, feeds)

    def _values(self, kind: Kind) -> np.ndarray:
        gen = np.random.RandomState(self._chance.randint(0, 2**31))
        dtype = helper.tensor_dtype_to_np_dtype(kind[0])
        if kind[0] == T.BOOL:
            return np.asarray(gen.random_sample(kind[1]) < 0.5)
        if np.issubdtype(dtype, np.integer):
            return np.asarray(gen.randint(0, 9, kind[1])).astype(dtype)
        return np.asarray(gen.uniform(-2, 2, kind[1])).astype(dtype)

    def _name(self, base: str = "t") -> str:
        self._count += 1
        odd = ("", "", "", "", ":0", "/out", " b", "é", "&|!", "*[1]", '"q"')
        return f"{base}{self._count}{self._chance.choice(odd)}"

    def _node_name(self, op: str) -> str:
        """Returns no name, or one that nobody else has (ONNX Runtime wants that) and that looks like our labels."""
        name = self._chance.choice(
            ("", f"{op}#{self._chance.randint(0, 5)}", f"node_{self._count}", f"/layer{self._count % 3}/{op}")
        )
        if name in self._node_names:
            return ""
        self._node_names.add(name)
        return name

    # ---- nodes

    def _node(self, level: _Level, depth: int) -> None:
        chance = self._chance
        kinds = ["unary", "unary", "binary", "binary", "binary", "constant", "cast", "split", "topk", "dropout", "clip"]
        kinds += ["where", "concat", "function", "initializer", "sparse"]
        if depth < 3:
            kinds += ["branch", "branch", "loop"]
        kind = chance.choice(kinds)
        if kind == "sparse" and depth:
            kind = "constant"
        getattr(self, f"_{kind}")(level, depth)

    def _emit(self, level: _Level, op: str, reads: list[str], makes: list[Kind | None], **attributes: Any) -> list[str]:
        domain = attributes.pop("domain", "")
        names = ["" if kind is None else level.add(self._name(), kind) for kind in makes]
        level.nodes.append(helper.make_node(op, reads, names, name=self._node_name(op), domain=domain, **attributes))
        return names

    def _pick(self, level: _Level, types: tuple[int, ...] = _ARITHMETIC, shape: tuple[int, ...] = SHAPE) -> str:
        fitting = [name for name, kind in level.seen.items() if kind[0] in types and kind[1] == shape]
        if fitting:
            return self._chance.choice(fitting)
        return self._store(level, (types[0], shape))

    def _same(self, level: _Level, name: str) -> str:
        return self._chance.choice([other for other, kind in level.seen.items() if kind == level.seen[name]])

    def _store(self, level: _Level, kind: Kind) -> str:
        name = level.add(self._name("w"), kind)
        level.constants.append(numpy_helper.from_array(self._values(kind), name))
        return name

    def _unary(self, level: _Level, depth: int) -> None:
        read = self._pick(level, (*_ARITHMETIC, *_OTHER))
        kind = level.seen[read]
        ops = ["Identity"]
        if kind[0] in _ARITHMETIC:
            ops += ["Neg", "Abs"]
        if kind[0] in (T.FLOAT, T.DOUBLE):
            ops += ["Relu", "Tanh", "Sigmoid"]
        if kind[0] == T.BOOL:
            ops += ["Not"]
        self._emit(level, self._chance.choice(ops), [read], [kind])

    def _binary(self, level: _Level, depth: int) -> None:
        first = self._pick(level)
        self._emit(level, self._chance.choice(("Add", "Sub", "Mul")), [first, self._same(level, first)],
                   [level.seen[first]])  # fmt: skip

    def _constant(self, level: _Level, depth: int) -> None:
        kind = (self._chance.choice(_ARITHMETIC), SHAPE)
        self._emit(level, "Constant", [], [kind], value=numpy_helper.from_array(self._values(kind), "value"))

    def _initializer(self, level: _Level, depth: int) -> None:
        name = self._store(level, (self._chance.choice(_ARITHMETIC), SHAPE))
        self._emit(level, "Add", [self._same(level, name), name], [level.seen[name]])

    def _sparse(self, level: _Level, depth: int) -> None:
        name = self._name("sparse")
        values = helper.make_tensor(name, T.FLOAT, [2], [1.5, -2.5])
        where = helper.make_tensor("", T.INT64, [2], [1, 4])
        self._sparse_constants.append(helper.make_sparse_tensor(values, where, list(SHAPE)))
        self._emit(level, "Add", [self._pick(level, (T.FLOAT,)), name], [(T.FLOAT, SHAPE)])

    def _cast(self, level: _Level, depth: int) -> None:
        to = self._chance.choice((*_ARITHMETIC, *_OTHER))
        self._emit(level, "Cast", [self._pick(level)], [(to, SHAPE)], to=to)

    def _split(self, level: _Level, depth: int) -> None:
        read = self._pick(level)
        half = (level.seen[read][0], _HALF)
        self._emit(level, "Split", [read], [half, half], axis=0)

    def _concat(self, level: _Level, depth: int) -> None:
        first = self._pick(level, shape=_HALF)
        kind = level.seen[first]
        self._emit(level, "Concat", [first, self._same(level, first)], [(kind[0], SHAPE)], axis=0)

    def _topk(self, level: _Level, depth: int) -> None:
        read = self._pick(level)
        count = level.add(self._name("k"), (T.INT64, (1,)))
        level.constants.append(numpy_helper.from_array(np.array([3], np.int64), count))
        self._emit(level, "TopK", [read, count], [level.seen[read], (T.INT64, SHAPE)])

    def _dropout(self, level: _Level, depth: int) -> None:
        read = self._pick(level, (T.FLOAT, T.DOUBLE))
        mask: list[list[Kind | None]] = [[], [None], [(T.BOOL, SHAPE)]]
        self._emit(level, "Dropout", [read], [level.seen[read], *self._chance.choice(mask)])

    def _clip(self, level: _Level, depth: int) -> None:
        read = self._pick(level, (T.FLOAT, T.DOUBLE, T.INT64))
        bound = self._store(level, (level.seen[read][0], ()))
        reads = self._chance.choice(([read, "", bound], [read, bound], [read, bound, ""]))
        self._emit(level, "Clip", reads, [level.seen[read]])

    def _where(self, level: _Level, depth: int) -> None:
        first = self._pick(level, (T.FLOAT, T.INT64))
        self._emit(level, "Where", [self._pick(level, (T.BOOL,)), first, self._same(level, first)],
                   [level.seen[first]])  # fmt: skip

    def _function(self, level: _Level, depth: int) -> None:
        read = self._pick(level, (T.FLOAT, T.INT64))
        other = self._same(level, read)
        name = self._chance.choice(("Outer", "Inner"))
        inner = helper.make_function(
            "local", "Inner", ["a", "b"], ["s", "d"],
            [helper.make_node("Add", ["a", "b"], ["s"]), helper.make_node("Sub", ["a", "b"], ["d"])],
            [helper.make_opsetid("", 17)],
        )  # fmt: skip
        outer = helper.make_function(
            "local", "Outer", ["a", "b"], ["r", "t"],
            [
                helper.make_node("Inner", ["a", "b"], ["t", "u"], domain="local"),
                helper.make_node("Mul", ["t", "u"], ["r"]),
            ],
            [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)],
        )  # fmt: skip
        self._functions["Inner"] = inner
        if name == "Outer":
            self._functions["Outer"] = outer
        kind = level.seen[read]
        self._emit(level, name, [read, other], [kind, self._chance.choice((kind, None))], domain="local")

    # ---- bodies

    def _condition(self, level: _Level) -> str:
        return self._chance.choice([name for name, kind in level.seen.items() if kind == (T.BOOL, ())])

    def _branch(self, level: _Level, depth: int) -> None:
        chance = self._chance
        kinds = [(chance.choice(_ARITHMETIC), SHAPE) for _ in range(chance.randint(1, 2))]
        bodies = [self._body(level, depth, kinds) for _ in range(2)]
        self._emit(level, "If", [self._condition(level)], list(kinds), then_branch=bodies[0], else_branch=bodies[1])

    def _body(self, level: _Level, depth: int, kinds: list[Kind]) -> onnx.GraphProto:
        body = level.inner()
        for _ in range(self._chance.randint(0, 3)):
            self._node(body, depth + 1)
        results = [self._result(body, kind) for kind in kinds]
        return self._graph(body, [], results)

    def _result(self, body: _Level, kind: Kind) -> str:
        """Returns a tensor that the body itself makes: runtimes do not hand out what it only captures."""
        read = self._pick(body, (kind[0],), kind[1])
        return self._emit(body, "Identity", [read], [kind])[0]

    def _graph(self, body: _Level, inputs: list[onnx.ValueInfoProto], results: list[str]) -> onnx.GraphProto:
        outputs = [_info(name, body.seen[name]) for name in results]
        return helper.make_graph(body.nodes, "body", inputs, outputs, body.constants)

    def _loop(self, level: _Level, depth: int) -> None:
        kind = (self._chance.choice((T.FLOAT, T.INT64)), SHAPE)
        start = self._pick(level, (kind[0],))
        trips = level.add(self._name("n"), (T.INT64, ()))
        level.constants.append(numpy_helper.from_array(np.array(2, np.int64), trips))
        body = level.inner()
        step, going = body.add(self._name("i"), (T.INT64, ())), body.add(self._name("go"), (T.BOOL, ()))
        carried = body.add(self._name("c"), kind)
        inputs = [helper.make_tensor_value_info(name, *body.seen[name]) for name in (step, going, carried)]
        for _ in range(self._chance.randint(0, 2)):
            self._node(body, depth + 1)
        still = self._emit(body, "Identity", [going], [(T.BOOL, ())])[0]
        total = self._emit(body, "Add", [carried, self._pick(body, (kind[0],))], [kind])[0]
        row = self._result(body, kind)
        graph = self._graph(body, inputs, [still, total, row])
        self._emit(level, "Loop", [trips, self._condition(level), start], [kind, (kind[0], (2, *SHAPE))], body=graph)
