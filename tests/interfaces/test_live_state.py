"""The web server's own state: the database's clock."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone

import pytest

from stream.web.live_state import LiveState

MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize("ahead", [10 * MINUTE, -10 * MINUTE])
def test_now_is_what_the_databases_clock_says(ahead: timedelta) -> None:
    """Ahead of ours or behind it; a reading that came late says too little."""

    async def read() -> timedelta:
        live = LiveState()
        for late in (MINUTE, timedelta(0), 2 * MINUTE):
            live.set_clock(datetime.now(timezone.utc) + ahead - late)
        return live.now() - datetime.now(timezone.utc)

    assert abs(asyncio.run(read()) - ahead) < MINUTE / 2
