"""Models that make embeddings, and models that rank texts."""

from __future__ import annotations

from tests.quant.zoo.row import Row
from tests.quant.zoo.settings import WINDOWED

# With random weights and norms behind every part, deep encoders forget which token is which.
TWO_LAYERS = {"num_hidden_layers": 2}
ROPE_OF_TWO_BASES = {
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 30000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 3000.0},
    }
}
MODERN_BERT = {
    "num_key_value_heads": None,
    "local_attention": 32,
    "num_hidden_layers": 4,
    "num_labels": 1,
    **ROPE_OF_TWO_BASES,
}
ENCODERS: dict[str, Row] = {
    "qwen3, embedding": Row("Qwen3", {"head_dim": 64}, "Model"),
    "qwen3, ranking": Row("Qwen3", {"head_dim": 64, "num_labels": 1}, "ForSequenceClassification"),
    "gemma-embedding": Row(
        "Gemma3",
        {**WINDOWED, "query_pre_attn_scalar": 64, "rope_local_base_freq": 3000.0, "use_bidirectional_attention": True},
        "TextModel",
        spread=2.0,
    ),
    "bert": Row("Bert", {**TWO_LAYERS, "num_key_value_heads": None}, "Model"),
    "bert, xlm-roberta": Row(
        "XLMRoberta",
        {**TWO_LAYERS, "num_key_value_heads": None, "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0},
        "Model",
    ),
    "bert, ranking": Row(
        "Bert", {**TWO_LAYERS, "num_key_value_heads": None, "num_labels": 1}, "ForSequenceClassification"
    ),
    "bert, xlm-roberta ranking": Row(
        "XLMRoberta",
        {
            **TWO_LAYERS,
            "num_key_value_heads": None,
            "type_vocab_size": 1,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "num_labels": 1,
        },
        "ForSequenceClassification",
    ),
    "bert, camembert": Row(
        "Camembert",
        {**TWO_LAYERS, "num_key_value_heads": None, "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0},
        "Model",
    ),
    "bert, distilled": Row(
        "DistilBert",
        {
            **dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")),
            "num_hidden_layers": None,
            "dim": 128,
            "hidden_dim": 256,
            "n_heads": 4,
            "n_layers": 2,
        },
        "Model",
    ),
    "eurobert": Row("EuroBert", {}, "Model"),
    "nomic-bert": Row("NomicBert", {"num_key_value_heads": None}, "Model"),
    "modern-bert": Row(
        "ModernBert",
        {"num_key_value_heads": None, "local_attention": 32, "num_hidden_layers": 4, **ROPE_OF_TWO_BASES},
        "Model",
    ),
    "modern-bert, ranking": Row(
        "ModernBert", {**MODERN_BERT, "classifier_pooling": "mean"}, "ForSequenceClassification"
    ),
    "modern-bert, ranking by its first token": Row("ModernBert", MODERN_BERT, "ForSequenceClassification"),
}
