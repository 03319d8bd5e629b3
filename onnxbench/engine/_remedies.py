"""The known ways out of what TensorRT refuses, as steps of an edit: what ``build-trt --apply`` does.

Each goes through ``onnxbench.surgery``, so that it is checked, told of change by change, and can be written down as a
recipe that ``onnxbench edit`` replays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from onnxbench.errors import BenchError, NotFoundError, UsageError
from onnxbench.operations import (
    CountLoops,
    Dequantize,
    FoldConstants,
    Operation,
    RemoveInput,
    ResizeBySizes,
    SetShape,
    SymmetricQuantization,
    TakeBranches,
)
from onnxbench.recipe import Step, step_from_flag
from onnxbench.surgery import edit

if TYPE_CHECKING:
    from onnxbench.engine._diagnosis import Problem
    from onnxbench.model import Model

_REMEDIES: dict[str, Callable[[], list[Operation]]] = {
    "count_loops": lambda: [CountLoops()],
    "dequantize": lambda: [Dequantize()],
    "fold_weights": lambda: [FoldConstants(max_bytes="2G")],
    "resize_sizes": lambda: [ResizeBySizes()],
    "symmetric_quantization": lambda: [SymmetricQuantization()],
    "take_branches": lambda: [FoldConstants(), TakeBranches()],
}


def fix_inputs(words: Sequence[str]) -> list[Step]:
    """Returns the steps that give inputs of a model one value for good.

    Args:
        words: ``sr=16000``, as for ``onnxbench edit --remove-input``.

    Raises:
        UsageError: A word gives no value.
    """
    steps = []
    for word in words:
        step = step_from_flag("remove_input", word)
        assert isinstance(step.operation, RemoveInput)
        if step.operation.value is None:
            raise UsageError(f"--fix {word!r} gives no value", hint="Write --fix sr=16000.")
        steps.append(step)
    return steps


def take_ways_out(
    model: Model, problems: Sequence[Problem], fixed: Mapping[str, Sequence[int]] | None = None
) -> tuple[Model, list[Step], list[str]]:
    """Returns a model with the remedies applied that its problems name, as which steps, and what they did.

    The same model and no steps if there are none. A remedy that does not work here is told of and left out.

    Args:
        model: The model.
        problems: What stands in the way.
        fixed: Inputs that will have one shape only. Where conditions depend on sizes, they get it for good.
    """
    taken: list[Step] = []
    words = []
    for remedy in dict.fromkeys(problem.remedy for problem in problems if problem.remedy):
        shapes = [
            SetShape(f'"{name}":[{",".join(map(str, shape))}]') for name, shape in (fixed or {}).items()
        ]  # fmt: skip
        attempts: list[list[Operation]] = [_REMEDIES[remedy]()]
        if remedy == "take_branches" and shapes:  # shapes come second: branches never taken may not fit them
            attempts.append([*shapes, *_REMEDIES[remedy]()])
        said = ""
        for operations in attempts:
            try:
                done = edit(model, [Step(operation) for operation in operations], stamp=False)
            except NotFoundError as error:
                said = f"{remedy} changes nothing here: {error.message}"
            except BenchError as error:
                more = [f"{error.message}", *error.details]
                said = f"{remedy} does not work here: {'; '.join(more)}"
            else:
                if done.changes:
                    model = done.model
                    taken += [each.step for each in done.steps if each.changes]
                    said = f"applied {remedy}: {len(done.changes)} changes"
                    words += [note for step in done.steps for note in step.notes]
                    break
        words += [said] if said else []
    return model, taken, words
