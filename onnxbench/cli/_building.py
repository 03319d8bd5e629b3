"""What commands that build TensorRT engines share: which TensorRT, for which GPUs, and for which shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from onnxbench.cli._command import TYPED

EngineName = Annotated[
    str | None,
    typer.Option("--engine", metavar="NAME", help="tensorrt or tensorrt-rtx.", show_default="what is installed"),
]
ComputeCapability = Annotated[
    list[str] | None,
    typer.Option(
        "--compute-capability", metavar="CC...", show_default="TensorRT's own", help="GPUs to build for: 8.9 12.0."
    ),
]
_SHAPE_FLAGS = {"--min-shapes": "min", "--opt-shapes": "opt", "--max-shapes": "max", "--shapes": "all",
                "--profile": "profile"}  # fmt: skip


def shape_option(name: str, words: str) -> Any:
    """Returns the declaration of an option on shapes; ``shape_words`` has what was said by all of them."""
    return typer.Option(name, metavar="SPEC...", help=words, show_default=False)


def shape_words() -> list[tuple[str, str]]:
    """Returns the options on shapes in the order in which they were typed, which is what tells profiles apart."""
    words, found = TYPED.get(), []
    for at, word in enumerate(words):
        name, sign, value = word.partition("=")
        if word == "--":
            break
        if name in _SHAPE_FLAGS:
            text = value if sign else words[at + 1] if at + 1 < len(words) else ""
            found.append((_SHAPE_FLAGS[name], text))
    return found


def capabilities_of(words: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the compute capabilities that ``--compute-capability`` names.

    Raises:
        UsageError: One of them is none.
    """
    from onnxbench.engine import parse_capability

    return tuple(sm for word in words or () for sm in parse_capability(word))
