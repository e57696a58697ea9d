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

export function parse(text) {
  return blocks(text.split("\n"), 0, 0);
}

function blocks(lines, first, depth) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const [block, next] = blockAt(lines, at, depth);
    block.from = first + at;
    found.push(block);
    at = next;
  }
  return found;
}

function blockAt(lines, at, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return code(lines, at, fence);
  const math = MATH.exec(line);
  if (math) return mathematics(lines, at, math);
  const heading = HEADING.exec(line);
  if (heading) return [{ type: "heading", level: heading[1].length, parts: inline(heading[2] || "") }, at + 1];
  if (RULE.test(line)) return [{ type: "rule" }, at + 1];
  if (depth < DEEPEST && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < DEEPEST && ITEM.test(line)) return list(lines, at, depth);
  if (isTable(lines, at)) return table(lines, at);
  return paragraph(lines, at, depth);
}

function code(lines, at, [, indent, marks, info]) {
  const end = new RegExp(`^ {0,3}${marks[0]}{${marks.length},}\\s*$`);
  let next = at + 1;
  while (next < lines.length && !end.test(lines[next])) next += 1;
  const body = lines.slice(at + 1, next).map((line) => line.replace(new RegExp(`^ {0,${indent.length}}`), ""));
  const language = info.trim().split(/\s+/)[0];
  return [{ type: "code", language, text: body.join("\n"), open: next >= lines.length }, next + 1];
}

function mathematics(lines, at, [, mark, rest]) {
  const close = mark === "$$" ? "$$" : "\\]";
  let next = at;
  let line = rest;
  const body = [];
  while (!line.includes(close)) {
    body.push(line);
    next += 1;
    if (next >= lines.length || !lines[next].trim()) return [{ type: "math", text: mark + body.join("\n") }, next];
    line = lines[next];
  }
  const end = line.indexOf(close) + close.length;
  const after = line.slice(end).trim();
  body.push(line.slice(0, end));
  if (after) return [{ type: "paragraph", parts: [{ type: "math", text: mark + body.join("\n") }, ...inline(` ${after}`)] }, next + 1];
  return [{ type: "math", text: mark + body.join("\n") }, next + 1];
}

function quote(lines, at, depth) {
  let next = at;
  const inner = [];
  while (next < lines.length && lines[next].trim()) {
    const match = QUOTE.exec(lines[next]);
    if (!match && begins(lines[next])) break;
    inner.push(match ? match[1] : lines[next]);
    next += 1;
  }
  return [{ type: "quote", blocks: blocks(inner, 0, depth + 1) }, next];
}

function list(lines, at, depth) {
  const [, indent, marker] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(marker);
  const kind = marker.at(-1);
  const items = [];
  let next = at;
  while (next < lines.length) {
    const match = ITEM.exec(lines[next]);
    const same = match && match[1].length <= indent.length + 1 && match[2].at(-1) === kind && !RULE.test(lines[next]);
    if (!same) break;
    const width = match[1].length + match[2].length + 1;
    const body = [match[3] || ""];
    next += 1;
    while (next < lines.length && continues(lines, next, Math.min(width, indent.length + 2))) {
      body.push(lines[next].replace(new RegExp(`^ {0,${width}}`), ""));
      next += 1;
    }
    items.push(blocks(body, 0, depth + 1));
  }
  return [{ type: "list", ordered, start: ordered ? parseInt(marker, 10) : 1, items }, next];
}

// Whether a line belongs to an item whose text is indented by `width`: indented, or blank before such a line, or the
// rest of its paragraph.
function continues(lines, at, width) {
  const line = lines[at];
  const indent = line.search(/\S/);
  if (indent < 0) {
    const after = lines.slice(at, at + 3).find((each) => each.trim());
    return after !== undefined && after.search(/\S/) >= width;
  }
  return indent >= width || (!begins(line) && lines[at - 1].trim() !== "");
}

const begins = (line) => [FENCE, HEADING, RULE, ITEM, QUOTE, MATH].some((form) => form.test(line));

function isTable(lines, at) {
  const next = lines[at + 1];
  return lines[at].includes("|") && next !== undefined && next.includes("-") && DIVIDER.test(next) && cells(lines[at]).length === cells(next).length;
}

function table(lines, at) {
  const align = cells(lines[at + 1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : ""));
  const row = (line) => cells(line).slice(0, align.length).map(inline);
  const rows = [];
  let next = at + 2;
  while (next < lines.length && lines[next].includes("|") && !begins(lines[next])) rows.push(row(lines[next++]));
  return [{ type: "table", align, head: row(lines[at]), rows }, next];
}

function cells(line) {
  const bare = line.trim().replace(/^\|/, "").replace(/([^\\]|^)\|$/, "$1");
  return bare.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function paragraph(lines, at, depth) {
  let next = at + 1;
  while (next < lines.length && lines[next].trim() && !isTable(lines, next)) {
    if (begins(lines[next]) && !(depth >= DEEPEST && /^\s*([-*+>]|\d)/.test(lines[next]))) break;
    next += 1;
  }
  const text = lines.slice(at, next).map((line) => line.trim()).join("\n");
  return [{ type: "paragraph", parts: inline(text) }, next];
}

const LINK = /!?\[((?:[^\[\]\n]|\[[^\[\]\n]{0,200}\]){0,500})\]\(\s*<?((?:[^()\s<>]|\([^()\s]{0,200}\)){1,2000})>?(?:\s+"[^"\n]{0,200}")?\s*\)/y;
const BARE = /https?:\/\/[^\s<>"'`]{1,2000}/y;
const SPECIAL = /[\\`$!\[*_~h\n]/g;

// Inline parts of a text without blocks in it.
export function inline(text, depth = 0) {
  const found = [];
  const missing = new Set(); // marks that are not closed anywhere behind: nobody looks for them twice
  let plain = 0;
  let at = 0;
  const put = (part, end) => {
    if (at > plain) found.push(text.slice(plain, at));
    if (part !== null) found.push(part);
    plain = at = end;
  };
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const next = SPECIAL.exec(text);
    if (!next) break;
    at = next.index;
    const [part, end] = partAt(text, at, depth, missing);
    if (end > at) put(part, end);
    else at += -end || 1;
  }
  at = text.length;
  put(null, at);
  return found;
}

// The part at a mark and its end; an end of 0 or less means plain text, of that many characters.
function partAt(text, at, depth, missing) {
  const mark = text[at];
  if (mark === "\n") return [{ type: "break" }, at + 1];
  if (mark === "\\") return escaped(text, at, missing);
  if (mark === "`") return codeSpan(text, at, missing);
  if (mark === "$") return dollars(text, at, missing);
  if (mark === "[" || mark === "!") return link(text, at, depth);
  if (mark === "h") return bareLink(text, at);
  return emphasis(text, at, depth, missing);
}

function escaped(text, at, missing) {
  const next = text[at + 1] || "";
  if (next === "(" || next === "[") {
    const close = next === "(" ? "\\)" : "\\]";
    const end = find(text, close, at + 2, missing);
    if (end >= 0) return [{ type: "math", text: text.slice(at, end + 2) }, end + 2];
  }
  return /[!-/:-@[-`{-~]/.test(next) ? [next, at + 2] : [null, 0];
}

function codeSpan(text, at, missing) {
  const marks = /^`+/.exec(text.slice(at, at + 32))[0];
  let end = at;
  do end = find(text, marks, end + marks.length, missing);
  while (end >= 0 && text[end + marks.length] === "`" && (end = skip(text, end, "`") - marks.length) >= 0);
  if (end < 0) return [null, -marks.length];
  const inner = text.slice(at + marks.length, end);
  const padded = inner.length > 2 && inner.startsWith(" ") && inner.endsWith(" ");
  return [{ type: "code", text: padded ? inner.slice(1, -1) : inner }, end + marks.length];
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
  const closes = end > from && (mark === "$$" || (/\S/.test(text[end - 1]) && !/\d/.test(text[end + 1] || "")));
  return closes ? [{ type: "math", text: text.slice(at, end + mark.length) }, end + mark.length] : [null, -mark.length];
}

function link(text, at, depth) {
  LINK.lastIndex = at;
  const match = depth < DEEPEST ? LINK.exec(text) : null;
  if (!match) return [null, 0];
  return [{ type: "link", href: match[2], parts: inline(match[1] || match[2], DEEPEST) }, at + match[0].length];
}

function bareLink(text, at) {
  BARE.lastIndex = at;
  const match = BARE.exec(text);
  if (!match || /\w/.test(text[at - 1] || "")) return [null, 0];
  let href = match[0].replace(/[.,;:!?*_~]+$/, "");
  if (href.endsWith(")") && !href.includes("(")) href = href.replace(/\)+$/, "");
  return [{ type: "link", href, parts: [href] }, at + href.length];
}

const EMPHASIS = { "**": "strong", __: "strong", "*": "em", _: "em", "~~": "del" };

function emphasis(text, at, depth, missing) {
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
  if (missing.has(mark)) return -1;
  const end = text.indexOf(mark, from);
  if (end < 0) missing.add(mark);
  return end;
}
