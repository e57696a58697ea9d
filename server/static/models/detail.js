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
    h("div.columns", {}, h("section.panel", {}, h("h2", {}, words.facts), list(facts)), quality(found.quality)),
    found.adapters?.length ? section(words.adapters, list(found.adapters.map((each) => [each.digest.slice(0, 19), bytes(each.size)]))) : null,
    text(words.system, found.system, true),
    text(words.parameters, found.parameters, true),
    text(words.template, found.template),
    text(words.modelfile, found.modelfile),
    text(words.licence, found.license),
  );
}

// The card of measured quality: each figure with its standard error, and what it was measured against and on.
function quality(card) {
  const panel = h("section.panel", {}, h("h2", {}, words.quality));
  if (!card) return fill(panel, ...panel.childNodes, h("p.quiet", {}, words.notMeasured));
  const { reference, text } = card;
  const figures = Object.entries(words.figures).map(([key, title]) => [title, figure(card[key])]);
  const shares = Object.entries(words.shares).map(([key, title]) => [title, figure(card[key], 100, "\u00a0%")]);
  const against = `${reference.name} · ${reference.level}${reference.whole ? "" : ` ${words.quantizedItself}`}`;
  const origin = [
    [words.against, against],
    [words.textRead, words.windows(text.name, card.windows, text.window)],
    [words.measured, ago(card.measured)],
  ];
  panel.append(list([...figures, ...shares, ...origin]));
  return panel;
}

function figure({ value, error }, scale = 1, unit = "") {
  const digits = (each, count) => String(+(each * scale).toPrecision(count));
  return `${digits(value, 4)}${error === null ? "" : ` ± ${digits(error, 2)}`}${unit}`;
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
