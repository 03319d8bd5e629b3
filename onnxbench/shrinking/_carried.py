"""What a script that shows a failure needs beside ONNX Runtime: custom operators, and TensorRT's own seam.

Custom operators that have a body of ONNX operators become functions of the model, which ONNX Runtime runs by itself. If
one has none, the bundles come along, and the script needs onnxbench to load them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnxbench import backends
from onnxbench.errors import UnsupportedError

if TYPE_CHECKING:
    from onnxbench.model import Model

_FOLDER = "plugins"
ENGINES_FILE = "onnxbench_engines.py"
LOADING = """
    from onnxbench import backends
    from onnxbench.bundles import load_bundles, operators_of
    from onnxbench.model import load

    operators = operators_of(load_bundles([str(here / name) for name in {bundles!r}]))
    options = backends.Options({optimization!r}, {providers!r}, {threads!r}, operators=operators, build={build!r})
    session = backends.open_session(load(here / {model!r}), {backend!r}, options=options)
    return session.run(dict(np.load(here / {feeds!r})))
"""
"""The rest of a function that runs a model with bundles beside it; ``np`` and ``here`` are there."""
BUILDING = """
    import tempfile

    import onnxbench_engines as engines

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "part.engine")
        engines.build(here / {model!r}, {kind!r}, target, tf32={tf32!r})
        return engines.Engine(target, {kind!r}, device={device!r}).run(dict(np.load(here / {feeds!r})))
"""
"""The same for an engine, with ``ENGINES_FILE`` beside it."""


@dataclass(frozen=True, slots=True)
class Carried:
    """A model that is given away, and what has to come along.

    Attributes:
        model: The model.
        bundles: Files that define its custom operators; none where the model can be run without them.
        engines: The module that builds and runs engines, if the model runs in one and has no custom operators.
    """

    model: Model
    bundles: tuple[Path, ...] = ()
    engines: Path | None = None

    @property
    def names(self) -> list[str]:
        """Where the bundles lie, relative to the script."""
        return [os.path.join(_FOLDER, file.parent.name, file.name) for file in self.bundles]

    def copy_to(self, folder: Path) -> None:
        """Copies what has to come along into a folder."""
        for file, name in zip(self.bundles, self.names, strict=True):
            place = folder / Path(name).parent
            if file.name == "plugin.py":
                shutil.copytree(file.parent, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                place.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place / file.name)
        if self.engines is not None:
            shutil.copyfile(self.engines, folder / ENGINES_FILE)

    def body(self, backend: str, options: backends.Options, *, model: str, feeds: str) -> str | None:
        """Returns the rest of a function that runs the model; None where ONNX Runtime, or onnx, does it alone."""
        if self.bundles or _is_registered(backend):
            return LOADING.format(
                bundles=self.names, optimization=options.optimization, providers=options.providers, backend=backend,
                threads=options.threads, build=dict(options.build), model=model, feeds=feeds,
            )  # fmt: skip
        if self.engines is None:
            return None
        return BUILDING.format(
            kind=backends.engine_builder(backend).kind(), tf32=options.build.get("tf32") is not False, model=model,
            device=options.build.get("device") or 0, feeds=feeds,
        )  # fmt: skip

    def needs(self, backend: str) -> str:
        """Returns what a script needs, in words."""
        if self.bundles:
            return "onnxbench, which loads the operators in plugins/ (they are code and are run)"
        if _is_registered(backend):
            return f"onnxbench, and a package with its backend {backend}"
        if self.engines is not None:
            return f"{backends.engine_builder(backend).kind()}, numpy, and a GPU"
        return "onnx and numpy" if backend == "reference" else "onnxruntime and numpy"


def _is_registered(backend: str) -> bool:
    return isinstance(backends.backend(backend), backends.RegisteredBackend)


def carried(model: Model, backend: str, operators: Sequence[backends.Operator]) -> Carried:
    """Returns a model as it is given away to be run by a backend, with what has to come along.

    Raises:
        UnsupportedError: It was optimized with a custom operator in it that only this process knows.
    """
    if backends.calls_python(model.proto):
        raise UnsupportedError(
            "a custom operator without a body of ONNX operators is computed in Python, which ONNX Runtime's optimized "
            "graph refers to by a number that means nothing in another process, so no files can show this",
            hint="Look at the model as it stands: --on ort:none.",
        )
    is_engine = backend in backends.ENGINES
    used = [each for each in operators if backends.uses(model.proto, each)]
    if used and not is_engine and backend != "reference":
        taught = backends.as_functions(model, used)
        if taught is not None:
            return Carried(taught)
    files = dict.fromkeys(each.bundle for each in used if each.bundle is not None)
    if files or not is_engine:
        return Carried(model, tuple(files))
    return Carried(model, engines=backends.engine_builder(backend).standalone)
