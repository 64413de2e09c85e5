"""Patches for faults of Faust 0.15.

Each is small, names the code of Faust that it replaces, and has a test in ``tests/kafka/test_faust_patches.py`` that
shows the fault without it. `install` applies them to an app, before any topic is declared. See docs/design/faust.md.

1. **Messages are lost at a rebalance.** After the changelogs are replayed Faust seeks to the committed offsets, then
   calls ``flow_control.resume()`` once more, which clears the queues (mode/utils/queues.py, ``FlowControlEvent``;
   faust/tables/recovery.py, ``on_recovery_completed``): what was delivered in between is gone, and the commit passes
   over a hole of one message. `SteadyFlow` resumes, and so clears, only what is suspended.
2. **Replaying the changelog stalls every partition of the worker**, and what it brings is never believed here:
   PostgreSQL is. `Recovery` starts each changelog at its end, so that there is nothing to replay.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, Final
from weakref import WeakKeyDictionary

import faust
from aiokafka.client import AIOKafkaClient
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from mode.utils.queues import FlowControlEvent

from stream.core.pace import Backoff

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


def install(app: faust.App) -> None:
    """Give the app a steady flow control. Its table manager is given to its constructor: ``settings``."""
    app.flow_control = SteadyFlow()
    patch_clients()


def settings() -> dict[str, Any]:
    """The part of ``faust.App``'s arguments that belongs to these fixes."""
    return {"TableManager": TablesWithoutReplay}


def committed_up_to(consumer: Any, tp: Any, offset: int) -> None:
    """Tell Faust, after a seek, that the partition goes on at ``offset``.

    3. **After a seek forward nothing is committed any more**: a commit waits for the acknowledgement right behind the
       last committed offset (faust/transport/consumer.py, ``_new_offset``), which never comes.
    """
    consumer._committed_offset[tp] = None  # noqa: SLF001
    acked = consumer._acked[tp]  # noqa: SLF001
    gone = [it for it in acked if it < offset]
    acked[:] = [it for it in acked if it >= offset]
    consumer._acked_index[tp].difference_update(gone)  # noqa: SLF001


async def refresh_metadata(app: faust.App) -> bool:
    """Whether a broker answers the producer's question for metadata."""
    return bool(await producer_of(app).client.force_metadata_update())


def producer_of(app: faust.App) -> Any:
    """aiokafka's producer, which sends a batch to a partition at once: Faust's own sends cost ten times as much."""
    producer: Any = app.producer
    return producer._producer  # noqa: SLF001


def patch_clients() -> None:
    """5. **aiokafka connects hundreds of times a second while its broker is away** (aiokafka/client.py, ``_get_conn``):
    several loops of consumer and producer try again without a pause. From here on a client waits before it connects to
    a node that it could not connect to, twice as long after each failure.
    """
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
