"""What a search found, as data: the verdict, culprits, amplifiers, modules, and a row for every tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxbench.bisection._failing import FailingPiece
from onnxbench.bisection._measures import Distance
from onnxbench.drift import TensorDrift, Tolerance, are_nan

if TYPE_CHECKING:
    from onnxbench.bisection._evidence import Evidence
    from onnxbench.bisection._unexercised import UnrunBody

CLEAN, ROUNDING, DRIFT, SPREAD, FAILED = "clean", "rounding", "drift", "spread", "failed"
_NEAR = 4
"""A region of more nodes is not one place."""


@dataclass(frozen=True, slots=True)
class Culprit:
    """A node whose own computation goes wrong.

    Attributes:
        node: Its label.
        op_type: Its operator, with the domain if it is not the standard one.
        tensor: The tensor that it makes (of several, the one that is furthest off).
        partner: What the reference calls this tensor.
        region: All nodes that may be meant: those between this tensor and the matched ones before it. One, as a rule.
        reference_region: The reference's nodes that do the same; empty for recorded values.
        own: How far the tensor is from the reference's when the node is fed the reference's values.
        inherited: How far the suspect's tensor is from that; None if there was nothing to inherit.
        total: How far the suspect's tensor is from the reference's.
        excess: The own error over what rounding explains; infinite for NaN, Inf and other shapes.
        effect: The share of the final outputs' error that goes away when the tensor is mended (its own error taken
            away); None where the outputs have no error.
        why: What differs between the node and its partner in the files, in words.
        module: Its PyTorch module, or None.
        source: Its PyTorch source line, or None.
        code: The text of that line, or None.
        function: The local function that it belongs to, or None.
        number: Which set of inputs this was seen on.
        iteration: Of a Loop or a Scan, the first iteration that goes wrong when it is fed the reference's states.
        inner: Of an If, a Loop or a Scan, the culprits in its body, named by their paths (``If_3/then/Conv_1``).
        attributes: The node's attributes, in words: ``axis=-1, epsilon=1e-05``.
        narrowed: How the node was told from others of its region, in words; or ``""``.
    """

    node: str
    op_type: str
    tensor: str
    partner: str
    region: tuple[str, ...]
    own: Distance
    inherited: Distance | None
    total: Distance
    excess: float
    effect: float | None = None
    why: tuple[str, ...] = ()
    module: str | None = None
    source: str | None = None
    code: str | None = None
    function: str | None = None
    number: int = 0
    reference_region: tuple[str, ...] = ()
    iteration: int | None = None
    inner: tuple[Culprit, ...] = ()
    attributes: str = ""
    narrowed: str = ""

    @property
    def place(self) -> str:
        """Node, operator and source in one phrase: ``/encoder/Gelu (Gelu, bert.py:412)``."""
        return f"{self.node} ({', '.join(word for word in (self.op_type, self.source or self.module) if word)})"


@dataclass(frozen=True, slots=True)
class Amplifier:
    """A node that makes more of an error that it inherits, and none of its own.

    Attributes:
        node: Its label.
        op_type: Its operator.
        tensor: What it makes.
        before: The largest relative error among its inputs.
        after: The relative error of its output.
        growth: The one over the other.
    """

    node: str
    op_type: str
    tensor: str
    before: float
    after: float
    growth: float


@dataclass(frozen=True, slots=True)
class ModuleError:
    """The errors within a PyTorch module (or the part of a name before a slash).

    Attributes:
        path: The module.
        tensors: How many matched tensors its nodes make, those of modules within included.
        own: The largest own error over what rounding explains.
        total: The largest relative error.
    """

    path: str
    tensors: int
    own: float
    total: float


@dataclass(frozen=True, slots=True)
class Row:
    """One matched tensor.

    Attributes:
        tensor: The suspect's name.
        partner: The reference's.
        node: The node that makes it.
        op_type: Its operator.
        total: How far the suspect's value is from the reference's.
        own: Its own error; None where it could not be judged, or where that is not needed (``settled``).
        inherited: Its inherited error; None likewise.
        excess: The own error over what rounding explains.
        number: The set of inputs that this was measured on: the worst one.
        note: Why it could not be judged, or ``""``.
        inputs: The tensors that its value depends on and that were compared, and inputs of the model.
        region: How many nodes lie between these and the tensor: one, where every tensor has a partner.
        precision: The coarser unit of precision of both sides; 0 for integers and the like.
        module: The PyTorch module of the node, or None.
        source: Its PyTorch source line, or None.
        code: The text of that line, or None.
        allowed: What an element may be off for ``total.failing``: told, calibrated, or by the element types.
        settled: Whether the own error was not measured since it is within rounding: the tensor is right, and so is all
            that its node reads, as they are or once the culprits before it are mended.
        drift: All that there is to know of ``total``: mean and 99 % of the differences, relative ones, units in the
            last place, cosine, SQNR. None without ``evidence``.
    """

    tensor: str
    partner: str
    node: str
    op_type: str
    total: Distance
    own: Distance | None
    inherited: Distance | None
    excess: float
    number: int
    note: str
    inputs: tuple[str, ...] = ()
    region: int = 1
    precision: float = 0.0
    module: str | None = None
    source: str | None = None
    code: str | None = None
    allowed: Tolerance | None = None
    settled: bool = False
    drift: TensorDrift | None = None

    @property
    def is_judged(self) -> bool:
        """Whether it is known if the node that makes it is right."""
        return self.own is not None or self.settled


@dataclass(frozen=True, slots=True)
class Bisection:
    """What a search found.

    Attributes:
        suspect: The suspect, in words.
        reference: The reference, in words.
        kind: ``clean``; ``rounding``: outputs differ, and no node does more than round; ``drift``: there are culprits;
            ``spread``: outputs differ, and many nodes do about equally; ``failed``: the suspect does not run.
        passed: Whether there is no drift: no culprit, no output beyond a tolerance that was given, and not NaN alone on
            both sides.
        verdict: One line.
        how: What told which tensor is which.
        matched: How many tensors were compared.
        unmatched: How many of the suspect's have no partner.
        sets: How many sets of inputs were compared.
        outputs: The model's outputs compared, on the set where each is worst; nothing was looked at within.
        culprits: The culprits, by their effect on the outputs.
        explained: The share of the outputs' error that goes away when all culprits are replaced; None likewise.
        median: The median own error of all nodes: what is rounding here. Taken as 0 where it is settled.
        amplifiers: Nodes that make more of an error that they inherit.
        modules: Errors by module, in the order of the model; empty where nodes tell of none.
        tensors: All tensors that were compared, in the order of the model.
        choices: What was decided about the inputs without being told.
        notes: What else a user should know.
        evidence: Digests of all that was compared, and values around the culprits; None unless asked for.
        failure: Which part makes the suspect fail, where it does not run; nothing was compared then.
        worst_sets: The set of inputs that each of ``outputs`` is about, the one on which it is furthest off.
        unrun: Bodies of If, Loop and Scan in which two files differ and that no set of inputs ran.
    """

    suspect: str
    reference: str
    kind: str
    passed: bool
    verdict: str
    how: str
    matched: int
    unmatched: int
    sets: int
    outputs: tuple[TensorDrift, ...]
    culprits: tuple[Culprit, ...]
    explained: float | None
    median: float
    amplifiers: tuple[Amplifier, ...]
    modules: tuple[ModuleError, ...]
    tensors: tuple[Row, ...]
    choices: tuple[str, ...]
    notes: tuple[str, ...]
    evidence: Evidence | None = None
    failure: FailingPiece | None = None
    worst_sets: tuple[int, ...] = ()
    unrun: tuple[UnrunBody, ...] = ()

    @property
    def unjudged(self) -> tuple[Row, ...]:
        """Tensors whose own error could not be told."""
        return tuple(row for row in self.tensors if not row.is_judged)

    def judged(self, drift: TensorDrift) -> str:
        """Returns what an output comes to: ``passed``, ``FAILED``, or ``rounding``.

        The last one is beyond its element type's tolerance, and no drift: no node does more than round.
        """
        if drift.passed:
            return "passed"
        return "rounding" if self.passed else "FAILED"

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain values, with a word for each of the outputs."""
        judged = [self.judged(drift) for drift in self.outputs]
        return {**{name: getattr(self, name) for name in self.__slots__}, "judged": judged}


def failed(suspect: str, reference: str, sets: int, failure: FailingPiece, notes: tuple[str, ...]) -> Bisection:
    """Returns what is told of a suspect that does not run."""
    return Bisection(
        suspect=suspect, reference=reference, kind=FAILED, passed=False, verdict=failure.verdict, how="", matched=0,
        unmatched=0, sets=sets, outputs=(), culprits=(), explained=None, median=0.0, amplifiers=(), modules=(),
        tensors=(), choices=(), notes=notes, failure=failure,
    )  # fmt: skip


def verdict(
    kind: str,
    culprits: tuple[Culprit, ...],
    outputs: tuple[TensorDrift, ...],
    median: float,
    judged: int,
    unstable: str = "",
    most: str = "",
) -> str:
    """Returns the one line that says it all.

    Args:
        kind: As of ``Bisection``, like those that follow.
        culprits: The culprits.
        outputs: The outputs.
        median: The median own error.
        judged: How many tensors were judged.
        unstable: What rounding decides, if anything.
        most: Which node is furthest off by itself, where that is no more than rounding explains.
    """
    worst = max((_relative(drift) for drift in outputs), default=0.0)
    if kind == CLEAN and not outputs:
        return f"no drift in {judged:,} tensors; the reference has none of the outputs, so these were not compared"
    if kind == CLEAN and not any(drift.elements for drift in outputs):
        return "nothing can be told of the outputs: they have no elements"
    if kind == CLEAN and are_nan(outputs):
        return "nothing can be told of the outputs: they are NaN throughout on both sides"
    if kind == CLEAN:
        same = all(drift.bitwise_equal for drift in outputs)
        return f"no drift: {'outputs are equal bit for bit' if same else f'outputs agree within {worst:.1e}'}"
    if kind == ROUNDING and unstable:
        return f"outputs differ by {worst:.1e}, and rounding decides: {unstable}"
    if kind == ROUNDING:
        said = f" ({most})" if most else ""
        return f"no node is to blame: outputs differ by {worst:.1e}, and no node does more than round{said}"
    if kind == SPREAD:
        return (
            f"outputs differ by {worst:.1e}, and nodes do about equally (an own error of {median:.1e} each): the "
            "models differ in precision or weights throughout"
        )
    first = culprits[0]
    while first.inner:
        first = first.inner[0]
    inherited = first.inherited.text if first.inherited is not None else "0"
    more = f", and {len(culprits) - 1} more" if len(culprits) > 1 else ""
    what = {"nonfinite": "makes NaN or Inf out of finite values", "shape": "makes another shape"}.get(first.own.problem)
    if first.own.problem == "nonfinite" and first.own.missing == first.own.nonfinite:
        what = "makes finite values where the reference has NaN or Inf"
    where = f"at {first.place}"
    if len(first.region) > _NEAR and not first.narrowed:
        where = f"within the {len(first.region):,} nodes that end in {first.place}"
    return f"drift starts {where}: {what or f'own error {first.own.text}, inherited {inherited}'}{more}"


def _relative(drift: TensorDrift) -> float:
    if drift.bitwise_equal:
        return 0.0
    if drift.sqnr_db is None:
        return math.inf
    return float(10 ** (-drift.sqnr_db / 20))
