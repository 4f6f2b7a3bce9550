"""Formulas of a layer's fans, such as `sqrt(6) / (fan_in + fan_out)`.

In:  text, the values of its names.
Out: a finite number above zero, or a FormulaError that says what is expected.
Knows numbers, names, + - * /, parentheses and sqrt; nothing else of Python is ever evaluated.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping

_OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
MAX_LENGTH = 200
"""Characters; the longest formula in use has 30."""


class FormulaError(ValueError):
    """The text says what a formula may hold."""


def formula_value(formula: str, **values: float) -> float:
    """The formula's value at these values of its names."""
    expected = f"a formula above zero of numbers, {', '.join(values)}, + - * /, ( ) and sqrt"
    if len(formula) > MAX_LENGTH:
        raise FormulaError(expected)
    try:
        value = _value(ast.parse(formula.strip(), mode="eval").body, values)
    except (SyntaxError, ValueError, KeyError, ArithmeticError, RecursionError, MemoryError) as error:
        raise FormulaError(expected) from error
    if not (0.0 < value < math.inf):
        raise FormulaError(expected)
    return value


def _value(node: ast.expr, values: Mapping[str, float]) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.Name):
        return values[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left, values), _value(node.right, values))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "sqrt" and not node.keywords:
        (argument,) = node.args
        return math.sqrt(_value(argument, values))
    raise ValueError(ast.dump(node))
