"""Which TensorRT is installed, found out without loading any of it."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from onnxbench.errors import MissingDependencyError, UsageError, did_you_mean

RTX, FULL = "tensorrt-rtx", "tensorrt"
MODULES = {FULL: "tensorrt", RTX: "tensorrt_rtx"}
"""What an engine can be built with, and the Python module of each."""
_DISTRIBUTIONS = {
    FULL: ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
    RTX: ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13-bindings"),
}
_INSTALL = {
    FULL: "Install NVIDIA's wheels with 'pip install tensorrt', or use --engine tensorrt-rtx.",
    RTX: "Install it with 'pip install onnxbench[trt]'; it builds engines without a GPU.",
}
ENGINES = tuple(MODULES)


@dataclass(frozen=True, slots=True)
class Flavor:
    """One TensorRT that is installed.

    Attributes:
        name: ``tensorrt`` or ``tensorrt-rtx``.
        module: The Python module.
        version: Its version.
    """

    name: str
    module: str
    version: str

    @property
    def major(self) -> int:
        """The first number of the version."""
        head = self.version.split(".")[0]
        return int(head) if head.isdigit() else 0

    @property
    def is_strongly_typed(self) -> bool:
        """Whether precision is in the graph alone: no precision flags, no calibrator."""
        return self.name == RTX or self.major >= 11


def installed() -> list[Flavor]:
    """Returns the TensorRTs that are installed, the full one first."""
    return [_flavor(name) for name, module in MODULES.items() if _is_there(module)]


def choose(wanted: str | None = None) -> Flavor:
    """Returns the TensorRT to use: the one asked for, else the full one if there is a GPU for it, else TensorRT-RTX.

    Raises:
        UsageError: There is no engine of that name.
        MissingDependencyError: It is not installed.
    """
    return _flavor(choose_name(wanted))


def choose_name(wanted: str | None = None) -> str:
    """Returns the name of the TensorRT to use, as ``choose`` does, without a look at its version.

    Raises:
        UsageError: There is no engine of that name.
        MissingDependencyError: It is not installed.
    """
    name = None if wanted is None else wanted.lower().replace("_", "-")
    if name is not None and name not in MODULES:
        hint = did_you_mean(name, MODULES) or f"Engines: {', '.join(ENGINES)}."
        raise UsageError(f"{wanted!r} is no engine", hint=hint)
    order = (name,) if name is not None else (FULL, RTX) if has_gpu() else (RTX, FULL)
    for each in order:
        if _is_there(MODULES[each]):
            return each
    if name is not None:
        raise MissingDependencyError(f"--engine {name} needs the package {name}, and it is not installed",
                                     hint=_INSTALL[name])  # fmt: skip
    raise MissingDependencyError("building an engine needs TensorRT, and none is installed", hint=_INSTALL[RTX])


def has_gpu() -> bool:
    """Tells whether this machine shows an NVIDIA GPU."""
    if sys.platform == "win32":
        return Path(os.environ.get("SYSTEMROOT", "C:\\Windows"), "System32", "nvcuda.dll").exists()
    return any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/dxg", "/dev/nvhost-ctrl"))


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _flavor(name: str) -> Flavor:
    from importlib import metadata  # not at the top: it is slow to load, and TensorRT's process does without

    for distribution in _DISTRIBUTIONS[name]:
        with suppress(metadata.PackageNotFoundError):
            return Flavor(name, MODULES[name], metadata.version(distribution))
    return Flavor(name, MODULES[name], "unknown")
