"""Embedding models: what sentence-transformers writes beside the weights becomes llama.cpp's pooling."""

from __future__ import annotations

import json
from typing import Any

import pytest

from quant.convert.planning import plan_model
from quant.errors import QuantError
from tests.quant.support import DEMO, Folder

MODULES = [
    {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def embedding(pooling: Any, modules: Any = MODULES) -> Folder:
    folder = Folder(DEMO).with_file("modules.json", json.dumps(modules).encode())
    return folder.with_file("1_Pooling/config.json", json.dumps(pooling).encode())


@pytest.mark.parametrize(
    ("pooling", "number"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, 1),
        ({"pooling_mode_cls_token": True}, 2),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, 3),
        ({"pooling_mode": "lasttoken"}, 3),
    ],
)
def test_a_decoder_may_make_embeddings(pooling: Any, number: int) -> None:
    plan = plan_model(embedding(pooling))
    assert plan.metadata["llama.pooling_type"] == number
    assert plan.capabilities == ("embedding",)


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        (embedding({"pooling_mode_max_tokens": True}), "pooled"),
        (embedding({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}), "pooled"),
        (embedding({}), "pooled"),
        (embedding({}, [*MODULES, {"path": "3_Dense", "type": "sentence_transformers.models.Dense"}]), "`Dense`"),
        (embedding({}, MODULES[:1]), "no pooling"),
        (embedding({}, {"a": 1}), "`modules.json`"),
        (embedding({}, [1]), "`modules.json`"),
        (embedding({}).with_file("1_Pooling/config.json", None), "missing"),
        (embedding({}).with_file("modules.json", b"{"), "`modules.json`"),
    ],
)
def test_what_is_done_otherwise_is_refused(folder: Folder, reason: str) -> None:
    with pytest.raises(QuantError, match=reason):
        plan_model(folder)
