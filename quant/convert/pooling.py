"""Pooling: how the vectors of a text's tokens become one vector, by the files of sentence-transformers.

`modules.json` lists the steps, each with a folder. After the pooling there may be matrices (`Dense`, as in
EmbeddingGemma), whose weights lie in these folders; llama.cpp has places for two.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from quant.convert.base import tensor
from quant.convert.config import ModelConfig, read_text
from quant.errors import MalformedFile, UnsupportedModel
from quant.plan import Files
from quant.safetensors import Entry, read_header

MODULES = "modules.json"
# llama.cpp's number (`llama_pooling_type`) for a score in place of a vector.
RANK = 4
# sentence-transformers' names, old and new, and llama.cpp's numbers.
_MODES = {
    "pooling_mode_mean_tokens": 1,
    "pooling_mode_cls_token": 2,
    "pooling_mode_lasttoken": 3,
    "mean": 1,
    "cls": 2,
    "lasttoken": 3,
}
_HARMLESS = ("Transformer", "Pooling", "Normalize")
DENSE = (
    tensor("dense_2.linear.weight", "dense_2.weight", "dense", "width", required=False),
    tensor("dense_3.linear.weight", "dense_3.weight", "width", "dense", required=False),
)


def capabilities_of(pooling: int | None) -> tuple[str, ...]:
    """The capabilities of a model with this pooling, llama.cpp's number; empty for a model without pooling."""
    return () if pooling is None else ("rerank",) if pooling == RANK else ("embedding",)


def read_dense(files: Files) -> tuple[Entry, ...]:
    """The matrices after the pooling, by the names in `DENSE`; UnsupportedModel unless they are two without biases."""
    modules = _read_modules(files) if MODULES in files.names() else []
    folders = [str(module.get("path")) for module in modules if str(module.get("type")).endswith(".Dense")]
    if not folders:
        return ()
    found = []
    for number, folder in enumerate(folders, 2):
        name = f"{folder}/model.safetensors"
        if name not in files.names():
            raise MalformedFile(f"`{name}` is missing, and `{MODULES}` names it", hint="download the model again")
        config = ModelConfig.read(files, f"{folder}/config.json")
        plain = str(config.get("activation_function")).endswith("Identity") and not config.flag("bias", True)
        if len(folders) != len(DENSE) or not plain:
            raise UnsupportedModel("it has modules after its layers that cannot be converted (`Dense`)")
        entries = read_header(lambda at, count, name=name: files.read(name, at, count), files.size(name), name)  # type: ignore[misc]
        found += [replace(entry, name=f"dense_{number}.{entry.name}") for entry in entries]
    return tuple(found)


def read_pooling(files: Files, dense: bool = False) -> int | None:
    """llama.cpp's number of the pooling that the model was trained with; None where no file mentions embeddings.

    Raises UnsupportedModel for a pooling that llama.cpp does not have, and for further modules after the pooling.
    `dense`: the family has the two matrices of `DENSE`, so `Dense` modules are no further ones.
    """
    if MODULES not in files.names():
        return None
    modules = _read_modules(files)
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    further = [kind for kind in kinds if kind not in (*_HARMLESS, *(("Dense",) if dense else ()))]
    if further:
        raise UnsupportedModel(f"it has a module after its layers that cannot be converted (`{further[0][:40]}`)")
    if "Pooling" not in kinds:
        raise UnsupportedModel(f"`{MODULES}` has no pooling, so the model makes no embeddings of texts")
    folder = str(modules[kinds.index("Pooling")].get("path"))
    name = f"{folder}/config.json"
    if name not in files.names():
        raise MalformedFile(f"`{name}` is missing, and `{MODULES}` names it", hint="download the model again")
    config = ModelConfig.read(files, name)
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
