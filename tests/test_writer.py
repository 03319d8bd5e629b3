"""Saving: the same bytes for the same model, what was not touched as it was, all or nothing, and no input harmed."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from cases import ROOT, Case, all_cases, cases, named
from engines import ENGINES, run_ort
from gen.verify import _in_child
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from onnxbench import model as model_module
from onnxbench import weights, writer
from onnxbench.errors import BenchError, OutputError, UnsupportedError, UsageError
from onnxbench.model import Model, from_proto, load
from onnxbench.writer import SaveOptions, save

is_sound = cases(lambda case: case.valid != "no")
runs = cases(lambda case: case.valid != "no" and case.engine is not None)


def _values(model: Model) -> list[tuple[str, str, tuple[int, ...], object]]:
    arrays = [(tensor.name, model.array(tensor)) for tensor in weights.tensors(model.proto)]
    return [(n, a.dtype.name, a.shape, a.tolist() if a.dtype == object else a.tobytes()) for n, a in arrays]


def _no_leftovers(folder: Path) -> bool:
    return not [name for name in os.listdir(folder) if name.endswith(".part")]


# ---- what is written


@is_sound
def test_what_is_untouched_stays_as_it_was(case: Case, tmp_path: Path) -> None:
    model = load(case.path)
    before = model.proto.SerializeToString(deterministic=True)

    saved = save(model, tmp_path / "out.onnx")

    assert model.proto.SerializeToString(deterministic=True) == before
    assert saved.size == (tmp_path / "out.onnx").stat().st_size
    assert os.listdir(tmp_path) == ["out.onnx"]
    if not saved.repairs and not case.is_external:
        original = case.whole().SerializeToString(deterministic=True)
        assert (tmp_path / "out.onnx").read_bytes() == original
    if case.valid == "yes":
        assert saved.repairs == ()


@is_sound
def test_lifted_weights_come_back_to_the_byte(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(load(case.path), tmp_path / "whole.onnx")
    monkeypatch.setattr(model_module, "LIFT_FILE_SIZE", 1)
    monkeypatch.setattr(model_module, "LIFT_THRESHOLD", 1)

    save(load(case.path), tmp_path / "lifted.onnx")

    assert (tmp_path / "lifted.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()


@is_sound
def test_what_is_written_is_valid_and_needs_no_mending(case: Case, tmp_path: Path) -> None:
    saved = save(load(case.path), tmp_path / "out.onnx")

    if case.name != "input_without_shape.onnx":  # legal, and runtimes take it; the checker wants a shape of any input
        strict = not onnx.load(tmp_path / "out.onnx").graph.sparse_initializer  # of which inference has no notion
        onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=strict)
    again = save(load(tmp_path / "out.onnx"), tmp_path / "again.onnx")
    assert again.repairs == ()
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()
    if case.valid == "mendable" and case.entry["checker"] == "fail" and case.name != "input_without_shape.onnx":
        assert saved.repairs


@runs
def test_what_is_written_computes_the_same(case: Case, tmp_path: Path) -> None:
    save(load(case.path), tmp_path / "out.onnx")

    for engine in case.entry["runs_in"]:
        source = case.path if case.path.suffix == ".onnx" else case.whole()
        if case.name == "string_bytes.onnx":
            continue  # the Python side of ONNX Runtime cannot hand such strings out
        assert ENGINES[engine](tmp_path / "out.onnx", case.feeds()) == ENGINES[engine](source, case.feeds())


@pytest.mark.corpus
@pytest.mark.parametrize(
    "name",
    ["attacut_c", "magika", "eeg_spindle_unet", "silero_vad", "nakdimon_loop", "ppocr_v4_det", "tashkeel_seq2seq",
     "minilm_int8w", "light_densenet121", "basic_pitch"],
)  # fmt: skip
def test_real_models_come_out_as_they_went_in(corpus, name: str, tmp_path: Path) -> None:
    path, _ = corpus(name)

    saved = save(load(path), tmp_path / "out.onnx")

    assert saved.repairs == ()
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()


@pytest.mark.corpus
def test_a_real_model_with_external_data_becomes_one_file(corpus, tmp_path: Path) -> None:
    (outside, _), (inside, _) = corpus("minilm_int8w_ext"), corpus("minilm_int8w")

    save(load(outside), tmp_path / "out.onnx")

    assert _values(load(tmp_path / "out.onnx")) == _values(load(inside))


def test_bytes_do_not_depend_on_the_process(tmp_path: Path) -> None:
    code = (
        "import hashlib, sys\nfrom pathlib import Path\nsys.path.insert(0, 'tests')\nfrom cases import all_cases\n"
        "from onnxbench.model import load\nfrom onnxbench.writer import SaveOptions, save\n"
        "target = Path(sys.argv[1])\n"
        "for case in all_cases():\n"
        "    if case.valid != 'no':\n"
        "        save(load(case.path), target, options=SaveOptions(external=True, threshold=1))\n"
        "        files = sorted(target.parent.iterdir())\n"
        "        print(case.name, [hashlib.sha256(file.read_bytes()).hexdigest() for file in files])\n"
    )
    seen = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, folder / "m.onnx"],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        seen.append(done.stdout)
    assert seen[0] == seen[1]
    assert seen[0].count("\n") > 100


# ---- external data

LAYOUTS = {
    "one file": SaveOptions(external=True),
    "everything outside": SaveOptions(external=True, threshold=0),
    "one byte and more": SaveOptions(external=True, threshold=1),
    "packed": SaveOptions(external=True, threshold=1, alignment=1),
    "aligned": SaveOptions(external=True, threshold=1, alignment=512),
    "named": SaveOptions(external=True, threshold=1, location="the weights.bin"),
    "one per tensor": SaveOptions(external=True, threshold=1, per_tensor=True),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_external_layouts_hold_the_same_values(layout: str, tmp_path: Path) -> None:
    options = LAYOUTS[layout]
    for case in all_cases():
        if case.valid == "no":
            continue
        target = tmp_path / case.name.replace("/", "_") / "m.onnx"
        target.parent.mkdir()
        model = load(case.path)
        saved = save(model, target, options=options)

        assert {target, *saved.external_files} == set(target.parent.iterdir())
        assert saved.external_size == sum(file.stat().st_size for file in saved.external_files)
        again = load(target)
        if not saved.repairs:
            assert _values(again) == _values(model)
        places = [(t, again.byte_range(t)) for t in weights.tensors(again.proto) if weights.is_outside(t)]
        assert {place.file for _, place in places} == set(saved.external_files)
        for tensor, place in places:
            assert place.offset % min(options.alignment, 64) == 0
            if place.length >= options.alignment:
                assert place.offset % options.alignment == 0
            assert place.length >= max(options.threshold, 1)
            assert [entry.key for entry in tensor.external_data][:3] == ["location", "offset", "length"]
        ends = sorted({(p.file, p.offset, p.offset + p.length) for _, p in places})
        assert all(a[2] <= b[1] for a, b in itertools.pairwise(ends) if a[0] == b[0])
        for tensor in again.proto.graph.initializer:
            large = len(tensor.raw_data) >= max(options.threshold, 1) and len(tensor.dims) > 1
            assert not large or weights.is_outside(tensor)
        if options.location and places:
            assert [file.name for file in saved.external_files] == [options.location]
        if options.per_tensor:
            assert all(place.offset == 0 for _, place in places)


@pytest.mark.parametrize("layout", ["one file", "everything outside", "one per tensor"])
@cases(lambda case: case.valid == "yes" and case.engine == "ort" and case.name != "string_bytes.onnx")
def test_external_layouts_run(case: Case, layout: str, tmp_path: Path) -> None:
    save(load(case.path), tmp_path / "m.onnx", options=LAYOUTS[layout])

    source = case.path if case.path.suffix == ".onnx" else case.whole()
    assert run_ort(tmp_path / "m.onnx", case.feeds()) == run_ort(source, case.feeds())


def _sharing(folder: Path) -> Path:
    """Writes a model with two matrices of one range of a file, and one of a range that overlaps it."""
    (folder / "w.bin").write_bytes(np.arange(24, dtype=np.float32).tobytes())
    tensors = []
    for name, offset in (("a", 0), ("b", 0), ("c", 32)):
        tensor = onnx.TensorProto(name=name, data_type=T.FLOAT, dims=[4, 4], data_location=T.EXTERNAL)
        for key, value in (("location", "w.bin"), ("offset", str(offset)), ("length", "64")):
            tensor.external_data.add(key=key, value=value)
        tensors.append(tensor)
    graph = helper.make_graph(
        [helper.make_node("Sum", ["x", "a", "b", "c"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", T.FLOAT, [4, 4])],
        [helper.make_tensor_value_info("y", T.FLOAT, [4, 4])],
        tensors,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "shared.onnx").write_bytes(made.SerializeToString())
    return folder / "shared.onnx"


def test_shared_ranges_stay_shared(tmp_path: Path) -> None:
    model = load(_sharing(tmp_path))
    feeds = {"x": np.ones((4, 4), np.float32)}
    before = [model.byte_range(tensor) for tensor in weights.tensors(model.proto)]
    assert len(set(before)) < len(before)

    for name, options in LAYOUTS.items():
        if options.threshold <= 1:
            target = tmp_path / name.replace(" ", "_") / "m.onnx"
            target.parent.mkdir()
            save(model, target, options=options)
            again = load(target)
            after = [again.byte_range(tensor) for tensor in weights.tensors(again.proto)]
            assert [after.index(place) for place in after] == [before.index(place) for place in before]
            assert _values(again) == _values(model)
            assert run_ort(target, feeds) == run_ort(tmp_path / "shared.onnx", feeds)


def test_the_model_goes_outside_by_itself_when_it_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the limit of 2 GiB moved down to where a test can reach it."""
    monkeypatch.setattr(writer, "PROTOBUF_LIMIT", 50_000)
    monkeypatch.setattr(writer, "_ROOM", 1000)
    weight = numpy_helper.from_array(np.ones((200, 200), np.float32), "w")
    small = numpy_helper.from_array(np.ones(3, np.float32), "s")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", T.FLOAT, [200, 200])],
        [helper.make_tensor_value_info("y", T.FLOAT, [200, 200])],
        [weight, small],
    )
    model = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))

    saved = save(model, tmp_path / "m.onnx")
    assert [file.name for file in saved.external_files] == ["m.onnx.data"]
    assert saved.external_size == 160_000
    with pytest.raises(UsageError):
        save(model, tmp_path / "n.onnx", options=SaveOptions(external=False))
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.data"]


def test_weights_can_be_shared(tmp_path: Path) -> None:
    whole = _weighty(tmp_path / "whole.onnx")
    model = load(whole)

    saved = save(model, tmp_path / "part.onnx", options=SaveOptions(share_weights=True))

    assert saved.external_files == ()
    assert saved.size < 10_000
    again = load(tmp_path / "part.onnx")
    assert {again.byte_range(t).file for t in weights.tensors(again.proto) if weights.is_outside(t)} == {whole}
    assert _values(again) == _values(model)
    feeds = {"x": np.ones((600, 600), np.float32)}
    assert run_ort(tmp_path / "part.onnx", feeds) == run_ort(whole, feeds)
    (tmp_path / "sub").mkdir()
    with pytest.raises(UsageError, match="outside"):
        save(model, tmp_path / "sub" / "part.onnx", options=SaveOptions(share_weights=True))
    assert os.listdir(tmp_path / "sub") == []


def test_small_external_shapes_do_not_stop_the_checker(tmp_path: Path) -> None:
    """A model of which every tensor lies outside, as a size threshold of 0 makes it: inference needs its shapes."""
    proto = named("dynamic_batch").whole()
    onnx.save_model(proto, str(tmp_path / "in.onnx"), save_as_external_data=True, location="in.bin", size_threshold=0)

    saved = save(load(tmp_path / "in.onnx"), tmp_path / "out.onnx")

    assert saved.repairs == ()
    assert _values(load(tmp_path / "out.onnx")) == _values(load(named("dynamic_batch").path))


@pytest.mark.parametrize("location", ["../x.bin", "sub/x.bin", "/tmp/x.bin", "m.onnx", ""])
def test_the_weights_file_is_a_plain_name(location: str, tmp_path: Path) -> None:
    model = load(named("whole_model").path)
    options = SaveOptions(external=True, threshold=1, location=location)
    if not location:
        assert save(model, tmp_path / "m.onnx", options=options).external_files == (tmp_path / "m.onnx.data",)
        return
    with pytest.raises(UsageError):
        save(model, tmp_path / "m.onnx", options=options)
    assert os.listdir(tmp_path) == []


# ---- text


@pytest.mark.parametrize("suffix", [".textproto", ".json", ".onnxtxt"])
@is_sound
def test_text_forms_hold_all_of_it_or_are_refused(case: Case, suffix: str, tmp_path: Path) -> None:
    model = load(case.path)
    save(model, tmp_path / "binary.onnx")
    wanted = load(tmp_path / "binary.onnx")
    try:
        save(model, tmp_path / f"text{suffix}")
    except UnsupportedError as error:
        assert error.details
        assert os.listdir(tmp_path) == ["binary.onnx"]
        assert suffix == ".onnxtxt" or case.name in _NOT_TEXT[suffix]
        return
    again = load(tmp_path / f"text{suffix}")
    if suffix != ".onnxtxt":
        assert again.proto == wanted.proto
        return
    assert _values(again) == _values(wanted)
    save(again, tmp_path / "again.onnx")
    for engine in case.entry["runs_in"] if case.name != "string_bytes.onnx" else []:
        if engine != "none":
            got = ENGINES[engine](tmp_path / "again.onnx", case.feeds())
            assert got == ENGINES[engine](tmp_path / "binary.onnx", case.feeds())


_NOT_TEXT = {
    ".textproto": ("doc_string_not_utf8.onnx", "metadata_everywhere.onnx"),  # bytes that are no text; unknown fields
    # JSON has no way to write a largest float that protobuf's own parser takes back.
    ".json": ("doc_string_not_utf8.onnx", "metadata_everywhere.onnx", "dtypes_all.onnx", "dtypes_cast.onnx",
              "dtypes_floats.onnx"),
}  # fmt: skip


def test_most_fixtures_can_be_printed(tmp_path: Path) -> None:
    printed = 0
    for case in all_cases():
        if case.valid != "no":
            with contextlib.suppress(UnsupportedError):
                save(load(case.path), tmp_path / "m.onnxtxt")
                printed += 1
    assert printed > 110


def test_the_given_name_decides_on_the_form(tmp_path: Path) -> None:
    (tmp_path / "target.json").write_text("{}")
    (tmp_path / "link.onnx").symlink_to("target.json")

    save(load(named("linear_func").path), tmp_path / "link.onnx")

    assert (tmp_path / "link.onnx").is_symlink()
    assert (tmp_path / "target.json").read_bytes() == named("linear_func").path.read_bytes()
    with pytest.raises(UsageError):
        save(load(named("linear_func").path), tmp_path / "m.json", options=SaveOptions(external=True))


# ---- what must not be overwritten


def _weighty(path: Path, size: int = 600) -> Path:
    """Writes a model of more than a megabyte: y = x + w + k, where k is a Constant node's."""
    value = np.arange(size * size, dtype=np.float32).reshape(size, size)
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(-value, "value")),
            helper.make_node("Add", ["x", "w"], ["h"]),
            helper.make_node("Add", ["h", "k"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", T.FLOAT, [size, size])],
        [helper.make_tensor_value_info("y", T.FLOAT, [size, size])],
        [numpy_helper.from_array(value, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(made.SerializeToString())
    return path


def test_inputs_are_never_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _weighty(tmp_path / "m.onnx")
    before = source.read_bytes()
    model = load(source)
    (tmp_path / "link.onnx").symlink_to("m.onnx")
    (tmp_path / "chain.onnx").symlink_to(tmp_path / "link.onnx")
    (tmp_path / "sub").mkdir()
    (tmp_path / "here").symlink_to(".")
    monkeypatch.chdir(tmp_path / "sub")

    for name in ("m.onnx", "link.onnx", "chain.onnx", "sub/../m.onnx", "here/m.onnx", "./m.onnx"):
        with pytest.raises(UsageError):
            save(model, tmp_path / name)
    with pytest.raises(UsageError):
        save(model, "../m.onnx")
    os.link(source, tmp_path / "hard.onnx")  # another name of the same file: the name is replaced, the file is not
    save(load(source), tmp_path / "hard.onnx", options=SaveOptions(external=True, threshold=1))
    assert source.read_bytes() == before
    assert not (tmp_path / "hard.onnx").samefile(source)


def test_weights_of_inputs_are_never_overwritten(tmp_path: Path) -> None:
    model = onnx.load(_weighty(tmp_path / "whole.onnx"))
    onnx.save_model(model, str(tmp_path / "m.onnx"), save_as_external_data=True, location="m.bin", size_threshold=0)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    model = load(tmp_path / "m.onnx")

    for target, options in (
        ("m.bin", SaveOptions()),
        ("other.onnx", SaveOptions(external=True, location="m.bin")),
        ("other.onnx", SaveOptions(external=True, location="m.onnx")),
        ("m", SaveOptions(external=True, location="m.bin")),
    ):
        with pytest.raises(UsageError):
            save(model, tmp_path / target, options=options)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_a_new_model_takes_the_place_of_an_old_one(tmp_path: Path) -> None:
    save(load(named("whole_model").path), tmp_path / "m.onnx", options=SaveOptions(external=True, threshold=1))
    save(load(named("residual").path), tmp_path / "m.onnx", options=SaveOptions(external=True, threshold=1))

    assert _values(load(tmp_path / "m.onnx")) == _values(load(named("residual").path))
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.data"]


# ---- what goes wrong on the way


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    model = load(named("linear_func").path)
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "full").symlink_to("/dev/full")
    (tmp_path / "file").write_bytes(b"")

    for name in ("no/such/folder/m.onnx", "folder.onnx", "full", "file/m.onnx", "x" * 300):
        with pytest.raises(OutputError):
            save(model, tmp_path / name)
    with pytest.raises(BenchError):
        save(model, tmp_path / "nul\0.onnx")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.onnx", "full"]
    assert not Path("/dev/full").is_file()


@contextlib.contextmanager
def _mounted(folder: Path, *arguments: str) -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    done = subprocess.run(["mount", *arguments, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mount does not work here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("options", [SaveOptions(), SaveOptions(external=True)], ids=["inline", "external"])
def test_a_full_disk(options: SaveOptions, tmp_path: Path) -> None:
    source = _weighty(tmp_path / "m.onnx")
    disk = tmp_path / "disk"
    disk.mkdir()
    with _mounted(disk, "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        save(load(named("linear_func").path), disk / "m.onnx")
        before = (disk / "m.onnx").read_bytes()

        with pytest.raises(OutputError) as caught:
            save(load(source), disk / "m.onnx", options=options)

        assert caught.value.exit_code == 7
        assert os.listdir(disk) == ["m.onnx"]
        assert (disk / "m.onnx").read_bytes() == before


def test_a_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with _mounted(folder, "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs"), pytest.raises(OutputError):
        save(load(named("linear_func").path), folder / "m.onnx")


@pytest.mark.parametrize("options", [SaveOptions(), SaveOptions(external=True)], ids=["inline", "external"])
def test_a_limit_on_file_sizes(options: SaveOptions, tmp_path: Path) -> None:
    source = _weighty(tmp_path / "m.onnx")
    (tmp_path / "out").mkdir()

    def attempt() -> list[str]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
        try:
            save(load(source), tmp_path / "out" / "m.onnx", options=options)
        except BenchError as error:
            return [type(error).__name__, *os.listdir(tmp_path / "out")]
        return ["accepted"]

    assert _in_child(attempt)["ok"] == ["OutputError"]


def test_files_that_cannot_be_replaced_leave_the_old_model_as_it_was(tmp_path: Path) -> None:
    options = SaveOptions(external=True, threshold=1)
    save(load(named("whole_model").path), tmp_path / "m.onnx", options=options)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    other = tmp_path.parent / f"{tmp_path.name}.mounted"
    other.write_bytes(before["m.onnx.data"])
    # A file that something is mounted on can be neither moved nor replaced.
    with _mounted(tmp_path / "m.onnx.data", "--bind", str(other)), pytest.raises(OutputError):
        save(load(named("residual").path), tmp_path / "m.onnx", options=options)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


_INTERRUPTED = """
import os, signal, sys
from onnxbench.model import load
from onnxbench.progress import reporting
from onnxbench.writer import SaveOptions, save

class Killer:
    "Sends this very process the signal when half of the bytes are copied."
    def start(self, what, total, unit): self.left = total // 2
    def advance(self, amount):
        self.left -= amount
        if self.left <= 0:
            print("halfway", [n for n in os.listdir(sys.argv[2]) if n.endswith(".part")] != [], flush=True)
            os.kill(os.getpid(), int(sys.argv[3]))
    def stop(self): pass

signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
options = SaveOptions(external=sys.argv[4] == "external")
with reporting(Killer()):
    save(load(sys.argv[1]), os.path.join(sys.argv[2], "m.onnx"), options=options)
print("finished")
"""


@pytest.mark.parametrize("layout", ["inline", "external"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing_behind(number: signal.Signals, layout: str, tmp_path: Path) -> None:
    source = _weighty(tmp_path / "m.onnx")
    (tmp_path / "out").mkdir()
    save(load(named("linear_func").path), tmp_path / "out" / "m.onnx")
    before = (tmp_path / "out" / "m.onnx").read_bytes()

    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, source, tmp_path / "out", str(int(number)), layout],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.stdout == "halfway True\n", done.stderr
    assert done.returncode != 0
    assert os.listdir(tmp_path / "out") == ["m.onnx"]
    assert (tmp_path / "out" / "m.onnx").read_bytes() == before


def test_ctrl_c_at_any_moment_leaves_the_old_or_the_new_model(tmp_path: Path) -> None:
    """SIGINT after ever longer waits, until one comes too late: the target is what it was, or complete."""
    source = _weighty(tmp_path / "m.onnx", 2500)
    out = tmp_path / "out"
    out.mkdir()
    old = named("linear_func").path.read_bytes()
    new = hashlib.sha256(source.read_bytes()).hexdigest()
    code = (
        "import sys\nfrom onnxbench.model import load\nfrom onnxbench.writer import save\nimport onnx.checker\n"
        "print('ready', flush=True)\nsave(load(sys.argv[1]), sys.argv[2])\n"
    )
    for wait in (0.0, 0.01, 0.03, 0.06, 0.1, 0.15, 0.25, 0.5, 5.0):
        (out / "m.onnx").write_bytes(old)
        child = subprocess.Popen(
            [sys.executable, "-c", code, source, out / "m.onnx"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert child.stdout is not None
        child.stdout.readline()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(wait)
        child.send_signal(signal.SIGINT)
        status = child.wait(30)
        child.stdout.close()
        assert os.listdir(out) == ["m.onnx"]
        written = (out / "m.onnx").read_bytes()
        assert hashlib.sha256(written).hexdigest() == new if status == 0 else written == old or len(written) > len(old)
        if status == 0:
            return
        time.sleep(0.01)
    pytest.fail("the save never came to its end")


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_is_not(tmp_path):
    """Kills a save in the middle; the next one to the same target clears up, but not behind a process that lives."""
    script = (
        "import sys, time; from pathlib import Path; from onnxbench.staging import staging_folder\n"
        "with staging_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'w.data').write_bytes(b'half'); print('there', flush=True); time.sleep(600)"
    )
    words = [sys.executable, "-c", script, tmp_path / "m.onnx"]
    started = [subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    killed = started[0]
    try:
        for process in started:
            assert process.stdout.readline() == "there\n"
        killed.kill()
        killed.wait()
        assert len(list(tmp_path.glob(".m.onnx.*.part"))) == 2
        model = load(named("whole_model").path)
        save(model, tmp_path / "m.onnx")
        assert len(list(tmp_path.glob(".m.onnx.*.part"))) == 2, "they are too young to be judged"
        last_copy = tmp_path / ".m.onnx.aaaaaaaa.part"
        (last_copy / "before").mkdir(parents=True)
        others = [tmp_path / name for name in (".n.onnx.aaaaaaaa.part", ".m.onnx.mine.part", ".m.onnx.aaaaaaaa")]
        for other in others:
            other.mkdir()
        for folder in tmp_path.glob(".*"):
            os.utime(folder, (1, 1))
        save(model, tmp_path / "m.onnx")
        left = set(tmp_path.glob(".*"))
        assert left > {last_copy, *others}
        (in_use,) = left - {last_copy, *others}
    finally:
        for process in started:
            process.kill()
            process.communicate()
    assert (in_use / "w.data").exists()
    os.utime(in_use, (1, 1))
    save(model, tmp_path / "m.onnx")
    assert not in_use.exists()
