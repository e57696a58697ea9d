// What fits on this machine, and why (`#/fit/NAME`).

import { comparison } from "../fit/compare.js";
import { picture } from "../fit/picture.js";
import { modelsHere, nameForm, pull } from "../models/acts.js";
import { attempt, button, bytes, fill, h, number, problemBox, routeTo, send, tell, texts } from "../kit.js";

const words = texts.fit;
const WAIT_MS = 200; // after the last move of a slider
const CONTEXTS = Array.from({ length: 19 }, (_, at) => Math.round(1024 * 2 ** (at / 2) / 512) * 512);
const STEPS = 200;
const LEAST = 1 << 25;

export async function mount(root, route, signal) {
  let wishes = {}; // context, parallel, memory: those that somebody has moved
  let limit = 0;
  let timer = 0;
  let asking = null;
  // From 32 MiB to all that lm may have, finer where there is little.
  const bytesAt = (at) => Math.round(LEAST * (Math.max(limit, 2 * LEAST) / LEAST) ** (at / STEPS));
  const { node, field } = nameForm("fit-name", words.name, words.nameHelp, words.look, submit);
  const names = h("datalist", { id: "fit-names" });
  const result = h("div.result", { "aria-busy": "false" });
  const choice = h("div.choice", { role: "status" });
  const compare = comparison(signal);
  const context = slider("context", words.context, CONTEXTS.length - 1, (at) => CONTEXTS[at], tokens);
  const parallel = slider("parallel", words.conversations, 31, (at) => at + 1, String);
  const memory = slider("memory", words.memoryWish, STEPS, bytesAt, bytes);
  const reset = button(words.reset, () => {
    wishes = {};
    judge();
  });
  const nodes = [context.node, parallel.node, memory.node, reset];
  const sliders = h("fieldset.sliders", { hidden: true }, h("legend.hidden", words.wishes), nodes);
  root.append(h("div.page", h("h1", words.title), node, names, sliders, choice, result, compare.node));

  function slider(name, label, max, valueOf, textOf) {
    const input = h("input", { type: "range", min: 0, max, step: 1, id: `fit-${name}` });
    const shown = h("output.number", { for: input.id });
    const show = (value) => {
      shown.textContent = textOf(value);
      input.setAttribute("aria-valuetext", textOf(value));
    };
    input.addEventListener("input", () => {
      show((wishes[name] = valueOf(Number(input.value))));
      clearTimeout(timer);
      timer = setTimeout(judge, WAIT_MS);
    });
    // What the daemon counted with, but not under the finger of whoever moves it.
    const place = (value) => {
      if (name in wishes) return;
      const off = (at) => Math.abs(valueOf(at) - value);
      let best = 0;
      for (let at = 1; at <= max; at += 1) if (off(at) < off(best)) best = at;
      input.value = best;
      show(value);
    };
    const head = h("div.row.spread", h("label", { for: input.id }, label), shown);
    return { place, node: h("div.field", head, input) };
  }

  function submit(name) {
    const target = routeTo("fit", name);
    if (location.hash === target) judge();
    else location.hash = target;
  }

  async function go({ path }) {
    field.value = path;
    wishes = {};
    attempt(async () => {
      const here = await modelsHere(signal);
      fill(names, here.map((model) => h("option", { value: model.name })));
      compare.offer(here, path);
    });
    if (path) await judge();
    else clear(h("p.quiet", words.nothing));
  }

  function clear(instead) {
    sliders.hidden = true;
    fill(choice);
    fill(result, instead);
  }

  // Ask the daemon; a later question ends an earlier one.
  async function judge() {
    clearTimeout(timer);
    asking?.abort();
    asking = new AbortController();
    const name = field.value.trim();
    result.setAttribute("aria-busy", "true");
    if (sliders.hidden) fill(result, h("p.quiet", { role: "status" }, words.looking(name)));
    try {
      const either = AbortSignal.any([signal, asking.signal]);
      draw(name, await send("POST", "/lm/advise", { model: name, ...wishes }, either));
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error.body?.levels) draw(name, error.body);
      else clear(problemBox(error));
    }
    result.setAttribute("aria-busy", "false");
  }

  function draw(name, advice) {
    limit = advice.memory.limit;
    sliders.hidden = false;
    reset.hidden = !Object.keys(wishes).length;
    context.place(advice.context);
    parallel.place(advice.sequences);
    memory.place(advice.memory.models_may_use);
    const more = [advice.context_reason, advice.hint].map((text) => text && h("p.quiet.small", text));
    const title = advice.level ? words.takes(advice.level) : words.noneFits;
    fill(choice, h("p.verdict", title), h("p", advice.reason), more, advice.unseen && h("p.small.warn", advice.unseen));
    const source = h("p.small.quiet", words.published(advice.quality_source));
    fill(result, picture(advice, (level) => make(name, level)), source);
  }

  async function make(name, level) {
    // What stands after the last colon of the last part of a name is a level.
    const [, stem] = /^(.*?)(?::[^:/]*)?$/.exec(name);
    if (!(await attempt(() => pull(`${stem}:${level}`)))) return;
    tell(words.made(level));
    location.hash = "#/models";
  }

  await go(route);
  return go;
}

const tokens = (value) => words.tokens(number(value));
