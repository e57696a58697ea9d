"""How much each expert of a mixture adds, collected inside llama.cpp while it reads: no Python runs for a node.

An expert adds its output times its weight by the router. Its score is the mean norm of that over the tokens that are
routed to it. Source: REAP (arXiv 2510.13999). llama.cpp names the nodes: `ffn_moe_topk` has the experts of each token,
and `ffn_moe_weighted` their weighted outputs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from math import inf
from typing import Any, NamedTuple

import numpy as np
from numba import carray, cfunc, njit

from quant.types import Tensor
from runtime.errors import BadRequest, LoadFailed
from runtime.llama.library import library
from runtime.meter.nodes import (
    DATA,
    F32,
    NB,
    NE,
    SRC,
    TYPE,
    InputsNotFinite,
    check_offsets,
    integer,
    number_behind,
    pointer,
    word,
)

_TOPK, _WEIGHTED = (np.frombuffer(name, np.uint8) for name in (b"ffn_moe_topk-", b"ffn_moe_weighted-"))
# Fields of the state: experts of a layer, layers, most routes of a window, routes that were copied, whether something
# did not fit. Then the layer behind which nothing is computed, and the highest one so far.
_EXPERTS, _LAYERS, _ROOM, _ROUTES, _FAULT, _END, _LAST, _STATE = 0, 1, 2, 3, 4, 5, 6, 7
# The share by which sums of a token's weights differ where the router makes them equal, in the precision of float32.
_STEADY = 1e-3


@njit
def _copy_routes(node: Any, state: Any, routes: Any) -> None:
    """Copy the experts of each token: their memory may be another node's by the time that they have answered."""
    used, tokens = word(node + NE), word(node + NE + 8)
    if used * tokens > state[_ROOM]:
        state[_FAULT] = 1
        return
    for token in range(tokens):
        for slot in range(used):
            at = word(node + DATA) + token * word(node + NB + 8) + slot * word(node + NB)
            routes[token * used + slot] = integer(at)
    state[_ROUTES] = used * tokens


@njit
def _add_norms(node: Any, layer: Any, state: Any, routes: Any, sums: Any, counts: Any) -> None:
    """Add the norms of the weighted outputs of experts, for each token."""
    width, used, tokens = word(node + NE), word(node + NE + 8), word(node + NE + 16)
    if integer(node + TYPE) != F32 or used * tokens != state[_ROUTES] or layer >= state[_LAYERS]:
        state[_FAULT] = 1
        return
    for token in range(tokens):
        for slot in range(used):
            expert = routes[token * used + slot]
            if expert < 0 or expert >= state[_EXPERTS]:
                state[_FAULT] = 1
                return
            at = word(node + DATA) + token * word(node + NB + 16) + slot * word(node + NB + 8)
            values = carray(pointer(at), (width,), np.float32)
            total = 0.0
            for column in range(width):
                total += np.float64(values[column]) * values[column]
            sums[layer * state[_EXPERTS] + expert] += np.sqrt(total)
            counts[layer * state[_EXPERTS] + expert] += 1


@njit
def _bound_weights(weights: Any, bounds: Any) -> None:
    """Note the least and the largest sum of a token's weights."""
    if integer(weights + TYPE) != F32:
        return
    for token in range(word(weights + NE + 16)):
        total = 0.0
        for slot in range(word(weights + NE + 8)):
            at = word(weights + DATA) + token * word(weights + NB + 16) + slot * word(weights + NB + 8)
            total += carray(pointer(at), (1,), np.float32)[0]
        bounds[0], bounds[1] = min(bounds[0], total), max(bounds[1], total)


@cfunc("boolean(intp, boolean, intp)", nopython=True)
def _collect(node: Any, ask: Any, place: Any) -> Any:
    """llama.cpp's callback: say whether a node is wanted, then read it. `place` has five addresses."""
    layer = number_behind(node, _WEIGHTED)
    routes_here = layer < 0 and number_behind(node, _TOPK) >= 0
    if layer < 0 and not routes_here:
        return False
    if ask:
        return True
    places = carray(pointer(place), (5,), np.int64)
    state = carray(pointer(places[0]), (_STATE,), np.int64)
    routes = carray(pointer(places[1]), (state[_ROOM],), np.int64)
    if routes_here:
        _copy_routes(node, state, routes)
        return True
    size = state[_EXPERTS] * state[_LAYERS]
    sums, counts = carray(pointer(places[2]), (size,), np.float64), carray(pointer(places[3]), (size,), np.int64)
    _add_norms(node, layer, state, routes, sums, counts)
    _bound_weights(word(node + SRC + 8), carray(pointer(places[4]), (2,), np.float64))
    state[_LAST] = max(state[_LAST], layer)
    return layer != state[_END]


class ExpertScores(NamedTuple):
    """Figures of the experts of the `layers`: each row has one score, and one count of tokens, for each expert.

    `steady`: the weights of a token's experts have one sum, so the router's weights are renormalised.
    """

    layers: list[int]
    scores: list[list[float]]
    counts: list[list[int]]
    steady: bool


class ExpertWatcher:
    """The callback with its memory; `callback` and `data` are for `ContextParams`. Kept as long as the context."""

    def __init__(self, tensors: Iterable[Tensor], window: int) -> None:
        """For a window of N tokens. Raises BadRequest for a model without experts, LoadFailed as `check_offsets`."""
        stacks = [each for each in tensors if each.role == "ffn_down" and len(each.shape) == 3]
        if not stacks:
            raise BadRequest("the model has no experts", "it works for mixtures of experts, such as Qwen 3 30B A3B")
        check_offsets()
        self._layers = sorted(each.layer or 0 for each in stacks)
        experts, layers = stacks[0].shape[2], self._layers[-1] + 1
        self._state = np.array([experts, layers, experts * window, 0, 0, -1, -1], np.int64)
        self._routes = np.zeros(experts * window, np.int64)
        self._sums, self._counts = np.zeros((layers, experts)), np.zeros((layers, experts), np.int64)
        self._bounds = np.array([inf, -inf])
        arrays = (self._state, self._routes, self._sums, self._counts, self._bounds)
        self._places = np.array([each.ctypes.data for each in arrays], np.int64)
        self.callback = ctypes.cast(_collect.address, library().ggml_backend_sched_eval_callback)

    @property
    def data(self) -> int:
        """The callback's last argument."""
        return int(self._places.ctypes.data)

    def settle(self) -> None:
        """Check what came, after each window. Raises LoadFailed for another graph than is known, InputsNotFinite."""
        if self._state[_FAULT]:
            raise LoadFailed("llama.cpp computes the experts of this model in another way", "report it")
        if not np.isfinite(self._sums).all():
            layer = int(np.flatnonzero(~np.isfinite(self._sums).all(axis=1))[0])
            raise InputsNotFinite(f"blk.{layer}.ffn_down_exps.weight")
        self._state[_END] = self._state[_LAST]  # behind the last mixture there is only the head

    def scores(self) -> ExpertScores:
        """The scores of all windows, for layers that were computed. Raises LoadFailed where there are none."""
        seen = [layer for layer in self._layers if self._counts[layer].any()]
        if not seen:
            raise LoadFailed("llama.cpp names no nodes for the experts of this model", "report it")
        means = self._sums[seen] / np.maximum(self._counts[seen], 1)
        low, high = self._bounds.tolist()
        steady = bool(high - low <= _STEADY * abs(high))
        return ExpertScores(seen, means.tolist(), self._counts[seen].tolist(), steady)
