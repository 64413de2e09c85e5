"""Where a mutant stands: a class, function or constant, by its qualified name, in whichever file it lives now."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("stream", "connectors")


class PlaceError(LookupError):
    """The code no longer has what a mutant is to change; the message says what was looked for."""


@dataclass(frozen=True, slots=True)
class Place:
    """A named piece of code: ``path`` is relative to the tree's root, ``name`` the name inside the module."""

    path: Path
    name: str

    @property
    def qualified(self) -> str:
        parts = self.path.with_suffix("").parts
        return ".".join((*(parts[:-1] if parts[-1] == "__init__" else parts), self.name))


class Code:
    """All product code below ``root``, read once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._places = {
            place.qualified: place
            for package in PACKAGES
            for path in sorted((root / package).rglob("*.py"))
            for place in (Place(path.relative_to(root), name) for name, _ in _named(_parsed(path)))
        }

    def find(self, name: str) -> Place:
        """The only class, function or constant whose qualified name is ``name`` or ends in it, at a dot."""
        found = [place for qualified, place in self._places.items() if f".{qualified}".endswith(f".{name}")]
        if not found:
            raise PlaceError(f"no class, function or constant {name} in {' or '.join(PACKAGES)}")
        if len(found) > 1:
            raise PlaceError(f"{name} is ambiguous: {', '.join(place.qualified for place in found)}")
        return found[0]

    def tree(self, place: Place) -> tuple[ast.Module, ast.AST]:
        """The syntax tree of the place's module, for the caller alone, and the place in it."""
        tree = _parsed(self._root / place.path)
        return tree, dict(_named(tree))[place.name]


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def _named(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Every class, function and assigned name below ``node``, with its qualified name inside the module."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{prefix}{child.name}", child
            yield from _named(child, f"{prefix}{child.name}.")
        elif isinstance(child, (ast.Assign, ast.AnnAssign)) and not isinstance(node, (ast.FunctionDef, ast.Lambda)):
            targets = child.targets if isinstance(child, ast.Assign) else [child.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    yield f"{prefix}{target.id}", child
        elif isinstance(child, (ast.If, ast.Try, ast.With)):
            yield from _named(child, prefix)
