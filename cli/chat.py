"""The chat of `lm run NAME`: a prompt with history, commands that begin with `/`, Ctrl-C to stop an answer."""

from __future__ import annotations

import json
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory

from cli import console
from cli.asking import Asking, Reply
from cli.describing import print_model
from cli.errors import Failure

HELP = """\
  /set system TEXT             what the model is told before anything else
  /set parameter NAME VALUE    such as `temperature 0.5`, `seed 7`, `num_ctx 4096`
  /set verbose, /set quiet     timings after each answer, or not
  /show                        the model; also `/show system`, `/show parameters`
  /clear                       forget the conversation
  /bye                         leave; so does Ctrl-D
  \"\"\"                          begin and end a message of several lines
  Ctrl-C                       stop the answer"""
_PLACEHOLDER = FormattedText([("fg:ansibrightblack", "Send a message (/? for help)")])
_QUOTES = '"""'


class Chat:
    """A conversation at a terminal; `history` is the file that keeps the typed lines."""

    def __init__(self, asking: Asking, history: Path) -> None:
        self._asking = asking
        self._messages: list[dict[str, str]] = []
        self._session: PromptSession[str] = PromptSession(history=FileHistory(str(history)))

    def loop(self) -> None:
        """Load the model, then read and answer until the user leaves."""
        with _unechoed():
            self._asking.generate("").show()
        while True:
            try:
                text = self._read()
            except KeyboardInterrupt:
                console.note("Ctrl-D or /bye leaves")
                continue
            except EOFError:
                return
            if text in ("/bye", "/exit"):
                return
            if text.startswith("/"):
                self._obey(text)
            elif text:
                self._say(text)

    def _read(self) -> str:
        line = self._session.prompt(">>> ", placeholder=_PLACEHOLDER).strip()
        if not line.startswith(_QUOTES):
            return line
        text = line.removeprefix(_QUOTES)
        while not text.endswith(_QUOTES):
            text += "\n" + self._session.prompt("... ")
        return text.removesuffix(_QUOTES).strip()

    def _say(self, text: str) -> None:
        """One turn; a part of an answer stays in the conversation, a turn without any answer does not."""
        self._messages.append({"role": "user", "content": text})
        reply = self._asking.chat(self._messages)
        self._show_reply(reply)
        if reply.text:
            self._messages.append({"role": "assistant", "content": reply.text})
        else:
            self._messages.pop()
        console.out()

    def _show_reply(self, reply: Reply) -> None:
        """Show a reply until it ends, fails, or the user stops it."""
        try:
            with _unechoed():
                reply.show()
        except KeyboardInterrupt:
            pass  # the part that came stays in the conversation
        except Failure as error:
            console.complain(str(error), error.hint)

    def _obey(self, text: str) -> None:
        match text.split(None, 3):
            case ["/?"] | ["/help", *_]:
                console.note(HELP)
            case ["/clear"]:
                self._messages.clear()
                console.note("the conversation is forgotten")
            case ["/set", "verbose" | "quiet" as wanted]:
                self._asking.verbose = wanted == "verbose"
            case ["/set", "system", *_]:
                self._asking.system = text.split(None, 2)[2].strip('"') if len(text.split(None, 2)) > 2 else ""
                if not self._asking.system:
                    self._show("system")
            case ["/set", "parameter", name, value]:
                self._asking.options[name] = _value(name, value)
            case ["/show", *what]:
                self._show(what[0] if what else "")
            case _:
                console.complain(f"there is no `{text[:60]}`", "/? shows what there is")

    def _show(self, what: str) -> None:
        if what == "system":
            return console.note(self._asking.system or "no system message is set")
        if what == "parameters":
            return console.note(json.dumps(self._asking.options) if self._asking.options else "no parameter is set")
        try:
            print_model(self._asking.client.ask("POST", "/api/show", {"model": self._asking.model}))
        except Failure as error:
            console.complain(str(error), error.hint)


@contextmanager
def _unechoed() -> Iterator[None]:
    """Keep what is typed meanwhile out of the answer; it appears at the next prompt."""
    before = termios.tcgetattr(sys.stdin)
    silent = termios.tcgetattr(sys.stdin)
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _value(name: str, text: str) -> Any:
    """A number where it is one; stop strings are a list."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return [str(value)] if name == "stop" else value
