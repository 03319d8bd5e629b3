"""Inlined functions: the same numbers, no function left, and a map of where every inner tensor went."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from cases import Case, cases, named
from engines import as_feed, run_ort
from hypothesis import given
from strategies import RandomModel, models

from onnxbench.cut import expose, lift
from onnxbench.errors import UnsupportedError
from onnxbench.graph import GraphIndex
from onnxbench.inlining import inline_functions
from onnxbench.model import from_proto, load
from onnxbench.tensortype import make_type
from onnxbench.writer import save


def _has_functions(case: Case) -> bool:
    return case.valid != "no" and b"local" in case.path.read_bytes() and bool(case.whole().functions)


@cases(lambda case: _has_functions(case) and "ort" in case.entry["runs_in"])
def test_inlined_models_compute_the_same(case: Case, tmp_path: Path) -> None:
    model = load(case.path)
    before = model.proto.SerializeToString(deterministic=True)

    inlined, moved = inline_functions(model)

    assert model.proto.SerializeToString(deterministic=True) == before
    assert not inlined.proto.functions
    save(inlined, tmp_path / "m.onnx")
    assert run_ort(tmp_path / "m.onnx", case.feeds()) == run_ort(case.path, case.feeds())
    index = GraphIndex(inlined.proto)
    for names in moved.values():
        assert all(name in index.main.producers for name in names)
    assert "onnxbench" not in str(inlined.proto.graph)


@cases(lambda case: _has_functions(case))
def test_what_is_around_the_functions_stays(case: Case) -> None:
    model = load(case.path)
    inlined, _ = inline_functions(model)
    for name in ("ir_version", "producer_name", "metadata_props", "doc_string"):
        assert getattr(inlined.proto, name) == getattr(model.proto, name)
    for name in ("input", "output", "initializer", "quantization_annotation", "metadata_props"):
        assert list(getattr(inlined.proto.graph, name)) == list(getattr(model.proto.graph, name))
    kept = [n.SerializeToString(deterministic=True) for n in inlined.proto.graph.node]
    functions = {(f.domain, f.name) for f in model.proto.functions}
    for node in model.proto.graph.node:
        if (node.domain, node.op_type) not in functions and not any(a.HasField("g") for a in node.attribute):
            assert node.SerializeToString(deterministic=True) in kept


def test_a_model_without_functions_is_handed_back() -> None:
    model = load(named("whole_model").path)
    assert inline_functions(model) == (model, {})


@pytest.mark.parametrize(
    "name", ["function_name_clash", "function_two_domains", "function_shadows_standard", "function_unused_output"]
)
def test_inner_tensors_are_where_the_map_says(name: str, tmp_path: Path) -> None:
    """Each call is computed by itself, from the inputs it has in the whole, and compared with what was inlined."""
    case = named(name)
    model = load(case.path)
    index = GraphIndex(model.proto)
    inlined, moved = inline_functions(model)
    exposed = expose(inlined, [n for names in moved.values() for n in names])
    save(exposed.model, tmp_path / "inlined.onnx")
    inside = run_ort(tmp_path / "inlined.onnx", case.feeds())
    outer = expose(model, list(index.main.producers))
    save(outer.model, tmp_path / "outer.onnx")
    values = run_ort(tmp_path / "outer.onnx", case.feeds())
    compared = 0
    for key, scope in index.functions.items():
        calls = [node for node in index.main.nodes if (node.domain, node.op_type, node.overload) == key]
        types = {tensor: make_type(1, None) for tensor in scope.tensor_names()}
        lifted = lift(model, scope.path, types=types)
        whole = expose(lifted.model, list(scope.producers), types=types)
        save(whole.model, tmp_path / "function.onnx")
        for number, call in enumerate(calls):
            feeds = {
                inner: case.feeds()[given] if given in case.feeds() else as_feed(values[given])
                for inner, given in zip(scope.inputs, call.input, strict=True)
            }
            got = run_ort(tmp_path / "function.onnx", feeds)
            for tensor in scope.producers:
                if f"{scope.path}/{tensor}" in moved and len(moved[f"{scope.path}/{tensor}"]) == len(calls):
                    assert inside[moved[f"{scope.path}/{tensor}"][number]] == got[tensor]
                    compared += 1
    assert compared


def test_defaults_of_attributes_are_kept(tmp_path: Path) -> None:
    """onnx's own inliner forgets them."""
    case = named("function_attributes")
    inlined, _ = inline_functions(load(case.path))
    save(inlined, tmp_path / "m.onnx")
    assert run_ort(tmp_path / "m.onnx", case.feeds()) == run_ort(case.path, case.feeds())


def test_a_function_of_another_opset_is_converted() -> None:
    inlined, moved = inline_functions(load(named("function_other_opset").path))
    assert not inlined.proto.functions
    assert moved


def test_functions_out_of_order(tmp_path: Path) -> None:
    inlined, moved = inline_functions(load(named("unsorted_in_function").path))
    save(inlined, tmp_path / "m.onnx")
    made = {name for node in inlined.proto.graph.node for name in node.output}
    assert {name for names in moved.values() for name in names} <= made
    assert all(path.startswith("local::") for path in moved)
    source = load(named("unsorted_in_function").path)
    (function,) = source.proto.functions
    paths = {f"local::{function.name}/{name}" for node in function.node for name in node.output}
    assert set(moved) == paths


@pytest.mark.parametrize("name", ["function_recursive", "function_recursive_pair", "function_recursive_in_body"])
def test_recursive_functions_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedError):
        inline_functions(load(named(name).path))


@given(models())
def test_random_models_inlined_compute_the_same(tmp_path_factory: pytest.TempPathFactory, drawn: RandomModel) -> None:
    inlined, _ = inline_functions(from_proto(drawn.proto))
    assert not inlined.proto.functions
    target = tmp_path_factory.getbasetemp() / "inlined.onnx"
    save(inlined, target)
    assert run_ort(target, drawn.feeds) == run_ort(drawn.proto, drawn.feeds)
    assert onnx.load(target).graph.node
