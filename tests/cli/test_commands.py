"""What each command prints, where, and its exit code, against a daemon with the scripted engine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli import console
from cli.asking import Asking
from tests.cli.support import Cli
from tests.daemon import Daemon, put_model, wait_until

NEVER = {"aiohttp", "numpy", "numba", "llama_cpp", "msgspec", "rich", "prompt_toolkit", "psutil", "platformdirs"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("home")
    for name in ("tiny", "one", "two"):
        put_model(home, name)
    with Daemon(home, script={}) as running:
        yield running


@pytest.fixture(scope="module")
def lm(daemon: Daemon) -> Cli:
    return Cli.at(daemon.home, f"127.0.0.1:{daemon.port}")


def scripted(home: Path, **script: object) -> Daemon:
    put_model(home)
    return Daemon(home, script=script)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"], []])
def test_help_imports_nothing_slow(arguments: list[str]) -> None:
    code = f"import sys, cli.main; cli.main.run({arguments}); print('|'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    loaded = {module.split(".")[0] for module in done.stdout.splitlines()[-1].split("|")}
    assert not loaded & NEVER
    assert "http" not in loaded


def test_help_lists_the_commands_and_the_exit_codes(lm: Cli) -> None:
    shown = lm("--help").out
    for word in ("run", "pull", "list", "ps", "show", "rm", "stop", "serve", "logs", "3 model not found"):
        assert word in shown


def test_every_command_has_help(lm: Cli) -> None:
    from click.testing import CliRunner

    from cli.main import COMMANDS, group

    for name in [*COMMANDS, "ls"]:
        done = CliRunner().invoke(group, [name, "--help"], prog_name="lm")
        assert done.exit_code == 0 and done.output.startswith("Usage: lm ")
    assert lm("quantize", "--help").out.startswith("Usage: lm quantize ")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["nonsense"], 2, "`nonsense`"),
        (["lits"], 2, "`lits`"),
        (["pull"], 2, "NAME"),
        (["list", "--nonsense"], 2, "--nonsense"),
        (["run", "tiny", "hi", "--temperature", "warm"], 2, "warm"),
        (["run", "org/../../etc"], 2, "not a name"),
        (["run", "tiny", "--draft", "tiny", "hi"], 2, "cannot draft for itself"),
        (["show", "a b"], 2, "not a name"),
        (["pull", "demo:Q8_0", "--level", "Q4_K_M"], 2, "`Q8_0`"),
        (["pull", "demo", "--level", "../x"], 2, "not a name"),
        (["stop"], 2, "--daemon"),
        (["stop", "tiny", "--daemon"], 2, "--daemon"),
        (["show", "nothing"], 3, "nothing"),
        (["rm", "nothing"], 3, "nothing"),
        (["stop", "nothing"], 3, "nothing"),
        (["run", "./no/such/folder", "hi"], 3, "no/such/folder"),
    ],
)
def test_bad_input_is_told_in_a_sentence(lm: Cli, arguments: list[str], code: int, sentence: str) -> None:
    done = lm(*arguments)
    lines = [line for line in done.err.splitlines() if line != "pulling manifest"]
    assert (done.code, done.out) == (code, "")
    assert lines[0].startswith("Error: ") and sentence in lines[0] and not lines[0].endswith(".")
    assert lines[1].startswith("hint: ") and len(lines) == 2


@pytest.mark.parametrize(
    ("typed", "code", "hint"),
    [
        (["run", "tiyn", "hi"], 1, "did you mean `tiny`?"),
        (["pull", "dmeo"], 1, "did you mean `demo`?"),
        (["pull", "llama3.2"], 1, "check the network"),
        (["pull", "demo:q4"], 2, "did you mean `Q4_K_M`?"),
    ],
)
def test_who_comes_from_ollama_is_shown_the_way(lm: Cli, typed: list[str], code: int, hint: str) -> None:
    done = lm(*typed)
    assert done.code == code and hint in done.err.splitlines()[-1]


def test_help_and_version_as_others_ask_for_them(lm: Cli) -> None:
    assert lm("help").out == lm("--help").out
    assert lm("help", "pull").out == lm("pull", "--help").out
    assert lm("-v").out == lm("--version").out


def test_the_answer_alone_goes_to_stdout(lm: Cli) -> None:
    done = lm("run", "tiny", "say", "this", "--verbose")
    assert (done.code, done.out) == (0, "Once upon a time\n")
    assert "prompt eval count:    2 token(s)" in done.err and "total duration:" in done.err


def test_no_escape_code_is_written_to_a_pipe(lm: Cli) -> None:
    for arguments in (
        ["run", "tiny", "hi", "--verbose"],
        ["list"],
        ["ps"],
        ["show", "tiny"],
        ["show", "x"],
        ["--help"],
    ):
        done = lm(*arguments)
        assert "\x1b" not in done.out + done.err
        assert "\r" not in done.out + done.err


def test_the_prompt_follows_piped_text(lm: Cli) -> None:
    # The scripted engine counts words between spaces: the line break joins two of them.
    done = lm("run", "tiny", "Answer this letter.", "--verbose", stdin=b"Dear sir, and so on\n")
    assert (done.code, done.out) == (0, "Once upon a time\n")
    assert "prompt eval count:    7 token(s)" in done.err
    assert "prompt eval count:    3 token(s)" in lm("run", "tiny", "--verbose", stdin="Grüße aus Köln\n".encode()).err


def test_empty_standard_input_only_loads(lm: Cli) -> None:
    done = lm("run", "tiny", stdin=b"")
    assert (done.code, done.out) == (0, "")
    assert "`tiny` is loaded" in done.err


def test_piped_bytes_without_an_end_are_refused(lm: Cli) -> None:
    with Path("/dev/zero").open("rb") as endless:
        process = lm.popen("run", "tiny", stdin=endless)
        assert process.communicate(timeout=60)[1].startswith(b"Error: what was piped in is larger than 32 MiB\nhint: ")
    assert process.returncode == 2


def test_without_any_input_there_is_nothing_to_do(lm: Cli) -> None:
    done = subprocess.run(
        ["sh", "-c", f"exec {lm.program} run tiny <&-"], env=dict(lm.env), capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(b"Error: there is no prompt, and no terminal to chat on")


def test_piped_bytes_that_are_no_text_are_refused(lm: Cli) -> None:
    done = lm("run", "tiny", stdin=b"\xff\xfe")
    assert done.code == 2
    assert "no text" in done.err


def test_options_reach_the_engine(lm: Cli) -> None:
    assert lm("run", "tiny", "hi", "--max-tokens", "2").out == "Once upon\n"
    assert (
        lm("run", "tiny", "hi", "--seed", "7", "--temperature", "0", "--system", "Be brief", "--ctx", "512").code == 0
    )
    done = lm("run", "tiny", "hi", "--keep-alive", "soon")
    assert done.code == 2
    assert "keep_alive" in done.err


def test_lists(lm: Cli) -> None:
    lm("run", "tiny", stdin=b"")
    header, *rows = lm("list").out.splitlines()
    assert header.split() == ["NAME", "ID", "SIZE", "MODIFIED"]
    assert any(row.startswith("tiny:F32 ") and row.endswith(" ago") for row in rows)
    assert lm("ls").out.splitlines()[0] == header
    assert "tiny:F32" in [row["name"] for row in json.loads(lm("list", "--json").out)]
    header, row = lm("ps").out.splitlines()
    assert header.split() == ["NAME", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"]
    assert row.startswith("tiny:F32 ") and "100% CPU" in row and row.endswith(" from now")
    assert max(len(line) for line in (header, row)) < 80
    header = lm("ps", "--wide").out.splitlines()[0]
    assert " ".join(header.split()) == "NAME ID SIZE PROCESSOR CONTEXT KV TYPE WEIGHTS CACHE COMPUTE HOLDS UNTIL"
    assert json.loads(lm("ps", "--json").out)[0]["context_length"]


def test_show(lm: Cli) -> None:
    shown = lm("show", "tiny").out
    for words in ("architecture", "llama", "quantization", "F32", "a test wants it", "temperature", '"<end>"'):
        assert words in shown
    assert json.loads(lm("show", "tiny", "--json").out)["model_info"]["general.architecture"] == "llama"


def test_stop_unloads(lm: Cli) -> None:
    lm("run", "tiny", stdin=b"")
    assert "stopped `tiny" in lm("stop", "tiny").err
    assert lm("ps").out.splitlines()[1:] == []
    assert "was not loaded" in lm("stop", "tiny").err


def test_rm_removes_what_it_can(lm: Cli) -> None:
    done = lm("rm", "one", "nothing", "two")
    assert done.code == 3
    assert "removed `one:F32`" in done.err and "removed `two:F32`" in done.err and '"nothing"' in done.err
    assert not {"one:F32", "two:F32"} & {row["name"] for row in json.loads(lm("list", "--json").out)}


def test_logs(lm: Cli, daemon: Daemon) -> None:
    assert lm("logs", "-n", "2").out == "".join(daemon.log.splitlines(keepends=True)[-2:])
    following = lm.popen("logs", "-f", "-n", "0")
    assert following.stdout is not None
    try:
        # Its first look is not to be seen from outside, so ask until it has shown one.
        wait_until(lambda: daemon.get("/lm/nowhere").status == 404 and _readable(following), 10, 0.05)
        assert b"/lm/nowhere" in following.stdout.readline()
    finally:
        following.send_signal(signal.SIGINT)
        following.communicate()
    assert following.returncode == 130


def _readable(process: subprocess.Popen[bytes]) -> bool:
    import select

    return bool(select.select([process.stdout], [], [], 0)[0])


def test_a_folder_is_not_taken_for_a_name(lm: Cli, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    done = lm("run", "folder", "hi", cwd=tmp_path)
    assert done.code == 1 and "`folder` is not here" in done.err
    assert "for the folder of that name write `./folder`" in done.err.splitlines()[-1]
    done = lm("run", "folder/", "hi", cwd=tmp_path)
    assert str(tmp_path / "folder") in done.err and "not a name" not in done.err


def test_a_reader_that_leaves_ends_it_silently(tmp_path: Path) -> None:
    with scripted(tmp_path, tokens=["word "] * 10_000, delay=0.001) as daemon:
        process = Cli.at(tmp_path, f"127.0.0.1:{daemon.port}").popen("run", "tiny", "hi", stdin=subprocess.DEVNULL)
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        process.stderr.close()
        process.wait(10)


def test_a_full_disk_is_told(lm: Cli) -> None:
    with Path("/dev/full").open("wb") as full:
        process = lm.popen("list", stdout=full, stdin=subprocess.DEVNULL)
        assert process.communicate()[1] == b"Error: the system refused: no space left on device\n"
    assert process.returncode == 1


def test_ctrl_c_while_modules_are_imported_shows_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import time; print('importing', flush=True); time.sleep(60)")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from cli.start import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20) == (b"", b"")
    assert process.returncode == -signal.SIGINT


def test_ctrl_c_ends_the_answer_here_and_there(tmp_path: Path) -> None:
    with scripted(tmp_path, tokens=["word "] * 10_000, delay=0.001) as daemon:
        process = Cli.at(tmp_path, f"127.0.0.1:{daemon.port}").popen("run", "tiny", "hi", stdin=subprocess.DEVNULL)
        assert process.stdout is not None
        assert process.stdout.read(10)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
        assert process.returncode == 130
        assert out.endswith(b"\n") and err.strip() == b""
        wait_until(lambda: "generate gone" in daemon.log, 5)


def test_a_daemon_that_dies_in_mid_answer(tmp_path: Path) -> None:
    with scripted(tmp_path, tokens=["word "] * 10_000, delay=0.001) as daemon:
        process = Cli.at(tmp_path, f"127.0.0.1:{daemon.port}").popen("run", "tiny", "hi", stdin=subprocess.DEVNULL)
        assert process.stdout is not None
        assert process.stdout.read(10)
        daemon.kill()
        err = process.communicate(timeout=10)[1].decode()
        assert process.returncode == 4
        assert err.startswith("Error: the daemon ended before it had answered\nhint: ")


def test_a_worker_that_dies_in_mid_answer(tmp_path: Path) -> None:
    with scripted(tmp_path, tokens=["a", "b", "c"], die_after=2) as daemon:
        done = Cli.at(tmp_path, f"127.0.0.1:{daemon.port}")("run", "tiny", "hi")
        assert (done.code, done.out) == (1, "ab\n")
        assert done.err.startswith("Error: ") and "worker" in done.err


@pytest.mark.parametrize(("code", "exit_code"), [("does_not_fit", 5), ("prompt_too_long", 1)])
def test_the_code_of_an_error_becomes_the_exit_code(tmp_path: Path, code: str, exit_code: int) -> None:
    with scripted(tmp_path, fail={"code": code, "message": "no room", "hint": "make some"}) as daemon:
        done = Cli.at(tmp_path, f"127.0.0.1:{daemon.port}")("run", "tiny", "hi")
        assert (done.code, done.err) == (exit_code, "Error: no room\nhint: make some\n")


def test_a_folder_that_cannot_be_read_is_told_and_hides_no_other_model(tmp_path: Path) -> None:
    put_model(tmp_path, "tiny")
    with Daemon(tmp_path, script={}) as daemon:
        lm = Cli.at(tmp_path, f"127.0.0.1:{daemon.port}")
        folder = tmp_path / "store/manifests/hf.co"
        folder.symlink_to(folder.name)
        done = lm("list")
        assert done.code == 0 and "tiny:F32" in done.out
        assert done.err.startswith(f"warning: `{folder}` cannot be read") and "nothing was removed" in done.err
        assert lm("run", "tiny", "hello").code == 0
        folder.unlink()
        done = lm("list")
        assert "tiny:F32" in done.out and not done.err


def test_columns_stand_below_each_other_whatever_their_letters(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(["NAME", "SIZE"], [["模型", "1 B"], ["cafe\u0301", "2 B"], ["plain", "3 B"]])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["NAME     SIZE", "模型     1 B", "cafe\u0301     2 B", "plain    3 B"]


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_a_table_fits_a_narrow_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "columns", lambda stream: columns)
    name = "hf.co/some-organisation/A-Model-With-A-Long-Name-GGUF:Q4_K_M"
    console.table(["NAME", "SIZE", "UNTIL"], [[name, "4.2 GB", "4 minutes from now"], ["tiny", "1 B", "forever"]])
    header, *lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == name
    rows = [line for line in [header, *lines] if line != name]
    assert max(len(line) for line in rows) < columns
    assert len({line.rindex("  ") for line in rows}) == 1 or columns == 80  # the columns stand below each other


def test_on_the_narrowest_terminal_each_cell_has_its_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "columns", lambda stream: 30)
    header = ["NAME", "SIZE", "PROCESSOR", "UNTIL"]
    console.table(header, [["tiny", "1 B", "100% CPU", "4 minutes from now"], ["other", "2 B", "", "forever"]])
    first, second, rest = capsys.readouterr().out.split("\n\n")
    assert first.splitlines() == [
        "NAME       tiny",
        "SIZE       1 B",
        "PROCESSOR  100% CPU",
        "UNTIL      4 minutes from now",
    ]
    assert second.splitlines() == ["NAME       other", "SIZE       2 B", "UNTIL      forever"] and rest == ""


TEXT = "the quick brown fox runs `lm pull org/repo --level Q4_K_M` and jumps over the lazy dog\n  twice, and then some"


@pytest.mark.parametrize("columns", range(20, 100, 7))
def test_notes_are_broken_between_words(columns: int) -> None:
    lines = console.wrapped(TEXT, columns).splitlines()
    assert " ".join(" ".join(lines).split()) == " ".join(TEXT.split())
    assert all(len(line) < columns or line.strip(" `and").startswith("lm pull") for line in lines)
    assert any("`lm pull org/repo --level Q4_K_M`" in line for line in lines)  # as it can be copied
    assert lines[-1].startswith("  ")
    assert console.wrapped(TEXT, 0) == TEXT


@pytest.mark.parametrize(
    "arguments",
    [
        ("pull", "demo", "--level", "Q9"),
        ("pull", "demo", "--level", "4,5bpw"),
        ("pull", "demo:MXFP4_MOE"),
        ("pull", "demo", "--limit-rate", "fast"),
        ("run", "tiny", "Hello", "--temperature", "warm"),
        ("run", "tiny", "Hello", "--temperature", "999"),
        ("run", "tiny", "Hello", "--keep-alive", "soon"),
        ("run", "tiny", "Hello", "--seed", str(1 << 70)),
        ("fit", "demo", "--memory", "much"),
        ("logs", "--lines", "many"),
        ("serve", "--port", "http"),
        ("completion", "tcsh"),
        ("nosuch",),
    ],
)
def test_what_the_user_typed_wrong_ends_with_2(lm: Cli, arguments: tuple[str, ...]) -> None:
    ended = lm(*arguments)
    assert ended.code == 2, ended.err
    assert ended.err.strip() and "Traceback" not in ended.err


class Loaded:
    """A daemon that has models loaded: names, contexts, and the contexts that they were trained for."""

    def __init__(self, *rows: tuple[str, int, int]) -> None:
        self._rows = rows

    def ask(self, _method: str, _path: str) -> Any:
        return {
            "models": [{"name": n, "context_length": c, "details": {"context_length": t}} for n, c, t in self._rows]
        }


@pytest.mark.parametrize(
    ("rows", "hint"),
    [
        ([("tale:Q8_0", 2048, 4096)], "; `--ctx` makes it larger than 2,048 tokens"),
        ([("tale:Q8_0", 4096, 4096)], ": the model was trained for 4,096 tokens, and no more"),
        (
            [("tale-two:Q8_0", 2048, 8192), ("Tale:Q8_0", 4096, 4096)],
            ": the model was trained for 4,096 tokens, and no more",
        ),
        ([("tale-two:Q8_0", 2048, 8192)], ""),
        ([], ""),
    ],
    ids=["room", "most", "another of the same beginning", "another alone", "none"],
)
def test_a_larger_context_is_offered_where_there_is_one(rows: list[tuple[str, int, int]], hint: str) -> None:
    client: Any = Loaded(*rows)
    assert Asking(client, "tale").way_to_more() == hint


@pytest.mark.slow
def test_types_of_tensors_are_those_that_llama_cpp_then_makes(tmp_path: Path) -> None:
    import ctypes

    import llama_cpp

    from cli.describing import tensor_types
    from quant.gguf.header import read_file
    from quant.types import QuantType
    from tests.publishing import make

    def types(path: Path) -> dict[str, str]:
        return {each.name: each.type.name for each in read_file(path).tensors if len(each.shape) > 1}

    whole, mixed, target = make(tmp_path / "f32.gguf", "F32"), make(tmp_path / "mix.gguf", "4.5bpw"), tmp_path / "out"
    tensors = [
        {"name": each.name, "type": each.type.name, "shape": list(each.shape)} for each in read_file(mixed).tensors
    ]
    lines = tensor_types({"tensors": tensors}).split()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = 7, 1  # Q8_0 for what no line names
    rows = (llama_cpp.llama_model_tensor_override * (len(lines) + 1))()
    for row, line in zip(rows, lines, strict=False):
        pattern, _, name = line.partition("=")
        row.pattern, row.type = pattern.encode(), QuantType.by_name(name).id
    params.tt_overrides = rows
    done = llama_cpp.llama_model_quantize(str(whole).encode(), str(target).encode(), ctypes.byref(params))
    assert done == 0 and types(target) == types(mixed) and len(set(types(mixed).values())) > 1
