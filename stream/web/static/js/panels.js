// Lag and recounts: asked for every few seconds, shown with what to do where something is wrong.

import { get, post } from "./api.js";
import { difference } from "./detail.js";
import { byId, make, say, table, verdictMark } from "./dom.js";
import { ago, CAUSES, moment, number, plural, size, span, TRIGGERS, VERDICTS } from "./words.js";

const LAG_EVERY = 2000;
const RUNS_EVERY = 5000;
const SEALED_WITHIN = 60e3;

export class LagPanel {
  #panel = byId("lag-panel");
  advice = "";

  start() {
    this.#look();
    setInterval(() => this.#look(), LAG_EVERY);
  }

  async #look() {
    if (document.hidden) return;
    try {
      this.#show(await get("api/lag"));
    } catch (error) {
      this.advice = error.status === 0 ? "" : error.message;
      const mark = byId("lag-verdict");
      say(mark, "?");
      mark.dataset.verdict = "UNKNOWN";
      say(byId("lag-text"), "can't be read now");
      this.#panel.classList.add("stale");
    }
  }

  #show(lag) {
    this.#panel.classList.remove("stale");
    const mark = byId("lag-verdict");
    say(mark, lag.verdict);
    mark.dataset.verdict = lag.verdict;
    const { slot, flush, groups } = lag;
    this.advice = slot.advice || flush.advice || "";
    say(byId("lag-text"), slot.bytes === null ? "there is no slot" : `${size(slot.bytes)} to read, flushed ${flush.age_seconds === null ? "never" : ago(flush.age_seconds)}`);
    const parts = [
      make("div", { class: "lags" },
        item("Slot", slot.verdict, [
          ["to read", size(slot.bytes)], ["age", slot.seconds === null ? "?" : span(slot.seconds)], ["WAL held", size(slot.held_bytes)],
          ["room left", slot.safe_wal_size === null ? "no limit" : size(slot.safe_wal_size)], ["status", slot.wal_status ?? "missing"],
          ["reader", slot.active ? "connected" : "none"],
        ], slot.advice),
        item("Flush", flush.verdict, [
          ["last", flush.age_seconds === null ? "never" : ago(flush.age_seconds)], ["partitions", number(flush.partitions)],
          ["without a base", number(flush.unbased.length)],
        ], flush.advice)),
    ];
    if (groups.length) parts.push(this.#groups(groups));
    this.#panel.replaceChildren(...parts);
  }

  #groups(groups) {
    const columns = ["Topic", "Partition", "Current offset", "Log end offset", "Lag", "Age", "Consumer", "Host", "Verdict"];
    return table("Topics, by partition", columns, groups.map((group) => make("tr", {},
      ...[group.topic, group.partition, group.current_offset, group.log_end_offset, group.lag, group.seconds === null ? null : span(group.seconds),
        group.consumer_id, group.host].map((value) => make("td", {}, value === null || value === undefined ? "–" : String(value))),
      make("td", {}, verdictMark(group.verdict)))));
  }
}

function item(title, verdict, facts, advice) {
  return make("article", { class: "lagging" },
    make("h3", {}, title, " ", verdictMark(verdict)),
    make("dl", { class: "facts" }, ...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
    advice ? make("p", { class: "todo" }, advice) : null);
}

export class RunsPanel {
  #stream;
  #panel = byId("recounts-panel");
  #open = new Set();
  #shown = "";
  #limit = 10;

  constructor(stream) {
    this.#stream = stream;
    byId("only-drift").addEventListener("change", () => this.look());
    byId("recount").addEventListener("click", (event) => this.#recount(event.currentTarget));
    document.addEventListener("asked", () => this.look());
  }

  start() {
    this.look();
    setInterval(() => this.look(), RUNS_EVERY);
  }

  async look() {
    if (document.hidden) return;
    try {
      const { recounts, next_cursor: older } = await get(`api/recounts?limit=${this.#limit}${byId("only-drift").checked ? "&drift=true" : ""}`);
      this.#panel.classList.remove("stale");
      this.#showProof(recounts);
      const now = JSON.stringify(recounts) + byId("only-drift").checked;
      if (now !== this.#shown) {
        this.#shown = now;
        this.#show(recounts, older);
      }
    } catch (error) {
      this.#panel.classList.add("stale");
      if (!this.#shown) this.#panel.replaceChildren(make("p", { class: "quiet-text" }, error.message));
    }
  }

  #showProof(runs) {
    const last = runs.find((run) => run.status === "sealed");
    const proof = byId("proof");
    if (!last) {
      say(proof, runs.length ? "Counting" : "–");
      say(byId("proof-text"), runs.length ? "the first recount waits for the stream" : "no recount seen yet");
      return;
    }
    const { verified, drift, inconclusive, not_comparable: apart, baseline } = last.counts;
    const when = ago((this.#stream.now() - Date.parse(last.started_at)) / 1000);
    if (drift) {
      proof.dataset.proof = "drift";
      say(proof, `${number(drift)} drifted`);
      say(byId("proof-text"), `${when}, corrected; the recounts tell the cause`);
    } else if (inconclusive || apart) {
      proof.dataset.proof = "old";
      say(proof, `${number(inconclusive + apart)} open`);
      say(byId("proof-text"), `${when}; compared again soon`);
    } else {
      proof.dataset.proof = "fresh";
      say(proof, verified || !baseline ? `${number(verified)} verified` : `${number(baseline)} counted`);
      say(byId("proof-text"), `${when}, ${verified ? "all equal" : baseline ? "first counts" : "no campaign in the queue"}`);
    }
  }

  #show(runs, older) {
    if (runs.length === 0) {
      const text = byId("only-drift").checked ? "No run has found a drift." : "No recount has run yet. “Recount now” runs one; the reconciler runs one every five minutes.";
      this.#panel.replaceChildren(make("p", { class: "quiet-text" }, text));
      return;
    }
    const rows = runs.flatMap((run) => this.#rows(run));
    this.#panel.replaceChildren(table("Recounts, the newest first",
      ["Run", "When", "Why", "Verified", "Drift", "Open", "Baseline", "Took", "Digest"], rows));
    if (older && this.#limit < 200) {
      this.#panel.append(make("p", { class: "more" }, make("button", { type: "button", onclick: () => {
        this.#limit = Math.min(200, this.#limit * 4);
        this.look();
      } }, "Older recounts")));
    }
  }

  #rows(run) {
    const counts = run.counts;
    const digest = run.digest ? run.digest.slice(0, 10) : "not sealed yet";
    const toggle = make("button", { type: "button", class: "link", "aria-expanded": String(this.#open.has(run.run_id)),
      "aria-label": `Run ${run.run_id}, verdicts` }, String(run.run_id));
    const row = make("tr", { class: counts.drift ? "drifted" : null }, make("th", { scope: "row" }, toggle),
      make("td", {}, moment(run.started_at, this.#stream.now())), make("td", {}, TRIGGERS[run.trigger] ?? run.trigger),
      make("td", {}, number(counts.verified)), make("td", { class: counts.drift ? "bad" : null }, number(counts.drift)),
      make("td", {}, number(counts.inconclusive + counts.not_comparable)), make("td", {}, number(counts.baseline)),
      make("td", {}, run.count_ms === undefined ? "–" : `${run.count_ms.toFixed(0)} ms`), make("td", { class: "mono", title: run.digest ?? "" }, digest));
    const inside = make("td", { colspan: "9" });
    const more = make("tr", { class: "inside", hidden: !this.#open.has(run.run_id) }, inside);
    toggle.addEventListener("click", () => {
      const opening = more.hidden;
      more.hidden = !opening;
      toggle.setAttribute("aria-expanded", String(opening));
      if (opening) this.#open.add(run.run_id);
      else this.#open.delete(run.run_id);
      if (opening) this.#load(run.run_id, inside);
    });
    if (!more.hidden) this.#load(run.run_id, inside);
    return [row, more];
  }

  async #load(id, place) {
    try {
      const run = await get(`api/recounts/${id}?limit=100`);
      place.replaceChildren(...this.#story(run));
    } catch (error) {
      place.replaceChildren(make("p", {}, error.message));
    }
  }

  #story(run) {
    const facts = [["LSN", run.lsn], ["snapshot", `${run.snapshot.xmin}:${run.snapshot.xmax}`], ["asked by", run.requested_by],
      ["policy", run.removed_policy ?? "?"], ["previous digest", run.previous_digest?.slice(0, 16) ?? "none"], ["digest", run.digest?.slice(0, 16) ?? "not sealed yet"]];
    const parts = [make("dl", { class: "facts" }, ...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", { class: "mono" }, value))))];
    if (run.verdicts.length) {
      parts.push(table(`Verdicts of run ${run.run_id}`, ["Campaign", "Verdict", "Difference", "What it means, and what to do"], run.verdicts.map((verdict) =>
        make("tr", {}, make("td", {}, this.#name(verdict.campaign_id)), make("td", {}, verdictMark(verdict.verdict)), make("td", {}, difference(verdict.delta)),
          make("td", {}, verdict.cause ? CAUSES[verdict.cause] ?? verdict.cause : VERDICTS[verdict.verdict] ?? "")))));
      if (run.next_cursor) parts.push(make("p", { class: "quiet-text" }, "The first 100; ", make("a", { href: `api/recounts/${run.run_id}` }, "all as JSON"), "."));
    } else {
      parts.push(make("p", { class: "quiet-text" }, "No verdict was kept: every campaign was equal, and unchanged since the run before."));
    }
    if (run.observations.length) {
      parts.push(table("Other numbers of the mailer", ["Campaign", "Kind", "Expected", "Actual"], run.observations.map((seen) =>
        make("tr", {}, make("td", {}, this.#name(seen.campaign_id)), make("td", {}, seen.kind), make("td", {}, number(seen.expected)), make("td", {}, number(seen.actual))))));
    }
    return parts;
  }

  #name(id) {
    const campaign = this.#stream.campaigns.get(id);
    return campaign ? `${campaign.name} (${id})` : `campaign ${id}, which is gone`;
  }

  async #recount(button) {
    const said = byId("recount-said");
    button.disabled = true;
    say(said, "Counting the whole queue…");
    try {
      const { run_id: id } = await post("api/recounts");
      say(said, `Run ${id} is counted; waiting for the stream's answer…`);
      const run = await this.#sealed(id);
      say(said, run ? `Run ${id}: ${summary(run.counts)}.` : `Run ${id} is counted. It is sealed when the reconciler has its answers.`);
    } catch (error) {
      say(said, error.message);
    } finally {
      button.disabled = false;
    }
  }

  async #sealed(id) {
    const deadline = performance.now() + SEALED_WITHIN;
    while (performance.now() < deadline) {
      const run = await get(`api/recounts/${id}?limit=1`);
      if (run.status === "sealed") {
        this.look();
        return run;
      }
      await new Promise((go) => setTimeout(go, 500));
    }
    return null;
  }
}

function summary(counts) {
  const said = [["verified", "verified"], ["drift", "with drift, corrected"], ["inconclusive", "inconclusive"],
    ["not_comparable", "not comparable yet"], ["baseline", "counted for the first time"]]
    .filter(([name]) => counts[name]).map(([name, words]) => `${plural(counts[name], "campaign")} ${words}`);
  return said.join(", ") || "no campaign to compare";
}
