"""What finds out more about a cell that is wrong: command lines that make its model and search it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

from onnxbench.envelope import jsonable
from onnxbench.feeding import FeedOptions
from onnxbench.suite._file import INT8, Export, Limits, Stage, Suite, SuiteModel, in_folder

_AGAINST = {"recorded": "--load-outputs", "torch": "--torch", "model": "--against"}


def file_name(entry: SuiteModel, stage: Stage) -> str:
    """Returns what the file of a converted model is called."""
    return f"{entry.name}.{stage.name}".replace("/", "_") + ".onnx"


def next_steps(suite: Suite, entry: SuiteModel, stage: Stage, kept: Path | None) -> Iterator[str]:
    """Yields the command lines: one that writes the converted model, if it is one, and ``onnxbench bisect``.

    Args:
        suite: The suite.
        entry: The model.
        stage: The pipeline.
        kept: Where the converted model was written already; None if it was not.
    """
    source = str(suite.folder / entry.file)
    said = entry.feed_options(suite.folder)
    kind, word = suite.against(entry, stage)
    is_there = kept is not None or stage.said.precision == INT8
    if entry.is_torch:
        source = f"{entry.name}.onnx".replace("/", "_")
        if not is_there or kind == "place":
            words = [in_folder(entry.file, suite.folder), source, *_export_words(suite, entry)]
            yield shlex.join(["onnxbench", "export", *words])
    suspect = source
    if kept is not None:
        suspect = str(kept)
    elif is_there:  # what it was calibrated with may be in no file of its own
        words = ["--model", entry.name, "--pipeline", stage.name, "--keep", "kept"]
        yield shlex.join(["onnxbench", "suite", str(suite.path), *words])
        suspect = str(Path("kept", file_name(entry, stage)))
    elif stage.edits.steps:
        suspect = file_name(entry, stage)
        yield shlex.join(["onnxbench", "edit", source, suspect, *_edit_words(suite.folder, stage)])
    against = [_AGAINST[kind], word] if kind != "place" else ["--reference-on", word]
    if kind == "place" and stage.converts:
        against = ["--against", source, *against]
    limits = _limit_words(suite.limits(entry, stage))
    yield shlex.join(
        ["onnxbench", "bisect", suspect, "--on", _place_word(stage), *against, *_feed_words(said), *limits]
    )


def _export_words(suite: Suite, entry: SuiteModel) -> list[str]:
    said = entry.export or Export()
    words = ["--no-verify"] + (["--exporter", said.exporter] if said.exporter != Export().exporter else [])
    words += ["--opset", str(said.opset)] if said.opset is not None else []
    options = {"--dynamic": said.dynamic, "--shape": entry.shapes, "--rewrites": suite.rewrites(entry)}
    return words + [part for option, values in options.items() if values for part in (option, *values)]


def _edit_words(folder: Path, stage: Stage) -> list[str]:
    words = [part for recipe in stage.said.recipe for part in ("--recipe", str(folder / recipe))]
    words += [part for name, value in stage.said.variables.items() for part in ("--var", f"{name}={_plain(value)}")]
    return words + [part for step in stage.own for part in ("--step", _plain(step.to_data()))]


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(jsonable(value))


def _feed_words(said: FeedOptions) -> list[str]:
    options = {"--feeds": said.sources, "--shape": said.shapes, "--dim": said.dims, "--val-range": said.ranges}
    words = [part for option, values in options.items() if values for part in (option, *values)]
    words += ["--seed", str(said.seed)] if said.seed else []
    return words + (["--samples", str(said.iterations)] if said.iterations else [])


def _limit_words(limits: Limits) -> list[str]:
    words = {"--atol": limits.atol, "--rtol": limits.rtol}
    return [part for option, value in words.items() if value is not None for part in (option, f"{value:g}")]


def _place_word(stage: Stage) -> str:
    """Returns the place with its level, which is another one by default where ``bisect`` is typed."""
    head, comma, rest = stage.said.on.partition(",")
    if stage.backend == "ort" and ":" not in head and "level=" not in rest:
        head += ":all"
    return f"{head}{comma}{rest}"
