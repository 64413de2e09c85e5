"""The JSON Schemas of the three topics, by version. A version never changes; a new one gets a file of its own."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any, Final

TOPICS: Final = ("changes", "progress", "verdicts")


def schema(topic: str, version: int = 1) -> dict[str, Any]:
    """The schema of a topic's values. KeyError where there is none of that version."""
    file = resources.files(__name__) / f"{topic}.v{version}.json"
    if not file.is_file():
        raise KeyError(f"{topic}, version {version}")
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found
