"""The tests' own hub, judged by the client that knows the real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub import Hub

hub_client = pytest.importorskip("huggingface_hub")
pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repo")
    (root / "config.json").write_bytes(b"{}")
    (root / "model.safetensors").write_bytes(bytes(range(256)) * 4000)
    return root


def test_files_arrive_as_they_are(folder: Path, tmp_path: Path) -> None:
    with Hub({"org/repo": folder}, token="hf_x") as hub:
        for path in folder.iterdir():
            got = hub_client.hf_hub_download("org/repo", path.name, endpoint=hub.url, token="hf_x", cache_dir=tmp_path)
            assert Path(got).read_bytes() == path.read_bytes()
            assert Path(got).parent.name == hub.heads["org/repo"]
    assert hub.paths("cdn")
    assert not any("authorization" in request.headers for request in hub.requests if request.origin == "cdn")


def test_what_the_hub_says_of_files(folder: Path) -> None:
    with Hub({"org/repo": folder}) as hub:
        info = hub_client.HfApi(endpoint=hub.url).model_info("org/repo", files_metadata=True)
    assert info.sha == hub.heads["org/repo"]
    files = {file.rfilename: file for file in info.siblings}
    assert files["model.safetensors"].lfs.size == files["model.safetensors"].size == 1_024_000
    assert files["config.json"].blob_id == "9e26dfeeb6e641a33dae4961196235bdb965b21b"  # git hash-object


@pytest.mark.parametrize(
    ("repo", "file", "revision", "error"),
    [
        ("org/none", "config.json", "main", "RepositoryNotFoundError"),
        ("org/repo", "none", "main", "EntryNotFoundError"),
        ("org/repo", "config.json", "none", "RevisionNotFoundError"),
        ("org/gated", "config.json", "main", "GatedRepoError"),
    ],
)
@pytest.mark.parametrize("token", [False, "hf_x"])
def test_refusals(folder: Path, tmp_path: Path, repo: str, file: str, revision: str, error: str, token: str) -> None:
    with (
        Hub({"org/repo": folder, "org/gated": folder}, gated=["org/gated"]) as hub,
        pytest.raises(getattr(hub_client.errors, error)),
    ):
        hub_client.hf_hub_download(repo, file, revision=revision, endpoint=hub.url, token=token, cache_dir=tmp_path)
