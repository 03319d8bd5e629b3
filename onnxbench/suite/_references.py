"""What is right: the outputs that a model should give, set by set, computed once and kept in files between cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING

from onnxbench import backends
from onnxbench.bisection import as_dtype, parse_place, recorded_reference
from onnxbench.captures import Capture, CaptureWriter, Feeds, Port, Value, input_ports
from onnxbench.errors import BenchError, ExecutionError, FeedsError
from onnxbench.feeding import FeedOptions, feed_sets
from onnxbench.model import Model, load

if TYPE_CHECKING:
    from onnxbench.suite._file import ReferenceKind

Expected = tuple[Feeds, Mapping[str, Value]]
"""A set of inputs, and the outputs that are right for them, in order."""


class References:
    """What is right for one model, by what says so.

    Args:
        model: The model as it is in its file.
        said: What is said of its inputs.
        folder: Where values are kept.
        options: How sessions are set up where nothing else is said: custom operators, time limits.
        allow_outside: Follow external data of other models that leaves their folder.
    """

    def __init__(
        self, model: Model, said: FeedOptions, folder: Path, options: backends.Options, *, allow_outside: bool
    ) -> None:
        self._model, self._said, self._folder, self._options = model, said, folder, options
        self._allow_outside = allow_outside
        self._ports = input_ports(model.proto.graph)
        self._known: dict[tuple[str, str], list[Path] | BenchError] = {}

    def expected(self, kind: ReferenceKind, word: str) -> Iterator[Expected]:
        """Yields sets of inputs with the outputs that are right, one at a time.

        Raises:
            BenchError: The reference cannot be had; the same one each time.
        """
        if kind == "recorded":
            yield from self._recorded(word)
            return
        if (kind, word) not in self._known:
            try:
                self._known[kind, word] = self._compute(kind, word)
            except BenchError as error:
                self._known[kind, word] = error
        found = self._known[kind, word]
        if isinstance(found, BenchError):
            raise found
        for at in range(0, len(found), 2):
            with Capture(found[at]) as feeds, Capture(found[at + 1]) as values:
                yield dict(feeds), values

    def _compute(self, kind: ReferenceKind, word: str) -> list[Path]:
        """Returns the files with inputs and outputs, in turn, of what computes the outputs that are right."""
        files: list[Path] = []
        sets = self._of_torch(word) if kind == "torch" else self._of_model(kind, word)
        for feeds, values in sets:
            for part in (feeds, values):
                files.append(self._folder / f"{len(self._known)}-{len(files)}.npz")
                with CaptureWriter(files[-1]) as out:
                    for name, value in part.items():
                        out.write(name, value)
        return files

    def _of_model(self, kind: ReferenceKind, word: str) -> Iterator[Expected]:
        """Yields what a model gives: this one in another place, or another one without optimizations."""
        place = parse_place(
            word if kind == "place" else "ort:none", level="none", options=self._options, what="against:"
        )
        model = load(word, allow_outside=self._allow_outside) if kind == "model" else self._model
        session = backends.open_session(model, place.backend, options=place.options)
        try:
            for each in feed_sets(self._model, self._said):
                try:
                    values = session.run(fitted(each.feeds, session.inputs))
                except ExecutionError as error:
                    if each.choices:
                        error.details = (*error.details, "The inputs were drawn, and this was chosen:", *each.choices)
                        error.hint = error.hint or "shapes, dims and ranges of the model in the suite say how to draw."
                    raise
                yield each.feeds, values
        finally:
            session.close()

    def _of_torch(self, word: str) -> Iterator[Expected]:
        """Yields what a PyTorch model returns: for its example inputs and others like them, if no inputs are told."""
        from onnxbench.pytorch.sources import load_source, with_inputs
        from onnxbench.pytorch.values import similar_inputs, torch_values

        source = load_source(word)
        if self._said.shapes and not source.has_inputs:
            source = with_inputs(source, self._said.shapes)
        model = torch_values(source, model=self._model, how="modules")
        names = [info.name for info in self._model.proto.graph.output]
        examples = model.examples()
        drawn = (similar_inputs(examples, number) for number in islice(count(), self._said.iterations or 1))
        told = (each.feeds for each in feed_sets(self._model, self._said))
        for feeds in drawn if self._said.says_nothing else told:
            made = model.returned(feeds)
            if len(made) != len(names):
                raise FeedsError(f"{word} returns {len(made)} tensors, and the model has {len(names)} outputs")
            yield feeds, dict(zip(names, made, strict=True))

    def _recorded(self, word: str) -> Iterator[Expected]:
        """Yields recorded outputs, with the inputs that are recorded beside them where no others are told."""
        reference = recorded_reference(self._model, [word])
        outputs = [info.name for info in self._model.proto.graph.output]
        own = reference.feeds(self._ports) if self._said.says_nothing else []
        sets = iter(own) if own else (each.feeds for each in feed_sets(self._model, self._said))
        number = 0
        for number, feeds in enumerate(sets, start=1):
            if number > len(reference.recorded):
                raise FeedsError(f"there are more sets of inputs than recorded sets of outputs, which are {number - 1}")
            values = reference.recorded[number - 1]
            known = {name: values[name] for name in outputs if name in values}
            if not known:
                raise FeedsError(f"{word} has no output of the model", details=[f"outputs: {', '.join(outputs)}"])
            yield feeds, known
        if number < len(reference.recorded):
            raise FeedsError(f"{word} has {len(reference.recorded)} sets of outputs, and there are inputs for {number}")


def fitted(feeds: Mapping[str, Value], ports: Sequence[Port]) -> Feeds:
    """Returns a model's inputs as those of another form of it, in its floating types (see ``paired``).

    Raises:
        FeedsError: They have other names, and are not as many.
    """
    wanted = {port.name: port for port in ports if port.required or port.name in feeds}
    pairs = paired(list(wanted), list(feeds), "inputs")
    return {name: as_dtype(feeds[given], wanted[name].dtype) for name, given in pairs.items()}


def paired(wanted: Sequence[str], given: Sequence[str], what: str) -> dict[str, str]:
    """Returns which of the given names each of the wanted ones is: the same, or what is left, in order.

    Raises:
        FeedsError: Names are left on both sides, or on the wanted one, and are not as many.
    """
    known = set(given)
    left = [name for name in given if name not in set(wanted)]
    others = [name for name in wanted if name not in known]
    if others and len(others) != len(left):
        raise FeedsError(
            f"the {what} are called otherwise, and are not as many: {', '.join(others)}",
            details=[f"on the other side: {', '.join(left) or 'none'}"],
        )
    renamed = dict(zip(others, left, strict=True)) if others else {}
    return {name: renamed.get(name, name) for name in wanted}
