"""A PyTorch model as a source of values: those of its fx nodes, or of the outputs of its modules.

    side = torch_values(load_source("model.py:make"), model=model)
    side.values["layers_0_relu"].origin.source          # model.py:12
    for batch in side.stream(feeds, [["conv2d"], ["relu", "linear"]]):
        ...                                             # {"conv2d": array}, then {"relu": array, "linear": array}

*Nodes of a program.* The default exporter turns a model into an ``ExportedProgram`` of core operators. Where an export
was made in this process its program is to be given (``program``): names and numbers of fx nodes are those of that
program only. Otherwise the model is exported again by ``torch.onnx.export``, with the sizes open that the ONNX file
leaves open: that gives the same program for the same model and version of PyTorch, and whoever matches values holds
the file's metadata against it all the same. Nodes run in the order in which values are asked for, each once, and a
value is dropped as soon as nothing reads it any more.

*Outputs of modules.* A model that ``torch.export`` cannot take is called as it is, and forward hooks give what its
modules return: copies, for the code after a module may change a tensor in place. The model runs once per batch, up to
the last value that the batch asks for; so no more than one batch is held.

Both run without gradients, and from the same random state each time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from onnxbench.captures import input_ports
from onnxbench.errors import BenchError
from onnxbench.pytorch import marks, require_torch
from onnxbench.pytorch._binding import bound_inputs, open_sizes
from onnxbench.pytorch._binding import similar_inputs as similar_inputs
from onnxbench.pytorch._dynamic import Axes
from onnxbench.pytorch._exporters import exported_program
from onnxbench.pytorch._module_values import ModuleValues
from onnxbench.pytorch._program_values import ProgramValues
from onnxbench.pytorch._value_source import ROOT as ROOT
from onnxbench.pytorch._value_source import TorchValue as TorchValue
from onnxbench.pytorch._value_source import TorchValues as TorchValues
from onnxbench.pytorch.sources import Source, require_inputs

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxbench.model import Model


def torch_values(
    source: Source,
    *,
    program: Any = None,
    model: Model | None = None,
    how: Literal["auto", "program", "modules"] = "auto",
    inputs: Mapping[str, str] | None = None,
    translations: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
) -> TorchValues:
    """Returns the values of a PyTorch model, ready to be asked for; its module is put into evaluation mode.

    Args:
        source: The model, with example inputs.
        program: The ``ExportedProgram`` that an export of it used, if this process made one (``Exported.program``).
        model: The ONNX model whose inputs are fed, and whose open sizes stay open.
        how: ``program`` for fx nodes, ``modules`` for hooks; ``auto`` takes hooks where PyTorch cannot export.
        inputs: Which argument an input of ``model`` is, where names do not tell.
        translations: As in ``ExportOptions``, for a model that was exported with them.

    Raises:
        UsageError: There are no example inputs.
        FeedsError: The inputs of the ONNX model are not those of the PyTorch model.
        UnsupportedError: ``program`` was asked for and an operator has no translation to ONNX.
        ExecutionError: The model failed, or was to be exported and cannot be.
    """
    require_torch("comparing with PyTorch")
    require_inputs(source)
    if source.kind != "program" and source.module.training:
        source.module.eval()
    source = source.in_order()
    ports = input_ports(model.proto.graph) if model is not None else []
    # First, for it is quick, and says what is wrong where this is another model's file.
    bound = bound_inputs([port for port in ports if port.required], source.leaves(), inputs or {}, source.spelling)
    made: TorchValues
    if how == "modules" or (how == "auto" and program is None and source.kind == "torchscript"):
        made = ModuleValues(source)
    elif program is not None:
        made = ProgramValues(source, program, ("the exported program of the export itself",))
    else:
        made = _exported(source, open_sizes(ports, bound), translations or {}, or_modules=how == "auto")
    made.inputs = bound
    return made


def _exported(
    source: Source, dynamic: Mapping[str, Axes], translations: Mapping[Callable[..., Any], Callable[..., Any]],
    *, or_modules: bool,
) -> TorchValues:  # fmt: skip
    """Returns the values of the program that ``torch.onnx.export`` makes, or else of what can be had."""
    table = {**marks.translation_table(), **translations}
    attempts = [dynamic, {}] if dynamic else [{}]
    failed: BenchError | None = None
    for at, axes in enumerate(attempts):
        try:
            program = exported_program(source, axes, table)
        except BenchError as error:
            failed = failed or error
            continue
        notes = ["exported again to get the values of fx nodes"]
        if at:
            notes.append("its sizes are those of the example inputs: with the file's open ones it cannot be exported")
        return ProgramValues(source, program, notes)
    assert failed is not None
    if not or_modules:
        raise failed
    return ModuleValues(source, [f"values are outputs of modules, for {failed.message}"])
