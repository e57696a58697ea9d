// Two models or levels that are here, side by side on one prompt. One after the other: both at once would share the
// processor, and neither would be as fast as it is.

import { stream } from "../api.js";
import { button, h, labelled } from "../dom.js";
import { duration, rate } from "../format.js";
import { tellError } from "../notices.js";
import { texts } from "../texts.js";

const words = texts.fit;

export class Compare {
  constructor(signal) {
    this.signal = signal;
    this.sides = [this.side("a"), this.side("b")];
    this.prompt = h("textarea", { rows: 2, required: true }, words.comparePrompt);
    this.go = h("button.button.primary", { type: "submit" }, words.ask);
    this.halt = button(words.stop, () => this.running?.abort(), { hidden: true });
    const form = h("form", { onsubmit: (event) => this.ask(event) }, labelled(words.prompt, this.prompt), h("div.row", {}, this.go, this.halt));
    this.node = h("section.compare", { "aria-labelledby": "compare-title", hidden: true }, h("h2", { id: "compare-title" }, words.compare), h("p.quiet", {}, words.compareHelp), form, h("div.columns", {}, ...this.sides.map((side) => side.node)));
  }

  side(name) {
    const choice = h("select");
    const text = h("div.answer", { role: "log", "aria-label": words.answerOf(name) });
    const figures = h("p.small.quiet", { role: "status" });
    const node = h("div.panel", {}, labelled(words.model(name), choice), text, figures);
    return { node, choice, text, figures };
  }

  // Offer models by name; the two that are nearest to `wanted` are chosen.
  offer(models, wanted) {
    const names = models.filter((model) => !model.problem && !model.base && !model.alias && (model.capabilities ?? []).includes("completion")).map((model) => model.name);
    this.node.hidden = names.length < 2;
    const stem = wanted.split(":")[0];
    const near = [...names.filter((name) => name.split(":")[0] === stem), ...names];
    this.sides.forEach((side, at) => {
      const kept = side.choice.value;
      side.choice.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
      side.choice.value = names.includes(kept) ? kept : ([...new Set(near)][at] ?? names[at]);
    });
  }

  async ask(event) {
    event.preventDefault();
    this.running = new AbortController();
    const signal = AbortSignal.any([this.signal, this.running.signal]);
    this.go.disabled = true;
    this.halt.hidden = false;
    for (const side of this.sides) side.text.textContent = side.figures.textContent = "";
    try {
      for (const side of this.sides) await this.answer(side, signal);
    } catch (error) {
      tellError(error);
    }
    this.go.disabled = false;
    this.halt.hidden = true;
  }

  async answer(side, signal) {
    const began = performance.now();
    const text = document.createTextNode("");
    side.text.append(text);
    let first = null;
    side.figures.textContent = words.loading;
    const body = { model: side.choice.value, messages: [{ role: "user", content: this.prompt.value }], options: { temperature: 0, num_predict: 300 } };
    for await (const line of stream("POST", "/api/chat", body, signal)) {
      const more = (line.message?.thinking ?? "") + (line.message?.content ?? "");
      if (more && first === null) {
        first = (performance.now() - began) / 1000;
        side.figures.textContent = words.answering;
      }
      text.appendData(more);
      if (line.done) {
        const speed = line.eval_duration ? rate((line.eval_count * 1e9) / line.eval_duration) : "–";
        const wait = duration(Math.max(0, (first ?? 0) - (line.load_duration ?? 0) / 1e9));
        side.figures.textContent = words.figures(speed, wait, line.eval_count);
      }
    }
  }
}
