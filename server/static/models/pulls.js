// Pulls: begun, paused, taken up again, thrown away; each as a row with its phase, rate and the time that is left.
// The daemon goes on with a pull when the page is closed. Its progress comes with the daemon's events.

import { get, send, stream } from "../api.js";
import { button, fill, h } from "../dom.js";
import { bytes, duration, percent } from "../format.js";
import { tell, tellError } from "../notices.js";
import { keyed } from "../watch.js";
import { texts } from "../texts.js";

const words = texts.models;

// Bring a model in. Resolves once the daemon has taken it on, or throws its refusal; `ended` is called at its end.
export async function pull(model, ended = () => {}) {
  const lines = stream("POST", "/api/pull", { model, detach: true, stream: true });
  const first = await lines.next();
  const follow = async () => {
    let last = first.value ?? {};
    try {
      for await (const line of lines) last = line;
      if (last.status === "success") tell(words.here(last.name ?? model));
    } catch (error) {
      if (error.code !== "stopping") tellError(error);
    }
    ended();
  };
  follow();
}

export class Pulls {
  // `changed` is called when a pull has ended, so that lists are looked at again.
  constructor(changed) {
    this.changed = changed;
    this.paused = [];
    this.jobs = [];
    this.list = h("ul.pulls");
    this.node = h("section", { "aria-labelledby": "pulls-title", hidden: true }, h("h2", { id: "pulls-title" }, words.coming), this.list);
  }

  async refresh(signal) {
    this.paused = (await get("/lm/partials", signal)).partials;
    this.draw();
  }

  // The pulls of an event of the daemon.
  take(jobs) {
    const ended = this.jobs.some((job) => jobs.every((each) => each.source !== job.source));
    this.jobs = jobs;
    this.draw();
    if (ended) this.changed();
  }

  draw() {
    const running = new Set(this.jobs.map((job) => job.source));
    const rows = [...this.jobs.map((job) => ({ ...job, active: true })), ...this.paused.filter((row) => !running.has(row.source) && !row.active)];
    this.node.hidden = rows.length === 0;
    keyed(this.list, rows, (row) => row.source, (row) => this.row(row));
  }

  row({ source }) {
    const bar = h("progress", { "aria-label": words.progress(source) });
    const phase = h("span", { role: "status" });
    const figures = h("span.quiet.number");
    const acts = h("span.row");
    const problem = h("p.small.bad", { role: "alert" });
    const head = h("div.row.spread", {}, h("b.name", {}, source), acts);
    const node = h("li.pull", {}, head, bar, h("div.row.spread.small", {}, phase, figures), problem);
    let shown = null;
    const update = (row) => {
      const share = row.total ? row.completed / row.total : null;
      if (share === null) bar.removeAttribute("value");
      else bar.value = share;
      bar.hidden = share === null && !row.active;
      const status = row.active ? row.status || words.starting : words.paused;
      if (phase.textContent !== status) phase.textContent = status;
      figures.textContent = figuresOf(row, share);
      problem.textContent = row.failed || "";
      if (shown !== row.active) fill(acts, ...(row.active ? [this.pauser(source)] : [this.resumer(source), this.remover(source)]));
      shown = row.active;
    };
    return { node, update };
  }

  pauser = (source) => button(words.pause, () => this.act(() => send("POST", "/lm/stop", { model: source })), { class: "button small", "aria-label": `${words.pause} ${source}` });
  resumer = (source) => button(words.resume, () => this.begin(source), { class: "button small", "aria-label": `${words.resume} ${source}` });
  remover = (source) =>
    button(words.throwAway, () => this.act(() => send("DELETE", "/api/delete", { model: source, partial: true })), { class: "button small danger", "aria-label": `${words.throwAway} ${source}` });

  begin(source) {
    return this.act(() => pull(source, () => this.changed()));
  }

  // Do something, tell what is wrong with it, and look again.
  async act(work) {
    try {
      await work();
      this.changed();
      return true;
    } catch (error) {
      tellError(error);
      this.changed();
      return false;
    }
  }
}

function figuresOf(row, share) {
  if (share === null) return "";
  const left = row.active && row.eta !== null && row.eta !== undefined ? words.left(duration(row.eta)) : null;
  const rate = row.active && row.rate ? `${bytes(row.rate)}/s` : null;
  return [percent(share), `${bytes(row.completed)} / ${bytes(row.total)}`, rate, left].filter(Boolean).join(" · ");
}
