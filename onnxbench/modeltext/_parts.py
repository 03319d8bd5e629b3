"""Reading the parts of a model that hold no other graph from text: types, values, and what stands beside things."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onnxbench import literals
from onnxbench.errors import SpecError, UsageError, did_you_mean
from onnxbench.modeltext._originals import Elided, TensorKey, mark_elided
from onnxbench.modeltext._syntax import (
    ELIDED,
    MAX_TYPE_DEPTH,
    TYPE_NAMES,
    TYPE_WORDS,
    WRAPPERS,
    leftover_fields,
    type_word,
)
from onnxbench.modeltext._tokens import NAME_KINDS, SPACE, WHITE, Tokens
from onnxbench.tensortype import dtype_number
from onnxbench.wire import STUB_PREFIX

if TYPE_CHECKING:
    from onnx import GraphProto, SparseTensorProto, TensorProto, TypeProto, ValueInfoProto

_COMMENT = re.compile(r"#[^\n]*")
_EXTRA_TYPE = re.compile(r"undefined|dtype[0-9]+|float32|float64")
_EXTRA_KEYS = (
    "doc_string", "metadata_props", "denotation", "dim_denotation", "quantization_annotation", "textproto",
)  # fmt: skip


class PartsReader(Tokens):
    """Reads the parts, with a method per rule of the grammar.

    Attributes:
        notes: What the user should know.
        elided: The tensors whose values are left out.
    """

    def __init__(
        self, text: str, source: str, *, first_line: int = 1, first_column: int = 1, context: Sequence[str] = ()
    ) -> None:
        super().__init__(text, source, first_line=first_line, first_column=first_column, context=context)
        self.notes: list[str] = []
        self.elided: list[Elided] = []
        self._patterns_noted = False

    def _pairs(self, entries: Any) -> None:
        self.expect("[", "before pairs of strings")
        while self.kind != "]":
            entry = entries.add()
            self._text(entry, "key")
            self.expect(":", "between a key and its value")
            self._text(entry, "value")
            if not self.take(","):
                break
        self.expect("]", "after pairs of strings")

    def _text(self, message: Any, name: str) -> None:
        """Reads a string into a text field; bytes that are not UTF-8, which files have, go past the setter's check."""
        value = self.any_string()
        try:
            setattr(message, name, value.decode())
        except UnicodeDecodeError:
            number = message.DESCRIPTOR.fields_by_name[name].number
            message.MergeFromString(_varint(number << 3 | 2) + _varint(len(value)) + value)

    def _entries(self, keys: Sequence[str], where: str, read_value: Any, close: str = ">") -> None:
        """Reads ``key: value, ...`` up to ``close``."""
        while True:
            start, key = self.start, self.name(f"a key of {where}")
            if key not in keys:
                hint = did_you_mean(key, keys) or f"Keys here: {', '.join(keys)}."
                raise self.error(f"{key!r} is no key of {where}", at=start, hint=hint)
            self.expect(":", f"after {key!r}")
            read_value(key)
            if not self.take(","):
                break
        if self.kind != close:
            raise self.error(f"expected ',' or {close!r} in {where}, found {self.found()}")
        self.advance()

    def _close(self, close: str, what: str) -> None:
        if self.kind != close:
            raise self.error(f"expected ',' or {close!r} in {what}, found {self.found()}", hint=self._type_hint())
        self.advance()

    def _type_hint(self) -> str | None:
        """Returns a hint when the word before the current token looks like a misspelt element type."""
        before = re.search(r"([A-Za-z_][A-Za-z0-9_]*)[ \t]*$", self.text[max(0, self.start - 80) : self.start])
        if before is None or before[1] in TYPE_WORDS or before[1] in WRAPPERS or self.kind not in NAME_KINDS:
            return None
        return self._known_type(before[1]) or did_you_mean(before[1], [*TYPE_WORDS, *WRAPPERS])

    # -- types --------------------------------------------------------------------------------------------------

    def _at_type(self, *, only: bool = False) -> bool:
        if self.kind != "id":
            return False
        if self.value in TYPE_WORDS or self.value in WRAPPERS:
            return True
        if not _EXTRA_TYPE.fullmatch(self.value):
            return False
        following = self.following()
        return only or following in ("[", "{", '"', "_") or (following.isascii() and following.isalpha())

    def _value_info(self, info: ValueInfoProto) -> None:
        if self.kind == "?":
            self.advance()
            info.type.SetInParent()
        elif self._at_type():
            self._type(info.type)
        elif self.kind == "id" and self.following() == "[":
            hint = did_you_mean(self.value, [*TYPE_WORDS, *WRAPPERS])
            raise self.error(f"{self.value!r} is no element type", hint=self._known_type(self.value) or hint)
        info.name = self.name("the name of a value")
        if self.kind == "@":
            self._extras(info)

    def _known_type(self, word: str) -> str | None:
        """Returns a hint if a word is an element type by another of its names (``fp16``)."""
        try:
            return f"The text syntax calls this element type {type_word(dtype_number(word))!r}."
        except UsageError:
            return None

    def _type(self, value: TypeProto, depth: int = 0) -> None:
        if depth > MAX_TYPE_DEPTH:
            raise self.error(f"types nested more than {MAX_TYPE_DEPTH} deep are not supported")
        if self.take("?"):
            value.SetInParent()
            return
        start, word = self.start, self.name("a type")
        if word not in WRAPPERS:
            self._element_type(value.tensor_type, word, start)
            return
        self.expect("(", f"after {word!r}")
        if word == "seq":
            self._type(value.sequence_type.elem_type, depth + 1)
        elif word == "optional":
            self._type(value.optional_type.elem_type, depth + 1)
        elif word == "sparse_tensor":
            self._element_type(value.sparse_tensor_type, self.name("an element type"), start)
        elif word == "map":
            key_start = self.start
            value.map_type.key_type = self._type_number(self.name("the type of a map's keys"), key_start)
            self.expect(",", "between the types of a map")
            self._type(value.map_type.value_type, depth + 1)
        else:
            self._opaque(value)
        self.expect(")", f"after the type in {word!r}")

    def _opaque(self, value: TypeProto) -> None:
        value.opaque_type.SetInParent()
        if self.kind == ")":
            return
        parts = [self.name("the name of an opaque type")]
        while self.take("."):
            parts.append(self.name("the rest of a domain"))
        if self.take(","):
            value.opaque_type.domain = ".".join(parts)
            value.opaque_type.name = self.name("the name of an opaque type")
        else:
            value.opaque_type.name = ".".join(parts)

    def _type_number(self, word: str, start: int) -> int:
        number = TYPE_WORDS.get(word)
        if number is None:
            if word in ("float32", "float64"):
                return dtype_number(word)
            if word == "undefined":
                return 0
            if re.fullmatch(r"dtype[0-9]{1,9}", word):
                return int(word[5:])
            hint = self._known_type(word) or did_you_mean(word, TYPE_WORDS)
            raise self.error(f"{word!r} is no element type", at=start, hint=hint)
        return number

    def _element_type(self, tensor: Any, word: str, start: int) -> None:
        tensor.elem_type = self._type_number(word, start)
        if not self.take("["):
            tensor.shape.SetInParent()
            return
        if self.take("]"):
            return
        dims = tensor.shape.dim
        while True:
            dim = dims.add()
            if self.kind == "num":
                dim.dim_value = self.integer("a size")
            elif not self.take("?"):
                dim.dim_param = self.name("a size, a name or '?'")
            if not self.take(","):
                break
        self._close("]", "a shape")

    # -- values -------------------------------------------------------------------------------------------------

    def _sparse(
        self, sparse: SparseTensorProto, value: TypeProto, name: str, keys: tuple[TensorKey, TensorKey], start: int
    ) -> None:
        """Reads the two parts of a sparse tensor."""
        from onnx import TypeProto

        shape = value.sparse_tensor_type
        if not shape.HasField("shape") or any(not dim.HasField("dim_value") for dim in shape.shape.dim):
            raise self.error("a sparse tensor with values needs a shape of numbers", at=start)
        sparse.dims.extend(dim.dim_value for dim in shape.shape.dim)
        self.expect("{", "before the values and indices of a sparse tensor")
        for part, key in zip((sparse.values, sparse.indices), keys, strict=True):
            if part is sparse.indices:
                self.expect(",", "between the values and the indices of a sparse tensor")
            at = self.start
            part_type = TypeProto()
            self._type(part_type)
            if self.kind in NAME_KINDS:
                part.name = self.name("the name of a tensor")
            self.take("=")
            self._tensor_of(part, part_type, key, at)
            self._extras(part)
        if sparse.values.data_type != shape.elem_type:
            raise self.error("the values of a sparse tensor must have its element type", at=start)
        if name:
            sparse.values.name = name
        self.expect("}", "after the indices of a sparse tensor")

    def _tensor_of(self, tensor: TensorProto, value: TypeProto, key: TensorKey, start: int) -> None:
        """Reads the data of a tensor whose type has been read."""
        if value.WhichOneof("value") != "tensor_type":
            raise self.error("only tensors can have values", at=start)
        shape = value.tensor_type
        if not shape.HasField("shape"):
            raise self.error("a tensor with values needs a shape; write no brackets for a scalar", at=start)
        for dim in shape.shape.dim:
            if not dim.HasField("dim_value"):
                raise self.error("the shape of a tensor with values must be numbers", at=start)
            tensor.dims.append(dim.dim_value)
        tensor.data_type = shape.elem_type
        if self.kind == "dots":
            self._elide(tensor, key, None, self.start)
            self.advance()
        elif self.kind == "{":
            self._data(tensor, key)
        elif self.kind == "[":
            tensor.data_location = type(tensor).EXTERNAL
            self._pairs(tensor.external_data)
            if any(entry.value.startswith((STUB_PREFIX, ELIDED)) for entry in tensor.external_data):
                raise self.error("this location is reserved", at=start)
        else:
            raise self.error(f"expected the values of a tensor in braces, found {self.found()}")

    def _elide(self, tensor: TensorProto, key: TensorKey, old_name: str | None, offset: int) -> None:
        mark_elided(tensor, len(self.elided))
        self.elided.append(Elided(key, old_name, offset))

    def _data(self, tensor: TensorProto, key: TensorKey) -> None:
        """Reads the values between braces; numbers are taken all at once, not token by token."""
        from onnx import numpy_helper

        opened = self.start
        text = self.text
        space = SPACE.match(text, self.end)
        begin = space.end() if space else self.end
        if text.startswith("...", begin):
            self.advance()
            self.advance()
            old_name = self.string() if self.kind in ("str", "bytes") else None
            self._elide(tensor, key, old_name, opened)
            self.expect("}", "after the dots")
            return
        if tensor.data_type == 8:
            self._strings(tensor)
            return
        if tensor.data_type == 0 or tensor.data_type not in TYPE_NAMES:
            raise self.error(f"element type {type_word(tensor.data_type)} has no values", at=opened)
        close = text.find("}", begin)
        if close < 0:
            raise self.error("the values of a tensor do not end with '}'", at=opened)
        body = text[begin:close]
        if "#" in body:
            close, body = self._without_comments(begin)
        tokens = [token.strip(WHITE) for token in body.split(",")] if body.strip(WHITE) else []
        try:
            array = literals.parse_array(tokens, tensor.data_type)
        except literals.LiteralError as error:
            raise self._error_in_values(str(error), begin, close, error.index) from None
        self._check_count(tensor, len(array), opened)
        if not self._patterns_noted:
            self._note_patterns(tensor, tokens)
        tensor.raw_data = numpy_helper.from_array(array).raw_data
        self.end = close + 1
        self.advance()

    def _without_comments(self, begin: int) -> tuple[int, str]:
        """Returns where the values end and their text with comments blanked out."""
        at, pieces = begin, []
        while True:
            match = re.compile(r"[#}]").search(self.text, at)
            if match is None:
                raise self.error("the values of a tensor do not end with '}'", at=begin)
            pieces.append(self.text[at : match.start()])
            if match[0] == "}":
                return match.start(), "".join(pieces)
            comment = _COMMENT.match(self.text, match.start())
            assert comment is not None
            pieces.append(" " * len(comment[0]))
            at = comment.end()

    def _error_in_values(self, message: str, begin: int, close: int, index: int) -> SpecError:
        blanked = _COMMENT.sub(lambda match: " " * len(match[0]), self.text[begin:close])
        at = 0
        for _ in range(index):
            at = blanked.index(",", at) + 1
        space = SPACE.match(blanked, at)
        return self.error(message, at=begin + (space.end() if space else at))

    def _note_patterns(self, tensor: TensorProto, tokens: list[str]) -> None:
        if literals.reads_patterns(tokens, tensor.data_type):
            self._patterns_noted = True
            word = type_word(tensor.data_type)
            self.notes.append(
                f"{self.source}:{self.line_of(self.start)}: integers in a {word} tensor are bit patterns, as in"
                " onnx.parser; write 1.0 for a value"
            )

    def _strings(self, tensor: TensorProto) -> None:
        opened = self.start
        self.advance()
        while self.kind != "}":
            value = self.any_string()
            tensor.string_data.append(value)
            if not self.take(","):
                break
        self._close("}", "the values of a string tensor")
        self._check_count(tensor, len(tensor.string_data), opened)

    def _check_count(self, tensor: TensorProto, count: int, opened: int) -> None:
        wanted = math.prod(tensor.dims)
        if count != wanted or any(dim < 0 for dim in tensor.dims):
            shape = f"{type_word(tensor.data_type)}{list(tensor.dims) or ''}"
            plural = "value" if count == 1 else "values"
            raise self.error(f"{count:,} {plural} for a tensor {shape}, which takes {wanted:,}", at=opened)

    # -- what stands beside things ------------------------------------------------------------------------------

    def _extras(self, message: Any) -> None:
        """Reads ``@{...}`` into a message, if it is there."""
        if self.kind != "@":
            return
        self.advance()
        self.expect("{", "after '@'")
        if self.take("}"):
            return
        fields = message.DESCRIPTOR.fields_by_name
        keys = [key for key in _EXTRA_KEYS if key in fields or key == "textproto"]
        if "type" in fields or "denotation" in fields:
            keys += ["denotation", "dim_denotation"]
        self._entries(keys, "these annotations", lambda key: self._extra(message, key), "}")

    def _extra(self, message: Any, key: str) -> None:
        start = self.start
        if key == "doc_string":
            self._text(message, key)
        elif key == "metadata_props":
            self._pairs(message.metadata_props)
        elif key == "textproto":
            self._textproto(message)
        elif key == "quantization_annotation":
            self._quantization(message)
        elif key == "denotation":
            (message.type if hasattr(message, "type") else message).denotation = self.string()
        else:
            self._dim_denotation(message.type if hasattr(message, "type") else message, start)

    def _dim_denotation(self, value: TypeProto, start: int) -> None:
        names = []
        self.expect("[", "before the denotations of dimensions")
        while self.kind != "]":
            names.append(self.string())
            if not self.take(","):
                break
        self.expect("]", "after the denotations of dimensions")
        kind = value.WhichOneof("value")
        dims = getattr(value, kind).shape.dim if kind in ("tensor_type", "sparse_tensor_type") else []
        if len(dims) != len(names):
            raise self.error(f"{len(names)} denotations for {len(dims)} dimensions", at=start)
        for dim, name in zip(dims, names, strict=True):
            if name:
                dim.denotation = name

    def _quantization(self, graph: GraphProto) -> None:
        self.expect("[", "before quantization annotations")
        while self.kind != "]":
            annotation = graph.quantization_annotation.add(tensor_name=self.string())
            self.expect(":", "after the name of a tensor")
            self._pairs(annotation.quant_parameter_tensor_names)
            if not self.take(","):
                break
        self.expect("]", "after quantization annotations")

    def _textproto(self, message: Any) -> None:
        from google.protobuf import text_format

        start, text = self.start, self.string()
        part = type(message)()
        try:
            text_format.Merge(text, part)
        except text_format.ParseError as error:
            raise self.error(f"this is no textproto of {message.DESCRIPTOR.name}: {error}", at=start) from None
        allowed = [name for name, _ in leftover_fields(message.DESCRIPTOR)]
        for descriptor, _ in part.ListFields():
            if descriptor.name not in allowed:
                hint = f"A textproto is for {', '.join(allowed)} here." if allowed else None
                raise self.error(f"{descriptor.name!r} has a form of its own in the text", at=start, hint=hint)
        message.MergeFrom(part)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
