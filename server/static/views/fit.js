// What fits on this machine, and why: any name, every level, and the choice as the wishes move (`#/fit/NAME`).

import { get, send } from "../api.js";
import { button, fill, h } from "../dom.js";
import { bytes, number } from "../format.js";
import { Compare } from "../fit/compare.js";
import { picture } from "../fit/picture.js";
import { pull } from "../models/pulls.js";
import { problemBox, tell, tellError } from "../notices.js";
import { texts } from "../texts.js";

const words = texts.fit;
const WAIT_MS = 200; // after the last move of a slider
const CONTEXTS = Array.from({ length: 19 }, (_, at) => Math.round(1024 * 2 ** (at / 2) / 512) * 512);
const STEPS = 200;

export async function mount(root, route, signal) {
  const view = new FitView(root, signal);
  await view.go(route);
  return (later) => view.go(later);
}

class FitView {
  constructor(root, signal) {
    this.signal = signal;
    this.wishes = {}; // context, parallel, memory: those that somebody has moved
    this.models = [];
    this.field = h("input", { id: "fit-name", list: "fit-names", placeholder: texts.models.example, required: true, spellcheck: "false", autocomplete: "off", autocapitalize: "none" });
    this.names = h("datalist", { id: "fit-names" });
    this.result = h("div.result", { "aria-busy": "false" });
    this.choice = h("div.choice", { role: "status" });
    this.compare = new Compare(signal);
    const submit = (event) => {
      event.preventDefault();
      const target = `#/fit/${encodeURIComponent(this.field.value.trim())}`;
      if (location.hash === target) this.judge();
      else location.hash = target;
    };
    const form = h("form.pull-form", { onsubmit: submit }, h("label", { for: "fit-name" }, words.name), h("div.row", {}, this.field, h("button.button.primary", { type: "submit" }, words.look)), this.names, h("small", {}, words.nameHelp));
    this.sliders = h("fieldset.sliders", { hidden: true }, h("legend.hidden", {}, words.wishes), ...this.build());
    root.append(h("div.page", {}, h("h1", {}, words.title), form, this.sliders, this.choice, this.result, this.compare.node));
  }

  build() {
    const slider = (name, label, max, valueOf, textOf) => {
      const field = h("input", { type: "range", min: 0, max, step: 1, id: `fit-${name}` });
      const shown = h("output.number", { for: field.id });
      const say = (value) => {
        shown.textContent = textOf(value);
        field.setAttribute("aria-valuetext", textOf(value));
      };
      field.addEventListener("input", () => {
        this.wishes[name] = valueOf(Number(field.value));
        say(this.wishes[name]);
        this.soon();
      });
      return { field, say, node: h("div.field", {}, h("div.row.spread", {}, h("label", { for: field.id }, label), shown), field) };
    };
    this.context = slider("context", words.context, CONTEXTS.length - 1, (at) => CONTEXTS[at], (value) => words.tokens(number(value)));
    this.parallel = slider("parallel", words.conversations, 31, (at) => at + 1, (value) => String(value));
    this.memory = slider("memory", words.memoryWish, STEPS, (at) => this.bytesAt(at), bytes);
    this.reset = button(words.reset, () => {
      this.wishes = {};
      this.judge();
    });
    return [this.context.node, this.parallel.node, this.memory.node, this.reset];
  }

  // The slider of memory goes from 32 MiB to all that lm may have, finer where there is little.
  bytesAt(at) {
    const least = 1 << 25;
    return Math.round(least * (Math.max(this.limit, 2 * least) / least) ** (at / STEPS));
  }

  async go(route) {
    this.field.value = route.path;
    this.wishes = {};
    get("/api/tags", this.signal).then((tags) => this.offer(tags.models, route.path)).catch(tellError);
    if (route.path) await this.judge();
    else this.clear(h("p.quiet", {}, words.nothing));
  }

  offer(models, name) {
    this.models = models.filter((model) => !model.alias);
    fill(this.names, ...this.models.map((model) => h("option", { value: model.name })));
    this.compare.offer(this.models, name);
  }

  clear(...nodes) {
    this.sliders.hidden = true;
    fill(this.choice);
    fill(this.result, ...nodes);
  }

  soon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.judge(), WAIT_MS);
  }

  // Ask the daemon; a later question ends an earlier one.
  async judge() {
    clearTimeout(this.timer);
    this.asking?.abort();
    const mine = (this.asking = new AbortController());
    const name = this.field.value.trim();
    this.result.setAttribute("aria-busy", "true");
    if (this.sliders.hidden) fill(this.result, h("p.quiet", { role: "status" }, words.looking(name)));
    try {
      this.draw(name, await send("POST", "/lm/advise", { model: name, ...this.wishes }, AbortSignal.any([this.signal, mine.signal])));
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error.body?.levels) this.draw(name, error.body);
      else this.clear(problemBox(error));
    }
    this.result.setAttribute("aria-busy", "false");
  }

  draw(name, advice) {
    this.advice = advice;
    this.limit = advice.memory.limit;
    this.sliders.hidden = false;
    this.reset.hidden = Object.keys(this.wishes).length === 0;
    this.place(advice);
    const title = advice.level ? words.takes(advice.level) : words.noneFits;
    fill(this.choice, h("p.verdict", {}, title), h("p", {}, advice.reason), advice.context_reason ? h("p.quiet.small", {}, advice.context_reason) : null, advice.hint ? h("p.quiet.small", {}, advice.hint) : null, advice.unseen ? h("p.small.warn", {}, advice.unseen) : null);
    fill(this.result, picture(advice, (level) => this.make(name, level)), h("p.small.quiet", {}, words.published(advice.quality_source)));
  }

  // The sliders show what the daemon counted with, but not under the finger of whoever moves them.
  place(advice) {
    const near = (list, value) => list.reduce((best, each, at) => (Math.abs(each - value) < Math.abs(list[best] - value) ? at : best), 0);
    const set = (slider, name, at, value) => {
      if (name in this.wishes) return;
      slider.field.value = at;
      slider.say(value);
    };
    set(this.context, "context", near(CONTEXTS, advice.context), advice.context);
    set(this.parallel, "parallel", advice.sequences - 1, advice.sequences);
    const sizes = Array.from({ length: STEPS + 1 }, (_, at) => this.bytesAt(at));
    set(this.memory, "memory", near(sizes, advice.memory.models_may_use), advice.memory.models_may_use);
  }

  async make(name, level) {
    try {
      await pull(levelled(name, level));
      tell(words.made(level));
      location.hash = "#/models";
    } catch (error) {
      tellError(error);
    }
  }
}

// The name at another level: what stands after the last colon of its last part is one.
export function levelled(name, level) {
  const [, stem] = /^(.*?)(?::[^:/]*)?$/.exec(name);
  return `${stem}:${level}`;
}
