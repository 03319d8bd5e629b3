"""What all tests share: hypothesis profiles, and real models that must not go missing unnoticed."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from corpus import fetch
from hypothesis import HealthCheck, settings

_CALM = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=40, suppress_health_check=_CALM)
settings.register_profile("long", deadline=None, max_examples=2000, suppress_health_check=_CALM)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Every save is flushed to the disk, which is most of the time of these tests where temporary files lie on one.
if os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free > 2 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/dev/shm")
    tempfile.tempdir = "/dev/shm"

# Hundreds of tests start the command line: each start would compile the package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

warnings.filterwarnings("ignore", message="The onnxtxt format is experimental")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests that load torch first, and then those that share the onnx package's own test cases.

    With ``-n 2 --dist worksteal`` each worker starts with half of the list, in its order, so one of them imports torch,
    the onnx package makes its cases (5 s) in one of them, and what the tests of a file share is made once.
    """
    load_torch = ("test_plugins.py", "test_plugins_mmdeploy.py")  # where it is installed; their marks do not ask for it
    share_cases = ("test_backend_nodes.py", "test_opsets.py")

    def place(item: pytest.Item) -> tuple[bool, bool]:
        with_torch = item.get_closest_marker("torch") is not None or item.path.name in load_torch
        return not with_torch, item.path.name not in share_cases

    items.sort(key=place)


@pytest.fixture(scope="session")
def corpus() -> Callable[[str], tuple[Path, Any]]:
    """Gives the file and the table entry of a real model; one that is absent is skipped, or fails where it must be.

    ``ONNXBENCH_REQUIRE_CORPUS=1`` (continuous integration sets it) makes an absent model a failure.
    """
    present = fetch.present()
    entries = {entry.name: entry for entry in fetch.entries()}

    def find(name: str) -> tuple[Path, Any]:
        if name not in present:
            words = f"the real model {name!r} is not here: python tests/corpus/fetch.py {name}"
            if os.environ.get("ONNXBENCH_REQUIRE_CORPUS"):
                pytest.fail(words)
            pytest.skip(words)
        return present[name], entries[name]

    return find
