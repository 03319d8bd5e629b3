"""What TensorRT refuses in a model, told by node, module and line of source, with the known ways out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxbench.errors import nearest
from onnxbench.graph import GraphIndex, NodeRef, Scope, root_of
from onnxbench.provenance import Origins
from onnxbench.schemas import plain_domain, standard_operators
from onnxbench.tensortype import dtype_name, elem_type

if TYPE_CHECKING:
    from onnx import NodeProto

CHOSEN = "Use one of the steps above in 'onnxbench edit', or cut the part out with 'onnxbench extract'."


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that stands between a model and its engine.

    Attributes:
        kind: ``unsupported`` (TensorRT has no such operator), ``plugin`` (an operator that a plugin must bring),
            ``case`` (an operator that it has, not in this form), ``build`` (it parses, and cannot be built).
        node: Path of the node, ``""`` if it is not known.
        op: Its operator, with the domain where it is not ai.onnx.
        message: What TensorRT says, in words that can be read.
        way_out: What can be done about it, or None where nothing is known.
        remedy: Word of the remedy of ``onnxbench.engine.remedies`` that mends it, or None.
        module: The PyTorch module that the node comes from, or None.
        source: The line that it comes from, or None.
        code: TensorRT's own code for it.
    """

    kind: str
    node: str
    op: str
    message: str
    way_out: str | None = None
    remedy: str | None = None
    module: str | None = None
    source: str | None = None
    code: str = ""

    def sentence(self) -> str:
        """Returns the problem in one line."""
        origin = ", ".join(word for word in (self.module, self.source) if word)
        place = f"{self.node} ({self.op})" if self.node and self.op else self.node or self.op or "model"
        return f"{place}{f' [{origin}]' if origin else ''}: {self.message}"


def way_out(op: str) -> str | None:
    """Returns what can be done about an operator that TensorRT does not run, or None where nothing is known."""
    return _WAYS_OUT.get(op, (None, None))[0]


class Explainer:
    """Turns what the parser and the builder say into problems.

    Args:
        index: The model.
        creators: The plugins that are registered, as (namespace, name, version).
        supported: Operators that were asked about, and whether the parser has them.
        plugins: What became of the plugins that were to be loaded.
    """

    def __init__(
        self,
        index: GraphIndex,
        *,
        creators: Sequence[Sequence[str]] = (),
        supported: Mapping[str, bool] | None = None,
        plugins: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._index = index
        self._creators, self._supported, self._plugins = creators, supported or {}, plugins
        self._origins: Origins | None = None
        self._by_name: dict[tuple[str, str], list[NodeRef]] | None = None

    def problem(self, said: Mapping[str, Any]) -> Problem:
        """Returns one error of the parser as a problem."""
        ref = self.locate(said)
        node = None if ref is None else ref.node
        op = said["op"] or (node.op_type if node is not None else "")
        text = _plain(said["text"])
        domain = plain_domain(node.domain) if node is not None else ""
        if "convertDtype" in said["text"]:
            return self._unknown_type(ref, said)
        has_plugin_words = "Plugin not found" in said["text"] or "checkFallbackPluginImporter" in said["function"]
        if has_plugin_words and not domain and op in standard_operators():
            return self._made("unsupported", ref, said, f"TensorRT has no operator {op}", _WAYS_OUT.get(op))
        if has_plugin_words and domain == "ai.onnx.ml":
            words = "operators of classical machine learning (ai.onnx.ml) are not in TensorRT"
            return self._made("unsupported", ref, said, words, (_ML, None))
        if has_plugin_words:
            return self._missing_plugin(ref, said, node, op, domain)
        known = _WAYS_OUT.get(op)
        never = op in _NEVER or self._supported.get(op) is False
        if text in ("false", ""):
            text = f"TensorRT has no operator {op}" if never else f"TensorRT does not take this {op}"
        kind = "unsupported" if never else "case"
        for pattern, way, remedy in _CASES:
            if re.search(pattern, said["text"]):
                known = (way, remedy)
                break
        return self._made(kind, ref, said, text, known)

    def _unknown_type(self, ref: NodeRef | None, said: Mapping[str, Any]) -> Problem:
        """Returns the problem of an element type that TensorRT does not have, with the tensors of the main graph."""
        graph = self._index.proto.graph
        found = [(info.name, elem_type(info.type)) for info in (*graph.input, *graph.output)]
        found += [(tensor.name, tensor.data_type) for tensor in graph.initializer]
        named = [f"{name!r} ({dtype_name(number)})" for name, number in found if number and number not in _TYPES]
        words = ", ".join(named[:6]) or "a tensor inside the model"
        way = (
            "Cast before and after ('onnxbench edit --retype-input x=float32'), or cut the model where such types end."
        )
        return self._made("unsupported", ref, said, f"TensorRT does not have the element type of {words}", (way, None))

    def _missing_plugin(
        self, ref: NodeRef | None, said: Mapping[str, Any], node: NodeProto | None, op: str, domain: str
    ) -> Problem:
        attributes = {each.name: each for each in (node.attribute if node is not None else ())}
        namespace = attributes["plugin_namespace"].s.decode() if "plugin_namespace" in attributes else ""
        version = attributes["plugin_version"].s.decode() if "plugin_version" in attributes else "1"
        tried = list(dict.fromkeys([namespace, domain]))
        same = [each for each in self._creators if each[1] == op]
        words = f"no plugin {op!r}, version {version}, in the namespaces {' and '.join(map(repr, tried))}"
        if same:
            where = ", ".join(f"version {each[2]} in {each[0]!r}" for each in same)
            words += f"; there is {where}"
            way = "Set plugin_namespace and plugin_version on the node, or register the plugin accordingly."
            return self._made("plugin", ref, said, words, (way, None))
        near = nearest(op, [str(each[1]) for each in self._creators])
        loaded = [each["path"] for each in self._plugins if not each["failure"]]
        failed = [f"{each['path']} ({each['failure']['message']})" for each in self._plugins if each["failure"]]
        words += f"; names like it: {', '.join(near)}" if near else ""
        words += f"; loaded: {', '.join(loaded)}" if loaded else "; no plugin was loaded"
        words += f"; not loaded: {'; '.join(failed)}" if failed else ""
        known = _WAYS_OUT.get(op)
        new = f"onnxbench plugins new {op}{f' --op {domain}::{op}' if domain else ''}"
        way = f"Give its plugin with --plugin, or write one: '{new}'."
        instead = known or ("Mend the plugin that was not loaded." if failed else way, None)
        return self._made("plugin", ref, said, words, instead)

    def passed_over(self, told: Sequence[NodeRef]) -> Iterator[tuple[Problem, NodeRef]]:
        """Yields nodes that TensorRT would refuse as well, had its parser come to them.

        It stops at some errors. Left out are branches, which may not be taken, and functions, which may not be called.

        Args:
            told: The nodes that it refused.
        """
        seen = {(id(ref.scope), ref.position) for ref in told}
        has_nonzero = any(each[1] == "NonZero" for each in self._creators)
        for ref in self._index.nodes():
            op, scope = ref.node.op_type, ref.scope
            if plain_domain(ref.node.domain) or (id(scope), ref.position) in seen or self._index.function_of(ref.node):
                continue
            if _is_in_branch(scope) or root_of(scope) is not self._index.main:
                continue
            if self._supported.get(op) is False or (op == "NonZero" and not has_nonzero):
                words = f"TensorRT has no operator {op}" if op != "NonZero" else "TensorRT wants a plugin named NonZero"
                yield self._made("unsupported", ref, {}, words, _WAYS_OUT.get(op)), ref

    def build_problem(self, messages: Sequence[Sequence[str]]) -> Problem:
        """Returns why a model that parses cannot be built, from the log."""
        said = [text for severity, text in messages if "error" in severity]
        text = _plain(said[-1]) if said else "TensorRT built no engine and does not say why"
        ref = self.named_in(" ".join(said))
        known: tuple[str | None, str | None] | None = None
        for pattern, way, remedy in _CASES:
            if re.search(pattern, " ".join(said)):
                known = (way, remedy)
                break
        if known is None and ref is not None:
            known = _WAYS_OUT.get(ref.node.op_type)
        empty = {"code": "", "op": ref.node.op_type if ref is not None else ""}
        return self._made("build", ref, empty, text, known)

    def foreseen(self, ref: NodeRef, words: str) -> Problem:
        """Returns why no engine can be built with a node that the parser takes (see ``_foresight``)."""
        return self._made("build", ref, {}, words, _WAYS_OUT.get(ref.node.op_type))

    def named_in(self, text: str) -> NodeRef | None:
        """Returns the node whose name stands in a message, the longest name first."""
        words = set(re.findall(r"[^\s:,\[\](){}'\"]+", text)) | set(re.findall(r"\S+", text))
        words |= {word.rstrip(":,.") for word in words}
        found = [ref for (name, _), refs in self._names().items() if name in words for ref in refs]
        if not found:  # or the tensor of that name: the node that makes it, or reads it first
            for word in sorted(words, key=len, reverse=True):
                at = self._index.main.producers.get(word, *self._index.main.consumers.get(word, [])[:1] or [-1])
                if at >= 0:
                    return NodeRef(self._index.main, at)
        return max(found, key=lambda ref: len(ref.node.name), default=None)

    def _made(
        self, kind: str, ref: NodeRef | None, said: Mapping[str, Any], text: str,
        known: tuple[str | None, str | None] | None,
    ) -> Problem:  # fmt: skip
        if self._origins is None:
            nodes = [each.node for each in self._index.nodes()]
            self._origins = Origins(nodes, self._index.main.constants)
        origin = self._origins.of(ref.node) if ref is not None else None
        way, remedy = known or (None, None)
        if remedy is None and ref is not None and _is_in_branch(ref.scope):
            words = "It lies in a branch of an If; if that is never taken, fix what the condition depends on"
            way, remedy = f"{words} (--fix INPUT=VALUE, or one shape with --shapes).", "take_branches"
        op = said.get("op") or ""
        if ref is not None:
            domain = plain_domain(ref.node.domain)
            op = f"{domain}::{ref.node.op_type}" if domain else ref.node.op_type
        return Problem(
            kind, ref.path if ref is not None else str(said.get("name", "")), op, text, way, remedy,
            origin.scope if origin else None, origin.source if origin else None, str(said.get("code", "")),
        )  # fmt: skip

    def _names(self) -> dict[tuple[str, str], list[NodeRef]]:
        if self._by_name is None:
            self._by_name = {}
            for ref in self._index.nodes():
                if ref.node.name:
                    self._by_name.setdefault((ref.node.name, ref.node.op_type), []).append(ref)
        return self._by_name

    def locate(self, said: Mapping[str, Any]) -> NodeRef | None:
        """Returns the node that the parser means: by name and operator, else by its number where that fits."""
        found = self._names().get((said["name"], said["op"]), [])
        if len(found) == 1:
            return found[0]
        number = said["node"]
        scopes: list[Scope] = [self._index.main, *self._index.scopes]
        for scope in scopes:
            if 0 <= number < len(scope.nodes):
                node = scope.nodes[number]
                if node.op_type == said["op"] and (not said["name"] or node.name == said["name"] or not node.name):
                    return NodeRef(scope, number)
        return found[0] if found else None


def _is_in_branch(scope: Scope) -> bool:
    while scope.parent is not None:
        if scope.parent.nodes[scope.owner].op_type == "If":
            return True
        scope = scope.parent
    return False


def _plain(text: str) -> str:
    """Returns what TensorRT says without file names of its own sources and C++ around it."""
    text = re.sub(r"\[[\w.]+\.cpp::.*?::\d+\]\s*", "", text)
    text = re.sub(r"\s*In \S+ at \S+\.(?:cpp|h):\d+", "", text)
    text = re.sub(r"^Invalid Node - \S+\s+", "", text)
    text = re.sub(r"^(?:\w+::\w+: )?Error Code \d+: ", "", text)
    text = re.sub(r"^(?:Internal Error|API Usage Error)\s*\((.*)\)\s*$", r"\1", text)
    text = re.sub(r"^Assertion failed: .*?: ", "", text)
    text = re.sub(r"^\w+ && \"(.*)\"$", r"\1", text)
    return " ".join(text.split())[:600]


_ML = "Cut it off with 'onnxbench extract' and run that part in ONNX Runtime."
_DYNAMIC_QUANT = (
    "Undo the dynamic quantization, so that the model computes in float again, or quantize it statically with "
    "QuantizeLinear/DequantizeLinear nodes (symmetric, int8)."
)
_TYPES = frozenset({1, 2, 3, 6, 7, 9, 10, 11, 16, 17, 22, 23, 24})
"""Element types that TensorRT can have in a network (float64 as float32)."""
_NEVER = frozenset({
    "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "DFT",
    "DeformConv", "Unique", "StringNormalizer", "Bernoulli", "NonMaxSuppression", "SequenceConstruct",
    "SequenceInsert", "SequenceAt",
    "SplitToSequence", "ConcatFromSequence", "SequenceEmpty", "SequenceErase", "SequenceLength", "Multinomial",
})  # fmt: skip
_WAYS_OUT: dict[str, tuple[str | None, str | None]] = {
    "DynamicQuantizeLinear": (_DYNAMIC_QUANT, "dequantize"),
    "ConvInteger": (_DYNAMIC_QUANT, "dequantize"),
    "MatMulInteger": (_DYNAMIC_QUANT, "dequantize"),
    "DynamicQuantizeLSTM": (_DYNAMIC_QUANT, "dequantize"),
    "DynamicQuantizeMatMul": (_DYNAMIC_QUANT, "dequantize"),
    "QLinearConv": ("Quantize with QuantFormat.QDQ in place of QOperator.", None),
    "QLinearMatMul": ("Quantize with QuantFormat.QDQ in place of QOperator.", None),
    "NonZero": ("A plugin named NonZero makes it parse; else cut the model before it.", None),
    "NonMaxSuppression": ("Cut the model before it ('onnxbench extract --outputs ...') and run it outside.", None),
    "DeformConv": ("It needs a plugin (MMCVModulatedDeformConv2d, say).", None),
    "Loop": ("Export with a fixed number of steps (a trip count), or unroll it.", None),
    "If": ("Fix what the condition depends on; 'onnxbench edit --take-branches' does the rest.", "take_branches"),
    "DFT": ("STFT is supported; or write the transform as a MatMul.", None),
    "Unique": (_ML, None),
    "StringNormalizer": (_ML, None),
}
_CASES: tuple[tuple[str, str, str | None], ...] = (
    (r"shape tensor and must have type Int", "Give Resize sizes (int64) in place of scales.", "resize_sizes"),
    (r"Quantized constant .* is only allowed before DQ", "Fold the integer weights into float ones.", "fold_weights"),
    (r"no trip limit was set", "Give the loop a trip count (where a counter ends it), or unroll it.", "count_loops"),
    (r"kUNDEFINED failed", "An If cannot be resolved: fix what its condition depends on "
        "(--fix INPUT=VALUE, or one shape with --shapes), then --apply takes the branch.", "take_branches"),
    (r"antialias", "Set antialias to 0, if the result may differ a little.", None),
    (r"FP32 GEMM.*Turing|Turing", "Build for compute capability 8.0 or newer, or convert the model to float16.", None),
    (r"(?i)double|float64|kDOUBLE", "Compute in float32.", "float32"),
    (r"has type Int32 but must have type FP8", "Keep the bias in float.", "symmetric_quantization"),
    (r"(?i)zero.?point", "Quantize symmetrically (zero points 0, int8): uint8 with 128 can be renumbered, for others "
        "calibrate the float model again (--int8 --calibration DATA).", "symmetric_quantization"),
    (r"values for profile \d+ violate shape constraints", "The model does not run at the shapes of the profile: "
     "give those that it is used at (--shapes; --min-shapes, --opt-shapes and --max-shapes; --from-feeds DATA).", None),
    (r"OutOfMemory", "Free some memory, or build with smaller maximum shapes.", None),
    (r"(?i)empty tensor|cannot be negative|output dimension", "The shapes of the profile are too small for the model: "
     "give larger ones with --min-shapes, --opt-shapes and --max-shapes.", None),
)  # fmt: skip
