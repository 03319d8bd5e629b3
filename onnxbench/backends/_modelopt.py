"""NVIDIA's quantizer (modelopt) behind the seam: int8 as TensorRT wants it, calibrated in ONNX Runtime on the CPU."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from onnxbench.backends._quantizer import first_line, kept_reader, quiet
from onnxbench.captures import Feeds
from onnxbench.errors import BenchError, ExecutionError

_METHODS = {"minmax": "max", "entropy": "entropy"}


def quantize(
    model: Path,
    target: Path,
    sets: Iterable[Feeds],
    *,
    operators: Sequence[str],
    exclude: Sequence[str],
    external: bool,
    method: str,
) -> None:
    """Writes a model with QuantizeLinear and DequantizeLinear around operators (arguments: ``onnxbench.backends``).

    Raises:
        ExecutionError: modelopt fails.
        BenchError: As ``sets`` raises it, which is read in there.
    """
    with quiet():
        try:
            from modelopt.onnx.quantization import quantize as modelopt_quantize

            modelopt_quantize(
                str(model), quantize_mode="int8", calibration_data_reader=kept_reader(sets),
                calibration_method=_METHODS[method], calibration_eps=["cpu"], high_precision_dtype="fp32", dq_only=True,
                op_types_to_quantize=list(operators), nodes_to_exclude=[re.escape(name) for name in exclude],
                use_external_data_format=external, output_path=str(target), log_level="ERROR",
            )  # fmt: skip
        except BenchError:
            raise
        except Exception as error:  # the seam: a tool in Python that raises anything
            raise ExecutionError(f"modelopt fails: {first_line(error)}") from None
