// Answers on their way. They belong to the page and not to its view: one that has begun goes on while another view is
// shown, and is kept as it comes.
//
//   const run = answer(conversation, message)      begins it; `message` grows
//   running(conversation.head.id)                  the run of a conversation, if there is one
//   run.listen(() => …)                            after each piece, and at the end (`run.done`)
//   run.stop()

import { ApiError, get, stream } from "../api.js";
import { texts } from "../texts.js";
import { save } from "./store.js";

const SAVE_MS = 1000;
const runs = new Map();

export const running = (id) => runs.get(id);

export function answer(conversation, message) {
  const run = new Run(conversation, message);
  runs.set(conversation.head.id, run);
  run.go();
  return run;
}

class Run {
  constructor(conversation, message) {
    this.conversation = conversation;
    this.message = message;
    this.done = false;
    this.began = performance.now();
    this.abort = new AbortController();
    this.listeners = new Set();
    this.saved = 0;
  }

  listen(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  stop() {
    this.abort.abort();
  }

  async go() {
    const { message } = this;
    try {
      const body = bodyOf(this.conversation, message);
      for await (const line of stream("POST", "/api/chat", body, this.abort.signal)) this.take(line);
      delete message.state;
    } catch (error) {
      message.state = "stopped";
      if (error.name !== "AbortError") message.error = { message: error.message, hint: error.hint || "" };
    }
    await this.withContext();
    this.done = true;
    runs.delete(this.conversation.head.id);
    await save(this.conversation, [message]).catch(() => {});
    for (const listener of this.listeners) listener();
  }

  take(line) {
    const { message } = this;
    const said = line.message || {};
    message.content += said.content || "";
    if (said.thinking) message.thinking = (message.thinking || "") + said.thinking;
    if (said.tool_calls) message.calls = [...(message.calls || []), ...said.tool_calls];
    if (!this.first && (said.content || said.thinking || said.tool_calls)) this.first = performance.now() - this.began;
    if (message.thinking && !message.thought && (said.content || said.tool_calls)) {
      message.thought = (performance.now() - this.began - this.first) / 1000;
    }
    if (line.done) message.stats = figures(line, this.first, performance.now() - this.began);
    const now = performance.now();
    if (now - this.saved > SAVE_MS) {
      this.saved = now;
      save(this.conversation, [message]).catch(() => {});
    }
    for (const listener of this.listeners) listener();
  }

  // How much of the context the conversation fills, by the model as it is loaded.
  async withContext() {
    const { stats, model } = this.message;
    if (!stats) return;
    const rows = (await get("/api/ps").catch(() => ({ models: [] }))).models;
    stats.context = rows.find((row) => row.name === model || row.name.startsWith(`${model}:`))?.context_length;
  }
}

function figures(line, first, all) {
  // The engine's own measure, and ours where it has none.
  const seconds = line.eval_duration > 1e6 ? line.eval_duration / 1e9 : (all - (first ?? all)) / 1000;
  return {
    tokens: line.eval_count,
    prompt: line.prompt_eval_count,
    cached: line.prompt_cached,
    rate: seconds > 0 ? line.eval_count / seconds : undefined,
    first: first === undefined ? undefined : first / 1000,
    load: line.load_duration / 1e9,
    reason: line.done_reason,
    warning: line.warning,
    dropped: line.truncated,
  };
}

// The request for a message: its settings are those of the conversation. Throws ApiError for JSON that is none.
function bodyOf(conversation, message) {
  const { system, options, think, format, tools } = conversation.head.settings;
  const body = { model: message.model, messages: conversation.turns(message.parent, system) };
  if (options && Object.keys(options).length) body.options = options;
  if (think === "on" || think === "off") body.think = think === "on";
  else if (think) body.think = think;
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
