"""A part that shows a failure as files: the model, what flows into it, what should come out, and a script."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench import backends
from onnxbench.captures import Value, save
from onnxbench.errors import OutputError, UnsupportedError
from onnxbench.shrinking._carried import Carried, carried
from onnxbench.version import __version__
from onnxbench.writer import held_together, write_whole
from onnxbench.writer import save as save_model

if TYPE_CHECKING:
    from onnxbench.model import Model

_HEAD = '''"""Shows that {what}.

Made by onnxbench {version} from {source}. {runtime}.
Needs: {needs}. Exits with 1 when the failure shows, and with 0 when it does not.
"""

import subprocess
import sys
from pathlib import Path

here = Path(__file__).parent
'''
_ORT = """
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.intra_op_num_threads = {threads}
    for library in {libraries!r}:
        options.register_custom_ops_library(library)
    session = ort.InferenceSession(str(here / {model!r}), options, providers={providers!r})
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(np.load(here / {feeds!r})))))
"""
_REFERENCE = """
    import numpy as np
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(here / {model!r}))
    names = list(evaluator.output_names)
    return dict(zip(names, map(np.asarray, evaluator.run(names, dict(np.load(here / {feeds!r}))))))
"""
_FAILS = """

if sys.argv[1:] == ["run"]:
    try:
        run()
    except Exception as error:
        print(error)
        sys.exit(16 if getattr(error, "code", 3) == 16 else 3)
    sys.exit(0)
try:
    code = subprocess.run([sys.executable, __file__, "run"], timeout={seconds!r}).returncode
except subprocess.TimeoutExpired:
    code = None
how = {{None: "hangs", 0: "runs", 3: "fails", 16: "cannot be run here"}}.get(code, f"crashes ({{code}})")
print(f"the model {{how}}")
shows = {condition}
"""
_NONFINITE = """

import numpy as np

shows = False
for name, value in run().items():
    if value.dtype.kind in "fc":
        nans, infinities = int(np.isnan(value).sum()), int(np.isinf(value).sum())
        print(f"{{name}}: {{nans:,}} NaN and {{infinities:,}} infinite of {{value.size:,}}")
        shows = shows or bool({condition})
"""
_DRIFTS = """

import numpy as np

expected = {expected}
shows = False
for name, value in run().items():
    if name not in expected:
        continue
    want = expected[name]
    if value.shape != want.shape:
        print(f"{{name}}: the shape is {{value.shape}}, expected {{want.shape}}")
        shows = True
        continue
    a, b = value.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    odd = int((~finite & ~((a == b) | (np.isnan(a) & np.isnan(b)))).sum())
    a, b = np.where(finite, a, 0), np.where(finite, b, 0)
    error = float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-300))
    far = bool((np.abs(a - b) > {atol!r} + {rtol!r} * np.abs(b)).any()) if {told!r} else error >= {threshold!r}
    print(f"{{name}}: relative error {{error:.3e}}, largest difference {{np.abs(a - b).max(initial=0):.3e}}, "
          f"NaN or Inf on one side {{odd}}")
    shows = shows or bool(odd) or far
"""
_COMMAND = """
shows = subprocess.run({words!r}, cwd=here).returncode == {code!r}
"""
_END = """print("the failure shows" if shows else "the failure does not show here")
sys.exit(1 if shows else 0)
"""
_LEVELS = {
    "none": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED", "all": "ORT_ENABLE_ALL",
}  # fmt: skip
_START = 5.0
_EXPECTED = 'dict(np.load(here / "{file}"))'


@dataclass(frozen=True, slots=True)
class Names:
    """What the files of a reduced model are called, after the model: ``small.onnx``, ``small.feeds.npz``, ..."""

    model: str
    feeds: str
    expected: str
    script: str

    @classmethod
    def after(cls, model: str) -> Names:
        """Returns the names that go with a model file's name."""
        stem = model.removesuffix(".onnx")
        return cls(model, f"{stem}.feeds.npz", f"{stem}.expected.npz", f"{stem}.reproduce.py")


@dataclass(frozen=True, slots=True)
class Scene:
    """What a script has to know of a failure.

    Attributes:
        what: The failure, in words that follow "Shows that".
        source: The model that it was found in.
        backend: What runs the model.
        options: How it is set up.
        check: Source text that sets ``shows``.
        against: The optimization level at which the same model is right, where that is the reference.
    """

    what: str
    source: str
    backend: str
    options: backends.Options
    check: str
    against: str | None = None

    def script(self, names: Names, brought: Carried) -> str:
        """Returns the script.

        Args:
            names: What the files are called.
            brought: The model, with what comes along.
        """
        is_reference = self.backend == "reference"
        runtime = backends.backend(self.backend)
        text = _HEAD.format(
            what=self.what, version=__version__, source=self.source,
            runtime=f"{runtime_name(self.backend)} {runtime.version()}", needs=brought.needs(self.backend),
        )  # fmt: skip
        if self.check.startswith("\nshows = subprocess"):
            return text + self.check + _END
        providers = [f"{name.upper()}ExecutionProvider" for name in self.options.providers]
        own = brought.body(self.backend, self.options, model=names.model, feeds=names.feeds)
        body = f"\n    import numpy as np\n{own}" if own is not None else (_REFERENCE if is_reference else _ORT).format(
            model=names.model, feeds=names.feeds, threads=self.options.threads, providers=providers,
            libraries=[os.fspath(Path(each).resolve()) for each in self.options.libraries],
        )  # fmt: skip
        head = f"\n\ndef run(level={_LEVELS.get(self.options.optimization)!r}):"
        return text + head + body + self.check + _END


def runtime_name(backend: str) -> str:
    """Returns what a backend runs models with, in words."""
    if backend in backends.ENGINES:
        return backends.engine_builder(backend).kind()
    return {"reference": "onnx.reference of onnx", "ort": "ONNX Runtime"}.get(backend, backend)


def check_fails(condition_of: str, seconds: float) -> str:
    """Returns the source text that tells whether a model fails to run as it did (see ``Outcome.how``)."""
    conditions = {"hang": "code is None", "refused": "code == 3", "failed": "code == 3"}
    patience = seconds + (_START if condition_of == "hang" else 12 * _START)  # the script's process has to start, too
    return _FAILS.format(seconds=patience, condition=conditions.get(condition_of, "code not in (None, 0, 3, 16)"))


def check_nonfinite(nans: bool) -> str:
    """Returns the source text that tells whether outputs hold NaN, or (False) anything that is not finite."""
    return _NONFINITE.format(condition="nans" if nans else "nans or infinities")


def check_drifts(names: Names, *, level: str | None, threshold: float, atol: float | None, rtol: float | None) -> str:
    """Returns the source text that tells whether outputs are off.

    Args:
        names: The files.
        level: The optimization level at which the same model gives what should be; None: the file tells.
        threshold: The relative error that is too much, as a whole.
        atol: What an element may be off in place of that.
        rtol: Likewise.
    """
    told = atol is not None or rtol is not None
    expected = f"run({_LEVELS[level]!r})" if level is not None else _EXPECTED.format(file=names.expected)
    return _DRIFTS.format(expected=expected, threshold=threshold, atol=atol or 0.0, rtol=rtol or 0.0, told=told)


def check_command(words: list[str], code: int) -> str:
    """Returns the source text that runs a command."""
    return _COMMAND.format(words=words, code=code)


def write_files(
    target: Path,
    model: Model,
    feeds: Mapping[str, Value],
    expected: Mapping[str, Value] | None,
    scene: Scene,
    *,
    names: Names | None = None,
) -> tuple[tuple[Path, ...], str]:
    """Writes a part that shows a failure, all of its files or none; returns them, and what could not be written.

    Args:
        target: The model file; the others lie beside it.
        model: The model.
        feeds: What flows into it.
        expected: What should come out, if that is known.
        scene: What the script has to know.
        names: What the files are called; None: after the target.

    Raises:
        RefusedResultError: The model does not pass the checks.
        OutputError: A file cannot be written.
    """
    names = names or Names.after(target.name)
    brought = carried(model, scene.backend, scene.options.operators)
    odd = next((n for n, v in {**feeds, **(expected or {})}.items() if not _numpy_knows(v)), None)
    others = [names.feeds]
    if expected is not None:
        others.append(names.expected)
    if odd is None:
        others.append(names.script)
    if not target.parent.is_dir():
        raise OutputError(f"there is no folder {target.parent}")
    with held_together(target, *others) as staging:
        if save_model(brought.model, staging / names.model).external_files:
            raise UnsupportedError("what is left holds more than 2 GiB of weights, which one file cannot hold")
        save(staging / names.feeds, feeds)
        if expected is not None:
            save(staging / names.expected, expected)
        if odd is None:
            write_whole(staging / names.script, [scene.script(names, brought).encode()])
            brought.copy_to(target.parent)
    note = "" if odd is None else f"NumPy alone cannot hold {odd!r}, so there is no script"
    return tuple(target.parent / name for name in (names.model, *others)), note


def _numpy_knows(value: Any) -> bool:
    return hasattr(value, "dtype") and value.dtype.kind != "V" and value.dtype.num < 256
