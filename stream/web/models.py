"""Pydantic models of the responses, for OpenAPI and for checking in tests.

Responses are dicts, made by `serialize` and encoded once. Tests validate the responses of a real server against the
schema of these models.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]
CampaignId = Annotated[int, Field(ge=1, le=2**31 - 1)]
LagVerdict = Literal["OK", "WARN", "STALL", "STOP", "REWIND", "UNKNOWN"]
VerdictName = Literal["verified", "drift", "inconclusive", "not_comparable", "baseline"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """An error (RFC 9457). `request_id` is in our log, too."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str


class Progress(_Model):
    """A campaign's progress."""

    campaign_id: int
    name: str
    status: str = Field(description="Status of the campaign, the mailer's own word.")
    sent: int = Field(description="What `campaigns.sent` shows: rows that are sent, and those that were when deleted.")
    queue_queued: int
    queue_sending: int
    queue_sent: int
    queue_failed: int
    queue_cancelled: int
    queue_total: int
    removed: int = Field(description="Rows that were `sent` when they were deleted.")
    to_send: int
    percent: float | None = Field(description="100 * sent / to_send, one decimal, 0..100; null when to_send is 0.")
    rate_per_minute: float = Field(description="Mails in the last 60 seconds.")
    eta: datetime | None = Field(description="When the queue is empty at this rate; null unless mail is flowing.")
    as_of: datetime | None = Field(description="Commit time up to which everything is applied.")
    verified_at: datetime | None = Field(description="When a recount last proved the numbers.")
    lsn: str | None
    position: str | None = Field(description="A text that sorts.")
    stale: bool = Field(description="`as_of` is older than 5 seconds, or the counts have no base yet.")
    source: Literal["queue", "mailer"]
    verified_lsn: str | None
    partition: int | None


class Campaigns(_Model):
    """A page of campaigns, the newest first."""

    campaigns: list[Progress]
    next_cursor: str | None
    total: int = Field(description="Campaigns that fit `status` and `q`.")


class Minute(_Model):
    """Mails that became sent in one minute."""

    minute: datetime
    sent: int


class Adjustment(_Model):
    """A change of `sent` other than by sending."""

    minute: datetime
    kind: Literal["baseline", "correction", "pruned"]
    sent: int


class History(_Model):
    """`sent` per minute, oldest first; minutes without mail are left out."""

    campaign_id: int | None
    since: datetime
    until: datetime
    minutes: list[Minute]
    adjustments: list[Adjustment]


class RecountCounts(_Model):
    """How many campaigns got which verdict."""

    verified: int
    drift: int
    inconclusive: int
    not_comparable: int
    baseline: int


class Verdict(BaseModel):
    """The verdict of a run on a campaign."""

    model_config = ConfigDict(extra="allow")

    campaign_id: int
    verdict: VerdictName
    cause: str | None
    before: dict[str, int] | None
    after: dict[str, int] | None
    delta: dict[str, int] | None
    corrected: bool


class Observation(_Model):
    """Two numbers of the mailer that differ."""

    campaign_id: int
    kind: str
    expected: int
    actual: int


class Snapshot(_Model):
    """The snapshot of the recount's transaction."""

    xmin: int
    xmax: int
    xip: list[int]


class Recount(BaseModel):
    """A run of the recount."""

    model_config = ConfigDict(extra="allow")

    run_id: int
    trigger: str
    requested_by: str
    status: Literal["open", "sealed"]
    started_at: datetime
    finished_at: datetime | None
    lsn: str
    snapshot: Snapshot
    counts: RecountCounts
    verdicts: list[Verdict]
    observations: list[Observation]
    previous_digest: str | None
    digest: str | None


class Recounts(_Model):
    """A page of runs, the newest first; their verdicts are in each run."""

    recounts: list[Recount]
    next_cursor: str | None


class RecountRun(Recount):
    """A run with a page of its verdicts."""

    next_cursor: str | None


class Asked(_Model):
    """A recount that has been asked for."""

    run_id: int
    location: str


class SlotLag(BaseModel):
    """The replication slot."""

    model_config = ConfigDict(extra="allow")

    bytes: int | None
    seconds: float | None
    wal_status: str | None
    verdict: LagVerdict


class GroupLag(BaseModel):
    """A partition of a topic, in the columns of `kafka-consumer-groups --describe`."""

    model_config = ConfigDict(extra="allow")

    group: str
    topic: str
    partition: int
    current_offset: int | None
    log_end_offset: int
    lag: int | None
    seconds: float | None
    consumer_id: str | None
    host: str | None
    verdict: LagVerdict


class FlushLag(BaseModel):
    """The newest flush."""

    model_config = ConfigDict(extra="allow")

    age_seconds: float | None
    verdict: LagVerdict


class Lag(BaseModel):
    """How far slot, topics and flush are behind."""

    model_config = ConfigDict(extra="allow")

    verdict: LagVerdict
    slot: SlotLag
    groups: list[GroupLag]
    flush: FlushLag


class RunningCampaign(_Model):
    """A campaign in the format of the mailer's own page."""

    id: int
    status: str
    to_send: int
    sent: int
    started_at: datetime | None
    updated_at: datetime | None
    rate: int
    net_rate: int
    use_queue: bool
    messenger: str | None
    queue_queued: int
    queue_sending: int
    queue_sent: int
    queue_failed: int
    queue_cancelled: int
    queue_total: int
    auto_paused: bool
    auto_paused_at: datetime | None
    views: int
    clicks: int
    azure_sent: int


class RunningStats(_Model):
    """The mailer's own response format."""

    data: list[RunningCampaign]


class Login(_Model):
    """The token."""

    token: Annotated[str, Field(max_length=4096)]


class Health(_Model):
    """Result of a health check."""

    ok: bool
    checks: list[HealthCheck] | None = None


class HealthCheck(_Model):
    """One check."""

    name: str
    ok: bool
    detail: str


class Status(BaseModel):
    """Roles alive, positions, slot, last flush, last verification."""

    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[str, Any]


Health.model_rebuild()
