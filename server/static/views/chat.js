// The chat: conversations at the left, messages and the box in the middle, settings at the right.
// `#/chat` is a new one, `#/chat?id=ID` one that is kept, `#/chat/MODEL?q=TEXT` a new one with its model and its text.

import { answer, running } from "../chat/answering.js";
import { Composer } from "../chat/composer.js";
import { MessageView } from "../chat/message.js";
import { Picker } from "../chat/picker.js";
import { settingsForm } from "../chat/settings.js";
import { Sidebar } from "../chat/sidebar.js";
import { open, save } from "../chat/store.js";
import { Conversation } from "../chat/tree.js";
import { fill, h, iconButton } from "../dom.js";
import { tellError } from "../notices.js";
import { texts } from "../texts.js";

const words = texts.chat;
const AT_ONCE = 40; // messages that are made when a conversation is opened; the rest when somebody looks for them
const NEAR = 80; // pixels from the end within which new text is followed

export async function mount(root, route, signal) {
  const view = new ChatView(root, signal);
  await view.picker.refresh(signal);
  await view.go(route);
  return (later) => view.go(later);
}

class ChatView {
  constructor(root, signal) {
    this.signal = signal;
    this.views = [];
    this.pinned = true; // whether the end is followed
    this.top = 0;
    this.following = null; // how to stop listening to an answer
    this.picker = new Picker(() => this.modelChosen());
    this.sidebar = new Sidebar((id) => id === this.conversation.head.id && (location.hash = "#/chat"));
    this.composer = new Composer((text, files) => this.ask(text, files), () => this.stop());
    this.log = h("div.log", { role: "log", "aria-label": words.messages });
    this.scroller = h("div.scroll", { tabindex: "0", role: "region", "aria-label": words.messages }, this.log);
    this.side = h("aside.drawer", { hidden: true, "aria-label": texts.settings.title });
    const bar = h("div.chat-bar", {}, this.menu(), this.picker.node, h("span.grow"), iconButton("sliders", texts.settings.title, () => this.toggleSettings(), { "aria-expanded": "false" }));
    this.slidersButton = bar.lastElementChild;
    this.node = h("div.chat", {}, this.sidebar.node, h("section.talk", {}, h("h1.offscreen", {}, texts.views.chat), bar, this.scroller, this.composer.node), this.side);
    this.composer.dropsOn(this.node);
    this.root = root; // gets it when a question can be answered
    document.addEventListener("keydown", (event) => this.key(event), { signal });
    this.scroller.addEventListener("scroll", () => this.scrolled());
    const grown = new ResizeObserver(() => this.pinned && this.toEnd());
    grown.observe(this.log);
    addEventListener("focus", () => this.picker.refresh(signal).catch(() => {}), { signal });
    signal.addEventListener("abort", () => {
      this.following?.();
      grown.disconnect();
    });
  }

  menu() {
    return iconButton("menu", words.conversations, () => this.node.classList.toggle("with-list"), { class: "icon-button menu" });
  }

  // Show what an address names.
  async go(route) {
    this.node.classList.remove("with-list");
    const kept = route.query.get("id") && (await open(route.query.get("id")).catch(() => null));
    const live = running(route.query.get("id"))?.conversation;
    this.conversation = live ?? kept ?? Conversation.begin("", structuredClone(this.conversation?.head.settings ?? {}));
    if (route.query.get("id") && !live && !kept) tellError({ message: words.gone, hint: words.goneHint });
    this.picker.choose(route.path || this.conversation.head.model);
    if (route.path && !this.picker.find(route.path)) tellError({ message: words.notHere(route.path), hint: words.notHereHint });
    this.composer.text = route.query.get("q") ?? "";
    if (!this.node.isConnected) this.root.append(this.node);
    this.draw();
    this.drawSettings();
    this.follow(running(this.conversation.head.id));
    await this.sidebar.draw(this.conversation.head.id);
    this.composer.field.focus({ preventScroll: true });
  }

  // The path that is chosen: its end at once, what is before when it comes into sight.
  draw() {
    const path = this.conversation.path();
    this.views = [];
    fill(this.log);
    if (!path.length) return fill(this.log, this.welcome());
    this.earlier = path.slice(0, -AT_ONCE);
    this.log.append(...path.slice(-AT_ONCE).map((message) => this.made(message)));
    if (this.earlier.length) this.log.prepend(this.opener());
    this.toEnd();
  }

  made(message) {
    const acts = { edit: (...all) => this.edit(...all), again: (...all) => this.again(...all), choose: (id) => this.choose(id), results: (...all) => this.results(...all) };
    const view = new MessageView(message, this.conversation, acts);
    this.views.push(view);
    return view.node;
  }

  opener() {
    const more = h("button.link.small", { type: "button" }, words.earlier(this.earlier.length));
    const show = () => {
      watch.disconnect();
      const height = this.scroller.scrollHeight - this.scroller.scrollTop;
      const nodes = this.earlier.splice(-AT_ONCE).map((message) => this.made(message));
      more.replaceWith(...(this.earlier.length ? [this.opener()] : []), ...nodes);
      this.scroller.scrollTop = this.scroller.scrollHeight - height;
    };
    more.addEventListener("click", show);
    const watch = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && show(), { root: this.scroller });
    requestAnimationFrame(() => watch.observe(more)); // once the end has been scrolled to
    return more;
  }

  welcome() {
    const none = !this.picker.models.length;
    const hint = none ? h("p", {}, words.noModelHint, " ", h("a", { href: "#/models" }, texts.views.models)) : h("p.quiet", {}, words.start);
    return h("div.welcome", {}, h("h2", {}, none ? words.noModel : words.welcome), hint);
  }

  // A question; false where nobody could answer it.
  ask(text, files) {
    if (!this.picker.value) return tellError({ message: words.noModel, hint: words.noModelHint });
    const { head } = this.conversation;
    const question = this.conversation.add(head.leaf, { role: "user", content: text, ...(files.length ? { files } : {}) });
    history.replaceState(null, "", `#/chat?id=${head.id}`);
    this.answer(question);
    return true;
  }

  // Let the model answer a message, with the settings as they are.
  async answer(question, ...others) {
    const { head } = this.conversation;
    head.model = this.picker.value;
    const form = head.settings.format?.trim() ? { form: true } : {};
    const message = this.conversation.add(question?.id ?? null, { role: "assistant", model: head.model, state: "coming", ...form });
    await save(this.conversation, [...others, question, message].filter(Boolean)).catch(tellError);
    const run = answer(this.conversation, message);
    this.draw();
    this.follow(run);
    await this.sidebar.draw(head.id);
  }

  edit(message, text) {
    if (this.composer.busy) return;
    const { role, parent, files, model } = message;
    const other = this.conversation.add(parent ?? null, { role, content: text, ...(files ? { files } : {}), ...(model ? { model } : {}) });
    if (role === "user") this.answer(other);
    else this.kept([other]);
  }

  again(message) {
    if (!this.composer.busy) this.answer(this.conversation.messages.get(message.parent));
  }

  results(message, given) {
    if (this.composer.busy) return;
    let parent = message.id;
    const all = message.calls.map((call, at) => {
      const result = this.conversation.add(parent, { role: "tool", content: given[at], tool: { name: call.function.name, id: call.id } });
      parent = result.id;
      return result;
    });
    this.answer(all.at(-1), ...all);
  }

  choose(id) {
    if (this.composer.busy) return;
    this.conversation.select(id);
    this.kept([]);
  }

  kept(messages) {
    save(this.conversation, messages).catch(tellError);
    this.draw();
  }

  // Show an answer as it comes, once for each frame.
  follow(run) {
    this.following?.();
    this.composer.busy = Boolean(run);
    if (!run) return;
    const view = this.views.find((each) => each.message === run.message);
    let frame = 0;
    const paint = () => {
      frame = 0;
      if (run.done) view?.draw();
      else view?.update();
      if (run.done) this.ended(run);
    };
    const stop = run.listen(() => (frame ||= requestAnimationFrame(paint)));
    this.following = () => {
      stop();
      cancelAnimationFrame(frame);
    };
  }

  ended(run) {
    this.following?.();
    this.composer.busy = false;
    this.sidebar.draw(this.conversation.head.id);
    this.picker.refresh(this.signal).catch(() => {});
  }

  stop() {
    running(this.conversation.head.id)?.stop();
  }

  // The end is followed until somebody scrolls away from it. (What is above it grows too, when it is first drawn.)
  scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const near = scrollHeight - scrollTop - clientHeight < NEAR;
    if (near || scrollTop < this.top) this.pinned = near;
    this.top = scrollTop;
  }

  toEnd() {
    this.pinned = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  modelChosen() {
    this.conversation.head.model = this.picker.value;
  }

  toggleSettings() {
    this.side.hidden = !this.side.hidden;
    this.slidersButton.setAttribute("aria-expanded", String(!this.side.hidden));
    (this.side.hidden ? this.slidersButton : this.side.querySelector("textarea")).focus();
  }

  drawSettings() {
    const changed = () => this.conversation.messages.size && save(this.conversation, []).catch(tellError);
    fill(this.side, settingsForm(this.conversation.head.settings, changed, () => this.toggleSettings()));
  }

  key(event) {
    const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
    if (event.key === "Escape" && this.composer.busy) this.stop();
    else if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      this.composer.field.focus();
    }
  }
}
