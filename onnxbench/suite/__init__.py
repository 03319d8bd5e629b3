"""A regression suite: models in a YAML file go through pipelines, and each pair is a cell of a table.

    found = onnxbench.run_suite(["suite.yaml"])
    for cell in found.cells:
        print(cell.model, cell.pipeline, cell.status, cell.message)
    print(onnxbench.suite.support_table(found))

A cell is converted, checked, run, and compared with what is right. Cells run one after the other, and what fails in one
stays there. ``_file`` says what a suite file is, ``_cells`` how a cell is run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from onnxbench import backends
from onnxbench.bundles import load_bundles, operators_of, registered
from onnxbench.errors import NotFoundError, OutputError, UsageError, did_you_mean
from onnxbench.suite._cells import ModelRuns, Settings, can_be_loaded, chosen, weights_of
from onnxbench.suite._file import Limits, Pipeline, Suite, SuiteModel, load_suite
from onnxbench.suite._next import file_name
from onnxbench.suite._reports import junit_report, support_table
from onnxbench.suite._results import STATUSES, Cell, Status, SuiteResult, SuiteTable
from onnxbench.suite._schema import suite_schema
from onnxbench.writer import require_place

__all__ = [
    "STATUSES", "Cell", "Limits", "Pipeline", "Status", "Suite", "SuiteModel", "SuiteResult", "SuiteTable",
    "junit_report", "load_suite", "require_targets", "run_suite", "suite_schema", "support_table",
]  # fmt: skip


def run_suite(
    suites: Sequence[Suite | str | os.PathLike[str]] | Suite | str | os.PathLike[str],
    *,
    models: Sequence[str] = (),
    pipelines: Sequence[str] = (),
    on: Sequence[str] = (),
    time: int = 0,
    warmup: int = 5,
    isolate: float = 0.0,
    plugins: Sequence[str] = (),
    keep: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    allow_outside: bool = False,
    heard: Callable[[Cell, int, int], None] | None = None,
) -> SuiteResult:
    """Returns how the models of suites come out of their pipelines: a table for each suite, a cell for each pair.

    Args:
        suites: Suite files, or suites that were read.
        models: Patterns (``resnet*``); only models whose name one of them matches. None: all.
        pipelines: Patterns of pipelines, likewise.
        on: Backends (``ort``, ``trt``); only pipelines that run on one of them. None: all.
        time: Time so many runs of each cell.
        warmup: Runs before them.
        isolate: Seconds that opening a model, and each run, may take in a process of its own, which may crash; 0 runs
            everything in this process.
        plugins: Custom operators: bundles by name or folder; their code is run.
        keep: A folder that the converted models of cells that are wrong are written to; it is made.
        dry_run: Run nothing: the cells are those that would be run.
        allow_outside: Follow external data that leaves a model's folder, and what recipes include out of theirs.
        heard: Is told of each cell when it is done, its number from 1, and how many there are.

    Raises:
        NotFoundError: A suite, or a file that it names, is not there; or a pattern matches nothing in any suite.
        SpecError: A suite has a mistake.
        UsageError: There is no such backend, a suite is named twice, times are asked for of processes of their own, or
            ``keep`` would have a file in the place of one that is read.
        OutputError: The folder for ``keep`` cannot be made.
    """
    if time and isolate:
        raise UsageError("runs in processes of their own are not timed", hint="Leave one of them out.")
    given = [suites] if isinstance(suites, (Suite, str, os.PathLike)) else suites
    read = [
        each if isinstance(each, Suite) else load_suite(os.fspath(each), allow_outside=allow_outside) for each in given
    ]
    _refuse_twice([suite.path for suite in read])
    wanted = {backends.backend(name).name if backends.is_known_backend(name) else name for name in on}
    narrowed = [_narrowed(suite, models, pipelines, wanted) for suite in read]
    _require_some(read, narrowed, models, pipelines, wanted)
    bundles = load_bundles(plugins)
    options = backends.Options(operators=operators_of(bundles), isolate=isolate)
    if keep is not None:
        _refuse_kept(read, Path(keep))
    kept = None if keep is None else _made(Path(keep))
    settings = Settings(time, warmup, options, allow_outside, kept, tuple(plugins))
    total, done = sum(len(suite.models) * len(suite.stages) for suite in narrowed), 0
    jobs = [(suite, entry) for suite in narrowed for entry in suite.models]
    if not dry_run:  # what has no weights, say, is told before hours of runs
        jobs.sort(key=lambda job: can_be_loaded(job[0], job[1], settings))
    cells: dict[tuple[Path, str], list[Cell]] = {}
    with registered(bundles):
        for suite, entry in jobs:
            of_model = cells.setdefault((suite.path, entry.name), [])
            runs = ModelRuns(suite, entry, settings)
            try:
                for stage in suite.stages:
                    of_model.append(runs.planned(stage) if dry_run else runs.cell(stage))
                    done += 1
                    if heard is not None and not dry_run:
                        heard(of_model[-1], done, total)
            finally:
                runs.close()
    tables = ((suite, [cell for entry in suite.models for cell in cells[suite.path, entry.name]]) for suite in narrowed)
    return SuiteResult(tuple(_table(suite, of_suite) for suite, of_suite in tables))


def require_targets(suites: Sequence[Suite], *targets: Path | None) -> None:
    """Raises an error if a report cannot be written, or would be written over what a suite reads: before hours of runs.

    Raises:
        UsageError: A file is read by a suite, or is to be written twice.
        OutputError: There is no folder for it, or something else has its name.
    """
    if not any(targets):
        return
    read = _read(suites)
    seen: set[Path] = set()
    for target in filter(None, targets):
        place = target.resolve()
        if place in read or place in seen:
            raise UsageError(f"{target} is {'to be written twice' if place in seen else 'an input'}; name another file")
        require_place(target)
        seen.add(place)


def _read(suites: Sequence[Suite]) -> set[Path]:
    """Returns the files that suites read, those with weights of their models among them."""
    named = {file.resolve() for suite in suites for file in suite.read_files()}
    return named | {file.resolve() for model in named for file in weights_of(model)}


def _refuse_kept(suites: Sequence[Suite], keep: Path) -> None:
    """Raises UsageError if a converted model would be written over what a suite reads."""
    read = _read(suites)
    for suite in suites:
        for kept in (keep / file_name(model, stage) for model in suite.models for stage in suite.stages):
            if kept.resolve() in read:
                raise UsageError(f"{kept} is an input, and a converted model is kept by that name", hint="--keep kept")


def _refuse_twice(files: Sequence[Path]) -> None:
    seen: set[Path] = set()
    for file in files:
        if file.resolve() in seen:
            raise UsageError(f"the suite {file} is named twice", hint="Its cells would run twice; name it once.")
        seen.add(file.resolve())


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror}") from None
    return folder


def _table(suite: Suite, cells: Sequence[Cell]) -> SuiteTable:
    names = tuple(model.name for model in suite.models)
    said = {stage.name: stage.text for stage in suite.stages}
    return SuiteTable(suite.path, suite.title, suite.description, names, said, tuple(cells))


def _narrowed(suite: Suite, models: Sequence[str], pipelines: Sequence[str], on: set[str]) -> Suite:
    """Returns a suite with the models and pipelines that are wanted."""
    names = set(chosen([model.name for model in suite.models], models))
    stages = set(chosen([stage.name for stage in suite.stages], pipelines))
    return replace(
        suite,
        models=tuple(model for model in suite.models if model.name in names),
        stages=tuple(stage for stage in suite.stages if stage.name in stages and (not on or stage.backend in on)),
    )


def _require_some(
    suites: Sequence[Suite], narrowed: Sequence[Suite], models: Sequence[str], pipelines: Sequence[str], on: set[str]
) -> None:
    """Raises NotFoundError where a pattern or backend is not met in any suite, or there are no cells at all."""
    for what, patterns, known in (
        ("model", models, [model.name for suite in suites for model in suite.models]),
        ("pipeline", pipelines, [stage.name for suite in suites for stage in suite.stages]),
        ("pipeline on", sorted(on), [stage.backend for suite in suites for stage in suite.stages]),
    ):
        for pattern in patterns:
            if not chosen(known, [pattern]):
                names = list(dict.fromkeys(known))
                hint = did_you_mean(pattern, names) or f"There are: {', '.join(names[:12])}."
                raise NotFoundError(f"no suite has a {what} {pattern!r}", hint=hint)
    if not any(suite.models and suite.stages for suite in narrowed):
        raise NotFoundError("no suite has a cell that all of these filters let through")
