"""Exporting a PyTorch model: with its provenance, checked, verified against PyTorch, all or nothing.

Around PyTorch's own exporter stand: the model's source (``sources``), what is wanted of sizes and names, a map from
every ONNX value to PyTorch (``_mapping``), what the exporter decided silently (``_findings``), passes over the result,
and a comparison with PyTorch (``_verification``). The file is written by ``onnxbench.writer`` at the end, so a failure
anywhere leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from onnxbench import select
from onnxbench.bundles import Bundle, load_bundles
from onnxbench.draft import Draft
from onnxbench.drift import Tolerance
from onnxbench.errors import OutputError, RefusedResultError, UsageError, did_you_mean
from onnxbench.graph import GraphIndex, NodeRef
from onnxbench.model import Model, from_proto
from onnxbench.operations import OPERATIONS
from onnxbench.opsets import convert_opset, opset_number
from onnxbench.origins import coverage_of
from onnxbench.provenance import EXPORT, SUMMARY, Coverage, fx_values, set_fx_values
from onnxbench.pytorch import marks, operators, require_torch
from onnxbench.pytorch._dynamic import Axes, parse_dynamic, sizes_of
from onnxbench.pytorch._exporters import RawExport, export_program, export_torchscript
from onnxbench.pytorch._findings import Finding, baked_sizes, frozen_findings, input_findings, random_findings
from onnxbench.pytorch._verification import Case, Verifier
from onnxbench.pytorch.rewrite_context import RewriteContext, unused_findings, warned_findings
from onnxbench.pytorch.sources import (
    Leaf,
    Source,
    as_source,
    load_function,
    loaded_file,
    own_errors,
    require_inputs,
    with_dtype,
    with_inputs,
    with_weights,
)
from onnxbench.recipe import Recipe, Step, load_recipe, step_from_flag, step_from_text
from onnxbench.staging import staging_folder
from onnxbench.surgery import edit
from onnxbench.tensortype import format_type
from onnxbench.version import __version__
from onnxbench.writer import Saved, SaveOptions, save

Exporter = Literal["torch.export", "torchscript"]
EXPORTERS: dict[str, Exporter] = {
    "torch.export": "torch.export", "dynamo": "torch.export", "torchscript": "torchscript", "script": "torchscript",
}  # fmt: skip
"""Spellings of the exporters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """How a model is exported.

    Attributes:
        exporter: ``torch.export`` (the default one of PyTorch) or ``torchscript``.
        opset: The opset of the file; None: the exporter's own default.
        dynamic: Open dimensions: ``input:0=batch``, ``input:[batch,3,height,width]``.
        shapes: Example inputs to draw, for a factory that gives none: ``x:[1,3,224,224]:float32``.
        seed: Seed of drawn inputs.
        input_names: New names of the inputs, in order.
        output_names: New names of the outputs, in order.
        state_dict: A file of weights.
        keys: How its keys become those of the module: ``module.=>``.
        dtype: Floating-point type that weights and example inputs are converted to.
        optimize: Let PyTorch's exporter optimize the graph.
        passes: What is done to the result, in order: the word of an operation of ``onnxbench edit``, a step of a
            recipe, a recipe file, or ``file.py:func`` that takes and returns a ``ModelProto``.
        translations: How further PyTorch operators become ONNX: the default exporter's ``custom_translation_table``.
        plugins: Bundles whose operators PyTorch gets and the exporter writes: folders, or names that are known.
        rewrites: What replaces PyTorch code for the export: files, names of rewrites that come along, or what
            ``onnxbench.rewrites`` decorated.
        backend: The backend that rewrites are chosen for: ``default``, ``onnxruntime``, ``tensorrt``, or another one
            that was registered.
        rewrite_config: What rewrites get as ``ctx.config``.
        verify: Compare the result with PyTorch, in ONNX Runtime.
        tolerance: What is allowed there; None: by element type.
        strict: Refuse the result if there is any finding.
        storing: How weights are stored.
    """

    exporter: str = "torch.export"
    opset: int | None = None
    dynamic: Sequence[str] = ()
    shapes: Sequence[str] = ()
    seed: int = 0
    input_names: Sequence[str] = ()
    output_names: Sequence[str] = ()
    state_dict: Path | None = None
    keys: Sequence[str] = ()
    dtype: str | None = None
    optimize: bool = True
    passes: Sequence[str] = ()
    translations: Mapping[Callable[..., Any], Callable[..., Any]] = field(default_factory=dict)
    plugins: Sequence[str] = ()
    rewrites: Sequence[Any] = ()
    backend: str = "default"
    rewrite_config: Mapping[str, Any] = field(default_factory=dict)
    verify: bool = True
    tolerance: Tolerance | None = None
    strict: bool = False
    storing: SaveOptions | None = None


@dataclass(frozen=True, slots=True)
class Exported:
    """What ``export`` did.

    Attributes:
        source: How the model was named.
        exporter: The exporter.
        versions: Of the packages that took part.
        opset: The opset of the file.
        inputs: Its inputs, name and type.
        outputs: Its outputs, likewise.
        nodes: How many nodes it has, those of bodies and functions included.
        provenance: How many of its values map to PyTorch.
        findings: What the exporter decided silently.
        cases: How it compares with PyTorch; empty if that was not asked for.
        passes: What each pass did, in words.
        rewrites: The rewrites that were used, and how often.
        notes: What else a user should know.
        saved: The written files; None where nothing was written.
        program: The ``ExportedProgram`` that the default exporter used; None for TorchScript.
    """

    source: str
    exporter: Exporter
    versions: Mapping[str, str]
    opset: int
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    nodes: int
    provenance: Coverage
    findings: tuple[Finding, ...] = ()
    cases: tuple[Case, ...] = ()
    passes: tuple[str, ...] = ()
    rewrites: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    saved: Saved | None = None
    program: Any = field(default=None, repr=False, compare=False)

    @property
    def passed(self) -> bool:
        """Whether the file agrees with PyTorch in every case; True where that was not asked for."""
        return all(case.passed for case in self.cases)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "source": self.source,
            "exporter": self.exporter,
            "versions": self.versions,
            "opset": self.opset,
            "inputs": [{"name": name, "type": kind} for name, kind in self.inputs],
            "outputs": [{"name": name, "type": kind} for name, kind in self.outputs],
            "nodes": self.nodes,
            "provenance": {**_as_dict(self.provenance), "share": self.provenance.share},
            "findings": self.findings,
            "passed": self.passed,
            "cases": self.cases,
            "passes": self.passes,
            "rewrites": dict(self.rewrites),
            "notes": self.notes,
            "saved": self.saved,
        }


def export(
    source: Source | str | Any, out: str | os.PathLike[str] | None, *, options: ExportOptions | None = None
) -> Exported:
    """Exports a PyTorch model to an ONNX file and returns what was found and written.

    Where the file does not agree with PyTorch, nothing is written (see ``Exported.passed``).

    Args:
        source: How the model is named (see ``onnxbench.pytorch.sources``), a ``Source``, or what a factory returns: a
            module, ``(module, inputs)``, ``(module, args, kwargs)``. The module is put into evaluation mode, and
            changed by ``state_dict`` and ``dtype``.
        out: The file to write; None does everything else.
        options: How.

    Raises:
        MissingDependencyError: torch is not installed.
        UsageError: An option or the source cannot be understood.
        NotFoundError: A file, a factory or an input is not there.
        ExecutionError: The user's code, PyTorch's exporter or a runtime failed.
        UnsupportedError: The exporter cannot do what is asked for.
        RefusedResultError: The result is no valid model, or strictness was asked for and there are findings.
    """
    options = options or ExportOptions()
    exporter = _exporter(options.exporter)
    if options.opset is not None:
        opset_number(options.opset)
    torch = require_torch("export")
    _require_target(out, options)
    passes = [_as_pass(word) for word in options.passes]
    bundles = load_bundles(options.plugins)
    for bundle in bundles:  # before the user's code, which calls them
        operators.torch_operator(bundle)
    prepared = _prepared(source, options)
    if out is not None and prepared.file is not None and _is_same(Path(out), prepared.file):
        raise UsageError(f"{out} is the file that the model comes from")
    leaves = prepared.leaves()
    if options.dynamic and prepared.kind == "program":
        raise UsageError("the sizes of an exported program were fixed by torch.export", hint="Leave --dynamic out.")
    dynamic = parse_dynamic(options.dynamic, leaves)
    sizes = sizes_of(dynamic, leaves)
    # Beside the target, so that the weights are copied within one file system.
    beside = tempfile.TemporaryDirectory() if out is None else staging_folder(Path(out).absolute())
    context = RewriteContext(
        prepared.module if prepared.kind == "module" else None, backend=options.backend, config=options.rewrite_config,
        rewrites=_rewrites(prepared, options), opset=options.opset,
    )  # fmt: skip
    with beside as made:
        raw = _raw_export(exporter, prepared, leaves, Path(made), dynamic, bundles, context, options)
        # From here on the module is the original again: that is what the file is compared with.
        findings = [
            *unused_findings(context, is_strict=raw.is_strict),
            *warned_findings(raw.caught),
            *frozen_findings(raw.frozen, raw.caught, raw.model, is_dynamic=bool(dynamic)),
            *input_findings(leaves, raw.inputs, raw.model, takes_numbers=exporter == "torchscript"),
            *random_findings(raw.model),
        ]
        model, done, said = _finished(raw, [leaves[at].name for at in raw.inputs], passes, options)
        covered = coverage_of(model)
        marks.finish(model.proto)  # last: whatever inlines functions would take the marks away with their bodies
        versions = _versions(torch)
        _sign(model, prepared, exporter, versions, covered, options, context)
        cases: list[Case] = []
        if options.verify:
            verifier = Verifier(
                prepared, leaves, raw.inputs, dynamic, sizes, options.tolerance,
                [bundle.operator() for bundle in bundles],
            )  # fmt: skip
            cases = verifier.run(model)
            if not all(case.passed for case in cases[1:]):
                findings += baked_sizes(model, sizes)
        notes = [*prepared.notes, *said, *_notes(prepared, raw, dynamic)]
        _refuse_if_strict(findings, options)
        saved = None
        if out is not None and all(case.passed for case in cases):
            saved = save(model, out, options=options.storing)
        graph = model.proto.graph
        return Exported(
            prepared.spelling, exporter, versions, _opset(model),
            tuple((info.name, format_type(info.type)) for info in graph.input),
            tuple((info.name, format_type(info.type)) for info in graph.output),
            sum(1 for _ in GraphIndex(model.proto).nodes()), covered, tuple(findings), tuple(cases), tuple(done),
            {name: count for name, count in context.fired.items() if count}, tuple(notes), saved, raw.program,
        )  # fmt: skip


def _exporter(word: str) -> Exporter:
    if word not in EXPORTERS:
        raise UsageError(
            f"there is no exporter {word!r}", hint=did_you_mean(word, EXPORTERS) or "torch.export or torchscript."
        )
    return EXPORTERS[word]


def _raw_export(
    exporter: Exporter, source: Source, leaves: Sequence[Leaf], folder: Path, dynamic: Mapping[str, Axes],
    bundles: Sequence[Bundle], context: RewriteContext, options: ExportOptions,
) -> RawExport:  # fmt: skip
    """Returns what PyTorch's exporter makes of the rewritten model, and what it said that is not of the rewrites."""
    with context:
        rewritten = replace(source, module=context.module) if source.kind == "module" else source
        if exporter == "torch.export":
            raw = export_program(
                rewritten, leaves, folder, opset=options.opset, dynamic=dynamic, optimize=options.optimize,
                translations={**_translations(options, bundles), **context.translations},
            )  # fmt: skip
        else:
            with marks.registered(), operators.symbolics(bundles):
                raw = export_torchscript(rewritten, leaves, folder, opset=options.opset, dynamic=dynamic)
    raw.frozen = [each for each in raw.frozen if not context.hides(each.file, each.line)]
    raw.caught = [each for each in raw.caught if not context.hides(each.filename, each.lineno)]
    return raw


def _finished(
    raw: RawExport, own: Sequence[str], passes: Sequence[tuple[str, _Apply]], options: ExportOptions
) -> tuple[Model, list[str], Sequence[str]]:
    """Returns the export with its names, after all passes and of the opset asked for; what passes did; notes."""
    model = _named(raw, own, options)
    done: list[str] = []
    for word, apply in passes:
        model, said = apply(model)
        done.append(f"{word}: {said}")
    if options.opset is None or _opset(model) == options.opset:
        return model, done, ()
    model, notes = convert_opset(model, options.opset)
    return model, done, notes


def _require_target(out: str | os.PathLike[str] | None, options: ExportOptions) -> None:
    """Raises an error if a file cannot be written where it shall be: at once, and not after minutes of work."""
    if out is None:
        return
    target = Path(out)
    if not target.absolute().parent.is_dir():
        raise OutputError(f"there is no folder {target.parent} to write {target.name} to")
    if target.exists() and not target.is_file():
        raise OutputError(f"{target} exists and is not a regular file")
    if options.state_dict is not None and _is_same(target, options.state_dict):
        raise UsageError(f"{target} is the file that the weights come from")
    given = [options.rewrites] if isinstance(options.rewrites, (str, os.PathLike)) else options.rewrites
    named = [os.fspath(each) for each in (*options.passes, *given) if isinstance(each, (str, os.PathLike))]
    if any(_is_same(target, Path(part)) for word in named for part in (word, word.rpartition(":")[0]) if part):
        raise UsageError(f"{target} is an input; name another file")


def _is_same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _prepared(source: Source | str | Any, options: ExportOptions) -> Source:
    """Returns the source with weights, element type and example inputs as the options say, in evaluation mode."""
    found = as_source(source)
    if options.shapes:
        found = with_inputs(found, options.shapes, seed=options.seed)
    if options.keys and options.state_dict is None:
        raise UsageError("--key says how the keys of a state dict are renamed, and there is no --state-dict")
    if options.state_dict is not None:
        found = with_weights(found, options.state_dict, rules=options.keys)
    if options.dtype is not None:
        found = with_dtype(found, options.dtype)
    require_inputs(found)
    if found.kind != "program" and found.module.training:
        found.module.eval()
    return found.in_order()


def _translations(options: ExportOptions, bundles: Sequence[Bundle]) -> Mapping[Callable[..., Any], Callable[..., Any]]:
    """Returns how operators that PyTorch's exporter does not know become ONNX: marks, plugins, what the options say."""
    return {**marks.translation_table(), **operators.translations(bundles), **options.translations}


def _rewrites(source: Source, options: ExportOptions) -> list[Any]:
    """Returns the rewrites; a file that the model comes from is not run again, for its classes would be others then."""
    given = [options.rewrites] if isinstance(options.rewrites, (str, os.PathLike)) else options.rewrites
    return [
        loaded_file(source.file)
        if source.file is not None and isinstance(each, (str, os.PathLike)) and _is_same(Path(each), source.file)
        else each
        for each in given
    ]


def _notes(source: Source, raw: RawExport, dynamic: Mapping[str, Axes]) -> list[str]:
    notes = list(raw.said)
    if not dynamic and source.kind == "module":
        first = next((leaf for leaf in source.leaves() if getattr(leaf.value, "ndim", 0)), None)
        if first is not None:
            shape = list(first.value.shape)
            notes.append(
                f"every size is fixed, {first.name} is {shape}; --dynamic {first.name}:0=batch leaves its batch open"
            )
    return notes


def _refuse_if_strict(findings: Sequence[Finding], options: ExportOptions) -> None:
    if options.strict and findings:
        raise RefusedResultError(
            f"{len(findings)} finding{'s' if len(findings) > 1 else ''}, and --strict allows none",
            details=[f"{finding.kind}: {finding.sentence()}" for finding in findings],
            hint=next((finding.hint for finding in findings if finding.hint), None),
        )


# ---------------------------------------------------------------- names


def _named(raw: RawExport, own: Sequence[str], options: ExportOptions) -> Model:
    """Returns the export with inputs and outputs called as is wanted; ``own`` are the names that inputs have.

    PyTorch's own ``output_names`` does not look whether another value has that name already; here such a value gets a
    new one. Outputs that are an input, or the same tensor twice, get a node of their own first.
    """
    draft = Draft.of(raw.model)
    _separate_outputs(draft)
    graph = draft.model.proto.graph
    names: dict[str, str] = {}
    for what, infos, wanted in (
        ("input", graph.input, options.input_names or own),
        ("output", graph.output, options.output_names or raw.outputs or _marked_outputs(draft)),
    ):
        if not wanted:
            continue
        if len(wanted) != len(infos):
            if not (options.output_names if what == "output" else options.input_names):
                continue
            raise UsageError(
                f"{len(wanted)} {what} names are given, and the model has {len(infos)} {what}s",
                details=[info.name for info in infos],
            )
        names.update((info.name, name) for info, name in zip(infos, wanted, strict=True))
    if not options.output_names:  # what nobody asked for makes way
        inputs = {names.get(info.name, info.name) for info in graph.input}
        for info in graph.output:
            if names.get(info.name, info.name) in inputs:
                names[info.name] = draft.fresh(draft.main, f"{names.get(info.name, info.name)}_out")
    ports = [names.get(info.name, info.name) for info in (*graph.input, *graph.output)]
    twice = next((name for name in ports if ports.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two inputs or outputs would be called {twice!r}", hint="Give them different names.")
    _rename(draft, {old: new for old, new in names.items() if old != new})
    return draft.model


def _marked_outputs(draft: Draft) -> list[str]:
    """Returns what the outputs are called where each is marked, by a name that no other one has; else nothing."""
    main = draft.main
    makers = [main.producers.get(info.name) for info in main.graph.output]
    found = [select.mark_point(NodeRef(main, at)) if at is not None else None for at in makers]
    names = [point.name for point in found if point is not None]
    return names if len(names) == len(set(names)) == len(makers) else []


def _separate_outputs(draft: Draft) -> None:
    graph = draft.model.proto.graph
    taken = {info.name for info in graph.input} | {tensor.name for tensor in graph.initializer}
    for info in graph.output:
        if info.name in taken:
            name = draft.fresh(draft.main, f"{info.name}_out")
            graph.node.add(op_type="Identity", name=f"node_{name}", input=[info.name], output=[name])
            info.name = name
            draft.touch()
        taken.add(info.name)


def _rename(draft: Draft, names: Mapping[str, str]) -> None:
    """Renames tensors of the main graph; whatever has one of the new names already makes way."""
    if not names:
        return
    wanted = set(names.values())
    for scope in draft.index.scopes:
        if scope is not draft.main and wanted.intersection(scope.tensor_names()):
            clashes = [name for name in scope.tensor_names() if name in wanted and scope.defines(name)]
            draft.rename(scope, {name: draft.fresh(scope, f"{name}_inner") for name in clashes})
    main = draft.main
    moved = dict(names)
    for name in list(main.tensor_names()):
        if name in wanted and name not in names:
            moved[name] = draft.fresh(main, f"{name}_inner")
    for node in main.nodes:
        if not moved.keys().isdisjoint(node.output):
            said = fx_values(node)
            for at, output in enumerate(node.output):
                node.output[at] = moved.get(output, output)
            set_fx_values(node, said)
            for at, output in enumerate(node.output):
                node.output[at] = {new: old for old, new in moved.items()}.get(output, output)
    draft.rename(main, moved)


# ---------------------------------------------------------------- passes

_Apply = Callable[[Model], tuple[Model, str]]


def _as_pass(word: str) -> tuple[str, _Apply]:
    """Returns what a pass does to a model; everything that can be wrong about its spelling is told at once."""
    head, colon, _ = word.rpartition(":")
    if colon and head.endswith(".py"):
        function = load_function(word)
        return word, lambda model: _by_function(model, function, word)
    if word.endswith((".yaml", ".yml", ".json")):
        recipe = load_recipe(Path(word))
    elif word.replace("-", "_") in OPERATIONS:
        recipe = Recipe((step_from_flag(word.replace("-", "_"), "{}"),))
    elif word.split(":")[0].split("=")[0].strip() in OPERATIONS and ":" in word:
        recipe = Recipe((step_from_text(word, source="--pass"),))
    else:
        raise UsageError(
            f"--pass {word!r} is not understood",
            hint=did_you_mean(word, [each.replace("_", "-") for each in OPERATIONS])
            or "Give an operation of 'onnxbench edit' (fold-constants), 'word: {...}', recipe.yaml, or file.py:func.",
        )
    steps = tuple(step if step.expect else _lenient(step) for step in recipe.steps)
    return word, lambda model: _by_recipe(model, Recipe(steps, recipe.description))


def _lenient(step: Step) -> Step:
    """Returns a step that may find nothing to do: a pass is run on whatever was exported."""
    return replace(step, expect="optional") if step.operation.expects in ("all", "optional") else step


def _by_recipe(model: Model, recipe: Recipe) -> tuple[Model, str]:
    edited = edit(model, recipe)
    count = len(edited.changes)
    return edited.model, f"{count:,} change{'' if count == 1 else 's'}"


def _by_function(model: Model, function: Callable[..., Any], word: str) -> tuple[Model, str]:
    import onnx

    from onnxbench import weights

    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for tensor in weights.tensors(proto) if model.has_outside else ():
        if weights.is_outside(tensor):
            where = model.byte_range(tensor)
            assert where is not None
            data = weights.read_bytes(where)
            del tensor.external_data[:]
            tensor.ClearField("data_location")
            tensor.raw_data = data
    with own_errors(word, Path(word.rpartition(":")[0])):
        made = function(proto)
    if made is None or not isinstance(made, onnx.ModelProto):
        raise UsageError(
            f"--pass {word} returned {type(made).__name__}, not a ModelProto",
            hint="End the function with return model.",
        )
    return from_proto(made), f"{len(model.proto.graph.node):,} -> {len(made.graph.node):,} nodes"


# ---------------------------------------------------------------- what the file says of itself


def _sign(
    model: Model,
    source: Source,
    exporter: Exporter,
    versions: Mapping[str, str],
    covered: Coverage,
    options: ExportOptions,
    context: RewriteContext,
) -> None:
    """Writes into the model's metadata who exported it, from what, and how much of it maps to PyTorch."""
    said = {
        "source": source.spelling,
        "class": f"{type(source.module).__module__}.{type(source.module).__qualname__}",
        "exporter": exporter,
        "versions": dict(versions),
        "dynamic": list(options.dynamic),
        "passes": list(options.passes),
        **({"plugins": list(options.plugins)} if options.plugins else {}),
    }
    if options.rewrites:
        said["backend"] = context.backend
        said["rewrites"] = [f"{each.kind} {each.name}" for each in context.used()]
    summary = {key: value for key, value in _as_dict(covered).items() if key != "missing"}
    for key, value in ((EXPORT, said), (SUMMARY, {**summary, "share": round(covered.share, 6)})):
        text = json.dumps(value, ensure_ascii=False)
        known = next((entry for entry in model.proto.metadata_props if entry.key == key), None)
        if known is None:
            model.proto.metadata_props.add(key=key, value=text)
        else:
            known.value = text


def _as_dict(covered: Coverage) -> dict[str, Any]:
    return {name: getattr(covered, name) for name in covered.__dataclass_fields__}


def _versions(torch: Any) -> dict[str, str]:
    found = {"onnxbench": __version__, "torch": str(torch.__version__)}
    for name in ("onnxscript", "onnx", "onnxruntime"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _opset(model: Model) -> int:
    return next((each.version for each in model.proto.opset_import if each.domain in ("", "ai.onnx")), 0)
