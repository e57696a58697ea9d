// One message as it is shown: its text, what belongs to it, and what can be done with it.

import { button, fill, h, iconButton } from "../dom.js";
import { duration, number, rate } from "../format.js";
import { problemBox } from "../notices.js";
import { codeBlock, copied, GrowingText, markdown } from "../render.js";
import { texts } from "../texts.js";

const words = texts.chat;

// `acts`: edit(message, text), again(message), choose(id), results(message, texts). `update()` shows what has come.
export class MessageView {
  constructor(message, conversation, acts) {
    Object.assign(this, { message, conversation, acts });
    this.thinking = null;
    this.text = h("div.text");
    this.grown = null;
    this.before = h("div.before");
    this.after = h("div.after");
    const label = h("h2.offscreen", {}, words.roles[message.role] || message.role);
    this.node = h(`article.message.${message.role}`, { "data-id": message.id }, label, this.before, this.text, this.after);
    this.draw();
  }

  // All of it, for a message that is whole; one that is coming grows by `update`.
  draw() {
    const { message } = this;
    this.grown = null;
    this.thinking = null;
    fill(this.before, (message.files || []).map(fileNode));
    if (message.role === "tool") this.before.append(h("span.badge", {}, words.resultOf(message.tool?.name || "")));
    if (message.state === "coming") {
      this.node.setAttribute("aria-busy", "true");
      fill(this.text, h("span.waiting", { role: "status" }, words.waiting));
      fill(this.after);
      return this.update();
    }
    this.node.removeAttribute("aria-busy");
    if (message.thinking) this.think(true);
    fill(this.text, this.content());
    fill(this.after, this.calls(), message.error ? problemBox(message.error) : null, this.foot());
  }

  content() {
    const { message } = this;
    if (message.role === "user" || message.role === "tool") return message.content && h("p.plain", {}, message.content);
    const value = message.form && asJson(message.content);
    return value ? codeBlock(value, words.bySchema) : markdown(message.content);
  }

  // What has come since the last time. A frame calls it, however many pieces there were.
  update() {
    const { message } = this;
    if (message.thinking) this.think(false);
    if (!message.content) return;
    if (!this.grown) {
      fill(this.text);
      this.grown = new GrowingText(this.text);
    }
    this.grown.show(message.content);
  }

  think(whole) {
    const { thinking, thought } = this.message;
    if (!this.thinking) {
      const body = h("div.thought", { tabindex: "0" });
      this.thinking = { body, summary: h("summary"), shown: 0 };
      this.before.append(h("details.thinking", {}, this.thinking.summary, body));
      if (!whole && !this.message.content) fill(this.text);
    }
    const { body, summary, shown } = this.thinking;
    const over = whole || thought !== undefined;
    const title = over ? (thought ? words.thoughtFor(duration(thought)) : words.thought) : words.thinking;
    if (summary.textContent !== title) summary.textContent = title;
    if (thinking.length > shown) body.append(thinking.slice(shown));
    this.thinking.shown = thinking.length;
  }

  calls() {
    const { calls, id } = this.message;
    if (!calls?.length) return null;
    const nodes = calls.map(({ function: { name, arguments: given } }) => {
      const shown = typeof given === "string" ? given : JSON.stringify(given, null, 2);
      return h("div.call", {}, h("span.badge", {}, words.calls(name)), codeBlock(shown, "json"));
    });
    if (this.conversation.children.get(id)) return nodes;
    const fields = calls.map((call) => h("textarea", { rows: "2", "aria-label": words.resultOf(call.function.name), placeholder: words.resultOf(call.function.name) }));
    const send = button(words.sendResults, () => this.acts.results(this.message, fields.map((field) => field.value)));
    return [nodes, h("div.results", {}, fields, send)];
  }

  foot() {
    const { message, acts } = this;
    const copy = h("button.link.small", { type: "button" }, words.copy);
    copy.addEventListener("click", () => copied(copy, message.content));
    const edit = message.role !== "tool" && h("button.link.small", { type: "button", onclick: () => this.edit() }, words.edit);
    const again = message.role === "assistant" && h("button.link.small", { type: "button", onclick: () => acts.again(message) }, words.again);
    return h("footer", {}, this.branches(), h("span.acts", {}, copy, edit, again), this.figures());
  }

  branches() {
    const all = this.conversation.siblings(this.message);
    if (all.length < 2) return null;
    const at = all.indexOf(this.message.id);
    const step = (name, by) => iconButton(name, by < 0 ? words.earlierBranch : words.laterBranch, () => this.acts.choose(all[at + by]), { disabled: !all[at + by] });
    return h("span.branches", { role: "group", "aria-label": words.branches }, step("left", -1), h("span", {}, `${at + 1} / ${all.length}`), step("right", 1));
  }

  figures() {
    const { stats, state, model, role } = this.message;
    if (role !== "assistant") return null;
    const list = [model];
    if (stats) {
      if (stats.rate) list.push(words.rate(rate(stats.rate)));
      if (stats.first) list.push(words.first(duration(stats.first)));
      if (stats.load > 0.05) list.push(words.load(duration(stats.load)));
      const used = (stats.prompt || 0) + (stats.tokens || 0);
      list.push(stats.context ? words.used(number(used), number(stats.context)) : words.tokens(number(used)));
      if (stats.reason === "length") list.push(words.cut);
      if (stats.dropped) list.push(words.dropped(number(stats.dropped)));
      if (stats.warning) list.push(stats.warning);
    }
    if (state === "stopped") list.push(words.stopped);
    return h("span.figures", {}, list.filter(Boolean).join(" · "));
  }

  edit() {
    const { message, acts } = this;
    const field = h("textarea", { rows: String(Math.min(16, message.content.split("\n").length + 1)), "aria-label": words.edit, value: message.content });
    const leave = () => {
      this.draw();
      this.node.querySelector(".acts button:nth-child(2)")?.focus();
    };
    const save = () => (field.value.trim() ? acts.edit(message, field.value) : leave());
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") leave();
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
      event.stopPropagation();
    });
    const label = message.role === "user" ? words.sendEdited : words.keepEdited;
    fill(this.text, field, h("div.row", {}, h("button.button.primary.small", { type: "button", onclick: save }, label), h("button.button.small", { type: "button", onclick: leave }, words.cancel)));
    fill(this.after);
    field.focus();
  }
}

function fileNode({ name, text }) {
  const body = h("pre", { tabindex: "0", "aria-label": name });
  const details = h("details.file", {}, h("summary", {}, name, h("span.quiet", {}, ` ${words.letters(number(text.length))}`)), body);
  details.addEventListener("toggle", () => (body.textContent = text), { once: true });
  return details;
}

function asJson(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return "";
  }
}
