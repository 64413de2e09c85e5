"""Checks of the slot, and of what keeps it from being made or recounts from being conclusive."""

from __future__ import annotations

from collections.abc import Iterator

from connectors.postgres.catalog.names import literal, quoted
from connectors.postgres.doctor.target import Target, size
from connectors.postgres.setup import preconditions
from stream.core.finding import Finding, critical, ok, warning


def slot(target: Target) -> Iterator[Finding]:
    """The slot is there, ours, and stands where it can be read from."""
    found, name = target.found.slot, quoted(target.wanted.slot)
    setup = "`sentstream setup --part replication`"
    if found is not None and found.foreign:
        yield from preconditions.slot_foreign(target.found, target.wanted)
    elif target.wanted.temporary_slot:
        if found is not None and not found.temporary:
            yield warning(
                "slot_unneeded", f"Slot {name} is permanent though SLOT_KIND is temporary: it holds back WAL.", setup
            )
        else:
            yield ok("slot", "SLOT_KIND is temporary: the slot lives as long as the reader.")
    elif found is None:
        yield critical("slot_missing", f"Slot {name} does not exist.", setup)
    elif found.wal_status == "lost":
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
        whom = "the reader is behind" if found.active_pid else "nobody reads it"
        of = f" of {size(limit << 20)} allowed" if limit > 0 else ""
        yield warning(
            "slot_disk",
            f"Slot {name} holds back {size(held)} of WAL on the server's disk{of}; {whom}.",
            f"Run `sentstream run` (or `read`); if sentstream is not to be used any more: {drop}",
        )
    else:
        yield ok("slot_disk", f"Slot {name} holds back {size(held)} of WAL.")


def prepared_transactions(target: Target) -> Iterator[Finding]:
    """Left behind, they keep a slot from being made, pin WAL, and make recounts inconclusive; on every database."""
    rows = target.rows(
        "SELECT gid, owner::text AS owner, database::text AS database, prepared::text AS since, "
        "extract(epoch FROM clock_timestamp() - prepared)::float8 AS age FROM pg_prepared_xacts ORDER BY prepared"
    )
    old = [row for row in rows if row["age"] > target.thresholds.prepared]
    if not old:
        yield ok("prepared_transactions", "No prepared transaction was left behind.")
    for row in old:
        say = critical if target.found.slot is None and not target.wanted.temporary_slot else warning
        effect = "no slot can be made" if say is critical else "it pins WAL, and recounts stay inconclusive"
        yield say(
            "prepared_transactions",
            f"Prepared transaction {row['gid']!r} of {quoted(row['owner'])} in database {quoted(row['database'])} was "
            f"left behind at {row['since']}: while it is there, {effect}.",
            f"ROLLBACK PREPARED {literal(row['gid'])}; -- in that database, as its owner; or COMMIT PREPARED",
        )


def long_transactions(target: Target) -> Iterator[Finding]:
    """Writing transactions that are open for long: a recount can't conclude across them, and no slot gets made."""
    rows = target.rows(
        """
        SELECT pid, coalesce(usename::text, '') AS role, coalesce(datname::text, '') AS database,
               coalesce(application_name, '') AS application, coalesce(state, 'unknown') AS state,
               extract(epoch FROM clock_timestamp() - xact_start)::int AS age
        FROM pg_stat_activity
        WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
          AND clock_timestamp() - xact_start > make_interval(secs => %s::float8)
        ORDER BY xact_start LIMIT 5
        """,
        target.thresholds.transaction,
    )
    for row in rows:
        yield warning(
            "long_transaction",
            f"Process {row['pid']} ({row['application'] or 'no application name'}, role {row['role']}, database "
            f"{row['database']}) has a writing transaction open for {row['age']} s ({row['state']}): recounts stay "
            "inconclusive, and the slot holds back WAL from its begin on.",
            f"SELECT pg_terminate_backend({row['pid']}); -- or let it end",
        )
    if not rows:
        yield ok("long_transaction", "No writing transaction is open for long.")


CHECKS = (slot, slot_disk, prepared_transactions, long_transactions)
