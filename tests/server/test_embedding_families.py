"""Embedding models of other families than BERT, from folders as sentence-transformers writes them, against itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.daemon import Daemon
from tests.quant.zoo import ZOO
from tests.quant.zoo.making import framed, make, weight

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]
TEXTS = ["The ship sails to the north sea.", "Bread is made of flour and water.", "A", "A dark night. " * 20]
# How the vectors of tokens become one, and whether two matrices follow.
KINDS = {
    "qwen3, embedding": ("lasttoken", False),
    "gemma-embedding": ("mean", True),
    "nomic-bert": ("mean", False),
    "modern-bert": ("cls", False),
    "bert, xlm-roberta": ("cls", False),
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("families"), runtime="llama") as daemon:
        yield daemon


def publish(row: str, path: Path) -> Any:
    """The model of a row as a folder of sentence-transformers, with a tokenizer that puts tokens around a text."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules as models

    bare = make(ZOO[row], path.with_name("bare"))
    tokenizer = json.loads((bare / "tokenizer.json").read_text())
    tokenizer["post_processor"] = framed("<|endoftext|>", "<|im_end|>", 1)
    (bare / "tokenizer.json").write_text(json.dumps(tokenizer))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<|endoftext|>", "model_max_length": 500}
    (bare / "tokenizer_config.json").write_text(json.dumps(named))
    pooling, dense = KINDS[row]
    first = models.Transformer(str(bare))
    width = first.get_embedding_dimension()
    steps = [first, models.Pooling(width, pooling_mode=pooling)]
    if dense:
        for rows, columns in ((96, width), (width, 96)):
            steps.append(models.Dense(columns, rows, bias=False, activation_function=torch.nn.Identity()))
            values = torch.from_numpy(weight(f"dense {rows}", (rows, columns), 1.0))
            steps[-1].linear.weight.data.copy_(values)
    whole = SentenceTransformer(modules=[*steps, models.Normalize()], device="cpu")
    whole.save(str(path))
    return SentenceTransformer(str(path), device="cpu")


@pytest.mark.parametrize("row", KINDS)
def test_vectors_are_those_of_sentence_transformers(daemon: Daemon, row: str, tmp_path: Path) -> None:
    path = tmp_path / row.split(",")[0]
    wanted = publish(row, path).encode(TEXTS)
    daemon.pull(f"{path}:F16")
    found = np.array(daemon.post("/api/embed", {"model": f"{path.name}:F16", "input": TEXTS}).json["embeddings"])
    assert daemon.post("/api/show", {"model": f"{path.name}:F16"}).json["capabilities"] == ["embedding"]
    assert ((found * wanted).sum(1) / np.linalg.norm(wanted, axis=1)).min() >= 0.999
