"""Settings of the database, of counting and of recounts."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from stream.config.fields import DatabaseUrl, Duration, Size, SlotName, TimeZone, WebhookUrl, setting


class PostgresSettings(BaseModel):
    model_config = ConfigDict(title="PostgreSQL")

    database_url: DatabaseUrl = setting(
        "",
        "The mailer's database as a libpq URL (or `key=value` words), direct and not through a pooler: "
        "replication can't pass one.",
        example="postgresql://sentstream@db.example.org/listmonk",
    )
    mailer_schema: str = setting("public", "Schema of the mailer's tables.", min_length=1, max_length=63)
    slot_name: SlotName = setting(
        "sentstream", "Replication slot. Slot names are cluster-wide: give each database of a server its own."
    )
    publication: str = setting("sentstream", "Publication that the slot is read with.", min_length=1, max_length=63)
    slot_kind: Literal["permanent", "temporary"] = setting(
        "permanent",
        "`permanent` keeps the WAL while sentstream is down; `temporary` never pins WAL and starts from a new "
        "baseline.",
    )
    reconnect_max: Duration = setting("30s", "Longest pause between two attempts to reconnect.", reload=True)


class CountingSettings(BaseModel):
    model_config = ConfigDict(title="Counting")

    flush_interval: Duration = setting(
        "100ms",
        "How often changed counts are written while mail flows; later, up to 1 s, when far behind.",
        reload=True,
    )
    removed: Literal["keep", "follow"] = setting(
        "keep",
        "`keep`: a deleted row does not unsend a mail, `sent` is the queue's count plus the removed; "
        "`follow`: `sent` is the live count.",
    )
    write_back: bool = setting(
        True,
        "Write `campaigns.sent`. `false` is a shadow mode: it needs no UPDATE right and only shows what it "
        "would write.",
    )
    catchup_threshold: Size = setting(
        "64MB",
        "WAL behind which the backlog is read by SQL chunks instead of the walsender; `0` never does.",
        reload=True,
    )
    pending_limit: Size = setting("64MB", "Unflushed changes held in memory before reading pauses.")
    history_retention: Duration = setting(
        "400d",
        "How long `sent` per minute is kept; older minutes are folded into one row a campaign, so that the sum stays.",
        reload=True,
    )


class RecountSettings(BaseModel):
    model_config = ConfigDict(title="Recounts and reports")

    recount_interval: Duration = setting("300s", "Time between two full recounts.", reload=True)
    recount_lock_timeout: Duration = setting(
        "2s",
        "How long a recount waits for its table lock (TRUNCATE by the mailer waits behind it); then it tries again.",
        reload=True,
    )
    recount_timeout: Duration = setting("5m", "How long the counting statement of a recount may take.", reload=True)
    recount_patience: Duration = setting(
        "5s",
        "How long a recount waits for the stream's verdict before it raises `campaigns.sent` by itself.",
        reload=True,
    )
    timezone: TimeZone = setting(
        "", "Time zone of the send window; empty: the mailer's `app.timezone`.", example="Europe/Berlin"
    )
    report_retention: Duration = setting(
        "400d", "How long runs keep their counts and verdicts; the chain of digests stays.", reload=True
    )
    notify_url: WebhookUrl = setting(
        "", "Gets a JSON POST on drift, stall and recovery.", example="https://hooks.example.org/sentstream"
    )
