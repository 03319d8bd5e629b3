"""The values of weights in the new type: each weight read once, in blocks, with an account of what does not fit.

Large weights go from file to file block by block; thousands of small ones are converted as one array.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from onnxbench import backends
from onnxbench.conversion import Loss, convert, packed
from onnxbench.messages import copy_of
from onnxbench.model import Model, from_proto
from onnxbench.tensortype import raw_size
from onnxbench.weighing import BLOCK, blocks
from onnxbench.weights import ByteRange, clear_data, is_outside

if TYPE_CHECKING:
    import numpy as np
    from onnx import TensorProto

    from onnxbench.backends import Session
    from onnxbench.errors import BenchError

_T = TypeVar("_T")
_Block = TypeVar("_Block")
_FLOAT32 = 1
_FLOAT16 = 10
_HEAVY = 256 << 20
"""From so many bytes of weights on ONNX Runtime rounds them to float16: as NumPy does, ten times as fast."""
_SMALL = 4096
"""Weights of at most this many bytes in the structure are converted together."""
_THREADS = 2
"""What converts the blocks of a large weight: NumPy lets go of the interpreter's lock, and writing has to wait."""


@dataclass(slots=True)
class Account:
    """What became of the values of a weight.

    Attributes:
        elements: How many there are.
        nonzero: How many were not zero.
        overflows: How many lie beyond the type.
        vanished: How many were not zero and are.
        largest: The largest magnitude among the overflows.
    """

    elements: int = 0
    nonzero: int = 0
    overflows: int = 0
    vanished: int = 0
    largest: float = 0.0

    @property
    def is_lost(self) -> bool:
        """Whether a value does not fit, or all that the weight says is gone."""
        return self.overflows > 0 or (self.vanished > 0 and self.vanished == self.nonzero)

    def add(self, other: Account) -> None:
        """Takes in what became of more values."""
        self.elements += other.elements
        self.nonzero += other.nonzero
        self.overflows += other.overflows
        self.vanished += other.vanished
        self.largest = max(self.largest, other.largest)


class Converter:
    """Converts the weights of a model to one element type.

    Args:
        model: The model; new large weights are stored in its scratch file.
        to: The element type.
        clamp: Values that do not fit become the nearest that the type has.
        defers: Large weights outside the structure are converted when they are written, and only then is known what
            became of them: what does not fit is refused there.

    Attributes:
        refuse: Returns the error with which that is done.
    """

    def __init__(self, model: Model, to: int, *, clamp: bool, defers: bool = False) -> None:
        from onnx import helper

        self._model = model
        self._to = to
        self._clamp = clamp
        self._defers = defers
        self.refuse: Callable[[], BenchError] | None = None
        self._dtype = helper.tensor_dtype_to_np_dtype(to)
        self._by_range: dict[tuple[ByteRange, int], tuple[ByteRange, Account]] = {}
        self._done: dict[int, tuple[TensorProto, TensorProto, Account]] = {}
        self._halves: Session | None = None

    def prepare(self, tensors: list[TensorProto]) -> None:
        """Converts those of these weights together that are small and in the structure; gets ready for the others."""
        import numpy as np

        weight = sum(raw_size(tensor.dims, _FLOAT32) for tensor in tensors if tensor.data_type == _FLOAT32)
        if self._to == _FLOAT16 and weight >= _HEAVY and self._halves is None:
            self._halves = _open_halves()
        small = [
            tensor for tensor in tensors
            if tensor.data_type == _FLOAT32 and not is_outside(tensor) and id(tensor) not in self._done
            and (0 < len(tensor.raw_data) <= _SMALL or 0 < len(tensor.float_data) <= _SMALL // 4)
        ]  # fmt: skip
        if not small:
            return
        data = [tensor.raw_data or np.array(tensor.float_data, "<f4").tobytes() for tensor in small]
        if any(len(each) != raw_size(tensor.dims, _FLOAT32) for each, tensor in zip(data, small, strict=True)):
            return
        values = np.frombuffer(b"".join(data), "<f4")
        made, account = self._rounded(values)
        if account.overflows:  # rare, and told of one by one
            return
        ends = np.cumsum([len(each) // 4 for each in data])
        starts = np.concatenate(([0], ends[:-1]))
        nonzero = np.add.reduceat(values != 0, starts, dtype=np.int64).tolist()
        still = np.add.reduceat(made.astype(np.float32) != 0, starts, dtype=np.int64).tolist()
        bits, size = packed(made), self._dtype.itemsize
        for tensor, start, end, before, after in zip(
            small, starts.tolist(), ends.tolist(), nonzero, still, strict=True
        ):
            new = type(tensor)(data_type=self._to, dims=tensor.dims, raw_data=bits[start * size : end * size])
            told = Account(end - start, before, 0, before - after)
            if not told.is_lost:
                self._done[id(tensor)] = tensor, new, told

    def converted(self, tensor: TensorProto) -> tuple[TensorProto, Account]:
        """Returns a tensor of the new type with a weight's values, without a name, and what became of them."""
        held = self._done.get(id(tensor))
        if held is not None:
            return held[1], held[2]
        where = self._model.place(tensor)
        known = self._by_range.get((where, tensor.data_type)) if where is not None else None
        new = type(tensor)(data_type=self._to, dims=tensor.dims)
        if known is not None:
            self._model.refer(new, known[0])
            account = known[1]
        else:
            account = Account()
            size = raw_size(tensor.dims, self._to)
            if self._defers and where is not None:
                self._model.promise(new, partial(self._deferred, copy_of(tensor), account), size)
            else:
                self._model.store(new, self._blocks(tensor, account), size)
            if self._clamp and account.is_lost and not account.overflows:
                clear_data(new)
                self._model.store(new, self._kept_from_zero(tensor), size)
            now = self._model.place(new)
            if where is not None and now is not None:
                self._by_range[where, tensor.data_type] = now, account
        self._done[id(tensor)] = tensor, new, account
        return new, account

    def look_at(self, tensor: TensorProto) -> Account:
        """Returns what would become of a weight."""
        account = Account()
        for _ in self._blocks(tensor, account):
            pass
        return account

    def _deferred(self, tensor: TensorProto, account: Account) -> Iterator[bytes]:
        fresh = Account()
        yield from self._blocks(tensor, fresh)
        if not account.elements:
            account.add(fresh)
        if account.is_lost and self.refuse is not None:
            raise self.refuse()

    def _blocks(self, tensor: TensorProto, account: Account) -> Iterator[bytes]:
        parts = blocks(self._model, tensor)
        is_large = raw_size(tensor.dims, _FLOAT32) > 4 * BLOCK
        for made, told in _ahead(self._rounded, parts) if is_large else map(self._rounded, parts):
            account.add(told)
            yield packed(made)

    def _rounded(self, block: np.ndarray) -> tuple[np.ndarray, Account]:
        """Returns values in the new type, and what became of them."""
        import numpy as np

        nonzero = _nonzero(block)
        if block.dtype.itemsize <= 4 and block.size:  # float32 holds it, and from there it is rounded once
            wide: Any = block.astype(np.float32, copy=False)
            top = _largest(self._dtype)
            if float(wide.max()) <= top and float(wide.min()) >= -top:  # so no NaN either
                if self._halves is not None and block.size == BLOCK:
                    made = self._halves.run({"x": wide})["y"]
                else:
                    made = wide.astype(self._dtype)
                return made, Account(block.size, nonzero, 0, nonzero - _nonzero(made))
        loss = Loss()
        made = convert(block, self._to, loss, clamp=self._clamp)
        return made, Account(block.size, nonzero, loss.overflows, loss.underflows, loss.largest)

    def _kept_from_zero(self, tensor: TensorProto) -> Iterator[bytes]:
        """Yields a weight that would vanish with the smallest values that the type has in place of it."""
        import numpy as np

        smallest = float(float_info(self._dtype).smallest_subnormal)
        for block in blocks(self._model, tensor):
            wide = block.astype(np.float64)
            made = np.where(wide == 0, wide, np.copysign(smallest, wide)).astype(self._dtype)
            yield packed(made)


def _open_halves() -> Session:
    """Returns a session that makes float16 ``y`` of float32 ``x``, both flat."""
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT16)], "halves",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n"])],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return backends.open_session(from_proto(proto), options=backends.Options(threads=1))


def _ahead(function: Callable[[_Block], _T], blocks: Iterable[_Block]) -> Iterator[_T]:
    """Yields what a function makes of blocks, in order, worked out by threads while what came before is used."""
    from concurrent.futures import Future, ThreadPoolExecutor

    with ThreadPoolExecutor(_THREADS) as pool:
        pending: deque[Future[_T]] = deque()
        for block in blocks:
            pending.append(pool.submit(function, block))
            if len(pending) > _THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _nonzero(values: np.ndarray) -> int:
    """Returns how many values are not 0; NumPy's own count takes a slow path for floats of 16 bits."""
    import numpy as np

    if values.dtype.itemsize == 2:  # all but the sign
        return int(np.count_nonzero(values.view(np.uint16) & 0x7FFF))
    return int(np.count_nonzero(values != 0))


def put(target: TensorProto, new: TensorProto) -> None:
    """Gives a tensor the type and data of another; its name, documentation and metadata stay."""
    clear_data(target)
    name, target.data_type = target.name, new.data_type
    held = copy_of(new)
    held.ClearField("dims")
    target.MergeFrom(held)
    target.name = name


def _largest(dtype: np.dtype[Any]) -> float:
    return float(float_info(dtype).max)


def float_info(dtype: np.dtype[Any]) -> Any:
    """Returns what NumPy's finfo says of a floating-point type, bfloat16 and the like included."""
    import ml_dtypes

    finfo: Any = ml_dtypes.finfo
    return finfo(dtype)
