"""Golden cases of edits: tests/golden/edit/*.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxbench.testing import check_golden, golden_cases

CASES = list(golden_cases(Path(__file__).parent / "golden" / "edit"))


@pytest.mark.parametrize("case", CASES, ids=[f"{case.place} {case.name}" for case in CASES])
def test_golden_edit(case):
    check_golden(case)
