"""What reading the WAL needs to know."""

from __future__ import annotations

from dataclasses import dataclass

from stream.config.sources import Settings


@dataclass(frozen=True, slots=True)
class WalOptions:
    """``memory``: seconds that a recount may last; what is younger than that is remembered for its alignment.
    ``catchup``: bytes of WAL behind which a permanent slot is read by SQL first; 0: never."""

    database_url: str
    slot: str = "sentstream"
    publication: str = "sentstream"
    mailer_schema: str = "public"
    temporary: bool = False
    memory: float = 300.0
    catchup: int = 0


def wal_options(settings: Settings) -> WalOptions:
    """What the settings say of reading the WAL."""
    return WalOptions(
        settings.require_database(),
        settings.slot_name,
        settings.publication,
        settings.mailer_schema,
        settings.slot_kind == "temporary",
        settings.recount_timeout + settings.recount_lock_timeout,
        settings.catchup_threshold,
    )
