"""Operations on nodes that make tensors of a size that is computed or given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnxbench.draft import Draft
from onnxbench.graph import NodeRef
from onnxbench.operations._base import Effect, Operation
from onnxbench.tensortype import make_type, make_value_info

_INT64 = 7


@dataclass(frozen=True)
class ResizeBySizes(Operation):
    """Let Resize take the size of its result, as int64, in place of float scales that are an input of the model.

    TensorRT makes shapes of integers only. The input changes its name and type: callers give sizes from then on.
    """

    word: ClassVar[str] = "resize_by_sizes"
    effect: ClassVar[Effect] = "interface"
    expects: ClassVar[str] = "all"

    def find(self, draft: Draft) -> Sequence[NodeRef]:
        """Returns the Resize nodes of the main graph whose scales are an input that nothing else reads."""
        main = draft.main
        free = set(main.true_inputs())
        return [
            NodeRef(main, at)
            for at, node in enumerate(main.nodes)
            if node.op_type == "Resize" and len(node.input) == 3 and node.input[2] in free
            and main.consumers[node.input[2]] == [at]
        ]  # fmt: skip

    def apply(self, draft: Draft) -> None:
        """Replaces the inputs."""
        for ref in self.find(draft):
            node, main = ref.node, ref.scope
            old = node.input[2]
            info = next(each for each in main.graph.input if each.name == old)
            lengths = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
            new = draft.fresh(main, f"{old}_sizes")
            position = list(main.graph.input).index(info)
            infos = [make_value_info(new, make_type(_INT64, tuple(lengths))) if each is info else each
                     for each in main.graph.input]  # fmt: skip
            copies = [type(info).FromString(each.SerializeToString()) for each in infos]
            del main.graph.input[:]
            main.graph.input.extend(copies)
            node.input[2] = ""
            node.input.append(new)
            draft.record("input", old, "replaced", before="float32 scales", after=f"{new}, int64 sizes")
            draft.record("node", ref.path, "resizes by", before="scales", after="sizes")
            draft.notes.append(f"input {old!r} (number {position}) is now {new!r}: the size of the result, int64")
            draft.retype(main, node.output)
        draft.touch()
