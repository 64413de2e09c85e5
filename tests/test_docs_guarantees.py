"""docs/guarantees.md: each sentence names a test that tries to break it, and each named test exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
#: each promise, from its bold words to the next one or a heading
PROMISES = re.findall(r"^- \*\*(.*?)(?=^- \*\*|^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)


@cache
def defined_in(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


@cache
def long_in(path: str) -> frozenset[str]:
    """Tests that `make test` leaves out: marked as a whole, alone or with their module."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    marks = [
        node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]
    everything = any(_is_long(mark.value) for mark in marks)
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return frozenset(it.name for it in functions if everything or any(map(_is_long, it.decorator_list)))


def _is_long(mark: ast.expr) -> bool:
    if isinstance(mark, (ast.List, ast.Tuple)):
        return any(map(_is_long, mark.elts))
    return ast.unparse(mark).startswith(
        ("pytest.mark.slow", "pytest.mark.system", "pytest.mark.browser", "pytest.mark.alerts")
    )


def test_every_named_test_exists() -> None:
    named = set(NAMED.findall(PAGE))
    assert [path for path, _ in sorted(named) if not (ROOT / path).is_file()] == []
    assert [f"{path}::{name}" for path, name in sorted(named) if name not in defined_in(path)] == []


def test_every_sentence_names_its_test_or_says_that_there_is_none() -> None:
    assert len(PROMISES) > 30
    bare = [text.split("**")[0] for text in PROMISES if not NAMED.search(text) and "No test" not in text]
    assert bare == []


def test_every_sentence_has_a_test_that_make_test_runs() -> None:
    promised = [(text.split("**")[0], NAMED.findall(text)) for text in PROMISES]
    late = [words for words, tests in promised if tests and all(name in long_in(path) for path, name in tests)]
    assert late == []


def test_nothing_is_called_a_test_that_the_page_does_not_name_in_full() -> None:
    assert len(re.findall(r"::test_", PAGE)) == len(NAMED.findall(PAGE))
