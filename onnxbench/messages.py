"""Copies of protobuf messages, parts of them carried over to others whatever is in them, and lists cut short.

A text field of a model may hold bytes that are no UTF-8. Protobuf reads and writes them, and copies them along with
their message, but refuses to set them; and fields that the installed onnx does not know have no name to be set by.
Both are carried over by merging a message that has nothing else in it.
"""

from __future__ import annotations

from collections.abc import Collection, MutableSequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from google.protobuf.message import Message

_Message = TypeVar("_Message", bound="Message")


def copy_of(message: _Message) -> _Message:
    """Returns a message of its own that says the same."""
    copy: _Message = type(message)()
    copy.CopyFrom(message)
    return copy


def delete_named(messages: MutableSequence[Any], names: Collection[str], *, by: str = "name") -> None:
    """Deletes those of a list of messages that have one of the names; the others stay in place, uncopied.

    Args:
        messages: A repeated field.
        names: The names.
        by: The field that is looked at: ``tensor_name``, ``values.name``.
    """
    name_of = attrgetter(by)
    for position in reversed(range(len(messages))):
        if name_of(messages[position]) in names:
            del messages[position]


def as_text(value: str | bytes) -> str:
    """Returns a text field as text; protobuf hands out bytes where it is not UTF-8."""
    return value if isinstance(value, str) else value.decode(errors="backslashreplace")


def carry_field(source: _Message, target: _Message, name: str) -> None:
    """Makes a field that is no list the same in ``target`` as in ``source``, unset if it is unset there.

    Args:
        source: The message that has the field.
        target: A message of the same type.
        name: The field.
    """
    target.ClearField(name)
    if source.HasField(name):
        part = copy_of(source)
        part.DiscardUnknownFields()
        for field, _ in source.ListFields():
            if field.name != name:
                part.ClearField(field.name)
        target.MergeFrom(part)


def carry_unknown(source: _Message, target: _Message) -> None:
    """Gives ``target`` the fields of ``source`` that onnx does not know, unless it has such fields itself.

    Those of the messages in it are not looked at.
    """
    held = _unknown(source)
    if held.ByteSize() and not _unknown(target).ByteSize():
        target.MergeFrom(held)


def _unknown(message: _Message) -> _Message:
    rest = copy_of(message)
    for field, _ in message.ListFields():
        rest.ClearField(field.name)
    return rest


def set_plain_fields(source: _Message, target: _Message, *, but: Collection[str]) -> bool:
    """Sets the fields of an empty message as they are in another, one by one; tells whether that says all there is.

    It does not where there are fields that onnx does not know, or text that is not UTF-8.

    Args:
        source: The message that has the fields.
        target: A new message of the same type.
        but: Fields that are left out.
    """
    from google.protobuf.unknown_fields import UnknownFieldSet

    if len(UnknownFieldSet(source)):
        return False
    for field, value in source.ListFields():
        if field.name in but:
            continue
        if isinstance(value, bytes) and field.type != field.TYPE_BYTES:
            return False
        held = getattr(target, field.name)
        if hasattr(held, "extend"):
            held.extend(value)
        elif field.message_type is not None:
            held.CopyFrom(value)
        else:
            setattr(target, field.name, value)
    return True
