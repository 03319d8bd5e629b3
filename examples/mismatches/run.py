"""Runs the cases: makes each one's models, searches them with ``onnxbench bisect``, and writes what came out.

    python examples/mismatches/run.py                  # all of them; those that need PyTorch are left out without it
    python examples/mismatches/run.py floor_divide     # one

``--write`` puts the output into each case's README.md, between its markers, and the table into README.md here.
"""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

FOLDER = Path(__file__).resolve().parent
BEGIN, END = "<!-- begin -->", "<!-- end -->"
_LEFT_OUT = ("next: ", "modules (", "─", "├", "└", "│")


@dataclass(frozen=True)
class Case:
    """A line of index.yaml."""

    name: str
    thread: str
    kind: str
    bisect: str
    names: str
    shows: str
    torch: bool = False

    @property
    def folder(self) -> Path:
        """Where make.py and README.md are."""
        return FOLDER / self.name

    @property
    def command(self) -> str:
        """The one command."""
        return f"onnxbench bisect {self.bisect}"


@dataclass(frozen=True)
class Run:
    """What came of a case: the exit code, and the lines that the command printed."""

    case: Case
    status: int
    lines: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """The last line."""
        return self.lines[-1]

    @property
    def transcript(self) -> str:
        """What README.md shows: next steps, the module tree and rules of tables are left out."""
        kept = [line for line in self.lines if line and not line.startswith(_LEFT_OUT)]
        return "\n".join(["$ python make.py", f"$ {self.case.command}", *kept, f"(exit code {self.status})"])


def cases() -> dict[str, Case]:
    """Returns all cases by name, in the order of index.yaml."""
    entries = yaml.safe_load((FOLDER / "index.yaml").read_text(encoding="utf-8"))
    return {name: Case(name=name, **entry) for name, entry in entries.items()}


def make(case: Case, folder: Path) -> None:
    """Makes a case's models in a folder, which gets a copy of its files."""
    for name in ("make.py", "model.yaml"):
        if (case.folder / name).is_file():
            shutil.copy(case.folder / name, folder)
    done = subprocess.run([sys.executable, "make.py"], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{case.name}: make.py failed:\n{done.stdout}{done.stderr}")


def run(case: Case, folder: Path) -> Run:
    """Runs a case in a folder."""
    make(case, folder)
    words = [sys.executable, "-m", "onnxbench", *shlex.split(case.command)[1:]]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    text = done.stdout.replace(f"{folder}/", "").rstrip()
    return Run(case, done.returncode, tuple(line.rstrip() for line in text.splitlines()))


def shown(case: Case) -> str:
    """Returns the transcript in the case's README.md."""
    return _parts(case.folder / "README.md")[1].strip().removeprefix("```console\n").removesuffix("\n```")


def table(found: Sequence[Case]) -> str:
    """Returns the table of README.md: cases, their threads, and what names them."""
    rows = ["| case | thread | what made it | shows | command | named |", "|---|---|---|---|---|---|"]
    for case in found:
        _, name, _, number = case.thread.split("/")
        thread = f"[{name}#{number}](https://github.com/{case.thread})"
        named = case.names.replace(" (", " (`").replace("(`", "(") + (")" if "(" in case.names else "")
        rows.append(
            f"| [{case.name}]({case.name}/README.md) | {thread} | {case.kind} | {case.shows} "
            f"| `bisect {case.bisect}` | {named} |"
        )
    return "\n".join(rows)


def _parts(page: Path) -> tuple[str, str, str]:
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    inner, _, after = rest.partition(END)
    return before, inner, after


def _write(page: Path, inner: str) -> None:
    before, _, after = _parts(page)
    page.write_text(f"{before}{BEGIN}\n{inner}\n{END}{after}", encoding="utf-8")


def main(words: Sequence[str]) -> int:
    """Runs the cases that are named, else all; returns how many did not name what they should."""
    known = cases()
    wanted = [known[word] for word in words if not word.startswith("--")] or list(known.values())
    has_torch = importlib.util.find_spec("torch") is not None
    wrong = 0
    for case in wanted:
        if case.torch and not has_torch:
            print(f"{case.name}: needs PyTorch, left out")
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = run(case, Path(folder).resolve())
        right = found.status == 1 and case.names in found.verdict
        wrong += not right
        print(f"{case.name}: {'' if right else 'NOT NAMED: '}{found.verdict}", flush=True)
        if right and "--write" in words:
            _write(case.folder / "README.md", f"```console\n{found.transcript}\n```")
    if "--write" in words:
        _write(FOLDER / "README.md", table(list(known.values())))
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
