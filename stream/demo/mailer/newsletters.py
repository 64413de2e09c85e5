"""The newsletters of the demo: names, sizes and how fast they go. Data, and the pure decisions about it.

Sizes and rates let a viewer see campaigns begin, end, pause and go on within some minutes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Final


@dataclass(frozen=True, slots=True)
class Newsletter:
    """``readers``: rows it queues; ``rate``: mails a second, about; ``begins``: seconds after the demo's start."""

    name: str
    readers: int
    rate: float
    begins: float


#: what goes out when the demo begins, and soon after
OPENING: Final = (
    Newsletter("Weekly digest No. 31", 4200, 14.0, 0),
    Newsletter("Spring seed list", 9600, 22.0, 0),
    Newsletter("Club members' letter", 480, 2.0, 0),
    Newsletter("Museum nights: programme", 2600, 8.0, 6),
    Newsletter("Night-sky calendar", 3100, 9.0, 12),
    Newsletter("Product news", 6400, 16.0, 45),
)

#: the one that a person pauses, when, and when it goes on
PAUSED: Final = "Night-sky calendar"
PAUSE_AT: Final = 40.0
RESUME_AT: Final = 400.0

#: what comes after that: names with a running number
_LATER: Final = (
    ("Weekly digest No. {}", 4200, 14.0),
    ("Recipes of the week, {}", 1500, 7.0),
    ("Repair café reminder {}", 350, 2.0),
    ("Price list {}", 7800, 20.0),
    ("Letter to our patrons, {}", 900, 4.0),
    ("Course programme {}", 5200, 15.0),
)
_FIRST_NUMBER: Final = 32

#: seconds between two new ones, at least and at most
_PAUSE_BETWEEN: Final = (60.0, 110.0)

#: sends outside the queue: the mailer counts it itself, and sentstream leaves it alone
OUTSIDE_THE_QUEUE: Final = "Order confirmations"
OUTSIDE_SENT: Final = 318
OUTSIDE_TO_SEND: Final = 8600

#: the campaign of the issue: sent, and its counter never moved; tracked and delivered differ too
HISTORY_NAME: Final = "Autumn catalogue"
HISTORY_SENT: Final = 20_323
HISTORY_TRACKED: Final = 20_318
HISTORY_DELIVERED: Final = 1_282


def later(number: int, rng: Random, now: float) -> Newsletter:
    """The ``number``-th newsletter after the opening ones, which begins some time after ``now``."""
    name, readers, rate = _LATER[number % len(_LATER)]
    begins = now + rng.uniform(*_PAUSE_BETWEEN)
    size = int(readers * rng.uniform(0.7, 1.3))
    return Newsletter(name.format(_FIRST_NUMBER + number // len(_LATER)), size, rate * rng.uniform(0.8, 1.2), begins)


def pace(rate: float, age: float, phase: float) -> float:
    """Mails a second of a campaign now: it starts slowly, breathes a little, and never stops."""
    ramp = min(1.0, 0.2 + age / 6)
    breath = 1 + 0.25 * math.sin(age / 7 + phase) + 0.1 * math.sin(age / 2.3 + 2 * phase)
    return rate * ramp * breath
