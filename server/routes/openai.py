"""The routes of OpenAI's dialect."""

from __future__ import annotations

from server.api.openai import answers, embeddings, models, prompts
from server.api.openai.responses import answers as responses
from server.api.openai.responses import counting, stored
from server.routes import anthropic
from server.routes.route import Route

ROUTES = [
    Route(
        "GET",
        "/v1/models",
        "infer",
        anthropic.models(models.models),
        "the models in the store, for OpenAI's clients, or Anthropic's",
    ),
    Route("GET", "/models", "infer", models.models, "as `/v1/models`"),
    Route("GET", "/v1/models/{id:.+}", "infer", anthropic.model(models.model), "one of these models"),
    Route(
        "POST",
        "/v1/chat/completions",
        "infer",
        answers.chat_completions,
        "the next turn of a conversation, as server-sent events or whole",
    ),
    Route(
        "POST",
        "/v1/chat/completions/input_tokens",
        "infer",
        prompts.input_tokens,
        "how many tokens the prompt of a chat has",
    ),
    Route("POST", "/chat/completions", "infer", answers.chat_completions, "as `/v1/chat/completions`"),
    Route(
        "POST",
        "/v1/completions",
        "infer",
        answers.completions,
        "the continuation of raw prompts, as server-sent events or whole",
    ),
    Route("POST", "/v1/embeddings", "infer", embeddings.embeddings, "vectors of texts, as numbers or base64"),
    Route(
        "POST",
        "/v1/responses",
        "infer",
        responses.responses,
        "the next turn of a conversation as typed items; stored, unless `store` is false, for `previous_response_id`",
    ),
    Route(
        "POST",
        "/v1/responses/input_tokens",
        "infer",
        counting.input_tokens,
        "how many tokens the prompt of such a request has",
    ),
    Route("GET", "/v1/responses/{id:[^/]+}", "infer", stored.response, "a stored response, or its events as they come"),
    Route("DELETE", "/v1/responses/{id:[^/]+}", "infer", stored.delete, "forget a stored response at once"),
    Route(
        "POST",
        "/v1/responses/{id:[^/]+}/cancel",
        "infer",
        stored.cancel,
        "end a response in the background",
    ),
    Route("GET", "/v1/responses/{id:[^/]+}/input_items", "infer", stored.input_items, "the input of a stored response"),
]
