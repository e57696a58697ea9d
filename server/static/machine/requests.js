// Loaded models with their queues, and the last requests; never their text.

import { unloader } from "../models/acts.js";
import { heldBy } from "./memory.js";
import { bytes, duration, h, keyed, may, number, panel, rate, routeTo, say, table, texts } from "../kit.js";

const words = texts.machine;
const MOST = 50;
const LOADED = [
  [words.model, "whole"], [words.speed, "number"], [words.answering, "number"], [words.waiting, "number"],
  [words.memory, "number"], [words.stays], ["", "whole"],
];
const REQUESTS = [
  [words.time], [words.who], [words.model, "whole"], [words.read, "number"], [words.written, "number"],
  [words.first, "number"], [words.took, "number"], [words.status],
];

// A panel with a table of rows, or what is said where there is none.
function tablePanel(title, beside, columns, none) {
  const rows = table(columns);
  const empty = h("p.quiet", none);
  const show = (items, keyOf, make) => {
    empty.hidden = items.length > 0;
    rows.node.hidden = !items.length;
    keyed(rows.body, items, keyOf, make);
  };
  return { node: panel(title, beside, empty, rows.node), show, row: rows.row };
}

export function loadedPanel() {
  const { node, show, row } = tablePanel(words.loaded, null, LOADED, words.noneLoaded);
  const loadedRow = ({ name }) => {
    const cells = LOADED.slice(1, -1).map(() => h("span"));
    const state = h("span.badge");
    const title = [h("a.name", { href: routeTo("models", name) }, name), " ", state];
    const update = (model) => {
      say(state, texts.models.states[model.state]);
      const shown = [
        model.tokens_per_second ? `${rate(model.tokens_per_second)}/s` : "–",
        model.sequences ? `${model.running} / ${model.sequences}` : String(model.running),
        String(model.waiting),
        bytes(model.weights + model.cache + model.compute),
        model.stays === null ? words.forEver : model.pending ? words.inUse : duration(Math.round(model.stays)),
      ];
      cells.forEach((cell, at) => say(cell, shown[at]));
      cells[3].title = heldBy(model);
    };
    return { node: row({}, title, ...cells, h("div.row.end", may("operator") && unloader(name))), update };
  };
  return { node, take: (models) => show(models, (model) => model.name, loadedRow) };
}

export function requestsPanel() {
  let all = [];
  const onlyWrong = h("input", { type: "checkbox", id: "wrong-only", onchange: draw });
  const filter = h("div.row", onlyWrong, h("label.small", { for: "wrong-only" }, words.wrongOnly));
  const { node, show, row } = tablePanel(words.requests, filter, REQUESTS, words.noRequests);

  function draw() {
    const shown = all.filter((each) => !onlyWrong.checked || wrong(each)).slice(0, MOST);
    show(shown, (each) => `${each.id} ${each.at}`, requestRow);
  }

  function requestRow(first) {
    const cells = REQUESTS.slice(2, -1).map(() => h("span"));
    const badge = h("span.badge");
    const time = new Date(first.at * 1000).toLocaleTimeString("en-GB");
    cells[0].title = first.route;
    const update = (each) => {
      const prompt = number(each.prompt_tokens);
      const read = each.cached_tokens ? words.cached(prompt, number(each.cached_tokens)) : prompt;
      const times = [each.first_text_seconds ?? NaN, each.seconds].map(duration);
      const shown = [each.model || "–", read, number(each.answer_tokens), ...times];
      cells.forEach((cell, at) => say(cell, shown[at]));
      badge.className = `badge ${each.status === "" ? "" : wrong(each) ? "bad" : "good"}`;
      say(badge, each.status === "" ? words.underWay : [each.status, each.code].filter(Boolean).join(" "));
    };
    return { node: row({}, time, first.who, ...cells, badge), update };
  }

  function take(rows) {
    all = rows;
    draw();
  }

  return { node, take };
}

const wrong = (each) => each.status === "gone" || Number(each.status) >= 400;
