// Loaded models with their queues, and the last requests: who asked which model, how many tokens, how long; never text.

import { send } from "../api.js";
import { button, h } from "../dom.js";
import { bytes, duration, number, rate } from "../format.js";
import { tell, tellError } from "../notices.js";
import { may } from "../session.js";
import { keyed } from "../watch.js";
import { texts } from "../texts.js";

const words = texts.machine;
const MOST = 50;

export class Loaded {
  constructor() {
    this.body = h("tbody");
    this.none = h("p.quiet", {}, words.noneLoaded);
    const heads = [words.model, words.speed, words.answering, words.waiting, words.memory, words.stays];
    const numbers = new Set([1, 2, 3, 4]);
    this.table = h("table.table.wide", { hidden: true }, h("thead", {}, h("tr", {}, ...heads.map((text, at) => h(numbers.has(at) ? "th.number" : "th", { scope: "col" }, text)), h("th", { scope: "col" }, h("span.hidden", {}, texts.models.acts)))), this.body);
    this.node = h("section.panel", { "aria-labelledby": "loaded-title" }, h("h2", { id: "loaded-title" }, words.loaded), this.none, h("div.scroller", {}, this.table));
  }

  take(models) {
    this.none.hidden = models.length > 0;
    this.table.hidden = models.length === 0;
    keyed(this.body, models, (model) => model.name, (model) => this.row(model));
  }

  row({ name }) {
    const cells = [words.speed, words.answering, words.waiting, words.memory, words.stays].map((label, at) => h(at < 4 ? "td.number" : "td", { "data-label": label }));
    const state = h("span.badge");
    const stop = may("operator") ? button(words.unload, () => this.unload(name), { class: "button small", "aria-label": `${words.unload} ${name}` }) : null;
    const node = h("tr", {}, h("td", {}, h("a.name", { href: `#/models/${encodeURIComponent(name)}` }, name), " ", state), ...cells, h("td", {}, h("div.row.end", {}, stop)));
    const update = (model) => {
      state.textContent = texts.models.states[model.state];
      const shown = [
        model.tokens_per_second ? `${rate(model.tokens_per_second)}/s` : "–",
        model.sequences ? `${model.running} / ${model.sequences}` : String(model.running),
        String(model.waiting),
        bytes(model.weights + model.cache + model.compute),
        model.stays === null ? words.forEver : model.pending ? words.inUse : duration(Math.round(model.stays)),
      ];
      cells.forEach((cell, at) => cell.textContent !== shown[at] && (cell.textContent = shown[at]));
      cells[3].title = words.holds(bytes(model.weights), bytes(model.cache), bytes(model.compute));
    };
    return { node, update };
  }

  async unload(name) {
    try {
      const { models } = await send("POST", "/lm/stop", { model: name });
      tell(texts.models.stopped[models[0]?.state] ?? texts.models.stopped.stopped);
    } catch (error) {
      tellError(error);
    }
  }
}

export class Requests {
  constructor() {
    this.rows = [];
    this.body = h("tbody");
    this.none = h("p.quiet", {}, words.noRequests);
    this.wrong = h("input", { type: "checkbox", id: "wrong-only", onchange: () => this.draw() });
    const heads = [[words.time], [words.who], [words.model], [words.read, 1], [words.written, 1], [words.first, 1], [words.took, 1], [words.status]];
    this.table = h("table.table.wide", {}, h("thead", {}, h("tr", {}, ...heads.map(([text, figure]) => h(figure ? "th.number" : "th", { scope: "col" }, text)))), this.body);
    const filter = h("div.row", {}, this.wrong, h("label.small", { for: "wrong-only" }, words.wrongOnly));
    this.node = h("section.panel", { "aria-labelledby": "requests-title" }, h("div.row.spread", {}, h("h2", { id: "requests-title" }, words.requests), filter), this.none, h("div.scroller", {}, this.table));
  }

  take(rows) {
    this.rows = rows;
    this.draw();
  }

  draw() {
    const shown = this.rows.filter((row) => !this.wrong.checked || wrong(row)).slice(0, MOST);
    this.none.hidden = shown.length > 0;
    this.table.hidden = shown.length === 0;
    keyed(this.body, shown, (row) => `${row.id} ${row.at}`, (row) => this.row(row));
  }

  row(first) {
    const cells = Array.from({ length: 8 }, (_, at) => h(at > 2 && at < 7 ? "td.number" : "td"));
    [words.time, words.who, "", words.read, words.written, words.first, words.took, words.status].forEach((label, at) => label && (cells[at].dataset.label = label));
    const badge = h("span.badge");
    cells[7].append(badge);
    cells[0].textContent = new Date(first.at * 1000).toLocaleTimeString("en-GB");
    cells[1].textContent = first.who;
    const update = (row) => {
      const read = row.cached_tokens ? words.cached(number(row.prompt_tokens), number(row.cached_tokens)) : number(row.prompt_tokens);
      const texts = [row.model || "–", read, number(row.answer_tokens), duration(row.first_text_seconds ?? NaN), duration(row.seconds)];
      texts.forEach((text, at) => cells[at + 2].textContent !== text && (cells[at + 2].textContent = text));
      cells[2].title = row.route;
      badge.className = `badge ${row.status === "" ? "" : wrong(row) ? "bad" : "good"}`;
      badge.textContent = row.status === "" ? words.underWay : [row.status, row.code].filter(Boolean).join(" ");
    };
    return { node: h("tr", {}, ...cells), update };
  }
}

const wrong = (row) => row.status === "gone" || Number(row.status) >= 400;
