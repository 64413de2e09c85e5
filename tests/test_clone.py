"""What a clone promises before anything runs: commands of the Makefile, exact and address-free locks, a whole wheel."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROMISED = {
    "run", "test", "test-all", "simulate", "mutants", "chaos", "fuzz", "bench", "soak",
    "lint", "types", "format", "lock", "clean",
}  # fmt: skip


def test_every_promised_target_is_one_that_does_something() -> None:
    said = subprocess.run(
        ["make", "--dry-run", *sorted(PROMISED)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for target in sorted(PROMISED - {"test-all"}):
        alone = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True)
        assert alone.stdout.strip(), target
        assert "nothing to be done" not in alone.stdout.lower(), target
    assert "No rule" not in said.stderr


@pytest.mark.parametrize("name", ["run", "dev"])
def test_a_lock_has_hashes_for_all_and_no_address(name: str) -> None:
    text = (ROOT / "locks" / f"{name}.txt").read_text()
    packages = re.split(r"\n(?=\S)", text.strip())
    assert len(packages) > 30
    for package in packages:
        assert re.match(r"[a-z0-9._-]+(\[[a-z,-]+\])?==[^ ]+( ; [^\\]+)? \\\n", package), package[:80]
        assert "--hash=sha256:" in package
    assert "://" not in text


def test_the_locks_have_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = {
        "run": [*project["dependencies"], *extras["kafka"], *extras["local"], *extras["build"]],
        "dev": [requirement for group in (project["dependencies"], *extras.values()) for requirement in group],
    }
    for name, requirements in asked.items():
        locked = set(re.findall(r"^([a-z0-9._-]+)", (ROOT / "locks" / f"{name}.txt").read_text(), re.MULTILINE))
        wanted = {re.match(r"[A-Za-z0-9._-]+", one)[0].lower() for one in requirements}  # type: ignore[index]
        assert wanted - {"sentstream"} <= locked, f"run scripts/lock.sh: locks/{name}.txt lacks these"
    for requirement in (one for group in (project["dependencies"], *extras.values()) for one in group):
        # tzdata is data, versioned by date: newer is always right
        if not requirement.startswith(("sentstream", "tzdata")):
            assert re.search(r">=|==", requirement), f"no bound below: {requirement}"
            assert re.search(r"<|==", requirement), f"no bound above: {requirement}"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with no .venv and the files that make one."""
    for name in ("scripts", "locks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy2(ROOT / name, tmp_path / name)
    return tmp_path


def _python(folder: Path, script: str) -> str:
    path = folder / "fake-python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (
            '[ "$1" = --version ] && echo "Python 3.8.20" && exit; exit 1',
            "needs Python 3.10 or newer, found Python 3.8.20",
        ),
        (f'case "$*" in *ensurepip*) exit 1;; esac; exec {sys.executable} "$@"', "lacks the module venv"),
        ("exit 127", "needs Python 3.10 or newer, found none"),
    ],
    ids=["too-old", "no-venv", "none"],
)
def test_a_python_that_will_not_do_gets_one_line_with_the_fix(clone: Path, script: str, expected: str) -> None:
    done = subprocess.run(
        ["make", "run", f"PYTHON={_python(clone, script)}"], cwd=clone, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(said) == 1
    assert expected in said[0]
    assert "install" in said[0]
    assert not (clone / ".venv").exists()
