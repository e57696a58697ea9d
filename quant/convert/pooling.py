"""How the vectors of a text's tokens become one: what sentence-transformers writes beside a model."""

from __future__ import annotations

import json
from typing import Any

from quant.convert.config import Config, read_text
from quant.errors import MalformedFile, UnsupportedModel
from quant.plan import Files

MODULES = "modules.json"
# sentence-transformers' names, old and new, and llama.cpp's numbers (`llama_pooling_type`).
_MODES = {
    "pooling_mode_mean_tokens": 1,
    "pooling_mode_cls_token": 2,
    "pooling_mode_lasttoken": 3,
    "mean": 1,
    "cls": 2,
    "lasttoken": 3,
}
_HARMLESS = ("Transformer", "Pooling", "Normalize")


def read_pooling(files: Files) -> int | None:
    """llama.cpp's number of the pooling that the model was trained with; None where nothing speaks of embeddings.

    Raises UnsupportedModel for models with further layers after the pooling, or with another pooling.
    """
    if MODULES not in files.names():
        return None
    modules = _read_modules(files)
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    further = [kind for kind in kinds if kind not in _HARMLESS]
    if further:
        raise UnsupportedModel(f"it has a module after its layers that cannot be converted (`{further[0][:40]}`)")
    if "Pooling" not in kinds:
        raise UnsupportedModel(f"`{MODULES}` has no pooling, so the model makes no embeddings of texts")
    folder = str(modules[kinds.index("Pooling")].get("path"))
    name = f"{folder}/config.json"
    if name not in files.names():
        raise MalformedFile(f"`{name}` is missing, and `{MODULES}` names it", hint="download the model again")
    config = Config.read(files, name)
    chosen = [mode for mode in _MODES if config.get(mode) is True]
    chosen = chosen or [mode for mode in _MODES if config.get("pooling_mode") == mode]
    others = [key for key, value in config.values.items() if key.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or set(others) - set(chosen):
        raise UnsupportedModel("its vectors are pooled in a way that llama.cpp does not know")
    return _MODES[chosen[0]]


def _read_modules(files: Files) -> list[dict[str, Any]]:
    try:
        modules = json.loads(read_text(files, MODULES))
    except (ValueError, RecursionError):
        modules = None
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise MalformedFile(f"`{MODULES}` is no list of modules")
    return modules
