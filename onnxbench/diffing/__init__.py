"""What differs between two models, told as a reviewer would: an edit of one attribute is one change.

Tensors and nodes may be called otherwise, nodes may stand in another order, weights may be stored elsewhere or in
another way: none of this hides what is the same (``_matching`` says how), and a name is a change of its own.

    report = onnxbench.diff("before.onnx", "after.onnx", ignore=["metadata"])
    for change in report.changes:
        print(change.sign, change.where, change.what, change.before, change.after)
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from onnxbench.diffing._comparison import Comparison
from onnxbench.diffing._report import KINDS, Change, DiffReport, to_kinds
from onnxbench.drift import BITWISE, Tolerance
from onnxbench.errors import UsageError
from onnxbench.graph import cycles_left

if TYPE_CHECKING:
    from onnxbench.model import Model

__all__ = ["KINDS", "Change", "DiffReport", "diff", "match_tensors", "to_kinds"]


def diff(
    a: Model | str | os.PathLike[str],
    b: Model | str | os.PathLike[str],
    *,
    ignore: Iterable[str] = (),
    atol: float = 0.0,
    rtol: float = 0.0,
    allow_outside: bool = False,
) -> DiffReport:
    """Returns what differs between two models, which stay as they are.

    The stamp that ``edit`` leaves in a model's metadata (``onnxbench.recipe``) is told in the notes and is no change.

    Weights are read only where both sides have the same type and are not the same bytes of one file; then in blocks,
    small ones first. With no tolerance, every bit of a value counts.

    Args:
        a: The first model, or its file.
        b: The second one.
        ignore: Kinds of changes that are not looked at (``KINDS``).
        atol: How far elements of stored values may be apart.
        rtol: The same, relative to the first model's value. A NaN or infinity on one side only always differs.
        allow_outside: For files: follow external data that leaves the model's folder.

    Raises:
        UsageError: A kind is unknown, or a tolerance is not a number from 0 on.
        NotFoundError: There is no such file.
        ModelError: A file is no model, or the nodes of one form a cycle, or make a tensor twice.
        ExternalDataError: Weights that have to be read cannot be had.
    """
    from onnxbench.model import load

    ignored = to_kinds(ignore)
    allowed = _tolerance(atol, rtol)
    first, second = (
        load(side, allow_outside=allow_outside, require_weights=False) if isinstance(side, (str, os.PathLike)) else side
        for side in (a, b)
    )
    names = [str(model.origin.name) if model.origin is not None else "" for model in (first, second)]
    told = [name or which for name, which in zip(names, ("the first model", "the second model"), strict=True)]
    with cycles_left():
        comparison = Comparison(first, second, ignored=ignored, allowed=allowed, names=told)
        found = comparison.run()
    return DiffReport(tuple(found), names[0], names[1], ignored, tuple(comparison.notes))


def match_tensors(a: Model, b: Model) -> dict[str, str]:
    """Returns which tensor of ``b``'s main graph each tensor of ``a``'s is, whatever they are called.

    Tensors without a partner are absent. Weights are not read, but for samples where nodes are alike.

    Raises:
        ModelError: The nodes of a model form a cycle, or make a tensor twice.
    """
    with cycles_left():
        names = ("the first model", "the second model")
        return dict(Comparison(a, b, ignored=(), allowed=BITWISE, names=names).match_main().tensors)


def _tolerance(atol: float, rtol: float) -> Tolerance:
    try:
        allowed = Tolerance(atol, rtol)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return allowed if atol or rtol else BITWISE
