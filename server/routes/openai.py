"""The routes of OpenAI's dialect."""

from __future__ import annotations

from server.api.openai import answers, embeddings, models, prompts
from server.api.openai.batches import routes as batches
from server.api.openai.bodies import CHAT_BODY, TEXT_BODY
from server.api.openai.files import routes as files
from server.api.openai.responses import answers as responses
from server.api.openai.responses import counting, stored
from server.api.openai.responses.body import RESPONSE_BODY, CountedFields
from server.routes import anthropic
from server.routes.route import BYTES, EVENTS, FORM, Route

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
        "DELETE",
        "/v1/models/{id:.+}",
        "operator",
        models.delete,
        "remove a model, and end its pull",
        changes=True,
        act="remove",
    ),
    Route(
        "POST",
        "/v1/chat/completions",
        "infer",
        answers.chat_completions,
        "the next turn of a conversation, as server-sent events or whole",
        body=CHAT_BODY,
        media=EVENTS,
    ),
    Route(
        "POST",
        "/v1/chat/completions/input_tokens",
        "infer",
        prompts.input_tokens,
        "how many tokens the prompt of a chat has",
        body=CHAT_BODY,
    ),
    Route(
        "POST",
        "/chat/completions/input_tokens",
        "infer",
        prompts.input_tokens,
        "as `/v1/chat/completions/input_tokens`",
        body=CHAT_BODY,
    ),
    Route(
        "POST",
        "/chat/completions",
        "infer",
        answers.chat_completions,
        "as `/v1/chat/completions`",
        body=CHAT_BODY,
        media=EVENTS,
    ),
    Route(
        "POST",
        "/v1/completions",
        "infer",
        answers.completions,
        "the continuation of raw prompts, as server-sent events or whole",
        body=TEXT_BODY,
        media=EVENTS,
    ),
    Route(
        "POST",
        "/v1/embeddings",
        "infer",
        embeddings.embeddings,
        "vectors of texts, as numbers or base64",
        body=embeddings.EmbeddingsBody,
    ),
    Route(
        "POST",
        "/v1/responses",
        "infer",
        responses.responses,
        "the next turn of a conversation as typed items; stored, unless `store` is false, for `previous_response_id`",
        body=RESPONSE_BODY,
        media=EVENTS,
    ),
    Route(
        "POST",
        "/v1/responses/input_tokens",
        "infer",
        counting.input_tokens,
        "how many tokens the prompt of such a request has",
        body=CountedFields,
    ),
    Route(
        "GET",
        "/v1/responses/{id:[^/]+}",
        "infer",
        stored.response,
        "a stored response, or its events as they come",
        media=EVENTS,
    ),
    Route("DELETE", "/v1/responses/{id:[^/]+}", "infer", stored.delete, "forget a stored response at once"),
    Route("POST", "/responses", "infer", responses.responses, "as `/v1/responses`", body=RESPONSE_BODY, media=EVENTS),
    Route(
        "POST",
        "/v1/responses/{id:[^/]+}/cancel",
        "infer",
        stored.cancel,
        "end a response in the background",
    ),
    Route("GET", "/v1/responses/{id:[^/]+}/input_items", "infer", stored.input_items, "the input of a stored response"),
    Route(
        "POST",
        "/v1/files",
        "infer",
        files.upload,
        "keep a file for a batch, of 200 MiB at most, as a form",
        changes=True,
        body=FORM,
    ),
    Route("GET", "/v1/files", "infer", files.files, "the files of this key"),
    Route("GET", "/v1/files/{id:[^/]+}", "infer", files.file, "one of these files"),
    Route("GET", "/v1/files/{id:[^/]+}/content", "infer", files.content, "its bytes", media=(BYTES,)),
    Route("DELETE", "/v1/files/{id:[^/]+}", "infer", files.delete, "remove it at once", changes=True),
    Route(
        "POST",
        "/v1/batches",
        "infer",
        batches.create,
        "answer the requests in a file while nobody else asks",
        changes=True,
        body=batches.BatchBody,
    ),
    Route("GET", "/v1/batches", "infer", batches.batches, "the batches of this key"),
    Route("GET", "/v1/batches/{id:[^/]+}", "infer", batches.batch, "one of these batches: status, counts, results"),
    Route(
        "POST",
        "/v1/batches/{id:[^/]+}/cancel",
        "infer",
        batches.cancel,
        "end it; its results so far stay",
        changes=True,
    ),
]
