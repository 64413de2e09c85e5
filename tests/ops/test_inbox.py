"""The inbox between flush thread and serving thread: newest of each campaign, one wake, nothing lost."""

from __future__ import annotations

import threading

from stream.core.committed import CampaignRow, CommittedFlush
from stream.core.position import Position
from stream.service.inbox import Inbox


def row(campaign: int, sent: int = 0) -> CampaignRow:
    return CampaignRow(campaign, "Sale", "running", 100, (100 - sent, 0, sent, 0, 0), 0, sent)


def flush(at: int, *rows: CampaignRow) -> CommittedFlush:
    return CommittedFlush(1, 0, Position(at), None, True, rows)


def test_the_inbox_keeps_the_newest_of_each_campaign_and_wakes_once() -> None:
    woken: list[str] = []
    inbox = Inbox()
    inbox.on_arrival(lambda: woken.append(threading.current_thread().name))
    for at in range(1, 1000):
        inbox.flushed(flush(at, row(at % 3, at)))
    (taken,) = inbox.take()
    assert {it.campaign_id: it.sent for it in taken.rows} == {0: 999, 1: 997, 2: 998}
    assert taken.position == Position(999)
    assert len(woken) == 1
    assert inbox.take() == ()


def test_what_arrived_before_the_listener_came_is_not_lost() -> None:
    inbox, woken = Inbox(), []
    inbox.flushed(flush(1, row(7)))
    inbox.on_arrival(lambda: woken.append(1))
    assert woken == [1]
    assert len(inbox.take()) == 1
