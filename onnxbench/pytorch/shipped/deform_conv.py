"""Deformable convolution, torchvision's and mmcv's: ``DeformConv`` for ONNX Runtime, a plugin's node for TensorRT.

- torchvision's operator: the TorchScript exporter has no translation of it, and the default exporter has one, of
  opset 19, only where torchvision is installed as a package. TensorRT knows no DeformConv ("UNSUPPORTED_NODE").
- mmcv's ``ModulatedDeformConv2dFunction`` is an autograd Function with a forward in C++: the default exporter cannot
  look into it, and the TorchScript exporter writes mmcv's own operator, which ONNX Runtime does not have.

For TensorRT both become ``mmdeploy::MMCVModulatedDeformConv2d`` (inputs: the tensor, offsets, mask, weight, bias), with
MMDeploy's attributes stride, padding, dilation, groups and deform_groups. MMDeploy's plugin announces the last two and
reads others, so that it computes with one group: where a model has more, the export says so.

A target whose package nobody has imported is left alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

from onnxbench.pytorch.rewriters import RewriteWarning, rewrites

_TORCHVISION = "torchvision::deform_conv2d"
_MMCV = "mmcv.ops.modulated_deform_conv.ModulatedDeformConv2dFunction"
_OTHERS = ("default", "onnxruntime")
_symbolic: Callable[..., Callable[[Any], Any]] = rewrites.symbolic


@_symbolic(_TORCHVISION, backend=_OTHERS, opset=19)
def torchvision_standard(
    input: Any, weight: Any, offset: Any, mask: Any, bias: Any, stride_h: int, stride_w: int, pad_h: int, pad_w: int,
    dilation_h: int, dilation_w: int, groups: int, offset_groups: int, use_mask: bool,
) -> Any:  # fmt: skip
    """Returns a DeformConv."""
    geometry = [stride_h, stride_w], [pad_h, pad_w], [dilation_h, dilation_w], groups, offset_groups
    return _standard(input, weight, offset, mask if use_mask else None, bias, *geometry)


@_symbolic(_TORCHVISION, backend="tensorrt")
def torchvision_plugin(
    input: Any, weight: Any, offset: Any, mask: Any, bias: Any, stride_h: int, stride_w: int, pad_h: int, pad_w: int,
    dilation_h: int, dilation_w: int, groups: int, offset_groups: int, use_mask: bool,
) -> Any:  # fmt: skip
    """Returns the plugin's node."""
    geometry = [stride_h, stride_w], [pad_h, pad_w], [dilation_h, dilation_w], groups, offset_groups
    return _plugin(input, weight, offset, mask if use_mask else None, bias, *geometry)


def _shape_only(
    input: Any, offset: Any, mask: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1, deform_groups: int = 1,
) -> Any:  # fmt: skip
    """Returns a tensor of the shape that the convolution gives."""
    return input.new_empty(input.shape[0], weight.shape[0], *offset.shape[2:])


@_symbolic(_MMCV, backend=_OTHERS, opset=19, fake=_shape_only)
def mmcv_standard(
    input: Any, offset: Any, mask: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1, deform_groups: int = 1,
) -> Any:  # fmt: skip
    """Returns a DeformConv."""
    geometry = _pair(stride), _pair(padding), _pair(dilation), groups, deform_groups
    return _standard(input, weight, offset, mask, bias, *geometry)


@_symbolic(_MMCV, backend="tensorrt", fake=_shape_only)
def mmcv_plugin(
    input: Any, offset: Any, mask: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1, deform_groups: int = 1,
) -> Any:  # fmt: skip
    """Returns the plugin's node."""
    geometry = _pair(stride), _pair(padding), _pair(dilation), groups, deform_groups
    return _plugin(input, weight, offset, mask, bias, *geometry)


def _pair(value: Any) -> list[int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return [int(each) for each in (values * 2 if len(values) == 1 else values)]


def _standard(
    tensor: Any, weight: Any, offset: Any, mask: Any, bias: Any, stride: list[int], padding: list[int],
    dilation: list[int], groups: int, offset_groups: int,
) -> Any:  # fmt: skip
    from onnxscript import opset19 as op

    return op.DeformConv(
        tensor, weight, offset, bias, mask, strides=stride, pads=[*padding, *padding], dilations=dilation,
        group=groups, offset_group=offset_groups,
    )  # fmt: skip


def _plugin(
    tensor: Any, weight: Any, offset: Any, mask: Any, bias: Any, stride: list[int], padding: list[int],
    dilation: list[int], groups: int, offset_groups: int,
) -> Any:  # fmt: skip
    from onnxscript import opset18

    op: Any = opset18
    if groups != 1 or offset_groups != 1:
        said = f"deformable convolution with groups={groups} and deform_groups={offset_groups}"
        warnings.warn(
            RewriteWarning(
                f"{said}: MMDeploy's TensorRT plugin reads neither and computes with one group",
                hint="Use a plugin that reads groups and deform_groups (onnxbench plugins new).",
            ),
            stacklevel=2,
        )
    if mask is None:
        # The plugin always takes one: half as many channels as there are offsets.
        sizes = op.Shape(offset)
        channels = op.Div(op.Slice(sizes, [1], [2]), op.Constant(value_ints=[2]))
        wanted = op.Concat(op.Slice(sizes, [0], [1]), channels, op.Slice(sizes, [2], [4]), axis=0)
        mask = op.Expand(op.CastLike(op.Constant(value_float=1.0), offset), wanted)
    given = [tensor, offset, mask, weight, *([] if bias is None else [bias])]
    return _operator()(
        *given, stride=stride, padding=padding, dilation=dilation, groups=groups, deform_groups=offset_groups
    )


@cache
def _operator() -> Any:
    """Returns ``mmdeploy::MMCVModulatedDeformConv2d`` for onnxscript."""
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    kinds, options = OpSchema.AttrType, OpSchema.FormalParameterOption
    name, domain = "MMCVModulatedDeformConv2d", "mmdeploy"
    schema = OpSchema(
        name, domain, 1,
        inputs=[
            *[OpSchema.FormalParameter(each, "T") for each in ("input", "offset", "mask", "weight")],
            OpSchema.FormalParameter("bias", "T", param_option=options.Optional),
        ],
        outputs=[OpSchema.FormalParameter("output", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)"], "A tensor of floats.")],
        attributes=[
            *[OpSchema.Attribute(each, kinds.INTS, required=False) for each in ("stride", "padding", "dilation")],
            *[OpSchema.Attribute(each, kinds.INT, required=False) for each in ("groups", "deform_groups")],
        ],
    )  # fmt: skip
    return Op(Opset(domain, 1), name, schema)
