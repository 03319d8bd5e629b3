"""Splits a model and merges the pieces again: what comes back has to be the model."""

from __future__ import annotations

from collections.abc import Sequence

from onnxbench.cut import Piece, assemble
from onnxbench.graph import GraphIndex
from onnxbench.inference import TypeFinder
from onnxbench.merging import Merged, MergeOptions, merge
from onnxbench.model import Model
from onnxbench.partition import Partition


def pieces_of(model: Model, index: GraphIndex, partition: Partition) -> list[Piece]:
    """Returns the pieces of a partition, as ``split`` writes them."""
    finder = TypeFinder(model, index)
    return [assemble(model, index, index.main, planned.cut, finder=finder) for planned in partition.pieces]


def rejoin(pieces: Sequence[Piece], wanted: Sequence[str]) -> list[Merged]:
    """Merges pieces one after the other; inputs of a piece come from what is there, outputs or inputs.

    Args:
        pieces: The pieces in the order in which they run.
        wanted: The outputs of the whole, which stay outputs.

    Returns:
        Every step; the last one is the whole.
    """
    steps: list[Merged] = []
    whole = pieces[0].model
    for number, piece in enumerate(pieces[1:], start=1):
        later = {boundary.name for one in pieces[number + 1 :] for boundary in one.inputs} | set(wanted)
        there = [*(info.name for info in whole.proto.graph.output), *(info.name for info in whole.proto.graph.input)]
        links = {boundary.name: boundary.name for boundary in piece.inputs if boundary.name in there}
        kept = [info.name for info in whole.proto.graph.output if info.name in later]
        steps.append(merge(whole, piece.model, links, options=MergeOptions(keep_outputs=kept)))
        whole = steps[-1].model
    return steps
