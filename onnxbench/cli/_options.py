"""Options that several commands share, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="The model file.", show_default=False)]
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
        help="Write weights to this file beside the model ('auto': a name made from the model's).",
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
