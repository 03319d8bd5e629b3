"""What each operator does to the batch, and what it needs repaired for that."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from onnxbench.batching._shaping import SHAPING_RULES, removed_axis
from onnxbench.batching._tracing import SMALL, WHOLE, Element, NoRule, Rule, SizeOf, Spread, Step, Times


def _elementwise(step: Step) -> list[Spread | None]:
    if step.version < 7 and len(step.node.input) > 1 and step.spread(1) is None:  # broadcast by an attribute then
        return [step.spread(0)] * len(step.node.output)
    slots = [slot for slot, name in enumerate(step.node.input) if name]
    found = step.together(slots, max(step.rank(slot) for slot in slots))
    return [found] * len(step.node.output)


def _first_input(step: Step) -> list[Spread | None]:
    _refuse_others(step, range(1, len(step.node.input)))
    return [step.spread(0)] * len(step.node.output)


def _refuse_others(step: Step, slots: Sequence[int]) -> None:
    for slot in slots:
        if step.spread(slot) is not None:
            raise step.blocked(f"takes parameters that depend on the batch ({step.name(slot)!r})")


def _quantized(step: Step) -> list[Spread | None]:
    spread = step.spread(0)
    _refuse_others(step, (1, 2))
    if (
        spread is not None
        and step.name(1)
        and math.prod(step.shape(1)) > 1
        and step.axis(1, step.rank(0)) == spread.axis
    ):
        raise step.blocked("has a scale of its own for each entry along the batch")
    return [spread]


def _image(step: Step) -> list[Spread | None]:
    spread = step.spread(0)
    others = [slot for slot in range(1, len(step.node.input)) if step.spread(slot) is not None]
    if others or spread is None:
        raise step.blocked(f"takes weights that depend on the batch ({step.name(others[0])!r})")
    if spread.axis != 0:
        raise step.blocked(f"works across the batch, which is axis {spread.axis} of its input")
    return [spread] * len(step.node.output)


def _pool(step: Step) -> list[Spread | None]:
    spread = step.spread(0)
    if spread is not None and spread.axis > 1:
        raise step.blocked(f"pools over the batch, which is axis {spread.axis} of its input")
    return [spread] * len(step.node.output)


def _batch_normalization(step: Step) -> list[Spread | None]:
    if step.attribute("training_mode", 0) or (step.version < 14 and len([n for n in step.node.output if n]) > 1):
        raise step.blocked(
            "is in training mode: it takes its statistics over the batch", "Export the model in eval mode."
        )
    return _image(step)[:1]


def _grid_sample(step: Step) -> list[Spread | None]:
    spread = step.spread(0) or step.spread(1)
    if spread is None or spread.axis != 0:
        raise step.blocked("samples across the batch")
    step.need(0, spread)
    step.need(1, spread)
    return [spread]


def _whole_batch(reason: str, hint: str | None = None) -> Callable[[Step], list[Spread | None]]:
    def rule(step: Step) -> list[Spread | None]:
        raise step.blocked(reason, hint)

    return rule


def _matmul(slots: tuple[int, int]) -> Callable[[Step], list[Spread | None]]:
    def rule(step: Step) -> list[Spread | None]:
        left, right = slots
        ranks = step.rank(left), step.rank(right)
        if min(ranks) < 2:
            return _vector_matmul(step, left, right)
        rank = max(ranks)
        a, b = step.spread(left), step.spread(right)
        if (a is not None and a.axis == ranks[0] - 1) or (b is not None and b.axis == ranks[1] - 2):
            raise step.blocked("multiplies along the batch, so it adds samples up")
        rows = a if a is not None and a.axis == ranks[0] - 2 else None
        columns = b if b is not None and b.axis == ranks[1] - 1 else None
        over = step.together((left, right), rank, apart=(rank - 2, rank - 1))
        found = [
            each
            for each in (over, rows and replace(rows, axis=rank - 2), columns and replace(columns, axis=rank - 1))
            if each
        ]
        if len(found) > 1:
            raise step.blocked("multiplies every sample with every other one")
        return [found[0] if found else None]

    return rule


def _vector_matmul(step: Step, left: int, right: int) -> list[Spread | None]:
    a, b = step.spread(left), step.spread(right)
    ranks = step.rank(left), step.rank(right)
    if a is not None and b is not None:
        raise NoRule
    if a is not None:
        if a.axis == ranks[0] - 1:
            raise step.blocked("multiplies along the batch, so it adds samples up")
        return [a]
    assert b is not None
    if b.axis == max(0, ranks[1] - 2):
        raise step.blocked("multiplies along the batch, so it adds samples up")
    return [replace(b, axis=b.axis - (b.axis > ranks[1] - 2))]


def _gemm(step: Step) -> list[Spread | None]:
    a, b = step.spread(0), step.spread(1)
    if a is not None and b is not None:
        raise step.blocked("multiplies every sample with every other one")
    found: Spread | None = None
    for slot, flag, kept in ((0, "transA", 0), (1, "transB", 1)):
        spread = step.spread(slot)
        if spread is not None:
            axis = 1 - spread.axis if step.attribute(flag, 0) else spread.axis
            if axis != kept:
                raise step.blocked("multiplies along the batch, so it adds samples up")
            found = replace(spread, axis=kept)
    if step.name(2):
        bias = step.spread(2)
        if found is None:
            raise NoRule
        axis = found.axis - (2 - step.rank(2))
        if bias is not None and replace(bias, axis=bias.axis + 2 - step.rank(2)) != found:
            raise step.blocked("adds a bias in which the batch lies elsewhere")
        if bias is None and axis >= 0 and step.shape(2)[axis] != 1:
            step.need(2, replace(found, axis=axis))
    return [found]


def _transpose(step: Step) -> list[Spread | None]:
    spread = step.spread(0)
    assert spread is not None
    order = list(step.attribute("perm") or reversed(range(step.rank(0))))
    return [replace(spread, axis=order.index(spread.axis))]


def _concat(step: Step) -> list[Spread | None]:
    slots = [slot for slot, name in enumerate(step.node.input) if name]
    carrying = [slot for slot in slots if step.spread(slot) is not None]
    spread = step.spread(carrying[0])
    assert spread is not None
    axis = step.axis(1, step.rank(slots[0]))
    if axis != spread.axis:
        for slot in slots:
            step.need(slot, spread)
        return [spread]
    spreads = [step.spread(slot) for slot in slots]
    if any(each is None for each in spreads):
        raise step.blocked("joins the batch with rows that do not belong to it")
    inners = {each.inner for each in spreads if each is not None}
    if len(inners) > 1:
        raise step.blocked("joins tensors along the batch in which it lies differently")
    return [replace(spread, outer=sum(each.outer for each in spreads if each is not None))]


def _split(step: Step) -> list[Spread | None]:
    spread = step.spread(0)
    assert spread is not None
    count = len(step.node.output)
    if step.axis(0, step.rank(0)) != spread.axis:
        return [spread] * count
    worlds = step.vectors(1) if step.name(1) else None
    said = step.attribute("split")
    if step.name(1) and worlds is None:
        raise NoRule
    sizes = list(said) if said is not None else worlds[0] if worlds is not None else []
    if not sizes:
        each = step.shape(0)[spread.axis] // count
        sizes = [each] * count
    unit = spread.inner * step.batch
    if any(size % unit for size in sizes) or (spread.inner > 1 and count > 1 and spread.outer == 1):
        raise step.blocked("cuts the batch into pieces")
    factors = [size // step.batch for size in sizes]
    if any(size == 0 for size in factors):
        raise step.blocked("cuts the batch into pieces")
    if said is not None:
        if len(set(sizes)) > 1:
            raise step.blocked("cuts along the batch in sizes that are fixed")
        step.mend("drop", name="split")
    elif worlds is not None and any(
        world != [factor * size for factor in factors] for world, size in zip(worlds, step.tracer.worlds, strict=True)
    ):
        step.mend("vector", slot=1, elements=tuple(Times(factor) for factor in factors))
    return [replace(spread, outer=factor // spread.inner) for factor in factors]


def _slice(step: Step) -> list[Spread | None]:
    spread = step.spread(0)
    if spread is None:
        raise NoRule
    rank = step.rank(0)
    by_attribute = step.attribute("starts") is not None
    if by_attribute:
        starts: tuple[list[int], ...] = (list(step.attribute("starts")),) * 3
        ends: tuple[list[int], ...] = (list(step.attribute("ends")),) * 3
        axes = list(step.attribute("axes") or range(len(starts[0])))
        steps = [1] * len(axes)
    else:
        said = step.axes(3) if step.name(3) else None
        axes = said if said is not None else list(range(math.prod(step.shape(1))))
        axes = [axis + rank if axis < 0 else axis for axis in axes]
        if spread.axis not in axes:
            return [spread]
        vectors = [step.vectors(slot) for slot in (1, 2)]
        strides = step.vectors(4) if step.name(4) else ([1] * len(axes),)
        if vectors[0] is None or vectors[1] is None or strides is None:
            raise NoRule
        starts, ends, steps = vectors[0], vectors[1], strides[0]
    axes = [axis + rank if axis < 0 else axis for axis in axes]
    if spread.axis not in axes:
        return [spread]
    at = axes.index(spread.axis)
    if steps[at] != 1:
        raise step.blocked("takes the samples of the batch in another order, or not all")
    sizes = [spread.factor * size for size in step.tracer.worlds]
    ranges = [slice(start[at], end[at]).indices(size)[:2] for start, end, size in zip(starts, ends, sizes, strict=True)]
    unit = spread.inner * step.batch
    first, last = ranges[0]
    if first % unit or last % unit or last <= first:
        what = "takes some of the samples of a batch"
        if not spread.is_pure:
            what = f"cuts an axis in which the samples of a batch lie one after the other, {spread.factor} rows each"
        raise step.blocked(what)
    whole = first == 0 and last == sizes[0]
    factors = first // step.batch, last // step.batch
    if any(
        pair != (factors[0] * size, factors[1] * size) for pair, size in zip(ranges, step.tracer.worlds, strict=True)
    ):
        _mend_slice(step, at, len(axes), factors, whole=whole, by_attribute=by_attribute)
    return [replace(spread, outer=(factors[1] - factors[0]) // spread.inner)]


def _mend_slice(step: Step, at: int, count: int, factors: tuple[int, int], *, whole: bool, by_attribute: bool) -> None:
    new = (0, WHOLE) if whole else (Times(factors[0]) if factors[0] else 0, Times(factors[1]))
    for slot, name, element in ((1, "starts", new[0]), (2, "ends", new[1])):
        if element == 0:
            continue
        elements = tuple(element if number == at else None for number in range(count))
        if by_attribute and not isinstance(element, int):
            raise step.blocked("takes a part along the batch by numbers that are fixed")
        step.mend("vector", slot=-1 if by_attribute else slot, name=name if by_attribute else "", elements=elements)


def _gather(step: Step) -> list[Spread | None]:
    data, indices = step.spread(0), step.spread(1)
    axis = step.axis(0, step.rank(0))
    if data is None:
        assert indices is not None
        return [replace(indices, axis=axis + indices.axis)]
    if indices is None and data.axis != axis:
        moved = data.axis + step.rank(1) - 1 if data.axis > axis else data.axis
        return [replace(data, axis=moved)]
    if indices is not None:
        if data.axis == axis and data.is_pure and indices.is_pure and step.rank(1) == 1:
            return [data]
        raise step.blocked("looks the samples of one batch up in another")
    vectors = step.vectors(1)
    if vectors is None:
        raise NoRule
    only = step.batch == 1 and data.is_pure and all(each in (0, -1) for each in vectors[0]) and len(vectors[0]) == 1
    if not only:
        if step.rank(1) == 1 and vectors[0] == list(range(data.factor * step.batch)):
            step.mend("identity")
            return [data]
        raise step.blocked("takes some of the samples of a batch")
    if step.rank(1):
        if step.rank(1) > 1:
            raise NoRule
        step.mend("identity")
        return [data]
    return removed_axis(step, [axis])


def _pad(step: Step) -> list[Spread | None]:
    spread = step.spread(0)
    if spread is None:
        raise NoRule
    if step.made()[spread.axis] != step.shape(0)[spread.axis]:
        raise step.blocked("adds rows to the batch")
    return [spread]


def _resize(step: Step) -> list[Spread | None]:
    spread = step.spread(0)
    if spread is None:
        raise NoRule
    if step.made()[spread.axis] != step.shape(0)[spread.axis]:
        raise step.blocked("resizes the batch")
    if step.name(3):
        axes = [axis + step.rank(0) if axis < 0 else axis for axis in step.attribute("axes") or range(step.rank(0))]
        worlds = step.vectors(3)
        if worlds is not None and spread.axis in axes:
            at = axes.index(spread.axis)
            if any(world[at] != spread.factor * size for world, size in zip(worlds, step.tracer.worlds, strict=True)):
                elements: list[Element] = [None] * len(axes)
                elements[at] = SizeOf(spread.axis)
                step.mend("vector", slot=3, elements=tuple(elements))
    return [spread]


def _reduce(step: Step) -> list[Spread | None]:
    spread, rank = step.spread(0), step.rank(0)
    assert spread is not None
    axes = step.axes(1)
    if not axes:
        if step.attribute("noop_with_empty_axes", 0):
            return [spread]
        axes = list(range(rank))
    return _without_axes(step, spread, [axis + rank if axis < 0 else axis for axis in axes])


def _arg(step: Step) -> list[Spread | None]:
    spread = step.spread(0)
    assert spread is not None
    return _without_axes(step, spread, [step.axis(0, step.rank(0))])


def _without_axes(step: Step, spread: Spread, axes: Sequence[int]) -> list[Spread | None]:
    if spread.axis in axes:
        raise step.blocked("reduces over the batch")
    if step.attribute("keepdims", 1):
        return [spread]
    return [replace(spread, axis=spread.axis - sum(axis < spread.axis for axis in axes))]


def _along(default: int) -> Callable[[Step], list[Spread | None]]:
    def rule(step: Step) -> list[Spread | None]:
        spread = step.spread(0)
        if spread is None:
            raise NoRule
        if step.axis(default, step.rank(0)) == spread.axis:
            raise step.blocked("works along the batch")
        return [spread] * len(step.node.output)

    return rule


def _softmax(step: Step) -> list[Spread | None]:
    spread = step.spread(0)
    assert spread is not None
    if step.version >= 13:
        return _along(-1)(step)
    if step.axis(1, step.rank(0)) <= spread.axis:
        raise step.blocked("works along the batch")
    return [spread]


def _cumsum(step: Step) -> list[Spread | None]:
    spread, axes = step.spread(0), step.vectors(1)
    if spread is None or axes is None:
        raise NoRule
    if axes[0][0] % step.rank(0) == spread.axis:
        raise step.blocked("sums along the batch")
    return [spread]


def _layer_normalization(step: Step) -> list[Spread | None]:
    spread = step.spread(0)
    if spread is None or any(step.spread(slot) is not None for slot in (1, 2)):
        raise NoRule
    if spread.axis >= step.axis(-1, step.rank(0)):
        raise step.blocked("normalizes over the batch")
    return [spread] * len(step.node.output)


def _mean_variance(step: Step) -> list[Spread | None]:
    spread = step.spread(0)
    assert spread is not None
    axes = [axis % step.rank(0) for axis in step.attribute("axes") or (0, 2, 3)]
    if spread.axis in axes:
        raise step.blocked("normalizes over the batch")
    return [spread]


def _recurrent(step: Step) -> list[Spread | None]:
    spread = step.spread(0)
    by_batch = bool(step.attribute("layout", 0))
    if any(step.spread(slot) is not None for slot in (1, 2, 3, 7)):
        raise NoRule
    if spread is None:
        initial = step.spread(5) or step.spread(6)
        if initial is None:
            raise NoRule
        spread = replace(initial, axis=0 if by_batch else 1)
    if spread.axis != (0 if by_batch else 1):
        raise step.blocked("takes the batch for the sequence: each sample would go on from the one before")
    step.need(0, spread)
    if step.name(4):
        step.need(4, replace(spread, axis=0))
    for slot in (5, 6):
        if step.name(slot):
            step.need(slot, spread)
    states = replace(spread, axis=0 if by_batch else 1)
    return [replace(spread, axis=0 if by_batch else 2), states, states]


def _einsum(step: Step) -> list[Spread | None]:
    equation = str(step.attribute("equation", b"").decode()).replace(" ", "")
    if "..." in equation or "->" not in equation:
        raise NoRule
    sides, result = equation.split("->")
    terms = sides.split(",")
    letters = {terms[slot][spread.axis] for slot in range(len(terms)) if (spread := step.spread(slot)) is not None}
    spreads = {replace(spread, axis=0) for slot in range(len(terms)) if (spread := step.spread(slot)) is not None}
    if len(letters) > 1 or len(spreads) > 1:
        raise step.blocked("joins tensors in which the batch lies differently")
    (letter,), (spread,) = letters, spreads
    if letter not in result:
        raise step.blocked("adds samples up")
    for slot, term in enumerate(terms):
        if letter in term and step.spread(slot) is None:
            step.need(slot, replace(spread, axis=term.index(letter)))
    return [replace(spread, axis=result.index(letter))]


def _one_hot(step: Step) -> list[Spread | None]:
    spread = step.spread(0)
    if spread is None:
        raise NoRule
    axis = step.axis(-1, step.rank(0) + 1)
    return [replace(spread, axis=spread.axis + (axis <= spread.axis))]


def _elements_along(step: Step) -> list[Spread | None]:
    """GatherElements and ScatterElements: all inputs have the same axes."""
    slots = [slot for slot, name in enumerate(step.node.input) if name]
    spreads = {spread for slot in slots if (spread := step.spread(slot)) is not None}
    if len(spreads) != 1:
        raise step.blocked("joins tensors in which the batch lies differently")
    (spread,) = spreads
    if step.axis(0, step.rank(0)) == spread.axis:
        raise step.blocked("takes elements along the batch")
    for slot in slots:
        step.need(slot, spread)
    return [spread]


def _gather_nd(step: Step) -> list[Spread | None]:
    data, indices = step.spread(0), step.spread(1)
    skipped, depth = int(step.attribute("batch_dims", 0)), step.shape(1)[-1]
    if data is None:
        return [indices]
    if data.axis < skipped:
        step.need(1, data)
        return [data]
    if data.axis >= skipped + depth:
        if indices is not None:
            raise step.blocked("looks the samples of one batch up in another")
        return [replace(data, axis=step.rank(1) - 1 + data.axis - skipped - depth)]
    return [indices or _index_batch(step, data, data.axis - skipped)]


def _index_batch(step: Step, data: Spread, component: int) -> Spread:
    """Indices that point to the only sample of a batch of 1 count the samples of any batch instead."""
    values, shape = step.tracer.values(step.name(1)), step.shape(1)
    zero = values is not None and not values[0].reshape(-1, shape[-1])[:, component].any()
    if values is None and math.prod(shape) > SMALL:
        zero = not step.tracer.observed.value_of(step.name(1)).reshape(-1, shape[-1])[:, component].any()
    if not zero or step.batch != 1 or not data.is_pure or len(shape) < 2 or shape[0] != 1:
        raise step.blocked("points at samples of the batch by numbers that are fixed")
    step.mend("index", slot=1, shape=shape, component=component)
    return Spread(0)


def _scatter_nd(step: Step) -> list[Spread | None]:
    data, indices, updates = (step.spread(slot) for slot in range(3))
    depth, lead = step.shape(1)[-1], step.rank(1) - 1
    if data is None:
        given = updates or indices
        if given is None:
            raise NoRule
        axis = given.axis - lead + depth if given.axis >= lead else 0
        data = replace(given, axis=axis)
        step.need(0, data)
    if data.axis >= depth:
        if indices is not None:
            raise step.blocked("looks the samples of one batch up in another")
        step.need(2, replace(data, axis=lead + data.axis - depth))
        return [data]
    place = indices or _index_batch(step, data, data.axis)
    step.need(2, place)
    return [data]


def _reverse_sequence(step: Step) -> list[Spread | None]:
    spread = step.spread(0)
    if spread is None or spread.axis != int(step.attribute("batch_axis", 1)):
        raise NoRule
    step.need(1, replace(spread, axis=0))
    return [spread]


def _trilu(step: Step) -> list[Spread | None]:
    spread = step.spread(0)
    if spread is None or spread.axis >= step.rank(0) - 2:
        raise NoRule
    return [spread]


def _nothing(step: Step) -> list[Spread | None]:
    return [None] * len(step.node.output)


def _dequantizing_matmul(step: Step) -> list[Spread | None]:
    return _matmul((0, 3))(step)


_ELEMENTWISE = (
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd", "BitwiseNot",
    "BitwiseOr", "BitwiseXor", "Cast", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div", "Dropout", "Elu", "Equal", "Erf",
    "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
    "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "Pow",
    "PRelu", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus",
    "Softsign", "Sqrt", "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
)  # fmt: skip
_IMAGE = (
    "Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "InstanceNormalization", "GroupNormalization", "LRN",
    "DepthToSpace", "SpaceToDepth",
)  # fmt: skip
_POOL = (
    "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool",
)  # fmt: skip
_REDUCE = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
_COUNTS = "finds as many places as the data of the whole batch has"

RULES: dict[str, Rule] = {
    **SHAPING_RULES,
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_IMAGE, _image),
    **dict.fromkeys(_POOL, _pool),
    **dict.fromkeys(_REDUCE, _reduce),
    **dict.fromkeys(("Shape", "Size"), _nothing),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantized),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    **dict.fromkeys(("TopK", "LpNormalization"), _along(-1)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(("GatherElements", "ScatterElements"), _elements_along),
    **dict.fromkeys(("MatMul", "MatMulInteger"), _matmul((0, 1))),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _layer_normalization),
    "CastLike": _first_input,
    "QLinearMatMul": _dequantizing_matmul,
    "BatchNormalization": _batch_normalization,
    "GridSample": _grid_sample,
    "Gemm": _gemm,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Pad": _pad,
    "Resize": _resize,
    "Upsample": _resize,
    "CumSum": _cumsum,
    "MeanVarianceNormalization": _mean_variance,
    "Einsum": _einsum,
    "OneHot": _one_hot,
    "GatherND": _gather_nd,
    "ScatterND": _scatter_nd,
    "ReverseSequence": _reverse_sequence,
    "Trilu": _trilu,
    "DynamicQuantizeLinear": _whole_batch(
        "takes one scale over the whole batch, so that samples change each other's rounding",
        "Quantize the model with static scales, or make the batch of the unquantized model dynamic.",
    ),
    "NonZero": _whole_batch(_COUNTS),
    "Compress": _whole_batch(_COUNTS),
    "Unique": _whole_batch("looks at the whole batch at once"),
    "NonMaxSuppression": _whole_batch(
        "lists the boxes of all samples in one list", "Cut the model before it: onnxbench extract."
    ),
}
