"""Folding, merging, pruning, sorting, naming: on every fixture that runs, on real models, and their refusals."""

from __future__ import annotations

from typing import Any

import pytest
from cases import cases
from engines import ENGINES

from onnxbench.graph import GraphIndex
from onnxbench.model import load
from onnxbench.operations import (
    DedupeNames,
    FoldConstants,
    InlineFunctions,
    MergeEqual,
    NameNodes,
    Operation,
    RemoveDead,
    Sort,
)
from onnxbench.surgery import edit

RUNNABLE = cases(lambda case: case.valid == "yes" and case.engine is not None and not case.is_external)
HARMLESS: list[Operation] = [
    FoldConstants(), MergeEqual(), RemoveDead(), Sort(), Sort(by="depth"), DedupeNames(), NameNodes(),
    NameNodes(pattern="n{position}_{op_type}", all=True),
]  # fmt: skip


def _run(case: Any, proto: Any) -> Any:
    return ENGINES[case.engine](proto, case.feeds())


@RUNNABLE
@pytest.mark.parametrize("operation", HARMLESS, ids=lambda each: f"{each.word}-{getattr(each, 'by', '')}")
def test_nothing_of_what_is_computed_changes(case, operation):
    model = load(case.path)
    done = edit(model, [operation], stamp=False).model
    assert _run(case, done.proto) == _run(case, case.whole())


@RUNNABLE
def test_inlined_functions_compute_the_same(case):
    model = load(case.path)
    index = GraphIndex(model.proto)
    calls = [ref for ref in index.nodes() if index.function_of(ref.node)]
    if not calls:
        return
    expected = _run(case, case.whole())
    assert _run(case, edit(model, [InlineFunctions()], stamp=False).model.proto) == expected
    for ref in calls:
        if not ref.scope.path or not ref.scope.is_function:
            made = f"{ref.scope.path}/{ref.node.output[0]}" if ref.scope.path else ref.node.output[0]
            done = edit(model, [InlineFunctions(at=f'"{made}"')], stamp=False).model
            assert _run(case, done.proto) == expected, ref.path
