// The models: what is here, what is on its way, what other programs have, and everything about one (`#/models/NAME`).

import { get, send } from "../api.js";
import { button, fill, h } from "../dom.js";
import { ago, bytes, number } from "../format.js";
import { detail } from "../models/detail.js";
import { Pulls } from "../models/pulls.js";
import { problemBox, tell, tellError } from "../notices.js";
import { may } from "../session.js";
import { confirmed, keyed, watch } from "../watch.js";
import { texts } from "../texts.js";

const words = texts.models;

export async function mount(root, route, signal) {
  const view = new ModelsView(root, signal);
  await view.go(route);
  view.follow();
  return (later) => view.go(later);
}

class ModelsView {
  constructor(root, signal) {
    this.signal = signal;
    this.loaded = new Map();
    this.models = [];
    this.alone = new Map();
    this.used = new Map();
    this.page = h("div.page");
    root.append(this.page);
    this.pulls = may("operator") ? new Pulls(() => this.refresh().catch(tellError)) : null;
    this.rows = h("tbody");
    this.total = h("p.quiet", { role: "status" });
    this.elsewhere = h("section.panel", { hidden: true, "aria-label": words.elsewhere });
    this.build();
  }

  build() {
    const heads = [words.name, words.size, words.level, words.context, words.used, ""];
    const head = h("tr", {}, ...heads.map((text, at) => h(at === 1 || at === 3 ? "th.number" : "th", { scope: "col" }, text || h("span.hidden", {}, words.acts))));
    this.table = h("table.table.wide", {}, h("thead", {}, head), this.rows);
    this.empty = h("p.quiet", { hidden: true }, words.none);
    this.list = [
      h("div.row.spread", {}, h("h1", {}, texts.views.models), this.total),
      this.pulls && this.form(),
      this.pulls?.node,
      h("section.panel", { "aria-label": words.installed }, h("div.scroller", {}, this.table), this.empty),
      this.elsewhere,
    ];
  }

  form() {
    const field = h("input", { id: "pull-name", name: "model", placeholder: words.example, required: true, spellcheck: "false", autocomplete: "off", autocapitalize: "none" });
    const submit = async (event) => {
      event.preventDefault();
      if (await this.pulls.begin(field.value.trim())) field.value = "";
    };
    const look = () => (location.hash = `#/fit/${encodeURIComponent(field.value.trim())}`);
    return h(
      "form.pull-form",
      { onsubmit: submit },
      h("label", { for: "pull-name" }, words.bringIn),
      h("div.row", {}, field, h("button.button.primary", { type: "submit" }, words.pull), button(words.whatFits, look)),
      h("small", {}, words.bringInHelp),
    );
  }

  async go(route) {
    this.shown = route.path;
    if (!route.path) {
      fill(this.page, ...this.list);
      return this.refresh();
    }
    try {
      await this.refresh();
      fill(this.page, await detail(route.path, this.acts(route.path), this.signal));
    } catch (error) {
      if (error.name !== "AbortError") fill(this.page, h("p", {}, h("a", { href: "#/models" }, `← ${texts.views.models}`)), problemBox(error));
    }
  }

  async refresh() {
    const [tags, activity] = await Promise.all([get("/api/tags", this.signal), get("/lm/activity", this.signal)]);
    this.models = tags.models.filter((model) => !model.alias);
    this.used = new Map(activity.requests.toReversed().map((row) => [row.model, row.at * 1000]));
    if (this.pulls) await Promise.all([this.pulls.refresh(this.signal), this.lookAround()]);
    this.draw();
  }

  // What needs the role of an operator; a daemon elsewhere does not tell of other programs.
  async lookAround() {
    const [room, found] = await Promise.all([get("/lm/du", this.signal), get("/lm/found", this.signal).catch(() => ({ models: [] }))]);
    this.alone = new Map(room.models.map((row) => [row.name, row.alone]));
    this.free = room.free;
    const here = new Set(this.models.map((model) => model.source));
    const rest = found.models.filter((model) => !here.has(model.name));
    this.elsewhere.hidden = rest.length === 0;
    if (this.drawn === JSON.stringify(rest)) return;
    this.drawn = JSON.stringify(rest);
    const rows = rest.map((each) =>
      h("li.row.spread", {}, h("span", {}, h("b.name", {}, each.title), h("span.quiet", {}, ` ${each.program}, ${bytes(each.size)}`)), h("span.row", {},
        h("a.button.small", { href: `#/fit/${encodeURIComponent(each.name)}`, "aria-label": `${words.whatFits}: ${each.title}` }, words.whatFits),
        button(words.bringIt, () => this.pulls.begin(each.name), { class: "button small", "aria-label": `${words.bringIt}: ${each.title}` }),
      )),
    );
    fill(this.elsewhere, h("h2", {}, words.elsewhere), h("p.quiet", {}, words.elsewhereHelp), h("ul.plain", {}, ...rows));
  }

  draw() {
    const size = this.models.reduce((sum, model) => sum + model.size, 0);
    const total = words.total(this.models.length, bytes(size), this.free === undefined ? "" : bytes(this.free));
    if (this.total.textContent !== total) this.total.textContent = total;
    this.empty.hidden = this.models.length > 0;
    this.table.hidden = this.models.length === 0;
    keyed(this.rows, this.models, (model) => `${model.name} ${model.digest}`, (model) => this.row(model));
  }

  row(model) {
    const state = h("span");
    const used = h("td");
    const link = h("a.name", { href: `#/models/${encodeURIComponent(model.name)}` }, model.name);
    const problem = model.problem ? h("p.small.bad", {}, model.problem) : null;
    const facts = [model.details.parameter_size, model.base && words.adapterOf(model.base)].filter(Boolean).join(" · ");
    const unload = button(words.unload, () => this.unload(model.name), { class: "button small", "aria-label": `${words.unload} ${model.name}` });
    const node = h("tr", {},
      h("td", {}, link, " ", state, h("div.small.quiet", {}, facts), problem),
      h("td.number", { "data-label": words.size }, bytes(model.size)),
      h("td", { "data-label": words.level, title: model.reason }, model.level || model.details.quantization_level),
      h("td.number", { "data-label": words.context }, model.details.context_length ? number(model.details.context_length) : "–"),
      used,
      h("td", {}, h("div.row.end", {}, model.problem || model.base ? null : h("a.button.small", { href: `#/chat/${encodeURIComponent(model.name)}`, "aria-label": `${words.chat}: ${model.name}` }, words.chat), this.pulls && unload, this.pulls && this.remover(model.name, "small"))),
    );
    used.dataset.label = words.used;
    const update = () => {
      const live = this.loaded.get(model.name);
      const label = live ? words.states[live.state] : "";
      if (state.textContent !== label) state.replaceChildren(...(live ? [h("span.badge.good", {}, label)] : []));
      used.textContent = this.used.has(model.name) ? ago(this.used.get(model.name)) : words.notUsed;
      unload.hidden = !live;
    };
    return { node, update };
  }

  acts(name) {
    return [
      h("a.button.primary", { href: `#/chat/${encodeURIComponent(name)}` }, words.chat),
      this.pulls && h("a.button", { href: `#/fit/${encodeURIComponent(this.sourceOf(name))}` }, words.whatFits),
      this.pulls && this.remover(name),
    ].filter(Boolean);
  }

  // A file that is here has one level; the source that it came from may offer others.
  sourceOf(name) {
    const model = this.models.find((each) => each.name === name);
    return model?.source && !model.details.parent_model ? model.source : name;
  }

  remover(name, size = "") {
    return button(words.remove, () => this.remove(name), { class: `button danger ${size}`, "aria-label": `${words.remove} ${name}` });
  }

  async remove(name) {
    const alone = this.alone.get(name);
    const title = h("h2", { id: "remove-title" }, words.removeTitle(name));
    const freed = h("p", {}, alone === undefined ? "" : words.frees(bytes(alone)));
    const acts = h("form.row.end", { method: "dialog" }, h("button.button", { value: "no" }, words.keep), h("button.button.danger", { value: "yes" }, words.remove));
    if (!(await confirmed(h("dialog", { "aria-labelledby": "remove-title" }, title, freed, acts)))) return;
    try {
      await send("DELETE", "/api/delete", { model: name });
      tell(words.removed(name));
      if (this.shown) location.hash = "#/models";
      else await this.refresh();
    } catch (error) {
      tellError(error);
    }
  }

  async unload(name) {
    try {
      const { models } = await send("POST", "/lm/stop", { model: name });
      tell(words.stopped[models[0]?.state] ?? words.stopped.stopped);
    } catch (error) {
      tellError(error);
    }
  }

  // The daemon's events: which models are loaded, how far pulls are.
  async follow() {
    for await (const event of watch(this.signal)) {
      if (event.event !== "now") continue;
      this.loaded = new Map(event.models.map((model) => [model.name, model]));
      if (this.shown) continue;
      this.pulls?.take(event.jobs);
      this.draw();
    }
  }
}
