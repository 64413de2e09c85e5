"""Taking the slot: waiting where another reader has it, making it where it is missing, and reading a far backlog by SQL
first."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import Any

import psycopg

from connectors.postgres.catalog.slots import Slot, find_slot
from connectors.postgres.connect import connect
from connectors.postgres.replication import slot as slots
from connectors.postgres.replication.catchup import Catchup
from connectors.postgres.replication.walsender import SlotBusyError, Walsender
from stream.core.errors import PreconditionError, UnreachableError
from stream.pipeline.wal_options import WalOptions

log = logging.getLogger("sentstream.wal")


@dataclass(frozen=True, slots=True)
class TakenSlot:
    """``begin``: the confirmed LSN, where reading begins; ``source``: what to read from."""

    begin: int
    source: Walsender | Catchup


class SlotTaker:
    """``holder``: who has the slot that we wait for; "" while we don't."""

    def __init__(self, options: WalOptions, control: psycopg.Connection[Any], walsender: Walsender) -> None:
        self._options = options
        self._control = control
        self._walsender = walsender
        self.holder = ""

    def take(self, stop: threading.Event) -> TakenSlot | None:
        """The slot, once it is ours; None where ``stop`` was set before."""
        options, control, walsender, told = self._options, self._control, self._walsender, 0.0
        while not stop.is_set():
            holder = self._held_by()
            if holder is None:
                self.holder = ""
                try:
                    if options.temporary:
                        walsender.create_temporary_slot(options.slot)
                    else:
                        slot, done = slots.ensure(control, options.slot)
                        if done:
                            log.warning("%s; counts start from a new baseline", done)
                        begin = self._begin_catchup(slot)
                        if begin is not None:
                            walsender.close()
                            return begin
                    walsender.start(options.slot, options.publication)
                    taken = find_slot(control, options.slot)
                    if taken is None:
                        raise UnreachableError(f"the slot {options.slot} vanished as it was taken.")
                    return TakenSlot(taken.confirmed, walsender)
                except SlotBusyError as error:
                    holder = str(error)
            self.holder = holder
            if time.monotonic() - told > 60:
                told = time.monotonic()
                log.info("waiting for the slot %s: %s", options.slot, holder)
            stop.wait(0.5)
        return None

    def _begin_catchup(self, slot: Slot) -> TakenSlot | None:
        """Read the backlog by SQL first, where the slot is far behind; else None."""
        options = self._options
        if not options.catchup:
            return None
        behind = slots.clock(self._control).wal_end - slot.confirmed
        if behind < options.catchup:
            return None
        source = Catchup(connect(options.database_url, "catchup"), options.slot, options.publication)
        try:
            begin = source.begin()
        except psycopg.Error as error:  # no slot left, or no right to copy: the walsender does it as well
            log.info("the backlog is read by the walsender: %s", str(error).strip().splitlines()[0])
            source.close()
            return None
        log.info("%.0f MB of WAL behind: catching up by SQL", behind / 1e6)
        return TakenSlot(begin, source)

    def _held_by(self) -> str | None:
        """Which session has the slot; None: it is free, or there is none yet."""
        slot = find_slot(self._control, self._options.slot)
        if slot is None:
            return None
        if self._options.temporary and not slot.temporary:
            raise PreconditionError(
                f"SLOT_KIND is temporary, but a permanent slot {slot.name} is there and pins WAL.",
                f"Drop it (SELECT pg_drop_replication_slot('{slot.name}')), or set SLOT_KIND=permanent.",
            )
        slots.check_ours(slot)
        if slot.active_pid is None:
            return None
        row = self._control.execute(
            "SELECT application_name, coalesce(host(client_addr), 'local'), backend_start::text"
            " FROM pg_stat_activity WHERE pid = %s::int",
            (slot.active_pid,),
        ).fetchone()
        who = f" ({row[0]} from {row[1]} since {row[2]})" if row else ""
        return f"it is active for PID {slot.active_pid}{who}"
