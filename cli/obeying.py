"""The commands of the chat, which begin with `/`; they are Ollama's, where there is the same thing to do."""

from __future__ import annotations

import json
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

from cli import console
from cli.asking import Asking
from cli.client import Client
from cli.describing import part, print_model
from cli.errors import Failure
from cli.inputs import answer_form
from cli.naming import reference

HELP = """\
  /set NAME …        options of this chat; `/? set` lists them
  /show [WHAT]       the model; `/? show` lists its parts
  /load NAME         go on with another model, or with a chat that `/save` kept
  /save NAME         keep this chat under a name, and make a model of it
  /list              the models that are here
  /clear             forget the conversation
  /bye               leave; so does Ctrl-D
  /?, /? shortcuts   this help; the keys
  \"\"\"                begin and end a message, or a system message, of several lines"""
_SET = """\
  /set parameter NAME VALUE    such as `temperature 0.5`, `seed 7`, `num_ctx 4096`, `stop "one" "two"`
  /set parameter NAME          the model's own value again
  /set system TEXT             what the model is told before anything else; `""` takes it away
  /set format json             answers in JSON; `/set noformat` as the model likes
  /set format FILE             answers as the JSON schema in FILE says
  /set think [LEVEL], nothink  let the model think first, or not; LEVEL is low, medium, high or max
  /set verbose, /set quiet     timings after each answer, or not
  /set wordwrap, nowordwrap    break lines between words, or leave them to the terminal
  /set history, nohistory      keep what is typed for the next chat, or not"""
_SHOW = """\
  /show info          sizes, origin and capabilities
  /show license       the license
  /show modelfile     how Ollama would name it
  /show parameters    the model's options, and those of this chat
  /show system        the system message
  /show template      the chat template"""
_SHORTCUTS = """\
  Ctrl-A, Ctrl-E   to the beginning, to the end of the line
  Alt-B, Alt-F     a word back, a word on
  Ctrl-K, Ctrl-U   delete to the end, to the beginning
  Ctrl-W           delete the word before the cursor
  Ctrl-L           clear the screen
  Up, Ctrl-R       earlier lines, a search in them
  Ctrl-G           write the message in $EDITOR
  Tab              complete a command, or the name of a model behind `/load`
  Ctrl-C           stop the answer
  Ctrl-D           leave"""
_TOPICS = {"": HELP, "set": _SET, "show": _SHOW, "shortcuts": _SHORTCUTS}
_SETTINGS = ("parameter", "system", "format json", "noformat", "think", "nothink", "verbose", "quiet")
_SWITCHES = ("wordwrap", "nowordwrap", "history", "nohistory")
_PARTS = ("info", "license", "modelfile", "parameters", "system", "template")
COMMANDS = (
    *(f"/set {name}" for name in (*_SETTINGS, *_SWITCHES)),
    *(f"/show {part}" for part in _PARTS),
    *("/load", "/save", "/list", "/clear", "/bye", "/?", "/help"),
)
SYSTEM = re.compile(r"/set\s+system\s+")
_CHAT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|\S+')
_QUOTES = '"""'


class State(Protocol):
    """The parts of a chat that its commands change."""

    asking: Asking
    messages: list[dict[str, Any]]
    keeps_history: bool


def is_command(text: str) -> bool:
    """Whether a line is meant as a command: `/set …` is, `/usr/bin/x fails` is not."""
    return text.startswith("/") and "/" not in text.split(None, 1)[0][1:]


def obey(chat: State, text: str, chats: Path) -> None:
    """Do what a line says; `chats` is the folder of kept chats. Raises Failure, and has changed nothing then."""
    match text.split(None, 2):
        case ["/?" | "/help"]:
            console.note(HELP)
        case ["/?" | "/help", topic, *_]:
            console.note(_TOPICS.get(topic.removeprefix("/"), HELP))
        case ["/clear"]:
            chat.messages.clear()
            console.note("the conversation is forgotten")
        case ["/set", name, *value]:
            _set(chat, name, value[0] if value else "")
        case ["/set"]:
            console.note(_SET)
        case ["/show", *what]:
            _show(chat, what[0] if what else "info")
        case ["/load", name]:
            _load(chat, name, chats)
        case ["/save", name]:
            _save(chat, name, chats)
        case ["/load" | "/save" as command]:
            raise Failure(f"`{command}` wants a name", f"`{command} NAME`")
        case ["/list"]:
            _list(chat)
        case _:
            raise _unknown(text)


def names(client: Client) -> list[str]:
    """The names of the models that are here. Raises Failure."""
    return [row["name"] for row in client.ask("GET", "/api/tags")["models"] if "alias" not in row]


def _list(chat: State) -> None:
    for name in names(chat.asking.client):
        console.out(name)


def _unknown(text: str) -> Failure:
    close = get_close_matches(text[:60], COMMANDS, 1)
    return Failure(f"there is no `{text[:60]}`", f"did you mean `{close[0]}`?" if close else "/? shows what there is")


def _set(chat: State, name: str, value: str) -> None:
    asking = chat.asking
    match name, value:
        case "parameter", "":
            console.note(_SET)
        case "parameter", _:
            _set_parameter(asking, *value.split(None, 1))
        case "system", "":
            _show(chat, "system")
        case "system", _:
            asking.system = _unquoted(value)
            console.note("the system message is set" if asking.system else "no system message is set")
        case "verbose" | "quiet", "":
            asking.verbose = name == "verbose"
            console.note(f"timings are {'shown' if asking.verbose else 'not shown'} after each answer")
        case "wordwrap" | "nowordwrap", "":
            asking.wraps = name == "wordwrap"
            console.note(f"lines are broken {'between words' if asking.wraps else 'by the terminal'}")
        case "history" | "nohistory", "":
            chat.keeps_history = name == "history"
            console.note(f"what is typed is {'kept' if chat.keeps_history else 'not kept'}")
        case "format", "":
            console.note(_SET)
        case ("format", _) | ("noformat", ""):
            form = answer_form(value) if value else None
            asking.check(format=form)
            asking.format = form
            shown = "JSON" if form == "json" else f"as the schema in `{value}` says" if form else "as the model likes"
            console.note(f"answers are {shown}")
        case ("think", "" | "low" | "medium" | "high" | "max") | ("nothink", ""):
            wish = value or name == "think"
            told = asking.check(think=wish)
            asking.think = wish
            console.note(told.get("warning") or ("the model thinks first" if wish else "the model answers at once"))
        case _:
            raise _unknown(f"/set {name} {value}".rstrip())


def _set_parameter(asking: Asking, name: str, text: str = "") -> None:
    if not text:
        was_set = asking.options.pop(name, None) is not None
        console.note(f"`{name}` is the model's own again" if was_set else f"`{name}` was not set")
        return
    value = _values(text) if name == "stop" else _value(text)
    told = asking.check(options={name: value})
    warning = told.get("warning", "")
    if f"`{name[:40]}`" in warning:
        passed_over = warning.removeprefix("passed over: ")
        raise Failure(f"there is no option {passed_over}", "`/show parameters` shows what is set")
    asking.options[name] = value
    console.note(f"`{name}` is {json.dumps(value, ensure_ascii=False)}")
    asking.note_context(told)


def _value(text: str) -> Any:
    """A number or a list where it is one, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _values(text: str) -> list[str]:
    """Stop strings: words, texts in quotes as JSON has them, or a JSON list."""
    whole = _value(text)
    if isinstance(whole, list):
        return [str(each) for each in whole]
    words = (word.group() for word in _WORD.finditer(text))
    return [str(_value(word)) if word.startswith('"') else word for word in words]


def _unquoted(text: str) -> str:
    for quote in (_QUOTES, '"'):
        if len(text) >= 2 * len(quote) and text.startswith(quote) and text.endswith(quote):
            return text.removeprefix(quote).removesuffix(quote).strip("\n")
    return text


def _show(chat: State, what: str) -> None:
    asking = chat.asking
    if what == "system":
        return console.note(asking.system or "no system message is set")
    if what not in _PARTS:
        raise _unknown(f"/show {what}")
    model = asking.client.ask("POST", "/api/show", {"model": asking.model})
    if what == "info":
        return print_model(model)
    if what == "parameters":
        console.out(model["parameters"] or "the model has no parameters of its own")
        own = json.dumps(asking.options, ensure_ascii=False)
        return console.note(f"in this chat: {own}" if asking.options else "no parameter is set in this chat")
    text = part(model, what)
    return console.out(text) if text else console.note(f"`{asking.model}` says nothing about its {what}")


def _load(chat: State, name: str, chats: Path) -> None:
    """Another model and an empty conversation, or a kept chat. Raises Failure."""
    asking = chat.asking
    path = chats / f"{name}.json"
    if _CHAT_NAME.fullmatch(name) and path.exists():
        kept = _read(path)
        asking.client.ask("POST", "/api/show", {"model": kept["model"]})
        asking.model, asking.system, asking.options = kept["model"], kept["system"], kept["options"]
        chat.messages[:] = kept["messages"]
        return console.note(f"`{name}` goes on with `{asking.model}`, {len(chat.messages)} messages")
    model = reference(name)
    if not asking.on(model).writes():
        raise Failure(f"`{name}` makes vectors of texts and cannot chat", "`/list` shows the models that are here")
    asking.model = model
    chat.messages.clear()
    asking.generate("").show()
    return console.note(f"`{model}` is loaded; the conversation begins anew")


def _read(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text("utf-8"))
        turns = [
            {"role": str(turn["role"]), "content": str(turn["content"])}
            | {key: turn[key] for key in ("thinking", "tool_calls") if key in turn}
            for turn in kept["messages"]
        ]
        return {
            "model": str(kept["model"]),
            "system": str(kept["system"]),
            "options": dict(kept["options"]),
            "messages": turns,
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Failure(f"`{path}` cannot be read: {error}", "remove it, or give a model of another name") from None


def _save(chat: State, name: str, chats: Path) -> None:
    """Keep the model's name, the options and the conversation, and make a model of them. Raises Failure."""
    if not _CHAT_NAME.fullmatch(name):
        raise Failure(f"`{name[:60]}` is no name for a chat", "letters, digits, `-`, `_` and `.`")
    asking = chat.asking
    kept = {
        "model": asking.model,
        "system": asking.system,
        "options": asking.options,
        "messages": chat.messages,
    }
    path = chats / f"{name}.json"
    parent = _parent(asking.client, name)
    if parent is not None and not (parent and path.exists()):
        raise Failure(f"`{name}` is another model", "`/save` with a name that is free")
    try:
        chats.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(kept, ensure_ascii=False, indent=1), "utf-8")
        beside.replace(path)
    except OSError as error:
        raise Failure(f"`{path}` cannot be written: {error.strerror}", "make room, or mend the folder") from None
    console.note(f"kept; `/load {name}` goes on with it")
    try:
        _make_model(asking, name, chat.messages)
    except Failure as error:
        return console.note(f"no model is made of it: {error}")
    return console.note(f"the model `{name}` begins with it: `lm run {name}`")


def _parent(client: Client, name: str) -> str | None:
    """The model of which the model of this name was made here, "" for none; None where there is no such model.

    Raises Failure.
    """
    try:
        return str((client.ask("POST", "/api/show", {"model": name}).get("lm") or {}).get("parent") or "")
    except Failure as error:
        if error.code == "model_not_found":
            return None
        raise


def _make_model(asking: Asking, name: str, messages: list[dict[str, Any]]) -> None:
    """Make the model `name` of a chat, as Ollama's `/save` does. Raises Failure."""
    before = asking.client.ask("POST", "/api/show", {"model": asking.model}).get("messages", [])
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in (*before, *messages) if turn["content"]]
    body = {"model": name, "from": asking.model, "messages": turns, "parameters": asking.options, "stream": False}
    asking.client.ask("POST", "/api/create", body | ({"system": asking.system} if asking.system else {}))
