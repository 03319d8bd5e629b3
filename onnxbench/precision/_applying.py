"""A plan carried out: weights in their new types, types restated, attributes set, Casts put in and taken out.

Every tensor has the type that its maker makes, and is read in the types that its readers want. Where these differ:

* A weight is stored in the other type, a second time if both are wanted.
* What a Cast of the model makes is cast from what that Cast reads, so that there is never a Cast of a Cast; and a Cast
  between what has one type now is gone.
* Anything else gets one Cast behind its maker, in the graph that defines it, for all who want it, in bodies too; one
  that the model has is taken for it, and moved there.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxbench.draft import Draft
from onnxbench.errors import UnsupportedError
from onnxbench.graph import Scope
from onnxbench.messages import copy_of
from onnxbench.precision._plan import Plan, Tensor, Use
from onnxbench.precision._signatures import element, is_plain, set_element
from onnxbench.precision._values import Converter, put
from onnxbench.schemas import plain_domain
from onnxbench.tensortype import dtype_name

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

_TENSOR, _SPARSE = 4, 11  # AttributeProto types


@dataclass(slots=True)
class Applied:
    """What carrying out a plan did.

    Attributes:
        casts: Casts put in.
        removed: Casts of the model that are gone.
        weights: Weights stored in the new type.
    """

    casts: int = 0
    removed: int = 0
    weights: int = 0


@dataclass(slots=True)
class Demand:
    """Where a tensor is read, by the type that is wanted there."""

    tensor: Tensor
    made: str
    uses: dict[str, list[Use]] = field(default_factory=dict)


class Writer:
    """Carries out a plan on a draft.

    Args:
        draft: The draft, whose index the plan was made with.
        plan: The plan.
        converter: What converts weights.
    """

    def __init__(self, draft: Draft, plan: Plan, converter: Converter) -> None:
        self._draft = draft
        self._plan = plan
        self._typing = plan.typing
        self._index = plan.typing.index
        self._converter = converter
        self._done = Applied()
        self._inserted: dict[Scope, dict[int, list[NodeProto]]] = defaultdict(lambda: defaultdict(list))
        self._removed: dict[Scope, set[int]] = defaultdict(set)
        self._demands: dict[Tensor, Demand] = {}
        self._forgotten: dict[Scope, set[str]] = defaultdict(set)

    def write(self) -> Applied:
        """Carries it out."""
        plan, weights = self._plan, Weights(self._index)
        changes, ends = plan.changes, []
        for tensors in plan.tensors.values():
            for tensor in tensors.values():
                side = tensor.maker >= 0 and changes[tensor.maker]
                is_of_both = False
                for use in tensor.uses:
                    is_of_both |= changes[use.group] != side
                    if use.position < 0:
                        ends.append((tensor, use))
                if is_of_both:
                    self._demand(tensor)
        self._set_attributes()
        self._take_out_casts()
        changed = [each for each in self._demands.values() if each.uses and [*each.uses] != [each.made]]
        stored = [weights.tensor(each.tensor) for each in changed if each.tensor.is_weight]
        self._converter.prepare(stored)
        self._restate(ends)
        for demand in changed:
            if demand.tensor.is_weight:
                self._store(weights, demand)
            else:
                self._cast(demand)
        weights.flush()
        for scope in sorted({*self._inserted, *self._removed}, key=lambda each: -each.depth):
            self._draft.splice(scope, self._inserted[scope], self._removed[scope])
        self._draft.touch()
        return self._done

    def _demand(self, tensor: Tensor) -> Demand:
        """Returns where a tensor is read; made when it is first asked for, since most are of one type everywhere."""
        demand = self._demands.get(tensor)
        if demand is None:
            plan = self._plan
            demand = self._demands[tensor] = Demand(tensor, plan.made(tensor))
            for use in tensor.uses:
                demand.uses.setdefault(plan.wanted(tensor, use.group), []).append(use)
        return demand

    def _demand_of(self, scope: Scope, name: str) -> Demand | None:
        tensor = self._plan.tensors[scope].get(name)
        return self._demand(tensor) if tensor is not None else None

    # -- what stands in nodes and value infos -------------------------------------------------------------------

    def _set_attributes(self) -> None:
        """Sets the attributes that say what element type a node makes."""
        for place in self._plan.open:
            scope, node = place.scope, place.scope.nodes[place.position]
            sig = self._typing.signatures(scope)[place.position]
            if sig is None:
                continue
            bound = set(sig.inputs)
            for slot, name in enumerate(node.output):
                tensor = self._plan.tensors[scope].get(name) if name else None
                if tensor is None or sig.outputs[slot] in bound or len(sig.allowed[sig.outputs[slot]]) == 1:
                    continue
                word = self._plan.made(tensor)
                given = tuple(self._now(scope, place.position, at, each) for at, each in enumerate(node.input))
                resolved = self._typing.resolved(scope, node)
                if not self._typing.prober.set_type(node, resolved, sig, given, slot, word) and word != tensor.word:
                    raise UnsupportedError(
                        f"{node.op_type} {scope.label(place.position)!r} cannot be made to give {word}"
                    )

    def _now(self, scope: Scope, position: int, slot: int, name: str) -> str | None:
        """Returns the type that an input of a node has by the plan."""
        tensor = self._plan.tensor(scope, name) if name else None
        if tensor is None:
            return self._typing.type_of(scope, name) if name else None
        for use in tensor.uses:
            if use.scope is scope and use.position == position and use.slot == slot:
                return self._plan.wanted(tensor, use.group)
        return tensor.word

    def _restate(self, ends: list[tuple[Tensor, Use]]) -> None:
        """Makes what graphs state of the types of tensors true again; ``ends`` are uses as outputs of graphs."""
        for scope, tensors in self._plan.tensors.items():
            graph: Any = scope.graph
            for info in (*graph.value_info, *(() if scope.is_function else graph.input)):
                tensor = tensors.get(info.name)
                if tensor is not None and not tensor.is_weight and (made := self._plan.made(tensor)) != tensor.word:
                    set_element(info.type, element(made))
        for tensor, use in ends:
            word = self._plan.wanted(tensor, use.group)
            if word != tensor.word and not use.scope.is_function:
                set_element(use.scope.graph.output[use.slot].type, element(word))

    # -- Casts of the model -------------------------------------------------------------------------------------

    def _take_out_casts(self) -> None:
        """Removes the Casts of the model whose two sides have one type now, unless they had that before."""
        for place in self._plan.places:
            scope, node = place.scope, place.scope.nodes[place.position]
            if not is_cast(self._index, node):
                continue
            made = self._demand_of(scope, node.output[0])
            source = self._plan.tensor(scope, node.input[0])
            if made is None or source is None:
                continue
            read = self._demand(source)
            word = self._now(scope, place.position, 0, node.input[0])
            is_as_before = made.made == made.tensor.word == source.word
            if is_as_before or word != made.made or (read.made != word and not source.is_weight):
                continue
            ends = [use for uses in made.uses.values() for use in uses if use.position < 0]
            if ends and (source.scope is not scope or source.position < 0 or source.is_weight or self._is_end(read)):
                continue
            for kind in read.uses:
                read.uses[kind] = [
                    use for use in read.uses[kind] if (use.scope, use.position) != (scope, place.position)
                ]
            read.uses = {kind: uses for kind, uses in read.uses.items() if uses}
            for kind, uses in made.uses.items():
                for use in uses:
                    self._point(use, source.name)
                    read.uses.setdefault(kind, []).append(use)
            made.uses = {}
            self._removed[scope].add(place.position)
            if any(use.scope is self._index.main for use in ends):
                self._forgotten[scope].add(source.name)
                self._rename(read, node.output[0])
            else:
                self._forgotten[scope].add(node.output[0])
            self._done.removed += 1
        for scope, names in self._forgotten.items():
            self._draft.forget(scope, names)

    def _rename(self, demand: Demand, name: str) -> None:
        """Gives what a node makes another name."""
        tensor = demand.tensor
        outputs = tensor.scope.nodes[tensor.position].output
        outputs[list(outputs).index(tensor.name)] = tensor.name = name
        for uses in demand.uses.values():
            for use in uses:
                self._point(use, name)

    def _is_end(self, demand: Demand) -> bool:
        return any(use.position < 0 for uses in demand.uses.values() for use in uses)

    def _point(self, use: Use, name: str) -> None:
        """Has a place read another tensor. Outputs of the main graph have names that are known outside."""
        if use.position >= 0:
            use.scope.nodes[use.position].input[use.slot] = name
        elif use.scope.is_function:
            use.scope.graph.output[use.slot] = name
        elif use.scope is not self._index.main:
            use.scope.graph.output[use.slot].name = name

    # -- weights ------------------------------------------------------------------------------------------------

    def _store(self, weights: Weights, demand: Demand) -> None:
        """Stores a weight in the types that it is wanted in."""
        tensor = demand.tensor
        (word,) = demand.uses.keys() - {tensor.word}
        new, _ = self._converter.converted(weights.tensor(tensor))
        self._done.weights += 1
        if tensor.word not in demand.uses:
            weights.replace(tensor, new)
            return
        ends = [use for use in demand.uses[word] if use.position < 0 and use.scope is self._index.main]
        moved, kept_word = (demand.uses[tensor.word], word) if ends else (demand.uses[word], tensor.word)
        name = self._draft.fresh(tensor.scope, f"{tensor.name}_{dtype_name(element(tensor.word if ends else word))}")
        if tensor.position >= 0:
            copy = weights.constant_copy(tensor, name, None if ends else new)
            self._inserted[tensor.scope][tensor.position + 1].append(copy)
        else:
            weights.add_copy(tensor, name, None if ends else new)
        if kept_word == word:
            weights.replace(tensor, new)
        for use in moved:
            self._point(use, name)

    # -- new Casts ----------------------------------------------------------------------------------------------

    def _cast(self, demand: Demand) -> None:
        """Casts a tensor to the types that it is wanted in and does not have."""
        tensor, scope = demand.tensor, demand.tensor.scope
        if not is_plain(tensor.word):
            raise UnsupportedError(f"there is no Cast for {tensor.name!r}, which is {tensor.word}")
        ends = [
            (word, use) for word, uses in demand.uses.items() for use in uses
            if use.position < 0 and use.scope is self._index.main
        ]  # fmt: skip
        outer = inner = tensor.name
        if any(word != demand.made for word, _ in ends):  # the output keeps its name, and what is cast gets another
            inner = self._draft.fresh(scope, f"{tensor.name}_{dtype_name(element(demand.made))}")
            self._rename(demand, inner)
        source, position = inner, tensor.position + 1
        maker = scope.nodes[tensor.position] if tensor.position >= 0 else None
        if maker is not None and is_cast(self._index, maker) and tensor.position not in self._removed[scope]:
            source = maker.input[0]
        for word, uses in demand.uses.items():
            if word == demand.made:
                continue
            cast = self._cast_of_model(demand, word)
            if cast is not None:
                for use in uses:
                    self._point(use, cast.tensor.name)
                cast.uses.setdefault(word, []).extend(uses)
                continue
            is_end = any(use.position < 0 and use.scope is self._index.main for use in uses)
            name = outer if is_end else self._draft.fresh(scope, f"{inner}_{dtype_name(element(word))}")
            self._insert(scope, position, source, name, element(word))
            for use in uses:
                self._point(use, name)

    def _cast_of_model(self, demand: Demand, word: str) -> Demand | None:
        """Returns what a Cast of the model makes of a tensor, in a type; None without one.

        A Cast that stands behind some who want the type is moved to the maker of the tensor.
        """
        scope, uses = demand.tensor.scope, demand.uses[word]
        if any(use.position < 0 and use.scope is self._index.main for use in uses):
            return None
        for use in demand.uses.get(demand.made, ()):
            if use.scope is not scope or use.position < 0 or use.position in self._removed[scope]:
                continue
            node = scope.nodes[use.position]
            made = self._demand_of(scope, node.output[0]) if is_cast(self._index, node) else None
            if made is None or made.made != word:
                continue
            if use.position > min(_position_within(scope, each) for each in uses):
                self._removed[scope].add(use.position)
                self._inserted[scope][demand.tensor.position + 1].append(node)
            return made
        return None

    def _insert(self, scope: Scope, position: int, source: str, name: str, number: int) -> None:
        from onnx import helper

        if not self._typing.version(scope, ""):
            self._draft.import_domain(scope, "")
        node = helper.make_node("Cast", [source], [name], to=number)
        if self._index.function_of(node) is not None:
            raise UnsupportedError("this model has a function of its own called Cast, which would be called")
        node.name = self._draft.fresh_node(scope, f"{name}_Cast")
        self._inserted[scope][position].append(node)
        self._done.casts += 1


def _position_within(scope: Scope, use: Use) -> int:
    """Returns the position of the node of a graph that reads something, or in its bodies; for an output its end."""
    inner, position = use.scope, use.position
    while inner is not scope and inner.parent is not None:
        inner, position = inner.parent, inner.owner
    return position if position >= 0 else len(scope.nodes)


class Weights:
    """Where the weights of a model are stored: initializers, sparse ones, and Constants."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self._stored: dict[Scope, dict[str, TensorProto]] = {}
        self._sparse: dict[Scope, dict[str, Any]] = {}
        self._changed: dict[Scope, dict[str, int]] = {}

    def tensor(self, weight: Tensor) -> TensorProto:
        """Returns the message with a weight's values."""
        from onnxbench.tensortype import dtype_number

        if weight.position >= 0:
            node = weight.scope.nodes[weight.position]
            attribute = node.attribute[0]
            if attribute.type == _SPARSE:
                held: TensorProto = attribute.sparse_tensor.values
                return held
            if attribute.type != _TENSOR:  # value_float, value_floats
                values = [attribute.f] if attribute.name == "value_float" else list(attribute.floats)
                dims = [] if attribute.name == "value_float" else [len(values)]
                import numpy as np
                from onnx import TensorProto as Message

                made = Message(data_type=dtype_number("float32"), dims=dims, raw_data=np.array(values, "<f4").tobytes())
                del node.attribute[:]
                attribute = node.attribute.add(name="value", type=_TENSOR)
                attribute.t.CopyFrom(made)
            tensor: TensorProto = attribute.t
            return tensor
        self._look(weight.scope)
        if weight.name in self._sparse[weight.scope]:
            values_of: TensorProto = self._sparse[weight.scope][weight.name].values
            return values_of
        return self._stored[weight.scope][weight.name]

    def _look(self, scope: Scope) -> None:
        if scope not in self._stored:
            graph: Any = scope.graph
            self._stored[scope] = {tensor.name: tensor for tensor in graph.initializer}
            self._sparse[scope] = {sparse.values.name: sparse for sparse in graph.sparse_initializer}

    def replace(self, weight: Tensor, new: TensorProto) -> None:
        """Gives a weight other values, and states their type where the graph states one."""
        put(self.tensor(weight), new)
        self._changed.setdefault(weight.scope, {})[weight.name] = new.data_type

    def flush(self) -> None:
        """States the types of weights that were replaced."""
        for scope, changed in self._changed.items():
            graph: Any = scope.graph
            for info in (*graph.value_info, *(() if scope.is_function else graph.input)):
                if info.name in changed:
                    set_element(info.type, changed[info.name])

    def add_copy(self, weight: Tensor, name: str, new: TensorProto | None) -> None:
        """Adds an initializer like another, with other values unless None."""
        graph: Any = weight.scope.graph
        if weight.name in self._sparse.get(weight.scope, {}):
            sparse = graph.sparse_initializer.add()
            sparse.CopyFrom(self._sparse[weight.scope][weight.name])
            copy = sparse.values
        else:
            copy = graph.initializer.add()
            copy.CopyFrom(self._stored[weight.scope][weight.name])
        if new is not None:
            put(copy, new)
        copy.name = name

    def constant_copy(self, weight: Tensor, name: str, new: TensorProto | None) -> NodeProto:
        """Returns a Constant like another, with other values unless None."""
        node = copy_of(weight.scope.nodes[weight.position])
        node.name = f"{node.name}_{name}" if node.name else ""
        node.output[0] = name
        if new is not None:
            attribute = node.attribute[0]
            put(attribute.t if attribute.type == _TENSOR else attribute.sparse_tensor.values, new)
        return node


def is_cast(index: Any, node: NodeProto) -> bool:
    """Tells whether a node is a Cast of the standard."""
    return node.op_type == "Cast" and not plain_domain(node.domain) and index.function_of(node) is None
