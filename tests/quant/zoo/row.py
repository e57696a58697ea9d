"""A row of the zoo: how transformers makes a small model of an architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

VOCABULARY = 4160
SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "vocab_size": VOCABULARY,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "rope_theta": 30000.0,
}
# Settings that a configuration may have as None; elsewhere None in a row leaves a setting out.
_NONE_IS_A_VALUE = ("sliding_window", "q_lora_rank")


class Row(NamedTuple):
    """A model of the architecture that transformers calls `kind`, with `SIZES` and the settings in `config`.

    - `config`: a setting that is None is left out. `task`: the end of the class's name.
    - `around`: the configuration of a model that also sees; `config` is then that of its language model.
    - `spread`: the standard deviation of a matrix's weights, times the root of its inputs.
    - `heads`: a factor of the weights of the norms of heads, for models that scale attention in another way.
    """

    kind: str
    config: Mapping[str, Any] = {}
    task: str = "ForCausalLM"
    spread: float = 3.0
    around: Mapping[str, Any] = {}
    heads: float = 1.0

    @property
    def ranks(self) -> bool:
        """Whether the model makes a score of a text."""
        return self.task == "ForSequenceClassification"

    def settings(self) -> dict[str, Any]:
        """The configuration that transformers makes the model by."""
        own = {
            key: value
            for key, value in {**SIZES, **self.config}.items()
            if value is not None or key in _NONE_IS_A_VALUE
        }
        return {**self.around, "text_config": own} if self.around else own
