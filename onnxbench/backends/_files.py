"""A base for backends that read model files: what they have to say is how a file is converted, loaded and run."""

from __future__ import annotations

import contextlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench.backends._operators import as_functions, uses
from onnxbench.backends._structure import expose
from onnxbench.captures import Feeds, Port, Value, check_feeds, input_ports
from onnxbench.errors import UnsupportedError
from onnxbench.messages import copy_of
from onnxbench.repair import repair
from onnxbench.writer import save

if TYPE_CHECKING:
    from onnxbench.backends import Options
    from onnxbench.model import Model

RunsFile = Callable[[Feeds, list[str]], "Mapping[str, Any] | Sequence[Any]"]
"""From inputs by name and the names of outputs to the outputs: by name, or in that order."""


class FileBackend(ABC):
    """Base of a backend that reads model files: give it a name, ``version`` and ``load``, and ``convert`` if it builds.

    Attributes:
        name: The name that users type.
        heeds: Fields of ``Options`` that mean something to it: ``optimization``, ``providers``, ``threads``,
            ``libraries``, ``profile``. Users who set another one are told so.
    """

    name: str = ""
    heeds: tuple[str, ...] = ()

    @abstractmethod
    def version(self) -> str:
        """Returns the runtime's version."""

    def unavailable(self) -> str | None:
        """Returns why models cannot be run here (no device, a library that is missing), or None."""
        return None

    def convert(self, model: Path, folder: Path, options: Options) -> Path:
        """Returns the file that is loaded: the model itself, or what is built of it in a folder that goes later."""
        return model

    @abstractmethod
    def load(self, file: Path, options: Options) -> RunsFile:
        """Returns a function that runs what ``convert`` gave."""

    def open(self, model: Model, *, outputs: Sequence[str] | None, options: Options) -> FileSession:
        """Returns a session (see ``onnxbench.backends.open_session``).

        Raises:
            UnsupportedError: It has a custom operator that cannot be written as ONNX operators.
        """
        used = [operator for operator in options.operators if uses(model.proto, operator)]
        plain = as_functions(model, used) if used else model
        if plain is None:
            raise UnsupportedError(f"the backend {self.name} cannot be taught custom operators that are Python code")
        proto = copy_of(expose(plain.proto, outputs))
        repair(proto)
        exposed = plain.derive(proto)
        _give_types(exposed)
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onnxbench-")))
            file = folder / "model.onnx"
            save(exposed, file, is_valid=True)
            run = self.load(self.convert(file, folder, options), options)
            return FileSession(exposed, run, stack.pop_all().close)


def _give_types(model: Model) -> None:
    """Gives outputs that have none their types, which most runtimes want."""
    from onnxbench.backends import tensor_types

    untyped = {info.name: info for info in model.proto.graph.output if not info.HasField("type")}
    for name, kind in (tensor_types(model, list(untyped)) if untyped else {}).items():
        untyped[name].type.CopyFrom(kind)


class FileSession:
    """A model that was loaded from a file; the file goes when it is closed."""

    def __init__(self, model: Model, run: RunsFile, remove: Callable[[], None]) -> None:
        self._model, self._run, self._remove = model, run, remove
        graph = model.proto.graph
        self.inputs = input_ports(graph)
        self.outputs = [Port(info.name, info.type if info.HasField("type") else None, False) for info in graph.output]

    def run(self, feeds: Mapping[str, Value], outputs: Sequence[str] | None = None) -> dict[str, Value]:
        """Returns outputs by name (see ``onnxbench.backends.Session``)."""
        names = [port.name for port in self.outputs] if outputs is None else list(dict.fromkeys(outputs))
        made = self._run(check_feeds(feeds, self.inputs), names)
        return dict(made) if isinstance(made, Mapping) else dict(zip(names, made, strict=True))

    def close(self) -> None:
        """Removes the file."""
        self._remove()
