"""Operations on Mark nodes, which exported PyTorch code leaves in a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxbench.marks import chosen_marks, require_marks, take_out
from onnxbench.operations._base import Operation

if TYPE_CHECKING:
    from onnxbench.draft import Draft
    from onnxbench.graph import NodeRef


@dataclass(frozen=True)
class Unmark(Operation):
    """Take Mark nodes out as if they had never been there; inputs and outputs keep their names.

    Attributes:
        at: The Marks: a selector (``mark:detector_forward:input``, ``op:mmdeploy::Mark``), or ``all``.
    """

    word: ClassVar[str] = "unmark"
    spelling: ClassVar[str] = "{at}"
    expects: ClassVar[str] = "all"

    at: str = "all"

    def find(self, draft: Draft) -> Sequence[NodeRef]:
        """Returns the Marks."""
        return require_marks(draft.index) if self.at == "all" else chosen_marks(draft, self.at)

    def apply(self, draft: Draft) -> None:
        """Takes them out."""
        take_out(draft, list(self.find(draft)))
