"""Takes rules of the code out, one at a time, in a copy of it: the tests named beside each must then fail.

The rules are in `tests.proofs.mutation`. A rule whose removal no test notices is a rule that nothing holds; a rule that
is no longer where the list says is not tried at all; a test that fails without the change notices nothing. Each of
these makes the exit status 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from stream.demo.private_kafka import QUICK_START, PrivateKafka
from stream.demo.private_postgres import PrivateServer
from tests.proofs.mutation.mutant import Mutant
from tests.proofs.mutation.places import Code, PlaceError
from tests.proofs.mutation.rules import GROUPS, MUTANTS

ROOT = Path(__file__).resolve().parents[2]
_COPIED = ("stream", "connectors", "tests", "pyproject.toml", "benchmarks", "docs")
_PYTEST = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider")


@dataclass(frozen=True, slots=True)
class Result:
    """``problem``: why the rule counts as not held; empty: its removal was noticed."""

    mutant: Mutant
    problem: str
    seconds: float


class Trial:
    """A copy of the code in ``folder``, and the servers that all runs share."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._base = folder / "base"
        self._environment = environment
        self._base.mkdir()
        for name in _COPIED:
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy2
            copy(source, self._base / name)
        self._code = Code(self._base)

    def unchanged(self, words: Sequence[str]) -> str:
        """Run tests on the code as it is; what they said where they fail, else empty."""
        status, said = self._run(self._base, words)
        return said if status else ""

    def of(self, mutant: Mutant) -> Result:
        """Whether the mutant's tests fail without its rule."""
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="mutant-", dir=self._folder) as made:
            folder = Path(made) / "code"
            shutil.copytree(self._base, folder)
            try:
                path, text = mutant.source(self._code)
            except PlaceError as error:
                return Result(mutant, f"NOT FOUND: {mutant.place}: {error}", 0.0)
            (folder / path).write_text(text, "utf-8")
            status, said = self._run(folder, _words(mutant.tests))
        problem = {0: "NOT NOTICED", 1: ""}.get(status, f"NOT TRIED (exit status {status}): {said}")
        return Result(mutant, problem, time.monotonic() - began)

    def _run(self, folder: Path, words: Sequence[str]) -> tuple[int, str]:
        result = subprocess.run(
            [sys.executable, *words],
            cwd=folder,
            env={**os.environ, **self._environment, "PYTHONPATH": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return result.returncode, result.stdout[-4000:]


def _words(tests: str) -> list[str]:
    words = tests.split()
    return words if words[0] == "-m" else [*_PYTEST, *words]


def _all_tests(mutants: Sequence[Mutant]) -> Iterator[list[str]]:
    """Every test that a mutant names, in as few runs as may be."""
    alone = dict.fromkeys(m.tests for m in mutants if m.tests.startswith("-m ") or " " in m.tests)
    yield from (_words(tests) for tests in alone)
    together = dict.fromkeys(m.tests for m in mutants if m.tests not in alone)
    if together:
        yield [*_PYTEST, *together]


@contextmanager
def _servers(mutants: Sequence[Mutant]) -> Iterator[dict[str, str]]:
    """One PostgreSQL and one broker that all runs share, where one is needed and none is given: how tests find them."""
    found = {}
    with ExitStack() as closing:
        if any(not m.quick for m in mutants) and "SENTSTREAM_TEST_DATABASE_URL" not in os.environ:
            found["SENTSTREAM_TEST_DATABASE_URL"] = closing.enter_context(PrivateServer()).url()
        if any("kafka" in m.tests for m in mutants) and "SENTSTREAM_TEST_KAFKA" not in os.environ:
            found["SENTSTREAM_TEST_KAFKA"] = closing.enter_context(PrivateKafka(jvm=QUICK_START)).bootstrap
        yield found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only those that need no server")
    parser.add_argument("--group", choices=GROUPS, help="only those of this group")
    parser.add_argument(
        "--only", action="append", metavar="TEXT", help="only those with this in their rule, place or tests; repeatable"
    )
    parser.add_argument("--jobs", type=int, default=2, help="how many to try at once (default: 2)")
    given = parser.parse_args()
    chosen = [mutant for mutant in GROUPS.get(given.group, MUTANTS) if mutant.quick or not given.quick]
    if given.only:
        chosen = [m for m in chosen if any(it in text for it in given.only for text in (m.rule, m.place, m.tests))]
    if not chosen:
        parser.error("no such mutant")
    began = time.monotonic()
    held = 0
    with (
        tempfile.TemporaryDirectory(prefix="sentstream-mutants-") as folder,
        _servers(chosen) as environment,
        ThreadPoolExecutor(given.jobs) as pool,
    ):
        trial = Trial(Path(folder), environment)
        for said in pool.map(trial.unchanged, _all_tests(chosen)):
            if said:
                print(f"{said}\nmutants: some of these tests fail without any change: NOT HELD")
                return 1
        for result in pool.map(trial.of, chosen):
            held += not result.problem
            mutant = result.mutant
            print(
                f"{result.problem or 'noticed':12} {result.seconds:4.0f} s  {mutant.rule}  ({mutant.tests})", flush=True
            )
    print(
        f"mutants: {len(chosen)} rules taken out, {held} noticed, {time.monotonic() - began:.0f} s: "
        f"{'all held' if held == len(chosen) else 'NOT HELD'}"
    )
    return 0 if held == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
