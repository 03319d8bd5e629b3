"""Two models made one: outputs of the first, A, feed inputs of the second, B.

The result is right or refused. Everything that A and B hold is in it, with A's names as they were. Of B only those
names change that A has too: a tensor, node, function or dimension of B that means something else than A's of the
same name gets ``_b`` behind it, in bodies and annotations as well. What is stored in both (weights, functions, the
constants that a split copies) is stored once.

The order of work matters. Connections are settled and their types compared first, on the models as they are. Then the
opsets are made one, for that may change nodes; then names; then the two structures are joined, by copying messages
whole, so that what this program has never heard of comes along. Weights are referred to where they lie, which is
why both structures are anchored first: after that it does not matter which folder a reference was relative to.

Whether the result computes what A and then B compute is found out by running all three (``prove``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from onnxbench import backends, captures, weights
from onnxbench.drift import Tolerance, compare_values
from onnxbench.errors import (
    BenchError,
    ExecutionError,
    FeedsError,
    RefusedResultError,
    UnsupportedError,
    UsageError,
)
from onnxbench.feeding import FeedOptions, FeedSet, choices_explained, first_set
from onnxbench.graph import GraphIndex
from onnxbench.merging._joining import Joiner, Merged, MergeOptions, Rename
from onnxbench.merging._links import Link, Side, find_links
from onnxbench.messages import copy_of
from onnxbench.model import Model, load
from onnxbench.opsets import convert_opset, standard_opset
from onnxbench.pieces import tells_more
from onnxbench.progress import track
from onnxbench.proof import Proof, ProvenTensor, computes_in_fp16
from onnxbench.schemas import plain_domain, same_operator
from onnxbench.tensortype import elem_type
from onnxbench.writer import Saved, SaveOptions, save

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = [
    "Link", "MergeOptions", "MergeResult", "Merged", "Rename", "merge", "merge_file", "prove",
]  # fmt: skip

PROVEN_WEIGHTS = 256_000_000
"""Bytes of weights up to which a merge is proven without being asked to."""
PROVEN_NODES = 20_000
"""Nodes up to which it is."""


def merge(
    a: Model | str | os.PathLike[str],
    b: Model | str | os.PathLike[str],
    connections: Sequence[str] | Mapping[str, str] = (),
    *,
    options: MergeOptions | None = None,
    allow_outside: bool = False,
) -> Merged:
    """Returns two models as one, in which tensors of A feed inputs of B.

    Args:
        a: The first model, or its file.
        b: The second.
        connections: ``out=in`` or ``out:in`` words, each with ``a.`` and ``b.`` before the names if wanted; or inputs
            of B to tensors of A. None given: equal names, else the only output to the only input.
        options: How.
        allow_outside: For model files: follow external data that leaves their folders.

    Raises:
        NotFoundError: A name is no output of A or no input of B.
        UsageError: A word can be read in two ways, or an input is fed twice, or nothing says what to connect.
        RefusedResultError: The types of a connection do not fit.
        UnsupportedError: The opsets cannot be made one, with the operators in the way.
        ExternalDataError: Weights are missing.
    """
    wanted = options or MergeOptions()
    first = a if isinstance(a, Model) else load(a, allow_outside=allow_outside)
    second = b if isinstance(b, Model) else load(b, allow_outside=allow_outside)
    links = find_links(Side("A", first), Side("B", second), connections, cast=wanted.cast)
    first, second, notes = _same_opsets(first, second, wanted.target_opset)
    merged = Joiner(first, second, links, wanted, notes).join()
    return replace(merged, converted=bool(notes))


def _same_opsets(a: Model, b: Model, target: int | str | None) -> tuple[Model, Model, list[str]]:
    """Returns both models with one version of each domain, and what was done for that."""
    notes: list[str] = []
    models = {"A": a, "B": b}
    versions = {letter: standard_opset(model.proto) for letter, model in models.items()}
    known = [version for version in versions.values() if version is not None]
    goal = target if target is not None else max(known, default=None)
    for letter, version in versions.items():
        if goal is not None and (version is not None or target is not None) and version != goal:
            try:
                models[letter], said = convert_opset(models[letter], goal)
            except BenchError as error:
                error.message = f"model {letter} has opset {version}, and {error.message}"
                error.hint = error.hint or "Another version may do: --target-opset N."
                raise
            notes += [f"{letter}: {line}" for line in said]
    a, b = models["A"], models["B"]
    ours, theirs = _other_domains(a.proto), _other_domains(b.proto)
    for domain in ours.keys() & theirs.keys():
        if ours[domain] != theirs[domain]:
            low, high = sorted((ours[domain], theirs[domain]))
            letter = "A" if ours[domain] == low else "B"
            model = models[letter]
            changed = sorted(op for op in _used(model.proto, domain) if not same_operator(domain, op, low, high))
            if changed:
                raise UnsupportedError(
                    f"A uses version {ours[domain]} of the domain {domain!r} and B version {theirs[domain]}, and "
                    f"whether these are the same for the operators of {letter} cannot be told",
                    details=[f"{domain}::{op}" for op in changed[:12]],
                    hint="Export one of the models again with the other's version.",
                )
            proto = copy_of(model.proto)
            for imports in (proto.opset_import, *(function.opset_import for function in proto.functions)):
                for opset in imports:
                    if opset.domain == domain:
                        opset.version = high
            models[letter] = model.derive(proto)
            notes.append(f"{letter}: version {low} of the domain {domain!r} is {high} now")
    return models["A"], models["B"], notes


def _other_domains(proto: ModelProto) -> dict[str, int]:
    return {opset.domain: opset.version for opset in proto.opset_import if plain_domain(opset.domain)}


def _used(proto: ModelProto, domain: str) -> set[str]:
    """Returns the operators of a domain that a model uses and does not define itself."""
    index = GraphIndex(proto)
    return {
        ref.node.op_type
        for ref in index.nodes()
        if plain_domain(ref.node.domain) == domain and index.function_of(ref.node) is None
    }


def prove(merged: Merged, a: Model, b: Model, feeds: Mapping[str, captures.Value], *, threads: int = 0) -> Proof:
    """Returns what running A and then B shows against running the merged model.

    Args:
        merged: What ``merge`` made of them.
        a: The first model, as it was given.
        b: The second.
        feeds: Values for the merged model's inputs.
        threads: Threads within an operator; 0 for ONNX Runtime's default.

    Raises:
        ExecutionError: A or B failed to run.
        RefusedResultError: They run, and the merged model does not.
    """
    rounds = computes_in_fp16(a) or computes_in_fp16(b)
    tolerance = Tolerance.for_rounding() if rounds else None
    tensors: list[ProvenTensor] = []
    with track("proving", 2, "runs") as advance:
        runs = []
        for level in ("none", "all"):
            runs.append(_compared(merged, a, b, feeds, backends.Options(level, threads=threads), tolerance))
            advance(1)
    exact, optimized = runs
    for name, (piece, drift) in exact.items():
        tensors.append(ProvenTensor(name, piece, drift.bitwise_equal, drift, optimized.get(name, (piece, drift))[1]))
    lenient = rounds or merged.converted
    holds = all(tensor.exact or (lenient and tensor.drift.passed) for tensor in tensors)
    return Proof(tuple(tensors), holds, rounds)


def _compared(
    merged: Merged,
    a: Model,
    b: Model,
    feeds: Mapping[str, captures.Value],
    options: backends.Options,
    tolerance: Tolerance | None,
) -> dict[str, tuple[str, Any]]:
    """Returns, by tensor, which model makes it and how the merged model's value differs, at one optimization level."""
    names_a, names_b = merged.names_a, merged.names_b
    inputs_a = list(dict.fromkeys(info.name for info in a.proto.graph.input))
    fed = {name: feeds[names_a[name]] for name in inputs_a if names_a[name] in feeds}
    made = _run(a, fed, options, "A")
    linked = {link.input: link for link in merged.links}
    fed_b: dict[str, captures.Value] = {}
    for name in dict.fromkeys(info.name for info in b.proto.graph.input):
        link = linked.get(name)
        if link is None:
            if names_b[name] in feeds:
                fed_b[name] = feeds[names_b[name]]
        else:
            value = made[link.output] if link.output in made else fed[link.output]
            fed_b[name] = _cast(value, b, name, options) if link.cast else value
    made_b = _run(b, fed_b, options, "B, on what A gives,")
    expected = [("A", names_a[name], value) for name, value in made.items()]
    expected += [("B", names_b[name], value) for name, value in made_b.items()]
    wanted = list(dict.fromkeys(name for _, name, _ in expected))
    try:
        got = backends.run_with_outputs(merged.model, feeds, wanted, options=options)
    except ExecutionError as error:
        raise RefusedResultError(
            f"A runs, and B on what A gives, but the merged model does not, so it was not written: {error.message}",
            details=error.details,
        ) from None
    return {
        drift.name: (piece, drift)
        for piece, name, value in expected
        for drift in compare_values(name, value, got[name], tolerance=tolerance)
    }


def _run(
    model: Model, feeds: Mapping[str, captures.Value], options: backends.Options, what: str
) -> dict[str, captures.Value]:
    try:
        session = backends.open_session(model, options=options)
        try:
            return session.run(feeds)
        finally:
            session.close()
    except ExecutionError as error:
        error.message = f"{what} does not run: {error.message}"
        raise


def _cast(value: captures.Value, b: Model, name: str, options: backends.Options) -> captures.Value:
    """Returns a value with the element type that an input of B wants, as ONNX Runtime casts it."""
    from onnx import ModelProto

    from onnxbench.model import from_proto

    (info,) = [one for one in b.proto.graph.input if one.name == name]
    proto = ModelProto(ir_version=8)
    proto.opset_import.add(domain="", version=max(13, standard_opset(b.proto) or 13))
    proto.graph.name = "cast"
    given = proto.graph.input.add(name="value")
    given.type.tensor_type.elem_type = backends.dtype_of(value)
    node = proto.graph.node.add(op_type="Cast", input=["value"], output=["made"])
    node.attribute.add(name="to", type=2, i=elem_type(info.type))
    proto.graph.output.add(name="made").type.tensor_type.elem_type = elem_type(info.type)
    return _run(from_proto(proto), {"value": value}, options, "a Cast of what A gives")["made"]


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What ``merge_file`` did.

    Attributes:
        merged: The result and how it came about.
        saved: The written files; None for a dry run, and where the proof failed.
        proof: The proof, or None if there is none.
        unproven: Why it was not tried; empty where it was not wanted.
        choices: What was decided about drawn inputs without being told.
    """

    merged: Merged
    saved: Saved | None
    proof: Proof | None
    unproven: str = ""
    choices: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know: of the merge, and of what had to be mended."""
        return (*self.merged.notes, *(self.saved.repairs if self.saved else ()))

    def to_json(self) -> dict[str, Any]:
        """Returns all but the model itself as JSON values."""
        fields = ("links", "inputs", "outputs", "renames", "shared_weights", "shared_bytes", "names_a", "names_b")
        return {
            **{name: getattr(self.merged, name) for name in fields},
            "notes": self.notes,
            "choices": self.choices,
            "saved": self.saved,
            "proof": self.proof,
            "unproven": self.unproven or None,
        }


def merge_file(
    a: Model | str | os.PathLike[str],
    b: Model | str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    connections: Sequence[str] | Mapping[str, str] = (),
    *,
    options: MergeOptions | None = None,
    proven: bool | None = None,
    feeds: FeedOptions | None = None,
    save_options: SaveOptions | None = None,
    allow_outside: bool = False,
) -> MergeResult:
    """Writes two models as one, proven first (see ``merge``, ``prove``); where the proof fails, nothing is written.

    Args:
        a: As for ``merge``.
        b: As for ``merge``.
        out: The file to write, or None to write nothing.
        connections: As for ``merge``.
        options: As for ``merge``.
        proven: Whether the proof is wanted. None: if something is said of the inputs; else where it is cheap, which
            is up to ``PROVEN_WEIGHTS`` and ``PROVEN_NODES``.
        feeds: What is said of the inputs of the merged model.
        save_options: How weights are stored.
        allow_outside: As for ``merge``.

    Raises:
        UsageError: Something is said of the inputs, and no proof is wanted.
        ExecutionError: A proof is wanted, and A or B does not run on the inputs.
        BenchError: As for ``merge``, ``prove`` and ``onnxbench.writer.save``.
    """
    says_more = feeds is not None and bool(tells_more(feeds) or feeds.ranges)
    if proven is False and (says_more or (feeds is not None and feeds.seed)):
        raise UsageError("what is said of the inputs is for the proof, and no proof is wanted")
    if says_more:
        proven = True
    first = a if isinstance(a, Model) else load(a, allow_outside=allow_outside)
    second = b if isinstance(b, Model) else load(b, allow_outside=allow_outside)
    merged = merge(first, second, connections, options=options)
    proof, unproven, drawn = None, "", FeedSet({})
    if proven is None and out is not None:
        unproven = _why_dear(merged.model)
    if proven or (proven is None and out is not None and not unproven):
        try:
            drawn = first_set(merged.model, feeds)
            with choices_explained(drawn.choices):
                proof = prove(merged, first, second, drawn.feeds)
        except (ExecutionError, FeedsError, UnsupportedError) as error:
            error.message = f"the result cannot be proven, so it is not written: {error.message}"
            helps = error.hint if "--custom-ops" not in (error.hint or "") else None  # which merge does not have
            error.hint = " ".join(filter(None, (helps, "--no-prove writes it without a proof.")))
            raise
    saved = None
    if out is not None and (proof is None or proof.holds):
        saved = save(merged.model, out, options=save_options)
    return MergeResult(merged, saved, proof, unproven, drawn.choices)


def _why_dear(model: Model) -> str:
    size = sum(map(weights.tensor_bytes, weights.tensors(model.proto)))
    if size > PROVEN_WEIGHTS:
        return f"the weights have {size:,} bytes, and a proof loads them several times (--prove asks for it)"
    nodes = len(model.proto.graph.node)
    return (
        f"the model has {nodes:,} nodes, which takes a while to run (--prove asks for it)"
        if nodes > PROVEN_NODES
        else ""
    )
