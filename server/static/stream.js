// Streams of answers: chunks of bytes, as they come, to objects.

// Lines of JSON: one object for each line. A last line without its end counts too.
export async function* lines(chunks) {
  for await (const line of textLines(chunks)) if (line.trim()) yield JSON.parse(line);
}

// Server-sent events: one object for each `data:`, its `event:` under `event` where it has a name. `[DONE]` ends it.
export async function* events(chunks) {
  let name = "";
  let data = [];
  for await (const line of textLines(chunks)) {
    if (line === "") {
      if (data.length) {
        const text = data.join("\n");
        if (text === "[DONE]") return;
        const value = JSON.parse(text);
        yield name ? { event: name, ...value } : value;
      }
      name = "";
      data = [];
    } else if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
    else if (line.startsWith("event:")) name = line.slice(6).trim();
  }
}

async function* textLines(chunks) {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of chunks) {
    rest += decoder.decode(chunk, { stream: true });
    const parts = rest.split("\n");
    rest = parts.pop();
    for (const part of parts) yield part.endsWith("\r") ? part.slice(0, -1) : part;
  }
  rest += decoder.decode();
  if (rest) yield rest;
}

// The chunks of a response's body; leaving the loop early closes the connection, and so ends the answer.
export async function* chunksOf(response) {
  const reader = response.body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
