"""An answer's sampler: a chain of llama.cpp's samplers, so that one call draws a token and no logits come to Python.

The order is llama-server's: logit bias, penalties, DRY, then top-n-sigma, top-k, typical, top-p, min-p, XTC,
temperature, and the draw. Samplers that would change nothing are left out. Greedy sampling takes
the largest logit and draws nothing.

The same seed gives the same text as long as the logits are the same to the bit. On CPUs llama.cpp may round differently
when a batch has rows of other requests, which can change a text where two tokens are almost equally likely.
"""

from __future__ import annotations

import ctypes
import math
import os
from array import array
from typing import Any

from runtime.errors import BadRequest
from runtime.llama.library import library, quick_library
from runtime.llama.vocabulary import Vocabulary
from runtime.options import Sampling

_DRY_BREAKERS = (b"\n", b":", b'"', b"*")
# llama.cpp takes this seed to mean a random one.
_RANDOM = 0xFFFFFFFF
# Stands for minus infinity: below any logit, and a finite number.
_BELOW_ANY_LOGIT = -1e9
# From how many tokens mirostat (version 1) estimates the distribution, as in its paper.
_MIROSTAT_TOKENS = 100


def check_biases(sampling: Sampling, vocabulary_size: int) -> None:
    """Raises BadRequest for a bias of a token that the vocabulary does not have."""
    for token in sampling.logit_bias:
        if not 0 <= token < vocabulary_size:
            message = f"`logit_bias` names token {token}, and the vocabulary ends at {vocabulary_size - 1}"
            raise BadRequest(message, "leave that token out", "logit_bias")


class Sampler:
    """Draws tokens for one answer; `free` it when the answer ends.

    `seed` starts its random numbers; a `greedy` one has none.
    """

    def __init__(self, vocabulary: Vocabulary, sampling: Sampling, index: int, context: int) -> None:
        """`index` is the answer's number among those to one prompt; `context` is used for a `last_n` of -1."""
        low = library()
        self._vocabulary = vocabulary
        self._low = low
        self._history = 0  # tokens that the penalties look back at
        self.chain = low.llama_sampler_chain_init(low.llama_sampler_chain_default_params())
        random = int.from_bytes(os.urandom(4), "little")
        self.seed = (sampling.seed + index if sampling.seed >= 0 else random) % _RANDOM
        self.greedy = sampling.temperature <= 0
        self._add_biases(sampling)
        self._add_penalties(sampling, context)
        self._add_choice(sampling)
        self._sample = low.llama_sampler_sample

    def _add(self, sampler: Any) -> None:
        self._low.llama_sampler_chain_add(self.chain, sampler)

    def _add_biases(self, sampling: Sampling) -> None:
        biases = dict(sampling.logit_bias)
        if sampling.ignore_eos:
            biases |= dict.fromkeys(self._vocabulary.end_tokens, -math.inf)
        if biases:
            array_type = self._low.llama_logit_bias * len(biases)
            entries = array_type(
                *(self._low.llama_logit_bias(token, max(b, _BELOW_ANY_LOGIT)) for token, b in biases.items())
            )
            self._add(self._low.llama_sampler_init_logit_bias(self._vocabulary.size, len(biases), entries))

    def _add_penalties(self, sampling: Sampling, context: int) -> None:
        low, vocabulary = self._low, self._vocabulary.size
        last = context if sampling.repeat_last_n < 0 else sampling.repeat_last_n
        repeat, frequency, presence = sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty
        if last and (repeat != 1.0 or frequency or presence):
            self._history = last
            self._add(low.llama_sampler_init_penalties(vocabulary, last, repeat, frequency, presence))
        last = context if sampling.dry_penalty_last_n < 0 else sampling.dry_penalty_last_n
        if last and sampling.dry_multiplier > 0:
            self._history = max(self._history, last)
            breakers = (ctypes.c_char_p * len(_DRY_BREAKERS))(*_DRY_BREAKERS)
            strength = (sampling.dry_multiplier, sampling.dry_base, sampling.dry_allowed_length, last)
            self._add(low.llama_sampler_init_dry(self._vocabulary.handle, *strength, breakers, len(_DRY_BREAKERS)))

    def _add_choice(self, sampling: Sampling) -> None:
        low, seed = self._low, self.seed
        if self.greedy:
            self._add(low.llama_sampler_init_greedy())
            return
        if sampling.mirostat:
            self._add(low.llama_sampler_init_temp(sampling.temperature))
            target = (sampling.mirostat_tau, sampling.mirostat_eta)
            if sampling.mirostat == 1:
                self._add(low.llama_sampler_init_mirostat(self._vocabulary.size, seed, *target, _MIROSTAT_TOKENS))
            else:
                self._add(low.llama_sampler_init_mirostat_v2(seed, *target))
            return
        if sampling.top_n_sigma > 0:
            self._add(low.llama_sampler_init_top_n_sigma(sampling.top_n_sigma))
        if sampling.top_k > 0:
            self._add(low.llama_sampler_init_top_k(min(sampling.top_k, self._vocabulary.size)))
        if sampling.typical_p < 1:
            self._add(low.llama_sampler_init_typical(sampling.typical_p, 1))
        if sampling.top_p < 1:
            self._add(low.llama_sampler_init_top_p(sampling.top_p, 1))
        if sampling.min_p > 0:
            self._add(low.llama_sampler_init_min_p(sampling.min_p, 1))
        if sampling.xtc_probability > 0:
            self._add(low.llama_sampler_init_xtc(sampling.xtc_probability, sampling.xtc_threshold, 1, seed))
        self._add(low.llama_sampler_init_temp(sampling.temperature))
        self._add(low.llama_sampler_init_dist(seed))

    def read(self, prompt: array[int]) -> None:
        """Show the penalties the last tokens of the prompt, as many as they look back at."""
        if self._history:
            accept = quick_library().llama_sampler_accept
            for token in prompt[-self._history :]:
                accept(self.chain, token)

    def sample(self, context: Any, row: int) -> int:
        """Draw the next token from the logits of `row`; the penalties take note of it."""
        token: int = self._sample(self.chain, context, row)
        return token

    @property
    def remembers(self) -> bool:
        """Whether penalties look back at tokens, so that one that is drawn and not taken must not be noted."""
        return self._history > 0

    def accept(self, token: int) -> None:
        """Have the penalties take note of a token that `apply` chose, or that was not drawn at all."""
        if self._history:
            quick_library().llama_sampler_accept(self.chain, token)

    def apply(self, candidates: Any) -> None:
        """Let the chain choose among `candidates` (`llama_token_data_array`); nothing is noted."""
        self._low.llama_sampler_apply(self.chain, ctypes.byref(candidates))

    def free(self) -> None:
        """Free the chain."""
        if self.chain:
            self._low.llama_sampler_free(self.chain)
            self.chain = None
