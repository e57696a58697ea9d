"""The models in the store as the daemon sees them, and the facts in the headers of their files.

Only this module and `server/pulls/{jobs,pull}.py` change the store, always from a thread. A file's header is read and
checked (`quant/gguf/{header,check}.py`) before any worker sees the file. Its vocabulary, which can be large, is not
kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from quant.errors import QuantError
from quant.gguf.adapter import AdapterHeader, check_adapter, check_base
from quant.gguf.check import check_model
from quant.gguf.drafts import check_draft
from quant.gguf.header import Header, read_file
from quant.gguf.values import readable
from quant.plan import ModelPlan
from registry.errors import ModelNotFound, RegistryError, StoreDamaged, StoreFailed
from registry.signatures.attaching import signatures_of
from registry.store import older
from registry.store.catalog import LayerBlob, Model
from registry.store.finding import is_meant
from registry.store.meaning import Meaning
from registry.store.store import Store
from runtime.errors import BadRequest, EngineError
from runtime.machine.fit import ModelSize
from server.errors import Unsupported
from server.policy.rules import ANYTHING, PolicyRules

log = logging.getLogger("lm.library")
# The capabilities that the daemon can serve; a model may have more.
SERVED = ("completion", "tools", "thinking", "insert", "embedding", "rerank")
T = TypeVar("T")
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

    def __init__(self, store: Store, rules: PolicyRules = ANYTHING) -> None:
        """`rules` are this box's policy."""
        self.store = store
        self.rules = rules
        self._facts: dict[str, Facts] = {}
        self._adapters: dict[str, AdapterHeader] = {}
        self._fitting: set[tuple[str, str]] = set()
        """Digests of adapters and of models that they are known to fit."""
        self._drafting: set[tuple[str, str]] = set()
        """Digests of models and of models that they are known to draft for."""

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
        """The facts in a model's file; raises StoreDamaged when it breaks its format, Unsupported for an adapter."""
        if model.is_adapter:
            raise Unsupported(f"`{model.name}` is an adapter, and no model", f"it is for {shown_base(model)}")
        facts = self._facts.get(model.blob_digest)
        if facts is None:
            facts = await asyncio.to_thread(_read, model.name, model.blob, _facts)
            self._facts[model.blob_digest] = facts
        return facts

    async def check_policy(self, model: Model) -> None:
        """Raise PolicyRefused for a model that the policy does not allow to be loaded."""
        if self.rules == ANYTHING:
            return
        self.rules.check_source(source_of(model))
        metadata = (await self.facts(model)).plan.metadata
        self.rules.check_file(model.name, model.size, metadata, model.licenses)
        if self.rules.require_signature is not None:
            self.rules.check_signature(model.name, await asyncio.to_thread(signatures_of, self.store, model))

    async def adapter(self, blob: LayerBlob, name: str) -> AdapterHeader:
        """The checked header of an adapter's file, which messages call `name`. Raises StoreDamaged."""
        found = self._adapters.get(blob.digest)
        if found is None:
            found = await asyncio.to_thread(_read, name, blob.path, check_adapter)
            self._adapters[blob.digest] = found
        return found

    async def check_fit(self, blob: LayerBlob, name: str, model: Model) -> None:
        """Raise BadRequest unless the adapter in `blob`, which messages call `name`, is for `model`."""
        pair = blob.digest, model.blob_digest
        if pair in self._fitting:
            return
        plan, header = (await self.facts(model)).plan, await self.adapter(blob, name)
        shapes = {tensor.name: tensor.shape[::-1] for tensor in plan.tensors}
        try:
            check_base(header, plan.architecture, shapes, model.name)
        except QuantError as error:
            raise BadRequest(f"`{name}` does not fit `{model.name}`: {error}", error.hint, "adapters") from None
        self._fitting.add(pair)

    async def check_draft(self, draft: Model, model: Model) -> None:
        """Raise BadRequest unless `draft` can draft for `model`."""
        pair = draft.blob_digest, model.blob_digest
        if pair in self._drafting:
            return
        hint = "name a smaller model of the same family, with the same vocabulary"
        if pair[0] == pair[1]:
            raise BadRequest(f"`{draft.name}` cannot draft for itself", hint, "draft")
        if "completion" not in capabilities(draft):
            raise BadRequest(f"`{draft.name}` writes no text, so it cannot draft", hint, "draft")
        for each in (draft, model):
            size = await self.model_size(each)
            if size.state_values and not (each is model and size.goes_back):
                raise BadRequest(
                    f"`{each.name}` remembers by a state, which cannot go back behind tokens that were drafted in vain",
                    "ask without a draft" if each is model else hint,
                    "draft",
                )
        header, base = [await asyncio.to_thread(_read, each.name, each.blob, _whole) for each in (draft, model)]
        try:
            check_draft(header, base, draft.name, model.name)
        except QuantError as error:
            raise BadRequest(str(error), error.hint, "draft") from None
        self._drafting.add(pair)

    async def own_draft(self, model: Model) -> Model | None:
        """The model that drafts for this one by its own settings; None where none does, or it is not here or unfit."""
        name = model.own.get("draft")  # `DRAFT` of a Modelfile
        if model.is_adapter or not (model.draft or (isinstance(name, str) and name)):
            return None
        try:
            draft = model.own_draft or await self.resolve(str(name))
            await self.check_draft(draft, model)
        except (RegistryError, EngineError) as error:
            log.warning("%s is answered without its draft: %s", model.name, error)
            return None
        return draft

    async def base(self, adapter: Model) -> Model:
        """The model that an adapter is for. Raises ModelNotFound where it is not here, or nobody knows which it is."""
        if not adapter.base:
            raise ModelNotFound(
                f"`{adapter.name}` is an adapter, and does not say for which model", "ask a model, with it as adapter"
            )
        try:
            found = await self.resolve(adapter.base)
        except ModelNotFound:
            raise ModelNotFound(
                f"`{adapter.name}` is an adapter for `{adapter.base}`, which is not here",
                f"`lm pull {adapter.base}` brings it in; another model of its kind can be asked with this adapter",
            ) from None
        if found.is_adapter:
            raise ModelNotFound(f"`{adapter.name}` is an adapter for `{found.name}`, which is one itself")
        return found

    async def adapters_of(self, model: Model) -> list[Model]:
        """The adapters here that are for this model. Raises StoreFailed."""
        others = [each for each in await self.models() if each.is_adapter and each.base]
        return [each for each in others if is_meant(each.base, model)]

    async def older(self, model: Model) -> dict[str, Any]:
        """The file to which an improved model can go back: its `size` in bytes, and `until` when; {} for none."""
        if not model.older:
            return {}

        def find() -> dict[str, Any]:
            found = older.find(self.store, model)
            if found is None:
                return {}
            until = datetime.fromtimestamp(found.since + older.SECONDS, UTC).isoformat(timespec="seconds")
            return {"older": {"size": found.bytes_beside(self.store.contents(model)), "until": until}}

        return await asyncio.to_thread(find)

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


def source_of(model: Model) -> str:
    """The source of a model as rules know it: "" for one that was made here."""
    return source_noted(model.own)


def source_noted(notes: object) -> str:
    """The source in lm's notes about a model, as `source_of` has it; "unknown" where there are none."""
    own = notes if isinstance(notes, dict) else {}
    source = str(own.get("source", ""))
    if source.startswith("/") or (not source and "parent" in own):
        return ""
    return source or "unknown"


def shown_base(adapter: Model) -> str:
    """The model that an adapter is for, in a sentence."""
    return f"`{adapter.base}`" if adapter.base else "a model that it does not name"


def _facts(header: Header) -> Facts:
    check_model(header)
    return Facts.of(header)


def _whole(header: Header) -> Header:
    return header


def _read(name: str, path: Path, judge: Callable[[Header], T]) -> T:
    """The judgement of a file's header by `judge`. Raises StoreDamaged, StoreFailed."""
    try:
        return judge(read_file(path))
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
