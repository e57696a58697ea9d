// Pulls: begun, paused, taken up again, thrown away. The daemon goes on with one when the page is closed.

import { pull } from "./acts.js";
import { attempt, bytes, duration, fill, get, h, keyed, percent, rowButton, say, send, texts } from "../kit.js";

const words = texts.models;

// `changed` is called when a pull has begun or ended, so that lists are looked at again.
export function pullList(changed) {
  let paused = [];
  let jobs = [];
  const list = h("ul.pulls");
  const node = h("section", { "aria-label": words.coming, hidden: true }, h("h2", words.coming), list);

  async function act(work) {
    const well = await attempt(work);
    changed();
    return well;
  }
  const begin = (source) => act(() => pull(source, changed));

  function draw() {
    const running = new Set(jobs.map((job) => job.source));
    const rest = paused.filter((row) => !running.has(row.source) && !row.active);
    const rows = [...jobs.map((job) => ({ ...job, active: true })), ...rest];
    node.hidden = !rows.length;
    keyed(list, rows, (row) => row.source, pullRow);
  }

  function pullRow({ source }) {
    const bar = h("progress", { "aria-label": words.progress(source) });
    const phase = h("span", { role: "status" });
    const figures = h("span.quiet.number");
    const acts = h("span.row");
    const problem = h("p.small.bad", { role: "alert" });
    const head = h("div.row.spread", h("b.name", source), acts);
    const drop = { model: source, partial: true };
    const pause = rowButton(words.pause, source, () => act(() => send("POST", "/lm/stop", { model: source })));
    const resume = rowButton(words.resume, source, () => begin(source));
    const remove = rowButton(words.throwAway, source, () => act(() => send("DELETE", "/api/delete", drop)), "danger");
    let shown = null;
    const update = (row) => {
      const share = row.total ? row.completed / row.total : null;
      if (share === null) bar.removeAttribute("value");
      else bar.value = share;
      bar.hidden = share === null && !row.active;
      say(phase, row.active ? row.status || words.starting : words.paused);
      figures.textContent = figuresOf(row, share);
      say(problem, row.failed || "");
      if (shown !== row.active) fill(acts, row.active ? pause : [resume, remove]);
      shown = row.active;
    };
    return { node: h("li.pull", head, bar, h("div.row.spread.small", phase, figures), problem), update };
  }

  async function refresh(signal) {
    paused = (await get("/lm/partials", signal)).partials;
    draw();
  }

  // The pulls of an event of the daemon.
  function take(now) {
    const ended = jobs.some((job) => now.every((each) => each.source !== job.source));
    jobs = now;
    draw();
    if (ended) changed();
  }

  return { node, begin, refresh, take };
}

function figuresOf(row, share) {
  if (share === null) return "";
  const rate = row.active && row.rate && `${bytes(row.rate)}/s`;
  const left = row.active && Number.isFinite(row.eta) && words.left(duration(row.eta));
  return [percent(share), `${bytes(row.completed)} / ${bytes(row.total)}`, rate, left].filter(Boolean).join(" · ");
}
