// Numbers, times and sentences for people.

const numbers = new Intl.NumberFormat();
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const shortClock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

export const number = (value) => numbers.format(value);

export const percent = (value) => (value === null ? "–" : `${value.toFixed(1)} %`);

export function rate(perMinute) {
  if (perMinute <= 0) return "–";
  return `${perMinute < 10 ? perMinute.toFixed(1) : number(Math.round(perMinute))}/min`;
}

export function span(seconds) {
  const s = Math.max(0, seconds);
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 90) return `${Math.round(s)} s`;
  const minutes = s / 60;
  if (minutes < 90) return `${Math.round(minutes)} min`;
  const hours = minutes / 60;
  if (hours < 36) return `${Math.floor(hours)} h ${String(Math.round(minutes) % 60).padStart(2, "0")} min`;
  return `${Math.round(hours / 24)} days`;
}

// "just now", "12 s ago": for what is shown in sentences.
export const ago = (seconds) => (seconds < 3 ? "just now" : `${span(Math.floor(seconds)).replace(".0 s", " s")} ago`);

export function size(bytes) {
  if (bytes === null || bytes === undefined) return "?";
  let value = bytes;
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (value < 1024 || unit === "GB") return `${unit === "B" ? value : value.toFixed(1)} ${unit}`;
    value /= 1024;
  }
  return "";
}

// A time of today by the clock, any other with its day.
export function moment(text, now) {
  if (!text) return "never";
  const time = new Date(text);
  return Math.abs(now - time) < 18 * 3600e3 ? clock.format(time) : day.format(time);
}

export function until(text, now) {
  const time = new Date(text);
  return Math.abs(time - now) < 18 * 3600e3 ? shortClock.format(time) : day.format(time);
}

export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

export const STATUSES = ["sent", "sending", "queued", "failed", "cancelled"];

export const TRIGGERS = {
  start: "at start", interval: "on schedule", before_pause: "before the pause", paused: "campaign paused",
  resumed: "campaign resumed", finished: "campaign finished", cancelled: "campaign cancelled", drain: "drain after a pause",
  gap: "baseline is due", manual: "asked for",
};

export const VERDICTS = {
  verified: "Equal to the queue.",
  drift: "Different: the stream's numbers were wrong, and were put right.",
  inconclusive: "Could not be compared; counted again soon.",
  not_comparable: "The stream was behind or down: counted and raised all the same, compared later.",
  baseline: "First counts, or first after a gap: nothing to compare with.",
};

// What a cause means, and what to do about it.
export const CAUSES = {
  missed_change: "A change did not reach the counts. Nothing to do now; if it happens again, report it with `sentstream support`.",
  duplicate_change: "A change was counted twice. Nothing to do now; if it happens again, report it with `sentstream support`.",
  counter_overwritten: "Another program wrote campaigns.sent. Find it: the mailer's own sync, a trigger, a script.",
  rows_vanished_unwatched: "Sent rows left the queue while no reader followed the WAL; they still count as sent (estimated). `recount --rebase` drops them.",
  gap: "A part of the WAL was not read, so counts began anew. Find out why the slot was lost; nothing else to do.",
  new_epoch: "The database was restored, or the mode or number of partitions changed: counts began anew. Nothing to do.",
  lost_state: "The stored counts were not those that sentstream had written. Find out what else writes to schema sentstream.",
  unknown: "The difference does not point to a cause. Keep the report; `sentstream explain` tells the rest.",
};
