"""The process in which an isolated session runs: jobs in as JSON lines, answers out as JSON lines.

    python -m onnxbench.backends._worker ANSWERS_FD < jobs

It ends at once when its standard input is closed, which is when the process that asked for the work is gone. Where
the system runs out of memory it is the first to be ended, and no core file is left of a crash.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench import captures
from onnxbench.backends import Operator, Options, backend
from onnxbench.backends._operators import Taught
from onnxbench.errors import BenchError

if TYPE_CHECKING:
    from onnxbench.backends import Session


def main() -> None:
    """Does the jobs that stand on standard input, one after the other."""
    if sys.argv[1] == "log":
        _log(json.loads(sys.argv[2]))
        return
    answers = os.fdopen(int(sys.argv[1]), "w", buffering=1, encoding="utf-8")
    _be_expendable()
    import numpy  # noqa: F401 - so that the time of imports is not that of the first job
    import onnxruntime  # noqa: F401

    answers.write('{"ready": true}\n')
    session: Session | None = None
    for line in sys.stdin:
        job = json.loads(line)
        try:
            said: dict[str, Any] = {}
            if job["do"] == "close":
                session = None
            elif job["do"] == "open":
                session = _open(job)
                said = _description(session)
            else:
                assert session is not None
                _run(session, job)
        except BenchError as error:
            said = {
                "error": {
                    "class": type(error).__name__, "message": error.message, "hint": error.hint,
                    "details": list(error.details),
                }
            }  # fmt: skip
        except MemoryError:
            said = {"error": {"class": "ExecutionError", "message": "memory ran out", "hint": None, "details": []}}
        answers.write(json.dumps(said) + "\n")
    os._exit(0)


def _be_expendable() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _limit_memory() -> None:
    """Lets the process have as much as the machine has: more would be swapped for minutes before it fails."""
    with contextlib.suppress(OSError, ValueError):
        most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _open(job: dict[str, Any]) -> Session:
    said = job["options"]
    options = Options(
        **{**said, "providers": tuple(said["providers"]), "libraries": tuple(map(Path, said["libraries"])),
           "disabled": tuple(said["disabled"])},
        operators=_operators(job["bundles"]),
    )  # fmt: skip
    if all(name.lower() == "cpu" for name in options.providers):
        _limit_memory()
    import onnx

    data = Path(job["model"]).read_bytes()
    proto = onnx.ModelProto.FromString(data)
    if job["backend"] != "ort":
        from onnxbench.model import from_proto

        if job["package"] is not None and job["package"] not in sys.path:
            sys.path.append(job["package"])
        return backend(job["backend"]).open(from_proto(proto), outputs=None, options=options)
    from onnxbench.backends._ort import OrtSession

    taught = Taught(proto, options.operators)
    if taught.proto is not proto:
        data = taught.proto.SerializeToString()
    options = replace(options, libraries=(*options.libraries, *taught.libraries))
    return OrtSession(data, job["root"], taught.proto, options, taught)


def _operators(bundles: list[str]) -> tuple[Operator, ...]:
    """Returns what bundles define. They lie above this layer, so they are reached by name alone."""
    if not bundles:
        return ()
    known = import_module("onnxbench.bundles")
    made: tuple[Operator, ...] = known.operators_of(known.load_bundles(bundles))
    return made


def _description(session: Session) -> dict[str, Any]:
    return {
        "providers": list(session.providers),
        "device": session.device,
        "outputs": [
            {"name": port.name, "type": None if port.type is None else port.type.SerializeToString().hex()}
            for port in session.outputs
        ],
    }


def _run(session: Session, job: dict[str, Any]) -> None:
    with captures.Capture(job["feeds"]) as feeds:
        values = session.run({name: feeds[name] for name in feeds}, job["outputs"])
    captures.save(job["target"], values)


def _log(job: dict[str, Any]) -> None:
    """Opens a model with ONNX Runtime's log on standard error."""
    from onnxbench.backends._ort import open_verbosely

    _be_expendable()
    with contextlib.suppress(BenchError):
        open_verbosely(Path(job["model"]), job["root"], Options(
            optimization=job["level"], providers=tuple(job["providers"]), libraries=tuple(map(Path, job["libraries"])),
            verbose=True,
        ))  # fmt: skip
    os._exit(0)


if __name__ == "__main__":
    main()
