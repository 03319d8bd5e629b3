"""Rewrites that come along, one module for each topic: ``--rewrites shipped``, or ``--rewrites shipped:topk`` for one.

Each is here because an exporter or a backend failed without it, or gave another result than PyTorch, when it was last
tried: PyTorch 2.13, ONNX Runtime 1.31, TensorRT-RTX 1.7. What was found stands in the module's docstring, and
docs/shipped-rewrites.md has the table, with what was tried and is not needed.

A module is loaded when it is asked for (``onnxbench.pytorch.rewriters``), and imports torch only in its functions.
"""
