"""What onnx itself gets of a bundle: a schema, an operator of the reference evaluator, models of one node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnxbench.bundles import is_required, kind_of
from onnxbench.errors import SpecError

if TYPE_CHECKING:
    import numpy as np
    from onnx import FunctionProto, ModelProto
    from onnx.defs import OpSchema

    from onnxbench.bundles import Bundle

_TYPE_NAMES = {"float32": "tensor(float)", "float16": "tensor(float16)", "bfloat16": "tensor(bfloat16)"}
OPSET = 17


def model_of(
    bundle: Bundle, inputs: Sequence[np.ndarray], attributes: Mapping[str, Any], *, dynamic: bool
) -> ModelProto:
    """Returns a model of one node."""
    from onnx import helper

    from onnxbench.captures import onnx_dtype

    def info(name: str, dtype: int, shape: Sequence[int] | None, rank: int) -> Any:
        dims = [f"{name}_{axis}" for axis in range(rank)] if dynamic or shape is None else list(shape)
        return helper.make_tensor_value_info(name, dtype, dims)

    names = given_names(bundle, inputs)
    given = [info(n, onnx_dtype(v.dtype), v.shape, v.ndim) for n, v in zip(names, inputs, strict=True)]
    shapes = bundle.shapes([value.shape for value in inputs], bundle.filled(attributes))
    typed = inputs[leading(bundle)]
    made = [info(n, onnx_dtype(typed.dtype), s, len(s)) for n, s in zip(bundle.outputs, shapes, strict=True)]
    node = helper.make_node(
        bundle.op, names, bundle.outputs, name=bundle.name, domain=bundle.domain, **attributes
    )
    graph = helper.make_graph([node], bundle.name, given, made)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(bundle.domain, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def given_names(bundle: Bundle, inputs: Sequence[Any]) -> tuple[str, ...]:
    """Returns the names of inputs that are given: all, or all but the last optional ones."""
    return bundle.inputs[: len(inputs)]


def leading(bundle: Bundle) -> int:
    """Returns the number of the input whose element type the outputs have."""
    return next(at for at, name in enumerate(bundle.inputs) if name not in bundle.any_dtype)


def function_of(bundle: Bundle, attributes: Mapping[str, Any], opset: int) -> FunctionProto | None:
    """Returns the bundle's body as a function."""
    from onnx import parser

    text = bundle.body(bundle.filled(attributes), opset) if bundle.body is not None else None
    if text is None:
        return None
    header = f'<domain: "{bundle.domain}", opset_import: ["" : {opset}]> {bundle.op}'
    try:
        made = parser.parse_function(f"{header} {text}")
    except parser.ParseError as error:
        raise SpecError(f"bundle {bundle.name}: its body is no ONNX text: {error}") from None
    most = len(bundle.inputs)
    if not most - len(bundle.optional) <= len(made.input) <= most or len(made.output) != len(bundle.outputs):
        raise SpecError(
            f"bundle {bundle.name}: its body has {len(made.input)} inputs and {len(made.output)} outputs; the "
            f"operator has {most} and {len(bundle.outputs)}"
        )
    return made


def schema_of(bundle: Bundle) -> OpSchema:
    """Returns the operator's schema, with its shape function."""
    from onnx import AttributeProto, defs, helper

    schema = defs.OpSchema
    kinds = {int: "INT", float: "FLOAT", str: "STRING"}
    options = schema.FormalParameterOption
    everything = sorted({f"tensor({each})" for each in (
        "float", "double", "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool")})  # fmt: skip
    made = schema(
        bundle.op, bundle.domain, 1, doc=bundle.description,
        inputs=[
            schema.FormalParameter(
                n, "A" if n in bundle.any_dtype else "T",
                param_option=options.Optional if n in bundle.optional else options.Single,
            )
            for n in bundle.inputs
        ],
        outputs=[schema.FormalParameter(n, "T") for n in bundle.outputs],
        type_constraints=[("T", [_TYPE_NAMES[each] for each in bundle.dtypes], ""), ("A", everything, "")],
        attributes=[
            schema.Attribute(name, getattr(schema.AttrType, _attribute_word(kind_of(value), kinds)))
            if is_required(value) else schema.Attribute(name, helper.make_attribute(name, value))
            for name, value in bundle.attributes.items()
        ],
    )  # fmt: skip

    def infer(context: Any) -> None:
        given = [kind for number in range(context.get_num_inputs()) if (kind := context.get_input_type(number))]
        attributes: dict[str, Any] = dict(bundle.attributes)
        for name in attributes:
            said: AttributeProto | None = context.get_attribute(name)
            if said is not None and said.type:
                value = helper.get_attribute_value(said)
                attributes[name] = value.decode() if isinstance(value, bytes) else value
        shapes = [shape for kind in given if (shape := _sizes(kind)) is not None]
        out = bundle.shapes(shapes, attributes) if len(shapes) == len(given) else None
        for number in range(context.get_num_outputs()):
            kind = type(given[0])()
            kind.tensor_type.elem_type = given[leading(bundle)].tensor_type.elem_type
            for size in () if out is None else out[number]:
                dim = kind.tensor_type.shape.dim.add()
                if isinstance(size, int):
                    dim.dim_value = size
            context.set_output_type(number, kind)

    made.set_type_and_shape_inference_function(infer)
    return made


def _attribute_word(kind: tuple[type, bool], words: Mapping[type, str]) -> str:
    return words[kind[0]] + ("S" if kind[1] else "")


class Unknown:
    """A size that is not known; so is whatever is computed from it."""

    def __add__(self, other: Any) -> Unknown:
        return self

    __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __floordiv__ = __rfloordiv__ = __add__
    smaller = larger = __add__


def _sizes(kind: Any) -> list[Any] | None:
    if not kind.tensor_type.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") else Unknown() for dim in kind.tensor_type.shape.dim]


def evaluator_of(bundle: Bundle) -> type:
    """Returns the operator for onnx's reference evaluator."""
    from onnx.reference.op_run import OpRun

    def run(self: Any, *inputs: Any, **attributes: Any) -> tuple[Any, ...]:
        given = {name: value for name, value in attributes.items() if value is not None and name in bundle.attributes}
        return tuple(bundle.reference([value for value in inputs if value is not None], bundle.filled(given)))

    words = [f"{name}=None" if name in bundle.optional else name for name in bundle.inputs]
    parameters = ", ".join([*words, *(f"{name}=None" for name in bundle.attributes)])
    passed = ", ".join([*bundle.inputs, *(f"{name}={name}" for name in bundle.attributes)])
    space: dict[str, Any] = {"run": run}
    exec(
        f"def _run(self, {parameters}):\n    return run(self, {passed})", space
    )  # the evaluator looks at the signature
    return type(bundle.op, (OpRun,), {"op_domain": bundle.domain, "_run": space["_run"], "op_schema": bundle.schema()})
