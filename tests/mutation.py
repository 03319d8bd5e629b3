"""Models that parse and are wrong somewhere: random changes to random fields."""

from __future__ import annotations

import random
from typing import Any

import onnx
from google.protobuf.message import Message

_NUMBERS = (0, 1, 2, -1, 7, 19, 1000, 2**31 - 1, -(2**31), 2**31, 2**63 - 1, -(2**63))


def mutated(proto: onnx.ModelProto, chance: random.Random, *, changes: int = 2) -> onnx.ModelProto:
    """Returns a copy of a model with some of its fields changed, repeated, swapped or gone."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    names = sorted({name for node in copy.graph.node for name in (*node.input, *node.output)} | {"", "nowhere"})
    for _ in range(changes):
        _change(_pick(copy, chance), chance, names)
    return copy


def _pick(message: Message, chance: random.Random) -> Message:
    """Walks down from a message to one in it, by chance."""
    while True:
        below: list[Message] = []
        for field, value in message.ListFields():
            if field.message_type is not None:
                below += [value] if isinstance(value, Message) else list(value)
        if not below or chance.random() < 0.2:
            return message
        message = chance.choice(below)


def _change(message: Message, chance: random.Random, names: list[str]) -> None:
    fields = [field.name for field, _ in message.ListFields()]
    if not fields:
        return
    name = chance.choice(fields)
    value: Any = getattr(message, name)
    if isinstance(value, Message):
        message.ClearField(name)
    elif isinstance(value, (str, bytes, int, float)):
        _set(message, name, value, chance, names)
    elif not len(value):
        return
    else:
        at = chance.randrange(len(value))
        match chance.choice(("drop", "repeat", "swap", "set")):
            case "drop":
                del value[at]
            case "repeat":
                value.append(value[at])
            case "swap":
                value.reverse()
            case "set":
                if not isinstance(value[at], Message):
                    value[at] = _other(value[at], chance, names)


def _set(message: Message, name: str, value: Any, chance: random.Random, names: list[str]) -> None:
    if chance.random() < 0.3:
        message.ClearField(name)
        return
    try:
        setattr(message, name, _other(value, chance, names))
    except (ValueError, TypeError):  # a number that the field cannot hold
        message.ClearField(name)


def _other(value: Any, chance: random.Random, names: list[str]) -> Any:
    if isinstance(value, str):
        return chance.choice(names)
    if isinstance(value, bytes):
        return chance.choice((b"", value[: len(value) // 2], value + value, bytes(len(value))))
    if isinstance(value, int):
        small = [number for number in _NUMBERS if -(2**31) <= number < 2**31]
        return chance.choice(_NUMBERS if abs(value) < 2**62 and chance.random() < 0.5 else small)
    return chance.choice((0.0, float("nan"), float("inf"), -1.5))
