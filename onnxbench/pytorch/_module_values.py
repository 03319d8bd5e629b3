"""The outputs of a model's modules, caught by forward hooks, for models that cannot be exported."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from onnxbench.captures import Value
from onnxbench.errors import ExecutionError
from onnxbench.provenance import Provenance
from onnxbench.pytorch import marks, require_torch
from onnxbench.pytorch._value_source import ROOT, Kind, TorchValue, TorchValues, running
from onnxbench.pytorch._verification import as_array
from onnxbench.pytorch.sources import Source

if TYPE_CHECKING:
    from collections.abc import Callable


class _Enough(BaseException):  # not an Exception: the model's own code may catch those
    """Ends a run of a model once all values that were asked for are known."""


class ModuleValues(TorchValues):
    """What the modules of a model return."""

    kind: Kind = "modules"

    def __init__(self, source: Source, notes: Sequence[str] = ()) -> None:
        super().__init__(source, notes)
        self.label = f"the modules of {source.spelling} in PyTorch"
        self._modules: dict[str, Any] = {ROOT: source.module}
        if source.kind == "module":
            self._modules = {path or ROOT: module for path, module in source.module.named_modules()}
        elif source.kind == "program":
            self._modules = {}
        self.values = self._describe()

    def _describe(self) -> dict[str, TorchValue]:
        """Runs the example inputs through the model, and returns what its modules gave."""
        found: dict[str, TorchValue] = {}
        made: dict[int, tuple[Any, int, str]] = {}  # tensors by identity: which value they were last

        def seen(tensor: Any) -> tuple[str, bool] | None:
            known = made.get(id(tensor))
            if known is None or known[0]() is not tensor:
                return None
            return known[2], known[1] == tensor._version

        def take(name: str, call: str, path: str, tensor: Any, given: Any) -> None:
            known = seen(tensor)
            inputs = [known[0] for each in _flat(given) if (known := seen(each[1])) is not None]
            parts = [] if path == ROOT else path.split(".")
            around = ["", *(".".join(parts[:end]) for end in range(1, len(parts) + 1))]
            scopes = [each for each in around if (each or ROOT) in self._modules]
            classes = [_class_name(self._modules[each or ROOT]) for each in scopes]
            number = call.rpartition("@")[2] if "@" in call else "0"
            origin = Provenance(
                "" if path == ROOT else path, tuple(scopes), tuple(classes), call=int(number), kind="module"
            )
            same = seen(tensor)
            found[name] = TorchValue(
                name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), origin,
                tuple(dict.fromkeys(inputs)), same[0] if same is not None and same[1] else None, (call,),
            )  # fmt: skip
            made[id(tensor)] = (weakref.ref(tensor), tensor._version, name)

        self._run([leaf.value for leaf in self._leaves], list(self._modules), take)
        return found

    def _run(self, given: Sequence[Any], paths: Sequence[str], take: Callable[[str, str, str, Any, Any], None]) -> None:
        """Runs the model, and hands over what modules return: name, call, path, tensor, arguments."""
        counts: dict[str, int] = {}
        handles = []

        def hand(path: str, result: Any, arguments: Any) -> None:
            number = counts[path] = counts.get(path, -1) + 1
            call = f"{path}@{number}" if number else path
            for key, tensor in _flat(result):
                take(f"{call}:{key}" if key else call, call, path, tensor, arguments)

        def hook(path: str) -> Callable[..., None]:
            def hear(_: Any, args: Any, kwargs: Any, result: Any) -> None:
                hand(path, result, (args, kwargs))

            return hear

        args, kwargs = self._filled(given)
        if self.source.kind == "module":
            handles = [
                self._modules[path].register_forward_hook(hook(path), with_kwargs=True)
                for path in paths
                if path != ROOT
            ]
        try:
            with running(self.source):
                result = self.source.call(args, kwargs)
                if ROOT in paths or self.source.kind == "program":
                    hand(ROOT, result, (args, kwargs))
        except _Enough:
            pass
        finally:
            for each in handles:
                each.remove()

    def _stream(self, given: Sequence[Any], batches: Sequence[Sequence[str]]) -> Iterator[dict[str, Value]]:
        for batch in batches:
            caught = self._caught(given, set(batch))
            missing = [name for name in batch if name not in caught]
            if missing:
                raise ExecutionError(
                    f"on these inputs PyTorch computes no {missing[0]!r}",
                    hint="The model went another way than on its example inputs.",
                )
            yield {name: caught[name] for name in batch}

    def _caught(self, given: Sequence[Any], wanted: set[str]) -> dict[str, Value]:
        """Returns what modules give under these names in a run up to the last of them, or to the end."""
        caught: dict[str, Value] = {}

        def take(name: str, call: str, path: str, tensor: Any, arguments: Any) -> None:
            if name in wanted:
                caught[name] = as_array(tensor.clone())
                if len(caught) == len(wanted):
                    raise _Enough

        if wanted:
            paths = {self.values[name].origin.scope or ROOT for name in wanted}
            self._run(given, sorted(paths), take)
        return caught


def _flat(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields the tensors of a structure, each with the keys that lead to it, joined by dots."""
    torch = require_torch()
    pending: list[tuple[str, Any]] = [("", value)]
    while pending:
        key, each = pending.pop()
        if isinstance(each, torch.Tensor):
            yield key, each
            continue
        parts = marks.parts_of(each) or ()
        pending.extend((f"{key}.{name}" if key else str(name), part) for name, part in reversed(parts))


def _class_name(module: Any) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
