"""Checks of the way in: the connection, and what the role may do."""

from __future__ import annotations

from collections.abc import Iterator

from connectors.mailer.tables import CAMPAIGNS, EMAIL_QUEUE
from connectors.postgres.catalog.names import quoted
from connectors.postgres.catalog.rights import merged, missing_rights
from connectors.postgres.doctor.target import Target
from connectors.postgres.setup import preconditions
from stream.core.finding import Finding, critical, ok


def pooler(target: Target) -> Iterator[Finding]:
    """A pooler makes up the process id that it tells its clients; the server's own is another."""
    announced = target.conn.info.backend_pid
    row = target.row("SELECT pg_backend_pid() AS pid, inet_server_port() AS port")
    again = target.row("SELECT pg_backend_pid() AS pid")
    if announced == row["pid"] == again["pid"]:
        yield ok("pooler", "The connection goes to the server directly.")
        return
    where = f" (the server itself listens on port {row['port']})" if row["port"] else ""
    yield critical(
        "pooler",
        f"A connection pooler is in between: the session was announced as process {announced}, the server "
        f"says {row['pid']}. Replication and advisory locks need a session of their own.",
        f"Put the server's own host and port into DATABASE_URL{where}.",
    )


def replication_right(target: Target) -> Iterator[Finding]:
    """Reading the WAL is a right of its own; managed servers sometimes give it by membership."""
    said = f"Role {quoted(target.found.user)} may replicate."
    yield from target.findings_or_ok(preconditions.replication_right, "replication_right", said)


def rights(target: Target) -> Iterator[Finding]:
    """What running needs on the mailer's tables and on ours."""
    user = target.found.user
    missing = missing_rights(target.conn, user, target.wanted.mailer_schema, target.wanted.write_back)
    if not missing:
        yield ok("rights", f"Role {quoted(user)} has the rights that running needs.")
        return
    yield critical(
        "rights",
        f"Role {quoted(user)} lacks {'; '.join(merged(missing))}.",
        " ".join(f"GRANT {words} TO {quoted(user)};" for words in merged(missing)),
    )


def row_security(target: Target) -> Iterator[Finding]:
    """A policy would hide rows from a recount; our sessions turn that into an error (row_security = off)."""
    active = target.rows(
        """
        SELECT c.relname::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = %s::text AND c.relname = ANY (%s::text[]) AND row_security_active(c.oid) ORDER BY 1
        """,
        target.wanted.mailer_schema,
        [EMAIL_QUEUE.name, CAMPAIGNS.name],
    )
    if not active:
        yield ok("row_security", "No row security hides rows from us.")
        return
    tables = ", ".join(quoted(target.wanted.mailer_schema, row["name"]) for row in active)
    user = quoted(target.found.user)
    yield critical(
        "row_security",
        f"Row security of {tables} applies to role {user}: recounts fail rather than count too little.",
        f"ALTER ROLE {user} BYPASSRLS;",
    )


CHECKS = (pooler, replication_right, rights, row_security)
