"""The course of a conversion, from types to the checked result."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, cast

from onnxbench.draft import Draft
from onnxbench.errors import BenchError, RefusedResultError, UsageError, did_you_mean
from onnxbench.graph import GraphIndex, NodeRef, Scope, sort_nodes, topological_order
from onnxbench.inference import TypeFinder, TypeSource
from onnxbench.messages import copy_of, delete_named
from onnxbench.model import Model
from onnxbench.opsets import convert_opset, standard_opset
from onnxbench.precision import Converted, Kept, Lost, Reason
from onnxbench.precision._applying import Weights, Writer
from onnxbench.precision._plan import Plan, Tensor, Use
from onnxbench.precision._regions import Reasons, find_reasons
from onnxbench.precision._sides import STAYS
from onnxbench.precision._signatures import FLOATS, Prober, retyped, type_word
from onnxbench.precision._specializing import has_several, specialize
from onnxbench.precision._typing import Typing
from onnxbench.precision._values import Account, Converter
from onnxbench.schemas import FIRST_IR_WITH_WEIGHTS_APART, find_schema, plain_domain
from onnxbench.tensortype import dtype_name, dtype_number, tensor_shape
from onnxbench.validity import make_valid

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

_TAG = "onnxbench.keeps_precision"
_MOST_NAMED = 8
_CARRYING = frozenset({"Add", "Sub", "Mul", "Neg", "Abs", "Sum", "Cast"})
"""Operators that make large values of large ones, beside those that only move them."""
_UNKNOWN_SIZE = 16
"""What a dimension of no fixed size counts, where it is asked on which side of a node fewer bytes are cast."""
_HIGHEST_RAISE = 22
"""The last opset that a conversion raises a model to: most operators took bfloat16 then; few runtimes take more."""


def convert_model(
    model: Model,
    *,
    to: str,
    keep: Mapping[NodeRef, tuple[Reason, str]],
    io: Literal["keep", "convert"],
    weights: Literal["refuse", "clamp", "keep"],
    opset: Literal["raise", "keep"],
    sources: Sequence[TypeSource],
    defers: bool = False,
) -> tuple[Converted, Callable[[], tuple[Lost, ...]]]:
    """Returns the model in another precision, and what tells which weights lost values (``Converted.lost``).

    Args:
        model: The model; it is not changed.
        to: The precision, and all else as for ``onnxbench.precision.convert``.
        keep: Nodes that stay in float32, with why.
        io: Whether inputs and outputs keep their types.
        weights: What is done with weights that the type does not hold.
        opset: Whether the opset may be raised where operators need it.
        sources: Where else to ask for types.
        defers: Convert large weights when the model is written: then one that does not fit is refused, and what is
            returned beside the model tells the truth only afterwards.

    Raises:
        UsageError: A word is none of those that an argument takes.
        BenchError: As for ``onnxbench.precision.convert``.
    """
    number = dtype_number(to)
    if number not in FLOATS:
        raise UsageError(f"{to!r} is no precision to convert to", hint="There are fp16, bf16, fp32 and fp64.")
    for word, value, choices in (
        ("io", io, ("keep", "convert")),
        ("weights", weights, ("refuse", "clamp", "keep")),
        ("opset", opset, ("raise", "keep")),
    ):  # fmt: skip
        if value not in choices:
            hint = did_you_mean(str(value), choices) or f"There are {', '.join(choices)}."
            raise UsageError(f"{word}: {value!r} is not understood", hint=hint)
    draft = Draft.of(model, sources=sources)
    if keep:
        _tag(draft.index, keep)
    before = standard_opset(model.proto) or 0
    notes: list[str] = []
    is_old = model.proto.ir_version < FIRST_IR_WITH_WEIGHTS_APART
    job = _Job(draft, number, io == "convert", notes, has_tags=bool(keep), lists_weights=is_old)
    plan = job.plan()
    if opset == "raise" and (version := _version_wanted(plan, before)) > before:
        raised = _raised(draft.model, version, notes)
        if raised is not None:
            draft = Draft.of(raised, sources=sources)
            job = _Job(draft, number, io == "convert", notes, has_tags=bool(keep), lists_weights=is_old)
            plan = job.plan()
    converter = Converter(draft.model, number, clamp=weights == "clamp", defers=defers and weights == "refuse")
    plan, lost_by_now = job.judge(plan, converter, weights)
    is_sorted = all(topological_order(scope) is None for scope in draft.index.scopes)
    kept = _kept(plan)
    computing = len(plan.places) - len(kept)
    applied = Writer(draft, plan, converter).write()
    proto = draft.model.proto
    if not is_sorted:
        sort_nodes(proto)
    if keep:
        _untag(proto)
    notes += make_valid(proto, complete=draft.model.with_small_weights)
    draft.touch()
    done = Converted(
        draft.model, dtype_name(number), kept, applied.casts, applied.removed, computing, applied.weights,
        lost_by_now(), (before, standard_opset(proto) or 0), tuple(notes),
    )  # fmt: skip
    return done, lost_by_now


class _Job:
    """Plans of one model, made over where more nodes turn out to stay."""

    def __init__(
        self, draft: Draft, to: int, converts_io: bool, notes: list[str], *, has_tags: bool, lists_weights: bool
    ) -> None:
        self._draft = draft
        self._lists_weights = lists_weights
        self._has_tags = has_tags
        self._to = to
        self._converts_io = converts_io
        self._finder: TypeFinder | None = None
        self._typing = self._typed()
        while has_several(draft.index, self._typing):
            notes += specialize(draft.model.proto, self._typing)
            draft.touch()
            self._finder = None
            self._typing = self._typed()
        self._reasons: Reasons = find_reasons(self._typing)
        for scope, asked in self._typing.asked.items():
            self._reasons[scope].update(asked)

    def _typed(self) -> Typing:
        index = self._draft.index
        typing = Typing(index, self._fallback, Prober(), _asked(index) if self._has_tags else {})
        typing.follow()
        return typing

    def _fallback(self, scope: Scope, name: str) -> str | None:
        if self._finder is None:
            self._finder = TypeFinder(self._draft.model, self._draft.index, self._draft.sources)
        value = self._finder.find(scope, [name]).get(name)
        return type_word(value) if value is not None else None

    def plan(self) -> Plan:
        """Returns a plan for what is known by now."""
        plan = Plan(self._typing, self._to, self._converts_io, self._reasons, self._size_of, self._lists_weights)
        plan.build()
        return plan

    def _size_of(self, tensor: Tensor) -> int:
        if self._finder is None:
            self._finder = TypeFinder(self._draft.model, self._draft.index, self._draft.sources)
        value = self._finder.find(tensor.scope, [tensor.name]).get(tensor.name)
        shape = tensor_shape(value) if value is not None else None
        if shape is None:
            return _UNKNOWN_SIZE**4
        return math.prod(size if isinstance(size, int) else _UNKNOWN_SIZE for size in shape)

    def judge(
        self, plan: Plan, converter: Converter, policy: Literal["refuse", "clamp", "keep"]
    ) -> tuple[Plan, Callable[[], tuple[Lost, ...]]]:
        """Converts the weights that a plan wants converted, and makes it over until all that stay in it fit.

        Returns:
            The plan, and what tells which weights lost values, as far as they are converted when it is asked.
        """
        stored = Weights(self._draft.index)
        lost: dict[tuple[Scope, str], Lost] = {}
        while True:
            wanted = [
                tensor for tensors in plan.tensors.values() for tensor in tensors.values()
                if tensor.is_weight and any(plan.wanted(tensor, use.group) != tensor.word for use in tensor.uses)
            ]  # fmt: skip
            held = [stored.tensor(tensor) for tensor in wanted]
            converter.prepare(held)
            accounts = [(tensor, converter.converted(message)[1]) for tensor, message in zip(wanted, held, strict=True)]
            bad = [(tensor, account) for tensor, account in accounts if account.is_lost]
            if policy == "refuse":
                looked_at = [(tensor, copy_of(message), account)
                             for (tensor, account), message in zip(accounts, held, strict=True)
                             if account.is_lost or not account.elements]  # fmt: skip
                converter.refuse = partial(self._refusal_of_all, converter, looked_at)
                if bad:
                    raise converter.refuse()
            if not bad:
                return plan, partial(_told, lost, accounts)
            for tensor, account in bad:
                lost[tensor.scope, tensor.name] = _lost(tensor, account, "clamped" if policy == "clamp" else "kept")
            if policy == "clamp":
                return plan, partial(_told, lost, accounts)
            for tensor, account in bad:
                self._keep_readers(plan, tensor, account)
            plan = self.plan()

    def _refusal_of_all(
        self, converter: Converter, weights: Sequence[tuple[Tensor, TensorProto, Account]]
    ) -> RefusedResultError:
        """Returns the refusal of all of these weights that do not fit, those included that nobody has read yet."""
        looked = [(tensor, account if account.elements else converter.look_at(message))
                  for tensor, message, account in weights]  # fmt: skip
        return self._refusal([(tensor, account) for tensor, account in looked if account.is_lost])

    def _keep_readers(self, plan: Plan, tensor: Tensor, account: Account) -> None:
        path = _path(tensor)
        pending, seen = [tensor], {id(tensor)}
        while pending:
            large = pending.pop()
            for use in large.uses:
                node = use.scope.nodes[use.position] if use.position >= 0 else None
                if node is None or use.position in use.scope.bodies or self._draft.index.function_of(node) is not None:
                    if large is not tensor:
                        continue
                    raise self._refusal(
                        [(tensor, account)], "It is handed on as it is, so no node can be kept for it. "
                    )
                self._reasons[use.scope].setdefault(use.position, ("overflow", path))
                for made in self._carried(plan, use) if account.overflows else ():
                    if id(made) not in seen:
                        seen.add(id(made))
                        pending.append(made)

    def _carried(self, plan: Plan, use: Use) -> Iterator[Tensor]:
        """Yields what a node makes that is as large as what it reads at a place."""
        node = use.scope.nodes[use.position]
        sig = self._typing.signatures(use.scope)[use.position]
        for slot, name in enumerate(node.output):
            made = plan.tensor(use.scope, name) if name else None
            moves = sig is not None and sig.outputs[slot] == sig.inputs[use.slot] and sig.moves[sig.outputs[slot]]
            if made is not None and (moves or (node.op_type in _CARRYING and not plain_domain(node.domain))):
                yield made

    def _refusal(self, bad: list[tuple[Tensor, Account]], why: str = "") -> RefusedResultError:
        name = dtype_name(self._to)
        details = [f"{_path(tensor)}: {_words(account)}" for tensor, account in bad[:_MOST_NAMED]]
        if len(bad) > _MOST_NAMED:
            details.append(f"and {len(bad) - _MOST_NAMED:,} more")
        return RefusedResultError(
            f"{len(bad):,} weights have values that {name} does not hold" if len(bad) > 1
            else f"weight {_path(bad[0][0])!r} has values that {name} does not hold ({_words(bad[0][1])})",
            hint=f"{why}--weights clamp makes them the nearest values that {name} has other than 0 (right for masks "
            "such as -1e9, and an epsilon that guards against 0); --weights keep leaves what reads them in its type.",
            details=details if len(bad) > 1 else (),
        )  # fmt: skip


def _path(tensor: Tensor) -> str:
    return f"{tensor.scope.path}/{tensor.name}" if tensor.scope.path else tensor.name


def _words(account: Account) -> str:
    parts = []
    if account.overflows:
        parts.append(f"{account.overflows:,} of {account.elements:,} values are beyond it, up to {account.largest:.6g}")
    if account.vanished and account.vanished == account.nonzero:
        parts.append(f"all of its {account.nonzero:,} values that are not 0 become 0")
    return ", ".join(parts)


def _told(lost: Mapping[tuple[Scope, str], Lost], accounts: Sequence[tuple[Tensor, Account]]) -> tuple[Lost, ...]:
    """Returns the weights that lost values: those that something was done about, and those that were rounded to 0."""
    rounded = {(tensor.scope, tensor.name): _lost(tensor, account, "rounded")
               for tensor, account in accounts if account.vanished and not account.is_lost}  # fmt: skip
    return tuple({**rounded, **lost}.values())


def _lost(tensor: Tensor, account: Account, action: Literal["clamped", "kept", "rounded"]) -> Lost:
    return Lost(_path(tensor), account.elements, account.overflows, account.vanished, account.largest, action)


# ---------------------------------------------------------------- which nodes are kept


def _tag(index: GraphIndex, keep: Mapping[NodeRef, tuple[Reason, str]]) -> None:
    """Marks the nodes to keep, so that they are found again when others stand beside them or in copied functions."""
    scopes = index.scope_paths
    for ref, (reason, detail) in keep.items():
        scopes[ref.scope.path].nodes[ref.position].metadata_props.add(key=_TAG, value=f"{reason}|{detail}")


def _asked(index: GraphIndex) -> dict[Scope, dict[int, tuple[str, str]]]:
    """Returns the nodes that are marked, by graph and position, with why."""
    found: dict[Scope, dict[int, tuple[str, str]]] = defaultdict(dict)
    for scope in index.scopes:
        for position, node in enumerate(scope.nodes):
            for each in node.metadata_props:
                if each.key == _TAG:
                    reason, _, detail = each.value.partition("|")
                    found[scope][position] = reason, detail
    return found


def _untag(proto: ModelProto) -> None:
    for ref in GraphIndex(proto).nodes():
        props = ref.node.metadata_props
        delete_named(props, {_TAG}, by="key")


def _kept(plan: Plan) -> tuple[Kept, ...]:
    """Returns the nodes that stay in their types, although these are not the new one."""
    kept = []
    for place in plan.places:
        if any(plan.changes[group] for group in place.groups):
            continue
        node = place.scope.nodes[place.position]
        names = [*node.input, *node.output]
        words = [tensor.word for name in names if name and (tensor := plan.tensor(place.scope, name)) is not None]
        if all(word == retyped(word, plan.to) for word in words):
            continue
        ref = NodeRef(place.scope, place.position)
        has_no_cast = any(group != STAYS and plan.find(group) == STAYS for group in place.groups)
        reason = cast("Reason", place.reason or ("value" if has_no_cast else "between"))
        detail = place.detail if place.reason else ""
        kept.append(Kept(ref.path, node.op_type, reason, detail or _said(plan, place.scope, place.position)))
    return tuple(kept)


def _said(plan: Plan, scope: Scope, position: int) -> str:
    reasons: Mapping[int, tuple[str, str]] = plan.reasons.get(scope, {})
    return reasons[position][1] if position in reasons else ""


# ---------------------------------------------------------------- opset


def _version_wanted(plan: Plan, now: int) -> int:
    """Returns the lowest opset in which as many operators as can take the type, of those that do not now."""
    wanted = now
    for op_type, version, kind, slot, word in plan.lacking:
        for later in range(version + 1, _HIGHEST_RAISE + 1):
            schema = find_schema("", op_type, later)
            formals = (
                () if schema is None or schema.deprecated else schema.inputs if kind == "input" else schema.outputs
            )
            if formals and word in formals[min(slot, len(formals) - 1)].types:
                wanted = max(wanted, later)
                break
    return wanted


def _raised(model: Model, version: int, notes: list[str]) -> Model | None:
    """Returns the model in a later opset; None, with a note, if it cannot be brought there."""
    try:
        raised, told = convert_opset(model, version)
    except BenchError as error:
        notes.append(f"opset {version}, in which more operators take the type, cannot be had: {error.message}")
        return None
    notes.extend(told)
    return raised
