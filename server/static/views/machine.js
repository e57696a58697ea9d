// The machine at work (`#/machine`).

import { memoryPanel } from "../machine/memory.js";
import { loadedPanel, requestsPanel } from "../machine/requests.js";
import {
  ago, attempt, fill, filling, folded, get, h, may, panel, rate, rowButton, say, scrollable, tellError, texts, watch,
} from "../kit.js";

const words = texts.machine;
const LOG_MS = 2000;

export function mount(root, route, signal) {
  const memory = memoryPanel();
  const loaded = loadedPanel();
  const requests = requestsPanel();
  const speed = h("p.quiet", { role: "status" }, words.connecting);
  const head = h("div.row.spread", h("h1", texts.views.machine), speed);
  const more = [may("operator") && doctor(signal), may("admin") && log(signal)];
  root.append(h("div.page", head, memory.node, loaded.node, requests.node, more));

  const look = async () => requests.take((await get("/lm/activity", signal)).requests);

  async function follow() {
    let before = "";
    for await (const event of watch(signal)) {
      if (event.event === "history") memory.past(event);
      else if (event.event === "lost") say(speed, event.error.message);
      else {
        const { models } = event;
        memory.take(event);
        loaded.take(models);
        const total = models.reduce((sum, model) => sum + model.tokens_per_second, 0);
        say(speed, total ? words.total(rate(total)) : models.length ? words.idle : words.nothingLoaded);
        const busy = JSON.stringify(models.map((model) => [model.name, model.pending, model.running]));
        // Requests are looked at while some are under way, and once after that; a rare look finds the refused ones.
        const due = busy !== before || models.some((model) => model.pending) || Math.round(event.at) % 5 === 0;
        if (due) attempt(look);
        before = busy;
      }
    }
  }
  follow().catch(tellError);
}

function doctor(signal) {
  const list = h("div", { "aria-live": "polite" }, h("p.quiet", words.examining));
  const when = h("span.small.quiet");
  const again = rowButton(words.again, words.doctor, () => examine("?anew=true"));
  async function examine(query) {
    again.disabled = true;
    await filling(list, async () => {
      const { findings, at } = await get(`/lm/doctor${query}`, signal);
      const rows = (state) => findings.filter((each) => each.state === state).map(finding);
      const well = rows("ok");
      const rest = h("details", h("summary", words.wellAll(well.length)), h("ul.plain.findings", well));
      fill(list, h("ul.plain.findings", rows("fail"), rows("warn")), rest);
      when.textContent = ago(at * 1000);
    });
    again.disabled = false;
  }
  examine("");
  return panel(words.doctor, h("div.row", when, again), list);
}

function finding({ check, state, found, hint }) {
  const kind = { ok: "good", warn: "warn", fail: "bad" }[state];
  const what = h("div", h("b", check), " ", found, hint && h("div.small.quiet", `${texts.hint} ${hint}`));
  return h("li", h(`span.badge.${kind}`, words.findings[state]), what);
}

// The end of the log, looked at every two seconds while it is open.
function log(signal) {
  const lines = scrollable("pre.log-lines", words.log);
  const details = folded(words.log, lines);
  async function read() {
    if (!details.open || signal.aborted) return;
    await filling(lines, async () => {
      const found = (await get("/lm/log?lines=300", signal)).lines;
      const atEnd = lines.scrollTop + lines.clientHeight >= lines.scrollHeight - 8;
      say(lines, found.length ? found.join("\n") : words.noLog);
      if (atEnd) lines.scrollTop = lines.scrollHeight;
    });
    setTimeout(read, LOG_MS);
  }
  details.addEventListener("toggle", read);
  return details;
}
