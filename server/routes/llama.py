"""The routes of llama-server and of the rerankers that its clients know."""

from __future__ import annotations

from server.api.lm import infill, rerank
from server.routes.route import Route

ROUTES = [
    Route(
        "POST",
        "/infill",
        "infer",
        infill.infill,
        "the text between two others, for llama-server's clients in editors",
    ),
    Route(
        "POST",
        "/v1/rerank",
        "infer",
        rerank.rerank,
        "how well `documents` answer a `query`, best first (`top_n`), in Jina's and Cohere's form",
    ),
    Route("POST", "/v2/rerank", "infer", rerank.rerank, "as `/v1/rerank`"),
    Route(
        "POST",
        "/rerank",
        "infer",
        rerank.rerank,
        "as `/v1/rerank`, and with `texts` in the form of Text Embeddings Inference",
    ),
]
