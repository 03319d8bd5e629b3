"""``onnxbench show``: a model as text."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxbench.cli._options import AllowOutside, AsJson, ModelArgument, Quiet
from onnxbench.cli._render import console, note, print_json

if TYPE_CHECKING:
    from rich.highlighter import Highlighter
    from rich.theme import Theme

_COLOURED_LINES = 20_000  # colour costs more than the line; nobody reads beyond
_STYLE = "onnx."
_STYLES = {"operator": "bold cyan", "key": "blue", "type": "green", "string": "yellow", "elided": "magenta",
           "comment": "dim"}  # fmt: skip
_PARTS = (
    r"(?P<operator>(?<= = )[A-Za-z_][\w.]*(?=[: (<]))",
    r"(?P<key>[A-Za-z_]\w*(?=: ))",
    r"(?P<type>\b(?:b?float|double|u?int|bool|string|complex|seq|map|optional|sparse)\w*(?=[\[\s(]))",
    r"(?P<string>b?\"(?:[^\"\\]|\\.)*\")",
    r"(?P<comment>#[^\"]*$)",
    r"(?P<elided>\{\.\.\.[^}]*\})",
)


def show(
    model: ModelArgument,
    selectors: Annotated[
        list[str] | None,
        typer.Argument(metavar="SELECTOR", help="Only these tensors and what makes them.", show_default=False),
    ] = None,
    nodes: Annotated[
        list[str] | None, typer.Option("--node", metavar="SEL...", help="Only these nodes.", show_default=False)
    ] = None,
    function: Annotated[
        str | None,
        typer.Option("--function", metavar="NAME", help="Only this local function.", show_default=False),
    ] = None,
    weights: Annotated[
        str, typer.Option("--weights", metavar="elided|inline|stats", help="What is printed of large tensors.")
    ] = "elided",
    max_elements: Annotated[
        int, typer.Option("--max-elements", min=0, metavar="N", help="Print tensors of up to N elements in full.")
    ] = 16,
    metadata: Annotated[
        bool,
        typer.Option(
            "--metadata/--no-metadata",
            help="Print metadata and doc strings. A text without them does not build the same model.",
        ),
    ] = True,
    allow_outside: AllowOutside = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Print a model as text that 'build' reads back.

    The text is onnx's own syntax where that suffices. Large weights are left out ({...}, with a comment on their
    size and place) and 'build --weights-from MODEL' puts them back; --weights inline prints every value, --weights
    stats puts statistics into the comments. What the text cannot carry is told on stderr.

    \b
    Examples:
      onnxbench show model.onnx
      onnxbench show model.onnx > model.txt && onnxbench build model.txt new.onnx --weights-from model.onnx
      onnxbench show model.onnx --weights inline | onnxbench build - copy.onnx
      onnxbench show model.onnx 'conv1*' --weights stats
      onnxbench show model.onnx --node op:If --no-metadata
      onnxbench show model.onnx --function local::Block
    """
    from onnxbench import modeltext
    from onnxbench.model import load

    loaded = load(model, allow_outside=allow_outside, require_weights=weights != "elided")
    mode = modeltext.weights_mode(weights)
    notes: list[str] = []
    found = modeltext.lines(
        loaded, selectors or (), nodes=nodes or (), function=function, weights=mode, max_elements=max_elements,
        metadata=metadata, notes=notes,
    )  # fmt: skip
    if as_json:
        text = "".join(f"{line}\n" for line in found)
        held = modeltext.counts(loaded, weights=mode, max_elements=max_elements)
        print_json("show", {"text": text, "model": held, "notes": notes})
    else:
        _print_lines(found)
    note(*notes, quiet=quiet)


def _print_lines(lines: Iterable[str]) -> None:
    """Prints the text as it is made; in colour if it goes to a terminal."""
    stdout: Any = sys.stdout
    stdout.reconfigure(encoding="utf-8", newline="\n")
    if not stdout.isatty():
        stdout.writelines(f"{line}\n" for line in lines)
        stdout.flush()
        return
    from rich.text import Text

    out, highlight = console(), _highlighter()
    out.push_theme(_theme())
    for number, line in enumerate(lines):
        text = Text(line)
        if number < _COLOURED_LINES:
            highlight.highlight(text)
        out.print(text)


def _highlighter() -> Highlighter:
    """Returns what finds the parts of the text that have a colour of their own."""
    from rich.highlighter import RegexHighlighter

    class _TextHighlighter(RegexHighlighter):
        base_style = _STYLE
        highlights = _PARTS

    return _TextHighlighter()


def _theme() -> Theme:
    from rich.theme import Theme

    return Theme({f"{_STYLE}{name}": style for name, style in _STYLES.items()})
