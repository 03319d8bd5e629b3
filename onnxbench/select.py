r"""The selector language: how every command names tensors and nodes.

    conv1_out                exact tensor name (always tried first, whatever characters it has)
    conv*_out, x[0-9]        glob over tensor names
    re:conv\d+_(a|b)         regular expression over tensor names, to the end of the selector
    "a&b"                    quoted: exactly this name
    node:Conv_3, node:#12    nodes by name (glob), label, or position
    op:Conv, op:com.x::Foo   nodes by operator type (glob), in any domain or in one
    scope:layer1.0           nodes of a PyTorch module and of the modules in it (glob)
    input:* output:* weight:*  the graph's inputs, outputs, initializers, by glob
    dtype:float16            tensors whose element type is known to be this
    mark:func[1]:output      tensors at a Mark (function, call number, input or output; a name may follow);
                             func[1]:output alone means the same where the model has such a Mark
    upstream(x) downstream(x)  x and what it depends on, or what depends on it
    between(a, b)            downstream(a) & upstream(b)
    A & B   A | B   !A   (A) both, either, not
    @names.txt               one selector per line, "#" starts a comment

A selector stands for tensors or for nodes. Where tensors are wanted, a node stands for the tensors it makes;
where nodes are wanted, a tensor stands for the node that makes it. Names inside bodies and functions have a
path (``If_3/then/x``), which globs see too. A selector that matches nothing is an error with near names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import translate
from pathlib import Path

from onnxbench.errors import NotFoundError, UsageError, did_you_mean, nearest
from onnxbench.graph import GraphIndex, NodeRef, TensorRef, declared_types
from onnxbench.provenance import Origins
from onnxbench.schemas import plain_domain
from onnxbench.tensortype import dtype_name, dtype_number, elem_type

PREFIXES = ("node", "op", "scope", "mark", "input", "output", "weight", "dtype")
_FUNCTIONS = ("upstream", "downstream", "between")
_DEEPEST = 100
_PLAIN = re.compile(r"[^&|!()@,\s]+")
"""A name or a glob, and nothing put together."""
MARK_DOMAINS = ("onnxbench", "mmdeploy", "mmcv")


@dataclass(frozen=True, slots=True)
class Selection:
    """What a selector stands for: some tensors, or some nodes."""

    tensors: frozenset[TensorRef] = frozenset()
    nodes: frozenset[NodeRef] = frozenset()
    is_nodes: bool = False

    def __bool__(self) -> bool:
        return bool(self.nodes if self.is_nodes else self.tensors)

    def as_tensors(self) -> frozenset[TensorRef]:
        """The tensors, or the tensors that the nodes make."""
        if not self.is_nodes:
            return self.tensors
        return frozenset(TensorRef(ref.scope, name) for ref in self.nodes for name in ref.scope.writes[ref.position])

    def as_nodes(self) -> frozenset[NodeRef]:
        """The nodes, or the nodes that make the tensors."""
        if self.is_nodes:
            return self.nodes
        return frozenset(
            NodeRef(ref.scope, ref.scope.producers[ref.name]) for ref in self.tensors if ref.name in ref.scope.producers
        )


def select(index: GraphIndex, selector: str, *, folder: Path | None = None) -> Selection:
    """Returns what one selector stands for.

    Args:
        index: The model's index.
        selector: The selector.
        folder: What ``@FILE`` is relative to; by default the current folder.

    Raises:
        NotFoundError: It matches nothing; the hint has the nearest names.
        UsageError: It cannot be parsed.
    """
    return _select(index, selector, (), folder or Path())


def _select(index: GraphIndex, selector: str, files: tuple[Path, ...], folder: Path) -> Selection:
    """Does so for a selector that stands in these files, each named in the one before."""
    exact = index.tensor(selector)
    if exact is not None:
        return Selection(frozenset([exact]))
    if selector.startswith("@"):
        return _from_file(index, selector[1:], files, folder)
    try:
        selection = _Parser(index, selector).parse()
    except UsageError:
        listed = _comma_list(index, selector)
        if listed is None:
            raise
        return listed
    if not selection:
        listed = _comma_list(index, selector)
        if listed is None:
            raise _nothing(index, selector)
        return listed
    return selection


def tensors(
    index: GraphIndex, selectors: Sequence[str], *, what: str = "selector", folder: Path | None = None
) -> list[TensorRef]:
    """Returns the tensors that the selectors stand for: selector by selector, each in the order of the graph.

    Args:
        index: The model's index.
        selectors: Selectors, each of which must match.
        what: What the selectors are for, named in an error ("--outputs", say).
        folder: What ``@FILE`` is relative to; by default the current folder.

    Raises:
        NotFoundError: A selector matches no tensor.
        UsageError: A selector cannot be parsed.
    """
    found: dict[TensorRef, None] = {}
    for selector in selectors:
        refs = select(index, selector, folder=folder).as_tensors()
        if not refs:
            raise NotFoundError(f"{what} {selector!r} names nodes that make no tensor")
        found.update(dict.fromkeys(in_order(index, refs)))
    return list(found)


def nodes(
    index: GraphIndex, selectors: Sequence[str], *, what: str = "selector", folder: Path | None = None
) -> list[NodeRef]:
    """Returns the nodes that the selectors stand for, in the order of the graph, without repeats.

    A tensor stands for its producer; a bare name that is no tensor but a node's is that node. ``@FILE`` is relative to
    ``folder``, or else to the current one.

    Raises:
        NotFoundError: A selector matches no node.
        UsageError: A selector cannot be parsed.
    """
    found: set[NodeRef] = set()
    for selector in selectors:
        named = nodes_named(index, selector)
        try:
            refs = frozenset(named) if named else select(index, selector, folder=folder).as_nodes()
        except NotFoundError:
            if selector.partition(":")[0] in PREFIXES or not _PLAIN.fullmatch(selector):
                raise
            raise _no_node(index, selector) from None
        if not refs:
            raise NotFoundError(f"{what} {selector!r} names tensors that no node makes (inputs or initializers)")
        found |= refs
    order = {id(scope): number for number, scope in enumerate(index.scopes)}
    return sorted(found, key=lambda ref: (order[id(ref.scope)], ref.position))


def nodes_named(index: GraphIndex, name: str) -> list[NodeRef]:
    """Returns the nodes of exactly this name or path, unless a tensor has that name."""
    if index.tensor(name) is not None:
        return []
    return [ref for ref in index.nodes() if name in (ref.node.name, ref.path)]


def quoted(name: str) -> str:
    """Returns a name in quotes, so that nothing in it is taken for a word of the selector language."""
    quote = "'" if '"' in name else '"'
    return f"{quote}{name}{quote}"


def in_order(index: GraphIndex, refs: Iterable[TensorRef]) -> list[TensorRef]:
    """Returns tensors in the order of the graph."""
    refs = list(refs)
    if len(refs) < 2:
        return refs
    scopes = {id(scope): number for number, scope in enumerate(index.scopes)}
    places: dict[int, dict[str, int]] = {}
    for scope in {id(ref.scope): ref.scope for ref in refs}.values():
        places[id(scope)] = {name: at for at, name in enumerate(scope.tensor_names())}
    return sorted(refs, key=lambda ref: (scopes[id(ref.scope)], places[id(ref.scope)].get(ref.name, -1), ref.name))


def _comma_list(index: GraphIndex, selector: str) -> Selection | None:
    """Returns the tensors of a comma-joined list of exact names (``-i a,b``), or None if it is none."""
    names = [part.strip() for part in selector.split(",")]
    refs = [index.tensor(name) for name in names]
    if len(names) < 2 or None in refs:
        return None
    return Selection(frozenset(ref for ref in refs if ref is not None))


def _from_file(index: GraphIndex, path: str, files: tuple[Path, ...], folder: Path) -> Selection:
    file = folder / path
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"the selector file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"the selector file {path} is not UTF-8 text") from None
    selectors = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not selectors:
        raise UsageError(f"the selector file {path} names nothing")
    if file.resolve() in files:
        raise UsageError(f"the selector file {path} names itself")
    parts = [_select(index, selector, (*files, file.resolve()), folder) for selector in selectors]
    if all(part.is_nodes for part in parts):
        return Selection(nodes=frozenset().union(*(part.nodes for part in parts)), is_nodes=True)
    return Selection(frozenset().union(*(part.as_tensors() for part in parts)))


def _nothing(index: GraphIndex, selector: str) -> NotFoundError:
    prefix, _, rest = selector.partition(":")
    if prefix in ("node", "op", "scope", "mark", "dtype") and rest:
        candidates = sorted(_CANDIDATES[prefix](index))
        hint = did_you_mean(rest, candidates)
        if hint is None and candidates:
            some = ", ".join(candidates[:8])
            more = f" and {len(candidates) - 8} more" if len(candidates) > 8 else ""
            hint = f"The model has {len(candidates)} of these: {some}{more}."
        if prefix == "node" and rest.startswith("#") and rest[1:].isdigit():
            hint = f"The nodes of the graph are #0 to #{len(index.main.nodes) - 1}."
        elif prefix == "scope" and not candidates:
            hint = "The nodes of the model tell of no modules: 'onnxbench inspect MODEL --scopes' shows what is known."
        return NotFoundError(f"{selector!r} matches nothing in the model", hint=hint)
    plain = rest if prefix in PREFIXES and rest else selector
    near = nearest(plain, (ref.path for ref in index.tensors()))
    hint = f"Did you mean {' or '.join(repr(name) for name in near)}?" if near else None
    if hint is None:
        near = nearest(plain, (ref.path for ref in index.nodes()))
        hint = f"Nodes are written node:NAME; did you mean {f'node:{near[0]}'!r}?" if near else None
    if any(ref.node.name == plain for ref in index.nodes()):
        hint = f"There is a node of that name: write 'node:{plain}'."
    if _MARK_SPELLING.fullmatch(plain):
        at_marks = sorted(_CANDIDATES["mark"](index))
        hint = (
            f"The model's marks are: {', '.join(at_marks[:8])}{', ...' if len(at_marks) > 8 else ''}."
            if at_marks
            else hint
        )
    hint = hint or "'onnxbench inspect MODEL --tensors' lists its tensors."
    return NotFoundError(f"{selector!r} matches no tensor of the model", hint=hint)


def _no_node(index: GraphIndex, name: str) -> NotFoundError:
    try:
        select(index, f"node:{name}")
        hint = f"There are nodes of that name: write 'node:{name}'."
    except NotFoundError:
        near = nearest(name, (ref.path for ref in index.nodes()))
        hint = f"Did you mean {' or '.join(repr(each) for each in near)}?" if near else ""
    return NotFoundError(
        f"{name!r} matches no node and no tensor of the model",
        hint=hint or "'onnxbench inspect MODEL --nodes' lists its nodes.",
    )


def origins(index: GraphIndex) -> Origins:
    """Returns what tells where the nodes of a model come from in PyTorch."""
    return Origins((ref.node for ref in index.nodes()), index.main.constants)


def _scopes_of(index: GraphIndex) -> set[str]:
    known = origins(index)
    return {scope for ref in index.nodes() if (scope := known.scope(ref.node))}


_CANDIDATES: dict[str, Callable[[GraphIndex], Iterable[str]]] = {
    "node": lambda index: {ref.path for ref in index.nodes()},
    "op": lambda index: {ref.node.op_type for ref in index.nodes()},
    "scope": _scopes_of,
    "mark": lambda index: {point.spelling for point in (mark_point(ref) for ref in index.nodes()) if point},
    "dtype": lambda index: {
        dtype_name(elem_type(value)) for scope in index.scopes for value in declared_types(scope).values()
    },
}


class _Parser:
    """Recursive descent over one selector; nesting is the user's own parentheses."""

    def __init__(self, index: GraphIndex, text: str) -> None:
        self._index = index
        self._text = text
        self._at = 0
        self._depth = 0

    def parse(self) -> Selection:
        if not self._text.strip():
            raise UsageError("a selector is empty")
        result = self._either()
        if self._peek():
            raise self._wrong(f"{self._text[self._at]!r} was not expected")
        return result

    def _either(self) -> Selection:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._wrong(f"parentheses are nested more than {_DEEPEST} deep")
        result = self._both()
        while self._take("|"):
            result = _combine(result, self._both(), frozenset.union)
        self._depth -= 1
        return result

    def _both(self) -> Selection:
        result = self._not()
        while self._take("&"):
            result = _combine(result, self._not(), frozenset.intersection)
        return result

    def _not(self) -> Selection:
        flips = 0
        while self._take("!"):
            flips += 1
        inner = self._atom()
        if flips % 2 == 0:
            return inner
        if inner.is_nodes:
            return Selection(nodes=frozenset(self._index.nodes()) - inner.nodes, is_nodes=True)
        return Selection(frozenset(self._index.tensors()) - inner.tensors)

    def _atom(self) -> Selection:
        if self._take("("):
            inner = self._either()
            self._expect(")")
            return inner
        function = next((name for name in _FUNCTIONS if self._text.startswith(f"{name}(", self._at)), None)
        if function:
            self._at += len(function) + 1
            arguments = [self._either()]
            while self._take(","):
                arguments.append(self._either())
            self._expect(")")
            return self._call(function, arguments)
        return self._word()

    def _word(self) -> Selection:
        exact = self._index.tensor(self._text[self._at : self._end_of_word()].strip())
        if exact is not None:
            self._at = self._end_of_word()
            return Selection(frozenset([exact]))
        prefix = next((p for p in PREFIXES if self._text.startswith(f"{p}:", self._at)), "")
        if prefix:
            self._at += len(prefix) + 1
        elif self._text.startswith("re:", self._at):
            self._at += 3
            pattern = self._quoted() if self._peek() in ('"', "'") else self._rest()
            return self._tensors_matching(_compile(pattern))
        if self._peek() in ('"', "'"):
            name = self._quoted()
            return self._named(prefix, name, exact=True)
        start, self._at = self._at, self._end_of_word()
        name = self._text[start : self._at].strip()
        if not name:
            raise self._wrong("a name was expected")
        if not prefix and self._text[self._at : self._at + 1] == "(":
            hint = did_you_mean(name, _FUNCTIONS) or f"Functions: {', '.join(_FUNCTIONS)}. A name with ( can be quoted."
            raise UsageError(f"there is no function {name}()", hint=hint)
        return self._named(prefix, name, exact=False)

    def _end_of_word(self) -> int:
        """Returns where a name ends that is not quoted: before an operator that is not in brackets."""
        end, brackets = self._at, 0
        while end < len(self._text):
            char = self._text[end]
            brackets += (char == "[") - (char == "]")
            if brackets <= 0 and (char in "&|),(" or (char == "!" and end == self._at)):
                break
            end += 1
        return end

    def _named(self, prefix: str, name: str, *, exact: bool) -> Selection:
        index = self._index
        if not prefix:
            ref = index.tensor(name)
            if ref is not None:
                return Selection(frozenset([ref]))
            at_marks = [] if exact else points(index, name)
            if at_marks:
                return Selection(frozenset(ref for ref, _ in at_marks))
            if exact or not _is_glob(name):
                raise _nothing(index, name)
            return self._tensors_matching(_glob(name))
        if prefix in ("input", "output", "weight"):
            names = {
                "input": lambda: index.main.true_inputs(),
                "output": lambda: index.main.outputs,
                "weight": lambda: sorted(index.main.constants),
            }[prefix]()
            matches = matcher(name, exact=exact)
            return Selection(frozenset(TensorRef(index.main, n) for n in names if matches(n)))
        if prefix == "dtype":
            number = dtype_number(name)
            return Selection(
                frozenset(
                    TensorRef(scope, tensor)
                    for scope in index.scopes
                    for tensor, value in declared_types(scope).items()
                    if elem_type(value) == number and scope.defines(tensor)
                )
            )
        if prefix == "mark":
            if _MARK_SPELLING.fullmatch(name) is None:
                raise UsageError(f"mark:{name} is not a mark", hint="Write mark:FUNCTION[CALL]:input or ...:output.")
            return Selection(frozenset(ref for ref, _ in points(index, name)))
        return Selection(nodes=frozenset(_NODE_FILTERS[prefix](index, name, exact)), is_nodes=True)

    def _tensors_matching(self, pattern: re.Pattern[str]) -> Selection:
        return Selection(frozenset(ref for ref in self._index.tensors() if pattern.fullmatch(ref.path)))

    def _call(self, function: str, arguments: list[Selection]) -> Selection:
        if len(arguments) != (2 if function == "between" else 1):
            raise self._wrong(f"{function}() takes {'two arguments' if function == 'between' else 'one argument'}")
        if function == "upstream":
            return Selection(_closure(arguments[0].as_tensors(), _sources))
        if function == "downstream":
            return Selection(_closure(arguments[0].as_tensors(), _uses))
        down = _closure(arguments[0].as_tensors(), _uses)
        return Selection(down & _closure(arguments[1].as_tensors(), _sources))

    def _quoted(self) -> str:
        quote = self._text[self._at]
        end = self._text.find(quote, self._at + 1)
        if end < 0:
            raise self._wrong("a quote is not closed")
        name = self._text[self._at + 1 : end]
        self._at = end + 1
        return name

    def _rest(self) -> str:
        rest = self._text[self._at :]
        self._at = len(self._text)
        return rest

    def _peek(self) -> str:
        while self._at < len(self._text) and self._text[self._at].isspace():
            self._at += 1
        return self._text[self._at : self._at + 1]

    def _take(self, char: str) -> bool:
        if self._peek() == char:
            self._at += 1
            return True
        return False

    def _expect(self, char: str) -> None:
        if not self._take(char):
            raise self._wrong(f"{char!r} was expected")

    def _wrong(self, words: str) -> UsageError:
        return UsageError(
            f"selector {self._text!r}: {words} at character {self._at + 1}",
            hint='A name with & | ( ) , or ! in it can be quoted: "a&b".',
        )


def _combine(
    first: Selection,
    second: Selection,
    operation: Callable[[frozenset[object], frozenset[object]], frozenset[object]],
) -> Selection:
    if first.is_nodes and second.is_nodes:
        return Selection(nodes=operation(first.nodes, second.nodes), is_nodes=True)  # type: ignore[arg-type]  # as below
    return Selection(operation(first.as_tensors(), second.as_tensors()))  # type: ignore[arg-type]  # it gives back what it got


def _is_glob(name: str) -> bool:
    return any(char in name for char in "*?[")


def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern))


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(f"the regular expression {pattern!r} is wrong: {error}") from None


def matcher(pattern: str, *, exact: bool = False) -> Callable[[str], bool]:
    """Returns what tells whether a name is meant by a glob, or, if ``exact``, is just that."""
    if exact or not _is_glob(pattern):
        return lambda name: name == pattern
    compiled = _glob(pattern)
    return lambda name: name == pattern or compiled.fullmatch(name) is not None


def _nodes_by_name(index: GraphIndex, pattern: str, exact: bool) -> Iterable[NodeRef]:
    if pattern.startswith("#") and pattern[1:].isdigit():
        position = int(pattern[1:])
        return [NodeRef(index.main, position)] if position < len(index.main.nodes) else []
    matches = matcher(pattern, exact=exact)
    return (ref for ref in index.nodes() if matches(ref.node.name) or matches(ref.path))


def _nodes_by_op(index: GraphIndex, pattern: str, exact: bool) -> Iterable[NodeRef]:
    domain, separator, op_type = pattern.rpartition("::")
    matches = matcher(op_type, exact=exact)
    wanted = plain_domain(domain)
    return (
        ref
        for ref in index.nodes()
        if matches(ref.node.op_type)
        and (not separator or ref.node.domain.replace("ai.onnx", "") == wanted or ref.node.domain == domain)
    )


def _nodes_by_scope(index: GraphIndex, pattern: str, exact: bool) -> Iterable[NodeRef]:
    """Nodes whose module path matches, or lies below one that does: ``layer1`` means all of layer1."""
    compiled = re.compile(re.escape(pattern) + r"(\..*)?") if exact or not _is_glob(pattern) else None
    glob = _glob(pattern)
    verdicts: dict[str, bool] = {}
    known = origins(index)
    for ref in index.nodes():
        scope = known.scope(ref.node)
        if scope is None:
            continue
        verdict = verdicts.get(scope)
        if verdict is None:
            parts = scope.split(".")
            verdict = verdicts[scope] = (
                compiled.fullmatch(scope) is not None
                if compiled
                else any(glob.fullmatch(".".join(parts[:end])) for end in range(1, len(parts) + 1))
            )
        if verdict:
            yield ref


_NODE_FILTERS: dict[str, Callable[[GraphIndex, str, bool], Iterable[NodeRef]]] = {
    "node": _nodes_by_name,
    "op": _nodes_by_op,
    "scope": _nodes_by_scope,
}


@dataclass(frozen=True, slots=True)
class MarkPoint:
    """The point that a Mark node marks: an input or output of one call of a marked function."""

    function: str
    call: int
    side: str
    name: str
    number: int

    @property
    def spelling(self) -> str:
        """The point as it is selected: ``yolo_head[0]:input``."""
        return f"{self.function}[{self.call}]:{self.side}"


_MARK_SPELLING = re.compile(r"(?P<function>[^:\[\]]+)(\[(?P<call>\d+)\])?:(?P<side>input|output)(:(?P<name>.+))?")


def mark_point(ref: NodeRef) -> MarkPoint | None:
    """Returns the point that a Mark node marks; MMDeploy's and our own have the same attributes."""
    node = ref.node
    if node.op_type != "Mark" or node.domain not in MARK_DOMAINS:
        return None
    said = {a.name: a for a in node.attribute}

    def text(key: str) -> str:
        return said[key].s.decode(errors="replace") if key in said else ""

    return MarkPoint(
        text("func"),
        said["func_id"].i if "func_id" in said else 0,
        text("type"),
        text("name"),
        said["id"].i if "id" in said else 0,
    )


def points(index: GraphIndex, spelling: str) -> list[tuple[TensorRef, MarkPoint]]:
    """Returns the tensors at the Marks that ``func[1]:output:name`` means, with or without ``mark:`` before it.

    Where a word is no such spelling, or the model has no such Mark, there are none.
    """
    match = _MARK_SPELLING.fullmatch(spelling.removeprefix("mark:"))
    if match is None:
        return []
    found = []
    for ref in index.nodes():
        point = mark_point(ref)
        if (
            point is not None
            and (point.function, point.side) == (match["function"], match["side"])
            and point.call == int(match["call"] or 0)
            and match["name"] in (None, point.name)
        ):
            found += [(TensorRef(ref.scope, name), point) for name in ref.scope.writes[ref.position]]
    return found


def _closure(seeds: Iterable[TensorRef], step: Callable[[TensorRef], Iterable[TensorRef]]) -> frozenset[TensorRef]:
    """Returns all tensors reached from the seeds, these included."""
    reached: set[TensorRef] = set(seeds)
    pending = list(reached)
    while pending:
        for found in step(pending.pop()):
            if found not in reached:
                reached.add(found)
                pending.append(found)
    return frozenset(reached)


def _sources(ref: TensorRef) -> Iterable[TensorRef]:
    """Yields what the maker of a tensor reads; what it captures, in the graph around that defines it."""
    position = ref.scope.producers.get(ref.name)
    for name in () if position is None else ref.scope.reads[position]:
        scope = ref.scope
        while scope.parent is not None and not scope.defines(name):
            scope = scope.parent
        yield TensorRef(scope, name)


def _uses(ref: TensorRef) -> Iterable[TensorRef]:
    """Yields what is made of a tensor, by nodes of its own graph (a node with bodies reads what these capture)."""
    scope = ref.scope
    return (TensorRef(scope, made) for position in scope.consumers.get(ref.name, ()) for made in scope.writes[position])
