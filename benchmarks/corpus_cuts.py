"""Every real model cut in two at 25, 50 and 75 % of its nodes, by onnxbench and by its peers; both halves are run.

The first half is the first k nodes in topological order (a node that depends on no input stands right before the
first one that needs it). The boundary is every tensor that depends on an input, is
made in the first half, and is read in the second one or by its bodies. Each tool gets the same names and makes two
models: the model's inputs to the boundary (and the model's outputs that are made early), and the boundary (and the
model's inputs that are read late) to the other outputs. ONNX Runtime runs the two in a chain, graph optimizations
off, one thread. All boundary tensors and all outputs are compared with those of the whole, bit for bit.

A model that computes in fp16 cannot be cut bit for bit by anybody: ONNX Runtime's CPU provider keeps 32 bits between
such nodes, and a value that leaves a model is rounded to 16. There ``ROUNDING`` is the bar.

The plans are made here from the protobuf alone, without onnxbench, so that it is judged by something else than itself.
Each tool works in a process of its own; one that crashes loses the cut it was at.

    python benchmarks/corpus_cuts.py [MODEL...]     the table, printed
"""

from __future__ import annotations

import heapq
import json
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import peers

REPOSITORY = Path(__file__).resolve().parents[1]
PERCENTS = (25, 50, 75)
ROUNDING = 4 * 2.0**-11
"""For fp16: largest difference, relative to the largest value of the tensor (2**-11 is one rounding of it)."""
OURS = "onnxbench"
EXACT, ROUNDED, WRONG, FAILED = "exact", "rounded", "wrong", "failed"
WORKER_LIMIT_S = 1800


@dataclass(frozen=True)
class Plan:
    """One cut of one model.

    Attributes:
        percent: Where it was meant to be.
        nodes: How many nodes lie before it.
        first_inputs: Inputs of the model that the first half needs.
        first_outputs: The boundary, and outputs of the model that are made in the first half.
        second_inputs: The part of the boundary, and inputs of the model, that the second half needs.
        second_outputs: The other outputs of the model.
    """

    percent: int
    nodes: int
    first_inputs: tuple[str, ...]
    first_outputs: tuple[str, ...]
    second_inputs: tuple[str, ...]
    second_outputs: tuple[str, ...]


def plan_cuts(proto: Any, percents: Sequence[int] = PERCENTS) -> list[Plan]:
    """Returns where a model is cut; a percentage that gives no two halves with something to compute is left out."""
    graph = proto.graph
    constants = {tensor.name for tensor in graph.initializer} | {s.values.name for s in graph.sparse_initializer}
    inputs = [info.name for info in graph.input if info.name not in constants]
    outputs = [info.name for info in graph.output]
    nodes = list(graph.node)
    reads = [_reads(node) for node in nodes]
    makers = {name: position for position, node in enumerate(nodes) for name in node.output if name}
    order = _order(reads, makers)
    varying = set(inputs)
    for position in order:
        if not varying.isdisjoint(reads[position]):
            varying.update(name for name in nodes[position].output if name)
    order = _constants_late(order, reads, makers, varying)
    plans: list[Plan] = []
    for percent in percents:
        count = min(max(1, round(len(nodes) * percent / 100)), len(nodes) - 1)
        early = set(order[:count])
        read_late = {name for position in order[count:] for name in reads[position]}
        made_early = [name for position in order[:count] for name in nodes[position].output if name]
        boundary = [name for name in made_early if name in read_late and name in varying]
        first_outputs = [*boundary, *(name for name in outputs if makers.get(name) in early and name not in boundary)]
        second_outputs = [name for name in outputs if makers.get(name) not in early and name not in inputs]
        first_needs = _needs(first_outputs, set(inputs), reads, makers)
        second_needs = _needs(second_outputs, {*inputs, *boundary}, reads, makers)
        if not boundary or not second_outputs or any(plan.nodes == count for plan in plans):
            continue
        plans.append(
            Plan(
                percent,
                count,
                tuple(name for name in inputs if name in first_needs),
                tuple(first_outputs),
                tuple(name for name in (*boundary, *inputs) if name in second_needs),
                tuple(second_outputs),
            )
        )
    return plans


def _reads(node: Any) -> list[str]:
    """Returns what a node reads: its inputs, and what its bodies take from the graphs around them."""
    found = dict.fromkeys(name for name in node.input if name)
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
            own = {info.name for info in body.input} | {tensor.name for tensor in body.initializer}
            own.update(name for inner in body.node for name in inner.output)
            free = [name for inner in body.node for name in _reads(inner)] + [info.name for info in body.output]
            found.update(dict.fromkeys(name for name in free if name and name not in own))
    return list(found)


def _order(reads: list[list[str]], makers: Mapping[str, int]) -> list[int]:
    """Returns the positions in topological order, that of the file wherever it is one."""
    waiting = [{makers[name] for name in names if name in makers} for names in reads]
    users: dict[int, list[int]] = {}
    for position, before in enumerate(waiting):
        for maker in before:
            users.setdefault(maker, []).append(position)
    ready = [position for position, before in enumerate(waiting) if not before]
    order = []
    while ready:
        position = heapq.heappop(ready)
        order.append(position)
        for user in users.get(position, ()):
            waiting[user].discard(position)
            if not waiting[user]:
                heapq.heappush(ready, user)
    return order


def _constants_late(
    order: Sequence[int], reads: list[list[str]], makers: Mapping[str, int], varying: set[str]
) -> list[int]:
    """Returns the order with every node that depends on no input right before the first node that needs it.

    Some exporters put all Constant nodes first: half the file, and a cut there would cut nothing.
    """
    placed: dict[int, None] = {}
    fixed = [position for position in order if varying.isdisjoint(reads[position])]
    rank = {position: at for at, position in enumerate(fixed)}
    for position in order:
        if position in rank:
            continue
        above: set[int] = set()
        pending = [position]
        while pending:
            before = [makers[name] for name in reads[pending.pop()] if makers.get(name) in rank]
            fresh = [maker for maker in before if maker not in placed and maker not in above]
            above.update(fresh)
            pending += fresh
        placed.update(dict.fromkeys(sorted(above, key=rank.__getitem__)))
        placed[position] = None
    placed.update(dict.fromkeys(fixed))
    return list(placed)


def _needs(ends: Iterable[str], stops: set[str], reads: list[list[str]], makers: Mapping[str, int]) -> set[str]:
    """Returns which of ``stops`` the ends depend on."""
    met, seen, pending = set(), set(), list(ends)
    while pending:
        name = pending.pop()
        if name in stops:
            met.add(name)
        elif name in makers and makers[name] not in seen:
            seen.add(makers[name])
            pending += reads[makers[name]]
    return met


def _session(path: Path) -> Any:
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _run(path: Path, known: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
    """Returns these outputs of a model, fed from what is known.

    Raises:
        LookupError: It has an input that nobody gives, or lacks an output.
    """
    session = _session(path)
    inputs = [value.name for value in session.get_inputs()]
    stray = [name for name in inputs if name not in known]
    if stray:
        raise LookupError(f"the piece has a further input {stray[0]!r}")
    absent = set(wanted) - {value.name for value in session.get_outputs()}
    if absent:
        raise LookupError(f"the piece lacks output {sorted(absent)[0]!r}")
    return dict(zip(wanted, session.run(list(wanted), {name: known[name] for name in inputs}), strict=True))


def reference(model: Path, entry: Any, plans: Sequence[Plan], folder: Path) -> dict[str, Any]:
    """Returns the feeds and the true values: outputs of the untouched model, boundaries of one that shows them too.

    Raises:
        RuntimeError: The model gives other outputs the second time, or when inner tensors are shown, so that nothing
            can be compared with it bit for bit.
    """
    import fetch
    import onnx

    feeds = fetch.seeded_feeds(model, entry)
    proto = onnx.load(model)
    outputs = [info.name for info in proto.graph.output]
    inner = dict.fromkeys(name for plan in plans for name in plan.first_outputs if name not in outputs)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    shown = folder / "shown.onnx"
    onnx.save(proto, shown)
    values = _run(model, feeds, outputs)
    seen = _run(shown, feeds, [*outputs, *inner])
    half = _computes_in_half(proto)
    for name in outputs:
        if _difference(values[name], seen[name], half=half)[0] not in (EXACT, ROUNDED):
            raise RuntimeError(f"output {name!r} is not the same when inner tensors are shown")
    return {"feeds": feeds, "half": half, "values": {name: seen[name] for name in inner} | values}


def _computes_in_half(proto: Any) -> bool:
    return any(tensor.data_type == 10 for tensor in proto.graph.initializer) or any(
        attribute.name == "to" and attribute.i == 10 for node in proto.graph.node for attribute in node.attribute
    )


def _difference(expected: Any, actual: Any, *, half: bool) -> tuple[str, float]:
    """Returns how a value compares with the true one, and the largest relative difference."""
    import numpy as np

    if not isinstance(expected, np.ndarray):
        return (EXACT, 0.0) if repr(expected) == repr(actual) else (WRONG, 0.0)
    if not isinstance(actual, np.ndarray) or expected.dtype != actual.dtype or expected.shape != actual.shape:
        return WRONG, float("inf")
    if expected.dtype == object:
        return (EXACT, 0.0) if expected.tolist() == actual.tolist() else (WRONG, float("inf"))
    if expected.tobytes() == actual.tobytes():
        return EXACT, 0.0
    a, b = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not finite.any():
        return WRONG, float("inf")
    relative = float(np.abs(a - b)[finite].max() / max(np.abs(a[finite]).max(), 1e-30))
    return (ROUNDED if half and relative <= ROUNDING else WRONG), relative


def helped(model: Path, plans: Sequence[Plan], values: Mapping[str, Any], folder: Path) -> Path:
    """Writes the model with inferred types, and with the types of the real values where inference has none.

    Element types and ranks are stated; sizes that inference does not know are left open.
    """
    import numpy as np
    import onnx
    from onnx import helper, shape_inference

    proto = onnx.load(model)
    try:
        proto = shape_inference.infer_shapes(proto, data_prop=True)
    except Exception as error:  # onnx raises several kinds from C++; the peer then has the real types alone
        print(f"shape inference failed on {model.name}: {str(error).splitlines()[0]}", file=sys.stderr)
    infos = {info.name: info for info in (*proto.graph.value_info, *proto.graph.output, *proto.graph.input)}
    for name in dict.fromkeys(name for plan in plans for name in (*plan.first_outputs, *plan.second_outputs)):
        value = values[name]
        known = infos.get(name)
        if not isinstance(value, np.ndarray) or (known is not None and known.type.tensor_type.elem_type):
            continue
        made = helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim
        )  # fmt: skip
        if known is not None:
            known.CopyFrom(made)
        else:
            proto.graph.value_info.append(made)
    target = folder / "helped.onnx"
    onnx.save(proto, target)
    return target


def _cut_with_onnxbench(source: str, target: str, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    import onnxbench

    piece = onnxbench.extract(source, list(inputs), list(outputs))
    onnxbench.save(piece.model, target)


TOOLS: dict[str, Callable[..., None]] = {OURS: _cut_with_onnxbench, **peers.TOOLS}


def judge(tool: str, model: Path, plan: Plan, truth: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the verdict on one cut by one tool: what came out, the reason, and the largest relative difference."""
    known = dict(truth["feeds"])
    verdict, worst = EXACT, 0.0
    for half, inputs, outputs in (
        ("first", plan.first_inputs, plan.first_outputs),
        ("second", plan.second_inputs, plan.second_outputs),
    ):
        target = folder / f"{half}.onnx"
        target.unlink(missing_ok=True)
        step = "extract"
        try:
            TOOLS[tool](str(model), str(target), inputs, outputs)
            step = "run"
            made = _run(target, known, outputs)
        except Exception as error:  # every tool and the runtime raise their own kinds: this is the seam
            words = _first_line(error).replace(f"{folder}/", "")
            return {"verdict": FAILED, "reason": f"{half} half, {step}: {words}"}
        for name in outputs:
            kind, relative = _difference(truth["values"][name], made[name], half=truth["half"])
            worst = max(worst, relative)
            if kind == WRONG:
                return {"verdict": WRONG, "reason": f"{half} half: {name!r} differs by {relative:.2g} of its scale"}
            verdict = ROUNDED if kind == ROUNDED else verdict
        known |= made
    return {"verdict": verdict, "difference": worst}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:400]


def work(job_file: str) -> None:
    """Does one job (a pickle), writing a line of JSON per result: what the child processes run."""
    job = pickle.loads(Path(job_file).read_bytes())
    folder = Path(job_file).parent
    if job["kind"] == "reference":
        import fetch
        import onnx

        entry = next(entry for entry in fetch.entries() if entry.name == job["model"])
        plans = plan_cuts(onnx.load(job["path"], load_external_data=False))
        truth = reference(job["path"], entry, plans, folder) if plans else {}
        (folder / "truth.pickle").write_bytes(pickle.dumps((plans, truth)))
        if plans:
            helped(job["path"], plans, truth["values"], folder)
        return
    plans, truth = pickle.loads((folder / "truth.pickle").read_bytes())
    for plan in plans:
        if plan.percent in job["percents"]:
            print(json.dumps({"percent": plan.percent, **judge(job["tool"], job["path"], plan, truth, folder)}))
            sys.stdout.flush()


def _in_child(job: dict[str, Any], folder: Path) -> tuple[list[dict[str, Any]], str]:
    """Returns the results of a job that a child process does, and why it ended early, if it did."""
    job_file = folder / "job.pickle"
    job_file.write_bytes(pickle.dumps(job))
    paths = [str(REPOSITORY / "benchmarks"), str(REPOSITORY / "tests" / "corpus"), str(REPOSITORY)]
    code = "import sys; sys.path[:0] = sys.argv[2:]; import corpus_cuts; corpus_cuts.work(sys.argv[1])"
    line = [sys.executable, "-c", code, str(job_file), *paths]
    try:  # in that folder: ONNX Runtime's symbolic inference leaves files where it runs
        done = subprocess.run(
            line, cwd=folder, capture_output=True, text=True, timeout=WORKER_LIMIT_S, check=False
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return [], f"no end after {WORKER_LIMIT_S} s"
    results = [json.loads(text) for text in done.stdout.splitlines() if text.startswith('{"percent"')]
    if done.returncode == 0:
        return results, ""
    last = (done.stderr.strip().splitlines() or [""])[-1]
    return results, f"the process ended with {done.returncode}: {last[:200]}"


def measure(names: Sequence[str] | None = None, *, report: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Returns the verdicts on every cut of every real model that is here, by block (``raw``, ``helped``) and tool."""
    sys.path.insert(0, str(REPOSITORY / "tests" / "corpus"))
    import fetch

    present = fetch.present(names)
    here = {entry.name for entry in fetch.entries()}
    result: dict[str, Any] = {
        "absent": sorted((set(names) if names else here) - set(present)),
        "uncut": {},
        "models": {},
        "raw": {tool: {} for tool in TOOLS},
        "helped": {tool: {} for tool in peers.TOOLS},
        "not_installed": [tool for tool in peers.TOOLS if peers.missing(tool)],
    }
    for name, path in present.items():
        with tempfile.TemporaryDirectory(prefix="onnxbench-cuts-") as temporary:
            folder = Path(temporary)
            _, trouble = _in_child({"kind": "reference", "model": name, "path": path}, folder)
            if trouble:
                result["uncut"][name] = trouble
                report(f"{name}: {trouble}")
                continue
            plans, truth = pickle.loads((folder / "truth.pickle").read_bytes())
            result["models"][name] = {"half": truth.get("half", False), "cuts": [_plan_words(plan) for plan in plans]}
            if not plans:
                result["uncut"][name] = "no cut leaves two halves with something to compute"
                continue
            for block, source in (("raw", path), ("helped", folder / "helped.onnx")):
                for tool in result[block]:
                    if tool not in result["not_installed"]:
                        result[block][tool][name] = _judge_all(tool, source, plans, folder)
                marks = {tool: _marks(row.get(name, {})) for tool, row in result[block].items()}
                report(f"{name} {block}: " + ", ".join(f"{tool} {mark}" for tool, mark in marks.items()))
    return result


def merged(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Returns earlier results with those of the models that were measured now in their place."""
    measured = {*now["models"], *now["uncut"]}
    names = sorted({*before["models"], *now["models"]})

    def joined(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in old.items() if name not in measured} | dict(new)
        return {name: kept[name] for name in names if name in kept}

    result: dict[str, Any] = {
        "absent": [name for name in before["absent"] if name not in measured],
        "uncut": {name: why for name, why in before["uncut"].items() if name not in measured} | now["uncut"],
        "models": joined(before["models"], now["models"]),
        "not_installed": now["not_installed"],
    }
    for block in ("raw", "helped"):
        result[block] = {tool: joined(before[block].get(tool, {}), rows) for tool, rows in now[block].items()}
    return result


def _judge_all(tool: str, source: Path, plans: Sequence[Plan], folder: Path) -> dict[str, dict[str, Any]]:
    verdicts: dict[str, dict[str, Any]] = {}
    while pending := [plan.percent for plan in plans if str(plan.percent) not in verdicts]:
        found, trouble = _in_child({"kind": "judge", "tool": tool, "path": source, "percents": pending}, folder)
        verdicts |= {str(row.pop("percent")): row for row in found}
        left = [percent for percent in pending if str(percent) not in verdicts]
        if left and not trouble:
            trouble = "no answer"
        if left:  # it died at this one; the others have a process of their own
            verdicts[str(left[0])] = {"verdict": FAILED, "reason": f"crash: {trouble}"}
    return verdicts


def _plan_words(plan: Plan) -> dict[str, Any]:
    words = asdict(plan)
    return {"percent": words["percent"], "nodes": words["nodes"], "boundary": len(plan.first_outputs)}


def _marks(verdicts: Mapping[str, Mapping[str, Any]]) -> str:
    signs = {EXACT: "=", ROUNDED: "~", WRONG: "x", FAILED: "-"}
    return "".join(signs[row["verdict"]] for row in verdicts.values())


def totals(block: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]) -> dict[str, tuple[int, int]]:
    """Returns, by tool, how many cuts are right (exact, or within fp16 rounding) and how many there are."""
    found = {}
    for tool, models in block.items():
        verdicts = [row["verdict"] for cuts in models.values() for row in cuts.values()]
        found[tool] = sum(verdict in (EXACT, ROUNDED) for verdict in verdicts), len(verdicts)
    return found


if __name__ == "__main__":
    table = measure(sys.argv[1:] or None, report=print)
    print(json.dumps({block: totals(table[block]) for block in ("raw", "helped")}, indent=1))
