"""TensorRT as a backend: a model is built into an engine for the shapes of its inputs, and the engine runs on the GPU.

A session is asked for before its inputs are known, and an engine is built for shapes. So it is built in the first run,
with exactly the shapes that come (and anew for others): no profile has to be proposed, and nothing that TensorRT does
for a range of sizes gets in the way of what is compared. The build happens in TensorRT's own process and needs no GPU;
only ``Engine`` does, right before the launch.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnxbench import backends
from onnxbench.bundles import find_plugins
from onnxbench.captures import Feeds, Port, Value, check_feeds, input_ports, onnx_dtype
from onnxbench.engine import _standalone
from onnxbench.engine._building import Built, build_engine
from onnxbench.engine._flavors import FULL, RTX, choose, installed
from onnxbench.engine._observed import observe_sets
from onnxbench.engine._running import Engine
from onnxbench.engine._spec import BuildSpec
from onnxbench.errors import DeviceError, EngineError, RefusedModelError, UsageError
from onnxbench.messages import copy_of
from onnxbench.tensortype import elem_type, make_type
from onnxbench.wording import plural

if TYPE_CHECKING:
    from onnxbench.backends import Options
    from onnxbench.bundles import Plugin
    from onnxbench.model import Model


class EngineBackend:
    """A TensorRT as a backend.

    Args:
        name: The name of the backend.
        engine: The TensorRT; None: the one that is there (see ``choose``).
    """

    def __init__(self, name: str, engine: str | None) -> None:
        self.name, self._engine = name, engine

    standalone = Path(_standalone.__file__)

    def kind(self) -> str:
        """Returns which TensorRT it is: ``tensorrt`` or ``tensorrt-rtx``."""
        return self._engine or choose().name

    def version(self) -> str:
        """Returns the version of TensorRT."""
        return choose(self._engine).version

    def open(self, model: Model, *, outputs: Sequence[str] | None, options: Options) -> EngineSession:
        """Returns a session (see ``onnxbench.backends.open_session``); of ``options``, ``build`` and ``operators``.

        Raises:
            MissingDependencyError: This TensorRT is not installed.
        """
        flavor = choose(self._engine)
        exposed = model.derive(backends.expose(model.proto, outputs))
        return EngineSession(exposed, dataclasses.replace(as_spec(options), engine=flavor.name), plugins_of(options))


SESSIONS = {name: EngineBackend(name, engine) for name, engine in (("trt", None), (RTX, RTX), (FULL, FULL))}


def as_spec(options: Options) -> BuildSpec:
    """Returns what engines are built with, shapes aside."""
    return BuildSpec(**options.build)


def plugins_of(options: Options) -> list[Plugin]:
    """Returns the bundles that define the custom operators."""
    return find_plugins(list(dict.fromkeys(str(each.bundle) for each in options.operators if each.bundle is not None)))


class EngineSession:
    """A model that is built into an engine as soon as the shapes of its inputs are known."""

    def __init__(self, model: Model, spec: BuildSpec, plugins: Sequence[Plugin]) -> None:
        self._model, self._spec, self._plugins = model, spec, plugins
        self.inputs = input_ports(model.proto.graph)
        self.outputs = [
            Port(info.name, info.type if info.HasField("type") else None, False) for info in model.proto.graph.output
        ]
        self.providers: tuple[str, ...] = (str(spec.engine),)
        self.device = f"GPU {spec.device or 0}"
        self._folder = tempfile.TemporaryDirectory(prefix="onnxbench-")
        self._engines: dict[tuple[object, ...], tuple[Built, Engine]] = {}

    def run(self, feeds: Mapping[str, Value], outputs: Sequence[str] | None = None) -> dict[str, Value]:
        """Returns outputs by name (see ``onnxbench.backends.Session``).

        Raises:
            RefusedModelError: No engine can be built of the model.
            DeviceError: There is no GPU, or it failed. It says what was built.
        """
        fitted = check_feeds(feeds, self.inputs)
        built, engine = self._engine_for(fitted)
        known = {port["name"] for port in engine.inputs}
        try:
            made = engine({name: value for name, value in fitted.items() if name in known})
        except DeviceError as error:
            data = built.record.data
            builder = f"{data['builder']['name']} {data['builder']['version']}"
            what = f"{builder} builds the engine: {data['layers']:,} layers, {plural(len(data['outputs']), 'output')}"
            raise DeviceError(error.message, hint=error.hint, details=[what, *error.details]) from None
        names = [port.name for port in self.outputs] if outputs is None else list(dict.fromkeys(outputs))
        return {name: made[name] for name in names}

    def _engine_for(self, feeds: Feeds) -> tuple[Built, Engine]:
        """Returns the engine for inputs of these shapes, built now if there is none."""
        model, key = fixed(self._model, feeds)
        if key not in self._engines:
            target = Path(self._folder.name, f"{len(self._engines)}.engine")
            built = _build(model, target, self._spec, self._plugins)
            self._engines[key] = built, Engine(target, device=self._spec.device or 0, plugins=self._plugins)
        return self._engines[key]

    def close(self) -> None:
        """Frees what engines hold on the GPU, and removes their files."""
        for _, engine in self._engines.values():
            engine.close()
        self._engines.clear()
        self._folder.cleanup()


def build_part(model: Model, feeds: Mapping[str, Value], target: Path, engine: str, options: Options) -> Model:
    """Builds the engine of a model for some inputs into a file, and returns the model as it was built.

    Where this TensorRT is not installed nothing is built.

    Args:
        model: The model.
        feeds: The inputs.
        target: The file.
        engine: ``tensorrt`` or ``tensorrt-rtx``.
        options: ``build`` and ``operators`` of them.

    Raises:
        RefusedModelError: No engine can be built of it.
    """
    made, _ = fixed(model, check_feeds(feeds, input_ports(model.proto.graph)))
    if engine in {flavor.name for flavor in installed()}:
        _build(made, target, dataclasses.replace(as_spec(options), engine=engine), plugins_of(options))
    return made


def _build(model: Model, target: Path, spec: BuildSpec, plugins: Sequence[Plugin]) -> Built:
    try:
        return build_engine(model, target, spec, plugins=plugins)
    except (EngineError, UsageError) as error:  # what stands in the way says more than that something does
        raise RefusedModelError(
            error.details[0] if error.details else error.message, hint=error.hint,
            details=[error.message, *error.details[1:]] if error.details else (),
        ) from None  # fmt: skip


def fixed(model: Model, feeds: Feeds) -> tuple[Model, tuple[object, ...]]:
    """Returns a model for the shapes of some inputs, and a key that tells which inputs it is for too.

    Outputs get types, which TensorRT wants. Inputs that sizes are made of become weights: an engine has to know them.
    """
    from onnx import numpy_helper

    proto = copy_of(model.proto)
    for info in proto.graph.input:
        if info.name in feeds:
            info.type.CopyFrom(make_type(onnx_dtype(feeds[info.name].dtype), feeds[info.name].shape))
    untyped = [info.name for info in proto.graph.output if not elem_type(info.type)]
    kinds = backends.tensor_types(model.derive(proto), untyped) if untyped else {}
    for info in proto.graph.output:
        if info.name in kinds:
            info.type.CopyFrom(kinds[info.name])
    sizes = observe_sets(model.derive(proto), [feeds]).profile
    for position in reversed(range(len(proto.graph.input))):
        name = proto.graph.input[position].name
        if name in sizes:
            proto.graph.initializer.append(numpy_helper.from_array(feeds[name], name))
            del proto.graph.input[position]
    key = tuple((n, v.shape, v.tobytes() if n in sizes else b"") for n, v in sorted(feeds.items()))
    return model.derive(proto), key
