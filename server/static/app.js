// The shell: the table of views, the router, the login.
//
// A view is a module with `mount(root, route, signal)`. It fills `root`; `route` is `{ view, path, query }` of
// `#/VIEW/PATH?QUERY` (`query` a URLSearchParams); `signal` is aborted when the view is left: pass it to every request,
// and stop timers by it. It may return a function that takes a later route of the same view.

import { get } from "./api.js";
import { button, fill, form, h, labelled, submitButton, textButton } from "./dom.js";
import { forgetKey, keepKey, key, may, onWho, setWho, who } from "./session.js";
import { problemBox } from "./notices.js";
import { texts } from "./texts.js";

// Each view, and the role that it takes.
const VIEWS = { chat: "infer", models: "infer", fit: "operator", machine: "infer" };
const main = document.getElementById("main");
const caller = document.getElementById("caller");
const links = Object.keys(VIEWS).map((view) => h("a", { href: `#/${view}`, "data-view": view, hidden: true }, texts.views[view]));
document.querySelector("nav").append(...links);
let shown = null; // { view, leave: AbortController, update }

function routeOf(hash) {
  const [, name, path = "", query = ""] = /^#\/?([a-z]*)\/?([^?]*)(?:\?(.*))?$/.exec(hash) || [];
  let plain = path;
  try {
    plain = decodeURIComponent(path);
  } catch {
    // a stray % is itself
  }
  return { view: Object.hasOwn(VIEWS, name) ? name : "chat", path: plain, query: new URLSearchParams(query) };
}

async function show() {
  if (who() === null) return;
  const route = routeOf(location.hash);
  const { view } = route;
  if (shown?.view === view && shown.update) return shown.update(route);
  shown?.leave.abort();
  const mine = { view, leave: new AbortController(), update: null };
  shown = mine;
  for (const link of links) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${texts.views[view]} – lm`;
  const root = h("div.view", { id: `view-${view}` });
  fill(main, root);
  try {
    if (!may(VIEWS[view])) throw new Error(texts.login.notFor(who().role, VIEWS[view]));
    const module = await import(`./views/${view}.js`);
    mine.update = await module.mount(root, route, mine.leave.signal);
  } catch (error) {
    if (shown === mine && error.name !== "AbortError") fill(root, h("div.page", problemBox(error)));
  }
}

// Ask the daemon who this is; the login field appears where it wants a key.
async function enter() {
  try {
    const found = await get("/health");
    setWho("role" in found ? found : null);
    if (who() === null) askKey(key() ? texts.login.wrong : "");
  } catch (error) {
    fill(main, h("div.page", problemBox(error), button(texts.retry, enter)));
  }
}

function askKey(problem) {
  shown?.leave.abort();
  shown = null;
  const field = h("input", { type: "password", id: "key", autocomplete: "off", required: true, spellcheck: "false" });
  const submit = () => {
    keepKey(field.value.trim());
    enter();
  };
  const { login } = texts;
  const wrong = problem && h("p.problem", { role: "alert" }, problem);
  const title = [h("h1", login.title), h("p", login.why)];
  fill(main, form("login", submit, title, labelled(login.key, field), wrong, submitButton(login.enter), h("small", login.kept)));
  field.focus();
}

function drawCaller() {
  const known = who();
  for (const link of links) link.hidden = !may(VIEWS[link.dataset.view]);
  if (known === null) return fill(caller);
  const role = h("span.quiet", { title: `${known.caller}. ${texts.login.roles[known.role]}` }, known.role);
  const version = h("span.quiet.version", { title: texts.version }, known.version);
  return fill(caller, key() && [role, textButton(texts.login.leave, leave)], version);
}

function leave() {
  forgetKey();
  enter();
}

onWho(() => {
  drawCaller();
  if (who() === null) askKey("");
  else show();
});
addEventListener("hashchange", show);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address belongs to the router
  main.focus();
});
enter();
