"""The adapters of a model in memory: loaded when an answer wants them, freed when nobody has for a while.

llama.cpp sets adapters for a whole context, so that answers with different ones take turns (`runtime/engine/turns.py`).
Their memory is lent by the spill (`runtime/cache/spill.py`), which was set aside when the model was loaded.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from runtime.errors import DoesNotFit, LoadFailed
from runtime.llama.context import Context
from runtime.llama.library import LOG, library
from runtime.llama.model import LlamaModel
from runtime.messages import Adapter, AdapterSet
from runtime.units import size_text

# Seconds after which an adapter goes that no answer has wanted; sooner where others need its room.
UNUSED_SECONDS = 300.0


class Adapters:
    """The loaded adapters of one model. Owned by the engine's thread. `bytes` is the memory that they take."""

    def __init__(self, model: LlamaModel, lend: Callable[[int], bool], take_back: Callable[[int], None]) -> None:
        """`lend` sets N bytes aside, False where there is less; `take_back` gives them back."""
        self._model = model
        self._lend, self._take_back = lend, take_back
        self._handles: dict[str, Any] = {}  # by path, the least recently wanted first
        self._sizes: dict[str, int] = {}
        self._names: dict[str, str] = {}
        self._wanted: dict[str, float] = {}
        """When an answer wanted each adapter last, by the monotonic clock."""
        self._set: dict[Context, AdapterSet] = {}

    @property
    def bytes(self) -> int:
        """Bytes of memory that the adapters take."""
        return sum(self._sizes.values())

    @property
    def names(self) -> list[str]:
        """The names of the adapters in memory, as the last answers that wanted them had them; from any thread."""
        return list(self._names.values())

    def load(self, wanted: AdapterSet, in_use: Iterable[AdapterSet], before_free: Callable[[], None]) -> None:
        """Bring adapters in; others may go for them, but none of a set of `in_use`.

        `before_free` ends whatever a context computes. Raises DoesNotFit where there is no room, LoadFailed for a file
        that llama.cpp refuses.
        """
        needed = {each.path for used in (wanted, *in_use) for each in used}
        for each in wanted:
            if each.path in self._handles:
                self._handles[each.path] = self._handles.pop(each.path)
            else:
                self._bring(each, needed, before_free)
            self._wanted[each.path] = time.monotonic()
            self._names[each.path] = each.name

    def _bring(self, adapter: Adapter, needed: set[str], before_free: Callable[[], None]) -> None:
        """Load an adapter into room that others of no path in `needed` may have to leave."""
        while not self._lend(adapter.size):
            idle = next((path for path in self._handles if path not in needed), None)
            if idle is None:
                raise DoesNotFit(
                    f"the adapter `{adapter.name}` needs {size_text(adapter.size)}, and its model leaves no room",
                    "unload the model with `lm stop`, or close other programs, and ask again",
                )
            before_free()
            self._free(idle)
        self._sizes[adapter.path] = adapter.size
        try:
            self._handles[adapter.path] = self._open(adapter)
        except LoadFailed:
            self._take_back(self._sizes.pop(adapter.path))
            raise

    def free_unused(self, in_use: Iterable[AdapterSet], before_free: Callable[[], None]) -> None:
        """Free the adapters that no answer has wanted for a while, and that are in no set of `in_use`."""
        since = time.monotonic() - UNUSED_SECONDS
        old = [path for path in self._handles if self._wanted[path] <= since]
        if old:
            needed = {each.path for used in in_use for each in used}
            before_free()
            for path in old:
                if path not in needed:
                    self._free(path)

    def use(self, context: Context, wanted: AdapterSet) -> bool:
        """Compute in `context` with these adapters from now on, which are loaded; whether that is a change."""
        if self._set.get(context, ()) == wanted:
            return False
        context.adapt([(self._handles[each.path], each.scale) for each in wanted])
        self._set[context] = wanted
        return True

    def forget(self, context: Context) -> None:
        """Note that a context is gone."""
        self._set.pop(context, None)

    def _open(self, adapter: Adapter) -> Any:
        LOG.error = ""
        handle = library().llama_adapter_lora_init(self._model.handle, os.fsencode(adapter.path))
        LOG.take_buffers()
        if not handle:
            reason = f": {LOG.error}" if LOG.error else ""
            raise LoadFailed(f"llama.cpp cannot load the adapter `{adapter.name}`{reason}", "pull it again")
        return handle

    def _free(self, path: str) -> None:
        """Free an adapter that no answer uses. A context may still be set to it, though it computes nothing with it."""
        for context, used in self._set.items():
            if any(each.path == path for each in used):
                context.adapt([])
                self._set[context] = ()
        library().llama_adapter_lora_free(self._handles.pop(path))
        del self._wanted[path], self._names[path]
        self._take_back(self._sizes.pop(path))
