"""The routes of Ollama's dialect."""

from __future__ import annotations

from server.api.lm import page
from server.api.ollama import answers, blobs, creates, embeddings, models, pushing
from server.api.ollama.bodies import CHAT_BODY, GENERATE_BODY
from server.routes.route import BYTES, LINES, Route

ROUTES = [
    Route(
        "GET",
        "/",
        "open",
        page.or_page(models.alive),
        "`Ollama is running`: what many clients probe; a browser is sent to the page",
        media=("text/plain",),
    ),
    Route(
        "GET",
        "/api/version",
        "infer",
        models.version,
        "the version of Ollama's API that is spoken here, and our own in `lm`",
    ),
    Route("GET", "/api/tags", "infer", models.tags, "the models in the store"),
    Route("GET", "/api/ps", "infer", models.ps, "the loaded models: memory, context, when they expire"),
    Route(
        "POST",
        "/api/show",
        "infer",
        models.show,
        "everything about one model, with the reason for its level",
        body=models.ShowBody,
    ),
    Route(
        "POST",
        "/api/pull",
        "operator",
        models.pull,
        "bring a model in; progress as NDJSON; `detach`, `limit_rate` (bytes/s), `pre`, `accept_unknown_keys`, `base`, "
        "`hf_endpoint`, `hf_token`",
        changes=True,
        body=models.PullBody,
        media=LINES,
    ),
    Route(
        "POST",
        "/api/push",
        "operator",
        pushing.pushed,
        "send a model to a registry, `to` a name there; progress as NDJSON; `format` is `ollama` or `modelpack`",
        changes=True,
        body=pushing.PushBody,
        media=LINES,
    ),
    Route(
        "DELETE",
        "/api/delete",
        "operator",
        models.delete,
        "remove a model, and end its pull; a bare name with several levels needs `all`; `partial` leaves the model",
        changes=True,
        body=models.DeleteBody,
    ),
    Route(
        "POST",
        "/api/create",
        "operator",
        creates.create,
        "make a model of another one (`from`), of uploaded `files` or of a Modelfile's text (`modelfile`), with "
        "`adapters`, `template`, `system`, `parameters`, `messages`, `license`, and at another level (`quantize`)",
        changes=True,
        body=creates.CreateBody,
        media=LINES,
    ),
    Route(
        "POST",
        "/api/copy",
        "operator",
        creates.copy,
        "give a model a further name",
        changes=True,
        body=creates.CopyBody,
    ),
    Route(
        "HEAD",
        "/api/blobs/{digest:[^/]+}",
        "operator",
        blobs.has_blob,
        "whether a file is here already, by its SHA-256",
        changes=True,
    ),
    Route(
        "POST",
        "/api/blobs/{digest:[^/]+}",
        "operator",
        blobs.upload,
        "send a file from which a model will be made; it stays for an hour",
        changes=True,
        body=BYTES,
    ),
    Route(
        "POST",
        "/api/generate",
        "infer",
        answers.generate,
        "an answer to one prompt, as NDJSON or whole; without a prompt, load or unload",
        body=GENERATE_BODY,
        media=LINES,
    ),
    Route(
        "POST",
        "/api/chat",
        "infer",
        answers.chat,
        "the next turn of a conversation, as NDJSON or whole; without messages, load or unload",
        body=CHAT_BODY,
        media=LINES,
    ),
    Route("POST", "/api/embed", "infer", embeddings.embed, "vectors of texts, of length 1", body=embeddings.EmbedBody),
    Route(
        "POST",
        "/api/embeddings",
        "infer",
        embeddings.embed_one,
        "the vector of one text, for older clients",
        body=embeddings.OldEmbedBody,
    ),
]
