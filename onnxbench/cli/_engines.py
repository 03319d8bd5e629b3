"""Engine files on the command line: what is known of one, and a run of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench.cli import _render
from onnxbench.cli._tables import Column, print_fields, print_heading, print_table
from onnxbench.errors import UsageError

if TYPE_CHECKING:
    from onnxbench.engine import EngineFile
    from onnxbench.feeding import FeedOptions


def print_engine(path: Path, *, nodes: bool, as_json: bool, quiet: bool) -> bool:
    """Prints a file if it is a TensorRT engine, and tells whether it is one."""
    from onnxbench.engine import is_engine, read_engine

    if not is_engine(path):
        return False
    found = read_engine(path)
    if as_json:
        _render.print_json("inspect", found)
        return True
    print_heading(path.name)
    print_fields(_fields(found))
    data = found.record.data if found.record is not None else {}
    if nodes and data.get("nodes"):
        print()
        print_table([Column("ONNX node"), Column("TensorRT layers")],
                    [(node, ", ".join(layers)) for node, layers in data["nodes"].items()])  # fmt: skip
    _render.note(*(f"warning: {problem}" for problem in found.problems), quiet=quiet)
    if found.record is None:
        _render.note(f"there is no {path.name}.json beside it that says what it was built from", quiet=quiet)
    return True


def is_engine(path: Path) -> bool:
    """Tells whether a file is a TensorRT engine."""
    if path.suffix == ".onnx":
        return False
    from onnxbench.engine import is_engine as begins_like_one

    return begins_like_one(path)


def refuse_for_models(**given: object) -> None:
    """Raises UsageError for options of run that are for ONNX models."""
    wrong = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if wrong:
        raise UsageError(f"{', '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} for ONNX models, not for engines")


def run(path: Path, feeds: FeedOptions, *, plugin: list[str] | None, as_json: bool, quiet: bool, **asked: Any) -> None:
    """Runs an engine, prints what that showed, and ends with exit code 1 if it drifts from what was expected."""
    import typer

    from onnxbench.bundles import find_plugins
    from onnxbench.cli._drift import print_drift
    from onnxbench.cli.run import latency_table, stats_table
    from onnxbench.engine import run_engine

    done = run_engine(path, feeds, plugins=find_plugins(plugin or []), **asked)
    _render.note(*_render.chosen(done.choices), quiet=quiet)
    if as_json:
        _render.print_json("run", done)
        raise typer.Exit(0 if done.passed else 1)
    screen = _render.console()
    print(f"{path.name}: an engine of {done.builder}")
    screen.print(stats_table("inputs", done.inputs))
    screen.print(stats_table("outputs", done.outputs))
    if done.latency is not None:
        screen.print(latency_table(done.latency))
    for file in done.saved:
        print(f"wrote {file}")
    if done.drift is not None:
        print_drift(done.drift)
    raise typer.Exit(0 if done.passed else 1)


def _fields(found: EngineFile) -> Iterator[tuple[str, str]]:
    data: dict[str, Any] = dict(found.record.data) if found.record is not None else {}
    builder = data.get("builder", {})
    yield "engine of", f"{found.kind} {found.version or builder.get('version') or '(version unknown)'}"
    yield "size", _render.format_bytes(found.bytes)
    capabilities = found.compute_capabilities or tuple(data.get("compute_capabilities") or ())
    if capabilities:
        yield "built for", "compute capability " + ", ".join(capabilities)
    for section, size in found.sections.items():
        yield "sections", f"{section} {_render.format_bytes(size)}"
    if not data:
        return
    yield "model", f"{data['model']['file'] or 'made in memory'}{' (edited first)' if data['model']['edited'] else ''}"
    if data["model"].get("recipe"):
        yield "recipe", data["model"]["recipe"]
    for kind in ("inputs", "outputs"):
        for port in data[kind]:
            yield kind, f"{port['name']}: {port['dtype']}{port['shape']}"
    for number, profile in enumerate(data["profiles"]):
        for name, sizes in profile.items():
            yield f"profile {number}", f"{name}: {sizes['min']} .. {sizes['opt']} .. {sizes['max']}"
    for name, value in data["options"].items():
        yield "options", f"{name}={value}"
    for plugin in data["plugins"]:
        yield "plugins", f"{plugin['name']} {plugin['version']} ({plugin['sha256'][:12]})"
    yield "types in it", ", ".join(data["types"])
    kinds = sorted(data["kinds"].items(), key=lambda item: (-item[1], item[0]))
    yield "layers", f"{data['layers']} as parsed: " + ", ".join(f"{count} {kind}" for kind, count in kinds[:8])
    seconds = data["seconds"]
    yield (
        "built in",
        f"{seconds['parse'] + seconds['build']:.1f} s, {_render.format_bytes(data['peak_bytes'])} of memory",
    )
