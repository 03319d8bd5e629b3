"""An exported file run in ONNX Runtime beside the PyTorch model, on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxbench import backends
from onnxbench.drift import DriftReport, Tolerance, compare_all
from onnxbench.errors import ExecutionError
from onnxbench.pytorch import require_torch
from onnxbench.pytorch._dynamic import Axes, resized
from onnxbench.pytorch.sources import Leaf, Source

if TYPE_CHECKING:
    from onnxbench.model import Model


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison of the file with PyTorch.

    Attributes:
        name: ``example inputs``, or the other sizes: ``batch=3``.
        drift: How the outputs compare; None where one of the two did not run.
        reason: Why there is no comparison; empty where there is one.
        passed: Whether the outputs agree. A size that PyTorch itself refuses fails nothing.
    """

    name: str
    drift: DriftReport | None
    reason: str = ""
    passed: bool = True


class Verifier:
    """Runs both on the example inputs, and on others where sizes are open.

    Args:
        source: The PyTorch model.
        leaves: Its example inputs one by one.
        inputs: For each input of the file, the leaf that it is.
        dynamic: The open dimensions by input.
        sizes: The size of each symbol in the example inputs.
        tolerance: What is allowed; None: by element type.
        operators: Custom operators that the file has.
    """

    def __init__(
        self,
        source: Source,
        leaves: Sequence[Leaf],
        inputs: Sequence[int],
        dynamic: Mapping[str, Axes],
        sizes: Mapping[str, int],
        tolerance: Tolerance | None,
        operators: Sequence[backends.Operator] = (),
    ) -> None:
        self._options = backends.Options("none", operators=tuple(operators))
        self._source = source
        self._leaves = leaves
        self._inputs = inputs
        self._dynamic = dynamic
        self._sizes = sizes
        self._tolerance = tolerance

    def run(self, model: Model) -> list[Case]:
        """Returns how the model compares, case by case.

        Raises:
            ExecutionError: PyTorch or ONNX Runtime does not run the model on the example inputs.
        """
        try:
            session = backends.open_session(model, options=self._options)
        except ExecutionError as error:
            error.hint = "The file was not written; --no-verify writes it all the same."
            raise
        try:
            cases = [self._case(session, "example inputs", [leaf.value for leaf in self._leaves])]
            if self._sizes:
                cases.append(self._other_sizes(session))
        finally:
            session.close()
        return cases

    def _other_sizes(self, session: backends.Session) -> Case:
        """Compares at other sizes than the example's: the first of a few that PyTorch itself takes."""
        refused = ""
        for factor, more in ((1, 1), (2, 0), (1, 8), (3, 0)):
            sizes = {symbol: factor * size + more for symbol, size in self._sizes.items()}
            name = ", ".join(f"{symbol}={size}" for symbol, size in sizes.items())
            values = resized(self._leaves, self._dynamic, sizes)
            try:
                expected = self._expected(values)
            except ExecutionError as error:
                refused = refused or f"PyTorch itself does not run at {name}: {error.message}"
                continue
            try:
                return self._compare(session, name, values, expected)
            except ExecutionError as error:
                return Case(name, None, f"ONNX Runtime fails at {name}: {error.message}", passed=False)
        return Case("other sizes", None, refused)

    def _case(self, session: backends.Session, name: str, values: Sequence[Any]) -> Case:
        return self._compare(session, name, values, self._expected(values))

    def _expected(self, values: Sequence[Any]) -> list[Any]:
        """Returns the tensors that PyTorch computes, in order."""
        from torch.utils import _pytree as pytree

        flat, spec = pytree.tree_flatten((self._source.args, dict(self._source.kwargs)))
        given = iter(values)
        filled = [value if value is None else _copied(next(given)) for value in flat]
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return _tensors(self._source.call(args, kwargs))

    def _compare(self, session: backends.Session, name: str, values: Sequence[Any], expected: list[Any]) -> Case:
        feeds = {port.name: as_array(values[at]) for port, at in zip(session.inputs, self._inputs, strict=True)}
        actual = session.run(feeds)
        names = [port.name for port in session.outputs]
        if len(names) != len(expected):
            reason = f"the file has {len(names)} outputs, and PyTorch gives {len(expected)} tensors"
            return Case(name, None, reason, passed=False)
        wanted = {each: as_array(value) for each, value in zip(names, expected, strict=True)}
        drift = compare_all(wanted, actual, tolerance=self._tolerance)
        return Case(name, drift, passed=drift.passed)


def _tensors(result: Any) -> list[Any]:
    """Returns the tensors in what a module returned, in order."""
    from torch.utils import _pytree as pytree

    torch = require_torch()
    return [each for each in pytree.tree_leaves(result) if isinstance(each, torch.Tensor)]


def tensors_of(result: Any) -> list[Any]:
    """Returns the tensors in what a module returned, in order, as numpy arrays."""
    return [as_array(each) for each in _tensors(result)]


def _copied(value: Any) -> Any:
    return value.detach().clone() if hasattr(value, "detach") else value


def as_array(tensor: Any) -> Any:
    """Returns a tensor as a numpy array, of ``ml_dtypes`` where numpy has no such element type."""
    import ml_dtypes

    torch = require_torch()
    if not isinstance(tensor, torch.Tensor):
        tensor = torch.as_tensor(tensor)
    tensor = tensor.detach().cpu().contiguous()
    narrow = {
        torch.bfloat16: (torch.int16, "bfloat16"),
        torch.float8_e4m3fn: (torch.int8, "float8_e4m3fn"),
        torch.float8_e5m2: (torch.int8, "float8_e5m2"),
    }
    if tensor.dtype in narrow:
        plain, name = narrow[tensor.dtype]
        return tensor.view(plain).numpy().view(getattr(ml_dtypes, name))
    return tensor.resolve_conj().resolve_neg().numpy()
