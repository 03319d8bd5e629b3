"""How drift is printed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxbench.cli._render import console, table

if TYPE_CHECKING:
    from onnxbench.drift import DriftReport, TensorDrift


def print_drift(report: DriftReport) -> None:
    """Prints one row per tensor, what failed, and the verdict."""
    from onnxbench.drift import summarize

    measures = [">max abs", ">mean abs", ">p99 abs", ">max rel", ">max ULP", ">cosine", ">SQNR dB"]
    console().print(table(["compared", "verdict", *measures], [_row(drift) for drift in report.tensors]))
    for line in summarize(report):
        print(line)
    print(report.verdict)


def _row(drift: TensorDrift) -> tuple[str, ...]:
    verdict = "bit for bit" if drift.bitwise_equal else "passed" if drift.passed else "FAILED"
    return (
        drift.name,
        verdict,
        *(number(value) for value in (drift.max_abs, drift.mean_abs, drift.p99_abs, drift.max_rel)),
        "-" if drift.max_ulp is None else f"{drift.max_ulp:,}",
        *(number(value) for value in (drift.cosine, drift.sqnr_db)),
    )


def number(value: float | None) -> str:
    """Returns a number with six digits, or ``-``."""
    return "-" if value is None else f"{value:.6g}"
