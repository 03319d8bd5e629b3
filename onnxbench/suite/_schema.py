"""The JSON Schema of suite files, made of the dataclasses that they are read into and of their docstrings."""

from __future__ import annotations

import dataclasses
from typing import Any, get_origin, get_type_hints

from onnxbench.recipeschema import field_docs, schema_of
from onnxbench.suite._file import SuiteDocument, SuiteModel, inner_kind


def suite_schema() -> dict[str, Any]:
    """Returns a JSON Schema (2020-12) of suite files, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "onnxbench suite",
        **_object(SuiteDocument),
    }


def _object(kind: type[Any]) -> dict[str, Any]:
    """Returns the schema of a mapping of a dataclass's fields."""
    hints, said = get_type_hints(kind), field_docs(kind)
    fields = dataclasses.fields(kind)
    required = [
        each.name
        for each in fields
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    ]
    return {
        "type": "object",
        "properties": {
            each.name: {**_field(hints[each.name]), "description": said.get(each.name, "")} for each in fields
        },
        **({"required": required} if required else {}),
        "additionalProperties": False,
    }


def _field(hint: Any) -> dict[str, Any]:
    inner = inner_kind(hint)
    if inner is None:
        return schema_of(hint, variables=False)
    if get_origin(hint) is tuple:
        plain = [{"type": "string"}] if inner is SuiteModel else []
        return {"type": "array", "minItems": 1, "items": {"anyOf": [*plain, _object(inner)]}}
    if get_origin(hint) is dict:
        return {"type": "object", "additionalProperties": {"anyOf": [_object(inner), {"type": "null"}]}}
    return _object(inner)
