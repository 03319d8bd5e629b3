"""Reachability and cuts against brute force, and the words for what is missing."""

from __future__ import annotations

import itertools

import pytest
from cases import named
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import RandomModel, dags, models

from onnxbench.boundary import depends_on, missing_at_rim, reach_back, smallest_cut
from onnxbench.cut import plan_cut
from onnxbench.errors import CutError
from onnxbench.graph import GraphIndex, Scope
from onnxbench.model import load


def _ends_at(scope: Scope, outputs: list[str], stops: set[str]) -> tuple[set[str], set[int]]:
    """The graph inputs that outputs depend on with ``stops`` given, and the nodes between; by repeated passes."""
    needed, nodes = set(outputs), set()
    while True:
        more = {
            position
            for position in range(len(scope.nodes))
            if position not in nodes and any(name in needed and name not in stops for name in scope.writes[position])
        }
        if not more:
            break
        nodes |= more
        needed |= {name for position in more for name in scope.reads[position]}
    return {name for name in needed - stops if name in scope.inputs and name not in scope.constants}, nodes


@st.composite
def _questions(draw: st.DrawFn) -> tuple[Scope, list[str], list[str]]:
    scope = GraphIndex(draw(dags())).main
    made = list(scope.producers)
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=2, unique=True))
    given = draw(st.lists(st.sampled_from([*made, *scope.inputs]), max_size=3, unique=True))
    return scope, outputs, given


@given(_questions())
def test_reach_back_against_repeated_passes(question: tuple[Scope, list[str], list[str]]) -> None:
    scope, outputs, given = question
    inputs, nodes = _ends_at(scope, outputs, set(given))

    reach = reach_back(scope, outputs, set(given))

    assert set(reach.inputs) == inputs
    assert reach.inputs == [name for name in scope.inputs if name in inputs]
    assert reach.nodes == nodes
    read = {name for position in nodes for name in scope.reads[position]} | set(outputs)
    assert reach.stops == read & set(given)
    assert reach.constants == (read - set(given)) & scope.constants
    assert reach.undefined == []


@given(_questions())
def test_depends_on_against_its_definition(question: tuple[Scope, list[str], list[str]]) -> None:
    scope, _, seeds = question
    expected = set(seeds)
    for _ in scope.nodes:
        for reads, writes in zip(scope.reads, scope.writes, strict=True):
            if expected.intersection(reads):
                expected.update(writes)
    assert depends_on(scope, seeds) == expected


@settings(max_examples=250)
@given(_questions())
def test_the_smallest_cut_against_all_sets(question: tuple[Scope, list[str], list[str]]) -> None:
    scope, outputs, given = question
    cut = smallest_cut(scope, outputs, given)
    inside = _ends_at(scope, outputs, set(given))[1]
    used = set(given) & ({name for position in inside for name in scope.reads[position]} | set(outputs))
    # A cut behind a given tensor would make it useless: what depends on it is not cut.
    behind = depends_on(scope, used) & {name for position in inside for name in scope.writes[position]}
    candidates = [name for name in scope.tensor_names() if name not in {*outputs, *given, *scope.constants, *behind}]
    working: list[tuple[str, ...]] = []
    for size in range(len(candidates) + 1):
        working = [
            chosen
            for chosen in itertools.combinations(candidates, size)
            if not _ends_at(scope, outputs, {*given, *chosen})[0]
        ]
        if working:
            break

    assert working, "all graph inputs together always bound the piece"
    assert cut is not None
    assert len(cut) == size
    assert len(set(cut)) == len(cut)
    assert set(cut) in [set(chosen) for chosen in working]
    nodes = _ends_at(scope, outputs, {*given, *cut})[1]
    for chosen in working:  # of all smallest cuts, the one nearest to the outputs: its piece is part of every other
        assert nodes <= _ends_at(scope, outputs, {*given, *chosen})[1]
    if size:
        assert smallest_cut(scope, outputs, given, limit=size - 1) is None
    assert smallest_cut(scope, outputs, given, limit=size) == cut


@given(models(sorted_nodes=True))
def test_a_cut_separates_models_with_bodies(drawn: RandomModel) -> None:
    scope = GraphIndex(drawn.proto).main
    ends = [name for name in scope.outputs if name in scope.producers]
    assume(ends)

    cut = smallest_cut(scope, ends, ())

    assert cut is not None
    assert not reach_back(scope, ends, set(cut)).inputs
    assert len(cut) <= len(reach_back(scope, ends, ()).inputs)
    places = {name: at for at, name in enumerate(scope.tensor_names())}
    makers = [scope.producers.get(name, -1) for name in cut]
    assert makers == sorted(makers) or len(cut) < 2
    assert all(name in places for name in cut)


def test_an_output_that_is_an_input_has_no_cut() -> None:
    scope = GraphIndex(load(named("multi_output").path).proto).main
    assert smallest_cut(scope, [scope.inputs[0]], ()) is None


@given(_questions())
def test_what_is_missing_is_named_at_the_rim(question: tuple[Scope, list[str], list[str]]) -> None:
    scope, outputs, given = question
    try:
        plan_cut(scope, outputs, given)
    except CutError as error:
        reach = reach_back(scope, outputs, set(given))
        assert error.missing == tuple(missing_at_rim(scope, reach, given))
        assert error.missing
        assert error.proposals
        varying = depends_on(scope, scope.inputs)
        behind = depends_on(scope, reach.stops)
        rim = any(behind.intersection(scope.reads[at]) for at in reach.nodes)
        for name in error.missing:
            assert name in varying
            assert name not in given
            assert repr(name) in error.message or len(error.missing) > 8
            assert name in reach.inputs or name not in behind
            if rim and name not in reach.inputs:
                readers = [at for at in scope.consumers[name] if at in reach.nodes]
                assert any(behind.intersection(scope.reads[at]) for at in readers)
        for proposal in error.proposals:
            ends, nodes = _ends_at(scope, outputs, set(proposal.inputs))
            assert not ends
            assert len(nodes) == proposal.nodes
            assert plan_cut(scope, outputs, proposal.inputs).dropped == ()
    else:
        assert not _ends_at(scope, outputs, set(given))[0]


def test_the_minimum_cut_is_proposed_first() -> None:
    """Row A7 of the seeds: from 24 alone there is no way to 28, the other branch is missing."""
    scope = GraphIndex(load(named("whole_model").path).proto).main
    with pytest.raises(CutError) as caught:
        plan_cut(scope, ["28"], ["24"])
    assert caught.value.missing == ("27",)
    assert "(or something above it)" in caught.value.message
    proposals = caught.value.proposals
    assert [(proposal.kind, proposal.inputs) for proposal in proposals] == [
        ("minimum cut", ("24", "27")),
        ("dominating tensors", ("23",)),
        ("whole upstream", ("input.1",)),
    ]
    assert plan_cut(scope, ["28"], ["24", "26"]).inputs == ("24", "26")
    assert plan_cut(scope, ["28"], ["24"], auto_inputs=True).added == ("27",)


def test_a_ladder_of_diamonds_is_cut_at_one_rung() -> None:
    """2^40 paths between input and output, which a walk without memory would all take."""
    scope = GraphIndex(load(named("many_paths").path).proto).main
    cut = smallest_cut(scope, scope.outputs, ())
    assert cut is not None
    assert len(cut) == 1
