"""The onnx package's own backend tests: cut from all inputs to all outputs, each model is what it was.

Two things are compared, of every one: the message, byte for byte where nothing had to be left out or mended, and the
numbers, in ONNX Runtime if it takes the model and else in the reference evaluator.
"""

from __future__ import annotations

import warnings
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from engines import Bits, run_ort, run_reference
from onnx import numpy_helper

from onnxbench.cut import extract
from onnxbench.graph import GraphIndex
from onnxbench.model import from_proto, load
from onnxbench.writer import save

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
CHUNKS = 12


@cache
def _cases() -> list[Any]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return sorted(collect_testcases(None), key=lambda case: case.name)


def _ran(proto: onnx.ModelProto, feeds: dict[str, Any]) -> tuple[str, dict[str, Bits] | None]:
    """Returns the engine that takes a model, and what it computes."""
    for engine, run in (("ort", run_ort), ("reference", run_reference)):
        try:
            return engine, run(proto, feeds)
        except Exception:  # what an engine does not take the other one may
            continue
    return "none", None


def _is_random(proto: onnx.ModelProto) -> bool:
    ops = {ref.node.op_type for ref in GraphIndex(proto).nodes()}
    draws = any(ref.node.op_type == "Dropout" and len(ref.node.input) > 2 for ref in GraphIndex(proto).nodes())
    return draws or bool(ops & {"Bernoulli", "Multinomial"}) or any(name.startswith("Random") for name in ops)


def _equals(proto: onnx.ModelProto, feeds: dict[str, Any], folder: Path) -> tuple[str, list[str]]:
    """Cuts a model from end to end; returns how it was compared, and what is wrong."""
    index = GraphIndex(proto)
    before = proto.SerializeToString(deterministic=True)
    piece = extract(from_proto(proto), index.main.outputs, index.main.true_inputs(), index=index, keep_unused=True)
    if proto.SerializeToString(deterministic=True) != before:
        return "", ["the model was changed"]
    saved = save(piece.model, folder / "piece.onnx")
    made = load(folder / "piece.onnx").proto
    problems = []
    dead = len(made.graph.node) < len(proto.graph.node)
    reduced = dead or len(made.functions) < len(proto.functions) or len(made.opset_import) < len(proto.opset_import)
    reduced = reduced or len(made.graph.initializer) < len(proto.graph.initializer) or bool(proto.training_info)
    exact = made.SerializeToString(deterministic=True) == before
    if not exact and not reduced and not saved.repairs:
        problems.append("the message differs")
    engine, expected = ("none", None) if _is_random(proto) else _ran(proto, feeds)
    if expected is None:
        if not exact:
            problems.append("nothing runs it twice alike, and the message differs")
        return "message", problems
    run = run_ort if engine == "ort" else run_reference
    try:
        got = run(made, feeds)
    except Exception as error:  # whatever an engine raises: the whole model ran
        return engine, [*problems, f"the piece does not run in {engine}: {str(error)[:200]}"]
    if got != expected:
        problems.append(f"{engine} computes something else")
    return engine, problems


def _node_feeds(case: Any) -> dict[str, Any]:
    inputs, _ = case.data_sets[0]
    return {value.name: _plain(given) for value, given in zip(case.model.graph.input, inputs, strict=False)}


def _plain(given: Any) -> Any:
    if isinstance(given, onnx.TensorProto):
        return numpy_helper.to_array(given)
    if isinstance(given, onnx.SequenceProto):
        return numpy_helper.to_list(given)
    if isinstance(given, onnx.OptionalProto):
        return numpy_helper.to_optional(given)
    return given


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_node_cases(chunk: int, tmp_path: Path) -> None:
    compared: Counter[str] = Counter()
    wrong: dict[str, list[str]] = {}
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in _cases()[chunk::CHUNKS]:
            how, problems = _equals(case.model, _node_feeds(case), tmp_path)
            compared[how] += 1
            if problems:
                wrong[case.name] = problems
    assert not wrong
    assert compared.total() > 1800 // CHUNKS
    assert compared["ort"] + compared["reference"] > 0.97 * compared.total(), compared


def _stored(folder: Path, model: onnx.ModelProto) -> dict[str, Any]:
    values = {}
    for number, info in enumerate(model.graph.input):
        file = folder / "test_data_set_0" / f"input_{number}.pb"
        if not file.is_file():
            break
        kind = onnx.SequenceProto if info.type.HasField("sequence_type") else onnx.TensorProto
        values[info.name] = _plain(kind.FromString(file.read_bytes()))
    return values


@pytest.mark.parametrize("kind", ["simple", "pytorch-converted", "pytorch-operator"])
def test_stored_models(kind: str, tmp_path: Path) -> None:
    wrong, compared = {}, Counter()
    for path in sorted((DATA / kind).glob("*/model.onnx")):
        model = onnx.load(path)
        how, problems = _equals(model, _stored(path.parent, model), tmp_path)
        compared[how] += 1
        if problems:
            wrong[path.parent.name] = problems
    assert not wrong
    assert compared.total() > 20
    assert compared["message"] <= 2, compared


@pytest.mark.parametrize("path", sorted((DATA / "light").glob("*.onnx")), ids=lambda path: path.stem)
def test_light_models(path: Path, tmp_path: Path) -> None:
    model = onnx.load(path)
    there = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for info in model.graph.input:
        if info.name not in there:
            shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
            feeds[info.name] = np.random.RandomState(0).uniform(-1, 1, shape).astype(np.float32)
    how, problems = _equals(model, feeds, tmp_path)
    assert not problems
    assert how == "ort"
