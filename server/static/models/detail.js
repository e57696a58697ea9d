// Everything about one model.

import { ago, bytes, folded, h, number, panel, scrollable, send, texts } from "../kit.js";

const words = texts.models;

export async function detail(name, acts, signal) {
  const found = await send("POST", "/api/show", { model: name }, signal);
  const { details, lm } = found;
  const tokens = (count) => count && `${number(count)} ${words.tokens}`;
  const facts = [
    [words.level, details.quantization_level],
    [words.parametersCount, details.parameter_size],
    [words.family, details.family],
    [words.context, tokens(details.context_length)],
    [words.contextHere, tokens(found.default_context)],
    [words.size, bytes(found.size)],
    [words.can, (found.capabilities ?? []).join(", ")],
    [words.source, lm?.source],
    [words.changed, ago(found.modified_at)],
    [words.digest, found.digest?.slice(0, 19)],
  ];
  const reasons = [lm?.reason, found.context_reason, found.default].filter(Boolean);
  const adapters = (found.adapters ?? []).map((each) => [each.digest.slice(0, 19), bytes(each.size)]);
  return h(
    "article",
    { class: "detail" },
    h("p", h("a", { href: "#/models" }, `← ${texts.views.models}`)),
    h("div.row.spread", h("h1.name", name), h("div.row", acts)),
    reasons.length > 0 && h("div.why", reasons.map((reason) => h("p", reason))),
    h("div.columns", panel(words.facts, null, list(facts)), quality(lm?.quality ?? found.quality)),
    adapters.length > 0 && panel(words.adapters, null, list(adapters)),
    text(words.system, found.system, true),
    text(words.parameters, found.parameters, true),
    text(words.template, found.template),
    text(words.modelfile, found.modelfile),
    text(words.licence, found.license),
  );
}

// The card of measured quality, whatever its entries are: numbers and texts by name, one level deep.
function quality(card) {
  if (!card || typeof card !== "object") return panel(words.quality, null, h("p.quiet", words.notMeasured));
  const inner = (value, key) => Object.entries(value).map(([name, each]) => [`${key} ${name}`, each]);
  const entries = Object.entries(card);
  const rows = entries.flatMap(([key, each]) => (each instanceof Object ? inner(each, key) : [[key, each]]));
  const shown = (value) => (typeof value === "number" ? +value.toPrecision(5) : String(value));
  return panel(words.quality, null, list(rows.map(([key, value]) => [key.replaceAll("_", " "), shown(value)])));
}

function list(pairs) {
  const shown = pairs.filter(([, value]) => value);
  return h("dl.facts", shown.map(([key, value]) => h("div", h("dt", key), h("dd", value))));
}

const text = (title, content, open = false) => {
  const node = content && folded(title, scrollable("pre", title, content));
  if (node) node.open = open;
  return node;
};
