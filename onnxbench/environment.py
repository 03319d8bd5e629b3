"""What onnxbench has to work with: packages, runtimes, plugins, the machine; and what of it will cause trouble.

Nothing is taken on trust that can be tried: required packages are imported, and each backend runs a small model and
must get it right. Heavy optional packages are only looked up. Foreign packages fail in every way there is when they
are broken (a missing library, another NumPy), so whatever they raise is reported, and nothing is raised from here.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from onnxbench import backends
from onnxbench.errors import BenchError, MissingDependencyError
from onnxbench.version import __version__

if TYPE_CHECKING:
    from onnx import ModelProto

    from onnxbench.model import Model

OLDEST_PYTHON = (3, 11)

REQUIRED: dict[str, str] = {
    "onnx": "onnx", "onnxruntime": "onnxruntime", "numpy": "numpy", "ml_dtypes": "ml_dtypes", "protobuf":
    "google.protobuf", "typer": "typer", "rich": "rich", "pyyaml": "yaml", "rapidfuzz": "rapidfuzz", "sympy": "sympy",
}  # fmt: skip
"""Distributions that onnxbench cannot do without, and the module of each that is imported."""
OPTIONAL: dict[str, str] = {
    "torch": "PyTorch models and their export (pip install 'onnxbench[torch]')",
    "onnxscript": "PyTorch's default exporter",
    "tensorrt": "TensorRT engines",
    "tensorrt-rtx": "TensorRT-RTX engines (pip install 'onnxbench[trt]')",
    "polygraphy": "comparison with Polygraphy (pip install 'onnxbench[peers]')",
    "onnx-graphsurgeon": "comparison with onnx-graphsurgeon",
    "onnx-ir": "comparison with onnx-ir",
}
"""Distributions that more can be done with, and what."""
_RUNTIME_BUILDS = (
    "onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-training",
    "onnxruntime-rocm", "onnxruntime-qnn", "onnxruntime-silicon",
)  # fmt: skip
_SCARCE = 1_000_000_000  # bytes of temporary space


@dataclass(frozen=True, slots=True)
class Package:
    """A distribution.

    Attributes:
        name: Its name on PyPI.
        version: Its version, or None when it is not installed.
        required: Whether onnxbench cannot do without.
        purpose: What it is for.
        problem: What is wrong with it, or None.
    """

    name: str
    version: str | None
    required: bool
    purpose: str
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Runtime:
    """A backend.

    Attributes:
        name: Its name in ``--backend``.
        version: Its version, or None when its package is not installed.
        works: Whether it ran a small model and got it right.
        providers: Its execution providers, best first.
        newest_opset: The newest standard opset that it takes, or None when that cannot be found out.
        newest_ir: The newest IR version that it takes, likewise.
        problem: Why it does not work, or None.
        package: The package that offers it, with its version; ``""`` for those of onnxbench.
    """

    name: str
    version: str | None
    works: bool
    providers: tuple[str, ...] = ()
    newest_opset: int | None = None
    newest_ir: int | None = None
    problem: str | None = None
    package: str = ""


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin that was found; it is not loaded here.

    Attributes:
        name: Its name.
        source: The package that brings it, ``onnxbench`` for those that come along, or ``ONNXBENCH_PLUGIN_PATH``.
        target: The folder that would be loaded.
    """

    name: str
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Gpu:
    """An NVIDIA GPU: its name and memory in bytes."""

    name: str
    memory: int


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine.

    Attributes:
        system: Operating system and processor.
        cpus: Processors that this process may use.
        memory: Bytes of memory that it may use, or None when unknown.
        free_memory: Bytes of these that are free now, or None.
        temp_folder: Where temporary files go.
        free_temp: Bytes that are free there.
        driver: Version of CUDA that the NVIDIA driver offers, ``13.0``; None without a driver.
        gpus: NVIDIA GPUs that the driver shows.
    """

    system: str
    cpus: int
    memory: int | None
    free_memory: int | None
    temp_folder: Path
    free_temp: int
    driver: str | None
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that will cause trouble (``error``), may (``warning``), or is good to know (``note``)."""

    severity: Literal["error", "warning", "note"]
    message: str
    advice: str


@dataclass(frozen=True, slots=True)
class Environment:
    """What onnxbench has to work with.

    Attributes:
        onnxbench: Its own version.
        python: Python's version.
        executable: The interpreter.
        packages: Required packages, then optional ones.
        onnx_opset: The newest standard opset that the onnx package knows, or None if that is broken.
        onnx_ir: The newest IR version that it knows, likewise.
        backends: Runtimes.
        plugins: Plugins.
        machine: The machine.
        findings: What is wrong, worst first.
    """

    onnxbench: str
    python: str
    executable: str
    packages: tuple[Package, ...]
    onnx_opset: int | None
    onnx_ir: int | None
    backends: tuple[Runtime, ...]
    plugins: tuple[Plugin, ...]
    machine: Machine
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing that is required is missing or broken."""
        return not any(finding.severity == "error" for finding in self.findings)

    def to_json(self) -> dict[str, object]:
        """Returns all of it, and the verdict."""
        return {"ok": self.ok, **{name: getattr(self, name) for name in self.__slots__}}


def examine() -> Environment:
    """Returns what onnxbench has to work with here, and what is wrong with it. Takes about a second."""
    packages = (*_required_packages(), *_optional_packages())
    versions = {package.name: package.version for package in packages}
    onnx_opset, onnx_ir = _onnx_limits(packages)
    runtimes = tuple(_examine_backend(name, onnx_opset, onnx_ir) for name in backends.BACKENDS)
    others = _examine_others(onnx_opset)
    machine = _examine_machine()
    plugins, plugin_findings = _find_plugins()
    findings = [
        *_package_findings(packages),
        *_backend_findings((*runtimes, *others), onnx_opset, onnx_ir, versions, machine),
        *_machine_findings(machine),
        *plugin_findings,
    ]
    return Environment(
        onnxbench=__version__,
        python=platform.python_version(),
        executable=sys.executable,
        packages=packages,
        onnx_opset=onnx_opset,
        onnx_ir=onnx_ir,
        backends=(*runtimes, *others),
        plugins=plugins,
        machine=machine,
        findings=tuple(sorted(findings, key=lambda finding: ("error", "warning", "note").index(finding.severity))),
    )


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _required_packages() -> Iterable[Package]:
    least = _least_versions()
    for name, module in REQUIRED.items():
        version = _installed(name)
        if name == "onnxruntime" and version is None:  # another build of it does as well
            version = next((found for build in _RUNTIME_BUILDS if (found := _installed(build))), None)
        problem = _import_problem(module)
        if problem is None and version and name in least and _numbers(version) < _numbers(least[name]):
            problem = f"version {version} is older than {least[name]}, which is needed"
        yield Package(name, version, True, "required", problem)


def _optional_packages() -> Iterable[Package]:
    return (Package(name, _installed(name), False, purpose) for name, purpose in OPTIONAL.items())


def _import_problem(module: str) -> str | None:
    try:
        import_module(module)
    except ImportError as error:
        return f"it cannot be imported: {error}"
    except Exception as error:  # a broken package raises anything (see the top of this file)
        return f"it fails while it is imported: {type(error).__name__}: {error}"
    return None


def _least_versions() -> dict[str, str]:
    """Returns the oldest version of each requirement that onnxbench accepts, as its installation says."""
    try:
        lines = metadata.requires("onnxbench") or []
    except metadata.PackageNotFoundError:
        return {}
    pattern = re.compile(r"([A-Za-z0-9_.-]+)\s*>=\s*([0-9.]+)")
    found = (pattern.match(line) for line in lines if "extra ==" not in line)
    return {match[1].replace("-", "_").lower(): match[2] for match in found if match}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _onnx_limits(packages: Iterable[Package]) -> tuple[int | None, int | None]:
    if any(package.name == "onnx" and package.problem for package in packages):
        return None, None
    import onnx

    return onnx.defs.onnx_opset_version(), int(onnx.IR_VERSION)


def _examine_backend(name: str, opset: int | None, ir: int | None) -> Runtime:
    version: str | None = None
    try:
        chosen = backends.backend(name)
        version = chosen.version()
        providers = tuple(chosen.providers()) if hasattr(chosen, "providers") else ()
        problem = None if opset is None else _wrong_answer(name)
        newest_opset = newest_ir = None
        if problem is None and opset is not None and ir is not None:
            newest_ir = _newest(name, [(8, number) for number in range(ir, 2, -1)])
            newest_opset = _newest(name, [(number, 8) for number in range(opset, 6, -1)], axis=0)
        return Runtime(
            name, version, problem is None and opset is not None, providers, newest_opset, newest_ir, problem
        )
    except MissingDependencyError as error:
        return Runtime(name, version, False, problem=error.message)
    except Exception as error:  # a broken package raises anything (see the top of this file)
        message = error.message if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
        return Runtime(name, version, False, problem=message)


def _examine_others(opset: int | None) -> list[Runtime]:
    """Returns the backends that other packages offer, each tried on a small model."""
    found = []
    for offer in backends.registrations():
        version, works = None, False
        try:
            version = backends.backend(offer.name).version()
            problem = backends.why_unavailable(offer.name)
            if offer.name in {*backends.BACKENDS, *backends.ENGINES}:
                problem = "onnxbench has a backend of this name, which is used in its place"
            elif problem is None and opset is not None:
                problem = _wrong_answer(offer.name)
                works = problem is None
        except Exception as error:  # a broken package raises anything (see the top of this file)
            problem = error.message if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
        found.append(Runtime(offer.name, version, works, problem=problem, package=offer.origin))
    return found


def _wrong_answer(name: str) -> str | None:
    """Returns what is wrong with what a backend makes of a small model, or None."""
    import numpy as np

    values = np.arange(4, dtype=np.float32)
    made = backends.run_with_outputs(_small_model(13, 8), {"x": values}, ["y"], backend=name)["y"]
    return None if np.array_equal(made, values + values) else f"it computes 2 * {values.tolist()} as {made!r}"


def _newest(name: str, versions: Iterable[tuple[int, int]], axis: int = 1) -> int | None:
    """Returns the first (opset, IR version) that a backend takes, one number of it; it says so by refusing others."""
    for opset, ir in versions:
        try:
            backends.open_session(_small_model(opset, ir), name).close()
        except BenchError:
            continue
        return (opset, ir)[axis]
    return None


def _small_model(opset: int, ir: int) -> Model:
    """Returns y = x + x as a model of this opset and IR version."""
    from onnx import TensorProto, helper

    from onnxbench.model import from_proto

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doctor", ends[:1], ends[1:])
    proto: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    return from_proto(proto, folder=tempfile.gettempdir())


def _find_plugins() -> tuple[tuple[Plugin, ...], list[Finding]]:
    from onnxbench.bundles import PATH_VARIABLE, discover

    folders = filter(None, os.environ.get(PATH_VARIABLE, "").split(os.pathsep))
    advice = f"Correct or unset the variable {PATH_VARIABLE}."
    findings = [
        Finding("warning", f"the plugin folder {folder} does not exist", advice)
        for folder in folders
        if not Path(folder).is_dir()
    ]
    return tuple(Plugin(each.name, each.origin, str(each.path)) for each in discover()), findings


def _examine_machine() -> Machine:
    total, free = _memory()
    folder = Path(tempfile.gettempdir())
    driver, gpus = _cuda()
    return Machine(
        f"{platform.system()} {platform.release()}, {platform.machine()}",
        _cpus(),
        total,
        free,
        folder,
        shutil.disk_usage(folder).free,
        driver,
        gpus,
    )


def _cpus() -> int:
    """Returns the processors that this process may use: by its affinity, and the quota of its container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _first_line("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        allowed = min(allowed, max(1, int(quota) // int(period)))
    return allowed


def _memory() -> tuple[int | None, int | None]:
    """Returns total and free memory in bytes, within the limit of a container."""
    said = dict(re.findall(r"^(\w+):\s+(\d+) kB", _text("/proc/meminfo"), re.MULTILINE))
    if "MemTotal" not in said:
        if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
            return None, None
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None
    total, free = int(said["MemTotal"]) * 1024, int(said.get("MemAvailable", 0)) * 1024
    limit, used = _first_line("/sys/fs/cgroup/memory.max"), _first_line("/sys/fs/cgroup/memory.current")
    if limit.isdigit() and used.isdigit() and int(limit) < total:
        total, free = int(limit), min(free, max(0, int(limit) - int(used)))
    return total, free


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _first_line(path: str) -> str:
    return _text(path).partition("\n")[0].strip()


def _cuda() -> tuple[str | None, tuple[Gpu, ...]]:
    """Returns what the NVIDIA driver says of itself and its GPUs, without any CUDA package."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(library)
        version, count = ctypes.c_int(), ctypes.c_int()
        if cuda.cuInit(0) or cuda.cuDriverGetVersion(ctypes.byref(version)):
            return None, ()
        if cuda.cuDeviceGetCount(ctypes.byref(count)):
            return None, ()
        gpus = []
        for number in range(count.value):
            device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
            cuda.cuDeviceGet(ctypes.byref(device), number)
            cuda.cuDeviceGetName(name, len(name), device)
            cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
            gpus.append(Gpu(name.value.decode(errors="replace"), memory.value))
    except (OSError, AttributeError):  # no such library, or one without these functions
        return None, ()
    return f"{version.value // 1000}.{version.value % 1000 // 10}", tuple(gpus)


def _package_findings(packages: Iterable[Package]) -> Iterable[Finding]:
    if sys.version_info < OLDEST_PYTHON:
        yield Finding("error", f"Python {platform.python_version()} is too old", "Use Python 3.11 or newer.")
    if sys.maxsize < 2**32:
        yield Finding("warning", "this Python has 32 bits", "Models beyond 2 GB do not fit; use a 64-bit Python.")
    for package in packages:
        if package.required and package.problem:
            install = (
                f"pip install --force-reinstall {package.name}" if package.version else f"pip install {package.name}"
            )
            yield Finding("error", f"{package.name} is required, and {package.problem}", f"Try: {install}")
    versions = {package.name: package.version for package in packages}
    if versions.get("torch") and not versions.get("onnxscript"):
        yield Finding(
            "warning",
            "torch is installed without onnxscript, which its default ONNX exporter needs",
            "pip install onnxscript",
        )
    if _protobuf_is_python():
        yield Finding(
            "warning",
            "protobuf runs in pure Python, many times slower",
            "Unset PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION, or reinstall protobuf from a wheel.",
        )


def _protobuf_is_python() -> bool:
    try:
        return bool(import_module("google.protobuf.internal.api_implementation").Type() == "python")
    except (ImportError, AttributeError):  # reported as a package that is missing, or moved inside protobuf
        return False


def _backend_findings(
    runtimes: Iterable[Runtime],
    onnx_opset: int | None,
    onnx_ir: int | None,
    versions: Mapping[str, str | None],
    machine: Machine,
) -> Iterable[Finding]:
    builds = [build for build in _RUNTIME_BUILDS if _installed(build)]
    if len(builds) > 1:
        yield Finding(
            "warning",
            f"{' and '.join(builds)} are installed together and overwrite each other's files",
            f"pip uninstall {' '.join(builds)}, then install the one you want.",
        )
    for runtime in runtimes:
        if runtime.package:
            if runtime.problem:
                severity: Literal["warning", "note"] = "warning" if runtime.version is None else "note"
                yield Finding(
                    severity, f"backend {runtime.name} of {runtime.package}: {runtime.problem}",
                    "Nothing else needs it; see the documentation of that package.",
                )  # fmt: skip
            continue
        known = f"ONNX Runtime {runtime.version}"
        if runtime.name == "ort" and not runtime.works and runtime.version is not None:
            yield Finding("error", f"ONNX Runtime does not work: {runtime.problem}", "Reinstall onnxruntime.")
        elif runtime.version is not None and not runtime.works and runtime.problem:
            yield Finding("warning", f"backend {runtime.name} does not work: {runtime.problem}", "Reinstall it.")
        if runtime.name != "ort":
            continue
        if onnx_opset and runtime.newest_opset and runtime.newest_opset < onnx_opset:
            yield Finding(
                "note",
                f"onnx writes opsets up to {onnx_opset}, {known} runs up to {runtime.newest_opset}",
                f"Make models of opset {runtime.newest_opset} or older, or update onnxruntime.",
            )
        if onnx_ir and runtime.newest_ir and runtime.newest_ir < onnx_ir:
            yield Finding(
                "note",
                f"onnx writes IR versions up to {onnx_ir}, {known} reads up to {runtime.newest_ir}",
                f"Save models with IR version {runtime.newest_ir} or older, or update onnxruntime.",
            )
        if machine.gpus and "CUDAExecutionProvider" not in runtime.providers and runtime.works:
            yield Finding(
                "note", "there is a GPU, and this build of ONNX Runtime does not use it", "pip install onnxruntime-gpu"
            )
        if not machine.gpus and {"CUDAExecutionProvider", "TensorrtExecutionProvider"} & set(runtime.providers):
            yield Finding(
                "note", "ONNX Runtime is a GPU build, and no GPU is seen", "It falls back on the CPU; check the driver."
            )
    if not machine.gpus and versions.get("tensorrt-rtx"):
        yield Finding(
            "note", "TensorRT-RTX is installed, and no GPU is seen",
            "Engines can be built here ('onnxbench build-trt'); they run on a GPU only.",
        )  # fmt: skip
    elif not machine.gpus and versions.get("tensorrt"):
        yield Finding("note", "TensorRT is installed, and no GPU is seen", "Engines are built and run on a GPU only.")


def _machine_findings(machine: Machine) -> Iterable[Finding]:
    if machine.free_temp < _SCARCE:
        yield Finding(
            "warning",
            f"only {machine.free_temp / 1e6:,.0f} MB are free in {machine.temp_folder}",
            "Make room, or point TMPDIR to another disk.",
        )
