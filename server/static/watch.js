// What the daemon tells of itself once a second: events "history" and "now", and "lost" until it answers again.

import { stream } from "./kit.js";

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
