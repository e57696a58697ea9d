"""Advice through the daemon: the table, the rule, the reason; headers only; and a pull chooses the same."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from quant.levels import recipes
from registry.sources.opening import DEMO
from tests.cli.support import Cli
from tests.daemon import Daemon, allowed
from tests.hub import Hub

# Without the level that is for experts alone: the demo has none.
LEVELS = [level for level in recipes.LEVELS if level != "MXFP4_MOE"]


def row(advice: Any, level: str) -> Any:
    return next(row for row in advice["levels"] if row["level"] == level)


def test_a_repository_is_judged_by_its_headers(daemon: Daemon, hub: Hub) -> None:
    sent, begun = hub.bytes_sent, time.perf_counter()
    advice = daemon.advice("org/demo")
    assert time.perf_counter() - begun < allowed(5)  # a second on an idle machine: `benchmarks/fit.py`
    assert hub.bytes_sent - sent < 100_000
    assert [row["level"] for row in advice["levels"]] == LEVELS
    assert advice["level"] == "Q8_0"
    assert advice["reason"].startswith("Q8_0: 6.1 MB weights + 6.3 MB cache for 2,048 tokens + ")
    assert advice["measured_memory"] is True
    best = row(advice, "Q8_0")
    assert best["memory_bytes"] == best["weights_bytes"] + best["cache_bytes"] + best["compute_bytes"]
    assert (best["chosen"], best["fits"], best["quality"], best["perplexity_increase"]) == (
        True,
        "yes",
        "published",
        0.0027,
    )
    assert row(advice, "BF16")["why_not"] == "is larger than Q8_0, and not noticeably better"


def test_every_way_to_name_it_gets_the_same_advice(daemon: Daemon) -> None:
    advice = [daemon.advice(name, memory="40MB", context=512, parallel=1) for name in ("demo", str(DEMO), "org/demo")]
    assert len({(each["level"], each["reason"]) for each in advice}) == 1


def test_a_pull_agrees_and_the_installed_model_too(daemon: Daemon) -> None:
    before = daemon.advice("demo")
    planned = next(line for line in daemon.post("/api/pull", {"model": "demo"}).lines if line["phase"] == "planned")
    assert (planned["level"], planned["reason"]) == (before["level"], before["reason"])
    after = daemon.advice("demo")
    assert (after["installed"], after["reason"]) == ("demo:Q8_0", before["reason"])
    assert [row["memory_bytes"] for row in after["levels"]] == [row["memory_bytes"] for row in before["levels"]]


def test_a_quantized_file_is_judged_as_it_is(daemon: Daemon, tmp_path: Path) -> None:
    daemon.pull("demo:Q6_K")
    files = [path for path in (daemon.home / "store" / "blobs").iterdir() if path.read_bytes()[:4] == b"GGUF"]
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(min(files, key=lambda path: path.stat().st_size).read_bytes())
    advice = daemon.advice(str(copy))
    assert (advice["level"], [row["level"] for row in advice["levels"]]) == ("Q6_K", ["Q6_K"])
    lines = daemon.post("/api/pull", {"model": str(copy)}).lines
    assert next(line for line in lines if line["phase"] == "planned")["reason"] == advice["reason"]


def test_what_loses_says_why(daemon: Daemon) -> None:
    whole = daemon.advice("demo")
    limit = row(whole, "Q5_K_M")["memory_bytes"] + 1000
    advice = daemon.advice("demo", memory=limit)
    assert advice["level"] == "Q5_K_M"
    assert [lost["level"] for lost in advice["rejected"]] == ["Q8_0", "Q6_K"]
    assert all(lost["why"].startswith("would need ") for lost in advice["rejected"])
    assert row(advice, "Q6_K")["fits"] == "no"
    slow = daemon.advice("demo", min_tps=1_000_000)
    assert slow["reason"].partition("; ")[2].startswith("no level reaches 1e+06 tokens/s here")
    assert slow["level"] == "Q4_K_M"
    forced = daemon.advice("demo", level="q2_k")
    assert forced["reason"].startswith("Q2_K: asked for, ")
    small = daemon.advice("demo", context=256, kv_type="q8_0")
    # llama.cpp says sizes to a hundredth of a MiB
    assert row(small, "Q8_0")["cache_bytes"] == pytest.approx(row(whole, "Q8_0")["cache_bytes"] / 8 * 34 / 64, abs=6e3)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "demo", "memory": "2MB"}, 507, "does_not_fit"),
        ({"model": "demo", "memory": "much"}, 400, "bad_body"),
        ({"model": "demo", "memory": 5}, 400, "bad_body"),
        ({"model": "demo", "kv_type": "Q9"}, 400, "bad_body"),
        ({"model": "demo", "context": 1}, 400, "bad_body"),
        ({"model": "demo", "parallel": 1000}, 400, "bad_body"),
        ({"model": "demo", "level": "Q9"}, 400, "unknown_level"),
        ({"model": "org/none"}, 404, "model_not_found"),
        ({"model": "./relative"}, 400, "bad_name"),
        ({"model": "llama3"}, 502, "source_unavailable"),
        ({}, 400, "bad_body"),
    ],
)
def test_what_cannot_be_advised_says_why(daemon: Daemon, body: dict[str, Any], status: int, code: str) -> None:
    answer = daemon.post("/lm/advise", body)
    assert (answer.status, answer.json["code"]) == (status, code), answer.body
    assert answer.json["hint"]


def test_the_command_shows_table_and_reason(daemon: Daemon) -> None:
    lm = Cli.at(daemon.home, f"127.0.0.1:{daemon.port}")
    ended = lm("fit", "demo", "--ctx", "1024", "--parallel", "2")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[0].split() == ["LEVEL", "BITS", "FILE", "MEMORY", "FITS", "TOKENS/S", "QUALITY*"]
    assert lines[1].startswith("→") and " Q8_0 " in lines[1]
    assert [line.split()[0] for line in lines[2:]] == ["Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"]
    assert "Q8_0: 6.1 MB weights + 3.1 MB cache for 1,024 tokens + " in ended.err
    assert lm("fit", "demo", "--level", "Q4_K_M", "--memory", "1GB").out.count("→") == 1
    assert lm("fit", "demo:Q8_0", "--level", "Q4_K_M").code == 2


def _megabytes(text: str) -> float:
    number, unit = text.split()
    return float(number) * {"kB": 1e-3, "MB": 1, "GB": 1e3}[unit]


def test_the_parts_of_a_reason_add_up_to_the_memory_of_the_table(daemon: Daemon) -> None:
    advice = daemon.advice("demo")
    parts = re.findall(r"(\S+ .B) (?:weights|cache|buffers)", advice["reason"].replace("for 2,048 tokens ", ""))
    total = row(advice, advice["level"])["memory_bytes"] / 1e6
    assert len(parts) == 3 and sum(map(_megabytes, parts)) == pytest.approx(total, abs=0.7)  # as they are rounded


def test_where_nothing_fits_the_table_is_shown_and_what_would_fit(daemon: Daemon) -> None:
    lm = Cli.at(daemon.home, f"127.0.0.1:{daemon.port}")
    least = row(daemon.advice("demo"), "Q3_K_M")
    limit = least["memory_bytes"] - least["cache_bytes"] // 2
    ended = lm("fit", "demo", "--memory", str(limit))
    assert ended.code == 5 and " Q3_K_M " in ended.out and "→" not in ended.out
    found = re.search(r"Q3_K_M fits with a context of [\d,]+ tokens \(`lm fit --ctx (\d+)`", ended.err)
    assert found, ended.err
    tried = lm("fit", "demo", "--memory", str(limit), "--ctx", found[1])
    assert tried.code == 0 and "→" in tried.out, tried.err
    told = lm("fit", "demo", "--memory", "2MB", "--json")
    advice = json.loads(told.out)
    assert told.code == 5 and advice["code"] == "does_not_fit" and advice["level"] == ""
    assert [each["fits"] for each in advice["levels"]] == ["no"] * len(LEVELS)
    assert advice["hint"] == "take a smaller model"


def test_a_level_in_the_name_is_judged_whether_it_is_here_or_not(daemon: Daemon) -> None:
    assert daemon.advice("demo:Q4_0")["level"] == "Q4_0"
    daemon.pull("demo:Q4_0")
    assert daemon.advice("demo:Q4_0")["level"] == "Q4_0"
    assert daemon.advice("demo:q4_0")["reason"].startswith("Q4_0: asked for, ")


def test_the_table_and_the_reason_print_the_same_sizes(daemon: Daemon) -> None:
    ended = Cli.at(daemon.home, f"127.0.0.1:{daemon.port}")("fit", "demo:F16", "--memory", "115260MB")
    chosen = next(line for line in ended.out.splitlines() if line.startswith("→"))
    found = re.search(r"asked for, (\S+ .B) weights .* fit the (\S+ .B) that models may use", ended.err)
    assert found, ended.err
    assert f" {found[1]} " in chosen
    assert f"; models may use {found[2]}\n" in ended.err


def test_the_cache_folder_holds_no_speed_for_small_models(daemon: Daemon) -> None:
    assert not list(Path(daemon.home, "cache").glob("speed-*"))
