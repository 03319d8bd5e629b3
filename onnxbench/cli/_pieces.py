"""What extract, expose, split and merge print, and the one spelling they have to disentangle."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from onnxbench.cli._command import TYPED
from onnxbench.cli._render import chosen, format_bytes, note, print_json, print_written
from onnxbench.cli._tables import Column, print_table
from onnxbench.errors import CutError, EmptyPieceError, UsageError
from onnxbench.model import TEXT_FORMATS
from onnxbench.wording import plural

if TYPE_CHECKING:
    from onnxbench.cut import Boundary
    from onnxbench.division import Divided
    from onnxbench.drift import TensorDrift
    from onnxbench.merging import Merged, MergeResult
    from onnxbench.pieces import Extracted
    from onnxbench.proof import Proof
    from onnxbench.splitting import Split, WrittenPiece


_MODEL_ENDINGS = (".onnx", *TEXT_FORMATS)


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
            if out.suffix.lower() not in _MODEL_ENDINGS:
                raise UsageError(
                    f"-o {short[0]}: is that the file to write, or a tensor?",
                    hint="A file ends in .onnx; for a tensor, name the file first: onnxbench extract IN OUT -o TENSOR.",
                )
        else:
            for word in short if out is not None else ():
                if Path(word).suffix.lower() in _MODEL_ENDINGS:
                    raise UsageError(
                        f"two files to write are named, {out} and {word}",
                        hint=f"Leave one of them out; a tensor of that name is --outputs {word}.",
                    )
            outputs = [*(outputs or ()), *short]
    if out is None and not dry_run:
        raise UsageError("no file to write is named", hint="Give OUT after the model (or -o OUT), or use --dry-run.")
    return (None if dry_run else out), outputs


def target(out: Path | None, short: Path | None, *, dry_run: bool) -> Path | None:
    """Returns the file to write, named as an argument or by ``-o``; None for a dry run."""
    if out is not None and short is not None:
        raise UsageError(f"two files to write are named, {out} and {short}")
    if out is None and short is None and not dry_run:
        raise UsageError("no file to write is named", hint="Give OUT after the models (or -o OUT), or use --dry-run.")
    return None if dry_run else out or short


def renames(words: list[str] | None) -> dict[str, str]:
    """Returns new names by old ones, of ``OLD=NEW``."""
    from onnxbench.specs import parse_pairs

    return parse_pairs(words or (), what="--rename", example="OLD=NEW: --rename dets=boxes")


@contextmanager
def proposals_as_commands(inputs: Collection[str], outputs: Collection[str]) -> Iterator[None]:
    """Turns what errors propose into command lines that are ready to be run: as typed, other inputs or both exchanged.

    Args:
        inputs: The names of the option that says where a piece begins.
        outputs: The names of the one that says where it ends.
    """
    try:
        yield
    except EmptyPieceError as error:
        if error.is_reversed:
            words = (_renamed(word, inputs, outputs) for word in TYPED.get())
            error.hint = f"Exchange them: {shlex.join(['onnxbench', 'extract', *words])}"
        raise
    except CutError as error:
        kept: list[str] = []
        typed = iter(TYPED.get())
        for word in typed:
            if word in inputs:
                next(typed, None)
            elif word.split("=", 1)[0] not in inputs:
                kept.append(word)
        error.details = tuple(
            line
            for proposal in error.proposals
            for line in (
                f"{proposal.kind} ({plural(proposal.nodes, 'node')}):",
                f"  {shlex.join(['onnxbench', 'extract', *kept, '--inputs', *proposal.inputs])}",
            )
        )
        smallest = any(proposal.kind == "minimum cut" for proposal in error.proposals)
        error.hint = "--auto-inputs takes the minimum cut." if smallest else None
        raise


def _renamed(word: str, inputs: Collection[str], outputs: Collection[str]) -> str:
    """Returns a word of the command line, ``--inputs`` for ``--outputs`` and the other way round."""
    name, equals, value = word.partition("=")
    other = outputs if name in inputs else inputs if name in outputs else [name]
    return f"{next(iter(other))}{equals}{value}"


def print_extracted(command: str, done: Extracted, *, as_json: bool, quiet: bool) -> None:
    """Prints what was cut and written."""
    note(*done.notes, *chosen(done.choices), quiet=quiet)
    if as_json:
        print_json(command, done)
        return
    cut = done.piece.cut
    place = f" of {cut.scope}" if cut.scope else ""
    if command == "expose":
        print(f"all {plural(cut.total_nodes, 'node')}, {plural(len(done.piece.outputs), 'more output')}")
    else:
        print(f"{len(cut.nodes):,} of {cut.total_nodes:,} nodes{place}, {len(cut.constants):,} initializers")
    _print_boundary(done.piece.inputs, done.piece.outputs)
    if done.saved is None:
        print("dry run: nothing was written")
    else:
        print_written(done.saved)
    if done.feeds is not None and done.saved is not None:
        print(f"wrote {done.feeds}" + (f" and {done.expected}" if done.expected else ""))
        expect = f" --expect {done.expected}" if done.expected else ""
        print(f"run the piece alone: onnxbench run {done.saved.path} --feeds {done.feeds}{expect}")


def _print_boundary(inputs: tuple[Boundary, ...], outputs: tuple[Boundary, ...]) -> None:
    rows = [(what, b.name, b.type, b.origin) for what, side in (("input", inputs), ("output", outputs)) for b in side]
    if rows:
        print_table(
            [Column("", "whole"), Column("tensor"), Column("type", "whole"), Column("known from", "whole")], rows
        )


def print_split(done: Split, proof: Proof | None, *, as_json: bool, quiet: bool) -> None:
    """Prints the pieces, their wiring, and the proof if one was made."""
    note(*done.notes, *chosen(done.choices), quiet=quiet)
    if as_json:
        print_json("split", {"split": done, "proof": proof})
        return
    _print_written(done.pieces)
    if done.shared_nodes:
        print(f"{done.shared_nodes:,} constant nodes are in more than one piece")
    if done.dead_nodes:
        print(f"{done.dead_nodes:,} nodes lead to no output and are in no piece")
    print(f"wrote {plural(len(done.pieces), 'piece')} and {done.manifest}")
    if proof is not None:
        print_proof(proof)


def _print_written(pieces: Sequence[WrittenPiece]) -> None:
    for piece in pieces:
        print(f"{piece.file.name}  {piece.nodes:,} nodes, {format_bytes(piece.weight_bytes)} of weights")
        for what, side in (("in ", piece.inputs), ("out", piece.outputs)):
            for number, boundary in enumerate(side):
                print(f"  {what if number == 0 else '   '}  {boundary.name}  {boundary.type}")


def print_divided(done: Divided, *, as_json: bool, quiet: bool) -> None:
    """Prints the pieces of a configuration, what was recorded, and the proof if one was made."""
    note(*done.notes, *chosen(done.choices), quiet=quiet)
    if as_json:
        print_json("partition", done)
        return
    _print_written(done.pieces)
    print(f"wrote {plural(len(done.pieces), 'piece')}, {done.whole} and {done.manifest}")
    for folder in done.calibration:
        print(f"recorded {folder}")
    if done.proof is not None:
        print_proof(done.proof)


def _difference(drift: TensorDrift) -> str:
    """Returns how far a tensor is off in a few words."""
    if drift.bitwise_equal:
        return "bit for bit"
    return drift.reason or "differs" if drift.max_abs is None else f"max abs {drift.max_abs:.3g}"


def print_merged(done: MergeResult, *, as_json: bool, quiet: bool) -> None:
    """Prints what was connected, renamed, shared and written, and the proof."""
    note(*done.notes, *chosen(done.choices), quiet=quiet)
    if done.unproven:
        note(f"not proven: {done.unproven}", quiet=quiet)
    if as_json:
        print_json("merge", done)
        return
    merged = done.merged
    _print_links(merged)
    _print_renames(merged)
    if merged.shared_weights:
        print(f"{plural(merged.shared_weights, 'weight')} of B {'is' if merged.shared_weights == 1 else 'are'} A's"
              f" ({format_bytes(merged.shared_bytes)})")  # fmt: skip
    if done.proof is not None:
        print_proof(done.proof, what="A and then B", whole="the merged model", rounding=merged.converted)
    if done.saved is not None:
        print_written(done.saved)
    elif done.proof is not None and not done.proof.holds:
        print("nothing was written")
    else:
        print("dry run: nothing was written")


def _print_links(merged: Merged) -> None:
    """Prints which outputs feed which inputs, and the inputs and outputs that the whole has."""
    print_table(
        [Column("output of A"), Column("type", "whole"), Column("feeds input of B"), Column("which wants", "whole")],
        [(n.output, n.output_type, n.input + (" (cast)" if n.cast else ""), n.input_type) for n in merged.links],
    )
    rows = [
        (what, boundary.name, boundary.type, boundary.origin.upper())
        for what, side in (("input", merged.inputs), ("output", merged.outputs))
        for boundary in side
    ]
    if rows:
        print()
        print_table([Column("", "whole"), Column("tensor"), Column("type", "whole"), Column("of", "whole")], rows)


def _print_renames(merged: Merged) -> None:
    renames = merged.renames
    kinds = {(rename.model, rename.kind): 0 for rename in renames}
    for rename in renames:
        kinds[rename.model, rename.kind] += 1
    for (model, kind), number in kinds.items():
        some = [r for r in renames if (r.model, r.kind) == (model, kind)][:3]
        shown = ", ".join(f"{rename.old} is {rename.new}" for rename in some)
        print(f"{plural(number, kind)} of {model.upper()} renamed: {shown}{', ...' if number > len(some) else ''}")


def print_proof(
    proof: Proof, *, what: str = "the pieces", whole: str = "the whole", rounding: bool = False
) -> None:  # fmt: skip
    """Prints how what was run one after the other compares with the whole.

    Args:
        proof: The proof.
        what: What was run in a chain.
        whole: What it was compared with.
        rounding: Whether operators of another opset may round otherwise.
    """
    rows = [(t.name, t.piece, _difference(t.drift), _difference(t.optimized)) for t in proof.tensors]
    columns = ("made by", "optimizations off", "optimizations on")
    print_table([Column("tensor"), *(Column(name, "whole") for name in columns)], rows)
    lenient = proof.rounds_fp16 or rounding
    wrong = [tensor for tensor in proof.tensors if not tensor.exact and not (lenient and tensor.drift.passed)]
    rounded = sum(not tensor.exact for tensor in proof.tensors) - len(wrong)
    total = plural(len(proof.tensors), "tensor")
    if rounded and not proof.rounds_fp16:
        print("ONNX Runtime computes some operators of another opset in another order, which rounds otherwise")
    elif (rounded or wrong) and proof.rounds_fp16:
        print(
            "the model computes in float16: ONNX Runtime keeps 32 bits between such nodes on a CPU and rounds at a cut,"
            " so differences within a few roundings are expected, and add up over many cuts"
        )
    if wrong:
        print(f"FAILED: {len(wrong)} of {total} differ from {whole}" + (" by more than that" if rounded else ""))
    else:
        words = "bit for bit"
        if rounded:
            words = "within float16 rounding" if proof.rounds_fp16 else "within rounding"
        print(f"PROVEN: {what}, run in a chain, equal {whole} {words} in {total}")
