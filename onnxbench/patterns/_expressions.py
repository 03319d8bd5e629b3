"""Expressions in rules: arithmetic, comparisons and a few functions, evaluated without Python's ``eval``.

An expression is parsed by Python's own parser and walked here; only what is listed below exists. What cannot be
known (the rank of a tensor whose type nobody tells) is no value and no failure of its own: it raises ``UnknownError``,
which says what is missing, and the match is refused for that reason.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from onnxbench.errors import SpecError, did_you_mean

Functions = Mapping[str, Callable[..., Any]]

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_PLAIN: dict[str, Callable[..., Any]] = {
    "abs": abs, "min": min, "max": max, "len": len, "round": round, "int": int, "float": float, "sum": sum,
    "sqrt": math.sqrt, "sorted": sorted, "prod": math.prod,
}  # fmt: skip
_LARGEST = 1 << 64
_LONGEST = 2000


class UnknownError(Exception):
    """Something that an expression asks for cannot be known; the text says what."""


class WrongError(Exception):
    """An expression that cannot be evaluated on what was matched; the text says why."""


class Expression:
    """An expression, parsed and checked.

    Args:
        text: The expression.
        functions: Names of functions that it may call, beside the plain ones.

    Attributes:
        text: As it was written.
        names: The names that it reads.

    Raises:
        SpecError: It is no expression, or has something in it that is not allowed.
    """

    def __init__(self, text: str, functions: frozenset[str]) -> None:
        self.text = " ".join(text.split())
        if len(text) > _LONGEST:
            raise SpecError(f"an expression of {len(text)} characters is too long")
        try:
            self._tree = ast.parse(self.text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            said = error.msg if isinstance(error, SyntaxError) else "nested too deep"
            hint = "Equality is written ==." if re.search(r"(?<![=!<>])=(?!=)", self.text) else None
            raise SpecError(f"{self.text!r} is no expression: {said}", hint=hint) from None
        known = {*functions, *_PLAIN}
        names: dict[str, None] = {}
        called: set[int] = set()
        for node in ast.walk(self._tree):
            self._require_allowed(node)
            if isinstance(node, ast.Call):
                if not isinstance(node.func, ast.Name) or node.keywords:
                    raise SpecError(f"{self.text!r} calls something that is no function of rules")
                if node.func.id not in known:
                    hint = did_you_mean(node.func.id, known) or f"Functions: {', '.join(sorted(known))}."
                    raise SpecError(f"{self.text!r}: there is no function {node.func.id!r}", hint=hint)
                called.add(id(node.func))
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Name) and id(node) not in called:
                names[node.id] = None
        self.names = tuple(names)

    def _require_allowed(self, node: ast.AST) -> None:
        allowed = (
            ast.Constant, ast.Name, ast.Load, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Call,
            ast.List, ast.Tuple, ast.Subscript, ast.Slice, ast.And, ast.Or, ast.Not, ast.USub, ast.UAdd,
            *_BINARY, *_COMPARE, ast.Is, ast.IsNot,
        )  # fmt: skip
        if not isinstance(node, allowed) or isinstance(node, (ast.Is, ast.IsNot)):
            raise SpecError(
                f"{self.text!r} has a {type(node).__name__} in it, which expressions of rules do not have",
                hint="There are numbers, strings, lists, + - * / // % **, comparisons, in, and, or, not, if else.",
            )
        if isinstance(node, ast.Constant) and not isinstance(node.value, (int, float, str)):
            raise SpecError(f"{self.text!r} has a {type(node.value).__name__} in it; there are numbers and strings")

    def evaluate(self, names: Callable[[str], Any], functions: Functions) -> Any:
        """Returns the value.

        Args:
            names: Gives the value of a name.
            functions: The functions that were promised.

        Raises:
            UnknownError: Something it needs cannot be known.
            WrongError: It cannot be evaluated (an index out of range, a comparison of a list with a number).
        """
        try:
            return _evaluate(self._tree, names, functions)
        except (TypeError, ValueError, IndexError, ArithmeticError, KeyError) as error:
            raise WrongError(str(error)) from None
        except RecursionError:
            raise WrongError("it is nested too deep") from None

    def parts(self, names: Callable[[str], Any], functions: Functions) -> list[tuple[str, Any]]:
        """Returns the calls and names in it with their values, for explaining that it does not hold."""
        found: dict[str, Any] = {}
        pending: list[ast.expr] = [self._tree]
        while pending:
            node = pending.pop()
            if isinstance(node, (ast.Call, ast.Name, ast.Subscript)):
                try:
                    value = _evaluate(node, names, functions)
                except Exception:  # what cannot be evaluated explains nothing
                    continue
                if isinstance(value, (int, float, str, list)):
                    found.setdefault(ast.unparse(node), value)
                continue
            pending += [inner for inner in ast.iter_child_nodes(node) if isinstance(inner, ast.expr)][::-1]
        return list(found.items())


def _evaluate(node: ast.expr, names: Callable[[str], Any], functions: Functions) -> Any:
    def value(inner: ast.expr) -> Any:
        return _evaluate(inner, names, functions)

    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return names(node.id)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [value(item) for item in node.elts]
    if isinstance(node, ast.UnaryOp):
        inner = value(node.operand)
        return not inner if isinstance(node.op, ast.Not) else -inner if isinstance(node.op, ast.USub) else +inner
    if isinstance(node, ast.BinOp):
        return _arithmetic(type(node.op), value(node.left), value(node.right))
    if isinstance(node, ast.BoolOp):
        return _both(node, value)
    if isinstance(node, ast.Compare):
        left = value(node.left)
        for kind, right_node in zip(node.ops, node.comparators, strict=True):
            right = value(right_node)
            if not _COMPARE[type(kind)](left, right):
                return False
            left = right
        return True
    if isinstance(node, ast.IfExp):
        return value(node.body) if value(node.test) else value(node.orelse)
    if isinstance(node, ast.Subscript):
        return value(node.value)[_index(node.slice, value)]
    assert isinstance(node, ast.Call)
    assert isinstance(node.func, ast.Name)
    function = functions.get(node.func.id) or _PLAIN[node.func.id]
    return function(*[value(argument) for argument in node.args])


def _index(node: ast.expr, value: Callable[[ast.expr], Any]) -> Any:
    if not isinstance(node, ast.Slice):
        return value(node)
    return slice(*(None if part is None else value(part) for part in (node.lower, node.upper, node.step)))


def _both(node: ast.BoolOp, value: Callable[[ast.expr], Any]) -> bool:
    """Returns ``and`` or ``or``; an operand that cannot be known does not matter where another one decides."""
    decides = isinstance(node.op, ast.Or)
    unknown: UnknownError | None = None
    for operand in node.values:
        try:
            if bool(value(operand)) == decides:
                return decides
        except UnknownError as error:
            if not decides:
                raise  # the operands of "and" guard those behind them
            unknown = unknown or error
    if unknown is not None:
        raise unknown
    return not decides


def _arithmetic(kind: type[ast.operator], left: Any, right: Any) -> Any:
    if isinstance(left, list) or isinstance(right, list) or isinstance(left, str) or isinstance(right, str):
        if kind is ast.Add and isinstance(left, list) and isinstance(right, list):
            return left + right
        raise TypeError("only numbers are calculated with; + also joins lists")
    if (
        kind is ast.Pow
        and isinstance(left, int)
        and isinstance(right, int)
        and (abs(right) > 64 or abs(left) > 1 << 16)
    ):
        raise ValueError("the power is too large")
    result = _BINARY[kind](left, right)
    if isinstance(result, complex) or (isinstance(result, int) and abs(result) > _LARGEST):
        raise ValueError("the result is too large")
    return result
