"""Patches for faults of Faust 0.15.

Each is small, names the code of Faust that it replaces, and has a test in ``tests/kafka/test_faust_patches.py`` that
shows the fault without it. `install` applies them to an app, before any topic is declared. See docs/design/faust.md.

1. **Messages are lost at a rebalance.** After the changelogs are replayed Faust seeks to the committed offsets, then
   calls ``flow_control.resume()`` once more, which clears the queues (mode/utils/queues.py, ``FlowControlEvent``;
   faust/tables/recovery.py, ``on_recovery_completed``): what was delivered in between is gone, and the commit passes
   over a hole of one message. `SteadyFlow` resumes, and so clears, only what is suspended.
2. **Replaying the changelog stalls every partition of the worker**, and what it brings is never believed here:
   PostgreSQL is. `NoReplay` starts each changelog at its end, so that there is nothing to replay.
3. **Where offsets are not consecutive commits creep or stop**: after a seek, and after records that retention took,
   Faust commits one record at a time, or nothing (faust/transport/consumer.py, ``_add_gap``, ``_new_offset``). We
   acknowledge in the order of offsets, after the flush that contains them: `InOrderConsumer` commits all of that.
4. **Clients connect hundreds of times a second while their broker is away** (aiokafka/client.py, ``_get_conn``).
   `patch_clients` makes them wait, twice as long after each failure.
5. **A static member never leaves its group**, so that its partitions have no owner until its session times out, and two
   members of one name take it from each other for ever (aiokafka/consumer/group_coordinator.py). `Coordinator` leaves,
   and reports that its name was taken (`watch_name`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final
from weakref import WeakKeyDictionary

import faust
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer import consumer
from aiokafka.consumer.group_coordinator import GroupCoordinator
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.transport.drivers.aiokafka import Consumer
from faust.types import TP
from mode.utils.queues import FlowControlEvent

from stream.core.pace import Backoff

_on_taken: dict[str, Callable[[], Awaitable[bool]]] = {}
#: pauses between attempts to connect to a node that is away
_RECONNECT: Final = Backoff(first=0.1, most=2.0)


class SteadyFlow(FlowControlEvent):
    """Flow control whose ``resume`` does nothing unless it is suspended: the queues keep what they hold."""

    def resume(self) -> None:
        if not self.is_active():
            super().resume()


class NoReplay(Recovery):
    """Recovery that takes every changelog as read up to its end."""

    async def _build_offsets(self, consumer: Any, tps: set[Any], destination: Counter[Any], title: str) -> None:
        if title != "active":
            await super()._build_offsets(consumer, tps, destination, title)
            return
        for tp in tps:
            destination[tp] = self.active_highwaters[tp]


class TablesWithoutReplay(TableManager):
    """Faust's table manager with `NoReplay` as its recovery."""

    @property
    def recovery(self) -> Recovery:
        if self._recovery is None:
            self._recovery = NoReplay(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery


class InOrderConsumer(Consumer):
    """A consumer whose records are acknowledged in the order of their offsets."""

    def _new_offset(self, tp: TP) -> int | None:
        acked = self._acked[tp]
        if not acked:
            return None
        offset = max(acked) + 1
        acked.clear()
        self._acked_index[tp].clear()
        return offset

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Nothing is to be filled: offsets need not be consecutive."""


def install(app: faust.App) -> None:
    """Apply the patches to an app. Its table manager is given to its constructor: ``settings``."""
    app.flow_control = SteadyFlow()
    app.transport.Consumer = InOrderConsumer  # type: ignore[misc]
    patch_clients()


def settings() -> dict[str, Any]:
    """The part of ``faust.App``'s arguments that belongs to these fixes."""
    return {"TableManager": TablesWithoutReplay}


def watch_name(member: str, on_taken: Callable[[], Awaitable[bool]]) -> None:
    """``on_taken``: awaited, in the consumer's thread, when the static member ``member`` has lost its place in the
    group, maybe to another of its name, before it joins again. True: it must not, for the name is the other's."""
    _on_taken[member] = on_taken


class Coordinator(GroupCoordinator):  # type: ignore[misc]
    """A coordinator whose static members leave their group when they close, and learn that their name was taken."""

    _group_instance_id: str | None
    _place_lost = False

    async def _maybe_leave_group(self) -> None:
        name = self._group_instance_id
        self._group_instance_id = None
        try:
            await super()._maybe_leave_group()
        finally:
            self._group_instance_id = name

    def reset_generation(self) -> None:
        """By whatever answer of the broker: to a heartbeat, a commit, a join."""
        self._place_lost = True
        super().reset_generation()

    async def ensure_active_group(self, subscription: Any, prev_assignment: Any) -> Any:
        on_taken = _on_taken.get(self._group_instance_id or "")
        lost, self._place_lost = self._place_lost, False
        if lost and on_taken is not None and await on_taken():
            await asyncio.wait([self._closing])
            return None
        return await super().ensure_active_group(subscription, prev_assignment)


async def refresh_metadata(app: faust.App) -> bool:
    """Whether a broker answers the producer's question for metadata."""
    return bool(await producer_of(app).client.force_metadata_update())


def producer_of(app: faust.App) -> Any:
    """aiokafka's producer, which sends a batch to a partition at once: Faust's own sends cost ten times as much."""
    producer: Any = app.producer
    return producer._producer  # noqa: SLF001


def patch_clients() -> None:
    """From here on, aiokafka's clients wait before they connect to a node that they could not connect to, and consumers
    have a `Coordinator`."""
    consumer.GroupCoordinator = Coordinator
    if getattr(AIOKafkaClient._get_conn, "patient", False):  # noqa: SLF001
        return
    connect = AIOKafkaClient._get_conn  # noqa: SLF001
    backoffs: WeakKeyDictionary[AIOKafkaClient, dict[Any, Backoff]] = WeakKeyDictionary()

    async def patient(self: AIOKafkaClient, node_id: Any, **values: Any) -> Any:
        nodes = backoffs.setdefault(self, {})
        failed = nodes.get(node_id)
        if failed is not None:
            await asyncio.sleep(failed.pause)
        connection = await connect(self, node_id, **values)
        if connection is not None:
            nodes.pop(node_id, None)
        else:
            nodes[node_id] = nodes.get(node_id, _RECONNECT).failed()
        return connection

    patient.patient = True  # type: ignore[attr-defined]
    AIOKafkaClient._get_conn = patient  # noqa: SLF001
