// The shell: the table of views, the router, the login.
//
// A view has `mount(root, { path, query }, signal)` for `#/VIEW/PATH?QUERY`. `signal` is aborted when the view is left:
// requests and timers end by it. It may return a function that takes a later route of the same view.

import {
  button, fill, forgetKey, form, get, guarded, h, keepKey, key, labelled, may, onWho, problemBox, setWho, submitButton,
  tell, textButton, texts, who,
} from "./kit.js";

// Each view, and the role that it takes.
const VIEWS = { chat: "infer", models: "infer", fit: "operator", machine: "infer" };
const main = document.getElementById("main");
const caller = document.getElementById("caller");
const link = (view) => h("a", { href: `#/${view}`, "data-view": view, hidden: true }, texts.views[view]);
const links = Object.keys(VIEWS).map(link);
document.querySelector("nav").append(...links);
let shown = null; // { view, leave: AbortController, update }

function routeOf(hash) {
  const [, name, path = "", query = ""] = /^#\/?([a-z]*)\/?([^?]*)(?:\?(.*))?$/.exec(hash) || [];
  const plain = guarded(() => decodeURIComponent(path)) ?? path; // a stray % is itself
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
  for (const told of document.querySelectorAll(".notice-error")) told.remove(); // it was about the view before
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
  const submit = async () => {
    keepKey(field.value.trim());
    await enter();
    if (who()) tell(`${who().role}: ${texts.login.roles[who().role]}`);
  };
  const { login } = texts;
  const wrong = problem && h("p.problem", { role: "alert" }, problem);
  const parts = [h("h1", login.title), h("p", login.why), labelled(login.key, field), wrong, submitButton(login.enter)];
  fill(main, form("login", submit, parts, h("small", login.kept)));
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
