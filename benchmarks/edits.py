"""The same edits by every tool: seconds, memory, and what each lost on the way.

As a script, an edit by a tool without a command line becomes a whole process:

    python benchmarks/edits.py onnx-ir rename IN.onnx OUT.onnx

Scripts are written as the tools' own examples do it. A result that is not the edit that was asked for is a failure.
"""

from __future__ import annotations

import argparse
import collections
import importlib.metadata
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OURS = "onnxbench"
OLD, NEW = "/relu", "/activation"
"""The end of the tensor names that ``rename`` changes, and what it becomes."""
SWAPS = {"Relu": "Tanh", "Add": "Mul"}
"""The operator that ``op`` changes: the first of these, and what it becomes."""
FULL = HERE.parent / "fixtures" / "models" / "metadata_everywhere.onnx"
"""A model with something in nearly every field that onnx knows."""


# -- what the peers do -------------------------------------------------------------------------------------------


def graphsurgeon(job: str, source: str, target: str) -> None:
    """Imports, edits and exports with onnx-graphsurgeon."""
    import onnx
    import onnx_graphsurgeon as gs

    graph = gs.import_onnx(onnx.load(source))
    if job == "rename":
        for tensor in graph.tensors().values():
            if tensor.name.endswith(OLD):
                tensor.name = tensor.name.removesuffix(OLD) + NEW
    elif job == "insert":
        for node in [node for node in graph.nodes if node.op == "Relu"]:
            before = node.outputs[0]
            made = gs.Variable(f"{before.name}_Identity", before.dtype, before.shape)
            for reader in list(before.outputs):
                reader.inputs[list(reader.inputs).index(before)] = made
            graph.nodes.append(gs.Node("Identity", f"{node.name}_Identity", inputs=[before], outputs=[made]))
        graph.toposort()
    else:
        node = next(node for node in graph.nodes if node.op in SWAPS)
        node.op = SWAPS[node.op]
    onnx.save(
        gs.export_onnx(graph), target, save_as_external_data=job == "op", location=f"{Path(target).name}.data"
    )  # fmt: skip


def onnx_ir(job: str, source: str, target: str) -> None:
    """Edits with onnx-ir, weights lazily mapped."""
    import onnx_ir as ir

    model = ir.load(source)
    if job == "rename":
        for node in model.graph:
            for value in node.outputs:
                if value.name and value.name.endswith(OLD):
                    value.name = value.name.removesuffix(OLD) + NEW
    elif job == "insert":
        for node in [node for node in model.graph if node.op_type == "Relu"]:
            before = node.outputs[0]
            identity = ir.node("Identity", [before], name=f"{node.name}_Identity")
            ir.convenience.replace_all_uses_with(before, identity.outputs[0])
            identity.replace_input_with(0, before)
            model.graph.insert_after(node, identity)
    else:
        node = next(node for node in model.graph if node.op_type in SWAPS)
        node.op_type = SWAPS[node.op_type]
    outside = any(isinstance(value.const_value, ir.ExternalTensor) for value in model.graph.initializers.values())
    ir.save(model, target, external_data=f"{Path(target).name}.data" if outside else None)


def onnx_script(job: str, source: str, target: str) -> None:
    """Edits the protobuf by hand, as a surgery.py does, and checks the result as it should."""
    import onnx

    model = onnx.load(source)
    nodes = model.graph.node
    if job == "rename":
        for names in [names for node in nodes for names in (node.input, node.output)]:
            for position, name in enumerate(names):
                if name.endswith(OLD):
                    names[position] = name.removesuffix(OLD) + NEW
    elif job == "insert":
        made = {node.output[0]: f"{node.output[0]}_Identity" for node in nodes if node.op_type == "Relu"}
        edited = []
        for node in nodes:
            for number, name in enumerate(node.input):
                node.input[number] = made.get(name, name)
            edited.append(node)
            if node.output[0] in made:
                edited.append(onnx.helper.make_node("Identity", [node.output[0]], [made[node.output[0]]]))
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in edited]
        del nodes[:]
        nodes.extend(copies)
    else:
        node = next(node for node in nodes if node.op_type in SWAPS)
        node.op_type = SWAPS[node.op_type]
    if job == "op":
        onnx.save(model, target, save_as_external_data=True, location=f"{Path(target).name}.data")
        onnx.checker.check_model(target)
    else:
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, target)


def sor4onnx(job: str, source: str, target: str) -> None:
    """The PINTO renamer; it knows this one job."""
    from sor4onnx import rename

    if job != "rename":
        raise SystemExit("it only renames")
    rename(
        old_new=[OLD, NEW], input_onnx_file_path=source, output_onnx_file_path=target, search_mode="suffix_match",
        non_verbose=True,
    )  # fmt: skip


def onnxslim(job: str, source: str, target: str) -> None:
    """A simplification, which is all that it does; for the table of what is lost."""
    import onnx
    import onnxslim as slim

    onnx.save(slim.slim(onnx.load(source)), target)


TOOLS: dict[str, Callable[[str, str, str], None]] = {
    "onnx-graphsurgeon": graphsurgeon,
    "onnx-ir": onnx_ir,
    "onnx script": onnx_script,
    "sor4onnx": sor4onnx,
    "onnxslim": onnxslim,
}
PACKAGES = {"onnx script": "onnx"}
OUR_FLAGS = {
    "rename": ("--rename-tensors", f"(.*){OLD}=\\1{NEW}"),
    "insert": ("--insert", "{at: op:Relu, op: Identity, expect: all}"),
    "op": ("--set-op", "node:Relu_0=Tanh"),
}
JOBS = {
    "rename": "10,000 tensors renamed by a pattern, in 100,000 nodes",
    "insert": "an Identity behind each of 10,000 Relu nodes, in 100,000",
    "op": "one operator changed in a model with 3 GB of external weights",
}


def missing(tool: str) -> str:
    """Returns why a tool cannot be run here, or nothing."""
    try:
        importlib.metadata.version(PACKAGES.get(tool, tool))
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    return ""


def main() -> None:
    """Does one edit with one tool."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("source")
    parser.add_argument("target")
    told = parser.parse_args()
    TOOLS[told.tool](told.job, told.source, told.target)


# -- measuring ---------------------------------------------------------------------------------------------------


def edits(runs: int, folder: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """The edits of ``JOBS`` by every tool that can, and what each loses of a model with everything in it."""
    import models
    from measure import Contender, compare
    from peers import onnxbench_command
    from speed import _bar, _heavy, _no_memory, _no_room, _ratios

    section: dict[str, Any] = {"blocks": {}, "bars": [], "lost": lost(folder, report)}
    for job, title in JOBS.items():
        report(f" {title}")
        if job == "op":
            if trouble := _no_room(folder):
                section["blocks"][title] = {"trouble": trouble}
                continue
            source = _heavy(folder, report).path
        else:
            source = models.chain(folder / "edits.onnx", 100_000).path
        place = folder / "edited"
        target = place / "out.onnx"

        def clean(place: Path = place) -> None:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()

        def wrong(job: str = job, target: Path = target) -> str | None:
            return wrong_edit(job, target)

        line = onnxbench_command("edit", source, target, *OUR_FLAGS[job], "--quiet")
        contenders = {OURS: Contender(line, before=clean, verify=wrong)}
        if job == "op":
            shared = source.with_name("edited.onnx")
            line = onnxbench_command("edit", source, shared, *OUR_FLAGS[job], "--quiet", "--share-weights")
            contenders[f"{OURS}, weights shared"] = Contender(
                line, before=lambda path=shared: path.unlink(missing_ok=True), note="they stay in the input's file"
            )
        for tool in TOOLS:
            if tool == "onnxslim" or (tool == "sor4onnx" and job != "rename"):
                continue
            contenders[tool] = Contender(
                [sys.executable, __file__, tool, job, str(source), str(target)], runs=3 if job != "op" else 1,
                before=clean, verify=wrong, missing=missing(tool) or (_no_memory() if job == "op" else ""),
            )  # fmt: skip
        rows = compare(contenders, runs, report=report)
        shutil.rmtree(place, ignore_errors=True)
        section["blocks"][title] = {"rows": rows, "ratios": _ratios(rows)}
        if job == "rename":
            bar = _bar(f"edit: {title}", "under 3 s", rows[OURS].get("seconds"), "s", lambda value: value < 3)
            section["bars"].append(bar)
        if job == "op":
            row = rows[f"{OURS}, weights shared"]
            section["bars"] += [
                _bar(f"edit: {title}", "under 2 s", row.get("seconds"), "s", lambda value: value < 2),
                _bar(f"edit: {title}: peak memory", "under 150 MB", row.get("peak_mb"), "MB", lambda v: v < 150),
            ]
    return section


def wrong_edit(job: str, target: Path) -> str | None:
    """Returns what is wrong with the result of an edit, or None."""
    import onnx

    model = onnx.load(target, load_external_data=False)
    made = [name for node in model.graph.node for name in node.output]
    operators = collections.Counter(node.op_type for node in model.graph.node)
    if job == "rename":
        count = sum(name.endswith(NEW) for name in made)
        found = None if count == 10_000 and not any(name.endswith(OLD) for name in made) else f"{count} renamed"
    elif job == "insert":
        found = None if operators["Identity"] == 10_000 else f"{operators['Identity']} inserted"
    else:
        found = None if operators["Tanh"] == 1 else "not changed"
    if found is None and job != "op":
        try:
            onnx.checker.check_model(model, full_check=True)
        except onnx.checker.ValidationError as error:
            found = str(error).splitlines()[0]
    return found


def lost(folder: Path, report: Callable[[str], None]) -> dict[str, dict[str, str]]:
    """Returns what each tool loses when one operator of a model is changed (onnxslim: when it simplifies)."""
    from measure import failure_words, run_once
    from peers import onnxbench_command

    report(" what is lost")
    found: dict[str, dict[str, str]] = {}
    full = _everything(folder / "full.onnx")
    before = fields(full)
    for tool in (OURS, *TOOLS):
        if tool == "sor4onnx":
            continue
        target = folder / "lost.onnx"
        target.unlink(missing_ok=True)
        line = [sys.executable, __file__, tool, "op", str(full), str(target)]
        if tool == OURS:
            line = onnxbench_command("edit", full, target, "--set-op", "op:Relu=Tanh", "--no-stamp")
        sample = run_once(line) if tool == OURS or not missing(tool) else None
        if sample is None or sample.status:
            found[tool] = dict.fromkeys(
                before, "not installed" if sample is None else f"failed: {failure_words(sample)}"
            )
            continue
        after = fields(target)
        found[tool] = {
            name: "kept" if after[name] >= count else "lost" if not after[name] else f"{after[name]} of {count}"
            for name, count in before.items()
        }
    return found


def _everything(path: Path) -> Path:
    """Writes FULL with a Relu behind its output, a sparse initializer and a quantization annotation, and returns it."""
    import onnx
    from onnx import helper

    model = onnx.load(FULL)
    graph = model.graph
    graph.node.append(helper.make_node("Relu", [graph.output[0].name], ["relu"], name="relu"))
    graph.output.add(name="relu").type.CopyFrom(graph.output[0].type)
    sparse = graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(helper.make_tensor("sparse", 1, [2], [1.0, 2.0]))
    sparse.indices.CopyFrom(helper.make_tensor("", 7, [2], [0, 3]))
    graph.node.append(helper.make_node("Abs", ["sparse"], ["dense"], name="abs"))
    graph.output.append(helper.make_tensor_value_info("dense", 1, [4]))
    graph.quantization_annotation.add(tensor_name="relu").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value=graph.initializer[0].name
    )
    onnx.save(model, path)
    return path


def fields(path: Path) -> Mapping[str, int]:
    """Returns how much a model has of what edits tend to lose."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    infos = (*graph.input, *graph.output, *graph.value_info)
    return collections.Counter(
        {
            "model metadata": len(model.metadata_props),
            "graph metadata": len(graph.metadata_props),
            "node metadata (PyTorch scopes)": sum(len(node.metadata_props) for node in graph.node),
            "value info metadata": sum(len(info.metadata_props) for info in infos),
            "initializer metadata": sum(len(tensor.metadata_props) for tensor in graph.initializer),
            "doc strings of nodes": sum(bool(node.doc_string) for node in graph.node),
            "doc strings of graph and model": bool(graph.doc_string) + bool(model.doc_string),
            "doc strings of inputs and outputs": sum(bool(info.doc_string) for info in infos),
            "denotations": sum(bool(info.type.denotation) for info in infos),
            "quantization annotations": len(graph.quantization_annotation),
            "sparse initializers": len(graph.sparse_initializer),
            "local functions": len(model.functions),
            "producer, domain, version": sum(
                map(bool, (model.producer_name, model.producer_version, model.domain, model.model_version))
            ),
            "unknown fields": _unknown(model),
        }
    )


def _unknown(message: Any) -> int:
    """Returns how many unknown fields a message has, at all levels."""
    from google.protobuf.unknown_fields import UnknownFieldSet

    count, pending = 0, [message]
    while pending:
        each = pending.pop()
        count += len(UnknownFieldSet(each))
        for field, value in each.ListFields():
            if field.message_type is not None:
                pending.extend([value] if hasattr(value, "DESCRIPTOR") else value)
    return count


if __name__ == "__main__":
    main()
