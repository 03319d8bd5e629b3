"""The proof of a plugin bundle: all of its parts, those in TensorRT and PyTorch too where these are installed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from onnxbench.bundles import find_plugins, prove_bundle, read_bundles

if TYPE_CHECKING:
    from onnxbench.bundles import Bundle, Case
    from onnxbench.bundles._proof import Outcome


def prove_plugin(path: str | os.PathLike[str], *, engine: str | None = None) -> list[Outcome]:
    """Returns the outcomes of all tests of the operators in a folder; those of what is not installed are not run.

    Args:
        path: The bundle's folder; its code is run.
        engine: The TensorRT to build with; None: chosen by what is installed.

    Raises:
        NotFoundError: There is no bundle.
        SpecError: It cannot be loaded.
    """
    found = read_bundles(path)
    build = _builder(Path(path), engine)
    done = {bundle.op: prove_bundle(bundle, build=build, tests=[("PyTorch", _in_torch)]) for bundle in found}
    if len(found) == 1:
        return done[found[0].op]
    return [replace(each, name=f"{op}: {each.name}") for op, outcomes in done.items() for each in outcomes]


def _builder(folder: Path, engine: str | None) -> Callable[[Path, Path, Bundle], bytes] | None:
    from onnxbench.engine import BuildSpec, build_engine, has_gpu, installed

    if engine is None and not installed():
        return None
    capabilities = () if has_gpu() else ("SM89",)

    def build(model: Path, target: Path, _: Bundle) -> bytes:
        spec = BuildSpec(engine=engine, compute_capabilities=capabilities)
        build_engine(model, target, spec, plugins=find_plugins([os.fspath(folder)]))
        return target.read_bytes()

    return build


def _in_torch(bundle: Bundle, cases: Sequence[Case]) -> str:
    from onnxbench.bundles._proof import NotRunError

    if find_spec("torch") is None or find_spec("onnxscript") is None:
        raise NotRunError("torch is not installed (pip install 'onnxbench[torch]')")
    from onnxbench.pytorch.operators import prove

    return prove(bundle, cases)
