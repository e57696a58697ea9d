// What a conversation asks of the model beside its text: system prompt, samplers, thinking, form, tools.
// An empty field leaves it to the model: `#parameters` of its own, or the defaults of the daemon.

import { h, iconButton, labelled } from "../dom.js";
import { texts } from "../texts.js";

const words = texts.settings;
const NUMBERS = [
  ["temperature", { min: 0, max: 5, step: 0.05 }],
  ["top_p", { min: 0, max: 1, step: 0.01 }],
  ["top_k", { min: 0, step: 1 }],
  ["min_p", { min: 0, max: 1, step: 0.01 }],
  ["repeat_penalty", { min: 0, max: 5, step: 0.01 }],
  ["seed", { step: 1 }],
  ["num_predict", { min: -1, step: 1 }],
  ["num_ctx", { min: 1, step: 1 }],
];
const THINK = ["", "on", "off", "low", "medium", "high"];

// The form for `settings`, which it changes in place; `changed()` after each change.
export function settingsForm(settings, changed, close) {
  const text = (name, rows) => {
    const field = h("textarea", { rows, value: settings[name] || "", spellcheck: name === "system" ? "true" : "false" });
    field.addEventListener("change", () => {
      settings[name] = field.value;
      changed();
    });
    return labelled(words[name], field, words[`${name}Help`]);
  };
  const sampler = ([name, bounds]) => {
    const field = h("input", { type: "number", placeholder: words.own, value: settings.options?.[name] ?? "", ...bounds });
    field.addEventListener("change", () => {
      settings.options ??= {};
      if (field.value === "" || !field.validity.valid) delete settings.options[name];
      else settings.options[name] = Number(field.value);
      field.toggleAttribute("aria-invalid", !field.validity.valid);
      changed();
    });
    return labelled(words[name], field);
  };
  const think = h("select", {}, THINK.map((each) => h("option", { value: each }, words.think[each])));
  think.value = settings.think || "";
  think.addEventListener("change", () => {
    settings.think = think.value;
    changed();
  });
  return h(
    "form.settings",
    { onsubmit: (event) => event.preventDefault() },
    h("div.row.spread", {}, h("h2", {}, words.title), iconButton("close", texts.close, close)),
    text("system", 4),
    h("div.samplers", {}, NUMBERS.map(sampler)),
    labelled(words.thinking, think),
    text("format", 4),
    text("tools", 4),
  );
}
