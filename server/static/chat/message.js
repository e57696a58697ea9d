// One message as it is shown: its text, what belongs to it, and what can be done with it.

import { codeBlock, copied, GrowingText, markdown } from "../render.js";
import {
  button, duration, fill, guarded, h, iconButton, number, problemBox, rate, say, scrollable, textButton, texts,
} from "../kit.js";

const words = texts.chat;

// `acts`: edit(message, text), again(message), choose(id), results(message, texts). `update()` shows what has come,
// `draw()` a message that is whole.
export function messageView(message, conversation, acts) {
  const { role, id } = message;
  let thoughts = null;
  let grown = null;
  const text = h("div.text");
  const before = h("div");
  const after = h("div");
  const label = h("h2.hidden", words.roles[role] || role);
  const node = h(`article.message.${role}`, label, before, text, after);

  function draw() {
    grown = thoughts = null;
    const result = role === "tool" && h("span.badge", words.resultOf(message.tool?.name || ""));
    fill(before, (message.files || []).map(fileNode), result);
    if (message.state === "coming") {
      node.setAttribute("aria-busy", "true");
      fill(text, h("span.waiting", { role: "status" }, words.waiting));
      fill(after);
      return update();
    }
    node.removeAttribute("aria-busy");
    if (message.thinking) think(true);
    fill(text, content());
    fill(after, calls(), message.error && problemBox(message.error), foot());
  }

  function content() {
    if (role === "user" || role === "tool") return message.content && h("p.plain", message.content);
    const value = message.form && asJson(message.content);
    return value ? codeBlock(value, words.bySchema) : markdown(message.content);
  }

  // What has come since the last time. A frame calls it, however many pieces there were.
  function update() {
    if (message.thinking) think(false);
    if (!message.content) return;
    if (!grown) fill(text);
    grown ??= new GrowingText(text);
    grown.show(message.content);
  }

  function think(whole) {
    if (!thoughts) {
      thoughts = { body: h("div.thought", { tabindex: "0" }), summary: h("summary"), shown: 0 };
      before.append(h("details.thinking", thoughts.summary, thoughts.body));
      if (!whole && !message.content) fill(text);
    }
    const { thought, thinking } = message;
    const over = thought ? words.thoughtFor(duration(thought)) : words.thought;
    say(thoughts.summary, whole || thought !== undefined ? over : words.thinking);
    thoughts.body.append(thinking.slice(thoughts.shown));
    thoughts.shown = thinking.length;
  }

  function calls() {
    if (!message.calls?.length) return null;
    const nodes = message.calls.map(({ function: { name, arguments: given } }) => {
      const shown = typeof given === "string" ? given : JSON.stringify(given, null, 2);
      return h("div.call", h("span.badge", words.calls(name)), codeBlock(shown, "json"));
    });
    if (conversation.children.get(id)) return nodes;
    const names = message.calls.map((call) => words.resultOf(call.function.name));
    const fields = names.map((name) => h("textarea", { rows: 2, "aria-label": name, placeholder: name }));
    const send = button(words.sendResults, () => acts.results(message, fields.map((field) => field.value)));
    return [nodes, h("div.results", fields, send)];
  }

  function foot() {
    const copy = textButton(words.copy, () => copied(copy, message.content));
    const other = role !== "tool" && textButton(words.edit, edit, { class: "link small edit" });
    const again = role === "assistant" && textButton(words.again, () => acts.again(message));
    return h("footer", branches(), h("span.acts", copy, other, again), figures(message));
  }

  function branches() {
    const all = conversation.siblings(message);
    if (all.length < 2) return null;
    const at = all.indexOf(id);
    const step = (name, title, to) => iconButton(name, title, () => acts.choose(to), { disabled: !to });
    const earlier = step("left", words.earlierBranch, all[at - 1]);
    const later = step("right", words.laterBranch, all[at + 1]);
    const place = h("span", `${at + 1} / ${all.length}`);
    return h("span.branches", { role: "group", "aria-label": words.branches }, earlier, place, later);
  }

  function edit() {
    const rows = Math.min(16, message.content.split("\n").length + 1);
    const field = h("textarea", { rows, "aria-label": words.edit, value: message.content });
    const leave = () => {
      draw();
      node.querySelector(".edit").focus();
    };
    const save = () => (field.value.trim() ? acts.edit(message, field.value) : leave());
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") leave();
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
      event.stopPropagation();
    });
    const done = button(role === "user" ? words.sendEdited : words.keepEdited, save, { class: "button primary small" });
    fill(text, field, h("div.row", done, button(words.cancel, leave, { class: "button small" })));
    fill(after);
    field.focus();
  }

  draw();
  return { message, node, draw, update };
}

function figures({ stats, state, model, role }) {
  if (role !== "assistant") return null;
  const list = [model];
  if (stats) {
    const used = number((stats.prompt || 0) + (stats.tokens || 0));
    list.push(
      stats.rate && words.rate(rate(stats.rate)),
      stats.first && words.first(duration(stats.first)),
      stats.load > 0.05 && words.load(duration(stats.load)),
      stats.context ? words.used(used, number(stats.context)) : words.tokens(used),
      stats.reason === "length" && words.cut,
      stats.dropped && words.dropped(number(stats.dropped)),
      stats.warning,
    );
  }
  if (state === "stopped") list.push(words.stopped);
  return h("span.figures", list.filter(Boolean).join(" · "));
}

function fileNode({ name, text }) {
  const body = scrollable("pre", name);
  const title = h("summary", name, h("span.quiet", ` ${words.letters(number(text.length))}`));
  const details = h("details.file", title, body);
  details.addEventListener("toggle", () => (body.textContent = text), { once: true });
  return details;
}

const asJson = (text) => guarded(() => JSON.stringify(JSON.parse(text), null, 2));
