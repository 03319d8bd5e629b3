"""The JSON Schema of recipes, made of the operations' dataclasses and docstrings."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from typing import Any, Literal, get_args, get_origin, get_type_hints

from onnxbench.operations import OPERATIONS, Effect
from onnxbench.recipe import VERSION


def json_schema() -> dict[str, Any]:
    """Returns a JSON Schema (2020-12) of recipes, for editors."""
    steps = []
    for word, kind in OPERATIONS.items():
        hints, said = get_type_hints(kind), field_docs(kind)
        required = [
            each.name
            for each in dataclasses.fields(kind)
            if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        ]
        fields = {
            each.name: {**schema_of(hints[each.name]), "description": said.get(each.name, "")}
            for each in dataclasses.fields(kind)
        }
        mapping = {"type": "object", "properties": fields, "required": required, "additionalProperties": False}
        forms: list[dict[str, Any]] = [mapping]
        if kind.spelling:
            forms.append({"type": ["string", "number", "boolean"], "description": kind.spelling})
        if fields:
            forms.append({"type": "array", "description": next(iter(fields))})
        if not required:
            forms.append({"type": "null"})
        steps.append(
            {
                "type": "object",
                "description": (kind.__doc__ or "").strip().splitlines()[0],
                "properties": {word: {"anyOf": forms}, **{key: {"$ref": f"#/$defs/{key}"} for key in _STEP_SCHEMA}},
                "required": [word],
                "additionalProperties": False,
            }
        )
    paths = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    include = {
        "type": "object",
        "properties": {"include": paths},
        "required": ["include"],
        "additionalProperties": False,
    }
    listed = {"type": "array", "items": {"anyOf": [*steps, include]}}
    whole = {
        "type": "object",
        "properties": {
            "version": {"const": VERSION},
            "description": {"type": "string"},
            "variables": {"type": "object"},
            "include": paths,
            "steps": {"$ref": "#/$defs/steps"},
        },
        "additionalProperties": False,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "onnxbench edit recipe",
        "$defs": {"variable": {"type": "string", "pattern": r"\$\{[^}]+\}"}, **_STEP_SCHEMA, "steps": listed},
        "anyOf": [whole, {"$ref": "#/$defs/steps"}],
    }


_VARIABLE_SCHEMA: dict[str, Any] = {"$ref": "#/$defs/variable"}
_STEP_SCHEMA: dict[str, Any] = {
    "name": {"type": "string"},
    "expect": {
        "anyOf": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "pattern": r"^(all|optional|any|(>=|<=|==?|>|<)?\s*\d+)$"},
            _VARIABLE_SCHEMA,
        ]
    },
    "changes": {"anyOf": [{"enum": list(get_args(Effect))}, _VARIABLE_SCHEMA]},
    "atol": {"anyOf": [{"type": "number", "minimum": 0}, _VARIABLE_SCHEMA]},
    "rtol": {"anyOf": [{"type": "number", "minimum": 0}, _VARIABLE_SCHEMA]},
}


def schema_of(hint: Any, *, variables: bool = True) -> dict[str, Any]:
    """Returns the JSON Schema of a field of a type.

    Args:
        hint: The type.
        variables: Whether ``${variable}`` may stand in place of a value.
    """
    origin, arguments = get_origin(hint), get_args(hint)

    def or_variable(schema: dict[str, Any]) -> dict[str, Any]:
        return {"anyOf": [schema, _VARIABLE_SCHEMA]} if variables else schema

    if hint is Any:
        return {}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [schema_of(each, variables=variables) for each in arguments]}
    if origin is Literal:
        return or_variable({"enum": list(arguments)})
    if origin in (list, tuple):
        inner = schema_of(arguments[0], variables=variables)
        return {"anyOf": [{"type": "array", "items": inner}, inner]}
    if origin is dict:
        values = schema_of(arguments[1], variables=variables)
        return or_variable({"type": "object", "additionalProperties": values})
    if hint is type(None):
        return {"type": "null"}
    kinds = {bool: "boolean", int: "integer", float: "number"}
    if hint in kinds:
        return or_variable({"type": kinds[hint]})
    return {"type": ["string", "integer", "number", "boolean"]}


def field_docs(kind: type) -> dict[str, str]:
    """Returns what a dataclass's docstring says of each field."""
    _, _, text = (kind.__doc__ or "").partition("Attributes:")
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        match = re.match(r"        (\w+): (.*)", line)
        if match:
            name = match[1]
            found[name] = match[2]
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return found
