"""A quality card: how far a model's probabilities are from a reference's, as its manifest keeps it.

The card is a layer of its own, never part of the GGUF file. `weights` is the digest of the file that was measured: a
card beside other weights counts for nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

from registry.store.model import Model
from server.config import VERSION
from server.quality.frames import ReadThrough

FORMAT = 1
_UNQUANTIZED = ("F32", "F16", "BF16")


class ReferenceNote(NamedTuple):
    """The reference of a measurement: its name, its level, whether it is the unquantized source, and why it was."""

    name: str
    level: str
    why: str
    digest: str

    @property
    def whole(self) -> bool:
        """Whether its weights are not quantized."""
        return self.level in _UNQUANTIZED


def card_of(model: Model, reference: ReferenceNote, read: ReadThrough, window: int) -> dict[str, Any]:
    """The card of a model. Divergences are in nats; every error is by windows, not by tokens as if independent."""
    return {
        "format": FORMAT,
        "weights": model.blob_digest,
        "manifest": model.card.get("manifest") or model.digest,
        "level": str(model.config.get("file_type") or ""),
        "bytes": model.size,
        "reference": {
            "name": reference.name,
            "level": reference.level,
            "whole": reference.whole,
            "why": reference.why,
            "digest": reference.digest,
        },
        "text": {"name": read.text_name, "digest": read.text_digest, "window": window},
        "errors": "standard errors by windows",
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": VERSION,
        **read.figures,
    }
