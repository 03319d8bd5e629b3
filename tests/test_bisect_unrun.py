"""Bodies in which two files differ and that no inputs ran: a bisection says so, in every way that it tells anything."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from onnx.parser import parse_model

from onnxbench.bisection import bisect
from onnxbench.feeding import FeedOptions
from onnxbench.model import Model, from_proto, load
from onnxbench.writer import save

SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "bisect-report.schema.json").read_text(encoding="utf-8"))

_BRANCHY = """
<ir_version: 8, opset_import: ["" : 18]> g (float[3] x, int64 n, bool c, bool d) => (float[3] y, float[3] z) {{
  goes_on = Constant <value = bool {{1}}> ()
  h = Relu(x)
  y = Loop(n, goes_on, h) <body = body (int64 i, bool k, float[3] s) => (bool k2, float[3] s2) {{
    k2 = Identity(k)
    s2 = {loop}(s)
  }}>
  z = If(c) <
    then_branch = then () => (float[3] o) {{
      o = If(d) <
        then_branch = inner () => (float[3] p) {{ p = {inner}(h) }},
        else_branch = other () => (float[3] q) {{ q = Neg(h) }}
      >
    }},
    else_branch = else () => (float[3] r) {{
      one = Constant <value = float {{{weight}}}> ()
      r = Mul(h, one)
    }}
  >
}}
"""
_FEEDS = {"x": np.array([0.5, 1, 2], np.float32), "n": np.array(0), "c": np.array(False), "d": np.array(False)}


def branchy(*, loop: str = "Exp", inner: str = "Sin", weight: str = "2") -> Model:
    return from_proto(parse_model(_BRANCHY.format(loop=loop, inner=inner, weight=weight)))


@pytest.mark.parametrize(
    ("change", "feeds", "body", "where"),
    [
        ({"loop": "Tanh"}, {}, "Loop#2/body", "Loop#2/body/Tanh#1"),
        ({"inner": "Cos"}, {}, "If#3/then/If#0/then", "If#3/then/If#0/then/Cos#0"),
        ({"inner": "Cos"}, {"c": True}, "If#3/then/If#0/then", "If#3/then/If#0/then/Cos#0"),
        ({"weight": "3"}, {"c": True}, "If#3/else", "If#3/else/Constant#0"),
    ],
)
def test_a_body_that_differs_and_never_ran_is_told(
    change: dict[str, str], feeds: dict[str, bool], body: str, where: str
) -> None:
    given = _FEEDS | {name: np.array(value) for name, value in feeds.items()}
    found = bisect(branchy(**change), against=branchy(), feeds=given)
    assert (found.kind, found.passed) == ("clean", True)
    assert [(each.body, each.differing) for each in found.unrun] == [(body, (where,))]
    assert found.verdict.endswith(f"; but the files differ in {body}, which these inputs never ran")
    assert (
        f"no set of inputs runs {body}, where the files differ in 1 place ({where}): give inputs that do" in found.notes
    )


def test_what_ran_on_any_set_of_inputs_is_not_told(tmp_path: Path) -> None:
    """A Loop that runs twice on the second set, and does what it did in another way."""
    for name, trips in (("0", 0), ("1", 2)):
        np.savez(tmp_path / f"{name}.npz", **(_FEEDS | {"n": np.array(trips), "x": np.zeros(3, np.float32)}))
    found = bisect(branchy(loop="Sin"), against=branchy(loop="Neg"), feeds=FeedOptions((str(tmp_path),)))
    assert (found.sets, found.passed, found.unrun) == (2, True, ())
    assert "never ran" not in found.verdict


def test_bodies_whose_names_alone_differ_are_not_told() -> None:
    renamed = branchy()
    body = renamed.proto.graph.node[2].attribute[0].g
    body.doc_string, body.node[1].name = "another", "renamed"
    assert bisect(renamed, against=branchy(), feeds=_FEEDS).unrun == ()


def test_drift_is_told_with_what_never_ran() -> None:
    wrong = branchy(loop="Tanh")
    wrong.proto.graph.node[1].op_type = "Neg"
    found = bisect(wrong, against=branchy(), feeds=_FEEDS)
    assert (found.kind, [each.body for each in found.unrun]) == ("drift", ["Loop#2/body"])
    assert "never ran" not in found.verdict


def test_a_branch_of_a_real_model(corpus: Callable[[str], tuple[Path, Any]]) -> None:
    """Silero takes one branch for 16 kHz and another for 8 kHz; both end in a Sigmoid."""
    path, _ = corpus("silero_vad")
    suspect = load(path)
    branches = {attribute.name: attribute.g for attribute in suspect.proto.graph.node[2].attribute}
    changed = next(node for node in branches["else_branch"].node if node.op_type == "Sigmoid")
    changed.op_type = "HardSigmoid"
    feeds = {
        "input": np.zeros((1, 512), np.float32), "state": np.zeros((2, 1, 128), np.float32), "sr": np.array(16000),
    }  # fmt: skip
    found = bisect(suspect, against=path, feeds=feeds)
    assert [each.body for each in found.unrun] == ["If_0/else"]


def test_the_command_line_tells_it_in_text_and_json(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{name}.onnx") for name in ("suspect", "reference")]
    for path, model in zip(paths, (branchy(loop="Tanh"), branchy()), strict=True):
        save(model, path)
    np.savez(tmp_path / "x.npz", **_FEEDS)
    words = [sys.executable, "-m", "onnxbench", "bisect", paths[0], "--against", paths[1]]
    words += ["--feeds", str(tmp_path / "x.npz"), "--report", str(tmp_path / "report"), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)["result"]
    assert told["unrun"] == [{"body": "Loop#2/body", "differing": ["Loop#2/body/Tanh#1"]}]
    assert "no set of inputs runs Loop#2/body" in done.stderr
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    Draft202012Validator(SCHEMA).validate(report)
    assert report["result"]["unrun"] == told["unrun"]
