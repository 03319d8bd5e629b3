"""The two sides of a search: a suspect that can be run in parts, and a reference that gives the values of tensors.

A reference is anything with ``Reference``'s four members. Here it is a model on a runtime, or recorded values; a
PyTorch model is another one (``onnxbench.pytorch.reference``). The search asks it which of the suspect's tensors it
knows (``match``), and for the values of these, batch after batch (``stream``).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from onnxbench import backends
from onnxbench.bisection._calibrating import shaken
from onnxbench.boundary import reach_back
from onnxbench.captures import Feeds, Port, Value, check_feeds, input_ports, numpy_dtype
from onnxbench.errors import ExecutionError, FeedsError, UsageError, did_you_mean
from onnxbench.graph import GraphIndex
from onnxbench.inlining import inline_functions
from onnxbench.parts import Parts

if TYPE_CHECKING:
    from onnx import NodeProto

    from onnxbench.bisection._engines import EngineSide
    from onnxbench.graph import Scope
    from onnxbench.model import Model

_ACTIVATIONS = ("Relu", "Clip")
_NAMES_AGREE = 0.9
_MOST_NAMED = 4
_TF32 = 2.0**-10
_SETTINGS = {"threads": "N", "provider": "EP", "level": "L"}
_ENGINE_SETTINGS = {"device": "N", "tf32": "off"}


@dataclass(frozen=True, slots=True)
class Place:
    """What runs a model: a backend and how it is set up.

    Attributes:
        backend: Its name.
        options: Optimization level, providers, threads.
    """

    backend: str = "ort"
    options: backends.Options = field(default_factory=backends.Options)

    @property
    def text(self) -> str:
        """The place in words: ``ONNX Runtime, optimizations all``."""
        if self.backend == "reference":
            return "the reference evaluator"
        if self.is_engine:
            known = {"trt": "TensorRT", "tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
            device = self.options.build.get("device")
            said = ["without TF32"] if not self.unit else []
            return ", ".join([known[self.backend], *([f"GPU {device}"] if device is not None else []), *said])
        if self.backend != "ort":
            return f"the backend {self.backend}"
        others = [name.upper() for name in self.options.providers if name.lower() != "cpu"]
        threads = [f"{self.options.threads} thread{'s' * (self.options.threads > 1)}"] if self.options.threads else []
        return ", ".join(["ONNX Runtime", f"optimizations {self.options.optimization}", *others, *threads])

    @property
    def is_engine(self) -> bool:
        """Whether models are built into engines and run on a GPU."""
        return self.backend in backends.ENGINES

    @property
    def recorder(self) -> str:
        """The backend that computes what flows into parts of a model: an engine may not be built of it at all."""
        return "ort" if self.is_engine else self.backend

    @property
    def unit(self) -> float:
        """The unit of precision of matrix products in float32, where that is coarser than float32's own; else 0."""
        return _TF32 if self.is_engine and self.options.build.get("tf32") is not False else 0.0

    @property
    def optimizes(self) -> bool:
        """Whether it runs another graph than the file's."""
        return self.backend == "ort" and self.options.optimization != "none"


def parse_place(text: str, *, level: str, options: backends.Options | None = None, what: str = "--on") -> Place:
    """Returns what a user means by ``ort:extended``, ``ort:none,threads=1,provider=cuda``, ``reference``, ``trt``.

    Args:
        text: What is typed.
        level: The optimization level if none is typed.
        options: What holds unless typed.
        what: The option, for messages.

    Raises:
        UsageError: It cannot be understood.
    """
    head, *settings = text.split(",")
    name, _, typed = head.partition(":")
    backend = backends.backend(name).name
    if backend in backends.ENGINES:
        return _engine_place(text, backend, typed, settings, options or backends.Options(), what)
    chosen = replace(options or backends.Options(), optimization=typed or level)
    for key, value in _read_settings(settings, _SETTINGS, f"{what} {text!r}"):
        if key == "threads" and not value.isdigit():
            raise UsageError(f"{what} {text!r}: {value!r} is no number of threads")
        if key == "threads":
            chosen = replace(chosen, threads=int(value))
        elif key == "provider":
            chosen = replace(chosen, providers=tuple(value.split("+")))
        else:
            chosen = replace(chosen, optimization=value)
    levels = ("none", "basic", "extended", "all")
    if chosen.optimization not in levels:
        raise UsageError(
            f"{what} {text!r}: {chosen.optimization!r} is no optimization level",
            hint=did_you_mean(chosen.optimization, levels) or f"Levels: {', '.join(levels)}.",
        )
    if backend == "reference" and (typed or settings):
        raise UsageError(f"{what} {text!r}: the reference evaluator has no levels, threads or providers")
    heeded = backends.heeded(backend)
    for word, name in (("level", "optimization"), ("threads", "threads"), ("provider", "providers")):
        if name not in heeded and (
            (typed and word == "level") or any(each.startswith(f"{word}=") for each in settings)
        ):
            raise UsageError(f"{what} {text!r}: the backend {backend} has no {name}")
    return Place(backend, chosen)


def _read_settings(settings: Sequence[str], known: Mapping[str, str], where: str) -> Iterator[tuple[str, str]]:
    """Yields ``key=value`` words as pairs; raises a UsageError for another word or key."""
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign or key not in known:
            spelled = ", ".join(f"{name}={example}" for name, example in known.items())
            raise UsageError(
                f"{where}: {setting!r} is no setting", hint=did_you_mean(key, known) or f"Settings: {spelled}."
            )
        yield key, value


def _engine_place(
    text: str, backend: str, typed: str, settings: Sequence[str], options: backends.Options, what: str
) -> Place:
    """Returns what a user means by ``trt``, ``trt-rtx,tf32=off``, ``tensorrt,device=1``."""
    build = dict(options.build)
    if typed:
        raise UsageError(f"{what} {text!r}: TensorRT has no optimization levels")
    for key, value in _read_settings(settings, _ENGINE_SETTINGS, f"{what} {text!r}"):
        if key == "device" and not value.isdigit():
            raise UsageError(f"{what} {text!r}: {value!r} is no number of a GPU")
        if key == "tf32" and value not in ("on", "off"):
            raise UsageError(f"{what} {text!r}: tf32 is on or off")
        build[key] = int(value) if key == "device" else value == "on"
    return Place(backend, replace(options, optimization="none", build=build))


@dataclass(frozen=True, slots=True)
class Match:
    """Which of the suspect's tensors a reference knows.

    Attributes:
        tensors: The suspect's names to the reference's.
        how: What told: ``names``, ``structure``.
    """

    tensors: dict[str, str]
    how: str


class Reference(Protocol):
    """What is taken for right.

    It may have more than this, which is used where it is there: ``notes``, what was decided without being told;
    ``inputs(number)``, inputs of its own by the suspect's names; ``origin(name)``, a ``Provenance``, and
    ``explain(name)``, what makes a value, in words; ``between(name, known)``, the values that one is computed from,
    back to those that are known; ``within(name, given)``, what the steps of one call make; ``weight(name)``, the values
    of a weight or None; ``rerun(name, given)``, a value computed anew from others, or None;
    ``other_rounding(feeds, batches, number)``, which yields what ``stream`` does, as far as it is known, computed with
    other rounding; ``digest()``, the SHA-256 of what it is; ``unit``, the unit of precision of its matrix products (see
    ``Place``); ``close()``.

    Attributes:
        label: What it is, in words.
        sets: How many sets of inputs it has values for; None: any.
    """

    label: str
    sets: int | None

    def match(self, suspect: Suspect) -> Match:
        """Returns which of the suspect's tensors it knows."""
        ...

    def stream(
        self, feeds: Mapping[str, Value], batches: Sequence[Sequence[str]], *, number: int = 0
    ) -> Iterator[dict[str, Value]]:
        """Yields the values of its tensors, batch after batch.

        Args:
            feeds: The inputs, by the suspect's names.
            batches: Its own names.
            number: Which set of inputs this is.
        """
        ...


class Suspect:
    """A model on a runtime: what is searched.

    Attributes:
        model: The model as given.
        place: What runs it.
        parts: Its graph as the runtime runs it: without functions, and optimized as told.
        functions: Tensors that came out of local functions, to their paths there.
        engine: The engine that was built of the model and is what is really asked about, or None.
    """

    def __init__(
        self, model: Model, place: Place, *, index: GraphIndex | None = None, engine: EngineSide | None = None
    ) -> None:
        self.model, self.place, self.engine = model, place, engine
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._taught: backends.Taught | None = None
        inlined, moved = inline_functions(model)
        self.functions = {new: path for path, names in moved.items() for new in names}
        self.plain = inlined
        graph, options = inlined, place.options
        if place.optimizes:
            self._folder = tempfile.TemporaryDirectory(prefix="onnxbench-")
            if options.operators:  # what they are called by has to be the same in the graph that is written
                self._taught = backends.Taught(inlined.proto, options.operators)
                graph = inlined.derive(self._taught.proto)
                options = replace(options, operators=(), libraries=(*options.libraries, *self._taught.libraries))
            graph = backends.optimized_graph(graph, options, Path(self._folder.name))
        known = index if graph is model else None
        self.parts = Parts(graph, place.backend, options, index=known)

    @property
    def label(self) -> str:
        """The model file and what runs it."""
        if self.engine is not None:
            return self.engine.label
        name = self.model.origin.name if self.model.origin is not None else "the model"
        return f"{name} on {self.place.text}"

    @cached_property
    def ports(self) -> list[Port]:
        """The inputs of the model."""
        return input_ports(self.model.proto.graph)

    def outputs(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Returns what the model itself gives, with nothing looked at within, so that nothing is computed otherwise."""
        if self.engine is not None:
            return self.engine.outputs(feeds)
        session = backends.open_session(self.model, self.place.backend, options=self.place.options)
        values = session.run(feeds)
        session.close()
        return values

    def close(self) -> None:
        """Removes what was written on the way."""
        if self.engine is not None:
            self.engine.close()
        if self._taught is not None:
            self._taught.close()
        if self._folder is not None:
            self._folder.cleanup()


class ModelReference:
    """A model on a runtime as the reference."""

    def __init__(self, model: Model, place: Place, *, engine: EngineSide | None = None) -> None:
        self.sets: int | None = None
        self.side = Suspect(model, place, engine=engine)
        self.label = self.side.label
        self.unit, self.engine = place.unit, engine
        self.notes: tuple[str, ...] = ()
        self._inputs: dict[str, str] = {}
        self._shaken: Parts | None = None

    def match(self, suspect: Suspect) -> Match:
        """Returns the tensors that mean the same, by names if these can be trusted, else by what nodes compute."""
        own, other = self.side.parts.scope, suspect.parts.scope
        names = {name: name for name in other.tensor_names() if own.defines(name)}
        if suspect.model is self.side.model or _names_can_be_trusted(suspect.parts, self.side.parts, names):
            folded = _folded_activations(other, own, names)
            tensors, how = {**names, **folded}, "names"
        else:
            from onnxbench.diffing import match_tensors

            tensors, how = match_tensors(suspect.plain, self.side.plain), "structure"
            tensors = {one: two for one, two in tensors.items() if other.defines(one) and own.defines(two)}
            outputs = set(own.outputs)
            same = [name for name in other.outputs if name in outputs and tensors.get(name) not in outputs]
            tensors.update((name, name) for name in same if name in other.producers)
        compared = {tensors.get(name) for name in other.outputs}
        left = [repr(name) for name in own.outputs if name not in compared]
        some = ", ".join(left[:_MOST_NAMED]) + (f" and {len(left) - _MOST_NAMED:,} more" * (len(left) > _MOST_NAMED))
        self.notes = (f"no output of the suspect is compared with {some} of the reference",) if left else ()
        self._inputs = self._match_inputs(suspect, tensors)
        return Match(tensors, how)

    def _match_inputs(self, suspect: Suspect, tensors: Mapping[str, str]) -> dict[str, str]:
        """Returns which input of this model each input of the suspect's is: matched, or at the same place."""
        own = [port.name for port in self.side.ports]
        found = {port.name: tensors[port.name] for port in suspect.ports if tensors.get(port.name) in own}
        rest = [name for name in own if name not in set(found.values())]
        left = [port.name for port in suspect.ports if port.name not in found]
        if len(rest) == len(left):
            found.update(zip(left, rest, strict=True))
        return found

    def own_feeds(self, feeds: Mapping[str, Value]) -> Feeds:
        """Returns the suspect's inputs as this model's: by its names, in its element types."""
        by_name = {port.name: port for port in self.side.ports}
        fed: Feeds = {}
        for name, value in feeds.items():
            port = by_name.get(self._inputs.get(name, name))
            if port is not None:
                fed[port.name] = as_dtype(value, port.dtype)
        missing = [port.name for port in self.side.ports if port.required and port.name not in fed]
        if missing:
            raise FeedsError(
                f"the reference has an input {missing[0]!r} that the suspect has not",
                details=[f"the suspect's inputs: {', '.join(port.name for port in suspect_names(feeds))}"],
            )
        return fed

    def stream(
        self, feeds: Mapping[str, Value], batches: Sequence[Sequence[str]], *, number: int = 0
    ) -> Iterator[dict[str, Value]]:
        """Yields the values of tensors (see ``Reference``)."""
        yield from self.side.parts.stream(self.own_feeds(feeds), batches)

    def other_rounding(
        self, feeds: Mapping[str, Value], batches: Sequence[Sequence[str]], *, number: int = 0
    ) -> Iterator[dict[str, Value]]:
        """Yields the same, all that nodes make moved by up to one unit of precision (see ``_calibrating``)."""
        if self._shaken is None:
            place = self.side.place
            self._shaken = Parts(shaken(self.side.parts), place.backend, place.options)
        yield from self._shaken.stream(self.own_feeds(feeds), batches)

    def rerun(self, name: str, given: Mapping[str, Value]) -> Value | None:
        """Returns the value of a tensor computed from values of others; None where they do not suffice."""
        parts = self.side.parts
        maker = parts.scope.producers.get(name)
        if maker is None:
            return None
        reach = reach_back(parts.scope, parts.scope.reads[maker], set(given))
        if not set(reach.inputs) <= set(given):
            return None
        try:
            return parts.run({maker, *reach.nodes}, given, [name])[name]
        except ExecutionError:
            return None

    def weight(self, name: str) -> Value | None:
        """Returns the values of an initializer, or of what a Constant node makes; None for all else."""
        return self.side.parts.constant(name)

    def close(self) -> None:
        """Removes what was written on the way."""
        self.side.close()


def suspect_names(feeds: Mapping[str, Value]) -> list[Port]:
    """Returns the inputs that are given, as ports without a type."""
    return [Port(name, None) for name in feeds]


class RecordedReference:
    """Recorded values as the reference: one mapping per set of inputs."""

    def __init__(self, recorded: Sequence[Mapping[str, Value]], label: str, *, unit: float = 0.0) -> None:
        self.recorded, self.label, self.unit = recorded, label, unit
        self.sets: int | None = len(recorded)

    def match(self, suspect: Suspect) -> Match:
        """Returns the tensors of the suspect that values are recorded of."""
        known = set(self.recorded[0])
        for values in self.recorded[1:]:
            known &= set(values)
        scope = suspect.parts.scope
        return Match({name: name for name in scope.tensor_names() if name in known}, "names")

    def feeds(self, ports: Sequence[Port]) -> list[Feeds]:
        """Returns the inputs of each set, if they are recorded too; none otherwise."""
        required = [port for port in ports if port.required]
        if not required or not all(port.name in values for values in self.recorded for port in required):
            return []
        return [check_feeds({port.name: values[port.name] for port in required}, required) for values in self.recorded]

    def stream(
        self, feeds: Mapping[str, Value], batches: Sequence[Sequence[str]], *, number: int = 0
    ) -> Iterator[dict[str, Value]]:
        """Yields the values of tensors (see ``Reference``)."""
        values = self.recorded[number]
        for batch in batches:
            yield {name: values[name] for name in batch}

    def close(self) -> None:
        """Does nothing: files are closed by who opened them."""


def as_dtype(value: Value, wanted: int) -> Value:
    """Returns an array in another floating element type, if both are floating; anything else as it is."""
    if not wanted or not hasattr(value, "dtype"):
        return value
    target = numpy_dtype(wanted)
    if value.dtype == target or not (is_floating(value) and _is_float_dtype(target)):
        return value
    import numpy as np

    with np.errstate(all="ignore"):
        return value.astype(target)


def is_floating(value: Any) -> bool:
    """Tells whether an array holds floating-point numbers of any kind."""
    return hasattr(value, "dtype") and _is_float_dtype(value.dtype)


def _is_float_dtype(dtype: Any) -> bool:
    return bool(dtype.kind == "f" or "float" in dtype.name)


def _names_can_be_trusted(suspect: Parts, reference: Parts, names: Mapping[str, str]) -> bool:
    """Tells whether tensors that are called the same are the same as a rule.

    They are if the nodes that make them have the same operator. Operators that the reference has none of (fused ones)
    say nothing, and an operator that has taken in the activation behind it makes what that made (quantizers do so).
    Exporters that number tensors shift every number when a node is inserted: then most disagree.
    """
    there = {_operator(node) for node in reference.scope.nodes}
    made = [name for name in names if name in suspect.scope.producers and name in reference.scope.producers]
    total = same = 0
    for name in made:
        one = suspect.scope.nodes[suspect.scope.producers[name]]
        if _operator(one) in there:
            total += 1
            same += _operator(one) in _made_by(reference.scope, name)
    few = len(made) < 0.5 * min(len(suspect.scope.producers), len(reference.scope.producers))
    fused = total < 0.5 * len(made)
    return bool(made) and (not few or fused) and same >= _NAMES_AGREE * total


def _made_by(scope: Scope, name: str) -> list[tuple[str, str]]:
    """Returns the operator that makes a tensor, and that before it if it is an activation."""
    node = scope.nodes[scope.producers[name]]
    before = scope.producers.get(node.input[0]) if node.op_type in _ACTIVATIONS else None
    return [_operator(node), *([_operator(scope.nodes[before])] if before is not None else [])]


def _folded_activations(suspect: Scope, reference: Scope, names: Iterable[str]) -> dict[str, str]:
    """Returns tensors before a QuantizeLinear that stands for an activation too, with what is before that.

    A quantizer drops a Relu whose work is done by the limits of the quantized type; the name of its output stays.
    """
    found = {}
    for name in names:
        if name not in suspect.producers or name not in reference.producers:
            continue
        made = _made_by(reference, name)
        readers = suspect.consumers.get(name, ())
        quantized = bool(readers) and all(suspect.nodes[at].op_type == "QuantizeLinear" for at in readers)
        if quantized and _operator(suspect.nodes[suspect.producers[name]]) == made[-1] != made[0]:
            found[name] = reference.nodes[reference.producers[name]].input[0]
    return found


def _operator(node: NodeProto) -> tuple[str, str]:
    return ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
