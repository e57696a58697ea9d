"""The meaning of a bare name where several variants of a model are here: one rule, and a sentence that says why.

The variant that the user pinned (`lm default`) comes first, then the tag `latest`, as models of registries and models
that are made here have it. The variant that the last pull without a level chose is next. Without these it is the
variant nearest in size to the automatic level, as far as a pull noted that size; else the variant that came first. So
trying one more level never changes the meaning. A variant without some tokens or layers (`lm prune NAME`) counts only
where no whole one is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from registry.names import LATEST, Name


class LevelHere(NamedTuple):
    """A variant as far as the rule looks at it. `size` and `automatic_bytes` are bytes of weights.

    `automatic_bytes` is the size of the level that a pull without a level would have made, 0 where nobody noted it. A
    variant that is `cut` lacks tokens or layers.
    """

    tag: str
    size: int
    modified: datetime
    automatic_bytes: int
    cut: bool = False


@dataclass(frozen=True)
class Meaning:
    """The variant that a bare name means (`name`), the `reason`, and the names of the `others` that are here."""

    bare: Name
    name: Name
    reason: str
    others: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """The meaning and why, as every place shows it."""
        return f"`{self.bare.display}` means `{self.name.display}`: {self.reason}"


def decide(bare: Name, variants: Sequence[LevelHere], pinned: str, chosen: str) -> Meaning:
    """The meaning of `bare` among `variants`, at least one; `pinned` and `chosen` are tags, "" for none."""
    tag, reason = _decide({each.tag: each for each in variants}, pinned, chosen)
    others = tuple(bare.tagged(each.tag).display for each in variants if each.tag != tag)
    return Meaning(bare, bare.tagged(tag), reason, others)


def _decide(variants: dict[str, LevelHere], pinned: str, chosen: str) -> tuple[str, str]:
    if len(variants) == 1:
        return next(iter(variants)), "it is the only level here"
    if pinned in variants:
        return pinned, "`lm default` says so"
    variants = {tag: each for tag, each in variants.items() if not each.cut} or variants
    if len(variants) == 1:
        return next(iter(variants)), "it is the only level here that is whole"
    if LATEST in variants:
        return LATEST, "it is tagged `latest`"
    if chosen in variants:
        return chosen, "it is the level that was chosen automatically"
    by_age = sorted(variants.values(), key=lambda each: (each.modified, each.tag))
    aims = [each.automatic_bytes for each in by_age if each.automatic_bytes > 0]
    if aims:
        return min(by_age, key=lambda each: _ratio(each.size, aims[-1])).tag, "it is the nearest to the automatic level"
    return by_age[0].tag, "it came first"


def _ratio(one: int, other: int) -> float:
    """How many times larger the larger size is."""
    return max(one, other) / max(1, min(one, other))
