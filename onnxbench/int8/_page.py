"""The report of ``onnxbench quantize``: nodes with their errors, weights and activations, and what a search found."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from onnxbench.envelope import envelope
from onnxbench.int8._measures import TensorError
from onnxbench.int8._result import OutputError, Quantization
from onnxbench.reporting import (
    Block,
    Column,
    Facts,
    Number,
    Page,
    Prose,
    Section,
    Table,
    heat_of,
    write_report,
)
from onnxbench.tuning import Candidate, frontier_chart
from onnxbench.version import __version__

COMMAND = "quantize"
_NODES = "nodes"
_HOTTEST = 9
_NODE_COLUMNS = (
    Column("Node"),
    Column("Operator"),
    Column("Stays"),
    Column("Own error", "number", "in int8, on the values of the float model: 0 to 1"),
    Column("Gain", "number", "what becomes of an error of its outputs at the outputs of the model"),
    Column("Effect", "number", "own error times gain: the estimated error at the outputs"),
    Column("Reads", "rows", is_detail=True),
)
_EFFECT = 5
_TENSOR_COLUMNS = (
    Column("Tensor"),
    Column("Type"),
    Column("Scales", "number"),
    Column("Smallest", "number"),
    Column("Largest", "number"),
    Column("SQNR, dB", "number", "signal to quantization noise"),
    Column("Largest difference", "number"),
    Column("Clipped", "number", "the share of elements beyond what the scale reaches"),
)


def write_quantization(folder: str | os.PathLike[str], found: Quantization) -> tuple[Path, ...]:
    """Writes a quantization as a report, as a whole or not at all, and returns its files.

    Args:
        folder: Where: a new folder, an empty one, or one with an earlier report of this kind, which is replaced.
        found: What was made and measured.

    Raises:
        MissingDependencyError: A package is missing that reports are made with (``onnxbench[report]``).
        OutputError: The folder holds something else, or cannot be written.
    """
    return write_report(folder, _page(found), envelope(COMMAND, result=found))


def _page(found: Quantization) -> Page:
    return Page(
        title=f"onnxbench quantize: {found.source} in int8",
        verdict=found.verdict,
        passed=found.passed,
        subject=_NODES,
        facts=Facts(list(_summary(found))),
        sections=[section for section in _sections(found) if section.blocks],
        footer=f"Written by onnxbench {__version__}. report.json beside this page holds everything that was measured.",
    )


def _summary(found: Quantization) -> Iterator[tuple[str, str]]:
    yield "Model", found.source
    yield "For", {"tensorrt": "TensorRT", "onnxruntime": "ONNX Runtime"}[found.target]
    yield "Quantizer", f"{found.quantizer}, {found.method}, {'per channel' if found.per_channel else 'per tensor'}"
    yield "Calibrated with", f"{found.samples:,} samples"
    yield "In int8", f"{len(found.nodes) - len(found.kept):,} of {len(found.nodes):,} nodes"
    if found.search is not None:
        yield "Tolerance", found.search.criterion
        yield "All in int8", found.search.plain.text
        yield "Tried", f"{found.search.sets:,} sets, {found.search.runs:,} runs of the model"
        yield "Ended", found.search.ended


def _sections(found: Quantization) -> Iterator[Section]:
    rows = {each.node: at for at, each in enumerate(found.nodes)}
    yield Section("outputs", "Outputs, against float", [_outputs(found.outputs)])
    if found.kept:
        yield Section("kept", "Left in float", [_kept(found.kept, rows)])
    if found.search is not None and found.search.frontier:
        yield Section(
            "frontier", "Nodes left in float against error", [frontier_chart(found.search)],
            "Every set that was tried and than which no smaller one had a smaller error.",
        )  # fmt: skip
    yield Section(_NODES, "Nodes that can be in int8", [_nodes(found.nodes, rows)], "A click on a row shows all of it.")
    for name, title, errors in (
        ("activations", "Activations", found.activations), ("weights", "Weights", found.weights)
    ):  # fmt: skip
        yield Section(name, title, [_tensors(name, errors)] if errors else [])
    lines = [*found.warnings(), *(f"chosen: {choice}" for choice in found.choices)]
    notes: list[Block] = [Prose(lines, is_list=True)] if lines else []
    yield Section("notes", "Notes", notes)


def _outputs(outputs: Sequence[OutputError]) -> Table:
    columns = (Column("Output"), Column("SQNR, dB", "number"), Column("Largest difference", "number"),
               Column("Cosine", "number"), Column("Worst sample", "number"), Column("Note"))  # fmt: skip
    cells = [
        (each.output, _decibels(each.sqnr_db), _plain(each.max_abs), _plain(each.cosine), _plain(each.sample),
         each.reason)
        for each in outputs
    ]  # fmt: skip
    return Table("outputs", columns, cells)


def _kept(kept: Sequence[Candidate], rows: dict[str, int]) -> Table:
    columns = (Column("Node", "rows"), Column("Operator"), Column("Own error", "number"), Column("Effect", "number"))
    cells = [(((rows[each.node], each.node),), each.op_type, _error(each.own), _error(each.effect)) for each in kept]
    return Table("kept", columns, cells)


def _nodes(nodes: Sequence[Candidate], rows: dict[str, int]) -> Table:
    cells = [
        (each.node, each.op_type, "float" if each.kept else "", _error(each.own), _plain(each.gain),
         _error(each.effect), tuple((rows[name], name) for name in each.inputs))
        for each in nodes
    ]  # fmt: skip
    return Table(_NODES, _NODE_COLUMNS, cells, sort_by=_EFFECT, opens=True)


def _tensors(name: str, errors: Sequence[TensorError]) -> Table:
    cells = [
        (each.tensor, each.dtype, _plain(each.channels), _plain(each.smallest), _plain(each.largest),
         _decibels(each.sqnr_db), _plain(each.max_abs), Number(each.clipped, f"{each.clipped:.2%}"))
        for each in errors
    ]  # fmt: skip
    return Table(name, _TENSOR_COLUMNS, cells)


def _error(value: float | None) -> Number:
    if value is None:
        return Number(None, "-")
    heat = _HOTTEST if math.isinf(value) else heat_of(value, cold=1e-4, hot=1.0)
    return Number(value, "not finite" if math.isinf(value) else f"{value:.1e}" if value else "0", heat)


def _decibels(value: float | None) -> Number:
    if value is None:
        return Number(None, "-")
    if math.isinf(value):
        return Number(value, "no difference" if value > 0 else "no signal")
    return Number(value, f"{value:.1f}", heat_of(10 ** (-value / 20), cold=1e-3, hot=1.0))


def _plain(value: float | None) -> Number:
    return Number(value, "-" if value is None else f"{value:.4g}")
