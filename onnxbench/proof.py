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
    made = {output["name"]: piece["file"] for piece in wiring["pieces"] for output in piece["outputs"]}
    names = list(made)
    rounds = computes_in_fp16(model)
    with track("running the pieces", 2 * len(wiring["pieces"]), "pieces") as advance:
        exact, optimized = (
            _differences(path.parent, wiring, model, feeds, names, backends.Options(level, threads=threads), advance)
            for level in ("none", "all")
        )
    tensors = tuple(
        ProvenTensor(name, made[name], exact[name].bitwise_equal, exact[name], optimized[name]) for name in names
    )
    holds = all(tensor.exact or (rounds and tensor.drift.passed) for tensor in tensors)
    return Proof(tensors, holds, rounds)


def _differences(
    folder: Path,
    wiring: dict[str, Any],
    model: Model,
    feeds: Mapping[str, captures.Value],
    names: list[str],
    options: backends.Options,
    advance: Callable[[int], None],
) -> dict[str, TensorDrift]:
    """Returns, by tensor, how the chained pieces differ from the whole at one optimization level."""
    whole = backends.run_with_outputs(model, feeds, names, options=options)
    last_use = {entry["name"]: number for number, piece in enumerate(wiring["pieces"]) for entry in piece["inputs"]}
    values: dict[str, Any] = dict(feeds)
    found: dict[str, TensorDrift] = {}
    for number, piece in enumerate(wiring["pieces"]):
        part = load(folder / piece["file"])
        wanted = [entry["name"] for entry in piece["inputs"]]
        session = backends.open_session(part, options=options)
        made = session.run({name: values[name] for name in wanted})
        session.close()
        for name, value in made.items():
            found[name] = compare(whole.pop(name), value, tolerance=Tolerance.for_rounding(), name=name)
            if last_use.get(name, -1) > number:
                values[name] = value
        for name in wanted:
            if last_use[name] == number:
                values.pop(name, None)
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
