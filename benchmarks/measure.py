"""Whole processes measured from outside: wall seconds and peak memory, contenders taking turns.

A process is started by a launcher, a Python of 10 MB: Linux counts what a parent held at the moment of the fork as
its child's peak, so a parent that has numpy loaded cannot measure anything smaller than numpy. The peak is
``ru_maxrss`` of that one child from ``wait4``: resident pages, file pages that it maps itself included, the page cache
of what it reads or copies not.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_LAUNCHER = """
import json, os, resource, sys, time
command = json.loads(sys.argv[1])
if command["limit_bytes"]:
    resource.setrlimit(resource.RLIMIT_AS, (command["limit_bytes"], command["limit_bytes"]))
start = time.perf_counter()
child = os.posix_spawnp(command["argv"][0], command["argv"], os.environ)
_, status, usage = os.wait4(child, 0)
seconds = time.perf_counter() - start
sys.stderr.flush()
os.write(3, json.dumps([seconds, usage.ru_maxrss / 1024, os.waitstatus_to_exitcode(status),
                        usage.ru_utime, usage.ru_stime]).encode())
"""


@dataclass(frozen=True)
class Sample:
    """One run of one process.

    Attributes:
        seconds: Wall time from its start to its end.
        peak_mb: Its peak resident memory in MiB.
        status: Its exit status; negative for a signal, None when it was stopped at the time limit.
        user_s: CPU seconds in user mode.
        system_s: CPU seconds in the kernel.
        tail: The last lines that it wrote to stderr (or stdout, if stderr is empty).
    """

    seconds: float
    peak_mb: float
    status: int | None
    user_s: float = 0.0
    system_s: float = 0.0
    tail: str = ""


@dataclass
class Contender:
    """Something that is measured.

    Attributes:
        command: The command line.
        runs: At most this many runs (slow ones need fewer).
        before: Called before each run, outside of the measurement.
        verify: Called after the last run; returns what is wrong with the result, or None.
        statuses: Exit statuses that mean success.
        missing: Why it cannot be run here ("not installed"); it is then listed and not run.
        note: What a reader of the table should know.
        limit_s: It is stopped after this many seconds.
    """

    command: Sequence[str]
    runs: int = 99
    before: Callable[[], None] = lambda: None
    verify: Callable[[], str | None] = lambda: None
    statuses: tuple[int, ...] = (0,)
    missing: str = ""
    note: str = ""
    limit_s: float = 900.0
    samples: list[Sample] = field(default_factory=list)
    failure: str = ""


def run_once(command: Sequence[str], *, limit_s: float = 900.0, limit_bytes: int = 0) -> Sample:
    """Returns what one run of a command took.

    Args:
        command: The command line.
        limit_s: Seconds after which it is stopped.
        limit_bytes: Address space that it may have; 0 for no limit.
    """
    request = json.dumps({"argv": list(command), "limit_bytes": limit_bytes})
    reader, writer = os.pipe()
    # The launcher writes its answer to descriptor 3, whatever number the pipe has here.
    shell = [sys.executable, "-I", "-S", "-c", f"import os; os.dup2({writer}, 3)\n{_LAUNCHER}", request]
    with subprocess.Popen(
        shell, pass_fds=(writer,), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as launcher:
        os.close(writer)
        try:
            out, err = launcher.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(launcher.pid, 9)
            launcher.communicate()
            os.close(reader)
            return Sample(limit_s, 0.0, None, tail=f"stopped after {limit_s:.0f} s")
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    tail = (err.strip() or out.strip()).decode(errors="replace")[-2000:]
    if not answer:
        return Sample(0.0, 0.0, launcher.returncode or 1, tail=tail)
    seconds, peak_mb, status, user_s, system_s = json.loads(answer)
    return Sample(seconds, peak_mb, status, user_s, system_s, tail)


def compare(
    contenders: Mapping[str, Contender], runs: int, *, report: Callable[[str], None] = lambda line: None
) -> dict[str, dict[str, Any]]:
    """Returns the medians of contenders that took turns (A B C A B C ...), by name.

    One that fails is not run again; its row says why.
    """
    for turn in range(runs):
        for name, contender in contenders.items():
            if contender.missing or contender.failure or turn >= contender.runs:
                continue
            contender.before()
            sample = run_once(contender.command, limit_s=contender.limit_s)
            if sample.status not in contender.statuses:
                contender.failure = failure_words(sample)
                report(f"  {name}: failed, {contender.failure}")
                continue
            contender.samples.append(sample)
            report(f"  {name}: {sample.seconds:.2f} s, {sample.peak_mb:.0f} MB")
            if turn == min(runs, contender.runs) - 1 and (wrong := contender.verify()):
                contender.failure = f"wrong result: {wrong}"
                report(f"  {name}: {contender.failure}")
    return {name: summary(contender) for name, contender in contenders.items()}


def summary(contender: Contender) -> dict[str, Any]:
    """Returns a contender's row: median, fastest and slowest seconds, largest peak, and what went wrong."""
    row: dict[str, Any] = {"note": contender.note}
    if contender.missing or contender.failure:
        row["failure"] = contender.missing or contender.failure
    if contender.samples:
        seconds = [sample.seconds for sample in contender.samples]
        row |= {
            "seconds": statistics.median(seconds),
            "fastest_s": min(seconds),
            "slowest_s": max(seconds),
            "cpu_s": statistics.median(sample.user_s + sample.system_s for sample in contender.samples),
            "peak_mb": max(sample.peak_mb for sample in contender.samples),
            "runs": len(seconds),
        }
    return row


def failure_words(sample: Sample) -> str:
    """Returns in a line how a process failed: its exit status and the most telling line that it wrote."""
    if sample.status is None:
        return sample.tail
    lines = [line.strip() for line in sample.tail.splitlines() if line.strip()]
    telling = [line for line in lines if "rror" in line or line.startswith("[E]")] or lines
    how = f"signal {-sample.status}" if sample.status < 0 else f"exit {sample.status}"
    return f"{how}: {telling[-1][:200]}" if telling else how


def evict(path: Path) -> None:
    """Drops a file's pages from the page cache, so that the next reader goes to the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def machine() -> dict[str, Any]:
    """Returns the machine in numbers: cores, memory, what is free now, and how busy it is."""
    memory = _meminfo()
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory["MemTotal"] / 2**20, 1),
        "free_gib": round(memory["MemAvailable"] / 2**20, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def _meminfo() -> dict[str, int]:
    rows = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) for row in rows}
