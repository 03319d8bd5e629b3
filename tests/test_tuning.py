"""The search for the nodes that half precision cannot do without, on small planted models, in ONNX Runtime."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxbench import backends, bisection
from onnxbench.cli import app
from onnxbench.cli._boundary import bounded
from onnxbench.errors import FeedsError, SpecError, UnsupportedError, UsageError
from onnxbench.graph import GraphIndex
from onnxbench.model import from_proto, load
from onnxbench.precision import convert
from onnxbench.tuning import Tuning, node_selectors, open_together, tune, tune_file
from onnxbench.tuning._criteria import Criterion
from onnxbench.tuning._emulation import BFLOAT16, FLOAT16, Emulation, rounded
from onnxbench.tuning._evaluation import Budget, Evaluator
from onnxbench.tuning._ranking import rank

NORM = """
<ir_version: 9, opset_import: ["": 17]>
g (float[N,64] x) => (float[N,64] y)
<float two = {2.0}, float eps = {1e-5}, float size = {700.0}>
{
  [scale] big = Mul(x, size)
  [mean] m = ReduceMean<axes = [-1]>(big)
  [center] d = Sub(big, m)
  [square] p = Pow(d, two)
  [variance] v = ReduceMean<axes = [-1]>(p)
  [guard] ve = Add(v, eps)
  [root] s = Sqrt(ve)
  [normal] n = Div(d, s)
  [soft] t = Tanh(n)
  [out] y = Add(t, n)
}
"""
DIFFERENCE = """
<ir_version: 9, opset_import: ["": 17]>
g (float[N,16] x) => (float[N,16] y)
<float far = {300.0}>
{
  [first] a = Sigmoid(x)
  [up] b = Add(a, far)
  [turned] b2 = Transpose<perm = [0, 1]>(b)
  [down] c = Sub(b2, far)
  [out] y = Tanh(c)
}
"""
BODY = """
<ir_version: 9, opset_import: ["": 17, "local": 1]>
g (float[N,16] x, bool which) => (float[N,16] y)
<float size = {400.0}>
{
  [before] h = Tanh(x)
  [branch] z = If (which) <
    then_branch = t () => (float[N,16] tz) {
      [in_big] tb = Mul(h, size)
      [in_square] ts = Mul(tb, tb)
      [in_root] tz = Sqrt(ts)
    },
    else_branch = e () => (float[N,16] ez) { [in_else] ez = Neg(h) }
  >
  [call] y = local.Square(z)
}
<domain: "local", opset_import: ["": 17]>
Square (a) => (c) {
  [f_square] b = Mul(a, a)
  [f_root] c = Sqrt(b)
}
"""


def _model(text: str) -> onnx.ModelProto:
    return parser.parse_model(text)


def _normal(count: int, width: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {"x": np.random.default_rng(number).normal(size=(3, width)).astype(np.float32), **more}
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def norm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("norm") / "norm.onnx"
    onnx.save(_model(NORM), path)
    return path


@pytest.fixture(scope="module")
def found(norm: Path) -> Tuning:
    return tune(norm, to="fp16", tolerance=["1e-2"], feeds=_normal(4, 64), holdout=1)


def _kept(result: Tuning) -> list[str]:
    return [each.node for each in result.kept]


# ---------------------------------------------------------------- emulation


@pytest.mark.parametrize("level", ["none", "all"])
@pytest.mark.parametrize(("to", "dtype"), [(FLOAT16, np.float16), (BFLOAT16, ml_dtypes.bfloat16)])
def test_the_runtime_keeps_the_casts_that_round(level: str, to: int, dtype: Any):
    emulation = Emulation(from_proto(_model(DIFFERENCE)), to)
    session = backends.open_session(emulation.emulated(()), options=backends.Options(optimization=level))
    x = np.linspace(-9, 9, 48, dtype=np.float32).reshape(3, 16)

    def half(value: Any) -> Any:
        return np.asarray(value, np.float32).astype(dtype).astype(np.float32)

    far = np.float32(300)
    a = half(backends.run_with_outputs(from_proto(_model(DIFFERENCE)), {"x": half(x)}, ["a"])["a"])
    wanted = np.tanh(half(half(a + far) - far))
    np.testing.assert_allclose(session.run({"x": x})["y"], half(wanted), rtol=2 * float(ml_dtypes.finfo(dtype).eps))


def test_nothing_in_half_precision_is_the_model_bit_for_bit(norm: Path):
    model = load(norm)
    emulation = Emulation(model, FLOAT16)
    sample = _normal(1, 64)[0]
    options = backends.Options(optimization="none")
    plain = backends.open_session(model, options=options).run(sample)["y"]
    whole = emulation.emulated(range(len(emulation.units)))
    assert np.array_equal(backends.open_session(whole, options=options).run(sample)["y"], plain)
    halves = backends.open_session(emulation.emulated(()), options=options).run(sample)["y"]
    assert np.isnan(halves).any() or np.abs(halves - plain).max() > 0.5


def test_bodies_and_functions_are_rounded_inside():
    emulation = Emulation(from_proto(_model(BODY)), FLOAT16)
    paths = [unit.path for unit in emulation.units]
    assert paths == [
        "before", "branch/then/in_big", "branch/then/in_square", "branch/then/in_root", "branch/else/in_else",
        "local::Square/f_square", "local::Square/f_root",
    ]  # fmt: skip
    sample = {"x": np.full((1, 16), 3, np.float32), "which": np.asarray(True)}
    values = backends.open_session(emulation.emulated(())).run(sample)["y"]
    assert np.isinf(values).all()  # 398 squared is beyond float16
    kept = [paths.index(name) for name in paths if "square" in name or "root" in name]
    values = backends.open_session(emulation.emulated(kept)).run(sample)["y"]
    np.testing.assert_allclose(values, 400 * np.tanh(3), rtol=2e-3)


@pytest.mark.parametrize("values", [[1e-9, -2e-9, 0.0], [1e9, 1.0, -70000.0], [1e-9, 1.0]])
def test_weights_are_clamped_as_a_conversion_clamps_them(values: list[float]):
    kind = f"float[{len(values)}]"
    proto = _model(f'<ir_version: 9, opset_import: ["": 17]> g ({kind} x) => ({kind} y) {{ y = Mul(x, w) }}')
    array = np.asarray(values, np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(array, "w"))
    made = convert(from_proto(proto), to="fp16", weights="clamp").model
    stored = next(made.array(each) for each in made.proto.graph.initializer if each.name == "w")
    np.testing.assert_array_equal(rounded(array, FLOAT16, clamp=True), stored.astype(np.float32))


def test_random_numbers_are_refused():
    proto = _model(DIFFERENCE.replace("Tanh(c)", "RandomNormalLike(c)"))
    with pytest.raises(UnsupportedError, match="random"):
        tune(from_proto(proto), to="fp16", tolerance=1e-2)


def test_bfloat16_wants_an_opset_that_has_it():
    proto = _model(DIFFERENCE.replace('"": 17', '"": 12'))
    with pytest.raises(UnsupportedError, match="the model has opset 12"):
        Emulation(from_proto(proto), BFLOAT16)
    assert Emulation(from_proto(proto), FLOAT16).units


# ---------------------------------------------------------------- ranking


def test_what_overflows_comes_first_and_what_is_cancelled_next():
    model = from_proto(_model(NORM))
    emulation = Emulation(model, FLOAT16)
    ranks, runs = rank(emulation, _normal(1, 64)[0])
    overflowing = [unit.path for unit, each in zip(emulation.units, ranks, strict=True) if each.own == float("inf")]
    assert overflowing == ["square", "variance", "guard", "root"]
    assert 1 < runs < 4
    emulation = Emulation(from_proto(_model(DIFFERENCE)), FLOAT16)
    ranks, _ = rank(emulation, _normal(1, 16)[0])
    order = sorted(range(len(ranks)), key=lambda unit: -ranks[unit].effect)
    assert {emulation.units[unit].path for unit in order[:2]} == {"up", "down"}
    up = ranks[[unit.path for unit in emulation.units].index("up")]
    assert up.own is not None
    assert up.own < 1e-3  # by itself it only rounds
    assert up.gain > 30


# ---------------------------------------------------------------- search


def test_the_planted_minimum_is_found(found: Tuning):
    assert _kept(found) == ["square", "variance", "guard", "root"]
    assert found.passed
    assert not found.plain.passed
    assert found.untried == 0
    assert found.holdout is not None
    assert 0 < found.holdout.ratio < 1
    assert [point.nodes for point in found.frontier] == [0, 4]
    assert found.converted is not None
    kept = {each.node for each in found.converted.kept if each.reason == "asked"}
    assert kept == set(_kept(found))


def test_no_smaller_set_passes(norm: Path, found: Tuning):
    """Every set of fewer nodes, among all that overflow or are next to them, fails."""
    model = load(norm)
    emulation = Emulation(model, FLOAT16)
    names = [unit.path for unit in emulation.units]
    near = [names.index(name) for name in ("center", "square", "variance", "guard", "root", "normal")]
    sample = _normal(1, 64)[0]
    options = backends.Options(optimization="none")
    wanted = backends.open_session(model, options=options).run(sample)["y"]
    for kept in itertools.combinations(near, 3):
        values = backends.open_session(emulation.emulated(kept), options=options).run(sample)["y"]
        assert not np.abs(values - wanted).max() < 1e-2


def test_what_is_subtracted_from_its_like_is_kept_with_what_makes_it():
    result = tune(from_proto(_model(DIFFERENCE)), to="fp16", tolerance=["2e-3"], feeds=_normal(3, 16))
    assert _kept(result) == ["up", "down"]


def test_nodes_of_bodies_and_functions_are_kept_one_by_one():
    result = tune(
        from_proto(_model(BODY)), to="fp16", tolerance=["5e-3"], metric="rel",
        feeds=_normal(2, 16, which=np.asarray(True)),
    )  # fmt: skip
    assert result.found
    assert result.converted is not None
    assert {"branch/then/in_square", "local::Square/f_square"} <= set(_kept(result))
    assert "branch/else/in_else" not in _kept(result)
    sample = _normal(1, 16, which=np.asarray(True))[0]
    made = backends.open_session(result.converted.model).run(sample)["y"]
    assert np.isfinite(made).all()


def test_nothing_is_kept_where_nothing_has_to_be(norm: Path):
    result = tune(norm, to="bf16", tolerance=["5e-2"], feeds=_normal(2, 64))
    assert _kept(result) == []
    assert result.passed
    assert result.runs == 4


def test_the_costs_decide_between_sets(tmp_path: Path):
    """What may be kept at either of two places is kept at the cheaper one."""
    table = tmp_path / "costs.yaml"
    sums = {}
    for cheap, dear in (("up", "first"), ("first", "up")):
        table.write_text(f"{cheap}: 1\n{dear}: 50\ndefault: 2\n", encoding="utf-8")
        result = tune(from_proto(_model(DIFFERENCE)), to="fp16", tolerance=["2e-3"], feeds=_normal(2, 16),
                      cost=str(table))  # fmt: skip
        sums[cheap] = result.cost
        assert _kept(result) == ["up", "down"]
    assert sums == {"up": 3.0, "first": 52.0}
    table.write_text("Sigmod: 1\n", encoding="utf-8")
    with pytest.raises(SpecError, match="Sigmod"):
        tune(from_proto(_model(DIFFERENCE)), to="fp16", tolerance=1e-3, feeds=_normal(1, 16), cost=str(table))


def test_the_same_question_has_the_same_answer(norm: Path, found: Tuning):
    again = tune(norm, to="fp16", tolerance=["1e-2"], feeds=_normal(4, 64), holdout=1)
    assert again.to_json() == found.to_json()


def test_a_search_is_resumed_where_it_ended(norm: Path, found: Tuning, tmp_path: Path):
    state = tmp_path / "state.json"
    feeds = _normal(4, 64)
    first = tune(norm, to="fp16", tolerance=["1e-2"], feeds=feeds, holdout=1, max_runs=12, resume=state)
    assert first.runs <= 12
    second = tune(norm, to="fp16", tolerance=["1e-2"], feeds=feeds, holdout=1, resume=state)
    assert _kept(second) == _kept(found)
    assert second.frontier == found.frontier
    assert second.runs < found.runs  # what is expected is computed again
    with pytest.raises(UsageError, match="the options"):
        tune(norm, to="fp16", tolerance=["1e-3"], feeds=feeds, holdout=1, resume=state)
    with pytest.raises(UsageError, match="the inputs"):
        tune(norm, to="fp16", tolerance=["1e-2"], feeds=feeds[::-1], holdout=1, resume=state)
    whole = json.loads(state.read_text(encoding="utf-8"))
    lacking = [{name: value for name, value in whole.items() if name != without} for without in ("trials", "ranking")]
    for broken in ({}, *lacking, {**whole, "trials": [{}]}, {**whole, "about": 3}):
        state.write_text(json.dumps(broken), encoding="utf-8")
        with pytest.raises(UsageError, match="no state of a search"):
            tune(norm, to="fp16", tolerance=["1e-2"], feeds=feeds, holdout=1, resume=state)


def test_what_is_named_stays_and_is_no_candidate(norm: Path, tmp_path: Path):
    result = tune_file(
        norm, tmp_path / "half.onnx", keep=["op:Pow", "node:root"], to="fp16", tolerance=["1e-2"], feeds=_normal(2, 64)
    )
    assert _kept(result) == ["variance", "guard"]
    assert sorted(ref.path for ref in result.refs) == ["guard", "root", "square", "variance"]


def test_a_converted_model_can_be_run_as_it_is(norm: Path):
    """ONNX Runtime's CPU keeps 32 bits between nodes in half precision: there is nothing to keep, and it says so."""
    result = tune(norm, to="fp16", tolerance=["1e-2"], feeds=_normal(2, 64), on="ort:all", io="convert")
    assert result.place == "ONNX Runtime, optimizations all"
    assert len(result.kept) < 4


def test_too_few_runs_find_nothing_and_say_so(norm: Path):
    result = tune(norm, to="fp16", tolerance=["1e-2"], feeds=_normal(1, 64), max_runs=3)
    assert not result.found
    assert not result.passed
    assert result.result is None
    late = tune(norm, to="fp16", tolerance=["1e-2"], feeds=_normal(3, 64), budget=1e-9)  # over before anything is tried
    assert not late.found
    assert late.ended == "the runs or the time were used up"
    with pytest.raises(UsageError, match="too few"):
        tune(norm, to="fp16", tolerance=["1e-2"], feeds=_normal(3, 64), max_runs=3)
    with pytest.raises(FeedsError, match="held out"):
        tune(norm, to="fp16", tolerance=["1e-2"], feeds=_normal(3, 64), holdout=3)


def test_what_no_set_can_meet_or_miss_is_refused(norm: Path):
    with pytest.raises(UsageError, match="does not meet the tolerance"):
        tune(norm, to="fp16", metric="cosine", tolerance=["2"], feeds=_normal(1, 64))
    proto = _model(
        '<ir_version: 9, opset_import: ["": 17]> g (float[4] x) => (float[4] y) { z = Sub(x, x) y = Div(z, z) }'
    )
    with pytest.raises(FeedsError, match="output 'y' of the model as it is is NaN throughout"):
        tune(from_proto(proto), to="fp16", tolerance=["1e-2"], feeds=[{"x": np.ones(4, np.float32)}])


# ---------------------------------------------------------------- criteria


def _score(metric: str, tolerance: str, expected: Any, actual: Any) -> Any:
    one, other = ({"y": np.asarray(each, np.float32)} for each in (expected, actual))
    return Criterion(metric, [tolerance], ["y"]).judge(one, other, 0)


@pytest.mark.parametrize(
    ("metric", "tolerance", "value", "passes"),
    [("max", "0.0501", 0.2 / 4, True), ("abs", "0.19", 0.2, False), ("rel", "0.1", 0.2 / 5, True),
     ("cosine", "0.99", 0.99978, True), ("sqnr", "30", 27.96, False)],
)  # fmt: skip
def test_metrics(metric: str, tolerance: str, value: float, passes: bool):
    score = _score(metric, tolerance, [3.0, 4.0], [3.2, 4.0])
    assert score.value == pytest.approx(value, rel=1e-3)
    assert score.passed == passes


@pytest.mark.parametrize("metric", ["max", "abs", "rel", "cosine", "sqnr"])
@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_what_is_not_finite_fails_whatever_is_allowed(metric: str, odd: float):
    tolerance = {"cosine": "-1", "sqnr": "-900"}.get(metric, "1e30")
    assert not _score(metric, tolerance, [3.0, 4.0], [odd, 4.0]).passed
    assert _score(metric, tolerance, [odd, 4.0], [odd, 4.0]).passed


def test_a_function_judges_all_samples(norm: Path, tmp_path: Path):
    script = tmp_path / "top.py"
    script.write_text(
        "def agreement(reference, outputs):\n"
        "    same = [(a['y'].argmax(-1) == b['y'].argmax(-1)).mean() for a, b in zip(reference, outputs)]\n"
        "    return sum(same) / len(same)\n"
        "def broken(reference, outputs):\n    return reference[0]['nothing']\n",
        encoding="utf-8",
    )
    result = tune(norm, to="fp16", tolerance=[">=0.99"], metric=f"{script}:agreement", feeds=_normal(3, 64))
    assert result.found
    assert result.score.value == 1.0
    assert 0 < len(result.kept) <= 4
    with pytest.raises(SpecError, match="KeyError"):
        tune(norm, to="bf16", tolerance=["<=1"], metric=f"{script}:broken", feeds=_normal(1, 64))
    with pytest.raises(SpecError, match="agreement"):
        Criterion(f"{script}:agrement", [">=0.99"], ["y"])
    with pytest.raises(UsageError, match="at most or at least"):
        Criterion(f"{script}:agreement", ["0.99"], ["y"])


@pytest.mark.parametrize(("metric", "tolerance"), [("maximum", "1e-3"), ("max", "-1"), ("max", "much"), ("max", "")])
def test_what_cannot_be_understood_is_refused(metric: str, tolerance: str):
    with pytest.raises(UsageError):
        Criterion(metric, [tolerance] if tolerance else [], ["y"])


def test_a_metric_is_not_written_over(tmp_path: Path, norm: Path):
    script = tmp_path / "top1.py"
    script.write_text("def agreement(reference, value):\n    return 1.0\n")
    with pytest.raises(UsageError, match=r"top1\.py is an input"):
        tune_file(norm, None, to="fp16", metric=f"{script}:agreement", tolerance=[">=0.5"], save_set=script)


# ---------------------------------------------------------------- the command


def _run(*words: object) -> int:
    return bounded(app, ["precision", *map(str, words)])


@pytest.fixture(scope="module")
def feeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("feeds")
    for number, sample in enumerate(_normal(3, 64)):
        np.savez(folder / f"{number}.npz", **sample)
    return folder


def test_a_search_that_is_over_before_it_begins(norm: Path, feeds: Path, tmp_path: Path, capsys: Any):
    out = tmp_path / "half.onnx"
    assert _run(norm, out, "--tolerance", "1e-2", "--feeds", feeds, "--budget", "1ms") == 1
    assert "0 sets tried in 3 runs" in capsys.readouterr().out
    assert not out.exists()


def test_the_set_and_the_recipe_make_the_same_model(norm: Path, feeds: Path, tmp_path: Path):
    out, names, recipe = tmp_path / "half.onnx", tmp_path / "kept.txt", tmp_path / "half.yaml"
    assert _run(norm, out, "--search", "--tolerance", "1e-2", "--feeds", feeds, "--save-set", names, "--save-recipe",
                recipe, "--report", tmp_path / "report") == 0  # fmt: skip
    assert _run(norm, tmp_path / "again.onnx", "--keep-fp32", f"@{names}") == 0
    assert (tmp_path / "again.onnx").read_bytes() == out.read_bytes()
    words = ["edit", str(norm), str(tmp_path / "edited.onnx"), "--recipe", str(recipe), "--no-stamp"]
    assert bounded(app, words) == 0
    assert (tmp_path / "edited.onnx").read_bytes() == out.read_bytes()
    told = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert told["command"] == "precision"
    assert told["result"]["kept"] == ["square", "variance", "guard", "root"]
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "Nodes kept against error" in page
    assert told["result"]["verdict"] in page.replace("&gt;", ">").replace("&lt;", "<")


def test_the_exit_code_says_that_no_set_was_found(norm: Path, feeds: Path, tmp_path: Path, capsys: Any):
    assert _run(norm, tmp_path / "no.onnx", "--tolerance", "1e-2", "--feeds", feeds, "--max-runs", 4) == 1
    assert not (tmp_path / "no.onnx").exists()
    assert "FAILED: no set" in capsys.readouterr().out


def test_the_best_set_is_written_on_an_interrupt(
    norm: Path, feeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Ctrl-C comes once a set has passed: it is written, though a smaller one was still looked for."""
    call = Evaluator.__call__

    def interrupted(self: Evaluator, kept: Any) -> Any:
        if any(trial.passed for trial in self.trials):
            raise KeyboardInterrupt
        return call(self, kept)

    monkeypatch.setattr(Evaluator, "__call__", interrupted)
    out = tmp_path / "half.onnx"
    assert _run(norm, out, "--tolerance", "1e-2", "--feeds", feeds) == 130
    assert len(GraphIndex(load(out).proto).main.nodes) > 10


def test_options_of_a_search_mean_nothing_without_it(norm: Path, tmp_path: Path):
    assert _run(norm, tmp_path / "out.onnx", "--holdout", 2) == 2
    assert _run(norm, tmp_path / "out.onnx", "--search") == 2
    assert _run(norm, norm, "--search", "--tolerance", "1e-2") == 2
    assert not (tmp_path / "out.onnx").exists()


def test_a_node_without_a_name_is_named_by_what_it_makes():
    proto = _model(NORM.replace("[guard] ", "").replace("[root] ", "[square] "))
    index = GraphIndex(proto)
    assert node_selectors(index, list(index.nodes())[3:7]) == ['"p"', 'node:"variance"', '"ve"', '"s"']


def test_digests_and_the_budget():
    one, other = from_proto(_model(NORM)), from_proto(_model(NORM.replace("700", "701")))
    assert bisection.model_digest(one) == bisection.model_digest(from_proto(_model(NORM)))
    assert bisection.model_digest(one) != bisection.model_digest(other)
    heard: list[int] = []
    budget = Budget(runs=3, heard=heard.append)
    budget.take(2)
    assert (budget.spent, heard) == (2, [2])


def test_sets_that_are_alike_run_in_one_session_bit_for_bit(norm: Path):
    emulation = Emulation(load(norm), FLOAT16)
    units = range(len(emulation.units))
    sets = [frozenset(units) - {unit} for unit in units]
    together = open_together((emulation.emulated(kept) for kept in sets), most=100.0)
    sample = _normal(1, 64)[0]
    made = together.run(sample)
    together.close()
    assert len(made) == len(sets)
    assert together.cost < 0.8 * len(sets)  # what comes before a node is computed once
    for kept, outputs in zip(sets, made, strict=True):
        single = open_together(iter([emulation.emulated(kept)]), most=1.0)
        expected = single.run(sample)[0]
        single.close()
        assert {name: value.tobytes() for name, value in outputs.items()} == {
            name: value.tobytes() for name, value in expected.items()
        }
    few = open_together((emulation.emulated(kept) for kept in sets), most=1.5)
    few.close()
    assert 1 <= len(few.names) < len(sets)
    assert few.cost <= 1.5


def test_each_node_of_a_minimal_set_was_left_out_in_a_run(norm: Path, found: Tuning, tmp_path: Path):
    state = tmp_path / "state.json"
    again = tune(norm, to="fp16", tolerance=["1e-2"], feeds=_normal(4, 64), holdout=1, resume=state)
    assert again.untried == 0
    failed = {int(trial["kept"], 16) for trial in json.loads(state.read_text())["trials"] if trial["failing"] >= 0}
    kept = sum(1 << number for number, each in enumerate(again.candidates) if each.kept)
    assert {kept & ~(1 << number) for number, each in enumerate(again.candidates) if each.kept} <= failed
