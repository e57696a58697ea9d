// Markdown to a tree: what models write, and no HTML. `render.js` makes nodes of the tree.
//
// A block is { type, from, … }; `from` is its first line, so that an answer that still comes can keep the blocks before
// its last one. An inline part is a text, or { type, parts | text, href }. Mathematics ($…$, $$…$$, \(…\), \[…\]) is
// kept as it was written. Time is linear in the length of the text, whatever it is: models repeat themselves.

const DEEPEST = 8;
const FENCE = /^( {0,3})(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:[ \t]+(.*))?$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const DIVIDER = /^ *\|?(?: *:?-+:? *\|)* *:?-+:? *\|? *$/;
const MATH = /^ {0,3}(\$\$|\\\[)(.*)$/;
const NESTING = [[QUOTE, quote], [ITEM, list]];
const BLOCKS = [[FENCE, code], [MATH, mathematics], [HEADING, heading], [RULE, rule]];

export const parse = (text) => blocks(text.split("\n"), 0);

// A function of a block is called with the lines, the number of its first one, the depth, and what its form found; it
// returns the block and the number of the line behind it.
function blocks(lines, depth) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) at += 1;
    else {
      const forms = depth < DEEPEST ? [...BLOCKS, ...NESTING] : BLOCKS;
      const other = [/^/, isTable(lines, at) ? table : paragraph];
      const [form, make] = forms.find((each) => each[0].test(lines[at])) ?? other;
      const [block, next] = make(lines, at, depth, form.exec(lines[at]));
      found.push({ ...block, from: at });
      at = next;
    }
  }
  return found;
}

function heading(lines, at, depth, [, marks, text = ""]) {
  return [{ type: "heading", level: marks.length, parts: inline(text) }, at + 1];
}

function rule(lines, at) {
  return [{ type: "rule" }, at + 1];
}

function code(lines, at, depth, [, indent, marks, info]) {
  const end = new RegExp(`^ {0,3}${marks[0]}{${marks.length},}\\s*$`);
  let next = at + 1;
  while (next < lines.length && !end.test(lines[next])) next += 1;
  const text = lines.slice(at + 1, next).map((line) => outdented(line, indent.length)).join("\n");
  return [{ type: "code", language: info.trim().split(/\s+/)[0], text, open: next >= lines.length }, next + 1];
}

const outdented = (line, width) => line.slice(Math.min(width, Math.max(0, line.search(/[^ ]|$/))));

function mathematics(lines, at, depth, [, mark, rest]) {
  const close = mark === "$$" ? "$$" : "\\]";
  const math = (body) => ({ type: "math", text: mark + body.join("\n") });
  let next = at;
  let line = rest;
  const body = [];
  while (!line.includes(close)) {
    body.push(line);
    next += 1;
    if (next >= lines.length || !lines[next].trim()) return [math(body), next];
    line = lines[next];
  }
  const end = line.indexOf(close) + close.length;
  const after = line.slice(end).trim();
  const block = math([...body, line.slice(0, end)]);
  return [after ? { type: "paragraph", parts: [block, ...inline(` ${after}`)] } : block, next + 1];
}

function quote(lines, at, depth) {
  let next = at;
  const inner = [];
  while (next < lines.length && lines[next].trim() && (QUOTE.test(lines[next]) || !begins(lines[next]))) {
    inner.push(QUOTE.exec(lines[next])?.[1] ?? lines[next]);
    next += 1;
  }
  return [{ type: "quote", blocks: blocks(inner, depth + 1) }, next];
}

function list(lines, at, depth, [, indent, marker]) {
  const ordered = /\d/.test(marker);
  const items = [];
  let next = at;
  while (next < lines.length) {
    const match = ITEM.exec(lines[next]);
    const same = match && match[1].length <= indent.length + 1 && match[2].at(-1) === marker.at(-1);
    if (!same || RULE.test(lines[next])) break;
    const width = match[1].length + match[2].length + 1;
    const body = [match[3] || ""];
    next += 1;
    while (next < lines.length && continues(lines, next, Math.min(width, indent.length + 2))) {
      body.push(outdented(lines[next], width));
      next += 1;
    }
    items.push(blocks(body, depth + 1));
  }
  return [{ type: "list", ordered, start: ordered ? parseInt(marker, 10) : 1, items }, next];
}

// Whether a line belongs to an item whose text is indented by `width`: indented, or blank before such a line, or the
// rest of its paragraph.
function continues(lines, at, width) {
  const indent = lines[at].search(/\S/);
  if (indent >= 0) return indent >= width || (!begins(lines[at]) && lines[at - 1].trim() !== "");
  const after = lines.slice(at, at + 3).find((each) => each.trim());
  return after !== undefined && after.search(/\S/) >= width;
}

const begins = (line) => [...BLOCKS, ...NESTING].some(([form]) => form.test(line));

function isTable(lines, at) {
  const next = lines[at + 1] ?? "";
  const divided = lines[at].includes("|") && next.includes("-") && DIVIDER.test(next);
  return divided && cells(lines[at]).length === cells(next).length;
}

function table(lines, at) {
  const side = (cell) => (!cell.endsWith(":") ? "" : cell.startsWith(":") ? "center" : "right");
  const align = cells(lines[at + 1]).map(side);
  const row = (line) => cells(line).slice(0, align.length).map((cell) => inline(cell));
  let next = at + 2;
  while (next < lines.length && lines[next].includes("|") && !begins(lines[next])) next += 1;
  return [{ type: "table", align, head: row(lines[at]), rows: lines.slice(at + 2, next).map(row) }, next];
}

function cells(line) {
  const bare = line.trim().replace(/^\|/, "").replace(/([^\\]|^)\|$/, "$1");
  return bare.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function paragraph(lines, at, depth) {
  const ends = (line) => begins(line) && !(depth >= DEEPEST && /^\s*([-*+>]|\d)/.test(line));
  let next = at + 1;
  while (next < lines.length && lines[next].trim() && !isTable(lines, next) && !ends(lines[next])) next += 1;
  const text = lines.slice(at, next).map((line) => line.trim());
  return [{ type: "paragraph", parts: inline(text.join("\n")) }, next];
}

const LABEL = /!?\[((?:[^\[\]\n]|\[[^\[\]\n]{0,200}\]){0,500})\]/;
const TARGET = /\(\s*<?((?:[^()\s<>]|\([^()\s]{0,200}\)){1,2000})>?(?:\s+"[^"\n]{0,200}")?\s*\)/;
const LINK = new RegExp(LABEL.source + TARGET.source, "y");
const BARE = /https?:\/\/[^\s<>"'`]{1,2000}/y;
const SPECIAL = /[\\`$!\[*_~h\n]/g;
// What a mark may begin. A function returns the part and its end; an end of 0 or less means plain text, of that many
// characters. `missing` has the marks that are not closed anywhere behind: nobody looks for them twice.
const PARTS = {
  "\n": (text, at) => [{ type: "break" }, at + 1],
  "\\": escaped, "`": codeSpan, $: dollars, "[": link, "!": link, h: bareLink,
};

// Inline parts of a text without blocks in it.
export function inline(text, depth = 0) {
  const found = [];
  const missing = new Set();
  let plain = 0;
  let at = 0;
  for (;;) {
    SPECIAL.lastIndex = at;
    const next = SPECIAL.exec(text)?.index ?? text.length;
    if (next >= text.length) break;
    const [part, end] = (PARTS[text[next]] ?? emphasis)(text, next, missing, depth);
    at = end > next ? end : next + (-end || 1);
    if (end <= next) continue;
    if (next > plain) found.push(text.slice(plain, next));
    found.push(part);
    plain = at;
  }
  if (text.length > plain) found.push(text.slice(plain));
  return found;
}

function escaped(text, at, missing) {
  const next = text[at + 1] || "";
  const close = { "(": "\\)", "[": "\\]" }[next];
  const end = close ? find(text, close, at + 2, missing) : -1;
  if (end >= 0) return [{ type: "math", text: text.slice(at, end + 2) }, end + 2];
  return /[!-/:-@[-`{-~]/.test(next) ? [next, at + 2] : [null, 0];
}

function codeSpan(text, at, missing) {
  const marks = /^`+/.exec(text.slice(at, at + 32))[0];
  const { length } = marks;
  let end = at;
  do end = find(text, marks, end + length, missing);
  while (end >= 0 && text[end + length] === "`" && (end = skip(text, end, "`") - length) >= 0);
  if (end < 0) return [null, -length];
  const inner = text.slice(at + length, end);
  return [{ type: "code", text: /^ .+ $/s.test(inner) ? inner.slice(1, -1) : inner }, end + length];
}

function skip(text, at, mark) {
  let end = at;
  while (text[end] === mark) end += 1;
  return end;
}

function dollars(text, at, missing) {
  const mark = text.startsWith("$$", at) ? "$$" : "$";
  const from = at + mark.length;
  if (mark === "$" && !/\S/.test(text[from] || " ")) return [null, 0];
  const end = find(text, mark, from, missing);
  // "$5 and $6" is money: no space stands before a closing mark, and no digit behind it.
  const closes = mark === "$$" || (/\S/.test(text[end - 1]) && !/\d/.test(text[end + 1] || ""));
  if (end <= from || !closes) return [null, -mark.length];
  return [{ type: "math", text: text.slice(at, end + mark.length) }, end + mark.length];
}

function link(text, at, missing, depth) {
  LINK.lastIndex = at;
  const match = depth < DEEPEST ? LINK.exec(text) : null;
  if (!match) return [null, 0];
  return [{ type: "link", href: match[2], parts: inline(match[1] || match[2], DEEPEST) }, LINK.lastIndex];
}

function bareLink(text, at) {
  BARE.lastIndex = at;
  const match = /\w/.test(text[at - 1] || "") ? null : BARE.exec(text);
  if (!match) return [null, 0];
  let href = match[0].replace(/[.,;:!?*_~]+$/, "");
  if (!href.includes("(")) href = href.replace(/\)+$/, "");
  return [{ type: "link", href, parts: [href] }, at + href.length];
}

const EMPHASIS = { "**": "strong", __: "strong", "*": "em", _: "em", "~~": "del" };

function emphasis(text, at, missing, depth) {
  const run = skip(text, at, text[at]) - at;
  const mark = text[at].repeat(run > 1 ? 2 : 1);
  const type = EMPHASIS[mark];
  const from = at + mark.length;
  const inWord = text[at] === "_" && /\w/.test(text[at - 1] || "");
  if (!type || run > 3 || depth >= DEEPEST || inWord || !/\S/.test(text[from] || " ")) return [null, -run];
  let end = closing(text, mark, from, missing);
  if (end < 0) return [null, -run];
  if (run === 3 && text[end + mark.length] === mark[0]) end += 1; // ***both***
  return [{ type, parts: inline(text.slice(from, end), depth + 1) }, end + mark.length];
}

// Where a mark closes: behind something other than a space, `_` at the end of a word, and not in a run of another mark.
function closing(text, mark, from, missing) {
  for (let end = find(text, mark, from, missing); end >= 0; end = find(text, mark, end, missing)) {
    const past = skip(text, end, mark[0]);
    const fits = mark.length === 2 || past - end !== 2;
    const after = mark[0] === "_" && /\w/.test(text[past] || "");
    if (fits && !after && end > from && /\S/.test(text[end - 1])) return mark.length === 1 ? past - 1 : end;
    end = past;
  }
  return -1;
}

function find(text, mark, from, missing) {
  const end = missing.has(mark) ? -1 : text.indexOf(mark, from);
  if (end < 0) missing.add(mark);
  return end;
}
