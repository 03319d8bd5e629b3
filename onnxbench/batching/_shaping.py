"""What operators do to the batch that give a tensor another shape, or make one of a shape.

Here the batch is told by sizes alone: a shape that grows with the batch, or that was written down for one batch and
needs repair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from onnxbench.batching._tracing import Element, NoRule, Rule, Spread, Step, Times


def removed_axis(step: Step, axes: Sequence[int]) -> list[Spread | None]:
    """Returns where the batch goes, which is an axis of size 1 that is removed: it is merged into another one."""
    made = step.made()
    if not made:
        raise step.blocked(
            "removes the batch, of which nothing else is left", "Its result is one number for all samples."
        )
    kept = [axis for axis in range(step.rank(0)) if axis not in axes]
    place, _ = step.settle(0, made, (None,) * 3)
    step.become_reshape(0, made, place, kept)
    return [place]


def _squeeze(step: Step) -> list[Spread | None]:
    spread, rank = step.spread(0), step.rank(0)
    assert spread is not None
    axes = step.axes(1)
    if axes is None:
        axes = [axis for axis, size in enumerate(step.shape(0)) if size == 1]
        if spread.axis not in axes and step.batch == 1:
            return [replace(spread, axis=spread.axis - sum(axis < spread.axis for axis in axes))]
    axes = [axis + rank if axis < 0 else axis for axis in axes]
    if spread.axis in axes:
        return removed_axis(step, axes)
    return [replace(spread, axis=spread.axis - sum(axis < spread.axis for axis in axes))]


def _unsqueeze(step: Step) -> list[Spread | None]:
    spread = step.spread(0)
    if spread is None:
        raise NoRule
    axes, made = step.axes(1), step.made()
    if axes is None:
        raise NoRule
    axes = [axis + len(made) if axis < 0 else axis for axis in axes]
    kept = [axis for axis in range(len(made)) if axis not in axes]
    natural = kept[spread.axis]
    if spread.is_pure:
        return [replace(spread, axis=natural)]
    shapes = [step.tracer.shape_in(step.name(0), world) for world in range(3)]
    sources = [kept.index(axis) if axis in kept else None for axis in range(len(made))]
    worlds = [[1 if source is None else shape[source] for source in sources] for shape in shapes]
    # A sample that was merged into another axis before is taken out again where an axis of its size is made.
    places = sorted(
        step.places(0, made), key=lambda place: (not place.is_pure, place.axis != natural, place.outer != 1)
    )
    place = places[step.tracer.choose(step.position, len(places))]
    if all(
        shape[place.axis] == place.factor * size and (place.axis == natural or place.factor * size == 1)
        for shape, size in zip(worlds, step.tracer.worlds, strict=True)
    ):
        return [place]
    step.become_reshape(0, made, place, sources)
    return [place]


def _flatten(step: Step) -> list[Spread | None]:
    axis, made = step.axis(1, step.rank(0)), step.made()
    shapes = [step.tracer.shape_in(step.name(0), world) for world in range(3)]
    actual = [(math.prod(shape[:axis]), math.prod(shape[axis:])) for shape in shapes]
    place, fits = step.settle(0, made, actual)
    if not fits:
        step.become_reshape(0, made, place, (None,) * len(made))
    return [place]


def _reshape(step: Step) -> list[Spread | None]:
    spread, made = step.spread(0), step.made()
    if spread is None:
        if step.spread(1) is not None:
            raise NoRule
        return [None]
    said = step.attribute("shape")
    worlds = (list(said),) * 3 if said is not None else step.vectors(1)
    if worlds is None:
        raise NoRule
    keeps_zero = bool(step.attribute("allowzero", 0))
    actual = [
        _reshaped(step.tracer.shape_in(step.name(0), world), worlds[world], keeps_zero=keeps_zero) for world in range(3)
    ]
    inputs = [step.tracer.shape_in(step.name(0), world) for world in range(3)]
    moving = [
        axis
        for axis, size in enumerate(worlds[0])
        if any(world[axis] != size for world in worlds) or _copies_batch(size, axis, inputs, keeps_zero=keeps_zero)
    ]
    place, fits = step.settle(0, made, actual, spread.axis, moving)
    if not fits:
        elements = _reshape_elements(step, worlds, made, place, keeps_zero=keeps_zero)
        named = {"name": "shape"} if said is not None else {"slot": 1}
        step.mend("vector", elements=elements, shape=tuple(made), **named)
    return [place]


def _reshaped(shape: Sequence[int], target: Sequence[int], *, keeps_zero: bool) -> tuple[int, ...] | None:
    """Returns the shape that a Reshape makes, or None where it fails."""
    sizes = []
    for axis, size in enumerate(target):
        if size == 0 and not keeps_zero:
            if axis >= len(shape):
                return None
            size = shape[axis]
        sizes.append(size)
    total, known = math.prod(shape), math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        if not known or total % known or sizes.count(-1) > 1:
            return None
        sizes[sizes.index(-1)] = total // known
    return tuple(sizes) if math.prod(sizes) == total else None


def _reshape_elements(
    step: Step, worlds: Sequence[Sequence[int]], made: Sequence[int], place: Spread, *, keeps_zero: bool
) -> tuple[Element, ...]:
    """Returns what the target of a Reshape becomes, so that the batch goes where it should.

    Best is a 0 (copied from the input), then -1; a -1 that stands elsewhere gives way where its size is fixed. Else
    the batch is taken from the input's shape.
    """
    elements: list[Element] = [None] * len(made)
    others = [axis for axis, size in enumerate(worlds[0]) if size == -1 and axis != place.axis]
    inputs = [step.tracer.shape_in(step.name(0), world) for world in range(3)]
    wanted = [place.factor * size for size in step.tracer.worlds]
    stated = step.tracer.stated(step.node.output[0])
    for axis in range(len(made)):
        moving = any(world[axis] != worlds[0][axis] for world in worlds)
        if axis != place.axis and (moving or _copies_batch(worlds[0][axis], axis, inputs, keeps_zero=keeps_zero)):
            if stated is None or not isinstance(stated[axis], int):
                raise step.blocked("lays elements out in a size that is not fixed")
            elements[axis] = made[axis]
    copied = place.axis < step.rank(0) and [shape[place.axis] for shape in inputs] == wanted
    if copied and not keeps_zero:
        elements[place.axis] = 0
    elif not others:
        elements[place.axis] = -1
    elif stated is not None and isinstance(stated[others[0]], int) and len(others) == 1:
        elements[place.axis], elements[others[0]] = -1, made[others[0]]
    elif place.is_pure or (stated is not None and isinstance(stated[place.axis], int)):
        elements[place.axis] = Times(place.factor)
    else:
        raise step.blocked("lays elements out in two sizes that are not fixed")
    return tuple(elements)


def _copies_batch(size: int, axis: int, inputs: Sequence[Sequence[int]], *, keeps_zero: bool) -> bool:
    return size == 0 and not keeps_zero and len({shape[axis] for shape in inputs}) > 1


def _expand(step: Step) -> list[Spread | None]:
    spread, worlds = step.spread(0), step.vectors(1)
    if worlds is None:
        if spread is None:
            return [None]
        axis = spread.axis + len(step.made()) - step.rank(0)
        if step.made()[axis] != spread.factor * step.batch:
            raise NoRule
        return [replace(spread, axis=axis)]
    rank, length = max(step.rank(0), len(worlds[0])), len(worlds[0])
    growing = _growing(step, worlds)
    if spread is None:
        if growing is None:
            return [None]
        axis, factor = growing
        place = Spread(axis + rank - length, 1, factor)
        own = place.axis - (rank - step.rank(0))
        if own >= 0 and step.shape(0)[own] != 1:
            step.need(0, replace(place, axis=own))
        return [place]
    place = replace(spread, axis=spread.axis + rank - step.rank(0))
    at = place.axis - (rank - length)
    if growing is not None and growing != (at, place.factor):
        raise step.blocked("repeats the batch once for each sample of it")
    if at >= 0 and growing is None and worlds[0][at] != 1:
        if worlds[0][at] != place.factor * step.batch:
            raise step.blocked(f"repeats the batch {worlds[0][at]} times along its own axis")
        step.mend("vector", slot=1, elements=tuple(1 if axis == at else None for axis in range(length)))
    return [place]


def _growing(step: Step, worlds: Sequence[Sequence[int]]) -> tuple[int, int] | None:
    """Returns which element of a shape grows with the batch, and by which factor; None if none does."""
    moving = [at for at in range(len(worlds[0])) if any(world[at] != worlds[0][at] for world in worlds)]
    if not moving:
        return None
    at = moving[0]
    factor = worlds[0][at] // step.batch
    if len(moving) > 1 or any(
        world[at] != factor * size for world, size in zip(worlds, step.tracer.worlds, strict=True)
    ):
        raise step.blocked("makes a tensor whose size is no multiple of the batch")
    return at, factor


def _tile(step: Step) -> list[Spread | None]:
    spread, worlds = step.spread(0), step.vectors(1)
    if worlds is None:
        raise NoRule
    growing = _growing(step, worlds)
    if spread is None:
        return [None if growing is None else Spread(growing[0], 1, growing[1] * step.shape(0)[growing[0]])]
    if growing is not None:
        raise step.blocked("repeats the batch once for each sample of it")
    return [replace(spread, outer=spread.outer * worlds[0][spread.axis])]


def _constant_of_shape(step: Step) -> list[Spread | None]:
    worlds = step.vectors(0)
    growing = _growing(step, worlds) if worlds is not None else None
    return [None if growing is None else Spread(growing[0], 1, growing[1])]


def _range(step: Step) -> list[Spread | None]:
    values = [step.tracer.values(step.name(slot)) for slot in range(3)]
    if any(value is None for value in values):
        return [None]
    ends = [[float(value[world].reshape(-1)[0]) for value in values if value is not None] for world in range(3)]
    growing = _growing(step, [[max(0, math.ceil((limit - start) / delta))] for start, limit, delta in ends])
    return [None if growing is None else Spread(0, 1, growing[1])]


SHAPING_RULES: dict[str, Rule] = {
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Expand": _expand,
    "Tile": _tile,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
}
