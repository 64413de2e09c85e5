"""A rule, what takes it out, and the tests that must notice."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from tests.proofs.mutation.changes import Change
from tests.proofs.mutation.places import Code

#: tests outside of tests/core that need no server
_ALSO_QUICK = (
    "tests/interfaces/test_config_logs.py",
    "tests/interfaces/test_live_state.py",
    "tests/kafka/test_assignment.py",
    "tests/ops/test_counting_metrics.py",
)


@dataclass(frozen=True, slots=True)
class Mutant:
    """``rule``: in plain words; ``change``: what is done to ``place``; ``tests``: the tests that must fail then, as
    pytest's words, or ``-m module``."""

    rule: str
    place: str
    change: Change
    tests: str

    @property
    def quick(self) -> bool:
        """Whether no server is needed to notice it."""
        return self.tests.startswith(("tests/core/", "-m ")) or self.tests in _ALSO_QUICK

    def source(self, code: Code) -> tuple[Path, str]:
        """The file that holds the place, and its text with the rule taken out. `PlaceError` where it isn't there."""
        place = code.find(self.place)
        tree, node = code.tree(place)
        self.change.apply(node)
        return place.path, ast.unparse(tree) + "\n"
