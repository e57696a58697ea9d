// The shell: the table of views, the router, the login.
//
// A view is a module with `mount(root, route, signal)`. It fills `root`; `route` is `{ view, path, query }` of
// `#/VIEW/PATH?QUERY` (`query` a URLSearchParams); `signal` is aborted when the view is left: pass it to every request,
// and stop timers by it. It may return a function that takes a later route of the same view, instead of being mounted
// anew. A view with `style` brings a sheet of its own.

import { get } from "./api.js";
import { fill, h } from "./dom.js";
import { keepKey, key, may, onWho, setWho, who } from "./session.js";
import { problemBox } from "./notices.js";
import { texts } from "./texts.js";

const VIEWS = [
  { name: "chat", role: "infer", load: () => import("./views/chat.js") },
  { name: "models", role: "infer", load: () => import("./views/models.js"), style: "panels.css" },
  { name: "fit", role: "operator", load: () => import("./views/fit.js"), style: "panels.css" },
  { name: "machine", role: "infer", load: () => import("./views/machine.js"), style: "panels.css" },
];

const main = document.getElementById("main");
let shown = null; // { name, leave: AbortController, update }

export function routeOf(hash) {
  const [, name = "", path = "", query = ""] = /^#\/?([a-z]*)\/?([^?]*)(?:\?(.*))?$/.exec(hash) || [];
  const view = VIEWS.some((each) => each.name === name) ? name : "chat";
  let plain = path;
  try {
    plain = decodeURIComponent(path);
  } catch {
    // a stray % is itself
  }
  return { view, path: plain, query: new URLSearchParams(query) };
}

async function show() {
  if (who() === null) return;
  const route = routeOf(location.hash);
  if (shown?.name === route.view && shown.update) return shown.update(route);
  shown?.leave.abort();
  const view = VIEWS.find((each) => each.name === route.view);
  const mine = { name: view.name, leave: new AbortController(), update: null };
  shown = mine;
  for (const link of document.querySelectorAll("[data-view]")) {
    const here = link.dataset.view === view.name;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${texts.views[view.name]} – lm`;
  const root = h("div.view", { id: `view-${view.name}` });
  fill(main, root);
  try {
    if (!may(view.role)) throw new Error(texts.login.notFor(who().role, view.role));
    if (view.style) await withStyle(view.style);
    const module = await view.load();
    const update = await module.mount(root, route, mine.leave.signal);
    mine.update = update ?? null;
  } catch (error) {
    if (shown === mine && error.name !== "AbortError") fill(root, h("div.page", {}, problemBox(error)));
  }
}

function withStyle(name) {
  const href = new URL(name, import.meta.url).href;
  if ([...document.styleSheets].some((sheet) => sheet.href === href)) return null;
  return new Promise((done) => document.head.append(h("link", { rel: "stylesheet", href, onload: done, onerror: done })));
}

// Ask the daemon who this is; the login field appears where it wants a key.
async function enter(problem = "") {
  try {
    const found = await get("/health");
    setWho("role" in found ? found : null);
    if (who() === null) askKey(key() ? texts.login.wrong : problem);
  } catch (error) {
    fill(main, h("div.page", {}, problemBox(error), h("p", {}, h("button.button", { onclick: () => enter() }, texts.retry))));
  }
}

function askKey(problem) {
  shown?.leave.abort();
  shown = null;
  const field = h("input", { type: "password", id: "key", autocomplete: "off", required: true, spellcheck: "false" });
  const submit = async (event) => {
    event.preventDefault();
    keepKey(field.value.trim());
    await enter();
  };
  const title = h("h1", {}, texts.login.title);
  const form = h(
    "form.login",
    { onsubmit: submit },
    title,
    h("p", {}, texts.login.why),
    h("label", { for: "key" }, texts.login.key),
    field,
    problem ? h("p.problem", { role: "alert" }, problem) : null,
    h("button.button.primary", { type: "submit" }, texts.login.enter),
    h("small", {}, texts.login.kept),
  );
  fill(main, form);
  field.focus();
}

function drawCaller() {
  const place = document.getElementById("caller");
  const known = who();
  for (const link of document.querySelectorAll("[data-view]")) {
    const view = VIEWS.find((each) => each.name === link.dataset.view);
    link.hidden = known === null || !may(view.role);
  }
  if (known === null) return fill(place);
  const leave = () => {
    keepKey("");
    setWho(null);
    enter();
  };
  fill(
    place,
    h("span.quiet", { title: `${known.caller}. ${texts.login.roles[known.role]}` }, key() ? known.role : ""),
    key() ? h("button.link", { type: "button", onclick: leave }, texts.login.leave) : null,
    h("span.quiet.version", { title: texts.version }, known.version),
  );
}

onWho((found) => {
  drawCaller();
  if (found === null) askKey("");
  else show();
});
addEventListener("hashchange", show);
for (const link of document.querySelectorAll("[data-view]")) link.textContent = texts.views[link.dataset.view];
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address belongs to the router
  main.focus();
});
enter();
