"""The source that a model here was made of, named again at a level."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from registry.errors import BadName
from registry.names import Reference, parse
from registry.store.model import Model


def source_at(model: Model, level: str) -> Reference | None:
    """The source of a model at a level; None where it was published as it is, or was made here."""
    text = "" if model.own.get("published") else str(model.own.get("source") or "")
    try:
        found = parse(text) if text else None
        if found is None or found.registry:
            return None
        return parse(f"{replace(found, level=None, name=found.name.tagged(None)).text}:{level}")
    except BadName:
        return None


def is_local(source: Reference) -> bool:
    """Whether a source can be read without asking the network."""
    return source.kind in ("folder", "demo", "package")


def is_here(source: Reference) -> bool:
    """Whether a source lies on this machine now; what is in it, its reader sees."""
    return is_local(source) and (source.kind != "folder" or Path(source.location).exists())
