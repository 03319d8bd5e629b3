"""The process in which TensorRT runs: one job in as JSON, events out as JSON lines, then the end.

    python -m onnxbench.engine._worker EVENTS_FD SCRATCH ENGINE < job.json

TensorRT is loaded while it waits for the job. One line may come before the job, to look ahead: the model file that the
job will be on, as far as is known, which is parsed meanwhile.

It ends at once when its standard input is closed or nobody reads its events, which is when the process that asked for
the work is gone; its folder for temporary files, which that process would have removed, goes then too.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from onnxbench.engine import _seam
from onnxbench.errors import BenchError, EngineError, OutputError

_ENDING = threading.Lock()


def main() -> None:
    """Does the job that stands on standard input."""
    events = os.fdopen(int(sys.argv[1]), "w", buffering=1, encoding="utf-8")
    scratch, engine = sys.argv[2:]

    def say(event: str, **fields: Any) -> None:
        try:
            events.write(json.dumps({"event": event, **fields}) + "\n")
        except BrokenPipeError:  # TensorRT, which calls this for its log, would end the process some way or other
            _end(scratch)

    with contextlib.suppress(BenchError):  # said once there is a job
        _seam.load_module(engine)
    ahead = None
    job = json.loads(sys.stdin.readline() or "null")
    if job is not None and job["task"] == "look ahead":
        with contextlib.suppress(BenchError):
            ahead = _Ahead(engine, job["model"])
        job = json.loads(sys.stdin.readline() or "null")
    if job is None:
        _end(scratch)
    threading.Thread(target=_end_with_parent, args=(scratch,), daemon=True).start()
    try:
        say("result", **_JOBS[job["task"]](job, say, ahead))
    except BenchError as error:
        say("error", **_seam.as_dict(error))
    sys.stdout.flush()
    _end(scratch, 0)  # TensorRT's own clearing up is slow and has been seen to crash


def _end_with_parent(scratch: str) -> None:
    sys.stdin.read()
    _end(scratch)


def _end(scratch: str, status: int = 1) -> NoReturn:
    _ENDING.acquire()  # whoever comes second must not end the process before the folder is gone
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(status)


class _Ahead:
    """A model file that was parsed before there was a job.

    Attributes:
        rt: TensorRT, of which a process can have one.
        seconds: What it took.
    """

    def __init__(self, engine: str, model: str) -> None:
        started = time.perf_counter()
        self._said: list[tuple[str, dict[str, Any]]] = []
        self.rt = _seam.TensorRT(engine, lambda event, **fields: self._said.append((event, fields)))
        self._model, self._state = model, _state_of(model)
        self._parsed = self.rt.parse(Path(model)) if self._state is not None else None
        self.seconds = time.perf_counter() - started

    def parsed(self, job: dict[str, Any], say: _seam.Say) -> tuple[Any, list[dict[str, Any]]] | None:
        """Returns the network of a job's model and what is refused in it, or None if that has to be parsed still."""
        spec, state = job["spec"], self._state
        is_plain = (
            not job["plugins"] and "Attention" not in job.get("operators", ()) and spec.get("strongly_typed", True)
        )
        if not is_plain or job["model"] != self._model or state is None or state != _state_of(self._model):
            self._parsed = None
            self.rt.forget()
            return None
        for event, fields in self._said:
            say(event, **fields)
        return self._parsed


def _state_of(model: str) -> tuple[int, ...] | None:
    """Returns what changes when a file does; None if it is no regular file."""
    try:
        found = os.stat(model)
    except OSError:
        return None
    return (found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev) if stat.S_ISREG(found.st_mode) else None


def _load(
    job: dict[str, Any], say: _seam.Say, ahead: _Ahead | None = None
) -> tuple[_seam.TensorRT, list[dict[str, Any]]]:
    """Loads TensorRT and the plugins of a job; a plugin that fails is told of and does not stop the others."""
    say("phase", name="loading TensorRT", parent="", steps=0)
    rt = _seam.TensorRT(job["engine"], say) if ahead is None else ahead.rt
    rt.say = say
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


def _describe(job: dict[str, Any], say: _seam.Say, ahead: _Ahead | None = None) -> dict[str, Any]:
    rt, plugins = _load(job, say, ahead)
    return {"version": rt.version, "creators": [list(each) for each in rt.creators()], "plugins": plugins}


def _build(job: dict[str, Any], say: _seam.Say, ahead: _Ahead | None = None) -> dict[str, Any]:
    """Parses and builds; without a target the engine is thrown away (a trial)."""
    started = time.perf_counter()
    rt, plugins = _load(job, say, ahead)
    loaded = time.perf_counter()
    spec = job["spec"]
    say("phase", name="parsing the model", parent="", steps=0)
    model = Path(job["model"])
    known = ahead.parsed(job, say) if ahead is not None else None
    network, problems = known or rt.parse(
        model, content=_fitted(rt, model), strongly_typed=spec.get("strongly_typed", True),
        has_attention="Attention" in job.get("operators", ()),
    )  # fmt: skip
    _refuse_raised(rt)
    say("phase_end", name="parsing the model")
    parsed = time.perf_counter()
    parse_seconds = parsed - loaded + (ahead.seconds if ahead is not None and known else 0.0)
    result: dict[str, Any] = {
        "version": rt.version, "plugins": plugins, "problems": problems, "built": False,
        "supported": _supported(rt, job, problems), "creators": [list(each) for each in rt.creators()],
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
    memory = rt.build(network, config)
    _refuse_raised(rt)
    if memory is None:
        return {**result, "messages": rt.messages}
    try:
        result |= _seam.write_engine(memory, Path(job["target"]))
        if cache is not None:
            with open(job["timing_cache_target"], "wb") as out:
                out.write(cache.serialize())
    except OSError as error:
        raise OutputError(f"the engine cannot be written: {error.strerror} (it has {memory.nbytes:,} bytes)",
                          hint="Free some space, or name a file on another disk.") from None  # fmt: skip
    built = time.perf_counter()
    result |= {
        "built": True,
        "load_seconds": loaded - started, "parse_seconds": parse_seconds, "build_seconds": built - parsed,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "messages": rt.messages,
    }  # fmt: skip
    return result


def _query(job: dict[str, Any], say: _seam.Say, ahead: _Ahead | None = None) -> dict[str, Any]:
    """Asks the parser which nodes it takes."""
    rt, plugins = _load(job, say, ahead)
    say("phase", name="asking the parser", parent="", steps=0)
    model = Path(job["model"])
    runs, problems = rt.query_support(model, content=_fitted(rt, model))
    say("phase_end", name="asking the parser")
    return {
        "version": rt.version, "plugins": plugins, "runs": runs, "problems": problems,
        "supported": _supported(rt, job, problems),
        "creators": [list(each) for each in rt.creators()],
    }  # fmt: skip


def _supported(rt: _seam.TensorRT, job: dict[str, Any], problems: list[dict[str, Any]]) -> dict[str, bool]:
    """Returns of a refused model's operators whether the parser has them."""
    named = {each["op"] for each in problems if each["op"]}
    return {op: rt.supports(op) for op in sorted({*named, *job.get("operators", ())})} if problems else {}


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
