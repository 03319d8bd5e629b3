"""The inputs and outputs of a node as operations name them: by number, by tensor, or as the operator calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxbench.conformity import called
from onnxbench.errors import NotFoundError, did_you_mean
from onnxbench.operations._base import schema_of

if TYPE_CHECKING:
    from onnxbench.draft import Draft
    from onnxbench.graph import NodeRef, Scope


def name_at(scope: Scope, position: int, number: int, *, inputs: bool) -> str:
    """Returns the name of an input or output of a node.

    Raises:
        NotFoundError: The node has none of this number.
    """
    names = scope.nodes[position].input if inputs else scope.nodes[position].output
    if not 0 <= number < len(names) or not names[number]:
        what = "input" if inputs else "output"
        raise NotFoundError(f"{called(scope, position)} has no {what} number {number}")
    return str(names[number])


def input_named(scope: Scope, position: int, wanted: int | str) -> str:
    """Returns the input of a node that is given as its number or name.

    Raises:
        NotFoundError: The node has no such input.
    """
    names = [str(name) for name in scope.nodes[position].input]
    if isinstance(wanted, int) or wanted.isdigit():
        return name_at(scope, position, int(wanted), inputs=True)
    if wanted not in names:
        hint = did_you_mean(wanted, names) or f"It reads {', '.join(filter(None, names))}."
        raise NotFoundError(f"{called(scope, position)} does not read {wanted!r}", hint=hint)
    return wanted


def input_number(draft: Draft, ref: NodeRef, wanted: int | str) -> int:
    """Returns the number of a node's input that is given as that, as a tensor, or as the operator calls it.

    Raises:
        NotFoundError: The operator takes no such input.
    """
    schema = schema_of(draft, ref)
    formals = [formal.name for formal in schema.inputs] if schema is not None else []
    most = schema.max_input if schema is not None else 1 << 30
    if isinstance(wanted, int) or wanted.isdigit():
        number = int(wanted)
    elif wanted in list(ref.node.input):
        number = list(ref.node.input).index(wanted)
    elif wanted in formals:
        number = formals.index(wanted)
    else:
        names = [*formals, *ref.node.input]
        hint = did_you_mean(wanted, names) or f"It has: {', '.join(filter(None, names))}."
        raise NotFoundError(f"node {ref.path} ({ref.node.op_type}) has no input {wanted!r}", hint=hint)
    if not 0 <= number < most:
        raise NotFoundError(f"node {ref.path} ({ref.node.op_type}) has no input number {number}")
    return number
