"""The wishes of a request for the worker that answers it: context, cache type, draft, time to stay."""

from __future__ import annotations

from dataclasses import dataclass

from registry.store.catalog import Model


@dataclass(frozen=True)
class LoadWish:
    """How a model should be loaded for a request; what is None is left to the model's own settings, or the daemon's.

    `context` counts tokens, `kv_type` is the type of the KV cache. The worker stays `keep_alive` seconds after its last
    user, below 0 for ever. `draft` is the model that drafts for it. The request's adapters take `beside` bytes.
    """

    context: int | None = None
    keep_alive: float | None = None
    kv_type: str | None = None
    draft: Model | None = None
    beside: int = 0


USUAL = LoadWish()
