// The daemon's routes: the key in a header, errors as a sentence with a hint.
//
//   await send("POST", "/api/delete", { model })                                    // method, path, body, signal
//   for await (const line of stream("POST", "/api/pull", { model }, signal)) …      // NDJSON or server-sent events
//
// They throw ApiError: `status` is 0 where nobody answered, `body` the answer of a refused request. A line of a stream
// that has `error` is thrown too. An aborted signal throws AbortError.

import { forgetKey, key } from "./session.js";
import { chunksOf, events, lines } from "./stream.js";
import { texts } from "./texts.js";

// The page may be shown below a path of a proxy.
const BASE = new URL("../", import.meta.url);
const AGAIN_MS = 2000;

export class ApiError extends Error {
  constructor(message, hint = "", more = {}) {
    super(message);
    Object.assign(this, { hint, status: 0, ...more });
  }
}

export const get = async (path, signal) => (await call("GET", path, undefined, signal)).json();
export const send = async (method, path, body, signal) => (await call(method, path, body, signal)).json();

export async function* stream(method, path, body, signal) {
  const response = await call(method, path, body, signal);
  const sse = response.headers.get("Content-Type")?.startsWith("text/event-stream");
  try {
    for await (const item of (sse ? events : lines)(chunksOf(response))) {
      if (item.error) throw problem(item, 0);
      yield item;
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
    throw new ApiError(texts.errors.broken, texts.errors.brokenHint);
  }
}

// What the daemon tells of itself once a second: events "history" and "now", and "lost" until it answers again.
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

async function call(method, path, body, signal) {
  const headers = key() ? { Authorization: `Bearer ${key()}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  const options = { method, headers, signal, cache: "no-store", credentials: "omit", referrerPolicy: "no-referrer" };
  let response;
  try {
    response = await fetch(new URL(path.slice(1), BASE), { ...options, body: JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(texts.errors.unreachable, texts.errors.unreachableHint);
  }
  if (response.ok) return response;
  if (response.status === 401) forgetKey();
  throw problem(await response.json().catch(() => ({})), response.status);
}

// An error of any dialect.
function problem(body, status) {
  const error = body.error ?? {};
  const text = typeof error === "string" ? error : error.message;
  return new ApiError(text || `${texts.errors.status} ${status}`, body.hint, { status, body, code: body.code });
}
