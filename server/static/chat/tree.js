// A conversation: a tree of messages, of which the path to one leaf is shown.
//
// A message: { id, parent, role, content, time } and, where there are such, thinking, calls, files, tool, model, stats,
// error, state ("coming", "stopped"), form. An edited question and another answer are siblings: nothing is lost.

// Ids sort by their time.
export const newId = () => Date.now().toString(36).padStart(9, "0") + Math.random().toString(36).slice(2, 10);

export class Conversation {
  constructor(head, messages = []) {
    this.head = head; // { id, title, model, settings, created, updated, leaf }
    this.messages = new Map();
    this.children = new Map(); // by the id of the parent, null for the first ones
    for (const message of [...messages].sort((one, other) => (one.id < other.id ? -1 : 1))) this.insert(message);
    if (!this.messages.has(head.leaf)) head.leaf = this.deepest(null);
  }

  static begin(model, settings) {
    const now = Date.now();
    return new Conversation({ id: newId(), title: "", model, settings, created: now, updated: now, leaf: null });
  }

  insert(message) {
    this.messages.set(message.id, message);
    const parent = message.parent ?? null;
    if (!this.children.has(parent)) this.children.set(parent, []);
    this.children.get(parent).push(message.id);
  }

  // From the first message to the leaf.
  path(leaf = this.head.leaf) {
    const found = [];
    const seen = new Set(); // an imported file may have a circle
    for (let at = this.messages.get(leaf); at && !seen.has(at.id); at = this.messages.get(at.parent)) {
      seen.add(at.id);
      found.push(at);
    }
    return found.reverse();
  }

  siblings = (message) => this.children.get(message.parent ?? null) || [];

  // A new message below `parent`; it is the leaf then.
  add(parent, fields) {
    const message = { id: newId(), parent, time: Date.now(), content: "", ...fields };
    this.insert(message);
    this.head.leaf = message.id;
    this.head.updated = message.time;
    if (!this.head.title && message.role === "user") this.head.title = titleOf(message);
    return message;
  }

  // Show the branch of a message, down to its newest end.
  select(id) {
    this.head.leaf = this.deepest(id);
  }

  deepest(id) {
    let at = id;
    for (let below = this.children.get(at); below?.length; below = this.children.get(at)) at = below.at(-1);
    return at;
  }

  // What the daemon is sent, up to a message: turns in the form of `/api/chat`.
  turns(leaf, system = "") {
    const found = system ? [{ role: "system", content: system }] : [];
    for (const message of this.path(leaf)) {
      if (message.error && !message.content) continue;
      const turn = { role: message.role, content: withFiles(message) };
      if (message.calls?.length) turn.tool_calls = message.calls;
      if (message.tool) Object.assign(turn, { tool_name: message.tool.name, tool_call_id: message.tool.id });
      found.push(turn);
    }
    return found;
  }
}

// The text of a question behind its files, each in a fence that no line of it closes.
function withFiles(message) {
  const parts = (message.files || []).map(({ name, text }) => {
    const longest = Math.max(2, ...(text.match(/`{3,}/g) || []).map((marks) => marks.length));
    const fence = "`".repeat(longest + 1);
    return `${name}\n${fence}\n${text}\n${fence}`;
  });
  return [...parts, message.content].filter(Boolean).join("\n\n");
}

function titleOf(message) {
  const text = (message.content || message.files?.[0]?.name || "").trim().replace(/\s+/g, " ");
  return text.length > 60 ? `${text.slice(0, 59)}…` : text;
}
