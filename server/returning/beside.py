"""The files beside the weights of a source: settings, tokenizer, template, card, code. They are taken as they are."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from quant.convert.config import ModelConfig
from quant.errors import UnsupportedModel
from registry.errors import RegistryError
from registry.names import parse
from registry.net.network import Network
from registry.sources.base import Source
from registry.sources.opening import open_source
from registry.store.model import Model
from server.config import Config

CONFIG = "config.json"
# Files of a model that tell nothing of its weights.
_TAKEN = re.compile(
    r"(generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|tokenizer\.model|merges\.txt|vocab\.txt|chat_template\.jinja|[\w.-]+\.tiktoken"
    r"|modules\.json|config_sentence_transformers\.json|sentence_bert_config\.json|\d_\w+/config\.json"
    r"|[\w-]+\.py|README\.md|(LICENSE|LICENCE|NOTICE|USE_POLICY)[\w.-]*",
    re.IGNORECASE,
)
_LONGEST = 256 << 20
_HINT = "`--from` names a folder or a repository that has its `config.json` and its tokenizer"


def open_beside(config: Config, model: Model, place: str) -> Source:
    """The source of a model's small files: `place`, else where the model came from, at its revision.

    Raises UnsupportedModel where nobody knows it, or where it has no `config.json`; RegistryError.
    """
    origin = place or str(model.own.get("source", ""))
    if not origin:
        raise UnsupportedModel(f"nobody knows where `{model.name}` came from, and so its `{CONFIG}`", _HINT)
    revision = "" if place else str(model.own.get("revision", ""))
    try:
        source = open_source(parse(origin), config.hub.endpoint, Network().with_hub(config.hub), revision)
    except RegistryError as error:
        if place:
            raise
        raise UnsupportedModel(f"the source of `{model.name}` is needed for its `{CONFIG}`: {error}", _HINT) from None
    if CONFIG not in source.names():
        source.close()
        raise UnsupportedModel(f"`{source.title}` has no `{CONFIG}`", _HINT)
    return source


def read_beside(source: Source) -> dict[str, bytes]:
    """The files beside the weights, by their names. Raises RegistryError, UnsupportedModel for one that is too long."""
    found = {}
    for name in source.names():
        if not _TAKEN.fullmatch(name) or ".." in PurePosixPath(name).parts:
            continue
        size = source.size(name)
        if size > _LONGEST:
            raise UnsupportedModel(f"`{name}` of `{source.title}` has {size:,} bytes, more than {_LONGEST:,}", _HINT)
        found[name] = source.read(name, 0, size) if size else b""
    return found


def without_code(files: dict[str, bytes], settings: ModelConfig) -> dict[str, bytes]:
    """The files without Python code, unless the settings name classes in it (`auto_map`)."""
    return files if settings.get("auto_map") else {name: data for name, data in files.items() if name[-3:] != ".py"}
