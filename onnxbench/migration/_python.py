"""What a Python script asks of TensorRT and Polygraphy, read off its syntax tree: nothing in it is imported or run.

Of what kind an object is (``layer.precision``: a layer of TensorRT's, or one of the user's own?) is told by what it was
assigned from, else by its name. Names that only TensorRT has are taken as they are.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from onnxbench.migration._rules import RULES, Rule
from onnxbench.migration._words import PROGRAMS, CommandLine, Word, find_in_text, is_command

_MAKERS = {
    "Builder": "Builder", "create_builder_config": "IBuilderConfig", "create_network": "INetworkDefinition",
    "build_engine": "ICudaEngine", "build_cuda_engine": "ICudaEngine", "deserialize_cuda_engine": "ICudaEngine",
    "create_execution_context": "IExecutionContext", "get_layer": "ILayer", "get_input": "ITensor",
    "get_output": "ITensor", "add_input": "ITensor", "OnnxParser": "OnnxParser",
}  # fmt: skip
_HINTS = {"builder": "Builder", "config": "IBuilderConfig", "network": "INetworkDefinition", "engine": "ICudaEngine",
          "context": "IExecutionContext", "layer": "ILayer", "tensor": "ITensor", "parser": "OnnxParser"}  # fmt: skip
_MODULES = ("tensorrt", "tensorrt_rtx")


@dataclass(frozen=True, slots=True)
class Found:
    """A place where a rule applies.

    Attributes:
        rule: The rule.
        line: The line, from 1.
        word: What stands there.
    """

    rule: Rule
    line: int
    word: str


@dataclass(frozen=True, slots=True)
class Script:
    """What was read off a Python file.

    Attributes:
        found: Where rules apply, in the order of the file.
        commands: Command lines within strings and lists.
        build: The trtexec command line that would build what the script builds, where it says all of it in literals.
        uses: Of ``tensorrt``, ``tensorrt_rtx``, ``polygraphy``, ``mmdeploy``: what the file is about.
    """

    found: tuple[Found, ...]
    commands: tuple[CommandLine, ...]
    build: CommandLine | None
    uses: frozenset[str]


def read_script(text: str) -> Script:
    """Returns what a Python file asks of TensorRT, Polygraphy and MMDeploy.

    Raises:
        SyntaxError: It is no Python.
    """
    tree = ast.parse(text)
    uses = _uses(tree)
    found: list[Found] = []
    if uses & {"tensorrt", "tensorrt_rtx"}:
        found += _Reader(tree, "tensorrt-python").found
    if "polygraphy" in uses:
        found += _loaders(tree)
    if "mmdeploy" in uses:
        found += _mmdeploy(tree)
    found = sorted(dict.fromkeys(found), key=lambda each: each.line)
    build = _built(tree) if uses & {"tensorrt", "tensorrt_rtx", "polygraphy"} else None
    commands = sorted(_commands(tree), key=lambda each: each.line)
    return Script(tuple(found), tuple(commands), build, uses)


def _uses(tree: ast.Module) -> frozenset[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
        found.update(name.partition(".")[0] for name in names)
    found &= {*_MODULES, "polygraphy"}
    return frozenset(found if _backend_config(tree) is None else {*found, "mmdeploy"})


def _rules(where: str) -> Iterator[tuple[str, Rule]]:
    return ((name, rule) for rule in RULES if rule.where == where for name in rule.names)


class _Reader:
    """Looks for what TensorRT's Python API no longer has."""

    def __init__(self, tree: ast.Module, where: str) -> None:
        self.found: list[Found] = []
        self._aliases: set[str] = set()
        self._direct: dict[str, str] = {}
        self._kinds: dict[str, str] = {}
        self._attributes: dict[str, list[tuple[str, Rule]]] = {}
        self._members: dict[str, list[Rule]] = {}
        self._imports: dict[str, list[Rule]] = {}
        self._keys: dict[str, list[Rule]] = {}
        for name, rule in _rules(where):
            if name.startswith("import "):
                self._imports.setdefault(name.removeprefix("import "), []).append(rule)
            elif name.startswith("trt."):
                self._members.setdefault(name.removeprefix("trt."), []).append(rule)
            elif name.startswith("['"):
                self._keys.setdefault(name[2:-2], []).append(rule)
            else:
                owner, _, attribute = name.rpartition(".")
                self._attributes.setdefault(attribute.removesuffix("="), []).append(
                    (owner + "=" * attribute.endswith("="), rule)
                )
        for node in ast.walk(tree):
            self._import(node)
        for node in ast.walk(tree):
            self._learn(node)
        for node in ast.walk(tree):
            self._judge(node)

    def _import(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in _MODULES:
                    self._aliases.add(alias.asname or alias.name.partition(".")[0])
                    self._add(self._imports.get(alias.name, ()), node.lineno, f"import {alias.name}")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in _MODULES:
            self._add(self._imports.get(node.module, ()), node.lineno, f"from {node.module} import")
            for alias in node.names:
                self._direct[alias.asname or alias.name] = alias.name
                self._add(self._members.get(alias.name, ()), node.lineno, alias.name)

    def _learn(self, node: ast.AST) -> None:
        """Notes what kind of object a name is bound to."""
        pairs: list[tuple[ast.expr, ast.expr | None]] = []
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
        elif isinstance(node, (ast.With, ast.AsyncWith)):
            pairs = [(item.optional_vars, item.context_expr) for item in node.items if item.optional_vars is not None]
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)):
            pairs = [(node.target, node.value)]
        for target, value in pairs:
            if isinstance(value, ast.Call):
                kind = _MAKERS.get(_last_name(value.func) or "", "")
                name = _dotted(target)
                if kind and name:
                    self._kinds[name] = kind

    def _kind(self, node: ast.expr) -> str:
        name = _dotted(node)
        if name in self._kinds:
            return self._kinds[name]
        if isinstance(node, ast.Call):
            return _MAKERS.get(_last_name(node.func) or "", "")
        last = (_last_name(node) or "").lower()
        return next((kind for hint, kind in _HINTS.items() if hint in last), "")

    def _judge(self, node: ast.AST) -> None:
        if isinstance(node, ast.Attribute):
            path = self._path(node)
            if path is not None:
                self._add(self._members.get(path, ()), node.lineno, path)
                return
            for owner, rule in self._attributes.get(node.attr, ()):
                if owner.endswith("=") and not isinstance(node.ctx, ast.Store):
                    continue
                kind = self._kind(node.value)
                if owner == "*" or kind == owner.removesuffix("="):
                    self._add((rule,), node.end_lineno or node.lineno, node.attr)
        elif isinstance(node, ast.Name) and node.id in self._direct and isinstance(node.ctx, ast.Load):
            self._add(self._members.get(self._direct[node.id], ()), node.lineno, node.id)
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            self._add(self._keys.get(str(node.slice.value), ()), node.lineno, f"[{node.slice.value!r}]")

    def _path(self, node: ast.Attribute) -> str | None:
        """Returns ``BuilderFlag.FP16`` for ``trt.BuilderFlag.FP16``; None for what is not of the module."""
        dotted = _dotted(node)
        if dotted is None:
            return None
        head, _, rest = dotted.partition(".")
        if head in self._aliases:
            return rest
        return f"{self._direct[head]}.{rest}" if head in self._direct else None

    def _add(self, rules: Iterable[Rule], line: int, word: str) -> None:
        self.found += [Found(rule, line, word) for rule in rules]


def _dotted(node: ast.AST | None) -> str | None:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def _last_name(node: ast.AST) -> str | None:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None


def _loaders(tree: ast.Module) -> list[Found]:
    """Returns where Polygraphy's loaders are given what is gone."""
    plain: dict[str, list[Rule]] = {}
    arguments: dict[tuple[str, str], list[Rule]] = {}
    for name, rule in _rules("polygraphy-python"):
        call, sign, argument = name.rstrip(")").partition("(")
        if sign:
            arguments.setdefault((_snake(call), argument), []).append(rule)
        else:
            plain.setdefault(_snake(call), []).append(rule)
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = _last_name(node.func) or ""
        found += [Found(rule, node.lineno, name) for rule in plain.get(_snake(name), ())]
        for each in node.keywords:
            off = isinstance(each.value, ast.Constant) and each.value.value in (False, None)
            if not off:
                rules = arguments.get((_snake(name), each.arg or ""), ())
                found += [Found(rule, each.value.lineno, f"{name}({each.arg}=)") for rule in rules]
    return found


def _snake(name: str) -> str:
    """Returns one form for ``CreateConfig`` and Polygraphy's function ``create_config``."""
    return name.replace("_", "").lower()


# ---------------------------------------------------------------- MMDeploy


def _backend_config(tree: ast.Module) -> ast.expr | None:
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and _dotted(statement.targets[0]) == "backend_config":
            return statement.value
    return None


def _items(node: ast.expr | None) -> dict[str, ast.expr]:
    """Returns the entries of a dict that is written as ``dict(...)`` or ``{...}``."""
    if isinstance(node, ast.Call) and _last_name(node.func) == "dict":
        return {each.arg: each.value for each in node.keywords if each.arg}
    if isinstance(node, ast.Dict):
        return {
            str(key.value): value
            for key, value in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant)
        }
    return {}


def _mmdeploy(tree: ast.Module) -> list[Found]:
    config = _backend_config(tree)
    entries = _items(config)
    kind = entries.get("type")
    if (
        config is None
        or (isinstance(kind, ast.Constant) and kind.value != "tensorrt")
        or (kind is None and "common_config" not in entries)
    ):
        return []
    rules = dict(_rules("mmdeploy"))
    found = [Found(rules["backend_config"], config.lineno, "backend_config")]
    for name, value in _items(entries.get("common_config")).items():
        if name in rules and isinstance(value, ast.Constant) and value.value:
            found.append(Found(rules[name], value.lineno, name))
    return found


# ---------------------------------------------------------------- commands within Python


def _commands(tree: ast.Module) -> Iterator[CommandLine]:
    """Yields trtexec and Polygraphy commands that are strings, f-strings or lists of strings."""
    inner: set[int] = set()
    docs = {id(node.body[0].value) for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)) and node.body
            and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, (ast.List, ast.Tuple)) and node.elts:
            first = _text(node.elts[0]) or ""
            program = first.rpartition("/")[2].removesuffix(".exe")
            if program in PROGRAMS:
                words = [Word(text, each.lineno) for each in node.elts[1:] if (text := _text(each)) is not None]
                inner.update(id(each) for each in ast.walk(node))
                if is_command(program, [word.text for word in words]):
                    yield CommandLine(program, tuple(words), node.lineno)
        elif isinstance(node, (ast.Constant, ast.JoinedStr)) and id(node) not in inner and id(node) not in docs:
            inner.update(id(each) for each in ast.walk(node))
            text = _text(node)
            if text and any(program in text for program in PROGRAMS) and " " in text:
                for command in find_in_text(text):
                    words = [Word(word.text, node.lineno + (word.line - 1 if isinstance(node, ast.Constant) else 0))
                             for word in command.words]  # fmt: skip
                    yield CommandLine(command.program, tuple(words), node.lineno + command.line - 1)


def _text(node: ast.expr) -> str | None:
    """Returns a string; what an f-string or a name puts in stays as ``$NAME``."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or "" for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return f"${_last_name(node.value) or 'VALUE'}"
    if isinstance(node, (ast.Name, ast.Attribute)):
        return f"${_last_name(node) or 'VALUE'}"
    if isinstance(node, ast.Call) and _last_name(node.func) == "str" and len(node.args) == 1:
        return _text(node.args[0])
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _text(node.left), _text(node.right)
        return None if left is None or right is None else left + right
    return None


def _built(tree: ast.Module) -> CommandLine | None:
    """Returns what a script builds as a command of trtexec: its one model, its profiles, its precisions."""
    models: dict[str, int] = {}
    engines: dict[str, int] = {}
    words: list[Word] = []
    first = 0
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and "\n" not in node.value
            and " " not in node.value
        ):
            if node.value.endswith(".onnx"):
                models.setdefault(node.value, node.lineno)
            elif node.value.endswith((".engine", ".plan", ".trt")):
                engines.setdefault(node.value, node.lineno)
        elif (
            isinstance(node, ast.Attribute)
            and node.attr in ("FP16", "BF16", "INT8", "FP8")
            and _last_name(node.value) == "BuilderFlag"
        ):
            words.append(Word(f"--{node.attr.lower()}", node.lineno))
        elif isinstance(node, ast.Call):
            name = _last_name(node.func) or ""
            if name in ("build_serialized_network", "build_engine", "build_cuda_engine", "EngineFromNetwork",
                        "EngineBytesFromNetwork", "engine_from_network", "engine_bytes_from_network"):  # fmt: skip
                first = first or node.lineno
            shapes = _profile_shapes(node) if name in ("set_shape", "add") else None
            for kind, shape in zip(("min", "opt", "max"), shapes or (), strict=False):
                words.append(Word(f"--{kind}Shapes={shape}", node.lineno))
            for each in node.keywords:
                on = isinstance(each.value, ast.Constant) and each.value.value is True
                if _snake(name) == "createconfig" and each.arg in ("fp16", "bf16", "int8", "fp8") and on:
                    words.append(Word(f"--{each.arg}", node.lineno))
    if len(models) != 1 or not first or len(engines) > 1:
        return None
    model = next(iter(models))
    ends = [
        Word(f"--onnx={model}", models[model]),
        *(Word(f"--saveEngine={name}", line) for name, line in engines.items()),
    ]
    return CommandLine("trtexec", (*ends, *dict.fromkeys(words)), first)


def _profile_shapes(node: ast.Call) -> list[str] | None:
    """Returns ``x:1x3`` for min, opt and max of ``set_shape("x", (1, 3), ...)`` or ``Profile().add("x", min=...)``."""
    by_name = {each.arg: each.value for each in node.keywords}
    parts = [
        *node.args,
        *(by_name[key] for key in ("min", "opt", "max")[max(0, len(node.args) - 1) :] if key in by_name),
    ]
    if len(parts) != 4:
        return None
    name = _text(parts[0])
    found = []
    for part in parts[1:]:
        if not name or not isinstance(part, (ast.List, ast.Tuple)):
            return None
        sizes = [each.value for each in part.elts if isinstance(each, ast.Constant) and isinstance(each.value, int)]
        if not sizes or len(sizes) != len(part.elts):
            return None
        found.append(f"{name}:{'x'.join(map(str, sizes))}")
    return found
