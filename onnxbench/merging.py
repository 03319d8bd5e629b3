"""Two models made one: outputs of the first, A, feed inputs of the second, B.

The result is right or refused. Everything that A and B hold is in it, with A's names as they were. Of B only those
names change that A has too: a tensor, node, function or dimension of B that means something else than A's of the
same name gets ``_b`` behind it, in bodies and annotations as well. What is stored in both (weights, functions, the
constants that a split copies) is stored once.

The order of work matters. Connections are settled and their types compared first, on the models as they are. Then the
opsets are made one, for that may change nodes; then names; then the two structures are joined, by copying messages
whole, so that what this program has never heard of comes along. Weights are referred to where they lie, which is
why both structures are anchored first: after that it does not matter which folder a reference was relative to.

Whether the result computes what A and then B compute is found out by running all three (``prove``).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench import backends, captures, weights, wire
from onnxbench.cut import Boundary
from onnxbench.drift import Tolerance, compare_values
from onnxbench.errors import (
    BenchError,
    ExecutionError,
    FeedsError,
    NotFoundError,
    RefusedResultError,
    UnsupportedError,
    UsageError,
    did_you_mean,
)
from onnxbench.feeding import FeedOptions
from onnxbench.graph import GraphIndex, Scope, node_bodies
from onnxbench.inference import TypeFinder
from onnxbench.model import SMALL_WEIGHT, Model, load
from onnxbench.opsets import convert_opset, same_operator, standard_opset
from onnxbench.pieces import first_feeds
from onnxbench.progress import track
from onnxbench.proof import Proof, ProvenTensor, computes_in_fp16
from onnxbench.tensortype import elem_type, format_type, tensor_shape
from onnxbench.writer import Saved, SaveOptions, save

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto

PROVEN_WEIGHTS = 256_000_000
"""Bytes of weights up to which a merge is proven without being asked to."""
PROVEN_NODES = 20_000
"""Nodes up to which it is."""
_HEAD = 4096
_BLOCK = 4 << 20
_EXPRESSION = re.compile(r"[\w\s+*/().,-]*[-+*/(][\w\s+*/().,-]*")
_WORD = re.compile(r"[A-Za-z_]\w*(?!\w*\s*\()")
FunctionKey = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Link:
    """One connection.

    Attributes:
        output: The tensor of A: one of its outputs, or one of its inputs, which then feeds both models.
        input: The input of B that it feeds.
        output_type: The type of the one as text.
        input_type: The type that the other wants.
        cast: Whether a Cast stands between them.
    """

    output: str
    input: str
    output_type: str
    input_type: str
    cast: bool = False


@dataclass(frozen=True, slots=True)
class Rename:
    """A name that changed.

    Attributes:
        model: ``a`` or ``b``.
        kind: ``tensor``, ``node``, ``function``, ``dimension`` or ``device configuration``.
        old: What it was.
        new: What it is.
    """

    model: str
    kind: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Merged:
    """Two models as one.

    Attributes:
        model: The result; its weights lie where those of A and B do.
        links: The connections.
        inputs: Its inputs with their types; the origin says whose they are, ``a`` or ``b``.
        outputs: Its outputs.
        renames: The names that changed.
        shared_weights: How many weights of B are weights of A.
        shared_bytes: Their size.
        notes: What a user should know.
        names_a: What A's inputs and outputs are called in the result.
        names_b: What B's are called; a connected input is what feeds it.
        converted: Whether a model had to change its opset.
    """

    model: Model
    links: tuple[Link, ...]
    inputs: tuple[Boundary, ...]
    outputs: tuple[Boundary, ...]
    renames: tuple[Rename, ...]
    shared_weights: int
    shared_bytes: int
    notes: tuple[str, ...]
    names_a: Mapping[str, str]
    names_b: Mapping[str, str]
    converted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """How two models are made one.

    Attributes:
        keep_outputs: Whether connected outputs of A stay outputs: all of them, or the named ones.
        prefix_a: What goes before all names of A.
        prefix_b: What goes before all names of B.
        cast: Put a Cast where element types differ.
        share: Store equal weights once.
        target_opset: The standard opset of the result; None: the higher one of the two.
    """

    keep_outputs: bool | Collection[str] = False
    prefix_a: str = ""
    prefix_b: str = ""
    cast: bool = False
    share: bool = True
    target_opset: int | str | None = None


def merge(
    a: Model | str | os.PathLike[str],
    b: Model | str | os.PathLike[str],
    connections: Sequence[str] | Mapping[str, str] = (),
    *,
    options: MergeOptions | None = None,
    allow_outside: bool = False,
) -> Merged:
    """Returns two models as one, in which tensors of A feed inputs of B.

    Args:
        a: The first model, or its file.
        b: The second.
        connections: ``out=in`` or ``out:in`` words, each with ``a.`` and ``b.`` before the names if wanted; or inputs
            of B to tensors of A. None given: equal names, else the only output to the only input.
        options: How.
        allow_outside: For model files: follow external data that leaves their folders.

    Raises:
        NotFoundError: A name is no output of A or no input of B.
        UsageError: A word can be read in two ways, or an input is fed twice, or nothing says what to connect.
        RefusedResultError: The types of a connection do not fit.
        UnsupportedError: The opsets cannot be made one, with the operators in the way.
        ExternalDataError: Weights are missing.
    """
    wanted = options or MergeOptions()
    first = a if isinstance(a, Model) else load(a, allow_outside=allow_outside)
    second = b if isinstance(b, Model) else load(b, allow_outside=allow_outside)
    links = _links(_Side("A", first), _Side("B", second), connections, cast=wanted.cast)
    first, second, notes = _same_opsets(first, second, wanted.target_opset)
    merged = _Joiner(first, second, links, wanted, notes).join()
    return replace(merged, converted=bool(notes))


# ---------------------------------------------------------------- connections


class _Side:
    """A model with what is asked of its boundary."""

    def __init__(self, letter: str, model: Model) -> None:
        self.letter = letter
        self.model = model
        self.index = GraphIndex(model.proto)
        main = self.index.main
        self.inputs = list(dict.fromkeys(main.inputs))
        self.required = main.true_inputs()
        self.outputs = list(dict.fromkeys(main.outputs))
        self._finder = TypeFinder(model, self.index)

    def types(self, names: Sequence[str]) -> dict[str, TypeProto]:
        """Returns the types of tensors, those that the operators contradict corrected."""
        self._finder.verify(names)
        return self._finder.find(self.index.main, names)


def _links(
    a: _Side, b: _Side, connections: Sequence[str] | Mapping[str, str], *, cast: bool
) -> tuple[Link, ...]:  # fmt: skip
    if isinstance(connections, Mapping):
        pairs = [(_known(a, output), _known(b, name)) for name, output in connections.items()]
    elif connections:
        pairs = [_pair(a, b, word) for word in connections]
    else:
        pairs = _obvious_pairs(a, b)
    pairs = list(dict.fromkeys(pairs))
    fed: dict[str, str] = {}
    for output, name in pairs:
        if name in fed:
            raise UsageError(f"input {name!r} of B is fed twice, by {fed[name]!r} and by {output!r}")
        fed[name] = output
    types_a = a.types([output for output, _ in pairs])
    types_b = b.types([name for _, name in pairs])
    links, wrong, only_elements = [], [], True
    for output, name in pairs:
        one, other = types_a.get(output), types_b.get(name)
        words = (format_type(one), format_type(other))
        needs_cast = cast and one is not None and other is not None and _differ_in_elements(one, other)
        complaint = "" if needs_cast else _misfit(one, other)
        if complaint:
            only_elements &= one is not None and other is not None and _differ_in_elements(one, other)
            wrong.append(f"{output!r} of A is {words[0]}, and {name!r} of B wants {words[1]}: {complaint}")
        links.append(Link(output, name, *words, cast=needs_cast))
    if wrong:
        raise RefusedResultError(
            f"{'a connection does' if len(wrong) == 1 else f'{len(wrong)} connections do'} not fit",
            details=wrong,
            hint="--cast puts a Cast between them." if only_elements and not cast else None,
        )
    return tuple(links)


def _known(side: _Side, name: str) -> str:
    if name in _ends(side):
        return name
    raise _unknown(side, name)


def _ends(side: _Side) -> list[str]:
    """Returns what can be connected: outputs and inputs of A, inputs of B."""
    return [*side.outputs, *side.inputs] if side.letter == "A" else side.inputs


def _unknown(side: _Side, name: str) -> NotFoundError:
    what = "output" if side.letter == "A" else "input"
    hint = did_you_mean(name, _ends(side))
    if hint is None and side.letter == "A" and side.index.main.defines(name):
        hint = "It lies inside A; 'onnxbench expose' makes it an output."
    return NotFoundError(
        f"model {side.letter} has no {what} {name!r}", details=[_listing(side)], hint=hint
    )  # fmt: skip


def _listing(side: _Side) -> str:
    names = side.outputs if side.letter == "A" else side.inputs
    types = side.types(names)
    said = ", ".join(f"{name!r} {format_type(types.get(name))}" for name in names[:12])
    more = f", and {len(names) - 12} more" if len(names) > 12 else ""
    return f"{'outputs of A' if side.letter == 'A' else 'inputs of B'}: {said or 'none'}{more}"


def _pair(a: _Side, b: _Side, word: str) -> tuple[str, str]:
    """Returns what a word connects: it is cut at every sign that may be the one, and real names decide.

    Raises:
        NotFoundError: No cut gives two real names.
        UsageError: More than one does.
    """
    ends_a, ends_b = set(_ends(a)), set(_ends(b))
    found: dict[tuple[str, str], None] = {}
    near: list[tuple[int, str, str]] = []
    for sign in ("->", "=", ":"):
        at = word.find(sign)
        while at >= 0:
            one, other = word[:at].strip(), word[at + len(sign) :].strip()
            left, right = _named(one, "a.", ends_a), _named(other, "b.", ends_b)
            if left is not None and right is not None:
                found[left, right] = None
            near.append(((left is not None) + (right is not None), one, other))
            at = word.find(sign, at + 1)
    if not near:
        raise UsageError(f"--map {word!r} connects nothing", hint="Write OUT=IN: an output of A and an input of B.")
    if not found:
        _, one, other = max(near, key=lambda entry: entry[0])
        left = _named(one, "a.", ends_a)
        raise _unknown(a, one.removeprefix("a.")) if left is None else _unknown(b, other.removeprefix("b."))
    if len(found) > 1:
        raise UsageError(
            f"--map {word!r} can be read in {len(found)} ways",
            details=[f"{left!r} to {right!r}" for left, right in found],
            hint='Quote the names: --map \'"out"="in"\'.',
        )
    return next(iter(found))


def _named(text: str, letter: str, known: Collection[str]) -> str | None:
    """Returns the real name that a text means: as it stands, without the model's letter, without quotes."""
    for said in (text, text.removeprefix(letter)):
        if said in known:
            return said
        if len(said) > 1 and said[0] == said[-1] and said[0] in "\"'" and said[1:-1] in known:
            return said[1:-1]
    return None


def _obvious_pairs(a: _Side, b: _Side) -> list[tuple[str, str]]:
    same = [(name, name) for name in a.outputs if name in set(b.required)]
    if same:
        return same
    if len(a.outputs) == 1 and len(b.required) == 1:
        return [(a.outputs[0], b.required[0])]
    raise UsageError(
        "no output of A is called like an input of B, so what is connected has to be said",
        details=[_listing(a), _listing(b)],
        hint="--map OUT=IN connects an output of A to an input of B.",
    )


def _misfit(one: TypeProto | None, other: TypeProto | None) -> str:
    """Returns why a value of the one type cannot be one of the other; nothing where it can, or where nobody knows."""
    while True:
        if one is None or other is None:
            return ""
        kind, wanted = one.WhichOneof("value"), other.WhichOneof("value")
        if kind is None or wanted is None:
            return ""
        if kind != wanted:
            return f"a {_kind_word(kind)} is no {_kind_word(wanted)}"
        if kind == "sequence_type":
            one, other = one.sequence_type.elem_type, other.sequence_type.elem_type
        elif kind == "optional_type":
            one, other = one.optional_type.elem_type, other.optional_type.elem_type
        elif kind == "map_type":
            if one.map_type.key_type != other.map_type.key_type:
                return "the keys have other types"
            one, other = one.map_type.value_type, other.map_type.value_type
        else:
            break
    if 0 not in (elem_type(one), elem_type(other)) and elem_type(one) != elem_type(other):
        return "the element types differ"
    have, want = tensor_shape(one), tensor_shape(other)
    if have is None or want is None:
        return ""
    if len(have) != len(want):
        return f"{len(have)} dimensions are not {len(want)}"
    for at, (size, needed) in enumerate(zip(have, want, strict=True)):
        if isinstance(size, int) and isinstance(needed, int) and size != needed:
            return f"dimension {at} is {size}, not {needed}"
    return ""


def _kind_word(kind: str) -> str:
    return kind.removesuffix("_type").replace("_", " ")


def _differ_in_elements(one: TypeProto, other: TypeProto) -> bool:
    """Tells whether two types differ in their elements alone, and a Cast mends that."""
    if {one.WhichOneof("value"), other.WhichOneof("value")} != {"tensor_type"}:
        return False
    have, want = elem_type(one), elem_type(other)
    if have == want or not have or not want or {have, want} & {8, 14, 15}:
        return False
    same = type(one)()
    same.CopyFrom(one)
    same.tensor_type.elem_type = want
    return not _misfit(same, other)


# ---------------------------------------------------------------- opsets


def _same_opsets(a: Model, b: Model, target: int | str | None) -> tuple[Model, Model, list[str]]:
    """Returns both models with one version of each domain, and what was done for that."""
    notes: list[str] = []
    models = {"A": a, "B": b}
    versions = {letter: standard_opset(model.proto) for letter, model in models.items()}
    known = [version for version in versions.values() if version is not None]
    goal = target if target is not None else max(known, default=None)
    for letter, version in versions.items():
        if goal is not None and (version is not None or target is not None) and version != goal:
            try:
                models[letter], said = convert_opset(models[letter], goal)
            except BenchError as error:
                error.message = f"model {letter} has opset {version}, and {error.message}"
                error.hint = error.hint or "Another version may do: --target-opset N."
                raise
            notes += [f"{letter}: {line}" for line in said]
    a, b = models["A"], models["B"]
    ours, theirs = _other_domains(a.proto), _other_domains(b.proto)
    for domain in ours.keys() & theirs.keys():
        if ours[domain] != theirs[domain]:
            low, high = sorted((ours[domain], theirs[domain]))
            letter = "A" if ours[domain] == low else "B"
            model = models[letter]
            changed = sorted(op for op in _used(model.proto, domain) if not same_operator(op, domain, low, high))
            if changed:
                raise UnsupportedError(
                    f"A uses version {ours[domain]} of the domain {domain!r} and B version {theirs[domain]}, and "
                    f"whether these are the same for the operators of {letter} cannot be told",
                    details=[f"{domain}::{op}" for op in changed[:12]],
                    hint="Export one of the models again with the other's version.",
                )
            proto = type(model.proto)()
            proto.CopyFrom(model.proto)
            for imports in (proto.opset_import, *(function.opset_import for function in proto.functions)):
                for opset in imports:
                    if opset.domain == domain:
                        opset.version = high
            models[letter] = model.derive(proto)
            notes.append(f"{letter}: version {low} of the domain {domain!r} is {high} now")
    return models["A"], models["B"], notes


def _other_domains(proto: ModelProto) -> dict[str, int]:
    return {opset.domain: opset.version for opset in proto.opset_import if _plain(opset.domain)}


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _used(proto: ModelProto, domain: str) -> set[str]:
    """Returns the operators of a domain that a model uses and does not define itself."""
    index = GraphIndex(proto)
    return {
        ref.node.op_type
        for ref in index.nodes()
        if _plain(ref.node.domain) == domain and index.function_of(ref.node) is None
    }


# ---------------------------------------------------------------- joining


@dataclass(slots=True)
class _Part:
    """One of the two models on its way into the result: a copy that may be changed."""

    letter: str
    model: Model
    index: GraphIndex
    tensors: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, str] = field(default_factory=dict)
    dims: dict[str, str] = field(default_factory=dict)
    functions: dict[FunctionKey, str] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)

    @property
    def proto(self) -> ModelProto:
        return self.model.proto

    @property
    def roots(self) -> list[Scope]:
        """The main graph and its bodies, without the functions, which have names of their own."""
        return [scope for scope in self.index.scopes if not _in_function(scope)]

    def tensor_names(self) -> dict[str, None]:
        return dict.fromkeys(
            name for scope in self.roots for name in (*scope.tensor_names(), *scope.outputs, *scope.captures)
        )

    def node_names(self) -> dict[str, None]:
        return dict.fromkeys(node.name for scope in self.roots for node in scope.nodes if node.name)


def _in_function(scope: Scope) -> bool:
    while scope.parent is not None:
        scope = scope.parent
    return scope.is_function


class _Joiner:
    """Makes one model of two; used once."""

    def __init__(self, a: Model, b: Model, links: Sequence[Link], options: MergeOptions, notes: Sequence[str]) -> None:
        self._options = options
        self._links = links
        self._a = _Part("a", *_anchored(a))
        self._b = _Part("b", *_anchored(b))
        self._sources = {**a.sources, **b.sources}
        for model in (a, b):
            if model.origin is not None:
                self._sources.setdefault(model.origin, _fingerprint(model.origin))
        self._folder = a.folder
        self._shared: dict[str, str] = {}
        self._shared_bytes = 0
        self._taken: set[str] = set()
        self._fresh: dict[str, str] = {}
        self._notes: list[str] = list(notes)

    def join(self) -> Merged:
        """Returns the result."""
        if self._options.share:
            self._share()
        self._name_all()
        fed = self._feed()
        a, b = self._a, self._b
        boundary_a = [*a.index.main.inputs, *a.index.main.outputs]
        boundary_b = [*b.index.main.inputs, *b.index.main.outputs]
        names_a = {name: a.tensors.get(name, name) for name in boundary_a}
        names_b = {name: b.tensors.get(name, name) for name in boundary_b}
        passed = self._passed_through()
        renames = self._renames()
        for part in (a, b):
            _rename(part, self._fresh if part is b else {})
        proto, origins = self._assemble(fed, passed, names_a, names_b)
        names_b.update(passed)
        model = Model(proto, self._folder, sources=self._sources)
        infos = {info.name: info for info in (*proto.graph.input, *proto.graph.output)}
        backed = {tensor.name for tensor in proto.graph.initializer}
        backed.update(sparse.values.name for sparse in proto.graph.sparse_initializer)

        def shown(names: Iterable[str]) -> tuple[Boundary, ...]:
            return tuple(Boundary(name, format_type(infos[name].type), origins[name]) for name in names)

        return Merged(
            model=model,
            links=tuple(self._links),
            inputs=shown(info.name for info in proto.graph.input if info.name not in backed),
            outputs=shown(info.name for info in proto.graph.output),
            renames=renames,
            shared_weights=len(self._shared),
            shared_bytes=self._shared_bytes,
            notes=tuple(self._notes),
            names_a=names_a,
            names_b=names_b,
        )

    # ---- what is the same in both

    def _share(self) -> None:
        """Finds weights and constants of B that A has too; a weight of at most 1 KiB only if it is called the same."""
        a, b = self._a, self._b
        linked = {link.input for link in self._links}
        fixed_a = set(a.index.main.inputs)
        fixed_b = {*b.index.main.inputs, *b.index.main.outputs, *linked}
        ours = [tensor for tensor in a.proto.graph.initializer if tensor.name not in fixed_a]
        theirs = [tensor for tensor in b.proto.graph.initializer if tensor.name not in fixed_b]
        self._shared = _equal_weights(a.model, ours, b.model, theirs)
        sizes = {tensor.name: weights.tensor_bytes(tensor) for tensor in theirs}
        self._shared_bytes = sum(sizes[name] for name in self._shared)
        sparse = {tensor.values.name: tensor for tensor in a.proto.graph.sparse_initializer}
        for other in b.proto.graph.sparse_initializer:
            one = sparse.get(other.values.name)
            if (
                one is not None
                and other.values.name not in fixed_b
                and _same_messages(a.model, [one], b.model, [other])
            ):
                self._shared[other.values.name] = other.values.name
        made = {
            node.output[0]: node for node in a.proto.graph.node if node.op_type == "Constant" and len(node.output) == 1
        }
        outputs = {*a.index.main.outputs, *fixed_b}
        for node in b.proto.graph.node:
            if node.op_type != "Constant" or len(node.output) != 1 or node.output[0] in outputs:
                continue
            twin = made.get(node.output[0])
            if twin is not None and _same_messages(a.model, [twin], b.model, [node]):
                self._shared[node.output[0]] = node.output[0]

    # ---- names

    def _name_all(self) -> None:
        """Decides what everything is called; nothing is changed yet."""
        a, b, options = self._a, self._b, self._options
        for part, prefix in ((a, options.prefix_a), (b, options.prefix_b)):
            if prefix:
                part.tensors.update((name, prefix + name) for name in part.tensor_names())
                part.nodes.update((name, prefix + name) for name in part.node_names())
        linked = {link.input for link in self._links}
        ours = {a.tensors.get(name, name) for name in a.tensor_names()}
        theirs = {name: b.tensors.get(name, name) for name in b.tensor_names() if name not in linked}
        self._taken = ours | set(theirs.values())
        for name, new in theirs.items():
            if name in self._shared:
                b.tensors[name] = a.tensors.get(self._shared[name], self._shared[name])
            elif new in ours:
                b.tensors[name] = self._distinct(new)
        node_names = {a.nodes.get(name, name) for name in a.node_names()}
        taken = {*node_names, *(b.nodes.get(name, name) for name in b.node_names())}
        for name in b.node_names():
            new = b.nodes.get(name, name)
            if new in node_names:
                b.nodes[name] = _distinct(new, taken)
        self._name_functions()
        self._name_dims()
        self._name_devices()

    def _distinct(self, name: str) -> str:
        return _distinct(name, self._taken)

    def _name_functions(self) -> None:
        """Tells functions of one identity apart: they are one if their bodies are the same, down to what they call."""
        a, b = self._a, self._b
        ours = {_function_key(function): function for function in a.proto.functions}
        theirs = {_function_key(function): function for function in b.proto.functions}
        other = {
            key for key in theirs if key in ours and not _same_messages(a.model, [ours[key]], b.model, [theirs[key]])
        }
        other |= {key for key in theirs if key not in ours and key in _calls(a.index.nodes(), ours)}
        callers: dict[FunctionKey, set[FunctionKey]] = defaultdict(set)
        for key, function in theirs.items():
            for called in b.index.function_closure(function.node):
                callers[called].add(key)
        for key in list(other):  # the closure is transitive, so one round is enough
            other |= {caller for caller in callers[key] if caller in ours}
        taken = {(domain, name) for domain, name, _ in (*ours, *theirs)}
        taken |= {(domain, name) for part in (a, b) for domain, name, _ in _calls(part.index.nodes(), ())}

        def distinct(key: FunctionKey) -> str:
            names = {name for domain, name in taken if domain == key[0]}
            new = _distinct(key[1], names)
            taken.add((key[0], new))
            return new

        for key in theirs:
            if key in other:
                b.functions[key] = distinct(key)
        foreign = _calls(b.index.nodes(), theirs)
        for key in ours:
            if key not in theirs and key in foreign:
                a.functions[key] = distinct(key)
                self._notes.append(
                    f"A defines a function {key[0]}::{key[1]}, and B uses an operator of that name, which it is not"
                )

    def _name_dims(self) -> None:
        """Gives B's symbols the names of A's that connections make them equal to; others of A's names get new ones."""
        a, b = self._a, self._b
        ours, theirs = _symbols(a.proto), _symbols(b.proto)
        main_a = _declared(a.proto.graph)
        main_b = _declared(b.proto.graph)
        meets: dict[str, set[Any]] = defaultdict(set)
        for link in self._links:
            one, other = main_a.get(link.output), main_b.get(link.input)
            have = tensor_shape(one) if one is not None else None
            want = tensor_shape(other) if other is not None else None
            if have is None or want is None or len(have) != len(want):
                continue
            for size, needed in zip(have, want, strict=True):
                if isinstance(needed, str) and size is not None:
                    meets[needed].add(size)
        taken = {*ours, *theirs}
        for symbol in theirs:
            found = meets.get(symbol, set())
            only = next(iter(found)) if len(found) == 1 else None
            if isinstance(only, str):
                b.dims[symbol] = only
            elif symbol in ours:
                b.dims[symbol] = _distinct(symbol, taken)

    def _name_devices(self) -> None:
        ours = {one.name: one for one in getattr(self._a.proto, "configuration", ())}
        theirs = list(getattr(self._b.proto, "configuration", ()))
        taken = {*ours, *(one.name for one in theirs)}
        for one in theirs:
            if one.name in ours and ours[one.name] != one:
                self._b.devices[one.name] = _distinct(one.name, taken)

    def _renames(self) -> tuple[Rename, ...]:
        found = []
        linked = {link.input for link in self._links}
        for part in (self._a, self._b):
            for kind, names in (
                ("tensor", {n: new for n, new in part.tensors.items() if not (part is self._b and n in linked)}),
                ("node", part.nodes),
                ("function", {f"{k[0]}::{k[1]}": f"{k[0]}::{new}" for k, new in part.functions.items()}),
                ("dimension", part.dims),
                ("device configuration", part.devices),
            ):
                found += [Rename(part.letter, kind, old, new) for old, new in names.items() if old != new]
        return tuple(found)

    # ---- connections

    def _feed(self) -> dict[str, NodeProto]:
        """Points B's connected inputs to what feeds them; returns the Casts that this takes, by input."""
        from onnx import NodeProto

        a, b = self._a, self._b
        casts: dict[str, NodeProto] = {}
        wanted = _declared(b.proto.graph)
        for link in self._links:
            source = a.tensors.get(link.output, link.output)
            if link.cast:
                made = self._distinct(f"{source}_cast")
                node = NodeProto(op_type="Cast", name=made)
                node.input.append(source)
                node.output.append(made)
                node.attribute.add(name="to", type=2, i=elem_type(wanted[link.input]))
                casts[link.input] = node
                source = made
            b.tensors[link.input] = source
        inner = {name for scope in b.roots if scope.parent is not None for name in (*scope.producers, *scope.inputs)}
        linked = {link.input for link in self._links}
        self._fresh = {name: self._distinct(name) for name in sorted(linked & inner)}
        return casts

    def _passed_through(self) -> dict[str, str]:
        """Returns new names for outputs of B that are its connected inputs, where they need a name of their own."""
        b = self._b
        linked = {link.input: link for link in self._links}
        kept = self._kept_outputs()
        passed: dict[str, str] = {}
        for name in b.index.main.outputs:
            if name in linked and (b.tensors[name] != name or linked[name].output in kept):
                new = self._options.prefix_b + name
                passed[name] = new if new not in self._taken else self._distinct(new)
                self._taken.add(passed[name])
        return passed

    def _kept_outputs(self) -> set[str]:
        """Returns the outputs of A that are outputs of the result."""
        keep = self._options.keep_outputs
        names = self._a.index.main.outputs
        if not isinstance(keep, bool):
            for name in keep:
                if name not in names:
                    hint = did_you_mean(name, names) or f"Outputs: {', '.join(map(repr, names[:12]))}."
                    raise NotFoundError(f"model A has no output {name!r} to keep", hint=hint)
        linked = {link.output for link in self._links}
        return {name for name in names if name not in linked or keep is True or (keep and name in keep)}

    # ---- the result

    def _assemble(
        self,
        casts: Mapping[str, NodeProto],
        passed: Mapping[str, str],
        names_a: Mapping[str, str],
        names_b: Mapping[str, str],
    ) -> tuple[ModelProto, dict[str, str]]:
        from onnx import NodeProto

        proto, other = self._a.proto, self._b.proto
        graph, theirs = proto.graph, other.graph
        kept = {names_a[name] for name in self._kept_outputs()}
        origins = {names_a.get(name, name): "a" for name in (*self._a.index.main.inputs, *self._a.index.main.outputs)}
        gone = [info for info in graph.output if info.name not in kept]
        staying = [info for info in graph.output if info.name in kept]
        known = {info.name for info in (*graph.value_info, *graph.input)}
        known.update(tensor.name for tensor in graph.initializer)
        known.update(names_b[name] for name in self._b.index.main.outputs if name not in passed)
        linked_infos = {
            names_b[link.input]: info
            for link in self._links
            if not link.cast
            for info in theirs.input
            if info.name == names_b[link.input]
        }
        for info in {one.name: one for one in gone}.values():
            if info.name not in known:
                graph.value_info.append(_completed(info, linked_infos.get(info.name)))
        outputs = [_copy(info) for info in staying]
        del graph.output[:]
        graph.output.extend({info.name: info for info in outputs}.values())
        for node in casts.values():
            graph.node.append(node)
        fed = {names_b[link.input] for link in self._links}
        for name, new in passed.items():
            node = NodeProto(op_type="Identity", name=new)
            node.input.append(names_b[name])
            node.output.append(new)
            graph.node.append(node)
        self._strip(theirs, fed, passed, names_b)
        here = {info.name for info in graph.output}
        for info in theirs.output:
            origins.setdefault(info.name, "b")
        for at in reversed(range(len(theirs.output))):
            if theirs.output[at].name in here:
                del theirs.output[at]
        origins.update((info.name, "b") for info in theirs.input)
        self._merge_words(proto, other)
        if "" not in {_plain(one.domain) for one in proto.opset_import} and (casts or passed):
            standard = standard_opset(other)
            proto.opset_import.add(domain="", version=standard or _OPSET_FOR_IDENTITY)
        graph.MergeFrom(theirs)
        self._merge_rest(proto, other)
        return proto, origins

    def _strip(self, theirs: GraphProto, fed: set[str], passed: Mapping[str, str], names_b: Mapping[str, str]) -> None:
        """Takes out of B's graph what is A's in the result: connected inputs, shared weights and constants."""
        a, b = self._a, self._b
        shared = {b.tensors[name] for name in self._shared}
        theirs_only = fed | shared
        for name, new in passed.items():
            for info in theirs.output:
                if info.name == names_b[name]:
                    info.name = new
        for held in (theirs.input, theirs.initializer, theirs.value_info):
            for at in reversed(range(len(held))):
                if held[at].name in theirs_only:
                    del held[at]
        for at in reversed(range(len(theirs.sparse_initializer))):
            if theirs.sparse_initializer[at].values.name in theirs_only:
                del theirs.sparse_initializer[at]
        constants = {name for name in shared if a.index.main.producers.get(self._first_name(name)) is not None}
        if constants:
            kept = [node for node in theirs.node if not (node.op_type == "Constant" and node.output[0] in constants)]
            if len(kept) < len(theirs.node):
                copies = [_copy(node) for node in kept]
                del theirs.node[:]
                theirs.node.extend(copies)
        annotated = {one.tensor_name for one in a.proto.graph.quantization_annotation}
        for at in reversed(range(len(theirs.quantization_annotation))):
            one = theirs.quantization_annotation[at]
            if one.tensor_name in theirs_only and one.tensor_name in annotated:
                del theirs.quantization_annotation[at]

    def _first_name(self, name: str) -> str:
        prefix = self._options.prefix_a
        return name.removeprefix(prefix) if prefix else name

    def _merge_words(self, proto: ModelProto, other: ModelProto) -> None:
        """Joins names, doc strings and metadata: A's stay, and what B says otherwise is kept under ``b.`` keys."""
        said: list[tuple[str, str]] = []
        for key, one, two in (
            ("producer_name", proto, other), ("producer_version", proto, other), ("domain", proto, other),
            ("doc_string", proto, other), ("graph_name", proto.graph, other.graph),
            ("graph_doc_string", proto.graph, other.graph),
        ):  # fmt: skip
            name = key.removeprefix("graph_")
            ours, theirs = _text(one, name), _text(two, name)
            if theirs and not ours and name != "name":
                setattr(one, name, theirs)
            elif theirs and theirs != ours:
                said.append((f"b.{key}", theirs))
            two.ClearField(name)
        if other.model_version and other.model_version != proto.model_version:
            said.append(("b.model_version", str(other.model_version)))
        _merge_metadata(proto.metadata_props, [*((e.key, e.value) for e in other.metadata_props), *said])
        _merge_metadata(proto.graph.metadata_props, [(e.key, e.value) for e in other.graph.metadata_props])
        other.graph.ClearField("metadata_props")
        if proto.training_info or other.training_info:
            self._notes.append("training info was left out: it belongs to one of the models, not to both")
            proto.ClearField("training_info")
            other.ClearField("training_info")

    def _merge_rest(self, proto: ModelProto, other: ModelProto) -> None:
        """Joins what stands beside the graphs: functions, opset imports, device configurations, unknown fields."""
        ours = {_function_key(function) for function in proto.functions}
        proto.functions.extend(function for function in other.functions if _function_key(function) not in ours)
        domains = {_plain(opset.domain) for opset in proto.opset_import}
        proto.opset_import.extend(opset for opset in other.opset_import if _plain(opset.domain) not in domains)
        proto.ir_version = max(proto.ir_version, other.ir_version)
        if hasattr(proto, "configuration"):
            names = {one.name for one in proto.configuration}
            proto.configuration.extend(one for one in other.configuration if one.name not in names)
        for descriptor, _ in other.ListFields():
            other.ClearField(descriptor.name)
        proto.MergeFrom(other)  # what is left are fields that this version of onnx does not know


_OPSET_FOR_IDENTITY = 13


def _anchored(model: Model) -> tuple[Model, GraphIndex]:
    """Returns a copy of a model whose weights outside the structure are named by file, wherever that is, and its index.

    Raises:
        ExternalDataError: They cannot be had.
    """
    proto = type(model.proto)()
    proto.CopyFrom(model.proto)
    if model.has_outside:
        for tensor in weights.tensors(proto):
            where = model.byte_range(tensor)
            if where is not None and weights.location(tensor) is not None:
                place = wire.STUB_PREFIX + weights.stub_location(Path(os.path.abspath(where.file)))
                said = {"location": place, "offset": str(where.offset), "length": str(where.length)}
                said = {**weights.entries(tensor), **said}
                del tensor.external_data[:]
                for key, value in said.items():
                    tensor.external_data.add(key=key, value=value)
    return model.derive(proto), GraphIndex(proto)


def _fingerprint(file: Path) -> tuple[int, int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _distinct(name: str, taken: set[str]) -> str:
    new, count = f"{name}_b", 1
    while new in taken:
        count += 1
        new = f"{name}_b{count}"
    taken.add(new)
    return new


def _function_key(function: FunctionProto) -> FunctionKey:
    return function.domain, function.name, function.overload


def _calls(refs: Iterable[Any], defined: Collection[FunctionKey]) -> set[FunctionKey]:
    """Returns the operators that nodes use, but for those that are defined."""
    found = {(ref.node.domain, ref.node.op_type, ref.node.overload) for ref in refs}
    return found.difference(defined)


def _copy(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _completed(info: ValueInfoProto, other: ValueInfoProto | None) -> ValueInfoProto:
    """Returns what A says of a tensor, completed by what B says of the input that it feeds."""
    copy: ValueInfoProto = _copy(info)
    if other is None:
        return copy
    ours, theirs = tensor_shape(copy.type), tensor_shape(other.type)
    if ours is None and theirs is not None and not _misfit(copy.type, other.type):
        symbols = type(copy.type)()
        symbols.CopyFrom(other.type)
        for dim in symbols.tensor_type.shape.dim:
            if dim.HasField("dim_value"):
                dim.ClearField("value")  # what B wants is not what A promises
        copy.type.CopyFrom(symbols)
    if not copy.doc_string and other.doc_string:
        copy.doc_string = other.doc_string
    _merge_metadata(copy.metadata_props, [(e.key, e.value) for e in other.metadata_props])
    return copy


def _declared(graph: GraphProto) -> dict[str, TypeProto]:
    return {info.name: info.type for info in (*graph.value_info, *graph.output, *graph.input)}


def _text(message: Any, name: str) -> str:
    try:
        return str(getattr(message, name))
    except UnicodeDecodeError:  # protobuf hands such a text out to nobody
        return ""


def _merge_metadata(held: Any, entries: Iterable[tuple[str, str]]) -> None:
    """Adds entries to metadata; one whose key has another value goes under ``b.KEY``."""
    known = {entry.key: entry.value for entry in held}
    for key, value in entries:
        if known.get(key) == value:
            continue
        new = key
        while new in known:
            new = f"b.{new}"
        known[new] = value
        held.add(key=new, value=value)


# ---------------------------------------------------------------- renaming


def _rename(part: _Part, fresh: Mapping[str, str]) -> None:
    """Gives everything in a model its new name, in place.

    Args:
        part: The model and its new names.
        fresh: New names for tensors of bodies that have the name of a connected input and hide it there.
    """
    proto = part.proto
    if part.tensors or part.nodes:
        maps: dict[Scope, Mapping[str, str]] = {}
        for scope in part.roots:
            names = maps[scope.parent] if scope.parent is not None else part.tensors
            if fresh and scope.parent is not None:
                hidden = {name: new for name, new in fresh.items() if scope.defines(name)}
                names = {**names, **hidden} if hidden else names
            maps[scope] = names
            _rename_graph(scope.graph, scope.nodes, names, part.nodes)
    if part.functions:
        _rename_calls(part)
    if part.dims:
        for value in _types(proto):
            for dim in _dims(value):
                if dim.dim_param:
                    dim.dim_param = _renamed_dim(dim.dim_param, part.dims)
    if part.devices:
        for one in proto.configuration:
            one.name = part.devices.get(one.name, one.name)
        for ref in part.index.nodes():
            for configured in ref.node.device_configurations:
                configured.configuration_id = part.devices.get(configured.configuration_id, configured.configuration_id)


def _rename_graph(
    graph: Any, nodes: Iterable[NodeProto], tensors: Mapping[str, str], node_names: Mapping[str, str]
) -> None:
    get = tensors.get
    for node in nodes:
        if node.name in node_names:
            node.name = node_names[node.name]
        for names in (node.input, node.output):
            for at, name in enumerate(names):
                new = get(name)
                if new is not None:
                    names[at] = new
        for configured in getattr(node, "device_configurations", ()):
            for spec in configured.sharding_spec:
                spec.tensor_name = tensors.get(spec.tensor_name, spec.tensor_name)
    for held in (graph.input, graph.output, graph.value_info, graph.initializer):
        for one in held:
            new = get(one.name)
            if new is not None:
                one.name = new
    for sparse in graph.sparse_initializer:
        new = get(sparse.values.name)
        if new is not None:
            sparse.values.name = new
    for annotation in graph.quantization_annotation:
        annotation.tensor_name = tensors.get(annotation.tensor_name, annotation.tensor_name)
        for entry in annotation.quant_parameter_tensor_names:
            entry.value = tensors.get(entry.value, entry.value)


def _rename_calls(part: _Part) -> None:
    for function in part.proto.functions:
        new = part.functions.get(_function_key(function))
        if new is not None:
            function.name = new
    for ref in part.index.nodes():
        new = part.functions.get((ref.node.domain, ref.node.op_type, ref.node.overload))
        if new is not None:
            ref.node.op_type = new


def _types(proto: ModelProto) -> Iterator[TypeProto]:
    """Yields every type that a model states, those in bodies, functions and attributes included."""
    pending: list[Any] = [proto.graph, *proto.functions]
    while pending:
        graph = pending.pop()
        infos = [*graph.value_info]
        if hasattr(graph, "initializer"):
            infos += [*graph.input, *graph.output]
        for info in infos:
            yield info.type
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type in (13, 14):
                    yield from (attribute.tp,) if attribute.type == 13 else attribute.type_protos
                elif attribute.type in (5, 10):
                    pending += [body for _, body in node_bodies(node)]
                    break


def _dims(value: TypeProto) -> Iterator[Any]:
    while True:
        kind = value.WhichOneof("value")
        if kind == "sequence_type":
            value = value.sequence_type.elem_type
        elif kind == "optional_type":
            value = value.optional_type.elem_type
        elif kind == "map_type":
            value = value.map_type.value_type
        else:
            break
    if kind == "tensor_type":
        yield from value.tensor_type.shape.dim
    elif kind == "sparse_tensor_type":
        yield from value.sparse_tensor_type.shape.dim


def _symbols(proto: ModelProto) -> dict[str, None]:
    """Returns the symbols in the dimensions of a model: names, and the names within expressions like ``2*n + 1``."""
    found: dict[str, None] = {}
    for value in _types(proto):
        for dim in _dims(value):
            text = dim.dim_param
            if text and text != "?":
                found.update(dict.fromkeys(_WORD.findall(text) if _EXPRESSION.fullmatch(text) else [text]))
    return found


def _renamed_dim(text: str, names: Mapping[str, str]) -> str:
    if text in names:
        return names[text]
    if not _EXPRESSION.fullmatch(text):
        return text
    return _WORD.sub(lambda word: names.get(word[0], word[0]), text)


# ---------------------------------------------------------------- equal weights


def _equal_weights(a: Model, ours: Sequence[TensorProto], b: Model, theirs: Sequence[TensorProto]) -> dict[str, str]:
    """Returns, by name, which weight of A each weight of B is equal to, if any.

    Compared are element type and shape, then the first block, and only what agrees in both is read whole, once. A
    weight that may be a shape or axes is shared only under its own name, since two of them being equal means nothing.
    """
    by_kind: dict[tuple[Any, ...], list[TensorProto]] = defaultdict(list)
    for tensor in ours:
        by_kind[tensor.data_type, tuple(tensor.dims)].append(tensor)
    candidates: list[tuple[TensorProto, list[TensorProto]]] = []
    for tensor in theirs:
        twins = by_kind.get((tensor.data_type, tuple(tensor.dims)), [])
        if weights.tensor_bytes(tensor) <= SMALL_WEIGHT:
            twins = [twin for twin in twins if twin.name == tensor.name]
        if twins:
            candidates.append((tensor, twins))
    heads: dict[tuple[int, str], bytes] = {}
    wholes: dict[tuple[int, str], bytes] = {}

    def head(model: Model, number: int, tensor: TensorProto) -> bytes:
        key = number, tensor.name
        if key not in heads:
            heads[key] = _head(model, tensor)
        return heads[key]

    likely: list[tuple[TensorProto, list[TensorProto]]] = []
    for tensor, twins in candidates:
        place = b.byte_range(tensor)
        same_place = [twin for twin in twins if place is not None and a.byte_range(twin) == place]
        found = same_place[:1] or [twin for twin in twins if head(a, 0, twin) == head(b, 1, tensor)]
        if found:
            likely.append((tensor, found))
    equal: dict[str, str] = {}
    to_read = {
        (number, one.name): (model, one)
        for tensor, twins in likely
        if b.byte_range(tensor) is None or a.byte_range(twins[0]) != b.byte_range(tensor)
        for number, model, one in ((1, b, tensor), *((0, a, twin) for twin in twins))
    }
    total = sum(weights.tensor_bytes(tensor) for _, tensor in to_read.values())
    with track("comparing weights", total, "bytes") as advance:
        for key, (model, tensor) in to_read.items():
            wholes[key] = _digest(model, tensor, advance)
    for tensor, twins in likely:
        place = b.byte_range(tensor)
        for twin in twins:
            same = (place is not None and a.byte_range(twin) == place) or (
                wholes[1, tensor.name] == wholes[0, twin.name]
            )
            if same and (twin.name == tensor.name or tensor.name not in equal):
                equal[tensor.name] = twin.name
    return equal


def _head(model: Model, tensor: TensorProto) -> bytes:
    where = model.byte_range(tensor)
    if where is None:
        return _plain_bytes(tensor)[:_HEAD]
    return weights.read_bytes(replace(where, length=min(_HEAD, where.length)))


def _digest(model: Model, tensor: TensorProto, advance: Callable[[int], None] = lambda amount: None) -> bytes:
    """Returns a hash of a tensor's bytes; what lies outside is read in blocks."""
    made = hashlib.blake2b(digest_size=32)
    where = model.byte_range(tensor)
    if where is None:
        data = _plain_bytes(tensor)
        made.update(data)
        advance(len(data))
        return made.digest()
    done = 0
    while done < where.length:
        block = replace(where, offset=where.offset + done, length=min(_BLOCK, where.length - done))
        made.update(weights.read_bytes(block))
        done += block.length
        advance(block.length)
    return made.digest()


def _plain_bytes(tensor: TensorProto) -> bytes:
    """Returns the data of a tensor in the structure as raw bytes, however it is stored; texts with their lengths."""
    if tensor.data_type == 8:
        return b"".join(b"%d:%s" % (len(text), text) for text in tensor.string_data)
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    from onnx import numpy_helper

    return bytes(numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data)


def _same_messages(a: Model, ours: Sequence[Any], b: Model, theirs: Sequence[Any]) -> bool:
    """Tells whether messages say the same, weights by their values and not by where they lie."""
    return [_settled(a, one) for one in ours] == [_settled(b, one) for one in theirs]


def _settled(model: Model, message: Any) -> bytes:
    """Returns a message as bytes in which the data of every tensor is its hash."""
    copy = _copy(message)
    kind = copy.DESCRIPTOR.name
    if kind == "SparseTensorProto":
        held: Iterable[TensorProto] = (copy.values, copy.indices)
    else:
        held = weights.node_tensors(copy) if kind == "NodeProto" else weights.graph_tensors(copy)
    for tensor in list(held):
        digest = _digest(model, tensor)
        for name in (
            "external_data", "data_location", "float_data", "int32_data", "int64_data", "double_data", "uint64_data",
            "string_data",
        ):  # fmt: skip
            tensor.ClearField(name)
        tensor.raw_data = digest
    data: bytes = copy.SerializeToString(deterministic=True)
    return data


# ---------------------------------------------------------------- proof


def prove(merged: Merged, a: Model, b: Model, feeds: Mapping[str, captures.Value], *, threads: int = 0) -> Proof:
    """Returns what running A and then B shows against running the merged model.

    Args:
        merged: What ``merge`` made of them.
        a: The first model, as it was given.
        b: The second.
        feeds: Values for the merged model's inputs.
        threads: Threads within an operator; 0 for ONNX Runtime's default.

    Raises:
        ExecutionError: A or B failed to run.
        RefusedResultError: They run, and the merged model does not.
    """
    rounds = computes_in_fp16(a) or computes_in_fp16(b)
    tolerance = Tolerance.for_rounding() if rounds else None
    tensors: list[ProvenTensor] = []
    with track("proving", 2, "runs") as advance:
        runs = []
        for level in ("none", "all"):
            runs.append(_compared(merged, a, b, feeds, backends.Options(level, threads=threads), tolerance))
            advance(1)
    exact, optimized = runs
    for name, (piece, drift) in exact.items():
        tensors.append(ProvenTensor(name, piece, drift.bitwise_equal, drift, optimized.get(name, (piece, drift))[1]))
    lenient = rounds or merged.converted
    holds = all(tensor.exact or (lenient and tensor.drift.passed) for tensor in tensors)
    return Proof(tuple(tensors), holds, rounds)


def _compared(
    merged: Merged,
    a: Model,
    b: Model,
    feeds: Mapping[str, captures.Value],
    options: backends.Options,
    tolerance: Tolerance | None,
) -> dict[str, tuple[str, Any]]:
    """Returns, by tensor, which model makes it and how the merged model's value differs, at one optimization level."""
    names_a, names_b = merged.names_a, merged.names_b
    inputs_a = list(dict.fromkeys(info.name for info in a.proto.graph.input))
    fed = {name: feeds[names_a[name]] for name in inputs_a if names_a[name] in feeds}
    made = _run(a, fed, options)
    linked = {link.input: link for link in merged.links}
    fed_b: dict[str, captures.Value] = {}
    for name in dict.fromkeys(info.name for info in b.proto.graph.input):
        link = linked.get(name)
        if link is None:
            if names_b[name] in feeds:
                fed_b[name] = feeds[names_b[name]]
        else:
            value = made[link.output] if link.output in made else fed[link.output]
            fed_b[name] = _cast(value, b, name, options) if link.cast else value
    made_b = _run(b, fed_b, options)
    expected = [("A", names_a[name], value) for name, value in made.items()]
    expected += [("B", names_b[name], value) for name, value in made_b.items()]
    wanted = list(dict.fromkeys(name for _, name, _ in expected))
    try:
        got = backends.run_with_outputs(merged.model, feeds, wanted, options=options)
    except ExecutionError as error:
        raise RefusedResultError(
            f"A runs, and B on what A gives, but the merged model does not, so it was not written: {error.message}",
            details=error.details,
        ) from None
    return {
        drift.name: (piece, drift)
        for piece, name, value in expected
        for drift in compare_values(name, value, got[name], tolerance=tolerance)
    }


def _run(model: Model, feeds: Mapping[str, captures.Value], options: backends.Options) -> dict[str, captures.Value]:
    session = backends.open_session(model, options=options)
    try:
        return session.run(feeds)
    finally:
        session.close()


def _cast(value: captures.Value, b: Model, name: str, options: backends.Options) -> captures.Value:
    """Returns a value with the element type that an input of B wants, as ONNX Runtime casts it."""
    from onnx import ModelProto

    from onnxbench.model import from_proto

    (info,) = [one for one in b.proto.graph.input if one.name == name]
    proto = ModelProto(ir_version=8)
    proto.opset_import.add(domain="", version=max(13, standard_opset(b.proto) or 13))
    proto.graph.name = "cast"
    given = proto.graph.input.add(name="value")
    given.type.tensor_type.elem_type = backends.dtype_of(value)
    node = proto.graph.node.add(op_type="Cast", input=["value"], output=["made"])
    node.attribute.add(name="to", type=2, i=elem_type(info.type))
    proto.graph.output.add(name="made").type.tensor_type.elem_type = elem_type(info.type)
    return _run(from_proto(proto), {"value": value}, options)["made"]


# ---------------------------------------------------------------- the command


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What ``merge_file`` did.

    Attributes:
        merged: The result and how it came about.
        saved: The written files; None for a dry run, and where the proof failed.
        proof: The proof, or None if there is none.
        unproven: Why there is none; empty where it was not wanted.
    """

    merged: Merged
    saved: Saved | None
    proof: Proof | None
    unproven: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know: of the merge, and of what had to be mended."""
        return (*self.merged.notes, *(self.saved.repairs if self.saved else ()))


def merge_file(
    a: Model | str | os.PathLike[str],
    b: Model | str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    connections: Sequence[str] | Mapping[str, str] = (),
    *,
    options: MergeOptions | None = None,
    proven: bool | None = None,
    feeds: FeedOptions | None = None,
    save_options: SaveOptions | None = None,
    allow_outside: bool = False,
) -> MergeResult:
    """Writes two models as one, proven first (see ``merge``, ``prove``); where the proof fails, nothing is written.

    Args:
        a: As for ``merge``.
        b: As for ``merge``.
        out: The file to write, or None to write nothing.
        connections: As for ``merge``.
        options: As for ``merge``.
        proven: Whether the proof is wanted. None: where it is cheap, which is up to ``PROVEN_WEIGHTS`` and
            ``PROVEN_NODES``, and if A and B run on these inputs.
        feeds: What is said of the inputs of the merged model.
        save_options: How weights are stored.
        allow_outside: As for ``merge``.

    Raises:
        BenchError: As for ``merge``, ``prove`` and ``onnxbench.writer.save``.
    """
    first = a if isinstance(a, Model) else load(a, allow_outside=allow_outside)
    second = b if isinstance(b, Model) else load(b, allow_outside=allow_outside)
    merged = merge(first, second, connections, options=options)
    proof, unproven = None, ""
    if proven is None and out is not None:
        unproven = _why_dear(merged.model)
        if not unproven:
            try:
                proof = prove(merged, first, second, first_feeds(merged.model, feeds))
            except (ExecutionError, FeedsError, UnsupportedError) as error:
                unproven = error.message
    elif proven:
        proof = prove(merged, first, second, first_feeds(merged.model, feeds))
    saved = None
    if out is not None and (proof is None or proof.holds):
        saved = save(merged.model, out, options=save_options)
    return MergeResult(merged, saved, proof, unproven)


def _why_dear(model: Model) -> str:
    size = sum(map(weights.tensor_bytes, weights.tensors(model.proto)))
    if size > PROVEN_WEIGHTS:
        return f"the weights have {size:,} bytes, and a proof loads them several times (--prove asks for it)"
    nodes = len(model.proto.graph.node)
    return (
        f"the model has {nodes:,} nodes, which takes a while to run (--prove asks for it)"
        if nodes > PROVEN_NODES
        else ""
    )
