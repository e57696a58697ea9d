"""`lm run`: one question and its answer, or a chat; the model is brought in if need be, the daemon started."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import click

from cli import console
from cli.asking import Asking, installed
from cli.client import Client
from cli.completing import complete_levels, complete_names, complete_sources
from cli.errors import Failure
from cli.naming import reference
from runtime.defaults import MAX_BODY


class _Run(click.Command):
    """A command whose `--think` may stand alone: the word after it belongs to the prompt."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments, `--think` with a value."""
        end = args.index("--") if "--" in args else len(args)
        return super().parse_args(
            ctx, ["--think=true" if arg == "--think" and at < end else arg for at, arg in enumerate(args)]
        )


@click.command(cls=_Run)
@click.argument("name", shell_complete=complete_sources)
@click.argument("prompt", nargs=-1)
@click.option(
    "--level",
    metavar="LEVEL",
    shell_complete=complete_levels,
    help="A level of your own choosing, such as Q4_K_M; otherwise the best one.",
)
@click.option("--pre", metavar="NAME", help="The pre-tokenizer, where bringing it in asks for it.")
@click.option("--system", metavar="TEXT", default="", help="What the model is told before anything else.")
@click.option("--seed", type=int, help="The same seed gives the same answer.")
@click.option("--temperature", type=click.FloatRange(min=0), help="How freely words are drawn; 0 takes the likeliest.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="The longest answer.")
@click.option("--ctx", type=click.IntRange(min=1), metavar="TOKENS", help="How much the model is to keep in view.")
@click.option("--keep-alive", metavar="TIME", help="How long it stays loaded afterwards: `10m`, `0`, `-1` for ever.")
@click.option("--format", "form", metavar="json|FILE", help="The answer is JSON, or what the JSON schema in FILE says.")
@click.option(
    "--adapter",
    "adapters",
    metavar="NAME[:SCALE]",
    multiple=True,
    shell_complete=complete_names,
    help="A LoRA adapter that changes the answers; may be given several times.",
)
@click.option(
    "--draft",
    metavar="NAME",
    shell_complete=complete_names,
    help="A small model of the same vocabulary that guesses the next words; the answers stay NAME's own.",
)
@click.option(
    "--think",
    type=click.Choice(("true", "false", "low", "medium", "high", "max")),
    help="Whether, or how hard, the model thinks first; alone: true. A pipe gets the thinking only with this.",
)
@click.option("--hidethinking", is_flag=True, help="Do not show the thinking.")
@click.option("--verbose", is_flag=True, help="Show timings on stderr.")
def command(  # noqa: PLR0913  click gives each option by its name
    name: str,
    prompt: tuple[str, ...],
    *,
    level: str | None,
    pre: str | None,
    system: str,
    seed: int | None,
    temperature: float | None,
    max_tokens: int | None,
    ctx: int | None,
    keep_alive: str | None,
    form: str | None,
    adapters: tuple[str, ...],
    draft: str | None,
    think: str | None,
    hidethinking: bool,
    verbose: bool,
) -> None:
    """Ask NAME a question, or chat with it when there is no PROMPT.

    NAME is `demo`, the model of an installed package, `llama3.2` of Ollama's registry, `org/repo` on the hub,
    `host/namespace/model:tag` of a registry, `https://…/x.gguf`, or a folder or file that begins with `/`, `./`, `../`
    or `~`. `:LEVEL` may follow, except for a model of a registry.
    The words of PROMPT are joined; text piped in follows them. The answer goes to stdout, everything else to stderr. An
    embedding model prints the vector of PROMPT as a JSON array.
    """
    wanted = reference(name, level)
    question = _question(prompt)
    if question is None and (sys.stdin is None or not sys.stdout.isatty()):
        raise Failure("there is no prompt, and no terminal to chat on", "give one, or pipe text in", "usage")
    held_to = _format(form) if form else None
    changing = [_adapter(each) for each in adapters]
    client = Client()
    client.note_settings()
    values = {"seed": seed, "temperature": temperature, "num_predict": max_tokens, "num_ctx": ctx}
    options = {key: value for key, value in values.items() if value is not None}
    model = installed(client, wanted, name, pre)
    for each in changing:
        each["name"] = installed(client, each["name"], each["name"])
    asking = Asking(client, model, options, system, keep_alive, verbose, format=held_to, adapters=changing)
    asking.draft = installed(client, reference(draft), draft) if draft else None
    asking.think = {"true": True, "false": False}.get(think, think) if think else None
    asking.hides_thinking = hidethinking
    _ask(asking, question)


def _ask(asking: Asking, question: str | None) -> None:
    """Answer one question, or chat where there is none."""
    if not asking.writes():
        _embed(asking, question)
    elif question is None:
        from cli.chat import Chat

        Chat(asking, asking.client.config.home).loop()
    else:
        asking.generate(question).show()
        if not question:
            console.note(f"`{asking.model}` is loaded")


def _adapter(text: str) -> dict[str, Any]:
    """An adapter's name, and its scale where the last part of the text is a number."""
    name, _, last = text.rpartition(":")
    try:
        scale = float(last)
    except ValueError:
        return {"name": reference(text)}
    if not math.isfinite(scale) or not name:
        raise Failure(f"`{text}` names no adapter with a scale", "write `NAME:0.5`; 1 is as it was trained", "usage")
    return {"name": reference(name), "scale": scale}


def _embed(asking: Asking, text: str | None) -> None:
    """Print the vector of a text as a JSON array."""
    if text is None:
        hint = f'give it a text: `lm run {asking.model} "some words"`'
        raise Failure(f"`{asking.model}` makes vectors of texts and cannot chat", hint, "usage")
    console.out(json.dumps(asking.embed(text)))


def _format(wanted: str) -> str | dict[str, Any]:
    """The form of the answers: "json", or the JSON schema in a file."""
    if wanted == "json":
        return wanted
    try:
        schema = json.loads(Path(wanted).read_text())
    except OSError as error:
        hint = "`--format` is `json`, or a file with a JSON schema"
        raise Failure(f"`{wanted}` cannot be read: {error.strerror}", hint, "usage") from None
    except ValueError as error:
        raise Failure(f"`{wanted}` is not JSON: {error}", "correct it", "usage") from None
    if not isinstance(schema, dict):
        raise Failure(f"`{wanted}` holds no JSON schema", 'it is an object such as `{"type": "object"}`', "usage")
    return schema


def _question(words: tuple[str, ...]) -> str | None:
    """The prompt and what was piped in, None when there is neither; empty when an empty text was piped in."""
    prompt = " ".join(words)
    piped = None if sys.stdin is None or sys.stdin.isatty() else _piped()
    if any(0xD800 <= ord(letter) < 0xE000 for letter in prompt):
        raise Failure("the prompt is no text (UTF-8)", "convert it first", "usage")
    if piped is None:
        return prompt or None
    return "\n\n".join(part for part in (prompt, piped) if part)


def _piped() -> str:
    """The text on standard input, which may have no end. Raises Failure."""
    data = sys.stdin.buffer.read(MAX_BODY + 1)
    if len(data) > MAX_BODY:
        hint = "pipe less in: no context holds so much text"
        raise Failure(f"what was piped in is larger than {MAX_BODY >> 20} MiB", hint, "usage")
    try:
        return data.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise Failure("what was piped in is no text (UTF-8)", "convert it first", "usage") from None
