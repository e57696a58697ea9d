"""The routes of the rerankers: Jina's, Cohere's, Text Embeddings Inference's and llama-server's."""

from __future__ import annotations

from server.api.llama import rerank
from server.routes.route import Route

ROUTES = [
    Route(
        "POST",
        "/v1/rerank",
        "infer",
        rerank.rerank,
        "how well `documents` answer a `query`, best first (`top_n`), in Jina's and Cohere's form",
        body=rerank.RerankBody,
    ),
    Route("POST", "/v1/reranking", "infer", rerank.rerank, "as `/v1/rerank`", body=rerank.RerankBody),
    Route("POST", "/v2/rerank", "infer", rerank.rerank, "as `/v1/rerank`", body=rerank.RerankBody),
    Route(
        "POST",
        "/rerank",
        "infer",
        rerank.rerank,
        "as `/v1/rerank`, and with `texts` in the form of Text Embeddings Inference",
        body=rerank.RerankBody,
    ),
    Route("POST", "/reranking", "infer", rerank.rerank, "as `/rerank`", body=rerank.RerankBody),
]
