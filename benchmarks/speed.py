"""Seconds and memory of whole processes: start-up, long graphs, large weights, and how time grows with a graph.

Each function measures one section of the table and returns it as plain data: ``rows`` by name (see
``measure.summary``), ``ratios``, and ``bars``, the promises that it is held against.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import models
import peers
from measure import Contender, compare, evict, machine

OURS = "onnxbench"
HEAVY_LIBRARIES = ("numpy", "onnx", "onnxruntime", "torch")
LONG, SHORT, TINY = 100_000, 10_000, 40
MEMORY_FOR_PEERS_GIB = 12
"""A peer that loads 3 GB of weights three times is run only if this much memory is free."""
DISK_GIB = 9
SLOW_RUNS = 3

Report = Callable[[str], None]


def startup(runs: int, folder: Path, report: Report) -> dict[str, Any]:
    """``onnxbench --help`` as a whole process, and the heavy libraries that it loads."""
    contenders = {
        f"{OURS} --help": Contender(peers.onnxbench_command("--help")),
        "python -c pass": Contender([sys.executable, "-c", "pass"], note="the floor"),
        "polygraphy --help": Contender(
            peers.script_command("polygraphy", "--help"), missing=peers.missing("polygraphy")
        ),
    }
    rows = compare(contenders, max(runs, 5), report=report)
    loaded = _loaded_libraries()
    seconds = rows[f"{OURS} --help"].get("seconds")
    return {
        "rows": rows,
        "loaded": loaded,
        "bars": [
            _bar("`onnxbench --help`, whole process", "at most 0.35 s", seconds, "s", lambda v: v <= 0.35),
            {
                "what": f"`onnxbench --help` loads none of {', '.join(HEAVY_LIBRARIES)}",
                "bar": "none",
                "value": ", ".join(loaded) or "none",
                "met": not loaded,
            },
        ],
    }


def _loaded_libraries() -> list[str]:
    """Returns which heavy libraries Python says that it imported for ``--help``."""
    line = [sys.executable, "-X", "importtime", "-m", "onnxbench", "--help"]
    trace = subprocess.run(line, capture_output=True, text=True, check=False)
    if trace.returncode:
        return ["(it failed)"]
    imported = {row.rpartition("|")[2].strip() for row in trace.stderr.splitlines() if row.startswith("import time:")}
    return [name for name in HEAVY_LIBRARIES if name in imported]


def extract(runs: int, folder: Path, report: Report) -> dict[str, Any]:
    """The middle half of a model of 100,000 nodes, with and without stated types, by every tool."""
    section: dict[str, Any] = {"blocks": {}, "bars": []}
    for title, value_info in (("no value_info", False), ("value_info for every tensor", True)):
        report(f" {LONG:,} nodes, {title}")
        chain = models.chain(folder / f"chain_{int(value_info)}.onnx", LONG, value_info=value_info)
        contenders = _extractors(chain, folder, infer=not value_info)
        rows = compare(contenders, runs, report=report)
        ratios = _ratios(rows)
        section["blocks"][title] = {"rows": rows, "ratios": ratios}
        what = f"extract the middle half of {LONG:,} nodes, {title}"
        section["bars"] += [
            _bar(what, "under 2.0 s", rows[OURS].get("seconds"), "s", lambda v: v < 2.0),
            _bar(f"{what}: faster than polygraphy", "at least 15 times", ratios.get("polygraphy"), "x",
                 lambda v: v >= 15),
            _bar(f"{what}: faster than onnx.utils.extract_model", "at least 2.5 times",
                 ratios.get("onnx.utils.extract_model"), "x", lambda v: v >= 2.5),
        ]  # fmt: skip
        chain.path.unlink()
    return section


def _extractors(chain: models.Chain, folder: Path, *, infer: bool) -> dict[str, Contender]:
    target = folder / "middle.onnx"

    def clean() -> None:
        target.unlink(missing_ok=True)

    def wrong() -> str | None:
        import onnx

        if not target.exists():
            return "no file was written"
        piece = onnx.load(target)
        ends = [info.name for info in piece.graph.input], [info.name for info in piece.graph.output]
        if ends != ([chain.start], [chain.end]) or len(piece.graph.node) != chain.middle:
            return f"{len(piece.graph.node)} nodes from {ends[0]} to {ends[1]}"
        onnx.checker.check_model(piece, full_check=True)
        return None

    line = peers.onnxbench_command("extract", chain.path, target, "--inputs", chain.start, "--outputs", chain.end)
    contenders = {OURS: Contender(line, before=clean, verify=wrong)}
    for tool in ("onnx.utils.extract_model", "polygraphy", "onnx-ir", "onnx-graphsurgeon"):
        contenders[tool] = Contender(
            peers.command(tool, chain.path, target, [chain.start], [chain.end], infer=infer),
            runs=99 if tool.startswith("onnx.utils") else SLOW_RUNS,
            before=clean,
            verify=wrong,
            missing=peers.missing(tool),
        )
    return contenders


def diff(runs: int, folder: Path, report: Report) -> dict[str, Any]:
    """Two models of 100,000 nodes: equal ones, two edits, and two edits among new names in another order."""
    chain = models.chain(folder / "diff.onnx", LONG)
    others = {
        "equal": chain.path,
        "two edits": models.edited(chain, folder / "diff_edited.onnx"),
        "two edits, renamed and shuffled": models.edited(chain, folder / "diff_renamed.onnx", renamed=True),
    }
    contenders = {
        f"{OURS} diff, {title}": Contender(
            peers.onnxbench_command("diff", chain.path, other, "--ignore", "names"),
            statuses=(int(other != chain.path),),
        )
        for title, other in others.items()
    }
    for contender, other in zip(contenders.values(), others.values(), strict=True):
        contender.verify = partial(_wrong_difference, chain.path, other)
    rows = compare(contenders, min(runs, SLOW_RUNS), report=report)
    bars = [
        _bar(f"`{name}`: {LONG:,} nodes, whole process", "under 10 s", row.get("seconds"), "s", lambda v: v < 10)
        for name, row in rows.items()
    ]
    for path in others.values():
        path.unlink()
    return {"rows": rows, "bars": bars}


def _wrong_difference(one: Path, other: Path) -> str | None:
    command = peers.onnxbench_command("diff", one, other, "--ignore", "names", "--json")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)["result"]["counts"]
    return None if found == ({} if one == other else {"op": 1, "attribute": 1}) else f"found {found}"


def weights(runs: int, folder: Path, report: Report) -> dict[str, Any]:
    """One MatMul of a model with 3 GB of external weights: time beside a plain copy of its bytes, and memory."""
    if trouble := _no_room(folder):
        return {"blocks": {}, "bars": [], "trouble": trouble}
    heavy = _heavy(folder, report)
    lone = folder / "weight.bin"
    with open(heavy.data, "rb") as source, open(lone, "wb") as out:
        done = 0
        while done < heavy.length:
            done += os.copy_file_range(source.fileno(), out.fileno(), heavy.length - done, heavy.offset + done)
    section: dict[str, Any] = {"blocks": {}, "bars": [], "bytes": heavy.length, "total": heavy.data.stat().st_size}
    for title, prepare in (("warm cache", _warm), ("cold cache", evict)):
        report(f" {title}")
        contenders = _weight_contenders(heavy, lone, folder, prepare, with_peers=title == "warm cache")
        rows = compare(contenders, runs, report=report)
        section["blocks"][title] = {"rows": rows, "ratios": _ratios(rows)}
        ours, copied = rows[OURS].get("seconds"), rows["cp and sync"].get("seconds")
        section["bars"].append(
            _bar(f"extract one MatMul of 3 GB, {title}: time beside a copy of its bytes, flushed too",
                 "at most 1.5 times", ours and copied and ours / copied, "x", lambda v: v <= 1.5)
        )  # fmt: skip
        section["bars"].append(
            _bar(f"extract one MatMul of 3 GB, {title}: peak memory", "under 250 MB", rows[OURS].get("peak_mb"), "MB",
                 lambda v: v < 250)
        )  # fmt: skip
    lone.unlink()
    return section


def _weight_contenders(
    heavy: models.Heavy, lone: Path, folder: Path, prepare: Callable[[Path], None], *, with_peers: bool
) -> dict[str, Contender]:
    target = folder / "piece.onnx"
    outside = folder / "piece.onnx.data"

    def clean() -> None:
        for file in (target, outside):
            file.unlink(missing_ok=True)
        os.sync()
        prepare(heavy.data)
        prepare(lone)

    def wrong() -> str | None:
        return None if _holds(outside if outside.exists() else target, heavy) else "the weights are not those bytes"

    line = peers.onnxbench_command("extract", heavy.path, target, "--inputs", heavy.start, "--outputs", heavy.end)
    blocks = heavy.length >> 22
    copy = f"dd if={heavy.data} of={target} bs=4M skip={heavy.offset >> 22} count={blocks} conv=fsync status=none"
    contenders = {
        OURS: Contender(line, note="weights inline; flushed to the disk"),
        f"{OURS}, external data": Contender([*line, "--save-external-data", "auto"], note="flushed to the disk"),
        "cp and sync": Contender(["sh", "-c", f"cp --reflink=never {lone} {target} && sync {target}"], note="flushed"),
        "dd": Contender(copy.split(), note="4 MiB blocks, flushed"),
        "cp": Contender(["cp", "--reflink=never", str(lone), str(target)], note="not flushed to the disk"),
    }
    if with_peers:
        ends = [heavy.start], [heavy.end]
        contenders["onnx-ir"] = Contender(
            peers.command("onnx-ir", heavy.path, target, *ends, infer=True),
            runs=SLOW_RUNS,
            missing=peers.missing("onnx-ir"),
            note="not flushed",
        )
        for tool in ("onnx.utils.extract_model", "polygraphy", "onnx-graphsurgeon"):
            contenders[tool] = Contender(
                peers.command(tool, heavy.path, target, *ends, infer=True),
                runs=1,
                missing=peers.missing(tool) or _no_memory(),
                note="one run; not flushed",
            )
    for contender in contenders.values():
        contender.before, contender.verify = clean, wrong
    return contenders


def structure(runs: int, folder: Path, report: Report) -> dict[str, Any]:
    """What needs no weights, on the model with 3 GB of them: look, find, and save with a further output."""
    if trouble := _no_room(folder):
        return {"rows": {}, "bars": [], "trouble": trouble}
    heavy = _heavy(folder, report)
    shown = heavy.path.with_name("shown.onnx")

    def clean() -> None:
        shown.unlink(missing_ok=True)

    def wrong() -> str | None:
        import onnx

        piece = onnx.load(shown, load_external_data=False)
        names = [info.name for info in piece.graph.output]
        return None if heavy.end in names else f"the outputs are {names}"

    expose = ("expose", heavy.path, shown, "--outputs", heavy.end, "--share-weights")
    contenders = {
        f"{OURS} inspect": Contender(peers.onnxbench_command("inspect", heavy.path)),
        f"{OURS} find op:MatMul": Contender(peers.onnxbench_command("find", heavy.path, "op:MatMul")),
        f"{OURS} expose --share-weights": Contender(peers.onnxbench_command(*expose), before=clean, verify=wrong),
        "polygraphy inspect model": Contender(
            peers.script_command("polygraphy", "inspect", "model", heavy.path),
            runs=1,
            missing=peers.missing("polygraphy") or _no_memory(),
            note="one run",
        ),
    }
    rows = compare(contenders, runs, report=report)
    bars = []
    for name, row in rows.items():
        if name.startswith(OURS):
            what = f"`{name}` on 3 GB of external weights"
            bars.append(_bar(what, "under 2 s", row.get("seconds"), "s", lambda v: v < 2))
            bars.append(_bar(f"{what}: peak memory", "under 150 MB", row.get("peak_mb"), "MB", lambda v: v < 150))
    return {"rows": rows, "bars": bars}


def growth(runs: int, folder: Path, report: Report) -> dict[str, Any]:
    """Every command that takes a model, on 40, 10,000 and 100,000 nodes; the first is what a process costs anyway."""
    by_size: dict[int, dict[str, Any]] = {}
    for nodes in (TINY, SHORT, LONG):
        report(f" {nodes:,} nodes")
        place = folder / f"growth_{nodes}"
        place.mkdir()
        contenders = _growth_contenders(models.chain(place / "chain.onnx", nodes), place)
        by_size[nodes] = compare(contenders, min(runs, SLOW_RUNS), report=report)
        shutil.rmtree(place)
    rows = {}
    bars = []
    for name in by_size[LONG]:
        tiny, short, long = (by_size[nodes][name].get("seconds") for nodes in (TINY, SHORT, LONG))
        row = {
            "tiny_s": tiny,
            "short_s": short,
            "long_s": long,
            "ratio": long / short if long and short else None,
            # What is left when the cost of any process is taken away: it says how the work itself grows.
            "net_ratio": (long - tiny) / (short - tiny) if tiny and short and long and short - tiny > 0.02 else None,
            "peak_mb": by_size[LONG][name].get("peak_mb"),
            "note": by_size[LONG][name]["note"],
        }
        failures = [by_size[nodes][name]["failure"] for nodes in by_size if "failure" in by_size[nodes][name]]
        rows[name] = row | ({"failure": failures[0]} if failures else {})
        if name.startswith(OURS):
            what = f"`{name}`: 100,000 nodes beside 10,000"
            bars.append(_bar(what, "at most 12 times", row["ratio"], "x", lambda v: v <= 12))
    return {"rows": rows, "bars": bars}


def _growth_contenders(chain: models.Chain, place: Path) -> dict[str, Contender]:
    out, text, pieces = place / "out.onnx", place / "model.txt", place / "pieces"

    def clean() -> None:
        out.unlink(missing_ok=True)
        shutil.rmtree(pieces, ignore_errors=True)

    shown = subprocess.run(peers.onnxbench_command("show", chain.path), capture_output=True, check=False)
    text.write_bytes(shown.stdout)
    lines: dict[str, tuple[Any, ...]] = {
        "inspect": (chain.path,),
        "inspect --nodes": (chain.path, "--nodes"),
        "find": (chain.path, "op:Tanh"),
        "extract": (chain.path, out, "--inputs", chain.start, "--outputs", chain.end),
        "expose": (chain.path, out, "--outputs", chain.start, chain.end),
        "split --parts": (chain.path, pieces, "--parts", "4"),
        "show": (chain.path,),
        "build": (text, out),
        "check": (chain.path,),
        "diff": (chain.path, chain.path),
        "run": (chain.path,),
    }
    contenders = {}
    for words, (first, *rest) in lines.items():
        command, *options = words.split()
        if command == "split":
            options = []
        contenders[f"{OURS} {words}"] = Contender(
            peers.onnxbench_command(command, first, *options, *rest),
            before=clean,
            statuses=(0, 1) if command == "check" else (0,),
        )
    session = (
        "import numpy, onnxruntime as o, sys; "
        f"o.InferenceSession(sys.argv[1]).run(None, {{'x': numpy.ones((1, {models.WIDTH}), 'float32')}})"
    )
    contenders["onnxruntime alone"] = Contender(
        [sys.executable, "-c", session, str(chain.path)], note="a session and a run by hand: the floor of `run`"
    )
    contenders["onnx.checker, full"] = Contender(
        [sys.executable, "-c", "import onnx, sys; onnx.checker.check_model(sys.argv[1], full_check=True)",
         str(chain.path)], note="the floor of `check` and of every save"
    )  # fmt: skip
    return contenders


def _heavy(folder: Path, report: Report) -> models.Heavy:
    """Returns the model with 3 GB of weights, made on first use and kept in the folder of this run."""
    place = folder / "heavy"
    known: dict[Path, models.Heavy] = _HEAVY
    if place not in known:
        report(" writing a model with 3 GB of weights")
        known[place] = models.heavy(place)
    return known[place]


_HEAVY: dict[Path, models.Heavy] = {}


def _no_room(folder: Path) -> str:
    free = shutil.disk_usage(folder).free / 2**30
    return "" if free > DISK_GIB else f"not run: {free:.0f} GiB of disk are free, {DISK_GIB} are needed"


def _no_memory() -> str:
    free = machine()["free_gib"]
    return "" if free >= MEMORY_FOR_PEERS_GIB else f"not run: it takes 6 to 10 GB of memory, and {free:.0f} are free"


def _warm(path: Path) -> None:
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(1 << 22)
        while file.readinto(buffer):
            pass


def _holds(file: Path, heavy: models.Heavy) -> bool:
    """Tells whether a file holds the weight's bytes somewhere, in one piece and unchanged."""
    with (
        open(file, "rb") as made,
        open(heavy.data, "rb") as source,
        mmap.mmap(made.fileno(), 0, access=mmap.ACCESS_READ) as pages,
    ):
        source.seek(heavy.offset)
        at = pages.find(source.read(64))
        if at < 0 or len(pages) - at < heavy.length:
            return False
        source.seek(heavy.offset)
        step = 1 << 22
        return all(pages[at + i : at + i + step] == source.read(step) for i in range(0, heavy.length, step))


def _ratios(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Returns how many times longer each contender took than onnxbench."""
    ours = rows[OURS].get("seconds")
    return {
        name: row["seconds"] / ours for name, row in rows.items() if ours and "seconds" in row and "failure" not in row
    }


def _bar(what: str, bar: str, value: float | None, unit: str, holds: Callable[[float], bool]) -> dict[str, Any]:
    if not value:
        return {"what": what, "bar": bar, "value": "not measured", "met": None}
    shown = f"{value:.0f} MB" if unit == "MB" else f"{value:.2f} s" if unit == "s" else f"{value:.1f} times"
    return {"what": what, "bar": bar, "value": shown, "met": bool(holds(value))}
