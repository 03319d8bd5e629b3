"""What extract, expose and split print, and the one spelling they have to disentangle."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from onnxbench.cli._render import console, format_bytes, note, print_json, table
from onnxbench.errors import CutError, UsageError

if TYPE_CHECKING:
    from onnxbench.cut import Boundary
    from onnxbench.pieces import Extracted
    from onnxbench.proof import Proof
    from onnxbench.splitting import Split


def target_and_outputs(
    out: Path | None, outputs: list[str] | None, short: list[str] | None, *, dry_run: bool
) -> tuple[Path | None, list[str] | None]:
    """Returns the file to write and the output selectors.

    ``-o`` is the output file for some tools and the output names for others. With OUT given it must be names, without
    it a single word is the file.
    """
    if short:
        if out is None and len(short) == 1:
            out = Path(short[0])
        else:
            outputs = [*(outputs or ()), *short]
    if out is None and not dry_run:
        raise UsageError("no file to write is named", hint="Give OUT after the model (or -o OUT), or use --dry-run.")
    return (None if dry_run else out), outputs


@contextmanager
def proposals_as_commands(model: Path, out: Path | None, outputs: list[str] | None) -> Iterator[None]:
    """Turns the cuts that a CutError proposes into command lines that are ready to be run."""
    try:
        yield
    except CutError as error:
        words = ["onnxbench", "extract", str(model), *([str(out)] if out else ["--dry-run"])]
        ends = ["--outputs", *outputs] if outputs else []
        error.details = tuple(
            line
            for proposal in error.proposals
            for line in (
                f"{proposal.kind} ({proposal.nodes:,} nodes):",
                f"  {shlex.join([*words, '--inputs', *proposal.inputs, *ends])}",
            )
        )
        if error.proposals:
            error.hint = "--auto-inputs takes the minimum cut."
        raise


def print_extracted(command: str, done: Extracted, *, as_json: bool, quiet: bool) -> None:
    """Prints what was cut and written."""
    note(*done.notes, quiet=quiet)
    if as_json:
        print_json(
            command,
            {
                "cut": done.piece.cut, "inputs": done.piece.inputs, "outputs": done.piece.outputs, "notes": done.notes,
                "saved": done.saved, "feeds": done.feeds, "expected": done.expected,
            },
        )  # fmt: skip
        return
    cut = done.piece.cut
    place = f" of {cut.scope}" if cut.scope else ""
    if command == "expose":
        print(f"all {cut.total_nodes:,} nodes, {len(done.piece.outputs):,} more outputs")
    else:
        print(f"{len(cut.nodes):,} of {cut.total_nodes:,} nodes{place}, {len(cut.constants):,} initializers")
    _print_boundary(done.piece.inputs, done.piece.outputs)
    if done.saved is None:
        print("dry run: nothing was written")
    else:
        print(f"wrote {done.saved.path} ({format_bytes(done.saved.size)})")
        for file in done.saved.external_files:
            print(f"wrote {file} ({format_bytes(file.stat().st_size)})")
    if done.feeds is not None and done.saved is not None:
        print(f"wrote {done.feeds}" + (f" and {done.expected}" if done.expected else ""))
        expect = f" --expect {done.expected}" if done.expected else ""
        print(f"run the piece alone: onnxbench run {done.saved.path} --feeds {done.feeds}{expect}")


def _print_boundary(inputs: tuple[Boundary, ...], outputs: tuple[Boundary, ...]) -> None:
    rows = [(what, b.name, b.type, b.origin) for what, side in (("input", inputs), ("output", outputs)) for b in side]
    if rows:
        console().print(table(["", "tensor", "type", "known from"], rows))


def print_split(done: Split, proof: Proof | None, *, as_json: bool, quiet: bool) -> None:
    """Prints the pieces, their wiring, and the proof if one was made."""
    note(*done.notes, quiet=quiet)
    if as_json:
        print_json("split", {"split": done, "proof": proof})
        return
    for piece in done.pieces:
        print(f"{piece.file.name}  {piece.nodes:,} nodes, {format_bytes(piece.weight_bytes)} of weights")
        for what, side in (("in ", piece.inputs), ("out", piece.outputs)):
            for number, boundary in enumerate(side):
                print(f"  {what if number == 0 else '   '}  {boundary.name}  {boundary.type}")
    if done.shared_nodes:
        print(f"{done.shared_nodes:,} constant nodes are in more than one piece")
    if done.dead_nodes:
        print(f"{done.dead_nodes:,} nodes lead to no output and are in no piece")
    print(f"wrote {len(done.pieces)} pieces and {done.manifest}")
    if proof is not None:
        print_proof(proof)


def print_proof(proof: Proof) -> None:
    """Prints how the chained pieces compare with the whole."""
    rows = [
        (
            tensor.name, tensor.piece, "bit for bit" if tensor.exact else f"max abs {tensor.drift.max_abs:.3g}",
            "bit for bit" if tensor.optimized.bitwise_equal else f"max abs {tensor.optimized.max_abs:.3g}",
        )
        for tensor in proof.tensors
    ]  # fmt: skip
    console().print(table(["tensor", "made by", "optimizations off", "optimizations on"], rows))
    exact = sum(tensor.exact for tensor in proof.tensors)
    if proof.holds:
        words = "equal the whole bit for bit" if exact == len(proof.tensors) else "equal the whole within fp16 rounding"
        print(f"PROVEN: the pieces, run in a chain, {words} in {len(proof.tensors)} tensors")
    else:
        print(f"FAILED: {len(proof.tensors) - exact} of {len(proof.tensors)} tensors differ from the whole")
