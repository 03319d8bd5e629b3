"""Loading: what is no model is refused with the right kind of error, what is one opens without its weights."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from cases import FIXTURES, ROOT, Case, cases, named
from gen.broken_files import write_uncommittable
from gen.verify import _in_child
from hypothesis import given, settings
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from test_wire import _damaged

from onnxbench import model as model_module
from onnxbench import weights
from onnxbench.errors import BenchError, ExternalDataError, ModelError, NotFoundError, RefusedResultError, UsageError
from onnxbench.model import from_proto, load
from onnxbench.wire import STUB_PREFIX
from onnxbench.writer import save

# What the manifest calls broken and we do not, or not so, with the reason.
EXCEPTIONS: dict[str, tuple[type[BenchError], ...] | None] = {
    "directory.onnx": (UsageError,),  # a folder is no file at all
    "symlink_dangling.onnx": (NotFoundError,),  # there is nothing at the other end
    "ir_missing.onnx": None,  # mended: the opsets say which IR version it must be
    "ext_checksum_wrong": None,  # noticed by nobody who does not read all weights; no runtime does
}
KINDS: dict[str, tuple[type[BenchError], ...]] = {
    "not-a-model": (ModelError,),
    "invalid-graph": (ModelError, RefusedResultError),
    "external-data": (ExternalDataError,),
}


@cases(lambda case: case.valid == "no")
def test_broken_files_are_refused_by_kind(case: Case, tmp_path: Path) -> None:
    """In a child process: some of these files have brought native parsers down."""

    def attempt() -> list[str]:
        try:
            model = load(case.path)
            save(model, tmp_path / "out.onnx")
        except BenchError as error:
            return [type(error).__name__, error.message]
        return ["accepted"]

    before = case.path.read_bytes() if case.path.is_file() else None
    answer = _in_child(attempt, seconds=20)

    expected = EXCEPTIONS.get(case.name, KINDS[case.error])
    assert "ok" in answer, answer
    if expected is None:
        assert answer["ok"] == ["accepted"]
        return
    assert answer["ok"][0] in [error.__name__ for error in expected], answer
    assert "Traceback" not in answer["ok"][1]
    assert "\n" not in answer["ok"][1].strip()
    assert list(tmp_path.iterdir()) == []
    assert before is None or case.path.read_bytes() == before


@cases(lambda case: case.valid != "no")
def test_every_sound_or_mendable_fixture_loads(case: Case) -> None:
    model = load(case.path)

    assert model.proto.HasField("graph")
    assert model.file_size == case.path.stat().st_size
    assert model.origin == case.path.resolve()


def test_there_are_more_than_fifty_broken_files() -> None:
    entries = json.loads((FIXTURES / "MANIFEST.json").read_text())["files"]
    assert sum(entry.get("valid") == "no" for entry in entries) >= 50


# ---- paths


def test_an_unknown_name_is_answered_with_near_ones(tmp_path: Path) -> None:
    (tmp_path / "resnet50.onnx").write_bytes(named("linear_func").path.read_bytes())

    with pytest.raises(NotFoundError) as caught:
        load(tmp_path / "resnet5.onnx")

    assert caught.value.exit_code == 4
    assert "resnet50.onnx" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["no/such/folder/model.onnx", "a\0b.onnx", "\ud800.onnx"])
def test_names_that_are_no_file(name: str) -> None:
    with pytest.raises(NotFoundError):
        load(name)


def test_things_that_are_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    for path in (tmp_path, tmp_path / "pipe.onnx", Path("/dev/zero")):
        with pytest.raises(UsageError):
            load(path)
    with pytest.raises(ModelError):
        load(tmp_path / ("x" * 5000))
    os.symlink("loop.onnx", tmp_path / "loop.onnx")
    with pytest.raises(ModelError):
        load(tmp_path / "loop.onnx")


def test_unreadable_files() -> None:
    """As an ordinary user: root reads everything."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        folder.chmod(0o755)
        write_uncommittable(folder / "extra")
        (folder / "locked.onnx").write_bytes(named("linear_func").path.read_bytes())
        (folder / "locked.onnx").chmod(0)

        def attempt() -> list[str]:
            if os.geteuid() == 0:
                os.setuid(65534)
            answers = []
            for path in (folder / "locked.onnx", folder / "extra" / "ext_unreadable" / "model.onnx"):
                try:
                    load(path)
                    answers.append("accepted")
                except BenchError as error:
                    answers.append(type(error).__name__)
            return answers

        assert _in_child(attempt)["ok"] == ["ModelError", "ExternalDataError"]


def test_external_data_that_git_cannot_hold(tmp_path: Path) -> None:
    write_uncommittable(tmp_path / "extra")

    for name in ("ext_absolute_symlink", "ext_fifo"):
        with pytest.raises(ExternalDataError):
            load(tmp_path / "extra" / name / "model.onnx")
    with pytest.raises(ExternalDataError):
        load(tmp_path / "extra" / "ext_fifo" / "model.onnx", allow_outside=True)
    # Package managers make hard links of everything they install, and ONNX Runtime takes them.
    load(tmp_path / "extra" / "ext_hard_link" / "model.onnx")


def test_leaving_the_folder_can_be_allowed() -> None:
    case = named("ext_parent")

    model = load(case.path, allow_outside=True)

    (tensor,) = model.proto.graph.initializer
    assert model.array(tensor).tobytes() == b"SECRET--" * 4
    structure = load(case.path, require_weights=False)
    with pytest.raises(ExternalDataError):
        structure.array(structure.proto.graph.initializer[0])


def test_a_file_cannot_name_any_other_to_be_read(tmp_path: Path) -> None:
    """The place that a stub names is our own word; a model that says it would read every file of the machine."""
    (tmp_path / "secret").write_bytes(b"SECRET--" * 4)
    proto = onnx.load(str(named("ext_parent").path), load_external_data=False)
    entries = proto.graph.initializer[0].external_data
    entries[0].value = f"{STUB_PREFIX}{tmp_path / 'secret'}"
    for text in ("", " " * model_module.LIFT_FILE_SIZE):
        proto.doc_string = text
        for suffix, form in ((".onnx", "protobuf"), (".textproto", "textproto"), (".json", "json")):
            onnx.save_model(proto, str(tmp_path / f"model{suffix}"), format=form)
            with pytest.raises(ExternalDataError):
                load(tmp_path / f"model{suffix}")


def _weighty(size: int = 600) -> onnx.ModelProto:
    """Returns a model of more than a megabyte: y = x + w."""
    weight = numpy_helper.from_array(np.arange(size * size, dtype=np.float32).reshape(size, size), "w")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", T.FLOAT, [size, size])],
        [helper.make_tensor_value_info("y", T.FLOAT, [size, size])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_cache_of_symbolic_links_is_one_folder(tmp_path: Path) -> None:
    """As Hugging Face keeps models: links in a snapshot, files of other names among blobs. ONNX Runtime follows."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    onnx.save_model(_weighty(), str(blobs / "aaa"), save_as_external_data=True, location="model.onnx_data")
    (blobs / "model.onnx_data").rename(blobs / "bbb")
    (snapshot / "model.onnx").symlink_to("../blobs/aaa")
    (snapshot / "model.onnx_data").symlink_to("../blobs/bbb")

    model = load(snapshot / "model.onnx")

    assert model.array(model.proto.graph.initializer[0])[1, 1] == 601
    save(model, tmp_path / "out.onnx")
    (tmp_path / "elsewhere").write_bytes((blobs / "bbb").read_bytes())
    (snapshot / "model.onnx_data").unlink()
    (snapshot / "model.onnx_data").symlink_to("../elsewhere")
    with pytest.raises(ExternalDataError):
        load(snapshot / "model.onnx")


def test_a_link_to_a_model_finds_the_weights_beside_the_model(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "other").mkdir()
    onnx.save_model(_weighty(), str(tmp_path / "real" / "m.onnx"), save_as_external_data=True, location="m.data")
    (tmp_path / "other" / "link.onnx").symlink_to("../real/m.onnx")

    model = load(tmp_path / "other" / "link.onnx")

    assert model.array(model.proto.graph.initializer[0])[0, 5] == 5


def test_a_folder_whose_name_is_not_text(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    folder.mkdir()
    (folder / "m.onnx").write_bytes(_weighty().SerializeToString())

    model = load(folder / "m.onnx")

    assert model.array(model.proto.graph.initializer[0])[2, 0] == 1200
    save(model, folder / "out.onnx")
    assert (folder / "out.onnx").read_bytes() == (folder / "m.onnx").read_bytes()


# ---- weights


@cases(lambda case: case.valid != "no")
def test_values_are_those_that_onnx_reads(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "LIFT_FILE_SIZE", 1)
    monkeypatch.setattr(model_module, "LIFT_THRESHOLD", 1)
    model = load(case.path)

    if case.name == "string_bytes.onnx":  # onnx gives up on these
        (text,) = [tensor for tensor in weights.tensors(model.proto) if tensor.data_type == T.STRING]
        assert [os.fsencode(word) for word in model.array(text)] == list(text.string_data)
        return
    ours = [model.array(tensor) for tensor in weights.tensors(model.proto)]
    theirs = [numpy_helper.to_array(tensor) for tensor in weights.tensors(case.whole())]

    assert [(a.dtype, a.shape, a.tolist() if a.dtype == object else a.tobytes()) for a in ours] == [
        (a.dtype, a.shape, a.tolist() if a.dtype == object else a.tobytes()) for a in theirs
    ]


@cases(lambda case: case.valid == "no" and case.error == "invalid-graph" and case.path.suffix == ".onnx")
def test_values_of_broken_tensors_are_refused(case: Case) -> None:
    model = load(case.path)
    for tensor in weights.tensors(model.proto):
        with contextlib.suppress(ModelError):
            model.array(tensor)


def test_data_that_does_not_fit_its_tensor_is_noticed_in_large_files_too(tmp_path: Path) -> None:
    for dims, extra in (([600, 600], b"1234"), ([700, 600], b""), ([10, 10], b"")):
        proto = _weighty()
        (weight,) = proto.graph.initializer
        weight.dims[:] = dims
        weight.raw_data += extra
        for info in (*proto.graph.input, *proto.graph.output):
            for dim, size in zip(info.type.tensor_type.shape.dim, dims, strict=True):
                dim.dim_value = size
        (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
        model = load(tmp_path / "m.onnx")
        with pytest.raises(ModelError):
            model.array(model.proto.graph.initializer[0])
        with pytest.raises(RefusedResultError):
            save(model, tmp_path / "out.onnx")


def test_weights_that_changed_after_loading_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(_weighty().SerializeToString())
    model = load(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes(_weighty(601).SerializeToString())

    with pytest.raises(ExternalDataError, match="changed"):
        model.array(model.proto.graph.initializer[0])
    with pytest.raises(ExternalDataError, match="changed"):
        save(model, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33])
def test_the_last_byte_of_external_data_counts(size: int, tmp_path: Path) -> None:
    """32 bytes are wanted, from the start or from the end of a file that also holds other things."""
    for offset in (0, 7):
        tensor = onnx.TensorProto(name="w", data_type=T.FLOAT, dims=[8], data_location=T.EXTERNAL)
        for key, value in (("location", "w.bin"), ("offset", str(offset))):
            tensor.external_data.add(key=key, value=value)
        value_info = helper.make_tensor_value_info("w", T.FLOAT, [8])
        proto = helper.make_model(helper.make_graph([], "g", [], [value_info], [tensor]))
        (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
        (tmp_path / "w.bin").write_bytes(bytes(offset + size))
        if size < 32:
            with pytest.raises(ExternalDataError, match="which has"):
                load(tmp_path / "m.onnx")
        else:
            load(tmp_path / "m.onnx")


def test_missing_weights_do_not_matter_to_who_asks_for_structure_alone() -> None:
    model = load(named("ext_missing_file").path, require_weights=False)

    assert [tensor.name for tensor in model.proto.graph.initializer] == ["w"]
    with pytest.raises(ExternalDataError):
        model.check_weights()


def test_small_external_weights_can_be_had_inline() -> None:
    """Shapes and axes that lie outside, as they do in models saved with a size threshold of 0."""
    model = load(named("external_many_files").path)

    inline = model.with_small_weights(model.proto)

    assert any(weights.is_outside(tensor) for tensor in weights.tensors(model.proto))
    assert not any(weights.is_outside(tensor) for tensor in weights.tensors(inline))
    whole = named("external_many_files").whole()
    assert [numpy_helper.to_array(tensor).tobytes() for tensor in inline.graph.initializer] == [
        numpy_helper.to_array(tensor).tobytes() for tensor in whole.graph.initializer
    ]
    assert from_proto(inline).with_small_weights(inline) is inline


def test_loading_reads_the_structure_alone(tmp_path: Path) -> None:
    """A 196 MB model is opened, indexed and sized up in a process that stays far below that."""
    path = tmp_path / "large.onnx"
    path.write_bytes(_weighty(7_000).SerializeToString())
    code = (
        "import re, sys\n"
        "from onnxbench.model import load\n"
        "from onnxbench.graph import GraphIndex\n"
        "from onnxbench.weights import tensors\n"
        "model = load(sys.argv[1])\n"
        "GraphIndex(model.proto)\n"
        "assert sum(model.byte_range(t).length for t in tensors(model.proto)) == 196_000_000\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True, check=True)
    path.unlink()

    assert int(done.stdout) < 120_000  # kilobytes; importing onnx takes about 60 MB


# ---- damage


@settings(max_examples=150)
@given(_damaged())
def test_damaged_files_raise_known_errors_alone(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(data)
    for size in (1, model_module.LIFT_FILE_SIZE):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model_module, "LIFT_FILE_SIZE", size)
            patch.setattr(model_module, "LIFT_THRESHOLD", 8)
            try:
                model = load(path)
                for tensor in weights.tensors(model.proto):
                    model.array(tensor)
            except BenchError as error:
                assert error.message
