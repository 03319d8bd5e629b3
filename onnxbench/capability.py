"""What TensorRT takes of a model, proven by builds, as pieces with the rest left to ONNX Runtime.

The parser is asked which nodes it takes. That is no proof (NonMaxSuppression is taken, and nothing can run it), and of
a model that it refuses it says little, so every piece is built on its own, in TensorRT's process, for shapes that a run
of the model in ONNX Runtime shows at the piece's border. A build that fails names a node, mostly: it is left to ONNX
Runtime, and the pieces are made anew. Where it names none, the shortest beginning of the piece that fails is searched
by halving, and its last node is left.

Pieces are what ``onnxbench.partition.split_labels`` makes of the two kinds of nodes: as few as possible, and no way
leads out of one and back into it. So they can be run one after the other, and ``onnxbench.proof`` proves that they are
the model.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxbench import backends
from onnxbench.captures import input_ports
from onnxbench.cut import Cut, Piece, assemble
from onnxbench.engine import (
    BuildSpec,
    Problem,
    Profile,
    Range,
    attempt,
    check_profiles,
    distinct_kinds,
    inputs_at,
    observe_sets,
    propose,
    query,
    spelled,
    way_out,
)  # fmt: skip
from onnxbench.errors import BenchError, EngineError, ExecutionError, FeedsError, NotFoundError, UsageError
from onnxbench.feeding import FeedOptions, choices_explained, feed_sets, first_set
from onnxbench.graph import GraphIndex, NodeRef, Scope
from onnxbench.inference import TypeFinder
from onnxbench.marks import marks, unmark
from onnxbench.model import Model
from onnxbench.partition import Partition, PlannedPiece, split_labels, varying_nodes
from onnxbench.pieces import open_model, type_sources
from onnxbench.proof import Proof
from onnxbench.proof import prove as prove_split
from onnxbench.provenance import Origins
from onnxbench.splitting import Split, write_split

if TYPE_CHECKING:
    from onnx import NodeProto

    from onnxbench.bundles import Plugin
    from onnxbench.writer import SaveOptions

TENSORRT, RUNTIME = "tensorrt", "onnxruntime"
_MOST_TRIALS = 200
_SHOWN_VALUES = 64
_BATCH_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class RuntimePiece:
    """One piece of a model, and what runs it.

    Attributes:
        runner: ``tensorrt`` (an engine was built of it) or ``onnxruntime``.
        nodes: How many nodes it has, constant ones that it has a copy of included.
        operators: How many of each operator, the most frequent first.
        inputs: Its inputs.
        outputs: Its outputs.
        first: Path of its first node.
        last: Path of its last node.
        profile: The shapes that it was built for, where it has open ones.
        notes: What a user of the piece should know.
    """

    runner: str
    nodes: int
    operators: Mapping[str, int]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    first: str
    last: str
    profile: Profile | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Capability:
    """What TensorRT takes of a model.

    Attributes:
        model: The model's file, ``""`` for one in memory.
        builder: Which TensorRT, with its version.
        nodes: How many nodes depend on the inputs (the others are constants, and go where they are read).
        taken: How many of them TensorRT takes.
        pieces: The pieces, in the order in which they run.
        left: Why each other node is left to ONNX Runtime, in the order of the graph.
        trials: How many builds were tried.
        proven: Whether each piece for TensorRT was built; False if trials were not wanted.
        notes: What the reader should know of how this was found out.
    """

    model: str
    builder: str
    nodes: int
    taken: int
    pieces: tuple[RuntimePiece, ...]
    left: tuple[Problem, ...]
    trials: int
    proven: bool
    notes: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether TensorRT takes all of the model."""
        return self.taken == self.nodes


@dataclass(frozen=True, slots=True)
class Allotted:
    """A model written as pieces for TensorRT and for ONNX Runtime.

    Attributes:
        capability: What each of them takes.
        split: The files, or None where nothing was to be written.
        proof: The proof that the pieces are the model, if one was wanted.
        commands: How the engines of the pieces are built.
    """

    capability: Capability
    split: Split | None = None
    proof: Proof | None = None
    commands: tuple[str, ...] = ()


def find_capability(
    source: Model | str | os.PathLike[str],
    spec: BuildSpec | None = None,
    *,
    plugins: Sequence[Plugin] = (),
    min_nodes: int = 1,
    trial: bool = True,
    inline: bool = False,
    feeds: FeedOptions | None = None,
    allow_outside: bool = False,
) -> Capability:
    """Returns which nodes TensorRT takes, as pieces, and why it does not take the others.

    Args:
        source: A model or a model file.
        spec: What would be built; its profiles are of the whole model.
        plugins: Custom operators; their code runs in TensorRT's process.
        min_nodes: Smaller pieces for TensorRT are left to ONNX Runtime.
        trial: Prove each piece by a build.
        inline: Inline local functions first.
        feeds: What is said of the model's inputs, for the run that finds the shapes between pieces.
        allow_outside: Follow external data that leaves the model's folder.

    Raises:
        UsageError: The spec does not fit the model, or this TensorRT cannot do what it says.
        MissingDependencyError: No TensorRT is installed.
        EngineError: The parser itself died.
    """
    model = _plain(source, inline=inline, allow_outside=allow_outside)
    search = _Search(model, spec or BuildSpec(), plugins, feeds, trial=trial, min_nodes=min_nodes)
    return search.result()


def allot(
    source: Model | str | os.PathLike[str],
    folder: str | os.PathLike[str] | None,
    spec: BuildSpec | None = None,
    *,
    plugins: Sequence[Plugin] = (),
    min_nodes: int = 1,
    trial: bool = True,
    inline: bool = False,
    prove: bool = False,
    feeds: FeedOptions | None = None,
    options: SaveOptions | None = None,
    allow_outside: bool = False,
) -> Allotted:
    """Writes the pieces that TensorRT takes and those left to ONNX Runtime, disjoint and covering, with a manifest.

    Args:
        source: As for ``find_capability``.
        folder: Where the pieces go, as for ``onnxbench.splitting.split``; None writes nothing.
        spec: As for ``find_capability``.
        plugins: As for ``find_capability``.
        min_nodes: As for ``find_capability``.
        trial: As for ``find_capability``.
        inline: As for ``find_capability``.
        prove: Run the pieces in ONNX Runtime, one after the other, and compare with the whole.
        feeds: As for ``find_capability``; for the proof too.
        options: How weights are stored.
        allow_outside: As for ``find_capability``.

    Raises:
        BenchError: As for ``find_capability``, ``onnxbench.splitting.split`` and ``onnxbench.proof.prove``.
    """
    model = _plain(source, inline=inline, allow_outside=allow_outside)
    search = _Search(model, spec or BuildSpec(), plugins, feeds, trial=trial, min_nodes=min_nodes)
    found = search.result()
    if folder is None:
        return Allotted(found)
    split = write_split(model, search.index, search.plan, folder, feeds=search.inputs or None, options=options)
    commands = tuple(
        shlex.join(["onnxbench", "build-trt", os.fspath(written.file), os.fspath(written.file.with_suffix(".engine"))])
        + (f" {spelled(piece.profile)}" if piece.profile else "")
        for written, piece in zip(split.pieces, found.pieces, strict=True)
        if piece.runner == TENSORRT
    )
    proof = None
    if prove:
        with choices_explained(search.chosen):
            proof = prove_split(split.manifest, model, search.inputs)
    return Allotted(found, split, proof, commands)


def _plain(source: Model | str | os.PathLike[str], *, inline: bool, allow_outside: bool) -> Model:
    """Returns a model without Marks."""
    model, _ = open_model(source, allow_outside=allow_outside, inline=inline)
    return unmark(model).model if marks(GraphIndex(model.proto)) else model


class _Search:
    """Finds the pieces: asks, tries, and leaves what stands in the way.

    Args:
        model: The whole model.
        spec: What would be built.
        plugins: Custom operators.
        feeds: What is said of the inputs.
        trial: Prove pieces by builds.
        min_nodes: The fewest nodes of a piece for TensorRT.
    """

    def __init__(
        self,
        model: Model,
        spec: BuildSpec,
        plugins: Sequence[Plugin],
        feeds: FeedOptions | None,
        *,
        trial: bool,
        min_nodes: int,
    ) -> None:
        self.model, self.index = model, GraphIndex(model.proto)
        self._spec, self._plugins, self._trial = spec, plugins, trial
        self._scope: Scope = self.index.main
        self._varying = varying_nodes(self.index)
        self._rank = {position: at for at, position in enumerate(self._varying)}
        self._reasons: dict[int, Problem] = {}
        self._profiles: dict[frozenset[int], Profile | None] = {}
        self._notes: list[str] = []
        self._trials = 0
        self._shapes = _Shapes(model, spec, feeds, self._notes)
        self._finder = TypeFinder(model, self.index, type_sources(self._shapes.inputs or None))
        self._origins = Origins([each.node for each in self.index.nodes()], self._scope.constants)
        self.builder = ""
        self._ask()
        self.plan = self._settle(min_nodes)

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Inputs of the whole model: given, or of the shapes that engines are tuned for."""
        return self._shapes.inputs

    @property
    def chosen(self) -> tuple[str, ...]:
        """What was decided about drawn inputs without being told."""
        return self._shapes.chosen

    # ------------------------------------------------------------ asking

    def _ask(self) -> None:
        """Leaves what the parser refuses by its own word."""
        answer = query(self.model, self._spec, plugins=self._plugins, index=self.index)
        self.builder = answer.builder
        for problem, ref in answer.obstacles:
            self._leave(problem, self._mains(ref))
        if answer.taken or answer.obstacles:
            refused = [position for position in self._varying if position not in answer.taken]
            if answer.obstacles and not answer.taken:  # an error at import: it says nothing of the others
                refused = [position for position in refused if position in self._reasons]
            for position in refused:
                if position not in self._reasons:
                    self._leave(
                        self._made(position, "the parser does not list it among the nodes that it takes"), [position]
                    )

    def _mains(self, ref: NodeRef | None) -> list[int]:
        """Returns the nodes of the main graph that a node is, is within, or is called by."""
        if ref is None:
            return []
        scope, position = ref.scope, ref.position
        while scope.parent is not None:
            scope, position = scope.parent, scope.owner
        if not scope.is_function:
            return [position]
        return [at for at, node in enumerate(self._scope.nodes) if self._calls(node, scope.graph.name, set())]

    def _calls(self, node: NodeProto, name: str, seen: set[Scope]) -> bool:
        """Tells whether a node calls a function, itself or through others or bodies."""
        waiting = [node]
        while waiting:
            each = waiting.pop()
            function = self.index.function_of(each)
            if function is not None and function not in seen:
                seen.add(function)
                if function.graph.name == name:
                    return True
                waiting += function.nodes
            for attribute in each.attribute:
                for graph in (attribute.g, *attribute.graphs):
                    waiting += graph.node
        return False

    def _leave(self, problem: Problem, positions: Sequence[int]) -> bool:
        """Leaves nodes to ONNX Runtime; for a constant, those that read it. Returns whether that changes anything."""
        waiting, fresh, seen = list(positions), False, set(positions)
        while waiting:
            position = waiting.pop()
            if position in self._rank:
                if position not in self._reasons:
                    self._reasons[position], fresh = problem, True
                continue
            for name in self._scope.writes[position]:
                readers = [each for each in self._scope.consumers.get(name, ()) if each not in seen]
                seen.update(readers)
                waiting += readers
        return fresh

    def _made(self, position: int, message: str) -> Problem:
        node = self._scope.nodes[position]
        origin = self._origins.of(node)
        op = f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        module, line = (origin.scope, origin.source) if origin is not None else (None, None)
        return Problem("case", self._scope.label(position), op, message, module=module, source=line)

    # ------------------------------------------------------------ trying

    def _settle(self, min_nodes: int) -> Partition:
        """Returns the pieces, when each that is for TensorRT was built (or none is to be)."""
        while True:
            plan = self._plan(min_nodes)
            fresh = [piece for piece in plan.pieces if self._is_open(piece)]
            if not fresh:
                return plan
            self._shapes.look_at(self.model, [name for piece in fresh for name in piece.cut.inputs])
            for piece in fresh:
                self._try(piece.cut)

    def _plan(self, min_nodes: int) -> Partition:
        while True:
            labels = {each: RUNTIME if each in self._reasons else TENSORRT for each in self._varying}
            plan = split_labels(self.index, labels, TENSORRT)
            small = [
                position
                for piece in plan.pieces
                if piece.name == TENSORRT and len(own := self._own(piece.cut)) < min_nodes
                for position in own
            ]
            if not small and not self._leave_untyped(plan):
                return plan
            for position in small:
                words = f"it would be in an engine of fewer than {min_nodes} nodes (--min-nodes)"
                self._leave(self._made(position, words), [position])

    def _leave_untyped(self, plan: Partition) -> bool:
        """Leaves what reads or makes tensors at the border of an engine that nothing tells the element type of.

        They lie behind operators that nobody knows; a piece cannot state them.
        """
        moved = False
        for piece in plan.pieces:
            if piece.name == TENSORRT:
                border = list(dict.fromkeys((*piece.cut.inputs, *piece.cut.outputs)))
                known = self._finder.find(self._scope, border)
                for name in (each for each in border if each not in known):
                    at_it = (*self._scope.consumers.get(name, ()), self._scope.producers.get(name, -1))
                    own = [position for position in at_it if position in piece.cut.nodes]
                    words = f"nothing tells the element type of {name!r}, no value info either"
                    moved |= self._leave(self._made(own[0], words), own) if own else False
        return moved

    def _own(self, cut: Cut) -> list[int]:
        return sorted((position for position in cut.nodes if position in self._rank), key=self._rank.__getitem__)

    def _is_open(self, piece: PlannedPiece) -> bool:
        return self._trial and piece.name == TENSORRT and frozenset(piece.cut.nodes) not in self._profiles

    def _try(self, cut: Cut) -> None:
        """Builds a piece, and leaves what stands in the way if that fails."""
        if self._trials >= _MOST_TRIALS:
            own = self._own(cut)
            self._leave(self._made(own[0], f"not proven: {_MOST_TRIALS} builds were tried for other pieces"), own)
            return
        built, obstacles, piece = self._build(cut)
        if built:
            return
        moved = False
        for problem, ref in obstacles:
            moved |= self._leave(self._of_whole(problem, piece, cut, ref), self._of_piece(piece, cut, ref))
        if not moved:
            problem = obstacles[0][0] if obstacles else self._made(self._own(cut)[0], "TensorRT built no engine")
            self._leave_last(cut, problem)

    def _build(self, cut: Cut) -> tuple[bool, tuple[Any, ...], Piece]:
        piece = assemble(self.model, self.index, self._scope, cut, finder=self._finder)
        profile = self._shapes.profile(piece)
        self._trials += 1
        try:
            spec = dataclasses.replace(self._spec, profiles=(profile,) if profile else ())
            trial = attempt(piece.model, spec, plugins=self._plugins)
        except (UsageError, NotFoundError, EngineError) as error:
            return False, ((self._made(self._own(cut)[0], error.message), None),), piece
        if trial.builds:
            self._profiles[frozenset(cut.nodes)] = trial.spec.profiles[0] if trial.spec.profiles else None
        return trial.builds, trial.obstacles, piece

    def _of_piece(self, piece: Piece, cut: Cut, ref: NodeRef | None) -> list[int]:
        """Returns the nodes of the whole model that a node of a piece is, is within, is called by, or is read by."""
        if ref is None or len(piece.model.proto.graph.node) != len(cut.nodes):
            return []
        scope, position = ref.scope, ref.position
        while scope.parent is not None:
            scope, position = scope.parent, scope.owner
        if scope.is_function:
            return [at for at in self._own(cut) if self._calls(self._scope.nodes[at], scope.graph.name, set())]
        found = cut.nodes[position]
        return [found] if found in self._rank else self._readers(cut, found)

    def _readers(self, cut: Cut, constant: int) -> list[int]:
        """Returns the nodes of a piece that read what a constant node of it makes, over other constant nodes."""
        inside, seen = set(cut.nodes), {constant}
        waiting: list[int] = [constant]
        found: list[int] = []
        while waiting:
            for name in self._scope.writes[waiting.pop()]:
                for reader in self._scope.consumers.get(name, ()):
                    if reader in inside and reader not in seen:
                        seen.add(reader)
                        (found if reader in self._rank else waiting).append(reader)
        return found

    def _of_whole(self, problem: Problem, piece: Piece, cut: Cut, ref: NodeRef | None) -> Problem:
        """Returns a problem of a piece with the node's path in the whole model."""
        main = self._of_piece(piece, cut, ref)
        if ref is None or len(main) != 1 or ref.scope.parent is not None:
            return problem
        return dataclasses.replace(problem, node=self._scope.label(main[0]))

    def _leave_last(self, cut: Cut, problem: Problem) -> None:
        """Leaves the last node of the shortest beginning of a piece that cannot be built."""
        own = self._own(cut)
        low, high = 0, len(own)  # the first ``low`` build, the first ``high`` do not
        while high - low > 1 and self._trials < _MOST_TRIALS:
            middle = (low + high) // 2
            kept = set(own[:middle])
            labels = {each: TENSORRT if each in kept else RUNTIME for each in self._varying}
            parts = [piece for piece in split_labels(self.index, labels, TENSORRT).pieces if piece.name == TENSORRT]
            self._shapes.look_at(self.model, [name for part in parts for name in part.cut.inputs])
            if all(self._build(part.cut)[0] for part in parts):
                low = middle
            else:
                high = middle
        node = self._made(own[high - 1], problem.message)
        self._leave(dataclasses.replace(node, way_out=problem.way_out or way_out(node.op)), [own[high - 1]])

    # ------------------------------------------------------------ telling

    def result(self) -> Capability:
        """Returns what was found."""
        taken = sum(position not in self._reasons for position in self._varying)
        origin = self.model.origin
        left = tuple(
            self._reasons[position] if self._reasons[position].node else self._named(position)
            for position in self._varying
            if position in self._reasons
        )
        pieces = tuple(self._told(piece) for piece in self.plan.pieces)
        return Capability(
            "" if origin is None else os.fspath(origin), self.builder, len(self._varying), taken, pieces, left,
            self._trials, self._trial, tuple(self._notes),
        )  # fmt: skip

    def _named(self, position: int) -> Problem:
        known, made = self._reasons[position], self._made(position, "")
        return dataclasses.replace(known, node=made.node, op=made.op, module=made.module, source=made.source)

    def _told(self, piece: PlannedPiece) -> RuntimePiece:
        cut = piece.cut
        own = self._own(cut) or list(cut.nodes)
        operators = Counter(self._scope.nodes[position].op_type for position in cut.nodes)
        runner = piece.name if piece.name == TENSORRT else RUNTIME
        profile = self._profiles.get(frozenset(cut.nodes)) if runner == TENSORRT else None
        first, last = (self._scope.label(own[at]) if own else "" for at in (0, -1))
        return RuntimePiece(
            runner, len(cut.nodes), dict(operators.most_common()), cut.inputs, cut.outputs, first, last, profile,
            self._doubles(cut) if runner == TENSORRT else (),
        )  # fmt: skip

    def _doubles(self, cut: Cut) -> tuple[str, ...]:
        """Returns a note on tensors at the border that TensorRT makes float32 of."""
        types = self._finder.find(self._scope, [*cut.inputs, *cut.outputs])
        found = [
            name for name in (*cut.inputs, *cut.outputs) if name in types and types[name].tensor_type.elem_type == 11
        ]
        return (f"TensorRT computes in float32 what is float64 at the border: {', '.join(found)}",) if found else ()


class _Shapes:
    """The shapes of tensors between pieces, from runs of the whole model in ONNX Runtime."""

    def __init__(self, model: Model, spec: BuildSpec, feeds: FeedOptions | None, notes: list[str]) -> None:
        self._notes = notes
        self._seen: list[dict[str, Any]] = []
        self._failed, self._usual = False, 0
        self._ports = [port for port in input_ports(model.proto.graph) if port.required]
        self.chosen: tuple[str, ...] = ()
        self._sets = self._made(model, spec, feeds)
        self.inputs: Mapping[str, Any] = self._sets[self._usual] if self._sets else {}
        for values in self._sets:
            self._seen.append({name: _small(value) for name, value in values.items()})

    def _made(self, model: Model, spec: BuildSpec, feeds: FeedOptions | None) -> list[Mapping[str, Any]]:
        """Returns inputs of the whole model: the given ones, or drawn ones at the ends of its profiles."""
        if feeds is not None and feeds.sources:
            return [each.feeds for each in feed_sets(model, feeds)]
        if feeds is not None and (feeds.shapes or feeds.dims):
            made = first_set(model, feeds)
            self.chosen = made.choices
            return [made.feeds]
        profiles = spec.profiles
        if profiles:
            check_profiles(profiles, self._ports)
        else:
            proposed = propose(self._ports)
            profiles = ({name: Range(each.min, each.opt, each.opt) for name, each in proposed.items()},)
            if proposed:
                self._notes.append(f"tried at: {spelled(profiles[0])}")
        drawn: list[Mapping[str, Any]] = []
        for profile in profiles:
            for kind in distinct_kinds(profile):
                if not drawn or (profile is profiles[0] and kind == "opt"):
                    self._usual = len(drawn)
                made = inputs_at(model, profile, kind, feeds)
                drawn.append(made.feeds)
                self.chosen = made.choices
        return drawn

    def look_at(self, model: Model, names: Sequence[str]) -> None:
        """Runs the model for tensors that were not seen yet."""
        wanted = [name for name in dict.fromkeys(names) if self._seen and name not in self._seen[0]]
        if not wanted or self._failed:
            return
        options = backends.Options("none")
        try:
            for values, seen in zip(self._sets, self._seen, strict=True):
                for name, value in backends.stream_outputs(
                    model, values, wanted, options=options, max_bytes=_BATCH_BYTES
                ):
                    seen[name] = _small(value)
        except (ExecutionError, FeedsError) as error:
            self._failed = True
            self._notes.append(
                f"shapes between pieces are guessed, for ONNX Runtime does not run the model: {error.message}"
            )

    def profile(self, piece: Piece) -> Profile | None:
        """Returns the shapes that a piece's inputs had, or None where they are not known or do not vary."""
        names = [port.name for port in input_ports(piece.model.proto.graph) if port.required]
        sets = [seen for seen in self._seen if all(hasattr(seen.get(name), "shape") for name in names)]
        if not sets:
            return None
        try:
            found = observe_sets(piece.model, sets).profile
        except BenchError:
            return None
        return {name: _without_zeros(each) for name, each in found.items()} or None


def _small(value: Any) -> Any:
    """Returns a value if it is small, else something of its shape that takes no memory."""
    import numpy as np

    if not isinstance(value, np.ndarray) or value.size <= _SHOWN_VALUES:
        return value
    return np.broadcast_to(np.zeros((), np.int8), value.shape)


def _without_zeros(each: Range) -> Range:
    """Returns a range whose best and largest shape are not empty (they are where nothing is found in drawn inputs)."""
    return Range(each.min, tuple(max(1, size) for size in each.opt), tuple(max(1, size) for size in each.max))
