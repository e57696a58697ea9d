// What the daemon tells of itself once a second: events "history" and "now", and "lost" until it answers again.
//
//   for await (const event of watch(signal)) …

import { stream } from "./api.js";

const AGAIN_MS = 2000;

export async function* watch(signal) {
  while (!signal.aborted) {
    try {
      yield* stream("GET", "/lm/events", undefined, signal);
    } catch (error) {
      if (signal.aborted || error.status === 401 || error.status === 403) return;
      yield { event: "lost", error };
    }
    await new Promise((done) => setTimeout(done, AGAIN_MS));
  }
}
