// The daemon's routes, as the page calls them: the key in a header, errors as a sentence with a hint.
//
//   const { models } = await get("/api/tags");
//   await send("POST", "/api/delete", { model });                    // method, path, body
//   for await (const line of stream("POST", "/api/pull", { model }, signal)) …      // NDJSON or server-sent events
//
// All three throw ApiError: `message` is a sentence, `hint` another one or "", `status` 0 where nobody answered. A line
// of a stream that has `error` is thrown too. `body` is the whole answer of a refused request. `signal` of an AbortController ends a request; that throws AbortError.

import { forgetKey, key } from "./session.js";
import { chunksOf, events, lines } from "./stream.js";
import { texts } from "./texts.js";

// The page may be shown below a path of a proxy.
const BASE = new URL("../", import.meta.url);

export class ApiError extends Error {
  constructor(message, hint = "", status = 0, code = "") {
    super(message);
    this.hint = hint;
    this.status = status;
    this.code = code;
  }
}

export async function get(path, signal) {
  return (await call("GET", path, undefined, signal)).json();
}

export async function send(method, path, body = {}, signal) {
  return (await call(method, path, body, signal)).json();
}

export async function* stream(method, path, body, signal) {
  const response = await call(method, path, body, signal);
  const sse = (response.headers.get("Content-Type") || "").startsWith("text/event-stream");
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

async function call(method, path, body, signal) {
  const headers = key() ? { Authorization: `Bearer ${key()}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const options = { method, headers, signal, cache: "no-store", credentials: "omit", referrerPolicy: "no-referrer" };
  let response;
  try {
    response = await fetch(new URL(path.replace(/^\//, ""), BASE), {
      ...options,
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(texts.errors.unreachable, texts.errors.unreachableHint);
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  const found = Object.assign(problem(answer, response.status), { body: answer });
  if (response.status === 401) forgetKey();
  throw found;
}

// An error of any dialect.
function problem(body, status) {
  const error = body.error ?? {};
  if (typeof error === "string") return new ApiError(error, body.hint || "", status, body.code || "");
  return new ApiError(error.message || `${texts.errors.status} ${status}`, "", status, String(error.code || ""));
}
