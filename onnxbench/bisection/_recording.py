"""A recording for another machine: what runs there, with a script that writes the values of a model's tensors.

A side that cannot be run here (an engine without a GPU, an execution provider that this ONNX Runtime lacks) is made
ready here: its graph in parts that fit the memory, with all tensors as outputs, engines of them where these can be
built, the inputs, and ``_recorder`` beside them. What it records is compared here, as recorded values are.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench import backends, captures
from onnxbench.bisection import _recorder
from onnxbench.bisection._engines import names_engine, open_engine_side
from onnxbench.bisection._repro import require_empty
from onnxbench.bisection._sides import Place, Suspect, parse_place
from onnxbench.captures import Value, check_feeds, input_ports
from onnxbench.engine import build_part, record_path
from onnxbench.errors import FeedsError, OutputError, UnsupportedError
from onnxbench.feeding import FeedOptions, feed_sets
from onnxbench.model import load
from onnxbench.parts import Parts
from onnxbench.shrinking import ENGINES_FILE, carried
from onnxbench.tensortype import elem_type
from onnxbench.writer import save, write_whole

if TYPE_CHECKING:
    from onnxbench.backends import Operator
    from onnxbench.model import Model

_SCRIPT, _PLAN, _NEXT = "record.py", "record.json", "NEXT.txt"
_FEW = 64
_TYPES = {1, 2, 3, 6, 7, 9, 10, 11, 16, 17}
"""Element types that both TensorRT and the script can take out."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What was written for another machine.

    Attributes:
        folder: Where.
        place: What runs the model there, in words.
        sets: How many sets of inputs.
        tensors: How many tensors are recorded of each.
        parts: In how many parts the model runs.
        built: How many engines were built here.
        choices: What was decided about the inputs without being told.
        notes: What a user should know.
        next: What compares the values, when they are back.
    """

    folder: Path
    place: str
    sets: int
    tensors: int
    parts: int
    built: int
    choices: tuple[str, ...]
    notes: tuple[str, ...]
    next: str


def write_recording(
    source: Model | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    on: Place | str | None = None,
    feeds: Mapping[str, Value] | FeedOptions | None = None,
    memory: int | None = None,
    operators: Sequence[Operator] = (),
    allow_outside: bool = False,
) -> Recording:
    """Returns what was written into a folder: a model's parts, inputs, and a script that records its values elsewhere.

    Args:
        source: A model or a model file; or an engine, whose model is built again with its tensors as outputs.
        folder: Where; it is made, and must be empty if it is there.
        on: What runs it there: ``trt``, ``tensorrt``, ``ort:none,provider=cuda``; of an engine, as it was built.
        feeds: Values by input, or what a user says about them; None draws one set from seed 0.
        memory: Bytes that the values of one part may take; None: all in one part.
        operators: Custom operators.
        allow_outside: Follow external data that leaves the model's folder.

    Raises:
        UsageError: The place cannot be understood.
        RefusedModelError: No engine can be built of a part.
        OutputError: The folder is not empty, or cannot be written.
        BenchError: What loading the model and drawing inputs raise.
    """
    target = Path(folder)
    require_empty(target)
    if names_engine(source):
        assert not hasattr(source, "proto")
        model, place, engine = open_engine_side(
            os.fspath(source), operators, what="--on", on=on, allow_outside=allow_outside
        )
    else:
        engine = None
        model = load(source, allow_outside=allow_outside) if isinstance(source, (str, os.PathLike)) else source
        options = backends.Options(operators=tuple(operators))
        place = on if isinstance(on, Place) else parse_place(on or "trt", level="none", options=options)
    suspect = Suspect(model, place, engine=engine)
    try:
        given = list(_sets(model, feeds))
        if not given:
            raise FeedsError("the data holds no set of inputs")
        try:
            for name in (target, target / "feeds"):
                name.mkdir(parents=True, exist_ok=True)
            return _Writer(suspect, target, memory).write(given)
        except OSError as error:
            raise OutputError(f"{target} cannot be written: {error.strerror or error}") from None
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    finally:
        suspect.close()


def _sets(
    model: Model, feeds: Mapping[str, Value] | FeedOptions | None
) -> Iterator[tuple[Mapping[str, Value], tuple[str, ...]]]:
    if isinstance(feeds, Mapping):
        yield check_feeds(feeds, input_ports(model.proto.graph)), ()
        return
    yield from ((each.feeds, each.choices) for each in feed_sets(model, feeds))


class _Writer:
    """Writes one recording."""

    def __init__(self, suspect: Suspect, folder: Path, memory: int | None) -> None:
        self._suspect, self._folder, self._memory = suspect, folder, memory
        self._place = suspect.place
        parts = suspect.parts
        made = parts.in_order(name for names in parts.scope.writes for name in names if name in parts.varying)
        kinds = parts.kinds(made)
        self._names = [name for name in made if name in kinds and elem_type(kinds[name]) in _TYPES]
        self._left_out = len(made) - len(self._names)
        # Values that flow from part to part decide their shapes; what runs the parts cannot be run here.
        self._here = Parts(parts.model, "ort", self._place.options) if self._place.is_engine else parts
        self._known: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._bundles: tuple[Path, ...] = ()
        self._written = 0

    def write(self, given: Sequence[tuple[Mapping[str, Value], tuple[str, ...]]]) -> Recording:
        """Writes all and returns what was written."""
        sets = []
        for number, (feeds, _) in enumerate(given):
            name = f"{number:03}.npz"
            captures.save(self._folder / "feeds" / name, feeds)
            sets.append({"name": name, **self._parts_for(feeds)})
        engine = self._place.is_engine
        source = self._suspect.model.origin
        plan = {
            "schema_version": 1, "builder": self._kind(), "tf32": self._place.options.build.get("tf32") is not False,
            "threads": self._place.options.threads, "providers": list(self._place.options.providers),
            "plugins": [os.path.join("plugins", file.parent.name, file.name) for file in self._bundles], "sets": sets,
        }  # fmt: skip
        write_whole(self._folder / _PLAN, [json.dumps(plan, indent=1, ensure_ascii=False).encode() + b"\n"])
        shutil.copyfile(_recorder.__file__, self._folder / _SCRIPT)
        if engine:
            shutil.copyfile(backends.engine_builder(self._place.backend).standalone, self._folder / ENGINES_FILE)
        where = f" --reference-on {self._kind()}" if engine and self._place.unit else ""
        following = (
            f"onnxbench bisect {source if source is not None else 'MODEL.onnx'} --load-outputs {self._folder}/recorded "
            f"--feeds {self._folder}/feeds{where}"
        )
        write_whole(self._folder / _NEXT, [f"Take recorded/ back, and compare:\n  {following}\n".encode()])
        notes = [f"{self._left_out:,} tensors are of types that cannot be recorded"] if self._left_out else []
        parts = sum(len(each["parts"]) for each in self._known.values())
        built = sum(1 for _ in self._folder.glob("part*.engine"))
        choices = tuple(dict.fromkeys(word for _, words in given for word in words))
        return Recording(
            self._folder, self._place.text, len(sets), len(self._names), parts, built, choices, tuple(notes), following
        )

    def _kind(self) -> str:
        return backends.engine_builder(self._place.backend).kind() if self._place.is_engine else "onnxruntime"

    def _parts_for(self, feeds: Mapping[str, Value]) -> dict[str, Any]:
        """Returns the parts that run a set of inputs; those of another set of the same shapes are the same."""
        key = tuple((name, getattr(value, "shape", None), self._sizes(value)) for name, value in sorted(feeds.items()))
        if key not in self._known:
            self._known[key] = {"parts": list(self._write_parts(feeds)), "plain": self._write_plain(feeds)}
        return self._known[key]

    @staticmethod
    def _sizes(value: Value) -> bytes:
        """Returns the values of an input that may be sizes, which an engine is built for."""
        return value.tobytes() if getattr(value, "size", 1 << 10) <= _FEW and value.dtype.kind in "iu" else b""

    def _write_parts(self, feeds: Mapping[str, Value]) -> Iterator[dict[str, Any]]:
        parts, here = self._suspect.parts, self._here
        batches = [self._names] if self._memory is None else here.batches(feeds, self._names, self._memory)
        steps = parts.plan(batches)
        held: dict[str, Value] = dict(feeds)
        for number, step in enumerate(steps):
            proto, made = parts.proto(step.nodes, held, step.outputs)
            given = {info.name: held[info.name] for info in proto.graph.input}
            called = {made[name]: name for name in step.outputs}
            asked = [name for name in step.asked if name in called.values()]
            yield {
                **self._write(parts.model.derive(proto), given), "outputs": called, "asked": asked, "last": step.last,
            }  # fmt: skip
            if number < len(steps) - 1:
                held.update(here.run(step.nodes, held, step.outputs))
            for name in step.last:
                held.pop(name, None)

    def _write_plain(self, feeds: Mapping[str, Value]) -> dict[str, str] | None:
        """Writes what nothing is looked at in: the finished engine, or one with the model's outputs alone."""
        if self._suspect.engine is not None:
            engine = self._suspect.engine.file.path
            for file in (engine, record_path(engine)):
                shutil.copyfile(file, self._folder / file.name)
            return {"model": engine.name, "engine": engine.name}
        return self._write(self._suspect.plain, feeds) if self._place.is_engine else None

    def _write(self, model: Model, feeds: Mapping[str, Value]) -> dict[str, str]:
        """Writes one part and, where that can be built here, its engine; returns what they are called."""
        stem = f"part{self._written:03}"
        self._written += 1
        names = {"model": f"{stem}.onnx", "engine": f"{stem}.engine"}
        if self._place.is_engine:
            model = build_part(model, feeds, self._folder / names["engine"], self._kind(), self._place.options)
        brought = carried(model, self._place.backend, self._place.options.operators)
        if brought.bundles and not self._place.is_engine:
            raise UnsupportedError("a custom operator without a body of ONNX operators cannot be recorded elsewhere")
        self._bundles = tuple(dict.fromkeys([*self._bundles, *brought.bundles]))
        replace(brought, engines=None).copy_to(self._folder)
        save(brought.model, self._folder / names["model"])
        return names
