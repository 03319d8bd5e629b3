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

_TYPE_NAMES = {
    "float32": "tensor(float)", "float16": "tensor(float16)", "bfloat16": "tensor(bfloat16)",
    "int32": "tensor(int32)", "int64": "tensor(int64)",
}  # fmt: skip
OPSET = 17


def model_of(
    bundle: Bundle, inputs: Sequence[np.ndarray], attributes: Mapping[str, Any], *, dynamic: bool
) -> ModelProto:
    """Returns a model of one node."""
    from onnx import helper

    from onnxbench.captures import onnx_dtype

    def info(name: str, dtype: int, shape: Sequence[Any] | None, rank: int) -> Any:
        dims = [f"{name}_{axis}" for axis in range(rank)] if dynamic or shape is None else list(shape)
        return helper.make_tensor_value_info(name, dtype, dims)

    names = bundle.inputs[: len(inputs)]
    given = [info(n, onnx_dtype(v.dtype), v.shape, v.ndim) for n, v in zip(names, inputs, strict=True)]
    shapes = bundle.shapes(bundle.padded([value.shape for value in inputs]), bundle.filled(attributes))
    typed = inputs[bundle.leading()].dtype
    made = []
    for name, shape in zip(bundle.outputs, shapes, strict=True):
        sizes = [f"{name}_{axis}" if bundle.is_counted(name, axis) else size for axis, size in enumerate(shape)]
        made.append(info(name, onnx_dtype(element_type(bundle, name, typed)), sizes, len(sizes)))
    node = helper.make_node(bundle.op, names, bundle.outputs, name=bundle.name, domain=bundle.domain, **attributes)
    graph = helper.make_graph([node], bundle.name, given, made)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(bundle.domain, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def element_type(bundle: Bundle, output: str, typed: np.dtype[Any]) -> np.dtype[Any]:
    """Returns the element type of an output, where the inputs that have no other have this one."""
    import numpy as np

    return np.dtype(bundle.types[output][0]) if output in bundle.types else typed


def function_of(bundle: Bundle, attributes: Mapping[str, Any], opset: int, inputs: int) -> FunctionProto | None:
    """Returns the bundle's body as a function of so many inputs; None if it has none for these attributes and opset.

    Raises:
        SpecError: It is no ONNX text, or has other inputs or outputs than the operator.
    """
    from onnx import parser

    if bundle.body is None:
        return None
    more = (inputs,) if any(name in bundle.optional for name in bundle.inputs) else ()
    text = bundle.body(bundle.filled(attributes), opset, *more)
    if text is None:
        return None
    header = f'<domain: "{bundle.domain}", opset_import: ["" : {opset}]> {bundle.op}'
    try:
        made = parser.parse_function(f"{header} {text}")
    except parser.ParseError as error:
        raise SpecError(f"bundle {bundle.name}: its body is no ONNX text: {error}") from None
    if len(made.input) != inputs or len(made.output) != len(bundle.outputs):
        raise SpecError(
            f"bundle {bundle.name}: its body has {len(made.input)} inputs and {len(made.output)} outputs; the "
            f"operator has {inputs} and {len(bundle.outputs)}"
        )
    return made


def schema_of(bundle: Bundle) -> OpSchema:
    """Returns the operator's schema, with its shape function."""
    import numpy as np
    from onnx import AttributeProto, defs, helper

    from onnxbench.captures import onnx_dtype

    schema = defs.OpSchema
    kinds = {
        (int, False): "INT", (float, False): "FLOAT", (str, False): "STRING", (int, True): "INTS",
        (float, True): "FLOATS",
    }  # fmt: skip
    everything = sorted({f"tensor({each})" for each in (
        "float", "double", "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool")})  # fmt: skip
    option = defs.OpSchema.FormalParameterOption

    def parameter(name: str) -> OpSchema.FormalParameter:
        kind = "A" if name in bundle.any_dtype else f"T_{name}" if name in bundle.types else "T"
        optional = option.Optional if name in bundle.optional else option.Single
        return schema.FormalParameter(name, kind, param_option=optional)

    others = [(f"T_{name}", [_TYPE_NAMES[each] for each in kinds], "") for name, kinds in bundle.types.items()]
    made = schema(
        bundle.op, bundle.domain, 1, doc=bundle.description,
        inputs=[parameter(name) for name in bundle.inputs],
        outputs=[parameter(name) for name in bundle.outputs],
        type_constraints=[("T", [_TYPE_NAMES[each] for each in bundle.dtypes], ""), ("A", everything, ""), *others],
        attributes=[
            schema.Attribute(name, getattr(schema.AttrType, kinds[kind_of(value)]))
            if is_required(value) else schema.Attribute(name, helper.make_attribute(name, value))
            for name, value in bundle.attributes.items()
        ],
    )  # fmt: skip

    def infer(context: Any) -> None:
        given = [context.get_input_type(number) for number in range(context.get_num_inputs())]
        attributes: dict[str, Any] = dict(bundle.attributes)
        for name in attributes:
            said: AttributeProto | None = context.get_attribute(name)
            if said is not None and said.type:
                value = helper.get_attribute_value(said)
                attributes[name] = value.decode() if isinstance(value, bytes) else value
        shapes = [shape for kind in given if (shape := _sizes(kind)) is not None]
        out = bundle.shapes(bundle.padded(shapes), attributes) if len(shapes) == len(given) else None
        for number in range(context.get_num_outputs()):
            kind = type(given[0])()
            kind.tensor_type.elem_type = given[bundle.leading()].tensor_type.elem_type
            if bundle.outputs[number] in bundle.types:
                kind.tensor_type.elem_type = onnx_dtype(np.dtype(bundle.types[bundle.outputs[number]][0]))
            for axis, size in enumerate(() if out is None else out[number]):
                dim = kind.tensor_type.shape.dim.add()
                if isinstance(size, int) and not bundle.is_counted(bundle.outputs[number], axis):
                    dim.dim_value = size
            context.set_output_type(number, kind)

    made.set_type_and_shape_inference_function(infer)
    return made


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
        return tuple(bundle.reference(list(inputs), bundle.filled(given)))

    inputs = [f"{name}=None" if name in bundle.optional else name for name in bundle.inputs]
    parameters = ", ".join([*inputs, *(f"{name}=None" for name in bundle.attributes)])
    passed = ", ".join([*bundle.inputs, *(f"{name}={name}" for name in bundle.attributes)])
    space: dict[str, Any] = {"run": run}
    exec(
        f"def _run(self, {parameters}):\n    return run(self, {passed})", space
    )  # the evaluator looks at the signature
    return type(bundle.op, (OpRun,), {"op_domain": bundle.domain, "_run": space["_run"], "op_schema": bundle.schema()})
