"""The smallest set of nodes to keep in float32: grown along a ranking, then shrunk until nothing more can go.

The sets that pass are not known beforehand, and there are 2^n of them; but the more is kept, the smaller is the error,
as a rule. So a prefix of the ranking is grown until it passes: first all nodes that overflow, then twice as many, and
so on; the shortest prefix that passes is found by halving. It has what is needed, and what only ranks high. The second
half is delta debugging (Zeller's ddmin, for complements): parts of the set are taken out, halves first, then smaller
ones, at last single nodes, those with the least effect for their cost first; a part whose absence still passes stays
out. When every single node was tried in vain, the set is 1-minimal: no single node can be left out.

Before that, all nodes of one operator are tried together: a network repeats itself, and what is not needed in one layer
is not needed in any, as a rule.

Costs: about 2 log2(n) sets to grow, then between 2 log2(k) sets for a set of k nodes of which few are needed and 2k for
one of which all are. Whatever ends the search (runs, time, Ctrl-C), the best set that passed stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from onnxbench.tuning._evaluation import Trial
from onnxbench.tuning._ranking import Rank

Try = Callable[[Collection[int]], Trial]


@dataclass(slots=True)
class Search:
    """One search.

    Attributes:
        attempt: Tries a set of kept units.
        ranks: What is known of each unit; asked for when something fails.
        costs: What it costs to keep each unit.
        kinds: The operator of each.
        best: The cheapest set that passed; None before one did.
        is_minimal: Whether every single node of it was tried in vain.
    """

    attempt: Try
    costs: Sequence[float]
    kinds: Sequence[str]
    best: Trial | None = None
    is_minimal: bool = False

    def cost(self, kept: Collection[int]) -> float:
        """Returns what a set costs."""
        return math.fsum(self.costs[unit] for unit in kept)

    def passes(self, kept: Collection[int]) -> bool:
        """Tries a set, and remembers it if it is the best so far."""
        trial = self.attempt(kept)
        if trial.passed and (self.best is None or self._key(trial) < self._key(self.best)):
            self.best = trial
        return trial.passed

    def _key(self, trial: Trial) -> tuple[float, int]:
        return self.cost(trial.kept), len(trial.kept)

    def worth(self, ranks: Sequence[Rank], unit: int) -> float:
        """Returns the effect of a unit for what it costs to keep."""
        effect = ranks[unit].effect
        return effect if math.isinf(effect) else effect**2 / max(self.costs[unit], 1e-12)

    def grow(self, ranks: Sequence[Rank]) -> None:
        """Finds a prefix of the ranking that passes, and a short one among these."""
        order = sorted(range(len(ranks)), key=lambda unit: (-self.worth(ranks, unit), unit))
        certain = sum(math.isinf(ranks[unit].effect) for unit in order)
        low, high = 0, certain
        if not certain or not self.passes(order[:certain]):
            low, step = certain, max(1, certain // 4)
            high = min(certain + step, len(order))
            while not self.passes(order[:high]) and high < len(order):
                low, step = high, 2 * step
                high = min(high + step, len(order))
        if high > certain:
            while high - low > max(1, high // 16):
                middle = (low + high) // 2
                if self.passes(order[:middle]):
                    high = middle
                else:
                    low = middle

    def shrink(self, ranks: Sequence[Rank]) -> None:
        """Takes out of the best set what is not needed, until no single node can go."""
        for part in self._parts_by_operator(ranks):
            self._leave_out(part)
        assert self.best is not None
        size = max(1, len(self.best.kept) // 2)
        while self.best.kept:
            before = self.best.kept
            for part in self._parts(ranks, size):
                self._leave_out(part)
            if size > 1:
                size = max(1, min(size, len(self.best.kept)) // 2)
            elif self.best.kept == before:
                break
        self.is_minimal = True

    def _leave_out(self, part: Collection[int]) -> None:
        assert self.best is not None
        left = self.best.kept - frozenset(part)
        if left != self.best.kept:
            self.passes(left)

    def _parts_by_operator(self, ranks: Sequence[Rank]) -> list[list[int]]:
        assert self.best is not None
        groups: dict[str, list[int]] = {}
        for unit in self._by_worth(ranks):
            groups.setdefault(self.kinds[unit], []).append(unit)
        return [group for group in groups.values() if 1 < len(group) < len(self.best.kept)]

    def _parts(self, ranks: Sequence[Rank], size: int) -> Iterator[list[int]]:
        order = self._by_worth(ranks)
        for start in range(0, len(order), size):
            yield order[start : start + size]

    def _by_worth(self, ranks: Sequence[Rank]) -> list[int]:
        """Returns the best set, what is worth the least first."""
        assert self.best is not None
        return sorted(self.best.kept, key=lambda unit: (self.worth(ranks, unit), -self.costs[unit], unit))
