"""Opening a session: the one way in, so that every session of ours looks the same from inside and from outside.

From inside: text is UTF-8, times are ISO and UTC, ``row_security = off``, which turns a count that a policy would
make 0 into an error, READ COMMITTED where we don't ask for more (serializable sessions would give way to one another
again and again), and no time-out but our own: those that ALTER ROLE or ALTER DATABASE set for people and
applications would end a count, the build of an index or a session that waits, again and again. From outside:
``application_name`` says which role of sentstream it is, and a dead peer is noticed within a minute (TCP keepalives)
instead of never.

A session that can't be opened becomes one `UnreachableError` that names host, port and database, never the password,
and says what to do about it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, unquote

import psycopg
from psycopg import conninfo, pq
from psycopg.rows import TupleRow

from stream.core.errors import ConfigurationError, SentstreamError, UnreachableError
from stream.core.masking import MASK, mask_passwords

Connection = psycopg.Connection[TupleRow]

#: end of the role of a session that flushes in shadow mode (WRITE_BACK=false)
SHADOW: Final = "(shadow)"

#: seconds until a server that doesn't answer counts as unreachable, unless the URL says otherwise
CONNECT_TIMEOUT: Final = 5

#: settings of every session; what the URL's own ``options`` say comes first and so loses against these
SESSION: Final = {
    "row_security": "off",
    "DateStyle": "ISO",
    "TimeZone": "UTC",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
}

#: the one time-out that older servers don't know, and refuse a session for; from this version on it is set afterwards
_TRANSACTION_TIMEOUT: Final = "transaction_timeout"
_TRANSACTION_TIMEOUT_SINCE: Final = 170000

#: what a URL may override: a peer that vanished is noticed after 30 + 3 * 10 seconds
_PATIENCE: Final = {
    "connect_timeout": CONNECT_TIMEOUT,
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}

_SECRETS: Final = frozenset({"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"})


def writing_role(role: str, *, write_back: bool) -> str:
    """The role of a session that flushes; the mode of what runs shows in its name."""
    return role if write_back else f"{role} {SHADOW}"


def connect(
    url: str,
    role: str,
    *,
    autocommit: bool = True,
    settings: Mapping[str, str] | None = None,
    connect_timeout: int | None = None,
) -> Connection:
    """An ordinary session.

    ``url``: libpq URL or ``key=value`` words. ``role``: what it is for, in a word or two (``flush``, ``recount``);
    shown as ``sentstream <role>`` in ``pg_stat_activity``. ``settings``: more settings for the session
    (``{"lock_timeout": "3s"}``). ``connect_timeout``: seconds for each host of the URL.

    Raises ConfigurationError (the URL is none) or UnreachableError (no answer, or not let in).
    """
    return _open(url, role, autocommit, settings, {"connect_timeout": connect_timeout} if connect_timeout else {})


def connect_replication(url: str, role: str = "reader", *, settings: Mapping[str, str] | None = None) -> Connection:
    """A session with a walsender of the URL's database: takes replication commands and SQL, by the simple protocol
    alone (no parameters on the server's side). Raises as `connect` does."""
    return _open(url, role, True, settings, {"replication": "database"})


def redact(url: str) -> str:
    """``url`` with every password in it masked, also where it can't be parsed. Safe to show and to log."""
    given = _read(url)
    if given is None:
        return _redact_by_eye(url)
    shown = {key: MASK if key in _SECRETS else value for key, value in given.items()}
    if not url.startswith(("postgres://", "postgresql://")):
        return conninfo.make_conninfo("", **shown)
    return _as_url(shown)


def where(url: str) -> str:
    """Whom ``url`` leads to, for people: ``db.example.org:5432, database mailer``. Without user and password."""
    if _read(url) is None:
        return "an unreadable address"
    given = _with_defaults(url)
    hosts = (given.get("host") or given.get("hostaddr") or "").split(",")
    ports = (given.get("port") or "5432").split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    pairs = zip(hosts, ports, strict=False)
    places = " or ".join(
        f"socket {host or 'of this machine'}, port {port}" if host[:1] in "/@" else f"{host}:{port}"
        for host, port in pairs
    )
    return f"{places}, database {given.get('dbname') or given.get('user') or '(that of the user)'}"


def _open(
    url: str, role: str, autocommit: bool, settings: Mapping[str, str] | None, parameters: dict[str, Any]
) -> Connection:
    given = _read(url)
    if given is None:
        # libpq quotes what it could not read, which may be the password: its words are not repeated
        raise ConfigurationError(
            f"DATABASE_URL is not an address that libpq can read: {_redact_by_eye(url)!r}.",
            "Write it as postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with special characters of the password "
            "percent-encoded (@ is %40, / is %2F).",
        )
    options = " ".join([str(given.get("options") or ""), *_as_options({**SESSION, **(settings or {})})]).strip()
    parameters = {
        **{key: value for key, value in _PATIENCE.items() if key not in given},
        **parameters,
        "application_name": f"sentstream {role}",
        "client_encoding": "UTF8",
        "options": options,
    }
    try:
        conn = psycopg.connect(url, autocommit=True, **parameters)
    except psycopg.OperationalError as error:
        raise translated(error, url) from error
    try:
        if conn.execute(b"SHOW row_security").fetchone() != ("off",):
            conn.close()
            raise UnreachableError(
                f"PostgreSQL at {where(url)} did not get the settings of the session: a connection pooler in between "
                "drops them (pgbouncer: ignore_startup_parameters = options).",
                "Put the server's own host and port into DATABASE_URL; replication can't pass a pooler either.",
            )
        if conn.info.server_version >= _TRANSACTION_TIMEOUT_SINCE and _TRANSACTION_TIMEOUT not in (settings or {}):
            conn.execute(f"SET {_TRANSACTION_TIMEOUT} = 0".encode())
        conn.autocommit = autocommit
    except psycopg.OperationalError as error:
        conn.close()
        raise translated(error, url) from error
    return conn


def _as_options(settings: Mapping[str, str]) -> list[str]:
    """``-c name=value`` words; a space or backslash in a value is escaped, as the server reads them."""
    return [f"-c {name}=" + re.sub(r"([\\\s])", r"\\\1", value) for name, value in settings.items()]


def translated(error: psycopg.OperationalError, url: str) -> SentstreamError:
    """The `UnreachableError` for an attempt to connect to ``url`` that failed with ``error``."""
    said = _without_passwords(_shortened(str(error)), url)
    general = "Check DATABASE_URL, and that the server runs and lets this machine in."
    fix = next((fix for pattern, fix in _FIXES if re.search(pattern, said, re.IGNORECASE)), general)
    return UnreachableError(f"PostgreSQL at {where(url)} can't be reached: {said}.", fix)


def _shortened(said: str) -> str:
    """libpq's words in one line, without what `where` says anyway."""
    said = " ".join(said.split())
    said = re.sub(r'connection to server (at|on socket) "[^"]*"( \([^)]*\))?(, port \d+)? failed: ', "", said)
    said = re.sub(r" Is the server running .*?\?", "", said).removeprefix("connection failed: ")
    return said.removeprefix("FATAL: ").rstrip(". ")


#: what libpq and the server say, and what helps; the first that matches. A server that speaks another language gets
#: the general advice.
_FIXES: Final = (
    (
        r"password authentication failed|no password supplied|authentication failed|role \S+ does not exist",
        "Check user and password in DATABASE_URL (special characters percent-encoded), or PGPASSWORD and ~/.pgpass.",
    ),
    (
        r"no pg_hba.conf entry",
        "Let this user in from this machine: a line in pg_hba.conf (or the firewall rules of a managed server), then "
        "reload; where the entry is for SSL only, add sslmode=require to DATABASE_URL.",
    ),
    (
        r"database .* does not exist",
        "Name the mailer's database in DATABASE_URL; `psql -l` lists what there is.",
    ),
    (
        r"unsupported startup parameter|pgbouncer|no such database: ",
        "This looks like a connection pooler, which replication can't pass: put the server's own host and port into "
        "DATABASE_URL.",
    ),
    (
        r"permission denied to start WAL sender|must be superuser or replication role",
        "Give the role the right, as an administrator: ALTER ROLE name REPLICATION;",
    ),
    (
        r"max_wal_senders|requested standby connections",
        "All walsenders are taken: raise max_wal_senders (needs a restart), or stop a reader; `sentstream doctor` "
        "lists them.",
    ),
    (
        r"too many (clients|connections)|connection slots are reserved|too many connections for (role|database)",
        "Raise max_connections or the limit of the role, or close sessions: `sentstream run` keeps six open.",
    ),
    (
        r"starting up|shutting down|recovery mode|not yet accepting connections|consistent recovery state",
        "The server is on its way up or down: wait, it is tried again by the commands that keep running.",
    ),
    (
        r"certificate|ssl|tls",
        "Check sslmode and sslrootcert in DATABASE_URL against what the server offers.",
    ),
    (
        r"connection refused|no such file or directory|is the server running",
        "Start the server, or correct host and port in DATABASE_URL.",
    ),
    (
        r"translate host name|name or service not known|failed to resolve|nodename nor servname|no address associated",
        "Correct the host name in DATABASE_URL, or the name service of this machine.",
    ),
    (
        r"timeout|timed out|no route|unreachable",
        "No answer: look for a firewall in between, or a wrong host or port in DATABASE_URL.",
    ),
    (
        r"closed the connection unexpectedly|connection reset|reset by peer|broken pipe",
        "The connection was cut while it was opened: look at the server's log, and for a proxy in between.",
    ),
)


def _read(url: str) -> dict[str, Any] | None:
    """The parts of ``url``. None where libpq can't read it, and where it would take a part of the password for host,
    port or database, since a character in it (``@ / ?``) is not percent-encoded."""
    try:
        given = conninfo.conninfo_to_dict(url)
    except psycopg.Error:
        return None
    if not url.startswith(("postgres://", "postgresql://")):
        return given
    authority, _, path = url.partition("?")[0].partition("//")[2].partition("/")
    misread = authority.count("@") > 1 or "@" in path
    numeric = all(port.isdecimal() for port in str(given.get("port") or "5432").split(",") if port)
    return None if misread or not numeric else given


def _with_defaults(url: str) -> dict[str, str]:
    """What ``url`` says, and where it is silent what libpq takes from PGHOST, PGSERVICE and the like."""
    defaults = {o.keyword.decode(): (o.val or o.compiled or b"").decode() for o in pq.Conninfo.get_defaults()}
    given = {key: str(value) for key, value in conninfo.conninfo_to_dict(url).items() if value is not None}
    return {**{key: value for key, value in defaults.items() if value}, **given}


def _as_url(given: Mapping[str, Any]) -> str:
    rest = {key: str(value) for key, value in given.items()}
    user, password = rest.pop("user", ""), rest.pop("password", "")
    hosts, ports = rest.pop("host", "").split(","), rest.pop("port", "").split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    name = rest.pop("dbname", "")
    places = ",".join(
        (quote(host, safe="[]:") if host[:1] != "/" else quote(host, safe="")) + (f":{port}" if port else "")
        for host, port in zip(hosts, ports, strict=False)
    )
    who = (quote(user, safe="") + (f":{MASK}" if password else "") + "@") if user or password else ""
    query = "&".join(f"{key}={quote(value, safe='*/:,') if value != MASK else MASK}" for key, value in rest.items())
    return f"postgresql://{who}{places}/{quote(name, safe='')}" + (f"?{query}" if query else "")


def _redact_by_eye(url: str) -> str:
    """Masks what looks like a password in a text that no parser takes: too much rather than too little."""
    url = re.sub(r"(?s)(//[^:/@]*):.*@", rf"\1:{MASK}@", url)
    if "@" not in url and "=" not in url.partition(":")[0]:
        url = re.sub(r"(?s)\A([^:]*(?:://[^:]*)?):.*\Z", rf"\1:{MASK}", url)
    return mask_passwords(url)


def _without_passwords(text: str, url: str) -> str:
    given = _read(url) or {}
    for key in _SECRETS:
        secret = str(given.get(key) or "")
        # a password of one or two letters would mask half the sentence, and libpq doesn't repeat passwords anyway
        if len(secret) > 2:
            for spelling in {secret, quote(secret, safe=""), unquote(secret)}:
                text = text.replace(spelling, MASK)
    return text
