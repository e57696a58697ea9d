"""A model described for people, as `lm show` and the chat's `/show` print it."""

from __future__ import annotations

import json
from typing import Any

from cli import console
from runtime.units import size_text

# Divergences of a quality card, in nats, by its keys.
DIVERGENCES = {"mean": "KL divergence", "median": "median", "p99": "99 %", "p999": "99.9 %"}
# The title of a row, and the field of the answer's `lm`.
_ORIGIN = {
    "source": "source",
    "made from": "origin",
    "revision": "revision",
    "reason": "reason",
    "weighed by": "statistics",
}


def print_model(description: dict[str, Any]) -> None:
    """An answer of `/api/show` for people."""
    for title, rows in _sections(description).items():
        if rows:
            console.out(f"  {title}")
            width = max(len(key) for key, _ in rows)
            for key, value in rows:
                console.line(f"    {key:<{width}}    {value}".rstrip(), width + 8)
            console.out()


def part(description: dict[str, Any], what: str) -> str:
    """A part of an answer of `/api/show`: the field `what`, or for `template` the chat template in Jinja."""
    jinja = description["model_info"].get("tokenizer.chat_template") if what == "template" else None
    return str(jinja or description.get(what) or "").rstrip("\n")


def tensor_types(description: dict[str, Any]) -> str:
    """The types of a model's matrices as `llama-quantize --tensor-type-file` reads them: `pattern=type`, one a line."""
    matrices = [each for each in description["tensors"] if len(each["shape"]) > 1 and each["name"].endswith("weight")]
    return "\n".join(f"^{each['name'].replace('.', chr(92) + '.')}$={each['type']}" for each in matrices)


def print_details(description: dict[str, Any]) -> None:
    """The entries and the tensors of a model's file, from an answer with `verbose`."""
    rows = {
        "Metadata": [(key, _short(value)) for key, value in description["model_info"].items()],
        "Tensors": [(each["name"], f"{each['type']} {each['shape']}") for each in description["tensors"]],
    }
    for title, pairs in rows.items():
        console.out(f"  {title}")
        width = max((len(key) for key, _ in pairs), default=0)
        for key, value in pairs:
            console.line(f"    {key:<{width}}    {value}".rstrip(), width + 8)
        console.out()


def _short(value: Any) -> str:
    """A value on one line: of a list its length and its first members."""
    if isinstance(value, list):
        more = ", …" if len(value) > 3 else ""
        return f"{len(value):,} values: {', '.join(map(_short, value[:3]))}{more}"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:99]}…"


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
        "draft": own.get("draft") or (description.get("draft") and size_text(description["draft"]["size"])),
        "drafts": description.get("drafts"),
    }
    adapter = own.get("adapter") or {}
    base = [("base", adapter.get("base") or "not said")] if adapter else []
    adapters = [adapter] if adapter else description.get("adapters", [])
    return {
        "Model": _rows(model),
        "Adapter": [*base, *(row for each in adapters for row in _adapter(each))],
        "Origin": _rows({title: own.get(key) for title, key in _ORIGIN.items()}),
        "Quality": [*quality_rows(description.get("quality") or {}), *_improved(own, bool(description.get("older")))],
        "Signatures": [
            (f"by {each.get('signer', 'somebody')}", f"does not hold: {each['fault']}" if each["fault"] else "")
            for each in description.get("signatures", [])
        ],
        "Capabilities": [(name, "") for name in description["capabilities"]],
        "Parameters": [_split(line) for line in description["parameters"].splitlines()],
        "System": [(line, "") for line in description.get("system", "").splitlines()],
        "License": [(line, "") for line in description["license"].splitlines()[:2]],
    }


def _improved(own: dict[str, Any], can_go_back: bool) -> list[tuple[str, str]]:
    """The row about an improvement: its date, both divergences, and the way back while there is one."""
    found = own.get("improved")
    if not found:
        return []
    back = "; `lm rollback` goes back" if can_go_back else ""
    before, after = (f"{found[key]['value']:.4g}" for key in ("before", "after"))
    return [("improved", f"on {found['at'][:10]}: KL divergence {before} → {after}{back}")]


def quality_rows(card: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows of a quality card, empty for none."""
    if not card:
        return []
    reference, text = card["reference"], card["text"]
    percent = {"top1": "same likeliest token", "flips": "flips"}
    rows = [(title, figure_text(card[key])) for key, title in DIVERGENCES.items()]
    rows += [(title, figure_text(card[key], percent=True)) for key, title in percent.items()]
    ratio = f"{figure_text(card['perplexity'])}, × {figure_text(card['ratio'])} of the reference's"
    original = "" if reference["whole"] else ", which is quantized itself"
    return [
        *rows,
        ("perplexity", ratio),
        ("against", f"{reference['name']} at {reference['level']}{original}: {reference['why']}"),
        ("text", f"{text['name']}, {card['windows']} windows of {text['window']} tokens"),
        ("measured", f"{card['measured'][:10]} by lm {card['version']}; ± are {card['errors']}"),
    ]


def figure_text(figure: dict[str, Any], *, percent: bool = False) -> str:
    """A figure with its standard error."""
    scale, unit = (100, " %") if percent else (1, "")
    value = f"{figure['value'] * scale:.4g}"
    return f"{value}{unit}" if figure["error"] is None else f"{value} ± {figure['error'] * scale:.2g}{unit}"


def _adapter(facts: dict[str, Any]) -> list[tuple[str, str]]:
    return _rows(
        {
            "rank": ", ".join(map(str, facts["ranks"])),
            "alpha": f"{facts['alpha']:g}",
            "changes": ", ".join(facts["changes"]),
            "size": size_text(facts["size"]) if facts.get("size") else None,
        }
    )


def _rows(values: dict[str, Any]) -> list[tuple[str, str]]:
    return [(key, str(value)) for key, value in values.items() if value]


def _split(line: str) -> tuple[str, str]:
    name, _, value = line.partition(" ")
    return name, value.strip()
