"""``onnxbench doctor``: what there is to work with, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from onnxbench.cli import _render
from onnxbench.cli._options import AsJson
from onnxbench.cli._tables import Column, print_fields, print_heading, print_table

if TYPE_CHECKING:
    from onnxbench.environment import Environment, Package, Runtime

_PACKAGES = (Column("package"), Column("version"), Column("for", "whole"))


def doctor(as_json: AsJson = False) -> None:
    """Look at the environment: versions, runtimes, plugins.

    Required packages are imported, each backend runs a small model, and known trouble is reported with advice. Ends
    with exit code 1 if something that is required is missing or broken.

    \b
    Examples:
      onnxbench doctor
      onnxbench doctor --json
    """
    from onnxbench.environment import examine

    found = examine()
    if as_json:
        _render.print_json("doctor", found)
    else:
        _print(found)
    raise typer.Exit(0 if found.ok else 1)


def _print(found: Environment) -> None:
    print_heading(f"onnxbench {found.onnxbench}, Python {found.python}")
    print_fields(_machine_fields(found))
    print()
    print_table(_PACKAGES, map(_package_row, found.packages))
    print()
    print_fields([*_backend_fields(found), *_plugin_fields(found)])
    print()
    for finding in found.findings:  # one by one, so that each shows its severity
        print_fields([(finding.severity, f"{finding.message}. {finding.advice}")], labels=len("warning"))
    print_heading("All that is required is there and works." if found.ok else "Something that is required is missing.")


def _machine_fields(found: Environment) -> Iterable[tuple[str, str]]:
    machine, size = found.machine, _render.format_bytes
    yield "python", found.executable
    yield "system", machine.system
    memory = "unknown" if machine.memory is None else size(machine.memory)
    free = "" if machine.free_memory is None else f" ({size(machine.free_memory)} free)"
    yield "machine", f"{machine.cpus} CPUs, {memory} memory{free}"
    yield "temporary", f"{size(machine.free_temp)} free in {machine.temp_folder}"
    for gpu in machine.gpus:
        yield "GPU", f"{gpu.name}, {size(gpu.memory)}, driver for CUDA {machine.driver}"
    if not machine.gpus:
        yield "GPU", "no NVIDIA GPU seen" + ("" if machine.driver is None else f" (driver for CUDA {machine.driver})")


def _package_row(package: Package) -> list[str]:
    return [package.name, package.version or "-", f"BROKEN: {package.problem}" if package.problem else package.purpose]


def _backend_fields(found: Environment) -> Iterable[tuple[str, str]]:
    yield "onnx", f"opset {found.onnx_opset}, IR version {found.onnx_ir}" if found.onnx_opset else "does not work"
    for runtime in found.backends:
        of = f" (package {runtime.package})" if runtime.package else ""
        yield f"backend {runtime.name}", f"{_backend(runtime)}{of}"


def _backend(runtime: Runtime) -> str:
    if not runtime.works:
        return runtime.problem or "not tried, since onnx does not work"
    limits = f", opset {runtime.newest_opset}, IR version {runtime.newest_ir}" if runtime.newest_opset else ""
    providers = f"; providers {', '.join(runtime.providers)}" if runtime.providers else ""
    return f"{runtime.version} works{limits}{providers}"


def _plugin_fields(found: Environment) -> Iterable[tuple[str, str]]:
    own = [plugin for plugin in found.plugins if plugin.source != "onnxbench"]
    for plugin in own:
        yield "plugin", f"{plugin.name} ({plugin.source}: {plugin.target})"
    along = f"{len(found.plugins) - len(own)} that come along ('onnxbench plugins list')"
    yield "plugins", along if own else f"{along}; no others (entry points, ONNXBENCH_PLUGIN_PATH)"
