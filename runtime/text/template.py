"""The model's own chat template: untrusted Jinja from a file, rendered in a sandbox, with the user's text told apart.

Templates are written for Hugging Face's `apply_chat_template`; the environment here follows its documentation: trimmed
blocks, `tojson` that leaves characters alone, `raise_exception`, `strftime_now`, loop controls, and `{% generation %}`
as a block without effect. Three things are ours:

- Resources: a deadline, a limit on the output, and bounds on what can multiply a string. (Jinja's sandbox has none.)
- Control tokens: where a message spells one (`<|im_end|>`), it is put between two marks before rendering, and the
  rendered text is handed on in pieces, so that the tokenizer reads control tokens only where the template wrote them.
- Roles: a system message that the template would refuse or drop is folded into the first user turn.
"""

from __future__ import annotations

import ctypes
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from runtime.errors import BadRequest, LoadFailed
from runtime.text.tokenizer import CLOSE, MARKS, OPEN

RENDER_SECONDS = 2.0
OUTPUT_LIMIT = 4 << 20
NUMBER_LIMIT = 100_000
STRING_LIMIT = 1 << 20
_PROBE_SYSTEM, _PROBE_USER = "lm-probe-system", "lm-probe-user"
# Written for models whose file has no template: ChatML where the vocabulary knows it, else plain labels.
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


class Piece(NamedTuple):
    """A stretch of a rendered prompt; control tokens are read in it only where `special`."""

    text: str
    special: bool


class _Overdue(BaseException):
    """Thrown into a rendering thread that has used up its time; no template can catch it."""


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's text for training; here it is just its content."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with bounds on operators, calls and filters that multiply strings."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (_small(left, 1000) and _small(right, 100)):
            raise SecurityError("a power too large")
        if operator == "*" and any(isinstance(side, str | list | tuple) for side in (left, right)):
            length, count = (len(left), right) if isinstance(left, str | list | tuple) else (len(right), left)
            if not isinstance(count, int) or length * count > STRING_LIMIT:
                raise SecurityError("a string repeated too often")
        if operator == "%" and isinstance(left, str):
            return _format(left, *(right if isinstance(right, tuple) else (right,)))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, int) and abs(value) > NUMBER_LIMIT:
                raise SecurityError(f"a call with the number {value}")
        if getattr(function, "__name__", "") in ("format", "format_map") and isinstance(_owner(function), str):
            _check_widths(_owner(function))
        return super().call(context, function, *args, **kwargs)


def _owner(function: Any) -> Any:
    return getattr(getattr(function, "__wrapped__", function), "__self__", None)


def _small(value: Any, bound: int) -> bool:
    return isinstance(value, int | float) and abs(value) <= bound


def _check_widths(text: str) -> None:
    if re.search(r"\d{5}|\*", text):
        raise SecurityError("a format wider than a prompt")


def _format(text: str, *values: Any) -> str:
    _check_widths(text)
    return text % values


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    space = " " * min(width, 100) if isinstance(width, int) else width[:100]
    lines = text.split("\n")
    return "\n".join(
        line if (i == 0 and not first) or not (line or blank) else space + line for i, line in enumerate(lines)
    )


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    separators, sort_keys = options.get("separators"), bool(options.get("sort_keys"))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _environment() -> _Sandbox:
    env = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension])
    for name in ("center", "wordwrap", "urlize", "xmlattr", "filesizeformat", "random", "pprint"):
        del env.filters[name]
    env.filters["format"], env.filters["indent"], env.filters["tojson"] = _format, _indent, _tojson
    env.globals.clear()
    sandbox = ImmutableSandboxedEnvironment()
    env.globals.update({name: sandbox.globals[name] for name in ("range", "dict", "namespace", "joiner", "cycler")})
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return env


class Template:
    """One model's template. `stops` are strings that end a turn where no control token does."""

    def __init__(self, source: str | None, *, bos: str = "", eos: str = "", control: Iterable[str] = ()) -> None:
        """`control` are the spellings of control tokens. Raises LoadFailed for a `source` that is no template."""
        texts = sorted(set(control), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, texts))) if texts else None
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self.stops: tuple[str, ...] = ()
        if source is None:
            source = CHATML if "<|im_start|>" in texts else PLAIN
            self.stops = PLAIN_STOPS if source is PLAIN else ()
        try:
            self._template = _environment().from_string(source)
        except (TemplateError, RecursionError, ValueError) as error:
            raise LoadFailed(f"the model's chat template is broken: {error}", "pull the model again") from None
        self._system = self._takes_system()

    def render(
        self, messages: list[dict[str, Any]], extra: Mapping[str, Any] | None = None, *, answering: bool = True
    ) -> list[Piece]:
        """The prompt for the next turn; a last message of the assistant is continued, not answered.

        Without `answering` it is the conversation alone, as a later prompt will begin with it.
        `extra` are further variables (tools and the like). Raises BadRequest when the template refuses the messages, or
        needs more than 2 seconds or 4 MiB.
        """
        messages = [self._marked(_plain(message)) for message in messages]
        prefill = ""
        if messages and messages[-1].get("role") == "assistant":
            prefill = str(messages.pop().get("content") or "")
        if not self._system:
            messages = _folded(messages)
        text = self._run(messages, extra or {}, answering) + prefill
        return list(_pieces(text))

    def marked(self, text: str) -> list[Piece]:
        """A text of the user alone, in pieces."""
        return list(_pieces(self._marked(text)))

    def _run(self, messages: list[dict[str, Any]], extra: Mapping[str, Any], answering: bool = True) -> str:
        variables = {"tools": None, "documents": None, **extra, **self._tokens}
        chunks, size = [], 0
        try:
            with _deadline(RENDER_SECONDS):
                for chunk in self._template.generate(messages=messages, add_generation_prompt=answering, **variables):
                    size += len(chunk)
                    if size > OUTPUT_LIMIT:
                        raise SecurityError("more text than a prompt may have")
                    chunks.append(chunk)
        except _Overdue:
            raise BadRequest("the model's chat template takes too long", "use a raw prompt") from None
        except (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
            raise BadRequest(f"the model's chat template refuses these messages: {_sentence(error)}") from None
        except (RecursionError, MemoryError):
            raise BadRequest("the model's chat template needs too much memory", "use a raw prompt") from None
        return "".join(chunks)

    def _takes_system(self) -> bool:
        """Whether a system message reaches the prompt."""
        probe = [{"role": "system", "content": _PROBE_SYSTEM}, {"role": "user", "content": _PROBE_USER}]
        try:
            return _PROBE_SYSTEM in self._run(probe, {})
        except BadRequest:
            return False

    def _marked(self, value: Any) -> Any:
        """`value` with every control token that it spells between two marks."""
        if isinstance(value, str):
            value = MARKS.sub("�", value)
            return self._control.sub(lambda found: f"{OPEN}{found[0]}{CLOSE}", value) if self._control else value
        if isinstance(value, list):
            return [self._marked(item) for item in value]
        if isinstance(value, dict):
            return {self._marked(key): self._marked(item) for key, item in value.items()}
        return value


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """The message with content made of text parts joined to one string, as most templates expect it."""
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return {**message, "content": "".join(str(part.get("text", "")) for part in content)}
    return message


def _folded(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the system's put before the text of the first user turn."""
    system = "\n\n".join(str(message.get("content")) for message in messages if message.get("role") == "system")
    rest = [message for message in messages if message.get("role") != "system"]
    if not system:
        return rest
    for i, message in enumerate(rest):
        if message.get("role") == "user" and isinstance(message.get("content"), str):
            rest[i] = {**message, "content": f"{system}\n\n{message['content']}"}
            return rest
    return [{"role": "user", "content": system}, *rest]


def _pieces(text: str) -> Iterator[Piece]:
    """Cut at the marks: what lies between an opening and its closing one is the user's."""
    for part in re.split(f"({OPEN}[^{OPEN}{CLOSE}]*{CLOSE})", text):
        user = part.startswith(OPEN) and part.endswith(CLOSE)
        if part := MARKS.sub("", part):
            yield Piece(part, special=not user)


def _sentence(error: Exception) -> str:
    if isinstance(error, TemplateError):
        return (error.message or type(error).__name__).strip().rstrip(".").splitlines()[0]
    return f"{type(error).__name__}: {error}".rstrip(".").splitlines()[0]


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Throw `_Overdue` into this thread when it is still inside after `seconds`."""
    thread = threading.get_ident()
    lock, done = threading.Lock(), False
    throw: Callable[..., int] = ctypes.pythonapi.PyThreadState_SetAsyncExc

    def strike() -> None:
        with lock:
            if not done:
                throw(ctypes.c_ulong(thread), ctypes.py_object(_Overdue))

    timer = threading.Timer(seconds, strike)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            done = True
        timer.cancel()
