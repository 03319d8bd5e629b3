"""Editing: the steps of a recipe applied to a model, each guarded before and checked after, all or nothing.

Around every step: its guard (does it match as many targets as it expects), the change, then checks: nodes in an
order that works, types found anew where they may have changed, names, arity and attributes against the schemas, and
the full onnx checker unless the step keeps all types. So a mistake is told of the step that made it. With
verification, the model before and after the step runs in ONNX Runtime on the same inputs, graph optimizations off,
and the drift of every output is judged by what the step says that it changes.

A model that has mistakes of its own is edited all the same where the checks can tell them from those of the edit:
only when a check fails, the original is looked at, mended if it can be, and the recipe replayed on that.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench import backends, select
from onnxbench.captures import Port, Value, input_ports
from onnxbench.conformity import Located, find_flaws, inside
from onnxbench.draft import Change, Draft
from onnxbench.drift import BITWISE, DriftReport, Tolerance, compare_all
from onnxbench.errors import BenchError, ExecutionError, GuardError, ModelError, NotFoundError, RefusedResultError
from onnxbench.feeding import FeedOptions, FeedSet, choices_explained, first_set, refuse_to_overwrite
from onnxbench.graph import GraphIndex, NodeRef, Scope, TensorRef, sort_nodes, topological_order
from onnxbench.messages import copy_of
from onnxbench.model import Model, load
from onnxbench.operations import Operation
from onnxbench.pieces import type_sources
from onnxbench.recipe import Recipe, Step, load_recipe
from onnxbench.reversal import save_patch, undo
from onnxbench.validity import find_complaints, make_valid
from onnxbench.version import STAMP
from onnxbench.writer import Saved, SaveOptions, held_back, save, write_whole

if TYPE_CHECKING:
    from onnx import ModelProto, OperatorSetIdProto

    from onnxbench.backends import Session

_SHOWN = 6


@dataclass(frozen=True, slots=True)
class DoneStep:
    """One step that was applied.

    Attributes:
        step: The step.
        matched: How many targets it matched; None if it is about the model as a whole.
        changes: What it did.
        notes: What a user should know of it.
        drift: How the outputs differ from those before the step; None without verification, or where nothing can be
            compared.
        passed: Whether the drift is what the step allows; True without verification.
    """

    step: Step
    matched: int | None
    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()
    drift: DriftReport | None = None
    passed: bool = True

    def to_json(self) -> dict[str, Any]:
        """The step as JSON values."""
        return {
            "step": self.step.to_data(),
            "place": self.step.place,
            "matched": self.matched,
            "changes": self.changes,
            "notes": self.notes,
            "drift": self.drift,
            "passed": self.passed,
        }


@dataclass(frozen=True, slots=True)
class Edited:
    """A model that a recipe was applied to.

    Attributes:
        model: The edited model, valid; the given one is unchanged.
        steps: What each step did.
        recipe: The steps that were applied, as a recipe; those that ``approve`` left out are not in it.
        repairs: What had to be mended, of the model as it was or of the result.
        choices: What was decided about drawn inputs without being told.
        saving: How a step wants the model to be saved; None if none says so.
        stamp: The digest of the recipe, if the model is stamped with it.
    """

    model: Model = field(repr=False)
    steps: tuple[DoneStep, ...]
    recipe: Recipe
    repairs: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    saving: SaveOptions | None = None
    stamp: str = ""

    @property
    def digest(self) -> str:
        """The digest of the recipe."""
        return self.stamp or self.recipe.digest()

    @property
    def changes(self) -> tuple[Change, ...]:
        """All changes, in order."""
        return tuple(change for step in self.steps for change in step.changes)

    @property
    def passed(self) -> bool:
        """Whether every verified step did what it may."""
        return all(step.passed for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """The edit as JSON values."""
        return {
            "digest": self.digest,
            "passed": self.passed,
            "steps": self.steps,
            "repairs": self.repairs,
            "choices": self.choices,
        }


Approve = Callable[[Step, Sequence[Change]], bool]
"""Asked after each step, with what it would change; False leaves the step out."""


def edit(
    source: Model | str | os.PathLike[str],
    recipe: Recipe | Sequence[Step | Operation] | str | os.PathLike[str],
    *,
    variables: Mapping[str, Any] | None = None,
    verify: bool | FeedOptions | Mapping[str, Value] = False,
    approve: Approve | None = None,
    libraries: Sequence[Path] = (),
    stamp: bool = True,
    allow_outside: bool = False,
) -> Edited:
    """Returns a model with the steps of a recipe applied to it: all of them, or none.

    Args:
        source: A model or a model file; neither is changed.
        recipe: A recipe, its steps or bare operations, or a YAML file.
        variables: For a YAML file: values of its variables.
        verify: Run the model before and after each step and judge the drift: on drawn inputs (True), on what the
            options say, or on these values.
        approve: Decides of each step, after it was tried, whether it is kept.
        libraries: Libraries with custom operators, for ``verify``; they are code. Marks need none.
        stamp: Name the recipe's digest in the model's metadata (``onnxbench.recipe``).
        allow_outside: Follow external data, and files that the recipe names, out of their folders.

    Raises:
        GuardError: A step matches other than it expects.
        RefusedResultError: A step makes something that is no valid model; its number and place are named.
        ModelError: The model itself is not valid and cannot be mended.
        ExecutionError: Verification was asked for, and the model as it is does not run.
        BenchError: What else a step may raise: names that are not there, values that do not fit.
    """
    model = source if isinstance(source, Model) else load(source, allow_outside=allow_outside)
    whole = _as_recipe(recipe, variables, allow_outside)
    verifier = _Verifier(model, verify, libraries) if verify is not False else None
    try:
        return _Edit(model, whole, verifier, approve, allow_outside).run(stamp=stamp)
    except RefusedResultError as error:
        mended = _mended(model)
        if mended is None:
            raise
        healthy, words = mended
        try:
            edited = _Edit(healthy, whole, verifier, approve, allow_outside).run(stamp=stamp)
        except RefusedResultError:
            raise error from None
        return replace(edited, repairs=(*words, *edited.repairs))


def _as_recipe(
    recipe: Recipe | Sequence[Step | Operation] | str | os.PathLike[str],
    variables: Mapping[str, Any] | None,
    allow_outside: bool,
) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, (str, os.PathLike)):
        return load_recipe(Path(recipe), variables=variables, allow_outside=allow_outside)
    return Recipe(tuple(each if isinstance(each, Step) else Step(each) for each in recipe))


def _mended(model: Model) -> tuple[Model, list[str]] | None:
    """Returns a model that is not valid as it is, mended, and what was done; None if there was nothing to mend.

    Raises:
        ModelError: It cannot be mended.
    """
    proto = copy_of(model.proto)
    try:
        words = make_valid(proto, complete=model.with_small_weights)
    except RefusedResultError as error:
        raise ModelError(
            "the model is not valid as it is, before any step",
            hint=error.hint or "onnxbench check lists what is wrong with it.",
            details=error.details or (error.message,),
        ) from None
    return (model.derive(proto), words) if words else None


class _Edit:
    """One run of a recipe over a model."""

    def __init__(
        self, model: Model, recipe: Recipe, verifier: _Verifier | None, approve: Approve | None, allow_outside: bool
    ) -> None:
        self._origin = model
        self._recipe = recipe
        self._verifier = verifier
        self._approve = approve
        self._repairs: list[str] = []
        self._done: list[DoneStep] = []
        self._checked = False
        self._draft = Draft.of(model, allow_outside=allow_outside, sources=type_sources())
        self._flaws: set[str] | None = None
        self._own_twins: int | None = None

    def run(self, *, stamp: bool) -> Edited:
        if self._sort():
            self._repairs.append("the nodes were out of order; they are sorted")
        if self._verifier is not None:
            self._verifier.begin()
        for number, step in enumerate(self._recipe.steps, 1):
            kept = self._draft.snapshot() if self._approve is not None else None
            done = self._step(number, step)
            if self._approve is not None and kept is not None and not self._approve(step, done.changes):
                self._draft.restore(kept)
                continue
            if self._verifier is not None:
                done = self._verified(number, done)
            self._done.append(done)
        return self._finish(stamp=stamp)

    def _step(self, number: int, step: Step) -> DoneStep:
        draft, changes, notes = self._draft, len(self._draft.changes), len(self._draft.notes)
        draft.folder = step.folder or Path.cwd()
        with _located(number, step):
            matched = _guard(draft, step)
            if matched == 0:
                return DoneStep(step, 0, ())
            step.operation.apply(draft)
            self._settle(step.operation)
        return DoneStep(step, matched, tuple(draft.changes[changes:]), tuple(draft.notes[notes:]))

    def _settle(self, operation: Operation) -> None:
        draft = self._draft
        if not operation.tells_draft:
            draft.touch()
        self._sort()
        draft.refresh_types()
        for flaw in find_flaws(draft.index, names_only=operation.keeps_types):
            if flaw.sentence() not in self._own_flaws():
                raise RefusedResultError(flaw.sentence(), hint=flaw.hint)
        self._refuse_twins()
        self._checked = False
        if not operation.keeps_types:
            complaints = find_complaints(draft.model.proto, complete=draft.model.with_small_weights)
            if complaints:
                raise _refusal(draft.model, complaints)
            self._checked = True

    def _refuse_twins(self) -> None:
        """Raises RefusedResultError if more nodes than before the edit share a name with another one of their graph."""
        twins = _twins(self._draft.index)
        if twins and self._own_twins is None:
            self._own_twins = sum(count - 1 for _, _, count in _twins(GraphIndex(self._origin.proto)))
        if twins and sum(count - 1 for _, _, count in twins) > (self._own_twins or 0):
            name, scope, count = twins[-1]
            raise RefusedResultError(
                f"{count} nodes{inside(scope)} would be called {name!r}, which ONNX Runtime does not accept",
                hint="Choose another name.",
            )

    def _sort(self) -> bool:
        """Sorts the nodes where they are out of order, and tells whether they were."""
        try:
            if all(topological_order(scope) is None for scope in self._draft.index.scopes):
                return False
        except ModelError as error:
            raise RefusedResultError(error.message, hint=error.hint, details=error.details) from None
        sort_nodes(self._draft.model.proto)
        self._draft.touch()
        return True

    def _own_flaws(self) -> set[str]:
        """Returns what was wrong before the edit: what onnx's checker overlooks, say."""
        if self._flaws is None:
            proto = copy_of(self._origin.proto)
            self._flaws = {flaw.sentence() for flaw in find_flaws(GraphIndex(proto))}
        return self._flaws

    def _verified(self, number: int, done: DoneStep) -> DoneStep:
        assert self._verifier is not None
        self._verifier.prepare()
        with _located(number, done.step):
            drift, passed, notes = self._verifier.judge(self._draft, done.step)
        return replace(done, drift=drift, passed=passed, notes=(*done.notes, *notes))

    def _tell_unread(self) -> None:
        """Notes of steps that added tensors which nothing reads now, after the last step."""
        unread = self._draft.unread() if self._draft.awaited else set()
        for number, done in enumerate(self._done):
            names = [each.where for each in done.changes if each.what == "added" and each.where in unread]
            notes = tuple(f"nothing reads {name!r} after the last step" for name in names)
            self._done[number] = replace(done, notes=(*done.notes, *notes))

    def _finish(self, *, stamp: bool) -> Edited:
        draft = self._draft
        self._tell_unread()
        recipe = replace(self._recipe, steps=tuple(done.step for done in self._done))
        digest = recipe.digest() if stamp and draft.changes else ""
        proto = draft.model.proto
        if digest:
            known = next((entry for entry in proto.metadata_props if entry.key == STAMP), None)
            if known is None:
                proto.metadata_props.add(key=STAMP, value=digest)
            else:
                known.value = f"{known.value} {digest}"
        if not self._checked:
            self._repairs += make_valid(proto, complete=draft.model.with_small_weights)
        choices = self._verifier.choices if self._verifier is not None else ()
        repairs = tuple(dict.fromkeys(self._repairs))
        return Edited(draft.model, tuple(self._done), recipe, repairs, choices, draft.saving, digest)


def _twins(index: GraphIndex) -> list[tuple[str, Scope, int]]:
    """Returns the names that several nodes of one graph have, with the graph and how many they are."""
    found = []
    for scope in index.scopes:
        names = [node.name for node in scope.nodes if node.name]
        if len(set(names)) < len(names):
            found += [(name, scope, count) for name, count in Counter(names).items() if count > 1]
    return found


def _refusal(model: Model, complaints: Sequence[str]) -> RefusedResultError:
    """Returns what onnx has against a model as an error about the node that it means."""
    located = Located(model.proto)
    lines = find_complaints(located.numbered, complete=model.with_small_weights)
    found = located.explain(lines or complaints)
    return RefusedResultError(found.message, details=found.inputs)


def _guard(draft: Draft, step: Step) -> int | None:
    """Returns how many targets a step matches; None if it is about the whole model.

    Raises:
        GuardError: It expects another number.
    """
    try:
        found = step.operation.find(draft)
    except NotFoundError:
        if step.accepts(0):
            step.operation.require_known(draft)
            return 0
        raise
    if found is None:
        return None
    if not step.accepts(len(found)):
        expected = step.expect or step.operation.expects
        words = {"all": "one or more", "1": "one"}.get(expected, expected)
        kind = "node" if found and isinstance(found[0], NodeRef) else "tensor" if found else "target"
        listed = [_path(ref) for ref in found[:_SHOWN]]
        if len(found) > _SHOWN:
            listed.append(f"... and {len(found) - _SHOWN} more")
        hint = "'expect: optional' lets a step match nothing."
        if found:
            hint = "'expect: all' takes all of them; a selector that is narrower or wider names others."
        raise GuardError(
            f"it matches {len(found)} {kind}{'s' if len(found) != 1 else ''}, and expects {words}",
            hint=hint,
            details=listed,
        )
    return len(found)


def _path(ref: NodeRef | TensorRef | Scope) -> str:
    return f"{ref.path} ({ref.node.op_type})" if isinstance(ref, NodeRef) else ref.path


@contextmanager
def _located(number: int, step: Step) -> Iterator[None]:
    """Puts the number and place of a step before the message of an error within."""
    try:
        yield
    except BenchError as error:
        where = f", {step.place}" if step.place and not step.place.startswith("--") else ""
        error.message = f"step {number} ({step.title()}{where}): {error.message}"
        error.args = (error.message,)
        raise


class _Verifier:
    """Runs a model before and after each step, on the same inputs."""

    def __init__(
        self, model: Model, said: bool | FeedOptions | Mapping[str, Value], libraries: Sequence[Path] = ()
    ) -> None:
        self._origin = model
        self._setup = backends.Options("none", libraries=tuple(libraries))
        self._options = said if isinstance(said, FeedOptions) else FeedOptions()
        first = FeedSet(dict(said)) if isinstance(said, Mapping) else first_set(model, self._options)
        self._given: dict[str, Value] = dict(first.feeds)
        self.choices = first.choices
        self.begin()

    def begin(self) -> None:
        """Starts with the model as it was."""
        self._model = self._origin
        self._feeds, self._renamed = dict(self._given), dict[str, str]()
        self._outputs: dict[str, Value] | None = None

    def prepare(self) -> None:
        """Runs the model as it is, if that was not done.

        Raises:
            ExecutionError: It does not run.
        """
        if self._outputs is not None:
            return
        hint = None
        try:
            session = self._open(self._model)
            if not self._options.sources:
                hint = "Its inputs were drawn; --shape and --val-range say how, and --feeds FILE gives others."
            try:
                with choices_explained(self.choices):
                    self._outputs = session.run(self._feeds)
            finally:
                session.close()
        except ExecutionError as error:
            error.message = f"the model does not run as it is, so no step can be verified: {error.message}"
            error.hint = error.hint or hint
            raise

    def judge(self, draft: Draft, step: Step) -> tuple[DriftReport | None, bool, list[str]]:
        """Returns how the outputs differ from those before the step, and whether they may."""
        notes: list[str] = []
        moved = {self._renamed.get(first, first): now for first, now in draft.renamed.items()}
        assert self._outputs is not None
        feeds = {moved.get(name, name): value for name, value in self._feeds.items()}
        feeds, drawn = _fitting(draft.model, feeds, self._options, notes)
        if drawn:  # other sizes than before: the model before the step sees them, too, if it takes them
            back = {now: then for then, now in moved.items()}
            old, redrawn = _fitting(self._model, {back.get(name, name): value for name, value in feeds.items()})
            self._outputs = {} if redrawn else self._run(self._model, old)
            if redrawn:
                notes.append("there is nothing to compare with: the model before the step takes no such inputs")
        before = {moved.get(name, name): value for name, value in self._outputs.items()}
        try:
            now = self._run(draft.model, feeds)
        except ExecutionError as error:
            error.message = f"the model runs before this step, and not after it: {error.message}"
            raise
        shared = {name: value for name, value in before.items() if name in now}
        gone = sorted(set(before) - set(now))
        if gone and step.effect != "interface":
            notes.append(f"outputs {', '.join(map(repr, gone))} are gone")
        drift = compare_all(
            shared, now, tolerance=_tolerance(step), check_dtype=step.effect not in ("interface", "numerics")
        )
        self._outputs, self._feeds, self._renamed = now, feeds, dict(draft.renamed)
        self._model = draft.model.derive(draft.snapshot()[0])
        judged = step.effect != "numerics" or step.atol is not None or step.rtol is not None
        passed = drift.passed or not judged or not shared
        return (drift if shared else None), passed and (not gone or step.effect == "interface"), notes

    def _open(self, model: Model) -> Session:
        return backends.open_session(_without_marks(model), options=self._setup)

    def _run(self, model: Model, feeds: Mapping[str, Value]) -> dict[str, Value]:
        session = self._open(model)
        try:
            return session.run(feeds)
        finally:
            session.close()


def _tolerance(step: Step) -> Tolerance | None:
    if step.atol is not None or step.rtol is not None:
        return Tolerance(step.atol or 0.0, step.rtol or 0.0)
    return BITWISE if step.effect == "nothing" else None


def _without_marks(model: Model) -> Model:
    """Returns a model in which Identity stands for each Mark: it passes on what it is given, and no runtime has it."""
    if not any(entry.domain in select.MARK_DOMAINS for entry in _imports(model.proto)):
        return model
    proto = copy_of(model.proto)
    for ref in GraphIndex(proto).nodes():
        if select.mark_point(ref) is not None:
            ref.node.domain, ref.node.op_type = "", "Identity"
            ref.node.ClearField("attribute")
    return model.derive(proto)


def _imports(proto: ModelProto) -> Iterator[OperatorSetIdProto]:
    yield from proto.opset_import
    for function in proto.functions:
        yield from function.opset_import


def _fitting(
    model: Model, feeds: Mapping[str, Value], options: FeedOptions | None = None, notes: list[str] | None = None
) -> tuple[dict[str, Value], bool]:
    """Returns the feeds that a model takes, and whether any had to be drawn for their size.

    They are converted where the model wants another type. Where there are none, or where it wants another size, all
    are drawn anew.
    """
    ports = input_ports(model.proto.graph)
    found: dict[str, Value] = {}
    for port in ports:
        if port.name in feeds:
            value = feeds[port.name]
            if port.dtype and hasattr(value, "astype") and backends.dtype_of(value) != port.dtype:
                value = value.astype(_numpy_dtype(port.dtype))
            found[port.name] = value
    resized = [port.name for port in ports if port.name in found and not _fits(port, found[port.name])]
    missing = [port.name for port in ports if port.required and port.name not in found]
    if resized or missing:
        drawn = first_set(model, FeedOptions(ranges=options.ranges, seed=options.seed) if options else None).feeds
        found.update((name, drawn[name]) for name in (drawn if resized else missing))
    if missing and notes is not None:
        notes.append(f"new inputs got drawn values: {', '.join(map(repr, missing))}")
    if resized and notes is not None:
        notes.append(f"inputs were drawn anew for the new sizes of {', '.join(map(repr, resized))}")
    return found, bool(resized)


def _fits(port: Port, value: Value) -> bool:
    """Tells whether a value has the fixed sizes of an input."""
    if port.shape is None or not hasattr(value, "shape"):
        return True
    return len(port.shape) == len(value.shape) and all(
        not isinstance(size, int) or size == given for size, given in zip(port.shape, value.shape, strict=True)
    )


def _numpy_dtype(number: int) -> Any:
    from onnx import helper

    return helper.tensor_dtype_to_np_dtype(number)


@dataclass(frozen=True, slots=True)
class EditedFile:
    """What ``edit_file`` did.

    Attributes:
        edited: The edit.
        saved: The written files; None for a dry run, or where verification failed.
        recipe: The file that the recipe was written to, or None.
        undo: The file with the way back, or None.
    """

    edited: Edited
    saved: Saved | None
    recipe: Path | None = None
    undo: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {**self.edited.to_json(), "saved": self.saved, "recipe": self.recipe, "undo": self.undo}


def edit_file(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    recipe: Recipe | Sequence[Step | Operation] | str | os.PathLike[str],
    *,
    variables: Mapping[str, Any] | None = None,
    verify: bool | FeedOptions | Mapping[str, Value] = False,
    approve: Approve | None = None,
    libraries: Sequence[Path] = (),
    stamp: bool = True,
    save_recipe: str | os.PathLike[str] | None = None,
    save_undo: str | os.PathLike[str] | None = None,
    options: SaveOptions | None = None,
    allow_outside: bool = False,
) -> EditedFile:
    """Applies a recipe to a model file and writes the result (see ``edit``).

    Args:
        source: The model file.
        out: The file to write; None writes nothing.
        recipe: As for ``edit``.
        variables: As for ``edit``.
        verify: As for ``edit``. Where a step fails it, nothing is written.
        approve: As for ``edit``.
        libraries: As for ``edit``.
        stamp: As for ``edit``.
        save_recipe: Write the steps to this YAML file, variables and includes filled in.
        save_undo: Write the way back to this file (see ``onnxbench.reversal``).
        options: How weights are stored. Where they leave it open, a step such as ``externalize`` may say it.
        allow_outside: As for ``edit``.

    Raises:
        BenchError: As ``edit`` and ``onnxbench.writer.save`` do; nothing was written then.
    """
    whole = _as_recipe(recipe, variables, allow_outside)
    model = load(source, allow_outside=allow_outside)
    read = [str(path) for path in (*whole.read_files(), *libraries)]
    read += verify.sources if isinstance(verify, FeedOptions) else ()
    refuse_to_overwrite(model, read, out, save_recipe, save_undo)
    edited = edit(
        model, whole, verify=verify, approve=approve, libraries=libraries, stamp=stamp, allow_outside=allow_outside
    )  # fmt: skip
    if out is None or not edited.passed:
        return EditedFile(edited, None)
    is_open = options is None or (options.external is None and not options.share_weights)
    with held_back(save_recipe) as steps_file, held_back(save_undo) as patch_file:
        if steps_file is not None:
            write_whole(steps_file, (edited.recipe.to_yaml().encode(),))
        if patch_file is not None:
            save_patch(patch_file, model, edited.model)
        saved = save(edited.model, out, options=(edited.saving if is_open else None) or options, is_valid=True)
    written, patch = (Path(each) if each is not None else None for each in (save_recipe, save_undo))
    return EditedFile(edited, saved, written, patch)


def undo_file(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    patch: str | os.PathLike[str],
    *,
    options: SaveOptions | None = None,
    allow_outside: bool = False,
) -> Saved | None:
    """Writes the model before an edit, of the edited file and the patch that ``edit_file`` saved with it.

    Args:
        source: The edited model file, as it was written.
        out: The file to write; None only looks whether the patch leads back, and returns None.
        patch: The patch.
        options: How weights are stored.
        allow_outside: Follow external data that leaves the model's folder.

    Raises:
        BenchError: As ``onnxbench.reversal.undo`` and ``onnxbench.writer.save`` do; nothing was written then.
    """
    after = load(source, allow_outside=allow_outside)
    refuse_to_overwrite(after, (os.fspath(patch),), out)
    before = undo(after, patch)
    return save(before, out, options=options) if out is not None else None
