"""The routes of llama-server's own dialect."""

from __future__ import annotations

from server.api.llama import completion, embeddings, infill, state, tokens
from server.api.openai import prompts
from server.api.openai.bodies import CHAT_BODY
from server.routes.route import EVENTS, Route

ROUTES = [
    Route(
        "POST",
        "/completion",
        "infer",
        completion.completion,
        "the continuation of raw prompts in llama-server's form, as server-sent events or whole",
        body=completion.COMPLETION_BODY,
        media=EVENTS,
    ),
    Route(
        "POST",
        "/completions",
        "infer",
        completion.completion,
        "as `/completion`",
        body=completion.COMPLETION_BODY,
        media=EVENTS,
    ),
    Route(
        "POST",
        "/infill",
        "infer",
        infill.infill,
        "the text between two others, for llama-server's clients in editors",
        body=infill.BODY,
        media=EVENTS,
    ),
    Route(
        "POST",
        "/tokenize",
        "infer",
        tokens.tokenize,
        "the token ids of `content`; `add_special`, `parse_special`, `with_pieces`",
        body=tokens.TokenizeBody,
    ),
    Route("POST", "/detokenize", "infer", tokens.detokenize, "the text of `tokens`", body=tokens.DetokenizeBody),
    Route(
        "POST",
        "/apply-template",
        "infer",
        prompts.apply_template,
        "the prompt that a chat's messages become",
        body=CHAT_BODY,
    ),
    Route(
        "POST",
        "/embedding",
        "infer",
        embeddings.rows,
        "vectors of texts as llama-server lists them",
        body=embeddings.RowsBody,
    ),
    Route("POST", "/embeddings", "infer", embeddings.rows, "as `/embedding`", body=embeddings.RowsBody),
    Route("GET", "/props", "infer", state.props, "a model's settings, context and chat template; `?model=NAME`"),
    Route("POST", "/props", "infer", state.change_props, "refused: settings do not change while models run"),
    Route("GET", "/slots", "infer", state.slots, "the slots of the loaded models, and which are busy"),
    Route("POST", "/slots/{slot:[^/]+}", "infer", state.change_slot, "refused: the prompt cache needs no orders"),
    Route("GET", "/lora-adapters", "infer", state.adapters, "the adapters here for a model; `?model=NAME`"),
    Route("POST", "/lora-adapters", "infer", state.change_adapters, "refused: scales belong to a request, `adapters`"),
]
