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
    "article.detail",
    h("div.row.spread", h("h1.name", name), h("div.row", acts)),
    reasons.length > 0 && h("div.why", reasons.map((reason) => h("p", reason))),
    h("div.columns", panel(words.facts, null, list(facts)), quality(found.quality)),
    adapters.length > 0 && panel(words.adapters, null, list(adapters)),
    text(words.system, found.system, true),
    text(words.parameters, found.parameters, true),
    text(words.template, found.template),
    text(words.modelfile, found.modelfile),
    text(words.licence, found.license),
  );
}

// The card of measured quality: each figure with its standard error, and what it was measured against and on.
function quality(card) {
  if (!card) return panel(words.quality, null, h("p.quiet", words.notMeasured));
  const { reference, text } = card;
  const figures = Object.entries(words.figures).map(([key, title]) => [title, figure(card[key])]);
  const shares = Object.entries(words.shares).map(([key, title]) => [title, figure(card[key], 100, "\u00a0%")]);
  const origin = [
    [words.against, `${reference.name} · ${reference.level}${reference.whole ? "" : ` ${words.quantizedItself}`}`],
    [words.textRead, words.windows(text.name, card.windows, text.window)],
    [words.measured, ago(card.measured)],
  ];
  return panel(words.quality, null, list([...figures, ...shares, ...origin]));
}

function figure({ value, error }, scale = 1, unit = "") {
  const digits = (each, count) => String(+(each * scale).toPrecision(count));
  return `${digits(value, 4)}${error === null ? "" : ` ± ${digits(error, 2)}`}${unit}`;
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
