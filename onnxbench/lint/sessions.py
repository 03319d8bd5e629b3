"""Whether a runtime takes the model: a session is made in it. The runtime is the caller's to give."""

from __future__ import annotations

from collections.abc import Iterator

from onnxbench.errors import ExecutionError, ExternalDataError, ModelError
from onnxbench.lint.facts import Facts
from onnxbench.lint.rules import Checks, Finding, NotRun, Rule, Severity

checks = Checks("Runtimes (with --ort)")

SESSION_REFUSED = Rule(
    code="OB801",
    name="session-refused",
    severity=Severity.ERROR,
    summary="A runtime does not make a session of the model.",
    why="It is the last word on whether the model runs there; the message is the runtime's own. Where other "
    "findings are errors, they are the likely reason.",
    mend="Mend the other errors first. For an operator that is not implemented, choose another opset or runtime.",
    example="""
        onnxruntime.InferenceSession("model.onnx") raises
        """,
    needs="session",
)


@checks(SESSION_REFUSED)
def _sessions(facts: Facts) -> Iterator[Finding | NotRun]:
    for name, opener in facts.openers.items():
        try:
            opener(facts.model)
        except (ExecutionError, ExternalDataError, ModelError) as error:
            details = f": {' '.join(error.details)}" if error.details else ""
            yield facts.find(SESSION_REFUSED, f"{name}: {error.message}{details}", fix=error.hint)
