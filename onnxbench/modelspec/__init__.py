"""Models from specifications: YAML, JSON or Python values (``docs/build-spec.md``), or ONNX text.

A specification is short: nodes stand in any order, types of outputs are inferred, attributes get the type that
their operator states, and what is not said has a default. What it says wrong is answered with its line.

    from onnxbench import modelspec

    model = modelspec.build("net.yaml")
    model = modelspec.build({"inputs": {"x": "float32[4]"}, "nodes": ["y = Relu(x)"], "outputs": ["y"]})
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onnxbench.documents import Item, from_python, from_yaml
from onnxbench.errors import NotFoundError, SpecError, UsageError, near_file
from onnxbench.model import Model, load
from onnxbench.modelspec._graphs import SpecReader, parse_type
from onnxbench.modelspec._tensors import TensorContext, fill_tensor
from onnxbench.modelspec._verify import verify
from onnxbench.modeltext import counts, read
from onnxbench.schemas import DEFAULT_IR_VERSION, DEFAULT_OPSET
from onnxbench.tensortype import format_type
from onnxbench.writer import Saved, SaveOptions, save

if TYPE_CHECKING:
    from onnx import AttributeProto, TensorProto

__all__ = [
    "DEFAULT_IR_VERSION",
    "DEFAULT_OPSET",
    "Built",
    "Form",
    "build",
    "build_file",
    "build_text",
    "fill_attribute",
    "fill_tensor",
    "form_named",
    "make_tensor",
    "parse_type",
]

Form = Literal["text", "yaml"]
"""ONNX text, or a YAML (JSON) specification."""

_YAML_ENDINGS = (".yaml", ".yml", ".json")
_SERIALIZED_ENDINGS = (".textproto", ".pbtxt", ".prototxt", ".textpb", ".onnxjson", ".onnx", ".pb")


def build(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    form: Form | None = None,
    weights_from: Model | None = None,
    opset: int | None = None,
    allow_outside: bool = False,
    notes: list[str] | None = None,
) -> Model:
    """Returns the model that a specification describes, complete and checked.

    Args:
        source: A file, or a specification as Python values (initializers may be NumPy arrays).
        form: What the file holds; by default its ending says it: ``.yaml``, ``.yml`` and ``.json`` are
            specifications, any other is ONNX text.
        weights_from: Where values come from that an ONNX text leaves out (``{...}``).
        opset: The opset of the default domain, instead of the one that is stated.
        allow_outside: Read weights from files outside of the specification's folder.
        notes: A list to which every choice that was made for the user is appended.

    Raises:
        NotFoundError: There is no such file.
        SpecError: The specification has a mistake; the message names its line.
        ExternalDataError: A file of weights is missing, or lies outside.
    """
    if isinstance(source, Mapping):
        root = from_python(source, "specification")
        return _from_items(root, Path.cwd(), "graph", opset, allow_outside, notes)
    file = Path(source)
    text = _read(file)
    form = form or _form_of(file)
    model = build_text(
        text,
        form=form,
        source=str(source),
        folder=file.resolve().parent,
        name=file.stem,
        weights_from=weights_from,
        opset=opset,
        allow_outside=allow_outside,
        notes=notes,
    )
    model.origin = file.resolve()
    return model


@dataclass(frozen=True, slots=True)
class Built:
    """A model that was built and written.

    Attributes:
        saved: The files.
        nodes: Nodes, those of bodies and functions included.
        functions: Local functions.
        tensors: Tensors with values: initializers, and those in attributes.
        opsets: Domains and their opset versions.
        inputs: Names and types of the inputs.
        outputs: Names and types of the outputs.
        notes: What was chosen for the user, and what was mended.
    """

    saved: Saved
    nodes: int
    functions: int
    tensors: int
    opsets: dict[str, int]
    inputs: dict[str, str]
    outputs: dict[str, str]
    notes: tuple[str, ...]


def build_file(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    text: bytes | None = None,
    form: Form | None = None,
    weights_from: str | os.PathLike[str] | None = None,
    opset: int | None = None,
    allow_outside: bool = False,
    options: SaveOptions | None = None,
) -> Built:
    """Builds a model, writes it, and returns what was built.

    Args:
        source: The specification file, or what errors call ``text``.
        out: The model file to write.
        text: The specification itself, if it is in no file (ONNX text, unless ``form`` says otherwise).
        form: As for ``build``.
        weights_from: A model file with the values that an ONNX text leaves out. Their bytes are copied, not read.
        opset: As for ``build``.
        allow_outside: As for ``build``; also for ``weights_from``.
        options: How weights are stored.

    Raises:
        BenchError: As ``build`` and ``onnxbench.writer.save`` do; nothing was written then.
    """
    notes: list[str] = []
    original = load(weights_from, allow_outside=allow_outside) if weights_from is not None else None
    if text is None:
        model = build(
            source, form=form, weights_from=original, opset=opset, allow_outside=allow_outside, notes=notes
        )  # fmt: skip
    else:
        model = build_text(
            _decoded(text, str(source)), form=form or "text", source=str(source), weights_from=original, opset=opset,
            allow_outside=allow_outside, notes=notes,
        )  # fmt: skip
    if original is not None and original.origin is not None:
        status = original.origin.stat()  # no input is overwritten, also one that has no weights to copy
        model.sources[original.origin] = (status.st_size, status.st_mtime_ns, status.st_ino)
    saved = save(model, out, options=options)
    held, graph = counts(model), model.proto.graph
    return Built(
        saved=saved,
        nodes=held.nodes,
        functions=held.functions,
        tensors=held.tensors,
        opsets={opset.domain: opset.version for opset in model.proto.opset_import},
        inputs={info.name: format_type(info.type) for info in graph.input},
        outputs={info.name: format_type(info.type) for info in graph.output},
        notes=(*notes, *saved.repairs),
    )


def build_text(
    text: str,
    *,
    form: Form = "text",
    source: str = "<text>",
    folder: Path | None = None,
    name: str = "graph",
    weights_from: Model | None = None,
    opset: int | None = None,
    allow_outside: bool = False,
    notes: list[str] | None = None,
) -> Model:
    """Returns the model that a specification in memory describes, complete and checked.

    Args:
        text: The specification.
        form: What it is.
        source: What errors call it.
        folder: What files in it are relative to; the current folder by default.
        name: The name of the graph, if the specification has none.
        weights_from: As for ``build``.
        opset: As for ``build``.
        allow_outside: As for ``build``.
        notes: As for ``build``.

    Raises:
        SpecError: The specification has a mistake; the message names its line.
        ExternalDataError: A file of weights is missing, or lies outside.
    """
    folder = folder if folder is not None else Path.cwd()
    if form == "yaml":
        if weights_from is not None:
            hint = "A YAML specification names the files of its weights: {file: weights.npz:NAME}."
            raise UsageError("values can only be left out of an ONNX text, not of a YAML specification", hint=hint)
        return _from_items(from_yaml(text, source), folder, name, opset, allow_outside, notes)
    parsed = read(text, source=source, folder=folder, weights_from=weights_from, allow_outside=allow_outside)
    found = notes if notes is not None else []
    found += parsed.notes
    proto = parsed.model.proto
    if opset is not None:
        for stated in [each for each in proto.opset_import if each.domain in ("", "ai.onnx")]:
            proto.opset_import.remove(stated)
        proto.opset_import.add(domain="", version=opset)
    parsed.model.check_weights()
    verify(parsed.model, parsed.marks, notes=found, mendable=True)
    return parsed.model


def _from_items(
    root: Item, folder: Path, name: str, opset: int | None, allow_outside: bool, notes: list[str] | None
) -> Model:
    if {"irVersion", "ir_version"} & set(root.entries) and root.get("graph") is not None:
        raise SpecError(
            f"{root.document.source} is a model in onnx's own JSON form, not a specification",
            hint="Every command reads it as it is, if its name ends in .json.",
        )
    context = TensorContext(folder, 0, allow_outside)
    reader = SpecReader(root.document, context)
    reader.model(root, default_name=name, opset=opset)
    model = Model(reader.proto, folder)
    model.check_weights()
    verify(model, reader.marks, notes=notes if notes is not None else [], mendable=False)
    return model


def fill_attribute(
    attribute: AttributeProto,
    value: object,
    *,
    wanted: int = 0,
    versions: dict[str, int] | None = None,
    folder: Path | None = None,
    allow_outside: bool = False,
) -> None:
    """Gives an attribute, which has its name already, a value as specifications spell it (``docs/build-spec.md``).

    Args:
        attribute: The attribute.
        value: A Python value: number, string, list, array, or a mapping such as ``{ints: []}``, ``{tensor: ...}``.
        wanted: The AttributeProto type that the operator states; 0 if it states none.
        versions: Opset versions by domain, for nodes in bodies.
        folder: What files are relative to.
        allow_outside: Read files outside of ``folder``.

    Raises:
        SpecError: The value is none of that type.
    """
    item = from_python(value, f"attribute {attribute.name!r}")
    context = TensorContext(folder or Path.cwd(), 0, allow_outside)
    SpecReader(item.document, context).attribute(attribute, item, wanted, versions or {})


def make_tensor(
    name: str, value: object, *, folder: Path | None = None, allow_outside: bool = False, seed: int = 0
) -> TensorProto:
    """Returns a tensor as specifications spell it (``docs/build-spec.md``).

    Args:
        name: Its name; random values are derived from it.
        value: A number, nested lists, an array, or a mapping: ``{file: w.npy}``, ``{zeros: [3, 4]}``, ...
        folder: What files are relative to.
        allow_outside: Read files outside of ``folder``.
        seed: The seed of random values.

    Raises:
        SpecError: The value is no tensor.
        ExternalDataError: A file is missing, or out of the folder.
    """
    from onnx import TensorProto

    tensor = TensorProto()
    fill_tensor(
        tensor, from_python(value, f"tensor {name!r}"), name, TensorContext(folder or Path.cwd(), seed, allow_outside)
    )
    tensor.name = name
    return tensor


def form_named(text: str | None) -> Form | None:
    """Returns the form of a specification by its name.

    Raises:
        UsageError: There is none of this name.
    """
    forms: dict[str | None, Form | None] = {"text": "text", "yaml": "yaml", "json": "yaml", None: None}
    if text not in forms:
        raise UsageError(f"{text!r} is no form of a specification", hint="There are text and yaml.")
    return forms[text]


def _form_of(file: Path) -> Form:
    ending = file.suffix.lower()
    if ending in _SERIALIZED_ENDINGS:
        raise UsageError(
            f"{file} is a model already (by its ending), not a specification",
            hint="Every command reads it; onnxbench show prints it as text that build reads.",
        )
    return "yaml" if ending in _YAML_ENDINGS else "text"


def _read(file: Path) -> str:
    try:
        return _decoded(file.read_bytes(), str(file))
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {file}", hint=near_file(file)) from None
    except IsADirectoryError:
        raise UsageError(f"{file} is a folder, not a specification") from None
    except OSError as error:
        raise SpecError(f"{file} cannot be read: {error.strerror}") from None


def _decoded(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        is_model = b"\0" in data[:64] or source.lower().endswith(".onnx")
        hint = "It looks like a model in binary form; 'onnxbench show' prints one as text." if is_model else None
        raise SpecError(f"{source}:{line}: byte {error.start:,} of it is not UTF-8 text", hint=hint) from None
