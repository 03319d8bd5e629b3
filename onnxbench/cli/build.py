"""``onnxbench build``: a model from ONNX text or a YAML specification."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxbench.cli._command import means_nothing_without
from onnxbench.cli._edits import required_target
from onnxbench.cli._options import (
    AllowOutside,
    AsJson,
    ExternalData,
    ExternalThreshold,
    PerTensor,
    Quiet,
    ShareWeights,
    ShortOutput,
    save_options,
)
from onnxbench.cli._render import note, print_json, print_written
from onnxbench.wording import plural

if TYPE_CHECKING:
    from onnxbench.modelspec import Built


@means_nothing_without(external_threshold=("external_data", "per_tensor"))
def build(
    spec: Annotated[
        str, typer.Argument(metavar="SPEC", help="ONNX text, or YAML by its ending; - is stdin.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Argument(metavar="OUT", help="The model to write.", show_default=False)] = None,
    weights_from: Annotated[
        Path | None,
        typer.Option(
            "--weights-from",
            metavar="MODEL",
            help="Take the values that the text leaves out ({...}) from this model.",
            show_default=False,
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", metavar="text|yaml", help="What SPEC is, whatever its name.", show_default=False),
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option("--opset", min=1, metavar="N", help="Use this opset, whatever SPEC says.", show_default=False),
    ] = None,
    external_data: ExternalData = None,
    per_tensor: PerTensor = False,
    external_threshold: ExternalThreshold = "1K",
    share_weights: ShareWeights = False,
    short_o: ShortOutput = None,
    allow_outside: AllowOutside = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Build a checked model from ONNX text or a YAML specification.

    Nodes stand in any order, types of outputs are inferred, attributes get the type that their operator states.
    A mistake is answered with its line. Without an opset the model uses opset 21 (IR version 10). The text is what
    'show' prints; the YAML keys are in docs/build-spec.md.

    \b
    Examples:
      onnxbench build linear_func.yaml linear_func.onnx
      onnxbench build net.onnxtxt net.onnx --opset 17
      onnxbench build edited.txt new.onnx --weights-from model.onnx
      onnxbench show model.onnx --weights inline | onnxbench build - copy.onnx
      echo 'g (float[4] x) => (y) { y = Relu(x) }' | onnxbench build - relu.onnx
    """
    from onnxbench import modelspec

    target = required_target(out, short_o)
    text = sys.stdin.buffer.read() if spec == "-" else None
    done = modelspec.build_file(
        "<stdin>" if spec == "-" else spec, target, text=text, form=modelspec.form_named(form),
        weights_from=weights_from, opset=opset, allow_outside=allow_outside,
        options=save_options(external_data, per_tensor, external_threshold, share_weights),
    )  # fmt: skip
    note(*done.notes, quiet=quiet)
    if as_json:
        print_json("build", done)
    else:
        _print_built(done)


def _print_built(done: Built) -> None:
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in done.opsets.items())
    held = {"node": done.nodes, "function": done.functions, "tensor": done.tensors}
    counted = [plural(count, what) for what, count in held.items()]
    print(f"{', '.join(counted)}; {opsets}")
    for what, values in (("input", done.inputs), ("output", done.outputs)):
        for name, kind in values.items():
            print(f"{what:<7}{name}: {kind}")
    print_written(done.saved)
