"""Which node and tensor of one graph is which of another, whatever they are called and in whatever order they stand.

*Problem.* Names may all be new (another exporter), or the same names may mean other things (exporters that number
tensors shift every number when a node is inserted). Structure alone does not settle it either: two edits leave a
stretch between them that is cut off from both the inputs and the outputs, and graphs repeat themselves. Graph edit
distance is NP-hard, and a comparison of all pairs of nodes is out of the question at 100,000 nodes.

*Way.* Evidence is used strongest first, and every pair that is found is evidence for its neighbours.

1. Interfaces. Inputs and outputs of the main graph are the same if they are called the same, those of bodies and
   functions if they stand at the same place.
2. Hashes. ``forward`` says what a node computes: operator, attributes, and the same of its inputs, down to graph
   inputs and weights. ``backward`` says what becomes of it, up to the graph outputs. Weights count by type, shape and,
   if they are small, values, so that large ones are not read. Nodes alike in both are the same; several that are all
   alike (twins) are told apart by their names, then by samples of their weights' bytes, then, if their neighbours are
   twins as well, by order. Hashes are numbers from one table, so equal means equal and there are no collisions.
3. Names. If those nodes that one hash finds alone have the same names as a rule, names can be trusted: then nodes
   that agree in their name and have a neighbour that was found are the same before hashes alone may say so. If not
   (renamed, or numbered anew), hashes and neighbours come first and names last.
4. Neighbours. From each pair that was found, its producers and consumers are looked at, with questions that become
   weaker: same hashes; same name, operator and attributes; the same a few nodes further on (something was inserted or
   removed between); same name and operator; same operator, attributes and weights' shapes; same operator; alike a few
   nodes further on, where the longest run of nodes that are alike decides; several, taken in order; same name; the
   one node left between neighbours that were found. A pair that is found starts over with the first question, so the
   strongest evidence anywhere is used before any weaker.
5. Neighbourhoods. In a stretch between edits, a node is the same as another if only these two are what they and
   their neighbours are (weights tell most nodes apart); its own neighbours are looked at with step 4.
6. Coarse hashes (operators, and shapes of weights only) where whole stretches have nothing else in common.

What is left is added or removed. Each pair is asked each question once, and consumers are joined by a key rather
than each with each, so time and memory grow linearly with the graph. Nothing recurses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from enum import IntEnum
from typing import Any, TypeAlias

from onnxbench.diffing._leaves import Leaves
from onnxbench.diffing._neighbours import (
    MOST_BEYOND,
    MOST_NEAR,
    alone,
    groups_of,
    joined,
    next_node,
    nodes_beyond,
    type_key,
    uses_of,
)
from onnxbench.diffing._sides import Ids, Side, output_number
from onnxbench.diffing._traits import Traits

Item: TypeAlias = "tuple[int, int] | tuple[str, str]"
"""A pair that was found: positions of two nodes, or names of two tensors that no node makes."""


class _Ask(IntEnum):
    """The questions about the neighbours of a pair, strongest evidence first."""

    EXACT = 0
    NAMED = 1
    NAMED_BEYOND = 2
    NAMED_OP = 3
    LIKE = 4
    OP = 5
    LIKE_BEYOND = 6
    IN_ORDER = 7
    NAME_ONLY = 8
    LAST = 9


_LONGEST_RUN = 16
_TRUSTED, _TRUSTED_ALONE = 0.9, 0.98
_A_FEW_RENAMED = 2
_FEW = 8
_ROUNDS = 3
_OFTEN = 16


class Matching:
    """Which node and tensor of graph ``a`` is which of graph ``b`` (see the module's text).

    Attributes:
        a: The first graph.
        b: The second one.
        nodes: Of each node of ``a``, the position of its partner, or -1.
        nodes_b: The same for ``b``.
        tensors: Tensors of ``a`` to tensors of ``b``.
        tensors_b: The same from ``b``.
        outer: The matching of the graphs around these two, for bodies.
    """

    def __init__(self, a: Side, b: Side, ids: Ids, outer: Matching | None = None) -> None:
        self.a, self.b, self.outer, self._ids = a, b, outer, ids
        self.nodes, self.nodes_b = [-1] * len(a.inputs), [-1] * len(b.inputs)
        self.tensors: dict[str, str] = {}
        self.tensors_b: dict[str, str] = {}
        self._leaf_pairs = Leaves(a, b, self.nodes, self.tensors, self.tensors_b)
        self._open = min(len(self.nodes), len(self.nodes_b))
        self._queues: list[deque[Item]] = [deque() for _ in _Ask]
        self._ends_a, self._ends_b = self._output_keys()
        self._traits_a, self._traits_b = Traits(a, self._ends_a), Traits(b, self._ends_b)
        self._names_a, self._names_b = self._traits_a.made_names, self._traits_b.made_names
        self._node_names_a, self._node_names_b = self._traits_a.node_names, self._traits_b.node_names
        shared = not set(filter(None, self._names_a)).isdisjoint(self._names_b) or not set(
            filter(None, self._node_names_a)
        ).isdisjoint(self._node_names_b)
        self._has_common_names = shared
        self._set_questions(names=shared)
        self._forward: tuple[list[int], list[int]]
        self._backward: tuple[list[int], list[int]]
        places = {key: name for name, key in self._ends_b.items()}
        self._ends = [(name, places[key]) for name, key in self._ends_a.items() if key in places and key != ("?",)]
        self._pair_inputs()
        self._run()
        self._leaf_pairs.pair_rest(self._ends)

    # ---- what a name means, graphs around included

    def meaning_a(self, name: str) -> Hashable:
        """Returns what a tensor's name in ``a`` means: the same for names in ``a`` and ``b`` of one tensor."""
        return self._meaning(name, True)

    def meaning_b(self, name: str) -> Hashable:
        """Returns what a tensor's name in ``b`` means."""
        return self._meaning(name, False)

    def _meaning(self, name: str, first: bool) -> Hashable:
        level: Matching | None = self
        depth = 0
        while level is not None:
            side = level.a if first else level.b
            if name in side.scope.producers or name in side.stored or name in side.given:
                partner = name if first else level.tensors_b.get(name)
                known = partner is not None and (not first or name in level.tensors)
                return (depth, partner) if known else (depth, name, first)
            level = level.outer
            depth += 1
        return ("undefined", name)

    # ---- interfaces

    def _pair_inputs(self) -> None:
        a, b = list(self.a.given), list(self.b.given)
        if (self.a.scope.parent is not None or self.a.scope.is_function) and len(a) == len(b):
            for one, other in zip(a, b, strict=True):
                self._match_tensors(one, other)
            return
        for name in a:
            if name in self.b.given:
                self._match_tensors(name, name)

    def _output_keys(self) -> tuple[dict[str, Hashable], dict[str, Hashable]]:
        """Returns what the outputs of both graphs are, by tensor name; a tensor may be several."""
        a, b = self.a.scope.outputs, self.b.scope.outputs
        common = set(a) & set(b)
        by_place = self.a.scope.parent is not None or self.a.scope.is_function
        found: list[dict[str, Hashable]] = []
        for names in (a, b):
            keys: dict[str, Any] = {}
            for place, name in enumerate(names):
                mark: Hashable = place if by_place else name if name in common else "?"
                keys[name] = (*keys.get(name, ()), mark)
            found.append(keys)
        return found[0], found[1]

    # ---- the whole way

    def _run(self) -> None:
        self._hash(self.a.bases, self.b.bases)
        twins = self._seed_and_settle()
        if not self._open:
            return
        trust = self._trust_in_names()
        trusted = trust >= _TRUSTED
        self._set_questions(names=trusted and self._has_common_names)
        if self._has_common_names:
            for hashes in (self._forward, self._backward):
                self._seed_by_name(*hashes)
            if trust >= _TRUSTED_ALONE:
                self._seed_by_name(self.a.bases, self.b.bases)
        self._look_around()
        if trusted:
            self._drain(_Ask.NAMED_OP)
        for hashes in (self._forward, self._backward):
            self._seed(*hashes)
            self._drain(_Ask.NAMED_OP if trusted else _Ask.NAMED)
        if trusted:
            self._seed_by_name(self.a.operators, self.b.operators)
            self._drain(_Ask.LIKE)
        if self._open > _FEW:
            self._seed_by_neighbourhood()
            self._hash(self.a.coarse_bases(), self.b.coarse_bases(), coarse=True)
            twins += self._seed_and_settle()
            for hashes in (self._forward, self._backward):
                self._seed(*hashes)
            self._look_around()
            self._drain(_Ask.LIKE)
        for _ in range(_ROUNDS):
            before = self._open
            self._look_around()
            self._drain(_Ask.LAST)
            self._set_questions(names=self._has_common_names)
            self._seed_by_name(self.a.operators, self.b.operators)
            self._look_around()
            self._drain(_Ask.LAST)
            self._join_by_names(self._left_a(), self._left_b(), _Ask.NAME_ONLY)
            self._drain(_Ask.LAST)
            if self._open in (0, before):
                break
        for ones, others in twins if self._open else ():
            self._pair_in_order(*self._unmatched(ones, others))

    def _hash(self, bases_a: Sequence[int], bases_b: Sequence[int], *, coarse: bool = False) -> None:
        self._forward = (
            self.a.forward(bases_a, self._leaves(True, coarse))[0],
            self.b.forward(bases_b, self._leaves(False, coarse))[0],
        )
        self._backward = self.a.backward(bases_a, self._ends_a), self.b.backward(bases_b, self._ends_b)

    def _leaves(self, first: bool, coarse: bool) -> Callable[[str], int]:
        """Returns what says of a tensor that no node makes what it is."""
        side, ids = (self.a if first else self.b), self._ids
        types = {} if side.scope.is_function else {info.name: info.type for info in side.scope.graph.input}

        def leaf(name: str) -> int:
            if name in side.given:
                partner = name if first else self.tensors_b.get(name)
                if partner is not None and (not first or name in self.tensors):
                    return ids["input", partner]
                return ids["free input", type_key(types.get(name))]
            if name in side.stored:
                return ids["shape", tuple(side.stored[name].dims)] if coarse else side.weight_id(name)
            return ids["outer", self._meaning(name, first)]

        return leaf

    def _set_questions(self, *, names: bool) -> None:
        """Says which questions are asked: those about names or not."""
        named = (_Ask.NAMED, _Ask.NAMED_BEYOND, _Ask.NAMED_OP, _Ask.NAME_ONLY)
        self._questions = [question for question in _Ask if names or question not in named]
        self._follows: list[_Ask | None] = [
            next((other for other in self._questions if other > question), None) for question in _Ask
        ]

    def _trust_in_names(self) -> float:
        """Returns the share of nodes with the same name among those that one hash finds alone.

        One or two that have other names in a small graph are edits, and no reason to mistrust the others.
        """
        agree = total = 0
        for hash_a, hash_b in (self._forward, self._backward):
            for ones, others in groups_of(range(len(hash_a)), hash_a, range(len(hash_b)), hash_b):
                if len(ones) == len(others) == 1:
                    total += 1
                    agree += self._names_a[ones[0]] == self._names_b[others[0]]
        if not agree:
            return 0.0 if total else float(self._has_common_names)
        return max(agree / total, _TRUSTED if total - agree <= _A_FEW_RENAMED else 0.0)

    # ---- pairs from the whole graph

    def _seed(self, keys_a: Sequence[Hashable], keys_b: Sequence[Hashable]) -> list[tuple[list[int], list[int]]]:
        """Pairs nodes that alone have a key; returns groups of several that have one, after names had their say."""
        if not self._open:
            return []
        groups = groups_of(self._left_a(), keys_a, self._left_b(), keys_b)
        several = []
        for ones, others in groups:
            if len(ones) == len(others) == 1:
                self._match_nodes(ones[0], others[0])
            else:
                several.append((ones, others))
        for ones, others in several:
            self._pair_by_names(ones, others)
        return several

    def _seed_by_name(self, numbers_a: Sequence[int], numbers_b: Sequence[int]) -> None:
        """Pairs nodes that agree in a name and a number."""
        if self._has_common_names and self._open:
            for ones, others in ((self._names_a, self._names_b), (self._node_names_a, self._node_names_b)):
                self._seed(joined(ones, numbers_a), joined(others, numbers_b))

    def _seed_by_neighbourhood(self) -> None:
        """Pairs nodes that alone are what they and their neighbours are, and looks on from there."""
        before, left, left_b = self._open, self._left_a(), self._left_b()
        if _OFTEN * len({self.a.bases[one] for one in left}) < len(left):
            return  # nodes are much alike, and so are their neighbours
        keys_a, keys_b = self.a.around(self.a.bases, left), self.b.around(self.b.bases, left_b)
        for pair in alone(groups_of(left, keys_a, left_b, keys_b)):
            self._match_nodes(*pair)
        if self._open < before:
            self._look_around()
            self._drain(_Ask.LIKE)

    def _seed_and_settle(self) -> list[tuple[list[int], list[int]]]:
        """Pairs nodes that are alike in both hashes; returns twins that only their neighbours can tell apart."""
        keys = [list(zip(*pair, strict=True)) for pair in zip(self._forward, self._backward, strict=True)]
        groups = self._seed(keys[0], keys[1])
        groups = [group for group in groups if all(self._unmatched(*group))]
        if not groups:
            return []
        later = []
        known: set[Hashable] = set(keys[1])
        self._look_around()
        self._drain(_Ask.EXACT)
        for ones, others in groups:
            left_a, left_b = self._unmatched(ones, others)
            if not left_a or not left_b:
                continue
            if len(left_a) > 1 or len(left_b) > 1:
                for pair in self._alike(left_a, left_b, self._traits_a.sample, self._traits_b.sample):
                    if self._match_nodes(*pair):
                        self._drain(_Ask.EXACT)
                left_a, left_b = self._unmatched(left_a, left_b)
            if len(left_a) == len(left_b) and self._is_inside(left_a[0] if left_a else -1, keys[0], known):
                self._pair_in_order(left_a, left_b)
            else:
                later.append((left_a, left_b))
        return later

    def _pair_in_order(self, ones: list[int], others: list[int]) -> None:
        """Pairs nodes that are alike in order, one pair at a time, so that each pair may settle its neighbours."""
        rest = iter(others)
        for one in ones:
            if self.nodes[one] < 0:
                other = next((other for other in rest if self.nodes_b[other] < 0), -1)
                if other < 0:
                    return
                self._match_nodes(one, other)
                self._drain(_Ask.EXACT)

    def _is_inside(self, position: int, keys: Sequence[Hashable], known: set[Hashable]) -> bool:
        """Tells whether all neighbours of a node of ``a`` have partners that are alike, so that any twin is as good."""
        if position < 0:
            return False
        producers = self.a.scope.producers
        near = {producers[name] for name in self.a.scope.reads[position] if name in producers}
        near.update(reader for name in self.a.scope.writes[position] for reader, _ in self.a.consumers.get(name, ()))
        return all(keys[other] in known for other in near)

    def _pair_by_names(self, ones: Iterable[int], others: Iterable[int]) -> None:
        for key_a, key_b in zip(self._traits_a.names(), self._traits_b.names(), strict=True):
            ones, others = self._unmatched(ones, others)
            if not ones or not others:
                return
            for one, other in self._alike(ones, others, key_a, key_b):
                self._match_nodes(one, other)

    def _alike(
        self,
        ones: Sequence[int],
        others: Sequence[int],
        key_a: Callable[[int], Hashable],
        key_b: Callable[[int], Hashable],
    ) -> list[tuple[int, int]]:
        """Returns the pairs of nodes that alone among these have a key; None is no key."""
        keys_a, keys_b = {one: key_a(one) for one in ones}, {other: key_b(other) for other in others}
        return alone(groups_of(ones, keys_a, others, keys_b))

    # ---- pairs from pairs

    def _look_around(self) -> None:
        """Lists anew the pairs that may have neighbours left: outputs, and all around nodes of ``a`` that are left."""
        for queue in self._queues:
            queue.clear()
        if not self._open:
            return
        self._queues[0].extend(self._ends)
        seen: set[Item] = set()
        for position in self._left_a():
            around: list[Item] = []
            for name in (*self.a.inputs[position], *self.a.captured.get(position, ())):
                producer = self.a.scope.producers.get(name)
                if producer is not None and self.nodes[producer] >= 0:
                    around.append((producer, self.nodes[producer]))
                elif producer is None and name in self.tensors:
                    around.append((name, self.tensors[name]))
            for name in self.a.scope.writes[position]:
                around += [
                    (reader, self.nodes[reader])
                    for reader, _ in self.a.consumers.get(name, ())
                    if self.nodes[reader] >= 0
                ]
            for item in around:
                if item not in seen:
                    seen.add(item)
                    self._queues[0].append(item)

    def _drain(self, limit: _Ask) -> None:
        """Asks every question up to ``limit``, always the strongest one that is left."""
        queues, questions = self._queues, [question for question in self._questions if question <= limit]
        while self._open:
            for question in questions:
                if queues[question]:
                    break
            else:
                return
            item = queues[question].popleft()
            follow = self._ask(item, question)
            if follow is not None:
                queues[follow].append(item)

    def _ask(self, item: Item, question: _Ask) -> _Ask | None:
        """Looks for partners next to a pair; returns what is to be asked there next, if nodes are left."""
        one, other = item
        if isinstance(one, str) and isinstance(other, str):
            if self.tensors.get(one) == other:
                return self._ask_consumers(one, other, question)
            return self._ask_producers(one, other, question)
        if not isinstance(one, int) or not isinstance(other, int):
            raise TypeError(item)
        a, b, nodes, nodes_b = self.a, self.b, self.nodes, self.nodes_b
        follows = []
        made_at, made_at_b = a.scope.producers.get, b.scope.producers.get
        for name, name_b in zip(a.inputs[one], b.inputs[other], strict=False):
            before, before_b = made_at(name, -1), made_at_b(name_b, -1)
            if before >= 0 <= before_b and nodes[before] < 0 > nodes_b[before_b]:
                follows.append(self._ask_producers(name, name_b, question))
        readers_of, readers_of_b = a.consumers.get, b.consumers.get
        for name, name_b in zip(a.outputs[one], b.outputs[other], strict=False):
            readers, readers_b = readers_of(name), readers_of_b(name_b)
            if not readers or not readers_b:
                continue
            if len(readers) > 1 or len(readers_b) > 1 or nodes[readers[0][0]] < 0 > nodes_b[readers_b[0][0]]:
                follows.append(self._ask_consumers(name, name_b, question))
        return min((follow for follow in follows if follow is not None), default=None) if follows else None

    def _ask_producers(self, name: str, name_b: str, question: _Ask) -> _Ask | None:
        one, other = self.a.scope.producers.get(name, -1), self.b.scope.producers.get(name_b, -1)
        if one < 0 or other < 0 or self.nodes[one] >= 0 or self.nodes_b[other] >= 0:
            return None
        nodes_a, nodes_b = self.a.scope.nodes, self.b.scope.nodes
        if output_number(nodes_a[one], name) != output_number(nodes_b[other], name_b):
            return None
        return self._ask_two(one, other, question, forward=False)

    def _ask_consumers(self, name: str, name_b: str, question: _Ask) -> _Ask | None:
        readers, readers_b = self.a.consumers.get(name, ()), self.b.consumers.get(name_b, ())
        if len(readers) == 1 == len(readers_b):
            (one, slot), (other, slot_b) = readers[0], readers_b[0]
            if self.nodes[one] >= 0 or self.nodes_b[other] >= 0:
                return None
            if slot == slot_b:
                return self._ask_two(one, other, question, forward=True)
        uses, uses_b = uses_of(readers, self.nodes), uses_of(readers_b, self.nodes_b)
        if not uses or not uses_b:
            return None
        if question in (_Ask.NAMED_BEYOND, _Ask.LIKE_BEYOND):
            self._ask_beyond(list(uses), list(uses_b), question, forward=True)
        else:
            self._join(uses, uses_b, question)
        return self._follows[question]

    def _ask_two(self, one: int, other: int, question: _Ask, *, forward: bool) -> _Ask | None:
        """Asks about two nodes that are alone at one place; questions that cannot settle them are left out."""
        if question in (_Ask.NAMED_BEYOND, _Ask.LIKE_BEYOND):
            self._ask_beyond([one], [other], question, forward=forward)
            if self.nodes[one] >= 0 or self.nodes_b[other] >= 0:
                return None
        strength = self._strength(one, other)
        if strength <= question and (
            question < _Ask.NAME_ONLY
            or (strength == _Ask.NAME_ONLY and self._may_be_changed(one, other))
            or (question == _Ask.LAST and self._fits(one, other))
        ):
            self._match_nodes(one, other)
            return None
        follow = self._follows[question]
        while follow is not None and follow < strength and follow not in (_Ask.NAMED_BEYOND, _Ask.LIKE_BEYOND):
            follow = self._follows[follow]
        return follow

    def _strength(self, one: int, other: int) -> _Ask:
        """Returns the strongest question that settles two nodes at one place."""
        if self._forward[0][one] == self._forward[1][other] and self._backward[0][one] == self._backward[1][other]:
            return _Ask.EXACT
        same_name = self._same_name(one, other)
        if self.a.bases[one] == self.b.bases[other]:
            return _Ask.NAMED if same_name else _Ask.LIKE
        if self.a.operators[one] == self.b.operators[other]:
            return _Ask.NAMED_OP if same_name else _Ask.OP
        return _Ask.NAME_ONLY if same_name else _Ask.LAST

    def _same_name(self, one: int, other: int) -> bool:
        names = self._names_a[one], self._node_names_a[one]
        return (names[0] is not None and names[0] == self._names_b[other]) or (
            names[1] is not None and names[1] == self._node_names_b[other]
        )

    def _may_be_changed(self, one: int, other: int) -> bool:
        """Tells whether a node may be one of the same name and another operator: it reads the same, or looks alike."""
        inputs, inputs_b = self.a.inputs[one], self.b.inputs[other]
        if any(self._is_same(name, name_b) for name, name_b in zip(inputs, inputs_b, strict=False)):
            return True
        attributes, attributes_b = (
            {entry.name for entry in side.scope.nodes[position].attribute}
            for side, position in ((self.a, one), (self.b, other))
        )
        return len(inputs) == len(inputs_b) and attributes == attributes_b

    def _is_same(self, name: str, name_b: str) -> bool:
        if name in self.a.stored and name_b in self.b.stored and name not in self.tensors:  # not settled yet
            return name == name_b or self.a.weight_id(name) == self.b.weight_id(name_b)
        return bool(name) and self.meaning_a(name) == self.meaning_b(name_b)

    def _fits(self, one: int, other: int) -> bool:
        """Tells whether a node may be one of another operator and name: it reads the same, and so do its readers."""
        inputs, inputs_b = self.a.inputs[one], self.b.inputs[other]
        if len(inputs) != len(inputs_b):
            return False
        if not all(
            name == name_b == "" or self._is_same(name, name_b) for name, name_b in zip(inputs, inputs_b, strict=True)
        ):
            return False
        outputs, outputs_b = self.a.scope.writes[one], self.b.scope.writes[other]
        if not outputs or not outputs_b:
            return len(outputs) == len(outputs_b)
        if outputs[0] in self._ends_a and self._ends_a[outputs[0]] == self._ends_b.get(outputs_b[0]):
            return True
        readers_b = set(self.b.consumers.get(outputs_b[0], ())[:MOST_BEYOND])
        return any(
            self.nodes[reader] >= 0 and (self.nodes[reader], slot) in readers_b
            for reader, slot in self.a.consumers.get(outputs[0], ())[:MOST_BEYOND]
        )

    def _join(self, uses: dict[int, tuple[int, ...]], uses_b: dict[int, tuple[int, ...]], question: _Ask) -> None:
        """Pairs consumers of one tensor that agree in a key."""
        a, b = self.a, self.b
        keys_a: dict[int, Hashable]
        keys_b: dict[int, Hashable]
        match question:
            case _Ask.EXACT:
                keys_a = {one: (self._forward[0][one], self._backward[0][one], slots) for one, slots in uses.items()}
                keys_b = {one: (self._forward[1][one], self._backward[1][one], slots) for one, slots in uses_b.items()}
            case _Ask.NAMED | _Ask.NAMED_OP | _Ask.NAME_ONLY:
                self._join_by_names(uses, uses_b, question)
                return
            case _Ask.LIKE:
                keys_a = {one: (a.bases[one], slots) for one, slots in uses.items()}
                keys_b = {one: (b.bases[one], slots) for one, slots in uses_b.items()}
            case _Ask.OP | _Ask.IN_ORDER:
                keys_a = {one: (a.operators[one], slots) for one, slots in uses.items()}
                keys_b = {one: (b.operators[one], slots) for one, slots in uses_b.items()}
            case _:
                groups = groups_of(uses, uses, uses_b, uses_b)
                for ones, others in groups:
                    if len(ones) == len(others) == 1 and self._fits(ones[0], others[0]):
                        self._match_nodes(ones[0], others[0])
                return
        for ones, others in groups_of(uses, keys_a, uses_b, keys_b):
            if len(ones) == len(others) == 1:
                self._match_nodes(ones[0], others[0])
            elif question in (_Ask.EXACT, _Ask.LIKE, _Ask.IN_ORDER):
                self._pair_group(ones, others, question)

    def _pair_group(self, ones: list[int], others: list[int], question: _Ask) -> None:
        """Pairs consumers of one tensor that agree in a key which several have, by names and samples of weights."""
        if question == _Ask.EXACT:
            self._pair_by_names(ones, others)
        ones, others = self._unmatched(ones, others)
        for one, other in self._alike(ones, others, self._traits_a.sample, self._traits_b.sample):
            self._match_nodes(one, other)
        if question == _Ask.IN_ORDER:
            self._pair_by_names(ones, others)
        if question != _Ask.LIKE:
            for one, other in zip(*self._unmatched(ones, others), strict=False):
                self._match_nodes(one, other)

    def _join_by_names(self, uses: Iterable[int], uses_b: Iterable[int], question: _Ask) -> None:
        extra_a: Sequence[int] | None = None
        extra_b: Sequence[int] | None = None
        if question == _Ask.NAMED:
            extra_a, extra_b = self.a.bases, self.b.bases
        elif question == _Ask.NAMED_OP:
            extra_a, extra_b = self.a.operators, self.b.operators
        names = (self._names_a, self._names_b), (self._node_names_a, self._node_names_b)
        for names_a, names_b in names:
            ones, others = self._unmatched(uses, uses_b)
            keys_a = {one: names_a[one] and (names_a[one], extra_a and extra_a[one]) for one in ones}
            keys_b = {one: names_b[one] and (names_b[one], extra_b and extra_b[one]) for one in others}
            for group, group_b in groups_of(ones, keys_a, others, keys_b):
                if len(group) == len(group_b) == 1 and (
                    question != _Ask.NAME_ONLY or self._may_be_changed(group[0], group_b[0])
                ):
                    self._match_nodes(group[0], group_b[0])

    def _ask_beyond(self, ones: list[int], others: list[int], question: _Ask, *, forward: bool) -> None:
        """Pairs nodes a few steps from a place at which they differ: between, something was inserted, removed, changed.

        Of all pairs that are alike, the one with the longest run of nodes behind it that are alike too comes first.

        Args:
            ones: Nodes next to the place in ``a`` that are left.
            others: The same in ``b``.
            question: Which question is asked.
            forward: Whether further on is towards the outputs.
        """
        if len(ones) > MOST_NEAR or len(others) > MOST_NEAR:
            return
        far_a = nodes_beyond(self.a, ones, self.nodes, forward=forward)
        far_b = nodes_beyond(self.b, others, self.nodes_b, forward=forward)
        pairs = [(steps, one, other) for other, steps in far_b.items() for one in ones]
        pairs += [(steps, one, other) for one, steps in far_a.items() for other in others]
        if len(ones) == len(others) == 1:  # one node may be another now: its operator was changed
            near_a, near_b = (
                [position for position, steps in far.items() if steps == 1][:MOST_NEAR] for far in (far_a, far_b)
            )
            pairs += [(0, one, other) for one in near_a for other in near_b]
        bases_a, bases_b = self.a.bases, self.b.bases
        alike = [pair for pair in pairs if bases_a[pair[1]] == bases_b[pair[2]]]
        if question == _Ask.NAMED_BEYOND:
            alike = [pair for pair in alike if self._same_name(*pair[1:])]
        if len(alike) > 1:
            alike.sort(key=lambda pair: (-self._run_length(*pair[1:], forward=forward), *pair))
        for _, one, other in alike[:1]:
            self._match_nodes(one, other)

    def _run_length(self, one: int, other: int, *, forward: bool) -> int:
        """Returns how many nodes from two on are alike, up to a few."""
        length = 0
        while length < _LONGEST_RUN and self.a.bases[one] == self.b.bases[other]:
            length += 1
            one = next_node(self.a, one, self.nodes, forward=forward)
            other = next_node(self.b, other, self.nodes_b, forward=forward)
            if one < 0 or other < 0:
                return length + (one == other)
        return length

    # ---- recording

    def _left_a(self) -> list[int]:
        return [position for position in self.a.order if self.nodes[position] < 0]

    def _left_b(self) -> list[int]:
        return [position for position in self.b.order if self.nodes_b[position] < 0]

    def _unmatched(self, ones: Iterable[int], others: Iterable[int]) -> tuple[list[int], list[int]]:
        return [one for one in ones if self.nodes[one] < 0], [other for other in others if self.nodes_b[other] < 0]

    def _match_nodes(self, one: int, other: int) -> bool:
        if self.nodes[one] >= 0 or self.nodes_b[other] >= 0:
            return False
        self.nodes[one], self.nodes_b[other] = other, one
        self._open -= 1
        for name, name_b in zip(self.a.inputs[one], self.b.inputs[other], strict=False):
            is_open = name and name_b and name not in self.tensors and name_b not in self.tensors_b
            if is_open and self._leaf_pairs.can_be_one(name, name_b):
                self._match_tensors(name, name_b)
        for name, name_b in zip(self.a.outputs[one], self.b.outputs[other], strict=False):
            if name and name_b:
                self.tensors[name], self.tensors_b[name_b] = name_b, name
        self._queues[0].append((one, other))
        return True

    def _match_tensors(self, name: str, name_b: str) -> None:
        self.tensors[name], self.tensors_b[name_b] = name_b, name
        self._queues[0].append((name, name_b))
