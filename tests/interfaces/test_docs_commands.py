"""Commands in the README and the pages beside it: each can be typed, each make target and each module is there.

docs/commands.md and docs/operations/ have tests of their own. Here the real command line takes each line apart and
shows its help; what the commands do is tested in `tests/interfaces` and `tests/postgres`.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

from tests.interfaces.fix_counted import Run, run

__all__ = ["run"]

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/architecture.md", "docs/guarantees.md", "docs/comparison.md", "docs/evidence.md")
TEXT = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}

#: a line of a block, or a word between back quotes
LINE = re.compile(r"^ *(?:\$ )?(?:\.venv/bin/)?sentstream ([a-z-]+\b[^\n#]*)", re.MULTILINE)
QUOTED = re.compile(r"`sentstream ([a-z-]+\b[^`\n]*)`")
BLOCK = re.compile(r"^```(?:sh|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def typed(text: str) -> set[str]:
    """What stands behind `sentstream`, without comments; words in capitals are somebody's values."""
    lines = {line for block in BLOCK.findall(text) for line in LINE.findall(block)}
    lines |= set(QUOTED.findall(text))
    return {line.strip().replace("CAMPAIGN", "7").replace("DIGEST", "0" * 64) for line in lines}


def test_every_line_can_be_typed(run: Run) -> None:
    for page, text in TEXT.items():
        for line in sorted(typed(text)):
            found = run(*shlex.split(line), "--help")
            assert (found.code, found.err) == (0, ""), f"{page}: {line}"


def test_there_are_lines() -> None:
    assert len(typed(TEXT["README.md"])) > 12


def test_make_targets_are_there() -> None:
    makefiles = "".join((ROOT / path).read_text(encoding="utf-8") for path in ("Makefile", "scripts/proofs.mk"))
    targets = set(re.findall(r"^([a-z-]+):", makefiles, re.MULTILINE))
    named = {
        target
        for text in TEXT.values()
        for target in re.findall(r"(?:`|^ {4}|; |600 )make ([a-z-]+)", text, re.MULTILINE)
    }
    assert named >= {"run", "test", "bench", "simulate"}
    assert named <= targets


def test_modules_are_there() -> None:
    named = {name for text in TEXT.values() for name in re.findall(r"python -m ([a-z_]+(?:\.[a-z_]+)*)", text)}
    assert named
    assert [name for name in sorted(named) if importlib.util.find_spec(name) is None] == []
