"""The send window against a model that looks, as the mailer does, minute by minute."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stream.core import window as w
from stream.core.errors import ConfigurationError

UTC = timezone.utc
NEW_YORK = "America/New_York"
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)

#: zones with clocks that jump at 2:00, at midnight (Beirut, Havana), by half an hour (Lord Howe), by a day (Apia),
#: below the equator, with odd offsets, and without any change
ZONES = (
    NEW_YORK, "Europe/Berlin", "Asia/Beirut", "America/Havana", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Kolkata",
    "Asia/Kathmandu", "Africa/Casablanca", "America/Sao_Paulo", "Pacific/Chatham", "UTC", "Etc/GMT+12",
)  # fmt: skip
#: instants near which a clock jumps in one of those zones
JUMPS = (
    datetime(2026, 3, 8, 7, tzinfo=UTC),  # New York forward
    datetime(2026, 11, 1, 6, tzinfo=UTC),  # New York back
    datetime(2026, 3, 29, 1, tzinfo=UTC),  # Berlin forward
    datetime(2026, 10, 25, 1, tzinfo=UTC),  # Berlin back
    datetime(2026, 4, 4, 15, tzinfo=UTC),  # Lord Howe back, half an hour
    datetime(2026, 10, 3, 15, 30, tzinfo=UTC),  # Lord Howe forward
    datetime(2026, 3, 28, 22, tzinfo=UTC),  # Beirut forward, from midnight
    datetime(2026, 10, 24, 21, tzinfo=UTC),  # Beirut back, to eleven in the evening
    datetime(2026, 3, 8, 5, tzinfo=UTC),  # Havana forward, from midnight
    datetime(2011, 12, 30, 10, tzinfo=UTC),  # Apia skips the 30th
    datetime(2018, 11, 4, 3, tzinfo=UTC),  # Sao Paulo forward, from midnight
    datetime(2045, 11, 5, 6, tzinfo=UTC),  # beyond the tables of most zone files: the rule at their end
)


def window(start: str, end: str, zone: str = NEW_YORK) -> w.SendWindow:
    return w.parse_window(start, end, zone)


def local(text: str, zone: str = NEW_YORK, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).astimezone(UTC)


def model_is_open(start: str, end: str, zone: str, at: datetime) -> bool:
    """What the mailer does: text of the wall clock, compared with the settings."""
    return start == "" or end == "" or start <= at.astimezone(ZoneInfo(zone)).strftime("%H:%M") <= end


def model_closings(start: str, end: str, zone: str, after: datetime, until: datetime) -> list[datetime]:
    """Every whole minute is tried; a zone's offsets are whole minutes in our days."""
    at = after.replace(second=0, microsecond=0)
    before = model_is_open(start, end, zone, at - MINUTE)
    found = []
    while at <= until:
        now = model_is_open(start, end, zone, at)
        if before and not now and at > after:
            found.append(at)
        before, at = now, at + MINUTE
    return found


times_of_day = st.one_of(
    st.just(""),
    st.sampled_from(
        ["00:00", "00:30", "01:00", "01:29", "01:30", "01:59", "02:00", "02:30", "02:59", "03:00", "23:59"]
    ),
    st.builds("{:02}:{:02}".format, st.integers(0, 23), st.integers(0, 59)),
)
instants = st.one_of(
    st.builds(lambda jump, s: jump + s * SECOND, st.sampled_from(JUMPS), st.integers(-100_000, 100_000)),
    st.integers(820_454_400, 2_840_140_800).map(lambda at: datetime.fromtimestamp(at, UTC)),  # 1996 to 2059
)


@given(times_of_day, times_of_day, st.sampled_from(ZONES), instants)
def test_open_is_what_the_mailer_finds(start: str, end: str, zone: str, at: datetime) -> None:
    assert w.is_open(window(start, end, zone), at) == model_is_open(start, end, zone, at)


@given(times_of_day, times_of_day, st.sampled_from(ZONES), instants)
@example("00:00", "01:30", NEW_YORK, datetime(2026, 11, 1, 3, tzinfo=UTC))  # closes twice that day
@example("01:30", "05:00", NEW_YORK, datetime(2026, 11, 1, 3, tzinfo=UTC))  # put back out of the window
@example("01:00", "02:30", NEW_YORK, datetime(2026, 3, 8, 3, tzinfo=UTC))  # put forward over its end
@example("10:00", "23:59", "Pacific/Apia", datetime(2011, 12, 29, 12, tzinfo=UTC))  # a day that never was
def test_closings_are_those_of_a_minute_by_minute_model(start: str, end: str, zone: str, after: datetime) -> None:
    until = after + timedelta(days=2)
    expected = model_closings(start, end, zone, after, until)
    found = []
    for at in w.closings(window(start, end, zone), after):
        if at > until:
            break
        found.append(at)
    assert found == expected


@given(times_of_day, times_of_day, st.sampled_from(ZONES), instants)
def test_a_closing_and_an_opening_take_turns(start: str, end: str, zone: str, at: datetime) -> None:
    """Between two closings lies one opening, and there the state is what the two say."""
    seen = window(start, end, zone)
    closing = w.next_closing(seen, at)
    if closing is None:
        assert w.next_opening(seen, at) is None
        return
    opening = w.next_opening(seen, at)
    assert opening is not None
    assert w.is_open(seen, at) == (closing < opening)
    assert w.is_open(seen, opening)
    assert not w.is_open(seen, closing)


@given(times_of_day, times_of_day, st.sampled_from(ZONES), instants, st.booleans())
def test_the_next_recount_is_the_first_of_all_that_the_closings_ask_for(
    start: str, end: str, zone: str, after: datetime, stream_up: bool
) -> None:
    until = after + timedelta(days=1, hours=12)
    around = model_closings(start, end, zone, after - 2 * MINUTE, until)
    offsets = [-5] if stream_up else [-5, 0, 15, 30, 45, 60, 75]
    due = sorted(at + s * SECOND for at in around for s in offsets if at + s * SECOND > after)
    found = w.next_recount(window(start, end, zone), after, stream_up=stream_up)
    if due:
        assert found == due[0]
    else:
        assert found is None or found > until - MINUTE


@given(st.sampled_from(ZONES), st.sampled_from(JUMPS), st.lists(st.integers(1, 4), min_size=60), st.booleans())
def test_looking_again_and_again_finds_each_recount_once(
    zone: str, jump: datetime, steps: list[int], stream_up: bool
) -> None:
    seen = window("01:00", "01:44", zone)
    first = w.next_closing(seen, jump - timedelta(hours=30))
    assert first is not None
    now = first - 100 * SECOND
    watch, found = w.begin(seen, now), []
    for step in steps:
        now += step * SECOND
        watch, closing = w.look(watch, seen, now, stream_up=stream_up)
        if closing is not None:
            found.append((closing, now))
    for instant in w.recounts(first, stream_up=stream_up):
        if instant > now:
            continue
        matching = [at for closing, at in found if closing == first and instant <= at < instant + 4 * SECOND]
        assert len(matching) == 1, (instant, found)
    assert len(found) == sum(instant <= now for instant in w.recounts(first, stream_up=stream_up))


def test_both_ends_are_inclusive_to_the_minute() -> None:
    seen = window("09:00", "17:00")
    assert not w.is_open(seen, local("2026-06-10 08:59:59.999999"))
    assert w.is_open(seen, local("2026-06-10 09:00:00"))
    assert w.is_open(seen, local("2026-06-10 17:00:59.999999"))
    assert not w.is_open(seen, local("2026-06-10 17:01:00"))


def test_the_recount_runs_shortly_before_the_minute_after_the_end() -> None:
    seen = window("09:00", "17:00")
    noon = local("2026-06-10 12:00:00")
    assert w.next_closing(seen, noon) == local("2026-06-10 17:01:00")
    assert w.next_recount(seen, noon, stream_up=True) == local("2026-06-10 17:00:55")
    evening = local("2026-06-10 17:00:55")
    assert w.next_recount(seen, evening, stream_up=True) == local("2026-06-11 17:00:55")


def test_with_the_stream_down_it_repeats_every_15_seconds_until_the_pause_must_have_happened() -> None:
    seen, at = window("09:00", "17:00"), local("2026-06-10 17:00:00")
    found = []
    for _ in range(8):
        following = w.next_recount(seen, at, stream_up=False)
        assert following is not None
        at = following
        found.append(at.astimezone(ZoneInfo(NEW_YORK)).strftime("%d %H:%M:%S"))
    assert found == ["10 17:00:55", "10 17:01:00", "10 17:01:15", "10 17:01:30", "10 17:01:45", "10 17:02:00",
                     "10 17:02:15", "11 17:00:55"]  # fmt: skip


@pytest.mark.parametrize(
    ("start", "end"),
    [("", ""), ("09:00", ""), ("", "17:00"), (None, None), ("00:00", "23:59")],
    ids=["empty", "no end", "no start", "null", "every minute"],
)
def test_a_window_that_never_closes_asks_for_nothing(start: str | None, end: str | None) -> None:
    seen, at = w.parse_window(start, end, NEW_YORK), local("2026-06-10 12:00:00")
    assert w.is_open(seen, at)
    assert w.next_closing(seen, at) is None
    assert w.next_opening(seen, at) is None
    assert w.next_recount(seen, at, stream_up=False) is None


def test_a_window_that_crosses_midnight_is_never_open() -> None:
    seen = window("22:00", "06:00")
    day = local("2026-06-10 00:00:00")
    assert not any(w.is_open(seen, day + n * MINUTE) for n in range(24 * 60))
    assert w.next_closing(seen, day) is None


def test_a_window_of_one_minute_closes_after_it() -> None:
    assert w.next_closing(window("09:00", "09:00"), local("2026-06-10 08:00")) == local("2026-06-10 09:01")


def test_a_clock_put_forward_over_the_end_closes_the_window_at_the_jump() -> None:
    seen = window("01:00", "02:30")
    assert w.next_closing(seen, local("2026-03-08 00:30")) == local("2026-03-08 03:00") == JUMPS[0]
    assert w.next_closing(seen, local("2026-03-09 00:30")) == local("2026-03-09 02:31")


def test_a_day_on_which_the_whole_window_is_skipped_has_no_closing() -> None:
    assert w.next_closing(window("02:10", "02:50"), local("2026-03-08 00:30")) == local("2026-03-09 02:51")


def test_an_hour_that_comes_twice_can_close_the_window_twice() -> None:
    seen = window("00:30", "01:30")
    once, again = local("2026-11-01 01:31", fold=0), local("2026-11-01 01:31", fold=1)
    assert again - once == timedelta(hours=1)
    assert w.next_closing(seen, local("2026-11-01 00:00")) == once
    assert w.next_closing(seen, once) == again
    assert w.next_closing(seen, again) == local("2026-11-02 01:31")


def test_a_clock_put_back_out_of_the_window_closes_it() -> None:
    seen = window("01:30", "05:00")
    assert w.next_closing(seen, local("2026-11-01 00:00")) == JUMPS[1]
    assert w.next_opening(seen, JUMPS[1]) == local("2026-11-01 01:30", fold=1)


def test_a_changed_setting_that_closes_the_window_now_is_counted_now() -> None:
    now = local("2026-06-10 16:30:10")
    watch = w.begin(window("09:00", "17:00"), now)
    shorter = window("09:00", "16:00")
    watch, due = w.look(watch, shorter, now + SECOND, stream_up=True)
    assert due == now + SECOND
    watch, due = w.look(watch, shorter, now + 17 * SECOND, stream_up=True)
    assert due is None


def test_a_closing_by_a_changed_setting_repeats_with_the_stream_down() -> None:
    now = local("2026-06-10 16:30:10")
    watch = w.begin(window("09:00", "17:00"), now)
    found = []
    for second in range(1, 120):
        watch, due = w.look(watch, window("09:00", "16:00"), now + second * SECOND, stream_up=False)
        if due is not None:
            found.append(second - 1)
    assert found == [0, 15, 30, 45, 60, 75]


def test_a_changed_setting_that_will_close_the_window_at_once_is_counted_now() -> None:
    now = local("2026-06-10 16:30:57")
    watch = w.begin(window("09:00", "17:00"), now)
    watch, due = w.look(watch, window("09:00", "16:30"), now + SECOND, stream_up=True)
    assert due == local("2026-06-10 16:31:00")


def test_a_changed_setting_that_moves_the_end_moves_the_recount() -> None:
    now = local("2026-06-10 16:30:00")
    watch = w.begin(window("09:00", "17:00"), now)
    later = window("09:00", "18:00")
    watch, due = w.look(watch, later, local("2026-06-10 17:00:54"), stream_up=True)
    assert due is None
    watch, due = w.look(watch, later, local("2026-06-10 17:00:56"), stream_up=True)
    assert due is None
    watch, due = w.look(watch, later, local("2026-06-10 18:00:56"), stream_up=True)
    assert due == local("2026-06-10 18:01:00")


def test_a_caller_who_comes_long_after_the_pause_is_not_sent_to_count_for_it() -> None:
    watch = w.begin(window("09:00", "17:00"), local("2026-06-10 16:00:00"))
    watch, due = w.look(watch, watch.window, local("2026-06-10 17:30:00"), stream_up=False)
    assert due is None


def test_a_clock_that_was_set_back_makes_nothing_due() -> None:
    watch = w.begin(window("09:00", "17:00"), local("2026-06-10 17:00:56"))
    watch, due = w.look(watch, watch.window, local("2026-06-10 17:00:54"), stream_up=True)
    assert due is None


@pytest.mark.parametrize("text", ["9", "24:00", "12:60", "noon", " 09:00", "09:00:00", "٠٩:٠٠", 9, True, ["09:00"]])
def test_a_malformed_time_is_named(text: object) -> None:
    with pytest.raises(ConfigurationError, match=r"app\.send_time_end.*no time of day"):
        w.parse_window("09:00", text, NEW_YORK)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../etc/passwd", "/etc/passwd", "America", "New\0York", 7, " "])
def test_an_unknown_time_zone_is_named(zone: object) -> None:
    with pytest.raises(ConfigurationError, match=r"app\.timezone.*does not know.*SENTSTREAM_TIMEZONE"):
        w.parse_window("09:00", "17:00", zone)


def test_no_time_zone_is_the_mailers_default() -> None:
    assert w.parse_window("09:00", "17:00", "") == w.parse_window("9:00", "17:00", None) == window("09:00", "17:00")


def test_an_instant_without_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a time zone"):
        w.is_open(window("09:00", "17:00"), JUMPS[0].replace(tzinfo=None))


def test_a_window_says_what_it_is() -> None:
    assert str(window("09:00", "17:30")) == "09:00-17:30 (America/New_York)"
    assert str(w.always_open("UTC")) == "always open (UTC)"
