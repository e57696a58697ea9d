// Which model answers: the ones here that can, with what is loaded, and the state of the chosen one beside it.

import { get } from "../api.js";
import { fill, h } from "../dom.js";
import { bytes, number } from "../format.js";
import { keep, recall } from "../session.js";
import { texts } from "../texts.js";

const words = texts.chat;
const LAST = "lm-model";

export class Picker {
  constructor(changed) {
    this.models = [];
    this.loaded = new Map();
    this.wanted = "";
    this.select = h("select", { id: "model", "aria-label": words.model, "aria-describedby": "model-state" });
    this.state = h("span.badge", { id: "model-state" });
    this.select.addEventListener("change", () => {
      this.wanted = this.select.value;
      keep("localStorage", LAST, this.wanted);
      this.tellState();
      changed();
    });
    this.node = h("div.picker", {}, this.select, this.state);
  }

  get value() {
    return this.select.value;
  }

  async refresh(signal) {
    const [tags, ps] = await Promise.all([get("/api/tags", signal), get("/api/ps", signal)]);
    this.models = tags.models.filter((row) => !row.problem && row.capabilities.includes("completion") && !("alias" in row));
    this.aliases = new Map(tags.models.filter((row) => "alias" in row).map((row) => [row.name, row.alias]));
    this.loaded = new Map(ps.models.map((row) => [row.name, row]));
    this.draw();
  }

  // The name here for what a link or an older conversation calls a model; "" where it is not here.
  find(name) {
    if (this.models.some((row) => row.name === name)) return name;
    const meant = this.aliases?.get(`${name}:latest`) ?? this.aliases?.get(name);
    return this.models.some((row) => row.name === meant) ? meant : "";
  }

  choose(name) {
    this.wanted = this.find(name) || this.find(recall("localStorage", LAST)) || this.models[0]?.name || "";
    this.draw();
  }

  draw() {
    const option = (row) => h("option", { value: row.name }, row.name);
    const group = (label, rows) => rows.length > 0 && h("optgroup", { label }, rows.map(option));
    const here = (row) => this.loaded.has(row.name);
    fill(this.select, group(words.loaded, this.models.filter(here)), group(words.here, this.models.filter((row) => !here(row))));
    if (this.models.length) this.select.value = this.find(this.wanted) || this.models[0].name;
    this.select.disabled = !this.models.length;
    this.tellState();
  }

  tellState() {
    const row = this.models.find((each) => each.name === this.value);
    const running = this.loaded.get(this.value);
    this.state.className = running ? "badge good" : "badge";
    this.state.title = row?.reason || "";
    fill(this.state, running ? words.isLoaded(number(running.context_length)) : row ? words.notLoaded(bytes(row.size)) : words.noModel);
  }
}
