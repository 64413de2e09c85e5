"""Checks of the slot."""

from __future__ import annotations

from collections.abc import Iterator

from connectors.postgres.catalog.names import literal, quoted
from connectors.postgres.catalog.slots import unusable
from connectors.postgres.doctor.target import Target, size
from stream.core.finding import Finding, critical, ok, warning


def slot(target: Target) -> Iterator[Finding]:
    """The slot is there, ours, and stands where it can be read from."""
    found, name = target.found.slot, quoted(target.wanted.slot)
    setup = "`sentstream setup --part replication`"
    forbidding = list(unusable(found)) if found is not None else []
    if forbidding:
        yield from forbidding
    elif target.wanted.temporary_slot:
        if found is not None and not found.temporary:
            yield warning(
                "slot_unneeded", f"Slot {name} is permanent though SLOT_KIND is temporary: it holds back WAL.", setup
            )
        else:
            yield ok("slot", "SLOT_KIND is temporary: the slot lives as long as the reader.")
    elif found is None:
        yield critical("slot_missing", f"Slot {name} does not exist.", setup)
    elif found.lost:
        yield critical("slot_lost", f"Slot {name} has lost its WAL; made again, it brings a new baseline.", setup)
    elif found.stale:
        yield critical(
            "slot_stale",
            f"Slot {name} stands before the point from which on publication and identities are right; made again, it "
            "brings a new baseline.",
            setup,
        )
    else:
        reader = f"read by process {found.active_pid}" if found.active_pid else "not read right now"
        yield ok("slot", f"Slot {name} is there, {reader}.")


def slot_disk(target: Target) -> Iterator[Finding]:
    """WAL on disk that is kept for our slot alone or among others."""
    found = target.found.slot
    if found is None or target.found.recovering or found.foreign:
        return
    row = target.row(
        "SELECT coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint AS held, wal_status::text, "
        "safe_wal_size FROM pg_replication_slots WHERE slot_name = %s::name",
        target.wanted.slot,
    )
    name, held = quoted(target.wanted.slot), row["held"]
    limit = int(target.setting("max_slot_wal_keep_size") or -1)
    drop = f"SELECT pg_drop_replication_slot({literal(target.wanted.slot)});"
    if row["wal_status"] == "unreserved":
        yield critical(
            "slot_disk",
            f"Slot {name} holds {size(held)} of WAL, more than max_slot_wal_keep_size ({limit} MB): it is lost at the "
            "next checkpoint.",
            "Run `sentstream run` (or `read`) now, or raise max_slot_wal_keep_size.",
        )
    elif held > target.thresholds.held or (limit > 0 and held > limit << 19):
        whom = "the reader is behind" if found.active_pid else "it is not read"
        of = f" of {size(limit << 20)} allowed" if limit > 0 else ""
        yield warning(
            "slot_disk",
            f"Slot {name} holds back {size(held)} of WAL on the server's disk{of}; {whom}.",
            f"Run `sentstream run` (or `read`); if sentstream is not to be used any more: {drop}",
        )
    else:
        yield ok("slot_disk", f"Slot {name} holds back {size(held)} of WAL.")


CHECKS = (slot, slot_disk)
