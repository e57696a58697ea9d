// Every level of a model as a row of a picture: what it needs of memory against the limit of this machine, how fast it
// would write, how good it is, whether it fits and why not.

import { button, h } from "../dom.js";
import { bytes, rate } from "../format.js";
import { texts } from "../texts.js";

const words = texts.fit;
const PARTS = ["weights", "cache", "compute"];

// The picture of an answer of `/lm/advise`; `make` is called with the level that somebody wants.
export function picture(advice, make) {
  const limit = advice.memory.models_may_use;
  const needs = Math.max(...advice.levels.map((row) => row.memory_bytes));
  // A model far below the limit is shown by its own size, one far above it is cut off.
  const most = 1.04 * (limit > 2 * needs ? needs : Math.max(limit, Math.min(needs, 2 * limit)));
  const usual = advice.levels.filter((row) => row.listed || row.chosen);
  const heads = [words.level, words.memory, words.size, words.speed, words.quality, words.fits, ""];
  const table = h(
    "table.table.wide.levels",
    {},
    h("caption", {}, legend(limit, limit <= most)),
    h("thead", {}, h("tr", {}, ...heads.map((text, at) => h(at === 2 || at === 3 ? "th.number" : "th", { scope: "col" }, text || h("span.hidden", {}, texts.models.acts))))),
    h("tbody", {}, ...advice.levels.map((row) => levelRow(row, advice, limit, most, make))),
  );
  if (usual.length < advice.levels.length && usual.length) table.classList.add("short");
  const more = h("button.link.small", { type: "button", hidden: !table.classList.contains("short") }, words.all(advice.levels.length));
  more.addEventListener("click", () => {
    more.hidden = true;
    table.classList.remove("short");
  });
  return h("div.panel", {}, h("div.scroller", {}, table), more);
}

function legend(limit, shown) {
  const parts = PARTS.map((part, at) => h("span.key", {}, h(`i.part-${at + 1}`), words.parts[part]));
  return h("span.row.legend", {}, ...parts, h("span.key", {}, shown ? h("i.mark") : null, words.limit(bytes(limit))));
}

function levelRow(row, advice, limit, most, make) {
  const can = row.fits !== "no";
  const made = advice.installed && advice.levels.length === 1;
  const why = row.chosen ? words.taken : row.why_not;
  const act = made ? null : button(words.make, () => make(row.level), { class: `button small ${row.chosen ? "primary" : ""}`, "aria-label": `${words.make}: ${row.level}`, disabled: !can && !row.listed });
  return h(
    `tr.level.${row.chosen ? "chosen" : row.listed ? "listed" : "rare"}.${can ? "can" : "cannot"}`,
    { "data-level": row.level, "aria-current": row.chosen ? "true" : null },
    h("th", { scope: "row" }, h("span.name", {}, row.level), h("div.small.quiet", {}, words.bits(row.bits_per_weight))),
    h("td.bar-cell", {}, bar(row, limit, most), h("div.small.quiet", {}, bytes(row.memory_bytes), row.card_layers ? ` · ${words.onCards(row.card_layers)}` : "")),
    h("td.number", { "data-label": words.size }, bytes(row.file_bytes)),
    h("td.number", { "data-label": words.speed }, h("span", { title: words.speedFull(rate(row.tokens_per_second_full)) }, `${rate(row.tokens_per_second)}/s`)),
    h("td", { "data-label": words.quality }, quality(row)),
    h("td", {}, verdict(row), why ? h("div.small.quiet", {}, why) : null),
    h("td", {}, act),
  );
}

// The need as a bar of its parts; what is beyond the limit lies right of the mark.
function bar(row, limit, most) {
  const share = (size) => `${Math.min(100, (100 * size) / most).toFixed(3)}%`;
  const label = words.bar(row.level, bytes(row.memory_bytes), bytes(limit));
  const known = PARTS.reduce((sum, part) => sum + row[`${part}_bytes`], 0);
  const scale = known > row.memory_bytes ? row.memory_bytes / known : 1;
  const parts = PARTS.map((part, at) => h(`i.part-${at + 1}`, { style: { width: share(row[`${part}_bytes`] * scale) } }));
  return h(`div.bar-track${row.memory_bytes > limit ? ".over" : ""}`, { role: "img", "aria-label": label }, ...parts, limit <= most ? h("b.mark", { style: { left: share(limit) } }) : null);
}

function verdict(row) {
  const [kind, text] = row.chosen ? ["good", words.chosen] : row.fits === "yes" ? ["good", words.yes] : row.fits === "evict" ? ["warn", words.evict(row.evict.join(", "))] : ["bad", words.no];
  return h(`span.badge.${kind}`, {}, text);
}

// How much worse than the original: the KL divergence in nats that was measured here, else the published rise of the
// perplexity, which is a difference and no share. Each says which it is.
function quality(row) {
  const measured = row.quality === "measured";
  const loss = measured ? row.divergence : row.perplexity_increase;
  if (loss === null || loss === undefined) return h("span.quiet", {}, words.qualityUnknown);
  const text = measured ? words.divergence(String(+loss.toPrecision(3))) : words.worse(String(loss));
  return [text, h("div.small.quiet", {}, words.from[row.quality] ?? row.quality)];
}
