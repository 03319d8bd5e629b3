"""Proof that the pieces of a split are the model: they are run one after the other and compared with the whole.

With graph optimizations off, ONNX Runtime computes a piece exactly as it computes those nodes within the whole, so
every tensor that crosses a cut, and every output, must be equal bit for bit. (fp16 is the exception: the CPU
kernels keep float32 between float16 nodes, and a cut rounds there.) With optimizations on, fusions differ, and
the difference is reported as drift.

All tensors that cross are compared, not only the final outputs: on random inputs those often vanish, and zeros
agree with anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxbench import backends, captures
from onnxbench.drift import TensorDrift, Tolerance, compare
from onnxbench.errors import SpecError
from onnxbench.model import Model, load
from onnxbench.progress import track


@dataclass(frozen=True, slots=True)
class ProvenTensor:
    """One tensor that crosses a cut or leaves the model.

    Attributes:
        name: The tensor.
        piece: File of the piece that makes it.
        exact: Whether it equals the whole's value bit for bit, with graph optimizations off.
        drift: The difference with optimizations off.
        optimized: The difference with optimizations on (each side optimized for itself).
    """

    name: str
    piece: str
    exact: bool
    drift: TensorDrift
    optimized: TensorDrift


@dataclass(frozen=True, slots=True)
class Proof:
    """What a chained run of the pieces showed.

    Attributes:
        tensors: Every tensor that crosses a cut or leaves the model.
        holds: Whether all are exact, float16 tensors and what depends on them within float16 rounding.
        rounds_fp16: Whether the model computes in float16, so that cuts round.
    """

    tensors: tuple[ProvenTensor, ...]
    holds: bool
    rounds_fp16: bool


def prove(
    manifest: str | os.PathLike[str], model: Model, feeds: Mapping[str, captures.Value], *, threads: int = 0
) -> Proof:
    """Returns what running the pieces of a split in a chain shows against running the whole model.

    Args:
        manifest: The manifest that ``onnxbench.splitting.split`` wrote.
        model: The whole model.
        feeds: Values for the whole model's inputs.
        threads: Threads within an operator; 0 for ONNX Runtime's default.

    Raises:
        SpecError: The manifest cannot be read.
        ExecutionError: A piece, or the whole, failed to run.
    """
    path = Path(manifest)
    wiring = _read_manifest(path)
    made = [(piece["file"], _tensor(entry)) for piece in wiring["pieces"] for entry in piece["outputs"]]
    rounds = computes_in_fp16(model)
    with track("running the pieces", 2 * len(wiring["pieces"]), "pieces") as advance:
        exact, optimized = (
            _differences(path.parent, wiring, model, feeds, backends.Options(level, threads=threads), advance)
            for level in ("none", "all")
        )
    tensors = tuple(
        ProvenTensor(key[1], key[0], exact[key].bitwise_equal, exact[key], optimized[key]) for key in made
    )  # fmt: skip
    holds = all(tensor.exact or (rounds and tensor.drift.passed) for tensor in tensors)
    return Proof(tensors, holds, rounds)


def _tensor(entry: Mapping[str, Any]) -> str:
    """Returns what the whole model calls an input or output of a piece, which may have another name there."""
    return str(entry.get("tensor", entry["name"]))


def _differences(
    folder: Path,
    wiring: dict[str, Any],
    model: Model,
    feeds: Mapping[str, captures.Value],
    options: backends.Options,
    advance: Callable[[int], None],
) -> dict[tuple[str, str], TensorDrift]:
    """Returns, by piece and tensor, how the chained pieces differ from the whole at one optimization level.

    What no earlier piece makes, because the pieces do not cover the model, is taken from the whole.
    """
    reads = [[_tensor(entry) for entry in piece["inputs"]] for piece in wiring["pieces"]]
    writes = [[_tensor(entry) for entry in piece["outputs"]] for piece in wiring["pieces"]]
    last_use = {name: number for number, names in enumerate(reads) for name in names}
    last_made = {name: number for number, names in enumerate(writes) for name in names}
    values: dict[str, Any] = dict(feeds)
    first_made: dict[str, int] = {}
    for number, names in enumerate(writes):
        for name in names:
            first_made.setdefault(name, number)
    lacking = {
        name
        for number, names in enumerate(reads)
        for name in names
        if name not in values and first_made.get(name, number) >= number
    }
    whole = backends.run_with_outputs(model, feeds, list(dict.fromkeys([*last_made, *lacking])), options=options)
    found: dict[tuple[str, str], TensorDrift] = {}
    for number, piece in enumerate(wiring["pieces"]):
        part = load(folder / piece["file"])
        session = backends.open_session(part, options=options)
        given = {entry["name"]: _tensor(entry) for entry in piece["inputs"]}
        made = session.run({name: values[key] if key in values else whole[key] for name, key in given.items()})
        session.close()
        for entry in piece["outputs"]:
            key, value = _tensor(entry), made[entry["name"]]
            found[piece["file"], key] = compare(whole[key], value, tolerance=Tolerance.for_rounding(), name=key)
            if last_use.get(key, -1) > number and key not in lacking:
                values[key] = value
            if last_made[key] == number and key not in lacking:
                del whole[key]
        for key in given.values():
            if last_use[key] == number:
                values.pop(key, None)
        advance(1)
    return found


def computes_in_fp16(model: Model) -> bool:
    """Tells whether a model has float16 or bfloat16 tensors, so far as it says."""
    from onnxbench.weights import tensors

    graph = model.proto.graph
    infos = (*graph.input, *graph.output, *graph.value_info)
    return any(info.type.tensor_type.elem_type in (10, 16) for info in infos) or any(
        tensor.data_type in (10, 16) for tensor in tensors(model.proto)
    )


def _read_manifest(path: Path) -> dict[str, Any]:
    import yaml

    try:
        wiring = yaml.safe_load(path.read_text(encoding="utf-8"))
        pieces = wiring["pieces"]
        if not all({"file", "inputs", "outputs"} <= set(piece) for piece in pieces):
            raise KeyError("pieces")
    except OSError as error:
        raise SpecError(f"the manifest {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError):
        raise SpecError(f"{path} is not a manifest of pieces", hint="'onnxbench split' writes one.") from None
    result: dict[str, Any] = wiring
    return result
