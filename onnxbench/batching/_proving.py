"""Whether a model with a free batch still computes each sample as before: it is run.

Three samples are run one by one through the model as it was, and at once through the new one. What the new one makes is
taken apart along the batch, and every part must equal what the sample gave alone.

They are rarely equal bit for bit: matrix products are summed up in another order for another number of rows. So a
value may be off by ``rtol`` of itself plus ``atol`` of the largest value of its tensor: 1e-3 and 1e-4 for float32, 1e-2
and 1e-2 for float16, 3e-2 and 3e-2 for bfloat16, 1e-7 and 1e-8 for float64, nothing for integers, truth values and
strings. An output may also be off by four times what the runtime's own graph optimizations change of it. NaN and
infinity on one side only fail before any number is looked at. Inner tensors are compared, too, a hundred times as
generously: outputs that vanish on drawn inputs agree with anything. The new model at the old batch must equal the old
one bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxbench import backends
from onnxbench.batching._tracing import Blocked, Mend, Spread
from onnxbench.drift import EXACT, TensorDrift, Tolerance, compare
from onnxbench.errors import ExecutionError, RefusedResultError

if TYPE_CHECKING:
    from onnxbench.draft import Draft
    from onnxbench.model import Model

SAMPLES = 3
"""So many samples are run at once and one by one."""
_AT_ONCE = 1 << 28
_GENEROUS = 100
_NOISE = 4
_PLAIN = backends.Options("none")
_LIMITS = {
    "float64": (1e-8, 1e-7), "float32": (1e-4, 1e-3), "float16": (1e-2, 1e-2), "bfloat16": (3e-2, 3e-2),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ProvenRows:
    """How one output of the new model compares with the old one, sample by sample.

    Attributes:
        name: The output.
        axis: The axis along which the samples lie; None if it does not depend on the batch.
        exact: Whether every row is equal bit for bit.
        worst: The worst comparison among the samples.
    """

    name: str
    axis: int | None
    exact: bool
    worst: TensorDrift


@dataclass(frozen=True, slots=True)
class BatchProof:
    """What running the new model showed.

    Attributes:
        batches: The batches that it was run at.
        outputs: Every output at the largest of them.
        same_at_old: Whether the outputs at the old batch equal the old model's bit for bit.
        inner: How many inner tensors were compared.
        worst_inner: The inner tensor that is furthest off, as a share of its largest value; None if there is none.
        worst_share: That share.
        notes: What weakens the proof.
    """

    batches: tuple[int, ...]
    outputs: tuple[ProvenRows, ...]
    same_at_old: bool
    inner: int
    worst_inner: str | None
    worst_share: float
    notes: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether every row of every output is equal bit for bit."""
        return all(each.exact for each in self.outputs)


Interim = Callable[["Draft", Sequence[Mend], Mapping[str, int], int], "Model"]


class Prover:
    """The model as it was, on three samples."""

    def __init__(
        self,
        draft: Draft,
        samples: list[dict[str, Any]],
        carrying: Mapping[str, int],
        batch: int,
        interim: Interim,
        *,
        atol: float | None,
        rtol: float | None,
    ) -> None:
        import numpy as np

        self._draft = draft
        self._samples = samples
        self._carrying = carrying
        self._batch = batch
        self._interim = interim
        self._limits = atol, rtol
        self._joint = {
            name: np.concatenate([each[name] for each in samples], axis=carrying[name]) if name in carrying else value
            for name, value in samples[0].items()
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the main graph's tensors on the first sample."""
        scope = self._draft.main
        names = list(dict.fromkeys(name for made in scope.writes for name in made))
        found = (
            dict(backends.observed_shapes(self._draft.model, self._samples[0], names, options=_PLAIN)) if names else {}
        )
        found.update((tensor.name, tuple(tensor.dims)) for tensor in scope.graph.initializer)
        found.update((each.values.name, tuple(each.dims)) for each in scope.graph.sparse_initializer)
        found.update((name, tuple(value.shape)) for name, value in self._samples[0].items() if hasattr(value, "shape"))
        return found

    def value_of(self, name: str) -> Any:
        """Returns the values of a tensor on the first sample."""
        return self._run(self._draft.model, self._samples[0], [name])[name]

    def _run(self, model: Model, feeds: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        return backends.run_with_outputs(model, feeds, names, options=_PLAIN)

    def probe(self, position: int, mends: Sequence[Mend]) -> list[Spread | None]:
        """Returns where the batch is in the outputs of a node, found by running it.

        Raises:
            Blocked: It mixes samples up, or fails.
        """
        node = self._draft.main.nodes[position]
        names = [name for name in node.output if name]
        inside = self._inside(position)
        alone = [self._run(self._draft.model, sample, names) for sample in self._samples]
        try:
            joint = self._run(self._interim(self._draft, mends, self._carrying, self._batch), self._joint, names)
        except ExecutionError as error:
            raise Blocked(position, f"fails at a batch of {SAMPLES * self._batch}: {error.message}", inside) from None
        found: dict[str, Spread | None] = {}
        for name in names:
            places = self._places([each[name] for each in alone], joint[name])
            if not places:
                raise Blocked(position, "mixes the samples of a batch up, or makes no rows of them", inside)
            found[name] = places[0]
        return [found.get(name) for name in node.output]

    def _inside(self, position: int) -> str | None:
        scope = self._draft.main
        if self._draft.index.function_of(scope.nodes[position]) is not None:
            return "Functions are not repaired inside; inline them first."
        return "Bodies are not repaired inside." if position in scope.bodies else None

    def _places(self, alone: Sequence[Any], joint: Any, generosity: float = _GENEROUS) -> list[Spread | None]:
        """Returns the ways in which samples can lie in a tensor, those first that the values agree with."""
        if not hasattr(joint, "shape") or not all(hasattr(each, "shape") for each in alone):
            return []
        one, many = alone[0].shape, joint.shape
        if one == many:
            same = all(self._compare(each, joint, "").passed for each in alone)
            return [None] if same else []
        if len(one) != len(many):
            return []
        axes = [axis for axis in range(len(one)) if one[axis] != many[axis]]
        if len(axes) != 1 or many[axes[0]] != SAMPLES * one[axes[0]] or one[axes[0]] % self._batch:
            return []
        factor = one[axes[0]] // self._batch
        outers = [outer for outer in range(1, factor + 1) if factor % outer == 0] or [1]
        return [
            spread
            for spread in (Spread(axes[0], outer, factor // outer) for outer in outers)
            if all(
                self._compare(each, part, "", generosity).passed
                for each, part in zip(alone, self._parts(joint, spread), strict=True)
            )
        ]

    def _parts(self, value: Any, spread: Spread) -> list[Any]:
        """Returns what each sample has of a tensor in which several lie."""
        import numpy as np

        moved = np.moveaxis(value, spread.axis, 0)
        rows, rest = moved.shape[0] // (spread.outer * SAMPLES), moved.shape[1:]
        blocks = moved.reshape(spread.outer, SAMPLES, rows, *rest)
        parts = (blocks[:, number].reshape(spread.outer * rows, *rest) for number in range(SAMPLES))
        return [np.moveaxis(part, 0, spread.axis) for part in parts]

    def _compare(
        self, expected: Any, actual: Any, name: str, generosity: float = 1, *, noise: float = 0.0
    ) -> TensorDrift:
        return compare(expected, actual, self._tolerance(expected, generosity, noise), name=name)

    def _tolerance(self, expected: Any, generosity: float, noise: float) -> Tolerance:
        limits = _LIMITS.get(expected.dtype.name)
        if limits is None:
            return EXACT
        atol, rtol = (given if given is not None else usual for given, usual in zip(self._limits, limits, strict=True))
        absolute = max(min(1.0, generosity * atol) * _largest(expected), _NOISE * noise)
        return Tolerance(absolute, min(1.0, generosity * rtol))

    def prove_outputs(self, mends: Sequence[Mend]) -> dict[str, Spread] | None:
        """Returns where the batch is in the outputs of the model with these repairs, or None if samples mix in one."""
        outputs = list(dict.fromkeys(self._draft.main.outputs))
        alone = [self._run(self._draft.model, sample, outputs) for sample in self._samples]
        try:
            joint = self._run(self._interim(self._draft, mends, self._carrying, self._batch), self._joint, outputs)
        except ExecutionError:
            return None
        found: dict[str, Spread] = {}
        for name in outputs:
            values = [each[name] for each in alone]
            places = self._places(values, joint[name], 1)
            if not places or places[0] is None or _identical(values[0], values[1]):
                return None
            found[name] = places[0]
        return found

    # -- the whole ----------------------------------------------------------------------------------------------

    def prove(self, model: Model, spreads: Mapping[str, Spread]) -> BatchProof:
        """Returns the proof that a new model computes each sample as the old one does.

        Raises:
            Blocked: It does not, and this node is the first that differs.
            RefusedResultError: It does not, and no node can be named.
            ExecutionError: ONNX Runtime does not run it.
        """
        outputs = list(dict.fromkeys(self._draft.main.outputs))
        old = backends.open_session(self._draft.model, options=_PLAIN)
        alone = [old.run(sample, outputs) for sample in self._samples]
        old.close()
        new = backends.open_session(model, options=_PLAIN)
        first = new.run(self._samples[0], outputs)
        noise = self._noise(outputs, alone[0])
        try:
            joint = new.run(self._joint, outputs)
        except ExecutionError as error:
            raise RefusedResultError(
                f"the batch cannot be made dynamic: at {SAMPLES * self._batch} the model fails: {error.message}",
                hint=error.hint,
            ) from None
        new.close()
        proven = tuple(
            self._rows(name, [each[name] for each in alone], joint[name], spreads.get(name), noise[name])
            for name in outputs
        )
        inner, worst, share = self._inner(model, spreads, outputs, wrong=any(not each.worst.passed for each in proven))
        for each in proven:
            if not each.worst.passed:
                raise RefusedResultError(
                    f"the batch cannot be made dynamic: output {each.name!r} depends on the other samples of a batch",
                    details=[each.worst.reason],
                )
        same = all(_identical(alone[0][name], first[name]) for name in outputs)
        if not same:
            name = next(name for name in outputs if not _identical(alone[0][name], first[name]))
            raise RefusedResultError(f"the repaired model gives another {name!r} at the old batch of {self._batch}")
        notes = []
        if all(_identical(alone[0][name], alone[1][name]) for name in outputs):
            notes.append(
                "the drawn samples all give the same outputs, so the proof rests on inner tensors; give real data"
            )
        return BatchProof((self._batch, SAMPLES * self._batch), proven, same, inner, worst, share, tuple(notes))

    def _noise(self, outputs: Sequence[str], plain: Mapping[str, Any]) -> dict[str, float]:
        """Returns how far the runtime's graph optimizations move each output of the old model."""
        optimized = backends.open_session(self._draft.model)
        values = optimized.run(self._samples[0], outputs)
        optimized.close()
        return {
            name: compare(plain[name], values[name]).max_abs or 0.0 if hasattr(plain[name], "shape") else 0.0
            for name in outputs
        }

    def _rows(self, name: str, alone: Sequence[Any], joint: Any, spread: Spread | None, noise: float) -> ProvenRows:
        if not hasattr(joint, "shape"):
            raise RefusedResultError(
                f"the batch cannot be made dynamic: output {name!r} is no tensor, so it has no rows to compare"
            )
        parts = [joint] * SAMPLES if spread is None else self._parts_or_none(joint, spread)
        drifts = [self._compare(each, part, name, noise=noise) for each, part in zip(alone, parts, strict=True)]
        worst = max(drifts, key=lambda drift: (not drift.passed, drift.nonfinite, drift.max_abs or 0.0))
        axis = None if spread is None else spread.axis
        return ProvenRows(name, axis, all(drift.bitwise_equal for drift in drifts), worst)

    def _parts_or_none(self, joint: Any, spread: Spread) -> list[Any]:
        if spread.axis >= joint.ndim or joint.shape[spread.axis] % (spread.outer * SAMPLES):
            return [joint] * SAMPLES
        return self._parts(joint, spread)

    def _inner(
        self, model: Model, spreads: Mapping[str, Spread], outputs: Sequence[str], *, wrong: bool
    ) -> tuple[int, str | None, float]:
        """Compares the inner tensors that carry the batch, in the order of their nodes.

        Raises:
            Blocked: One is far off; its node is the first such.
        """
        scope = self._draft.main
        names = [name for name in spreads if name in scope.producers and (wrong or name not in outputs)]
        if not names:
            return 0, None, 0.0
        streams = [
            backends.stream_outputs(which, feeds, names, options=_PLAIN, max_bytes=_AT_ONCE)
            for which, feeds in [*((self._draft.model, sample) for sample in self._samples), (model, self._joint)]
        ]
        count, worst, share = 0, None, 0.0
        for (name, joint), *alone in zip(streams[-1], *streams[:-1], strict=True):
            if joint.dtype.name not in _LIMITS:
                continue
            count += 1
            parts = self._parts_or_none(joint, spreads[name])
            for (_, expected), part in zip(alone, parts, strict=True):
                drift = self._compare(expected, part, name, 1 if wrong else _GENEROUS)
                if not drift.passed:
                    said = f"mixes the samples of a batch up: {drift.reason}"
                    raise Blocked(scope.producers[name], said)
                largest = _largest(expected)
                if drift.max_abs and largest and drift.max_abs / largest > share:
                    worst, share = name, drift.max_abs / largest
        return count, worst, share


def _largest(value: Any) -> float:
    import numpy as np

    wide = np.abs(value.astype(np.float64))
    finite = wide[np.isfinite(wide)]
    return float(finite.max()) if finite.size else 0.0


def _identical(one: Any, other: Any) -> bool:
    return hasattr(one, "shape") and compare(one, other).bitwise_equal
