// What a conversation asks of the model beside its text. An empty field leaves it to the model or the daemon.

import { form, h, iconButton, labelled, texts } from "../kit.js";

const words = texts.settings;
const NUMBERS = {
  temperature: { min: 0, max: 5, step: 0.05 },
  top_p: { min: 0, max: 1, step: 0.01 },
  top_k: { min: 0 },
  min_p: { min: 0, max: 1, step: 0.01 },
  repeat_penalty: { min: 0, max: 5, step: 0.01 },
  seed: {},
  num_predict: { min: -1 },
  num_ctx: { min: 1 },
};

// The form for `settings`, which it changes in place; `changed()` after each change.
export function settingsForm(settings, changed, close) {
  const field = (name, shape, properties, children) => {
    const onchange = (event) => {
      settings[name] = event.target.value;
      changed();
    };
    return labelled(words[name], h(shape, { ...properties, onchange }, children), words[`${name}Help`]);
  };
  const text = (name) => {
    const spellcheck = name === "system" ? "true" : "false";
    return field(name, "textarea", { rows: 4, value: settings[name] || "", spellcheck });
  };
  const sampler = ([name, bounds]) => {
    const onchange = ({ target }) => {
      const { value, validity } = target;
      settings.options ??= {};
      if (value === "" || !validity.valid) delete settings.options[name];
      else settings.options[name] = Number(value);
      target.toggleAttribute("aria-invalid", !validity.valid);
      changed();
    };
    const value = settings.options?.[name] ?? "";
    return labelled(words[name], h("input", { type: "number", placeholder: words.own, value, ...bounds, onchange }));
  };
  const choices = Object.entries(words.ways).map(([value, label]) => {
    return h("option", { value, selected: value === (settings.think || "") }, label);
  });
  return form(
    "settings",
    () => {},
    h("div.row.spread", h("h2", words.title), iconButton("close", texts.close, close)),
    text("system"),
    h("div.samplers", Object.entries(NUMBERS).map(sampler)),
    field("think", "select", {}, choices),
    text("format"),
    text("tools"),
  );
}
