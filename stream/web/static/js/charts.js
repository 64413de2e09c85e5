// Mails per minute as bars, by uPlot. Colours follow the page's; a chart says in words what it shows.

import { label, make } from "./dom.js";
import { number } from "./words.js";

const MINUTE = 60;

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// Every minute between the two ends has a value, 0 where no mail went out.
export function everyMinute(history, now) {
  const by = new Map(history.minutes.map(({ minute, sent }) => [Date.parse(minute) / 1000, sent]));
  const first = Math.floor(Date.parse(history.since) / 1000 / MINUTE) * MINUTE;
  const last = Math.floor(now / 1000 / MINUTE) * MINUTE;
  const times = [];
  for (let time = first; time <= last; time += MINUTE) times.push(time);
  return [times, times.map((time) => by.get(time) ?? 0)];
}

export class MinuteChart {
  #place;
  #plot = null;
  #height;
  #what;
  #observer;
  #data = [[], []];

  constructor(place, height, what) {
    this.#place = place;
    this.#height = height;
    this.#what = what;
    this.#observer = new ResizeObserver(() => this.#plot?.setSize({ width: this.#width(), height: this.#height }));
    this.#observer.observe(place);
  }

  show(data) {
    this.#data = data;
    if (!this.#plot) this.#make();
    else this.#plot.setData(data);
    const values = data[1];
    const sum = values.reduce((total, value) => total + value, 0);
    const most = Math.max(0, ...values);
    label(this.#place, `${this.#what}: ${number(sum)} mails in ${values.length} minutes, ${number(most)} in the busiest.`);
  }

  // Other colours: draw anew.
  redraw() {
    if (!this.#plot) return;
    this.#plot.destroy();
    this.#make();
  }

  close() {
    this.#observer.disconnect();
    this.#plot?.destroy();
    this.#plot = null;
  }

  #width() {
    return Math.max(160, Math.floor(this.#place.clientWidth));
  }

  #make() {
    const { uPlot } = window;
    const text = colour("--muted");
    const grid = { stroke: colour("--line"), width: 1 };
    const font = "11px system-ui, sans-serif";
    this.#plot = new uPlot(
      {
        width: this.#width(),
        height: this.#height,
        legend: { show: false },
        cursor: { y: false, drag: { x: false, y: false }, points: { show: false } },
        scales: { x: { time: true }, y: { range: (_, low, high) => [Math.min(0, low), Math.max(5, high * 1.1)] } },
        axes: [
          { stroke: text, font, grid: { show: false }, ticks: { show: false }, size: 24, space: 70,
            values: [[3600, "{HH}:{mm}", null, null, null, null, null, null, 1], [60, "{HH}:{mm}", null, null, null, null, null, null, 1]] },
          { stroke: text, font, grid, ticks: { show: false }, size: 44, space: 36, values: (_, ticks) => ticks.map((tick) => number(tick)) },
        ],
        series: [
          {},
          { stroke: colour("--sent"), fill: colour("--sent-soft"), width: 1.5, points: { show: false },
            paths: uPlot.paths.bars({ size: [0.8, 14], align: 1 }) },
        ],
        hooks: { setCursor: [(plot) => this.#tell(plot)] },
      },
      this.#data,
      this.#place,
    );
    this.#tip = make("p", { class: "tip", hidden: true, "aria-hidden": "true" });
    this.#place.append(this.#tip);
  }

  #tip = null;

  #tell(plot) {
    const at = plot.cursor.idx;
    if (!this.#tip) return;
    this.#tip.hidden = at === null || at === undefined || plot.cursor.left < 0;
    if (this.#tip.hidden) return;
    const time = new Date(this.#data[0][at] * 1000);
    this.#tip.textContent = `${time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })} · ${number(this.#data[1][at])} sent`;
    const left = plot.valToPos(this.#data[0][at], "x");
    this.#tip.style.left = `${Math.min(Math.max(60, left + plot.bbox.left / devicePixelRatio), this.#width() - 70)}px`;
  }
}
