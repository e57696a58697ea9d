"""Special tokens as GGUF entries: the beginning and the end of a text, padding, and all tokens that end an answer."""

from __future__ import annotations

from typing import Any

from quant.convert.config import ModelConfig
from quant.convert.tokenizer.vocabulary import VocabularyPlan
from quant.errors import MalformedFile

# Texts of tokens that end an answer, as llama.cpp knows them (`llama_vocab::impl::load`).
_ENDINGS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "[EOT]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<|return|>",
    "<|call|>",
    "<｜end▁of▁sentence｜>",
    "_<EOT>",
    "[EOS]",
    "<|flush|>",
    "<|calls|>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
)


def describe(
    config: ModelConfig,
    generation: ModelConfig,
    tokenizer_config: ModelConfig,
    vocabulary: VocabularyPlan,
    embeds: bool = False,
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The GGUF entries of the special tokens, and all ids that end an answer.

    A model that `embeds` gets the beginning and the end that its tokenizer puts around a text, whatever `config.json`
    and `generation_config.json` name. Ids that no token has do not count. Raises MalformedFile where no file names the
    end of a text.
    """
    size = len(vocabulary.entries["tokenizer.ggml.tokens"])
    listed = _ids(generation, "eos_token_id", size) or _ids(config, "eos_token_id", size)
    named = _named_id(tokenizer_config, "eos_token", vocabulary)
    if vocabulary.end is not None:
        turn = vocabulary.entries.get("tokenizer.ggml.eot_token_id")
        named, listed = vocabulary.end, [] if turn is None else [turn]
    stops = tuple(dict.fromkeys(([] if named is None else [named]) + listed))
    begin = _named_id(tokenizer_config, "bos_token", vocabulary)
    if "bos_token" not in tokenizer_config.values:
        begin = next(iter(_ids(config, "bos_token_id", size)), None)
    begin = begin if vocabulary.end is None else vocabulary.end
    pad = _named_id(tokenizer_config, "pad_token", vocabulary)
    if embeds:
        begin = begin if vocabulary.first is None else vocabulary.first
        stops = stops if vocabulary.last is None else tuple(dict.fromkeys((vocabulary.last, *stops)))
    stops = stops or (() if vocabulary.last is None else (vocabulary.last,))
    begin = vocabulary.first if begin is None and "bos_token" not in tokenizer_config.values else begin
    if not stops:
        hint = "give its number in `generation_config.json`, as `eos_token_id`"
        raise MalformedFile("no file of the model names a token that ends a text (`eos_token_id`)", hint=hint)
    entries = {"bos_token_id": begin, "eos_token_id": stops[0], "padding_token_id": pad}
    tokens = vocabulary.entries["tokenizer.ggml.tokens"]
    # llama.cpp knows the usual endings by their text; entries can name two more.
    unusual = [id for id in stops[1:] if tokens[id] not in _ENDINGS]
    entries |= dict(zip(("eot_token_id", "eom_token_id"), unusual, strict=False))
    first = tokenizer_config.flag("add_bos_token", vocabulary.first is not None)
    entries["add_bos_token"] = first and begin is not None
    entries["add_eos_token"] = tokenizer_config.flag("add_eos_token", vocabulary.last is not None)
    return {f"tokenizer.ggml.{key}": value for key, value in entries.items() if value is not None}, stops


def remarks(config: ModelConfig, generation: ModelConfig, size: int) -> tuple[str, ...]:
    """Clauses on the ids that none of the `size` tokens has."""
    found = {
        (key, id): f"`{key}` {id} in `{each.name}` is none of the {size} tokens, left out"
        for each in (generation, config)
        for key in ("bos_token_id", "eos_token_id")
        for id in _listed(each, key)
        if not 0 <= id < size
    }
    return tuple(found.values())


def _ids(config: ModelConfig, key: str, size: int) -> list[int]:
    return [id for id in _listed(config, key) if 0 <= id < size]


def _listed(config: ModelConfig, key: str) -> list[int]:
    value = config.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(id) is int for id in ids):
        raise config.wrong(key, "the number of a token, or a list of such")
    return ids


def _named_id(config: ModelConfig, key: str, vocabulary: VocabularyPlan) -> int | None:
    value = config.get(key)
    text = value.get("content") if isinstance(value, dict) else value
    return vocabulary.ids.get(text) if isinstance(text, str) else None
