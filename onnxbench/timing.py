"""How long runs took, as a table of a few numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Latency:
    """How long runs took. Times are in milliseconds, over ``runs`` runs after ``warmup`` that do not count.

    Attributes:
        runs: Timed runs.
        warmup: Runs before them.
        mean_ms: Mean.
        median_ms: Median.
        p95_ms: 95 % of the runs took at most this.
        min_ms: Shortest.
        max_ms: Longest.
        std_ms: Standard deviation.
        fps: Runs per second, 1000 / mean.
    """

    runs: int
    warmup: int
    mean_ms: float
    median_ms: float
    p95_ms: float
    min_ms: float
    max_ms: float
    std_ms: float
    fps: float


def summarize(times: Iterable[float], warmup: int) -> Latency:
    """Returns the table of runs that took these times, in milliseconds; there is at least one.

    Args:
        times: The times of the runs that count.
        warmup: How many runs before them did not.
    """
    ordered = sorted(times)
    runs = len(ordered)
    mean = math.fsum(ordered) / runs
    return Latency(
        runs=runs,
        warmup=warmup,
        mean_ms=mean,
        median_ms=(ordered[(runs - 1) // 2] + ordered[runs // 2]) / 2,
        p95_ms=ordered[math.ceil(0.95 * runs) - 1],
        min_ms=ordered[0],
        max_ms=ordered[-1],
        std_ms=math.sqrt(math.fsum((t - mean) ** 2 for t in ordered) / runs),
        fps=1e3 / mean,
    )
