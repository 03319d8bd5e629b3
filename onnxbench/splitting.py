"""What the command split does: disjoint pieces of a model, written with the manifest that wires them together.

How a model is split is decided in ``onnxbench.partition``. All files are written, or none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxbench import select
from onnxbench.captures import Value
from onnxbench.cut import Boundary, Piece, assemble, require_main
from onnxbench.errors import OutputError, UsageError
from onnxbench.feeding import FeedOptions, FeedSet, choices_explained, first_set
from onnxbench.graph import GraphIndex
from onnxbench.inference import TypeFinder
from onnxbench.marks import marks, unmark
from onnxbench.model import Model
from onnxbench.partition import Partition, split_at, split_parts, split_scopes, split_weights
from onnxbench.pieces import open_model, tells_more, type_sources
from onnxbench.proof import Proof
from onnxbench.proof import prove as prove_split
from onnxbench.specs import parse_size
from onnxbench.staging import staging_folder
from onnxbench.version import SCHEMA_VERSION
from onnxbench.weights import tensor_bytes, tensors
from onnxbench.writer import Saved, SaveOptions, save

MANIFEST = "manifest.yaml"


@dataclass(frozen=True, slots=True)
class WrittenPiece:
    """One file of a split.

    Attributes:
        file: Its path.
        name: Its name in the manifest.
        nodes: How many nodes it has.
        weight_bytes: Bytes of the weights it has, in initializers, attributes and bodies.
        inputs: Its inputs.
        outputs: Its outputs.
    """

    file: Path
    name: str
    nodes: int
    weight_bytes: int
    inputs: tuple[Boundary, ...]
    outputs: tuple[Boundary, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """A model written as disjoint pieces.

    Attributes:
        manifest: The YAML file that says how the pieces are wired.
        pieces: The pieces, in the order in which they run.
        shared_nodes: Constant nodes that more than one piece has a copy of.
        dead_nodes: Nodes that lead to no output and are in no piece.
        notes: What a user should know.
        choices: What was decided about drawn inputs of the whole model without being told.
    """

    manifest: Path
    pieces: tuple[WrittenPiece, ...]
    shared_nodes: int
    dead_nodes: int
    notes: tuple[str, ...]
    choices: tuple[str, ...] = ()


def partition(
    index: GraphIndex,
    *,
    at: Sequence[str] = (),
    parts: int | None = None,
    max_weights: int | None = None,
    by_scopes: int | None = None,
) -> Partition:
    """Returns how a model would be split; exactly one way must be given (see ``onnxbench.partition``).

    Raises:
        UsageError: No way, or more than one, is given.
        CutError: The model cannot be split so.
    """
    ways = [bool(at), parts is not None, max_weights is not None, by_scopes is not None]
    if sum(ways) != 1:
        raise UsageError("one of --at, --parts, --max-weights and --by-scopes says how to split", hint="Give just one.")
    if at:
        return split_at(index, named_tensors(index, at))
    if parts is not None:
        return split_parts(index, parts)
    return split_weights(index, max_weights) if max_weights is not None else split_scopes(index, by_scopes or 1)


def named_tensors(index: GraphIndex, at: Sequence[str]) -> list[str]:
    """Returns the tensors of the main graph that selectors of cuts stand for."""
    return require_main(select.tensors(index, at, what="--at"), what="--at")


def _without_marks(model: Model, at: Sequence[str]) -> tuple[Model, Sequence[str]]:
    """Returns a model without Marks, and where it is cut then."""
    index = GraphIndex(model.proto)
    if not marks(index):
        return model, at
    names = named_tensors(index, at) if at else []
    plain = unmark(model)
    return plain.model, [plain.name(name) for name in names]


def split(
    source: Model | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    at: Sequence[str] = (),
    parts: int | None = None,
    max_weights: int | None = None,
    by_scopes: int | None = None,
    inline: bool = False,
    feeds: Mapping[str, Value] | None = None,
    options: SaveOptions | None = None,
    allow_outside: bool = False,
) -> Split:
    """Writes a model as disjoint pieces that cover it, and a manifest of their wiring.

    Args:
        source: A model or a model file.
        folder: Where the pieces go; it is made if it is not there. All files are written, or none.
        at: Cut at these tensors (selectors).
        parts: Or: this many pieces of about as many nodes.
        max_weights: Or: pieces whose weights have at most this many bytes.
        by_scopes: Or: along PyTorch modules, to this depth of the module tree.
        inline: Inline local functions first.
        feeds: As for ``extract``.
        options: How weights are stored.
        allow_outside: For a model file: follow external data that leaves its folder.

    Raises:
        CutError: The model cannot be split so.
        UsageError: No way of splitting, or more than one, is given.
        OutputError: The folder cannot be written.
    """
    model, _ = open_model(source, allow_outside=allow_outside, inline=inline)
    model, at = _without_marks(model, at)
    index = GraphIndex(model.proto)
    plan = partition(index, at=at, parts=parts, max_weights=max_weights, by_scopes=by_scopes)
    return write_split(model, index, plan, folder, feeds=feeds, options=options)


def write_split(
    model: Model,
    index: GraphIndex,
    plan: Partition,
    folder: str | os.PathLike[str],
    *,
    feeds: Mapping[str, Value] | None = None,
    options: SaveOptions | None = None,
) -> Split:
    """Writes the pieces of a plan, and a manifest of their wiring; returns what was written.

    Args:
        model: The model.
        index: Its index.
        plan: The pieces.
        folder: Where they go; it is made if it is not there. All files are written, or none.
        feeds: Values of the inputs: a run on them may find out types that nothing else tells.
        options: How weights are stored.

    Raises:
        UnsupportedError: A tensor's element type cannot be found out.
        OutputError: The folder cannot be written.
    """
    finder = TypeFinder(model, index, type_sources(feeds))
    finder.find(index.main, [name for planned in plan.pieces for name in (*planned.cut.inputs, *planned.cut.outputs)])
    base = model.origin.stem if model.origin else (model.proto.graph.name or "model")
    made = [
        (
            _file_name(base, number, planned.name, len(plan.pieces)),
            planned.name or f"piece_{number}",
            assemble(model, index, index.main, planned.cut, finder=finder),
        )
        for number, planned in enumerate(plan.pieces, 1)
    ]
    return _write_split(model, index, plan, made, Path(folder), options or SaveOptions())


def split_file(
    source: Model | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    at: Sequence[str] = (),
    parts: int | None = None,
    max_weights: int | str | None = None,
    by_scopes: int | None = None,
    prove: bool = False,
    inline: bool = False,
    feeds: FeedOptions | None = None,
    options: SaveOptions | None = None,
    allow_outside: bool = False,
) -> tuple[Split, Proof | None]:
    """Writes a model as pieces (see ``split``) and, if asked, proves that they are the model.

    Args:
        source: A model or a model file.
        folder: As for ``split``.
        at: As for ``split``.
        parts: As for ``split``.
        max_weights: As for ``split``; a text such as ``500MB`` too.
        by_scopes: As for ``split``.
        prove: Run the pieces in a chain and compare (see ``onnxbench.proof``).
        inline: As for ``split``.
        feeds: What is said of the model's inputs, for the proof; with data or shapes in it, a run may find out types.
        options: How weights are stored.
        allow_outside: Follow external data that leaves the model's folder.

    Raises:
        BenchError: As for ``split`` and ``onnxbench.proof.prove``.
    """
    model, _ = open_model(source, allow_outside=allow_outside, inline=inline)
    model, at = _without_marks(model, at)
    first = first_set(model, feeds) if prove or tells_more(feeds) else FeedSet({})
    limit = parse_size(max_weights) if isinstance(max_weights, str) else max_weights
    done = split(
        model, folder, at=at, parts=parts, max_weights=limit, by_scopes=by_scopes,
        feeds=first.feeds if tells_more(feeds) else None, options=options,
    )  # fmt: skip
    done = replace(done, choices=first.choices)
    if not prove:
        return done, None
    with choices_explained(first.choices):
        return done, prove_split(done.manifest, model, first.feeds)


def _file_name(base: str, number: int, name: str, count: int) -> str:
    tail = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:60]
    return f"{base}_{number:0{len(str(count))}d}{'_' + tail if tail else ''}.onnx"


def _write_split(
    model: Model,
    index: GraphIndex,
    plan: Partition,
    made: list[tuple[str, str, Piece]],
    folder: Path,
    options: SaveOptions,
) -> Split:
    """Writes all pieces and their manifest."""
    saved = write_pieces(
        model, folder, [(file, piece.model) for file, _, piece in made], _manifest(model, index, plan, made), options
    )  # fmt: skip
    pieces = tuple(written_piece(folder / file, name, piece) for file, name, piece in made)
    notes = list(plan.notes)
    for (file, _, piece), done in zip(made, saved, strict=True):
        notes += [f"{file}: {note}" for note in (*piece.notes, *done.repairs)]
    return Split(folder / MANIFEST, pieces, plan.shared_nodes, plan.dead_nodes, tuple(notes))


def written_piece(file: Path, name: str, piece: Piece) -> WrittenPiece:
    """Returns what is told of a piece that was written."""
    return WrittenPiece(file, name, len(piece.cut.nodes), _weight_bytes(piece), piece.inputs, piece.outputs)


def write_pieces(
    model: Model, folder: Path, made: Sequence[tuple[str, Model]], manifest: Mapping[str, Any], options: SaveOptions
) -> list[Saved]:
    """Writes models into a folder, with a manifest: into a hidden one first, then they are moved, the manifest last.

    Args:
        model: What they are made of, which must not be written over.
        folder: The folder; it is made if it is not there. Pieces of an earlier manifest in it are removed.
        made: The models by file name.
        manifest: The manifest.
        options: How weights are stored.

    Raises:
        OutputError: The folder cannot be written; nothing was.
        UsageError: One of the files is what the model is read from.
    """
    import yaml

    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} exists and is not a folder")
    existed = folder.is_dir()
    if not folder.parent.is_dir():
        raise OutputError(f"there is no folder {folder.parent}", hint="Make it first.")
    _refuse_sources(model, folder, [file for file, _ in made])
    text = yaml.safe_dump(dict(manifest), sort_keys=False, allow_unicode=True)
    try:
        with staging_folder(folder) as staging:
            home = replace(options, home=folder)
            saved = [save(each, staging / file, options=home) for file, each in made]
            (staging / MANIFEST).write_text(text, encoding="utf-8")
            folder.mkdir(exist_ok=True)
            stale = _files_of(folder / MANIFEST)
            for written in sorted(staging.iterdir(), key=lambda path: path.name == MANIFEST):
                os.replace(written, folder / written.name)
                stale.discard(written.name)
            for name in stale:  # pieces of an earlier split that the new manifest does not know
                (folder / name).unlink(missing_ok=True)
    except BaseException as error:  # an interrupt, too, must leave no empty folder
        if not existed and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        if isinstance(error, OSError):
            raise OutputError(f"cannot write {folder}: {error.strerror or error}") from None
        raise
    return saved


def _files_of(manifest: Path) -> set[str]:
    """Returns the names of the pieces that an earlier split wrote beside this manifest."""
    import yaml

    try:
        wiring = yaml.safe_load(manifest.read_text(encoding="utf-8"))
        names = {piece["file"] for piece in wiring["pieces"]}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return set()
    return {name for name in names if isinstance(name, str) and Path(name).name == name and name.endswith(".onnx")}


def _refuse_sources(model: Model, folder: Path, files: list[str]) -> None:
    sources = {os.path.realpath(path) for path in (*model.sources, *([model.origin] if model.origin else []))}
    for file in files:
        if os.path.realpath(folder / file) in sources:
            raise UsageError(f"{folder / file} is what the model is read from, and input files are never changed")


def _weight_bytes(piece: Piece) -> int:
    return sum(map(tensor_bytes, tensors(piece.model.proto)))


def _manifest(model: Model, index: GraphIndex, plan: Partition, made: list[tuple[str, str, Piece]]) -> dict[str, Any]:
    """Returns the wiring: which tensor each input of each piece comes from."""
    maker = {name: file for file, _, piece in made for name in piece.cut.outputs}
    return {
        "schema_version": SCHEMA_VERSION,
        "model": str(model.origin.name) if model.origin else None,
        "inputs": index.main.true_inputs(),
        "outputs": list(index.main.outputs),
        "pieces": [
            {
                "file": file,
                "name": name,
                "nodes": len(piece.cut.nodes),
                "inputs": [{"name": b.name, "type": b.type, "from": maker.get(b.name, "input")} for b in piece.inputs],
                "outputs": [{"name": b.name, "type": b.type} for b in piece.outputs],
            }
            for file, name, piece in made
        ],
        "passed_through": list(plan.passed_through),
    }
