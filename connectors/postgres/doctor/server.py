"""Checks of the server and its settings."""

from __future__ import annotations

import re
from collections.abc import Iterator

from connectors.postgres.catalog.names import literal, quoted
from connectors.postgres.doctor.target import Target, size
from connectors.postgres.setup import preconditions
from stream.core.finding import Finding, critical, ok, warning

#: below this a short stop of sentstream already loses the slot
_SMALLEST_KEEP = 1 << 30


def server_version(target: Target) -> Iterator[Finding]:
    """Column lists of publications came with 15."""
    yield from target.findings_or_ok(
        preconditions.server_version, "server_version", f"PostgreSQL {target.found.version}."
    )


def server_standby(target: Target) -> Iterator[Finding]:
    """We write."""
    yield from target.findings_or_ok(preconditions.server_standby, "server_standby", "The server is a primary.")


def read_only(target: Target) -> Iterator[Finding]:
    """Set for the role or the database it would keep us from writing what we count."""
    if target.setting("default_transaction_read_only") != "on":
        yield ok("default_transaction_read_only", "Our sessions may write.")
        return
    user, database = quoted(target.found.user), quoted(target.found.database)
    rows = target.rows(
        """
        SELECT s.setrole <> 0 AS of_role, s.setdatabase <> 0 AS of_database FROM pg_db_role_setting s
        WHERE s.setrole IN (0, (SELECT r.oid FROM pg_roles r WHERE r.rolname = current_user))
          AND s.setdatabase IN (0, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
          AND EXISTS (SELECT FROM unnest(s.setconfig) c WHERE c ILIKE 'default_transaction_read_only=%')
        ORDER BY of_role DESC, of_database DESC
        """
    )
    reset = []
    for row in rows:
        whole = f"DATABASE {database}" if row["of_database"] else "ROLE ALL"
        where = f" IN DATABASE {database}" if row["of_database"] else ""
        reset.append(f"ROLE {user}{where}" if row["of_role"] else whole)
    yield critical(
        "default_transaction_read_only",
        f"default_transaction_read_only is on for role {user} in database {database}: nothing can be written, neither "
        "counters nor recounts.",
        " ".join(f"ALTER {words} RESET default_transaction_read_only;" for words in reset)
        or "ALTER SYSTEM RESET default_transaction_read_only; SELECT pg_reload_conf(); -- or see the options in "
        "DATABASE_URL and PGOPTIONS",
    )


def encoding(target: Target) -> Iterator[Finding]:
    """SQL_ASCII is no encoding at all: any bytes are taken, and sent as they are."""
    (found,) = target.rows("SELECT current_setting('server_encoding') AS name")
    if found["name"] != "SQL_ASCII":
        yield ok("server_encoding", f"The database's encoding is {found['name']}.")
        return
    yield warning(
        "server_encoding",
        f"The encoding of database {quoted(target.found.database)} is SQL_ASCII, which checks nothing: names of "
        "campaigns and other texts that are not UTF-8 can't be read.",
        "Dump the database, convert the dump to UTF-8, and restore it into one made WITH ENCODING 'UTF8' TEMPLATE "
        "template0.",
    )


def wal_level(target: Target) -> Iterator[Finding]:
    """Without it no logical decoding."""
    said = f"wal_level is {target.found.wal_level}."
    if target.found.wal_level != "logical":
        said = f"{said[:-1]}, which this server raises to logical while a logical slot exists."
    yield from target.findings_or_ok(preconditions.wal_level, "wal_level", said)


def slots_left(target: Target) -> Iterator[Finding]:
    """One for us unless it is there, one more for the copy from which a backlog is read fast."""
    row = target.row(
        "SELECT current_setting('max_replication_slots')::int AS most, count(*)::int AS used FROM pg_replication_slots"
    )
    free = row["most"] - row["used"]
    own = 0 if target.found.slot is not None else 1
    what = f"{row['used']} of {row['most']} replication slots are taken"
    fix = f"ALTER SYSTEM SET max_replication_slots = {row['most'] + 4}; -- then restart the server"
    if free < own:
        yield critical("slots_left", f"{what}: none is left for ours.", fix)
    elif free < own + 1:
        yield warning("slots_left", f"{what}: none is left for the copy by which a backlog is read fast.", fix)
    else:
        yield ok("slots_left", f"{what}.")


def senders_left(target: Target) -> Iterator[Finding]:
    """Each reader is a walsender."""
    row = target.row(
        "SELECT current_setting('max_wal_senders')::int AS most, count(*)::int AS used FROM pg_stat_replication"
    )
    own = target.found.slot is None or target.found.slot.active_pid is None
    what = f"{row['used']} of {row['most']} walsenders are busy"
    if own and row["used"] >= row["most"]:
        fix = f"ALTER SYSTEM SET max_wal_senders = {row['most'] + 4}; -- then restart the server"
        yield critical("senders_left", f"{what}: none is left for our reader.", fix)
    else:
        yield ok("senders_left", f"{what}.")


def slot_wal_limit(target: Target) -> Iterator[Finding]:
    """How much WAL a stopped reader may hold back: no limit fills the disk, too small a one loses the slot."""
    megabytes = int(target.setting("max_slot_wal_keep_size") or -1)
    if target.wanted.temporary_slot:
        yield ok("max_slot_wal_keep_size", "SLOT_KIND is temporary: no WAL is held back while sentstream is down.")
    elif megabytes < 0:
        yield warning(
            "max_slot_wal_keep_size",
            "max_slot_wal_keep_size is -1: while sentstream is down its slot holds back WAL until the disk is full.",
            "ALTER SYSTEM SET max_slot_wal_keep_size = '16GB'; SELECT pg_reload_conf(); -- less than the disk has free",
        )
    elif megabytes << 20 < _SMALLEST_KEEP:
        yield warning(
            "max_slot_wal_keep_size",
            f"max_slot_wal_keep_size is {size(megabytes << 20)}: after that much WAL a slow or stopped reader loses "
            "its slot (a new baseline follows).",
            "ALTER SYSTEM SET max_slot_wal_keep_size = '16GB'; SELECT pg_reload_conf(); -- less than the disk has free",
        )
    else:
        yield ok("max_slot_wal_keep_size", f"max_slot_wal_keep_size is {size(megabytes << 20)}.")


def slot_idle_limit(target: Target) -> Iterator[Finding]:
    """Servers from 18 on can drop a slot that is not read for a while."""
    seconds = int(target.setting("idle_replication_slot_timeout") or 0)
    if seconds and not target.wanted.temporary_slot:
        yield warning(
            "idle_replication_slot_timeout",
            f"idle_replication_slot_timeout is {seconds} s: if sentstream is down for longer its slot is lost (a "
            "new baseline follows).",
            "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();",
        )
    else:
        yield ok("idle_replication_slot_timeout", "No slot is dropped for being idle.")


def synchronous_standby(target: Target) -> Iterator[Finding]:
    """Were our own walsender a synchronous standby, each flush would wait until that flush has been read."""
    value = (target.setting("synchronous_standby_names") or "").strip()
    names = standby_names(value)
    ours = [name for name in names if name == "*" or name.lower().startswith("sentstream")]
    if not ours:
        shown = f"synchronous_standby_names is {value!r}" if value else "No synchronous standbys"
        yield ok("synchronous_standby_names", f"{shown}: our reader is none.")
        return
    real = [
        row["name"]
        for row in target.rows(
            "SELECT DISTINCT application_name AS name FROM pg_stat_replication r WHERE application_name <> '' "
            "AND NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid "
            "AND s.slot_type = 'logical') ORDER BY 1"
        )
    ]
    kept = [name for name in names if name not in ours]
    kept += [name for name in real if "*" in ours and name not in kept and not name.lower().startswith("sentstream")]
    yield critical(
        "synchronous_standby_names",
        f"synchronous_standby_names is {value!r}, which takes our reader for a standby: every flush, and the mailer's "
        "commits, would wait for it.",
        f"ALTER SYSTEM SET synchronous_standby_names = {literal(_with_names(value, kept))}; SELECT pg_reload_conf();",
    )


def standby_names(value: str) -> list[str]:
    """The names in a value of ``synchronous_standby_names``; ``*`` stands for any."""
    inner = value[value.index("(") + 1 : value.rindex(")")] if "(" in value and ")" in value else value
    return [
        match[1].replace('""', '"') if match[1] is not None else match[2]
        for match in re.finditer(r'"((?:[^"]|"")*)"|([^\s,]+)', inner)
    ]


def _with_names(value: str, names: list[str]) -> str:
    """The same value for other names; empty without any."""
    if not names:
        return ""
    words = ", ".join(quoted(name) for name in names)
    head = value[: value.index("(")].split() if "(" in value else []
    if not head:
        return words
    count = min(int(head[-1]), len(names))
    return f"{' '.join([*head[:-1], str(count)])} ({words})"


CHECKS = (
    server_version,
    server_standby,
    read_only,
    encoding,
    wal_level,
    slots_left,
    senders_left,
    slot_wal_limit,
    slot_idle_limit,
    synchronous_standby,
)
