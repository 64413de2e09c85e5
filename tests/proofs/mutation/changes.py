"""What a mutant does to the syntax tree of its place. Patterns are written as code; ``...`` matches any expression,
or a whole body.

=========================  ========================================================================================
`drop(statement)`          the statement is left out
`swap(old, new)`           the expression or statement ``old`` becomes ``new``
`never(c)`, `always(c)`    the condition ``c`` is false, or true, whatever the world is like
`negated(c)`               the condition ``c`` is turned around
`sql(old, new)`            the fragment ``old`` of a string becomes ``new``; white space does not count
`keyword(call, n, value)`  the call's keyword argument ``n`` becomes ``value``, or is left out (None)
`body(statements)`         a function does this instead
=========================  ========================================================================================

Each must find what it changes exactly once in its place: a `PlaceError` otherwise.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

from tests.proofs.mutation.places import PlaceError


@dataclass(frozen=True, slots=True)
class Change:
    """``says``: in words; ``make``: changes what is below a place, and says how often it found what it changes."""

    says: str
    make: Callable[[ast.AST], int]

    def apply(self, place: ast.AST) -> None:
        """Change ``place``, in its tree."""
        found = self.make(place)
        if found != 1:
            raise PlaceError(f"{self.says}: {f'found {found} times' if found else 'not found'}")
        ast.fix_missing_locations(place)


def drop(statement: str) -> Change:
    return Change(f"drop `{statement}`", _replacing(statement, lambda _: ast.Pass(), statements=True))


def swap(old: str, new: str) -> Change:
    fresh = _parse(new)
    return Change(f"`{old}` becomes `{new}`", _replacing(old, lambda _: fresh))


def never(condition: str) -> Change:
    return Change(f"`{condition}` never holds", _replacing(condition, lambda _: ast.Constant(False)))


def always(condition: str) -> Change:
    return Change(f"`{condition}` always holds", _replacing(condition, lambda _: ast.Constant(True)))


def negated(condition: str) -> Change:
    def new(node: ast.AST) -> ast.AST:
        assert isinstance(node, ast.expr)
        return ast.UnaryOp(ast.Not(), node)

    return Change(f"`{condition}` is negated", _replacing(condition, new))


def sql(old: str, new: str) -> Change:
    pattern = re.compile(r"\s+".join(re.escape(word) for word in old.split()))

    def change(node: ast.AST) -> ast.AST:
        if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            return node
        text, n = pattern.subn(lambda _: new, node.value)
        if n > 1:
            raise PlaceError(f"`{old}` stands {n} times in one string")
        return ast.Constant(text) if n else node

    return Change(f"`{old}` becomes `{new}` in SQL", _everywhere(change))


def keyword(call: str, name: str, value: str | None) -> Change:
    def change(node: ast.AST) -> ast.AST:
        if not (isinstance(node, ast.Call) and ast.unparse(node.func) == call):
            return node
        kept = [it for it in node.keywords if it.arg != name]
        if len(kept) == len(node.keywords):
            return node
        given = [] if value is None else [ast.keyword(name, ast.parse(value, mode="eval").body)]
        return ast.Call(node.func, node.args, given + kept)

    return Change(f"{call}({name}={value or 'left out'})", _everywhere(change))


def body(statements: str) -> Change:
    def make(place: ast.AST) -> int:
        if not isinstance(place, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return 0
        place.body = ast.parse(textwrap.dedent(statements)).body
        return 1

    return Change(f"the body is `{statements}`", make)


class _Replacing(ast.NodeTransformer):
    """Puts what ``new`` answers where it is another node; does not look into what it has put there."""

    def __init__(self, new: Callable[[ast.AST], ast.AST]) -> None:
        self._new = new
        self.found = 0

    def visit(self, node: ast.AST) -> ast.AST:
        new = self._new(node)
        if new is node:
            return super().generic_visit(node)
        self.found += 1
        return new


def _everywhere(new: Callable[[ast.AST], ast.AST]) -> Callable[[ast.AST], int]:
    def make(place: ast.AST) -> int:
        replacing = _Replacing(new)
        replacing.generic_visit(place)
        return replacing.found

    return make


def _replacing(old: str, new: Callable[[ast.AST], ast.AST], *, statements: bool = False) -> Callable[[ast.AST], int]:
    pattern = _parse(old)
    if statements and isinstance(pattern, ast.expr):
        pattern = ast.Expr(pattern)
    return _everywhere(lambda node: new(node) if _matches(pattern, node) else node)


def _parse(code: str) -> ast.AST:
    (statement,) = ast.parse(textwrap.dedent(code)).body
    return statement.value if isinstance(statement, ast.Expr) else statement


def _matches(pattern: object, node: object) -> bool:
    if _is_any(pattern):
        return isinstance(node, ast.expr)
    if isinstance(pattern, ast.AST):
        return type(pattern) is type(node) and all(
            name in _ASIDE or _matches(value, getattr(node, name, None)) for name, value in ast.iter_fields(pattern)
        )
    if isinstance(pattern, list):
        if len(pattern) == 1 and isinstance(pattern[0], ast.Expr) and _is_any(pattern[0].value):
            return isinstance(node, list)  # a body
        return (
            isinstance(node, list)
            and len(pattern) == len(node)
            and all(_matches(one, other) for one, other in zip(pattern, node, strict=True))
        )
    return type(pattern) is type(node) and pattern == node


def _is_any(pattern: object) -> bool:
    return isinstance(pattern, ast.Constant) and pattern.value is ...


#: whether an expression is read or written, and how a string was written, says its place
_ASIDE = {"ctx", "kind", "type_comment"}
