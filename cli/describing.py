"""A model described for people, as `lm show` and the chat's `/show` print it."""

from __future__ import annotations

from typing import Any

from cli import console
from runtime.units import size_text

# The title of a row, and the field of the answer's `lm`.
_ORIGIN = {"source": "source", "made from": "origin", "revision": "revision", "reason": "reason"}


def print_model(description: dict[str, Any]) -> None:
    """An answer of `/api/show` for people."""
    for title, rows in _sections(description).items():
        if rows:
            console.out(f"  {title}")
            width = max(len(key) for key, _ in rows)
            for key, value in rows:
                console.line(f"    {key:<{width}}    {value}".rstrip(), width + 8)
            console.out()


def _sections(description: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """An answer of `/api/show` as titles and rows of name and value."""
    details, info, own = description["details"], description["model_info"], description.get("lm") or {}
    architecture = info.get("general.architecture", "")
    reason = description.get("context_reason")
    model = {
        "architecture": architecture,
        "parameters": details["parameter_size"],
        "context length": info.get(f"{architecture}.context_length"),
        "loaded with": f"{description['default_context']} tokens: {reason}" if reason else None,
        "embedding length": info.get(f"{architecture}.embedding_length"),
        "quantization": details["quantization_level"],
        "size": size_text(description["size"]) if description.get("size") else None,
        "draft": own.get("draft"),
    }
    adapter = own.get("adapter") or {}
    return {
        "Model": _rows(model),
        "Adapter": _rows(
            {
                "base": adapter.get("base") or (adapter and "not said"),
                "rank": ", ".join(map(str, adapter.get("ranks", []))),
                "alpha": f"{adapter['alpha']:g}" if adapter else None,
                "changes": ", ".join(adapter.get("changes", [])),
            }
        ),
        "Origin": _rows({title: own.get(key) for title, key in _ORIGIN.items()}),
        "Capabilities": [(name, "") for name in description["capabilities"]],
        "Parameters": [_split(line) for line in description["parameters"].splitlines()],
        "System": [(line, "") for line in description.get("system", "").splitlines()],
        "License": [(line, "") for line in description["license"].splitlines()[:2]],
    }


def _rows(values: dict[str, Any]) -> list[tuple[str, str]]:
    return [(key, str(value)) for key, value in values.items() if value]


def _split(line: str) -> tuple[str, str]:
    name, _, value = line.partition(" ")
    return name, value.strip()
