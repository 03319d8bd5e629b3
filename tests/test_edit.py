"""Edits: all steps or none, nothing beside what they touch, and the way back."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from cases import all_cases, cases, named
from engines import run_ort
from onnx import TensorProto, helper

import onnxbench
from onnxbench import reversal
from onnxbench.cli import app
from onnxbench.cli._boundary import bounded
from onnxbench.errors import BenchError, GuardError, NotFoundError, RefusedResultError
from onnxbench.graph import GraphIndex
from onnxbench.model import from_proto, load
from onnxbench.modeltext import parse
from onnxbench.operations import (
    Delete,
    Externalize,
    Insert,
    MakeBatchDynamic,
    RenameNode,
    RenameTensor,
    RenameTensors,
    SetAttribute,
    SetOp,
    files_of,
)
from onnxbench.recipe import Recipe, Step, load_recipe
from onnxbench.surgery import edit, edit_file, undo_file
from onnxbench.version import STAMP
from onnxbench.writer import SaveOptions

LINEAR = named("linear_func").path


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Runs one command in an empty folder; gives its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = bounded(app, [str(word) for word in words])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return code, shown.out, shown.err

    return call


def usable(case) -> bool:
    return case.valid in ("yes", "mendable")


def items(proto: onnx.ModelProto) -> Counter:
    """Returns everything in a model's lists, as bytes, by list."""
    return Counter(
        (name, item.SerializeToString(deterministic=True)) for name, group in reversal._lists(proto) for item in group
    )


def moved(before: onnx.ModelProto, after: onnx.ModelProto) -> tuple[list[str], list[str]]:
    """Returns the lists that lost items and those that gained some, once for each item."""
    old, new = items(before), items(after)
    return sorted(name for name, _ in (old - new).elements()), sorted(name for name, _ in (new - old).elements())


# -- the row A3 of the seeds ----------------------------------------------------------------------------------------


def test_an_add_becomes_a_sub_and_the_model_computes_it(run, tmp_path):
    code, out, _ = run("edit", LINEAR, "out.onnx", "--set-op", "op:Add=Sub")
    assert code == 0
    assert "op_type Add -> Sub" in out
    chance = np.random.default_rng(0)
    a, x, b = (chance.standard_normal((10, 10)).astype(np.float32) for _ in range(3))
    session = onnxruntime.InferenceSession(str(tmp_path / "out.onnx"))
    (made,) = session.run(None, {"a": a, "x": x, "b": b})
    np.testing.assert_allclose(made, a * x - b, rtol=1e-6)


# -- what is not touched stays --------------------------------------------------------------------------------------


@cases(usable)
def test_a_renamed_node_is_the_only_difference(case):
    model = load(case.path)
    index = GraphIndex(model.proto)
    if not index.main.nodes:
        with pytest.raises(BenchError):
            edit(model, [RenameNode("node:#0", "renamed_by_a_test")])
        return
    before = model.proto.SerializeToString(deterministic=True)
    done = edit(model, [RenameNode("node:#0", "renamed_by_a_test")], stamp=False)
    assert model.proto.SerializeToString(deterministic=True) == before
    if done.repairs:
        return
    lost, gained = moved(model.proto, done.model.proto)
    assert lost == gained == ["graph.node"]
    shells = [reversal._shell(each.proto).SerializeToString(deterministic=True) for each in (model, done.model)]
    assert shells[0] == shells[1]
    assert [change.what for change in done.changes] == ["renamed"]


@cases(usable)
def test_an_identity_inserted_and_deleted_again_leaves_the_model_as_it_was(case):
    model = load(case.path)
    edges = [
        name for name in GraphIndex(model.proto).main.producers if name not in GraphIndex(model.proto).main.outputs
    ]
    if not edges:
        edges = list(GraphIndex(model.proto).main.producers)
    if not edges:
        return
    healthy = edit(model, [], stamp=False)
    edge = edges[0]
    insert = Insert(op="Identity", at=f'"{edge}"', name="inserted_by_a_test")
    try:
        there = edit(healthy.model, [insert], stamp=False)
    except RefusedResultError as error:
        # Identity does not take every type in every opset (sequences, float8, int4).
        assert "Identity" in str(error) or "inserted_by_a_test" in str(error), error
        return
    lost, gained = moved(healthy.model.proto, there.model.proto)
    assert "graph.initializer" not in lost + gained
    assert gained.count("graph.node") == lost.count("graph.node") + 1
    back = edit(there.model, [Delete("node:inserted_by_a_test")], stamp=False)
    found = [node.op_type for node in back.model.proto.graph.node]
    wanted = [node.op_type for node in healthy.model.proto.graph.node]
    assert found == wanted


@pytest.mark.parametrize(
    "name", ["ppocr_v4_rec", "silero_vad", "attacut_sc", "minilm_int8w", "nakdimon_loop", "swift_f0"]
)
def test_renaming_every_tensor_of_a_real_model_changes_no_number(corpus, name, tmp_path):
    from corpus import fetch

    path, entry = corpus(name)
    recipe = [RenameTensors(prefix="t/", keep_interface=True), Step(SetOp("op:NoSuch*", "Relu"), expect="optional")]
    done = edit(path, recipe)
    out = tmp_path / "out.onnx"
    onnxbench.save(done.model, out)
    feeds = fetch.seeded_feeds(path, entry)
    assert run_ort(path, feeds) == run_ort(out, feeds)
    index = GraphIndex(done.model.proto)
    kept = {*index.main.inputs, *index.main.outputs}
    assert all(ref.name.startswith("t/") or ref.name in kept for ref in index.tensors())


# -- guards, places, atomicity --------------------------------------------------------------------------------------


def test_a_step_that_matches_too_much_changes_nothing(run, tmp_path):
    code, out, err = run("edit", named("whole_model").path, "out.onnx", "--set-op", "op:Conv=Relu")
    assert (code, out) == (14, "")
    assert "matches 10 nodes, and expects one" in err
    assert "expect: all" in err
    assert not list(tmp_path.iterdir())


def test_the_second_step_fails_and_the_first_is_gone_too(run, tmp_path):
    code, _, err = run("edit", LINEAR, "out.onnx", "--rename-tensor", "c=d", "--set-op", "op:Add=Relu")
    assert code == 8
    assert "step 2 (set_op op:Add Relu): " in err
    assert not list(tmp_path.iterdir())


def test_mistakes_in_a_recipe_are_told_with_their_line(run, tmp_path):
    (tmp_path / "r.yaml").write_text("steps:\n  - set_op: {at: op:Add, to: Sub}\n  - rename_tensor: {at: c, too: d}\n")
    code, _, err = run("edit", LINEAR, "out.onnx", "--recipe", "r.yaml")
    assert code == 11
    assert "r.yaml:3:" in err
    assert "rename_tensor has no field 'too'" in err
    (tmp_path / "r.yaml").write_text("steps:\n  - set_op: {at: op:Add, to: Sub}\n  - rename_tensor: {at: cc, to: d}\n")
    code, _, err = run("edit", LINEAR, "out.onnx", "--recipe", "r.yaml")
    assert code == 4
    assert "step 2 (rename_tensor cc d, r.yaml:3)" in err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--set-op", "op:Add"], 2, "AT=TO"),
        (["--set-op"], 2, "--set-op"),
        ([], 2, "nothing is to be done"),
        (["--recipe", "nowhere.yaml"], 4, "nowhere.yaml"),
        (["--recipe", "."], 2, "folder"),
        (["--set-op", "op:Add=Sub", "--var", "x=1"], 2, "--recipe"),
        (["--set-op", "op:Add=Sub", "--expect", "some"], 2, "expect"),
        (["--set-op", "{at: op:Add, to: [1}"], 11, "YAML"),
        (["--step", "set_opp: {at: x}"], 11, "Did you mean 'set_op'"),
        (["--set-op", "node:nope=Sub"], 4, "nope"),
        (["--undo", "nowhere.undo"], 4, "nowhere.undo"),
        (["--rename-tensor", "c="], 8, "name"),
        (["--step", "set_op: add"], 11, "set_op: AT=TO"),
        (["--strip-weights", "all"], 2, "{at: ...}"),
        (["--remove-input", "nope"], 4, "nope"),
    ],
)
def test_wrong_input_is_one_message_and_no_file(run, tmp_path, words, code, said):
    found, _, err = run("edit", LINEAR, "out.onnx", *words)
    assert said in err
    assert found == code
    assert not (tmp_path / "out.onnx").exists()


def test_a_model_that_is_not_valid_is_refused_as_such(tmp_path):
    proto = load(LINEAR).proto
    proto.graph.node[0].input[0] = "nowhere"
    (tmp_path / "broken.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(BenchError, match="nowhere"):
        edit(tmp_path / "broken.onnx", [SetOp("op:Add", "Sub")])


# -- recipes --------------------------------------------------------------------------------------------------------


def test_flags_written_out_as_a_recipe_do_the_same(run, tmp_path):
    words = ["--set-op", "op:Add=Sub", "--rename-tensor", "c=product", "--insert", "{at: product, op: Abs, name: n}"]
    assert run("edit", LINEAR, "a.onnx", *words, "--save-recipe", "r.yaml")[0] == 0
    assert run("edit", LINEAR, "b.onnx", "-r", "r.yaml")[0] == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_flags_are_steps_in_the_order_in_which_they_stand(run):
    code, _, err = run("edit", LINEAR, "a.onnx", "--rename-tensor", "d=e", "--rename-tensor", "c=d")
    assert code == 4
    assert "step 1" in err
    assert run("edit", LINEAR, "a.onnx", "--rename-tensor", "c=d", "--rename-tensor=d=e")[0] == 0


def test_variables_and_includes(run, tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "base.yaml").write_text(
        "variables: {op: Sub}\nsteps:\n  - set_op: {at: op:Add, to: '${op}'}\n  - rename_tensors: {file: names.csv}\n"
    )
    (tmp_path / "parts" / "names.csv").write_text("c,product\n")
    (tmp_path / "r.yaml").write_text("include: parts/base.yaml\nsteps:\n  - rename_tensor: product=p\n")
    assert run("edit", LINEAR, "a.onnx", "-r", "r.yaml", "--var", "op=Mul")[0] == 0
    node = onnx.load(tmp_path / "a.onnx").graph.node
    assert [each.op_type for each in node] == ["Mul", "Mul"]
    assert node[0].output == ["p"]
    code, _, err = run("edit", LINEAR, "a.onnx", "-r", "r.yaml", "--var", "opp=Mul")
    assert code == 2
    assert "no variable 'opp'" in err
    (tmp_path / "loop.yaml").write_text("include: loop.yaml\n")
    code, _, err = run("edit", LINEAR, "a.onnx", "-r", "loop.yaml")
    assert code == 11
    assert "includes itself" in err


def test_the_json_schema_accepts_the_golden_recipes_and_refuses_mistakes():
    import jsonschema
    import yaml

    from onnxbench.recipeschema import json_schema

    validator = jsonschema.Draft202012Validator(json_schema())
    jsonschema.Draft202012Validator.check_schema(json_schema())
    for file in sorted((Path(__file__).parent / "golden" / "edit").glob("*.yaml")):
        for case in yaml.safe_load(file.read_text()):
            if case.get("error", {}).get("kind") not in ("spec", "usage"):
                assert validator.is_valid(case["recipe"]), case["name"]
    assert not validator.is_valid({"steps": [{"set_op": {"at": "x"}}]})
    assert not validator.is_valid({"steps": [{"set_opp": {"at": "x", "to": "y"}}]})


RULE = """
pattern: "f (a, b) => (y) { y = Add (a, b) }"
replacement: "f (a, b) => (y) { y = %s (a, b) }"
"""
SMALL = """
<ir_version: 10, opset_import: ["" : 17]>
net (float[3] x) => (float[3] y) <float[3] w = {1, 2, 3}> { h = Mul (x, w) y = Add (h, w) }
"""


def referring(folder: Path) -> dict[str, tuple[str, Path]]:
    """Returns steps that refer to a file in a folder, with the file, which is written there."""
    (folder / "rules.yaml").write_text(RULE % "Sub")
    (folder / "names.csv").write_text("h,hidden\n")
    (folder / "names.txt").write_text("# what is renamed\n@more.txt\n")
    (folder / "more.txt").write_text("node:#0\n")
    (folder / "batches").mkdir()
    for name in ("w.npy", "c.npy", "batches/x.npy"):
        np.save(folder / name, np.ones(3, np.float32))
    np.savez(folder / "all.npz", w=np.ones(3, np.float32), other=np.zeros(1))
    return {
        "rewrite: {rule: rules.yaml}": ("rules.yaml", folder / "rules.yaml"),
        "rewrite: rules.yaml:rules": ("rules.yaml", folder / "rules.yaml"),
        "rename_tensors: {file: names.csv}": ("names.csv", folder / "names.csv"),
        "rename_node: {at: '@names.txt', to: first}": ("more.txt", folder / "more.txt"),
        "set_weight: {at: w, value: {file: w.npy}}": ("w.npy", folder / "w.npy"),
        "set_weight: {at: w, value: {file: 'all.npz:w'}}": ("all.npz", folder / "all.npz"),
        "insert: {after: h, op: Add, inputs: [_, c], constants: {c: {file: c.npy}}}": ("c.npy", folder / "c.npy"),
    }  # fmt: skip


def test_the_digest_covers_the_files_that_a_recipe_refers_to(tmp_path, monkeypatch):
    model = parse(SMALL)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for number, (step, (name, file)) in enumerate(referring(tmp_path).items()):
        path = tmp_path / f"r{number}.yaml"
        path.write_text(f"- {step}\n")
        recipe = load_recipe(path)
        first = recipe.digest()
        assert edit(model, path).model.proto.metadata_props[0].value == first, step
        assert edit(model, path, stamp=False).digest == first
        assert name in files_of(recipe.steps[0].operation, tmp_path)
        held = file.read_bytes()
        file.write_bytes(held + b"\n")
        assert load_recipe(path).digest() != first, step
        file.write_bytes(held)
        assert load_recipe(path).digest() == first
        file.unlink()
        if "@" not in step:  # '@x' may also be the name of a tensor
            with pytest.raises(NotFoundError, match=f"{name}, which the step .* refers to, cannot be read"):
                recipe.digest()
        file.write_bytes(held)


def test_the_digest_covers_what_an_included_recipe_says_and_data_in_folders(tmp_path):
    (tmp_path / "part.yaml").write_text("- set_op: op:Add=Sub\n")
    (tmp_path / "whole.yaml").write_text("include: part.yaml\n")
    first = load_recipe(tmp_path / "whole.yaml").digest()
    (tmp_path / "part.yaml").write_text("# a comment changes nothing\n- set_op: {at: op:Add, to: Sub}\n")
    assert load_recipe(tmp_path / "whole.yaml").digest() == first
    (tmp_path / "part.yaml").write_text("- set_op: op:Add=Mul\n")
    assert load_recipe(tmp_path / "whole.yaml").digest() != first
    (tmp_path / "data" / "set_0").mkdir(parents=True)
    np.save(tmp_path / "data" / "set_0" / "x.npy", np.ones(3))
    (tmp_path / "feeds.py").write_text("def load(): ...\n")
    found = {}
    for word in ("data", "feeds.py:load", "x:data/set_0/x.npy"):
        recipe = Recipe((Step(MakeBatchDynamic(data=[word]), folder=tmp_path),))
        found[word] = recipe, recipe.digest()
    np.save(tmp_path / "data" / "set_0" / "x.npy", np.zeros(3))
    (tmp_path / "feeds.py").write_text("def load(): return []\n")
    assert all(recipe.digest() != digest for recipe, digest in found.values())


def test_the_digest_of_steps_without_files_is_that_of_their_text():
    recipe = Recipe((Step(SetOp("op:Add", "Sub")),))
    text = json.dumps([{"set_op": {"at": "op:Add", "to": "Sub"}}], sort_keys=True)
    assert recipe.digest() == f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ("rename_tensors: {file: nmaes.csv}", "there is no file nmaes.csv"),
        ("rewrite: {rule: ruels.yaml}", "there is no file ruels.yaml"),
        ("rewrite: {rule: gelu_eft}", "there is no rule 'gelu_eft'"),
    ],
)
def test_a_step_that_may_match_nothing_must_still_find_its_file(tmp_path, step, says):
    (tmp_path / "r.yaml").write_text(f"- {step}\n  expect: optional\n")
    with pytest.raises(NotFoundError, match=says):
        edit(parse(SMALL), tmp_path / "r.yaml")


def test_the_digest_is_in_the_metadata_and_steps_add_up():
    done = edit(LINEAR, [SetOp("op:Add", "Sub")])
    again = edit(done.model, [SetOp("op:Sub", "Add")])
    assert {e.key: e.value for e in again.model.proto.metadata_props}[STAMP] == f"{done.digest} {again.digest}"
    assert not any(
        e.key == STAMP for e in edit(LINEAR, [SetOp("op:Add", "Sub")], stamp=False).model.proto.metadata_props
    )


# -- verification ---------------------------------------------------------------------------------------------------


def test_a_step_that_changes_more_than_it_may_writes_nothing(run, tmp_path):
    words = ["edit", LINEAR, "out.onnx", "--set-op", "{at: op:Add, to: Sub, changes: nothing}", "--verify"]
    code, out, _ = run(*words)
    assert code == 1
    assert "NOT ALLOWED" in out
    assert not (tmp_path / "out.onnx").exists()
    assert run("edit", LINEAR, "out.onnx", "--set-op", "{at: op:Add, to: Sub, atol: 100}", "--verify")[0] == 0


def test_verification_follows_renamed_inputs_and_outputs():
    done = edit(LINEAR, [RenameTensors(map={"x": "image", "output": "score"}), RenameTensor("score", "s")], verify=True)
    assert done.passed
    assert [step.drift.bitwise_equal for step in done.steps] == [True, True]
    assert [tensor.name for tensor in done.steps[1].drift.tensors] == ["s"]


def test_a_nan_is_no_agreement():
    from onnxbench.modeltext import parse

    model = parse('<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { a = Abs (x) y = Neg (a) }')
    done = edit(model, [Step(SetOp("op:Neg", "Log"), atol=1e9)], verify={"x": np.array([0, 1], np.float32)})
    assert not done.passed  # -inf where -0.0 was, whatever the tolerance


def test_a_mark_passes_on_what_it_is_given_and_other_custom_operators_need_their_library(run, tmp_path):
    code, out, _ = run("edit", LINEAR, "out.onnx", "--insert", "c=onnxbench::Mark", "--verify")
    assert code == 0
    assert "equal bit for bit" in out
    assert [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node] == ["Mul", "Mark", "Add"]
    code, _, err = run("edit", LINEAR, "other.onnx", "--insert", "c=acme::Magic", "--verify")
    assert code == 9
    assert "--custom-ops" in err
    code, _, err = run("edit", LINEAR, "other.onnx", "--set-op", "op:Add=Sub", "--verify", "--custom-ops", "no.so")
    assert code == 2
    assert "no.so" in err
    assert not (tmp_path / "other.onnx").exists()


def test_a_model_that_does_not_run_on_its_inputs_is_told_before_any_step(run, tmp_path):
    from onnxbench.modeltext import parse

    model = parse(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n] x) => (float[2, 2] y) <int64[2] s = {2, 2}>'
        "{ a = Abs (x) y = Reshape (a, s) }"
    )
    onnxbench.save(model, tmp_path / "m.onnx")
    code, _, err = run("edit", "m.onnx", "out.onnx", "--set-op", "op:Abs=Neg", "--verify", "--dim", "n=3")
    assert code == 9
    assert "does not run as it is" in err
    assert "step 1" not in err
    assert "--shape" in err
    assert run("edit", "m.onnx", "out.onnx", "--set-op", "op:Abs=Neg", "--verify", "--dim", "n=4")[0] == 0


def test_undoing_an_edit_that_moved_the_weights_out_restores_every_byte(tmp_path):
    weight = onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    weight.data_location = TensorProto.DEFAULT  # said in so many words, which a tensor outside cannot
    infos = [helper.make_tensor_value_info(name, 1, [1, 64]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", infos[:1], infos[1:], [weight])
    onnx.save(helper.make_model(graph, ir_version=9), tmp_path / "m.onnx")
    edit_file(
        tmp_path / "m.onnx", tmp_path / "out.onnx", [Externalize(), RenameTensor("w", "v")], save_undo=tmp_path / "u"
    )
    assert (tmp_path / "out.onnx.data").exists()
    undo_file(tmp_path / "out.onnx", tmp_path / "again.onnx", tmp_path / "u")
    onnxbench.save(load(tmp_path / "m.onnx"), tmp_path / "plain.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()


# -- asking ---------------------------------------------------------------------------------------------------------


def test_steps_are_asked_for_one_by_one(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\ny\n"))
    words = ["edit", LINEAR, "out.onnx", "--set-op", "op:Add=Sub", "--rename-tensor", "c=d", "--interactive"]
    assert run(*words)[0] == 0
    node = onnx.load(tmp_path / "out.onnx").graph.node
    assert [each.op_type for each in node] == ["Mul", "Add"]
    assert node[0].output == ["d"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("q\n"))
    assert run(*words[:2], "other.onnx", *words[3:])[0] == 130
    assert not (tmp_path / "other.onnx").exists()


# -- the way back ---------------------------------------------------------------------------------------------------


@cases(usable)
def test_an_edit_and_its_undo_give_the_original(case, tmp_path):
    model = load(case.path)
    recipe = [
        Step(RenameTensors(prefix="t/"), expect="optional"),
        Step(Delete("op:Identity", bypass=0), expect="optional"),
        Step(SetAttribute("op:LeakyRelu", "alpha", 0.5), expect="optional"),
        Step(RenameNode("node:#0", "renamed"), expect="optional"),
    ]
    try:
        edit_file(case.path, tmp_path / "edited.onnx", recipe, save_undo=tmp_path / "back.undo")
    except RefusedResultError as error:
        assert "Identity" in str(error) or "made twice" in str(error) or "output" in str(error), error
        return
    undo_file(tmp_path / "edited.onnx", tmp_path / "again.onnx", tmp_path / "back.undo")
    plain = tmp_path / "plain.onnx"
    onnxbench.save(model, plain)
    assert (tmp_path / "again.onnx").read_bytes() == plain.read_bytes()


def test_a_patch_leads_back_from_its_own_model_only(run, tmp_path):
    assert run("edit", LINEAR, "a.onnx", "--set-op", "op:Add=Sub", "--save-undo", "a.undo")[0] == 0
    code, _, err = run("edit", LINEAR, "b.onnx", "--undo", "a.undo")
    assert code == 2
    assert "not the one that the edit wrote" in err
    (tmp_path / "cut.undo").write_bytes((tmp_path / "a.undo").read_bytes()[:-10])
    assert run("edit", "a.onnx", "b.onnx", "--undo", "cut.undo")[0] == 11
    (tmp_path / "junk.undo").write_bytes(b"junk")
    assert run("edit", "a.onnx", "b.onnx", "--undo", "junk.undo")[0] == 11
    assert not (tmp_path / "b.onnx").exists()


# -- size -----------------------------------------------------------------------------------------------------------


def test_one_node_of_three_gigabytes_is_edited_without_reading_them(tmp_path):
    side, count = 16384, 3
    nodes, weights, previous = [], [], "x"
    for number in range(count):
        tensor = TensorProto(name=f"w{number}", data_type=1, dims=[side, side], data_location=TensorProto.EXTERNAL)
        size = side * side * 4
        for key, value in (("location", "big.bin"), ("offset", str(number * size)), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)
        weights.append(tensor)
        nodes.append(helper.make_node("MatMul", [previous, f"w{number}"], [f"t{number}"]))
        nodes.append(helper.make_node("Relu", [f"t{number}"], [f"r{number}"], name=f"relu{number}"))
        previous = f"r{number}"
    infos = [helper.make_tensor_value_info(name, 1, [1, side]) for name in ("x", previous)]
    graph = helper.make_graph(nodes, "big", infos[:1], infos[1:], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "big.onnx").write_bytes(proto.SerializeToString())
    with open(tmp_path / "big.bin", "wb") as file:
        file.truncate(count * side * side * 4)
    code = (
        "import sys; from onnxbench.cli import app; from onnxbench.cli._boundary import bounded;"
        "code = bounded(app, sys.argv[1:]);"
        "peak = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'));"
        "print(code, peak, file=sys.stderr)"
    )
    words = ["edit", "big.onnx", "out.onnx", "--set-op", "node:relu1=Tanh", "--share-weights", "--save-undo", "o.undo"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    status, peak = done.stderr.split()[-2:]
    assert status == "0", done.stderr
    assert int(peak) < 150_000, f"{int(peak) / 1000:.0f} MB"
    assert (tmp_path / "o.undo").stat().st_size < 10_000


def test_bare_operations_and_steps_are_a_recipe_too():
    with pytest.raises(GuardError):
        edit(LINEAR, [SetOp("op:*", "Sub")])
    assert len(edit(LINEAR, [Step(SetOp("op:*", "Sub"), expect="all")]).changes) == 2
    assert edit(from_proto(load(LINEAR).proto), []).changes == ()
    assert len(all_cases()) > 100


def test_drawn_inputs_that_do_not_suit_the_model_are_told():
    from onnxbench.modeltext import parse

    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[4, 4] y)
    <int64[2] s = {4, 4}> { r = Reshape (x, s) y = Neg (r) }"""
    with pytest.raises(BenchError) as error:
        edit(parse(text), [SetOp("op:Neg", "Abs")], verify=True)
    assert "The inputs were drawn, and this was chosen:" in error.value.details
    assert "--shape" in (error.value.hint or "")


# -- files beside the model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--save-recipe", "--save-undo"])
def test_no_model_is_written_where_what_belongs_to_it_cannot_be(run, tmp_path, flag):
    (tmp_path / "folder").mkdir()
    for target in ("nowhere/file", "folder"):
        code, _, err = run("edit", LINEAR, "out.onnx", "--set-op", "op:Add=Sub", flag, target)
        assert code == 7
        assert target.partition("/")[0] in err
        assert [each.name for each in tmp_path.iterdir()] == ["folder"]


def test_nothing_else_is_written_where_the_model_cannot_be(run, tmp_path):
    (tmp_path / "out.onnx").mkdir()
    words = ["--set-op", "op:Add=Sub", "--save-recipe", "r.yaml", "--save-undo", "r.undo"]
    assert run("edit", LINEAR, "out.onnx", *words)[0] == 7
    assert [each.name for each in tmp_path.iterdir()] == ["out.onnx"]


def test_a_step_that_was_declined_is_not_in_the_saved_recipe(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\ny\n"))
    words = ["--set-op", "op:Add=Sub", "--set-doc", "kept", "--interactive", "--save-recipe", "r.yaml"]
    assert run("edit", LINEAR, "a.onnx", *words)[0] == 0
    assert "set_op" not in (tmp_path / "r.yaml").read_text()
    assert run("edit", LINEAR, "b.onnx", "-r", "r.yaml")[0] == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_weights_that_only_the_patch_has_come_back(run, tmp_path):
    """The edited model has no weight outside of its structure; what the patch holds must be written all the same."""
    rows = np.arange(4096, dtype=np.float32).reshape(64, 64)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])],
        [onnx.numpy_helper.from_array(rows, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnxbench.save(from_proto(proto), tmp_path / "plain.onnx", options=SaveOptions(external=True))
    (tmp_path / "other").mkdir()
    words = ["--replace", "{at: op:MatMul, op: Relu, inputs: [x]}", "--save-undo", "other/back.undo"]
    assert run("edit", "plain.onnx", "other/a.onnx", *words)[0] == 0
    assert not list((tmp_path / "other").glob("*.data"))
    code, out, _ = run("edit", "other/a.onnx", "other/b.onnx", "--undo", "other/back.undo", "--dry-run")
    assert (code, "nothing was written" in out, (tmp_path / "other/b.onnx").exists()) == (0, True, False)
    assert run("edit", "other/a.onnx", "other/b.onnx", "--undo", "other/back.undo")[0] == 0
    again = onnx.load(tmp_path / "other" / "b.onnx")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(again.graph.initializer[0]), rows)


def test_undo_takes_no_flag_about_steps(run):
    assert run("edit", LINEAR, "a.onnx", "--set-op", "op:Add=Sub", "--save-undo", "a.undo")[0] == 0
    code, _, err = run("edit", "a.onnx", "b.onnx", "--undo", "a.undo", "--verify", "--no-stamp")
    assert code == 2
    assert "takes no --verify and no --no-stamp" in err


# -- what a newcomer meets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "words", "code", "said"),
    [
        ("- set_op: {at: op:Add, to: Sub}\n  expects: 1", [], 11, "Did you mean 'expect'?"),
        ("- set_op: {at: op:Add, to: Sub}\n  atol: -1", [], 11, "atol must be a number from 0 up"),
        ("- set_op: {at: op:Add, to: Sub}\n  rtol: .nan", [], 11, "rtol must be a number from 0 up"),
        ("- set_op", [], 11, "set_op needs 'at' and 'to'"),
        ("- set_op: ${what}=Sub", [], 11, "--var what=..."),
        ("- set_op: ${what}=Sub", ["--var", "what=op:Add", "--var", "wat=1"], 2, "Did you mean 'what'?"),
        ("variables: {a: 'op:${b}', b: Add}\nsteps: ['set_op: ${a}=Sub']", [], 11, "no variable 'b'"),
    ],
)
def test_a_mistake_in_a_recipe_names_what_helps(run, tmp_path, recipe, words, code, said):
    (tmp_path / "r.yaml").write_text(recipe)
    found, _, err = run("edit", LINEAR, "out.onnx", "-r", "r.yaml", *words)
    assert (found, said in err, (tmp_path / "out.onnx").exists()) == (code, True, False), err


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("- set_op: ${what}=Sub", ["--var", "what=op:Add"]),
        ("variables: {b: Add, a: 'op:${b}'}\nsteps:\n- set_op: ${a}=Sub", []),
        ("variables: {b: Mul, a: 'op:${b}'}\nsteps:\n- set_op: ${a}=Sub", ["--var", "b=Add"]),
    ],
)
def test_variables_may_be_given_only_and_use_each_other(run, tmp_path, recipe, words):
    (tmp_path / "r.yaml").write_text(recipe)
    code, out, _ = run("edit", LINEAR, "out.onnx", "-r", "r.yaml", *words)
    assert (code, "op_type Add -> Sub" in out) == (0, True)


def test_the_end_of_a_short_form_may_be_left_out(run):
    assert run("edit", LINEAR, "a.onnx", "--set-producer", "me")[0] == 0
    assert run("edit", LINEAR, "b.onnx", "--duplicate", "op:Add")[0] == 0
    code, _, err = run("edit", LINEAR, "c.onnx", "--set-metadata", "k")
    assert (code, "{key: ..., value: ...}" in err) == (2, True)


def test_what_changes_nothing_is_no_change(run):
    assert "0 changes" in run("edit", LINEAR, "a.onnx", "--set-domain", "")[1]
    assert run("edit", LINEAR, "b.onnx", "--rename-node", "op:Add=n", "--rename-node", "op:Add=n")[1].count("->") == 1


def test_a_step_that_finds_the_model_as_it_wants_it_makes_no_change(tmp_path):
    model = load(named("residual").path)
    weight = next(tensor for tensor in model.proto.graph.initializer if tensor.name == "block0.weight")
    np.save(tmp_path / "w.npy", model.array(weight))
    recipe = """
        - set_dim: x:0=1
        - set_shape: "x:[1,4,8,8]"
        - rename_node: conv0=conv0
        - rename_tensor: y=y
        - rename_input: x=x
        - set_op: relu1=Relu
        - set_attribute: "conv0:pads=[1,1,1,1]"
        - rewire: add2:0=relu2_out
        - redirect: relu0_out=relu0_out
        - set_weight: {at: block0.weight, value: {file: w.npy}}
        - reorder_inputs: {names: [x]}
        - set_ir_version: 9
        - set_opset: 19
        - set_doc: ""
        - set_producer: onnxbench-fixtures
    """
    (tmp_path / "same.yaml").write_text(textwrap.dedent(recipe))
    done = edit(model, tmp_path / "same.yaml")
    assert (done.changes, len(done.steps)) == ((), 15)
    assert done.model.proto == model.proto


def test_an_output_of_a_coarser_type_is_judged_by_that_type(run):
    code, out, _ = run("edit", LINEAR, "a.onnx", "--retype-output", "output=bfloat16", "--verify")
    assert code == 0
    assert "differs" in out
    code, out, err = run("edit", LINEAR, "b.onnx", "--retype-output", "output=int8", "--verify")
    assert (code, "NOT ALLOWED" in out, "atol:" in err) == (1, True, True)


def test_a_model_that_does_not_run_is_not_the_fault_of_a_step(run, tmp_path):
    head = '<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[M] y)'
    text = f"{head} <int64[1] s = {{7}}> {{ y = Reshape (x, s) }}"
    (tmp_path / "m.txt").write_text(text)
    assert run("build", "m.txt", "m.onnx")[0] == 0
    code, _, err = run("edit", "m.onnx", "out.onnx", "--set-doc", "x", "--verify")
    assert code == 9
    assert "does not run as it is" in err
    assert "--shape" in err


def test_no_file_that_an_edit_reads_is_written_over(run, tmp_path):
    (tmp_path / "inner.yaml").write_text("- rename_node: node:#1=sum\n")
    (tmp_path / "r.yaml").write_text("include: inner.yaml\nsteps:\n  - rename_tensors: {file: t.csv}\n")
    (tmp_path / "t.csv").write_text("c,product\n")
    np.savez(tmp_path / "f.npz", **{name: np.ones((10, 10), np.float32) for name in "axb"})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name in before:
        words = ("--verify", "--feeds", "f.npz", "--recipe", "r.yaml")
        for target in ((name,), ("o.onnx", "--save-undo", name), ("o.onnx", "--save-recipe", name)):
            code, _, err = run("edit", LINEAR, *target, *words)
            assert (code, f"{name} is an input; name another file" in err) == (2, True), (target, err)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert run("edit", LINEAR, "o.onnx", *words, "--save-undo", "u.undo")[0] == 0
    patch = (tmp_path / "u.undo").read_bytes()
    code, _, err = run("edit", "o.onnx", "u.undo", "--undo", "u.undo")
    assert (code, "u.undo is an input" in err) == (2, True)
    assert (tmp_path / "u.undo").read_bytes() == patch


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--insert", "{at: c, op: Add, inputs: [_, two], constants: {two: 2.0, no: 1.0}}"), 11, "constant 'no'"),
        (("--insert", "{at: c, op: Abs, constants: {no: 1.0}}"), 11, "inputs: [_, no] reads it"),
        (("--insert", "{at: c, op: Add, inputs: [_, two], constants: {twoo: 2.0}}"), 11, "Did you mean 'two'?"),
        (("--add-nodes", "{text: 't = Neg (c)', constants: {no: 1.0}}"), 2, "nothing reads the constant 'no'"),
        (("--replace", "{at: op:Add, op: Relu, constants: {no: 1.0}}"), 11, "nothing reads the constant 'no'"),
        (
            ("--replace", "{at: op:Add, text: 'f (x, z) => (y) { y = Add (x, z) }', constants: {no: 1.0}}"),
            2,
            "nothing reads the constant 'no'",
        ),
        (("--add-nodes", " "), 2, "the text has no node"),
        (("--add-nodes", "t = Neg (c)\nu = Abs (t\nv = Abs (u)"), 11, "the text:3:1: expected"),
        (("--add-nodes", "tt Relu (linear)"), 11, "the text:1:4: expected"),
        (("--insert", "c=Add"), 8, "Add needs the inputs A, B, and is given 1 input"),
        (("--insert", "c=Cast"), 8, "attributes: {to: ...} gives them"),
        (("--delete", "{at: op:Mul, bypass: none}"), 8, "say by bypass: what takes its place"),
        (("--set-attribute", "op:Mul:axis=1"), 8, "has no attribute 'axis'"),
        (("--set-op", "{at: 'op:*', to: Sub, expect: 1}"), 14, "'expect: all' takes all of them"),
    ],
)
def test_a_step_that_cannot_be_meant_is_refused_with_what_helps(run, tmp_path, words, code, said):
    got, _, err = run("edit", LINEAR, "o.onnx", *words)
    assert (got, said in err) == (code, True), err
    assert not list(tmp_path.iterdir())


def test_attributes_that_the_new_operator_lacks_are_named_with_the_field_that_drops_them(run, tmp_path):
    text = "g (float[2] x) => (float[2] y) { y = HardSigmoid <alpha = 0.3, beta = 0.5> (x) }"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 18]> {text}'), "m.onnx")
    code, _, err = run("edit", "m.onnx", "o.onnx", "--set-op", "op:HardSigmoid=Sigmoid")
    assert (code, "Sigmoid has no attribute 'alpha' and 'beta'" in err) == (8, True), err
    assert "drop_attributes: true" in err
    code, out, _ = run(
        "edit", "m.onnx", "o.onnx", "--set-op", "{at: op:HardSigmoid, to: Sigmoid, drop_attributes: true}"
    )
    assert code == 0
    assert "set_op op:HardSigmoid Sigmoid drop_attributes, 1 matched" in out
    assert "attribute alpha removed (0.3)" in out


def test_a_step_is_told_on_one_line_and_names_do_not_stutter(run, tmp_path):
    (tmp_path / "r.yaml").write_text(
        "- add_nodes: |\n    t = Neg (c)\n    u = Abs (t)\n- insert: c=Abs\n- insert: c=Abs\n- insert: output=Abs\n"
    )
    code, out, _ = run("edit", LINEAR, "o.onnx", "--recipe", "r.yaml")
    assert code == 0
    assert "step 1: add_nodes t = Neg (c) u = Abs (t)\n" in out
    names = [node.name for node in onnx.load("o.onnx").graph.node]
    assert {"c_Abs", "c_Abs_1", "output_Abs"} <= set(names)


def test_an_include_leaves_the_folder_only_if_that_is_allowed(run, tmp_path):
    (tmp_path / "in" / "parts").mkdir(parents=True)
    (tmp_path / "out.yaml").write_text("- rename_node: node:#1=sum\n")
    (tmp_path / "in" / "r.yaml").write_text("include: parts/a.yaml\n")
    (tmp_path / "in" / "parts" / "a.yaml").write_text("include: ../b.yaml\n")  # within the folder of the outermost one
    (tmp_path / "in" / "b.yaml").write_text("- set_doc: hello\n")
    assert run("edit", LINEAR, "o.onnx", "--recipe", "in/r.yaml")[0] == 0
    (tmp_path / "in" / "b.yaml").write_text("include: ../out.yaml\n")
    code, _, err = run("edit", LINEAR, "p.onnx", "--recipe", "in/r.yaml")
    assert (code, "b.yaml:1:10: ../out.yaml lies outside of the recipe's folder" in err) == (11, True), err
    assert "--allow-outside" in err
    assert run("edit", LINEAR, "p.onnx", "--recipe", "in/r.yaml", "--allow-outside")[0] == 0
    with pytest.raises(BenchError, match="outside of the recipe's folder"):
        edit(LINEAR, "in/r.yaml")
    assert len(edit(LINEAR, "in/r.yaml", allow_outside=True).steps) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps:\n  - set_op: {at: op:Relu, to: Sub\n  - delete: x\n", "(it began in line 2)"),
        ("steps:\n\t- set_op: op:Relu=Sub\n", "indented by spaces, not by tabs"),
        ("- set_op: {at: op:Add, too: Sub}\n", "1:24: set_op has no field 'too'"),
        ("- set_op: {at: op:Add, to: [1]}\n", "expected 'to' of set_op as text, found a list"),
    ],
)
def test_mistakes_in_yaml_say_what_is_wanted(run, tmp_path, text, said):
    (tmp_path / "r.yaml").write_text(text)
    code, _, err = run("edit", LINEAR, "o.onnx", "--recipe", "r.yaml")
    assert (code, said in err) == (11, True), err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--set-opp", "x"), "no such option: --set-opp"),
        (("--set-op",), "--set-op AT=TO"),
        (("--set-tensor",), "no such option: --set-tensor"),
        (("--sort", "file", "--seed", "-1"), "invalid value for '--seed'"),
    ],
)
def test_mistakes_on_the_command_line_are_told_like_all_others(run, words, said):
    code, out, err = run("edit", "--json", LINEAR, "o.onnx", *words)
    error = json.loads(out)["error"]
    assert (code, error["kind"], error["exit_code"]) == (2, "usage", 2)
    assert said in f"{error['message']} {error['hint']}"
    assert err.startswith(f"onnxbench: error: {error['message']}")


def test_operations_that_need_nothing_are_flags_that_stand_alone(run):
    code, out, err = run("edit", LINEAR, "--clean", "-o", "o.onnx", "--cleanup", "--toposort")
    assert code == 0, err
    assert [line.split(":")[1].strip() for line in out.splitlines() if line.startswith("step")] == [
        "clean", "remove_dead", "sort"
    ]  # fmt: skip
    assert Path("o.onnx").exists()
    assert run("edit", "--clean", LINEAR, "p.onnx")[0] == 0
    assert Path("p.onnx").exists()


def test_a_custom_operator_without_a_domain_gets_one(run):
    Path("m.onnxtxt").write_text(
        '<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y)'
        " { a = Relu (x)  y = EfficientNMS_TRT (a) }"
    )
    mend = "op:EfficientNMS_TRT=TRT::EfficientNMS_TRT"
    code, _, err = run("edit", "m.onnxtxt", "o.onnx", "--rename-tensor", "a=b")
    assert (code, f"--set-op '{mend}'" in err) == (5, True), err
    assert run("edit", "m.onnxtxt", "o.onnx", "--set-op", mend)[0] == 0


@pytest.mark.corpus
def test_hints_on_a_real_model(run, corpus, tmp_path):
    path, _ = corpus("attacut_c")
    for words, code, said in (
        (("--delete-metadata", "pkg.torch.*"), 4, "'{key: pkg.torch.*, at: all}' removes it wherever it is"),
        (("--delete", "op:Nothing"), 4, "The model has 10 of these: Add, Concat,"),
        (("--delete", "op:Nothing"), 4, "and 2 more."),
        (("--rename-nodes", r"node_(.*)=\2"), 2, r"'node_(.*)' with '\2' cannot be used"),
        (("--set-weight", "val_13={file: no.npy}"), 6, "the file 'no.npy' is missing from"),
    ):
        got, _, err = run("edit", path, "o.onnx", *words)
        assert (got, said in err) == (code, True), err
    _, out, _ = run("edit", path, "o.onnx", "--outline", "model.conv*=Conv1")
    assert "a call of local::Conv1 for 1 node)" in out
    code, out, _ = run("edit", path, "o.onnx", "--name-nodes", "{op_type}_{number}")
    assert code == 0


@pytest.mark.corpus
def test_an_output_that_no_longer_has_the_size_it_is_stated_with_is_left_open(run, corpus, tmp_path):
    path, _ = corpus("attacut_c")  # its output is all rows in one, stated as float32[seq_len]
    code, out, _ = run("edit", path, "o.onnx", "--make-dynamic", "input:0=N")
    assert code == 0
    assert "output output: dimension 0 seq_len -> ?" in out
    (dim,) = onnx.load("o.onnx").graph.output[0].type.tensor_type.shape.dim
    assert dim.WhichOneof("value") is None
