// Nodes of a Markdown tree: elements and texts, never HTML. Pictures of other places are links: the page loads nothing.

import { h } from "./dom.js";
import { parse } from "./markdown.js";
import { texts } from "./texts.js";

export function markdown(text) {
  return parse(text).map(blockNode);
}

export function blockNode(block) {
  switch (block.type) {
    case "heading":
      return h(`h3.level-${block.level}`, {}, parts(block.parts)); // a message may begin at any level, an outline may not
    case "code":
      return codeBlock(block.text, block.language);
    case "math":
      return h("div.math", { role: "math" }, block.text);
    case "rule":
      return h("hr");
    case "quote":
      return h("blockquote", {}, block.blocks.map(blockNode));
    case "list":
      return h(block.ordered ? "ol" : "ul", { start: block.ordered && block.start !== 1 ? block.start : null }, block.items.map(item));
    case "table":
      return table(block);
    default:
      return h("p", {}, parts(block.parts));
  }
}

// A tight item has its text without a paragraph around it.
function item(blocks) {
  const [first, ...rest] = blocks;
  if (first?.type !== "paragraph") return h("li", {}, blocks.map(blockNode));
  return h("li", {}, parts(first.parts), rest.map(blockNode));
}

function table(block) {
  const cell = (tag) => (content, at) => h(block.align[at] ? `${tag}.${block.align[at]}` : tag, {}, parts(content));
  const head = h("thead", {}, h("tr", {}, block.head.map(cell("th"))));
  const body = h("tbody", {}, block.rows.map((row) => h("tr", {}, row.map(cell("td")))));
  return h("div.scroller", { tabindex: "0", role: "region", "aria-label": texts.chat.table }, h("table", {}, head, body));
}

function parts(list) {
  return list.map((part) => (typeof part === "string" ? part : inlineNode(part)));
}

function inlineNode(part) {
  switch (part.type) {
    case "break":
      return h("br");
    case "code":
      return h("code", {}, part.text);
    case "math":
      return h("span.math", { role: "math" }, part.text);
    case "link":
      return h("a", { href: part.href, target: "_blank", rel: "noopener noreferrer" }, parts(part.parts));
    default:
      return h(part.type, {}, parts(part.parts));
  }
}

// Code with its language and a button that copies it. `pre` can be focused, so that keys scroll it.
export function codeBlock(text, language = "") {
  const code = h("code", {}, text);
  const copy = h("button.link.small", { type: "button" }, texts.chat.copy);
  copy.addEventListener("click", () => copied(copy, code.textContent));
  const head = h("figcaption", {}, h("span", {}, language || texts.chat.code), copy);
  return h("figure.code", {}, head, h("pre", { tabindex: "0", "aria-label": language || texts.chat.code }, code));
}

export async function copied(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = h("textarea", { class: "offscreen", value: text }); // no clipboard without HTTPS in a network
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  const before = button.textContent;
  button.textContent = texts.chat.copied;
  setTimeout(() => (button.textContent = before), 1500);
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
    if (this.longerCode(tail) && !end) return;
    const blocks = parse(tail);
    if (blocks.length > 1 || end) {
      const lines = tail.split("\n");
      const keep = end ? blocks.length : blocks.length - 1;
      this.replace(blocks.slice(0, keep).map(blockNode));
      this.last = null;
      if (end) return;
      const from = blocks.at(-1).from;
      this.length += lines.slice(0, from).reduce((sum, line) => sum + line.length + 1, 0);
      this.append(blocks.at(-1));
    } else if (blocks.length) {
      this.replace([]);
      this.append(blocks[0]);
    }
    const cost = performance.now() - now;
    this.rest = cost > 4 ? performance.now() + cost * 4 : 0;
  }

  replace(nodes) {
    this.last?.remove();
    this.place.append(...nodes);
  }

  append(block) {
    this.last = blockNode(block);
    this.place.append(this.last);
    this.code = block.type === "code" && block.open ? { node: this.last.querySelector("code"), shown: block.text.length } : null;
  }

  // Code that is still open only gets longer: its text is appended where the new text cannot end it.
  longerCode(tail) {
    if (!this.code || !this.last) return false;
    const start = tail.indexOf("\n") + 1;
    const body = tail.slice(start);
    const { shown } = this.code;
    if (!start || /^ /.test(tail) || /(^|\n) {0,3}(`{2,}|~{2,}|`$|~$)/.test(body.slice(Math.max(0, shown - 8)))) return false;
    this.code.node.append(body.slice(shown));
    this.code.shown = body.length;
    return true;
  }
}
