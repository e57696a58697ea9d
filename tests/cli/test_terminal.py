"""What is seen on a terminal: the chat, the bar of a pull, colours or none."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap

import pytest

from cli.wrapping import Wrapping
from tests.cli.support import LM, Cli, Terminal
from tests.daemon import Daemon, wait_until

PROMPT = "Send a message (/? for help)"  # shown while nothing is typed


@pytest.fixture(scope="module")
def puller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """A daemon that has demo in its store, so that compiled kernels lie in its cache."""
    with Daemon(tmp_path_factory.mktemp("puller")) as daemon:
        daemon.pull("demo:Q8_0")
        yield Cli.at(daemon.home)


def test_a_chat(home: Path) -> None:
    with Daemon(home, script={"echo": True}), Terminal(Cli.at(home), "run", "tiny") as terminal:
        terminal.wait_for(PROMPT)
        terminal.type("hello there\r")
        terminal.wait_for("hello there")
        terminal.wait_for("hello there\n")
        terminal.wait_for(PROMPT)
        terminal.type('"""one\r')
        terminal.wait_for("... ")
        terminal.type('two"""\r')
        terminal.wait_for("one\ntwo\n")
        terminal.wait_for(PROMPT)
        terminal.type("/bye\r")
        assert terminal.end() == 0
    assert "hello there" in (home / "history").read_text()


def obeyed(terminal: Terminal, steps: list[tuple[str, str]]) -> None:
    """Type each line at the prompt, and wait for what it must show."""
    for typed, shown in steps:
        terminal.wait_for(PROMPT)
        terminal.type(f"{typed}\r")
        terminal.wait_for(f"{typed}\n")
        terminal.wait_for(shown)


def test_commands_of_a_chat(home: Path) -> None:
    with Daemon(home), Terminal(Cli.at(home), "run", "tiny") as terminal:
        obeyed(
            terminal,
            [
                ("/?", "/set NAME"),
                ("/? set", "/set parameter NAME VALUE"),
                ("/? shortcuts", "Ctrl-G"),
                ("/set system Be brief", "the system message is set\n"),
                ("/show system", "Be brief\n"),
                ("/show", "architecture"),
                ("/show parameters", "temperature"),
                ("/show modelfile", "FROM tiny"),
                ("/show license", "says nothing about its license"),
                ("/clear", "the conversation is forgotten"),
                ("/set verbose", "timings are shown"),
                ("hi", "eval rate:"),
                ("/set nowordwrap", "by the terminal"),
                ("/set nohistory", "not kept"),
                ("/list", "tiny:F32"),
                ("/nonsense", "Error: there is no `/nonsense`"),
                ("/load", "hint: `/load NAME`"),
                ("/sow info", "hint: did you mean `/show info`?"),
                ("/usr/bin/lm fails", "Once upon a time"),
            ],
        )
        terminal.wait_for(PROMPT)
        terminal.type("\x03")
        terminal.wait_for("Ctrl-D or /bye leaves")
        terminal.wait_for(PROMPT)
        terminal.type("\x04")
        assert terminal.end() == 0
    assert "/nonsense" not in (home / "history").read_text()


def test_parameters_of_a_chat_are_checked_confirmed_and_taken_back(home: Path) -> None:
    with Daemon(home), Terminal(Cli.at(home), "run", "tiny") as terminal:
        obeyed(
            terminal,
            [
                ("/set parameter temperature 0.5", "`temperature` is 0.5\n"),
                ("/set parameter temperature warm", "Error: `temperature` is not a number"),
                ("/set parameter top_k 1.5", "Error: `top_k` is not a whole number"),
                ("/set parameter temperture 1", "Error: there is no option `temperture` (did you mean `temperature`?)"),
                ("/show parameters", 'in this chat: {"temperature": 0.5}\n'),
                ('/set parameter stop "###" User: "\\n\\n"', '`stop` is ["###", "User:", "\\n\\n"]\n'),
                ("/set parameter num_ctx 1000000", "is the most that the model and memory allow"),
                ("/set parameter num_ctx", "`num_ctx` is the model's own again"),
                ("/set parameter seed", "`seed` was not set"),
                ("hello", "Once upon a time"),
            ],
        )
        terminal.wait_for(PROMPT)
        assert "passed over" not in terminal.text


def test_a_system_message_of_several_lines(home: Path) -> None:
    with Daemon(home), Terminal(Cli.at(home), "run", "tiny") as terminal:
        terminal.wait_for(PROMPT)
        terminal.type('/set system """Be brief.\r')
        terminal.wait_for("... ")
        terminal.type('Be kind."""\r')
        obeyed(terminal, [("/show system", "Be brief.\nBe kind.\n"), ('/set system ""', "no system message is set")])
        terminal.wait_for(PROMPT)


def test_a_chat_is_kept_and_taken_up_again(home: Path) -> None:
    with Daemon(home, script={"echo": True}) as daemon:
        with Terminal(Cli.at(home), "run", "tiny") as terminal:
            steps = [("/set system Be brief", "is set"), ("first words", "first words"), ("/save mine", "`/load mine`")]
            obeyed(terminal, [*steps, ("/save ../up", "Error: `../up` is no name for a chat")])
            obeyed(terminal, [("/save tiny", "Error: `tiny` is another model")])
            obeyed(terminal, [("second words", "second words"), ("/save mine", "lm run mine")])
            terminal.wait_for(PROMPT)
        shown = daemon.post("/api/show", {"model": "mine"}).json
        assert shown["system"] == "Be brief" and shown["lm"]["parent"].startswith("tiny")
        assert [turn["content"] for turn in shown["messages"] if turn["role"] == "user"] == [
            "first words",
            "second words",
        ]
        assert not daemon.post("/api/show", {"model": "tiny"}).json.get("messages")
        with Terminal(Cli.at(home), "run", "tiny") as terminal:
            obeyed(
                terminal,
                [
                    ("/load nothing", 'Error: model "nothing" not found, try pulling it first'),
                    ("/load mine", "`mine` goes on with `tiny`, 4 messages"),
                    ("/show system", "Be brief"),
                    ("/load tiny", "`tiny` is loaded; the conversation begins anew"),
                ],
            )
            terminal.wait_for(PROMPT)
            (home / "chats" / "mine.json").write_text("{}")
            terminal.type("/load mine\r")
            terminal.wait_for("cannot be read")
            terminal.wait_for(PROMPT)


def test_ctrl_c_stops_the_answer_and_the_chat_goes_on(home: Path) -> None:
    words = [f"w{number} " for number in range(10_000)]
    with (
        Daemon(home, script={"tokens": words, "delay": 0.001}) as daemon,
        Terminal(Cli.at(home), "run", "tiny") as terminal,
    ):
        terminal.wait_for(PROMPT)
        terminal.type("talk\r")
        terminal.wait_for("w10 ")
        terminal.type("\x03")
        terminal.wait_for(PROMPT)
        wait_until(lambda: "chat gone" in daemon.log, 5)
        terminal.type("again\r")
        terminal.wait_for("w10 ")
        terminal.type("\x03")
        terminal.wait_for(PROMPT)
        assert "w9999" not in terminal.text


def test_a_chat_survives_the_daemon(home: Path) -> None:
    with Daemon(home, script={"tokens": ["word "] * 10_000, "delay": 0.001}) as daemon:
        port = daemon.port
        with Terminal(Cli.at(home, f"127.0.0.1:{port}"), "run", "tiny") as terminal:
            terminal.wait_for(PROMPT)
            terminal.type("talk\r")
            terminal.wait_for("word word")
            daemon.kill()
            terminal.wait_for("Error: the daemon ended before it had answered")
            terminal.wait_for(PROMPT)
            with Daemon(home, script={}, arguments=("--port", str(port))):
                terminal.type("talk\r")
                terminal.wait_for("Once upon a time")
                terminal.wait_for(PROMPT)
                terminal.type("\x04")
                assert terminal.end() == 0


def test_what_a_model_writes_cannot_steer_the_terminal(home: Path) -> None:
    script = {"tokens": ["\x1b]0;title\x07", "\x1b[31mred", "\x9b2J", "\rgone"]}
    with Daemon(home, script=script), Terminal(Cli.at(home), "run", "tiny", "hi") as terminal:
        assert terminal.end() == 0
        assert (
            b"\x1b" not in terminal.raw and b"\rgone" not in terminal.raw and "]0;title[31mred2Jgone" in terminal.text
        )


def test_a_pull_shows_its_phases_and_its_reason(puller: Cli) -> None:
    assert puller("rm", "demo:Q8_0").code == 0
    with Terminal(puller, "pull", "demo:Q8_0") as terminal:
        assert terminal.end() == 0
    assert "Q8_0: " in terminal.text and "fit the" in terminal.text
    assert "quantizing" in terminal.text and "11.5/11.5 MB" in terminal.text
    assert "`demo:Q8_0` is here" in terminal.text
    assert "\x1b[" in terminal.raw.decode()


@pytest.mark.parametrize("setting", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_escape_code_where_none_is_wanted(puller: Cli, setting: dict[str, str]) -> None:
    with Terminal(Cli({**puller.env, **setting}), "pull", "demo:Q8_0") as terminal:
        assert terminal.end() == 0
    assert b"\x1b" not in terminal.raw
    assert terminal.text.splitlines()[0] == "pulling manifest"
    with Terminal(Cli({**puller.env, **setting}), "show", "nothing") as terminal:
        assert terminal.end() == 3
    assert b"\x1b" not in terminal.raw


def test_a_pull_on_a_pipe_is_a_line_for_each_phase(puller: Cli) -> None:
    done = puller("pull", "demo:Q8_0")
    first, *_, last = lines = done.err.splitlines()
    assert (done.code, done.out, first, last) == (0, "", "pulling manifest", "`demo:Q8_0` is here")
    assert len(lines) == len(set(lines)) <= 6
    assert "\x1b" not in done.err and any(line.startswith("Q8_0: ") for line in lines)


def test_a_pull_for_programs(puller: Cli) -> None:
    done = puller("pull", "demo", "--level", "Q8_0", "--json")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert (done.code, done.err) == (0, "")
    assert lines[-1]["status"] == "success" and lines[-1]["name"] == "demo:Q8_0"
    assert all("phase" in line for line in lines)
    done = puller("pull", "demo:Q9_9", "--json")
    assert done.code == 2
    assert json.loads(done.out.splitlines()[-1])["code"] == "unknown_level"
    assert done.err.startswith("Error: ")


def test_a_folder_with_a_colon_in_its_name(puller: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "a:Q8_0"
    folder.symlink_to(Path(__file__).parents[2] / "registry" / "demo")
    done = puller("pull", str(folder))
    assert done.code == 0, done.err
    done = puller("pull", f"./{folder.name}:Q8_0", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "`a-Q8_0:Q8_0` is here" in done.err


def test_an_error_on_a_terminal_is_coloured(home: Path) -> None:
    with Daemon(home), Terminal(Cli.at(home), "show", "nothing") as terminal:
        assert terminal.end() == 3
    assert 'Error: model "nothing" not found, try pulling it first\nhint: ' in terminal.text
    assert b"\x1b[1;31mError" in terminal.raw


PROSE = "The quick brown fox jumps over the lazy dog, and runs; an unreasonablenesslessnesslessness follows it. " * 3


@pytest.mark.parametrize("columns", range(22, 60))
@pytest.mark.parametrize("piece", [1, 4, 1000])
def test_an_answer_is_broken_between_words(columns: int, piece: int) -> None:
    wrapping = Wrapping()
    written = "".join(wrapping.feed(PROSE[i : i + piece], columns) for i in range(0, len(PROSE), piece))
    shown = re.sub(r"(\w+[,.;]?)\x1b\[(\d+)D\x1b\[K", lambda found: found[1][: -int(found[2])], written)
    lines = [line.rstrip() for line in shown.splitlines()]
    if columns > 32:  # the long word fits into a line
        assert lines == wrap(PROSE, columns - 1)
    assert max(map(len, lines)) < columns and "".join(lines).replace(" ", "") == PROSE.replace(" ", "")


def test_an_answer_is_broken_between_words_wherever_the_notes_go(home: Path) -> None:
    with Daemon(home, script={"tokens": [f"{word} " for word in PROSE.split()]}):
        shell = Cli(Cli.at(home).env, "/bin/sh")
        with Terminal(shell, "-c", f"exec {LM} run tiny hi 2>/dev/null", columns=50) as terminal:
            assert terminal.end() == 0
    lines = terminal.text.splitlines()
    assert len(lines) > 5 and max(map(len, lines)) < 50 and b"D\x1b[K" in terminal.raw  # a word was taken back


def test_code_is_not_broken() -> None:
    text = "```\n" + "x = 1; " * 20 + "\n```\n"
    assert Wrapping().feed(text, 40) == text
