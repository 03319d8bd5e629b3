"""What becomes of a model when it is opened and run, and whether that is the same failure as before."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxbench import backends
from onnxbench.captures import Value
from onnxbench.errors import DeviceError, ExecutionError, LostProcessError, RefusedModelError
from onnxbench.model import Model
from onnxbench.shrinking._specimens import Specimen

_QUOTED = re.compile(r"'[^']*'")
_NUMBERS = re.compile(r"\d+(?:[,x ]+\d+)*")
_OPENING, _RUNNING = "open", "run"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A failure to run.

    Attributes:
        how: ``refused`` by the runtime when it was opened, ``failed`` while it ran, ``hang``, or what ended the
            process: ``SIGSEGV``, ``crash``.
        phase: ``open`` or ``run``.
        message: What was said.
        details: Further lines.
        number: On which set of inputs; 0 when it was opened.
    """

    how: str
    phase: str
    message: str
    details: tuple[str, ...] = ()
    number: int = 0

    @property
    def kills(self) -> bool:
        """Whether the process would not live on."""
        return self.how not in ("refused", "failed")

    @property
    def signature(self) -> tuple[str, ...]:
        """What two failures have in common that are one: how, when, and the message but for names and numbers."""
        words = "" if self.kills else _NUMBERS.sub("#", _QUOTED.sub("", self.message))
        return self.how, self.phase, words

    @property
    def text(self) -> str:
        """The failure in a few words: ``crashes (SIGFPE) when it runs``."""
        when = "when it is opened" if self.phase == _OPENING else "when it runs"
        if self.how == "hang":
            return f"hangs {when}"
        if self.how == "refused":
            return "is refused by the runtime"
        return f"fails {when}" if self.how == "failed" else f"crashes ({self.how}) {when}"


def attempt(
    model: Model, sets: Sequence[Mapping[str, Value]], backend: str, options: backends.Options
) -> Outcome | None:
    """Returns how a model fails to open or to run on one of some sets of inputs; None if it does not."""
    phase, number = _OPENING, 0
    session: backends.Session | None = None
    try:
        session = backends.open_session(model, backend, options=options)
        phase = _RUNNING
        for number, feeds in enumerate(sets):  # noqa: B007 - the number of the set that fails
            session.run(feeds)
    except LostProcessError as error:
        return Outcome(error.how, phase, error.message, error.details, number)
    except RefusedModelError as error:
        return Outcome("refused", _OPENING, error.message, error.details, number)
    except ExecutionError as error:
        return Outcome("refused" if phase == _OPENING else "failed", phase, error.message, error.details, number)
    finally:
        if session is not None:
            session.close()
    return None


class SameFailure:
    """Tells whether a part of a model fails as the whole does.

    Args:
        outcome: How the whole fails.
        backend: What runs the parts.
        options: How it is set up.
        seconds: How long opening or a run may take, where these run in a process of their own: always, if the failure
            would end this one.
    """

    def __init__(self, outcome: Outcome, backend: str, options: backends.Options, seconds: float) -> None:
        from dataclasses import replace

        self._outcome, self._backend = outcome, backend
        self._options = replace(options, isolate=seconds if outcome.kills else 0.0)

    def __call__(self, specimen: Specimen) -> bool:
        try:
            found = attempt(specimen.model, specimen.sets, self._backend, self._options)
        except DeviceError:  # the engine was built, and there is no GPU: it was not refused as the whole was
            return False
        return found is not None and found.signature == self._outcome.signature
