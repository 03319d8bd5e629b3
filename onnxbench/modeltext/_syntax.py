"""The words of the text syntax, and numbers that the printer and the reader share."""

from __future__ import annotations

import re

from onnxbench.tensortype import dtype_name

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

TYPE_WORDS = {{1: "float", 11: "double"}.get(number, dtype_name(number)): number for number in range(1, 29)}
"""Element types as onnx.parser spells them."""
TYPE_NAMES = {number: word for word, number in TYPE_WORDS.items()} | {0: "undefined"}
WRAPPERS = frozenset({"seq", "map", "optional", "sparse_tensor", "opaque"})
SPECIAL_FLOATS = frozenset({"inf", "infinity", "nan"})
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
RESERVED = re.compile(r"undefined|dtype[0-9]+|float32|float64")
DATA_FIELDS = (
    "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data", "raw_data", "external_data",
    "data_location",
)  # fmt: skip
ELIDED = "onnxbench-elided:"


def type_word(number: int) -> str:
    """Returns an element type as the text spells it; one that is unknown by its number."""
    return TYPE_NAMES.get(number) or f"dtype{number}"
