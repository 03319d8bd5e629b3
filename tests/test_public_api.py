"""The facade is the public API."""

from __future__ import annotations

import inspect

import onnxbench
from onnxbench.errors import BenchError, error_kinds


def test_everything_in_all_can_be_had():
    for name in onnxbench.__all__:
        assert getattr(onnxbench, name) is not None


def test_everything_public_is_documented():
    for name in onnxbench.__all__:
        value = getattr(onnxbench, name)
        if callable(value):
            assert inspect.getdoc(value), name


def test_every_kind_of_error_has_its_own_exit_code():
    codes = [error.exit_code for error in error_kinds()]
    kinds = [error.kind for error in error_kinds()]
    assert len(set(codes)) == len(codes)
    assert len(set(kinds)) == len(kinds)
    assert not {0, 1, 70, 130}.intersection(codes)
    assert issubclass(BenchError, Exception)
