"""Options that several commands share, declared once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from onnxbench.feeding import FeedOptions
    from onnxbench.writer import SaveOptions

ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="The model file.", show_default=False)]
OutArgument = Annotated[Path | None, typer.Argument(metavar="OUT", help="The file to write.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON (with a schema_version).")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", "--silent", help="No notes on stderr, only errors.")]
AllowOutside = Annotated[
    bool,
    typer.Option("--allow-outside", help="Follow external data that leaves the model's folder (you trust the model)."),
]
ExternalData = Annotated[
    str | None,
    typer.Option(
        "--save-external-data",
        "--external-data",
        metavar="FILE",
        help="Write weights to this file beside the model ('auto', or nothing: a name made from the model's).",
        show_default=False,
    ),
]
PerTensor = Annotated[
    bool, typer.Option("--external-per-tensor", help="Write external weights to one file per tensor.")
]
ExternalThreshold = Annotated[
    str,
    typer.Option(
        "--external-data-size-threshold", metavar="SIZE", help="Smaller tensors stay inline (bytes, or 16K, 1M)."
    ),
]
ShareWeights = Annotated[
    bool,
    typer.Option("--share-weights", help="Refer to the input's own weights files instead of copying their bytes."),
]
InlineFunctions = Annotated[bool, typer.Option("--inline-functions", help="Inline local functions first.")]
FeedsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--feeds", "--load-inputs", "--load-input-data", metavar="DATA...", show_default=False,
        help="Inputs: .npz, .npy, .pb, Polygraphy .json, x:f.bin, a folder, or script.py:func (which is run).",
    ),
]  # fmt: skip
OnPlace = Annotated[
    str | None,
    typer.Option(
        "--on", metavar="PLACE", show_default=False,
        help="What runs MODEL: ort:all, ort:none,threads=1, ort:extended,provider=cuda, reference, trt,tf32=off.",
    ),
]  # fmt: skip
ReferenceDtype = Annotated[
    str | None,
    typer.Option(
        "--reference-dtype", metavar="TYPE", show_default=False, help="What PyTorch computes in, say float64."
    ),
]
OperatorLibraries = Annotated[
    list[Path] | None,
    typer.Option(
        "--custom-ops", metavar="LIB...", show_default=False, help="Libraries with custom operators (they are code)."
    ),
]
PluginBundles = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin", metavar="PATH...", show_default=False,
        help="Custom operators: bundles by name or folder (they are code and are run).",
    ),
]  # fmt: skip
CustomOps = Annotated[
    list[Path] | None,
    typer.Option(
        "--custom-ops", metavar="LIB...", show_default=False,
        help="With --verify: libraries with custom operators (they are code).",
    ),
]  # fmt: skip
ShapeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--shape", "--shapes", "--input-shapes", metavar="SPEC...", show_default=False,
        help="Shapes of drawn inputs: x:[1,3,224,224], x:1x3x224x224, 1,3,224,224.",
    ),
]  # fmt: skip
DimOption = Annotated[
    list[str] | None,
    typer.Option(
        "--dim", metavar="NAME=N...", show_default=False, help="Sizes of symbolic dimensions of drawn inputs."
    ),
]
RangeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--val-range", metavar="RANGE...", show_default=False, help="Ranges of drawn values: [0,1], x:[2,50]."
    ),
]
Fill = Annotated[bool, typer.Option("--fill", help="Draw the inputs that the data lacks.")]
Cast = Annotated[
    bool,
    typer.Option("--cast", help="Convert element types of the data to the model's, but not floats to integers."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of drawn values.")]
AbsoluteTolerance = Annotated[
    float | None, typer.Option("--atol", "--abs", min=0, help="Absolute tolerance.", show_default=False)
]
RelativeTolerance = Annotated[
    float | None, typer.Option("--rtol", "--rel", min=0, help="Relative tolerance.", show_default=False)
]
RelativeTolerances = Annotated[
    list[str] | None,
    typer.Option("--rtol", "--rel", metavar="TOL...", show_default=False, help="Relative tolerance, likewise."),
]
Warmup = Annotated[int, typer.Option("--warmup", "--warm-up", min=0, help="Runs before the timed ones.")]
Prove = Annotated[bool, typer.Option("--prove", help="Run the pieces in a chain and compare them with the whole.")]
Infer = Annotated[
    bool | None,
    typer.Option(
        "--infer/--no-infer",
        help="Work out types that the model does not state, with ONNX Runtime's help. Default: without it, up to "
        "50,000 nodes.",
        show_default=False,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done and write nothing.")]

Expect = Annotated[
    str | None,
    typer.Option(
        "--expect", metavar="N", show_default=False,
        help="How many targets each step given by an option must match: 1, all, optional, >=2.",
    ),
]  # fmt: skip
Verify = Annotated[
    bool, typer.Option("--verify", "--validate", help="Run the model before and after each step, and judge the drift.")
]
Interactive = Annotated[bool, typer.Option("--interactive", help="Show each step and ask.")]
SaveRecipe = Annotated[
    Path | None,
    typer.Option("--save-recipe", metavar="F.yaml", help="Write the steps out as a recipe.", show_default=False),
]
SaveUndo = Annotated[
    Path | None,
    typer.Option(
        "--save-undo", metavar="F.undo", show_default=False,
        help="Write the way back to a file, for 'onnxbench edit --undo'.",
    ),
]  # fmt: skip
NoStamp = Annotated[bool, typer.Option("--no-stamp", help="Do not name the recipe's digest in the model's metadata.")]
ShortOutput = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="OUT", help="The same as OUT.", show_default=False)
]
OutOrOutputs = Annotated[
    list[str] | None,
    typer.Option(
        "-o", "--output", metavar="OUT|SEL...", show_default=False,
        help="OUT, or (if OUT is given) the same as --outputs.",
    ),
]  # fmt: skip


def refuse_given(options: Mapping[str, Any], why: str) -> None:
    """Raises UsageError for an option that was given and means nothing with another one, which ``why`` names."""
    from onnxbench.errors import UsageError

    for option, value in options.items():
        if value is not None:
            raise UsageError(f"{option} means nothing with {why}")


def feed_options(
    feeds: list[str] | None, shape: list[str] | None, dim: list[str] | None, val_range: list[str] | None, seed: int
) -> FeedOptions:
    """Returns what these options say of a model's inputs."""
    from onnxbench.feeding import FeedOptions

    return FeedOptions(feeds or (), shape or (), dim or (), val_range or (), seed)


def save_options(external: str | None, per_tensor: bool, threshold: str, share: bool) -> SaveOptions:
    """Returns how weights are stored, as these options say."""
    from onnxbench.errors import UsageError
    from onnxbench.specs import parse_size
    from onnxbench.writer import SaveOptions

    if external == "":
        raise UsageError("--save-external-data names no file", hint="Leave the name out to have one made.")
    return SaveOptions(
        external=True if external or per_tensor else None,
        location=None if external in (None, "auto") else external,
        per_tensor=per_tensor,
        threshold=parse_size(threshold),
        share_weights=share,
    )
