"""One trial: does TensorRT take this model, and if not, which nodes are in the way?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnxbench.engine._building import ModelFile, attempt_build, explain_all, make_job, settle
from onnxbench.engine._child import run_job
from onnxbench.engine._diagnosis import Problem
from onnxbench.engine._flavors import choose
from onnxbench.engine._spec import BuildSpec
from onnxbench.graph import GraphIndex, NodeRef

if TYPE_CHECKING:
    from onnxbench.bundles import Plugin
    from onnxbench.model import Model

Obstacle = tuple[Problem, NodeRef | None]
"""What stands in the way, and the node (in a body or function, maybe) if it is known."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What a trial build showed.

    Attributes:
        builds: Whether an engine came out; it is thrown away.
        obstacles: What stood in the way.
        spec: What was built, profiles included.
        notes: What was chosen.
    """

    builds: bool
    obstacles: tuple[Obstacle, ...]
    spec: BuildSpec
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What the parser says of a model without a build.

    Attributes:
        builder: The TensorRT, with its version.
        taken: The nodes of the main graph that it takes.
        obstacles: What it refuses.
    """

    builder: str
    taken: frozenset[int]
    obstacles: tuple[Obstacle, ...]


def attempt(model: Model, spec: BuildSpec, *, plugins: Sequence[Plugin] = (), index: GraphIndex | None = None) -> Trial:
    """Returns what comes of building a model, in TensorRT's own process.

    Raises:
        UsageError: The spec does not fit the model, or this TensorRT cannot do what it says.
        MissingDependencyError: No TensorRT is installed.
    """
    flavor = choose(spec.engine)
    settled, notes = settle(model, spec, flavor, index)
    builds, obstacles = attempt_build(model, model, settled, flavor, plugins, trial=True, index=index)
    return Trial(bool(builds), obstacles, settled, tuple(notes))


def query(model: Model, spec: BuildSpec, *, plugins: Sequence[Plugin] = (), index: GraphIndex | None = None) -> Answer:
    """Returns what the parser takes of a model by its own word, which a build has to prove.

    Raises:
        MissingDependencyError: No TensorRT is installed.
        EngineError: Its process died.
    """
    flavor = choose(spec.engine)
    known = index if index is not None else GraphIndex(model.proto)
    with ModelFile(model, model) as file:
        done = run_job(make_job("query", file, spec, flavor, plugins, Path("none"), index=known))
    taken = frozenset(position for run in done["runs"] for position in run)
    return Answer(f"{flavor.name} {flavor.version}", taken, explain_all(known, done))
