"""How an operator becomes ONNX by a user's rewrite: what a rewrite's body is, and the default exporter.

A body is an onnxscript function or ONNX text. The default exporter calls a translation while an evaluator records
nodes: a function runs under it as it is, and the nodes of a text are recorded one by one. ``_torchscript`` gives the
same nodes to the TorchScript exporter.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxbench.errors import NotFoundError, UnsupportedError, UsageError, did_you_mean
from onnxbench.modeltext import read_functions

if TYPE_CHECKING:
    from onnx import AttributeProto, FunctionProto

REQUIRED: Any = object()


@dataclass(frozen=True, slots=True)
class Parameter:
    """An argument of an operator.

    Attributes:
        name: Its name.
        is_tensor: Whether it is a tensor, or a list of them.
        default: What it is if it is not given; ``REQUIRED`` if it must be.
        kind: Its type, as PyTorch writes it: ``Tensor``, ``int``, ``int[]``, ``float``, ``bool``, ``str``.
    """

    name: str
    is_tensor: bool
    default: Any
    kind: str


@dataclass(frozen=True, slots=True)
class Body:
    """What an operator becomes.

    Attributes:
        label: The rewrite, for messages.
        parameters: The arguments of the operator.
        function: The onnxscript function, or a function of nodes: a text, or a script that is as plain as one.
        is_text: Whether it is one of nodes.
        order: The names of a script's parameters, which stand for the arguments in order; empty for a text.
    """

    label: str
    parameters: Sequence[Parameter]
    function: Any
    is_text: bool
    order: tuple[str, ...] = ()

    def values(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """Returns a value for each parameter."""
        given = dict(zip((each.name for each in self.parameters), args, strict=False)) | dict(kwargs)
        return [given.get(each.name, None if each.default is REQUIRED else each.default) for each in self.parameters]

    def fitted(self, values: Sequence[Any]) -> list[Any]:
        """Returns the values that the function takes; those that it does not must be what they are by default.

        Raises:
            UnsupportedError: One of them is not.
        """
        taken = _taken(self.function)
        if taken is None:
            return list(values)
        for parameter, value in list(zip(self.parameters, values, strict=False))[taken:]:
            self._require_default(parameter, value)
        return list(values[:taken])

    def bound(self, values: Sequence[Any]) -> tuple[dict[str, tuple[Any, Parameter]], dict[str, Any]]:
        """Returns the inputs and the attributes of the text by name.

        Raises:
            UnsupportedError: An argument has a value that the text does not take.
        """
        from onnx.helper import get_attribute_value

        names = {each.name: each for each in self.parameters}
        at = dict(zip(names, values, strict=False))
        own = {each.name: get_attribute_value(each) for each in self.function.attribute_proto}
        if self.order:
            for parameter, value in list(zip(self.parameters, values, strict=False))[len(self.order) :]:
                self._require_default(parameter, value)
            given = dict(zip(self.order, zip(values, self.parameters, strict=False), strict=False))
            inputs = {name: given[name] for name in self.function.input}
            said = {name: value for name, (value, _) in given.items() if value is not None}
            return inputs, {name: said.get(name, own.get(name)) for name in (*self.function.attribute, *own)}
        if all(name in names for name in self.function.input):
            inputs = {name: (at[name], names[name]) for name in self.function.input}
        else:
            tensors = [each for each in self.parameters if each.is_tensor]
            inputs = {name: (at[each.name], each) for name, each in zip(self.function.input, tensors, strict=False)}
        used = {parameter.name for _, parameter in inputs.values()}
        attributes = {name: at[name] for name in self.function.attribute}
        attributes |= {name: at.get(name, value) for name, value in own.items()}
        for parameter in self.parameters:
            if parameter.name not in used and parameter.name not in attributes:
                self._require_default(parameter, at[parameter.name])
        return inputs, attributes

    def _require_default(self, parameter: Parameter, value: Any) -> None:
        default = None if parameter.default is REQUIRED else parameter.default
        if value is None or (not _is_symbolic(value) and value == default):
            return
        raise UnsupportedError(
            f"{self.label} takes no argument {parameter.name!r}, and the model gives it as {_short(value)}",
            hint="Take it as an attribute or parameter of that name.",
        )


def _is_symbolic(value: Any) -> bool:
    return hasattr(value, "producer") or hasattr(value, "node")


def _short(value: Any) -> str:
    text = "a tensor" if _is_symbolic(value) else repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def _taken(function: Any) -> int | None:
    """Returns how many arguments by position a function takes; None for any number."""
    try:
        parameters = inspect.signature(getattr(function, "function", function)).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return None
    return sum(each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) for each in parameters)


# ---------------------------------------------------------------- what is said of an operator


def read_text(text: str, source: str, line: int) -> FunctionProto:
    """Returns the function of a text.

    Args:
        text: One ONNX text function.
        source: The file that it stands in.
        line: Its first line there.

    Raises:
        SpecError: It does not parse; the line is named.
        UsageError: There is not just one function in it, or one with bodies.
    """
    found, _ = read_functions(text, source=source, line=line)
    if len(found) != 1:
        raise UsageError(f"{source}:{line}: {len(found)} functions are given for one operator", hint="Write one.")
    function = found[0]
    for node in function.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise UsageError(
                f"{source}:{line}: {node.op_type} has a body, and the text of a symbolic cannot have one",
                hint="Write it as an onnxscript function.",
            )
    known = {*function.input, ""}
    for node in function.node:
        loose = next((name for name in node.input if name not in known), None)
        if loose is not None:
            raise UsageError(f"{source}:{line}: {node.op_type} reads {loose!r}, which nothing before it makes")
        known.update(node.output)
    loose = next((name for name in function.output if name not in known), None)
    if loose is not None:
        raise UsageError(f"{source}:{line}: the output {loose!r} is made by no node")
    return function


def operators_of(target: str | Any) -> list[Any]:
    """Returns the overloads that ``domain::op``, ``domain::op.overload``, a packet or an overload stand for.

    Raises:
        NotFoundError: PyTorch knows no such operator.
    """
    import torch

    if isinstance(target, torch._ops.OpOverload):
        return [target]
    if isinstance(target, torch._ops.OpOverloadPacket):
        return _overloads(target)
    domain, _, name = target.partition("::")
    name, dot, overload = name.partition(".")
    space = getattr(torch.ops, domain)
    packet = getattr(space, name, None)
    if packet is None:
        known = {
            each.name.split("::")[1] for each in torch._C._jit_get_all_schemas() if each.name.startswith(f"{domain}::")
        }
        hint = did_you_mean(name, known) if known else "Define it (torch.library) before the rewrites are switched on."
        raise NotFoundError(f"PyTorch has no operator {target!r}", hint=hint)
    if dot:
        if overload not in packet.overloads():
            raise NotFoundError(
                f"PyTorch has no operator {target!r}",
                hint=f"{domain}::{name} has: {', '.join(packet.overloads())}.",
            )
        return [getattr(packet, overload)]
    return _overloads(packet)


def _overloads(packet: Any) -> list[Any]:
    found = [getattr(packet, name) for name in packet.overloads()]
    plain = [each for each in found if not any(argument.is_out for argument in each._schema.arguments)]
    return [each for each in plain if any(argument.is_tensor for argument in parameters_of(each))] or plain or found


def parameters_of(operator: Any) -> list[Parameter]:
    """Returns the arguments of an operator."""
    return _parameters(operator._schema)


def _parameters(schema: Any) -> list[Parameter]:
    return [
        Parameter(
            each.name, "Tensor" in str(each.type), each.default_value if each.has_default_value() else REQUIRED,
            str(each.type).removeprefix("Optional[").removesuffix("]") if str(each.type).startswith("Optional[")
            else str(each.type),
        )
        for each in schema.arguments
    ]  # fmt: skip


def require_fit(body: Body) -> None:
    """Raises a UsageError if a body takes what the operator does not have."""
    if body.is_text and not body.order:
        names = [each.name for each in body.parameters]
        strange = next((name for name in body.function.attribute if name not in names), None)
        if strange is not None:
            raise UsageError(
                f"{body.label}: the text has an attribute {strange!r}, which is no argument of the operator",
                hint=did_you_mean(strange, names) or f"Its arguments are {', '.join(names)}.",
            )
        tensors = sum(each.is_tensor for each in body.parameters)
        if len(body.function.input) > tensors and not all(name in names for name in body.function.input):
            raise UsageError(
                f"{body.label}: the text has {len(body.function.input)} inputs, "
                f"and the operator takes {tensors} tensors",
                hint=f"Its arguments are {', '.join(names)}.",
            )
        return
    if body.order:
        missing = body.order[len(body.parameters) :]
        own = [each.name for each in body.function.attribute_proto]
        more = next((name for name in missing if name not in own), None)
        if more is not None:
            raise _too_much(body, more)
        return
    try:
        parameters = inspect.signature(getattr(body.function, "function", body.function)).parameters.values()
    except (TypeError, ValueError):
        return
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [each for each in parameters if each.kind in by_place and each.default is each.empty]
    alone = [each for each in parameters if each.kind is each.KEYWORD_ONLY and each.default is each.empty]
    if len(needed) > len(body.parameters) or alone:
        raise _too_much(body, (alone or needed[len(body.parameters) :])[0].name)


def _too_much(body: Body, name: str) -> UsageError:
    return UsageError(
        f"{body.label} takes {name!r}, and the operator has no argument for it",
        hint=f"Its arguments are {', '.join(each.name for each in body.parameters) or 'none'}.",
    )


def make_body(label: str, parameters: Sequence[Parameter], made: Any) -> Body:
    """Returns the body that a rewrite was given as: ONNX text read, an onnxscript function, or any function.

    Raises:
        UsageError: It takes what the operator does not have.
    """
    is_text = type(made).__name__ == "FunctionProto"
    order: tuple[str, ...] = ()
    is_script = not is_text and hasattr(made, "to_function_proto") and not made.traceable
    # A script of plain nodes needs no annotation of what it returns; one with bodies or calls runs as it is.
    if is_script and not made.function_ir.get_called_functions():
        proto = made.to_function_proto()
        if not any(each.HasField("g") or each.graphs for node in proto.node for each in node.attribute):
            order = tuple(inspect.signature(made.function).parameters)
            made, is_text = proto, True
    body = Body(label, parameters, made, is_text, order)
    require_fit(body)
    return body


# ---------------------------------------------------------------- the default exporter


def translation(body: Body, fire: Callable[[], None]) -> Callable[..., Any]:
    """Returns what the default exporter calls to translate an operator (``custom_translation_table``)."""

    def translate(*args: Any, **kwargs: Any) -> Any:
        fire()
        return translated(body, body.values(args, kwargs))

    return translate


def translated(body: Body, values: Sequence[Any]) -> Any:
    """Returns what the default exporter's evaluator made of a body."""
    if not body.is_text:
        made_of_it = body.function(*body.fitted(values))
        if isinstance(made_of_it, (list, tuple)) and not made_of_it:
            raise UsageError(
                f"{body.label} does not say how many results it has",
                hint="Annotate what the script returns: -> FLOAT[...], or a tuple of them.",
            )
        return made_of_it
    import onnx_ir as ir
    from onnxscript import evaluator

    recorder: Any = evaluator.default()
    inputs, attributes = body.bound(values)
    first = next((value for value in values if isinstance(value, ir.Value)), None)
    versions = {each.domain: each.version for each in body.function.opset_import}

    def constant(value: Any, parameter: Parameter) -> Any:
        if value is None or isinstance(value, ir.Value):
            return value
        made = ir.node("Constant", [], {"value": ir.tensor(constant_array(value, parameter, _numpy_type(first)))})
        recorder.nodes.append(made)
        return made.outputs[0]

    known: dict[str, Any] = {name: constant(value, parameter) for name, (value, parameter) in inputs.items()}
    known[""] = None
    for node in body.function.node:
        said = [resolved(each, attributes, body) for each in node.attribute]
        made = ir.Node(
            node.domain, node.op_type, [known[name] for name in node.input],
            [ir.serde.deserialize_attribute(each) for each in said if each is not None],
            num_outputs=len(node.output), version=versions.get(node.domain),
        )  # fmt: skip
        recorder.nodes.append(made)
        known.update(zip(node.output, made.outputs, strict=True))
    outputs = [known[name] for name in body.function.output]
    return outputs[0] if len(outputs) == 1 else outputs


def _numpy_type(value: Any) -> Any:
    return value.dtype.numpy() if value is not None and value.dtype is not None else None


def constant_array(value: Any, parameter: Parameter, like: Any) -> Any:
    """Returns a number, or a list of them, as a constant: a tensor argument's has the type of the other tensors."""
    import numpy as np

    values = value if isinstance(value, (list, tuple)) else [value]
    if any(not isinstance(each, (bool, int, float)) for each in values):
        raise UnsupportedError(f"argument {parameter.name!r} is {_short(value)}, which cannot be a constant")
    if parameter.is_tensor and like is not None:
        return np.array(value, like)
    kind = np.bool_ if all(isinstance(each, bool) for each in values) else np.int64
    return np.array(value, np.float32 if any(isinstance(each, float) for each in values) else kind)


def resolved(attribute: AttributeProto, given: Mapping[str, Any], body: Body) -> AttributeProto | None:
    """Returns an attribute with its value where it refers to one of the function's; None where that has none."""
    from onnx import AttributeProto
    from onnx.helper import make_attribute

    if not attribute.ref_attr_name:
        return attribute
    value = given[attribute.ref_attr_name]
    if value is None:
        return None
    values = value if isinstance(value, (list, tuple)) else [value]
    if any(not isinstance(each, (bool, int, float, str)) for each in values):
        raise UnsupportedError(
            f"{body.label}: {attribute.ref_attr_name!r} depends on the inputs, and an attribute cannot",
            hint="Take it as an input of the text.",
        )
    convert: Any = {
        AttributeProto.INT: int, AttributeProto.INTS: int, AttributeProto.FLOAT: float, AttributeProto.FLOATS: float,
    }.get(attribute.type, lambda each: each)  # fmt: skip
    is_list = attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS, AttributeProto.STRINGS)
    converted = [convert(each) for each in values]
    made = converted if is_list or isinstance(value, (list, tuple)) else converted[0]
    return make_attribute(attribute.name, made, attr_type=attribute.type or None)
