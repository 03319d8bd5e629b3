"""What the commands extract and expose do: selectors in, checked pieces out.

The work is done by ``onnxbench.cut`` on exact names. Here words become names (``x:[1,3,224,224]:float32``,
``node:Conv_3``, ``scope:layer1``), runtimes are asked for types that nothing else knows, and real activations are
recorded at the cut.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench import backends, captures, select
from onnxbench.boundary import depends_on, reach_back
from onnxbench.captures import Feeds, Value
from onnxbench.cut import Cut, Piece, assemble, frontier, lift, plan_cut, require_main
from onnxbench.cut import expose as expose_tensors
from onnxbench.ends import named_piece
from onnxbench.errors import (
    BenchError,
    CutError,
    EmptyPieceError,
    ExecutionError,
    FeedsError,
    NotFoundError,
    OutputError,
    UnsupportedError,
    UsageError,
)
from onnxbench.feeding import FeedOptions, FeedSet, choices_explained, first_set, refuse_to_overwrite
from onnxbench.graph import GraphIndex, Scope, TensorRef
from onnxbench.inference import TypeFinder, TypeSource
from onnxbench.marks import Unmarked, inline_all_but_marks, marks, unmark
from onnxbench.model import Model, load
from onnxbench.specs import TensorSpec, parse_tensor_specs
from onnxbench.tensortype import Dim, dtype_name, format_shape, format_type, make_type, tensor_shape
from onnxbench.wording import plural
from onnxbench.writer import Saved, SaveOptions, save

if TYPE_CHECKING:
    from onnx import TypeProto


def extract(
    source: Model | str | os.PathLike[str],
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    *,
    nodes: Sequence[str] = (),
    body: str | None = None,
    auto_inputs: bool = False,
    keep_unused: bool = False,
    inline: bool = False,
    rename: Mapping[str, str] | None = None,
    without_marks: bool = False,
    feeds: Mapping[str, Value] | None = None,
    allow_outside: bool = False,
) -> Piece:
    """Returns a piece of a model: between tensors, around nodes, or one body.

    At a Mark (``detector_forward:input``) the piece's input or output is called as the mark says, and the piece has no
    Marks.

    Args:
        source: A model or a model file.
        inputs: Where the piece starts: selectors, or ``name:shape:dtype`` to state what the model leaves open. A
            selector of nodes means the tensors that enter them. None: the model's own inputs. A cut at a mark
            (``mark:backbone:output``) is at the tensor that the Mark passes on, and the piece has no Marks.
        outputs: Where it ends. A selector of nodes means the tensors that leave them. None: the model's own outputs
            (those that depend on ``inputs``).
        nodes: Instead of inputs and outputs: exactly these nodes, with whatever enters and leaves them.
        body: Instead: a body or function (``If_3/then``), its captures as inputs.
        auto_inputs: Where the inputs do not bound the piece, add the smallest set of tensors that does.
        keep_unused: Keep inputs that change nothing.
        inline: Inline local functions first.
        rename: Names for inputs and outputs of the piece, by what the model calls them, by the name at their mark, or
            by its point (``yolo_head:input:pred_maps.0``).
        without_marks: Leave Marks out even if the piece is not cut at one.
        feeds: Values for the model's inputs, with which a run may find out types that nothing else tells.
        allow_outside: For a model file: follow external data that leaves its folder.

    Raises:
        CutError: The inputs do not bound the piece; ``missing`` and ``proposals`` say what would.
        NotFoundError: A selector matches nothing.
        UnsupportedError: A tensor lies inside a body or function, or an element type cannot be found out.
        UsageError: The request contradicts itself, or no node lies between inputs and outputs.
    """
    model, names = open_model(source, allow_outside=allow_outside, inline=inline)
    index = GraphIndex(model.proto)
    sources = type_sources(feeds)
    if body is not None:
        _refuse_together("lift", body=body, inputs=inputs, outputs=outputs, nodes=nodes)
        return _named(index, lift(model, body, index=index, sources=sources), (), rename, None)
    types: dict[str, TypeProto] = {}
    if nodes:
        _refuse_together("nodes", nodes=nodes, inputs=inputs, outputs=outputs)
        cut = _cut_nodes(index, nodes)
        piece = assemble(model, index, index.main, cut, finder=TypeFinder(model, index, sources))
        return _named(index, piece, (), rename, None)
    if inputs is None and outputs is None:
        raise UsageError("nothing is named to extract", hint="Give --inputs, --outputs, --node, --scope or --lift.")
    starts = ends = None
    if inputs is not None:
        starts = _boundary(index, inputs, what="--inputs", entering=True, types=types, moved=names)
    if outputs is not None:
        ends = _boundary(index, outputs, what="--outputs", entering=False, types=types, moved=names)
    marked_index, plain = index, None
    notes: tuple[str, ...] = ()
    words = [*(inputs or ()), *(outputs or ())]
    if (without_marks and marks(index)) or _names_marks(index, words):
        plain, notes = unmark(model), ("the piece has no Marks: it is cut at the tensors that they pass on",)
        model, index = plain.model, GraphIndex(plain.model.proto)
        sources = [*sources[:-1], plain.recorded, *sources[-1:]]
        types = {plain.name(name): kind for name, kind in types.items()}
        starts = starts and list(dict.fromkeys(map(plain.name, starts)))
        ends = ends and list(dict.fromkeys(map(plain.name, ends)))
    finder = TypeFinder(model, index, sources)
    ends = ends or _outputs_behind(index.main, starts or [])
    _refuse_empty(index.main, starts, ends)
    cut = plan_cut(index.main, ends, starts, auto_inputs=auto_inputs, keep_unused=keep_unused)
    complete_types(types, finder, index.main)
    piece = assemble(model, index, index.main, cut, finder=finder, types=types)
    return _named(marked_index, replace(piece, notes=(*notes, *piece.notes)), words, rename, plain)


def _named(
    index: GraphIndex, piece: Piece, words: Sequence[str], rename: Mapping[str, str] | None, plain: Unmarked | None
) -> Piece:
    """Returns a piece whose ends are called as the user says, or as the marks say at which they lie.

    Args:
        index: The model as it was given, with its marks.
        piece: The piece.
        words: What the user calls its ends.
        rename: Names that the user gives.
        plain: The model without marks, of which it is a piece; None if it has none.
    """
    now = plain.name if plain is not None else lambda name: name
    labels: dict[str, str] = {}
    for word in words:
        for ref, point in select.points(index, word) if index.tensor(word) is None else ():
            labels.setdefault(now(ref.name), point.name)
    ends = {boundary.name for boundary in (*piece.inputs, *piece.outputs)}
    wanted: dict[str, str] = {}
    for word, new in (rename or {}).items():
        named = [word] if word in ends else [name for name, label in labels.items() if label == word and name in ends]
        if not named:
            refs = [ref for ref, _ in select.points(index, word)]
            named = [name for name in dict.fromkeys(now(ref.name) for ref in refs) if name in ends] or [now(word)]
        if len(named) > 1:
            raise UsageError(
                f"{word!r} stands for {len(named)} of the piece's inputs and outputs", hint=f"Name one: {named[0]!r}."
            )
        wanted[named[0]] = new
    if not wanted and not labels:
        return piece
    return named_piece(piece, wanted, {name: label for name, label in labels.items() if name in ends})


def expose(
    source: Model | str | os.PathLike[str],
    outputs: Sequence[str],
    *,
    exclude: Sequence[str] = (),
    inline: bool = False,
    feeds: Mapping[str, Value] | None = None,
    allow_outside: bool = False,
) -> Piece:
    """Returns the whole model with further tensors as outputs.

    Args:
        source: A model or a model file.
        outputs: Selectors, or ``name:shape:dtype``. Tensors inside bodies are left out when a pattern matches them
            along with others, and refused when they are all it matches.
        exclude: Selectors of tensors to leave out of ``outputs``.
        inline: Inline local functions first; ``local::Block/x`` then means ``x`` at each call of the function.
        feeds: As for ``extract``.
        allow_outside: For a model file: follow external data that leaves its folder.

    Raises:
        NotFoundError: A selector matches nothing.
        UnsupportedError: A tensor lies inside a body or function, or an element type cannot be found out.
    """
    model, names = open_model(source, allow_outside=allow_outside, inline=inline)
    index = GraphIndex(model.proto)
    types: dict[str, TypeProto] = {}
    wanted = _boundary(index, outputs, what="--outputs", entering=False, types=types, moved=names)
    if exclude:
        unwanted = {ref.name for ref in select.tensors(index, exclude, what="--exclude-outputs")}
        wanted = [name for name in wanted if name not in unwanted]
    sources = type_sources(feeds)
    complete_types(types, TypeFinder(model, index, sources), index.main)
    piece = expose_tensors(model, wanted, index=index, types=types, sources=sources)
    renamed = tuple(f"{word} is {', '.join(map(repr, names[word]))} now" for word in outputs if word in names)
    return replace(piece, notes=(*renamed, *piece.notes))


def type_sources(feeds: Mapping[str, Value] | None = None) -> list[TypeSource]:
    """Returns the places to ask for types that neither the model nor onnx's inference tells, cheapest first.

    The last one is a run of the model, on ``feeds`` or on drawn values. It tells element types and ranks; sizes are
    left open, for they are those of one run.
    """

    def observed(model: Model, names: Sequence[str]) -> dict[str, TypeProto]:
        try:
            values = feeds if feeds is not None else first_set(model).feeds
            found = backends.run_with_outputs(model, values, list(names), optimization="none")
        except (ExecutionError, FeedsError, UnsupportedError):
            return {}  # drawn values need not fit the model; what is unknown stays so, and is reported
        return {
            name: make_type(captures.onnx_dtype(array.dtype), [None] * array.ndim)
            for name, array in found.items()
            if hasattr(array, "dtype")
        }

    return [_symbolic, _runtime, observed]


def _symbolic(model: Model, names: Sequence[str]) -> dict[str, TypeProto]:
    return backends.symbolic_types(model, names)


def _runtime(model: Model, names: Sequence[str]) -> dict[str, TypeProto]:
    try:
        return backends.session_types(model, names)
    except ExecutionError:
        return {}  # a model that the runtime does not take: its types stay unknown, and that is what is reported


def record(
    source: Model | str | os.PathLike[str],
    piece: Piece,
    feeds: Mapping[str, Value],
    *,
    allow_outside: bool = False,
) -> Feeds:
    """Returns the real values at a piece's inputs and outputs, computed by running the whole model.

    The outputs of a lifted body are what it computes by itself from its recorded inputs.

    Args:
        source: The whole model.
        piece: A piece of it.
        feeds: Values for the whole model's inputs.
        allow_outside: For a model file: follow external data that leaves its folder.

    Raises:
        ExecutionError: The run failed.
        UnsupportedError: An input of a lifted body or function is no tensor of the main graph.
    """
    model, _ = open_model(source, allow_outside=allow_outside, inline=False)
    index = GraphIndex(model.proto)
    inputs = [boundary.name for boundary in piece.inputs]
    if not piece.cut.scope:
        ends = [*piece.inputs, *piece.outputs]
        names = [*piece.cut.inputs, *piece.cut.outputs]
        if marks(index):  # which no runtime has
            plain = unmark(model)
            model, names = plain.model, [plain.name(name) for name in names]
        found = backends.run_with_outputs(model, dict(feeds), names, optimization="none")
        return {end.name: found[name] for end, name in zip(ends, names, strict=True)}
    _require_recordable(index.scope_paths[piece.cut.scope], inputs)
    values = backends.run_with_outputs(model, dict(feeds), inputs, optimization="none") if inputs else {}
    session = backends.open_session(piece.model, options=backends.Options("none"))
    return values | session.run(values)


def _require_recordable(scope: Scope, inputs: Sequence[str]) -> None:
    """Raises UnsupportedError unless all these inputs of a body are tensors of the main graph: then they have values.

    The names alone do not tell: a function may call an input of its own as some tensor of the main graph is called.
    """
    if scope.is_function:
        raise UnsupportedError(
            f"the inputs of {scope.path} have other values at each call of that function, so they cannot be recorded",
            hint="Record around one call: --inline-functions, with --inputs and --outputs.",
        )
    for name in inputs:
        holder = scope
        while holder.parent is not None and not holder.defines(name):
            holder = holder.parent
        if holder.path:
            owner = holder.parent.label(holder.owner) if holder is scope and holder.parent else ""
            why = f"has another value in each run of {owner}" if owner else f"has no value outside {holder.path}"
            raise UnsupportedError(
                f"input {name!r} of {scope.path} {why}, so it cannot be recorded",
                hint="Only a body whose inputs are all tensors of the main graph can be recorded.",
            )


def _branch_notes(model: Model, piece: Piece, feeds: Mapping[str, Value]) -> tuple[str, ...]:
    """Returns a note where a lifted branch is not the one that the model takes on these inputs."""
    index = GraphIndex(model.proto)
    scope = index.scope_paths[piece.cut.scope]
    node = index.main.nodes[scope.owner] if scope.parent is index.main else None
    if node is None or node.op_type != "If" or node.domain not in ("", "ai.onnx"):
        return ()
    (condition,) = backends.run_with_outputs(model, dict(feeds), [node.input[0]], optimization="none").values()
    taken = "then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"
    if taken == scope.body_name:
        return ()
    return (f"on these inputs the model does not take {scope.path}; the recorded outputs are what it would compute",)


@dataclass(frozen=True, slots=True)
class Extracted:
    """What ``extract_file`` and ``expose_file`` did.

    Attributes:
        piece: The piece, with its inputs, outputs and notes.
        saved: The written files; None for a dry run.
        feeds: The file with the recorded values of the piece's inputs, or None.
        expected: The file with those of its outputs, or None.
        choices: What was decided about drawn inputs of the whole model without being told.
    """

    piece: Piece
    saved: Saved | None
    feeds: Path | None = None
    expected: Path | None = None
    choices: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know: of the cut, and of what had to be mended."""
        return (*self.piece.notes, *(self.saved.repairs if self.saved else ()))

    def to_json(self) -> dict[str, Any]:
        """Returns all but the model itself as JSON values."""
        return {
            "cut": self.piece.cut,
            "inputs": self.piece.inputs,
            "outputs": self.piece.outputs,
            "notes": self.notes,
            "choices": self.choices,
            "saved": self.saved,
            "feeds": self.feeds,
            "expected": self.expected,
        }


def extract_file(
    source: Model | str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    *,
    nodes: Sequence[str] = (),
    body: str | None = None,
    auto_inputs: bool = False,
    keep_unused: bool = False,
    inline: bool = False,
    rename: Mapping[str, str] | None = None,
    feeds: FeedOptions | None = None,
    save_feeds: str | os.PathLike[str] | None = None,
    options: SaveOptions | None = None,
    allow_outside: bool = False,
) -> Extracted:
    """Writes a piece of a model, and the real values at its boundary if asked for (see ``extract``).

    Args:
        source: A model or a model file.
        out: The file to write, or None to write nothing.
        inputs: As for ``extract``.
        outputs: As for ``extract``.
        nodes: As for ``extract``.
        body: As for ``extract``.
        auto_inputs: As for ``extract``.
        keep_unused: As for ``extract``.
        inline: As for ``extract``.
        rename: As for ``extract``.
        feeds: What is said of the model's inputs; with data or shapes in it, a run may find out types.
        save_feeds: Record the values at the piece's inputs in this ``.npz`` file, and those at its outputs in
            another whose name ends in ``_outputs.npz``.
        options: How weights are stored.
        allow_outside: Follow external data that leaves the model's folder.

    Raises:
        BenchError: As for ``extract``, ``record`` and ``onnxbench.writer.save``.
    """
    model = source if isinstance(source, Model) else load(source, allow_outside=allow_outside)
    feeds_path, expected_path = _value_files(model, feeds, save_feeds, out)
    first = first_set(model, feeds) if tells_more(feeds) or save_feeds is not None else FeedSet({})
    values = first.feeds or None
    piece = extract(
        model, inputs, outputs, nodes=nodes, body=body, auto_inputs=auto_inputs, keep_unused=keep_unused,
        inline=inline, rename=rename, feeds=values,
    )  # fmt: skip
    if out is None:
        return Extracted(piece, None, choices=first.choices)
    recorded = None
    if save_feeds is not None:
        whole = inline_all_but_marks(model)[0] if inline else model
        with choices_explained(first.choices):
            recorded = record(whole, piece, first.feeds)
            if piece.cut.scope:
                piece = replace(piece, notes=(*piece.notes, *_branch_notes(whole, piece, first.feeds)))
    saved = save(piece.model, out, options=options)
    if recorded is None:
        return Extracted(piece, saved, choices=first.choices)
    captures.save(feeds_path, {b.name: recorded[b.name] for b in piece.inputs})
    captures.save(expected_path, {b.name: recorded[b.name] for b in piece.outputs})
    return Extracted(piece, saved, feeds_path, expected_path, first.choices)


def _names_marks(index: GraphIndex, words: Sequence[str]) -> bool:
    """Tells whether a boundary of a piece is spelled by a mark."""
    return any(index.tensor(word) is None and ("mark:" in word or select.points(index, word)) for word in words)


def _value_files(
    model: Model,
    feeds: FeedOptions | None,
    save_feeds: str | os.PathLike[str] | None,
    out: str | os.PathLike[str] | None,
) -> tuple[Path, Path]:
    """Returns the files for the values at a piece's inputs and outputs, after a look whether they can be written."""
    inputs = Path(save_feeds or "")
    outputs = inputs.with_name(f"{inputs.stem}_outputs.npz") if inputs.name else inputs
    if save_feeds is not None:
        if inputs.suffix.lower() != ".npz":
            raise UsageError(f"{os.fspath(save_feeds)!r}: values are saved as .npz", hint="Name it so: values.npz")
        if not inputs.parent.is_dir():
            raise OutputError(f"there is no folder {inputs.parent}", hint="Make it first.")
        if inputs.is_dir() or outputs.is_dir():
            raise OutputError(f"{inputs if inputs.is_dir() else outputs} is a folder")
        refuse_to_overwrite(model, feeds.sources if feeds else (), inputs, outputs, out)
    return inputs, outputs


def expose_file(
    source: Model | str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    outputs: Sequence[str],
    *,
    exclude: Sequence[str] = (),
    inline: bool = False,
    feeds: FeedOptions | None = None,
    options: SaveOptions | None = None,
    allow_outside: bool = False,
) -> Extracted:
    """Writes a model with further outputs, and returns it with what was written.

    Args:
        source: A model or a model file.
        out: The file to write; None writes nothing.
        outputs: Selectors of the tensors that become outputs.
        exclude: Selectors of tensors that do not.
        inline: Inline local functions first.
        feeds: What is said of the inputs: a run on them may find out types that nothing else tells.
        options: How weights are stored.
        allow_outside: For a model file: follow external data that leaves its folder.

    Raises:
        OutputError: The file cannot be written.
        BenchError: As for ``expose``.
    """
    model = source if isinstance(source, Model) else load(source, allow_outside=allow_outside)
    first = first_set(model, feeds) if tells_more(feeds) else FeedSet({})
    piece = expose(model, outputs, exclude=exclude, inline=inline, feeds=first.feeds or None)
    saved = None if out is None else save(piece.model, out, options=options)
    return Extracted(piece, saved, choices=first.choices)


def tells_more(feeds: FeedOptions | None) -> bool:
    """Tells whether the user said something of the inputs, so that a run of the model is worth its time."""
    return feeds is not None and bool(feeds.sources or feeds.shapes or feeds.dims)


def open_model(
    source: Model | str | os.PathLike[str], *, allow_outside: bool, inline: bool
) -> tuple[Model, dict[str, list[str]]]:
    """Returns the model of a source, and where the tensors inside functions went if these were inlined."""
    model = source if isinstance(source, Model) else load(source, allow_outside=allow_outside)
    return inline_all_but_marks(model) if inline else (model, {})


def _refuse_together(main: str, **given: object) -> None:
    others = [name for name, value in given.items() if value]
    if len(others) > 1:
        raise UsageError(f"--{main.replace('nodes', 'node')} stands alone: it says where the piece starts and ends")


def _boundary(
    index: GraphIndex,
    words: Sequence[str],
    *,
    what: str,
    entering: bool,
    types: dict[str, TypeProto],
    moved: Mapping[str, list[str]],
) -> list[str]:
    """Returns the tensors that words mean as one side of a piece; types that they state go into ``types``."""
    if not words:
        raise UsageError(f"{what} names nothing")
    found: dict[str, None] = {}
    for word in words:
        if word in moved:
            found.update(dict.fromkeys(moved[word]))
            continue
        ref = index.tensor(word)
        spec = _typed_word(index, word) if ref is None else None
        if spec is not None:
            found[spec.name] = None
            if spec.shape is not None or spec.dtype is not None:
                types[spec.name] = make_type(spec.dtype or 0, spec.shape)
            continue
        refs = [ref] if ref is not None else _selected(index, word, what=what, entering=entering)
        main = [ref for ref in refs if ref.scope is index.main]
        if ref is None:  # a pattern means what varies: no weights as inputs, nothing but what nodes make as outputs
            scope = index.main
            main = [
                r for r in main if (r.name not in scope.constants if entering else r.name in scope.producers)
            ] or main
        found.update(dict.fromkeys(require_main(main or refs, what=what)))
    return list(found)


def _typed_word(index: GraphIndex, word: str) -> TensorSpec | None:
    """Returns what ``name:shape:dtype`` says of a tensor of the main graph, or None if the word is no such thing.

    ``output:*`` is a selector first, and the tensor ``output`` with a shape of one unknown dimension only where that
    selects nothing.
    """
    if (":" not in word and "=" not in word) or select.points(index, word):
        return None
    if word.partition(":")[0] in select.PREFIXES:
        with suppress(BenchError):
            if select.select(index, word):
                return None
    try:
        specs = parse_tensor_specs([word], set(index.main.tensor_names()), what="tensor")
    except UsageError:  # the tensor is there, and what follows is no type: x:[0-9] may still be a pattern
        try:
            select.select(index, word)
        except NotFoundError:
            pass
        else:
            return None
        raise
    except BenchError:
        return None
    return specs[0] if len(specs) == 1 else None


def _selected(index: GraphIndex, word: str, *, what: str, entering: bool) -> list[TensorRef]:
    named = select.nodes_named(index, word)
    chosen = select.Selection(nodes=frozenset(named), is_nodes=True) if named else select.select(index, word)
    if not chosen.is_nodes:
        return select.in_order(index, chosen.tensors)
    main = [ref.position for ref in chosen.nodes if ref.scope is index.main]
    if not main:
        return select.in_order(index, chosen.as_tensors())
    enters, leaves = frontier(index.main, main)
    varying = depends_on(index.main, index.main.true_inputs())
    names = [name for name in enters if name in varying] if entering else leaves
    if not names:
        raise CutError(f"{what} {word!r}: no tensor that depends on an input {'enters' if entering else 'leaves'} it")
    return [TensorRef(index.main, name) for name in names]


def _cut_nodes(index: GraphIndex, selectors: Sequence[str]) -> Cut:
    """Returns the cut around exactly the selected nodes; constants that they need come along."""
    refs = select.nodes(index, selectors, what="--node")
    inner = [ref for ref in refs if ref.scope is not index.main]
    positions = [ref.position for ref in refs if ref.scope is index.main]
    if not positions:
        raise UnsupportedError(
            f"{inner[0].path!r} lies inside a body or function",
            hint=f"Make that a model of its own first: --lift {inner[0].scope.path}",
        )
    enters, leaves = frontier(index.main, positions)
    varying = depends_on(index.main, index.main.true_inputs())
    return plan_cut(index.main, leaves, [name for name in enters if name in varying])


def _outputs_behind(scope: Scope, starts: Sequence[str]) -> list[str]:
    behind = depends_on(scope, starts)
    outputs = [name for name in scope.outputs if name in behind]
    if not outputs:
        raise CutError("no output of the model depends on these inputs", hint="Name the outputs with --outputs.")
    return outputs


def _refuse_empty(scope: Scope, starts: Sequence[str] | None, ends: Sequence[str]) -> None:
    """Raises EmptyPieceError where no node would be in a piece, or the ends lie before all that it starts from."""
    starts = starts or ()
    reach = reach_back(scope, ends, starts)
    if reach.nodes and (not starts or not depends_on(scope, starts).isdisjoint(ends)):
        return
    at, of = _listed(ends), _listed(starts)
    behind = depends_on(scope, ends)
    around = reach_back(scope, starts, ends).nodes
    other_way = [position for position in around if not behind.isdisjoint(scope.reads[position])]
    if other_way:
        labels = [scope.label(position) for position in sorted(other_way)]
        raise EmptyPieceError(
            f"the piece would begin at {of} and end at {at}, which lies before that",
            details=[f"the other way round, {plural(len(labels), 'node')} between them: {_listed(labels)}"],
            hint="Exchange inputs and outputs.",
            is_reversed=True,
        )
    if reach.nodes or reach.undefined:  # neither follows from the other: the cut says what is missing
        return
    if not set(starts).isdisjoint(ends):
        raise EmptyPieceError(
            f"no node lies between {of} and {at}", hint="Name another tensor as the end, or the start."
        )
    what = "of the model's weights" if not set(ends).isdisjoint(scope.constants) else "of the model's inputs"
    raise EmptyPieceError(
        f"no node computes {at}: it is one {what}", hint="Name what nodes make: 'onnxbench inspect --nodes' lists it."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:6])) + (", ..." if len(names) > 6 else "")


def complete_types(types: dict[str, TypeProto], finder: TypeFinder, scope: Scope) -> None:
    """Fills in what a stated type leaves open (``x:auto:float16``, ``x:[1,3]``, ``x:[?,3]``) from what is known.

    A size may be stated where the model leaves one open. Where it has a fixed size, a piece computes with that one, so
    another size, or a symbol, would be a promise that the piece does not keep.

    Raises:
        UsageError: The tensor is known to have another element type or shape.
        UnsupportedError: Its element type is neither stated nor known.
    """
    if types:
        finder.verify(types)
    known = finder.find(scope, types) if types else {}
    for name, value in types.items():
        tensor = value.tensor_type
        if name not in known:
            if not tensor.elem_type:
                raise UnsupportedError(
                    f"the element type of {name!r} is not known", hint=f"Give it: '{name}:auto:float32'."
                )
            continue
        if known[name].WhichOneof("value") != "tensor_type":
            raise UsageError(f"{name!r} is {format_type(known[name])}; shapes and types are stated of tensors only")
        real = known[name].tensor_type
        if tensor.elem_type and tensor.elem_type != real.elem_type:
            raise UsageError(
                f"{name!r} is {dtype_name(real.elem_type)}, not {dtype_name(tensor.elem_type)}",
                hint="A cut converts nothing; a type is stated only where the model leaves it unknown.",
            )
        tensor.elem_type = real.elem_type
        stated, fixed = tensor_shape(value), tensor_shape(known[name])
        if fixed is not None and stated is None:
            tensor.shape.CopyFrom(real.shape)
        elif fixed is not None and stated is not None:
            _require_same_shape(name, stated, fixed)
            for dim, size in zip(tensor.shape.dim, fixed, strict=True):
                if isinstance(size, int):
                    dim.dim_value = size


def _require_same_shape(name: str, stated: Sequence[Dim], known: Sequence[Dim]) -> None:
    """Raises UsageError when a stated shape cannot be that of a tensor."""
    shapes = f"{name!r} is stated to be {format_shape(stated)}, and in the model it is {format_shape(known)}"
    hint = "A cut keeps the sizes that the model fixes; a size is stated only where the model leaves one open."
    if len(stated) != len(known):
        raise UsageError(f"{shapes}: another number of dimensions", hint=hint)
    for axis, (mine, theirs) in enumerate(zip(stated, known, strict=True)):
        if isinstance(theirs, int) and mine is not None and mine != theirs:
            raise UsageError(f"{shapes}: dimension {axis} is {theirs}, not {mine}", hint=hint)
