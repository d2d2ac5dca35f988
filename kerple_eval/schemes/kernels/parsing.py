"""A kernel written as text: ``-r1*log(1 + r2*D**r3)`` -> the kernel that the rules build.

Names: ``D`` (the distance), parameters ``r1`` .. ``r99``, numbers; functions ``log``, ``exp``;
``+ - * / **`` and parentheses. The text is read by Python's ``ast`` as one expression, never run, and
every node must be in this grammar; ``values`` says what each is. A refusal is one line: the
sub-expression, its column and the rule.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable
from fractions import Fraction

from kerple_eval.schemes.kernels import values
from kerple_eval.schemes.kernels.algebra import CPD, power
from kerple_eval.schemes.kernels.parameters import NAME, ClosureError, Scale
from kerple_eval.schemes.kernels.values import ParsedValue, SignedKernel, SignedScale

LONGEST = 300  # characters
DEEPEST = 40  # levels of nesting
FOREIGN = re.compile(r"[^A-Za-z0-9.+\-*/() ]")
GRAMMAR = "a formula has D, r1, r2, ..., numbers, log, exp, + - * / ** and parentheses"

BINARY: dict[type[ast.operator], Callable[[ParsedValue, ParsedValue], ParsedValue]] = {
    ast.Add: values.plus,
    ast.Sub: lambda left, right: values.plus(left, values.negate(right)),
    ast.Mult: values.times,
    ast.Div: values.over,
    ast.Pow: values.raised,
}
UNARY: dict[type[ast.unaryop], Callable[[ParsedValue], ParsedValue]] = {
    ast.USub: values.negate,
    ast.UAdd: lambda value: value,
}
FUNCTIONS = {"log": values.log, "exp": values.exp}
KNOWN = {"D", *FUNCTIONS}


def parse_kernel(text: str) -> CPD:
    """The kernel of a formula.

    Raises:
        ClosureError: not a formula, or not one that the rules build; one line.
    """
    text = text.strip()
    if not text:
        raise ClosureError("an empty formula")
    if len(text) > LONGEST:
        raise ClosureError(f"a formula has at most {LONGEST} characters, this one {len(text)}")
    foreign = FOREIGN.search(text)
    if foreign:
        hint = "; a power is written **" if foreign[0] == "^" else ""
        raise ClosureError(f"character {foreign[0]!a} at column {foreign.start() + 1}: {GRAMMAR}{hint}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's advice on how numbers are written
            tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        column = f"column {error.offset} of " if error.offset else ""
        raise ClosureError(f"not an expression at {column}'{text}': {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ClosureError(f"not an expression: {error}") from None
    value = _read(tree, text, 0)
    if not isinstance(value, SignedKernel):
        raise _refusal(tree, text, "the same at every distance: a kernel depends on D")
    if value.negative:
        raise _refusal(tree, text, "not CPD, minus it is: a kernel falls with distance")
    return value.kernel


def _refusal(node: ast.expr, text: str, rule: str) -> ClosureError:
    part = text[node.col_offset : node.end_col_offset]
    context = "" if part == text else f" (column {node.col_offset + 1} of '{text}')"
    return ClosureError(f"'{part}'{context}: {rule}")


def _read(node: ast.expr, text: str, depth: int) -> ParsedValue:
    if depth > DEEPEST:
        raise _refusal(node, text, f"nested more than {DEEPEST} levels deep")
    match node:
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in UNARY:
            parts = [operand]
        case ast.BinOp(op=operator, left=left, right=right) if type(operator) in BINARY:
            parts = [left, right]
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in FUNCTIONS:
            parts = [argument]
        case _:
            parts = []
    inner = [_read(part, text, depth + 1) for part in parts]
    try:
        return _value(node, inner, text[node.col_offset : node.end_col_offset])
    except ClosureError as error:
        raise _refusal(node, text, str(error)) from None


def _value(node: ast.expr, parts: list[ParsedValue], source: str) -> ParsedValue:
    """One node's value from its parts' and its text; no parts where the grammar does not know it."""
    match node, parts:
        case ast.UnaryOp(op=sign), [operand]:
            return UNARY[type(sign)](operand)
        case ast.BinOp(op=operator), [left, right]:
            return BINARY[type(operator)](left, right)
        case ast.Call(func=ast.Name(id=name)), [argument]:
            return FUNCTIONS[name](argument)
        case ast.Constant(value=int() | float() as value), _ if not isinstance(value, bool):
            return (
                values.number(lambda: Fraction(value)) if isinstance(value, int) else values.literal(source)
            )
        case ast.Name(id="D"), _:
            return SignedKernel(True, power())
        case ast.Name(id=name), _ if NAME.fullmatch(name):
            return SignedScale(False, Scale(1.0, (name,)))
        case ast.Name(id=name), _ if name in FUNCTIONS:
            raise ClosureError(f"{name} takes an argument in parentheses")
        case ast.Name(id=name), _:
            close = [x for x in (name.lower(), name.upper()) if x in KNOWN or NAME.fullmatch(x)]
            hint = f"did you mean {close[0]}? " if close else ""
            raise ClosureError(f"unknown name; {hint}{GRAMMAR}")
    raise ClosureError(GRAMMAR)
