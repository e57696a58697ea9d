"""Output items while they are made: each says its events, from `response.output_item.added` to its end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from server.api.openai.responses.items import Item, new_item, output_text, sealed
from server.api.openai.tools import ToolName, text_input

Step = tuple[str, dict[str, Any]]
"""An event: its type without `response.`, and its fields beside the numbers that every event of an item has."""


class OpenItem(ABC):
    """An item on its way. `item` is how it stands now."""

    kind: str

    def __init__(self, item: Item) -> None:
        self.item = item

    def open(self) -> Iterator[Step]:
        """The item is there, and has nothing yet."""
        yield "output_item.added", {"item": self.item | {"status": "in_progress"}}

    @abstractmethod
    def add(self, text: str, rows: list[Item]) -> Iterator[Step]:
        """More of it; `rows` are the probabilities of its tokens."""

    @abstractmethod
    def finish(self) -> Iterator[Step]:
        """The steps before the last; `item` is complete then."""

    def close(self, status: str) -> Iterator[Step]:
        """No more comes."""
        yield from self.finish()
        self.item["status"] = status
        yield "output_item.done", {"item": self.item}


class OpenMessage(OpenItem):
    """The text of an answer."""

    kind = "text"

    def __init__(self) -> None:
        super().__init__(new_item("message", role="assistant", status="in_progress", content=[]))
        self._texts: list[str] = []
        self._rows: list[Item] = []

    def open(self) -> Iterator[Step]:
        """The item is there, and its first part."""
        yield from super().open()
        yield "content_part.added", {"content_index": 0, "part": output_text("")}

    def add(self, text: str, rows: list[Item]) -> Iterator[Step]:
        """More of its text."""
        self._texts.append(text)
        self._rows += rows
        yield "output_text.delta", {"content_index": 0, "delta": text, "logprobs": rows}

    def finish(self) -> Iterator[Step]:
        """Its text is complete."""
        text = "".join(self._texts)
        part = output_text(text, self._rows)
        self.item["content"] = [part]
        yield "output_text.done", {"content_index": 0, "text": text, "logprobs": self._rows}
        yield "content_part.done", {"content_index": 0, "part": part}


class OpenThoughts(OpenItem):
    """The thinking before an answer: as it is, or in the place of a summary where the client wants one."""

    kind = "thinking"

    def __init__(self, *, summary: bool, encrypted: bool) -> None:
        super().__init__(new_item("reasoning", summary=[]))
        self._summary = summary
        self._encrypted = encrypted
        self._texts: list[str] = []

    def open(self) -> Iterator[Step]:
        """The item is there, and its first part."""
        yield from super().open()
        if self._summary:
            yield "reasoning_summary_part.added", {"summary_index": 0, "part": self._part("")}
        else:
            yield "content_part.added", {"content_index": 0, "part": self._part("")}

    def add(self, text: str, rows: list[Item]) -> Iterator[Step]:
        """More of its text."""
        self._texts.append(text)
        if self._summary:
            yield "reasoning_summary_text.delta", {"summary_index": 0, "delta": text}
        else:
            yield "reasoning_text.delta", {"content_index": 0, "delta": text}

    def finish(self) -> Iterator[Step]:
        """Its text is complete."""
        text = "".join(self._texts)
        part = self._part(text)
        if self._encrypted:
            self.item["encrypted_content"] = sealed(text)
        if self._summary:
            self.item["summary"] = [part]
            yield "reasoning_summary_text.done", {"summary_index": 0, "text": text}
            yield "reasoning_summary_part.done", {"summary_index": 0, "part": part}
        else:
            self.item["content"] = [part]
            yield "reasoning_text.done", {"content_index": 0, "text": text}
            yield "content_part.done", {"content_index": 0, "part": part}

    def _part(self, text: str) -> Item:
        return {"type": "summary_text" if self._summary else "reasoning_text", "text": text}


class OpenCall(OpenItem):
    """A call of a function."""

    kind = "call"

    def __init__(self, tool: ToolName, identity: str) -> None:
        super().__init__(new_item("function_call", call_id=identity, name=tool.name, arguments=""))
        self.item |= {"namespace": tool.namespace} if tool.namespace else {}
        self._texts: list[str] = []

    def add(self, text: str, rows: list[Item]) -> Iterator[Step]:
        """More of its text."""
        self._texts.append(text)
        if text:
            yield "function_call_arguments.delta", {"delta": text}

    def finish(self) -> Iterator[Step]:
        """Its text is complete."""
        self.item["arguments"] = "".join(self._texts)
        yield "function_call_arguments.done", {"arguments": self.item["arguments"]}


class OpenCustomCall(OpenItem):
    """A call of a custom tool: its text is in the arguments of the function in its place, so that it comes whole."""

    kind = "call"

    def __init__(self, tool: ToolName, identity: str) -> None:
        super().__init__(new_item("custom_tool_call", call_id=identity, name=tool.name, input=""))
        self.item |= {"namespace": tool.namespace} if tool.namespace else {}
        self._texts: list[str] = []

    def add(self, text: str, rows: list[Item]) -> Iterator[Step]:
        """More of its arguments; nothing is told yet."""
        self._texts.append(text)
        yield from ()

    def finish(self) -> Iterator[Step]:
        """Its text is complete."""
        text = text_input("".join(self._texts))
        self.item["input"] = text
        yield "custom_tool_call_input.delta", {"delta": text}
        yield "custom_tool_call_input.done", {"input": text}


def open_call(tool: ToolName, identity: str) -> OpenItem:
    """The item of a call of this tool."""
    return OpenCustomCall(tool, identity) if tool.kind == "custom" else OpenCall(tool, identity)
