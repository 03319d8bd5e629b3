"""The fixtures are what their script writes, and what their manifest says is so."""

from __future__ import annotations

import subprocess
import sys

from cases import FIXTURES, all_cases


def _make(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "make.py", *arguments]
    return subprocess.run(command, cwd=FIXTURES, capture_output=True, text=True, check=False)


def test_the_committed_files_are_what_the_script_writes() -> None:
    done = _make("--check")
    assert done.returncode == 0, done.stdout


def test_the_claims_of_the_manifest_hold() -> None:
    done = _make("--verify")
    assert done.returncode == 0, done.stdout
    assert f"{len(all_cases())} models tried, 0 with claims that do not hold" in done.stdout


def test_what_the_foundation_asks_for_is_there() -> None:
    names = {case.name.split(".")[0] for case in all_cases()}
    wanted = {
        "linear_func", "whole_model", "srcnn_dynamic", "if_basic", "loop_count", "scan_forward", "nested_bodies",
        "function_nested", "function_in_body", "custom_op", "clip_empty_min", "names_unnamed", "names_all_equal",
        "sparse_initializer", "quantization_annotation", "metadata_everywhere", "dtypes_bool_string", "dtypes_int4",
        "dtypes_float8", "dtypes_floats", "dtypes_complex", "zero_sized_input", "external_many_files",
        "external_aligned", "external_shared_range", "qdq_conv", "unsorted",
    }  # fmt: skip
    assert wanted <= names
    assert sum(case.valid == "no" for case in all_cases()) >= 50
