"""A model made smaller while it still shows a failure: parts with what flows into them, and the search among these.

``Records`` keeps what flowed through the whole model, ``Specimens`` cuts parts out of it, ``Shrinker`` tries them.
``SameFailure`` is the question for models that do not run; ``onnxbench.reduction`` asks others.
"""

from __future__ import annotations

from onnxbench.shrinking._anonymizing import without_names, without_values
from onnxbench.shrinking._carried import ENGINES_FILE, Carried, carried
from onnxbench.shrinking._files import (
    Names,
    Scene,
    check_command,
    check_drifts,
    check_fails,
    check_nonfinite,
    runtime_name,
    write_files,
)
from onnxbench.shrinking._outcomes import Outcome, SameFailure, attempt
from onnxbench.shrinking._records import Records, Stream
from onnxbench.shrinking._search import Check, OutOfRunsError, Shrinker, fewest
from onnxbench.shrinking._specimens import Specimen, Specimens

__all__ = [
    "ENGINES_FILE", "Carried", "Check", "Names", "OutOfRunsError", "Outcome", "Records", "SameFailure", "Scene",
    "Shrinker", "Specimen", "Specimens", "Stream", "attempt", "carried", "check_command", "check_drifts",
    "check_fails", "check_nonfinite", "fewest", "runtime_name", "without_names", "without_values", "write_files",
]  # fmt: skip
