"""The Faust app of a worker: settings, topics and the table. What it calls is passed in.

The settings and their reasons: docs/design/faust.md.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import faust

from connectors.kafka.topics import RECORD_LIMIT
from stream.kafka import faust_patches
from stream.kafka.options import WorkerOptions

#: records that wait for a partition to be loaded: few, as each may have half a megabyte
_BUFFER: Final = 32
#: milliseconds after which a topic that was deleted or created anew is noticed
_METADATA_AGE: Final = 3000


@dataclass(frozen=True, slots=True)
class Callbacks:
    """``agent``: consumes the stream of changes; ``tasks``: run beside it; the rest: Faust's signals."""

    agent: Callable[[Any], Awaitable[None]]
    tasks: tuple[Callable[[], Awaitable[None]], ...]
    on_assigned: Callable[..., Awaitable[None]]
    on_revoked: Callable[..., Awaitable[None]]
    on_shutdown: Callable[..., Awaitable[None]]


def make_app(options: WorkerOptions, folder: str, callbacks: Callbacks) -> tuple[faust.App, Any]:
    """The app and its table ``progress``. ``folder``: Faust makes its folders even where it keeps nothing in them."""
    names = options.names
    app = faust.App(
        names.group,
        **options.cluster.faust(),
        **faust_patches.settings(),
        autodiscover=False,
        store="memory://",
        datadir=folder,
        broker_client_id=options.client_id,
        broker_session_timeout=6,  # the least that brokers allow by default
        broker_heartbeat_interval=1,
        broker_request_timeout=30,
        broker_commit_interval=0.5,
        broker_max_poll_records=200,
        consumer_max_fetch_size=1 << 20,
        consumer_metadata_max_age_ms=_METADATA_AGE,
        producer_metadata_max_age_ms=_METADATA_AGE,
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=options.member,
        producer_linger=0.005,
        producer_compression_type="lz4",
        producer_acks=-1,
        producer_max_request_size=RECORD_LIMIT,
        stream_buffer_maxsize=_BUFFER,
        stream_wait_empty=False,
        stream_recovery_delay=0,
        table_standby_replicas=0,
        reply_create_topic=False,
        topic_allow_declare=False,  # `setup` makes the topics, where the broker allows it
        topic_disable_leader=True,
        web_enabled=False,
    )
    faust_patches.install(app)
    changes = app.topic(names.changes, key_type=bytes, value_type=bytes, value_serializer="raw")
    progress = app.topic(names.progress, key_type=bytes, value_type=bytes, value_serializer="raw")
    table = app.Table(
        "progress",
        partitions=options.partitions,
        key_type=bytes,
        value_type=bytes,
        use_partitioner=True,
        changelog_topic=progress,
    )
    app.agent(changes, concurrency=1, name="changes")(callbacks.agent)
    for task in callbacks.tasks:
        app.task(task)
    app.on_partitions_assigned.connect(callbacks.on_assigned)
    app.on_partitions_revoked.connect(callbacks.on_revoked)
    app.on_before_shutdown.connect(callbacks.on_shutdown)
    return app, table
