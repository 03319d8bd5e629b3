"""The process in which TensorRT runs: one job in as JSON, events out as JSON lines, then the end.

    python -m onnxbench.engine._worker EVENTS_FD SCRATCH FLAVOR < job.json

TensorRT is loaded while it waits for the job.

It ends at once when its standard input is closed or nobody reads its events, which is when the process that asked for
the work is gone; its folder for temporary files, which that process would have removed, goes then too.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from onnxbench.engine import _seam
from onnxbench.engine._flavors import Flavor
from onnxbench.errors import BenchError, EngineError

_ENDING = threading.Lock()


def main() -> None:
    """Does the job that stands on standard input."""
    events = os.fdopen(int(sys.argv[1]), "w", buffering=1, encoding="utf-8")

    def say(event: str, **fields: Any) -> None:
        try:
            events.write(json.dumps({"event": event, **fields}) + "\n")
        except BrokenPipeError:  # TensorRT, which calls this for its log, would end the process some way or other
            _end(sys.argv[2])

    with contextlib.suppress(BenchError):  # said once there is a job
        _seam.load_module(Flavor(**json.loads(sys.argv[3])))
    job = json.loads(sys.stdin.readline() or "null")
    if job is None:
        _end(sys.argv[2])
    threading.Thread(target=_end_with_parent, args=(sys.argv[2],), daemon=True).start()
    try:
        say("result", **_JOBS[job["task"]](job, say))
    except BenchError as error:
        say("error", **_seam.as_dict(error))
    sys.stdout.flush()
    _end(sys.argv[2], 0)  # TensorRT's own clearing up is slow and has been seen to crash


def _end_with_parent(scratch: str) -> None:
    sys.stdin.read()
    _end(scratch)


def _end(scratch: str, status: int = 1) -> NoReturn:
    _ENDING.acquire()  # whoever comes second must not end the process before the folder is gone
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(status)


def _load(job: dict[str, Any], say: _seam.Say) -> tuple[_seam.TensorRT, list[dict[str, Any]]]:
    """Loads TensorRT and the plugins of a job; a plugin that fails is told of and does not stop the others."""
    say("phase", name="loading TensorRT", parent="", steps=0)
    rt = _seam.TensorRT(Flavor(**job["flavor"]), say)
    plugins = []
    for plugin in job.get("plugins", ()):
        before, failure = set(rt.creators()), None
        try:
            if plugin["kind"] == "library":
                rt.load_library(Path(plugin["path"]))
            else:
                from onnxbench.bundles import register_with_tensorrt

                register_with_tensorrt(rt, plugin)
        except BenchError as error:
            failure = _seam.as_dict(error)
        made = [list(each) for each in rt.creators() if each not in before]
        plugins.append({"path": plugin["path"], "creators": made, "failure": failure})
    say("phase_end", name="loading TensorRT")
    return rt, plugins


def _describe(job: dict[str, Any], say: _seam.Say) -> dict[str, Any]:
    rt, plugins = _load(job, say)
    return {"version": rt.version, "creators": [list(each) for each in rt.creators()], "plugins": plugins}


def _build(job: dict[str, Any], say: _seam.Say) -> dict[str, Any]:
    """Parses and builds; without a target the engine is thrown away (a trial)."""
    started = time.perf_counter()
    rt, plugins = _load(job, say)
    loaded = time.perf_counter()
    spec = job["spec"]
    say("phase", name="parsing the model", parent="", steps=0)
    model = Path(job["model"])
    network, problems = rt.parse(
        model, content=_fitted(rt, model), strongly_typed=spec.get("strongly_typed", True),
        has_attention=job.get("has_attention", False),
    )  # fmt: skip
    _refuse_raised(rt)
    say("phase_end", name="parsing the model")
    parsed = time.perf_counter()
    unknown = sorted({each["op"] for each in problems if each["op"]})
    result: dict[str, Any] = {
        "version": rt.version, "plugins": plugins, "problems": problems, "built": False,
        "supported": {op: rt.supports(op) for op in unknown}, "creators": [list(each) for each in rt.creators()],
    }  # fmt: skip
    if problems or job["task"] == "parse":
        return {**result, "messages": rt.messages}
    result["network"] = _seam.describe_network(network)
    config = rt.configure(network, spec)
    cache_file = spec.get("timing_cache")
    cache = rt.load_timing_cache(config, Path(cache_file)) if cache_file else None
    serialized = [each["path"] for each in job.get("plugins", ()) if each["kind"] == "library" and each.get("embed")]
    if serialized:
        config.plugins_to_serialize = serialized
    made = rt.build(network, config, Path(job["target"]))
    _refuse_raised(rt)
    if made is None:
        return {**result, "messages": rt.messages}
    result |= made
    if cache is not None:
        with open(job["timing_cache_target"], "wb") as out:
            out.write(cache.serialize())
    built = time.perf_counter()
    result |= {
        "built": True,
        "load_seconds": loaded - started, "parse_seconds": parsed - loaded, "build_seconds": built - parsed,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "messages": rt.messages,
    }  # fmt: skip
    return result


def _query(job: dict[str, Any], say: _seam.Say) -> dict[str, Any]:
    """Asks the parser which nodes it takes."""
    rt, plugins = _load(job, say)
    say("phase", name="asking the parser", parent="", steps=0)
    model = Path(job["model"])
    runs, problems = rt.query_support(model, content=_fitted(rt, model))
    say("phase_end", name="asking the parser")
    return {
        "version": rt.version, "plugins": plugins, "runs": runs, "problems": problems,
        "supported": {op: rt.supports(op) for op in sorted({each["op"] for each in problems if each["op"]})},
        "creators": [list(each) for each in rt.creators()],
    }  # fmt: skip


def _fitted(rt: _seam.TensorRT, model: Path) -> bytes | None:
    """Returns what is to be parsed in place of what is in a model's file."""
    if not rt.bundles:
        return None
    from onnxbench.bundles import fit_to_parser

    return fit_to_parser(rt, model)


def _refuse_raised(rt: _seam.TensorRT) -> None:
    """Raises EngineError for what methods of plugins raised: TensorRT goes on, to an engine that lacks something."""
    if rt.plugin_failures:
        raise EngineError(rt.plugin_failures[0], details=rt.plugin_failures[1:4], hint="Mend the plugin.")


_JOBS = {"describe": _describe, "build": _build, "parse": _build, "query": _query}

if __name__ == "__main__":
    main()
