"""Entering an epoch as a reader begins: whether positions can still be compared, and if not, beginning a new one.

Both modes do it in the same order: the slot is taken, what PostgreSQL (and Kafka) remember is compared with the
server as it is now, and a new epoch is written to PostgreSQL before any batch carries it. See
docs/design/batches.md.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from connectors.postgres.store.partitions import Store
from stream.core.epoch import KafkaEnd, Server, next_epoch, reason_for_new_epoch
from stream.core.fold import FOLD_VERSION
from stream.core.position import lsn_text

log = logging.getLogger("sentstream.epochs")


@dataclass(frozen=True, slots=True)
class EnteredEpoch:
    """``epoch``: what batches carry from here on; ``began``: whether it is new; ``first``: whether it is the
    first."""

    epoch: int
    began: bool
    first: bool = False


def enter_epoch(
    store: Store,
    connection: psycopg.Connection[Any],
    server: Server,
    begin: int,
    partitions: int,
    partition_of: Callable[[int], int],
    kafka: Sequence[KafkaEnd] = (),
) -> EnteredEpoch:
    """The epoch to go on in. ``begin``: where the slot begins; ``kafka``: what the last batches there say.

    :exc:`FencedError` where another process moves the watermarks meanwhile.
    """
    known = store.watermarks(connection)
    reason = reason_for_new_epoch(known, server, partitions, FOLD_VERSION, kafka)
    if reason is None:
        if any(watermark.timeline != server.timeline for watermark in known):
            store.follow_timeline(connection, known[0].epoch, server.timeline)
            log.info("the server is on timeline %d now, which continues what was counted", server.timeline)
        return EnteredEpoch(known[0].epoch, False)
    epoch = next_epoch(known, int(time.time() * 1000), kafka)
    store.begin_epoch(connection, known, epoch, partitions, partition_of, begin, server, FOLD_VERSION)
    log.info("epoch %d begins at %s: %s", epoch, lsn_text(begin), reason)
    return EnteredEpoch(epoch, True, not known)
