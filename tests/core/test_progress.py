"""The reckoned numbers of a campaign: percent, rate, ETA, stale, and the JSON names of the contract."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from decimal import ROUND_HALF_UP, Decimal

from hypothesis import given
from hypothesis import strategies as st

from stream.core.position import Position
from stream.core.progress import (
    CampaignProgress,
    eta,
    measure,
    percent,
    position_text,
    rate_per_minute,
    stale,
    time_text,
    to_json,
)

NOW = datetime(2026, 3, 1, 12, 0, 30, tzinfo=timezone.utc)
CONTRACT = [
    "campaign_id",
    "name",
    "status",
    "sent",
    "queue_queued",
    "queue_sending",
    "queue_sent",
    "queue_failed",
    "queue_cancelled",
    "queue_total",
    "removed",
    "to_send",
    "percent",
    "rate_per_minute",
    "eta",
    "as_of",
    "verified_at",
    "lsn",
    "position",
    "stale",
]

counts = st.integers(0, 2**40)
times = st.datetimes(
    min_value=datetime(2000, 1, 1),  # noqa: DTZ001
    max_value=datetime(2100, 1, 1),  # noqa: DTZ001
    timezones=st.sampled_from([timezone.utc, timezone(timedelta(hours=-5)), timezone(timedelta(hours=9, minutes=30))]),
)


def one(**changes: object) -> CampaignProgress:
    given_values: dict[str, object] = {
        "campaign_id": 7, "name": "Spring", "status": "running", "to_send": 200, "counts": (50, 1, 100, 2, 3),
        "removed": 4, "sent": 104, "rate": 51.0, "now": NOW, "as_of": NOW, "based": True, "verified_at": None,
        "epoch": 3, "position": Position(0x16_0000_00FF, 2),
    }  # fmt: skip
    return measure(**{**given_values, **changes})  # type: ignore[arg-type]


def test_the_json_names_are_the_contract() -> None:
    assert [*to_json(one())] == [*CONTRACT, "source"]
    assert to_json(one()) == {
        "campaign_id": 7, "name": "Spring", "status": "running", "sent": 104, "queue_queued": 50, "queue_sending": 1,
        "queue_sent": 100, "queue_failed": 2, "queue_cancelled": 3, "queue_total": 156, "removed": 4, "to_send": 200,
        "percent": 52.0, "rate_per_minute": 51.0, "eta": "2026-03-01T12:01:30Z", "as_of": "2026-03-01T12:00:30Z",
        "verified_at": None, "lsn": "16/FF", "position": "0000000000000003.00000016000000FF.00000002", "stale": False,
        "source": "queue",
    }  # fmt: skip


@given(counts, st.integers(1, 2**31 - 1))
def test_percent_is_what_numeric_says_clamped(sent: int, to_send: int) -> None:
    exact = (Decimal(100) * sent / to_send).quantize(Decimal("0.1"), ROUND_HALF_UP)
    assert percent(sent, to_send) == float(min(exact, Decimal(100)))


def test_percent_without_anything_to_send_is_none() -> None:
    assert percent(5, 0) is None
    assert percent(5, -1) is None
    assert percent(-5, 10) == 0.0
    assert percent(20_323, 20_318) == 100.0
    assert percent(1, 2000) == 0.1  # 0.05 rounds up, as NUMERIC does


@given(st.integers(-1000, 10**7), st.integers(-1000, 10**7), st.floats(0, 60))
def test_the_rate_lies_between_the_current_minute_and_both(current: int, previous: int, seconds: float) -> None:
    rate = rate_per_minute(current, previous, seconds)
    assert rate >= 0
    ends = sorted([current, current + previous])
    assert max(0, ends[0]) - 0.1 <= rate <= max(0, ends[1]) + 0.1


@given(st.integers(1, 10**5), st.floats(0, 59.9))
def test_an_even_flow_shows_its_rate_at_every_second(per_minute: int, seconds: float) -> None:
    assert abs(rate_per_minute(round(per_minute * seconds / 60), per_minute, seconds) - per_minute) <= 0.6


@given(st.integers(-5, 10**9), st.floats(-1, 10**6, allow_nan=False), times)
def test_an_eta_is_a_later_time_and_only_while_mail_flows(waiting: int, rate: float, now: datetime) -> None:
    when = eta(waiting, rate, now)
    if rate <= 0 or waiting <= 0:
        assert when is None
    if when is not None:
        assert when >= now - timedelta(seconds=1)
        assert when.utcoffset() == timedelta(0)
        assert when.microsecond == 0


@given(times, st.floats(-10, 100), st.booleans())
def test_stale_means_older_than_five_seconds_or_not_based(now: datetime, age: float, based: bool) -> None:
    as_of = now - timedelta(seconds=age)
    assert stale(as_of, based, now) is (not based or abs(now - as_of) > timedelta(seconds=5))
    assert stale(None, based, now)


@given(st.lists(st.tuples(st.integers(0, 2**62), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)), max_size=20))
def test_positions_sort_as_text_across_epochs(places: list[tuple[int, int, int]]) -> None:
    texts = {place: position_text(place[0], Position(place[1], place[2])) for place in places}
    assert [texts[place] for place in sorted(texts)] == sorted(texts.values())


@given(times)
def test_times_are_rfc_3339_in_utc(time: datetime) -> None:
    text = time_text(time)
    assert text is not None
    assert text.endswith("Z")
    back = datetime.fromisoformat(text.replace("Z", "+00:00"))
    assert abs(back - time) < timedelta(milliseconds=1)
    assert time_text(None) is None


def test_a_partition_without_base_is_stale_whatever_its_age() -> None:
    assert one(based=False).stale
    assert one(as_of=NOW - timedelta(seconds=6)).stale
    assert one(as_of=NOW - timedelta(seconds=6)).eta is None, "an old number promises no time"
    assert not one(as_of=NOW - timedelta(seconds=5)).stale
    assert one(as_of=None, position=None).lsn is None
