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
Zeller's delta debugging with its parts chosen by the shares and not by position.

Single nodes are left out in turn, each by itself and many in one session, on the sample that fails first (``look``).
That measures what each is worth, so those that can go are left out together, as many as should fit. When each single
node was tried in vain, the set is 1-minimal: no node can be left out by itself. Whatever ends the search earlier (runs,
time, Ctrl-C), the best set that passed stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, Protocol

from onnxbench.errors import UsageError
from onnxbench.tuning._criteria import Score
from onnxbench.tuning._evaluation import OutOfBudgetError, Trial
from onnxbench.tuning._ranking import Rank


class Trying(Protocol):
    """Tries sets of kept units (``Evaluator``)."""

    def __call__(self, kept: Collection[int]) -> Trial:
        """Returns what comes of a set."""
        ...

    def look(self, sets: Sequence[frozenset[int]]) -> Sequence[Score]:
        """Returns the scores of sets that are alike on one sample, of as many of the first as it can at once."""
        ...


Ended = Literal["enough", "smallest", "spent", "stopped"]
"""How a search ended: nothing has to be kept; no single node can be left out; its budget was spent; by Ctrl-C."""
_ROOM = 0.9
"""The part of the tolerance that a set should take by its shares to be tried."""
_LEAST_SHARE = 1e-9
_FAR = 3.0
"""How many times what the tolerance leaves is tried to be left out at once, by the shares."""
_AT_ONCE = 12
"""So many single nodes are looked at at once, or half of them, the least worth first: the others may be in vain."""


@dataclass(slots=True)
class Search:
    """One search.

    Attributes:
        trying: Tries sets of kept units.
        costs: What it costs to keep each unit, above 0.
        kinds: The operator of each.
        power: The power of a score's ratio that errors add up in: 2 for lengths, 1 for squares of them.
        best: The cheapest set that passed; None before one did.
        shares: The share of each unit in the error, in units of what is allowed; infinite for what overflows.
    """

    trying: Trying
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
        trial = self.trying(kept)
        self._tried[trial.kept] = trial
        if trial.passed and (self.best is None or self._key(trial) < self._key(self.best)):
            self.best = trial
        return trial

    def _key(self, trial: Trial) -> tuple[float, int, float]:
        return self.cost(trial.kept), len(trial.kept), trial.score.ratio

    def _energy(self, score: Score) -> float:
        return score.ratio**self.power if score.ratio < 1e100 else math.inf

    @property
    def untried(self) -> int:
        """How many nodes of the best set were not left out of it by themselves."""
        return 0 if self.best is None else len(self._untried())

    def run(self, ranked: Callable[[], Sequence[Rank]]) -> Ended:
        """Searches, and returns how that ended; what was found is in ``best``.

        Args:
            ranked: Measures the units; asked if something has to be kept.

        Raises:
            UsageError: Not even all units kept pass.
        """
        try:
            if self.try_out(()).passed:
                return "enough"
            self.grow(ranked())
            if self.best is None:
                raise UsageError(
                    "the model itself does not meet the tolerance: with every node kept as it is, it does not pass",
                    hint="The tolerance asks for more than the metric can give, or --on rounds otherwise.",
                )
            self.shrink()
        except OutOfBudgetError:
            return "spent"
        except KeyboardInterrupt:
            return "stopped"
        return "smallest"

    # ------------------------------------------------------------ growing

    def grow(self, ranks: Sequence[Rank]) -> None:
        """Finds a prefix of the ranking that passes; what keeps all does without doubt."""
        self.shares = [rank.effect**2 for rank in ranks]
        order = sorted(range(len(ranks)), key=self._worth, reverse=True)
        length = sum(math.isinf(share) for share in self.shares)
        while not (trial := self.try_out(order[:length])).passed and length < len(order):
            self._calibrate(trial)
            length = min(max(self._prefix(order), 2 * length, 1), len(order))

    def _prefix(self, order: Sequence[int]) -> int:
        """Returns the length of the prefix that should pass by the shares."""
        left = list(accumulate(self.shares[unit] for unit in reversed(order)))  # of the last one, two, ...
        fits = next((count for count, share in enumerate(left) if share > _ROOM), len(order))
        return len(order) - fits

    def _calibrate(self, trial: Trial) -> None:
        """Scales the shares to what a set was measured to be off by."""
        energy = self._energy(trial.score)
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
        while self._leave_out_most(self._least_worth(self.best.kept), least=2):
            pass
        while units := self._untried():
            if not self._leave_out_each(units[: max(_AT_ONCE, len(units) // 2)]):
                self._leave_out_each(self._untried())

    def _leave_out(self, part: Collection[int]) -> bool:
        """Tries the best set without some of it, and returns whether that passes."""
        assert self.best is not None
        before = self.best
        left = before.kept - frozenset(part)
        if left == before.kept:
            return False
        trial = self.try_out(left)
        if not trial.passed:
            self._learn(part, self._energy(trial.score) - self._energy(before.score))
        return trial.passed

    def _leave_out_most(self, units: Sequence[int], *, least: int = 1) -> bool:
        """Tries the best set without the first of these units, as many as can go, and returns whether any can.

        Args:
            units: The units.
            least: How few are worth a try.
        """
        assert self.best is not None
        kept = self.best.kept
        counts = [count for count in self._steps(units) if count >= least]
        while counts:
            scores = self.trying.look([kept - frozenset(units[:count]) for count in counts])
            for count, score in zip(counts, scores, strict=False):  # it need not have looked at all of them
                if score.passed and self._leave_out(units[:count]):
                    return True
            counts = counts[len(scores) :]
        return False

    def _steps(self, units: Sequence[int]) -> list[int]:
        """Returns how many units to leave out at once, the most first: by the shares, that is too much by far."""
        assert self.best is not None
        room = _FAR * (1 - self._energy(self.best.score))
        most = sum(total <= room for total in accumulate(self.shares[unit] for unit in units))
        counts = [most or min(1, len(units))]
        while counts[-1] > 1:
            counts.append(counts[-1] * 2 // 3)
        return counts

    def _untried(self) -> list[int]:
        """Returns the units that were not left out of the best set by themselves, those first that are least worth."""
        assert self.best is not None
        kept = self.best.kept
        return self._least_worth(unit for unit in kept if kept - {unit} not in self._tried)

    def _leave_out_each(self, units: Sequence[int]) -> bool:
        """Tries the best set without each of these units by itself, then without those together that can go.

        Returns whether any can.
        """
        assert self.best is not None
        before = self.best
        scores = self.trying.look([before.kept - {unit} for unit in units])
        going: list[int] = []
        for unit, score in zip(units, scores, strict=False):  # it need not have looked at all of them
            self._learn([unit], self._energy(score) - self._energy(before.score))
            if score.passed:
                going.append(unit)
            else:
                self.try_out(before.kept - {unit})  # which is known
        return self._leave_out_most(self._least_worth(going))

    def _learn(self, part: Collection[int], more: float) -> None:
        """Takes over by how much the error grows without some units, as their share in it.

        Several together have twice the share that was thought at least, so that they are not tried again.
        """
        finite = [unit for unit in part if math.isfinite(self.shares[unit])]
        thought = math.fsum(self.shares[unit] for unit in finite)
        found = max(more, 2 * thought if len(part) > 1 else 0.0, _LEAST_SHARE)
        for unit in finite:
            self.shares[unit] = found * (self.shares[unit] / thought if thought else 1 / len(finite))

    def _parts_by_operator(self) -> list[list[int]]:
        assert self.best is not None
        groups: dict[str, list[int]] = {}
        for unit in sorted(self.best.kept):
            if math.isinf(self.shares[unit]):
                groups.setdefault(self.kinds[unit], []).append(unit)
        return [group for group in groups.values() if 1 < len(group) < len(self.best.kept)]

    def _least_worth(self, units: Iterable[int]) -> list[int]:
        """Returns units in order, those first that are least worth to be kept."""
        return sorted(units, key=self._worth)
