"""The optimizers of ONNX Runtime: which of them there are, and which change a model.

ONNX Runtime has no list of its optimizers. Its verbose log names each graph transformer that is applied, and says
whether it changed anything. Rewrite rules run within one transformer a level and are not named there, so their names
are listed here; to switch off one that does not exist does nothing.
"""

from __future__ import annotations

import re

from onnxbench import backends
from onnxbench.errors import ExecutionError
from onnxbench.model import Model

_APPLIED = re.compile(r"GraphTransformer (\S+) modified: (\d)")
_RULES = (
    "EliminateIdentity", "EliminateSlice", "UnsqueezeElimination", "EliminateDropout", "ExpandElimination",
    "CastElimination", "CastChainElimination", "PreShapeNodeElimination", "NoopElimination", "DivMulFusion",
    "FuseReluClip", "GemmSumFusion", "GemmTransposeFusion", "NotWhereFusion", "ConvAddFusion", "ConvMulFusion",
    "ConvBNFusion", "Pad_Fusion", "MatMul_BatchNormalization_Fusion", "LabelEncoderFusion", "ClipQuantRewrite",
    "ReluQuantRewrite",
)  # fmt: skip


def optimizer_names(model: Model, options: backends.Options) -> tuple[list[str], list[str]]:
    """Returns the optimizers that change a model, in the order in which they first do, and all others applied to it.

    Args:
        model: The model.
        options: The optimization level and providers; ``isolate`` bounds the time.

    Raises:
        ExecutionError: The log says nothing: the runtime does not take the model, or writes another log.
    """
    found: dict[str, bool] = {}
    for name, does in _APPLIED.findall(backends.verbose_log(model, options)):
        found[name] = found.get(name, False) or does == "1"
    if not found:
        raise ExecutionError("this ONNX Runtime does not say which optimizers it applies")
    changed: list[str] = []
    others: list[str] = []
    for name, did in found.items():
        names = _RULES if "RuleBased" in name else (name,)
        (changed if did else others).extend(names)
    changed = list(dict.fromkeys(changed))
    return changed, [name for name in dict.fromkeys(others) if name not in set(changed)]
