"""Bounds of grammars: how large one may become when its repetitions are written out, and how many rules it has.

llguidance limits what it builds by steps of its own, and a regular expression such as `(a{1000}){1000}` still takes it
ten seconds. So the size is estimated here before.
"""

from __future__ import annotations

import re

from runtime.errors import BadRequest

# Parts of one expression, or of one rule, with its repetitions written out; and with repetitions inside repetitions.
MAX_PARTS, MAX_NESTED_PARTS = 100_000, 5_000
MAX_RULES = 5_000
# One part of an expression: an escaped character, a set, a text, a count, a bracket, or one character.
_PART = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*+\]|\"(?:\\.|[^\"\\\n])*+\"|\{\s*+(?P<low>\d++)\s*+(?:,\s*+(?P<high>\d*+)\s*+)?\}|.",
    re.DOTALL,
)


def check_repeats(text: str, what: str) -> None:
    """Raises BadRequest where the repetitions of an expression make it too large; `what` names it.

    The counts of nested repetitions are multiplied. A group counts as the sum of its parts.
    """
    groups = [_Group()]
    for found in _PART.finditer(text):
        part, group = found[0], groups[-1]
        if part == "(":
            groups.append(_Group())
        elif part == ")" and len(groups) > 1:
            groups.pop()
            groups[-1].add(group.parts, group.repeats)
        elif found["low"]:
            most = group.repeat(int((found["high"] or found["low"])[:12]))
            if most < group.last:
                raise BadRequest(f"`{what}` repeats too much: `{text[:60]}`", "repeat fewer times")
        elif part == "\n" and len(groups) == 1:
            groups = [_Group()]  # the rule ends
        else:
            group.add(1, False)


class _Group:
    """The content of two brackets: its size in `parts`, the size of its `last` part, and whether it `repeats`."""

    def __init__(self) -> None:
        self.parts = self.last = 0
        self.repeats = self._last_repeats = False

    def add(self, parts: int, repeats: bool) -> None:
        """Put one more part."""
        self.parts += parts
        self.last, self._last_repeats = parts, repeats
        self.repeats |= repeats

    def repeat(self, times: int) -> int:
        """Repeat the last part; the most parts that it may have now."""
        most = MAX_NESTED_PARTS if self._last_repeats else MAX_PARTS
        self.parts += self.last * max(0, times - 1)
        self.last *= max(1, times)
        self.repeats = self._last_repeats = True
        return most


def check_rules(text: str) -> None:
    """Raises BadRequest for a grammar of too many rules, or of rules that repeat too much."""
    if text.count(":") > MAX_RULES:
        raise BadRequest(f"the grammar has more than {MAX_RULES:,} rules", "make it smaller")
    check_repeats(text, "grammar")
