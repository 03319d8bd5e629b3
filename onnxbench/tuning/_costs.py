"""What it costs to keep a node in float: one each, bytes, a table, or time that was measured."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxbench import backends
from onnxbench.captures import Value, require_file
from onnxbench.documents import from_yaml
from onnxbench.errors import SpecError, UsageError, did_you_mean
from onnxbench.recipe import to_python
from onnxbench.tuning._emulation import FLOAT32
from onnxbench.tuning._ranking import Lowering

if TYPE_CHECKING:
    from onnxbench.tuning._emulation import Unit

COSTS = ("count", "bytes", "time")
_LEAST = 1e-9


def costs_of(lowering: Lowering, cost: str, feeds: Mapping[str, Value], *, saved: int = 2) -> tuple[list[float], int]:
    """Returns what it costs to keep each unit, above 0, and how many runs of the model it took to find out.

    Args:
        lowering: The model.
        cost: ``count``: 1. ``bytes``: what its weights and outputs take more, for these inputs. ``time``: microseconds
            in ONNX Runtime in float32, the mean of its operator. A YAML or JSON file: numbers by node or operator.
        feeds: Inputs.
        saved: Bytes that an element takes more in float32: 2 than in half precision, 3 than in int8.

    Raises:
        UsageError: There is no such cost.
        SpecError: The file has no numbers above 0, or one for something that is not there.
    """
    if cost == "count":
        return [1.0] * len(lowering.units), 0
    if cost == "bytes":
        return [saved * size for size in _sizes(lowering, feeds)], 1
    if cost == "time":
        return _times(lowering, feeds), 1
    if Path(cost).suffix.lower() in (".yaml", ".yml", ".json"):
        return _table(Path(cost), lowering.units), 0
    raise UsageError(
        f"there is no cost {cost!r}",
        hint=did_you_mean(cost, COSTS) or f"Costs: {', '.join(COSTS)}, or a table in a .yaml or .json file.",
    )


def _sizes(lowering: Lowering, feeds: Mapping[str, Value]) -> list[float]:
    """Returns how many elements the weights and outputs of each unit have; 1 at least."""
    main = lowering.index.main
    sizes = {tensor.name: _product(tensor.dims) for tensor in main.graph.initializer if tensor.data_type == FLOAT32}
    names = [name for name in main.producers if lowering.kinds[0].get(name) == FLOAT32]
    made = backends.observed_sizes(lowering.model, feeds, names)
    sizes.update((name, made.get(name, 0) // 4) for name in names)
    costs = []
    for unit in lowering.units:
        total = 0
        for number, position in unit.at:
            scope = lowering.index.scopes[number]
            read = {name for name in scope.reads[position] if name in main.constants}
            total += sum(sizes.get(name, 0) for name in {*read, *scope.writes[position]})
        costs.append(max(float(total), 1.0))
    return costs


def _product(dims: Sequence[int]) -> int:
    total = 1
    for size in dims:
        total *= size
    return total


def _times(lowering: Lowering, feeds: Mapping[str, Value]) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="onnxbench-") as folder:
        trace = Path(folder) / "trace.json"
        session = backends.open_session(
            lowering.model, options=replace(backends.Options(optimization="none"), profile=trace)
        )
        session.run(feeds)
        session.close()
        events = json.loads(trace.read_text(encoding="utf-8"))
    spent: defaultdict[str, list[float]] = defaultdict(list)
    for event in events:
        operator = event.get("args", {}).get("op_name")
        if operator and event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time"):
            spent[operator].append(float(event["dur"]))
    means = {operator: sum(times) / len(times) for operator, times in spent.items()}
    return [max(means.get(unit.op_type, 0.0), _LEAST) for unit in lowering.units]


def _table(file: Path, units: Sequence[Unit]) -> list[float]:
    require_file(file)
    item = from_yaml(file.read_text(encoding="utf-8"), str(file))
    if item.kind != "map":
        raise SpecError(f"{file} holds no table of costs", hint="Write operators or nodes with numbers: 'MatMul: 4'.")
    table = to_python(item)
    for name, cost in table.items():
        if isinstance(cost, bool) or not isinstance(cost, (int, float)) or not 0 < cost < float("inf"):
            raise SpecError(f"{file}: the cost of {name!r} is {cost!r}, and should be a number above 0")
    known = {unit.op_type for unit in units} | {unit.path for unit in units}
    strange = next((name for name in table if name not in known and name != "default"), None)
    if strange is not None:
        raise SpecError(
            f"{file}: no node that can be converted is {strange!r}, or of that operator",
            hint=did_you_mean(strange, known) or "'default' is the cost of all others (1).",
        )
    default = float(table.get("default", 1.0))
    return [float(table.get(unit.path, table.get(unit.op_type, default))) for unit in units]
