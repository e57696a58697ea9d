"""Changed configs against transformers: a sample with each row and each key of `config.json` once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.quant.changes import report
from tests.quant.changes.trial import Result
from tests.quant.changes.values import ABSENT, Change, sampled, values
from tests.quant.support import ROOT

pytestmark = pytest.mark.oracle


def test_a_sample_has_each_key_once() -> None:
    changes = [Change("nothing", (), {}), *(Change(f"a = {n}", ("a",), {"a": n}) for n in range(3))]
    assert [each.keys for each in sampled(changes, frozenset())] == [(), ("a",)]
    assert [each.keys for each in sampled(changes, frozenset({"a"}))] == [()]
    assert values("tie_word_embeddings", True, False) == [ABSENT, False]


def test_the_page_names_scalings_and_refused_keys() -> None:
    found = [
        Result("llama", "rope_parameters: linear", ("rope_parameters", "scaling: linear"), "right", ""),
        Result("llama", "is_causal = false", ("is_causal",), "refused", ""),
        Result("llama", "attention_bias = true", ("attention_bias",), "right", ""),
    ]
    assert report.table(found).endswith("| llama | linear | - | 3 | is_causal |\n")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_changed_config_is_silently_wrong_or_cannot_be_loaded() -> None:
    command = [sys.executable, "-m", "tests.quant.changes", "--sample"]
    found = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-1000:]
    assert "right" in found.stdout
