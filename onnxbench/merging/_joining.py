"""The joining of two structures."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench import weights, wire
from onnxbench.cut import Boundary
from onnxbench.errors import (
    NotFoundError,
    did_you_mean,
)
from onnxbench.graph import GraphIndex, topological_order
from onnxbench.merging._equal import equal_weights, same_messages
from onnxbench.merging._links import Link, misfit
from onnxbench.merging._naming import FunctionKey, Part, function_key, rename, symbols_of
from onnxbench.messages import carry_field, copy_of, delete_named
from onnxbench.model import Model
from onnxbench.opsets import standard_opset
from onnxbench.schemas import plain_domain
from onnxbench.tensortype import elem_type, format_type, tensor_shape

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TypeProto, ValueInfoProto


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


class Joiner:
    """Makes one model of two; used once."""

    def __init__(self, a: Model, b: Model, links: Sequence[Link], options: MergeOptions, notes: Sequence[str]) -> None:
        self._options = options
        self._links = links
        self._a = Part("a", *_anchored(a))
        self._b = Part("b", *_anchored(b))
        self._sources = {**a.sources, **b.sources}
        for model in (a, b):
            if model.origin is not None:
                self._sources.setdefault(model.origin, _fingerprint(model.origin))
        self._folder = a.folder
        self._shared: dict[str, str] = {}
        self._shared_bytes = 0
        self._shared_weights = 0
        self._shared_nodes: set[int] = set()
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
            rename(part, self._fresh if part is b else {})
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
            shared_weights=self._shared_weights,
            shared_bytes=self._shared_bytes,
            notes=tuple(self._notes),
            names_a=names_a,
            names_b=names_b,
        )

    # ---- what is the same in both

    def _share(self) -> None:
        """Finds weights and constants of B that A has too; a weight of at most 1 KiB only if it is called the same."""
        a, b = self._a, self._b
        fixed_a = set(a.index.main.inputs)
        fixed_b = {*b.index.main.inputs, *(link.input for link in self._links)}
        ends = set(b.index.main.outputs)  # which keep their names
        if self._options.prefix_a or self._options.prefix_b:
            fixed_b |= ends
        ours = [tensor for tensor in a.proto.graph.initializer if tensor.name not in fixed_a]
        theirs = [tensor for tensor in b.proto.graph.initializer if tensor.name not in fixed_b]
        self._shared = equal_weights(a.model, ours, b.model, theirs, by_name=ends)
        sizes = {tensor.name: weights.tensor_bytes(tensor) for tensor in theirs}
        self._shared_weights = len(self._shared)
        self._shared_bytes = sum(sizes[name] for name in self._shared)
        sparse = {tensor.values.name: tensor for tensor in a.proto.graph.sparse_initializer}
        for other in b.proto.graph.sparse_initializer:
            one = sparse.get(other.values.name)
            if one is not None and other.values.name not in fixed_b and same_messages(a.model, one, b.model, other):
                self._shared[other.values.name] = other.values.name
        self._share_nodes(fixed_b)

    def _share_nodes(self, fixed: Collection[str]) -> None:
        """Finds nodes of B that make of shared constants what an equal node of A makes: a split copies such nodes."""
        a, b = self._a.index.main, self._b.index.main
        order = topological_order(b)
        for position in range(len(b.nodes)) if order is None else order:
            node, made = b.nodes[position], b.writes[position]
            if _plain_operator(node) and made and all(self._shared.get(name) == name for name in b.reads[position]):
                place = a.producers.get(made[0], -1)
                if place < 0 or a.writes[place] != made or not set(made).isdisjoint(fixed):
                    continue
                if same_messages(self._a.model, a.nodes[place], self._b.model, node):
                    self._shared.update((name, name) for name in made)
                    self._shared_nodes.add(position)

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
        left = b.node_names(without=self._shared_nodes)
        taken = {*node_names, *(b.nodes.get(name, name) for name in left)}
        for name in left:
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
        ours = {function_key(function): function for function in a.proto.functions}
        theirs = {function_key(function): function for function in b.proto.functions}
        other = {key for key in theirs if key in ours and not same_messages(a.model, ours[key], b.model, theirs[key])}
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
        ours, theirs = symbols_of(a.proto), symbols_of(b.proto)
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
        outputs = [copy_of(info) for info in staying]
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
        delete_named(theirs.output, here)
        origins.update((info.name, "b") for info in theirs.input)
        self._merge_words(proto, other)
        if "" not in {plain_domain(one.domain) for one in proto.opset_import} and (casts or passed):
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
            delete_named(held, theirs_only)
        delete_named(theirs.sparse_initializer, theirs_only, by="values.name")
        if self._shared_nodes:
            copies = [copy_of(node) for at, node in enumerate(theirs.node) if at not in self._shared_nodes]
            del theirs.node[:]
            theirs.node.extend(copies)
        annotated = {one.tensor_name for one in a.proto.graph.quantization_annotation}
        for at in reversed(range(len(theirs.quantization_annotation))):
            one = theirs.quantization_annotation[at]
            if one.tensor_name in theirs_only and one.tensor_name in annotated:
                del theirs.quantization_annotation[at]

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
        ours = {function_key(function) for function in proto.functions}
        proto.functions.extend(function for function in other.functions if function_key(function) not in ours)
        domains = {plain_domain(opset.domain) for opset in proto.opset_import}
        proto.opset_import.extend(opset for opset in other.opset_import if plain_domain(opset.domain) not in domains)
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
    proto = copy_of(model.proto)
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


def _plain_operator(node: NodeProto) -> bool:
    """Tells whether a node makes the same of the same inputs, wherever it stands."""
    draws = node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial", "Dropout")
    return not plain_domain(node.domain) and not draws


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


def _calls(refs: Iterable[Any], defined: Collection[FunctionKey]) -> set[FunctionKey]:
    """Returns the operators that nodes use, but for those that are defined."""
    found = {(ref.node.domain, ref.node.op_type, ref.node.overload) for ref in refs}
    return found.difference(defined)


def _completed(info: ValueInfoProto, other: ValueInfoProto | None) -> ValueInfoProto:
    """Returns what A says of a tensor, completed by what B says of the input that it feeds."""
    copy: ValueInfoProto = copy_of(info)
    if other is None:
        return copy
    ours, theirs = tensor_shape(copy.type), tensor_shape(other.type)
    if ours is None and theirs is not None and not misfit(copy.type, other.type):
        symbols = copy_of(other.type)
        for dim in symbols.tensor_type.shape.dim:
            if dim.HasField("dim_value"):
                dim.ClearField("value")  # what B wants is not what A promises
        copy.type.CopyFrom(symbols)
    if not copy.doc_string and other.doc_string:
        carry_field(other, copy, "doc_string")
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
