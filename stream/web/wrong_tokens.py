"""Makes guessing the token slow, without keeping those who have it out.

A wrong token is answered after a delay, one at a time. Few requests may wait for that; the others are refused at once
and hold no connection. An address with many wrong tokens within a minute is not compared any more for that minute.
Loopback is exempt from the latter: it may be a proxy, and so every client.
"""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Final

from stream.service.auth import is_loopback

#: seconds that a wrong token costs
DELAY: Final = 0.5
MAX_WAITING: Final = 8
#: wrong tokens that an address may send within `WINDOW` seconds
GUESSES: Final = 20
WINDOW: Final = 60.0
MAX_ADDRESSES: Final = 10_000


class WrongTokens:
    """Counts wrong tokens and delays their answers. Belongs to the event loop."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._counts: dict[str, tuple[float, int]] = {}

    def is_blocked(self, address: str, now: float) -> bool:
        """Whether ``address`` sent too many wrong tokens lately."""
        since, count = self._counts.get(_network(address), (now, 0))
        return count >= GUESSES and now - since < WINDOW

    def note(self, address: str, now: float) -> None:
        """Count a wrong token of ``address``."""
        if is_loopback(address):
            return
        network = _network(address)
        since, count = self._counts.pop(network, (now, 0))
        self._counts[network] = (now, 1) if now - since >= WINDOW else (since, count + 1)
        if len(self._counts) > MAX_ADDRESSES:
            del self._counts[next(iter(self._counts))]

    async def delay(self) -> bool:
        """Wait before a wrong token is answered; False at once where too many wait already."""
        if self._waiting >= MAX_WAITING:
            return False
        self._waiting += 1
        try:
            async with self._turn:
                await asyncio.sleep(DELAY)
        finally:
            self._waiting -= 1
        return True


def _network(address: str) -> str:
    """A client with IPv6 has a /64 of addresses."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    return address if found.version == 4 else str(ipaddress.ip_network((found, 64), strict=False))
