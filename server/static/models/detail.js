// Everything about one model: why this level, its facts, quality, template, parameters, licence.

import { send } from "../api.js";
import { fill, h } from "../dom.js";
import { ago, bytes, number } from "../format.js";
import { texts } from "../texts.js";

const words = texts.models;

export async function detail(name, acts, signal) {
  const found = await send("POST", "/api/show", { model: name }, signal);
  const { details, lm } = found;
  const facts = [
    [words.level, details.quantization_level],
    [words.parametersCount, details.parameter_size],
    [words.family, details.family],
    [words.context, details.context_length && `${number(details.context_length)} ${words.tokens}`],
    [words.contextHere, found.default_context && `${number(found.default_context)} ${words.tokens}`],
    [words.size, bytes(found.size)],
    [words.can, (found.capabilities ?? []).join(", ")],
    [words.source, lm?.source],
    [words.changed, ago(found.modified_at)],
    [words.digest, found.digest?.slice(0, 19)],
  ];
  const reasons = [lm?.reason, found.context_reason, found.default].filter(Boolean);
  return h(
    "article.detail",
    {},
    h("p", {}, h("a", { href: "#/models" }, `← ${texts.views.models}`)),
    h("div.row.spread", {}, h("h1.name", {}, name), h("div.row", {}, ...acts)),
    reasons.length ? h("div.why", {}, ...reasons.map((reason) => h("p", {}, reason))) : null,
    h("div.columns", {}, h("section.panel", {}, h("h2", {}, words.facts), list(facts)), quality(lm?.quality ?? found.quality)),
    found.adapters?.length ? section(words.adapters, list(found.adapters.map((each) => [each.digest.slice(0, 19), bytes(each.size)]))) : null,
    text(words.system, found.system, true),
    text(words.parameters, found.parameters, true),
    text(words.template, found.template),
    text(words.modelfile, found.modelfile),
    text(words.licence, found.license),
  );
}

// The card of measured quality, whatever its entries are: numbers and texts by name, one level deep.
function quality(card) {
  const panel = h("section.panel", {}, h("h2", {}, words.quality));
  if (!card || typeof card !== "object") return fill(panel, ...panel.childNodes, h("p.quiet", {}, words.notMeasured));
  const rows = Object.entries(card).flatMap(([key, value]) =>
    value && typeof value === "object" ? Object.entries(value).map(([inner, each]) => [`${key} ${inner}`, each]) : [[key, value]],
  );
  panel.append(list(rows.map(([key, value]) => [key.replaceAll("_", " "), typeof value === "number" ? String(+value.toPrecision(5)) : String(value)])));
  return panel;
}

function list(pairs) {
  const shown = pairs.filter(([, value]) => value !== "" && value !== undefined && value !== null && value !== 0 && value !== false);
  return h("dl.facts", {}, ...shown.map(([key, value]) => h("div", {}, h("dt", {}, key), h("dd", {}, value))));
}

const section = (title, ...children) => h("section.panel", {}, h("h2", {}, title), ...children);

function text(title, content, open = false) {
  if (!content) return null;
  return h("details.panel", { open }, h("summary", {}, h("h2", {}, title)), h("pre", { tabindex: "0", role: "region", "aria-label": title }, content));
}
