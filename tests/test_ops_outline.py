"""Outlining: functions made of nodes, on every fixture that runs, on real models, and its refusals."""

from __future__ import annotations

import random
from typing import Any

import onnx
import pytest
from cases import cases, named
from corpus import fetch
from engines import ENGINES, bits, run_ort

from onnxbench import backends
from onnxbench.errors import BenchError, NotFoundError, RefusedResultError, UnsupportedError, UsageError
from onnxbench.graph import GraphIndex, Scope
from onnxbench.inlining import inline_functions
from onnxbench.model import Model, from_proto, load
from onnxbench.modeltext import parse
from onnxbench.operations import Outline
from onnxbench.provenance import CLASS_HIERARCHY, NAME_SCOPES
from onnxbench.surgery import edit


def _run(model: Model, feeds: dict[str, Any]) -> Any:
    session = backends.open_session(model, options=backends.Options("none"))
    values = session.run(feeds)
    session.close()
    return bits(values)


def _ranges(scope: Scope, count: int) -> list[tuple[int, int]]:
    """Some ranges of neighbouring nodes: in a sorted graph nothing can lie between them."""
    length = len(scope.nodes)
    draw = random.Random(length)
    pairs = {(0, length), (0, 1), (length - 1, length)}
    for _ in range(count):
        start = draw.randrange(length)
        pairs.add((start, draw.randrange(start, length) + 1))
    return sorted(pair for pair in pairs if pair[0] < pair[1] <= length)


def _range_selector(scope: Scope, start: int, end: int) -> str:
    names = [name for names in scope.writes[start:end] for name in names]
    return " | ".join(f'"{scope.path}/{name}"' if scope.path else f'"{name}"' for name in names)


RUNNABLE = cases(lambda case: case.valid == "yes" and case.engine is not None and not case.is_external)


@RUNNABLE
def test_any_range_of_nodes_becomes_a_call_that_computes_the_same(case):
    model, engine = load(case.path), ENGINES[case.engine]
    whole, feeds = case.whole(), case.feeds()
    expected = engine(whole, feeds)
    tried = done = 0
    for scope in GraphIndex(edit(model, [], stamp=False).model.proto).scopes:
        for start, end in _ranges(scope, 3) if scope.nodes else ():
            selector = _range_selector(scope, start, end)
            if not selector or selector.count('"') != 2 * (selector.count(" | ") + 1):
                continue
            tried += 1
            try:
                edited = edit(model, [Outline(at=selector, name="test.outlined::Block")], stamp=False).model
            except RefusedResultError as error:
                assert "nothing outside reads" in str(error) or "nothing but constants" in str(error), error
                continue
            if case.name != "function_overload.onnx":  # ONNX Runtime does not find overloads from within functions
                assert engine(edited.proto, feeds) == expected, (scope.path, start, end)
            assert run_inlined(engine, edited, feeds) == expected, (scope.path, start, end)
            done += 1
    assert done or tried <= 4 or not expected


def run_inlined(engine: Any, model: Model, feeds: dict[str, Any]) -> Any:
    return engine(inline_functions(model)[0].proto, feeds)
