// Markdown and streams without a browser: `node --test`, called by test_scripts.py.

import assert from "node:assert/strict";
import { test } from "node:test";
import { inline, parse } from "../../server/static/markdown.js";
import { events, lines } from "../../server/static/stream.js";

const bare = (block) => {
  const { from, ...rest } = block;
  return rest;
};
const one = (text) => bare(parse(text)[0]);
const strong = (...parts) => ({ type: "strong", parts });
const em = (...parts) => ({ type: "em", parts });
const math = (text) => ({ type: "math", text });

test("blocks know their first line", () => {
  const found = parse("# a\n\nb\nc\n\n- d\n\n```\ne\n```\n---\n> f");
  assert.deepEqual(found.map((block) => [block.type, block.from]), [["heading", 0], ["paragraph", 2], ["list", 5], ["code", 7], ["rule", 10], ["quote", 11]]);
});

test("code keeps its text, and is open until its fence ends", () => {
  assert.deepEqual(one("```js\nlet a = `b`;\n\n<b>\n```"), { type: "code", language: "js", text: "let a = `b`;\n\n<b>", open: false });
  assert.equal(one("````\n```\n````").text, "```");
  assert.equal(one("```\nstill").open, true);
  assert.equal(parse("~~~\na\n~~~\nb").length, 2);
});

test("lists nest, and keep their numbers", () => {
  const list = one("3. a\n4. b\n   - c\n   - d\n\n   more");
  assert.equal(list.start, 3);
  assert.deepEqual(list.items[1].map((block) => block.type), ["paragraph", "list", "paragraph"]);
  assert.equal(list.items[1][1].items.length, 2);
});

test("tables have alignments, and a pipe in them is escaped", () => {
  const table = one("| a | b |\n|---|--:|\n| 1 | x\\|y |\n| 2 |");
  assert.deepEqual(table.align, ["", "right"]);
  assert.deepEqual(table.rows, [[["1"], ["x|y"]], [["2"]]]);
  assert.equal(parse("a | b\nno table").length, 1);
});

test("emphasis", () => {
  assert.deepEqual(inline("**a _b_** c"), [strong("a ", em("b")), " c"]);
  assert.deepEqual(inline("***a***"), [strong(em("a"))]);
  for (const plain of ["snake_case_name", "2 * 3 * 4", "*open", "**open", "a * b"]) assert.deepEqual(inline(plain), [plain]);
  assert.deepEqual(inline("\\*a\\*").join(""), "*a*");
});

test("mathematics is left as it is", () => {
  assert.deepEqual(inline("so $a_b*c$ and \\(x_1\\)"), ["so ", math("$a_b*c$"), " and ", math("\\(x_1\\)")]);
  assert.deepEqual(one("$$\na*b\n$$"), math("$$\na*b\n$$"));
  assert.deepEqual(inline("$5 and $6"), ["$5 and $6"]);
});

test("links", () => {
  assert.deepEqual(inline("[a](https://b.c/d_(e))")[0], { type: "link", href: "https://b.c/d_(e)", parts: ["a"] });
  assert.deepEqual(inline("see https://b.c/d."), ["see ", { type: "link", href: "https://b.c/d", parts: ["https://b.c/d"] }, "."]);
  assert.equal(inline("![a](https://b.c/d.png)")[0].type, "link");
});

test("HTML is text", () => {
  assert.deepEqual(one("<img src=x onerror=alert(1)>").parts, ["<img src=x onerror=alert(1)>"]);
});

// Squared time would be 64 times as much for eight times the text. CPU time: a busy machine does not count.
test("time grows with the length, whatever a model repeats", () => {
  const unlucky = ["*", "**a ", "`", "``` `", "[", "![a](", "$a", "_a", "> ", "- ", "\\(", "|a", "https://", "~~", "***a", '[a](b "', "* _", "[[a]"];
  for (const piece of unlucky.flatMap((each) => [each, `${each}\n`])) {
    const least = (length) => Math.min(...[0, 0, 0].map(() => {
      const text = piece.repeat(length / piece.length);
      const began = process.cpuUsage();
      parse(text);
      return process.cpuUsage(began).user / 1000;
    }));
    const [short, long] = [least(25_000), least(200_000)];
    assert.ok(long < 40 * (short + 2), `${JSON.stringify(piece)}: ${short} and ${long} ms`);
  }
});

async function* chunks(...texts) {
  for (const text of texts) yield typeof text === "string" ? new TextEncoder().encode(text) : text;
}
const all = async (items) => {
  const found = [];
  for await (const item of items) found.push(item);
  return found;
};

test("lines of JSON come whole, however the bytes were cut", async () => {
  const bytes = new TextEncoder().encode('{"a":"ä€😀"}\n\n{"b":1}\r\n{"c":2}');
  for (let cut = 1; cut < bytes.length; cut += 1) {
    const found = await all(lines(chunks(bytes.slice(0, cut), bytes.slice(cut))));
    assert.deepEqual(found, [{ a: "ä€😀" }, { b: 1 }, { c: 2 }]);
  }
});

test("server-sent events have names, several lines, and an end", async () => {
  const text = 'event: x\ndata: {"a":\ndata: 1}\n\n: comment\ndata:{"b":2}\n\ndata: [DONE]\n\ndata: {"c":3}\n\n';
  for (let cut = 1; cut < text.length; cut += 1) {
    assert.deepEqual(await all(events(chunks(text.slice(0, cut), text.slice(cut)))), [{ event: "x", a: 1 }, { b: 2 }]);
  }
});

test("a broken line is an error", async () => {
  await assert.rejects(all(lines(chunks('{"a":'))), SyntaxError);
});
