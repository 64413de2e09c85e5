"""The name under which a worker is a static member of its group."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from pathlib import Path
from typing import Final

from stream.config.settings import Settings
from stream.core.errors import ConfigurationError

#: workers of one host that can find a name by themselves
_NUMBERS: Final = 1000


class InstanceName:
    """KAFKA_INSTANCE, or the host's name and the lowest number that no other worker of this host has. A number is held
    by a lock on a file, which ends with the process. The folder is shared with other users: a file that can't be opened
    is passed over."""

    def __init__(self, settings: Settings) -> None:
        self.name = settings.kafka_instance
        self._prefix = settings.kafka_topic_prefix
        self._lock: int | None = None

    def __enter__(self) -> InstanceName:
        folder = Path(tempfile.gettempdir())
        for number in range(1, _NUMBERS):
            if self.name:
                break
            self._lock = _locked(folder / f"sentstream-work-{self._prefix}-{os.getuid()}-{number}.lock")
            if self._lock is not None:
                self.name = f"{socket.gethostname()}-{number}"
        if not self.name:
            raise ConfigurationError(
                f"No name is found for this worker: its lock files in {folder} can't be opened.",
                "Give each worker a name (SENTSTREAM_KAFKA_INSTANCE), or set TMPDIR to a folder that it may write.",
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)


def _locked(file: Path) -> int | None:
    """The file, opened and locked; None where another process has it, or it can't be opened."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
