"""A cut as it is wished; the daemon, which makes none itself, imports no more."""

from __future__ import annotations

import msgspec


class Cut(msgspec.Struct, frozen=True, omit_defaults=True):
    """The parts of a model that stay, or go.

    - `scripts`: names of scripts, such as `latin`; tokens that no text in them can have are dropped.
    - `tokens`: ids of tokens that texts need; all others are dropped. None where there are no such texts.
    - `words`: how people call what the vocabulary is cut to, such as `en` or the name of a file.
    - `experts`: numbers of the experts that stay, by layer; nothing where all of them do. `read` is how people call the
      text on which they were chosen.
    - `width`: a folder with the channels of each layer that stay (`quant/cuts/width.py`); "" where all of them do.
    - `layers`: numbers of layers that are dropped, from 0.
    """

    scripts: tuple[str, ...] = ()
    tokens: list[int] | None = None
    words: str = ""
    layers: tuple[int, ...] = ()
    experts: dict[int, list[int]] = {}
    width: str = ""
    read: str = ""

    @property
    def empty(self) -> bool:
        """Whether everything stays."""
        return not (self.scripts or self.layers or self.experts or self.width) and self.tokens is None


NO_CUT = Cut()
