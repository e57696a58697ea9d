"""`/metrics`: one count for each number, under the names of three projects; prometheus_client reads it back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from registry.store.catalog import Model
from runtime.messages import Delta, Finished, Started
from server.keys.file import change_keys
from server.keys.record import new_key
from server.loaded.tally import Histogram, Tally
from tests.daemon import Daemon, put_model


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("metrics")
    put_model(home)
    put_model(home, "other")
    with Daemon(home, script={"echo": True, "drafts": [5, 3]}) as daemon:
        yield daemon


def scraped(daemon: Daemon, **headers: str) -> dict[tuple[str, str], float]:
    """The samples by name and model; buckets of histograms are left out."""
    answer = daemon.get("/metrics", **headers)
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.body.decode())
    samples = [sample for family in families for sample in family.samples if "le" not in sample.labels]
    return {
        (sample.name, sample.labels.get("model", sample.labels.get("model_name", ""))): sample.value
        for sample in samples
    }


def test_one_number_has_the_names_of_three_projects(daemon: Daemon) -> None:
    before = scraped(daemon)
    assert ("lm_build_info", "") in before
    for _ in range(2):
        assert daemon.post("/api/generate", {"model": "tiny", "prompt": "a b c", "stream": False}).status == 200
    assert daemon.post("/v1/embeddings", {"model": "tiny", "input": "a b"}).status == 200
    assert daemon.post("/v1/completions", {"model": "other", "prompt": "a"}).status == 200
    found = scraped(daemon)

    def all_of(model: str, *names: str) -> set[float]:
        return {found[name, f"{model}:F32"] for name in names}

    assert all_of("tiny", "lm_prompt_tokens_total", "vllm:prompt_tokens_total", "llamacpp:prompt_tokens_total") == {8}
    answers = "lm_answer_tokens_total", "vllm:generation_tokens_total", "llamacpp:tokens_predicted_total"
    assert all_of("tiny", *answers) == {6}
    assert all_of("other", *answers) == {1}
    drafts = "lm_drafted_tokens_total", "vllm:spec_decode_num_draft_tokens_total"
    assert all_of("tiny", *drafts) == {10}
    running = "lm_requests_running", "vllm:num_requests_running", "llamacpp:requests_processing"
    assert all_of("tiny", *running, "lm_requests_waiting", "vllm:num_requests_waiting") == {0}
    firsts = "lm_time_to_first_token_seconds_count", "vllm:time_to_first_token_seconds_count"
    assert all_of("tiny", *firsts, "vllm:request_success_total", "vllm:e2e_request_latency_seconds_count") == {2}


def test_openmetrics_comes_to_whoever_asks_for_it(daemon: Daemon) -> None:
    answer = daemon.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    assert answer.body.endswith(b"# EOF\n")


def test_a_key_sees_its_own_models_alone(tmp_path: Path) -> None:
    put_model(tmp_path)
    put_model(tmp_path, "other")
    secrets = {name: new_key("infer", models=(name,)) for name in ("tiny", "other")}
    change_keys(tmp_path / "keys.json", lambda _: [key for _, key in secrets.values()])
    headers = {name: {"Authorization": f"Bearer {secret}"} for name, (secret, _) in secrets.items()}
    with Daemon(tmp_path, script={"echo": True}) as daemon:
        assert daemon.get("/metrics").status == 401
        body = {"model": "tiny", "prompt": "a", "stream": False}
        assert daemon.post("/api/generate", body, **headers["tiny"]).status == 200
        assert ("lm_answer_tokens_total", "tiny:F32") in scraped(daemon, **headers["tiny"])
        assert b"tiny" not in daemon.get("/metrics", **headers["other"]).body


def test_a_request_counts_once_however_it_ends(model: Model) -> None:
    tally = Tally(model)
    with tally.request() as counting:
        assert (tally.waiting, tally.running) == (1, 0)
        counting.count(Started(1, prompt_tokens=9, cached=4))
        assert (tally.waiting, tally.running) == (0, 1)
        counting.count(Delta(1, "a", 1))
        counting.count(Delta(1, "b", 1))
        for index in (0, 1):
            counting.count(Finished(1, "length", 9, 5, 4, prompt_ns=10**9, answer_ns=2 * 10**9, index=index))
    with pytest.raises(ValueError, match="x"), tally.request():
        raise ValueError("x")
    assert (tally.waiting, tally.running) == (0, 0)
    assert (tally.prompt_tokens, tally.cached_tokens, tally.answer_tokens) == (9, 4, 10)
    assert (tally.prompt_seconds, tally.answer_seconds, tally.longest) == (1.0, 4.0, 14)
    assert tally.ends == {"length": 2, "failed": 1}
    assert tally.per_token.buckets[-1] == ("+Inf", 2.0)
    assert tally.first_text.buckets[-1] == ("+Inf", 1.0)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    from registry.store.store import Store

    put_model(tmp_path)
    with Store.open(tmp_path / "store") as store:
        return store.resolve("tiny")


def test_a_value_at_a_bound_is_in_its_bucket() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.add(value)
    assert histogram.buckets == [("1.0", 2.0), ("2.0", 3.0), ("+Inf", 4.0)]
    assert histogram.sum == 12.0
