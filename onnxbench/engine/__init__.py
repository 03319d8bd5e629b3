"""TensorRT engines: what to build, the build in a process of its own, and the record of it.

``build_engine`` is the whole of it. TensorRT is loaded in a child process only (``onnxbench.engine._seam``), so that a
crash inside it is an error like any other, and nothing here needs it to be installed but the build itself. That process
imports this package too and little of it, so everything is loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxbench.engine._building import Built as Built
    from onnxbench.engine._building import Diagnosis as Diagnosis
    from onnxbench.engine._building import build_engine as build_engine
    from onnxbench.engine._building import creators as creators
    from onnxbench.engine._building import describe_plugin as describe_plugin
    from onnxbench.engine._building import diagnose as diagnose
    from onnxbench.engine._building import element_types as element_types
    from onnxbench.engine._building import judge as judge
    from onnxbench.engine._child import look_ahead as look_ahead
    from onnxbench.engine._child import standby as standby
    from onnxbench.engine._child import start as start
    from onnxbench.engine._diagnosis import Problem as Problem
    from onnxbench.engine._diagnosis import way_out as way_out
    from onnxbench.engine._flavors import ENGINES as ENGINES
    from onnxbench.engine._flavors import Flavor as Flavor
    from onnxbench.engine._flavors import choose as choose
    from onnxbench.engine._flavors import has_gpu as has_gpu
    from onnxbench.engine._flavors import installed as installed
    from onnxbench.engine._observed import Observed as Observed
    from onnxbench.engine._observed import inputs_at as inputs_at
    from onnxbench.engine._observed import observe as observe
    from onnxbench.engine._observed import observe_sets as observe_sets
    from onnxbench.engine._observed import without_missing as without_missing
    from onnxbench.engine._preparation import Prepared as Prepared
    from onnxbench.engine._preparation import prepare as prepare
    from onnxbench.engine._profiles import Profile as Profile
    from onnxbench.engine._profiles import Range as Range
    from onnxbench.engine._profiles import check_profiles as check_profiles
    from onnxbench.engine._profiles import distinct_kinds as distinct_kinds
    from onnxbench.engine._profiles import holds_sizes as holds_sizes
    from onnxbench.engine._profiles import parse_profiles as parse_profiles
    from onnxbench.engine._profiles import propose as propose
    from onnxbench.engine._profiles import spelled as spelled
    from onnxbench.engine._record import EngineFile as EngineFile
    from onnxbench.engine._record import EngineRecord as EngineRecord
    from onnxbench.engine._record import is_engine as is_engine
    from onnxbench.engine._record import read_engine as read_engine
    from onnxbench.engine._record import record_path as record_path
    from onnxbench.engine._running import Engine as Engine
    from onnxbench.engine._running import EngineRun as EngineRun
    from onnxbench.engine._running import open_engine as open_engine
    from onnxbench.engine._running import run_engine as run_engine
    from onnxbench.engine._sessions import build_part as build_part
    from onnxbench.engine._spec import BuildSpec as BuildSpec
    from onnxbench.engine._spec import graph_precision as graph_precision
    from onnxbench.engine._spec import load_config as load_config
    from onnxbench.engine._spec import parse_capability as parse_capability
    from onnxbench.engine._spec import parse_pool as parse_pool
    from onnxbench.engine._trial import Trial as Trial
    from onnxbench.engine._trial import attempt as attempt
    from onnxbench.engine._trial import query as query
    from onnxbench.engine._verification import Verification as Verification
    from onnxbench.engine._verification import verify_engine as verify_engine

_HOMES = {
    "BuildSpec": "_spec",
    "Built": "_building",
    "Diagnosis": "_building",
    "ENGINES": "_flavors",
    "Engine": "_running",
    "EngineFile": "_record",
    "EngineRecord": "_record",
    "EngineRun": "_running",
    "Flavor": "_flavors",
    "Observed": "_observed",
    "Prepared": "_preparation",
    "Problem": "_diagnosis",
    "Profile": "_profiles",
    "Range": "_profiles",
    "Trial": "_trial",
    "Verification": "_verification",
    "attempt": "_trial",
    "build_engine": "_building",
    "build_part": "_sessions",
    "check_profiles": "_profiles",
    "choose": "_flavors",
    "creators": "_building",
    "describe_plugin": "_building",
    "diagnose": "_building",
    "distinct_kinds": "_profiles",
    "element_types": "_building",
    "graph_precision": "_spec",
    "has_gpu": "_flavors",
    "holds_sizes": "_profiles",
    "inputs_at": "_observed",
    "installed": "_flavors",
    "is_engine": "_record",
    "judge": "_building",
    "load_config": "_spec",
    "look_ahead": "_child",
    "observe": "_observed",
    "observe_sets": "_observed",
    "open_engine": "_running",
    "parse_capability": "_spec",
    "parse_pool": "_spec",
    "parse_profiles": "_profiles",
    "prepare": "_preparation",
    "propose": "_profiles",
    "query": "_trial",
    "read_engine": "_record",
    "record_path": "_record",
    "run_engine": "_running",
    "spelled": "_profiles",
    "standby": "_child",
    "start": "_child",
    "verify_engine": "_verification",
    "way_out": "_diagnosis",
    "without_missing": "_observed",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'onnxbench.engine' has no attribute {name!r}")
    value = getattr(import_module(f"onnxbench.engine.{home}"), name)
    globals()[name] = value
    return value
