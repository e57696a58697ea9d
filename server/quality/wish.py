"""The wish for a measurement."""

from __future__ import annotations

from dataclasses import dataclass

from registry.names import Reference
from registry.net.hub import Hub
from registry.store.model import Model
from runtime.meter.sizes import WINDOWS


@dataclass(frozen=True)
class QualityWish:
    """Measure `model`. `against`: a model that is here, or a source; None for its own source, or the next best thing.

    `text` is the user's, "" for lm's. `windows` is the most windows. With `keep` the card goes into the manifest.
    """

    model: Model
    hub: Hub
    against: Model | Reference | None = None
    text: str = ""
    windows: int = WINDOWS
    keep: bool = True
