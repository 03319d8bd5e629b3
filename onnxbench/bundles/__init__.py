"""Plugins: custom operators, each defined once, that every part of onnxbench and TensorRT can use.

A *bundle* is a folder whose ``plugin.py`` defines ``BUNDLE``, a ``Bundle``: what the operator is called and takes,
the shapes and values of what it gives, and its CUDA kernel. From it come the ONNX schema, an operator of onnx's
reference evaluator, a TensorRT plugin (``IPluginV3``) that carries the compiled kernel (PTX) into the engine, and
tests, among them one that runs the very device code on the CPU. ``onnxbench plugins new`` makes a bundle that works.
A folder with several operators that share device code defines ``BUNDLES``.

Other plugins can be loaded too: a ``.py`` file with TensorRT creators, or a shared library. Whatever is loaded is code
and is run; nothing is loaded unasked.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import GenericAlias
from typing import TYPE_CHECKING, Any

from onnxbench.errors import NotFoundError, SpecError, UsageError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from onnx import FunctionProto, ModelProto
    from onnx.defs import OpSchema

    from onnxbench.backends import Operator
    from onnxbench.bundles._declared import DeclaredOperator
    from onnxbench.bundles._proof import Build, Outcome, Test

PATH_VARIABLE = "ONNXBENCH_PLUGIN_PATH"
"""Folders (joined as in PATH) whose subfolders are looked through for bundles by name."""
ENTRY_POINTS = "onnxbench.plugins"
"""Group of entry points by which an installed package offers the folder of a bundle."""
INCLUDE = Path(__file__).resolve().parent / "include"
"""Headers for kernels."""
KERNEL_HEADER = "onnxbench_kernel.h"
"""The one that every kernel includes."""
_PLUGIN_FILE = "plugin.py"
_LIBRARIES = (".so", ".dll", ".dylib")

Attributes = Mapping[str, Any]
Shapes = Callable[[Sequence[Any], Attributes], Sequence[Sequence[Any]]]
"""From the shapes of the inputs to those of the outputs. Sizes are ints, or in TensorRT symbols with + - * // and
comparisons by ``onnxbench.bundles.smaller`` and ``larger``. Of a size that is counted (``Bundle.counted``) it says how
large it can be. An input that a node leaves out is None, here and below."""
Reference = Callable[[Sequence[Any], Attributes], Sequence["np.ndarray"]]
Scalars = Callable[[Sequence[Any], Sequence[Sequence[int]], Attributes], tuple[Sequence[int], Sequence[float]]]
Count = Callable[[Sequence[Any], Sequence[Sequence[int]], Attributes], int]
"""From shapes of inputs and outputs and attributes to how many there are of something."""
Case = tuple[Sequence["np.ndarray"], dict[str, Any]]
Body = Callable[..., str | None]
"""From attributes and an opset to the operator as a function of standard ones: ``(x) => (y) { y = Relu (x) }``, ONNX
text; None if these attributes or this opset cannot be said so. An operator with optional inputs is told as a third
argument how many a node has, and names so many in the function."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One of several launches of a kernel, one after the other, all with the same pointers and numbers.

    Attributes:
        entry: What its functions are called, before ``_float32`` and so on.
        count: How many threads it takes; how many blocks, if ``together``.
        threads: Threads of a block.
        together: The threads of a block share memory (``ONNXBENCH_SHARED``) and wait for each other
            (``ONNXBENCH_SYNC``). Such a function has to be right with any number of threads in a block. One that
            needs a certain number, say since each thread has a tile of a product, is written in parts
            (``ONNXBENCH_PART``), which the CPU runs without threads of its own.
    """

    entry: str
    count: Count
    threads: int = 256
    together: bool = False


@dataclass(frozen=True, slots=True)
class Kernel:
    """The CUDA kernel of an operator.

    For each element type ``t`` that the operator computes in there is ``extern "C" __global__ void {entry}_{t}(inputs,
    outputs, onnxbench_params)``: pointers to all inputs, then all outputs, then up to 16 integers and 8 floats. One
    thread makes one element of the first output, number ``blockIdx.x * blockDim.x + threadIdx.x``. Where an input
    (``Bundle.types``) may have several types, the function's name goes on with that: ``{entry}_{t}_int32``. After the
    outputs come a ``long long*`` for each counted size, and a ``void*`` to the workspace if there is one. The
    pointer of an input that a node leaves out is null.

    Attributes:
        source: The ``.cu`` file, relative to the bundle.
        entry: What the functions are called, before ``_float32`` and so on.
        scalars: From shapes of inputs and outputs and attributes to the integers and floats of ``onnxbench_params``.
        ptx: The compiled file, relative to the bundle.
        threads: Threads of a block.
        launches: Several launches, in place of one by the name of ``entry``.
        workspace: How many bytes of memory the launches need between them; nothing is in it before the first.
    """

    source: str
    entry: str
    scalars: Scalars
    ptx: str = "kernel.ptx"
    threads: int = 256
    launches: tuple[Launch, ...] = ()
    workspace: Count | None = None

    def all_launches(self) -> tuple[Launch, ...]:
        """Returns the launches, also where there is but the one."""
        one = Launch(self.entry, lambda inputs, outputs, attributes: product(outputs[0]), self.threads)
        return self.launches or (one,)


@dataclass(frozen=True, slots=True)
class TorchCall:
    """How the operator is called in PyTorch.

    Attributes:
        name: ``library::operator``. If PyTorch does not have it when the bundle is loaded, it is defined: inputs as
            tensors, then attributes with their defaults.
        stands_for: PyTorch's own operators that an export with the bundle writes as this one: ``aten::grid_sampler``.
            Their arguments are inputs and attributes by name.
    """

    name: str
    stands_for: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """One custom operator.

    Attributes:
        name: What users call it.
        op: The operator's name in ONNX models, and the plugin's in TensorRT.
        domain: Its domain, and the plugin's namespace.
        aliases: Other names that models have it under: ``domain::op``.
        version: Version of the plugin.
        description: One line.
        inputs: Names of its inputs.
        outputs: Names of its outputs.
        dtypes: Element types that it computes in: ``float32``, ``float16``, ``bfloat16``, ``int32``, ``int64``. All
            inputs and outputs that are named in neither of the next two have the same.
        any_dtype: Inputs whose element type does not matter (only their shape does).
        types: Inputs and outputs that have other element types: which, of an output just one.
        optional: Inputs and outputs, the last ones, that a node may leave out.
        counted: Outputs with an axis whose size is known only when the values are, the axis of each: the kernel counts.
        attributes: Its attributes with their defaults: ints, floats, strings, tuples of ints or floats; a type
            (``int``, ``list[float]``) where there is no default.
        shapes: The shape function.
        reference: What it computes, in NumPy.
        cases: Inputs and attributes that its tests use: many, with the edges.
        kernel: Its CUDA kernel.
        tolerance: For each element type how far the kernel may be from the reference: (relative, absolute).
        body: The operator as a function of ONNX operators, by which ONNX Runtime computes it with kernels of its own.
        torch: How it is called in PyTorch; None: ``domain::op``, dots and all else that Python has no names for as _.
        folder: Where it lies; filled in when it is loaded.
        file: The file there that defines it; likewise.
    """

    name: str
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: Shapes
    reference: Reference
    cases: Callable[[], Iterable[Case]]
    kernel: Kernel
    version: str = "1"
    description: str = ""
    dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16")
    any_dtype: tuple[str, ...] = ()
    types: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    counted: Mapping[str, int] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    tolerance: Mapping[str, tuple[float, float]] = field(
        default_factory=lambda: {"float32": (1e-3, 1e-5), "float16": (2e-3, 1e-3), "bfloat16": (2e-2, 1e-2)}
    )
    body: Body | None = None
    torch: TorchCall | None = None
    folder: Path = Path()
    file: str = _PLUGIN_FILE

    def filled(self, attributes: Attributes) -> dict[str, Any]:
        """Returns attributes with defaults for those that are not given.

        Raises:
            UsageError: There is no such attribute, or one without a default is not given.
        """
        for name in attributes:
            if name not in self.attributes:
                raise UsageError(f"{self.op} has no attribute {name!r}", hint=did_you_mean(name, self.attributes))
        for name, value in self.attributes.items():
            if is_required(value) and name not in attributes:
                raise UsageError(f"{self.op} needs the attribute {name!r}")
        return {**self.attributes, **attributes}

    def named(self) -> list[Bundle]:
        """Returns the bundle under each of the names that models have its operator under, its own first."""
        pairs = [alias.rpartition("::") for alias in self.aliases]
        return [self, *(replace(self, domain=domain, op=op, aliases=()) for domain, _, op in pairs)]

    def padded(self, inputs: Sequence[Any]) -> list[Any]:
        """Returns what there is of each input, with None for those that a node leaves out."""
        return [*inputs, *[None] * (len(self.inputs) - len(inputs))]

    def suffixes(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Yields what the names of a kernel's functions end with, each with the element types of inputs and outputs."""
        several = [name for name in self.inputs if len(self.types.get(name, ())) > 1]
        fixed = {name: each[0] for name, each in self.types.items()}
        for dtype in self.dtypes:
            for chosen in itertools.product(*(self.types[name] for name in several)):
                every = dict.fromkeys([*self.inputs, *self.outputs], dtype)
                yield "_".join([dtype, *chosen]), {**every, **fixed, **dict(zip(several, chosen, strict=True))}

    def suffix(self, dtypes: Sequence[str]) -> str:
        """Returns what the names of a kernel's functions end with for inputs of these element types."""
        found = dict(zip(self.inputs, dtypes, strict=False))
        several = [found[name] for name in self.inputs if len(self.types.get(name, ())) > 1]
        return "_".join([dtypes[self.leading()], *several])

    def leading(self) -> int:
        """Returns the number of the input whose element type the outputs have, as far as they have no other."""
        others = {*self.any_dtype, *self.types}
        return next(at for at, name in enumerate(self.inputs) if name not in others)

    def is_counted(self, output: str, axis: int) -> bool:
        """Tells whether the size of an output's axis is known only when the values are."""
        return self.counted.get(output) == axis

    def ptx(self) -> str:
        """Returns the compiled kernel.

        Raises:
            NotFoundError: It was not compiled yet.
            SpecError: It is of another source.
        """
        file = self.folder / self.kernel.ptx
        try:
            text = file.read_text(encoding="utf-8")
        except OSError:
            raise NotFoundError(
                f"bundle {self.name}: there is no compiled kernel {file}",
                hint=f"'onnxbench plugins compile {self.folder}' makes it (with nvcc, no GPU needed).",
            ) from None
        if self.source_digest() not in text[:300]:
            raise SpecError(
                f"bundle {self.name}: {file.name} was not compiled from {self.kernel.source} as it is now",
                hint=f"'onnxbench plugins compile {self.folder}' compiles it again.",
            )
        return text

    def source_digest(self) -> str:
        """Returns a digest of the kernel's source files."""
        digest = hashlib.sha256()
        for file in self.sources():
            digest.update(file.read_bytes())
        return digest.hexdigest()

    def sources(self) -> list[Path]:
        """Returns the kernel's source, the headers beside it, and headers that onnxbench has for some kernels."""
        own = [self.folder / self.kernel.source, *sorted(self.folder.glob("*.h"))]
        texts = "".join(file.read_text(encoding="utf-8") for file in own)
        shared = sorted(each for each in INCLUDE.glob("*.h") if each.name != KERNEL_HEADER)
        return own + [each for each in shared if f'"{each.name}"' in texts]

    def model(
        self, inputs: Sequence[np.ndarray], attributes: Attributes | None = None, *, dynamic: bool = False
    ) -> ModelProto:
        """Returns a model of one node, this operator, for inputs of these types and shapes."""
        from onnxbench.bundles._onnx import model_of

        return model_of(self, inputs, attributes or {}, dynamic=dynamic)

    def schema(self) -> OpSchema:
        """Returns the ONNX schema; with ``onnx.defs.register_schema`` the checker and inference know the operator."""
        from onnxbench.bundles._onnx import schema_of

        return schema_of(self)

    def function(self, attributes: Attributes, opset: int, inputs: int | None = None) -> FunctionProto | None:
        """Returns the operator as a function of ONNX operators, for attributes and an opset; None if there is none.

        Args:
            attributes: The attributes.
            opset: The opset.
            inputs: How many inputs the node has; None: all.

        Raises:
            SpecError: The body is no ONNX text.
        """
        from onnxbench.bundles._onnx import function_of

        return function_of(self, attributes, opset, len(self.inputs) if inputs is None else inputs)

    def operator(self) -> Operator:
        """Returns what a runtime is taught: ``backends.Options(operators=(bundle.operator(),))``."""
        from onnxbench.backends import Operator

        def kinds(names: Sequence[str]) -> tuple[str | None, ...]:
            return tuple(self.types[name][0] if name in self.types else None for name in names)

        return Operator(
            self.domain, self.op, kinds(self.inputs), kinds(self.outputs), self.attributes, self.leading(),
            lambda inputs, attributes: self.reference(self.padded(inputs), attributes), self.function, self.evaluator,
            sum(name in self.optional for name in self.inputs), sum(name in self.optional for name in self.outputs),
            self.folder / self.file if self.folder != Path() else None,
        )  # fmt: skip

    def evaluator(self) -> type:
        """Returns a class for ``onnx.reference.ReferenceEvaluator(model, new_ops=[...])``."""
        from onnxbench.bundles._onnx import evaluator_of

        return evaluator_of(self)


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin as it was found, not loaded yet.

    Attributes:
        name: What it is called.
        path: The folder of a bundle, a ``.py`` file, or a library.
        kind: ``bundle``, ``script`` or ``library``.
        origin: Where it was found: ``given``, the path variable, or the package with the entry point.
        version: The version of its package.
    """

    name: str
    path: Path
    kind: str
    origin: str = "given"
    version: str = ""

    def operators(self) -> list[DeclaredOperator]:
        """Returns the operators of a bundle, as far as its source says them. Nothing is run."""
        from onnxbench.bundles._declared import declared_operators

        return declared_operators(self.path / _PLUGIN_FILE) if self.kind == "bundle" else []

    def job(self) -> dict[str, Any]:
        """Returns the plain values by which TensorRT's process loads it."""
        return {"kind": self.kind, "path": os.fspath(self.path.resolve()), "name": self.name}

    def digest(self) -> str:
        """Returns a digest of its files."""
        digest = hashlib.sha256()
        files = [self.path] if self.path.is_file() else sorted(
            each for each in self.path.rglob("*") if each.is_file() and "__pycache__" not in each.parts
        )  # fmt: skip
        for file in files:
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
        return digest.hexdigest()


def find_plugins(words: Sequence[str]) -> list[Plugin]:
    """Returns the plugins that words mean: paths of bundles, scripts and libraries, or names of bundles that are known.

    Raises:
        NotFoundError: There is no such file, and no bundle of that name.
        UsageError: The path is no plugin.
    """
    return [_find(word) for word in words]


def _find(word: str) -> Plugin:
    path = Path(word)
    if path.is_dir():
        if not (path / _PLUGIN_FILE).is_file():
            raise UsageError(f"{path} is no bundle: there is no {_PLUGIN_FILE} in it",
                             hint="'onnxbench plugins new' makes one.")  # fmt: skip
        return Plugin(path.resolve().name, path, "bundle")
    if path.is_file():
        if path.name == _PLUGIN_FILE:
            return Plugin(path.resolve().parent.name, path.parent, "bundle")
        if path.suffix == ".py":
            return Plugin(path.stem, path, "script")
        if path.suffix in _LIBRARIES or ".so." in path.name:
            return Plugin(path.name, path, "library")
        raise UsageError(f"{path} is no plugin", hint="A plugin is a folder with plugin.py, a .py file, or a library.")
    known = {plugin.name: plugin for plugin in discover()}
    if word in known:
        return known[word]
    few = f"Known bundles: {', '.join(sorted(known))}." if known else f"{PATH_VARIABLE} names folders with bundles."
    raise NotFoundError(f"there is no plugin {word!r}", hint=did_you_mean(word, known) or few)


def discover() -> list[Plugin]:
    """Returns the bundles that can be had by name: from the path variable, from installed packages, those that ship."""
    every = [*_on_path(), *_of_packages(), *_shipped()]
    return list({plugin.name: plugin for plugin in reversed(every)}.values())[::-1]


def _shipped() -> Iterator[Plugin]:
    package = Path(__file__).resolve().parents[1]
    folder = package / "_plugins"  # as the wheel has them; a checkout has them beside the package
    for each in sorted((folder if folder.is_dir() else package.parent / "plugins").glob(f"*/{_PLUGIN_FILE}")):
        yield Plugin(each.parent.name, each.parent, "bundle", "onnxbench")


def _on_path() -> Iterator[Plugin]:
    for word in filter(None, os.environ.get(PATH_VARIABLE, "").split(os.pathsep)):
        folder = Path(word)
        if (folder / _PLUGIN_FILE).is_file():
            yield Plugin(folder.resolve().name, folder, "bundle", PATH_VARIABLE)
        elif folder.is_dir():
            for each in sorted(folder.iterdir()):
                if (each / _PLUGIN_FILE).is_file():
                    yield Plugin(each.name, each, "bundle", PATH_VARIABLE)


def _of_packages() -> Iterator[Plugin]:
    from importlib import metadata

    for point in metadata.entry_points(group=ENTRY_POINTS):
        module, _, _ = point.value.partition(":")
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            spec = None
        if spec is not None and spec.origin is not None:
            package = point.dist.name if point.dist is not None else module
            version = point.dist.version if point.dist is not None else ""
            yield Plugin(point.name, Path(spec.origin).parent, "bundle", package, version)


def load_bundle(path: str | os.PathLike[str], op: str | None = None) -> Bundle:
    """Returns the bundle in a folder; its ``plugin.py`` is run.

    Args:
        path: The folder.
        op: The operator, if there are several.

    Raises:
        NotFoundError: There is no such folder, or no such operator in it.
        SpecError: It raises, defines no ``BUNDLE``, or several and none is named.
    """
    found = {bundle.op: bundle for bundle in read_bundles(path)}
    if op is None and len(found) == 1:
        return next(iter(found.values()))
    if op is None:
        raise SpecError(f"{path} has several operators: {', '.join(found)}", hint="Say which: load_bundle(path, op).")
    if op not in found:
        raise NotFoundError(f"{path} has no operator {op!r}", hint=did_you_mean(op, found))
    return found[op]


def read_bundles(path: str | os.PathLike[str]) -> list[Bundle]:
    """Returns all bundles in a folder; its ``plugin.py`` is run.

    Raises:
        NotFoundError: There is no such folder.
        SpecError: It raises, or defines neither ``BUNDLE`` nor ``BUNDLES``.
    """
    folder = Path(path)
    file = folder if folder.is_file() else folder / _PLUGIN_FILE
    if not file.is_file():
        raise NotFoundError(f"there is no bundle in {folder}")
    found = bundles_of(run_file(file))
    if not found:
        raise SpecError(f"{file} defines no BUNDLE", hint="It must define BUNDLE = onnxbench.bundles.Bundle(...).")
    return [replace(bundle, folder=file.resolve().parent, file=file.name) for bundle in found]


def bundles_of(module: Any) -> list[Bundle]:
    """Returns the bundles that a module defines: ``BUNDLES``, or ``BUNDLE`` alone."""
    several = getattr(module, "BUNDLES", None)
    given = [getattr(module, "BUNDLE", None)] if several is None else [*several]
    return [each for each in given if isinstance(each, Bundle)]


def run_file(file: Path) -> Any:
    """Returns a Python file as a module, run now.

    Raises:
        SpecError: It raises; the message says what and in which line.
    """
    name = f"onnxbench_plugin_{hashlib.sha256(os.fspath(file.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        place = raised_in(error, file) or file
        raise SpecError(f"plugin {place}: {type(error).__name__}: {error}") from None
    return module


def raised_in(error: BaseException, home: Path) -> str | None:
    """Returns the last file and line of code under ``home`` (a file or a folder) that an error came through."""
    import traceback

    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve().is_relative_to(home.resolve())
    ]  # fmt: skip
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else None


def compile_ptx(bundle: Bundle) -> Path:
    """Returns the PTX that a bundle's kernel was compiled to, beside it (see ``onnxbench.bundles._kernels``)."""
    from onnxbench.bundles import _kernels

    return _kernels.compile_ptx(bundle)


def make_skeleton(folder: Path, op: str) -> list[Path]:
    """Returns the files of a new bundle that works, written into a new folder (see ``onnxbench.bundles._skeleton``)."""
    from onnxbench.bundles import _skeleton

    return _skeleton.make_skeleton(folder, op)


def export_cpp(bundle: Bundle, folder: Path) -> list[Path]:
    """Returns the files of a TensorRT plugin library in C++, written into a new folder (``onnxbench.bundles._cpp``)."""
    from onnxbench.bundles import _cpp

    return _cpp.export_cpp(bundle, folder)


def prove_bundle(bundle: Bundle, *, build: Build | None = None, tests: Sequence[Test] = ()) -> list[Outcome]:
    """Returns the outcomes of all tests of a bundle (see ``onnxbench.bundles._proof``)."""
    from onnxbench.bundles import _proof

    return _proof.prove_bundle(bundle, build=build, tests=tests)


def load_bundles(words: Sequence[str]) -> list[Bundle]:
    """Returns the bundles that words mean (see ``find_plugins``); their code is run.

    Raises:
        NotFoundError: There is no such bundle.
        UsageError: It is a plugin of TensorRT alone.
        SpecError: It cannot be loaded.
    """
    found = find_plugins(words)
    for plugin in found:
        if plugin.kind == "library" or (plugin.kind == "script" and "BUNDLE" not in plugin.path.read_text("utf-8")):
            raise UsageError(
                f"{plugin.path} is a plugin of TensorRT, which nothing else can run",
                hint="A bundle works everywhere: 'onnxbench plugins new' makes one. A library with custom operators of "
                "ONNX Runtime is given with --custom-ops.",
            )
    return [bundle for plugin in found for bundle in read_bundles(plugin.path)]


def operators_of(bundles: Iterable[Bundle]) -> tuple[Operator, ...]:
    """Returns what runtimes are taught of bundles: their operators, by each name that models have them under."""
    return tuple(each.operator() for bundle in bundles for each in bundle.named())


def is_required(value: Any) -> bool:
    """Tells whether what a bundle says of an attribute is its type: then there is no default."""
    return isinstance(value, (type, GenericAlias))


def kind_of(value: Any) -> tuple[type, bool]:
    """Returns the type of an attribute, ``int``, ``float`` or ``str``, and whether it is a list of them.

    Args:
        value: What a bundle says of it: its default, or its type.
    """
    if isinstance(value, GenericAlias):
        return value.__args__[0], True
    if isinstance(value, type):
        return value, False
    if isinstance(value, (list, tuple)):
        return type(value[0]), True
    return type(value), False


@contextlib.contextmanager
def registered(bundles: Iterable[Bundle]) -> Iterator[None]:
    """Lets onnx itself know the operators of bundles within the block: its checker and its inference.

    Args:
        bundles: The bundles. Operators that onnx knows already are left as they are.
    """
    from onnx import defs

    done: list[Bundle] = []
    try:
        for each in itertools.chain.from_iterable(bundle.named() for bundle in bundles):
            if not defs.has(each.op, each.domain):
                defs.register_schema(each.schema())
                done.append(each)
        yield
    finally:
        for bundle in done:
            defs.deregister_schema(bundle.op, 1, bundle.domain)


def product(sizes: Iterable[Any]) -> Any:
    """Returns the product of sizes, also of symbols: how many elements a shape has."""
    made: Any = 1
    for size in sizes:
        made = made * size
    return made


def smaller(a: Any, b: Any) -> Any:
    """Returns the smaller of two sizes, also of symbols."""
    return a.smaller(b) if hasattr(a, "smaller") else b.smaller(a) if hasattr(b, "smaller") else min(a, b)


def larger(a: Any, b: Any) -> Any:
    """Returns the larger of two sizes, also of symbols."""
    return a.larger(b) if hasattr(a, "larger") else b.larger(a) if hasattr(b, "larger") else max(a, b)


def equal(a: Any, b: Any) -> Any:
    """Returns 1 if two attributes are equal and 0 if not, in a form that can be written in C++ too."""
    return a.equal(b) if hasattr(a, "equal") else b.equal(a) if hasattr(b, "equal") else int(a == b)


def register_with_tensorrt(rt: Any, plugin: Mapping[str, Any]) -> None:
    """Loads a plugin in TensorRT's process and registers it there (see ``onnxbench.engine._worker``).

    Raises:
        BenchError: It cannot be loaded, or is not taken.
    """
    from onnxbench.bundles import _tensorrt

    if plugin["kind"] == "bundle":
        for bundle in read_bundles(plugin["path"]):
            _tensorrt.register_bundle(rt, bundle)
    else:
        _tensorrt.register_script(rt, Path(plugin["path"]))


def fit_to_parser(rt: Any, model: Path) -> bytes | None:
    """Returns a model as TensorRT's parser has to be given it for the bundles that were registered, None if it is so.

    See ``onnxbench.bundles._tensorrt``.
    """
    from onnxbench.bundles import _tensorrt

    return _tensorrt.fit_to_parser(rt, model)


__all__ = [
    "Bundle",
    "Kernel",
    "Launch",
    "Plugin",
    "TorchCall",
    "bundles_of",
    "compile_ptx",
    "discover",
    "equal",
    "export_cpp",
    "find_plugins",
    "fit_to_parser",
    "is_required",
    "kind_of",
    "larger",
    "load_bundle",
    "load_bundles",
    "make_skeleton",
    "operators_of",
    "product",
    "prove_bundle",
    "read_bundles",
    "register_with_tensorrt",
    "registered",
    "run_file",
    "smaller",
]
