"""Nodes as selectors, to be named again: in a file for ``--keep-fp32 @FILE``, and in a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxbench.errors import NotFoundError, UnsupportedError, UsageError
from onnxbench.select import nodes
from onnxbench.writer import write_whole

if TYPE_CHECKING:
    from pathlib import Path

    from onnxbench.graph import GraphIndex, NodeRef
    from onnxbench.tuning._result import Tuning


def node_selectors(index: GraphIndex, refs: Sequence[NodeRef]) -> list[str]:
    """Returns a selector for each node that names it and nothing else.

    Raises:
        UnsupportedError: There is none, since names hold every kind of quote or a line break.
    """
    return [_selector(index, ref) for ref in refs]


def _selector(index: GraphIndex, ref: NodeRef) -> str:
    place = ref.scope.path, ref.position
    for word in _spellings(ref):
        if "\n" in word or word != word.strip():
            continue
        try:
            found = nodes(index, [word])
        except (NotFoundError, UsageError):
            continue
        if [(each.scope.path, each.position) for each in found] == [place]:
            return word
    raise UnsupportedError(f"no selector names the node {ref.path!r} alone", hint="Give it a plain name.")


def _spellings(ref: NodeRef) -> list[str]:
    """Returns what may name a node, the best first: its name, a tensor that it makes, or its place among all nodes."""
    own = [f"node:{quote}{ref.path}{quote}" for quote in "\"'" if quote not in ref.path]
    words: list[str] = []
    for name in ref.scope.writes[ref.position]:
        path = f"{ref.scope.path}/{name}" if ref.scope.path else name
        words += [f"{quote}{path}{quote}" for quote in "\"'" if quote not in path]
    return [*own, *words] if ref.label == ref.node.name else [*words, *own]


def selector_file(path: Path, selectors: Sequence[str], found: Tuning) -> None:
    """Writes selectors to a file, one a line, under what they are for.

    Raises:
        OutputError: It cannot be written.
    """
    head = [f"# {found.model}, {found.to}: stay in float32 for {found.criterion}", f"# {found.verdict}"]
    text = "\n".join([*(line.replace("\n", " ") for line in head), *selectors])
    write_whole(path, [f"{text}\n".encode("utf-8", "surrogateescape")])
