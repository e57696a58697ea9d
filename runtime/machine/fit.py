"""How much memory does a model take, and how fast is it? By its header alone.

llama.cpp's own answer for a header (`runtime/machine/inspection.py`) goes before the formulas here, which are for a
machine where it cannot be asked. Which layers graphics cards hold is found by `runtime/machine/devices.py`.

The KV cache follows the layout of `llama_kv_cache`. Each layer keeps for each token `heads × length` values of keys and
as many of values, in the cache's type; latent attention (MLA) keeps the compressed keys alone. An indexer has a key of
its own beside them. Layers that a text goes through several times keep as many. Recurrent layers keep a state for
each sequence. Sliding windows are kept whole, as the engine asks for. Compute buffers hold everything that a
graph keeps alive at once for a batch of 512 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from quant.gguf.architectures import GOING_BACK, PREDICTING
from quant.plan import ModelPlan
from quant.types import QuantType, Tensor
from runtime.defaults import BATCH, CACHE_TYPE, CONTEXT, CONTEXT_STEP, DRAFT_ROWS, ROLLBACK
from runtime.machine.inspection import NO_DRAFTS, DraftMeans, Reserved
from runtime.messages import CacheConfig

# Bytes of a worker's process with Python and libraries; bytes of a token of the vocabulary: text, merges and pieces.
PROCESS_BYTES = 21_500_000
TOKEN_BYTES = 373
# The share of the memory's bandwidth that is left when blocks also have to be unpacked and multiplied.
EFFICIENCY = 0.75
# Costs of a step whatever the model's size, and of each layer where that was not measured (`probe.py`).
STEP_SECONDS = 3e-4
LAYER_SECONDS = 15e-6
_F32 = 4
# The architecture in which a state is a matrix of keys by values for each head (lightning attention).
_LIGHTNING = "minimax-01"
# The tensor with the divisors of the frequencies in long texts; `rope_factors_short.weight` stands beside it.
_LONG_FACTORS = "rope_factors_long.weight"
# The matrix that every block which predicts further tokens has.
_JOINING = ".nextn.eh_proj."


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a model that decide about memory and speed, in values and not in bytes."""

    layers: int
    embedding: int
    feed_forward: int
    vocabulary: int
    trained_context: int
    cache_values: int
    """Keys and values of all layers for one token."""
    state_values: int = 0
    """States of all recurrent layers for one sequence."""
    expert_share: float = 1.0
    """The part of the weights that one token reads (mixture of experts)."""
    attention_heads: int = 0
    """Query heads of all layers with attention."""
    layer_values: int = 0
    """Keys and values of one layer for one token, in the cache."""
    row_values: int = 0
    """Keys of one layer for one token: the step of a head from one token's key to the next."""
    short_context: int = 0
    """The largest context in which a model with two sets of rotary factors uses those for short texts; else 0."""
    predicts: bool = False
    """Whether the file has a block that predicts further tokens, by which llama.cpp drafts."""
    goes_back: bool = False
    """Whether the states of recurrent layers can go back behind drafts."""
    reserved: Reserved | None = None
    """The bytes that llama.cpp would reserve for this model, with one `CacheConfig`."""

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> ModelSize:
        """From GGUF metadata; a missing entry counts as llama.cpp's default."""
        architecture = str(metadata.get("general.architecture", ""))

        def number(key: str, default: int = 0) -> int:
            return _largest(metadata.get(f"{architecture}.{key}"), default)

        # Blocks that predict further tokens have no part in the model's own cache.
        predicting = number("nextn_predict_layers")
        layers, embedding = max(1, number("block_count", 1) - predicting), number("embedding_length", 1)
        heads = number("attention.head_count", 1)
        kv_heads = _per_layer(metadata.get(f"{architecture}.attention.head_count_kv", heads), layers)
        if not number("attention.head_count"):
            kv_heads = [0] * layers  # nothing but recurrent layers
        remembering = metadata.get(f"{architecture}.attention.recurrent_layers")
        if isinstance(remembering, list | tuple):  # a state has no cells, whatever its heads are
            kv_heads = [0 if each else heads for each, heads in zip(remembering, kv_heads, strict=False)]
        widths = metadata.get(f"{architecture}.feed_forward_length")
        key = number("attention.key_length", embedding // max(1, heads))
        value = number("attention.value_length", embedding // max(1, heads))
        latent = number("attention.key_length_mla") > 0
        passes = max(1, number("num_loops", 1))
        indexing = _layers_of(metadata.get(f"{architecture}.attention.indexer.types"), layers)
        indexed = indexing * number("attention.indexer.key_length")
        states = _recurrent_layers(kv_heads, widths) if 0 in kv_heads else layers
        tokens = metadata.get("tokenizer.ggml.tokens")
        feed_forward = number("feed_forward_length", 4 * embedding)
        experts, used = number("expert_count"), number("expert_used_count")
        expert_width = number("expert_feed_forward_length", feed_forward)
        return cls(
            layers=layers,
            embedding=embedding,
            feed_forward=max(feed_forward, used * expert_width),
            vocabulary=len(tokens) if tokens else number("vocab_size"),
            trained_context=number("context_length", CONTEXT),
            # The last layers may have the keys and values of earlier ones (Gemma 3n and 4).
            cache_values=passes
            * sum(kv_heads[: layers - number("attention.shared_kv_layers")])
            * (key if latent else key + value)
            + indexed,
            state_values=states * (heads * key * key if architecture == _LIGHTNING else _state(number)),
            expert_share=_share(embedding, heads * key, expert_width, experts, used),
            layer_values=max(kv_heads, default=0) * (key if latent else key + value),
            row_values=max(kv_heads, default=0) * key,
            attention_heads=passes * (layers - kv_heads.count(0)) * heads,
            predicts=predicting == 1 and architecture in PREDICTING,
            goes_back=architecture in GOING_BACK,
        )

    @classmethod
    def of_plan(cls, plan: ModelPlan) -> ModelSize:
        """From GGUF metadata and the names of tensors, which tell whether there are factors for long texts (longrope).

        llama.cpp takes these factors where the context is larger than the length that the model was trained for at
        first, the authors of the model where a text is longer (`llama_model::get_rope_factors`,
        `modeling_rope_utils.py`).
        """
        size = cls.of(plan.metadata)
        # Some programs leave the block out and say that it is there.
        size = replace(size, predicts=size.predicts and any(_JOINING in tensor.name for tensor in plan.tensors))
        if all(tensor.name != _LONG_FACTORS for tensor in plan.tensors):
            return size
        original = plan.metadata.get(f"{plan.architecture}.rope.scaling.original_context_length")
        # A context is made of whole steps, so that one of a few tokens more would have the factors for long texts.
        return replace(size, short_context=_largest(original, size.trained_context) // CONTEXT_STEP * CONTEXT_STEP)

    @property
    def has_heads(self) -> bool:
        """Whether the model can draft through its own heads."""
        return self.predicts and (not self.state_values or self.goes_back)

    @property
    def rollback(self) -> int:
        """The tokens that its states can go back where it has drafts; 0 where it has no states, or they cannot."""
        return ROLLBACK if self.goes_back else 0

    def state_bytes(self, sequences: int) -> int:
        """Bytes of the states of recurrent layers, whatever the context."""
        return sequences * self.state_values * _F32

    def with_reserved(self, reserved: Reserved | None) -> ModelSize:
        """The same, with llama.cpp's own answer."""
        return replace(self, reserved=reserved)

    def cap_context(self, wanted: CacheConfig) -> CacheConfig:
        """`wanted` with a context no longer than the model was trained for, or is best with where nobody chose it."""
        short = self.short_context if wanted.automatic else 0
        most = min(self.trained_context, short or self.trained_context)
        return msgspec.structs.replace(wanted, context=min(wanted.context, most), automatic=False)

    def context_reason(self, context: int) -> str:
        """The rotary factors in use with a context of `context` tokens; "" for a model with one set of them."""
        short = self.short_context
        if not short or short >= self.trained_context:
            return ""
        if context > short:
            return (
                f"rotary factors for long texts are in use, as the context is larger than {short:,} tokens; "
                "shorter texts get other answers than from the original model"
            )
        return (
            f"rotary factors for texts of up to {short:,} tokens are in use; "
            "a larger `num_ctx` or `LM_CONTEXT` takes those for long texts, for short ones too"
        )


@dataclass(frozen=True)
class OnCard:
    """Bytes of a model on one graphics card, and the bytes `free` there; a `shared` card uses main memory."""

    name: str
    weights: int
    cache: int
    compute: int
    free: int
    shared: bool = False
    doubled: int = 0
    """The part of the weights that main memory holds as well: an embedding that is also the output matrix."""

    @property
    def total(self) -> int:
        """Weights, cache and compute buffers."""
        return self.weights + self.cache + self.compute


@dataclass(frozen=True)
class Need:
    """The bytes that a worker needs for a model, wherever they lie."""

    weights: int
    """The file's tensors, mapped."""
    cache: int
    """The KV cache, and states of recurrent layers."""
    compute: int
    """The process itself, and its buffers."""
    repacked: int = 0
    """Weights that llama.cpp copies into another layout than the file's; the mapped ones are then not touched again."""
    graph: int = 0
    """The buffer of the compute graph, a part of `compute`."""
    cards: tuple[OnCard, ...] = ()
    card_layers: int = 0
    """How many of the last layers are on `cards`; the output matrix counts as one more layer."""

    def with_draft(self, draft: Need) -> Need:
        """The same with a draft model in the same process, in main memory."""
        return replace(
            self,
            weights=self.weights + draft.weights,
            cache=self.cache + draft.cache,
            compute=self.compute + draft.compute - PROCESS_BYTES,
            repacked=self.repacked + draft.repacked,
        )

    @property
    def total(self) -> int:
        """Bytes that main memory must hold."""
        return self.weights + self.cache + self.compute - self.on_cards

    @property
    def on_cards(self) -> int:
        """Weights and cache on cards with memory of their own, which main memory need not hold."""
        return sum(card.weights - card.doubled + card.cache for card in self.cards if not card.shared)

    @property
    def anonymous(self) -> int:
        """Bytes of the process itself in main memory: everything but the mapped file."""
        return self.cache + self.compute + self.repacked - sum(card.cache for card in self.cards if not card.shared)


def memory(
    model_size: ModelSize, weights_bytes: int, cache_config: CacheConfig, drafts: DraftMeans = NO_DRAFTS
) -> Need:
    """Bytes that a worker holds with a KV cache of `cache_config`, and what it drafts by.

    Raises UnknownLevel for an unknown `kv_type`.
    """
    reserved = model_size.reserved
    process = PROCESS_BYTES + model_size.vocabulary * TOKEN_BYTES
    if reserved and (reserved.cache_config, reserved.drafts) == (cache_config, drafts):
        compute = reserved.compute + reserved.output + process
        return Need(weights_bytes, reserved.cache, compute, graph=reserved.compute)
    tokens = -(-cache_config.context // CONTEXT_STEP) * CONTEXT_STEP
    cache = QuantType.by_name(cache_config.kv_type)
    per_token = model_size.cache_values * cache.block_bytes // cache.block
    states = model_size.state_bytes(cache_config.sequences) * (1 + drafts.rollback)
    if drafts.heads:  # the cache of one layer more
        per_token += model_size.layer_values * cache.block_bytes // cache.block
    cache_bytes = tokens * per_token + states
    batch = min(BATCH, tokens)
    activations = batch * (2 * model_size.embedding + 3 * max(model_size.feed_forward, model_size.embedding)) * _F32
    mask = batch * tokens * (_F32 + 2)
    # Rows in the graph and in the output, and every sampler's candidates (`llama_token_data`: 12 bytes each).
    drafted = cache_config.sequences * drafts.rollback if model_size.state_values else DRAFT_ROWS
    logits = 2 * model_size.vocabulary * (cache_config.sequences * (_F32 + 12) + drafted * _F32)
    graph = (activations + mask) * (1 + drafts.heads) + logits
    return Need(weights_bytes, cache_bytes, graph + process, graph=graph)


def repacked(tensors: Iterable[Tensor], types: Collection[str]) -> int:
    """Bytes of the tensors that llama.cpp copies into another layout, given the names of the types that it repacks.

    It repacks matrices whose number of rows is a multiple of 8, and never the token embedding, which it reads by rows.
    """
    return sum(
        tensor.nbytes
        for tensor in tensors
        if tensor.type.name in types
        and len(tensor.shape) > 1
        and tensor.shape[1] % 8 == 0
        and tensor.role != "token_embd"
    )


def speed(
    model_size: ModelSize, weights_bytes: int, bandwidth: float, context: int = 0, kv_type: str = CACHE_TYPE
) -> float:
    """Tokens per second of one answer when `context` tokens are in its cache; `bandwidth` in bytes per second."""
    cache = QuantType.by_name(kv_type)
    read = weights_bytes * model_size.expert_share + context * model_size.cache_values * cache.block_bytes / cache.block
    return 1 / (read / (EFFICIENCY * bandwidth) + STEP_SECONDS + model_size.layers * LAYER_SECONDS)


def _largest(value: Any, default: int) -> int:
    if isinstance(value, list | tuple):
        return max((int(item) for item in value), default=default)
    return int(value) if isinstance(value, int | float) else default


def _per_layer(value: Any, layers: int) -> list[int]:
    if isinstance(value, list | tuple):
        return [int(item) for item in value[:layers]]
    return [int(value)] * layers


def _layers_of(chosen: Any, layers: int) -> int:
    """How many layers a list of truth values chooses; all of them where there is no list."""
    return sum(map(bool, chosen[:layers])) if isinstance(chosen, list | tuple) else layers


def _recurrent_layers(kv_heads: list[int], widths: Any) -> int:
    """The number of recurrent layers: those without attention.

    Nemotron H has layers of a feed-forward network alone, and lists the width of each layer: these do not count.
    """
    by_layer = _per_layer(widths, len(kv_heads)) if isinstance(widths, list | tuple) else [0] * len(kv_heads)
    return sum(not heads and not width for heads, width in zip(kv_heads, by_layer, strict=False))


def _state(number: Callable[[str], int]) -> int:
    """Values that one recurrent layer keeps per sequence: the state, and the last tokens of its convolution or shift.

    Source: `n_embd_s` and `n_embd_r` of llama-hparams.cpp. By kind: RWKV, short convolutions (LFM 2), delta attention
    (Kimi), and Mamba with those after it.
    """
    width, tail = number("embedding_length"), max(0, number("ssm.conv_kernel") - 1)
    if number("wkv.head_size"):
        return width * (number("wkv.head_size") + (number("token_shift_count") or 2))
    if number("shortconv.l_cache"):
        return width * (number("shortconv.l_cache") - 1)
    head = number("kda.head_dim")
    if head:
        return number("attention.head_count") * head * (head + 3 * tail)
    inner, state, groups = number("ssm.inner_size"), number("ssm.state_size"), number("ssm.group_count")
    return int(inner * state + tail * (inner + 2 * groups * state))


def _share(embedding: int, attention: int, expert_width: int, experts: int, used: int) -> float:
    """The part of a layer's weights that a token reads, when `used` of `experts` blocks of three matrices answer."""
    if not experts or not used:
        return 1.0
    expert = 3 * embedding * expert_width
    rest = 4 * embedding * attention
    return (rest + used * expert) / (rest + experts * expert)
