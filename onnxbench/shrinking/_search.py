"""The smallest part of a model that still shows something: cuts first, then delta debugging.

*Problem.* Whether a part shows the failure is found out by trying it, which may take a second or a minute, so what
counts is how many parts are tried.

*Way.* A binary search over cuts finds how much of the end can go, and another how much of the front: about twice
log2(n) tries, which for a failure that one node makes leaves that node. What is left is reduced by delta debugging
(Zeller's ddmin): halves, quarters and so on of the nodes, alone and left out, until no single node can go.

A cut that does not show the failure does not prove that a shorter one shows none either. The search takes it so, which
costs nothing but size: what it ends with was tried and shows the failure.

Every step is deterministic, and at any time ``best`` is the smallest part so far that shows the failure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from typing import TypeVar

from onnxbench.boundary import reach_back
from onnxbench.errors import BenchError, UsageError
from onnxbench.shrinking._specimens import Specimen, Specimens

Check = Callable[[Specimen], bool]
T = TypeVar("T")
_MOST_OUTPUTS = 16
_REBASE_BELOW = 0.7


class OutOfRunsError(Exception):
    """The search has made all the tries that it may."""


class Shrinker:
    """A search for the smallest part of a model that shows a failure.

    Args:
        specimens: The model.
        check: Tells whether a part shows the failure.
        max_runs: How many parts may be tried.

    Attributes:
        best: The smallest part that shows it so far.
        runs: How many were tried.
        shown: Whether one of them showed the failure.
        heard: Called after each try.
    """

    def __init__(self, specimens: Specimens, check: Check, *, max_runs: int) -> None:
        self._specimens, self._check = specimens, check
        self._max_runs = max_runs
        self.heard: Callable[[], None] = lambda: None
        self._units: tuple[int, ...] = specimens.units
        self._outputs: tuple[str, ...] | None = None
        self._tried: dict[tuple[frozenset[int], tuple[str, ...] | None], bool] = {}
        self.best: Specimen = specimens.whole()
        self.runs = 0
        self.shown = False

    @property
    def units(self) -> tuple[int, ...]:
        """Positions of the nodes that are left, in ``specimens``."""
        return self._units

    @property
    def specimens(self) -> Specimens:
        """What the current part is cut from: the model, or a part of it."""
        return self._specimens

    def try_specimen(self, specimen: Specimen) -> bool:
        """Tells whether a part shows the failure.

        Raises:
            OutOfRunsError: It cannot be tried any more.
        """
        if self.runs >= self._max_runs:
            raise OutOfRunsError
        self.runs += 1
        try:
            found = self._check(specimen)
            self.shown = self.shown or found
            return found
        except UsageError:  # about what is asked, not about the part
            raise
        except BenchError:  # it does not run, or not on these values: another failure than the one looked for
            return False
        finally:
            self.heard()

    def shows(self, nodes: Collection[int], outputs: Sequence[str] | None = None) -> bool:
        """Tells whether these nodes show the failure, and keeps them if they are the fewest so far."""
        chosen, wanted = frozenset(nodes), None if outputs is None else tuple(outputs)
        if not chosen:
            return False
        known = self._tried.get((chosen, wanted))
        if known is not None:
            return known
        try:
            specimen = self._specimens.make(chosen, wanted)
        except BenchError:  # no such part can be made
            found = False
        else:
            found = self.try_specimen(specimen)
            if found and (specimen.nodes, len(specimen.outputs)) <= (self.best.nodes, len(self.best.outputs)):
                self.best = specimen
        self._tried[chosen, wanted] = found
        return found

    def _keep(self, units: Sequence[int]) -> None:
        """Goes on with some of the nodes, from a model of these alone if that saves much."""
        self._units = tuple(units)
        specimens = self._specimens
        if len(self._units) < _REBASE_BELOW * len(specimens.units) and self.best.nodes == len(
            specimens.with_constants(self._units)
        ):
            self._specimens = specimens.of(self.best.model)
            self._units = self._specimens.units
            self._tried = {(frozenset(self._units), None): True}

    # ---- steps

    def start_with(self, nodes: Collection[int]) -> bool:
        """Goes on with some of the nodes if these show the failure."""
        units = [at for at in self._units if at in set(nodes)]
        if len(units) >= len(self._units) or not self.shows(units):
            return False
        self._keep(units)
        return True

    def cut_back(self) -> None:
        """Cuts off as much of the end as can go, and what the last node left does not need."""
        units = self._units
        low, high = 0, len(units)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.shows(units[:middle]) else (middle, high)
        if high < len(units):
            units = units[:high]
        needed = self._needed(units[-1:])
        above = [at for at in units if at in needed]
        if len(above) < len(units) and self.shows(above):
            units = tuple(above)
        self._keep(units)

    def _needed(self, nodes: Sequence[int]) -> set[int]:
        scope = self._specimens.scope
        return reach_back(scope, [name for at in nodes for name in scope.writes[at]], ()).nodes

    def cut_front(self) -> None:
        """Cuts off as much of the front as can go."""
        units = self._units
        low, high = 0, len(units)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.shows(units[middle:]) else (low, middle)
        self._keep(units[low:])

    def delta_debug(self) -> None:
        """Leaves out nodes until none can go."""
        self._keep(fewest(self._units, self.shows))

    def drop_outputs(self) -> None:
        """Leaves one output, with what it needs, if one shows the failure."""
        outputs = self.best.outputs
        if len(outputs) < 2:
            return
        scope = self._specimens.scope
        for name in outputs[:_MOST_OUTPUTS]:
            needed = reach_back(scope, [name], ()).nodes
            if self.shows([at for at in self._units if at in needed], [name]):
                self._units = tuple(at for at in self._units if at in needed)
                return


def fewest(items: Sequence[T], shows: Callable[[Sequence[T]], bool]) -> list[T]:
    """Returns items of which none can be left out so that it still shows, by delta debugging; all of them together do.

    Halves are tried, alone and left out, then quarters, and so on until each item was left out by itself.
    """
    left, count = list(items), 2
    while len(left) > 1:
        count = min(count, len(left))
        bounds = [len(left) * at // count for at in range(count + 1)]
        chunks = [left[one:other] for one, other in pairwise(bounds)]
        alone = next((chunk for chunk in chunks if shows(chunk)), None)
        if alone is not None:
            left, count = alone, 2
            continue
        rests = ([item for at, chunk in enumerate(chunks) if at != gone for item in chunk] for gone in range(count))
        rest = next((each for each in rests if shows(each)), None) if count > 2 else None
        if rest is not None:
            left, count = rest, max(2, count - 1)
        elif count < len(left):
            count *= 2
        else:
            break
    return left
