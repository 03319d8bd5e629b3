"""What is done to a model before a build: inputs fixed, ways out taken, converted to a precision, calibrated."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxbench.engine._building import Diagnosis, diagnose
from onnxbench.engine._spec import BuildSpec
from onnxbench.errors import NotFoundError, UsageError
from onnxbench.model import Model

if TYPE_CHECKING:
    from onnxbench.bundles import Plugin
    from onnxbench.feeding import FeedOptions
    from onnxbench.recipe import Recipe, Step

_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model as it is to be built.

    Attributes:
        model: The model.
        notes: What was done to it, and what was tried and did not work.
        recipe: The edits that made it of the given one, calibration aside; None if there were none.
        calibration: What it was calibrated with, for the engine's record; None if it was not.
        diagnosis: What TensorRT says of it, if it was asked for what is to be built.
    """

    model: Model
    notes: tuple[str, ...] = ()
    recipe: Recipe | None = None
    calibration: Mapping[str, Any] | None = None
    diagnosis: Diagnosis | None = None


def prepare(
    model: Model,
    *,
    fix: Sequence[str] = (),
    spec_for: Callable[[Model], BuildSpec] | None = None,
    engine: str | None = None,
    plugins: Sequence[Plugin] = (),
    precision: str | None = None,
    keep: Callable[[Model], Sequence[str]] | None = None,
    calibration: FeedOptions | None = None,
) -> Prepared:
    """Returns a model as it is to be built, with the edits that made it so.

    Args:
        model: The model; it is not changed.
        fix: Inputs that get one value for good: ``sr=16000``, as for ``onnxbench edit --remove-input``.
        spec_for: Take the known ways out of what TensorRT refuses, as long as that helps (one problem may hide
            another). It says what would be built of a model, whose inputs may change on the way.
        engine: The TensorRT to ask where what would be built does not fit the model yet.
        plugins: Custom operators.
        precision: Convert it to ``fp16`` or ``bf16`` (the operation ``set_precision``), after all that.
        keep: From the model that is to be converted to selectors of the nodes that stay in their types.
        calibration: Make it an int8 model, with ranges taken from these inputs (see ``onnxbench.quantizing``).

    Raises:
        UsageError: Both a precision and calibration are asked for.
        BenchError: An input cannot be fixed, or the model cannot be converted or calibrated.
    """
    if precision is not None and calibration is not None:
        raise UsageError(
            f"int8 by calibration and {precision} are asked for together, and calibration takes a float32 model",
            hint="Leave one of the two out.",
        )
    steps: list[Step] = []
    words: list[str] = []
    now, recipe, found = model, None, None
    if fix:
        from onnxbench.engine._remedies import fix_inputs
        from onnxbench.surgery import edit

        steps = fix_inputs(fix)
        done = edit(now, steps, stamp=False)
        now, words = done.model, [change.sentence() for change in done.changes]
    if spec_for is not None:
        now, more, said, found = _apply_remedies(now, spec_for, engine, plugins)
        steps, words = [*steps, *more], [*words, *said]
    if precision is not None:
        from onnxbench.operations import SetPrecision
        from onnxbench.recipe import Step

        staying = [*keep(now)] if keep is not None else []
        steps, found = [*steps, Step(SetPrecision(precision, keep=staying or None))], None
    if steps:  # all of them once more, so that the model is the one that the recipe makes
        from onnxbench.recipe import Recipe
        from onnxbench.surgery import edit

        recipe = Recipe(tuple(steps))
        whole = edit(model, recipe)
        now = whole.model
        if precision is not None:
            last = whole.steps[-1]
            words += [f"converted, as 'onnxbench precision' does: {last.changes[0].after}", *last.notes]
    if calibration is None:
        return Prepared(now, tuple(words), recipe, diagnosis=found)
    from onnxbench.quantizing import quantize

    quantized = quantize(now, calibration)
    record = {"data": [os.fspath(each) for each in calibration.sources], **quantized.to_record()}
    return Prepared(quantized.model, (*words, *quantized.sentences()), recipe, record)


def _apply_remedies(
    model: Model, spec_for: Callable[[Model], BuildSpec], engine: str | None, plugins: Sequence[Plugin]
) -> tuple[Model, list[Step], list[str], Diagnosis | None]:
    """Returns a model with the known ways out taken, the steps, what they did, and what stands in the way after them.

    The last is None where what would be built does not fit the model.
    """
    from onnxbench.engine._remedies import take_ways_out

    steps: list[Step] = []
    words: list[str] = []
    for _ in range(_ROUNDS):
        fits = True
        try:
            spec = spec_for(model)
            found = diagnose(model, spec, plugins=plugins)
        except (UsageError, NotFoundError):  # it does not fit the model as it is now; of the result the build says so
            fits, spec = False, BuildSpec(engine=engine)
            found = diagnose(model, spec, plugins=plugins, trial=False)
        edited, more, said = take_ways_out(model, found.problems, _fixed(spec))
        words += said
        if not more:
            return model, steps, words, found if fits else None
        model, steps = edited, [*steps, *more]
    return model, steps, words, None


def _fixed(spec: BuildSpec) -> dict[str, tuple[int, ...]]:
    """Returns the inputs that have the same shape at both ends of every profile, with that shape."""
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for profile in spec.profiles:
        for name, each in profile.items():
            shapes.setdefault(name, set()).update((each.min, each.max))
    return {name: next(iter(found)) for name, found in shapes.items() if len(found) == 1}
