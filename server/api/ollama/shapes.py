"""Answers of Ollama's API about a model in the store: its details, its row in a list, everything about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from quant.gguf.adapter import AdapterHeader
from registry.modelfile import Command, written_as_far_as_possible
from registry.store.catalog import LayerBlob, Model
from server.library import Facts, capabilities

_PARAMETER_WIDTH = 30
# Entries of a config that a Modelfile may set.
_MARKS: tuple[Literal["renderer"], Literal["parser"], Literal["requires"]] = ("renderer", "parser", "requires")


def details(model: Model) -> dict[str, Any]:
    """The `details` object of Ollama's API; every field is present and of the type that strict clients want."""
    config = model.config
    family = str(config.get("model_family") or "")
    return {
        "parent_model": str(model.own.get("parent") or ""),
        "format": str(config.get("model_format") or "gguf"),
        "family": family,
        "families": list(config.get("model_families") or [family]),
        "parameter_size": str(config.get("model_type") or ""),
        "quantization_level": str(config.get("file_type") or ""),
        "context_length": int(config.get("context_length") or 0),
        "embedding_length": int(config.get("embedding_length") or 0),
    }


def row(model: Model, default: str = "") -> dict[str, Any]:
    """A model as `/api/tags` lists it; `default`: why a bare name means this level of several, "" if it does not."""
    own = model.own
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": model.modified.isoformat(),
        "size": model.size,
        "digest": model.digest,
        "details": details(model),
        "capabilities": capabilities(model),
        "level": own.get("level", ""),
        "reason": own.get("reason", ""),
        "source": own.get("source", ""),
        "default": default,
        "base": model.base,
        "problem": model.problem,
        **({"quality": model.card} if model.card else {}),
    }


def description(model: Model, facts: Facts, verbose: bool) -> dict[str, Any]:
    """A model as `/api/show` describes it; `verbose` keeps arrays, which are null otherwise."""
    metadata = facts.plan.metadata
    info = dict(metadata)
    info.setdefault("general.basename", model.name.rpartition("/")[2].partition(":")[0])
    if not verbose:
        info = {key: None if isinstance(value, list) else value for key, value in info.items()}
    return {
        "modelfile": _modelfile(model),
        "parameters": _parameters(model.params),
        "template": model.template or _template(metadata, capabilities(model)),
        "license": "\n\n".join(model.licenses) or str(metadata.get("general.license", "")),
        "system": model.system,
        "details": details(model),
        "model_info": info,
        "tensors": [
            {"name": tensor.name, "type": tensor.type.name, "shape": list(tensor.shape)}
            for tensor in facts.plan.as_stored()
        ],
        "capabilities": capabilities(model),
        "modified_at": model.modified.isoformat(),
        "digest": model.digest,
        "size": model.size,
        "lm": model.own,
        **({"quality": model.card} if model.card else {}),
        **({"draft": {"digest": model.draft.digest, "size": model.draft.size}} if model.draft else {}),
        **({"drafts": "through its own heads"} if facts.model_size.has_heads else {}),
        **({"messages": list(model.messages)} if model.messages else {}),
        **{key: value for key in _MARKS if (value := model.config.get(key))},
    }


def _modelfile(model: Model) -> str:
    """A Modelfile that makes the same model of this one. A licence needs no line: it comes with the model."""
    commands = [Command("from", model.name)]
    commands += [Command("template", model.own_template)] if model.own_template else []
    commands += [Command("system", model.system)] if model.system else []
    for name, values in model.params.items():
        for value in values if isinstance(values, list) else [values]:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            commands.append(Command("parameter", text, name))
    commands += [Command("message", each["content"], each["role"]) for each in model.messages]
    draft = model.own.get("draft")
    commands += [Command("draft", draft)] if isinstance(draft, str) and draft else []
    commands += [Command(key, str(value)) for key in _MARKS if (value := model.config.get(key))]
    return f"# made by lm; `lm create NAME -f` this file makes the same model\n{written_as_far_as_possible(commands)}"


def adapter_facts(blob: LayerBlob, header: AdapterHeader) -> dict[str, Any]:
    """An adapter that a model has of its own, as `/api/show` tells of it."""
    return {
        "digest": blob.digest,
        "size": blob.size,
        "alpha": header.alpha,
        "ranks": header.ranks,
        "changes": header.roles,
    }


def adapter_description(model: Model, header: AdapterHeader, able: list[str]) -> dict[str, Any]:
    """An adapter as `/api/show` describes it; `able` are the capabilities of its base."""
    base = model.base
    return {
        "modelfile": f"# made by lm\nFROM {base or 'its base'}\nADAPTER {model.name}\n",
        "parameters": "",
        "template": "",
        "license": "",
        "details": details(model) | {"parent_model": base},
        "model_info": {"general.architecture": header.architecture, "adapter.lora.alpha": header.alpha},
        "tensors": [
            {"name": tensor.name, "type": tensor.type.name, "shape": list(tensor.shape)}
            for pair in header.pairs.values()
            for tensor in (pair.down, pair.up)
        ],
        "capabilities": able,
        "modified_at": model.modified.isoformat(),
        "digest": model.digest,
        "size": model.size,
        "lm": model.own,
    }


def _parameters(params: dict[str, Any]) -> str:
    """Lines of `key value`, texts quoted as JSON does, one line for each of several values."""
    lines = []
    for key, values in params.items():
        for value in values if isinstance(values, list) else [values]:
            text = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' if isinstance(value, str) else str(value)
            lines.append(f"{key:<{_PARAMETER_WIDTH}} {text}")
    return "\n".join(lines)


def _template(metadata: Mapping[str, Any], offered: list[str]) -> str:
    """A template in Ollama's language that tells the truth to clients which search it for what a model can do.

    They look for `.Tools`, `.Suffix` and the word tools; the real template, in Jinja, is `tokenizer.chat_template` of
    `model_info`.
    """
    suffix = "{{- if .Suffix }}{{ .Prompt }}{{ .Suffix }}{{ end }}" if "insert" in offered else ""
    tools = "{{- if .Tools }}{{ .Tools }}{{ end }}" if "tools" in offered else ""
    if "tokenizer.chat_template" in metadata:
        return suffix + tools + "{{- range .Messages }}{{ .Role }}: {{ .Content }}\n{{ end }}"
    return suffix + "{{ .Prompt }}"
