"""Seeded random values that are distributed like given ones, for sharing a model without its weights.

What should survive is what bugs depend on: element type, smallest and largest value, mean, standard deviation, the
share of zeros (sparsity), and whether there are NaN or Inf. The beta distribution, scaled to lie between the smallest
and the largest value, has exactly these parameters; a normal one would leave the range, and cut to it would miss the
mean of skewed weights such as variances.

Values are drawn from a table of at most 65,536 samples, corrected to have the wanted mean and deviation themselves.
A gigabyte then costs one table look-up per element instead of two gamma variates, and memory for one block. The
generator is NumPy's ``RandomState``, whose streams are frozen: the same name and seed give the same bytes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from onnxbench import literals
from onnxbench.weighing import BLOCK, Statistics

if TYPE_CHECKING:
    import numpy as np

_TABLE = 1 << 16
_EXACT = float(1 << 53)  # integers beyond it are not drawn: float64 has not all of them
_FEWEST = 1 << 12  # samples that are drawn at least, of which few values are an even choice


def imitate(like: Statistics, number: int, elements: int, name: str, seed: int) -> Iterator[np.ndarray]:
    """Yields random values in flat arrays of bounded size.

    Args:
        like: How they are distributed.
        number: Their element type: a float or integer one.
        elements: How many.
        name: What the values are derived from, with the seed.
        seed: The seed.
    """
    import numpy as np

    generator = np.random.RandomState(_words(name, seed))
    size = min(elements, _TABLE)
    table, rare = _table(like, number, size, generator, exact=elements <= _TABLE)
    if elements <= _TABLE:
        yield table[generator.permutation(size)]
        return
    for start in range(0, elements, BLOCK):
        count = min(BLOCK, elements - start)
        block = table[generator.randint(0, _TABLE, size=count, dtype=np.uint16)]
        if start == 0:
            places = np.unique(generator.randint(0, count, size=2 * rare.size + 16))
            block[places[generator.permutation(places.size)[: rare.size]]] = rare
        yield block


def _words(name: str, seed: int) -> list[int]:
    digest = hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest()
    return [int.from_bytes(digest[at : at + 4], "little") for at in range(0, 32, 4)]


def _table(
    like: Statistics, number: int, size: int, generator: np.random.RandomState, *, exact: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns samples, and what is too rare to be among them and must not be missing: extremes, single NaN.

    Args:
        like: The distribution.
        number: The element type.
        size: How many samples.
        generator: The source of randomness.
        exact: The samples are the tensor itself, so nothing is too rare.
    """
    import numpy as np
    from onnx import helper

    parts, rare = [], []
    for value, count in ((np.nan, like.nans), (np.inf, like.infinities), (0.0, like.zeros)):
        share = count if exact else round(size * count / like.elements)
        parts.append(np.full(share, value))
        rare.append(np.full(0 if share else count, value))
    is_float = literals.is_float(number)
    limit = np.inf if is_float else _EXACT
    if not is_float and like.zeros:  # the others are at least one away from zero
        low, high = like.minimum or 1, like.maximum or -1
        like = replace(like, minimum=min(low, high), maximum=max(low, high)) if like.zeros < like.elements else like
    values = _spread(like, size - sum(map(len, parts)), generator, exact=exact)
    if like.minimum is not None and like.maximum is not None and not exact:
        rare.append(np.clip(np.array([like.minimum, like.maximum], np.float64), -limit, limit))
    if not is_float and values.size:
        whole = np.rint(values)
        whole = np.where(whole == 0, np.copysign(1.0, values), whole)
        values = np.clip(whole, float(like.minimum or 0), float(like.maximum or 0))
        values = np.clip(values, -limit, limit)
    dtype = helper.tensor_dtype_to_np_dtype(number)
    found = []
    for array in (np.concatenate([*parts, values]), np.concatenate(rare)):
        with np.errstate(all="ignore"):
            found.append((array if is_float else array.astype(np.int64)).astype(dtype))
    return found[0], found[1]


def _spread(like: Statistics, count: int, generator: np.random.RandomState, *, exact: bool) -> np.ndarray:
    """Returns ascending values with the distribution of those that are finite and not zero."""
    import numpy as np

    held = like.elements - like.nans - like.infinities
    others = held - like.zeros
    if count <= 0 or others <= 0 or like.minimum is None or like.maximum is None or like.mean is None:
        return np.zeros(max(count, 0))
    low, high = float(like.minimum), float(like.maximum)
    spread = high - low
    mean = like.mean * held / others
    square = (float(like.std or 0.0) ** 2 + like.mean**2) * held / others
    std = math.sqrt(max(square - mean**2, 0.0)) if math.isfinite(square) else spread / 4
    if not math.isfinite(spread) or spread <= 0 or std <= 0:
        return np.full(count, min(max(mean, low), high))
    center = min(max((mean - low) / spread, 1e-9), 1 - 1e-9)
    variance = min((std / spread) ** 2, center * (1 - center) * (1 - 1e-9))
    weight = max(center * (1 - center) / variance - 1, 1e-3)
    drawn = generator.beta(center * weight, (1 - center) * weight, max(count, _FEWEST))
    drawn.sort()
    values = low + spread * drawn[((np.arange(count) + generator.random_sample()) * (drawn.size / count)).astype(int)]
    deviation = float(values.std())
    if deviation > 0:
        values = mean + (values - values.mean()) * (std / deviation)
    values = np.clip(values, low, high)
    if exact and count >= 3:
        values[0], values[-1] = low, high
    return np.asarray(values)
