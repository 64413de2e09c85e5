"""Campaigns that the topic of progress still shows and that are gone: found, and taken off.

A tombstone is published after the commit that took the campaign away. A worker that dies in between, or loses the
partition, never sends it, and the next owner loads a partition in which nothing tells of the campaign any more: a
reader of the compacted topic would keep a phantom for good. So a worker that has published a partition whole then
reads which campaigns the topic shows (`fold`, `campaigns_of`: far from the event loop, and it may take its time), and
hands them to the partition's `Due` as suspects. A suspect that the partition's state does not have gets a tombstone.

**Why no tombstone comes after the row of a campaign that lives, or that comes (again) meanwhile.** What counts is not
when the topic was read but when the tombstone is taken to be sent, which is when the state is asked (`Due.take`):

1. A row is published only after a flush of the state that has the campaign. So where the state lacks a campaign now,
   all rows of it that were published so far, or wait here, are of a life that is over.
2. The state is asked, the tombstone set, and all that waits is taken in one step, in the thread that applies records
   and puts rows in. A row that is put in later is sent later: rounds follow each other, a partition keeps their order.
   (A campaign that was applied and not yet flushed is known to the state, and gets no tombstone at all.)
3. A round that failed waits again only below what is newer: a row replaces the tombstone, never the other way round.
4. What was given up is dropped with its `Due`, so a round that fails after that brings no campaign back.

A campaign that the state has when it is asked is a suspect no longer: when it goes, its own tombstone is due, and where
that gets lost the next load begins all this anew. While a partition is not based it is not known which campaigns live,
and its suspects wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from stream.core.partitioner import partition_of

WATERMARK: Final = b"watermark:"
#: digits of the largest campaign id there can be (64 bits)
_DIGITS: Final = 19


def fold(living: set[bytes], records: Iterable[tuple[bytes | None, bytes | None]]) -> None:
    """Go on with ``living``, the keys whose newest value is no tombstone: records (key, value), in order."""
    for key, value in records:
        if key is None or key.startswith(WATERMARK):
            continue
        if value is None:
            living.discard(key)
        else:
            living.add(key)


def campaigns_of(keys: Iterable[bytes], number: int, partitions: int) -> set[int]:
    """The campaigns of these keys. A key that is none of ours, or belongs to another partition (where the campaign may
    live), is left alone."""
    found = set()
    for key in keys:
        if not key.isdigit() or len(key) > _DIGITS:
            continue
        campaign = int(key)
        if key == b"%d" % campaign and partition_of(campaign, partitions) == number:
            found.add(campaign)
    return found


class Due:
    """What of one partition waits to be published: by key the newest value alone, None for a tombstone."""

    def __init__(self) -> None:
        self._values: dict[bytes, bytes | None] = {}
        self._suspects: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._values or self._suspects)

    def put(self, key: bytes, value: bytes | None) -> None:
        """A newer value of ``key``."""
        self._values[key] = value

    def suspect(self, campaigns: Iterable[int]) -> None:
        """Campaigns that the topic shows, and that may be gone."""
        self._suspects.update(campaigns)

    def take(self, has: Callable[[int], bool] | None) -> tuple[dict[bytes, bytes | None], list[int]]:
        """All that is to be sent now, and which phantoms are taken off by it. ``has``: whether the partition's state
        has a campaign; None while the state can't be asked."""
        phantoms: list[int] = []
        if has is not None and self._suspects:
            phantoms = sorted(campaign for campaign in self._suspects if not has(campaign))
            self._suspects = set()
            for campaign in phantoms:
                self._values[b"%d" % campaign] = None
        values, self._values = self._values, {}
        return values, phantoms

    def again(self, values: dict[bytes, bytes | None]) -> None:
        """What was taken could not be sent: it waits again, unless something newer does."""
        self._values = {**values, **self._values}
