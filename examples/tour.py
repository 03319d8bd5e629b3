"""The tour: onnxbench's main job on a real model, each step a command that is shown before it runs.

The model is Google's magika (what kind of file are these bytes?): 3 MB, 95 nodes, exported from Keras by tf2onnx.
It is taken from its PyPI wheel. Everything that is written goes to ``demo-output/``.

``--write-readme`` puts the transcript into README.md, between its markers.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "demo-output"

# What is said before a step, the command, and the exit status that is right for it.
Steps = list[tuple[str, str, int]]
STEPS: Steps = [
    ("What is in this file? No weight is read.", "onnxbench inspect magika.onnx", 0),
    ("Where are the dense layers?", "onnxbench find magika.onnx op:MatMul", 0),
    (
        "Cut the middle out, and record what really flows into it and out of it.",
        "onnxbench extract magika.onnx middle.onnx --from 'node:*Conv_0/Conv2D' --to 'node:*MagikaV2/Max'"
        " --save-feeds middle.npz",
        0,
    ),
    (
        "The piece alone, on those values, gives what the whole model gave.",
        "onnxbench run middle.onnx --feeds middle.npz --expect middle_outputs.npz --optimization-level none --bitwise",
        0,
    ),
    (
        "Too few inputs? The command says what is missing and shows the cuts that would work.",
        "onnxbench extract magika.onnx norm.onnx --inputs '*LayerNorm_0/Sub_1:0' --outputs '*LayerNorm_0/AddV2_1:0'",
        3,
    ),
    (
        "Split the model into three disjoint pieces, and prove that they are the model.",
        "onnxbench split magika.onnx pieces --parts 3 --prove",
        0,
    ),
    (
        "Edit it: other names for its interface, and a probe behind the dense layer; run before and after each step.",
        "onnxbench edit magika.onnx edited.onnx --rename-tensors '{map: {bytes: content, target_label: scores}}'"
        " --insert '{after: node:*Dense_1/MatMul, op: Identity, to: dense, changes: nothing}' --verify"
        " --save-recipe surgery.yaml --save-undo back.undo",
        0,
    ),
    (
        "The same steps, replayed on the next export.",
        "onnxbench edit magika.onnx next.onnx -r surgery.yaml",
        0,
    ),
    ("Is anything wrong with it?", "onnxbench check magika.onnx --ort", 0),
    (
        "Somebody breaks one of its 95 nodes ...",
        "onnxbench edit magika.onnx broken.onnx --set-op 'node:*ApplyActivation_0/Tanh=Softsign'",
        0,
    ),
    ("... and one command says which.", "onnxbench bisect broken.onnx --against magika.onnx", 1),
    ("How fast is it?", "onnxbench run magika.onnx --bench 20", 0),
    ("A model from twelve lines of text ...", "onnxbench build linear_func.yaml linear_func.onnx", 0),
    ("... and as text again.", "onnxbench show linear_func.onnx", 0),
]


def run_tour() -> str:
    """Fetches the model, runs every step, and returns the transcript.

    Raises:
        SystemExit: The model cannot be fetched, or a step ended otherwise than it should.
    """
    fetch_model()
    shutil.copy(ROOT / "examples" / "build" / "linear_func.yaml", OUTPUT)
    return run_steps(STEPS)


def fetch_model() -> None:
    """Puts magika's model into ``demo-output/``.

    Raises:
        SystemExit: It cannot be fetched.
    """
    OUTPUT.mkdir(exist_ok=True)
    fetch = [sys.executable, ROOT / "tests" / "corpus" / "fetch.py", "magika", "--dir", OUTPUT]
    fetched = subprocess.run(fetch, capture_output=True, text=True)
    if fetched.returncode:
        raise SystemExit(f"magika's model could not be fetched from PyPI:\n{fetched.stdout}{fetched.stderr}")


def run_steps(steps: Steps) -> str:
    """Runs steps in ``demo-output/`` and returns the transcript, which is printed as it grows.

    Raises:
        SystemExit: A step ended otherwise than it should.
    """
    lines: list[str] = []
    for words, command, wanted in steps:
        _say(lines, f"# {words}", f"$ {command}")
        done = subprocess.run(
            [_program(), *shlex.split(command)[1:]],
            cwd=OUTPUT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said = done.stdout.replace(f"{OUTPUT}/", "")
        _say(lines, *(line.rstrip() for line in said.strip("\n").splitlines()))
        if wanted:
            _say(lines, f"(exit code {done.returncode})")
        _say(lines, "")
        if done.returncode != wanted:
            raise SystemExit(f"the step above ended with exit code {done.returncode}, not {wanted}")
    return "\n".join(lines).strip()


def _program() -> str:
    """Returns the command of the environment that runs this script."""
    return str(Path(sysconfig.get_path("scripts")) / "onnxbench")


def _say(lines: list[str], *new: str) -> None:
    lines += new
    print("\n".join(new), flush=True)


def write_readme(transcript: str, name: str) -> None:
    """Puts a transcript between the markers of its name in the README."""
    readme, begin, end = ROOT / "README.md", f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = readme.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    readme.write_text(f"{before}{begin}\n```console\n{transcript}\n```\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    shown = run_tour()
    if "--write-readme" in sys.argv:
        write_readme(shown, "tour")
