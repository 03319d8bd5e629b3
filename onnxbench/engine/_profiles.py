"""Optimization profiles: which shapes an engine is built for, as users spell them, checked against the model.

A profile gives each dynamic input a smallest, a best and a largest shape. For an input whose *values* TensorRT takes as
sizes (the target size of a Resize, say) the three are values and not shapes; they are spelled alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxbench.captures import Port
from onnxbench.errors import UsageError
from onnxbench.specs import parse_tensor_specs
from onnxbench.tensortype import Dim, dtype_name, format_shape

KINDS = ("min", "opt", "max")
_INTEGERS = (6, 7)
_BATCH_WORDS = ("n", "b", "bs", "batch", "batch_size", "batchsize", "unk__0", "dynamicdimension.0")
_GUESS_BATCH, _GUESS_SEQUENCE, _GUESS_IMAGE = (1, 1, 8), (1, 128, 512), (32, 224, 640)

Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """The shapes that one input may have.

    Attributes:
        min: The smallest.
        opt: The one that the engine is tuned for.
        max: The largest.
    """

    min: Sizes
    opt: Sizes
    max: Sizes

    def to_json(self) -> dict[str, list[int]]:
        """Returns the three shapes as lists."""
        return {kind: list(getattr(self, kind)) for kind in KINDS}

    def __str__(self) -> str:
        shapes = [format_shape(getattr(self, kind)) for kind in KINDS]
        return shapes[0] if len(set(shapes)) == 1 else f"{shapes[0]} .. {shapes[1]} .. {shapes[2]}"


Profile = Mapping[str, Range]
"""Input to the shapes that it may have."""


def distinct_kinds(profile: Profile) -> list[str]:
    """Returns which of ``min``, ``opt`` and ``max`` differ, the first of those that are the same."""
    seen: dict[tuple[Sizes, ...], str] = {}
    for kind in KINDS:
        seen.setdefault(tuple(getattr(each, kind) for each in profile.values()), kind)
    if "opt" not in seen.values():  # the same as the smallest: it is the usual one, and called so
        seen = {shapes: "opt" if kind == "min" else kind for shapes, kind in seen.items()}
    return list(seen.values())


def parse_profiles(words: Iterable[tuple[str, str]], names: Sequence[str] | None) -> list[dict[str, Range]]:
    """Returns the profiles that words like ``("min", "x:1x3x224x224")`` describe.

    Args:
        words: In the order typed: the kind (``min``, ``opt``, ``max``, ``all`` for the three at once, or ``profile``
            with the number of the profile that the words after it are of) and the text. An input that is given the
            same kind again begins the next profile.
        names: The model's inputs; None takes any name.

    Raises:
        NotFoundError: A word names no input.
        UsageError: A word cannot be read, or a profile is incomplete.
    """
    found: dict[int, dict[str, dict[str, Sizes]]] = {}
    chosen: int | None = None
    turns: dict[str, int] = {}
    for kind, text in words:
        if kind == "profile":
            if not (text.isascii() and text.isdigit()):
                raise UsageError(f"--profile {text!r} is not the number of a profile")
            chosen = int(text)
            continue
        flag = "--shapes" if kind == "all" else f"--{kind}-shapes"
        for spec in parse_tensor_specs([text], names, what=flag):
            sizes = _sizes(spec.name, spec.shape, flag)
            number = chosen if chosen is not None else turns.get(kind, 0)
            if chosen is None and _is_told(found.get(number, {}).get(spec.name, {}), kind):
                number = turns[kind] = number + 1
            told = found.setdefault(number, {}).setdefault(spec.name, {})
            if _is_told(told, kind):
                raise UsageError(f"{flag} {text!r}: profile {number} already has that of {spec.name!r}")
            told.update(dict.fromkeys(KINDS, sizes) if kind == "all" else {kind: sizes})
    if sorted(found) != list(range(len(found))):
        raise UsageError(f"profiles are numbered from 0 without gaps, and there are {sorted(found)}")
    return [{name: _complete(name, told) for name, told in found[number].items()} for number in sorted(found)]


def _is_told(told: Mapping[str, Sizes], kind: str) -> bool:
    return bool(told) if kind == "all" else kind in told


def _sizes(name: str, shape: Sequence[Dim] | None, flag: str) -> Sizes:
    if shape is None:
        raise UsageError(f"{flag} {name!r} gives no shape", hint=f"Write {flag} {name}:[1,3,224,224].")
    sizes = [size for size in shape if isinstance(size, int)]
    if len(sizes) < len(shape):
        raise UsageError(f"{flag} {name}: every size must be a number, not {format_shape(shape)}")
    return tuple(sizes)


def _complete(name: str, told: Mapping[str, Sizes]) -> Range:
    """Returns the range, what was not said being worked out: only the best, or the two ends."""
    if set(told) == {"opt"}:
        return Range(told["opt"], told["opt"], told["opt"])
    if "min" in told and "max" in told:
        return Range(told["min"], told.get("opt", told["max"]), told["max"])
    missing = [kind for kind in KINDS if kind not in told]
    example = format_shape(next(iter(told.values())))
    raise UsageError(
        f"input {name!r} is given its {' and '.join(told)} shape and not its {' and '.join(missing)} shape",
        hint=" ".join(f"--{kind}-shapes {name}:{example}" for kind in missing) + " says the rest.",
    )


def profiles_from_data(data: Sequence[Mapping[str, Any]], names: Sequence[str] | None) -> list[dict[str, Range]]:
    """Returns profiles from plain values: input to ``1x3`` or ``[1, 3]`` (all three), or to a map of min, opt and max.

    Raises:
        NotFoundError: An input does not exist.
        UsageError: A value is no shape.
    """
    profiles = []
    for profile in data:
        words: list[tuple[str, str]] = []
        for name, value in profile.items():
            quoted = f'"{name}"' if '"' not in name else name
            if isinstance(value, Mapping):
                for kind, shape in value.items():
                    if kind.removesuffix("_shape") not in KINDS:
                        raise UsageError(f"profile of {name!r}: {kind!r} is none of min, opt, max")
                    words.append((kind.removesuffix("_shape"), f"{quoted}:{_text(shape)}"))
            else:
                words.append(("all", f"{quoted}:{_text(value)}"))
        profiles += parse_profiles(words, names)
    return profiles


def _text(shape: Any) -> str:
    return f"[{','.join(map(str, shape))}]" if isinstance(shape, (list, tuple)) else str(shape)


def check_profiles(profiles: Sequence[Profile], ports: Sequence[Port]) -> None:
    """Checks profiles against a model's inputs.

    Raises:
        UsageError: One does not fit: rank, order, fixed dimensions, or an input that is dynamic and not in it.
    """
    by_name = {port.name: port for port in ports}
    for number, profile in enumerate(profiles):
        which = f"profile {number}: " if len(profiles) > 1 else ""
        for name, wanted in profile.items():
            _check_range(which, by_name[name], wanted)
        left = [port for port in ports if is_dynamic(port) and port.name not in profile]
        if left:
            raise _left_out(which, left)
        _check_names(which, profile, by_name)


def _check_names(which: str, profile: Profile, ports: Mapping[str, Port]) -> None:
    """Refuses different sizes for dimensions of one name, which TensorRT takes to be equal.

    Exporters call all that they do not know ``?``, say.
    """
    known: dict[str, tuple[str, int, int, int]] = {}
    for name, wanted in profile.items():
        kind = ports[name].type
        dims = kind.tensor_type.shape.dim if kind is not None else ()
        for axis, word in enumerate(dim.dim_param for dim in dims):
            if not word or axis >= len(wanted.min):
                continue
            low, high = wanted.min[axis], wanted.max[axis]
            other, at, least, most = known.setdefault(word, (name, axis, low, high))
            if max(low, least) > min(high, most):
                raise UsageError(
                    f"{which}dimension {at} of input {other!r} and dimension {axis} of input {name!r} are both called "
                    f"{word!r}, which says that they are equal, and are given {least} to {most} and {low} to {high}",
                    hint=f"If they are not: onnxbench edit MODEL OUT --name-dim {other}:{at}={_free(word, at)} "
                    f"{name}:{axis}={_free(word, axis)}",
                )


def _free(word: str, axis: int) -> str:
    return f"{word if word.isidentifier() else 'dim'}_{axis}"


def _check_range(which: str, port: Port, wanted: Range) -> None:
    shape = port.shape
    lengths = {len(getattr(wanted, kind)) for kind in KINDS}
    if len(lengths) > 1:
        raise UsageError(f"{which}input {port.name!r}: its shapes have different numbers of dimensions: {wanted}")
    for axis, (low, best, high) in enumerate(zip(wanted.min, wanted.opt, wanted.max, strict=True)):
        if not low <= best <= high:
            raise UsageError(
                f"{which}input {port.name!r}: dimension {axis} must grow from min over opt to max, and is "
                f"{low}, {best}, {high}"
            )
    if shape is None or holds_sizes(port, wanted):
        return
    (rank,) = lengths
    if rank != len(shape):
        raise UsageError(
            f"{which}input {port.name!r} is given {rank} dimensions, and the model wants {len(shape)}: {_typed(port)}"
        )
    for axis, fixed in enumerate(shape):
        for kind in KINDS:
            size = getattr(wanted, kind)[axis]
            if isinstance(fixed, int) and size != fixed:
                raise UsageError(
                    f"{which}input {port.name!r}: the model fixes dimension {axis} at {fixed} ({_typed(port)}), and "
                    f"the {kind} shape has {size} there",
                    hint="'onnxbench edit --make-dynamic' frees a dimension, if the model allows it.",
                )
            if size == 0 and kind != "min":
                raise UsageError(f"{which}input {port.name!r}: dimension {axis} of the {kind} shape is 0")


def holds_sizes(port: Port, wanted: Range) -> bool:
    """Tells whether a range is of an input's values and not of its shape: a short list of integers of fixed length."""
    shape = port.shape
    if shape is None or port.dtype not in _INTEGERS or len(shape) > 1 or not all(isinstance(s, int) for s in shape):
        return False
    return len(wanted.opt) == (shape[0] if shape else 1) and wanted.opt != tuple(shape)


def is_dynamic(port: Port) -> bool:
    """Tells whether an input needs a profile."""
    return port.shape is None or any(not isinstance(size, int) for size in port.shape)


def require_ranks(ports: Sequence[Port]) -> None:
    """Raises UsageError for inputs that no engine can have: of unknown rank, or no tensors at all."""
    for port in ports:
        if port.kind not in ("", "tensor"):
            raise UsageError(f"input {port.name!r} is a {port.kind}, and TensorRT takes tensors only",
                             hint="Cut the model behind it with 'onnxbench extract'.")  # fmt: skip
        if port.shape is None:
            raise UsageError(
                f"the model does not say how many dimensions input {port.name!r} has, and TensorRT must know",
                hint=f"'onnxbench edit --set-shape {port.name}=[...]' states it.",
            )


def _left_out(which: str, left: Sequence[Port]) -> UsageError:
    shown = ", ".join(f"{port.name!r} ({_typed(port)})" for port in left[:6])
    more = f" and {len(left) - 6} more" if len(left) > 6 else ""
    few = "input" if len(left) == 1 else "inputs"
    be = "is" if len(left) == 1 else "are"
    return UsageError(
        f"{which}{few} {shown}{more} {be} dynamic and no profile says which shapes to build for",
        hint=f"For example: {spelled({port.name: guess(port) for port in left})}",
    )


def spelled(profile: Profile) -> str:
    """Returns a profile as flags that can be typed."""
    parts = []
    for kind in KINDS:
        shapes = [
            f"{_quoted(name)}:{format_shape(getattr(each, kind))}".replace(" ", "") for name, each in profile.items()
        ]
        parts.append(f"--{kind}-shapes {' '.join(shapes)}")
    return " ".join(parts)


def _quoted(name: str) -> str:
    return name if all(char.isalnum() or char in "_./:-" for char in name) else f"'{name}'"


def propose(ports: Sequence[Port]) -> dict[str, Range]:
    """Returns a profile for the inputs that are dynamic, from what their dimensions look like.

    A first dimension, or one called so, is taken for the batch; those of a picture and of a sequence are told by rank.
    One symbol has one range, wherever it stands.
    """
    known: dict[str, tuple[int, int, int]] = {}
    for port in ports:
        for axis, size in enumerate(port.shape or ()):
            if isinstance(size, str):
                known.setdefault(size, _guess_dim(port, axis))
    return {port.name: guess(port, known) for port in ports if is_dynamic(port)}


def guess(port: Port, known: Mapping[str, tuple[int, int, int]] | None = None) -> Range:
    """Returns shapes for one input (see ``propose``)."""
    dims = []
    for axis, size in enumerate(port.shape or ()):
        if isinstance(size, int):
            dims.append((size, size, size))
        else:
            dims.append((known or {}).get(size or "") or _guess_dim(port, axis))
    low, best, high = (tuple(dim[kind] for dim in dims) for kind in range(3))
    return Range(low, best, high)


def _guess_dim(port: Port, axis: int) -> tuple[int, int, int]:
    shape = port.shape or ()
    word = str(shape[axis]).lower()
    if word in _BATCH_WORDS or "batch" in word or (axis == 0 and len(shape) > 1):
        return _GUESS_BATCH
    if len(shape) == 4 and axis >= 2:
        return _GUESS_IMAGE
    return _GUESS_SEQUENCE if len(shape) > 1 else _GUESS_BATCH


def _typed(port: Port) -> str:
    return f"{dtype_name(port.dtype)}{format_shape(port.shape)}"
