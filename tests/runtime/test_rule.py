"""The rule that chooses a level, each case with its sentence; memory and speed on sizes worked out by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest

from runtime.errors import BadRequest, DoesNotFit
from runtime.machine import fit
from runtime.machine.hardware import Hardware
from runtime.machine.rule import Candidate, Host, Wish, choose
from runtime.messages import CacheConfig
from runtime.units import size_text

GB = 10**9
# An 8 B model: 32 layers x 4096, 8 key/value heads of 128.
LLAMA_8B = fit.ModelSize(32, 4096, 14336, 128256, 131072, 32 * 8 * 256)
LEVELS = [
    Candidate("BF16", 16_000_000_000),
    Candidate("Q8_0", 8_500_000_000),
    Candidate("Q6_K", 6_600_000_000),
    Candidate("Q5_K_M", 5_700_000_000),
    Candidate("Q4_K_M", 4_900_000_000),
    Candidate("Q3_K_M", 4_000_000_000),
    Candidate("IQ2_M", 2_900_000_000, worthwhile=False),
]


def machine(memory: float, bandwidth: float = 200) -> Hardware:
    """`memory` and `bandwidth` in GB (per second); models may use 90 %."""
    return Hardware(int(memory * GB), int(memory * GB), int(memory * GB), 8, bandwidth * GB)


def needed(level: str) -> str:
    """All that a level takes, in words; the parts are checked on their own below."""
    weights = next(candidate.weights_bytes for candidate in LEVELS if candidate.level == level)
    return size_text(fit.memory(LLAMA_8B, weights, CacheConfig()).total)


def parts(level: str) -> str:
    """What a level's memory consists of, in words."""
    weights = next(candidate.weights_bytes for candidate in LEVELS if candidate.level == level)
    need = fit.memory(LLAMA_8B, weights, CacheConfig())
    return f"{size_text(weights)} weights + 1.1 GB cache for 8,192 tokens + {size_text(need.compute)} buffers"


FORCED = "forces a level below Q4_K_M, which would need"


@pytest.mark.parametrize(
    ("hardware", "disk", "level", "weights", "budget", "ending"),
    [
        (machine(64), None, "Q8_0", 8.5, 57.6, ""),
        (machine(8.9), None, "Q5_K_M", 5.7, 7.8, f"; Q6_K would need {needed('Q6_K')}"),
        (machine(64, 80), None, "Q5_K_M", 5.7, 57.6, "; Q6_K would write about 9.0 tokens/s, below 10"),
        (machine(64, 30), None, "Q4_K_M", 4.9, 57.6, "; no level reaches 10 tokens/s here, this one about 4.6"),
        (machine(6.6), None, "Q3_K_M", 4.0, 5.5, f"; memory {FORCED} {needed('Q4_K_M')}"),
        (machine(64), 6.0, "Q5_K_M", 5.7, 57.6, "; Q6_K would need up to 6.6 GB of disk, where 6.0 GB are free"),
        (machine(64), 4.5, "Q3_K_M", 4.0, 57.6, f"; disk {FORCED} up to 4.9 GB of disk, where 4.5 GB are free"),
    ],
)
def test_the_rule_and_its_sentence(
    hardware: Hardware, disk: float | None, level: str, weights: float, budget: float, ending: str
) -> None:
    choice = choose(LEVELS, LLAMA_8B, Host(hardware, disk_free=disk and int(disk * GB)), Wish())
    assert parts(level).startswith(f"{weights} GB weights")
    start = f"{level}: {parts(level)} fit the {budget} GB that models may use"
    assert (choice.level, choice.reason) == (level, start + ending)
    names = [candidate.level for candidate in LEVELS[1:]]
    assert [name for name, _ in choice.rejected] == names[: names.index(level)]


def test_when_none_is_fast_a_larger_one_that_is_no_slower_is_taken() -> None:
    same = [Candidate("Q5_K_M", 5 * GB), Candidate("Q4_K_M", 5 * GB)]
    assert choose(same, LLAMA_8B, Host(machine(64, bandwidth=10)), Wish()).level == "Q5_K_M"


@pytest.mark.parametrize(
    ("hardware", "disk", "message", "hint"),
    [
        (
            machine(6),
            None,
            f"{needed('Q3_K_M')} ({parts('Q3_K_M')}), and models may use 4.9 GB here",
            "`--level IQ2_M` fits, at a loss of quality; "
            "Q3_K_M fits with a context of 4,864 tokens (`lm fit --ctx 4864`, LM_CONTEXT)",
        ),
        (
            machine(5),
            None,
            f"{needed('Q3_K_M')} ({parts('Q3_K_M')}), and models may use 3.9 GB here",
            "IQ2_M fits with a context of 5,632 tokens (`lm fit --ctx 5632`, LM_CONTEXT)",
        ),
        (
            machine(3),
            None,
            f"{needed('Q3_K_M')} ({parts('Q3_K_M')}), and models may use 2.2 GB here",
            "take a smaller model",
        ),
        (machine(64), GB, "up to 4.0 GB of disk, where 1.0 GB are free", "make room on the disk of the store"),
    ],
)
def test_what_fits_nowhere_is_refused_with_both_numbers(
    hardware: Hardware, disk: int | None, message: str, hint: str
) -> None:
    with pytest.raises(DoesNotFit) as caught:
        choose(LEVELS, LLAMA_8B, Host(hardware, disk_free=disk), Wish())
    assert (str(caught.value), caught.value.hint) == (f"even Q3_K_M would need {message}", hint)


@pytest.mark.parametrize("memory", [4.5, 5, 5.5, 6])
def test_the_context_of_the_hint_does_fit_and_a_longer_one_does_not(memory: float) -> None:
    host = Host(machine(memory))
    with pytest.raises(DoesNotFit) as caught:
        choose(LEVELS, LLAMA_8B, host, Wish())
    found = re.search(r"(\S+) fits with a context of [\d,]+ tokens \(`lm fit --ctx (\d+)`", caught.value.hint)
    assert found, caught.value.hint
    level, context = found[1], int(found[2])
    assert choose(LEVELS, LLAMA_8B, host, Wish(CacheConfig(context), forced=level)).reason.count("although") == 0
    longer = choose(LEVELS, LLAMA_8B, host, Wish(CacheConfig(context + 1024), forced=level))
    assert longer.reason.count("although") == 1


def test_with_judgement_alone_nothing_is_refused() -> None:
    choice = choose(LEVELS, LLAMA_8B, Host(machine(5)), Wish(judge_only=True))
    assert (choice.level, choice.rejected) == ("", ()) and choice.reason.startswith("even Q3_K_M would need ")
    assert choice.hint.startswith("IQ2_M fits with ")


def test_a_level_asked_for_is_taken_at_its_word() -> None:
    fits = choose(LEVELS, LLAMA_8B, Host(machine(64)), Wish(forced="BF16"))
    assert fits.reason.startswith(f"BF16: asked for, {parts('BF16')} fit the 57.6 GB")
    large = choose(LEVELS, LLAMA_8B, Host(machine(8)), Wish(forced="Q8_0"))
    sizes = f"{parts('Q8_0')} need {needed('Q8_0')}"
    assert large.reason == f"Q8_0: asked for, although {sizes}, and models may use 6.9 GB here"
    with pytest.raises(DoesNotFit, match=r"Q8_0 would need up to 8.5 GB of disk"):
        choose(LEVELS, LLAMA_8B, Host(machine(64), disk_free=GB), Wish(forced="Q8_0"))
    with pytest.raises(BadRequest, match="no level `Q9`"):
        choose(LEVELS, LLAMA_8B, Host(machine(64)), Wish(forced="Q9"))


def test_the_sizes_come_from_metadata() -> None:
    model_size = fit.ModelSize.of(
        {
            "general.architecture": "llama",
            "llama.block_count": 2,
            "llama.embedding_length": 256,
            "llama.feed_forward_length": [768, 512],
            "llama.attention.head_count": 4,
            "llama.attention.head_count_kv": [2, 1],
            "llama.context_length": 2048,
            "tokenizer.ggml.tokens": ["a"] * 300,
        }
    )
    assert model_size == fit.ModelSize(
        2, 256, 768, 300, 2048, 3 * 128, attention_heads=2 * 4, row_values=2 * 64, layer_values=2 * 128
    )
    assert model_size.cap_context(CacheConfig()).context == 2048
    assert model_size.cap_context(CacheConfig(100)).context == 100
    assert fit.ModelSize.of({}).trained_context == 8192


def test_layers_that_neither_attend_nor_mix_keep_no_state() -> None:
    mixers = {"conv_kernel": 4, "inner_size": 128, "state_size": 32, "group_count": 2}
    facts: dict[str, Any] = {"block_count": 4, "embedding_length": 64, "attention.head_count": 4}
    facts |= {"attention.head_count_kv": [0, 2, 0, 0], **{f"ssm.{key}": value for key, value in mixers.items()}}
    each = 128 * 32 + 3 * (128 + 2 * 2 * 32)
    for wide, layers in ((256, 3), ([0, 0, 256, 0], 2)):
        named = {f"hybrid.{key}": value for key, value in {**facts, "feed_forward_length": wide}.items()}
        assert fit.ModelSize.of({"general.architecture": "hybrid", **named}).state_values == layers * each


def test_layers_that_a_list_calls_recurrent_have_a_state_and_no_cells() -> None:
    """As in Qwen 3.5, whose file gives heads of keys to all layers; llama.cpp makes a cache for the others alone."""
    mixers = {"conv_kernel": 4, "inner_size": 192, "state_size": 32, "group_count": 2}
    facts: dict[str, Any] = {"block_count": 4, "embedding_length": 128, "attention.head_count": 4}
    facts |= {"attention.head_count_kv": 2, "attention.key_length": 64, "attention.value_length": 64}
    facts |= {"attention.recurrent_layers": [True, True, False, True], **{f"ssm.{k}": v for k, v in mixers.items()}}
    size = fit.ModelSize.of({"general.architecture": "qwen35", **{f"qwen35.{key}": facts[key] for key in facts}})
    assert size.cache_values == 2 * (64 + 64)
    assert size.state_values == 3 * (192 * 32 + 3 * (192 + 2 * 2 * 32))


def test_the_cache_is_counted_to_the_byte() -> None:
    need = fit.memory(LLAMA_8B, 5 * GB, CacheConfig())
    assert need.cache == 8192 * 32 * 2 * 8 * 128 * 2 == 1 << 30
    assert fit.memory(LLAMA_8B, 5 * GB, CacheConfig(8000)).cache == need.cache
    assert fit.memory(LLAMA_8B, 5 * GB, CacheConfig(kv_type="Q8_0")).cache == need.cache * 34 // 64
    assert need.total == need.weights + need.cache + need.compute


def test_only_the_experts_that_answer_cost_time() -> None:
    metadata = {"block_count": 32, "embedding_length": 4096, "attention.head_count": 32, "feed_forward_length": 14336}
    mixture = {f"llama.{k}": v for k, v in {**metadata, "expert_count": 8, "expert_used_count": 2}.items()}
    model_size = fit.ModelSize.of({"general.architecture": "llama", **mixture})
    assert 0.25 < model_size.expert_share < 0.35
    assert fit.speed(model_size, GB, 1e10) > 3 * fit.speed(LLAMA_8B, GB, 1e10)


def test_sizes_for_people() -> None:
    told = {
        0: "0 B",
        999: "999 B",
        12_000: "12 kB",
        999_499: "999 kB",
        999_500: "1.0 MB",
        9_949_999: "9.9 MB",
        9_950_000: "10 MB",
        999_499_999: "999 MB",
        999_500_000: "1.0 GB",
        5_700_000_000: "5.7 GB",
        99_949_999_999: "99.9 GB",
        115_260_000_000: "115 GB",
    }
    assert {count: size_text(count) for count in told} == told
