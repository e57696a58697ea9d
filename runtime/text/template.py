"""A model's own chat template, rendered in a sandbox, with the user's text told apart from the template's.

Templates are written for Hugging Face's `apply_chat_template` (`runtime/text/sandbox.py`). Three things are added:

- Resources: a deadline and a limit on the output.
- Control tokens: where a message spells one (`<|im_end|>`), it is put between two marker characters before rendering.
  The rendered text is cut at the markers, so that the tokenizer parses control tokens only where the template wrote
  them.
- Roles: a system message that the template would refuse or drop is put before the first user message.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError

from runtime.errors import BadRequest, LoadFailed
from runtime.text.sandbox import Overdue, deadline, environment
from runtime.text.tokenizer import CLOSE, MARKERS, OPEN

RENDER_SECONDS = 2.0
# Characters of a rendered prompt.
OUTPUT_LIMIT = 4 << 20
_PROBE_SYSTEM, _PROBE_USER = "lm-probe-system", "lm-probe-user"
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
PLAIN_STOPS = ("\nUser:", "\nAssistant:", "\nSystem:")


class PromptPart(NamedTuple):
    """A part of a rendered prompt. Control tokens in it are parsed only when `special`."""

    text: str
    special: bool


class ChatTemplate:
    """One model's chat template. `stops` are strings that end a turn where no control token does."""

    def __init__(self, source: str | None, *, bos: str = "", eos: str = "", control: Iterable[str] = ()) -> None:
        """`control` are the texts of control tokens. Raises LoadFailed for a `source` that is no Jinja template."""
        texts = sorted(set(control), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, texts))) if texts else None
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self.stops: tuple[str, ...] = ()
        if source is None:
            source = CHATML if "<|im_start|>" in texts else PLAIN
            self.stops = PLAIN_STOPS if source is PLAIN else ()
        try:
            self._template = environment().from_string(source)
        except (TemplateError, RecursionError, ValueError) as error:
            raise LoadFailed(f"the model's chat template is broken: {error}", "pull the model again") from None
        self._takes_system = self._probe_system()

    def render(
        self, messages: list[dict[str, Any]], extra: Mapping[str, Any] | None = None, *, answering: bool = True
    ) -> list[PromptPart]:
        """The prompt for the next turn; a last message of the assistant is continued, not answered.

        Without `answering` it is the conversation alone, with which a later prompt will begin. `extra` are further
        variables (tools and the like). Raises BadRequest when the template refuses the messages, or needs more than 2
        seconds or 4 MiB.
        """
        messages = [self._marked(message) for message in messages]
        prefill = ""
        if messages and messages[-1].get("role") == "assistant":
            prefill = str(messages.pop().get("content") or "")
        if not self._takes_system:
            messages = _folded(messages)
        text = self._run(messages, extra or {}, answering) + prefill
        return list(_parts(text))

    def _run(self, messages: list[dict[str, Any]], extra: Mapping[str, Any], answering: bool = True) -> str:
        variables = {"tools": None, "documents": None, **extra, **self._tokens}
        chunks, size = [], 0
        try:
            with deadline(RENDER_SECONDS):
                for chunk in self._template.generate(messages=messages, add_generation_prompt=answering, **variables):
                    size += len(chunk)
                    if size > OUTPUT_LIMIT:
                        raise SecurityError("more text than a prompt may have")
                    chunks.append(chunk)
        except Overdue:
            raise BadRequest("the model's chat template takes too long", "use a raw prompt") from None
        except (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
            raise BadRequest(f"the model's chat template refuses these messages: {_sentence(error)}") from None
        except (RecursionError, MemoryError):
            raise BadRequest("the model's chat template needs too much memory", "use a raw prompt") from None
        return "".join(chunks)

    def _probe_system(self) -> bool:
        """Whether a system message reaches the prompt."""
        probe = [{"role": "system", "content": _PROBE_SYSTEM}, {"role": "user", "content": _PROBE_USER}]
        try:
            return _PROBE_SYSTEM in self._run(probe, {})
        except BadRequest:
            return False

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


def _folded(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the text of the system's put before the first user message's."""
    system = "\n\n".join(str(message.get("content")) for message in messages if message.get("role") == "system")
    rest = [message for message in messages if message.get("role") != "system"]
    if not system:
        return rest
    for i, message in enumerate(rest):
        if message.get("role") == "user" and isinstance(message.get("content"), str):
            rest[i] = {**message, "content": f"{system}\n\n{message['content']}"}
            return rest
    return [{"role": "user", "content": system}, *rest]


def _parts(text: str) -> Iterator[PromptPart]:
    """Cut a rendered prompt at the markers. Text between an opening and its closing one is the user's."""
    for part in re.split(f"({OPEN}[^{OPEN}{CLOSE}]*{CLOSE})", text):
        user = part.startswith(OPEN) and part.endswith(CLOSE)
        if part := MARKERS.sub("", part):
            yield PromptPart(part, special=not user)


def _sentence(error: Exception) -> str:
    if isinstance(error, TemplateError):
        return (error.message or type(error).__name__).strip().rstrip(".").splitlines()[0]
    return f"{type(error).__name__}: {error}".rstrip(".").splitlines()[0]
