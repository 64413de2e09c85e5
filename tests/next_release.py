"""The next release, made from this one by what a release may bring: a fold of another version, and a migration.

There is one release so far, so this is how an upgrade is tried: a copy of the code, run from a folder of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from connectors.postgres.setup.versions import migrations
from stream.core.fold import FOLD_VERSION

ROOT = Path(__file__).parents[1]
_MIGRATION = "ALTER TABLE sentstream.progress ADD COLUMN of_the_next_release integer NOT NULL DEFAULT 0;\n"


def next_release(folder: Path) -> Path:
    """Make it below ``folder``; where to run `python -m stream.cli` for it."""
    home = folder / "next-release"
    for package in ("stream", "connectors"):
        shutil.copytree(ROOT / package, home / package, ignore=shutil.ignore_patterns("__pycache__"))
    fold = home / "stream" / "core" / "fold.py"
    text = fold.read_text()
    line = f"FOLD_VERSION: Final = {FOLD_VERSION}\n"
    assert text.count(line) == 1
    fold.write_text(text.replace(line, f"FOLD_VERSION: Final = {FOLD_VERSION + 1}\n"))
    number = migrations()[-1].version + 1
    file = home / "connectors" / "postgres" / "setup" / "migrations" / f"{number:04}_next_release.sql"
    file.write_text(_MIGRATION)
    return home


def command(home: Path, environment: dict[str, str], *words: str) -> str:
    """What a command of the release in ``home`` prints; it must end with 0."""
    found = subprocess.run(
        [sys.executable, "-m", "stream.cli", *words],
        cwd=home,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout
