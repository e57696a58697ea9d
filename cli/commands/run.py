"""`lm run`: one question and its answer, or a chat; the model is brought in if need be, the daemon started."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import click

from cli import console
from cli.asking import Asking, installed
from cli.client import Client
from cli.completing import complete_levels, complete_names, complete_sources
from cli.errors import Failure
from cli.inputs import answer_form, question, tools_of
from cli.naming import reference
from runtime.defaults import SEQUENCES, SEQUENCES_RANGE


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
@click.option(
    "--keep-alive",
    "--keepalive",
    metavar="TIME",
    help="How long it stays loaded afterwards: `10m`, `0`, `-1` for ever.",
)
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
@click.option(
    "--tools",
    metavar="FILE",
    help="Tools that the model may call, by their JSON definitions; calls are printed as JSON.",
)
@click.option(
    "--batch", metavar="FILE", help="Answer each line of FILE, a JSON object with `prompt` or `messages`; `-` is stdin."
)
@click.option("--out", metavar="FILE", help="The answers of a batch go to FILE; those that are there already are kept.")
@click.option(
    "--parallel",
    type=click.IntRange(*SEQUENCES_RANGE),
    default=SEQUENCES,
    show_default=True,
    help="How many lines of a batch are answered at once.",
)
@click.option("--nowordwrap", is_flag=True, help="Leave the breaking of lines to the terminal.")
@click.option("--hidethinking", is_flag=True, help="Do not show the thinking.")
@click.option("--verbose", is_flag=True, help="Show timings on stderr.")
def command(  # noqa: PLR0913  click gives each option by its name
    name: str,
    prompt: tuple[str, ...],
    *,
    level: str | None,
    pre: str | None,
    adapters: tuple[str, ...],
    draft: str | None,
    batch: str | None,
    out: str | None,
    parallel: int,
    **given: Any,
) -> int:
    """Ask NAME a question, or chat with it when there is no PROMPT.

    NAME is `demo`, the model of an installed package, `llama3.2` of Ollama's registry, `org/repo` on the hub,
    `host/namespace/model:tag` of a registry, `https://…/x.gguf`, or a folder or file that begins with `/`, `./`, `../`
    or `~`. `:LEVEL` may follow, except for a model of a registry.
    The words of PROMPT are joined, and follow text that is piped in. The answer goes to stdout, everything else to
    stderr. An embedding model prints the vector of PROMPT as a JSON array.
    `lm run NAME --batch in.jsonl > out.jsonl` answers many; a line may have fields of `/api/chat`, and an `id`.
    """
    wanted = reference(name, level)
    asked = _asked(prompt, batch, out)
    client = Client()
    asking = _asking(client, **given)
    asking.adapters = [_adapter(each) for each in adapters]
    client.note_settings()
    asking.model = installed(client, wanted, name, pre)
    for each in asking.adapters:
        each["name"] = installed(client, each["name"], each["name"])
    asking.draft = installed(client, reference(draft), draft) if draft else None
    if batch:
        from cli.batch import run_batch

        return run_batch(asking, batch, out, parallel)
    _ask(asking, asked)
    return 0


def _asking(  # noqa: PLR0913  the options of the command, by their names
    client: Client,
    *,
    system: str,
    seed: int | None,
    temperature: float | None,
    max_tokens: int | None,
    ctx: int | None,
    keep_alive: str | None,
    form: str | None,
    think: str | None,
    tools: str | None,
    nowordwrap: bool,
    hidethinking: bool,
    verbose: bool,
) -> Asking:
    """How the model is asked, which is not known yet. Raises Failure."""
    values = {"seed": seed, "temperature": temperature, "num_predict": max_tokens, "num_ctx": ctx}
    options = {key: value for key, value in values.items() if value is not None}
    return Asking(
        client,
        "",
        options,
        system,
        keep_alive,
        verbose,
        format=answer_form(form) if form else None,
        think={"true": True, "false": False}.get(think, think) if think else None,
        hides_thinking=hidethinking,
        tools=tools_of(tools) if tools else [],
        wraps=not nowordwrap,
    )


def _asked(prompt: tuple[str, ...], batch: str | None, out: str | None) -> str | None:
    """The question; None for a chat, and for a batch. Raises Failure where there is nothing to do."""
    if batch:
        if prompt:
            raise Failure("a batch has its prompts in its file", "leave PROMPT out, or `--batch`", "usage")
        return None
    if out:
        raise Failure("`--out` is for a batch", "send the answer to a file by `> FILE`", "usage")
    asked = question(prompt)
    if asked is None and (sys.stdin is None or not sys.stdout.isatty()):
        raise Failure("there is no prompt, and no terminal to chat on", "give one, or pipe text in", "usage")
    return asked


def _ask(asking: Asking, asked: str | None) -> None:
    """Answer one question, or chat where there is none."""
    if not asking.writes():
        _embed(asking, asked)
    elif asked is None:
        from cli.chat import Chat

        Chat(asking, asking.client.config.home).loop()
    else:
        asking.ask(asked).show()
        if not asked:
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
