"""The recipes of examples/recipes, each on the real model that it is for, verified, run, repeated and undone."""

from __future__ import annotations

import math
import re
import shlex
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
import yaml
from corpus import fetch
from engines import ort_session

import onnxbench
from onnxbench.cli import app
from onnxbench.cli._boundary import bounded
from onnxbench.graph import GraphIndex
from onnxbench.model import load
from onnxbench.operations import Delete
from onnxbench.recipe import load_recipe
from onnxbench.recipeschema import json_schema
from onnxbench.select import tensors
from onnxbench.surgery import STAMP, edit, edit_file, undo_file

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "recipes"
README = FOLDER / "README.md"
INDEX: dict[str, dict[str, Any]] = yaml.safe_load((FOLDER / "index.yaml").read_text(encoding="utf-8"))

pytestmark = pytest.mark.corpus


@dataclass
class Ran:
    """What a recipe made of its model, and what both compute."""

    before: Path
    after: Path
    feeds: dict[str, Any]
    new_feeds: dict[str, Any]
    old: dict[str, Any]
    new: dict[str, Any]


def run(source: Any, feeds: dict[str, Any]) -> dict[str, Any]:
    """Returns the outputs by name, from ONNX Runtime without graph optimizations."""
    session = ort_session(source)
    names = [port.name for port in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def feeds_of(path: Path, entry: Any, hints: dict[str, Any] | None) -> dict[str, Any]:
    if hints is not None:
        shaped = {name: fetch.Feed(**{**hint, "shape": tuple(hint["shape"])}) for name, hint in hints.items()}
        entry = replace(entry, feeds=shaped)
    return fetch.seeded_feeds(path, entry)


@pytest.mark.parametrize("name", INDEX)
def test_a_recipe_on_its_model(corpus, name, tmp_path):
    said = INDEX[name]
    path, entry = corpus(said["model"])
    untouched = path.stat().st_mtime_ns
    feeds = feeds_of(path, entry, said.get("feeds"))
    out, patch = tmp_path / "out.onnx", tmp_path / "back.undo"

    done = edit_file(path, out, FOLDER / name, verify=feeds, save_undo=patch)
    assert done.edited.passed
    judged = [step.drift for step in done.edited.steps if step.drift is not None]
    assert judged
    most = said.get("differs", 0)
    if most == 0:
        assert all(drift.bitwise_equal for drift in judged)
    elif math.isfinite(most):
        assert max(drift.worst.max_abs for drift in judged if drift.worst is not None) <= most
    else:
        assert any(not drift.bitwise_equal for drift in judged)

    onnx.checker.check_model(str(out), full_check=True)
    edited = onnx.load(out)
    counts = Counter(ref.node.op_type for ref in GraphIndex(edited).nodes())
    assert {op: counts[op] for op in said.get("nodes", {})} == said.get("nodes", {})
    assert {entry.key: entry.value for entry in edited.metadata_props}[STAMP] == load_recipe(FOLDER / name).digest()

    edit_file(path, tmp_path / "same.onnx", FOLDER / name)
    assert (tmp_path / "same.onnx").read_bytes() == out.read_bytes()

    undo_file(out, tmp_path / "again.onnx", patch)
    onnxbench.save(load(path), tmp_path / "plain.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()
    assert path.stat().st_mtime_ns == untouched

    runnable = out
    if counts["Mark"]:
        runnable = tmp_path / "unmarked.onnx"
        onnxbench.save(edit(out, [Delete("op:Mark")]).model, runnable)
    new_feeds = feeds_of(runnable, entry, said.get("after", said.get("feeds")))
    ran = Ran(path, out, feeds, new_feeds, run(path, feeds), run(runnable, new_feeds))
    for value in ran.new.values():
        assert np.isfinite(value).all()
        assert value.size == 1 or np.ptp(value) > 0, "outputs that are the same everywhere prove nothing"
    if name in CLAIMS:
        CLAIMS[name](ran)
    else:
        assert list(ran.new) == list(ran.old)
        for output, value in ran.old.items():
            np.testing.assert_allclose(ran.new[output], value, rtol=0, atol=most)


def test_every_recipe_is_in_the_index_and_in_the_table():
    assert sorted(INDEX) == sorted(file.name for file in FOLDER.glob("*.yaml") if file.name != "index.yaml")
    rows = re.findall(r"^\| \[(\S+)\]\(\1\) \| (.+?) \| (.+?) \| (.+?) \|$", README.read_text(encoding="utf-8"), re.M)
    assert rows == [(name, said["model"], said["does"], said["says"]) for name, said in INDEX.items()]
    known = {entry.name: entry for entry in fetch.entries()}
    for name, said in INDEX.items():
        head = (FOLDER / name).read_text(encoding="utf-8").split("version: 1")[0]
        assert re.match(r"# For: .+\n(# .+\n)*?# Model: " + said["model"], head), name
        assert f"-r {name}" in head
        assert known[said["model"]].source == "pip"


def test_the_schema_for_editors_accepts_the_recipes():
    validator = jsonschema.Draft202012Validator(json_schema())
    for file in (*FOLDER.glob("*.yaml"), *FOLDER.glob("parts/*.yaml")):
        if file.name != "index.yaml":
            validator.validate(yaml.safe_load(file.read_text(encoding="utf-8")))


def shown_commands() -> list[tuple[list[str], list[str]]]:
    """Returns the commands of the README, with the lines that they print; ``...`` stands for some."""
    blocks = re.findall(r"```console\n\$ onnxbench (.+?)\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    return [(shlex.split(words), lines.splitlines()) for words, lines in blocks]


@pytest.mark.parametrize(("words", "lines"), shown_commands(), ids=[words[1] for words, _ in shown_commands()])
def test_the_readme_shows_what_a_command_prints(corpus, words, lines, tmp_path, monkeypatch, capsys):
    path, _ = corpus(words[1].removesuffix(".onnx"))
    shutil.copytree(FOLDER, tmp_path / "recipes")
    (tmp_path / "recipes" / words[1]).symlink_to(path)
    monkeypatch.chdir(tmp_path / "recipes")
    code = bounded(app, words)
    shown = capsys.readouterr()
    assert code == ("NOT ALLOWED" in shown.out)
    printed = iter([without_amounts(line) for line in shown.out.splitlines()])
    skipping = False
    for line in lines:
        if line == "...":
            skipping = True
        elif line.startswith("onnxbench: "):
            assert line in shown.err
        else:
            found = next((each for each in printed if each == without_amounts(line) or not skipping), None)
            assert found == without_amounts(line)
            skipping = False
    assert skipping or next(printed, None) is None


def without_amounts(line: str) -> str:
    """Returns a line without whether and how much results differ where they may: processors and threads round apart."""
    return re.sub(r"(equal bit for bit|differs, max abs \S+ in \S+) \(ok\)", "(ok)", line)


# -- what each recipe promises beyond that ----------------------------------------------------------------------


def batches_are_rows(ran: Ran) -> None:
    (image,) = ran.feeds.values()
    images = np.concatenate([image, image[:, :, ::-1], image[:, ::-1]])
    together = run(ran.after, {"images": images})["output"]
    alone = np.concatenate([run(ran.before, {"images": each[None]})["output"] for each in images])
    np.testing.assert_array_equal(together, alone)
    assert np.ptp(alone, axis=0).max() > 0


def heads_are_the_table(ran: Ran) -> None:
    assert list(ran.new) == ["stride8", "stride16", "stride32"]
    assert [value.shape for value in ran.new.values()] == [(1, 6, side, side) for side in (52, 26, 13)]
    rows = np.concatenate([value.reshape(1, 6, -1) for value in ran.new.values()], axis=2)
    np.testing.assert_array_equal(rows.transpose(0, 2, 1), ran.old["output"])


def boxes_are_the_best(ran: Ran) -> None:
    table = ran.old["output"][0]
    scores = table[:, 4] * table[:, 5]
    best = np.argsort(-scores, kind="stable")[:50]
    np.testing.assert_array_equal(ran.new["scores"][0], scores[best])
    np.testing.assert_array_equal(ran.new["boxes"][0], table[best])


def sizes_are_fixed(ran: Ran) -> None:
    session = ort_session(ran.after)
    ports = {port.name: port.shape for port in (*session.get_inputs(), *session.get_outputs())}
    assert ports == {"input": [1, 576], "state": [2, 1, 128], "output": [1, 1], "stateN": [2, 1, 128]}
    for output, value in ran.old.items():
        np.testing.assert_allclose(ran.new[output], value, rtol=0, atol=1e-6)
    assert ran.after.stat().st_size < 0.7 * ran.before.stat().st_size


def pitch_is_rounded(ran: Ran) -> None:
    assert ran.old["pitch"].dtype == np.float64
    np.testing.assert_array_equal(ran.new["pitch"], ran.old["pitch"].astype(np.float32))
    np.testing.assert_array_equal(ran.new["confidence"], ran.old["confidence"])
    assert all(node.name for node in onnx.load(ran.after).graph.node)


def two_bytes_suffice(ran: Ran) -> None:
    assert ran.new_feeds["bytes"].dtype == np.uint16
    np.testing.assert_array_equal(ran.new["target_label"], ran.old["target_label"])


def names_are_short(ran: Ran) -> None:
    np.testing.assert_array_equal(ran.new["target_label"], ran.old["target_label"])
    text = ran.after.read_bytes()
    assert b"jax2tf" not in text
    assert b"pjit_get_logits_" not in text


def export_is_clean(ran: Ran) -> None:
    np.testing.assert_array_equal(ran.new["4195"], ran.old["4195"])
    assert (len(onnx.load(ran.before).graph.node), len(onnx.load(ran.after).graph.node)) == (845, 479)


def weights_are_initializers(ran: Ran) -> None:
    (old,), (new,) = ran.old.values(), ran.new.values()
    np.testing.assert_array_equal(new, old)
    proto = onnx.load(ran.after)
    assert len(proto.graph.initializer) == 420
    assert proto.metadata_props[0] == onnx.load(ran.before).metadata_props[0]
    assert [dim.dim_param or dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim] == [
        "batch", 3, 48, "width",
    ]  # fmt: skip


def pixels_are_normalised(ran: Ran) -> None:
    pixels = ran.new_feeds["pixels"]
    assert pixels.dtype == np.uint8
    mean, deviation = (np.array(v, np.float32) for v in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
    prepared = np.ascontiguousarray(((pixels.astype(np.float32) - mean) / deviation).transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(run(ran.before, {"x": prepared})["sigmoid_0.tmp_0"], ran.new["sigmoid_0.tmp_0"])


def nothing_is_given_away(ran: Ran) -> None:
    assert list(ran.new) == list(ran.old)
    assert [value.shape for value in ran.new.values()] == [value.shape for value in ran.old.values()]
    before, after = onnx.load(ran.before), onnx.load(ran.after)
    assert [node.op_type for node in after.graph.node] == [node.op_type for node in before.graph.node]
    kept = ran.after.read_bytes()
    large = [tensor.raw_data for tensor in before.graph.initializer if len(tensor.raw_data) > 4096]
    assert len(large) > 20
    assert not any(data in kept for data in large)
    names = {node.name for node in before.graph.node} | {t.name for t in before.graph.initializer}
    assert not names & ({node.name for node in after.graph.node} | {t.name for t in after.graph.initializer})


def border_is_found(ran: Ran) -> None:
    (ref,) = tensors(GraphIndex(onnx.load(ran.after)), ["mark:backbone:output"])
    assert ref.name.endswith("conv_net.11/Add_output_0_Mark")
    for output, value in ran.old.items():
        np.testing.assert_array_equal(ran.new[output], value)


def top_three(ran: Ran) -> None:
    scores = ran.old["target_label"]
    order = np.argsort(-scores, axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(ran.new["top_labels"], order)
    np.testing.assert_array_equal(ran.new["top_scores"], np.take_along_axis(scores, order, 1))


def best_characters(ran: Ran) -> None:
    (probabilities,) = ran.old.values()
    np.testing.assert_array_equal(ran.new["characters"], probabilities.argmax(2))
    np.testing.assert_array_equal(ran.new["confidence"], probabilities.max(2))


def file_is_half(ran: Ran) -> None:
    assert ran.after.stat().st_size < 0.51 * ran.before.stat().st_size
    (old,), (new,) = ran.old.values(), ran.new.values()
    np.testing.assert_allclose(new, old, rtol=0, atol=0.05)
    np.testing.assert_array_equal(new.argmax(-1), old.argmax(-1))


CLAIMS = {
    "detector_batch.yaml": batches_are_rows,
    "detector_heads.yaml": heads_are_the_table,
    "detector_scores.yaml": boxes_are_the_best,
    "speech_fixed.yaml": sizes_are_fixed,
    "byte_input.yaml": two_bytes_suffice,
    "pitch_float32.yaml": pitch_is_rounded,
    "short_names.yaml": names_are_short,
    "clean_export.yaml": export_is_clean,
    "paddle_weights.yaml": weights_are_initializers,
    "pixels_in.yaml": pixels_are_normalised,
    "share_a_bug.yaml": nothing_is_given_away,
    "cut_points.yaml": border_is_found,
    "top3.yaml": top_three,
    "ctc_argmax.yaml": best_characters,
    "half_the_file.yaml": file_is_half,
}
