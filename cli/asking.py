"""Asking a model: what goes into a request, and its answer as it comes, for one question and for a chat alike."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from cli import console
from cli.client import Client
from cli.errors import Failure
from cli.pulling import bring_in
from cli.wrapping import Wrapping

Line = dict[str, Any]


@dataclass
class Asking:
    """A model, and the options of each request to it, as in Ollama's API; None or empty leaves the daemon's default."""

    client: Client
    model: str
    options: dict[str, Any] = field(default_factory=dict)
    system: str = ""
    keep_alive: str | None = None
    verbose: bool = False
    format: str | Line | None = None
    """Either "json" or the JSON schema that answers are held to."""
    think: bool | str | None = None
    hides_thinking: bool = False
    adapters: list[Line] = field(default_factory=list)
    """Adapters that change the model's answers, each with its scale."""
    draft: str | None = None
    """The model that guesses the next words."""
    tools: list[Line] = field(default_factory=list)
    """Definitions of tools that the model may call; the calls are printed."""
    wraps: bool = True
    """Whether lines are broken between words, on a terminal."""
    larger: str = "`--ctx`"
    """What makes the context larger, for a hint."""
    told: set[str] = field(default_factory=set)
    """Notes that need no repetition."""

    def on(self, model: str) -> Asking:
        """The same, of another model."""
        return replace(self, model=model)

    @property
    def shows_thinking(self) -> bool:
        """Whether thinking is printed: at a terminal unless it is hidden, elsewhere only on demand."""
        return not self.hides_thinking and (console.at_terminal() or bool(self.think))

    @property
    def tool_field(self) -> Line:
        """The field of a chat's body with the tools, if there are any."""
        return {"tools": self.tools} if self.tools else {}

    def ask(self, prompt: str) -> Reply:
        """The answer to one question; tools take a chat, because `/api/generate` has none."""
        return self.chat([{"role": "user", "content": prompt}]) if prompt and self.tools else self.generate(prompt)

    def generate(self, prompt: str) -> Reply:
        """The answer to one question; an empty one only loads the model."""
        system = {"system": self.system} if self.system and prompt else {}
        waiting = "thinking" if prompt else f"loading {self.model}"
        return Reply(self, self.client.stream("/api/generate", self.body(prompt=prompt) | system), waiting)

    def chat(self, messages: list[Line]) -> Reply:
        """The next turn of a conversation."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return Reply(self, self.client.stream("/api/chat", self.body(messages=[*system, *messages]) | self.tool_field))

    def check(self, **changed: Any) -> Line:
        """Have the daemon check fields of a request, and load the model for them; its answer. Raises Failure."""
        with console.status("checking"):
            answer: Line = self.client.ask("POST", "/api/generate", self.body(prompt="", stream=False) | changed)
        return answer

    def note_context(self, last: Line) -> None:
        """Say once that the context is smaller than the one asked for, by an answer's last line."""
        if "num_ctx" in last:
            text = f"note: a context of {last['num_ctx']} tokens is the most that the model and memory allow"
            if text not in self.told:
                console.note(text, "yellow")
            self.told.add(text)

    def way_to_more(self) -> str:
        """How to get a larger context, as the end of a sentence; "" where that is not known."""
        try:
            rows = self.client.ask("GET", "/api/ps")["models"]
        except Failure:
            return ""
        name = self.model.lower()
        row = next((row for row in rows if f"{row['name'].lower()}:".startswith(f"{name}:")), None)
        if row is None:
            return ""
        context, trained = row["context_length"], row["details"]["context_length"]
        if trained and context >= trained:
            return f": the model was trained for {trained:,} tokens, and no more"
        return f"; {self.larger} makes it larger than {context:,} tokens"

    def writes(self) -> bool:
        """Whether the model writes text; others make vectors."""
        return "completion" in self.client.ask("POST", "/api/show", {"model": self.model})["capabilities"]

    def embed(self, text: str) -> list[float]:
        """The vector of a text."""
        vectors: list[list[float]] = self.client.ask("POST", "/api/embed", self.body(input=text))["embeddings"]
        return vectors[0] if vectors else []

    def body(self, **more: Any) -> Line:
        """A request's body: the model and its options, and `more`, which goes before them."""
        optional = {
            "options": self.options,
            "keep_alive": self.keep_alive,
            "format": self.format,
            "think": self.think,
            "adapters": self.adapters,
            "draft": self.draft,
        }
        return {key: value for key, value in optional.items() if value not in (None, {}, [])} | {
            "model": self.model,
            **more,
        }


class ShownThinking:
    """The thinking before an answer: printed apart from it and faint, or not at all where it is not `shown`."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self._begun = False
        self._wrapping = Wrapping()

    def say(self, text: str, *, wraps: bool) -> None:
        """Print more of it."""
        if not self._shown:
            return
        if not self._begun:
            console.faint("Thinking...\n")
        self._begun = True
        console.faint(text, self._wrapping.feed if wraps else None)

    def end(self) -> None:
        """Print a line that ends it, where it has begun."""
        if self._begun:
            console.faint("\n...done thinking.\n\n")
        self._begun = False


class Reply:
    """An answer on its way. `text`, `thinking` and `calls` are all that came so far, also when it was broken off."""

    def __init__(self, asking: Asking, lines: Generator[Line], waiting: str = "thinking") -> None:
        self._asking = asking
        self._lines = lines
        self._waiting = waiting
        self.text = ""
        self.thinking = ""
        self.calls: list[Line] = []
        self._thought = ShownThinking(shown=asking.shows_thinking)
        self._wrapping = Wrapping()

    def show(self) -> None:
        """Print it as it comes. Raises Failure, KeyboardInterrupt; either way the daemon stops working on it."""
        last: Line = {}
        with closing(self._lines):
            try:
                with console.status(self._waiting):
                    line = next(self._lines, None)
                while line is not None:
                    self._print(line)
                    last, line = line, next(self._lines, None)
            finally:
                self._thought.end()
                if self.text and not (self.calls or self.text.endswith("\n")):
                    console.out()
        self._note_cuts(last)
        if self._asking.verbose and (self.text or self.calls):
            console.timings(last)

    def _print(self, line: Line) -> None:
        message = line.get("message", line)
        if thought := message.get("thinking"):
            self.thinking += thought
            self._thought.say(thought, wraps=self._asking.wraps)
        if text := message.get("content", message.get("response")):
            self._thought.end()
            self.text += text
            console.answer(text, self._wrapping.feed if self._asking.wraps else None)
        for call in message.get("tool_calls", ()):
            self._thought.end()
            if not self.calls and self.text and not self.text.endswith("\n"):
                console.out()
            self.calls.append(call)
            console.out(json.dumps({key: call["function"][key] for key in ("name", "arguments")}, ensure_ascii=False))

    def _note_cuts(self, last: Line) -> None:
        """Say where the prompt, the context or the answer was cut: nothing is cut silently."""
        if last.get("truncated"):
            console.note(f"note: the first {last['truncated']} tokens were left out to fit the context", "yellow")
        self._asking.note_context(last)
        if "context_reason" in last:
            console.note(f"note: {last['context_reason']}", "yellow")
        if "warning" in last:
            console.note(f"note: {last['warning']}", "yellow")
        if last.get("done_reason") == "length" and "num_predict" not in self._asking.options:
            console.note(f"note: the answer ends where the context is full{self._asking.way_to_more()}", "yellow")


def installed(client: Client, wanted: str, typed: str, pre: str | None = None) -> str:
    """The name under which a model lies, which is brought in when it is not here. Raises Failure."""
    try:
        shown = client.ask("POST", "/api/show", {"model": wanted})
        if "default" in shown:
            console.note(f"{shown['default']}; `lm default` changes that")
        return wanted
    except Failure as error:
        if error.code != "model_not_found":
            raise
    return str(bring_in(client, {"model": wanted, "pre": pre or "", **client.hub()}, typed)["name"])
