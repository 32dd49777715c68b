"""Tools that an executor serves when it is told of no others."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
_LONGEST = 200  # characters of an expression


def calculate(expression: str) -> float:
    """Calculate the value of an arithmetic expression: numbers, plus, minus, times, divided by, brackets.

    Args:
        expression: the calculation, for example (3 + 4) * 12
    """
    if len(expression) > _LONGEST:
        raise ValueError(f"an expression has at most {_LONGEST} characters")
    signs = str.maketrans({"×": "*", "÷": "/", "−": "-"})
    try:
        parsed = ast.parse(expression.translate(signs).strip(), mode="eval")
    except SyntaxError:
        raise ValueError("that is no arithmetic expression") from None
    return _value(parsed.body)


def count_words(text: str) -> int:
    """Count the words of a text.

    Args:
        text: the text whose words are counted
    """
    return len(text.split())


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError("only numbers, + - * / // % and brackets can be calculated")
