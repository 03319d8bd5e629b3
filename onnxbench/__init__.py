"""onnxbench: ONNX graph surgery and debugging.

Everything here is loaded on first use: ``import onnxbench`` costs nothing.

    import onnxbench

    model = onnxbench.load("model.onnx")
    piece = onnxbench.extract(model, ["22"], ["28"])
    onnxbench.save(piece.model, "piece.onnx")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from onnxbench.version import __version__

if TYPE_CHECKING:
    from onnxbench.batching import make_batch_dynamic as make_batch_dynamic
    from onnxbench.bisection import bisect as bisect
    from onnxbench.bundles import load_bundle as load_bundle
    from onnxbench.capability import find_capability as find_capability
    from onnxbench.changes import bisect_over as bisect_over
    from onnxbench.diffing import diff as diff
    from onnxbench.division import divide as divide
    from onnxbench.engine import BuildSpec as BuildSpec
    from onnxbench.engine import Engine as Engine
    from onnxbench.engine import build_engine as build_engine
    from onnxbench.engine import diagnose as diagnose
    from onnxbench.engine import read_engine as read_engine
    from onnxbench.environment import examine as examine
    from onnxbench.errors import BenchError as BenchError
    from onnxbench.feeding import FeedOptions as FeedOptions
    from onnxbench.graph import GraphIndex as GraphIndex
    from onnxbench.inspection import inspect as inspect
    from onnxbench.int8 import quantize as quantize
    from onnxbench.lint import check as check
    from onnxbench.marks import unmark as unmark
    from onnxbench.merging import MergeOptions as MergeOptions
    from onnxbench.merging import merge as merge
    from onnxbench.migration import migrate as migrate
    from onnxbench.model import Model as Model
    from onnxbench.model import from_proto as from_proto
    from onnxbench.model import load as load
    from onnxbench.modelspec import build as build
    from onnxbench.modeltext import show as show
    from onnxbench.opsets import convert_opset as convert_opset
    from onnxbench.pieces import expose as expose
    from onnxbench.pieces import extract as extract
    from onnxbench.precision import convert as convert
    from onnxbench.precision import convert_file as convert_file
    from onnxbench.proof import prove as prove
    from onnxbench.proving import prove_plugin as prove_plugin
    from onnxbench.pytorch.exporting import ExportOptions as ExportOptions
    from onnxbench.pytorch.exporting import export as export
    from onnxbench.pytorch.mapping import map_values as map_values
    from onnxbench.pytorch.marks import mark as mark
    from onnxbench.pytorch.marks import marked as marked
    from onnxbench.pytorch.operators import torch_operator as torch_operator
    from onnxbench.pytorch.reference import torch_reference as torch_reference
    from onnxbench.pytorch.rewrite_context import RewriteContext as RewriteContext
    from onnxbench.pytorch.rewriters import rewrites as rewrites
    from onnxbench.recipe import Recipe as Recipe
    from onnxbench.recipe import Step as Step
    from onnxbench.recipe import load_recipe as load_recipe
    from onnxbench.records import find as find
    from onnxbench.reduction import reduce_failure as reduce_failure
    from onnxbench.running import run as run
    from onnxbench.splitting import split as split
    from onnxbench.suite import run_suite as run_suite
    from onnxbench.surgery import edit as edit
    from onnxbench.tuning import tune as tune
    from onnxbench.tuning import tune_file as tune_file
    from onnxbench.validity import validate as validate
    from onnxbench.writer import SaveOptions as SaveOptions
    from onnxbench.writer import save as save

_HOMES = {
    "bisect": "bisection",
    "bisect_over": "changes",
    "BenchError": "errors",
    "ExportOptions": "pytorch.exporting",
    "BuildSpec": "engine",
    "Engine": "engine",
    "FeedOptions": "feeding",
    "GraphIndex": "graph",
    "MergeOptions": "merging",
    "Model": "model",
    "Recipe": "recipe",
    "RewriteContext": "pytorch.rewrite_context",
    "SaveOptions": "writer",
    "Step": "recipe",
    "build": "modelspec",
    "build_engine": "engine",
    "check": "lint",
    "edit": "surgery",
    "convert": "precision",
    "convert_file": "precision",
    "convert_opset": "opsets",
    "diagnose": "engine",
    "diff": "diffing",
    "divide": "division",
    "examine": "environment",
    "export": "pytorch.exporting",
    "expose": "pieces",
    "extract": "pieces",
    "find": "records",
    "find_capability": "capability",
    "from_proto": "model",
    "inspect": "inspection",
    "load": "model",
    "load_bundle": "bundles",
    "load_recipe": "recipe",
    "make_batch_dynamic": "batching",
    "map_values": "pytorch.mapping",
    "migrate": "migration",
    "mark": "pytorch.marks",
    "marked": "pytorch.marks",
    "merge": "merging",
    "prove": "proof",
    "prove_plugin": "proving",
    "quantize": "int8",
    "read_engine": "engine",
    "reduce_failure": "reduction",
    "rewrites": "pytorch.rewriters",
    "run": "running",
    "run_suite": "suite",
    "save": "writer",
    "show": "modeltext",
    "split": "splitting",
    "torch_operator": "pytorch.operators",
    "torch_reference": "pytorch.reference",
    "tune": "tuning",
    "tune_file": "tuning",
    "unmark": "marks",
    "validate": "validity",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'onnxbench' has no attribute {name!r}")
    value = getattr(import_module(f"onnxbench.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
