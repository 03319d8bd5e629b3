"""``onnxbench capability``: which nodes TensorRT takes, as pieces, and why not the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxbench.cli._building import ComputeCapability, EngineName, capabilities_of, shape_option, shape_words
from onnxbench.cli._command import means_nothing_without
from onnxbench.cli._options import (
    AllowOutside,
    AsJson,
    DimOption,
    ExternalData,
    ExternalThreshold,
    FeedsOption,
    InlineFunctions,
    ModelArgument,
    PerTensor,
    Quiet,
    RangeOption,
    Seed,
    ShareWeights,
    feed_options,
    save_options,
)

if TYPE_CHECKING:
    from onnxbench.capability import Allotted, Capability

_SHOWN = 4
_PLACES = 6


@means_nothing_without(
    prove="partition", external_threshold=("external_data", "per_tensor"), external_data="partition",
    per_tensor="partition", share_weights="partition",
)  # fmt: skip
def capability(
    model: ModelArgument,
    partition: Annotated[
        Path | None,
        typer.Option("--partition", metavar="DIR", help="Write the pieces and their manifest.", show_default=False),
    ] = None,
    prove: Annotated[
        bool, typer.Option("--prove", help="Run the pieces in a chain in ONNX Runtime and compare with the whole.")
    ] = False,
    min_nodes: Annotated[
        int, typer.Option("--min-nodes", min=1, metavar="N", help="Leave smaller pieces to ONNX Runtime.")
    ] = 1,
    no_trial: Annotated[
        bool, typer.Option("--no-trial", help="Take the parser's word; only builds prove anything.")
    ] = False,
    min_shapes: Annotated[
        list[str] | None, shape_option("--min-shapes", "Smallest shapes of the whole model's inputs.")
    ] = None,
    opt_shapes: Annotated[list[str] | None, shape_option("--opt-shapes", "Shapes that engines are tuned for.")] = None,
    max_shapes: Annotated[list[str] | None, shape_option("--max-shapes", "Largest shapes.")] = None,
    shapes: Annotated[list[str] | None, shape_option("--shapes", "Smallest, tuned and largest shape at once.")] = None,
    engine: EngineName = None,
    compute_capability: ComputeCapability = None,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin",
            metavar="PATH...",
            show_default=False,
            help="Custom operators, as for build-trt (they are code and are run).",
        ),
    ] = None,
    inline_functions: InlineFunctions = False,
    feeds: FeedsOption = None,
    dim: DimOption = None,
    val_range: RangeOption = None,
    seed: Seed = 0,
    external_data: ExternalData = None,
    per_tensor: PerTensor = False,
    external_threshold: ExternalThreshold = "1K",
    share_weights: ShareWeights = False,
    allow_outside: AllowOutside = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say which nodes TensorRT takes, as pieces, and why it does not take the others.

    The parser is asked, and each piece is proven by a trial build in a process of its own. --partition writes the
    pieces that TensorRT takes and those left to ONNX Runtime; they are disjoint, cover the model, and run one after the
    other. Exit code 1 if nodes are left; with --partition only if --prove fails.

    \b
    Examples:
      onnxbench capability model.onnx
      onnxbench capability model.onnx --partition pieces --prove --min-nodes 5
      onnxbench capability model.onnx --min-shapes x:1x3x64x64 --opt-shapes x:1x3x640x640 --max-shapes x:4x3x640x640
    """  # fmt: skip
    from onnxbench import engine as engines
    from onnxbench.bundles import find_plugins
    from onnxbench.capability import allot
    from onnxbench.captures import input_ports
    from onnxbench.model import load

    loaded = load(model, allow_outside=allow_outside)
    names = [port.name for port in input_ports(loaded.proto.graph) if port.required]
    spec = engines.BuildSpec(
        engine=engine, compute_capabilities=capabilities_of(compute_capability),
        profiles=tuple(engines.parse_profiles(shape_words(), names)),
    )  # fmt: skip
    done = allot(
        loaded, partition, spec, plugins=find_plugins(plugin or []), min_nodes=min_nodes, trial=not no_trial,
        prove=prove,
        inline=inline_functions, feeds=feed_options(feeds, None, dim, val_range, seed), allow_outside=allow_outside,
        options=save_options(external_data, per_tensor, external_threshold, share_weights),
    )  # fmt: skip
    _print(done, as_json=as_json, quiet=quiet)
    failed = done.proof is not None and not done.proof.holds
    raise typer.Exit(1 if failed or (partition is None and not done.capability.is_whole) else 0)


def _print(done: Allotted, *, as_json: bool, quiet: bool) -> None:
    from onnxbench.cli._pieces import print_proof
    from onnxbench.cli._render import note, print_json
    from onnxbench.wording import plural

    found = done.capability
    note(*found.notes, *(line for piece in found.pieces for line in piece.notes), quiet=quiet)
    if as_json:
        print_json("capability", done)
        return
    _print_pieces(found)
    _print_left(found)
    tried = f"{plural(found.trials, 'trial build')}" if found.proven else "by the parser's word, no build was tried"
    share = f"all {found.nodes:,}" if found.is_whole else f"{found.taken:,} of {found.nodes:,}"
    engines = sum(piece.runner == "tensorrt" for piece in found.pieces)
    print(f"{found.builder} takes {share} nodes, in {plural(engines, 'engine')} ({tried})")
    if done.split is not None:
        print(f"wrote {plural(len(done.split.pieces), 'piece')} and {done.split.manifest}")
        for command in done.commands:
            print(command)
    if done.proof is not None:
        print_proof(done.proof)


def _print_pieces(found: Capability) -> None:
    from onnxbench.cli._tables import Column, print_table

    rows = []
    for number, piece in enumerate(found.pieces, 1):
        some = [f"{count} {op}" for op, count in list(piece.operators.items())[:_SHOWN]]
        more = ["..."] if len(piece.operators) > _SHOWN else []
        where = piece.first if piece.first == piece.last else f"{piece.first} .. {piece.last}"
        rows.append((str(number), piece.runner, f"{piece.nodes:,}", ", ".join([*some, *more]), where))
    columns = [Column("#", "number"), Column("runs in", "whole"), Column("nodes", "number")]
    print_table([*columns, Column("operators", "list"), Column("from .. to")], rows)


def _print_left(found: Capability) -> None:
    from onnxbench.cli._tables import plain

    if not found.left:
        return
    print("\nleft to ONNX Runtime:")
    groups: dict[tuple[str, str, str | None], list[str]] = {}
    for problem in found.left:
        origin = ", ".join(word for word in (problem.module, problem.source) if word)
        place = f"{problem.node}{f' [{origin}]' if origin else ''}"
        groups.setdefault((problem.op, problem.message, problem.way_out), []).append(place)
    for (op, message, way), places in groups.items():
        shown = ", ".join(places[:_PLACES]) + (f" and {len(places) - _PLACES} more" if len(places) > _PLACES else "")
        print(plain(f"  {op}: {message}"))
        print(plain(f"    {shown}"))
        if way:
            print(plain(f"    -> {way}"))
