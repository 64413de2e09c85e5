"""What a proof raises where something is not as it must be."""

from __future__ import annotations


class Found(AssertionError):
    """A world in which something was not as it must be."""
