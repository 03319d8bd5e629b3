"""Whether a runtime takes the model: a session is made in it. The runtime is the caller's to give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from onnxbench.errors import ExecutionError, ExternalDataError, ModelError
from onnxbench.lint.facts import Facts
from onnxbench.lint.rules import Checks, Finding, NotRun, Rule, Severity

checks = Checks("Runtimes (with --ort or --trt)")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A node that a runtime refuses.

    Attributes:
        node: Path of the node; ``""`` for the model.
        message: What it says.
        fix: What to do about it, or None.
    """

    node: str
    message: str
    fix: str | None = None


class NodesRefusedError(ExecutionError):
    """A runtime refuses a model and says which nodes of it.

    Attributes:
        refusals: The nodes.
    """

    def __init__(self, message: str, refusals: Sequence[Refusal]) -> None:
        super().__init__(message)
        self.refusals = tuple(refusals)


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
NODE_REFUSED = Rule(
    code="OB802",
    name="node-refused",
    severity=Severity.ERROR,
    summary="A runtime refuses a node of the model.",
    why="The runtime was asked itself and named the node; the message is its own. TensorRT is asked with --target "
    "tensorrt where it is installed, and builds an engine to try with --trt.",
    mend="What is known of a way out stands with the finding; 'onnxbench build-trt --apply' takes it where it can.",
    example="""
        y = NonZero (x)   (for TensorRT)
        """,
    needs="session",
)


@checks(SESSION_REFUSED, NODE_REFUSED)
def _sessions(facts: Facts) -> Iterator[Finding | NotRun]:
    for name, opener in facts.openers.items():
        try:
            opener(facts.model)
        except NodesRefusedError as error:
            places = {ref.path: ref for ref in facts.index.nodes()}
            for refusal in error.refusals:
                ref, words = places.get(refusal.node), f"{name}: {refusal.message}"
                scope, position = (None, None) if ref is None else (ref.scope, ref.position)
                yield facts.find(NODE_REFUSED, words, scope=scope, position=position, fix=refusal.fix)
        except (ExecutionError, ExternalDataError, ModelError) as error:
            details = f": {' '.join(error.details)}" if error.details else ""
            yield facts.find(SESSION_REFUSED, f"{name}: {error.message}{details}", fix=error.hint)
