"""A scripted engine: the worker's protocol without a model, for tests of everything above it.

`Load.script` says what it does; every key may be left out:

| key | meaning |
|---|---|
| `tokens` | the pieces that every answer consists of (list of strings; default three words) |
| `echo` | true: the answer is the prompt itself, or the last message, word by word |
| `delay` | seconds before each token (0) |
| `prompt_delay` | seconds from admission to `Started` (0) |
| `prompt_tokens` | the length of every prompt in tokens; otherwise its words are counted |
| `load_delay`, `load_error` | seconds before `Ready`; the sentence of a `load_failed` instead of it |
| `fail` | `{"code", "message", "hint"}`: every `Submit` fails so |
| `die_after`, `hang_after`, `exit_after` | after N tokens in all: SIGKILL to itself; stand still; exit with 1 |
| `embedding` | length of the vectors (8) |
| `obstacle` | why long prompts are not read beside answers ("") |
| `drafts` | tokens drafted and accepted so far, and a reason; the numbers are each answer's too |

An answer is told apart as if the model thought between `<think>` and `</think>`. Where the request has tools, it
calls them by JSON between `<tool_call>` and `</tool_call>`.

Limits hold as in the real engine: `sequences` answers at once, `queue` waiting ones, prompts longer than the context
are refused, stop strings and `max_tokens` end an answer, `Cancel` too. Seeds change nothing.
"""

from __future__ import annotations

import os
import signal
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Self

from runtime import messages as m
from runtime.answers.forms import CallForm, JsonCall
from runtime.answers.parser import AnswerForm, AnswerParser, Marks
from runtime.conversation import Turn
from runtime.engine.prompt import FORCED
from runtime.engine.telling import frame_of
from runtime.errors import LoadFailed
from runtime.text.stops import Assembler, Stops

THINKING = Marks("<think>", "</think>")
CALLS = (CallForm(JsonCall("name", "arguments"), before=("<tool_call>",), after="</tool_call>"),)
TOKENS = ["Once", " upon", " a time"]


class ScriptedAnswer:
    """One answer on its way: the rest of its tokens, and the text that was sent."""

    def __init__(self, submit: m.Submit, index: int, tokens: list[str], prompt_tokens: int) -> None:
        self.id = submit.id
        self.index = index
        self.prompt_tokens = prompt_tokens
        self.sent = 0
        self.cancelled = False
        self._limits = submit.limits
        self._earlier = submit.earlier
        self.gives_ids = submit.give_ids
        self._left: Iterator[str] = iter(tokens)
        self._assembler = Assembler(Stops(submit.limits.stop))
        form = AnswerForm(THINKING, calls=CALLS if submit.tools else ())
        self.parser = AnswerParser(replace(form, calls=FORCED) if submit.forced else form)

    @property
    def stop(self) -> str:
        """The stop string that ended it, "" so far."""
        return self._assembler.stop

    @property
    def ids(self) -> list[int]:
        """Token ids of prompt and answer, counted from 0 each, where the request wants them."""
        words = self.prompt_tokens - len(self._earlier)
        return [*self._earlier, *range(words), *range(self.sent)] if self.gives_ids else []

    def step(self) -> tuple[str, m.FinishReason | None]:
        """The next text, and the reason to end if the answer ends with it."""
        if self.cancelled:
            return "", "cancelled"
        if 0 <= self._limits.max_tokens <= self.sent:
            return self._assembler.finish(), "length"
        text = next(self._left, None)
        if text is None:
            return self._assembler.finish(), "stop"
        self.sent += 1
        shown = self._assembler.push(text.encode())
        return shown, "stop" if self._assembler.stop else None


class FakeEngine:
    """Answers from a script; the same interface as `runtime.engine.loop.LlamaEngine`."""

    def __init__(self, load: m.Load, send: Callable[..., None]) -> None:
        self._load = load
        self._script = load.script
        self._send = send
        self._inbox: deque[Any] = deque()
        self._wake = threading.Condition()
        self._waiting: deque[m.Submit] = deque()
        self._answers: list[ScriptedAnswer] = []
        self._adapters: set[str] = set()
        self._tokens = 0
        self.steps = 0

    @classmethod
    def open(cls, load: m.Load, send: Callable[..., None]) -> tuple[Self, m.Ready]:
        """Load nothing, as slowly as the script says; raises LoadFailed when it says so."""
        time.sleep(load.script.get("load_delay", 0))
        if error := load.script.get("load_error"):
            raise LoadFailed(error)
        ready = m.Ready(load.cache_config.context, load.cache_config.sequences, 0, 0, 0, 0)
        return cls(load, send), ready

    @property
    def busy(self) -> bool:
        """Whether an answer is on its way."""
        return bool(self._answers or self._waiting)

    @property
    def spilled(self) -> int:
        """Nothing is."""
        return 0

    @property
    def obstacle(self) -> str:
        """The reason in the script, if it has one."""
        return str(self._script.get("obstacle", ""))

    @property
    def drafts(self) -> m.Drafts:
        """The numbers in the script, if it has some."""
        return m.Drafts(*self._script.get("drafts", ()))

    @property
    def adapters(self) -> list[str]:
        """The names of all that a request wanted."""
        return sorted(self._adapters)

    def take(self, frame: Any) -> None:
        """Accept a frame, from any thread."""
        with self._wake:
            self._inbox.append(frame)
            self._wake.notify()

    def run(self) -> None:
        """Serve until `Shutdown`."""
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._inbox or self.busy)
                frames = list(self._inbox)
                self._inbox.clear()
            for frame in frames:
                if isinstance(frame, m.Shutdown):
                    return
                self._handle(frame)
            self._admit()
            self._advance()

    def _handle(self, frame: Any) -> None:
        match frame:
            case m.Submit():
                self._submit(frame)
            case m.Cancel():
                self._cancel(frame.id)
            case m.Tokenize():
                count = self._prompt_tokens(frame.submit) if frame.submit else 0
                self._send(_tokens(frame, count))
            case m.Embed():
                size = self._script.get("embedding", 8)
                vector = struct.pack(f"<{size}f", *([1.0] + [0.0] * (size - 1)))
                count = sum(len(_words(text)) if isinstance(text, str) else len(text) for text in frame.inputs)
                self._send(m.Vectors(frame.id, [vector] * len(frame.inputs), count))
            case m.Rank():
                scores = [struct.pack("<f", len(_words(text))) for text in frame.documents]
                self._send(m.Vectors(frame.id, scores, len(scores)))

    def _submit(self, submit: m.Submit) -> None:
        length, context = self._prompt_tokens(submit), self._load.cache_config.context
        if fail := self._script.get("fail"):
            self._send(m.Failed(submit.id, fail["code"], fail["message"], fail.get("hint", "")))
        elif length >= context:
            message = f"the prompt has {length} tokens and the context holds {context}"
            self._send(m.Failed(submit.id, "prompt_too_long", message, "shorten it or ask for a larger context"))
        elif len(self._waiting) >= self._load.queue:
            message = f"{len(self._waiting)} requests wait for this model already"
            self._send(m.Failed(submit.id, "queue_full", message, "try again later"))
        else:
            self._adapters.update(each.name for each in submit.adapter_set)
            self._waiting.append(submit)

    def _prompt_tokens(self, submit: m.Submit) -> int:
        if isinstance(submit.prompt, list):
            return len(submit.prompt)
        words = len(_words(_prompt(submit.turns, submit.prompt)))
        return len(submit.earlier) + int(self._script.get("prompt_tokens", words))

    def _cancel(self, request: int) -> None:
        for submit in [submit for submit in self._waiting if submit.id == request]:
            self._waiting.remove(submit)
            self._send(m.Finished(submit.id, "cancelled", 0, 0))
        for answer in self._answers:
            answer.cancelled |= answer.id == request

    def _admit(self) -> None:
        while self._waiting and len(self._answers) < self._load.cache_config.sequences:
            submit = self._waiting.popleft()
            time.sleep(self._script.get("prompt_delay", 0))
            tokens = self._script.get("tokens", TOKENS)
            if self._script.get("echo"):
                tokens = _words(_prompt(submit.turns, submit.prompt) + _rest(submit))
            length = self._prompt_tokens(submit)
            self._answers += [ScriptedAnswer(submit, index, tokens, length) for index in range(submit.count)]
            self._send(m.Started(submit.id, length))

    def _advance(self) -> None:
        """One token for every answer."""
        if self._answers:
            time.sleep(self._script.get("delay", 0))
        for answer in list(self._answers):
            sent = answer.sent
            text, reason = answer.step()
            pieces = answer.parser.feed(text)
            if answer.sent > sent:
                self._misbehave()
            if reason:
                pieces += answer.parser.finish()
            for piece in pieces:
                ids = [answer.sent - 1] if answer.gives_ids else []
                self._send(frame_of(piece, m.Delta(answer.id, "", 1, answer.index, ids=ids)))
            if reason:
                self._answers.remove(answer)
                end = m.Finished(answer.id, reason, answer.prompt_tokens, answer.sent, 0, 1, 1, answer.index)
                end.ids, end.stop = answer.ids, answer.stop
                end.drafted, end.accepted = self._script.get("drafts", (0, 0))[:2]
                self._send(end)
        self.steps += 1

    def _misbehave(self) -> None:
        self._tokens += 1
        if self._tokens > self._script.get("die_after", self._tokens):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._tokens > self._script.get("exit_after", self._tokens):
            os._exit(1)
        if self._tokens > self._script.get("hang_after", self._tokens):
            threading.Event().wait()


def _prompt(turns: list[Turn] | None, prompt: str | list[int | str] | None) -> str:
    if turns:
        return turns[-1].text
    return "".join(m.texts_of(prompt or ""))


def _tokens(frame: m.Tokenize, prompt_tokens: int) -> m.Tokens:
    """Ids count words from 0, and given ids stay. The bytes of an id are the word of that number, or its digits."""
    if frame.submit:
        return m.Tokens(frame.id, list(range(prompt_tokens)), text=_prompt(frame.submit.turns, frame.submit.prompt))
    words = _words("".join(m.texts_of(frame.text)))
    ids = [part for part in frame.text if isinstance(part, int)] if isinstance(frame.text, list) else []
    ids += range(len(words))
    spelled = [words[id] if id < len(words) else str(id) for id in ids]
    return m.Tokens(frame.id, ids, [each.encode() for each in spelled] if frame.pieces else [])


def _rest(submit: m.Submit) -> str:
    """All that a request for filling in says beside its prompt."""
    infill = submit.infill
    if infill is None:
        return ""
    return "".join(f" {text}" for text in (infill.begun, infill.suffix, *(each.name for each in infill.files or [])))


def _words(text: str) -> list[str]:
    """The words of `text`, each but the first with its space, so that they join to the text."""
    return [word if i == 0 else f" {word}" for i, word in enumerate(text.split(" "))] if text else []
