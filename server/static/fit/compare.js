// Two models or levels that are here, on one prompt. One after the other: both at once would share the processor.

import { answers } from "../models/acts.js";
import { attempt, button, duration, fill, form, h, labelled, rate, stream, submitButton, texts } from "../kit.js";

const words = texts.fit;

export function comparison(signal) {
  let running = null;
  const sides = ["a", "b"].map((name) => {
    const choice = h("select");
    const text = h("div.answer", { role: "log", "aria-label": words.answerOf(name) });
    const figures = h("p.small.quiet", { role: "status" });
    return { choice, text, figures, node: h("div.panel", labelled(words.model(name), choice), text, figures) };
  });
  const prompt = h("textarea", { rows: 2, required: true }, words.comparePrompt);
  const go = submitButton(words.ask);
  const halt = button(words.stop, () => running?.abort(), { hidden: true });
  const question = form("ask", ask, labelled(words.prompt, prompt), h("div.row", go, halt));
  const columns = h("div.columns", sides.map((side) => side.node));
  const title = [h("h2", words.compare), h("p.quiet", words.compareHelp)];
  const node = h("section.compare", { "aria-label": words.compare, hidden: true }, title, question, columns);

  // Offer models by name; the two that are nearest to `wanted` are chosen.
  function offer(models, wanted) {
    const names = models.filter(answers).map((model) => model.name);
    node.hidden = names.length < 2;
    const stem = wanted.split(":")[0];
    const near = [...new Set([...names.filter((name) => name.split(":")[0] === stem), ...names])];
    sides.forEach(({ choice }, at) => {
      const kept = choice.value;
      fill(choice, names.map((name) => h("option", { value: name }, name)));
      choice.value = names.includes(kept) ? kept : near[at];
    });
  }

  async function ask() {
    running = new AbortController();
    const either = AbortSignal.any([signal, running.signal]);
    go.disabled = true;
    halt.hidden = false;
    for (const { text, figures } of sides) text.textContent = figures.textContent = "";
    await attempt(async () => {
      for (const side of sides) await answer(side, either);
    });
    go.disabled = false;
    halt.hidden = true;
  }

  async function answer({ choice, text, figures }, either) {
    const began = performance.now();
    let first = null;
    figures.textContent = words.loading;
    const messages = [{ role: "user", content: prompt.value }];
    const body = { model: choice.value, messages, options: { temperature: 0, num_predict: 300 } };
    for await (const line of stream("POST", "/api/chat", body, either)) {
      const more = (line.message?.thinking ?? "") + (line.message?.content ?? "");
      if (more && first === null) {
        first = (performance.now() - began) / 1000;
        figures.textContent = words.answering;
      }
      text.append(more);
      if (line.done) {
        const wait = duration(Math.max(0, (first ?? 0) - (line.load_duration ?? 0) / 1e9));
        figures.textContent = words.figures(rate((line.eval_count * 1e9) / line.eval_duration), wait, line.eval_count);
      }
    }
  }

  return { node, offer };
}
