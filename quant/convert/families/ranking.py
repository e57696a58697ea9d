"""Rankers: models that tell how well a text answers a question, by a head with one score.

Cross-encoders (BERT, XLM-RoBERTa, ModernBERT) read both texts together. Qwen 3's reranker is a language model that is
asked for "yes" or "no"; llama.cpp wants the two rows of its output that make these words, and takes the softmax.
Sources: `modeling_*.py` of transformers, the model cards of Qwen3-Reranker, `llm_graph_context::build_pooling`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from quant.convert.base import UNQUANTIZED, Family, Known, Length, tensor
from quant.convert.config import MAX_JSON, ModelConfig, read_text, read_whole
from quant.convert.families import decoder, encoder, qwen
from quant.convert.families.decoder import DecoderSizes
from quant.convert.families.encoder import EncoderSizes
from quant.convert.peeking import peek
from quant.convert.tokenizer.added import is_id
from quant.convert.tokenizer.pretokenizer import list_in
from quant.convert.tokenizer.vocabulary import FILE, steps
from quant.errors import MalformedFile, UnsupportedModel
from quant.plan import Files, TensorPlan
from quant.safetensors import Entry, load_json

# The prompt that Qwen 3's reranker was trained with, by its model card.
TEMPLATE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a web '
    "search query, retrieve relevant passages that answer the query\n<Query>: {query}\n<Document>: {document}"
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
_NAME = "qwen3-reranker"
_WORDS = ("yes", "no")


def _check_labels(config: ModelConfig) -> None:
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.get("num_labels") or 2
    if count != 1:
        raise UnsupportedModel(f"it sorts texts into {count} classes, and only models with a single score are known")


def _read_sizes(family: Family[EncoderSizes]) -> Callable[[ModelConfig], EncoderSizes]:
    def read(config: ModelConfig) -> EncoderSizes:
        _check_labels(config)
        return family.read_sizes(config)

    return read


def _both(source: str, target: str, rows: Length) -> tuple[Known, ...]:
    return encoder.both(source, target, rows, "width")


BERT = replace(
    encoder.BERT,
    classes=("BertForSequenceClassification",),
    tensors=(*encoder.BERT.tensors, *_both("pooler.dense", "cls", "width"), *_both("classifier", "cls.output", 1)),
    read_sizes=_read_sizes(encoder.BERT),
    unused=r"embeddings\.position_ids",
    ranks=True,
)
ROBERTA = replace(
    encoder.ROBERTA,
    classes=("XLMRobertaForSequenceClassification", "RobertaForSequenceClassification"),
    tensors=(
        *encoder.ROBERTA.tensors,
        *_both("classifier.dense", "cls", "width"),
        *_both("classifier.out_proj", "cls.output", 1),
    ),
    read_sizes=_read_sizes(encoder.ROBERTA),
    unused=r"embeddings\.position_ids|pooler\.dense\.(weight|bias)",
    ranks=True,
)
_POOLINGS = {"mean": 1, "cls": 2}


def _describe_modern(config: ModelConfig, sizes: EncoderSizes) -> dict[str, Any]:
    pooling = config.get("classifier_pooling") or "cls"
    activation = config.get("classifier_activation")
    if str(pooling) not in _POOLINGS or config.flag("classifier_bias") or activation not in (None, "gelu"):
        raise UnsupportedModel("it has a head that llama.cpp does not know for ModernBERT")
    return {**encoder.MODERN_BERT.describe(config, sizes), "classifier.pooling_type": _POOLINGS[pooling]}


MODERN_BERT = replace(
    encoder.MODERN_BERT,
    classes=("ModernBertForSequenceClassification",),
    tensors=(
        *encoder.MODERN_BERT.tensors,
        tensor("head.dense.weight", "cls.weight", "width", "width"),
        tensor("head.norm.weight", "cls.norm.weight", "width"),
        *_both("classifier", "cls.output", 1),
    ),
    read_sizes=_read_sizes(encoder.MODERN_BERT),
    describe=_describe_modern,
    unused=r"decoder\..*",
    ranks=True,
)


def _describe_qwen(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    return {**qwen.QWEN3.describe(config, sizes), "classifier.output_labels": list(_WORDS)}


def _read_words(files: Files, entries: Iterable[Entry], config: ModelConfig) -> tuple[TensorPlan, ...]:
    """The rows of the output that make "yes" and "no"; an output that is there counts, whether or not it is tied."""
    entries = list(entries)
    apart = any(entry.name == "lm_head.weight" for entry in entries) or not config.flag("tie_word_embeddings")
    head = _find(entries, "lm_head.weight" if apart else "embed_tokens.weight")
    vocab = (
        load_json(read_whole(files, FILE, MAX_JSON), FILE).get("model", {}).get("vocab") if FILE in files.names() else 0
    )
    found = [vocab.get(word) if isinstance(vocab, dict) else None for word in _WORDS]
    ids = [id for id in found if isinstance(id, int) and is_id(id) and id < head.shape[0]]
    if len(ids) != len(_WORDS):
        raise MalformedFile(f"`{FILE}` has no tokens `yes` and `no`, by which this model ranks")
    return (_head([_row(files, head, id) for id in ids]),)


def _read_score(files: Files, entries: Iterable[Entry], config: ModelConfig) -> tuple[TensorPlan, ...]:
    """A single score is the difference of the two words: no row for "no" is a row of zeros."""
    _check_labels(config)
    row = _row(files, _find(entries, "score.weight"), 0)
    return (_head([row, np.zeros_like(row)]),)


def _find(entries: Iterable[Entry], name: str) -> Entry:
    found = next((entry for entry in entries if entry.name.removeprefix("model.") == name), None)
    if found is None or len(found.shape) != 2 or found.dtype not in UNQUANTIZED:
        raise MalformedFile(f"the weights lack `{name}`, by which this model ranks")
    return found


def _row(files: Files, entry: Entry, number: int) -> np.ndarray:
    return peek(files, entry, number * entry.shape[1], entry.shape[1])


def _head(rows: list[np.ndarray]) -> TensorPlan:
    values = np.stack(rows).astype("<f4")
    return TensorPlan("cls.output.weight", values.shape, "F32", values=values.tobytes())


QWEN3 = replace(
    qwen.QWEN3,
    classes=("Qwen3Reranker",),
    tensors=tuple(known for known in qwen.QWEN3.tensors if known is not decoder.OUTPUT),
    describe=_describe_qwen,
    picked=_read_words,
    unused=rf"{qwen.QWEN3.unused}|lm_head\.weight",
    ranks=True,
)
QWEN3_SCORE = replace(
    QWEN3,
    classes=("Qwen3ForSequenceClassification",),
    picked=_read_score,
    unused=rf"{qwen.QWEN3.unused}|lm_head\.weight|score\.weight",
)


def is_reranker(files: Files) -> bool:
    """Whether a Qwen 3 ranks texts: its configuration is like any other's, only its makers' words tell."""
    words = (files.title.rpartition("/")[2], read_text(files, "README.md"), read_text(files, "modules.json"))
    return _NAME in words[0].lower() or f"# {_NAME}" in words[1].lower() or ".LogitScore" in words[2]


def describe_pair(files: Files, end: int) -> dict[str, Any]:
    """How two texts are put together for a cross-encoder, as GGUF entries: token `end` once between them, or twice."""

    def entries(twice: bool) -> dict[str, Any]:
        return {"tokenizer.ggml.add_sep_token": twice, "tokenizer.ggml.seperator_token_id": end}

    tokenizer = load_json(read_whole(files, FILE, MAX_JSON), FILE) if FILE in files.names() else {}
    for step in steps(tokenizer.get("post_processor"), "processors"):
        kind = step.get("type")
        if kind in ("RobertaProcessing", "BertProcessing"):
            return entries(kind == "RobertaProcessing")
        if kind == "TemplateProcessing":
            names = [next(iter(part)) for part in list_in(step, "pair") if isinstance(part, dict) and part]
            shape = "".join({"Sequence": "T", "SpecialToken": "s"}.get(name, "?") for name in names)
            if shape in ("sTsTs", "sTssTs"):
                return entries(shape == "sTssTs")
    raise UnsupportedModel("its tokenizer puts two texts together in a way that cannot be converted")


FAMILIES = (BERT, ROBERTA, MODERN_BERT, QWEN3, QWEN3_SCORE)
