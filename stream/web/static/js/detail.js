// What is shown of one campaign when its row is opened: the curve of the last day, the numbers, its verdicts.

import { get, post } from "./api.js";
import { everyMinute, MinuteChart } from "./charts.js";
import { make, say, table, verdictMark } from "./dom.js";
import { CAUSES, moment, number, VERDICTS } from "./words.js";

const EVERY = 15e3;
const charts = new Set();

export function redrawAll() {
  for (const chart of charts) chart.redraw();
}

export class Detail {
  #stream;
  #id;
  #chart;
  #facts = make("dl", { class: "facts" });
  #todo = make("p", { class: "todo", hidden: true });
  #verdicts = make("div");
  #said = make("p", { class: "said", role: "status" });
  #timer;
  #closed = false;

  constructor(place, stream, id) {
    this.#stream = stream;
    this.#id = id;
    const chart = make("div", { class: "chart", role: "img", "aria-label": "Mails sent per minute" });
    const button = make("button", { type: "button", onclick: () => this.#recount(button) }, "Recount this campaign");
    place.replaceChildren(
      make("div", { class: "curve" }, make("h4", {}, "Sent per minute"), chart),
      make("div", { class: "numbers" }, this.#facts, this.#todo, make("p", { class: "acts" }, button, " ",
        make("a", { href: `api/campaigns/${id}` }, "JSON"), " ", make("a", { href: `api/campaigns/${id}/events` }, "events")), this.#said),
      make("div", { class: "verdicts" }, make("h4", {}, "Verdicts"), this.#verdicts));
    this.#chart = new MinuteChart(chart, 150, "Sent per minute");
    charts.add(this.#chart);
    this.#load();
    this.#timer = setInterval(() => this.#load(), EVERY);
  }

  tick(campaign) {
    const facts = [
      ["sent", number(campaign.sent)], ["to send", number(campaign.to_send)], ["in the queue", number(campaign.queue_total)],
      ["deleted after sent", number(campaign.removed)], ["as of", moment(this.#stream.asOf(campaign), this.#stream.now())],
      ["LSN", campaign.lsn ?? "–"], ["verified", moment(campaign.verified_at, this.#stream.now())], ["verified LSN", campaign.verified_lsn ?? "–"],
      ["partition", campaign.partition === null ? "–" : String(campaign.partition)], ["id", String(this.#id)],
    ];
    if (this.#facts.childElementCount === 0) {
      this.#facts.append(...facts.map(([name]) => make("div", {}, make("dt", {}, name), make("dd", {}))));
    }
    facts.forEach(([, value], at) => say(this.#facts.children[at].lastElementChild, value));
    const todo = advice(campaign);
    this.#todo.hidden = todo === "";
    say(this.#todo, todo);
  }

  close() {
    this.#closed = true;
    clearInterval(this.#timer);
    charts.delete(this.#chart);
    this.#chart.close();
  }

  async #load() {
    try {
      const since = new Date(this.#stream.now() - 6 * 3600e3);
      since.setSeconds(0, 0);
      const [history, runs] = await Promise.all([
        get(`api/campaigns/${this.#id}/history?since=${encodeURIComponent(since.toISOString())}`),
        get(`api/recounts?campaign_id=${this.#id}&limit=5`),
      ]);
      const verdicts = await Promise.all(runs.recounts.map((run) => get(`api/recounts/${run.run_id}?limit=1000`)));
      if (this.#closed) return;
      this.#chart.show(everyMinute(history, this.#stream.now()));
      this.#showVerdicts(verdicts);
    } catch (error) {
      if (!this.#closed) say(this.#said, error.message);
    }
  }

  #showVerdicts(runs) {
    const rows = runs.flatMap((run) => run.verdicts.filter((verdict) => verdict.campaign_id === this.#id).map((verdict) => [run, verdict]));
    if (rows.length === 0) {
      this.#verdicts.replaceChildren(make("p", { class: "quiet-text" }, "None kept: nothing has changed since a recount proved it."));
      return;
    }
    const now = this.#stream.now();
    this.#verdicts.replaceChildren(table("Verdicts on this campaign", ["Run", "When", "Verdict", "Difference", "What it means"], rows.map(([run, verdict]) =>
      make("tr", {}, make("td", {}, String(run.run_id)), make("td", {}, moment(run.started_at, now)), make("td", {}, verdictMark(verdict.verdict)),
        make("td", {}, difference(verdict.delta)), make("td", {}, verdict.cause ? CAUSES[verdict.cause] ?? verdict.cause : VERDICTS[verdict.verdict])))));
  }

  async #recount(button) {
    button.disabled = true;
    say(this.#said, "Counting…");
    try {
      const { run_id: run } = await post(`api/campaigns/${this.#id}/sync-counts`);
      say(this.#said, `Counted as run ${run}; its verdict follows in the stream's order.`);
      document.dispatchEvent(new CustomEvent("asked", { detail: run }));
    } catch (error) {
      say(this.#said, error.message);
    } finally {
      button.disabled = false;
    }
  }
}

// What a person may want to do about a campaign.
function advice(campaign) {
  const { status, queue_failed: failed, queue_sending: sending, queue_queued: queued, rate_per_minute: rate } = campaign;
  if (status !== "running" && sending > 0 && rate === 0) {
    return `${number(sending)} rows are “sending” though nothing goes out: the mailer finishes them within an hour, or was killed while it sent them.`;
  }
  if (status === "running" && queued > 0 && rate === 0) return "Mail is queued and none went out in the last minute: see the mailer's send window and its limits.";
  if (failed > 0) return `${number(failed)} mails failed: the mailer's “retry” queues them again.`;
  return "";
}

export function difference(delta) {
  if (!delta || Object.keys(delta).length === 0) return "none";
  return Object.entries(delta).map(([name, n]) => `${name} ${n > 0 ? "+" : "−"}${number(Math.abs(n))}`).join(", ");
}
