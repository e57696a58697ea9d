// Every level of a model as a row of a picture, with why it fits or not.

import { bytes, h, rate, rowButton, table, textButton, texts } from "../kit.js";

const words = texts.fit;
const PARTS = ["weights", "cache", "compute"];
const COLUMNS = [
  [words.level, "whole"], [words.memory, "whole"], [words.size, "number"], [words.speed, "number"], [words.quality],
  [words.fits, "whole"], ["", "whole"],
];

// The picture of an answer of `/lm/advise`; `make` is called with the level that somebody wants.
export function picture({ levels, memory, installed }, make) {
  const limit = memory.models_may_use;
  const needs = Math.max(...levels.map((row) => row.memory_bytes));
  // A model far below the limit is shown by its own size, one far above it is cut off.
  const most = 1.04 * (limit > 2 * needs ? needs : Math.max(limit, Math.min(needs, 2 * limit)));
  const share = (size) => `${Math.min(100, (100 * size) / most).toFixed(3)}%`;
  const mark = (style) => limit <= most && h("b.mark", { style });
  const { node, body, row } = table(COLUMNS);
  const parts = PARTS.map((part, at) => h("span.key", h(`i.part-${at + 1}`), words.parts[part]));
  const legend = h("caption", h("span.row.legend", parts, h("span.key", mark({}), words.limit(bytes(limit)))));

  // The need as a bar of its parts; what is beyond the limit lies right of the mark.
  function bar(level) {
    const label = words.bar(level.level, bytes(level.memory_bytes), bytes(limit));
    const known = PARTS.reduce((sum, part) => sum + level[`${part}_bytes`], 0);
    const scale = Math.min(1, level.memory_bytes / known);
    const width = (part) => share(level[`${part}_bytes`] * scale);
    const pieces = PARTS.map((part, at) => h(`i.part-${at + 1}`, { style: { width: width(part) } }));
    const over = level.memory_bytes > limit ? "over" : "";
    return h(`div.bar-track.${over}`, { role: "img", "aria-label": label }, pieces, mark({ left: share(limit) }));
  }

  function levelRow(level) {
    const { level: name, chosen, listed } = level;
    const can = level.fits !== "no";
    const act = rowButton(words.make, name, () => make(name), chosen ? "primary" : "");
    act.disabled = !can && !listed;
    const why = chosen ? words.taken : level.why_not;
    const kind = `${chosen ? "chosen" : listed ? "" : "rare"} ${can ? "" : "cannot"}`;
    const cards = level.card_layers ? ` · ${words.onCards(level.card_layers)}` : "";
    const full = words.speedFull(rate(level.tokens_per_second_full));
    return row(
      { class: kind, "data-level": name, "aria-current": chosen ? "true" : null },
      [h("span.name", name), small(words.bits(level.bits_per_weight))],
      [bar(level), small(bytes(level.memory_bytes), cards)],
      bytes(level.file_bytes),
      h("span", { title: full }, `${rate(level.tokens_per_second)}/s`),
      quality(level),
      [verdict(level), why && small(why)],
      !(installed && levels.length === 1) && act,
    );
  }

  body.append(...levels.map(levelRow));
  const short = levels.some((level) => level.listed || level.chosen) && body.querySelector(".rare");
  const shown = node.firstChild;
  shown.prepend(legend);
  shown.className += short ? " levels short" : " levels";
  const more = textButton(words.all(levels.length), () => {
    more.remove();
    shown.classList.remove("short");
  });
  return h("div.panel", node, short && more);
}

const small = (...children) => h("div.small.quiet", children);

function verdict({ chosen, fits, evict }) {
  if (chosen) return h("span.badge.good", words.chosen);
  if (fits === "evict") return h("span.badge.warn", words.evict(evict.join(", ")));
  return fits === "yes" ? h("span.badge.good", words.yes) : h("span.badge.bad", words.no);
}

// How much worse than the original: the KL divergence in nats that was measured here, else the published rise of the
// perplexity, which is a difference and no share. Each says which it is.
function quality({ quality: from, divergence, perplexity_increase: rise }) {
  const loss = from === "measured" ? divergence : rise;
  if (loss === null || loss === undefined) return h("span.quiet", words.qualityUnknown);
  const text = from === "measured" ? words.divergence(+loss.toPrecision(3)) : words.worse(loss);
  return [text, small(words.from[from] ?? from)];
}
