"""The mutator itself, and that every mutant of the list still has its place and its tests."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.proofs.mutation import changes
from tests.proofs.mutation.mutant import Mutant
from tests.proofs.mutation.places import Code, PlaceError
from tests.proofs.mutation.rules import MUTANTS

ROOT = Path(__file__).resolve().parents[2]
SOURCE = '''
LIMIT: int = 3
QUERY = """
SELECT 1
FROM t   WHERE a = %s"""

class Box:
    """A box."""
    def put(self, n: int) -> int:
        if n > LIMIT:
            self.full(n)
        return min(n, LIMIT, key=abs)
'''


@pytest.fixture
def code(tmp_path: Path) -> Path:
    for package in ("stream", "connectors"):
        (tmp_path / package / "deep").mkdir(parents=True)
    (tmp_path / "stream" / "deep" / "box.py").write_text(SOURCE)
    return tmp_path


def mutated(code: Path, place: str, change: changes.Change) -> str:
    path, text = Mutant("", place, change, "").source(Code(code))
    assert path == Path("stream/deep/box.py")
    return text


@pytest.mark.parametrize(
    ("place", "change", "expected"),
    [
        ("Box.put", changes.drop("self.full(n)"), "if n > LIMIT:\n            pass"),
        ("deep.box.Box.put", changes.never("n > LIMIT"), "if False:"),
        ("put", changes.always("... > LIMIT"), "if True:"),
        ("Box", changes.negated("n > LIMIT"), "if not n > LIMIT:"),
        ("put", changes.swap("return min(...,...,key=abs)", "return 7"), "return 7"),
        ("put", changes.swap("if n > LIMIT: ...", "n = 3"), "n = 3"),
        ("put", changes.keyword("min", "key", None), "min(n, LIMIT)"),
        ("put", changes.keyword("min", "key", "len"), "min(n, LIMIT, key=len)"),
        ("put", changes.body("return n"), "def put(self, n: int) -> int:\n        return n"),
        ("LIMIT", changes.swap("3", "4"), "LIMIT: int = 4"),
        ("QUERY", changes.sql("FROM t WHERE a", "FROM u WHERE b"), "FROM u WHERE b = %s"),
    ],
)
def test_a_change_is_made_where_it_is_meant(code: Path, place: str, change: changes.Change, expected: str) -> None:
    text = mutated(code, place, change)
    assert expected in text
    assert text != ast.unparse(ast.parse(SOURCE)) + "\n"


@pytest.mark.parametrize(
    ("place", "change", "said"),
    [
        ("Box.take", changes.drop("self.full(n)"), "no class, function or constant Box.take"),
        ("ut", changes.drop("self.full(n)"), "no class, function or constant ut"),
        ("put", changes.drop("self.full(m)"), "not found"),
        ("put", changes.swap("LIMIT", "4"), "found 2 times"),
        ("QUERY", changes.sql("FROM v", "FROM w"), "not found"),
    ],
)
def test_a_place_that_is_gone_is_said(code: Path, place: str, change: changes.Change, said: str) -> None:
    with pytest.raises(PlaceError, match=said):
        mutated(code, place, change)


def test_a_name_that_stands_twice_is_said(code: Path) -> None:
    (code / "connectors" / "other.py").write_text("class Box: ...\n")
    with pytest.raises(PlaceError, match=r"ambiguous: stream.deep.box.Box, connectors.other.Box"):
        mutated(code, "Box", changes.drop("pass"))


def test_every_mutant_has_its_place() -> None:
    code = Code(ROOT)
    gone = []
    for mutant in MUTANTS:
        try:
            mutant.source(code)
        except PlaceError as error:
            gone.append(f"{mutant.rule}: {mutant.place}: {error}")
    assert gone == []


def test_every_mutant_names_tests_that_exist() -> None:
    for mutant in MUTANTS:
        if mutant.tests.startswith("-m "):
            continue
        file, _, name = mutant.tests.split()[0].partition("::")
        tree = ast.parse((ROOT / file).read_text("utf-8"))
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not name or name.partition("[")[0] in names, mutant.tests
