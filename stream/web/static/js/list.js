// The campaigns: one row each, kept in place while its numbers change.

import { byId, label, say } from "./dom.js";
import { ago, moment, number, percent, plural, rate, STATUSES, until } from "./words.js";
import { Detail } from "./detail.js";

const PAGE = 100;
const RANK = { running: 0, scheduled: 1, paused: 2, draft: 3, finished: 4, cancelled: 5 };
const RECENT = 15 * 60e3; // a proof younger than this is shown as fresh

export class List {
  #stream;
  #rows = new Map(); // id -> Row
  #room = PAGE;
  #which = "active";
  #words = "";
  #drifted = new Set();
  #list = byId("list");
  #order = [];

  constructor(stream) {
    this.#stream = stream;
    const again = () => {
      this.#room = PAGE;
      this.arrange();
    };
    byId("filters").addEventListener("change", (event) => {
      if (event.target.name === "which") this.#which = event.target.value;
      again();
    });
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    byId("search").addEventListener("input", (event) => {
      this.#words = event.target.value.trim().toLowerCase();
      again();
    });
    byId("more").addEventListener("click", () => {
      this.#room += 2 * PAGE;
      this.arrange();
    });
  }

  drifted(id) {
    this.#drifted.add(id);
  }

  // Show what changed. Rows move only where a campaign came, went, or changed its status.
  update(changed) {
    let moved = false;
    for (const id of changed) {
      const campaign = this.#stream.campaigns.get(id);
      const row = this.#rows.get(id);
      if (row && campaign && row.status === campaign.status && this.#fits(campaign)) row.show(campaign);
      else moved ||= Boolean(row) || (campaign !== undefined && this.#fits(campaign));
    }
    if (moved) this.arrange();
  }

  // Let time pass: what was fresh may be stale now.
  tick() {
    for (const row of this.#rows.values()) row.tick();
  }

  arrange() {
    const all = [...this.#stream.campaigns.values()];
    const fitting = all.filter((campaign) => this.#fits(campaign));
    fitting.sort((a, b) => (RANK[a.status] ?? 9) - (RANK[b.status] ?? 9) || b.campaign_id - a.campaign_id);
    const shown = fitting.slice(0, this.#room);
    const wanted = new Set(shown.map((campaign) => campaign.campaign_id));
    for (const [id, row] of this.#rows) {
      if (!wanted.has(id)) {
        row.remove();
        this.#rows.delete(id);
      }
    }
    let before = null;
    for (const campaign of shown) {
      let row = this.#rows.get(campaign.campaign_id);
      if (!row) this.#rows.set(campaign.campaign_id, (row = new Row(this.#stream, campaign.campaign_id)));
      row.show(campaign);
      const place = before === null ? this.#list.firstElementChild : before.nextElementSibling;
      if (row.element !== place) this.#list.insertBefore(row.element, place);
      before = row.element;
    }
    this.#list.classList.toggle("long", shown.length > 60); // rows out of sight are not laid out, then
    const loaded = this.#stream.loaded;
    this.#list.setAttribute("aria-busy", String(!loaded));
    byId("skeletons").hidden = loaded;
    say(byId("shown"), loaded ? (shown.length === all.length ? number(all.length) : `${number(fitting.length)} of ${number(all.length)}`) : "");
    byId("more").hidden = fitting.length <= shown.length;
    say(byId("more"), `Show more (${number(fitting.length - shown.length)} left)`);
    this.#sayEmpty(all.length, fitting.length);
  }

  #sayEmpty(all, fitting) {
    const empty = byId("empty");
    empty.hidden = !this.#stream.loaded || fitting > 0;
    if (empty.hidden) return;
    if (all === 0) say(empty, "The mailer has no campaigns yet. They appear here by themselves.");
    else if (this.#words) say(empty, `No campaign is called “${this.#words}”.`);
    else if (this.#which === "problems") say(empty, "No problems: nothing failed, nothing is stale, no drift was found.");
    else say(empty, `Nothing is being sent at the moment. “All” shows ${plural(all, "campaign")}.`);
  }

  #fits(campaign) {
    if (this.#words && !campaign.name.toLowerCase().includes(this.#words) && String(campaign.campaign_id) !== this.#words) return false;
    if (this.#which === "all" || (this.#words && this.#which === "active")) return true;
    if (this.#which === "problems") {
      return campaign.queue_failed > 0 || campaign.stale || this.#drifted.has(campaign.campaign_id);
    }
    const waiting = campaign.queue_queued + campaign.queue_sending;
    return ["running", "scheduled", "paused"].includes(campaign.status) || waiting > 0 || campaign.rate_per_minute > 0;
  }
}

class Row {
  status = "";
  element;

  #stream;
  #id;
  #parts;
  #campaign = null;
  #detail = null;

  constructor(stream, id) {
    this.#stream = stream;
    this.#id = id;
    this.element = byId("row").content.firstElementChild.cloneNode(true);
    const find = (selector) => this.element.querySelector(selector);
    this.#parts = {
      row: find(".row"), open: find(".open"), name: find(".name"), status: find(".status"), source: find(".source"),
      badge: find(".badge"), bar: find(".bar"), counts: find(".counts"), percent: find(".percent"), of: find(".of"),
      rate: find(".rate"), eta: find(".eta"), detail: find(".detail"),
      pieces: Object.fromEntries(STATUSES.map((name) => [name, find(`.bar .${name}`)])),
    };
    this.#parts.open.addEventListener("click", () => this.#toggle());
    this.#parts.detail.id = `detail-${id}`;
    this.#parts.open.setAttribute("aria-controls", `detail-${id}`);
  }

  show(campaign) {
    this.#campaign = campaign;
    this.status = campaign.status;
    const parts = this.#parts;
    say(parts.name, campaign.name || `Campaign ${this.#id}`);
    say(parts.status, campaign.status);
    parts.status.dataset.status = campaign.status;
    say(parts.source, campaign.source !== "mailer" ? "" : ["waiting", "unstarted"].includes(this.#stream.state()) ? "not counted yet" : "not in the queue");
    this.#showBar(campaign);
    say(parts.percent, percent(campaign.percent));
    say(parts.of, `${number(campaign.sent)} of ${number(campaign.to_send)} sent`);
    say(parts.rate, rate(campaign.rate_per_minute));
    this.tick();
  }

  tick() {
    const campaign = this.#campaign;
    const now = this.#stream.now();
    const stale = this.#stream.isStale(campaign);
    const { row, eta, badge } = this.#parts;
    row.classList.toggle("stale", stale);
    if (stale) say(eta, `as of ${moment(this.#stream.asOf(campaign), now)}`);
    else if (campaign.eta) say(eta, `done about ${until(campaign.eta, now)}`);
    else say(eta, rest(campaign));
    this.#showBadge(badge, now);
    this.#detail?.tick(campaign);
  }

  remove() {
    this.#detail?.close();
    this.element.remove();
  }

  #showBadge(badge, now) {
    const { source, verified_at: at, verified_lsn: lsn } = this.#campaign;
    if (source === "mailer") {
      badge.hidden = true;
      return;
    }
    const age = at ? now - Date.parse(at) : null;
    badge.hidden = false;
    badge.dataset.proof = age === null ? "none" : age < RECENT ? "fresh" : "old";
    say(badge, age === null ? "not verified yet" : `verified ${ago(age / 1000)}`);
    badge.title = at ? `By a recount at ${at}, LSN ${lsn ?? "?"}` : "Counted; no later recount has compared it yet";
  }

  #showBar(campaign) {
    const { bar, counts, pieces } = this.#parts;
    const values = Object.fromEntries(STATUSES.map((name) => [name, campaign[`queue_${name}`]]));
    values.sent += campaign.removed;
    if (campaign.source === "mailer") values.sent = campaign.sent;
    const rows = STATUSES.reduce((sum, name) => sum + values[name], 0);
    const whole = Math.max(rows, campaign.source === "mailer" ? campaign.to_send : 0);
    const said = [];
    for (const name of STATUSES) {
      const share = whole ? values[name] / whole : 0;
      pieces[name].style.flexGrow = String(share);
      pieces[name].hidden = values[name] === 0;
      if (values[name]) said.push(`${number(values[name])} ${name}`);
    }
    bar.style.setProperty("--rest", String(whole ? 1 - rows / whole : 1));
    const words = said.join(" · ") || "no rows in the queue";
    say(counts, campaign.removed ? `${words} (${number(campaign.removed)} of them deleted since)` : words);
    label(bar, words);
  }

  #toggle() {
    const open = this.#parts.detail.hidden;
    this.#parts.detail.hidden = !open;
    this.#parts.open.setAttribute("aria-expanded", String(open));
    if (open) {
      this.#detail = new Detail(this.#parts.detail, this.#stream, this.#id);
      this.#detail.tick(this.#campaign);
    } else {
      this.#detail.close();
      this.#detail = null;
    }
  }
}

function rest(campaign) {
  const waiting = campaign.queue_queued + campaign.queue_sending;
  if (campaign.source === "mailer") return "";
  if (campaign.status === "paused") return campaign.queue_cancelled ? `${number(campaign.queue_cancelled)} held back` : "paused";
  return waiting ? `${number(waiting)} wait` : "nothing waits";
}

