"""Suite files: models, and pipelines that each of them goes through, read from YAML.

    version: 1
    models:
      - models/*.onnx
      - {file: models/srcnn.onnx, feeds: data/srcnn.npz, tolerance: {atol: 1e-4}}
    pipelines:
      plain: {on: "ort:all"}
      half: {precision: fp16, on: "ort:all", tolerance: {atol: 1e-2, rtol: 1e-2}}

The keys are the fields of the dataclasses below, which the JSON Schema is made of, too. Files are relative to the
folder of the suite.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from onnxbench import backends
from onnxbench.bisection import Place, parse_place
from onnxbench.documents import Item, from_yaml
from onnxbench.drift import BITWISE, Tolerance
from onnxbench.errors import BenchError, NotFoundError, SpecError, UsageError, did_you_mean
from onnxbench.feeding import FeedOptions
from onnxbench.operations import Clean, Operation, SetOpset, SetPrecision, Simplify
from onnxbench.recipe import Recipe, Step, load_recipe, parse_recipe, read_value

VERSION = 1
INT8 = "int8"
_ORIGINAL = "ort:none"
_PATTERN = "*?["
_HALF = {"fp16": Tolerance.for_rounding(), "bf16": Tolerance(8e-2, 8e-2)}
"""What outputs may be off by default where a pipeline converts to half precision: 11 bits, and 8 bits."""
ReferenceKind = Literal["place", "model", "recorded", "torch"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an output may be off. Without ``atol`` and ``rtol`` each element type has its own default.

    Attributes:
        atol: Absolute tolerance.
        rtol: Tolerance relative to the expected value.
        sqnr: The least signal to noise in dB, in place of tolerances for single elements.
        bitwise: Every bit must agree.
    """

    atol: float | None = None
    rtol: float | None = None
    sqnr: float | None = None
    bitwise: bool = False

    def __post_init__(self) -> None:
        for name in ("atol", "rtol"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UsageError(f"{name} must be a number from 0 up, and is {value}")
        if self.bitwise and (self.atol, self.rtol, self.sqnr) != (None, None, None):
            raise UsageError("bitwise and other tolerances contradict each other")
        if self.sqnr is not None and (self.atol, self.rtol) != (None, None):
            raise UsageError("sqnr takes the place of atol and rtol; give one or the other")

    @property
    def tolerance(self) -> Tolerance | None:
        """The tolerance of single elements; None is that of the element type."""
        if self.bitwise:
            return BITWISE
        if self.sqnr is not None:  # what is not finite on one side only fails even so
            return Tolerance(math.inf, 0.0)
        return None if self.atol is None and self.rtol is None else Tolerance(self.atol or 0.0, self.rtol or 0.0)

    @property
    def text(self) -> str:
        """The limits in words; ``""`` if they are those of the element type."""
        said = {"atol": self.atol, "rtol": self.rtol}
        words = [f"{name} {value:g}" for name, value in said.items() if value is not None]
        words += [f"at least {self.sqnr:g} dB"] if self.sqnr is not None else []
        return ", ".join([*words, *(["bit for bit"] if self.bitwise else [])])


@dataclass(frozen=True, kw_only=True)
class CellSettings:
    """What holds for one model in one pipeline.

    Attributes:
        tolerance: What outputs may be off there.
        skip: Why the model does not go through that pipeline; it is not tried.
    """

    tolerance: Limits | None = None
    skip: str = ""


@dataclass(frozen=True, kw_only=True)
class Export:
    """How a PyTorch model is exported, as by ``onnxbench export``.

    Attributes:
        exporter: ``torch.export`` or ``torchscript``.
        opset: The opset; by default the exporter's own.
        dynamic: Open dimensions: ``x:0=batch``.
        rewrites: What replaces PyTorch code for the export: files, or names of those that come along.
    """

    exporter: Literal["torch.export", "torchscript"] = "torch.export"
    opset: int | None = None
    dynamic: tuple[str, ...] = ()
    rewrites: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SuiteModel:
    """A model file, or several by a pattern. Without data, inputs are drawn from a seed.

    Attributes:
        file: The model file, or a pattern: ``models/*.onnx``; or a PyTorch model, which is exported: ``model.py:make``.
        name: What it is called; by default the file's name without its ending.
        export: How a PyTorch model is exported.
        feeds: Data for its inputs, as ``onnxbench run --feeds`` takes it; ``{model}`` stands for the name.
        shapes: Shapes of drawn inputs: ``x:[1,3,224,224]``.
        dims: Sizes of symbolic dimensions of drawn inputs: ``batch=2``.
        ranges: Ranges of drawn values: ``[0,1]``, ``x:[2,50]``.
        seed: Seed of drawn values.
        samples: Sets of inputs; by default all in the data, or one.
        calibration: Data that ``precision: int8`` is calibrated with, spelled as ``feeds``; by default inputs that
            are not judged.
        against: What is right, for pipelines that do not say it themselves (see there).
        tolerance: What its outputs may be off, in place of what pipelines allow.
        cells: What holds in single pipelines, by their names.
    """

    file: str
    name: str = ""
    export: Export | None = None
    feeds: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    dims: tuple[str, ...] = ()
    ranges: tuple[str, ...] = ()
    seed: int = 0
    samples: int | None = None
    calibration: tuple[str, ...] = ()
    against: str | None = None
    tolerance: Limits | None = None
    cells: dict[str, CellSettings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"samples must be 1 or more, and is {self.samples}")
        if self.seed < 0:
            raise UsageError(f"seed must be 0 or more, and is {self.seed}")

    @property
    def is_torch(self) -> bool:
        """Whether it is a PyTorch model."""
        return reference_kind(self.file) == "torch"

    @property
    def stem(self) -> str:
        """What it is called by default: the file, or the function that makes it."""
        head, colon, function = self.file.rpartition(":")
        return function if colon and head.endswith(".py") else Path(self.file).stem

    def feed_options(self, folder: Path) -> FeedOptions:
        """Returns what is said of its inputs."""
        sources = self._files(self.feeds, folder)
        return FeedOptions(sources, self.shapes, self.dims, self.ranges, self.seed, self.samples)

    def calibration_files(self, folder: Path) -> tuple[str, ...]:
        """Returns the data that int8 is calibrated with, where it is told."""
        return self._files(self.calibration, folder)

    def _files(self, words: Sequence[str], folder: Path) -> tuple[str, ...]:
        return tuple(in_folder(word.replace("{model}", self.name), folder) for word in words)


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """What is done to a model, where it runs, and what it is compared with.

    What is done is done in this order: recipes, steps, ``clean``, ``simplify``, ``opset``, ``precision``.

    Attributes:
        on: What runs the model: ``ort:all``, ``ort:none,threads=1``, ``reference``, ``trt``, or a backend of another
            package.
        against: What is right: a place that runs the original model (``ort:none``), recorded outputs
            (``golden/{model}.npz``), another model (``original.onnx``) or a PyTorch model (``model.py:make``).
        recipe: Recipes of ``onnxbench edit``: YAML files.
        variables: Values of the recipes' variables.
        steps: Steps as in a recipe.
        clean: Fold constants, decide branches, and remove what no output needs.
        simplify: Another project's tool that simplifies the model: ``onnxslim``, ``onnxsim``, ``onnxscript``.
        opset: The standard opset to convert to.
        precision: ``fp16``, ``bf16``, ``fp32``, ``fp64``, or ``int8`` (see the model's ``calibration``).
        tolerance: What outputs may be off.
        package: The package that has the backend; without it the pipeline is skipped.
        description: What the pipeline is for.
    """

    on: str = "ort:all"
    against: str | None = None
    recipe: tuple[str, ...] = ()
    variables: dict[str, Any] = field(default_factory=dict)
    steps: Any = None
    clean: bool = False
    simplify: Literal["onnxslim", "onnxsim", "onnxscript"] | None = None
    opset: int | None = None
    precision: Literal["fp16", "bf16", "fp32", "fp64", "int8"] | None = None
    tolerance: Limits | None = None
    package: str = ""
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class SuiteDocument:
    """A suite: every model goes through every pipeline.

    Attributes:
        version: The version of this format: 1.
        title: What the table is called; by default the file's name.
        description: What the suite is for.
        tolerance: What outputs may be off where neither the model nor the pipeline says it.
        models: Model files, patterns of them, or mappings with more about each.
        pipelines: What is done with each model, by name.
    """

    version: Literal[1] = 1
    title: str = ""
    description: str = ""
    tolerance: Limits | None = None
    models: tuple[SuiteModel, ...]
    pipelines: dict[str, Pipeline]


@dataclass(frozen=True, slots=True)
class Stage:
    """A pipeline as it is run.

    Attributes:
        name: Its name.
        said: What the file says.
        edits: The steps that are done to a model, int8 aside.
        own: Those of them that are in no recipe file.
        place: What runs the models; None where ``missing`` says that this cannot be.
        missing: Why the pipeline cannot be run here, whatever the model; ``""`` if nothing is known against it.
    """

    name: str
    said: Pipeline
    edits: Recipe
    own: tuple[Step, ...]
    place: Place | None
    missing: str = ""

    @property
    def backend(self) -> str:
        """The name of its backend."""
        return self.place.backend if self.place is not None else self.said.on.partition(",")[0].partition(":")[0]

    @property
    def converts(self) -> bool:
        """Whether anything is done to models before they run."""
        return bool(self.edits.steps) or self.said.precision == INT8

    @property
    def text(self) -> str:
        """What is done to a model, in words."""
        titles = [step.title() for step in self.edits.steps] + ([INT8] if self.said.precision == INT8 else [])
        return ", ".join(titles)


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite file that was read.

    Attributes:
        path: The file.
        title: What its table is called.
        description: What it is for.
        models: Its models, patterns resolved, in order.
        stages: Its pipelines, in order.
        tolerance: What outputs may be off where nothing else says it.
    """

    path: Path
    title: str
    description: str
    models: tuple[SuiteModel, ...]
    stages: tuple[Stage, ...]
    tolerance: Limits | None = None

    @property
    def folder(self) -> Path:
        """What files are relative to."""
        return self.path.parent

    def read_files(self) -> Iterator[Path]:
        """Yields the files that it names, as far as that is known before models are opened."""
        yield self.path
        for stage in self.stages:
            yield from (self.folder / word for word in stage.said.recipe)
            yield from stage.edits.read_files()
        for model in self.models:
            words = [model.file, *model.feed_options(self.folder).sources, *model.calibration_files(self.folder)]
            words += [word for stage in self.stages for kind, word in [self.against(model, stage)] if kind != "place"]
            for word in (in_folder(each, self.folder) for each in words):
                yield from (Path(part) for part in (word, *word.partition(":")[::2]) if part)

    def rewrites(self, model: SuiteModel) -> list[str]:
        """Returns what replaces PyTorch code where a model is exported: files with their place, and names."""
        said = model.export.rewrites if model.export is not None else ()
        return [str(self.folder / word) if (self.folder / word).is_file() else word for word in said]

    def limits(self, model: SuiteModel, stage: Stage) -> Limits:
        """Returns what a model's outputs may be off in a pipeline: the most special that is said."""
        special = model.cells.get(stage.name, CellSettings()).tolerance
        said = special or model.tolerance or stage.said.tolerance or self.tolerance
        if said is not None:
            return said
        rounding = _HALF.get(stage.said.precision or "")
        return Limits() if rounding is None else Limits(atol=rounding.atol, rtol=rounding.rtol)

    def against_word(self, model: SuiteModel, stage: Stage) -> str:
        """Returns what a model is compared with in a pipeline, as it is spelled."""
        default = model.file if model.is_torch else _ORIGINAL
        return (stage.said.against or model.against or default).replace("{model}", model.name)

    def against(self, model: SuiteModel, stage: Stage) -> tuple[ReferenceKind, str]:
        """Returns what a model is compared with in a pipeline: its kind, and how it is spelled, files found."""
        word = self.against_word(model, stage)
        kind = reference_kind(word)
        return kind, word if kind == "place" else in_folder(word, self.folder)


def reference_kind(word: str) -> ReferenceKind:
    """Returns what a word after ``against:`` means."""
    head = word.rpartition(":")[0]
    if head.endswith(".py") or word.endswith((".pt2", ".pt")):
        return "torch"
    if backends.is_known_backend(word.partition(",")[0].partition(":")[0]):
        return "place"
    return "model" if word.endswith((".onnx", ".onnxtxt")) else "recorded"


def load_suite(path: str | Path, *, allow_outside: bool = False) -> Suite:
    """Returns the suite in a YAML (or JSON) file; models are found, recipes read, and no model is opened.

    Args:
        path: The file.
        allow_outside: Follow what recipes include out of their folders.

    Raises:
        NotFoundError: There is no such file, or it names a model or recipe that is not there.
        SpecError: It has a mistake; the message names the line.
    """
    file = Path(path)
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        siblings = [each.name for each in file.parent.iterdir()] if file.parent.is_dir() else []
        raise NotFoundError(f"there is no suite {file}", hint=did_you_mean(file.name, siblings)) from None
    except IsADirectoryError:
        raise UsageError(f"{file} is a folder, not a suite") from None
    except UnicodeDecodeError:
        raise SpecError(f"{file} is not UTF-8 text, so it is no suite") from None
    except OSError as error:
        raise SpecError(f"{file} cannot be read: {error.strerror}") from None
    root = from_yaml(text, str(file)).require_map("a suite", [each.name for each in dataclasses.fields(SuiteDocument)])
    version = root.get("version")
    if version is not None and version.require_integer("the version") != VERSION:
        raise version.error(f"this is a suite of version {version.text}, and {VERSION} is understood")
    listed, named = (_required(root, key) for key in ("models", "pipelines"))
    stages = tuple(
        _stage(name, item, file.parent, allow_outside=allow_outside)
        for name, _, item in named.require_map("the pipelines by name").pairs()
    )
    if not stages:
        raise named.error("a suite needs a pipeline", hint='plain: {on: "ort:all"}')
    models = _models(listed, file.parent, [stage.name for stage in stages])
    head = {key: read_value(item, str, key) for key in ("title", "description") if (item := root.get(key)) is not None}
    limits = root.get("tolerance")
    made = Suite(
        file, head.get("title") or file.stem, head.get("description", ""), models, stages,
        None if limits is None else read_fields(Limits, limits, "a tolerance"),
    )  # fmt: skip
    _require_limits(made, named)
    return made


def _required(root: Item, key: str) -> Item:
    found = root.get(key)
    if found is None:
        raise root.error(f"a suite needs {key!r}", hint="models: [models/*.onnx]\n  pipelines: {plain: {on: ort}}")
    return found


def _require_limits(suite: Suite, pipelines: Item) -> None:
    """Raises SpecError for int8 without a tolerance: no default is right for it."""
    for stage in suite.stages:
        lacking = [model.name for model in suite.models if suite.limits(model, stage) == Limits()]
        if stage.said.precision == INT8 and lacking:
            raise pipelines.entries[stage.name][0].error(
                f"the pipeline {stage.name!r} makes int8 models and says no tolerance (for {lacking[0]}, say)",
                hint="tolerance: {sqnr: 20} asks for 20 dB; atol and rtol are for single elements.",
            )


def _models(listed: Item, folder: Path, pipelines: Sequence[str]) -> tuple[SuiteModel, ...]:
    found: list[tuple[SuiteModel, Item]] = []
    for item in listed.require_list("the models"):
        found += [(model, item) for model in _found_files(item, folder)]
        unknown = [name for name in found[-1][0].cells if name not in pipelines]
        if unknown:
            hint = did_you_mean(unknown[0], pipelines) or f"Pipelines: {', '.join(pipelines)}."
            raise item.error(f"cells names a pipeline {unknown[0]!r} that is not there", hint=hint)
    if not found:
        raise listed.error("a suite needs a model")
    stems = Counter(model.name or model.stem for model, _ in found)
    named: list[SuiteModel] = []
    for model, item in found:
        short = model.name or model.stem
        name = short if stems[short] == 1 else model.file.removesuffix(Path(model.file).suffix)
        if (model.name and stems[short] > 1) or name in {each.name for each in named}:
            raise item.error(
                f"two models are called {model.name or name!r}", hint="Give one of them a name: {file: ..., name: ...}"
            )
        named.append(dataclasses.replace(model, name=name))
    return tuple(named)


def _found_files(item: Item, folder: Path) -> list[SuiteModel]:
    """Returns the models that an entry means: one, or those that its pattern matches, sorted."""
    if item.kind == "map":
        model = read_fields(SuiteModel, item, "a model")
    else:
        model = SuiteModel(file=item.require_text("a model file"))
    if model.export is not None and not model.is_torch:
        raise item.error(
            f"export means nothing for {model.file}, which is no PyTorch model", hint="file: model.py:make"
        )
    head = model.file.rpartition(":")[0] if model.is_torch else ""
    file = head if head.endswith(".py") else model.file
    if not any(sign in file for sign in _PATTERN) or (folder / file).is_file():
        if not (folder / file).is_file():
            place = (folder / file).parent
            siblings = [each.name for each in place.iterdir()] if place.is_dir() else []
            raise item.error(f"there is no model {file} in {folder}", hint=did_you_mean(Path(file).name, siblings))
        return [model]
    files = sorted(_matches(file, folder, item))
    if not files:
        raise item.error(f"no file in {folder} matches {file!r}")
    if model.name:
        raise item.error("a pattern stands for several models, which cannot all have one name")
    return [dataclasses.replace(model, file=each) for each in files]


def _matches(pattern: str, folder: Path, item: Item) -> list[str]:
    """Returns the files that a pattern matches; ``..`` may stand before the first sign of it."""
    parts = Path(pattern).parts
    plain = next(at for at, part in enumerate(parts) if any(sign in part for sign in _PATTERN))
    if ".." in parts[plain:]:
        raise item.error(f"{pattern!r} is no pattern of files within a folder")
    before = Path(*parts[:plain])
    home = folder / before
    found = [each for each in home.glob("/".join(parts[plain:])) if each.is_file()]
    return [(before / each.relative_to(home)).as_posix() for each in found]


def _stage(name: str, item: Item, folder: Path, *, allow_outside: bool) -> Stage:
    """Returns a pipeline as it is run."""
    steps = item.entries.get("steps") if item.kind == "map" else None
    said = read_fields(Pipeline, item, f"the pipeline {name!r}")
    made: list[Step] = []
    try:
        for word in said.recipe:
            made += load_recipe(folder / word, variables=said.variables, allow_outside=allow_outside).steps
    except (NotFoundError, UsageError) as error:
        raise item.entries["recipe"][1].error(error.message, hint=error.hint) from None
    if said.variables and not said.recipe:
        raise item.entries["variables"][0].error("variables mean nothing without a recipe")
    own = (
        list(parse_recipe(steps[1], source=steps[1].document.source, folder=folder).steps) if steps is not None else []
    )
    own += map(Step, _operations(said))
    place, missing = None, ""
    if said.package and not _is_installed(said.package):
        missing = f"{said.package} is not installed"
    else:
        try:
            place = parse_place(said.on, level="all", what="on:")
        except BenchError as error:
            where = item.entries["on"][1] if "on" in item.entries else item
            raise where.error(error.message, hint=error.hint) from None
    return Stage(name, said, Recipe((*made, *own)), tuple(own), place, missing)


def _operations(said: Pipeline) -> list[Operation]:
    """Returns the operations that the short keys of a pipeline mean."""
    found: list[Operation] = [Clean()] if said.clean else []
    if said.simplify is not None:
        found.append(Simplify(said.simplify))
    if said.opset is not None:
        found.append(SetOpset(said.opset))
    if said.precision not in (None, INT8):
        found.append(SetPrecision(str(said.precision)))
    return found


def _is_installed(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def in_folder(word: str, folder: Path) -> str:
    """Returns a word that names a file, ``x:f.npy`` or ``script.py:func`` too, with the file's place in it."""
    if (folder / word).exists():
        return str(folder / word)
    head, sign, rest = word.partition(":")
    if sign and (folder / head).exists():
        return f"{folder / head}:{rest}"
    return f"{head}:{folder / rest}" if sign and (folder / rest).exists() else str(folder / word)


def read_fields(kind: type[Any], item: Item, what: str) -> Any:
    """Returns a dataclass of this module from a mapping of its fields.

    Raises:
        SpecError: It is no mapping, has another key, or a value that does not fit.
    """
    fields = dataclasses.fields(kind)
    if item.kind == "null" and not any(map(_is_needed, fields)):
        return kind()
    item.require_map(what, [each.name for each in fields if each.name != "steps" or kind is Pipeline])
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, _, value in item.pairs():
        if value.kind == "null" or name == "steps":
            continue
        inner = inner_kind(hints[name])
        if inner is not None and get_origin(hints[name]) is dict:
            pairs = value.require_map(name).pairs()
            values[name] = {key: read_fields(inner, each, f"{name} of {key!r}") for key, _, each in pairs}
        elif inner is not None:
            values[name] = read_fields(inner, value, f"the {name} of {what}")
        else:
            values[name] = read_value(value, hints[name], f"{name!r} of {what}")
    lacking = [each.name for each in fields if _is_needed(each) and each.name not in values]
    if lacking:
        raise item.error(f"{what} needs {lacking[0]!r}")
    try:
        if values.get("against") and reference_kind(values["against"]) == "place":
            parse_place(values["against"], level="none", what="against:")
        return kind(**values)
    except UsageError as error:
        raise item.error(error.message, hint=error.hint) from None


def inner_kind(hint: Any) -> type[Any] | None:
    """Returns the dataclass of this module that a field holds, itself or several of, or None."""
    kinds = (each for each in (hint, *get_args(hint)) if isinstance(each, type))
    return next((each for each in kinds if dataclasses.is_dataclass(each)), None)


def _is_needed(each: dataclasses.Field[Any]) -> bool:
    return each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
