"""Named points at which a test kills, stops or fails a running process: ``name=action[:nth]``, several with commas.

Actions: ``kill`` (SIGKILL to this process), ``stop`` (SIGSTOP), ``raise`` (RuntimeError). ``nth`` counts from 1. In a
normal run the table is empty, and a failpoint costs nothing. ``PLACES`` names them.
"""

from __future__ import annotations

import os
import signal
from typing import Final

from stream.core.errors import ConfigurationError

PLACES: Final = (
    "before_fold",
    "after_fold",
    "before_apply",
    "before_send",
    "after_send",
    "before_flush",
    "after_swap",
    "before_commit",
    "after_commit",
    "before_confirm",
    "after_confirm",
)
_ACTIONS: Final = ("kill", "stop", "raise")
_armed: dict[str, tuple[str, int]] = {}


def arm(text: str) -> None:
    """Set the table from text such as ``after_commit=kill:3``; an empty text disarms all."""
    _armed.clear()
    for word in filter(None, text.split(",")):
        name, _, rest = word.strip().partition("=")
        action, _, nth = rest.partition(":")
        if name not in PLACES or action not in _ACTIONS or not (nth or "1").isdigit():
            raise ConfigurationError(
                f"FAILPOINTS: {word!r} is none.",
                f"Write name=action[:nth]; names: {', '.join(PLACES)}; actions: {_ACTIONS}.",
            )
        _armed[name] = (action, int(nth or "1"))


def failpoint(name: str) -> None:
    """The point ``name`` is reached: nothing happens, unless it is armed and its turn has come."""
    if not _armed or name not in _armed:
        return
    action, left = _armed[name]
    if left > 1:
        _armed[name] = (action, left - 1)
        return
    del _armed[name]
    if action == "raise":
        raise RuntimeError(f"failpoint {name}")
    os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)
