"""A model's own chat template, rendered in a sandbox, with the user's text told apart from the template's.

Templates are written for Hugging Face's `apply_chat_template` (`runtime/text/sandbox.py`), or in Go's language as
Modelfiles have them (`runtime/text/gotemplate/`). Three things are added:

- Resources: a deadline and a limit on the output.
- Control tokens: where a message spells one (`<|im_end|>`), it is put between two marker characters before rendering.
  The rendered text is cut at the markers, so that the tokenizer parses control tokens only where the template wrote
  them.
- Shapes: a conversation that the template would refuse, or lose a message of, is changed into one that it takes
  (`runtime/text/shapes.py`). Words of ours in place of the texts show which shape that is. Where there is none, the
  request is refused: no message is ever lost silently.
"""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError

from quant.notes import MAX_TEMPLATE
from runtime.answers.learning import Learned, learn
from runtime.answers.parser import AnswerForm
from runtime.errors import BadRequest
from runtime.text.gotemplate import chat as gotemplate
from runtime.text.gotemplate.chat import GoTemplate
from runtime.text.gotemplate.nodes import GoTemplateError
from runtime.text.sandbox import Overdue, deadline, environment
from runtime.text.shapes import Content, Message, Shape, shapes
from runtime.text.talk import tool_variables
from runtime.text.tokenizer import CLOSE, MARKERS, OPEN

RENDER_SECONDS = 2.0
# Characters of a rendered prompt: more than any frame can bring (`runtime/child.py`), with the template's own.
OUTPUT_LIMIT = 20 << 20
# Conversations whose shapes are remembered, by their roles.
_SHAPES = 64
# For models whose file has no template: ChatML where the vocabulary has its tokens, else plain labels.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% else %}"
    "{{ message['role'] | capitalize + ': ' + message['content'] + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
# No template without one of these has thinking, of earlier answers or of the next (`runtime/answers/probing.py`).
_THINKS = re.compile("think|reason|analysis", re.IGNORECASE)
_FAILURES = (TemplateError, GoTemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
PLAIN_STOPS = ("\nUser:", "\nAssistant:", "\nSystem:")


class _Refusal(NamedTuple):
    """Why messages cannot be rendered. `final`: no other shape of the conversation would help: a bound was passed."""

    error: BadRequest
    final: bool = False


class PromptPart(NamedTuple):
    """A part of a rendered prompt. Control tokens in it are parsed only when `special`."""

    text: str
    special: bool


def fault_of(source: str) -> str:
    """Why a template cannot be run, a clause; "" where it can be parsed. Many files hold one in Ollama's language."""
    if len(source.encode(errors="replace")) > MAX_TEMPLATE:
        return "it is longer than 1 MiB"
    try:
        environment().from_string(source)
    except (TemplateError, RecursionError, ValueError) as error:
        return _sentence(error)
    return ""


def _in_go(source: str, *, sure: bool) -> GoTemplate | None:
    """The template in Go's language, None where it is none, or not for conversations and nobody is `sure`."""
    try:
        found = GoTemplate(source)
    except GoTemplateError:
        return None
    return found if sure or {"messages", "prompt", "system"} & found.fields else None


class ChatTemplate:
    """One model's chat template. `stops` are strings that end a turn where no control token does."""

    def __init__(
        self, source: str | None, *, bos: str = "", eos: str = "", control: Iterable[str] = (), go: bool = False
    ) -> None:
        """`control` are the texts of control tokens. A `source` that is no template counts as none, and `fault` says
        why. It is Jinja, or one of Go's with `go`, or where only that can be read."""
        texts = sorted(set(control), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, texts))) if texts else None
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self.stops: tuple[str, ...] = ()
        self.fault = fault_of(source) if source is not None and not go else ""
        written = _in_go(source, sure=go) if source is not None and (go or self.fault) else None
        if written is not None:
            self.fault = ""
        elif source is None or self.fault or go:
            self.fault = self.fault or (gotemplate.fault_of(source or "") if go else "")
            source = CHATML if "<|im_start|>" in texts else PLAIN
            self.stops = PLAIN_STOPS if source is PLAIN else ()
        assert source is not None
        self._source = source
        self._template = written or environment().from_string(source)
        self._shapes: dict[tuple[str, ...], Shape] = {}
        self._bare = True  # whether the template takes the absence of tools as None, as transformers gives it
        self._contents: tuple[Content, ...] = ("text",)
        self._probe()

    @property
    def remark(self) -> str:
        """A sentence for the user on a broken template; "" where it is sound."""
        if not self.fault:
            return ""
        stand_in = "plain labels" if self.stops else "ChatML"
        return f"the model's chat template is broken ({self.fault}), so chats are written in {stand_in}"

    def render(
        self, messages: list[Message], extra: Mapping[str, Any] | None = None, *, answering: bool = True
    ) -> list[PromptPart]:
        """The prompt for the next turn; a last message of the assistant is continued, not answered.

        Without `answering` it is the conversation alone, with which a later prompt will begin. `extra` are further
        variables (tools and the like). Raises BadRequest when the template refuses the messages or loses one, or needs
        more than 2 seconds or 512 MiB.
        """
        messages = [self._marked(message) for message in messages]
        prefill = ""
        if messages and messages[-1].get("role") == "assistant":
            prefill = str(messages.pop().get("content") or "")
        shape = self._shape_with_calls(messages, extra or {}) if _has_calls(messages) else self._shape(_roles(messages))
        text = self._run(shape.of(messages), extra or {}, answering) + prefill
        return list(_parts(text))

    @property
    def fills(self) -> bool:
        """Whether it writes the prompt for the text between two others."""
        return isinstance(self._template, GoTemplate) and "suffix" in self._template.fields

    def fill(self, before: str, after: str) -> list[PromptPart]:
        """The prompt for the text between two others, of a template that `fills`. Raises BadRequest."""
        assert isinstance(self._template, GoTemplate)
        try:
            return list(_parts(self._template.fill(self._marked(before), self._marked(after))))
        except GoTemplateError as error:
            raise BadRequest(f"the chat template refuses this: {error}", "correct the template") from None

    @cached_property
    def answers(self) -> Learned:
        """How the model writes its answers; found out when it is first asked for, in at most 2 seconds."""
        end = time.monotonic() + RENDER_SECONDS
        shape = Shape(self._contents[0])

        def render(messages: list[Message], *, tools: list[dict[str, Any]] | None, answering: bool) -> str | None:
            if time.monotonic() > end:
                return None
            try:
                return self._run(shape.of(messages), tool_variables(tools or []), answering)
            except BadRequest:
                return None

        return learn(render, self._source)

    def form(self, parts: list[PromptPart], *, tools: bool) -> AnswerForm | None:
        """The form of the answer to a prompt; None where it is text alone. Calls are told apart with `tools` only."""
        if not (tools or _THINKS.search(self._source)):
            return None
        form = self.answers.form
        if not tools:
            form = replace(form, calls=())
        if not form.calls and form.thinking is None:
            return None
        end = "".join(part.text for part in parts[-8:] if part.special).rstrip()
        return replace(form, opened=form.thinking is not None and end.endswith(form.thinking.open))

    def _run(self, messages: list[Message], extra: Mapping[str, Any], answering: bool = True) -> str:
        """The text of the conversation. Raises BadRequest where the template refuses it."""
        text = self._try(messages, extra, answering)
        if isinstance(text, _Refusal):
            raise text.error
        return text

    def _try(self, messages: list[Message], extra: Mapping[str, Any], answering: bool = True) -> str | _Refusal:
        bare: dict[str, Any] = {"tools": None, "documents": None}
        if not self._bare:
            bare = {"tools": [], "documents": [], "functions": "[]", "datetime": f"{datetime.now():%Y-%m-%d}"}
        variables = {**bare, **extra, **self._tokens}
        try:
            with deadline(RENDER_SECONDS):
                return self._text(messages=messages, add_generation_prompt=answering, **variables)
        except Overdue:
            refusal = _Refusal(BadRequest("the model's chat template takes too long", "use a raw prompt"), final=True)
        except (RecursionError, MemoryError):
            why = "the model's chat template needs too much memory"
            refusal = _Refusal(BadRequest(why, "use a raw prompt"), final=True)
        except _FAILURES as error:
            why = f"the model's chat template refuses these messages: {_sentence(error)}"
            told = BadRequest(why, "change their roles or order, or use a raw prompt")
            refusal = _Refusal(told, final=isinstance(error, SecurityError))
        if refusal.final:
            gc.collect()  # Jinja's contexts refer to themselves, and keep all that the template has made
        return refusal

    def _text(self, **variables: Any) -> str:
        chunks, size = [], 0
        for chunk in self._template.generate(**variables):
            size += len(chunk)
            if size > OUTPUT_LIMIT:
                raise SecurityError(f"it makes more than {OUTPUT_LIMIT:,} characters of them")
            chunks.append(chunk)
        return "".join(chunks)

    def _probe(self) -> None:
        """Find out how the template wants a content, and the absence of tools; as it is where it takes none of it."""
        for self._bare in (True, False):
            for self._contents in (("text",), ("parts", "user's parts")):
                loss = self._loss(Shape(self._contents[0]), ("user",))
                if loss is None or loss.final:
                    return
        self._bare, self._contents = True, ("text",)

    def _shape(self, roles: tuple[str, ...]) -> Shape:
        """The shape in which the template loses none of the messages of these roles. Raises BadRequest without one."""
        if (known := self._shapes.pop(roles, None)) is None:
            first: _Refusal | None = None
            for shape in shapes(self._contents):
                loss = self._loss(shape, roles)
                if loss is None:
                    known = shape
                    break
                first = first or loss
                if loss.final:
                    break
            if known is None:
                raise first.error if first else AssertionError
        self._shapes[roles] = known  # at the end: the first one is the one used longest ago
        if len(self._shapes) > _SHAPES:
            del self._shapes[next(iter(self._shapes))]
        return known

    def _shape_with_calls(self, messages: list[Message], extra: Mapping[str, Any]) -> Shape:
        """The shape of a conversation in which tools are called. Raises BadRequest where a text would be lost.

        Calls and results stand between the messages whose order templates mind.
        """
        shape = self._shape(
            _roles([each for each in messages if each.get("role") != "tool" and not _has_calls([each])])
        )
        words = [f"lm{number}probe" for number in range(len(messages))]
        probe = [{**message, "content": word} for message, word in zip(messages, words, strict=True)]
        text = self._run(shape.of(probe), extra)
        for number, message in enumerate(messages):
            # Beside a call many templates leave out the assistant's text, which the model wrote to itself.
            if words[number] not in text and not _has_calls([message]):
                raise _lost(number, str(message.get("role")))
        return shape

    def _loss(self, shape: Shape, roles: tuple[str, ...]) -> _Refusal | None:
        """Why messages of these roles in this shape cannot be rendered; None where all of them reach the prompt."""
        words = [f"lm{number}probe" for number in range(len(roles))]
        probe: list[Message] = [{"role": role, "content": word} for role, word in zip(roles, words, strict=True)]
        text = self._try(shape.of(probe), {})
        if isinstance(text, _Refusal):
            return text
        lost = next((i for i, word in enumerate(words) if word not in text), -1)
        if lost >= 0:
            return _Refusal(_lost(lost, roles[lost]))
        nothing = BadRequest("the model's chat template writes nothing", "use a raw prompt")
        return None if text.strip() else _Refusal(nothing)

    def _marked(self, value: Any) -> Any:
        """`value` with markers around every control token that it spells."""
        if isinstance(value, str):
            value = MARKERS.sub("�", value)
            return self._control.sub(lambda found: f"{OPEN}{found[0]}{CLOSE}", value) if self._control else value
        if isinstance(value, list):
            return [self._marked(item) for item in value]
        if isinstance(value, dict):
            return {self._marked(key): self._marked(item) for key, item in value.items()}
        return value


def _has_calls(messages: list[Message]) -> bool:
    return any(message.get("tool_calls") for message in messages)


def _roles(messages: list[Message]) -> tuple[str, ...]:
    return tuple(str(message.get("role")) for message in messages)


def _lost(number: int, role: str) -> BadRequest:
    return BadRequest(
        f"the model's chat template loses message {number + 1}, whose role is `{role[:40]}`",
        "leave it out, or say it in a message of the user",
    )


def _parts(text: str) -> Iterator[PromptPart]:
    """Cut a rendered prompt at the markers. Text between an opening and its closing one is the user's."""
    for part in re.split(f"({OPEN}[^{OPEN}{CLOSE}]*{CLOSE})", text):
        user = part.startswith(OPEN) and part.endswith(CLOSE)
        if part := MARKERS.sub("", part):
            yield PromptPart(part, special=not user)


def _sentence(error: Exception) -> str:
    if isinstance(error, TemplateError):
        return (error.message or type(error).__name__).strip().rstrip(".").splitlines()[0]
    if isinstance(error, GoTemplateError):
        return str(error)
    return f"{type(error).__name__}: {error}".rstrip(".").splitlines()[0]
