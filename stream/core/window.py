"""The send window as the mailer means it, and when to count because of it.

The mailer sends between two wall clock times, both inclusive to the minute, in a time zone of its own. Once a minute it
looks, and where it finds the window closed it pauses every running campaign: some time in the minute after the window's
last one. ``campaigns.sent`` must be right at that moment, so a recount runs shortly before the window closes, and with
the stream down again and again until the pause must have happened:

    end       end+1:00                                  end+2:00      end+2:15
     |  open  *| closed                                    |             |
              ^ recount (LEAD before)   pause falls in here              last repetition, every EVERY

"Closing" is the first instant at which the window is closed: end+1:00, but on the day a clock is put forward over it,
the jump itself; and a clock put back out of the window closes it, too. Nothing here reads a clock: instants are passed
in, and come out in UTC. (A time zone's rules are read from the machine once, when the settings are parsed.)

Settings can change while we run: ``look`` compares what was last seen with what holds now, and says what is due.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta, timezone
from typing import Final
from zoneinfo import ZoneInfo

from stream.core.errors import ConfigurationError

DEFAULT_TIMEZONE: Final = "America/New_York"

#: how long before the closing the recount runs: long enough for a queue of a million rows (counted in well under a
#: second by the identity index), short enough that little is sent in between
LEAD: Final = timedelta(seconds=5)
#: how often it runs again with the stream down
EVERY: Final = timedelta(seconds=15)
#: the last repetition after a closing: the mailer looks once a minute, and a quarter of one is allowed for its work
TAIL: Final = timedelta(seconds=75)

_DAY: Final = timedelta(days=1)
_INSTANT: Final = timedelta(microseconds=1)
_LAST_MINUTE: Final = 24 * 60 - 1
_TIME: Final = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])", re.ASCII)


@dataclass(frozen=True, slots=True)
class SendWindow:
    """From the minute ``start`` to the minute ``end`` of the day, both included; ``None`` twice: always open.

    A window with ``start`` after ``end`` would cross midnight; the mailer never finds such a window open.
    """

    start: int | None
    end: int | None
    zone: ZoneInfo

    def __str__(self) -> str:
        if self.start is None or self.end is None:
            return f"always open ({self.zone.key})"
        return f"{self.start // 60:02}:{self.start % 60:02}-{self.end // 60:02}:{self.end % 60:02} ({self.zone.key})"


def parse_window(start: object, end: object, zone: object) -> SendWindow:
    """The window that three settings mean, as their JSON values: ``"HH:MM"``, ``""`` or null, and a zone's IANA name.

    One empty time is enough for "always open"; an empty zone is the mailer's default. ConfigurationError, which names
    the setting, where a value is no such text: then it is not known when the mailer pauses.
    """
    first = _minute("app.send_time_start", start)
    last = _minute("app.send_time_end", end)
    where = _zone(zone)
    if first is None or last is None:
        return SendWindow(None, None, where)
    return SendWindow(first, last, where)


def always_open(zone: str = DEFAULT_TIMEZONE) -> SendWindow:
    """The window that nothing closes: what a mailer without these settings has."""
    return parse_window("", "", zone)


def is_open(window: SendWindow, at: datetime) -> bool:
    """Whether the mailer, looking at that instant (with a time zone), would find the window open."""
    if window.start is None or window.end is None:
        return True
    wall = _utc(at).astimezone(window.zone)
    return window.start <= wall.hour * 60 + wall.minute <= window.end


def closings(window: SendWindow, after: datetime) -> Iterator[datetime]:
    """The instants later than ``after`` at which the window goes from open to closed, without end where there are any.

    None for a window that is always open, never open (it would cross midnight), or open at every minute of the day.
    """
    return _changes(window, after, lambda at: is_open(window, at - _INSTANT) and not is_open(window, at))


def openings(window: SendWindow, after: datetime) -> Iterator[datetime]:
    """The instants later than ``after`` at which the window goes from closed to open (there the mailer resumes)."""
    return _changes(window, after, lambda at: is_open(window, at) and not is_open(window, at - _INSTANT))


def next_closing(window: SendWindow, after: datetime) -> datetime | None:
    """The first of ``closings``, if there is one."""
    return next(closings(window, after), None)


def next_opening(window: SendWindow, after: datetime) -> datetime | None:
    """The first of ``openings``, if there is one."""
    return next(openings(window, after), None)


def recounts(closing: datetime, *, stream_up: bool) -> tuple[datetime, ...]:
    """When to count because of one closing: ``LEAD`` before it; with the stream down also its ``repetitions``."""
    before = closing - LEAD
    return (before,) if stream_up else (before, *repetitions(closing))


def repetitions(closing: datetime) -> tuple[datetime, ...]:
    """When to count again with the stream down: every ``EVERY`` from the closing on, until ``TAIL`` after it."""
    return tuple(closing + EVERY * n for n in range(TAIL // EVERY + 1))


def next_recount(window: SendWindow, after: datetime, *, stream_up: bool) -> datetime | None:
    """The next instant later than ``after`` at which the recount before a pause must run (or be repeated)."""
    after = _utc(after)
    found: datetime | None = None
    for closing in closings(window, after - TAIL - _INSTANT):
        if found is not None and closing - LEAD >= found:
            break
        later = (at for at in recounts(closing, stream_up=stream_up) if at > after)
        first = next(later, None)
        if first is not None and (found is None or first < found):
            found = first
    return found


@dataclass(frozen=True, slots=True)
class Watch:
    """What was seen at the last look: the window in effect, the instant, and a closing that a changed setting made."""

    window: SendWindow
    looked: datetime
    closed_by_change: datetime | None = None


def begin(window: SendWindow, now: datetime) -> Watch:
    """The watch of a runtime that starts now (it counts at start anyway, so nothing is due)."""
    return Watch(window, _utc(now))


def look(watch: Watch, window: SendWindow, now: datetime, *, stream_up: bool) -> tuple[Watch, datetime | None]:
    """What the settings of now mean: the new watch, and the closing because of which a recount is due, if one is.

    To be called about every second with the settings as they stand. A change that closes an open window (or will within
    ``LEAD``) makes a recount due at once, for the mailer finds it at its next tick. What a late caller missed is due
    once, as long as the mailer may not yet have paused; a clock that was set back makes nothing due.
    """
    now = _utc(now)
    after = watch.looked
    seen = Watch(window, now, watch.closed_by_change)
    if window != watch.window:
        if is_open(watch.window, after) and not is_open(window, now):
            return replace(seen, closed_by_change=now), now
        soon = next_closing(window, now)
        if soon is not None and soon - LEAD <= now:
            return seen, soon
    for closing, instants in _at_stake(seen, stream_up=stream_up):
        if any(after < at <= now for at in instants):
            return seen, closing
    return seen, None


def _at_stake(watch: Watch, *, stream_up: bool) -> Iterator[tuple[datetime, tuple[datetime, ...]]]:
    """The closings that come within ``LEAD`` or were lately, and when to count because of each."""
    now, changed = watch.looked, watch.closed_by_change
    oldest = now - TAIL - EVERY  # EVERY more, for a caller who comes late for the last repetition
    if changed is not None and changed > oldest and not stream_up:
        yield changed, repetitions(changed)
    for closing in closings(watch.window, oldest):
        if closing - LEAD > now:
            return
        yield closing, recounts(closing, stream_up=stream_up)


def _changes(window: SendWindow, after: datetime, changed: Callable[[datetime], bool]) -> Iterator[datetime]:
    """The instants later than ``after`` where ``changed`` holds, among those where it can at all."""
    if window.start is None or window.end is None or window.start > window.end:
        return
    if window.start == 0 and window.end == _LAST_MINUTE:
        return
    after = _utc(after)
    day = after.astimezone(window.zone).date() - _DAY
    last = after
    while True:
        # the next day's are looked at together with this day's: a zone may put a whole day between two instants
        for at in sorted({*_candidates(window, day), *_candidates(window, day + _DAY)}):
            if at > last and changed(at):
                last = at
                yield at
        day += _DAY


def _candidates(window: SendWindow, day: date) -> Iterator[datetime]:
    """Where a window can change on that local day: its two edges, and the jumps of the clock over or onto an edge."""
    assert window.start is not None
    assert window.end is not None
    for minute in (window.start, window.end + 1):
        wall = datetime.combine(day, time()) + timedelta(minutes=minute)
        one = wall.replace(tzinfo=window.zone, fold=0).astimezone(timezone.utc)
        two = wall.replace(tzinfo=window.zone, fold=1).astimezone(timezone.utc)
        yield one
        if one != two:  # the clock jumps here: this wall time comes twice (one < two) or never (two < one)
            yield two
            yield _jump(window.zone, min(one, two), max(one, two))


def _jump(zone: ZoneInfo, before: datetime, after: datetime) -> datetime:
    """The instant in ``(before, after]`` from which the zone's offset is another, to the second."""
    offset = before.astimezone(zone).utcoffset()
    low, high = 0, int((after - before).total_seconds())
    while high - low > 1:
        middle = (low + high) // 2
        if (before + timedelta(seconds=middle)).astimezone(zone).utcoffset() == offset:
            low = middle
        else:
            high = middle
    return before + timedelta(seconds=high)


def _utc(at: datetime) -> datetime:
    if at.tzinfo is None:
        raise ValueError("an instant needs a time zone: a wall clock time alone can mean several")
    return at.astimezone(timezone.utc)


def _minute(key: str, value: object) -> int | None:
    """Minutes since midnight; None for an empty setting."""
    if value is None or value == "":
        return None
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ConfigurationError(
            f"The mailer's setting {key} is {value!r}, which is no time of day: when it pauses is not known.",
            'Set it to "HH:MM" (or to "" for no window) in the mailer\'s settings.',
        )
    return int(match[1]) * 60 + int(match[2])


def _zone(value: object) -> ZoneInfo:
    name = DEFAULT_TIMEZONE if value is None or value == "" else value
    try:
        if isinstance(name, str):
            return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown; not a name; a folder of the zone database
        pass
    raise ConfigurationError(
        f"The mailer's time zone app.timezone is {name!r}, which this machine does not know.",
        "Set it to a name such as Europe/Berlin in the mailer's settings, or override it with SENTSTREAM_TIMEZONE.",
    )
