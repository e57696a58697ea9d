"""The text on which parts of a model are judged before some of them go."""

from __future__ import annotations

from typing import NamedTuple


class SampleText(NamedTuple):
    """The user's `text`, which people call `name`; lm's calibration text where it is ""."""

    text: str = ""
    name: str = ""

    @property
    def words(self) -> str:
        """The text as a sentence calls it."""
        return f"`{self.name}`" if self.text else "lm's calibration text"
