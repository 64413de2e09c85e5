// The page: the stream's state in the header, sums, the list, the panels.

import { get, post } from "./api.js";
import { everyMinute, MinuteChart } from "./charts.js";
import { redrawAll } from "./detail.js";
import { byId, say } from "./dom.js";
import { List } from "./list.js";
import { LagPanel, RunsPanel } from "./panels.js";
import { Stream } from "./stream.js";
import { moment, number, rate, span, until } from "./words.js";

const HISTORY_EVERY = 15e3;
const LATE = 2e3; // after that the panels do not wait for the campaigns any more
const THEMES = { auto: "as the system has them", light: "light", dark: "dark" };

const stream = new Stream();
const list = new List(stream);
const lag = new LagPanel();
const runs = new RunsPanel(stream);
const chart = new MinuteChart(byId("sum-chart"), 132, "Sent per minute, all campaigns");

let waiting = false;

// All events of a round come in one piece: they are painted once.
function soon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    const changed = stream.changed;
    stream.changed = new Set();
    if (changed.size) {
      list.update(changed);
      sums();
    }
    pulse();
  });
}

function sums() {
  let sent = 0;
  let wait = 0;
  let last = null;
  for (const campaign of stream.campaigns.values()) {
    sent += campaign.rate_per_minute;
    wait += campaign.queue_queued + campaign.queue_sending;
    if (campaign.eta && (last === null || campaign.eta > last)) last = campaign.eta;
  }
  say(byId("sum-rate"), rate(sent) === "–" ? "0/min" : rate(sent));
  say(byId("sum-waiting"), number(wait));
  say(byId("sum-eta"), last ? `mails; the last goes out about ${until(last, stream.now())}` : wait ? "mails; none goes out now" : "nothing waits");
}

const NOTICES = {
  disconnected: ["Disconnected.", "The server does not answer; trying again by itself."],
  waiting: ["Not counted yet.", "The first recount is due; until it has run, the numbers are the mailer's own or old."],
  unstarted: ["Not started.", "sentstream has not counted on this database yet: start `sentstream run`."],
};

// The header: what the numbers are worth at this moment.
function pulse() {
  const state = stream.state();
  const age = stream.age();
  const root = document.documentElement;
  if (root.dataset.state !== state) {
    root.dataset.state = state;
    if (state !== "loading" && state !== "connecting") list.arrange();
    list.tick();
  }
  const ago = age === null ? "" : span(age / 1000);
  const text = {
    connecting: "Connecting…", loading: "Loading…", unstarted: "Not started", waiting: "Not counted yet",
    live: `Live · as of ${ago} ago`, stale: `Stale · as of ${ago} ago`, disconnected: `Disconnected${ago && ` · as of ${ago} ago`}`,
  }[state];
  say(byId("pulse-text"), text);
  let [title, words] = NOTICES[state] ?? ["", ""];
  if (state === "stale") {
    const oldest = [...stream.watermarks.values()].map((mark) => mark.as_of).sort()[0];
    [title, words] = ["Stale.", `These numbers are from ${moment(oldest, stream.now())}. ${lag.advice || "The stream has stopped or is behind."}`];
  }
  if (title === "" && stream.shadow && state === "live") {
    [title, words] = ["Shadow mode.", "sentstream counts, and does not write campaigns.sent (WRITE_BACK=false)."];
  }
  byId("notice").hidden = title === "";
  say(byId("notice-title"), title);
  say(byId("notice-text"), words);
  const busy = state === "live" ? byId("sum-rate").textContent : text.split(" · ")[0];
  document.title = `${busy} · sentstream`;
}

async function history() {
  if (document.hidden) return;
  try {
    chart.show(everyMinute(await get("api/history"), stream.now()));
  } catch {
    // the header says that something is wrong
  }
}

function themes() {
  const root = document.documentElement;
  const button = byId("theme");
  const tell = () => {
    const words = `Colours: ${THEMES[root.dataset.theme ?? "auto"]}`;
    button.setAttribute("aria-label", words);
    button.title = words;
  };
  const show = () => {
    tell();
    chart.redraw();
    redrawAll();
  };
  button.addEventListener("click", () => {
    const next = { auto: "light", light: "dark", dark: "auto" }[root.dataset.theme ?? "auto"];
    if (next === "auto") delete root.dataset.theme;
    else root.dataset.theme = next;
    try {
      localStorage.setItem("sentstream-theme", next);
    } catch {
      // not kept, then
    }
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  tell();
}

function logout() {
  const button = byId("logout");
  button.hidden = !("token" in document.documentElement.dataset);
  button.addEventListener("click", async () => {
    await post("api/logout").catch(() => null);
    location.reload();
  });
}

stream.addEventListener("state", soon);
stream.addEventListener("verdict", ({ detail }) => {
  if (detail.verdict === "drift") list.drifted(detail.campaign_id);
  runs.look();
});
stream.addEventListener("news", soon);
themes();
logout();
stream.start();
lag.start();
runs.start();
history();
setInterval(history, HISTORY_EVERY);
setTimeout(() => (document.documentElement.dataset.late = ""), LATE);
setInterval(() => {
  list.tick();
  soon();
}, 1000);
setInterval(soon, 250);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) {
    history();
    runs.look();
  }
});
