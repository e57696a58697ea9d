"""Figures of quality: as good from files as from memory, with honest errors, and as others compute them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.convert.planning import plan_model
from registry.names import parse
from registry.net.network import Network
from registry.sources.opening import DEMO, open_source
from runtime.errors import BadRequest
from runtime.meter import passages
from runtime.meter.figures import figures, gain
from runtime.meter.kept import (
    Compared,
    KeptWindow,
    NotFinite,
    compare,
    divergence,
    keep,
    log_probabilities,
    record,
)
from runtime.meter.records import load, path_of, save
from runtime.meter.sizes import scored, window_of
from tests.converting import write


def logits(rows: int, size: int, sharpness: float, seed: int = 1) -> Any:
    return (np.random.default_rng(seed).normal(size=(rows, size)) * sharpness).astype(np.float32)


@pytest.mark.parametrize("sharpness", [0.5, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("noise", [0.005, 0.05, 0.5, 2.0])
def test_what_is_kept_gives_the_same_divergence_as_all_of_it(sharpness: float, noise: float) -> None:
    p = logits(32, 5000, sharpness)
    q = p + logits(32, 5000, noise, seed=2)
    exact, found, hidden = [], [], []
    for ours, theirs in zip(p, q, strict=True):
        log_p, log_q = log_probabilities(ours), log_probabilities(theirs)
        exact.append(float((np.exp(log_p) * (log_p - log_q)).sum()))
        one, left_out = divergence(keep(log_p), log_q)
        found.append(one)
        hidden.append(left_out)
    lacks = np.mean(exact) - np.mean(found)
    assert abs(lacks) <= max(0.01 * np.mean(exact), 2e-5)
    assert lacks <= 3 * np.mean(hidden) + 1e-6  # what is said to be left out is about what is


def test_a_flat_distribution_is_kept_within_a_bound() -> None:
    kept = keep(log_probabilities(np.zeros(1000, np.float32)), most=100)
    assert len(kept.ids) == 100 and kept.rest == pytest.approx(0.9)
    assert divergence(kept, log_probabilities(np.zeros(1000, np.float32)))[0] == pytest.approx(0, abs=1e-6)
    everything = keep(log_probabilities(np.zeros(1000, np.float32)), mass=0.0)
    assert len(everything.ids) == 1000 and everything.rest == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_no_probabilities(bad: float) -> None:
    row = logits(1, 50, 1.0)[0]
    row[3] = bad
    with pytest.raises(NotFinite):
        log_probabilities(row)


def window(size: int = 16, seed: int = 1) -> tuple[KeptWindow, Any]:
    rows = logits(scored(size), 300, 2.0, seed)
    return record(np.arange(size, dtype=np.int32), rows), rows


def test_a_window_speaks_of_the_tokens_of_its_second_half() -> None:
    found, rows = window()
    assert len(found.rests) == scored(16) == 7
    compared = compare(found, rows)
    assert compared.divergence == pytest.approx(np.zeros(7), abs=1e-6)
    assert compared.same.all() and not compared.flipped.any()
    expected = [log_probabilities(row)[token] for row, token in zip(rows, range(9, 16), strict=True)]
    assert compared.model == pytest.approx(expected) and compared.reference == pytest.approx(expected)


def test_a_flip_is_a_token_that_just_one_of_both_gets_right() -> None:
    found, rows = window()
    right = rows.copy()
    right[np.arange(7), np.arange(9, 16)] = 99.0
    assert compare(found, right).flipped.all() and not compare(found, right).same.all()
    wrong = -right
    assert not compare(found, wrong).flipped.any()


def test_a_record_is_read_back_and_a_torn_one_counts_for_none(tmp_path: Path) -> None:
    found, _ = window()
    save(tmp_path, "reference", 3, found)
    again = load(tmp_path, "reference", 3, KeptWindow)
    assert again is not None and all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    assert load(tmp_path, "reference", 4, KeptWindow) is None
    path = path_of(tmp_path, "reference", 3)
    path.write_bytes(path.read_bytes()[:-100])
    assert load(tmp_path, "reference", 3, KeptWindow) is None


def compared(divergences: Any) -> Compared:
    values = np.asarray(divergences, float)
    zeros, no = np.zeros_like(values), np.zeros(len(values), bool)
    return Compared(values, zeros, zeros, zeros - 1, no, no)


def test_errors_come_from_windows_and_not_from_tokens() -> None:
    short = figures([compared([level] * 2) for level in (1.0, 2.0, 3.0)])
    long = figures([compared([level] * 200) for level in (1.0, 2.0, 3.0)])  # as many windows say no more
    assert short["mean"]["value"] == long["mean"]["value"] == pytest.approx(2.0)
    assert short["mean"]["error"] == long["mean"]["error"] == pytest.approx(1 / 3**0.5)
    assert long["p999"]["error"] and long["p999"]["value"] == pytest.approx(3.0)
    assert long["perplexity"]["value"] == pytest.approx(np.e) and long["ratio"]["value"] == pytest.approx(np.e)
    assert figures([compared([1.0, 2.0])])["mean"]["error"] is None


def test_a_difference_is_surer_than_what_it_is_the_difference_of() -> None:
    """Windows differ a hundred times more than both models do in each of them."""
    chance = np.random.default_rng(1)
    hard = chance.uniform(0.5, 1.5, (12, 1))
    before = np.repeat(hard, 64, 1)
    after = before - 0.01 + chance.normal(0, 0.01, before.shape)
    found = gain([compared(row) for row in before], [compared(row) for row in after])
    differences = (before - after).mean(1)
    assert found["value"] == pytest.approx(differences.mean())
    assert found["error"] == pytest.approx(differences.std(ddof=1) / np.sqrt(12))
    both = [figures([compared(row) for row in rows])["mean"]["error"] for rows in (before, after)]
    assert found["error"] is not None and found["value"] > 5 * found["error"]
    assert all(error is not None and error > found["value"] for error in both)


def test_texts_to_measure_share_nothing_with_texts_to_learn_from() -> None:
    held, calibration = passages.own("held"), passages.own("calibration")
    assert len(calibration.text.encode()) < 1 << 20 and held.digest != calibration.digest
    ours, theirs = ({part.strip() for part in each.text.split("\n") if len(part) > 60} for each in (held, calibration))
    assert not ours & theirs
    turns = [{turn["content"] for chat in each.chats for turn in chat} for each in (held, calibration)]
    assert turns[0] and turns[1] and not turns[0] & turns[1]


def test_windows_are_as_long_as_a_model_reads() -> None:
    assert window_of(8192) == 512 and window_of(100) == 100
    with pytest.raises(BadRequest, match="too few"):
        window_of(8)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model `demo` at two levels."""
    source, folder, found = open_source(parse(str(DEMO)), "", Network()), tmp_path_factory.mktemp("demo"), {}
    plan = plan_model(source)
    for level in ("F32", "Q8_0"):
        found[level] = folder / f"{level}.gguf"
        write(plan, level, lambda shard: [source.read(shard, 0, source.size(shard))], found[level], threads=1)
    return found


def test_a_text_that_is_too_short_is_refused_with_its_length(demo: dict[str, Path]) -> None:
    from runtime.meter.windows import WindowReader

    reader = WindowReader(demo["Q8_0"], 512, 1)
    for text, said in (("", "0 tokens"), ("a", "1 token,"), ("once " * 100, "one window takes 512")):
        with pytest.raises(BadRequest, match=said):
            reader.windows(passages.Passage("short", text))
    found = reader.windows(passages.own("held"), 3)
    assert len(found) == 3 and min(found) == 0 and max(found) > 10  # spread over all kinds of text
    assert reader.windows(passages.own("held"), 3).keys() == found.keys()


@pytest.mark.oracle
def test_figures_are_those_of_transformers(demo: dict[str, Path]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from runtime.meter.windows import WindowReader

    original: Any = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32, local_files_only=True)
    readers = {level: WindowReader(path, 128, 1) for level, path in demo.items()}
    passage = passages.own("held")
    windows = readers["F32"].windows(passage, 6)
    found, expected, perplexity = [], [], []
    for tokens in windows.values():
        kept = record(tokens, readers["F32"].logits(tokens))
        found.append(compare(kept, readers["Q8_0"].logits(tokens)))
        with torch.no_grad():
            theirs = original(torch.tensor(tokens[None].astype(np.int64))).logits[0, 64:127].numpy()
        log_p = np.stack([log_probabilities(row) for row in theirs])
        log_q = np.stack([log_probabilities(row) for row in readers["Q8_0"].logits(tokens)])
        expected.append((np.exp(log_p) * (log_p - log_q)).sum(axis=1))
        perplexity.append(-log_p[np.arange(63), tokens[65:]])
    ours = figures(found)
    assert ours["mean"]["value"] == pytest.approx(float(np.mean(expected)), rel=0.01, abs=2e-5)
    assert ours["reference_perplexity"]["value"] == pytest.approx(float(np.exp(np.mean(perplexity))), rel=1e-3)


def test_origins_of_texts_are_told() -> None:
    folder = Path(passages.__file__).parent / "texts"
    told = (folder / "ORIGIN.md").read_text()
    assert all(f"{kind}.txt" in told for kind in ("held", "calibration"))
    assert all(json.loads((folder / f"{kind}.json").read_text()) for kind in ("held", "calibration"))
