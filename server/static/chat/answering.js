// Answers on their way. They belong to the page and not to its view: one that has begun goes on while another view is
// shown, and is kept as it comes. `run.listen(listener)` calls after each piece, and at the end (`run.done`).

import { save } from "./store.js";
import { ApiError, get, stream, texts } from "../kit.js";

const SAVE_MS = 1000;
const runs = new Map();

export const running = (id) => runs.get(id);

export function answer(conversation, message) {
  const abort = new AbortController();
  const listeners = new Set();
  const listen = (listener) => {
    listeners.add(listener);
    return () => listeners.delete(listener);
  };
  const run = { conversation, message, done: false, listen, stop: () => abort.abort() };
  const began = performance.now();
  const since = () => (performance.now() - began) / 1000;
  const kept = () => save(conversation, [message]).catch(() => {});
  const told = () => listeners.forEach((listener) => listener());
  let first;
  let saved = 0;

  function take(line) {
    const { content = "", thinking = "", tool_calls: calls } = line.message || {};
    message.content += content;
    if (thinking) message.thinking = (message.thinking || "") + thinking;
    if (calls) message.calls = [...(message.calls || []), ...calls];
    if (content || thinking || calls) first ??= since();
    if (message.thinking && (content || calls)) message.thought ??= since() - first;
    if (line.done) message.stats = figures(line, first, since());
    if (performance.now() - saved > SAVE_MS) {
      saved = performance.now();
      kept();
    }
    told();
  }

  async function go() {
    try {
      for await (const line of stream("POST", "/api/chat", bodyOf(conversation, message), abort.signal)) take(line);
      delete message.state;
    } catch (error) {
      message.state = "stopped";
      if (error.name !== "AbortError") message.error = { message: error.message, hint: error.hint || "" };
    }
    if (message.stats) message.stats.context = await contextOf(message.model);
    run.done = true;
    runs.delete(conversation.head.id);
    await kept();
    told();
  }

  runs.set(conversation.head.id, run);
  go();
  return run;
}

// How much context a model has, as it is loaded.
async function contextOf(model) {
  const { models } = await get("/api/ps").catch(() => ({ models: [] }));
  return models.find((row) => row.name === model || row.name.startsWith(`${model}:`))?.context_length;
}

function figures(line, first, all) {
  // The engine's own measure, and ours where it has none.
  const seconds = line.eval_duration > 1e6 ? line.eval_duration / 1e9 : all - (first ?? all);
  return {
    tokens: line.eval_count,
    prompt: line.prompt_eval_count,
    rate: seconds > 0 ? line.eval_count / seconds : undefined,
    first,
    load: line.load_duration / 1e9,
    reason: line.done_reason,
    warning: line.warning,
    dropped: line.truncated,
  };
}

// The request for a message: its settings are those of the conversation. Throws ApiError for JSON that is none.
function bodyOf(conversation, message) {
  const { system, options, think, format, tools } = conversation.head.settings;
  const body = { model: message.model, messages: conversation.turns(message.parent, system), options };
  if (think) body.think = { on: true, off: false }[think] ?? think;
  if (format?.trim()) body.format = format.trim() === "json" ? "json" : json(format, texts.settings.format);
  if (tools?.trim()) body.tools = [json(tools, texts.settings.tools)].flat();
  return body;
}

function json(text, label) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new ApiError(texts.settings.noJson(label, error.message), texts.settings.noJsonHint);
  }
}
