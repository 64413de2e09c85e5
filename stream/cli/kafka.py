"""`read`, `work`, `reconcile`: three of the four roles of the Kafka mode; `serve` has a module of its own."""

from __future__ import annotations

from typing import Annotated

import typer

from stream.cli.call import Call, command
from stream.cli.run import reloading
from stream.service.watchdog import end_with

app = typer.Typer()

_Parent = Annotated[int, typer.Option(hidden=True, help="A process to end with.")]
_Stalls = Annotated[int, typer.Option(hidden=True, help="How often it has started itself anew.")]

_READ = """Examples:

`sentstream read` one is enough; a second waits for the slot, and takes over when the first ends
"""

_WORK = """Examples:

`sentstream work` as many as there are partitions can share the work

`SENTSTREAM_KAFKA_INSTANCE=worker-1 sentstream work` a static member: a crash and restart move no partitions
"""


@command(app, "read", shows=("kafka_bootstrap_servers", "slot_name"), service=True, epilog=_READ)
def read(call: Call, with_parent: _Parent = 0, stalls: _Stalls = 0) -> int:
    """Read the WAL into the changes topic; confirm what every partition has durably."""
    call.settings.require_database()
    call.settings.require_kafka()
    from stream.kafka import reader

    return reader.run(call.settings, reloading(call), parent=with_parent, stalls=stalls)


@command(app, "work", shows=("kafka_bootstrap_servers", "kafka_instance", "flush_interval"), service=True, epilog=_WORK)
def work(call: Call, with_parent: _Parent = 0, stalls: _Stalls = 0) -> int:
    """Apply the batches of the changes topic, write campaigns.sent, publish progress."""
    call.settings.require_database()
    call.settings.require_kafka()
    from stream.kafka import run_worker as role

    return role.run(call.settings, reloading(call), parent=with_parent, stalls=stalls)


@command(app, "reconcile", shows=("recount_interval",), service=True)
def reconcile(call: Call, with_parent: _Parent = 0) -> int:
    """Recount on schedule and on request; follow every run until it is sealed."""
    call.settings.require_database()
    from stream.reconcile import reconciler

    if with_parent:
        end_with(with_parent)
    return reconciler.main(call.settings, reloading(call))
