"""The smallest set of nodes to keep in float32: grown along a ranking, then shrunk until nothing more can go.

There are 2^n sets, and which of them pass is not known beforehand. Two things help. The more is kept, the smaller is
the error, as a rule; and rounding errors are independent, so their squares add up. So each node has a *share* of the
squared error: at first its estimated effect (``_ranking``), scaled to what was measured of whole sets; later what the
sets that failed without it say.

To grow, prefixes of the ranking are tried: first all nodes that overflow, then the prefix that should do by the shares,
then longer and shorter ones, until a short one is known that passes. It has what is needed, and what only ranks high.
To shrink, nodes are left out: all that overflow of one operator (a network repeats itself, and what is not needed in
one layer is not needed in any, as a rule), then as many as should fit into what the tolerance leaves, those with the
smallest share for their cost first, and at last single nodes. A set whose absence still passes stays out. This is
Zeller's delta debugging with its parts chosen by the shares and not by position. When each single node was tried in
vain, the set is 1-minimal: no node can be left out by itself.

To make sure of that takes as many sets as nodes are kept. Whatever ends the search earlier (runs, time, Ctrl-C), the
best set that passed stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

from onnxbench.tuning._evaluation import OutOfBudgetError, Trial
from onnxbench.tuning._ranking import Rank

Try = Callable[[Collection[int]], Trial]
Ended = Literal["enough", "smallest", "spent", "stopped"]
"""How a search ended: nothing has to be kept; no single node can be left out; its budget was spent; by Ctrl-C."""
_ROOM = 0.9
"""The part of the tolerance that a set should take by its shares to be tried."""
_NEAR_ENOUGH = 12
"""A prefix is short enough if no prefix that is shorter by one part in so many is known not to fail."""


@dataclass(slots=True)
class Search:
    """One search.

    Attributes:
        attempt: Tries a set of kept units.
        costs: What it costs to keep each unit, above 0.
        kinds: The operator of each.
        power: The power of a score's ratio that errors add up in: 2 for lengths, 1 for squares of them.
        best: The cheapest set that passed; None before one did.
        shares: The share of each unit in the error, in units of what is allowed; infinite for what overflows.
    """

    attempt: Try
    costs: Sequence[float]
    kinds: Sequence[str]
    power: float = 2.0
    best: Trial | None = None
    shares: list[float] = field(default_factory=list)
    _tried: dict[frozenset[int], Trial] = field(default_factory=dict)

    def cost(self, kept: Collection[int]) -> float:
        """Returns what a set costs."""
        return math.fsum(self.costs[unit] for unit in kept)

    def try_out(self, kept: Collection[int]) -> Trial:
        """Tries a set, and remembers it if it is the best so far."""
        trial = self.attempt(kept)
        self._tried[trial.kept] = trial
        if trial.passed and (self.best is None or self._key(trial) < self._key(self.best)):
            self.best = trial
        return trial

    def _key(self, trial: Trial) -> tuple[float, int, float]:
        return self.cost(trial.kept), len(trial.kept), trial.score.ratio

    def _energy(self, trial: Trial) -> float:
        ratio = trial.score.ratio
        return ratio**self.power if ratio < 1e100 else math.inf

    @property
    def untried(self) -> int:
        """How many nodes of the best set were not left out of it by themselves."""
        if self.best is None:
            return 0
        return sum(self.best.kept - {unit} not in self._tried for unit in self.best.kept)

    def run(self, ranked: Callable[[], Sequence[Rank]]) -> Ended:
        """Searches, and returns how that ended; what was found is in ``best``.

        Args:
            ranked: Measures the units; asked if something has to be kept.
        """
        try:
            if self.try_out(()).passed:
                return "enough"
            self.grow(ranked())
            self.shrink()
        except OutOfBudgetError:
            return "spent"
        except KeyboardInterrupt:
            return "stopped"
        return "smallest"

    # ------------------------------------------------------------ growing

    def grow(self, ranks: Sequence[Rank]) -> None:
        """Finds a prefix of the ranking that passes, and a short one among these."""
        self.shares = [rank.effect**2 for rank in ranks]
        order = sorted(range(len(ranks)), key=self._worth, reverse=True)
        certain = sum(math.isinf(self.shares[unit]) for unit in order)
        low, high, step = -1, len(order) + 1, 1  # prefixes that fail, and that pass; what keeps all passes untried
        guess = certain
        while high - low > max(1, min(high, len(order)) // _NEAR_ENOUGH):
            trial = self.try_out(order[:guess])
            if trial.passed:
                high = guess
                if guess <= certain:
                    return
            else:
                low = guess
            self._calibrate(trial)
            wanted = self._prefix(order)
            if high > len(order):  # nothing passed so far: on by ever larger steps
                guess = min(max(wanted, low + step), len(order))
                step *= 2
            else:
                third = max(1, (high - low) // 4)
                guess = min(max(wanted, low + third), high - third)

    def _prefix(self, order: Sequence[int]) -> int:
        """Returns the length of the prefix that should pass by the shares."""
        left = list(accumulate(self.shares[unit] for unit in reversed(order)))  # of the last one, two, ...
        fits = next((count for count, share in enumerate(left) if share > _ROOM), len(order))
        return len(order) - fits

    def _calibrate(self, trial: Trial) -> None:
        """Scales the shares to what a set was measured to be off by."""
        energy = self._energy(trial)
        rest = math.fsum(
            share for unit, share in enumerate(self.shares) if unit not in trial.kept and math.isfinite(share)
        )
        if 0 < energy < math.inf and 0 < rest < math.inf:
            self.shares = [share * energy / rest for share in self.shares]

    def _worth(self, unit: int) -> tuple[float, int]:
        """Returns what a unit takes off the error for what it costs; the earlier one of equals is worth more."""
        return self.shares[unit] / self.costs[unit], -unit

    # ------------------------------------------------------------ shrinking

    def shrink(self) -> None:
        """Takes out of the best set what is not needed, until no single node can go."""
        assert self.best is not None
        self._calibrate(self.best)
        for part in self._parts_by_operator():
            self._leave_out(part)
        while len(part := self._what_should_fit()) > 1:
            self._leave_out(part)
        while (unit := self._next_single()) is not None:
            self._leave_out([unit])

    def _leave_out(self, part: Collection[int]) -> None:
        """Tries the best set without some of it; if it fails, these have a larger share than was thought."""
        assert self.best is not None
        before = self.best
        left = before.kept - frozenset(part)
        if left == before.kept:
            return
        trial = self.try_out(left)
        if trial.passed:
            return
        finite = [unit for unit in part if math.isfinite(self.shares[unit])]
        thought = math.fsum(self.shares[unit] for unit in finite)
        found = max(self._energy(trial) - self._energy(before), 2 * thought if len(part) > 1 else 0.0, 1e-9)
        for unit in finite:
            self.shares[unit] = found * (self.shares[unit] / thought if thought else 1 / len(finite))

    def _parts_by_operator(self) -> list[list[int]]:
        assert self.best is not None
        groups: dict[str, list[int]] = {}
        for unit in sorted(self.best.kept):
            if math.isinf(self.shares[unit]):
                groups.setdefault(self.kinds[unit], []).append(unit)
        return [group for group in groups.values() if 1 < len(group) < len(self.best.kept)]

    def _what_should_fit(self) -> list[int]:
        """Returns what can go by the shares, given what the tolerance leaves: as much as possible."""
        assert self.best is not None
        order = sorted((unit for unit in self.best.kept if math.isfinite(self.shares[unit])), key=self._worth)
        room = 1 - self._energy(self.best)
        sums = accumulate(self.shares[unit] for unit in order)
        return order[: sum(total <= room for total in sums)]

    def _next_single(self) -> int | None:
        """Returns the unit to leave out next: the one with the smallest share for its cost that was not tried."""
        assert self.best is not None
        kept = self.best.kept
        left = [unit for unit in kept if kept - {unit} not in self._tried]
        return min(left, key=self._worth, default=None)
