// Nodes of a Markdown tree: elements and texts, never HTML. Pictures of other places are links: the page loads nothing.

import { parse } from "./markdown.js";
import { h, scrollable, textButton, texts } from "./kit.js";

const words = texts.chat;

export const markdown = (text) => parse(text).map(blockNode);

const BLOCKS = {
  heading: ({ level, parts }) => h(`h3.level-${level}`, inline(parts)), // a message begins at any level, an outline not
  code: ({ text, language }) => codeBlock(text, language),
  math: ({ text }) => h("div.math", { role: "math" }, text),
  rule: () => h("hr"),
  quote: ({ blocks }) => h("blockquote", blocks.map(blockNode)),
  list: ({ ordered, start, items }) => h(ordered ? "ol" : "ul", { start: start === 1 ? null : start }, items.map(item)),
  table,
  paragraph: ({ parts }) => h("p", inline(parts)),
};

const blockNode = (block) => BLOCKS[block.type](block);

// A tight item has its text without a paragraph around it.
function item([first, ...rest]) {
  if (first?.type === "paragraph") return h("li", inline(first.parts), rest.map(blockNode));
  return h("li", first && blockNode(first), rest.map(blockNode));
}

function table({ align, head, rows }) {
  const row = (tag) => (cells) => h("tr", cells.map((cell, at) => h(`${tag}.${align[at]}`, inline(cell))));
  const all = h("table", h("thead", row("th")(head)), h("tbody", rows.map(row("td"))));
  return scrollable("div.scroller", words.table, all);
}

const LINK = { target: "_blank", rel: "noopener noreferrer" };
const PARTS = {
  break: () => h("br"),
  code: ({ text }) => h("code", text),
  math: ({ text }) => h("span.math", { role: "math" }, text),
  link: ({ href, parts }) => h("a", { href, ...LINK }, inline(parts)),
};

function inline(parts) {
  const node = (part) => PARTS[part.type]?.(part) ?? h(part.type, inline(part.parts));
  return parts.map((part) => (typeof part === "string" ? part : node(part)));
}

// Code with its language and a button that copies it. `pre` can be focused, so that keys scroll it.
export function codeBlock(text, language = "") {
  const code = h("code", text);
  const title = language || words.code;
  const copy = textButton(words.copy, () => copied(copy, code.textContent));
  return h("figure.code", h("figcaption", h("span", title), copy), scrollable("pre", title, code));
}

export async function copied(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = h("textarea.hidden", { value: text }); // no clipboard without HTTPS in a network
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  button.textContent = words.copied;
  setTimeout(() => (button.textContent = words.copy), 1500);
}

// Markdown that grows: blocks before the last one are final and stay, the last one is made anew, or its code longer.
export class GrowingText {
  constructor(place) {
    this.place = place;
    this.length = 0; // characters of `text` that are in final blocks
    this.last = null;
    this.code = null; // the node of an open block of code, and how many characters of it are shown
    this.rest = 0; // ms until which a long last block is left as it is
  }

  // Show `text`, which begins with what was shown before. `end`: nothing follows.
  show(text, end = false) {
    const now = performance.now();
    if (!end && now < this.rest) return;
    const tail = text.slice(this.length);
    if (!end && this.longerCode(tail)) return;
    const blocks = parse(tail);
    const last = end ? null : blocks.pop();
    this.last?.remove();
    this.last = null;
    this.place.append(...blocks.map(blockNode));
    if (!last) return;
    for (const line of tail.split("\n").slice(0, last.from)) this.length += line.length + 1;
    this.last = blockNode(last);
    this.place.append(this.last);
    const open = last.type === "code" && last.open;
    this.code = open ? { node: this.last.querySelector("code"), shown: last.text.length } : null;
    const cost = performance.now() - now;
    this.rest = cost > 4 ? performance.now() + cost * 4 : 0;
  }

  // Code that is still open only gets longer: its text is appended where the new text cannot end it.
  longerCode(tail) {
    if (!this.code || !this.last) return false;
    const start = tail.indexOf("\n") + 1;
    const body = tail.slice(start);
    const { shown } = this.code;
    const ends = /(^|\n) {0,3}(`{2,}|~{2,}|`$|~$)/.test(body.slice(Math.max(0, shown - 8)));
    if (!start || ends || /^ /.test(tail)) return false;
    this.code.node.append(body.slice(shown));
    this.code.shown = body.length;
    return true;
  }
}
