"""Shapes of a conversation: the ways in which it can be changed, without losing a word, for a template that needs it.

Templates differ in what they take. Some raise an error for a system message that is not the first, or lose it, and some
take none. Others insist that user and assistant alternate, or that the user begins. Some take a text only as a list of
parts (`[{"type": "text", "text": …}]`). `shapes` lists what can be done about it, the least change first, and
`runtime/text/template.py` finds out which of them a template takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any, Literal

Message = dict[str, Any]
System = Literal["kept", "joined", "first only", "none"]
"""Which system messages there are: all, as they were; those at the start joined to one, and later ones; that one only,
later ones being the user's; none, all being the user's."""
Content = Literal["text", "parts", "user's parts"]
"""What a message's content is: a text; a list of parts; such a list in the user's messages only."""


@dataclass(frozen=True)
class Shape:
    """A way to change a conversation. Texts of messages that become one have an empty line between them.

    With `by_turns` neighbours of one role become one message. With `user_first` an empty message of the user comes
    before one of the assistant at the start, and into a conversation without any message.
    """

    content: Content = "text"
    system: System = "kept"
    by_turns: bool = False
    user_first: bool = False

    def of(self, messages: list[Message]) -> list[Message]:
        """The messages in this shape."""
        changed = _with_system(messages, self.system)
        if self.by_turns:
            changed = _joined(changed, {"system", "user", "assistant"})
        if self.user_first:
            start = next((i for i, message in enumerate(changed) if _role(message) != "system"), len(changed))
            if start == len(changed) or _role(changed[start]) == "assistant":
                changed = [*changed[:start], {"role": "user", "content": ""}, *changed[start:]]
        return changed if self.content == "text" else [self._in_parts(message) for message in changed]

    def _in_parts(self, message: Message) -> Message:
        content = message.get("content")
        if not isinstance(content, str) or (self.content == "user's parts" and _role(message) != "user"):
            return message
        return {**message, "content": [{"type": "text", "text": content}]}


def shapes(contents: Sequence[Content]) -> Iterator[Shape]:
    """All shapes with one of `contents`, the least change first."""
    systems: tuple[System, ...] = ("kept", "joined", "first only", "none")
    for content, user_first, by_turns, system in product(contents, (False, True), (False, True), systems):
        yield Shape(content, system, by_turns, user_first)


def _with_system(messages: list[Message], system: System) -> list[Message]:
    if system == "kept":
        return messages
    start = next((i for i, message in enumerate(messages) if _role(message) != "system"), len(messages))
    head, rest = messages[:start], messages[start:]
    if system == "joined":
        return [*_joined(head, {"system"}), *rest]
    if system == "first only":
        return [*_joined(head, {"system"}), *_with_user(rest)]
    return _with_user(messages)


def _with_user(messages: list[Message]) -> list[Message]:
    """The messages without system messages, each of which is put before the user's next one, or becomes one itself."""
    changed: list[Message] = []
    waiting: list[Message] = []
    for message in messages:
        if _role(message) == "system":
            waiting.append({**message, "role": "user"})
            continue
        if waiting and _role(message) == "user":
            changed += _joined([*waiting, message], {"user"})
            waiting = []
            continue
        if waiting and _role(message) == "assistant":
            changed += _joined(waiting, {"user"})
            waiting = []
        changed.append(message)
    return changed + _joined(waiting, {"user"})


def _joined(messages: list[Message], roles: set[str]) -> list[Message]:
    """Neighbours of one of `roles` as one message, where they hold nothing but a text."""
    changed: list[Message] = []
    for role, group in groupby(messages, key=lambda message: _role(message) if _is_plain(message) else ""):
        alike = list(group)
        if role in roles and len(alike) > 1:
            texts = [message["content"] for message in alike if message["content"]]
            changed.append({"role": role, "content": "\n\n".join(texts)})
        else:
            changed += alike
    return changed


def _role(message: Message) -> str:
    return str(message.get("role"))


def _is_plain(message: Message) -> bool:
    return message.keys() == {"role", "content"} and isinstance(message["content"], str)
