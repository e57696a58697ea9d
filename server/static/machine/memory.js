// Memory by what holds it: a bar of now with its figures, and the last ten minutes as areas upon each other.

import { h } from "../dom.js";
import { bytes } from "../format.js";
import { texts } from "../texts.js";

const words = texts.machine;
const SVG = "http://www.w3.org/2000/svg";
const PARTS = ["weights", "cache", "compute", "others", "free"];
const SECONDS = 600;
const WIDTH = 600;
const HEIGHT = 120;

export class Memory {
  constructor() {
    this.samples = [];
    this.keys = PARTS.map((part, at) => ({ part, value: h("dd.number"), mark: h(`i.part-${at + 1}`) }));
    this.segments = PARTS.map((_, at) => h(`i.part-${at + 1}`));
    this.bar = h("div.bar-track.tall", { role: "img" }, ...this.segments);
    const legend = h("dl.legend-list", {}, ...this.keys.map(({ part, value, mark }) => h("div", {}, h("dt", {}, mark, words.parts[part]), value)));
    this.paths = PARTS.slice(0, -1).map((_, at) => svg("path", { class: `fill-${at + 1}` }));
    this.chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", class: "chart" }, this.paths);
    this.cards = h("div.cards");
    this.top = h("span.quiet.small.number");
    this.node = h("section.panel", { "aria-labelledby": "memory-title" },
      h("div.row.spread", {}, h("h2", { id: "memory-title" }, words.memory), this.top),
      this.bar, legend, this.chart,
      h("div.row.spread.small.quiet", { "aria-hidden": "true" }, h("span", {}, words.tenMinutes), h("span", {}, words.now)),
      this.cards,
    );
  }

  // The columns of the last ten minutes.
  past(columns) {
    this.samples = columns.at.map((at, row) => Object.fromEntries(["at", "limit", ...PARTS].map((name) => [name, columns[name][row]])));
  }

  // One sample more, with the graphics cards.
  take(event) {
    const sample = { at: event.at, ...event.memory };
    this.samples.push(sample);
    while (this.samples[0].at < sample.at - SECONDS) this.samples.shift();
    this.top.textContent = words.of(bytes(sample.limit));
    this.keys.forEach(({ part, value }) => (value.textContent = bytes(sample[part])));
    PARTS.forEach((part, at) => this.segments[at].style.setProperty("width", `${((100 * sample[part]) / sample.limit).toFixed(2)}%`));
    const label = PARTS.map((part) => `${words.parts[part]} ${bytes(sample[part])}`).join(", ");
    this.bar.setAttribute("aria-label", label);
    this.chart.setAttribute("aria-label", words.chart(bytes(Math.min(...this.samples.map((each) => each.free)))));
    this.draw(sample.at);
    this.graphics(event.graphics, event.graphics_held);
  }

  draw(now) {
    const x = (sample) => (WIDTH * (1 - (now - sample.at) / SECONDS)).toFixed(1);
    let below = this.samples.map(() => 0);
    this.paths.forEach((path, at) => {
      const above = this.samples.map((sample, row) => below[row] + sample[PARTS[at]] / sample.limit);
      const line = (heights) => this.samples.map((sample, row) => `${x(sample)},${(HEIGHT * (1 - heights[row])).toFixed(1)}`);
      path.setAttribute("d", this.samples.length > 1 ? `M${[...line(above), ...line(below).reverse()].join("L")}Z` : "");
      below = above;
    });
  }

  graphics(cards, held) {
    const ours = held.weights + held.cache + held.compute;
    const rows = cards.map((card) => {
      const used = card.total - card.free;
      const fill = h("i.part-4", { style: { width: `${((100 * used) / Math.max(1, card.total)).toFixed(1)}%` } });
      return h("div", {}, h("div.row.spread", {}, h("b", {}, card.name), h("span.small.quiet.number", {}, words.cardFree(bytes(card.free), bytes(card.total)))), h("div.bar-track", { role: "img", "aria-label": `${card.name}: ${words.cardFree(bytes(card.free), bytes(card.total))}` }, fill));
    });
    if (rows.length && ours) rows.push(h("p.small.quiet", {}, words.cardHeld(bytes(held.weights), bytes(held.cache), bytes(held.compute))));
    this.cards.replaceChildren(...rows);
  }
}

function svg(tag, attributes, children = []) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
