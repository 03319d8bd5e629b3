"""The build: what a model needs for it, the job for TensorRT's process, and what becomes of the result."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench.captures import input_ports
from onnxbench.engine._child import run_job
from onnxbench.engine._flavors import Flavor, choose, has_gpu, installed
from onnxbench.engine._profiles import (
    check_profiles,
    is_dynamic,
    parse_profiles,
    propose,
    require_ranks,
    spelled,
)
from onnxbench.engine._record import (
    EngineRecord,
    as_text,
    file_digest,
    load_record,
    model_digest,
    record_path,
)
from onnxbench.engine._spec import BuildSpec, check_spec
from onnxbench.errors import (
    BenchError,
    EngineError,
    ExecutionError,
    ModelError,
    OutputError,
    RefusedResultError,
    UsageError,
)
from onnxbench.graph import GraphIndex
from onnxbench.model import TEXT_FORMATS, Model, load
from onnxbench.schemas import plain_domain
from onnxbench.version import STAMP
from onnxbench.writer import SaveOptions, held_together, save, write_whole

if TYPE_CHECKING:
    from onnxbench.bundles import Plugin
    from onnxbench.engine._diagnosis import Problem
    from onnxbench.graph import NodeRef

    Obstacle = tuple[Problem, NodeRef | None]

_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Built:
    """An engine that was built, or found to be up to date.

    Attributes:
        path: The engine.
        record: What is known of it; ``record_path(path)`` holds the same.
        fresh: False if it was there already, made of the same things, and nothing was done.
        seconds: What it took in all.
        notes: What a user should know.
        warnings: What TensorRT warned of.
    """

    path: Path
    record: EngineRecord
    fresh: bool
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What TensorRT takes and refuses of a model.

    Attributes:
        model: The model's file, ``""`` for one in memory.
        builder: Which TensorRT judged, with its version.
        builds: Whether an engine came out of a trial build; None if the parser refused the model before.
        problems: What stands in the way, in the order of the graph.
        notes: What the reader should know of how this was found out.
    """

    model: str
    builder: str
    builds: bool | None
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether an engine can be built."""
        return bool(self.builds) and not self.problems


def build_engine(
    source: Model | str | os.PathLike[str],
    target: str | os.PathLike[str],
    spec: BuildSpec | None = None,
    *,
    plugins: Sequence[Plugin] = (),
    calibration: Mapping[str, Any] | None = None,
    force: bool = False,
    log: str | os.PathLike[str] | None = None,
    allow_outside: bool = False,
) -> Built:
    """Returns the engine that was built of a model into ``target``, with a JSON record beside it.

    Engine and record appear together when all is done, or not at all. An engine that is there already, built of the
    same model with the same TensorRT, the same spec and the same plugins, is left as it is.

    Args:
        source: A model file, or a model in memory; neither is changed.
        target: Where the engine goes.
        spec: What to build; by default for the shapes that the model states, or proposed ones.
        plugins: Custom operators (``onnxbench.bundles.find_plugins``); their code runs in the process that builds.
        calibration: What an int8 model was calibrated with (``Prepared.calibration``), for the record.
        force: Build even if that changes nothing.
        log: A file for all that TensorRT logs.
        allow_outside: Follow external data that leaves the model's folder.

    Raises:
        UsageError: The spec does not fit the model, or this TensorRT cannot do what it says.
        MissingDependencyError: No TensorRT is installed.
        EngineError: TensorRT refuses the model, fails, or its process dies.
        OutputError: The engine cannot be written.
    """
    started = time.monotonic()
    wanted, out = spec or BuildSpec(), Path(target)
    flavor = choose(wanted.engine)
    model = source if isinstance(source, Model) else load(source, allow_outside=allow_outside)
    _refuse_targets(model, out, log)
    index = GraphIndex(model.proto)
    settled, notes = settle(model, wanted, flavor, index)
    with ModelFile(source, model) as file, ThreadPoolExecutor(1) as pool:
        digest = pool.submit(model_digest, file.path, file.model)
        key_parts = (settled, flavor, plugins)
        found = None if force else _up_to_date(out, digest.result, key_parts)
        if found is not None:
            return Built(out, found, fresh=False, seconds=time.monotonic() - started, notes=tuple(notes))
        heard: list[tuple[str, str]] = []
        try:
            # Waiting for the disk would take a tenth of the time; a record tells of an engine that a power cut cut off.
            with held_together(out, record_path(out).name, flushed=False) as staging:
                job = make_job("build", file, settled, flavor, plugins, staging / out.name, index=index)
                job["timing_cache_target"] = os.fspath(staging / "timing.cache")
                done = run_job(job, lambda severity, text: heard.append((severity, text)))
                _refuse_refusals(model, index, done, flavor)
                record = _record(
                    model, index, out, settled, flavor, plugins, done, _key(digest.result(), *key_parts),
                    digest.result(), edited=isinstance(source, Model), calibration=calibration,
                )  # fmt: skip
                (staging / record_path(out).name).write_text(as_text(record), encoding="utf-8")
                if settled.timing_cache is not None:
                    write_whole(settled.timing_cache, [(staging / "timing.cache").read_bytes()])
        finally:
            if log is not None:
                write_whole(Path(log), [f"[{severity}] {text}\n".encode() for severity, text in heard])
    warnings = tuple(dict.fromkeys(text for severity, text in heard if severity == "warning"))
    loaded = load_record(out)
    assert loaded is not None
    return Built(out, loaded, fresh=True, seconds=time.monotonic() - started, notes=tuple(notes), warnings=warnings)


def diagnose(
    source: Model | str | os.PathLike[str],
    spec: BuildSpec | None = None,
    *,
    plugins: Sequence[Plugin] = (),
    trial: bool = True,
    allow_outside: bool = False,
) -> Diagnosis:
    """Returns all that TensorRT refuses in a model, by node, with the known ways out.

    The parser judges every node at once. Where it has nothing to say a trial build follows, which alone proves that an
    engine can be built; the engine is thrown away.

    Args:
        source: A model file, or a model in memory.
        spec: What would be built.
        plugins: Custom operators.
        trial: Do the trial build.
        allow_outside: Follow external data that leaves the model's folder.

    Raises:
        UsageError: The spec does not fit the model, or this TensorRT cannot do what it says.
        MissingDependencyError: No TensorRT is installed.
    """
    wanted = spec or BuildSpec()
    flavor = choose(wanted.engine)
    model = source if isinstance(source, Model) else load(source, allow_outside=allow_outside)
    index = GraphIndex(model.proto)
    settled, notes = settle(model, wanted, flavor, index)
    name = "" if model.origin is None else os.fspath(model.origin)
    builds, obstacles = attempt_build(source, model, settled, flavor, plugins, trial=trial, index=index)
    problems = tuple(dict.fromkeys(problem for problem, _ in obstacles))
    return Diagnosis(name, f"{flavor.name} {flavor.version}", builds, problems, tuple(notes))


def attempt_build(
    source: Model | str | os.PathLike[str],
    model: Model,
    settled: BuildSpec,
    flavor: Flavor,
    plugins: Sequence[Plugin],
    *,
    trial: bool,
    index: GraphIndex | None = None,
) -> tuple[bool | None, tuple[Obstacle, ...]]:
    """Returns whether an engine comes out (None if the parser refuses the model), and what stands in the way.

    The engine is thrown away.

    Args:
        source: What the model was loaded from, or the model.
        model: The model.
        settled: What is built, with profiles that fit.
        flavor: The TensorRT.
        plugins: Custom operators.
        trial: Build; else only parse.
        index: The model's index, if there is one.
    """
    from onnxbench.engine._diagnosis import Explainer

    known = index if index is not None else GraphIndex(model.proto)
    with ModelFile(source, model) as file, tempfile.TemporaryDirectory(prefix="onnxbench-") as folder:
        heard: list[tuple[str, str]] = []
        target = Path(folder, "trial.engine")
        job = make_job("build" if trial else "parse", file, settled, flavor, plugins, target, index=known)
        try:
            done = run_job(job, lambda severity, text: heard.append((severity, text)))
        except EngineError as error:
            explainer = Explainer(known)
            said = [*heard, *([] if heard else [("error", error.message)])]
            problem = explainer.build_problem(said)
            ref = explainer.named_in(" ".join(text for severity, text in said if "error" in severity))
            if "process" in error.message:  # it died: the log alone does not say so
                problem, ref = (
                    dataclasses.replace(problem, message=error.message),
                    ref or explainer.named_in(error.message),
                )
            return False, ((problem, ref),)
    obstacles = _find_obstacles(model, known, done, tried=trial)
    return bool(done["built"]) if trial and not done["problems"] else None, obstacles


def _find_obstacles(model: Model, index: GraphIndex, done: dict[str, Any], *, tried: bool) -> tuple[Obstacle, ...]:
    """Returns what stood in the way of a build (``tried``), or would as far as is known; nothing if an engine came."""
    from onnxbench.engine._diagnosis import Explainer
    from onnxbench.engine._foresight import foresee

    obstacles = explain_all(index, done)
    if obstacles or done["built"]:
        return obstacles
    explainer = Explainer(index)
    foreseen = tuple(
        (explainer.foreseen(ref, words), ref) for ref, words in foresee(model, index, element_types(model, index))
    )
    if foreseen or not tried:
        return foreseen
    words = " ".join(text for severity, text in done["messages"] if "error" in severity)
    return ((explainer.build_problem(done["messages"]), explainer.named_in(words)),)


def judge(model: Model, *, trial: bool = True, plugins: Sequence[Plugin] = ()) -> None:
    """Asks TensorRT whether it takes a model, for ``onnxbench check``.

    Args:
        model: The model.
        trial: Build it too.
        plugins: Plugins that its custom operators need.

    Raises:
        NodesRefusedError: It refuses nodes.
        ExecutionError: It cannot take the model as it is stated.
    """
    from onnxbench.lint.sessions import NodesRefusedError, Refusal

    try:
        found = diagnose(model, trial=trial, plugins=plugins)
    except BenchError as error:
        raise ExecutionError(error.message, hint=error.hint, details=error.details) from None
    if found.problems:
        raise NodesRefusedError(
            f"{found.builder} refuses the model",
            [Refusal(problem.node, problem.message, problem.way_out) for problem in found.problems],
        )


def creators(engine: str | None = None, plugins: Sequence[Plugin] = ()) -> dict[str, Any]:
    """Returns the plugin creators that a TensorRT has: ``version``, ``creators``, and what became of ``plugins``."""
    flavor = choose(engine)
    return run_job({"task": "describe", "engine": flavor.name, "plugins": _plugin_jobs(plugins)})


def describe_plugin(plugin: Plugin, engine: str | None = None) -> dict[str, Any]:
    """Returns what there is to know of a plugin; its code is run, in TensorRT's process if it is no bundle.

    Raises:
        BenchError: It cannot be loaded.
    """
    shown: dict[str, Any] = {"name": plugin.name, "kind": plugin.kind, "path": plugin.path, "sha256": plugin.digest()}
    if plugin.kind == "bundle":
        from onnxbench.bundles import read_bundles

        operators = [
            {
                "operator": f"{bundle.domain}::{bundle.op}", "version": bundle.version,
                "description": bundle.description, "inputs": bundle.inputs, "outputs": bundle.outputs,
                "attributes": dict(bundle.attributes), "types": bundle.dtypes,
            } for bundle in read_bundles(plugin.path)
        ]  # fmt: skip
        shown |= operators[0] if len(operators) == 1 else {"operators": operators}
    if installed():
        (loaded,) = creators(engine, [plugin])["plugins"]
        if loaded["failure"]:
            failure = loaded["failure"]
            raise EngineError(failure["message"], hint=failure["hint"], details=failure["details"])
        shown["creators"] = [f"{space}::{name} version {version}" for space, name, version in loaded["creators"]]
    return shown


# ---------------------------------------------------------------- before the build


def _refuse_targets(model: Model, out: Path, log: str | os.PathLike[str] | None) -> None:
    read = {model.origin, *model.sources}
    targets = [out, record_path(out), *([Path(log)] if log is not None else [])]
    for target in targets:
        if target.resolve() in read:
            raise UsageError(f"{target} is read, so it cannot be written")
        if not target.parent.is_dir():
            raise OutputError(f"there is no folder {target.parent}", hint="Make it first.")
    if out.suffix.lower() == ".onnx":
        raise UsageError(f"{out} is a model's name, and an engine is to be written", hint="Name it .engine or .plan.")


def settle(
    model: Model, spec: BuildSpec, flavor: Flavor, index: GraphIndex | None = None
) -> tuple[BuildSpec, list[str]]:
    """Returns the spec with profiles that fit the model, and notes on what was chosen."""
    ports = [port for port in input_ports(model.proto.graph) if port.required]
    require_ranks(ports)
    notes = check_spec(spec, flavor, element_types=element_types(model, index), gpu=has_gpu())
    if spec.profiles:
        names = {port.name: port for port in ports}
        for profile in spec.profiles:
            for name in profile:
                if name not in names:
                    parse_profiles([("all", f'"{name}":1')], list(names))
        check_profiles(spec.profiles, ports)
        return spec, notes
    dynamic = [port for port in ports if is_dynamic(port)]
    if not dynamic:
        return spec, notes
    if not spec.propose:
        check_profiles([{}], ports)
    proposed = propose(ports)
    notes += [f"chosen: shapes of {name}: {each}" for name, each in proposed.items()]
    notes.append(f"say otherwise with: {spelled(proposed)}")
    return dataclasses.replace(spec, profiles=(proposed,)), notes


def element_types(model: Model, index: GraphIndex | None = None) -> frozenset[int]:
    """Returns the element types (``TensorProto.DataType``) that a model names: of weights, tensors and casts."""
    from onnxbench import weights
    from onnxbench.tensortype import elem_type

    found = {tensor.data_type for tensor in weights.tensors(model.proto)}
    for scope in (GraphIndex(model.proto) if index is None else index).scopes:
        found.update(elem_type(info.type) for info in scope.stated.values())
        for node in scope.nodes:
            if node.op_type in ("Cast", "QuantizeLinear"):
                found.update(each.i for each in node.attribute if each.name in ("to", "output_dtype"))
    return frozenset(found)


class ModelFile:
    """A model as a file that TensorRT reads: the given one, or one that is written for it and goes again.

    Its parser takes no text, and no weights from outside of the model's folder.
    """

    def __init__(self, source: Model | str | os.PathLike[str], model: Model) -> None:
        self.model = model
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        given = None if isinstance(source, Model) else Path(source)
        if given is not None and given.suffix.lower() not in TEXT_FORMATS and not _reads_outside(model):
            self.path = given.resolve()
            return
        self._folder = tempfile.TemporaryDirectory(prefix="onnxbench-")
        self.path = Path(self._folder.name, "model.onnx")

    def __enter__(self) -> ModelFile:
        if self._folder is not None:
            try:
                save(self.model, self.path, options=SaveOptions())
            except RefusedResultError as error:
                hint = error.hint or "onnxbench check lists what is wrong with it."
                raise ModelError("the model is not valid ONNX", hint=hint, details=error.details) from None
            self.model = load(self.path)
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()


def _reads_outside(model: Model) -> bool:
    """Tells whether weights lie outside of a model's folder, where they were allowed to."""
    from onnxbench import weights

    if not model.allow_outside or not model.has_outside:
        return False
    places = (model.byte_range(tensor) for tensor in weights.tensors(model.proto))
    home = (model.real_folder or model.folder).resolve()
    return any(where is not None and not where.file.resolve().is_relative_to(home) for where in places)


def make_job(
    task: str, file: ModelFile, spec: BuildSpec, flavor: Flavor, plugins: Sequence[Plugin], target: Path,
    *, index: GraphIndex | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Returns a job for TensorRT's process."""
    known = index if index is not None else GraphIndex(file.model.proto)
    return {
        "task": task, "engine": flavor.name, "model": os.fspath(file.path), "target": os.fspath(target),
        "operators": sorted({ref.node.op_type for ref in known.nodes() if not plain_domain(ref.node.domain)}),
        "spec": _with_fixed(spec), "plugins": _plugin_jobs(plugins, embed=spec.embed_plugins), "device": spec.device,
    }  # fmt: skip


def _with_fixed(spec: BuildSpec) -> dict[str, Any]:
    data = spec.for_worker()
    data["timing_cache"] = os.fspath(spec.timing_cache.resolve()) if spec.timing_cache is not None else None
    return data


def _plugin_jobs(plugins: Sequence[Plugin], *, embed: bool = False) -> list[dict[str, Any]]:
    return [{**plugin.job(), "embed": embed} for plugin in plugins]


# ---------------------------------------------------------------- after the build


def explain_all(index: GraphIndex, done: dict[str, Any]) -> tuple[Obstacle, ...]:
    """Returns what the parser refused, each with its node if that is known."""
    from onnxbench.engine._diagnosis import Explainer

    explainer = Explainer(index, creators=done["creators"], supported=done["supported"], plugins=done["plugins"])
    told = [(explainer.problem(said), explainer.locate(said)) for said in done["problems"]]
    return (*told, *(explainer.passed_over([ref for _, ref in told if ref is not None]) if told else ()))


def _refuse_refusals(model: Model, index: GraphIndex, done: dict[str, Any], flavor: Flavor) -> None:
    """Raises EngineError for what stood in the way, and for plugins that did not load and are needed."""
    obstacles = () if done["built"] else _find_obstacles(model, index, done, tried=True)
    problems = list(dict.fromkeys(problem for problem, _ in obstacles))
    if done["problems"]:
        shown = [problem.sentence() for problem in problems[:_SHOWN]]
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        ways = list(dict.fromkeys(f"-> {problem.way_out}" for problem in problems if problem.way_out))
        count = f"{len(problems)} nodes" if len(problems) > 1 else "a node"
        raise EngineError(
            f"{flavor.name} {done['version']} refuses {count} of the model",
            details=[*shown, *more, *ways[:4]],
            hint="'onnxbench build-trt --doctor' lists all of it with the known ways out"
            + (", and --apply takes them." if any(problem.remedy for problem in problems) else "."),
        )
    if problems:
        raise EngineError(
            f"{flavor.name} {done['version']} parses the model and cannot build an engine of it",
            details=[problem.sentence() for problem in problems[:_SHOWN]],
            hint=next((problem.way_out for problem in problems if problem.way_out), None),
        )
    failed = [plugin for plugin in done["plugins"] if plugin["failure"]]
    if failed:
        words = [f"{each['path']}: {each['failure']['message']}" for each in failed]
        raise EngineError("a plugin could not be loaded", details=words, hint=failed[0]["failure"]["hint"])


def _key(digest: str, spec: BuildSpec, flavor: Flavor, plugins: Sequence[Plugin]) -> str:
    data = {
        "model": digest, "spec": spec.to_data(), "builder": [flavor.name, flavor.version],
        "plugins": [plugin.digest() for plugin in plugins], "gpu": has_gpu() if not spec.compute_capabilities else None,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _up_to_date(out: Path, digest: Any, parts: tuple[BuildSpec, Flavor, Sequence[Plugin]]) -> EngineRecord | None:
    record = load_record(out)
    if record is None or not out.is_file() or out.stat().st_size != record.data["engine"].get("bytes"):
        return None
    if record.key != _key(digest(), *parts) or file_digest(out) != record.sha256:
        return None
    return record


def _record(
    model: Model, index: GraphIndex, out: Path, spec: BuildSpec, flavor: Flavor, plugins: Sequence[Plugin],
    done: dict[str, Any], key: str, digest: str, *, edited: bool, calibration: Mapping[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    from onnxbench.tensortype import dtype_name

    origin = model.origin
    try:
        name = None if origin is None else os.path.relpath(origin, out.resolve().parent)
    except ValueError:  # another drive
        name = os.fspath(origin) if origin is not None else None
    stamp = next((entry.value for entry in model.proto.metadata_props if entry.key == STAMP), None)
    network = done["network"]
    made = {each["path"]: each["creators"] for each in done["plugins"]}
    return {
        "engine": {"file": out.name, "bytes": done["bytes"], "sha256": done["sha256"]},
        "model": {"file": name, "sha256": digest, "recipe": stamp, "edited": edited},
        "builder": {"name": flavor.name, "version": done["version"], "gpu": has_gpu()},
        "compute_capabilities": [f"{word[2:-1]}.{word[-1]}" if word.startswith("SM") else word.lower()
                                 for word in spec.compute_capabilities] or None,
        "profiles": [{name: each.to_json() for name, each in profile.items()} for profile in spec.profiles],
        "options": {k: v for k, v in spec.to_data().items() if k not in ("profiles", "compute_capabilities", "engine")},
        "types": sorted(dtype_name(number) for number in element_types(model, index) if number),
        "calibration": calibration,
        "plugins": [
            {"name": plugin.name, "version": plugin.version, "sha256": plugin.digest(),
             "creators": made[plugin.job()["path"]]}
            for plugin in plugins
        ],
        "inputs": network["inputs"], "outputs": network["outputs"],
        "layers": network["layers"], "kinds": network["kinds"], "nodes": network["nodes"],
        "warnings": list(dict.fromkeys(text for severity, text in done["messages"] if severity == "warning")),
        "seconds": {part: round(done[f"{part}_seconds"], 3) for part in ("load", "parse", "build")},
        "peak_bytes": done["peak_bytes"],
        "key": key,
    }  # fmt: skip
