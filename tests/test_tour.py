"""Every command, on real models that none of us wrote, through the command line itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxbench import captures
from onnxbench.cli import app
from onnxbench.cli._boundary import bounded
from onnxbench.graph import GraphIndex
from onnxbench.model import load
from tests.corpus.fetch import entries, present, seeded_feeds

# What is left out takes seconds per run (isnet) or is a second copy of a network that is in here.
MODELS = (
    "attacut_c", "attacut_sc", "basic_pitch", "ddddocr_rec_dynq", "eeg_seizure_lstm", "light_shufflenet",
    "logreg_iris_ml", "magika", "minilm_int8w_ext", "nakdimon_loop", "oskut_scads", "ppocr_v2_cls", "ppocr_v4_det",
    "silero_vad", "silero_vad_16k_op15", "silero_vad_ifless", "swift_f0", "tashkeel_seq2seq",
)  # fmt: skip
ENTRIES = {entry.name: entry for entry in entries()}


class Tour:
    """Runs commands in a folder of its own and reads their JSON."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys

    def run(self, *words: object, status: int = 0) -> str:
        self._capsys.readouterr()
        code = bounded(app, [str(word) for word in words])
        shown = self._capsys.readouterr()
        assert code == status, f"{words} ended with {code}, not {status}:\n{shown.out}\n{shown.err}"
        assert "Traceback" not in shown.err
        return shown.out

    def json(self, *words: object, status: int = 0) -> dict:
        envelope = json.loads(self.run(*words, "--json", status=status))
        assert envelope["schema_version"] == 1
        return envelope["result"]


@pytest.fixture
def tour(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Tour(tmp_path, capsys)


@pytest.mark.corpus
@pytest.mark.parametrize("name", MODELS)
def test_tour(name, corpus, tour):
    path, _ = corpus(name)
    index = GraphIndex(load(path).proto)
    captures.save("feeds.npz", seeded_feeds(path, ENTRIES[name]))

    card = tour.json("inspect", path)
    assert card
    for view in ("--nodes", "--tensors", "--weights", "--scopes"):
        tour.run("inspect", path, view)
    tour.run("find", path, "op:*")
    tour.run("find", path, "no_such_tensor_anywhere", status=4)
    tour.run("check", path, "--ort")
    tour.run("doctor")

    whole = tour.json("run", path, "--feeds", "feeds.npz", "--optimization-level", "none", "--save", "whole.npz")
    assert whole

    done = tour.json("split", path, "pieces", "--parts", 2, "--prove", "--feeds", "feeds.npz")
    assert done["proof"]["holds"], done["proof"]
    pieces = [Path(piece["file"]) for piece in done["split"]["pieces"]]
    for piece in pieces:
        tour.run("check", piece)

    # The middle of the graph, cut at what its first piece hands on, on the values that really flow there.
    first = done["split"]["pieces"][0]
    handed = [boundary["name"] for boundary in first["outputs"]]
    live = [name for name in handed if name not in index.main.outputs]
    if live:
        tour.json(
            "extract", path, "tail.onnx", "--inputs", *live, "--auto-inputs", "--feeds", "feeds.npz",
            "--save-feeds", "tail.npz",
        )  # fmt: skip
        tour.run(
            "run", "tail.onnx", "--feeds", "tail.npz", "--expect", "tail_outputs.npz", "--optimization-level", "none",
            "--bitwise",
        )  # fmt: skip
        tour.json("expose", path, "exposed.onnx", "--outputs", *live)
        tour.run("run", "exposed.onnx", "--feeds", "feeds.npz")

    text = tour.run("show", path, "-q")
    Path("model.onnxtxt").write_text(text, encoding="utf-8")
    tour.run("build", "model.onnxtxt", "built.onnx", "--weights-from", path)
    tour.run(
        "run", "built.onnx", "--feeds", "feeds.npz", "--expect", "whole.npz", "--optimization-level", "none",
        "--bitwise",
    )  # fmt: skip


def test_the_tour_covers_at_least_twelve_models(corpus):
    assert len(MODELS) >= 12
    assert set(MODELS) <= set(ENTRIES)
    assert len(set(present()) & set(MODELS)) >= 12 or all(corpus(name) for name in MODELS[:12])
