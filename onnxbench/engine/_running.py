"""Engines run on a GPU from Python: inputs checked against the profiles, which needs none, then TensorRT.

Unlike all else here this loads TensorRT into the caller's own process: tensors on a GPU are handed over by their
addresses, which mean nothing in another one. What runs on a GPU (``onnxbench.engine._standalone``) was written after
TensorRT's documented API and was not run yet.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from onnxbench import captures, datafiles
from onnxbench.drift import DriftReport, Tolerance, compare_all
from onnxbench.engine import _standalone
from onnxbench.engine._flavors import choose
from onnxbench.engine._observed import inputs_at
from onnxbench.engine._profiles import KINDS, Profile, Range
from onnxbench.engine._record import read_engine
from onnxbench.errors import DeviceError, FeedsError, SpecError, UsageError
from onnxbench.feeding import FeedOptions, FeedSet, first_set
from onnxbench.specs import parse_tolerances
from onnxbench.tensorstats import TensorStats, statistics
from onnxbench.timing import Latency, summarize

if TYPE_CHECKING:
    from onnxbench.bundles import Plugin
    from onnxbench.model import Model

_ERRORS = {_standalone.UNFIT: FeedsError, _standalone.UNREADABLE: SpecError, _standalone.NO_DEVICE: DeviceError}
_ELEMENTS = {
    "float": 1, "half": 10, "bf16": 16, "int8": 3, "int32": 6, "int64": 7, "bool": 9, "uint8": 2, "fp8": 17,
}  # fmt: skip


class Engine:
    """A TensorRT engine that can be called: ``Engine("net.engine")({"x": array})``.

    Inputs are NumPy arrays, or tensors of PyTorch, which are used where they lie on the GPU. int64 is given to int32
    inputs if it fits. TensorRT is loaded on the first call; ``check`` needs neither it nor a GPU.

    Args:
        path: The engine; the JSON beside it says which shapes it takes.
        device: Number of the GPU.
        plugins: Custom operators in it (``onnxbench.bundles.find_plugins``); their code runs in this process.

    Raises:
        NotFoundError: There is no such file.
        ModelError: It is no engine, or not all of one.
    """

    def __init__(self, path: str | os.PathLike[str], *, device: int = 0, plugins: Sequence[Plugin | str] = ()) -> None:
        self.file = read_engine(Path(path))
        self._device, self._plugins = device, plugins
        self._runner: Any = None
        record = self.file.record
        known = record is not None and record.data["engine"].get("bytes") == self.file.bytes
        self._record: Mapping[str, Any] = record.data if known and record is not None else {}

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """Name, dtype and shape (-1 where it varies) of each input; from the engine itself if it has no record.

        Raises:
            DeviceError: It has none, and there is no GPU to load it on.
        """
        return list(self._record.get("inputs") or self._loaded().inputs)

    @property
    def profiles(self) -> list[Profile]:
        """The shapes that it was built for, from its record; empty if it has none."""
        return [
            {name: Range(*(tuple(each[kind]) for kind in KINDS)) for name, each in profile.items()}
            for profile in self._record.get("profiles", [])
        ]

    def check(self, inputs: Mapping[str, Any]) -> int:
        """Returns the number of the profile that inputs fit; needs no GPU where the engine has its record.

        Raises:
            FeedsError: They fit none; the message says which bound of which input is broken.
        """
        with _Translated():
            return _standalone.choose_profile(self.inputs, self._record.get("profiles", []), inputs)

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the outputs by name: tensors of PyTorch if an input is one on the GPU, else NumPy arrays.

        Raises:
            FeedsError: The inputs do not fit.
            DeviceError: There is no GPU, or it failed.
        """
        profile = self.check(inputs)
        with _Translated():
            outputs: dict[str, Any] = self._loaded().run(inputs, profile)
            return outputs

    def run(self, inputs: Mapping[str, Any], profile: int = 0) -> dict[str, Any]:
        """Returns the outputs; the profile is found anew (a form that the verifying script shares)."""
        del profile
        return self(inputs)

    def time(self, inputs: Mapping[str, Any], runs: int, *, warmup: int = 5) -> Latency:
        """Returns how long runs take, copies of inputs and outputs aside.

        Raises:
            BenchError: As for a call.
        """
        profile = self.check(inputs)
        with _Translated():
            return summarize(self._loaded().time(inputs, runs, warmup, profile), warmup)

    def close(self) -> None:
        """Frees what it holds on the GPU."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def _loaded(self) -> Any:
        if self._runner is None:
            with _Translated():
                _standalone.Cuda(
                    self._device
                )  # before TensorRT is loaded: without a GPU there is nothing to load it for
                rt = _load_tensorrt(self.file.kind, self._plugins)
                options = self._record.get("options", {})
                self._runner = _standalone.Engine(
                    self.file.path,
                    self.file.kind,
                    device=self._device,
                    api=rt.api,
                    logger=rt.logger,
                    host_code=bool(options.get("embed_plugins") or options.get("version_compatible")),
                )
        return self._runner


def open_engine(path: str | os.PathLike[str], *, device: int = 0, plugins: Sequence[Plugin | str] = ()) -> Engine:
    """Returns an engine that can be called (see ``Engine``)."""
    return Engine(path, device=device, plugins=plugins)


_LOADED: dict[str, Any] = {}


def _load_tensorrt(kind: str, plugins: Sequence[Plugin | str]) -> Any:
    """Returns TensorRT, loaded once in this process with its one logger, with plugins registered."""
    from onnxbench.bundles import find_plugins, register_with_tensorrt
    from onnxbench.engine._seam import TensorRT

    if kind not in _LOADED:
        _LOADED[kind] = TensorRT(choose(kind).name, lambda event, **fields: None)
    rt = _LOADED[kind]
    found = [plugin for each in plugins for plugin in (find_plugins([each]) if isinstance(each, str) else [each])]
    for plugin in found:
        job = plugin.job()
        if job["kind"] == "library":
            rt.load_library(Path(job["path"]))
        else:
            register_with_tensorrt(rt, job)
    return rt


class _Translated:
    """Turns errors of the part that stands alone into errors of onnxbench."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if isinstance(error, _standalone.RunError):
            raise _ERRORS[error.code](error.message, hint=error.hint or None) from None


# ---------------------------------------------------------------- the command


@dataclass(frozen=True, slots=True)
class EngineRun:
    """What a run of an engine showed.

    Attributes:
        engine: The file.
        builder: What it was built with.
        inputs: Statistics of the inputs.
        outputs: Statistics of the outputs.
        choices: What was decided about the inputs without being told.
        latency: The latency table, if one was asked for.
        drift: The comparison with expected values, if there were any.
        saved: Files that were written.
    """

    engine: Path
    builder: str
    inputs: tuple[TensorStats, ...]
    outputs: tuple[TensorStats, ...]
    choices: tuple[str, ...] = ()
    latency: Latency | None = None
    drift: DriftReport | None = None
    saved: tuple[Path, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing that was compared drifted."""
        return self.drift is None or self.drift.passed


def run_engine(
    path: str | os.PathLike[str],
    feeds: FeedOptions | None = None,
    *,
    plugins: Sequence[Plugin] = (),
    device: int = 0,
    expect: Sequence[str] = (),
    atol: Sequence[str] = (),
    rtol: Sequence[str] = (),
    bench: int = 0,
    warmup: int = 5,
    save: str | os.PathLike[str] | None = None,
    save_inputs: str | os.PathLike[str] | None = None,
) -> EngineRun:
    """Returns what a run of an engine on a GPU shows; inputs that are not given are drawn, at the tuned shapes.

    Args:
        path: The engine.
        feeds: What is said of the inputs.
        plugins: As for ``Engine``.
        device: Number of the GPU.
        expect: Values that should come out.
        atol: Absolute tolerances.
        rtol: Relative tolerances.
        bench: Time this many runs.
        warmup: Runs before the timed ones.
        save: A .npz file for the outputs.
        save_inputs: A .npz file for the inputs.

    Raises:
        FeedsError: An input breaks a bound of the engine's profiles.
        DeviceError: There is no GPU, or it failed.
    """
    for target in (save, save_inputs):
        if target is not None and Path(target).suffix.lower() != ".npz":
            raise UsageError(f"{os.fspath(target)!r}: values are saved as .npz", hint="Name it so: values.npz")
    engine = Engine(path, device=device, plugins=plugins)
    chosen = _inputs(engine, feeds)
    engine.check(chosen.feeds)
    outputs = engine(chosen.feeds)
    drift = None
    if expect:
        names = list(outputs)
        ports = [captures.Port(name, None) for name in names]
        expected = {name: value for word in expect for each in datafiles.load(word, ports, prefix="output")
                    for name, value in each.items()}  # fmt: skip
        low, high = parse_tolerances(atol, set(names), what="--atol"), parse_tolerances(rtol, set(names), what="--rtol")
        tolerances = {
            name: Tolerance(low.get(name, low.get(None, 0.0)), high.get(name, high.get(None, 0.0))) for name in names
        }
        drift = compare_all(expected, outputs, tolerances=tolerances if atol or rtol else None, check_dtype=False)
    saved = []
    for target, values in ((save, outputs), (save_inputs, chosen.feeds)):
        if target is not None:
            captures.save(target, values)
            saved.append(Path(target))
    return EngineRun(
        engine.file.path, f"{engine.file.kind} {engine.file.version or ''}".strip(),
        tuple(statistics(name, value) for name, value in chosen.feeds.items()),
        tuple(statistics(name, value) for name, value in outputs.items()), chosen.choices,
        engine.time(chosen.feeds, bench, warmup=warmup) if bench else None, drift, tuple(saved),
    )  # fmt: skip


def _stand_in(engine: Engine) -> Model:
    """Returns a model with the engine's inputs and nothing else, for which inputs can be read or drawn."""
    from onnx import helper

    from onnxbench.model import from_proto

    infos = []
    for port in engine.inputs:
        if port["dtype"] not in _ELEMENTS:
            raise FeedsError(f"input {port['name']!r} is {port['dtype']}, which cannot be given from here")
        shape = port["shape"]
        dims = None if shape is None else [None if size < 0 else size for size in shape]
        infos.append(helper.make_tensor_value_info(port["name"], _ELEMENTS[port["dtype"]], dims))
    return from_proto(helper.make_model(helper.make_graph([], "engine", infos, [])))


def _inputs(engine: Engine, feeds: FeedOptions | None) -> FeedSet:
    """Returns the given inputs, or drawn ones of the shapes that the engine is tuned for."""
    model = _stand_in(engine)
    profiles = engine.profiles
    if not profiles or (feeds is not None and (feeds.sources or feeds.shapes)):
        return first_set(model, feeds)
    return inputs_at(model, profiles[0], "opt", feeds)
