// Which model answers: the ones here that can, with what is loaded, and the state of the chosen one beside it.

import { bytes, fill, get, h, keep, number, recall, texts } from "../kit.js";

const words = texts.chat;
const LAST = "lm-model";

export function modelPicker(changed) {
  let models = [];
  let loaded = new Map();
  let aliases = new Map();
  let wanted = "";
  const select = h("select", { id: "model", "aria-label": words.model, "aria-describedby": "model-state", onchange });
  const state = h("span.badge", { id: "model-state" });

  function onchange() {
    wanted = select.value;
    keep("localStorage", LAST, wanted);
    tellState();
    changed();
  }

  async function refresh(signal) {
    const [tags, ps] = await Promise.all([get("/api/tags", signal), get("/api/ps", signal)]);
    const can = (row) => !row.problem && row.capabilities.includes("completion") && !("alias" in row);
    models = tags.models.filter(can);
    aliases = new Map(tags.models.map((row) => [row.name, row.alias]));
    loaded = new Map(ps.models.map((row) => [row.name, row]));
    draw();
  }

  // The name here for what a link or an older conversation calls a model; "" where it is not here.
  function find(name) {
    const meant = [name, aliases.get(`${name}:latest`), aliases.get(name)];
    return meant.find((each) => models.some((row) => row.name === each)) ?? "";
  }

  function choose(name) {
    wanted = find(name) || find(recall("localStorage", LAST));
    draw();
  }

  function draw() {
    const option = ({ name }) => h("option", { value: name }, name);
    const group = (label, rows) => rows.length > 0 && h("optgroup", { label }, rows.map(option));
    const { here = [], there = [] } = Object.groupBy(models, ({ name }) => (loaded.has(name) ? "here" : "there"));
    fill(select, group(words.loaded, here), group(words.here, there));
    select.value = find(wanted) || models[0]?.name;
    select.disabled = !models.length;
    tellState();
  }

  function tellState() {
    const row = models.find((each) => each.name === select.value);
    const running = loaded.get(select.value);
    state.className = running ? "badge good" : "badge";
    state.title = row?.reason || "";
    const idle = row ? words.notLoaded(bytes(row.size)) : words.noModel;
    fill(state, running ? words.isLoaded(number(running.context_length)) : idle);
  }

  const node = h("div.picker", select, state);
  return { node, refresh, find, choose, get value() { return select.value; } };
}
