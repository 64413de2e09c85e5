"""Prometheus and promtool for tests: from the PATH, else Debian's package, unpacked here, else built with Go.

None of the three to be had is a failure, never a skip.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "ops"
_PACKAGE = "github.com/prometheus/prometheus/cmd/"


@functools.cache
def program(name: str) -> str:
    """Path of ``promtool`` or ``prometheus``."""
    found = shutil.which(name) or shutil.which(name, path=str(CACHE))
    if found:
        return found
    CACHE.mkdir(parents=True, exist_ok=True)
    if shutil.which("apt-get") and shutil.which("dpkg") and _from_debian():
        return str(CACHE / name)
    _build(name)
    return str(CACHE / name)


def _from_debian() -> bool:
    """Both programs out of the package, which is not installed; whether that went well."""
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        got = subprocess.run(["apt-get", "download", "prometheus"], cwd=folder, capture_output=True, check=False)
        packages = list(Path(folder).glob("*.deb"))
        if got.returncode or not packages:
            return False
        subprocess.run(["dpkg", "-x", str(packages[0]), folder], check=True)
        for name in ("prometheus", "promtool"):
            Path(folder, "usr", "bin", name).replace(CACHE / name)
    return True


def _build(name: str) -> None:
    """As tests/ops/tools/go.mod pins it, without service discovery, which takes half the time."""
    go = shutil.which("go")
    if go is None:
        sys.exit(f"{name} is not there: install Prometheus, or Go 1.26 or newer, with which the tests build it.")
    words = [go, "build", "-tags", "remove_all_sd", "-o", str(CACHE / name), _PACKAGE + name]
    subprocess.run(words, cwd=Path(__file__).parent / "tools", check=True)
