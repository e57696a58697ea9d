"""What the user owns: the models in the store, what their files say, and how clients see them.

Only this module and `jobs.py` call the store, always from a thread. A file's header is read by `quant.gguf.header` and
checked before any worker sees the file; what is kept of it leaves out the vocabulary, which can be large.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quant.errors import QuantError
from quant.gguf.header import Header, check_model, read_file
from registry.errors import StoreDamaged
from registry.store.store import Model, Store
from runtime.machine.fit import Shape

# What the daemon can do with a model so far; a model may know more.
SERVED = ("completion", "embedding", "rerank")
_LONG = 64
_PARAMETER_WIDTH = 30


@dataclass(frozen=True)
class Facts:
    """What a model's file says about itself: metadata with long arrays left out, and (name, type, shape) of tensors."""

    metadata: dict[str, Any]
    tensors: list[tuple[str, str, list[int]]]
    shape: Shape

    @classmethod
    def of(cls, header: Header) -> Facts:
        """The facts of a checked header."""
        kept = {key: _shortened(value) for key, value in header.metadata.items()}
        tensors = [(tensor.name, tensor.type.name, list(tensor.shape)) for tensor in header.tensors]
        return cls(kept, tensors, Shape.of(header.metadata))


class Library:
    """The store as the daemon sees it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._facts: dict[str, Facts] = {}
        self._deferred: set[str] = set()

    async def models(self) -> list[Model]:
        """All models, newest first."""
        models = await asyncio.to_thread(self.store.models)
        return sorted(models, key=lambda model: model.modified, reverse=True)

    async def resolve(self, name: str) -> Model:
        """The model of this name; raises ModelNotFound, BadName."""
        return await asyncio.to_thread(self.store.resolve, name)

    async def find(self, name: str) -> Model:
        """As `resolve`, but a broken model too, so that it can be removed."""
        return await asyncio.to_thread(self.store.find, name)

    async def facts(self, model: Model) -> Facts:
        """What its file says; raises StoreDamaged when the file breaks its format."""
        facts = self._facts.get(model.blob_digest)
        if facts is None:
            facts = await asyncio.to_thread(_read_facts, model.name, model.blob)
            self._facts[model.blob_digest] = facts
        return facts

    async def shape(self, model: Model) -> Shape:
        """Its sizes, for the memory model."""
        return (await self.facts(model)).shape

    async def delete(self, model: Model, in_use: set[str]) -> None:
        """Forget a model, and its file unless another model or a worker (blob digests `in_use`) has it."""
        if model.blob_digest in in_use:
            self._deferred.add(model.blob_digest)
        await asyncio.to_thread(self.store.delete, model)
        await asyncio.to_thread(self.store.collect, in_use)

    async def released(self, digest: str, in_use: set[str]) -> None:
        """A worker let go of this blob: free its file if its model was deleted meanwhile."""
        if digest in self._deferred:
            self._deferred.discard(digest)
            await asyncio.to_thread(self.store.collect, in_use)


def _read_facts(name: str, path: Path) -> Facts:
    try:
        header = read_file(path)
        check_model(header)
        return Facts.of(header)
    except (QuantError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise StoreDamaged(
            f"the file of `{name}` cannot be used: {why}", f"`lm rm {name}` removes it, `lm pull` brings it in again"
        ) from error


def _shortened(value: Any) -> Any:
    return [] if isinstance(value, list | tuple) and len(value) > _LONG else value


def details(model: Model) -> dict[str, Any]:
    """The `details` object of Ollama's API; every field is present and of the type that strict clients want."""
    config = model.config
    family = str(config.get("model_family") or "")
    return {
        "parent_model": "",
        "format": str(config.get("model_format") or "gguf"),
        "family": family,
        "families": list(config.get("model_families") or [family]),
        "parameter_size": str(config.get("model_type") or ""),
        "quantization_level": str(config.get("file_type") or ""),
        "context_length": int(config.get("context_length") or 0),
        "embedding_length": int(config.get("embedding_length") or 0),
    }


def capabilities(model: Model) -> list[str]:
    """What can be done with the model here, in Ollama's words."""
    return [name for name in model.config.get("capabilities") or ["completion"] if name in SERVED]


def row(model: Model) -> dict[str, Any]:
    """A model as `/api/tags` lists it."""
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
        "problem": model.problem,
    }


def shown(model: Model, facts: Facts, verbose: bool) -> dict[str, Any]:
    """A model as `/api/show` describes it."""
    info = dict(facts.metadata)
    info.setdefault("general.basename", model.name.rpartition("/")[2].partition(":")[0])
    if not verbose:
        info = {key: None if isinstance(value, list) else value for key, value in info.items()}
    return {
        "modelfile": f"# made by lm\nFROM {model.name}\n",
        "parameters": _parameters(model.params),
        "template": _template(facts.metadata),
        "license": str(facts.metadata.get("general.license", "")),
        "details": details(model),
        "model_info": info,
        "tensors": [{"name": name, "type": kind, "shape": shape} for name, kind, shape in facts.tensors],
        "capabilities": capabilities(model),
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


def _template(metadata: dict[str, Any]) -> str:
    """A template in Ollama's language that tells the truth to clients which search it for what a model can do.

    They look for `.Tools`, `.Suffix` and the word tools; the real template, in Jinja, is `tokenizer.chat_template` of
    `model_info`.
    """
    if "tokenizer.chat_template" in metadata:
        return "{{- range .Messages }}{{ .Role }}: {{ .Content }}\n{{ end }}"
    return "{{ .Prompt }}"
