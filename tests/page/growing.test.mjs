// Text that grows is the same in the end as text that came whole. `node --test`, called by test_scripts.py.

import assert from "node:assert/strict";
import { test } from "node:test";

// As much of a document as `dom.js` uses.
class FakeNode {
  constructor(tag) {
    this.tag = tag;
    this.children = [];
    this.attributes = {};
  }
  append(...nodes) {
    for (const node of nodes) {
      if (node instanceof FakeNode) node.parent = this;
      this.children.push(node);
    }
  }
  remove() {
    this.parent.children = this.parent.children.filter((each) => each !== this);
  }
  setAttribute(name, value) {
    this.attributes[name] = value;
  }
  removeAttribute() {}
  addEventListener() {}
  querySelector(tag) {
    for (const child of this.children) {
      if (!(child instanceof FakeNode)) continue;
      const found = child.tag === tag ? child : child.querySelector(tag);
      if (found) return found;
    }
    return null;
  }
  get text() {
    return this.children.map((child) => (child instanceof FakeNode ? child.text : child)).join("");
  }
  get shape() {
    return this.children.filter((child) => child instanceof FakeNode).map((child) => [child.tag, child.text, child.tag === "code" ? [] : child.shape]);
  }
}
globalThis.Node = FakeNode;
globalThis.document = { createElement: (tag) => new FakeNode(tag) };

const { GrowingText, markdown } = await import("../../server/static/render.js");

const TEXT = [
  "# Title\n\nSome **bold\ntext** and `code`.\n\n- one\n- two\n  - three\n\n  more\n\n",
  "```py\nx = ``1``\n\n``` no end\ny\n```\n\nafter\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n",
  "~~~\ntilde\n```\n~~~\n> quote\n> more\n\n1. a\n\n2. b\n\n$$\nx\n$$\n\nend\n\n```\nopen",
].join("");

for (const step of [1, 2, 3, 7, 50, 1000]) {
  test(`in steps of ${step}`, () => {
    const place = new FakeNode("div");
    const growing = new GrowingText(place);
    for (let end = step; end < TEXT.length + step; end += step) {
      const so_far = TEXT.slice(0, end);
      growing.rest = 0;
      growing.show(so_far);
      const now = new FakeNode("div");
      now.append(...markdown(so_far));
      // Code may be some characters behind, until it is clear that they do not end it.
      if (!growing.code) assert.deepEqual(place.shape, now.shape, JSON.stringify(so_far.slice(-40)));
    }
    growing.show(TEXT, true);
    const whole = new FakeNode("div");
    whole.append(...markdown(TEXT));
    assert.deepEqual(place.shape, whole.shape);
  });
}

test("10,000 words of one paragraph take no longer than they must", () => {
  const growing = new GrowingText(new FakeNode("div"));
  let text = "";
  const began = performance.now();
  for (let word = 0; word < 10_000; word += 1) {
    text += "word ";
    growing.show(text);
  }
  assert.ok(performance.now() - began < 30_000);
});
