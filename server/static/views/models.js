// The models that are here, on their way and elsewhere (`#/models`), and one of them (`#/models/NAME`).

import { answers, modelsHere, nameForm, unloader } from "../models/acts.js";
import { detail } from "../models/detail.js";
import { pullList } from "../models/pulls.js";
import {
  ago, attempt, button, bytes, confirmed, fill, filling, get, h, keyed, may, number, panel, routeTo, rowButton, rowLink,
  say, send, table, tell, tellError, texts, watch,
} from "../kit.js";

const words = texts.models;
const COLUMNS = [
  [words.name, "whole"], [words.size, "number"], [words.level], [words.context, "number"], [words.used], ["", "whole"],
];

export async function mount(root, route, signal) {
  let shown = "";
  let models = [];
  let loaded = new Map();
  let used = new Map();
  let alone = new Map(); // bytes that are freed with a model
  let free = null;
  const pulls = may("operator") ? pullList(() => attempt(refresh)) : null;
  const rows = table(COLUMNS);
  const total = h("p.quiet", { role: "status" });
  const empty = h("p.quiet", { hidden: true }, words.none);
  const found = h("ul.plain");
  const elsewhere = panel(words.elsewhere, null, h("p.quiet", words.elsewhereHelp), found);
  elsewhere.hidden = true;
  const installed = h("section.panel", { "aria-label": words.installed }, rows.node, empty);
  const head = h("div.row.spread", h("h1", texts.views.models), total);
  const list = [head, pulls && bringIn(), pulls?.node, installed, elsewhere];
  const page = h("div.page");
  root.append(page);

  function bringIn() {
    const look = () => (location.hash = routeTo("fit", field.value.trim()));
    const submit = async (name) => {
      if (await pulls.begin(name)) field.value = "";
    };
    const { node, field } = nameForm(
      "pull-name", words.bringIn, words.bringInHelp, words.pull, submit, button(words.whatFits, look),
    );
    return node;
  }

  async function go(to) {
    shown = to.path;
    if (!shown) {
      fill(page, list);
      return refresh();
    }
    const one = h("div");
    fill(page, h("p", h("a", { href: "#/models" }, `← ${texts.views.models}`)), one);
    return filling(one, async () => {
      await refresh();
      fill(one, await detail(shown, actsOf(shown), signal));
    });
  }

  async function refresh() {
    const [here, activity] = await Promise.all([modelsHere(signal), get("/lm/activity", signal)]);
    models = here;
    used = new Map(activity.requests.toReversed().map((row) => [row.model, row.at * 1000]));
    if (pulls) await Promise.all([pulls.refresh(signal), lookAround()]);
    draw();
  }

  // What needs the role of an operator; a daemon elsewhere does not tell of other programs.
  async function lookAround() {
    const nothing = () => ({ models: [] });
    const [room, around] = await Promise.all([get("/lm/du", signal), get("/lm/found", signal).catch(nothing)]);
    alone = new Map(room.models.map((row) => [row.name, row.alone]));
    free = room.free;
    const here = new Set(models.map((model) => model.source));
    const rest = around.models.filter((model) => !here.has(model.name));
    elsewhere.hidden = !rest.length;
    keyed(found, rest, (each) => each.name, foundRow);
  }

  function foundRow({ name, title, program, size }) {
    const look = rowLink(words.whatFits, title, routeTo("fit", name));
    const acts = h("span.row", look, rowButton(words.bringIt, title, () => pulls.begin(name)));
    const what = h("span", h("b.name", title), h("span.quiet", ` ${program}, ${bytes(size)}`));
    return { node: h("li.row.spread", what, acts), update() {} };
  }

  function draw() {
    const size = models.reduce((sum, model) => sum + model.size, 0);
    say(total, words.total(models.length, bytes(size)) + (free === null ? "" : words.free(bytes(free))));
    empty.hidden = models.length > 0;
    rows.node.hidden = !models.length;
    keyed(rows.body, models, (model) => `${model.name} ${model.digest}`, row);
  }

  function row(model) {
    const { name, details, base, problem, size, level, reason } = model;
    const state = h("span.badge.good");
    const when = h("span");
    const facts = [details.parameter_size, base && words.adapterOf(base)].filter(Boolean).join(" · ");
    const unload = unloader(name);
    const talk = rowLink(words.chat, name, routeTo("chat", name));
    const title = [
      h("a.name", { href: routeTo("models", name) }, name), " ", state, h("div.small.quiet", facts),
      problem && h("p.small.bad", problem),
    ];
    const drop = rowButton(words.remove, name, () => remove(name), "danger");
    const acts = [answers(model) && talk, pulls && [unload, drop]];
    const node = rows.row(
      {}, title, bytes(size), h("span", { title: reason }, level || details.quantization_level),
      number(details.context_length || NaN), when, h("div.row.end", acts),
    );
    const update = () => {
      const live = loaded.get(name);
      state.hidden = unload.hidden = !live;
      say(state, live ? words.states[live.state] : "");
      say(when, used.has(name) ? ago(used.get(name)) : words.notUsed);
    };
    return { node, update };
  }

  function actsOf(name) {
    // A file that is here has one level; the source that it came from may offer others.
    const model = models.find((each) => each.name === name);
    const source = model?.source && !model.details.parent_model ? model.source : name;
    return [
      (!model || answers(model)) && h("a.button.primary", { href: routeTo("chat", name) }, words.chat),
      pulls && h("a.button", { href: routeTo("fit", source) }, words.whatFits),
      pulls && button(words.remove, () => remove(name), { class: "button danger" }),
    ];
  }

  async function remove(name) {
    const frees = alone.has(name) ? words.frees(bytes(alone.get(name))) : "";
    if (!(await confirmed(words.removeTitle(name), frees, words.remove))) return;
    const done = await attempt(() => send("DELETE", "/api/delete", { model: name }));
    if (!done) return;
    tell(words.removed(name));
    if (shown) location.hash = "#/models";
    else await attempt(refresh);
  }

  // The daemon's events: which models are loaded, how far pulls are.
  async function follow() {
    for await (const event of watch(signal)) {
      if (event.event !== "now") continue;
      loaded = new Map(event.models.map((model) => [model.name, model]));
      if (shown) continue;
      pulls?.take(event.jobs);
      draw();
    }
  }

  await go(route);
  follow().catch(tellError);
  return go;
}
