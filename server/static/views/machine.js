// The machine at work: memory over the last ten minutes, loaded models and their queues, recent requests, what the
// doctor finds, the end of the log.

import { get } from "../api.js";
import { button, fill, h } from "../dom.js";
import { ago, rate } from "../format.js";
import { Memory } from "../machine/memory.js";
import { Loaded, Requests } from "../machine/requests.js";
import { problemBox, tellError } from "../notices.js";
import { may } from "../session.js";
import { watch } from "../watch.js";
import { texts } from "../texts.js";

const words = texts.machine;
const LOG_MS = 2000;

export function mount(root, route, signal) {
  const memory = new Memory();
  const loaded = new Loaded();
  const requests = new Requests();
  const speed = h("p.quiet", { role: "status" }, words.connecting);
  const more = [may("operator") ? doctor(signal) : null, may("admin") ? log(signal) : null];
  root.append(h("div.page", {}, h("div.row.spread", {}, h("h1", {}, texts.views.machine), speed), memory.node, loaded.node, requests.node, ...more.filter(Boolean)));
  follow({ memory, loaded, requests, speed }, signal);
}

async function follow({ memory, loaded, requests, speed }, signal) {
  let before = "";
  for await (const event of watch(signal)) {
    if (event.event === "history") memory.past(event);
    else if (event.event === "lost") say(speed, event.error.message);
    else {
      memory.take(event);
      loaded.take(event.models);
      const total = event.models.reduce((sum, model) => sum + model.tokens_per_second, 0);
      say(speed, total ? words.total(rate(total)) : event.models.length ? words.idle : words.nothingLoaded);
      const busy = JSON.stringify(event.models.map((model) => [model.name, model.pending, model.running]));
      // Requests are looked at while some are under way, and once after that; a rare look finds the refused ones.
      if (busy !== before || event.models.some((model) => model.pending) || Math.round(event.at) % 5 === 0) look(requests, signal);
      before = busy;
    }
  }
}

async function look(requests, signal) {
  try {
    requests.take((await get("/lm/activity", signal)).requests);
  } catch (error) {
    if (error.name !== "AbortError" && error.status) tellError(error);
  }
}

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function doctor(signal) {
  const list = h("div", { "aria-live": "polite" }, h("p.quiet", {}, words.examining));
  const when = h("span.small.quiet");
  const again = button(words.again, () => examine("?anew=true"), { class: "button small" });
  async function examine(query = "") {
    again.disabled = true;
    try {
      const { findings, at } = await get(`/lm/doctor${query}`, signal);
      const rows = (...states) => findings.filter((each) => states.includes(each.state)).map(finding);
      const well = rows("ok");
      fill(list, h("ul.plain.findings", {}, ...rows("fail"), ...rows("warn")), h("details", {}, h("summary", {}, words.wellAll(well.length)), h("ul.plain.findings", {}, ...well)));
      when.textContent = ago(at * 1000);
    } catch (error) {
      if (error.name !== "AbortError") fill(list, problemBox(error));
    }
    again.disabled = false;
  }
  examine();
  return h("section.panel", { "aria-labelledby": "doctor-title" }, h("div.row.spread", {}, h("h2", { id: "doctor-title" }, words.doctor), h("div.row", {}, when, again)), list);
}

function finding({ check, state, found, hint }) {
  const kind = { ok: "good", warn: "warn", fail: "bad" }[state];
  return h("li", {}, h(`span.badge.${kind}`, {}, words.findings[state]), h("div", {}, h("b", {}, check), " ", found, hint ? h("div.small.quiet", {}, `${texts.hint} ${hint}`) : null));
}

// The end of the log, looked at every two seconds while it is open.
function log(signal) {
  const lines = h("pre.log-lines", { tabindex: "0", role: "region", "aria-label": words.log });
  const details = h("details.panel", {}, h("summary", {}, h("h2", {}, words.log)), lines);
  async function read() {
    if (!details.open || signal.aborted) return;
    try {
      const found = (await get("/lm/log?lines=300", signal)).lines;
      const text = found.length ? found.join("\n") : words.noLog;
      const atEnd = lines.scrollTop + lines.clientHeight >= lines.scrollHeight - 8;
      say(lines, text);
      if (atEnd) lines.scrollTop = lines.scrollHeight;
    } catch (error) {
      if (error.name !== "AbortError") say(lines, error.message);
    }
    setTimeout(read, LOG_MS);
  }
  details.addEventListener("toggle", read);
  return details;
}
