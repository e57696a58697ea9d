"""The models in the store as the daemon sees them, and the facts in the headers of their files.

Only this module and `server/pulls/{jobs,pull}.py` change the store, always from a thread. A file's header is read and
checked (`quant/gguf/{header,check}.py`) before any worker sees the file. Its vocabulary, which can be large, is not
kept.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quant.errors import QuantError
from quant.gguf.check import check_model
from quant.gguf.header import Header, read_file
from quant.gguf.values import readable
from quant.plan import ModelPlan
from registry.errors import StoreDamaged, StoreFailed
from registry.store.catalog import Model
from registry.store.meaning import Meaning
from registry.store.store import Store
from runtime.machine.fit import ModelSize

# The capabilities that the daemon can serve; a model may have more.
SERVED = ("completion", "tools", "thinking", "embedding", "rerank")
# Longer lists of the metadata are not kept.
_LONG = 64


@dataclass(frozen=True)
class Facts:
    """The plan of a model's file, whose `metadata` have empty lists in place of long ones; and the model's sizes."""

    plan: ModelPlan
    model_size: ModelSize

    @classmethod
    def of(cls, header: Header) -> Facts:
        """From a checked header."""
        plan = ModelPlan.of(header)
        short = {key: _shortened(value) for key, value in header.metadata.items()}
        return cls(replace(plan, metadata=short), ModelSize.of_plan(plan))


class Library:
    """The store as the daemon sees it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._facts: dict[str, Facts] = {}

    async def models(self) -> list[Model]:
        """All models, newest first."""
        models = await asyncio.to_thread(self.store.models)
        return sorted(models, key=lambda model: model.modified, reverse=True)

    async def listing(self) -> tuple[list[Model], list[str]]:
        """All models of the folders that can be read, newest first, and sentences about the other folders."""
        unreadable: list[StoreFailed] = []
        models = await asyncio.to_thread(self.store.models, unreadable)
        problems = [f"{failure}; {failure.hint}" for failure in unreadable]
        return sorted(models, key=lambda model: model.modified, reverse=True), problems

    async def resolve(self, name: str) -> Model:
        """The model of this name; raises ModelNotFound, BadName."""
        return await asyncio.to_thread(self.store.resolve, name)

    async def find(self, name: str) -> Model:
        """As `resolve`, but a broken model too, so that it can be removed."""
        return await asyncio.to_thread(self.store.find, name)

    async def meant(self, name: str) -> list[Model]:
        """The models that a name may mean, broken ones too: all levels for a bare one. Raises BadName, StoreFailed."""
        return await asyncio.to_thread(self.store.meant, name)

    async def meaning(self, name: str) -> Meaning | None:
        """The meaning of a bare name, and why; None for a full one and for what is not here. Raises BadName."""
        return await asyncio.to_thread(self.store.meaning, name)

    async def reasons(self) -> dict[str, str]:
        """Why a bare name means this level, by the full names of the models that are meant, where others are here."""
        return {each.name.display: each.reason for each in await asyncio.to_thread(self.store.meanings)}

    async def facts(self, model: Model) -> Facts:
        """The facts in a model's file; raises StoreDamaged when the file breaks its format."""
        facts = self._facts.get(model.blob_digest)
        if facts is None:
            facts = await asyncio.to_thread(_read_facts, model.name, model.blob)
            self._facts[model.blob_digest] = facts
        return facts

    async def model_size(self, model: Model) -> ModelSize:
        """Its sizes, for the memory model."""
        return (await self.facts(model)).model_size

    async def delete(self, model: Model, in_use: set[str]) -> None:
        """Forget a model, and its file unless another model or the pool (blob digests `in_use`) has it."""
        await asyncio.to_thread(self.store.delete, model)
        await self.collect(in_use)

    async def collect(self, in_use: set[str]) -> None:
        """Remove the files that belong to no model and are not `in_use` (blob digests)."""
        await asyncio.to_thread(self.store.collect, in_use)


def _read_facts(name: str, path: Path) -> Facts:
    try:
        header = read_file(path)
        check_model(header)
        return Facts.of(header)
    except (QuantError, FileNotFoundError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise StoreDamaged(
            f"the file of `{name}` cannot be used: {why}", f"`lm rm {name}` removes it, `lm pull` brings it in again"
        ) from error
    except OSError as error:
        hint = "check the file's rights and its disk"
        raise StoreFailed(f"the file of `{name}` cannot be read: {error.strerror}", hint) from error


def _shortened(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [] if len(value) > _LONG else [_shortened(each) for each in value]
    return readable(value) if isinstance(value, str) else value


def capabilities(model: Model) -> list[str]:
    """The capabilities of a model that the daemon can serve, in Ollama's words: `completion`, `embedding`, …."""
    return [name for name in model.config.get("capabilities") or ["completion"] if name in SERVED]
