"""Files that a pull takes over in the place of making them: its own part from before, a finished file here."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from quant.stream.copying import FileCopy
from registry.sources.local import Folder
from registry.sources.opening import Source
from registry.store.partial import Checkpoint, Partial, PullFacts
from registry.store.sharing import state_of

if TYPE_CHECKING:
    from quant.stream.pipeline import Conversion

Tell = Callable[[str], None]
Sharing = Literal["place", "link", "reflink", "copy"]


def begin(partial: Partial, facts: PullFacts, tell: Tell) -> Checkpoint | None:
    """The place in the partial file to go on from, None for its beginning. Raises DiskFull, StoreFailed."""
    before = partial.journal
    place = partial.begin(facts)
    if before is not None and place is None:
        tell("what an earlier pull left is of another source, recipe or version: it begins anew")
    return place


def is_shareable(sharing: Sharing, source: Source, conversion: Conversion | FileCopy) -> bool:
    """Whether the model is one file of this machine, as it is, and may be shared with its owner."""
    plan = conversion.plan
    whole = isinstance(conversion, FileCopy) and len(plan.shards) == 1 and not plan.translated
    return whole and isinstance(source, Folder) and source.has(plan.shards[0]) and sharing != "copy"


def adopt(sharing: Sharing, source: Source, partial: Partial, conversion: Conversion | FileCopy, tell: Tell) -> str:
    """Share a finished file with its owner in the place of copying it; its state, "" where it is lm's own now.

    Raises DiskFull, StoreFailed.
    """
    if not is_shareable(sharing, source, conversion) or not isinstance(source, Folder):
        return ""
    file = conversion.plan.shards[0]
    descriptor, place = source.descriptor(file), source.place(file) if sharing == "place" else None
    adopted = partial.adopt(descriptor, link=sharing in ("link", "place"), place=place)
    if adopted == "link":
        tell("the file is not copied: it is shared with its owner (`--copy` makes one of lm's own)")
    elif adopted == "place":
        tell(f"the file is not copied: it is read from `{place}` (`--copy` makes one of lm's own)")
    # From before it is hashed: whatever changes it from now on makes another state.
    return state_of(os.fstat(descriptor)) if adopted in ("link", "place") else ""
