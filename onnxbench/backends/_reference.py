"""onnx's reference evaluator behind the seam: slow, in Python, and written from the specification.

It runs what ONNX Runtime has no kernel for, and it is the second opinion in tests. All weights are read into memory.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnxbench import weights
from onnxbench.backends._structure import expose, inline_weights
from onnxbench.captures import Port, Value, check_feeds, input_ports
from onnxbench.errors import BenchError, ExecutionError
from onnxbench.inlining import inline_functions
from onnxbench.messages import copy_of
from onnxbench.repair import repair

if TYPE_CHECKING:
    from onnx import ModelProto

    from onnxbench.backends import Options
    from onnxbench.model import Model


class ReferenceBackend:
    """The reference evaluator as a backend."""

    name = "reference"

    def version(self) -> str:
        """Returns the version of onnx."""
        import onnx

        return str(onnx.__version__)

    def open(self, model: Model, *, outputs: Sequence[str] | None, options: Options) -> ReferenceSession:
        """Returns a session (see ``onnxbench.backends.open_session``); providers, threads and levels mean nothing."""
        # It runs nodes as they stand and knows one spelling of each domain: the model is mended. It mixes up overloads
        # of functions and loses default attributes: they are inlined.
        proto = copy_of(expose(model.proto, outputs))
        repair(proto)
        proto = inline_functions(model.derive(proto))[0].proto
        inline_weights(model, [tensor for tensor in weights.tensors(proto) if weights.is_outside(tensor)])
        return ReferenceSession(proto, [operator.evaluator() for operator in options.operators])


BACKEND = ReferenceBackend()


class ReferenceSession:
    """A model in the reference evaluator."""

    device = "Python"
    providers = ("reference",)

    def __init__(self, proto: ModelProto, operators: Sequence[type] = ()) -> None:
        from onnx.reference import ReferenceEvaluator

        self.inputs = input_ports(proto.graph)
        self.outputs = [
            Port(info.name, info.type if info.HasField("type") else None, False) for info in proto.graph.output
        ]
        try:
            self._evaluator = ReferenceEvaluator(proto, new_ops=list(operators) or None)
        except Exception as error:  # the seam: the evaluator raises whatever its operators raise
            raise _translate(error, "does not take the model") from None

    def run(self, feeds: Mapping[str, Value], outputs: Sequence[str] | None = None) -> dict[str, Value]:
        """Returns outputs by name (see ``onnxbench.backends.Session``)."""
        fitted = check_feeds(feeds, self.inputs)
        names = [port.name for port in self.outputs] if outputs is None else list(dict.fromkeys(outputs))
        try:
            made = self._evaluator.run(names, fitted)
        except Exception as error:  # the seam, as above
            if isinstance(error, BenchError):
                raise
            raise _translate(error, "failed while it ran the model") from None
        return {name: _as_value(value) for name, value in zip(names, made, strict=True)}

    def close(self) -> None:
        """Does nothing: the evaluator holds no resources."""


def _as_value(value: Any) -> Value:
    import numpy as np

    if isinstance(value, np.generic):
        return np.asarray(value)
    return list(value) if isinstance(value, tuple) else value


def _translate(error: Exception, doing: str) -> ExecutionError:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    where = _failed_node(error)
    at = f" in {where}" if where else ""
    return ExecutionError(f"the reference evaluator {doing}{at}: {type(error).__name__}: {text}"[:600])


def _failed_node(error: Exception) -> str:
    """Returns the innermost node that was running, in words; ``""`` if none was. Only the traceback knows it."""
    from onnx.reference.op_run import OpRun

    running = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
    nodes = [each.onnx_node for each in running if isinstance(each, OpRun)]
    if not nodes:
        return ""
    node = nodes[-1]
    which = f"node {node.name!r}" if node.name else f"the node that makes {next(filter(None, node.output), '')!r}"
    return f"{which} ({node.op_type})"
