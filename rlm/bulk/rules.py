"""Rules over rows as text: `len(text) < 3 or lang != 'en'`, read as Python and never run as Python.

A name reads a field (`row['odd name']` if the field's name is no Python name). A rule may use comparisons, `and`, `or`, `not`, `in`,
`+ - * / %` on numbers, conditional expressions, the functions of `FUNCTIONS` and the methods of `METHODS`. Anything
else is refused when the rule is read. ARCHITECTURE.md says why no library does this.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias

from rlm.errors import InputError

__all__ = ["Rule", "fields_of", "read_expression"]

Rule: TypeAlias = Callable[[Mapping[str, Any]], Any]
"""Function that returns the value of an expression for a row."""

FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "len": len,
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "abs": abs,
    "min": min,
    "max": max,
    "round": round,
}
METHODS: Final = frozenset(
    {"lower", "upper", "strip", "startswith", "endswith", "count", "isdigit", "isalpha", "isspace"}
)
COMPARISONS: Final[dict[type, Callable[[Any, Any], Any]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}
ARITHMETIC: Final[dict[type, Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}
LONGEST: Final = 2_000


def read_expression(text: str) -> Rule:
    """Compile an expression into a function of a row.

    Raises:
        InputError: the text is not an expression, or uses a form that rules do not allow. The function raises it
            if a row lacks a field or has a value of a type that the expression cannot use.
    """
    if len(text) > LONGEST:
        raise InputError(f"the rule is longer than {LONGEST:,} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SyntaxWarning)
            evaluate = _compiled(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, SyntaxWarning, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"the rule {text!r} cannot be used: {error}") from error

    def rule(row: Mapping[str, Any]) -> Any:
        try:
            return evaluate(row)
        except KeyError as error:
            raise InputError(
                f"the rule {text!r} reads the field {error}, which the row does not have"
            ) from error
        except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
            hint = (
                "; values from a file may be text: write float(...) around the field"
                if "'str' and" in str(error)
                else ""
            )
            raise InputError(f"the rule {text!r} fails for the row: {error}{hint}") from error

    return rule


def fields_of(text: str) -> tuple[str, ...]:
    """Return the fields that a valid expression reads, in order of appearance."""
    return tuple(dict.fromkeys(_fields(ast.parse(text.strip(), mode="eval").body)))


def _fields(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Subscript(value=ast.Name(id="row"), slice=ast.Constant(value=str(name))) | ast.Name(id=name):
            yield name
        case ast.Call(func=ast.Name(), args=arguments):
            for argument in arguments:
                yield from _fields(argument)
        case _:
            for child in ast.iter_child_nodes(node):
                yield from _fields(child)


def _compiled(node: ast.expr) -> Rule:  # noqa: PLR0911, PLR0912 - one case for each form of the language
    match node:
        case ast.Constant(value=value):
            return lambda _row: value
        case ast.Name(id=name):
            return lambda row: row[name]
        case ast.Subscript(value=ast.Name(id="row"), slice=ast.Constant(value=str(name))):
            return lambda row: row[name]
        case ast.List(elts=elements) | ast.Set(elts=elements):
            items = [_compiled(element) for element in elements]
            return lambda row: [item(row) for item in items]
        case ast.Tuple(elts=elements):
            items = [_compiled(element) for element in elements]
            return lambda row: tuple(item(row) for item in items)
        case ast.BoolOp(op=op, values=values):
            return _junction(isinstance(op, ast.And), [_compiled(value) for value in values])
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            negated = _compiled(operand)
            return lambda row: not negated(row)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            positive = _compiled(operand)
            return lambda row: -_number(positive(row))
        case ast.Compare():
            return _comparison(node)
        case ast.BinOp(left=left, op=arithmetic, right=right) if type(arithmetic) in ARITHMETIC:
            apply, first, second = ARITHMETIC[type(arithmetic)], _compiled(left), _compiled(right)
            return lambda row: apply(_number(first(row)), _number(second(row)))
        case ast.IfExp(test=test, body=body, orelse=orelse):
            condition, then, otherwise = _compiled(test), _compiled(body), _compiled(orelse)
            return lambda row: then(row) if condition(row) else otherwise(row)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            function, parameters = FUNCTIONS[name], [_compiled(argument) for argument in arguments]
            return lambda row: function(*[parameter(row) for parameter in parameters])
        case ast.Call(func=ast.Attribute(value=owner, attr=name), args=arguments, keywords=[]) if (
            name in METHODS
        ):
            return _method(_compiled(owner), name, [_compiled(argument) for argument in arguments])
        case _:
            raise ValueError(f"`{ast.unparse(node)}` is not allowed in a rule")


def _junction(is_and: bool, values: list[Rule]) -> Rule:
    def evaluate(row: Mapping[str, Any]) -> Any:
        result: Any = is_and
        for value in values:
            result = value(row)
            if bool(result) is not is_and:
                break
        return result

    return evaluate


def _comparison(node: ast.Compare) -> Rule:
    first = _compiled(node.left)
    steps = [
        (COMPARISONS[type(op)], _compiled(right))
        for op, right in zip(node.ops, node.comparators, strict=True)
    ]

    def evaluate(row: Mapping[str, Any]) -> bool:
        left = first(row)
        for compare, right_of in steps:
            right = right_of(row)
            if not compare(left, right):
                return False
            left = right
        return True

    return evaluate


def _method(owner: Rule, name: str, arguments: list[Rule]) -> Rule:
    def evaluate(row: Mapping[str, Any]) -> Any:
        text = owner(row)
        if not isinstance(text, str):
            raise TypeError(f"{name}() is for text, not {type(text).__name__}")
        return getattr(text, name)(*[argument(row) for argument in arguments])

    return evaluate


def _number(value: Any) -> Any:
    if isinstance(value, (int, float)):
        return value
    raise TypeError(f"{value!r:.40} is not a number: write int(...) or float(...) around the field")
