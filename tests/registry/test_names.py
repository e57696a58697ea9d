"""What users type, and that nothing they type leads out of the store."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import BadName
from registry.names import HUB, LIBRARY, LOCAL, OLLAMA, Name, parse

READINGS = [
    # text, kind, location, level, display
    ("demo", "demo", "demo", None, "demo"),
    ("demo:q8_0", "demo", "demo", "Q8_0", "demo:Q8_0"),
    ("demo:auto", "demo", "demo", "auto", "demo"),
    ("org/repo", "hub", "org/repo", None, "hf.co/org/repo"),
    ("org/repo:q4_k_m", "hub", "org/repo", "Q4_K_M", "hf.co/org/repo:Q4_K_M"),
    ("org/repo:4gb", "hub", "org/repo", "4GB", "hf.co/org/repo:4GB"),
    ("org/repo:4.5BPW", "hub", "org/repo", "4.5bpw", "hf.co/org/repo:4.5bpw"),
    *(
        (f"org/repo:{text}", "hub", "org/repo", "4bpw", "hf.co/org/repo:4bpw")
        for text in ("4bpw", "4.0bpw", "04.00BPW")
    ),
    ("org/repo:0.50GiB", "hub", "org/repo", "0.5GiB", "hf.co/org/repo:0.5GiB"),
    ("org/repo:100gb", "hub", "org/repo", "100GB", "hf.co/org/repo:100GB"),
    ("org/repo:Model-q4_0.gguf", "hub", "org/repo", "Model-q4_0.gguf", "hf.co/org/repo:Model-q4_0.gguf"),
    ("hf.co/01-ai/Yi-1.5-6B", "hub", "01-ai/Yi-1.5-6B", None, "hf.co/01-ai/Yi-1.5-6B"),
    ("HF.co/org/repo", "hub", "org/repo", None, "hf.co/org/repo"),
    ("huggingface.co/org/repo:Q8_0", "hub", "org/repo", "Q8_0", "hf.co/org/repo:Q8_0"),
    ("https://huggingface.co/org/repo", "hub", "org/repo", None, "hf.co/org/repo"),
    ("https://huggingface.co/org/repo/tree/main", "hub", "org/repo", None, "hf.co/org/repo"),
    (
        "https://huggingface.co/org/repo/blob/main/Q8_0/M-Q8_0-00001-of-00002.gguf",
        *("hub", "org/repo", "M-Q8_0-00001-of-00002.gguf", "hf.co/org/repo:M-Q8_0-00001-of-00002.gguf"),
    ),
    ("https://hf.co/org/repo/resolve/main/M.gguf?download=true", "hub", "org/repo", "M.gguf", "hf.co/org/repo:M.gguf"),
    ("https://hf.co/org/repo:q8_0", "hub", "org/repo", "Q8_0", "hf.co/org/repo:Q8_0"),
    ("llama3.2", "bare", "llama3.2", None, "llama3.2"),
    ("llama3.2:3b-instruct", "bare", "llama3.2", None, "llama3.2:3b-instruct"),
    ("ollama.com/user/model", "ollama", "user/model", None, "ollama.com/user/model:latest"),
    ("https://ollama.com/library/llama3.2", "ollama", "library/llama3.2", None, "llama3.2:latest"),
    ("ghcr.io/ns/model:v1", "oci", "ghcr.io/ns/model", None, "ghcr.io/ns/model:v1"),
    (f"ghcr.io/a/b:v1@sha256:{'0' * 64}", "oci", "ghcr.io/a/b", None, f"ghcr.io/a/b:sha256-{'0' * 64}"),
    ("localhost:5000/ns/model", "oci", "localhost:5000/ns/model", None, "localhost:5000/ns/model:latest"),
    ("https://x.example/a/M-Q4.gguf", "url", "https://x.example/a/M-Q4.gguf", None, "M-Q4"),
    ("http://127.0.0.1:8/a.gguf:q8_0", "url", "http://127.0.0.1:8/a.gguf", "Q8_0", "a:Q8_0"),
    (f"https://x.example/a.gguf?s=1#sha256={'0' * 64}", "url", None, None, "a"),
    ("package://llm-tale:q8_0", "package", "llm-tale", "Q8_0", "tale:Q8_0"),
    ("package://zoo/small", "package", "zoo/small", None, "small"),
    ("library/llama3.2", "ollama", "library/llama3.2", None, "llama3.2:latest"),
    ("/models/tale", "folder", "/models/tale", None, "tale"),
    ("/models/M-Q4.gguf", "folder", "/models/M-Q4.gguf", None, "M-Q4"),
    ("/models/M-00002-of-00003.gguf:q8_0", "folder", "/models/M-00002-of-00003.gguf", "Q8_0", "M:Q8_0"),
    ("/models/tale/", "folder", "/models/tale", None, "tale"),
    ("/models/tale:q6_k", "folder", "/models/tale", "Q6_K", "tale:Q6_K"),
    ("/models/a:b/", "folder", "/models/a:b", None, "a-b"),
    ("/models/ünï 漢", "folder", "/models/ünï 漢", None, "uni-漢"),
    ("/models/模型", "folder", "/models/模型", None, "模型"),
    ("/models/模型.gguf:q8_0", "folder", "/models/模型.gguf", "Q8_0", "模型:Q8_0"),
    ("/models/Модель-й", "folder", "/models/Модель-й", None, "Модель-й"),
    ("/models/हिन्दी", "folder", "/models/हिन्दी", None, "हिन्दी"),
    ("/models/모델 2", "folder", "/models/모델 2", None, "모델-2"),
    ("模型:Q8_0", "bare", "模型", None, "模型:Q8_0"),
    ("org/two:模型.gguf", "hub", "org/two", "模型.gguf", "hf.co/org/two:模型.gguf"),
    ("org/two/X-q4_0.gguf", "hub", "org/two", "X-q4_0.gguf", "hf.co/org/two:X-q4_0.gguf"),
    ("hf.co/org/two/Q4/X.gguf", "hub", "org/two", "X.gguf", "hf.co/org/two:X.gguf"),
    ("/models/Mein Modell (neu)", "folder", "/models/Mein Modell (neu)", None, "Mein-Modell-neu"),
    ("/hub/models--org--repo/snapshots/" + "a" * 40, "folder", None, None, "repo"),
]

ODD = [
    "", " ", "demo ", "a/", "/a//..", "../../etc/passwd:x/y:", "a/..", "../..:", "org/../repo", "hf.co/org/..",
    "hf.co/org", "hf.co/a/b/c", "a/b/c", "a/b/c/d", "demo:", "demo:..", "demo:a/b", "demo:../../x",
    "org/repo:", ":", "::", "a:b:c",
    "-x/y", ".x/y", "a b/c", "a\n", "a\x00b", "./a\x00", "ä/b", "org/repo\u2028", "org/r\uff0fx", "org\\repo", "C:\\x",
    "x" * 97, "x/" + "y" * 97, "x" * 5000, "https://x.example/a.gguf#x", "https://u:p@x.example/a.gguf",
    "https://huggingface.co", "https://huggingface.co/org/repo?x=1", "https://huggingface.co/org/repo/blob/x/y",
    "https://[/a.gguf", "https://x.example/a.bin", "https:///a.gguf", "ftp://x.example/a.gguf",
    "https://x.example/.gguf", "file:///etc/passwd", "local/library/x", "ghcr.io/a/b:x y",
    f"org/repo@sha256:{'0' * 64}", "ghcr.io/a/b@sha512:" + "0" * 64,
    "%2e%2e/%2e%2e", "~a\ud800", "/", "demo:4 GB",
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind", "location", "level", "display"), READINGS)
def test_reads_what_users_type(text: str, kind: str, location: str | None, level: str | None, display: str) -> None:
    reference = parse(text)
    assert (reference.kind, reference.level, reference.name.display) == (kind, level, display)
    assert location is None or reference.location == location
    assert parse(reference.text) == reference


@pytest.mark.parametrize("text", ["demo:4 GB", "./folder:4,5bpw", "org/repo:Q4 K", "demo:.."])
def test_a_bad_level_is_called_a_level(text: str) -> None:
    with pytest.raises(BadName, match=r"is not a level$") as caught:
        parse(text)
    assert "`4.5bpw`" in caught.value.hint


@pytest.mark.parametrize("text", ODD)
def test_refuses_what_is_no_name(text: str) -> None:
    with pytest.raises(BadName) as caught:
        parse(text)
    assert caught.value.hint
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


def test_relative_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tale").mkdir()
    monkeypatch.chdir(tmp_path / "tale")
    for text in (".", "./", "../tale", "./../tale/."):
        assert parse(text).location == str(tmp_path / "tale")
        assert parse(text).name.display == "tale"
    assert parse("./sub:Q8_0").text == f"{tmp_path}/tale/sub:Q8_0"


@pytest.mark.parametrize("text", [f"ghcr.io/a/b@sha512:{'0' * 128}", "ghcr.io/a/b@sha256:12", "ghcr.io/a/b@v1"])
def test_another_digest_than_one_by_sha256_is_refused_by_what_is_read(text: str) -> None:
    with pytest.raises(BadName) as caught:
        parse(text)
    assert f"`{text[:79]}" in str(caught.value) and "@sha256:" in caught.value.hint


@given(st.text(max_size=60) | st.from_regex(r"[a-z./:~\\%\0-]{0,40}", fullmatch=True))
def test_no_name_leads_out_of_its_folder(text: str) -> None:
    try:
        name = parse(text).name
    except BadName:
        return
    root = PurePosixPath("/store/manifests")
    path = root.joinpath(*name.parts)
    assert path.parts[: len(root.parts)] == root.parts
    assert len(path.parts) == len(root.parts) + len(name.parts)
    assert not {".", ".."} & set(path.parts)
    assert all("/" not in part and "\0" not in part and len(part.encode()) <= 255 for part in name.parts)


@given(st.text(max_size=8), st.sampled_from([0, 1, 2, 3]))
def test_name_refuses_words_that_are_no_file_names(word: str, place: int) -> None:
    words = ["h", "n", "m", "t"]
    words[place] = word
    try:
        name = Name(*words)
    except BadName:
        return
    assert all(part not in (".", "..") and "/" not in part and part.isprintable() for part in name.parts)
    assert all(len(part.encode()) <= 245 for part in name.parts)


@given(st.text(max_size=60))
def test_text_reads_back(text: str) -> None:
    try:
        reference = parse(text)
    except BadName:
        return
    assert parse(reference.text) == reference


def test_display_reads_back() -> None:
    for name in (Name(HUB, "org", "repo", "Q4_K_M"), Name(OLLAMA, LIBRARY, "x", "7b"), Name("ghcr.io", "a", "b", "v1")):
        assert parse(name.display).name == name
    assert Name(LOCAL, LIBRARY, "tale", "Q8_0").display == "tale:Q8_0"


def test_case_is_kept_and_ignored() -> None:
    assert parse("Org/Repo:q8_0").name.same(parse("org/repo:Q8_0").name)
    assert not parse("org/repo").name.same(parse("org/repo:Q8_0").name)


@pytest.mark.parametrize("letter", ["x", "模", "\U00020000"])
def test_a_folder_with_a_long_name_has_names(letter: str) -> None:
    names = parse(f"/models/{letter * 80}/{letter * 80}").names
    assert names[0] != names[-1]
    assert all(parse(name.display).name.model == name.model for name in names)
