"""What a proof raises where something is not as it must be."""

from __future__ import annotations


class Found(AssertionError):  # noqa: N818 - it is what was looked for
    """A world in which something was not as it must be."""
