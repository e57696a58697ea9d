"""Quality cards as manifests keep them. A card may come from anywhere with its model, so each of its fields is checked.

`server/quality/card.py` writes them. A broken card counts for none: it never keeps a model from being used.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

_LONGEST = 1000  # characters of a text in a card


class _Figure(msgspec.Struct):
    """A value with its standard error, None where there is none."""

    value: float
    error: float | None


class _Reference(msgspec.Struct):
    """The model that it was measured against."""

    name: str
    level: str
    whole: bool
    why: str
    digest: str


class _Text(msgspec.Struct):
    """The text that was read."""

    name: str
    digest: str
    window: int


class _Card(msgspec.Struct):
    """The fields that commands, routes and pages read."""

    weights: str
    manifest: str
    windows: int
    reference: _Reference
    text: _Text
    errors: str
    measured: str
    version: str
    mean: _Figure
    median: _Figure
    p99: _Figure
    p999: _Figure
    top1: _Figure
    flips: _Figure
    perplexity: _Figure
    reference_perplexity: _Figure
    ratio: _Figure


def checked(card: dict[str, Any], weights: str) -> dict[str, Any]:
    """The card, if it is a whole one of the weights with this digest, else {}."""
    try:
        found = msgspec.convert(card, _Card)
    except msgspec.ValidationError:
        return {}
    parts = (found, found.reference, found.text)
    texts = [value for part in parts for value in msgspec.structs.asdict(part).values() if isinstance(value, str)]
    plain = all(len(text) <= _LONGEST and text.isprintable() for text in texts)
    figures = [value for value in msgspec.structs.asdict(found).values() if isinstance(value, _Figure)]
    finite = all(math.isfinite(each.value) and math.isfinite(each.error or 0.0) for each in figures)
    return card if plain and finite and found.weights == weights else {}
