"""What an operation is: data that says what to change, and the change."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from onnxbench.errors import NotFoundError, UsageError
from onnxbench.operations._files import files_of
from onnxbench.schemas import find_schema, plain_domain
from onnxbench.tensortype import dtype_name, format_shape

if TYPE_CHECKING:
    from onnx import AttributeProto, TensorProto
    from onnx.defs import OpSchema

    from onnxbench.draft import Draft
    from onnxbench.graph import NodeRef, Scope, TensorRef

Effect = Literal["nothing", "rounding", "numerics", "interface"]
"""What an operation may change of what the model computes, as ``--verify`` judges it.

``nothing``: outputs stay equal bit for bit (without graph optimizations). ``rounding``: they stay equal within
rounding. ``numerics``: they may change; the drift is reported, and judged only by a tolerance that the step states.
``interface``: inputs or outputs come, go or change their type; outputs that both sides have are judged like
``rounding``.
"""

_OPERATOR = re.compile(r"(?:(?P<domain>[A-Za-z_][\w.-]*)::)?(?P<op_type>[^:\s]+)")
_SHOWN = 60


@dataclass(frozen=True)
class Operation(ABC):
    """One operation of a recipe: its fields are all there is to it, so it can be written down and replayed.

    A subclass is a frozen dataclass whose fields are strings, numbers, booleans, lists and mappings of them: what
    YAML can spell. Its docstring is its documentation: the first line in ``--help``, an ``Attributes`` section for
    the fields. ``apply`` must leave a valid model or raise a ``BenchError``; it need not undo anything, since a
    failed edit is thrown away whole.

    Class attributes:
        word: What recipes call it (``set_op``) and, with dashes, on the command line (``--set-op``).
        spelling: How the command line spells it in short, fields in braces: ``{at}={to}``. A field that is no string
            is read as a YAML value; what stands in brackets may be left out. Empty: only as a mapping,
            ``'{at: x, to: y}'``.
        expects: How many targets it wants unless the step says otherwise: ``1``, ``all`` (one or more), ``optional``
            (any number), or a comparison such as ``>=2``.
        effect: What it may change (see ``Effect``).
        keeps_types: Whether it changes neither wiring nor types, so that names alone are checked after the step.
        tells_draft: Whether it changes the model by the draft's methods alone, so that the draft knows what has to be
            indexed anew; otherwise everything is.
    """

    word: ClassVar[str] = ""
    spelling: ClassVar[str] = ""
    expects: ClassVar[str] = "1"
    effect: ClassVar[Effect] = "nothing"
    keeps_types: ClassVar[bool] = False
    tells_draft: ClassVar[bool] = False

    def find(self, draft: Draft) -> Sequence[NodeRef] | Sequence[TensorRef] | Sequence[Scope] | None:
        """Returns what the operation is about to change, for the guard of the step; None if that is the model.

        Raises:
            NotFoundError: A selector matches nothing.
        """
        return None

    def files(self, folder: Path) -> Sequence[str]:
        """Returns the files that fields of this operation's own kind name; what all operations have is found anyway.

        These are values given as ``{file: ...}``, selectors as ``@FILE`` and the external data of ONNX text.

        Args:
            folder: What names are relative to.
        """
        return ()

    def require_known(self, draft: Draft) -> None:
        """Raises NotFoundError where what is named outside of the model is not there: a file, a rule.

        A step that may match nothing is asked for this; it may not match nothing because of a typing mistake.
        """
        for name, path in files_of(self, draft.folder).items():
            if not path.exists():
                raise NotFoundError(f"there is no file {name} in {draft.folder}")

    @abstractmethod
    def apply(self, draft: Draft) -> None:
        """Makes the change.

        Raises:
            BenchError: It cannot be made; the message says why and the hint what to do.
        """


@dataclass(frozen=True)
class NodeOperation(Operation):
    """An operation on nodes that a selector names.

    Attributes:
        at: Selector of the nodes.
    """

    at: str

    def find(self, draft: Draft) -> list[NodeRef]:
        """Returns the nodes."""
        return draft.nodes(self.at)


@dataclass(frozen=True)
class TensorOperation(Operation):
    """An operation on tensors that a selector names.

    Attributes:
        at: Selector of the tensors.
    """

    at: str

    def find(self, draft: Draft) -> list[TensorRef]:
        """Returns the tensors."""
        return draft.tensors(self.at)


def spelled_fields(operation: type[Operation], text: str) -> dict[str, str]:
    """Returns the fields of an operation's short form, as text.

    Raises:
        UsageError: The text does not have that form.
    """
    required, _, optional = operation.spelling.rstrip("]").partition("[")
    pattern = _spelling_pattern(required, is_whole=not optional)
    if optional:
        pattern += f"(?:{_spelling_pattern(optional, is_whole=True)})?"
    match = re.fullmatch(pattern, text, re.DOTALL) if operation.spelling else None
    if match is None:
        flag = f"--{operation.word.replace('_', '-')}"
        form = spelled_form(operation)
        short = f"{flag} {form!r} or " if form else ""
        raise UsageError(
            f"{flag} {text!r} is not understood", hint=f"Write {short}{flag} '{field_form(operation)}', as in a recipe."
        )
    return {name: value for name, value in match.groupdict().items() if value is not None}


def spelled_form(operation: type[Operation]) -> str:
    """Returns the short form of an operation as it is shown: ``AT=TO``; empty if it has none."""
    return operation.spelling.replace("{", "").replace("}", "").upper()


def field_form(operation: type[Operation]) -> str:
    """Returns how the fields of an operation are written: ``{at: ..., to: ...}``, those that it needs."""
    names = [each.name for each in fields(operation) if each.default is MISSING and each.default_factory is MISSING]
    return f"{{{', '.join(f'{name}: ...' for name in names or [fields(operation)[0].name])}}}"


def _spelling_pattern(spelling: str, *, is_whole: bool) -> str:
    parts = re.split(r"\{(\w+)\}", spelling)
    pattern = re.escape(parts[0])
    for number in range(1, len(parts), 2):
        is_last = is_whole and number + 2 == len(parts)
        word = ("[^:]*" if parts[number - 1] == ":" else ".*") if is_last else ".+?" if number == 1 else "[^:=]+"
        pattern += f"(?P<{parts[number]}>{word}){re.escape(parts[number + 1])}"
    return pattern


def parse_operator(text: str) -> tuple[str, str]:
    """Returns domain and operator of ``Add`` or ``com.microsoft::Gelu``.

    Raises:
        UsageError: It is neither.
    """
    match = _OPERATOR.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no operator", hint="Write Add, or com.microsoft::Gelu.")
    domain = match["domain"] or ""
    return plain_domain(domain), match["op_type"]


def operator_name(domain: str, op_type: str) -> str:
    """Returns an operator as it is spelled: ``Add``, ``com.microsoft::Gelu``."""
    return f"{domain}::{op_type}" if domain not in ("", "ai.onnx") else op_type


def schema_of(draft: Draft, ref: NodeRef) -> OpSchema | None:
    """Returns the schema of a node's operator in the opset that it is under; None if onnx does not know it."""
    if draft.index.function_of(ref.node) is not None:
        return None
    version = draft.opset(ref.scope, ref.node.domain)
    return find_schema(ref.node.domain, ref.node.op_type, version) if version else None


def describe_attribute(attribute: AttributeProto) -> str:
    """Returns the value of an attribute in a few words."""
    from onnx import helper

    if attribute.ref_attr_name:
        return f"@{attribute.ref_attr_name}"
    if attribute.type == attribute.TENSOR:
        return describe_tensor(attribute.t)
    if attribute.type == attribute.GRAPH:
        return f"a body of {len(attribute.g.node)} nodes"
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        text = repr(value.decode(errors="backslashreplace"))
    elif attribute.type in (attribute.FLOAT, attribute.FLOATS):
        text = str([round_trip(each) for each in value]) if attribute.type == attribute.FLOATS else round_trip(value)
        text = text.replace("'", "")
    elif attribute.type in (attribute.INT, attribute.INTS, attribute.STRINGS):
        text = str(list(value) if attribute.type != attribute.INT else value)
    else:
        text = attribute.AttributeType.Name(attribute.type).lower()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def round_trip(value: float) -> str:
    """Returns the shortest text of a float32."""
    from onnxbench.literals import float32_text

    return float32_text(value)


def describe_tensor(tensor: TensorProto) -> str:
    """Returns type and shape of a tensor: ``float32[3, 4]``."""
    return f"{dtype_name(tensor.data_type)}{format_shape(tuple(tensor.dims))}"
