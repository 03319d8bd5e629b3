"""The words of the text syntax, and numbers that the printer and the reader share."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from onnxbench import weights
from onnxbench.tensortype import schema_word

MAX_BODY_DEPTH = 31
"""Bodies inside bodies: protobuf refuses messages nested more than 100 deep, and each body takes three levels."""
MAX_TYPE_DEPTH = 16

FLOAT, INT, STRING, TENSOR, GRAPH, FLOATS, INTS, STRINGS = 1, 2, 3, 4, 5, 6, 7, 8
TENSORS, GRAPHS, SPARSE, SPARSES, TYPE, TYPES = 9, 10, 11, 12, 13, 14
ATTRIBUTE_TYPES = {
    "float": FLOAT, "int": INT, "string": STRING, "tensor": TENSOR, "graph": GRAPH, "sparse_tensor": SPARSE,
    "type_proto": TYPE, "floats": FLOATS, "ints": INTS, "strings": STRINGS, "tensors": TENSORS, "graphs": GRAPHS,
    "sparse_tensors": SPARSES, "type_protos": TYPES,
}  # fmt: skip
ATTRIBUTE_WORDS = {number: word for word, number in ATTRIBUTE_TYPES.items()}
VALUE_FIELDS = {
    FLOAT: "f", INT: "i", STRING: "s", TENSOR: "t", GRAPH: "g", SPARSE: "sparse_tensor", TYPE: "tp",
    FLOATS: "floats", INTS: "ints", STRINGS: "strings", TENSORS: "tensors", GRAPHS: "graphs",
    SPARSES: "sparse_tensors", TYPES: "type_protos",
}  # fmt: skip
PLURALS = {
    FLOAT: FLOATS, INT: INTS, STRING: STRINGS, TENSOR: TENSORS, GRAPH: GRAPHS, SPARSE: SPARSES,
    TYPE: TYPES,
}  # fmt: skip
SINGULARS = {plural: single for single, plural in PLURALS.items()}

TYPE_WORDS = {schema_word(number): number for number in range(1, 29)}
"""Element types as onnx.parser spells them."""
TYPE_NAMES = {number: word for word, number in TYPE_WORDS.items()} | {0: "undefined"}
WRAPPERS = frozenset({"seq", "map", "optional", "sparse_tensor", "opaque"})
SPECIAL_FLOATS = frozenset({"inf", "infinity", "nan"})
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
RESERVED = re.compile(r"undefined|dtype[0-9]+|float32|float64")
ELIDED = "onnxbench-elided:"
_WITH_FORM = {
    "ModelProto": "ir_version opset_import producer_name producer_version domain model_version doc_string graph"
    " metadata_props training_info functions",
    "GraphProto": "node name initializer sparse_initializer doc_string input output value_info quantization_annotation"
    " metadata_props",
    "NodeProto": "input output name op_type domain overload attribute doc_string metadata_props",
    "FunctionProto": "name input output attribute attribute_proto node doc_string opset_import domain overload"
    " value_info metadata_props",
    "TensorProto": "dims data_type name doc_string metadata_props " + " ".join(weights.DATA_FIELDS),
    "ValueInfoProto": "name type doc_string metadata_props",
    "AttributeProto": "name ref_attr_name doc_string type " + " ".join(VALUE_FIELDS.values()),
}
"""Fields that the syntax has a form for; what else a newer onnx may know goes into a ``textproto``."""


@cache
def leftover_fields(descriptor: Any) -> tuple[tuple[str, bool], ...]:
    """Returns the fields of a message that the syntax has no form for: their names, and whether they are repeated."""
    known = _WITH_FORM.get(descriptor.name)
    if known is None:
        return ()
    names = known.split()
    return tuple((field.name, is_repeated(field)) for field in descriptor.fields if field.name not in names)


def is_repeated(field: Any) -> bool:
    """Tells whether a protobuf field holds a list (asked in a way that old and new protobuf understand)."""
    said = getattr(field, "is_repeated", None)
    return bool(field.label == field.LABEL_REPEATED if said is None else said)


def type_word(number: int) -> str:
    """Returns an element type as the text spells it; one that is unknown by its number."""
    return TYPE_NAMES.get(number) or f"dtype{number}"


def printable(text: str) -> str:
    """Returns a text that fits on one line of a terminal: what does not print is escaped."""
    return text if text.isprintable() else ascii(text)
