"""What onnx knows about operators, asked once per operator and version."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from onnxbench.errors import did_you_mean
from onnxbench.tensortype import schema_word

if TYPE_CHECKING:
    from onnx.defs import OpSchema

DEFAULT_OPSET = 21
"""The opset of a specification that names none: every ONNX Runtime since 1.20 runs it."""
DEFAULT_ML_OPSET = 5
"""The version of ai.onnx.ml that came with it."""
DEFAULT_IR_VERSION = 10
"""The IR version that came with it; newer element types need a newer one."""
FIRST_IR_WITH_WEIGHTS_APART = 4
"""From this IR version on, an initializer need not be an input; one that is is a default, which callers may replace."""
FIRST_IR_WITH_FUNCTIONS = 8
"""The IR version that local functions came with."""
_IR_OF_TYPES = {17: 9, 18: 9, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13, 26: 13, 27: 14, 28: 14}


def default_version(domain: str) -> int:
    """Returns the opset version that a domain is imported with when nothing says one."""
    return {"": DEFAULT_OPSET, "ai.onnx.ml": DEFAULT_ML_OPSET}.get(domain, 1)


def ir_version_of_type(number: int) -> int:
    """Returns the IR version that an element type came with; 0 if it was there from the beginning."""
    return _IR_OF_TYPES.get(number, 0)


def ir_version_for(element_types: set[int], opsets: dict[str, int], *, has_overloads: bool) -> int:
    """Returns the IR version that a model needs, at least ``DEFAULT_IR_VERSION``."""
    from onnx import helper

    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    needed = helper.find_min_ir_version_for(imports, ignore_unknown=True)
    of_types = max(map(ir_version_of_type, element_types), default=0)
    return max(DEFAULT_IR_VERSION, needed, of_types, 10 if has_overloads else 0)


def plain_domain(domain: str) -> str:
    """Returns a domain as schemas spell it: ``ai.onnx`` is the empty one."""
    return "" if domain == "ai.onnx" else domain


@cache
def find_schema(domain: str, op_type: str, version: int) -> OpSchema | None:
    """Returns the schema of an operator in an opset version, or None."""
    from onnx import defs

    try:
        return defs.get_schema(op_type, version, plain_domain(domain))
    except (defs.SchemaError, TypeError):  # no such operator, or a version of more than 31 bits
        return None


def same_operator(domain: str, op_type: str, one: int, other: int) -> bool:
    """Tells whether an operator is the same in two versions of its domain; False if onnx does not know it."""
    first, second = (find_schema(domain, op_type, version) for version in (one, other))
    return first is not None and second is not None and first.since_version == second.since_version


@cache
def standard_operators() -> dict[str, frozenset[str]]:
    """Returns the operators of ai.onnx of all versions, each with all attributes that any version of it has."""
    from onnx import defs

    found: dict[str, set[str]] = {}
    for schema in defs.get_all_schemas_with_history():
        if not schema.domain:
            found.setdefault(schema.name, set()).update(schema.attributes)
    return {name: frozenset(attributes) for name, attributes in found.items()}


@cache
def known_domains() -> frozenset[str]:
    """Returns the domains whose operators onnx knows."""
    from onnx import defs

    return frozenset(schema.domain for schema in defs.get_all_schemas())


def describe_unknown(domain: str, op_type: str, version: int) -> tuple[str, str | None]:
    """Returns why an operator of a known domain has no schema, and a hint."""
    from onnx import defs

    schemas = defs.get_all_schemas_with_history()
    home = plain_domain(domain)
    since = sorted(s.since_version for s in schemas if s.name == op_type and s.domain == home)
    if since:
        return (
            f"operator {op_type} came with opset {since[0]}, and the model imports {home or 'ai.onnx'} {version}",
            f"Import opset {since[0]} or a later one.",
        )
    elsewhere = sorted({s.domain for s in schemas if s.name == op_type})
    names = {s.name for s in schemas if s.domain == home and s.since_version <= version}
    hint = did_you_mean(op_type, names)
    if elsewhere:
        hint = f"It is an operator of domain {elsewhere[0] or 'ai.onnx'}: {elsewhere[0] or 'ai.onnx'}.{op_type}."
    same = [name for name in names if name.lower() == op_type.lower()]
    if same:
        hint = f"Did you mean {same[0]!r}?"
    if hint is None and not home:
        whole = f"{'TRT' if 'TRT' in op_type else 'custom'}::{op_type}"
        hint = f"A custom operator has a domain: onnxbench edit IN OUT --set-op 'op:{op_type}={whole}' gives it one."
    return f"there is no operator {op_type!r} in {home or 'ai.onnx'} {version}", hint


def attribute_type(schema: OpSchema, name: str) -> int:
    """Returns the type of an operator's attribute as AttributeProto numbers it, or 0 if it has no such attribute."""
    from onnx import AttributeProto

    known: Any = schema.attributes.get(name)
    return AttributeProto.AttributeType.Value(known.type.name) if known is not None else 0


def takes(schema: OpSchema | None, slot: int, number: int) -> bool:
    """Tells whether an operator takes tensors of an element type as an input; False if onnx does not know it."""
    if schema is None or not schema.inputs:
        return False
    return f"tensor({schema_word(number)})" in schema.inputs[min(slot, len(schema.inputs) - 1)].types
