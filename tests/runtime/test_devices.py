"""Layers on graphics cards, by cards given as data; the rule and its sentence on machines that this one is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quant.types import QuantType, Tensor
from runtime.errors import DoesNotFit
from runtime.machine import fit
from runtime.machine.devices import DRIVER_BYTES, Layers, place
from runtime.machine.hardware import Gpu, Hardware
from runtime.machine.inspection import Device, Probed
from runtime.machine.rule import Candidate, Host, Wish, choose, judge
from runtime.machine.step_time import Reads

GB = 10**9
LLAMA_8B = fit.ModelSize(32, 4096, 14336, 128256, 131072, 32 * 8 * 256)
MACHINE = Hardware(16 * GB, 16 * GB, 16 * GB, 8, 50 * GB)
LAYERS = Layers((200_000_000,) * 32, 500_000_000)
NEED = fit.Need(7 * GB + 400_000_000, 32 * 32_000_000, 300_000_000, graph=200_000_000)


def card(free: float, name: str = "CUDA0", shared: bool = False) -> Gpu:
    return Gpu(name, 24 * GB, int(free * GB) + DRIVER_BYTES, shared)


def test_a_card_with_room_takes_all_but_the_embedding() -> None:
    placed = place(NEED, LAYERS, [card(20)])
    (held,) = placed.cards
    assert placed.card_layers == 33
    assert (held.weights, held.cache, held.compute) == (6_900_000_000, NEED.cache, 200_000_000)
    assert placed.total == 500_000_000 + 300_000_000  # the embedding, and the process
    assert placed.anonymous == 300_000_000
    assert place(NEED, LAYERS, []) == NEED


@pytest.mark.parametrize("free", [0.5, 1, 2.5, 4, 6, 7.9])
def test_no_card_is_overfilled_and_one_layer_more_would_be(free: float) -> None:
    placed = place(NEED, LAYERS, [card(free)])
    room = int(free * GB)
    # the output, then layers of weights and cache, beside the graph's buffer
    fitting = (room - 200_000_000 - 500_000_000) // 232_000_000 + 1 if room >= 700_000_000 else 0
    assert placed.card_layers == min(33, fitting)
    assert all(each.total <= room for each in placed.cards)
    assert placed.total + sum(each.weights + each.cache for each in placed.cards) == NEED.total


def test_two_cards_share_in_proportion_to_what_is_free() -> None:
    placed = place(NEED, LAYERS, [card(12), card(4, "CUDA1")])
    first, second = placed.cards
    assert placed.card_layers == 33
    assert first.weights + second.weights == 6_900_000_000
    assert 2 < (first.weights + first.cache) / (second.weights + second.cache) < 4


def test_memory_that_is_shared_is_counted_once() -> None:
    shared = place(NEED, LAYERS, [card(12, "MTL0", shared=True)])
    assert (shared.card_layers, shared.total) == (33, NEED.total)
    both = place(NEED, LAYERS, [card(60, "Intel", shared=True), card(20)])
    assert [each.name for each in both.cards] == ["CUDA0"]
    assert Device("MTL0", "Apple M4", "gpu").shared and Device("Vulkan1", "Radeon 780M", "igpu").shared
    assert not Device("CUDA0", "NVIDIA X", "gpu").shared


def test_a_tied_embedding_is_there_twice() -> None:
    tensors = [
        Tensor("token_embd.weight", (256, 1000), QuantType.F16),
        Tensor("blk.0.ffn_up.weight", (256, 64), QuantType.F16),
        Tensor("blk.1.ffn_up.weight", (256, 64), QuantType.F16),
        Tensor("output_norm.weight", (256,), QuantType.F32),
    ]
    layers = Layers.of(tensors, tied=True)
    assert layers == Layers((32768, 32768), 512_000 + 1024, tied=True)
    size = 512_000 + 1024 + 2 * 32768
    placed = place(fit.Need(size, 0, 1000), layers, [card(1)])
    assert placed.total == 512_000 + 1024 + 1000
    untied = Layers.of([*tensors, Tensor("output.weight", (256, 1000), QuantType.F16)], tied=False)
    assert untied.output == 512_000 + 1024


def test_cards_hold_what_memory_cannot_and_the_reason_says_so() -> None:
    levels = [
        Candidate("Q8_0", 8_500_000_000, layers=Layers((234_000_000,) * 32, 500_000_000)),
        Candidate("Q4_K_M", 4_900_000_000, layers=Layers((130_000_000,) * 32, 370_000_000)),
    ]
    small = replace(MACHINE, memory_limit=6 * GB)
    with pytest.raises(DoesNotFit):
        choose(levels, LLAMA_8B, Host(small), Wish(enough=1))
    whole = choose(levels, LLAMA_8B, Host(replace(small, cards=(card(20),))), Wish(enough=1))
    assert whole.reason == "Q8_0: 8.5 GB weights + 1.1 GB cache for 8,192 tokens fit on CUDA0"
    half = choose(levels, LLAMA_8B, Host(replace(small, cards=(card(6),))), Wish(enough=1))
    assert half.level == "Q8_0"
    assert half.reason.startswith("Q8_0: 8.5 GB weights + 1.1 GB cache for 8,192 tokens fit with ")
    assert "of 33 layers on CUDA0; the rest takes " in half.reason


def test_a_cards_speed_counts_for_its_layers() -> None:
    slow, fast = Probed({"Q8_0": 10e9}, 0, 1e-9), Probed({"Q8_0": 1e12}, 0, 1e-12)
    level = Candidate("Q8_0", 8_500_000_000, reads=Reads({"Q8_0": 8 * GB}, 32, 0), layers=LAYERS)
    rates = [
        judge([level], LLAMA_8B, Host(replace(MACHINE, cards=cards), slow, fast), Wish())[0].speed
        for cards in ((), (card(5),), (card(20),))
    ]
    assert rates[0] < rates[1] < rates[2]
    assert rates[0] == pytest.approx(1.25, rel=0.01)
    assert rates[2] == pytest.approx(120, rel=0.05)
