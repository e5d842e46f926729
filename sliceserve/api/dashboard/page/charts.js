// Lines over the last minutes, as inline SVG. All charts share one cursor.

import { el, show, svg, table, text } from "./dom.js";
import { duration } from "./format.js";

const HEIGHT = 72;
const TOP = 12;
const BOTTOM = 2;
// Points further apart than this many intervals have a gap between them: nobody watched.
const GAP_INTERVALS = 4;
const TABLE_ROWS = 7;

const charts = new Set();
// The time that is pointed at, in seconds before now; null for none.
let cursor = null;

function moveCursor(ago) {
  cursor = ago;
  for (const chart of charts) chart.drawCursor();
}

/** A card with a number, what belongs to it, and a chart.
 *
 * `lines` are {key, label, kind}: a field of points, its name, the class of the line. `format`
 * words a value. `reference` names a value to be marked, from the newest data. */
export class ChartCard {
  constructor({ id, title, series, lines, format, note }) {
    Object.assign(this, { id, title, lines, format });
    this.points = [];
    this.number = el("p", { class: "number", id: `${id}-number` });
    this.unit = el("p", { class: "sub", id: `${id}-sub` });
    this.values = lines.map(() => el("span", { class: "value" }));
    this.when = el("span", { class: "when" });
    this.plot = this.makePlot();
    this.table = el("div", { class: "table scroll" });
    this.node = el(
      "figure",
      { class: "card chart", id: `${id}-card` },
      el("figcaption", {}, el("h3", {}, title)),
      this.number,
      this.unit,
      this.plot,
      this.makeLegend(),
      this.table,
      el("p", { class: "series" }, series),
    );
    charts.add(this);
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  makeLegend() {
    const entries = this.lines.map(({ label, kind }, i) =>
      el("span", { class: "entry" }, el("i", { class: `swatch ${kind}` }), `${label} `, this.values[i]),
    );
    return el("p", { class: "legend", "aria-hidden": "true" }, ...entries, this.when);
  }

  makePlot() {
    this.svg = svg("svg", { height: HEIGHT, "aria-hidden": "true" });
    const plot = el("div", { class: "plot", tabindex: "0", role: "img" }, this.svg);
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      moveCursor(this.span * (1 - (event.clientX - box.left) / box.width));
    });
    plot.addEventListener("pointerleave", () => moveCursor(null));
    plot.addEventListener("blur", () => moveCursor(null));
    plot.addEventListener("keydown", (event) => this.onKey(event));
    return plot;
  }

  onKey(event) {
    const step = { ArrowLeft: 5, ArrowRight: -5, PageUp: 60, PageDown: -60 }[event.key];
    if (event.key === "Escape") return moveCursor(null);
    if (!step) return;
    event.preventDefault();
    moveCursor(Math.min(this.span, Math.max(0, (cursor ?? 0) + step)));
  }

  /** `points` in the order of time; `interval` and `span` in seconds; `reference` may be null. */
  update(points, interval, span, reference) {
    Object.assign(this, { points, interval, span, reference });
    this.draw();
  }

  draw() {
    const width = this.plot.clientWidth;
    if (!width || !this.points.length) return;
    const values = this.lines.flatMap(({ key }) => this.points.map((point) => point[key] ?? 0));
    this.seen = Math.max(...values, this.reference ?? 0);
    this.most = ceiling(this.seen);
    this.width = width;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.svg.setAttribute("width", width);
    this.svg.replaceChildren(...this.grid(), ...this.lines.flatMap((line, i) => this.line(line, i)));
    this.cursorLine = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM });
    this.svg.append(this.cursorLine);
    this.drawCursor();
    this.describe();
  }

  x(point) {
    return this.width * (1 - (this.points.at(-1).at - point.at) / this.span);
  }

  y(value) {
    return HEIGHT - BOTTOM - (value / this.most) * (HEIGHT - TOP - BOTTOM);
  }

  grid() {
    const line = (value, kind) =>
      svg("line", { class: kind, x1: 0, x2: this.width, y1: this.y(value), y2: this.y(value) });
    const nodes = [line(0, "axis"), line(this.most, "grid")];
    if (this.seen) nodes.push(svg("text", { class: "mark", x: 0, y: TOP - 3 }, this.format(this.most)));
    if (this.reference) nodes.push(line(this.reference, "reference"));
    return nodes;
  }

  line({ key, kind }, index) {
    const runs = this.runs(key);
    const path = runs.map((run) => `M${run.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}`);
    const nodes = [];
    if (index === 0) {
      const base = HEIGHT - BOTTOM;
      const area = runs.map(
        (run, i) => `${path[i]}L${run.at(-1)[0].toFixed(1)} ${base}L${run[0][0].toFixed(1)} ${base}Z`,
      );
      nodes.push(svg("path", { class: `area ${kind}`, d: area.join("") }));
    }
    nodes.push(svg("path", { class: `line ${kind}`, d: path.join("") }));
    const last = runs.at(-1)?.at(-1);
    if (last) nodes.push(svg("circle", { class: `dot ${kind}`, cx: last[0], cy: last[1], r: 2.5 }));
    return nodes;
  }

  /** Pieces of the line without a gap, as pixels. */
  runs(key) {
    const runs = [];
    let before = null;
    for (const point of this.points) {
      const value = point[key];
      if (value == null) {
        before = null;
        continue;
      }
      if (before === null || point.at - before > GAP_INTERVALS * this.interval) runs.push([]);
      runs.at(-1).push([this.x(point), this.y(value)]);
      before = point.at;
    }
    return runs;
  }

  drawCursor() {
    if (!this.cursorLine) return;
    const newest = this.points.at(-1);
    const point = cursor === null ? newest : nearest(this.points, newest.at - cursor);
    const x = this.x(point);
    this.cursorLine.setAttribute("x1", x);
    this.cursorLine.setAttribute("x2", x);
    this.cursorLine.classList.toggle("shown", cursor !== null);
    this.lines.forEach(({ key }, i) => text(this.values[i], this.format(point[key])));
    const ago = Math.round(newest.at - point.at);
    text(this.when, cursor === null ? "" : ago ? `${duration(ago)} ago` : "now");
  }

  /** The chart in words, and as a table where tables are shown. */
  describe() {
    const newest = this.points.at(-1);
    const words = this.lines.map(({ key, label }) => {
      const values = this.points.map((point) => point[key]).filter((value) => value != null);
      if (!values.length) return `${label}: nothing yet`;
      const [least, most] = [Math.min(...values), Math.max(...values)].map(this.format);
      return `${label}: now ${this.format(newest[key])}, from ${least} to ${most}`;
    });
    this.plot.setAttribute("aria-label", `${this.title}, the last ${duration(this.span)}. ${words.join(". ")}.`);
    if (!this.table.checkVisibility()) return;
    const rows = Array.from({ length: TABLE_ROWS }, (_, i) => (i * this.span) / (TABLE_ROWS - 1))
      .filter((ago) => this.points[0].at <= newest.at - ago + this.interval)
      .map((ago) => {
        const point = nearest(this.points, newest.at - ago);
        const cells = this.lines.map(({ key }) => this.format(point[key]));
        return [ago ? `${duration(ago)} ago` : "now", ...cells];
      });
    const headings = ["", ...this.lines.map(({ label }) => label)];
    show(this.table, rows, () => table(this.title, headings, rows));
  }
}

function nearest(points, at) {
  return points.reduce((best, point) =>
    Math.abs(point.at - at) < Math.abs(best.at - at) ? point : best,
  );
}

/** The next round number. */
function ceiling(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * power >= value * 0.9999) * power;
}
