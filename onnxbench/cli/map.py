"""``onnxbench map``: what each value of a model is in PyTorch, and whether that is so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxbench.cli._command import means_nothing_without
from onnxbench.cli._options import (
    AbsoluteTolerance,
    AllowOutside,
    AsJson,
    ExternalData,
    ExternalThreshold,
    FeedsOption,
    ModelArgument,
    PerTensor,
    Quiet,
    RelativeTolerance,
    save_options,
)

if TYPE_CHECKING:
    from onnxbench.pytorch.mapping import Mapped, MappedValue


@means_nothing_without(
    write="torch", shape="torch", inputs="torch", modules="torch", feeds="torch", atol="torch", rtol="torch",
    external_data="write", per_tensor="write", external_threshold=("external_data", "per_tensor"),
)  # fmt: skip
def map(
    model: ModelArgument,
    selectors: Annotated[
        list[str] | None,
        typer.Argument(metavar="SELECTOR", help="Only these values, or what these nodes make.", show_default=False),
    ] = None,
    torch: Annotated[
        str | None,
        typer.Option(
            "--torch",
            metavar="SOURCE",
            help="The PyTorch model, with example inputs: FILE.py:FACTORY, package.module:Class, program.pt2.",
            show_default=False,
        ),
    ] = None,
    by: Annotated[
        str, typer.Option("--by", metavar="WAY", help="auto, or one way alone: metadata, names, values.")
    ] = "auto",
    shape: Annotated[
        list[str] | None,
        typer.Option(
            "--shape",
            "--shapes",
            "--input-shapes",
            metavar="SPEC...",
            help="Example inputs to draw, for a SOURCE that gives none: x:[1,3,224,224].",
            show_default=False,
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME=ARG...",
            help="Which argument of the PyTorch model an input of MODEL is, where names do not tell.",
            show_default=False,
        ),
    ] = None,
    modules: Annotated[
        bool, typer.Option("--modules", help="Compare with outputs of modules (forward hooks), without torch.export.")
    ] = False,
    feeds: FeedsOption = None,
    atol: AbsoluteTolerance = None,
    rtol: RelativeTolerance = None,
    least: Annotated[
        float,
        typer.Option("--least", min=0, max=1, metavar="SHARE", help="Exit code 1 if fewer values have a module: 0.98."),
    ] = 0.0,
    rest: Annotated[bool, typer.Option("--rest", help="Show only the values that are no value of PyTorch.")] = False,
    write: Annotated[
        Path | None,
        typer.Option(
            "--write",
            "-o",
            metavar="OUT",
            help="Write a copy of MODEL with the map in its metadata.",
            show_default=False,
        ),
    ] = None,
    external_data: ExternalData = None,
    per_tensor: PerTensor = False,
    external_threshold: ExternalThreshold = "1K",
    allow_outside: AllowOutside = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Map the values of a model to PyTorch: fx node, module, class, source line; with --torch, compared and completed.

    Without --torch the map is what the exporter's metadata and the names of nodes tell. With it, each of these values
    is compared with PyTorch's, on the example inputs and on others like them; what is told wrongly or not at all is
    looked for among PyTorch's values: by shape, then by value. What may be several is listed as ambiguous. Exit code 0
    if all values that were compared agree, else 1; 1 also if fewer than --least have a module (and a source line).
    --torch runs the code that it names and needs `pip install onnxbench[torch]`.

    \b
    Examples:
      onnxbench map exported.onnx
      onnxbench map exported.onnx --torch model.py:make
      onnxbench map foreign.onnx 'scope:layers.0' --torch model.py:make --by values
      onnxbench map stripped.onnx --torch model.py:make --write mapped.onnx
      onnxbench map model.onnx --torch model.py:Net --shape 'x:[1,3,224,224]' --input input.1=x
      onnxbench map exported.onnx --least 0.98 --json
    """
    from onnxbench.drift import Tolerance
    from onnxbench.feeding import FeedOptions
    from onnxbench.pytorch import mapping
    from onnxbench.specs import parse_pairs

    tolerance = None if atol is None and rtol is None else Tolerance(atol or 0.0, rtol or 0.0)
    pairs = parse_pairs(inputs or (), what="--input", example="NAME=ARG: --input input.1=x")
    found = mapping.map_values(
        model, torch, by=by, selectors=selectors or (), how="modules" if modules else "auto", shapes=shape or (),
        inputs=pairs, feeds=FeedOptions(feeds) if feeds else None, tolerance=tolerance, write=write,
        storing=save_options(external_data, per_tensor, external_threshold, False), allow_outside=allow_outside,
    )  # fmt: skip
    _show(found, only_rest=rest, as_json=as_json, quiet=quiet)
    raise typer.Exit(0 if found.passed and found.share >= least else 1)


def _show(found: Mapped, *, only_rest: bool, as_json: bool, quiet: bool) -> None:
    from onnxbench.cli._render import note, print_json, print_written
    from onnxbench.cli._tables import Column, print_table

    note(*found.notes, quiet=quiet)
    if as_json:
        print_json("map", found)
        return
    shown = [each for each in found.values if not only_rest or each.kind != "value"]
    if shown:
        columns = [
            Column("value"), Column("node", "whole"), Column("kind", "whole"), Column("PyTorch"), Column("module"),
            Column("class"), Column("line"), Column("told by", "whole"), Column("max diff", "number"),
            Column("note", "list"),
        ]  # fmt: skip
        print_table(columns, [_row(each) for each in shown])
    for line in _summary(found):
        print(line)
    if found.saved is not None:
        print_written(found.saved)


def _row(each: MappedValue) -> tuple[str, ...]:
    from onnxbench.cli._records import module_text, source_text

    notes = []
    if each.said is not None:
        notes.append(f"the file says {each.said}")
    if each.reason and (each.kind != "inside" or each.agrees is False):
        notes.append(each.reason)
    return (
        each.value, each.op, each.kind, each.torch or "", module_text(each.scope),
        (each.module_class or "").rpartition(".")[2], source_text(each.source), each.how,
        "" if each.max_abs is None else f"{each.max_abs:.1e}" + ("" if each.agrees else " !"), ", ".join(notes),
    )  # fmt: skip


def _summary(found: Mapped) -> Iterator[str]:
    total = len(found.values)
    line = "a module" if found.torch_kind == "modules" else "a module and a source line"
    yield (
        f"{found.share:.1%} of {total:,} values have {line}; {found.count('value'):,} are values of PyTorch, "
        f"{found.count('inside'):,} lie inside one"
        + (f", of {found.count('module'):,} only the module is known" if found.count("module") else "")
        + (f", {found.count('unknown'):,} are unknown" if found.count("unknown") else "")
    )
    compared = found.compared
    if found.torch is not None:
        worst = max(compared, key=lambda each: each.rel or 0.0, default=None)
        at = f", at most {worst.rel:.1e} apart, relatively ({worst.value})" if worst is not None and worst.rel else ""
        yield (
            f"compared with {found.torch} on {found.sets} set{'s' * (found.sets != 1)} of inputs: "
            f"{len(compared) - len(found.differing):,} of {len(compared):,} agree{at}"
        )
    if found.corrected:
        yield f"the file says otherwise of {len(found.corrected):,} values, wrongly (see 'note')"
    if found.differing:
        first = found.differing[0]
        yield f"{len(found.differing):,} values differ; the first is {first.value}: {first.reason}"
