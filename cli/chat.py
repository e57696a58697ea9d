"""The chat of `lm run NAME`: a prompt with history, commands that begin with `/`, Ctrl-C to stop an answer."""

from __future__ import annotations

import sys
import termios
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from cli import console
from cli.asking import Asking, Reply
from cli.errors import Failure
from cli.obeying import COMMANDS, SYSTEM, is_command, names, obey

_PLACEHOLDER = FormattedText([("fg:ansibrightblack", "Send a message (/? for help)")])
_QUOTES = '"""'


class Chat:
    """A conversation at a terminal; `home` is the folder that keeps the typed lines, and chats."""

    def __init__(self, asking: Asking, home: Path) -> None:
        self.asking = asking
        asking.larger = "`/set parameter num_ctx`"
        self.messages: list[dict[str, Any]] = []
        self._chats = home / "chats"
        self._history = _History(str(home / "history"))
        self._session: PromptSession[str] = PromptSession(
            history=self._history,
            completer=_Completer(self),
            complete_while_typing=False,
            key_bindings=_keys(),
        )

    @property
    def kept(self) -> list[str]:
        """The names of chats that `/save` kept."""
        return sorted(path.stem for path in self._chats.glob("*.json"))

    @property
    def keeps_history(self) -> bool:
        """Whether what is typed goes to the file of the history."""
        return self._history.keeps

    @keeps_history.setter
    def keeps_history(self, wanted: bool) -> None:
        self._history.keeps = wanted

    def loop(self) -> None:
        """Load the model, then read and answer until the user leaves."""
        with _unechoed():
            self.asking.generate("").show()
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
            if is_command(text):
                self._obey(text)
            elif text:
                self._say(text)

    def _read(self) -> str:
        """A message or a command: a line, or several between two `\"\"\"`."""
        text = self._session.prompt(">>> ", placeholder=_PLACEHOLDER).strip()
        command = SYSTEM.match(text)
        begin = command.group() if command else ""
        if not text.startswith(begin + _QUOTES):
            return text
        text = text.removeprefix(begin + _QUOTES)
        while not text.rstrip().endswith(_QUOTES):
            text += "\n" + self._session.prompt("... ")
        body = text.rstrip().removesuffix(_QUOTES).strip()
        return f"{begin}{_QUOTES}{body}{_QUOTES}" if command else body

    def _say(self, text: str) -> None:
        """One turn; a part of an answer stays in the conversation, a turn without any answer does not."""
        self.messages.append({"role": "user", "content": text})
        reply = self.asking.chat(self.messages)
        self._show_reply(reply)
        if reply.text or reply.calls:
            more = {"thinking": reply.thinking, "tool_calls": reply.calls}
            more = {key: value for key, value in more.items() if value}
            self.messages.append({"role": "assistant", "content": reply.text, **more})
        else:
            self.messages.pop()
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
        try:
            with _unechoed():
                obey(self, text, self._chats)
        except KeyboardInterrupt:
            console.note()
        except Failure as error:
            console.complain(str(error), error.hint)


class _Completer(Completer):
    """Commands, and behind `/load` the models that are here and the chats that are kept."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """Completions of the line so far."""
        typed = document.text_before_cursor
        for line in self._lines(typed):
            if line.startswith(typed):
                yield Completion(line, -len(typed))

    def _lines(self, typed: str) -> Iterable[str]:
        if not typed.startswith("/load "):
            return COMMANDS
        with suppress(Failure):
            return [f"/load {name}" for name in [*names(self._chat.asking.client), *self._chat.kept]]
        return ()


class _History(FileHistory):
    """The typed lines, in a file where that can be read and written: a chat does not end for want of it."""

    keeps = True

    def load_history_strings(self) -> Iterable[str]:
        """The lines of earlier chats, newest first."""
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        """Add a line."""
        if self.keeps:
            with suppress(OSError):
                super().store_string(string)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("c-g")
    def _edit(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor()

    return keys


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
