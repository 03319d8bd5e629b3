"""Attention where an exporter or TensorRT fails at it, or does not give what PyTorch gives.

- A mask that hides all keys from a query: PyTorch gives zeros there. Below opset 23 the default exporter writes the
  lowest number there is into hidden places, so that such a query gets the average of all values: off by 0.44 in
  PyTorch's issue 159973, without a word. Where the mask has minus infinity as a float, both exporters give NaN.
- Query, key and value with other than four dimensions: the default exporter fails ("only 4D query, key, and value are
  supported").
- ``enable_gqa``: the TorchScript exporter fails ("not implemented if enable_gqa is True").
- From opset 23 on, attention is one operator, and TensorRT builds it of float16 and not of float32 ("Attention
  operation was not supported by a dedicated kernel"). ``build-trt`` tells TensorRT to take it apart; trtexec and
  others that read the file do not.

In these cases alone, the rewrite computes it step by step. ``is_causal`` and ``scale`` need none elsewhere. Dropout is
on whenever ``dropout_p`` says so, in PyTorch as in the file.
"""

from __future__ import annotations

from typing import Any

from onnxbench.pytorch.rewriters import RewriteInfo, rewrites
from onnxbench.pytorch.shipped._sizes import example_sizes

_ATTENTION = 23
"""The opset that has attention as an operator."""


@rewrites.function("torch.nn.functional.scaled_dot_product_attention")
def attention(
    ctx: RewriteInfo,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Returns what attention gives, with zeros for a query from which all keys are hidden."""
    import torch

    is_traced = torch.jit.is_tracing()
    is_operator = not is_traced and ctx.opset is not None and ctx.opset >= _ATTENTION
    is_needed = (
        (attn_mask is not None and not is_operator)
        or (query.dim() != 4 and not is_traced)
        or (enable_gqa and is_traced)
        or (is_operator and ctx.backend == "tensorrt" and query.dtype == torch.float32)
    )
    if not is_needed or (is_causal and attn_mask is not None):
        return ctx.origin(
            query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale,
            enable_gqa=enable_gqa,
        )  # fmt: skip
    if enable_gqa:
        key, value = (_repeated(each, query) for each in (key, value))
    if is_causal:
        attn_mask = torch.arange(query.shape[-2])[:, None] >= torch.arange(key.shape[-2])
    # The query is scaled, and not the product: that could overflow in half precision.
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    lowest = torch.finfo(scores.dtype).min
    if attn_mask is None:
        weights = scores.softmax(-1)
    elif attn_mask.dtype == torch.bool:
        weights = scores.masked_fill(~attn_mask, lowest).softmax(-1) * attn_mask
    else:
        # What is hidden has the weight 0 already, unless all of its row is.
        weights = (scores + attn_mask).clamp(min=lowest).softmax(-1) * (attn_mask != float("-inf"))
    return torch.dropout(weights, dropout_p, train=dropout_p > 0) @ value


def _repeated(tensor: Any, query: Any) -> Any:
    """Returns keys or values with each head as often as the queries have heads for it."""
    wanted, given = example_sizes(query)[-3], example_sizes(tensor)[-3]
    times = query.shape[-3] // tensor.shape[-3] if wanted is None or given is None else wanted // given
    return tensor if times == 1 else tensor.repeat_interleave(times, dim=-3)
