// Memory by what holds it: a bar of now, and the last ten minutes as areas upon each other.

import { bytes, fill, h, panel, svg, texts } from "../kit.js";

const words = texts.machine;
const PARTS = ["weights", "cache", "compute", "others", "free"];
const SECONDS = 600;
const WIDTH = 600;
const HEIGHT = 120;

export const heldBy = ({ weights, cache, compute }) => words.holds(bytes(weights), bytes(cache), bytes(compute));

// `past(event)` takes the daemon's history, `take(event)` what it says now.
export function memoryPanel() {
  let samples = [];
  const mark = (at) => h(`i.part-${at + 1}`);
  const values = PARTS.map(() => h("dd.number"));
  const segments = PARTS.map((_, at) => mark(at));
  const bar = h("div.bar-track.tall", { role: "img" }, segments);
  const keys = PARTS.map((part, at) => h("div", h("dt", mark(at), words.parts[part]), values[at]));
  const paths = PARTS.slice(0, -1).map((_, at) => svg("path", { class: `part-${at + 1}` }));
  const frame = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", class: "chart" };
  const chart = svg("svg", frame, paths);
  const cards = h("div.cards");
  const whole = h("span.quiet.small.number");
  const ends = [h("span", words.tenMinutes), h("span", words.now)];
  const axis = h("div.row.spread.small.quiet", { "aria-hidden": "true" }, ends);
  const node = panel(words.memory, whole, bar, h("dl.legend-list", keys), chart, axis, cards);

  function past(columns) {
    const names = ["at", "limit", ...PARTS];
    samples = columns.at.map((_, row) => Object.fromEntries(names.map((name) => [name, columns[name][row]])));
  }

  function take({ at, memory, graphics, graphics_held: held }) {
    samples = [...samples.filter((each) => each.at >= at - SECONDS), { at, ...memory }];
    whole.textContent = words.of(bytes(memory.limit));
    PARTS.forEach((part, row) => {
      values[row].textContent = bytes(memory[part]);
      segments[row].style.setProperty("width", `${((100 * memory[part]) / memory.limit).toFixed(2)}%`);
    });
    bar.setAttribute("aria-label", PARTS.map((part) => `${words.parts[part]} ${bytes(memory[part])}`).join(", "));
    chart.setAttribute("aria-label", words.chart(bytes(Math.min(...samples.map((each) => each.free)))));
    draw(at);
    const ours = held.weights + held.cache + held.compute;
    const holds = graphics.length > 0 && ours > 0 && h("p.small.quiet", words.cardHeld(heldBy(held)));
    fill(cards, graphics.map(card), holds);
  }

  function draw(now) {
    const x = (sample) => (WIDTH * (1 - (now - sample.at) / SECONDS)).toFixed(1);
    const line = (heights) => samples.map((each, row) => `${x(each)},${(HEIGHT * (1 - heights[row])).toFixed(1)}`);
    let below = samples.map(() => 0);
    paths.forEach((path, at) => {
      const above = samples.map((each, row) => below[row] + each[PARTS[at]] / each.limit);
      path.setAttribute("d", samples.length > 1 ? `M${[...line(above), ...line(below).reverse()].join("L")}Z` : "");
      below = above;
    });
  }

  return { node, past, take };
}

function card({ name, free, total }) {
  const text = words.cardFree(bytes(free), bytes(total));
  const used = h("i.part-4", { style: { width: `${((100 * (total - free)) / Math.max(1, total)).toFixed(1)}%` } });
  const head = h("div.row.spread", h("b", name), h("span.small.quiet.number", text));
  return h("div", head, h("div.bar-track", { role: "img", "aria-label": `${name}: ${text}` }, used));
}
