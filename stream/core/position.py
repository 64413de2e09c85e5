"""Where something stands in the WAL: the commit LSN of its transaction, and its ordinal inside it.

A boundary between transactions is ``(next LSN, 0)``. Positions compare like tuples, so "before" is ``<``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})\Z")


class Position(NamedTuple):
    """``lsn``: a byte position in the WAL (64 bits); ``seq``: the ordinal of an entry in its transaction."""

    lsn: int
    seq: int = 0

    def __str__(self) -> str:
        """Text that sorts as the position does (hexadecimal, fixed width)."""
        return f"{self.lsn:016X}.{self.seq:08X}"


def lsn_text(lsn: int) -> str:
    """An LSN as PostgreSQL prints it: ``16/B374D848``."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def parse_lsn(text: str) -> int:
    """The LSN that PostgreSQL prints as ``text``; ValueError where it is none."""
    match = _LSN.match(text)
    if match is None:
        raise ValueError(f"not an LSN: {text!r}")
    return int(match[1], 16) << 32 | int(match[2], 16)
