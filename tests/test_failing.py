"""A suspect that does not run: sessions in processes of their own, and the part that is to blame."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import failing_models as failing
import numpy as np
import onnx
import pytest
from cases import Case, cases
from onnx import TensorProto, helper

from onnxbench import backends, captures
from onnxbench.backends import _isolated
from onnxbench.bisection import bisect
from onnxbench.errors import ExecutionError, FeedsError, LostProcessError
from onnxbench.model import from_proto, load

Failing = Callable[[], tuple[onnx.ModelProto, dict[str, Any]]]
x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="only x86 traps this division")
CHILD = backends.Options("none", isolate=30.0)


# ---------------------------------------------------------------- sessions in a process of their own


@cases(lambda case: case.engine == "ort" and not case.name.startswith("no_nodes"))
def test_an_isolated_session_gives_the_same(case: Case) -> None:
    model, feeds = load(case.path), case.feeds()
    here = backends.open_session(model, options=backends.Options("none"))
    there = backends.open_session(model, options=CHILD)
    assert [(p.name, p.type) for p in here.outputs] == [(p.name, p.type) for p in there.outputs]
    assert here.providers == there.providers
    wanted, found = here.run(feeds), there.run(feeds)
    there.close()
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        if isinstance(value, np.ndarray):
            assert value.dtype == found[name].dtype
            assert value.tobytes() == found[name].tobytes() or value.dtype.kind == "O"
            assert value.shape == found[name].shape
        else:
            assert str(value) == str(found[name])


def test_processes_are_used_again_and_thrown_away_when_they_die() -> None:
    _isolated.end_workers()
    model, feeds = failing.crash()
    fine = {"x": np.arange(4)}
    session = backends.open_session(from_proto(model), options=CHILD)
    first = session._worker._process.pid  # type: ignore[attr-defined]
    session.run(fine)
    session.close()
    session = backends.open_session(from_proto(model), options=CHILD)
    assert session._worker._process.pid == first  # type: ignore[attr-defined]
    if platform.machine() == "x86_64":
        with pytest.raises(LostProcessError, match="SIGFPE") as caught:
            session.run(feeds)
        assert caught.value.how == "SIGFPE"
        session.close()
        session = backends.open_session(from_proto(model), options=CHILD)
        assert session._worker._process.pid != first  # type: ignore[attr-defined]
        assert list(session.run(fine)) == ["y"]
    session.close()


def test_errors_come_through_as_they_are() -> None:
    model, feeds = failing.wrong_reshape()
    session = backends.open_session(from_proto(model), options=CHILD)
    with pytest.raises(ExecutionError, match="in node 'bad' \\(Reshape\\)"):
        session.run(feeds)
    with pytest.raises(FeedsError):
        session.run({})
    session.close()
    with pytest.raises(ExecutionError, match="Tan") as caught:
        backends.open_session(from_proto(failing.no_kernel()[0]), options=CHILD)
    assert not isinstance(caught.value, LostProcessError)
    assert "--backend reference" in (caught.value.hint or "")


def test_the_reference_evaluator_can_be_isolated_too() -> None:
    model, _ = failing.crash()
    session = backends.open_session(from_proto(model), "reference", options=CHILD)
    assert session.run({"x": np.arange(4)})["y"].shape == (4,)
    assert session.device == "Python"
    session.close()


def test_a_hang_is_ended() -> None:
    model, feeds = failing.hang()
    session = backends.open_session(from_proto(model), options=backends.Options("none", isolate=1.0))
    with pytest.raises(LostProcessError, match="longer than 1 s") as caught:
        session.run(feeds)
    assert caught.value.how == "hang"
    session.close()


def test_memory_that_is_not_there_is_a_failure_and_no_death() -> None:
    model, feeds = failing.too_large()
    session = backends.open_session(from_proto(model), options=CHILD)
    with pytest.raises(ExecutionError, match="Expand"):
        session.run(feeds)
    session.close()


def test_a_limit_of_the_system_ends_the_process_and_not_this_one() -> None:
    """CPU time runs out while a loop runs: the kernel ends the worker with SIGXCPU."""
    import resource

    model, feeds = failing.hang()
    session = backends.open_session(from_proto(model), options=backends.Options("none", isolate=60.0))
    worker = session._worker._process.pid  # type: ignore[attr-defined]
    resource.prlimit(worker, resource.RLIMIT_CPU, (1, 10))
    with pytest.raises(LostProcessError) as caught:
        session.run(feeds)
    assert caught.value.how == "SIGXCPU"
    session.close()


# ---------------------------------------------------------------- the part that is to blame

_ERRORS = [
    (failing.out_of_range, "failed", "run"), (failing.wrong_reshape, "failed", "run"),
    (failing.too_large, "failed", "run"), (failing.no_kernel, "refused", "open"),
]  # fmt: skip
_DEATHS = [
    pytest.param(failing.crash, "SIGFPE", marks=x86), (failing.hang, "hang"),
    pytest.param(failing.crash_in_a_branch, "SIGFPE", marks=x86),
]  # fmt: skip


@pytest.mark.parametrize(("build", "how", "phase"), _ERRORS)
def test_the_node_that_fails_is_named(build: Failing, how: str, phase: str) -> None:
    model, feeds = build()
    found = bisect(from_proto(model), feeds=feeds)
    failure = found.failure
    assert (found.kind, found.passed) == ("failed", False)
    assert failure is not None
    assert (failure.how, failure.phase, failure.nodes, failure.node) == (how, phase, ("bad",), "bad")
    assert failure.runs < 20
    assert found.verdict.startswith("the suspect ")
    assert "bad (" in found.verdict


@pytest.mark.parametrize(("build", "how"), _DEATHS)
def test_the_node_that_ends_the_process_is_named(build: Failing, how: str) -> None:
    model, feeds = build()
    found = bisect(from_proto(model), feeds=feeds, isolate=True, timeout=1.0)
    assert found.failure is not None
    assert (found.failure.how, found.failure.nodes) == (how, ("bad",))
    assert json.dumps(found.failure.inputs)


@x86
def test_functions_are_inlined_and_told() -> None:
    model, feeds = failing.crash_in_a_function()
    found = bisect(from_proto(model), feeds=feeds, isolate=True, timeout=20.0)
    assert found.failure is not None
    assert found.failure.op_type == "Div"
    assert found.failure.function == "local::Halve"


def test_a_suspect_that_runs_is_searched_for_drift_all_the_same() -> None:
    model, _ = failing.crash()
    found = bisect(from_proto(model), feeds={"x": np.arange(4)}, isolate=True, timeout=20.0)
    assert (found.kind, found.failure) == ("clean", None)


def test_a_reference_that_fails_is_an_error() -> None:
    right, feeds = failing.wrong_reshape()
    fine = onnx.ModelProto()
    fine.CopyFrom(right)
    fine.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.array([2, 2]), "shape"))
    with pytest.raises(ExecutionError, match="Reshape"):
        bisect(from_proto(fine), against=from_proto(right), feeds=feeds)


def test_one_of_several_sets_is_enough() -> None:
    nodes = [helper.make_node("Gather", ["x", "i"], ["q"], "bad"), helper.make_node("Relu", ["q"], ["y"], "end")]
    shapes = {"x": (TensorProto.FLOAT, [8]), "i": (TensorProto.INT64, [3])}
    model = failing.make(nodes, inputs=shapes)
    from onnxbench.feeding import FeedOptions

    found = bisect(from_proto(model), feeds=FeedOptions(ranges=["i:[0,9]"], iterations=6))
    assert found.failure is not None
    assert found.failure.nodes == ("bad",)
    assert found.sets == 6


# ---------------------------------------------------------------- the command


def _run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnxbench", "bisect", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def _save(folder: Path, made: tuple[onnx.ModelProto, dict[str, Any]]) -> tuple[Path, Path]:
    onnx.save(made[0], folder / "model.onnx")
    captures.save(folder / "feeds.npz", made[1])
    return folder / "model.onnx", folder / "feeds.npz"


@x86
def test_the_command_outlives_a_crash(tmp_path: Path) -> None:
    model, feeds = _save(tmp_path, failing.crash())
    repro = tmp_path / "repro"
    done = _run(model, "--feeds", feeds, "--repro", repro)
    assert done.returncode == 1, done.stderr
    assert "the work was ended: crashed (SIGFPE)" in done.stderr
    assert done.stdout.strip().splitlines()[-1] == "the suspect crashes (SIGFPE) when it runs: bad (Div) is enough"
    onnx.checker.check_model(str(repro / "culprit.onnx"), full_check=True)
    script = subprocess.run([sys.executable, repro / "reproduce.py"], capture_output=True, text=True, check=False)
    assert script.returncode == 1, script.stderr
    assert "the failure shows" in script.stdout
    assert not list(tmp_path.glob("core*"))


def test_the_command_outlives_a_hang(tmp_path: Path) -> None:
    model, feeds = _save(tmp_path, failing.hang())
    done = _run(model, "--feeds", feeds, "--timeout", "1", "--json")
    assert done.returncode == 1, done.stderr
    assert "took longer than 1 s" in done.stderr
    failure = json.loads(done.stdout)["result"]["failure"]
    assert (failure["how"], failure["nodes"]) == ("hang", ["bad"])


def test_the_command_names_what_is_refused(tmp_path: Path) -> None:
    model, feeds = _save(tmp_path, failing.no_kernel())
    done = _run(model, "--feeds", feeds)
    assert done.returncode == 1, done.stderr
    assert "is refused by the runtime: bad (Tan) is enough" in done.stdout
    assert "the work was ended" not in done.stderr


@x86
def test_a_reference_that_crashes_is_told_from_the_suspect(tmp_path: Path) -> None:
    """The suspect divides by what is no -1, so it runs; the reference takes the work along, twice."""
    right, inputs = failing.crash()
    fine = onnx.ModelProto()
    fine.CopyFrom(right)
    fine.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.array(5), "next"))
    reference, feeds = _save(tmp_path, (right, inputs))
    onnx.save(fine, tmp_path / "fine.onnx")
    done = _run(tmp_path / "fine.onnx", "--against", reference, "--feeds", feeds)
    assert done.returncode == 9, done.stdout + done.stderr
    assert "the suspect by itself does not do that" in done.stderr


def test_the_exit_code_of_the_work_is_that_of_the_command(tmp_path: Path) -> None:
    model, feeds = _save(tmp_path, (failing.crash()[0], {"x": np.arange(4)}))
    assert _run(model, "--feeds", feeds).returncode == 0
    assert _run(tmp_path / "absent.onnx").returncode == 4
    assert _run(model, "--on", "ort:al").returncode == 2
