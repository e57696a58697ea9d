// What the daemon tells of itself once a second, and lists that are kept up to date without losing the focus.
//
//   for await (const event of watch(signal)) …      `event` is "history", "now", or "lost" until the daemon answers again
//   keyed(body, rows, (row) => row.name, (row) => ({ node, update }))

import { stream } from "./api.js";

const AGAIN_MS = 2000;

export async function* watch(signal) {
  while (!signal.aborted) {
    try {
      for await (const event of stream("GET", "/lm/events", undefined, signal)) yield event;
    } catch (error) {
      if (signal.aborted || error.status === 401 || error.status === 403) return;
      yield { event: "lost", error };
    }
    await new Promise((done) => setTimeout(done, AGAIN_MS));
  }
}

// Let `place` hold a node for each item, in this order; a node stays as long as its key does.
export function keyed(place, items, keyOf, make) {
  const before = place.kept ?? new Map();
  const now = new Map();
  for (const item of items) {
    const key = keyOf(item);
    const row = before.get(key) ?? make(item);
    row.update?.(item);
    now.set(key, row);
  }
  place.kept = now;
  const nodes = [...now.values()].map((row) => row.node);
  if (nodes.length !== place.childElementCount || nodes.some((node, at) => place.children[at] !== node)) place.replaceChildren(...nodes);
}

// Ask before something that cannot be taken back; true where it is confirmed.
export function confirmed(dialog) {
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      done(dialog.returnValue === "yes");
    });
  });
}
