"""`lm create` and `lm cp`, as a user runs them: paths begin at the Modelfile, files are sent, wrong lines are named."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.sources.opening import DEMO
from tests.cli.support import Cli
from tests.daemon import Daemon, put_model
from tests.publishing import make

PAGE = Path(__file__).parent.parent.parent / "docs" / "create.md"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("create")
    put_model(home)
    with Daemon(home, script={"echo": True}) as running:
        yield running


@pytest.fixture(scope="module")
def lm(daemon: Daemon) -> Cli:
    return Cli.at(daemon.home, f"127.0.0.1:{daemon.port}")


def shown(daemon: Daemon, name: str) -> dict[str, object]:
    answer = daemon.post("/api/show", {"model": name})
    assert answer.status == 200, answer.body
    return dict(answer.json)


def test_a_modelfile_makes_a_model_and_show_writes_it_back(lm: Cli, daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_bytes(
        b'from tiny\r\nPARAMETER temperature 0.3\r\nSYSTEM """You are\r\nMario."""\r\nMESSAGE user hi\r\n'
    )
    done = lm("create", "mario", cwd=tmp_path)
    assert (done.code, done.out) == (0, ""), done.err
    assert "`mario:latest` is here" in done.err
    found = shown(daemon, "mario")
    assert found["system"] == "You are\nMario."
    again = lm("create", "mario:two", "-f", "-", stdin=str(found["modelfile"]).encode())
    assert again.code == 0, again.err
    assert shown(daemon, "mario:two")["parameters"] == found["parameters"]
    assert lm("cp", "mario:two", "luigi").code == 0
    assert shown(daemon, "luigi")["messages"] == [{"role": "user", "content": "hi"}]


def test_a_file_beside_the_modelfile_is_sent(lm: Cli, daemon: Daemon, tmp_path: Path) -> None:
    make(tmp_path / "weights" / "small.gguf", "F16")
    (tmp_path / "Modelfile").write_text("FROM ./weights/small.gguf\nPARAMETER seed 1\n")
    done = lm("create", "sent", "-f", str(tmp_path / "Modelfile"))  # paths begin at the Modelfile, not here
    assert done.code == 0, done.err
    assert "sending `small.gguf`" in done.err
    again = lm("create", "sent:q8", "-f", str(tmp_path / "Modelfile"), "-q", "q8_0")
    assert again.code == 0 and "sending" not in again.err  # it is there
    assert shown(daemon, "sent:q8")["details"]["quantization_level"] == "Q8_0"  # type: ignore[index]


@pytest.mark.slow
def test_a_draft_beside_the_modelfile_is_sent_and_quantized_and_a_name_is_written_back(
    lm: Cli, daemon: Daemon, tmp_path: Path
) -> None:
    for name in ("large", "small"):
        make(tmp_path / f"{name}.gguf", "F16")
    (tmp_path / "Modelfile").write_text("FROM ./large.gguf\nDRAFT ./small.gguf\n")
    refused = lm("create", "drafted", cwd=tmp_path)
    assert refused.code != 0 and "cannot draft for itself" in refused.err  # they are the same file
    done = lm("create", "drafted", "--draft-quantize", "q4_0", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "    draft " in lm("show", "drafted").out
    (tmp_path / "Modelfile").write_text("FROM ./large.gguf\nDRAFT ./small.gguf\nDRAFT drafted\n")
    again = lm("create", "named", "-q", "q8_0", cwd=tmp_path)
    assert again.code == 0, again.err
    assert "\nDRAFT drafted:latest\n" in lm("show", "named", "--modelfile").out


def test_a_folder_of_weights_is_read_where_it_is(lm: Cli, daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(DEMO)
    (tmp_path / "Modelfile").write_text("FROM model\nSYSTEM short\n")
    done = lm("create", "tales", "--level", "Q8_0", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert '"status": "success"' in done.out.splitlines()[-1]
    assert shown(daemon, "tales")["system"] == "short"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("FROM tiny\nSYSTM x\n", "line 2 of the Modelfile: `SYSTM` is no instruction"),
        ("FROM ./nowhere.gguf\n", "line 1 of the Modelfile: there is no file or folder"),
        ("FROM tiny\n\nADAPTER ./lora\n", "line 3 of the Modelfile: there is no file or folder"),
        ("FROM tiny\nDRAFT ./small.gguf\n", "line 2 of the Modelfile: there is no file or folder"),
        ("FROM tiny\nPARAMETER temperature hot\n", "temperature"),
        ("FROM tiny\nTEMPLATE {{ if }}\n", "the TEMPLATE cannot be read: line 1"),
        ("PARAMETER seed 1\n", "no FROM line"),
    ],
)
def test_a_wrong_modelfile_is_said_by_its_line(lm: Cli, daemon: Daemon, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "Modelfile").write_text(text)
    done = lm("create", "wrong", cwd=tmp_path)
    assert done.code in (1, 2) and words in done.err, done.err
    assert done.out == ""
    assert daemon.post("/api/show", {"model": "wrong"}).status == 404


def test_a_modelfile_that_is_not_there(lm: Cli, tmp_path: Path) -> None:
    done = lm("create", "none", cwd=tmp_path)
    assert done.code == 1 and "`Modelfile` cannot be read" in done.err
    assert lm("cp", "nowhere", "x").code == 3


def test_the_examples_of_the_page_work(lm: Cli, daemon: Daemon, tmp_path: Path) -> None:
    texts = re.findall(r"```Modelfile\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(texts) >= 2
    for number, text in enumerate(texts):
        (tmp_path / "Modelfile").write_text(text.replace("FROM smollm2", "FROM tiny"))
        done = lm("create", f"page{number}", cwd=tmp_path)
        assert done.code == 0, (text, done.err)
