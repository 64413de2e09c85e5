// What the server says as it happens, and how far that can be believed at this moment.
//
// A number is live only while its partition's `as_of` is younger than five seconds by the server's clock. This is decided
// here again and again, not only by the server: the server may be the one that has gone silent.

const STALE_AFTER = 5000;
const SILENT_AFTER = 20000; // not even a comment: the connection is dead and does not know it
const AGAIN_FIRST = 1000;
const AGAIN_LAST = 15000;

export class Stream extends EventTarget {
  campaigns = new Map();
  watermarks = new Map();
  changed = new Set(); // ids since the last look
  connected = false;
  loaded = false;
  shadow = false; // campaigns.sent is not written (WRITE_BACK=false)
  heardAt = performance.now();

  #source = null;
  #lastId = "";
  #again = AGAIN_FIRST;
  #timer = 0;
  #serverTime = Date.now();
  #serverTimeAt = performance.now();

  // Milliseconds of the server's clock; a clock that is set here changes nothing.
  now() {
    return this.#serverTime + (performance.now() - this.#serverTimeAt);
  }

  start() {
    this.#open();
    setInterval(() => {
      if (this.connected && performance.now() - this.heardAt > SILENT_AFTER) this.#reopen(0);
    }, 1000);
  }

  // Milliseconds since the oldest partition's as_of; null while none is known.
  age() {
    let oldest = null;
    for (const mark of this.watermarks.values()) {
      if (mark.as_of === null) return null;
      const time = Date.parse(mark.as_of);
      if (oldest === null || time < oldest) oldest = time;
    }
    return oldest === null ? null : Math.max(0, this.now() - oldest);
  }

  isStale(campaign) {
    if (!this.connected) return true;
    const mark = this.watermarks.get(campaign.partition);
    if (campaign.source === "mailer") return this.age() !== null && this.age() > STALE_AFTER;
    return !mark || !mark.based || mark.as_of === null || this.now() - Date.parse(mark.as_of) > STALE_AFTER;
  }

  asOf(campaign) {
    return this.watermarks.get(campaign.partition)?.as_of ?? campaign.as_of;
  }

  // loading | disconnected | empty | waiting (no baseline yet) | stale | live
  state() {
    if (!this.loaded) return this.connected ? "loading" : "connecting";
    if (!this.connected) return "disconnected";
    if (this.watermarks.size === 0) return "unstarted";
    if ([...this.watermarks.values()].some((mark) => !mark.based)) return "waiting";
    const age = this.age();
    return age === null || age > STALE_AFTER ? "stale" : "live";
  }

  #open() {
    const resume = this.#lastId ? `?last_event_id=${encodeURIComponent(this.#lastId)}` : "";
    const source = new EventSource(`api/events${resume}`);
    this.#source = source;
    source.onopen = () => {
      this.connected = true;
      this.heardAt = performance.now();
      this.#again = AGAIN_FIRST;
      this.#tell();
    };
    source.onerror = () => {
      if (this.#source !== source) return;
      this.connected = false;
      this.#tell();
      // where the server refused us, EventSource gives up: find out why, and go on by ourselves
      if (source.readyState === EventSource.CLOSED) this.#reopen(this.#again);
    };
    const on = (name, take) => source.addEventListener(name, (event) => {
      this.heardAt = performance.now();
      if (event.lastEventId) this.#lastId = event.lastEventId;
      take(JSON.parse(event.data));
      this.dispatchEvent(new Event("news"));
    });
    on("snapshot", (data) => this.#snapshot(data));
    on("progress", (campaign) => this.#progress(campaign));
    on("watermark", (mark) => {
      this.#setClock(mark.now);
      this.shadow = mark.shadow;
      this.watermarks.set(mark.partition, mark);
    });
    on("deleted", ({ campaign_id: id }) => {
      this.campaigns.delete(id);
      this.changed.add(id);
    });
    on("verdict", (verdict) => this.dispatchEvent(new CustomEvent("verdict", { detail: verdict })));
  }

  #snapshot(data) {
    this.#setClock(data.now);
    this.shadow = data.shadow;
    for (const id of this.campaigns.keys()) this.changed.add(id);
    this.campaigns.clear();
    this.watermarks.clear();
    for (const mark of data.watermarks) this.watermarks.set(mark.partition, mark);
    for (const campaign of data.campaigns) this.#progress(campaign);
    this.loaded = true;
    this.#tell();
  }

  #setClock(text) {
    this.#serverTime = Date.parse(text);
    this.#serverTimeAt = performance.now();
  }

  #progress(campaign) {
    this.campaigns.set(campaign.campaign_id, campaign);
    this.changed.add(campaign.campaign_id);
    const mark = this.watermarks.get(campaign.partition);
    if (mark && campaign.position > mark.position) {
      mark.as_of = campaign.as_of;
      mark.position = campaign.position;
    }
  }

  #reopen(wait) {
    this.#source.close();
    this.connected = false;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(async () => {
      // 401 has to lead to the login page, and EventSource does not tell the status
      const status = await fetch("api/campaigns?limit=1", { credentials: "same-origin" }).then((r) => r.status, () => 0);
      if (status === 401) location.reload();
      this.#open();
    }, wait);
    this.#again = Math.min(this.#again * 2, AGAIN_LAST);
    this.#tell();
  }

  #tell() {
    this.dispatchEvent(new Event("state"));
  }
}
