"""An act of the simulated mailer: what is done, and to what."""

from __future__ import annotations

from dataclasses import dataclass

#: a mail on its way: campaign and row
Mail = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Act:
    """What to do: ``mails`` for acts on rows, ``campaign`` for acts on one, ``n`` for how many or which variant."""

    name: str
    campaign: int = 0
    mails: tuple[Mail, ...] = ()
    n: int = 0
