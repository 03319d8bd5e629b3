"""ONNX Runtime's static quantizer behind the seam, kept from writing beside what it is given and from talking."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from onnxbench.captures import Feeds
from onnxbench.errors import BenchError, ExecutionError

_FATAL, _WARNING = 4, 2
"""Severities of the runtime's own log; the second is what it has by itself."""
_METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}


def quantize(
    model: Path,
    target: Path,
    sets: Iterable[Feeds],
    *,
    operators: Sequence[str],
    exclude: Sequence[str],
    external: bool,
    form: str,
    method: str,
    percentile: float | None,
    per_channel: bool,
) -> None:
    """Writes a model with QuantizeLinear and DequantizeLinear around operators (arguments: ``onnxbench.backends``).

    Raises:
        ExecutionError: ONNX Runtime's quantizer fails.
        BenchError: As ``sets`` raises it, which is read in there.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is not typed
        def __init__(self) -> None:
            self._sets = iter(sets)

        def get_next(self) -> Any:
            return next(self._sets, None)

    with quiet():
        try:
            quantize_static(
                model, target, Reader() if method == "minmax" else kept_reader(sets), quant_format=QuantFormat.QDQ,
                per_channel=per_channel,
                calibrate_method=CalibrationMethod[_METHODS[method]],
                activation_type=QuantType.QInt8 if form == "tensorrt" else QuantType.QUInt8,
                weight_type=QuantType.QInt8, op_types_to_quantize=list(operators),
                nodes_to_exclude=list(exclude), use_external_data_format=external,
                extra_options={
                    "MatMulConstBOnly": True, "QDQKeepRemovableActivations": True,
                    **({} if method == "minmax" else {"CalibStridedMinMax": 1}),
                    **(_symmetric(operators) if form == "tensorrt" else {}),
                    **({} if percentile is None else {"CalibPercentile": percentile}),
                },
            )  # fmt: skip
        except BenchError:
            raise
        except Exception as error:  # the seam: a tool in Python that raises anything
            raise ExecutionError(f"ONNX Runtime's quantizer fails: {first_line(error)}") from None


def kept_reader(sets: Iterable[Feeds]) -> Any:
    """Returns sets of inputs as quantizers read them more than once, or one at a time.

    Histograms want the latter: the quantizer holds all tensors of what it is given at once.
    """
    from onnxruntime.quantization import CalibrationDataReader

    class Kept(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is not typed
        def __init__(self) -> None:
            self._kept = sets if isinstance(sets, Sequence) else list(sets)
            self.rewind()

        def __len__(self) -> int:
            return len(self._kept)

        def set_range(self, start_index: int, end_index: int) -> None:
            self._next = (self._kept[at] for at in range(start_index, min(end_index, len(self._kept))))

        def get_next(self) -> Any:
            return next(self._next, None)

        def get_first(self) -> Any:
            return self._kept[0]

        def rewind(self) -> None:
            self.set_range(0, len(self._kept))

    return Kept()


def first_line(error: Exception) -> str:
    """Returns the first thing that an error says, or what it is called."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:400]


def _symmetric(operators: Sequence[str]) -> dict[str, Any]:
    return {
        "ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": list(operators),
    }  # fmt: skip


def quantizable_operators() -> tuple[str, ...]:
    """Returns the types of operators that the quantizer takes, sorted."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return tuple(sorted({*QDQRegistry, *QLinearOpsRegistry}))


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps a quantizer from printing, and from logging to the root logger, which would set that up for the process."""
    import onnxruntime

    root = logging.getLogger()
    handlers, disabled = root.handlers[:], logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)
        logging.disable(disabled)
        root.handlers[:] = handlers
