"""Two functions to call: arithmetic, and a table."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping

LONGEST = 200  # characters of an expression
DIGITS = 30  # of any number on the way

_BINARY: Mapping[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: Mapping[type, Callable[[float], float]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def calculator(expression: str) -> str:
    """Compute an arithmetic expression of numbers, + - * / // % ** and brackets.

    The expression is parsed and never run: anything but these is refused, and so is a number of more than 30 digits on the way.
    Fractions have 15 digits.

    Args:
        expression: Such as "3 * (4 + 5)", at most 200 characters.

    Raises:
        ValueError: It is something else, too long, or a number becomes too large or is no real number.
        ZeroDivisionError: It divides by zero.
    """
    if len(expression) > LONGEST:
        raise ValueError(f"the expression has {len(expression)} characters; at most {LONGEST}")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, MemoryError) as error:
        raise ValueError(f"{expression!r} is no arithmetic") from error
    value = _value(tree.body)
    return str(int(value)) if isinstance(value, int) or (value.is_integer() and abs(value) < 2**53) else f"{value:.15g}"


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        return _checked(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow) and abs(left) > 1 and abs(right) * math.log10(abs(left)) > DIGITS:
            raise ValueError(f"{left} ** {right} has more than {DIGITS} digits")  # refused before it is computed, which might not end
        return _checked(_BINARY[type(node.op)](left, right))
    raise ValueError(f"only numbers, + - * / // % ** and brackets are computed, and this holds {type(node).__name__}")


def _checked(value: float) -> float:
    if isinstance(value, complex) or not abs(value) < 10**DIGITS:
        raise ValueError(f"a number on the way has more than {DIGITS} digits, or is no real number")
    return value


class Lookup:
    """A table to look things up in.

    Args:
        table: What is known, by name.
        name: What the agent calls the function.
    """

    def __init__(self, table: Mapping[str, str], name: str = "look_up") -> None:
        self.table, self.__name__ = table, name
        self.__doc__ = "Return what is known of a name."

    def __call__(self, name: str) -> str:
        """Return the entry of a name, white space around it left out.

        Raises:
            KeyError: There is none.
        """
        return self.table[name.strip()]
