"""What the inputs and outputs of a piece are called.

A piece keeps the tensor names of the model that it is cut from. At a Mark its ends take the mark's name
(``pred_maps.0``), which does not change with the next export, and a user may give names of their own. An inner tensor
that has such a name already steps aside: nobody outside knows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from onnxbench.cut import Piece
from onnxbench.draft import Draft
from onnxbench.errors import NotFoundError, UsageError, did_you_mean


def named_piece(piece: Piece, wanted: Mapping[str, str], labels: Mapping[str, str]) -> Piece:
    """Returns a piece whose inputs and outputs have other names; ``piece.cut`` still says what the model calls them.

    Args:
        piece: The piece.
        wanted: Names that the user gives, by the ends' names now. All are given, or it is an error.
        labels: Names at the marks, by the ends' names now. One that another end has, or that cannot be given, is left.

    Raises:
        UsageError: Two ends would have the same name, or a tensor of a body has it.
        NotFoundError: ``wanted`` names no end of the piece.
    """
    ends = list(dict.fromkeys(boundary.name for boundary in (*piece.inputs, *piece.outputs)))
    for name in wanted:
        if name not in ends:
            hint = did_you_mean(name, ends) or f"Its inputs and outputs: {', '.join(ends[:8])}."
            raise NotFoundError(f"{name!r} is no input or output of the piece", hint=hint)
    draft = Draft.of(piece.model)
    scope = draft.main
    inner = {*scope.producers, *scope.constants, *scope.inputs} - set(ends)
    of_bodies = draft.taken(scope) - inner - set(ends)
    names = {name: wanted.get(name, name) for name in ends}
    notes = []
    for name in ends:
        label = labels.get(name)
        if label and name not in wanted and label != name:
            if label in names.values() or label in of_bodies:
                notes.append(f"{name!r} keeps its name: another tensor is called {label!r}, as its mark says")
            else:
                names[name] = label
    twice = _first_repeated(names.values())
    if twice is not None:
        raise UsageError(f"two inputs or outputs of the piece would be called {twice!r}", hint="Give another name.")
    names = {old: new for old, new in names.items() if old != new}
    for new in names.values():
        if not new or new in of_bodies:
            raise UsageError(f"an input or output cannot be called {new!r}: a body has a tensor of that name")
    if not names:
        return replace(piece, notes=(*piece.notes, *notes)) if notes else piece
    aside = {new: draft.fresh(scope, f"{new}_inner") for new in names.values() if new in inner}
    draft.rename(scope, {**names, **aside})
    notes += [f"inner tensor {old!r} is called {new!r} now" for old, new in aside.items()]
    inputs, outputs = (
        tuple(replace(boundary, name=names.get(boundary.name, boundary.name)) for boundary in side)
        for side in (piece.inputs, piece.outputs)
    )
    return replace(piece, model=draft.model, inputs=inputs, outputs=outputs, notes=(*piece.notes, *notes))


def _first_repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
