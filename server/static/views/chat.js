// The chat: conversations at the left, messages and the box in the middle, settings at the right.
// `#/chat` is a new one, `#/chat?id=ID` one that is kept, `#/chat/MODEL?q=TEXT` a new one with its model and its text.

import { answer, running } from "../chat/answering.js";
import { composer } from "../chat/composer.js";
import { messageView } from "../chat/message.js";
import { modelPicker } from "../chat/picker.js";
import { settingsForm } from "../chat/settings.js";
import { sidebar } from "../chat/sidebar.js";
import { open, save } from "../chat/store.js";
import { Conversation } from "../chat/tree.js";
import { fill, h, iconButton, scrollable, tellError, textButton, texts } from "../kit.js";

const words = texts.chat;
const AT_ONCE = 40; // messages that are made when a conversation is opened; the rest when somebody looks for them
const NEAR = 80; // pixels from the end within which new text is followed

export async function mount(root, route, signal) {
  let conversation = Conversation.begin("", {});
  let views = [];
  let earlier = []; // messages that are not made yet
  let pinned = true; // whether the end is followed
  let top = 0;
  let unfollow = () => {};

  const picker = modelPicker(() => (conversation.head.model = picker.value));
  const list = sidebar((id) => id === conversation.head.id && (location.hash = "#/chat"));
  const box = composer(ask, () => running(conversation.head.id)?.stop());
  const log = h("div.log", { role: "log", "aria-label": words.messages });
  const scroller = scrollable("div.scroll", words.messages, log);
  scroller.addEventListener("scroll", scrolled);
  const side = h("aside.drawer", { hidden: true, "aria-label": texts.settings.title });
  const menu = iconButton("menu", words.conversations, () => node.classList.toggle("with-list"));
  menu.classList.add("menu");
  const sliders = iconButton("sliders", texts.settings.title, toggleSettings, { "aria-expanded": "false" });
  const bar = h("div.chat-bar", menu, picker.node, h("span.grow"), sliders);
  const talk = h("section.talk", h("h1.hidden", texts.views.chat), bar, scroller, box.node);
  const node = h("div.chat", list.node, talk, side);
  box.dropsOn(node);
  document.addEventListener("keydown", key, { signal });
  const refresh = () => picker.refresh(signal).catch(() => {});
  addEventListener("focus", refresh, { signal });
  const grown = new ResizeObserver(() => pinned && toEnd());
  grown.observe(log);
  signal.addEventListener("abort", () => {
    unfollow();
    grown.disconnect();
  });

  // Show what an address names.
  async function go({ path, query }) {
    const id = query.get("id");
    const kept = id && (running(id)?.conversation ?? (await open(id).catch(() => null)));
    if (id && !kept) tellError({ message: words.gone, hint: words.goneHint });
    conversation = kept || Conversation.begin("", structuredClone(conversation.head.settings));
    picker.choose(path || conversation.head.model);
    if (path && !picker.find(path)) tellError({ message: words.notHere(path), hint: words.notHereHint });
    box.field.value = query.get("q") ?? "";
    node.classList.remove("with-list");
    if (!node.isConnected) root.append(node); // now that a question can be answered
    draw();
    fill(side, settingsForm(conversation.head.settings, keepHead, toggleSettings));
    follow(running(conversation.head.id));
    box.field.focus({ preventScroll: true });
    await list.draw(conversation.head.id);
  }

  // The path that is chosen: its end at once, what is before when it comes into sight.
  function draw() {
    const path = conversation.path();
    views = [];
    earlier = path.slice(0, -AT_ONCE);
    fill(log, path.length ? path.slice(-AT_ONCE).map(made) : welcome());
    if (earlier.length) log.prepend(opener());
    toEnd();
  }

  function made(message) {
    const view = messageView(message, conversation, { edit, again, choose, results });
    views.push(view);
    return view.node;
  }

  function opener() {
    const more = textButton(words.earlier(earlier.length), show);
    function show() {
      watch.disconnect();
      const height = scroller.scrollHeight - scroller.scrollTop;
      const nodes = earlier.splice(-AT_ONCE).map(made);
      more.replaceWith(...(earlier.length ? [opener()] : []), ...nodes);
      scroller.scrollTop = scroller.scrollHeight - height;
    }
    const seen = (entries) => entries.some((entry) => entry.isIntersecting) && show();
    const watch = new IntersectionObserver(seen, { root: scroller });
    requestAnimationFrame(() => watch.observe(more)); // once the end has been scrolled to
    return more;
  }

  function welcome() {
    if (picker.value) return h("div.welcome", h("h2", words.welcome), h("p.quiet", words.start));
    return h("div.welcome", h("h2", words.noModel), h("a", { href: "#/models" }, words.noModelHint));
  }

  // A question; false where nobody could answer it.
  function ask(content, files) {
    if (!picker.value) return tellError({ message: words.noModel, hint: words.noModelHint });
    const { head } = conversation;
    const question = conversation.add(head.leaf, { role: "user", content, files });
    history.replaceState(null, "", `#/chat?id=${head.id}`);
    reply(question);
    return true;
  }

  // Let the model answer a message, with the settings as they are; `others` are to be kept too.
  async function reply(question, ...others) {
    const { head } = conversation;
    head.model = picker.value;
    const form = Boolean(head.settings.format?.trim());
    const fields = { role: "assistant", model: head.model, state: "coming", form };
    const message = conversation.add(question?.id ?? null, fields);
    await save(conversation, [...others, question, message].filter(Boolean)).catch(tellError);
    const run = answer(conversation, message);
    draw();
    follow(run);
    await list.draw();
  }

  function edit({ role, parent, files, model }, content) {
    if (box.busy) return;
    const other = conversation.add(parent, { role, content, files, model });
    if (role === "user") reply(other);
    else keep([other]);
  }

  function again(message) {
    if (!box.busy) reply(conversation.messages.get(message.parent));
  }

  function results(message, given) {
    if (box.busy) return;
    let parent = message.id;
    const all = message.calls.map(({ function: { name }, id }, at) => {
      const result = conversation.add(parent, { role: "tool", content: given[at], tool: { name, id } });
      parent = result.id;
      return result;
    });
    reply(all.at(-1), ...all);
  }

  function choose(id) {
    if (box.busy) return;
    conversation.select(id);
    keep([]);
  }

  function keep(messages) {
    save(conversation, messages).catch(tellError);
    draw();
  }

  function keepHead() {
    if (conversation.messages.size) save(conversation, []).catch(tellError);
  }

  // Show an answer as it comes, once for each frame.
  function follow(run) {
    unfollow();
    box.busy = Boolean(run);
    if (!run) return;
    const view = views.find((each) => each.message === run.message);
    let frame = 0;
    const paint = () => {
      frame = 0;
      if (!run.done) return view?.update();
      view?.draw();
      unfollow();
      box.busy = false;
      list.draw();
      refresh();
    };
    const stop = run.listen(() => (frame ||= requestAnimationFrame(paint)));
    unfollow = () => {
      stop();
      cancelAnimationFrame(frame);
    };
  }

  // The end is followed until somebody scrolls away from it. (What is above it grows too, when it is first drawn.)
  function scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = scroller;
    const near = scrollHeight - scrollTop - clientHeight < NEAR;
    if (near || scrollTop < top) pinned = near;
    top = scrollTop;
  }

  function toEnd() {
    pinned = true;
    scroller.scrollTop = scroller.scrollHeight;
  }

  function toggleSettings() {
    side.hidden = !side.hidden;
    sliders.setAttribute("aria-expanded", String(!side.hidden));
    (side.hidden ? sliders : side.querySelector("textarea")).focus();
  }

  function key(event) {
    const typing = event.target.matches("input, textarea, select");
    if (event.key === "Escape" && box.busy) running(conversation.head.id)?.stop();
    else if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      box.field.focus();
    }
  }

  await picker.refresh(signal);
  await go(route);
  return go;
}
