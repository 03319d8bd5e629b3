"""Backends from other packages: found by their entry points, loaded when they are asked for by name, and guarded.

    [project.entry-points."onnxbench.backends"]
    acme = "acme_onnxbench:AcmeBackend"

What such a backend raises is translated here, once, into one error that names its package; what it gives is checked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxbench.backends._structure import expose
from onnxbench.captures import Port, Value, check_feeds, input_ports
from onnxbench.errors import BenchError, ExecutionError, UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from onnxbench.backends import Backend, Options, Session
    from onnxbench.model import Model

ENTRY_POINTS = "onnxbench.backends"
"""Group of entry points by which an installed package offers a backend."""
_KNOWN: dict[str, RegisteredBackend] = {}


@dataclass(frozen=True, slots=True)
class Registration:
    """A backend that a package offers; it is not loaded.

    Attributes:
        name: Its name.
        package: The package.
        version: The package's version.
        target: What would be loaded: ``module:Class``.
    """

    name: str
    package: str
    version: str
    target: str
    point: EntryPoint = field(repr=False, compare=False)

    @property
    def origin(self) -> str:
        """The package with its version."""
        return f"{self.package} {self.version}".rstrip()


def registrations() -> list[Registration]:
    """Returns the backends that installed packages offer, by name; none of their code is run."""
    from importlib import metadata

    found = {}
    for point in metadata.entry_points(group=ENTRY_POINTS):
        package, version = (point.dist.name, point.dist.version) if point.dist is not None else (point.module, "")
        made = Registration(point.name.lower(), package, version, point.value, point)
        found[made.name, made.package, made.target] = made
    return [found[key] for key in sorted(found)]


def find_registered(name: str) -> RegisteredBackend | None:
    """Returns the backend of a name that an installed package offers, or None; it is loaded when it is used.

    Raises:
        UsageError: Two packages offer one of this name.
    """
    if name not in _KNOWN:
        offers = [each for each in registrations() if each.name == name]
        if len(offers) > 1:
            raise UsageError(
                f"{offers[0].origin} and {offers[1].origin} both have a backend {name!r}", hint="Uninstall one of them."
            )
        if not offers:
            return None
        _KNOWN[name] = RegisteredBackend(offers[0])
    return _KNOWN[name]


class RegisteredBackend:
    """A backend of another package.

    Attributes:
        name: Its name.
        registration: Where it comes from.
    """

    def __init__(self, registration: Registration) -> None:
        self.name, self.registration = registration.name, registration
        self._loaded: Backend | None = None

    @property
    def folder(self) -> str | None:
        """The folder of ``sys.path`` that its package is in; None if that is not known."""
        package = self.registration.point.dist
        return None if package is None else str(package.locate_file(""))

    @property
    def heeds(self) -> tuple[str, ...]:
        """The fields of ``Options`` that mean something to it."""
        return tuple(getattr(self._real(), "heeds", ()))

    def version(self) -> str:
        """Returns the version of its runtime.

        Raises:
            ExecutionError: It cannot be loaded, or fails.
        """
        real = self._real()
        with self._translated("cannot tell its version"):
            return str(real.version())

    def unavailable(self) -> str | None:
        """Returns why it cannot run models here, or None.

        Raises:
            ExecutionError: It cannot be loaded, or fails.
        """
        ask = getattr(self._real(), "unavailable", None)
        with self._translated("cannot tell whether it is available"):
            reason = ask() if ask is not None else None
            return None if reason is None else str(reason)

    def open(self, model: Model, *, outputs: Sequence[str] | None, options: Options) -> RegisteredSession:
        """Returns a session (see ``onnxbench.backends.open_session``)."""
        real = self._real()
        exposed = model.derive(expose(model.proto, outputs))
        with self._translated("does not take the model"):
            session = real.open(model, outputs=outputs, options=options)
        return RegisteredSession(exposed, session, self)

    def _real(self) -> Backend:
        if self._loaded is None:
            with self._translated("cannot be loaded", hint=f"Update or reinstall {self.registration.package}."):
                target = self.registration.point.load()
                made: Any = target() if isinstance(target, type) else target
                for method in ("version", "open"):
                    if not callable(getattr(made, method, None)):
                        raise TypeError(f"{self.registration.target} has no method {method!r}")
                if str(getattr(made, "name", "")).lower() != self.name:
                    raise TypeError(f"it is registered as {self.name!r} and calls itself {made.name!r}")
            self._loaded = made
        return self._loaded

    @contextlib.contextmanager
    def _translated(self, what: str, *, hint: str | None = None) -> Iterator[None]:
        """Turns whatever foreign code raises into one error that names its package."""
        try:
            yield
        except BenchError:
            raise
        except Exception as error:  # the seam: another package raises whatever it likes
            text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            raise ExecutionError(
                f"the backend {self.name} (package {self.registration.origin}) {what}: {type(error).__name__}: {text}"[
                    :600
                ],
                hint=hint,
            ) from None


class RegisteredSession:
    """A model in a backend of another package: inputs are checked before a run, and its values after it.

    Attributes:
        inputs: The inputs of the model.
        outputs: Its outputs.
        providers: What it runs on, as the backend says, or the backend's name.
        device: The first of them in short.
    """

    def __init__(self, model: Model, session: Session, home: RegisteredBackend) -> None:
        self._session, self._home = session, home
        graph = model.proto.graph
        self.inputs = input_ports(graph)
        self.outputs = [Port(info.name, info.type if info.HasField("type") else None, False) for info in graph.output]
        self.providers: tuple[str, ...] = tuple(getattr(session, "providers", (home.name,)))
        self.device = str(getattr(session, "device", home.name))

    def run(self, feeds: Mapping[str, Value], outputs: Sequence[str] | None = None) -> dict[str, Value]:
        """Returns outputs by name (see ``onnxbench.backends.Session``)."""
        fitted = check_feeds(feeds, self.inputs)
        names = [port.name for port in self.outputs] if outputs is None else list(dict.fromkeys(outputs))
        with self._home._translated("failed while it ran the model"):
            made = self._session.run(fitted, names)
            missing = [name for name in names if name not in made]
            if missing:
                raise LookupError(f"it gives no value of {missing[0]!r}")
            return {name: _as_value(made[name]) for name in names}

    def close(self) -> None:
        """Ends the session."""
        end = getattr(self._session, "close", None)
        if end is not None:
            with self._home._translated("failed while it ended a session"):
                end()


def _as_value(value: Any) -> Value:
    """Returns an output as an array, a list of them, a map, or None, as sessions give them."""
    import numpy as np

    if value is None or isinstance(value, Mapping):
        return value
    return [*map(_as_value, value)] if isinstance(value, (list, tuple)) else np.asarray(value)
