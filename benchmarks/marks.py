"""Marks on the models of exporting.py: what is left of them once they are taken out, and what they cost.

    python benchmarks/marks.py [bert gpt2 ...]

Each model is exported plain, and with several of its modules marked; the marked one is unmarked and compared, as it is
and after the exporter's own optimizer (``onnxbench unmark --fuse``).
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from contextlib import ExitStack

import torch
from exporting import MODELS, randomized

import onnxbench
from onnxbench import marked
from onnxbench.operations import Simplify
from onnxbench.pytorch.marks import finish, translation_table
from onnxbench.surgery import edit

IMMATERIAL = ["metadata", "name", "value-info", "doc"]


def measure(name):
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    randomized(model.eval())
    chosen = {
        path: each for path, each in model.named_modules() if path and path.count(".") < 3 and list(each.children())
    }

    def export(**options):
        start = time.perf_counter()
        done = torch.onnx.export(model, (), kwargs=inputs, dynamo=True, verbose=False, **options).model_proto
        return done, time.perf_counter() - start

    export()
    plain, seconds = export()
    with ExitStack() as stack:
        for path, each in chosen.items():
            if type(each).forward is not torch.nn.Module.forward and not isinstance(each, torch.nn.ModuleList):
                stack.enter_context(marked(each, path))
        with_marks, marked_seconds = export(custom_translation_table=translation_table())
    done = onnxbench.unmark(onnxbench.from_proto(finish(with_marks)))
    never = onnxbench.from_proto(plain)
    left = len(onnxbench.diff(never, done.model, ignore=IMMATERIAL).changes)
    fused = [edit(each, [Simplify("onnxscript")], stamp=False).model for each in (never, done.model)]
    after = len(onnxbench.diff(*fused, ignore=IMMATERIAL).changes)
    nodes = len(plain.graph.node)
    print(
        f"| {name} | {done.removed} | {nodes} | {left} | {after} | {seconds:.1f} s | {marked_seconds:.1f} s |",
        flush=True,
    )


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    print("| model | marks | nodes never marked | changes after unmark | after --fuse | export | export with marks |")
    print("|---|---|---|---|---|---|---|")
    for each in sys.argv[1:] or MODELS:
        measure(each)
