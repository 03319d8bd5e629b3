"""What the command partition does: the pieces that a configuration names, cut at marks and written with the whole.

    pieces:
      - file: detector.onnx
        start: detector_forward:input
        end: yolo_head:input
        names: {pred_maps.0: stride32}
        dynamic_axes: {input: {0: batch, 2: height, 3: width}}
      - {file: postprocess.onnx, start: yolo_head:input, end: detector_forward:output}

MMDeploy's ``partition_config`` is read as it is (in YAML): ``partition_cfg``, ``save_file``, ``output_names``. Pieces
need not cover the model, and may overlap. The whole is written too, without its marks, and a manifest that says what
each piece's inputs and outputs are called in the whole: with it, the pieces are proven (``onnxbench.proof``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench import backends, captures
from onnxbench.captures import Value
from onnxbench.cut import Piece
from onnxbench.documents import Item, from_yaml
from onnxbench.ends import named_piece
from onnxbench.errors import (
    BenchError,
    FeedsError,
    NotFoundError,
    OutputError,
    SpecError,
    UsageError,
    did_you_mean,
    near_file,
)
from onnxbench.feeding import FeedOptions, FeedSet, choices_explained, feed_sets, first_set, refuse_to_overwrite
from onnxbench.graph import GraphIndex
from onnxbench.marks import marks, unmark
from onnxbench.model import Model
from onnxbench.operations import MakeDynamic, NameDim
from onnxbench.pieces import extract, open_model, tells_more
from onnxbench.proof import Proof
from onnxbench.proof import prove as prove_pieces
from onnxbench.splitting import MANIFEST, WrittenPiece, write_pieces, written_piece
from onnxbench.staging import staging_folder
from onnxbench.surgery import edit
from onnxbench.tensortype import Dim, format_type, tensor_shape
from onnxbench.version import SCHEMA_VERSION
from onnxbench.writer import SaveOptions

if TYPE_CHECKING:
    from onnx import ValueInfoProto

CALIBRATION = "calibration"
"""The folder, beside the pieces, of what was recorded for them."""
_TOP_KEYS = ("pieces", "partition_cfg", "partition_config", "whole", "type", "apply_marks")
_PIECE_KEYS = (
    "file", "save_file", "start", "end", "names", "input_names", "output_names", "dynamic_axes",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PlannedCut:
    """One piece of a configuration.

    Attributes:
        file: The file to write.
        start: Where it starts (selectors); None: at the model's own inputs.
        end: Where it ends; None: at the model's own outputs.
        names: New names of inputs and outputs, by those that they would have.
        input_names: Instead, names of all inputs, in order.
        output_names: Instead, names of all outputs, in order.
        dynamic_axes: Names of dimensions that may vary, by axis, by input or output.
        place: Where it stands, to begin a message with.
    """

    file: str
    start: tuple[str, ...] | None = None
    end: tuple[str, ...] | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    dynamic_axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    place: str = ""


@dataclass(frozen=True, slots=True)
class Division:
    """The pieces of a configuration.

    Attributes:
        pieces: The pieces.
        whole: The file for the whole model without marks; None: a name made from the model's.
    """

    pieces: tuple[PlannedCut, ...]
    whole: str | None = None


@dataclass(frozen=True, slots=True)
class Divided:
    """What was written.

    Attributes:
        manifest: The YAML file that says how the pieces are wired.
        whole: The whole model without marks.
        pieces: The pieces, in the order in which they run.
        calibration: Folders with the recorded inputs of each piece, one ``.npz`` for each set of the data.
        proof: What a chained run showed; None if none was asked for.
        notes: What a user should know.
        choices: What was decided about drawn inputs without being told.
    """

    manifest: Path
    whole: Path
    pieces: tuple[WrittenPiece, ...]
    calibration: tuple[Path, ...] = ()
    proof: Proof | None = None
    notes: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()


def load_division(path: str | os.PathLike[str]) -> Division:
    """Returns the pieces that a YAML file names.

    Raises:
        NotFoundError: There is no such file.
        SpecError: It has a mistake; the message names the line.
    """
    file = Path(path)
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise NotFoundError(f"there is no configuration {file}", hint=near_file(file)) from None
    except UnicodeDecodeError:
        raise SpecError(f"{file} is not UTF-8 text, so it is no configuration") from None
    except OSError as error:
        raise SpecError(f"{file} cannot be read: {error.strerror}") from None
    return parse_division(text, source=str(file))


def parse_division(text: str, *, source: str = "the configuration") -> Division:
    """Returns the pieces that a YAML text names.

    Args:
        text: The text.
        source: What errors call it.

    Raises:
        SpecError: It has a mistake; the message names the line.
    """
    root = from_yaml(text, source)
    whole = None
    if root.kind != "list":
        root.require_map("a configuration", _TOP_KEYS)
        whole = root.get("whole")
        inner = root.get("partition_config")
        if inner is not None:
            root = inner.require_map("partition_config", _TOP_KEYS)
        listed = root.get("pieces") or root.get("partition_cfg")
        if listed is None:
            raise root.error(
                "a configuration needs pieces", hint="pieces:\n  - {file: a.onnx, start: f:input, end: g:input}"
            )
        root = listed
    pieces = tuple(_piece(each) for each in root.require_list("the pieces"))
    if not pieces:
        raise root.error("there are no pieces")
    name = _file(whole, "the file for the whole") if whole is not None else None
    files = [piece.file for piece in pieces] + ([name] if name else [])
    for number, each in enumerate(files):
        if each in files[:number]:
            raise root.error(f"two models would be written to {each!r}", hint="Give each a file of its own.")
    return Division(pieces, name)


def _piece(item: Item) -> PlannedCut:
    item.require_map("a piece", _PIECE_KEYS)
    file = item.get("file") or item.get("save_file")
    if file is None:
        raise item.error("a piece needs a file", hint="file: backbone.onnx")
    start, end = (_words(item.get(key), f"the {key}") for key in ("start", "end"))
    if start is None and end is None:
        raise item.error("a piece needs a start or an end", hint="start: detector_forward:input")
    names = item.get("names")
    wanted = (
        {key: value.require_text("a name") for key, _, value in names.require_map("names").pairs()} if names else {}
    )
    return PlannedCut(
        _file(file, "the file"), start, end, wanted, _words(item.get("input_names"), "the names") or (),
        _words(item.get("output_names"), "the names") or (), _axes(item.get("dynamic_axes")), item.place(),
    )  # fmt: skip


def _file(item: Item, what: str) -> str:
    name = item.require_text(what)
    if not name or Path(name).name != name:
        raise item.error(f"{name!r} is no plain file name", hint="All files go to one folder.")
    return name if name.lower().endswith(".onnx") else f"{name}.onnx"


def _words(item: Item | None, what: str) -> tuple[str, ...] | None:
    if item is None:
        return None
    if item.kind == "list":
        return tuple(each.require_text(what) for each in item.items) or None
    return (item.require_text(what),)


def _axes(item: Item | None) -> dict[str, dict[int, str]]:
    """Reads ``{input: {0: batch}}``, or ``{input: [0, 2]}``, which names the dimensions itself."""
    found: dict[str, dict[int, str]] = {}
    for name, _, said in item.require_map("dynamic_axes").pairs() if item is not None else ():
        if said.kind == "list":
            axes = [each.require_integer("an axis", low=0) for each in said.items]
            found[name] = {axis: f"{name}_dim_{axis}" for axis in axes}
            continue
        for key, key_item, value in said.require_map("the axes of a tensor").pairs():
            if not key.isdigit():
                raise key_item.error(f"{key!r} is no axis", hint="0 is the first one.")
            found.setdefault(name, {})[int(key)] = value.require_text("the name of a dimension")
    return found


def divide(
    source: Model | str | os.PathLike[str],
    division: Division | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    prove: bool = False,
    calibration: FeedOptions | None = None,
    inline: bool = False,
    feeds: FeedOptions | None = None,
    options: SaveOptions | None = None,
    allow_outside: bool = False,
) -> Divided:
    """Writes the pieces that a configuration names, the whole without marks, and a manifest.

    Args:
        source: A model or a model file.
        division: The pieces, or a YAML file of them.
        folder: Where all goes; it is made if it is not there. All files are written, or none.
        prove: Run the pieces in a chain and compare them with the whole.
        calibration: Data for the whole model's inputs, from which the inputs of each piece are recorded.
        inline: Inline local functions first.
        feeds: What is said of the model's inputs, for the proof; with data or shapes in it, a run may find out types.
        options: How weights are stored.
        allow_outside: For a model file: follow external data that leaves its folder.

    Raises:
        SpecError: The configuration has a mistake.
        CutError: The start of a piece does not bound it; the message begins with its place.
        FeedsError: The calibration data holds no set of inputs.
        OutputError: The folder cannot be written.
        BenchError: As for ``extract`` and ``onnxbench.proof.prove``.
    """
    plan = division if isinstance(division, Division) else load_division(division)
    model, _ = open_model(source, allow_outside=allow_outside, inline=inline)
    target = Path(folder)
    if not target.parent.is_dir():
        raise OutputError(f"there is no folder {target.parent}", hint="Make it first.")
    first = first_set(model, feeds) if prove or tells_more(feeds) else FeedSet({})
    values = first.feeds if tells_more(feeds) else None
    whole = unmark(model).model if marks(GraphIndex(model.proto)) else model
    made = _in_order([(cut, _cut(model, cut, feeds=values)) for cut in plan.pieces])
    _require_axes_of_ends(made)
    base = model.origin.stem if model.origin else (model.proto.graph.name or "model")
    whole_file = plan.whole or f"{base}_whole.onnx"
    if any(cut.file == whole_file for cut, _ in made):
        raise UsageError(f"the whole and a piece would both be written to {whole_file!r}", hint="whole: NAME.onnx")
    said = [*(feeds.sources if feeds else ()), *(calibration.sources if calibration else ())]
    refuse_to_overwrite(model, said, *(target / cut.file for cut, _ in made), target / whole_file)
    files = [*((cut.file, piece.model) for cut, piece in made), (whole_file, whole)]
    manifest = _manifest(model, whole, whole_file, made)
    folders: tuple[Path, ...] = ()
    with ExitStack() as stack:
        if calibration is not None:
            staging = stack.enter_context(staging_folder(target.with_name(f"{target.name}-{CALIBRATION}")))
            _record(whole, made, calibration, staging)
        saved = write_pieces(model, target, files, manifest, options or SaveOptions())
        if calibration is not None:
            folders = _publish(staging, target / CALIBRATION, made)
    notes = [
        f"{cut.file}: {note}"
        for (cut, piece), done in zip(made, saved, strict=False)
        for note in (*piece.notes, *done.repairs)
        if not note.startswith("the piece has no Marks")
    ]
    written = tuple(written_piece(target / cut.file, Path(cut.file).stem, piece) for cut, piece in made)
    done = Divided(
        target / MANIFEST, target / whole_file, written, folders, notes=tuple(notes), choices=first.choices
    )  # fmt: skip
    if not prove:
        return done
    with choices_explained(first.choices):
        return replace(done, proof=prove_pieces(done.manifest, whole, first.feeds))


def _cut(model: Model, cut: PlannedCut, *, feeds: Mapping[str, Value] | None) -> Piece:
    """Returns one piece, with its names and its dimensions."""
    try:
        piece = extract(model, cut.start, cut.end, rename=cut.names, without_marks=True, feeds=feeds)
        for side, names, what in (
            (piece.inputs, cut.input_names, "input"),
            (piece.outputs, cut.output_names, "output"),
        ):
            if names and len(names) != len(side):
                listed = ", ".join(boundary.name for boundary in side)
                raise SpecError(f"{len(names)} {what} names are given, and the piece has {len(side)}: {listed}")
        wanted = {
            boundary.name: name
            for side, names in ((piece.inputs, cut.input_names), (piece.outputs, cut.output_names))
            for boundary, name in zip(side, names, strict=False)
        }
        return _freed(named_piece(piece, wanted, {}), cut)
    except BenchError as error:
        if cut.place:
            error.message = f"{cut.place}{cut.file}: {error.message}"
            error.args = (error.message,)
        raise


def _freed(piece: Piece, cut: PlannedCut) -> Piece:
    """Returns a piece whose ends vary in the named dimensions; it is run at other sizes to see that it can."""
    given = {info.name: info for info in piece.model.proto.graph.input}
    made = {info.name: info for info in piece.model.proto.graph.output}
    fixed, steps = [], []
    for name, axis, dim in _axes_of(cut, given):
        size = _size(given[name], axis)
        if isinstance(size, int):
            fixed.append(f"{name}:{axis}={dim}")
        elif size != dim:
            steps.append(NameDim(f"{name}:{axis}={dim}"))
    notes = []
    freed = piece.model
    if fixed or steps:
        done = edit(freed, [*([MakeDynamic(",".join(fixed))] if fixed else []), *steps], stamp=False)
        freed, notes = done.model, [note for step in done.steps for note in step.notes]
        made = {info.name: info for info in freed.proto.graph.output}
    steps = []
    for name, axis, dim in _axes_of(cut, made):
        size = _size(made[name], axis)
        if size is None:
            steps.append(NameDim(f"{name}:{axis}={dim}"))
        elif isinstance(size, int):
            notes.append(f"{name!r} does not vary along axis {axis}: it is {size} whatever the inputs are")
    if steps:
        freed = edit(freed, steps, stamp=False).model
    types = {info.name: format_type(info.type) for info in (*freed.proto.graph.output, *freed.proto.graph.input)}
    inputs, outputs = (
        tuple(replace(boundary, type=types[boundary.name]) for boundary in side)
        for side in (piece.inputs, piece.outputs)
    )
    return replace(piece, model=freed, inputs=inputs, outputs=outputs, notes=(*piece.notes, *notes))


def _axes_of(cut: PlannedCut, ends: Mapping[str, ValueInfoProto]) -> Iterator[tuple[str, int, str]]:
    """Yields name, axis and the axis's name of what a configuration says of some inputs or outputs."""
    for name in cut.dynamic_axes:
        if name in ends:
            yield from ((name, axis, dim) for axis, dim in cut.dynamic_axes[name].items())


def _size(info: ValueInfoProto, axis: int) -> Dim:
    shape = tensor_shape(info.type)
    if shape is None or axis >= len(shape):
        raise SpecError(f"{info.name!r} has no axis {axis}: it is {format_type(info.type)}")
    return shape[axis]


def _require_axes_of_ends(made: Sequence[tuple[PlannedCut, Piece]]) -> None:
    """Raises SpecError if axes are named of something that no piece takes or gives: MMDeploy lists all in each."""
    ends = {boundary.name for _, piece in made for boundary in (*piece.inputs, *piece.outputs)}
    for cut, _ in made:
        for name in cut.dynamic_axes:
            if name not in ends:
                hint = did_you_mean(name, ends) or f"The pieces' inputs and outputs: {', '.join(sorted(ends)[:8])}."
                raise SpecError(f"{cut.place}dynamic_axes: no piece has an input or output {name!r}", hint=hint)


def _in_order(made: Sequence[tuple[PlannedCut, Piece]]) -> list[tuple[PlannedCut, Piece]]:
    """Returns the pieces, each after those that make its inputs; the order of the configuration where that is open."""
    waiting = dict(enumerate(made))
    order: list[tuple[PlannedCut, Piece]] = []
    while waiting:
        makers: dict[str, set[int]] = {}
        for number, (_, piece) in waiting.items():
            for name in piece.cut.outputs:
                makers.setdefault(name, set()).add(number)
        ready = (
            number
            for number, (_, piece) in waiting.items()
            if not any(makers.get(name, set()) - {number} for name in piece.cut.inputs)
        )
        order.append(waiting.pop(next(ready, next(iter(waiting)))))
    return order


def _manifest(model: Model, whole: Model, whole_file: str, made: Sequence[tuple[PlannedCut, Piece]]) -> dict[str, Any]:
    """Returns the wiring: where each input of each piece comes from, and what the whole calls it."""
    makers: dict[str, str] = {}
    own = [info.name for info in whole.proto.graph.input]
    pieces = []
    for cut, piece in made:
        inputs = zip(piece.inputs, piece.cut.inputs, strict=True)
        outputs = zip(piece.outputs, piece.cut.outputs, strict=True)
        pieces.append(
            {
                "file": cut.file,
                "name": Path(cut.file).stem,
                "nodes": len(piece.cut.nodes),
                "inputs": [
                    {
                        "name": end.name, "tensor": name, "type": end.type,
                        "from": makers.get(name, "input" if name in own else "whole"),
                    }
                    for end, name in inputs
                ],
                "outputs": [{"name": end.name, "tensor": name, "type": end.type} for end, name in outputs],
            }
        )  # fmt: skip
        for name in piece.cut.outputs:
            makers.setdefault(name, cut.file)
    return {
        "schema_version": SCHEMA_VERSION,
        "model": str(model.origin.name) if model.origin else None,
        "whole": whole_file,
        "inputs": GraphIndex(whole.proto).main.true_inputs(),
        "outputs": [info.name for info in whole.proto.graph.output],
        "pieces": pieces,
    }


def _record(whole: Model, made: Sequence[tuple[PlannedCut, Piece]], options: FeedOptions, folder: Path) -> None:
    """Writes the inputs of each piece, from a run of the whole for each set of the data: ``PIECE/00000.npz``."""
    names = list(dict.fromkeys(name for _, piece in made for name in piece.cut.inputs))
    for cut, _ in made:
        (folder / CALIBRATION / Path(cut.file).stem).mkdir(parents=True)
    session = backends.open_session(whole, outputs=names, options=backends.Options("none"))
    count = 0
    for each in feed_sets(whole, options):
        with choices_explained(each.choices):
            values = session.run(each.feeds)
        for cut, piece in made:
            inputs = {end.name: values[name] for end, name in zip(piece.inputs, piece.cut.inputs, strict=True)}
            captures.save(folder / CALIBRATION / Path(cut.file).stem / f"{count:05d}.npz", inputs)
        count += 1
    session.close()
    if not count:
        raise FeedsError("the calibration data holds no set of inputs")


def _publish(staging: Path, target: Path, made: Sequence[tuple[PlannedCut, Piece]]) -> tuple[Path, ...]:
    """Moves what was recorded into place; what an earlier run recorded there goes."""
    try:
        if target.exists():
            os.replace(target, staging / "earlier")
        os.replace(staging / CALIBRATION, target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from None
    return tuple(target / Path(cut.file).stem for cut, _ in made)
