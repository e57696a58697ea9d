"""Models pushed to a registry that makes trouble; `test_real_registry.py` has a real one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.errors import AccessDenied, RegistryError, SourceUnavailable
from registry.names import Name
from registry.net.network import Network
from registry.store.catalog import Model
from registry.store.store import Store
from registry.targets import upload
from registry.targets.forms import as_stored
from registry.targets.pushing import Push
from tests.registry.sending import DATA, FAST, push, put
from tests.taking import Taking, digest
from tests.tokens import Tokens

PIECE = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "PIECE", PIECE)


def arrived(registry: Taking, model: Model, store: Store) -> bool:
    """Whether the registry has all of the model, with the right bytes."""
    data, contents = store.manifest(model)
    kept = registry.kept["ns/tale"]
    right = all(digest(kept[layer.digest]) == layer.digest for layer in contents.blobs)
    return right and registry.manifests["ns/tale", "v1"] == data


FAULTS = {
    "reset": lambda ask: "reset" if ask.method == "PATCH" and ask.index in (0, 2) else None,
    "cut": lambda ask: "cut" if ask.method == "PATCH" and ask.index in (1, 2) else None,
    "forget": lambda ask: "forget" if ask.method == "PATCH" and ask.index == 3 else None,
    "busy": lambda ask: (429, {"Retry-After": "1"}) if ask.method == "PATCH" and ask.index == 1 else None,
    "broken": lambda ask: (503, {}) if ask.method in ("POST", "PUT") and ask.index == 0 else None,
    "slow": lambda ask: "slow" if ask.method == "HEAD" and ask.index == 0 else None,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_trouble_that_passes_costs_no_more_than_time(store: Store, fault: str) -> None:
    model = put(store)
    with Taking() as registry:
        registry.script = FAULTS[fault]
        push(store, model, registry.host, "ns/tale:v1")
        assert arrived(registry, model, store)


def test_a_registry_that_takes_no_pieces_or_only_small_ones_gets_it_all_the_same(store: Store) -> None:
    model = put(store)
    with Taking(pieces=False) as registry:
        push(store, model, registry.host, "ns/tale:v1")
        assert arrived(registry, model, store)


def test_pieces_become_smaller_where_bodies_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "PIECE", 4 << 20)
    model = put(store)
    with Taking(most=2 << 20) as registry:
        push(store, model, registry.host, "ns/tale:v1")
        assert arrived(registry, model, store)


REFUSALS = {
    "forgets always": ("forget", "PATCH PUT"),
    "resets always": ("reset", "PATCH"),
    "takes nothing": ((403, {}), "POST"),
    "sends html": ("html", "POST"),
    "is always busy": ((429, {"Retry-After": "9000"}), "POST"),
    "redirects elsewhere": ((307, {"Location": "http://169.254.169.254/"}), "POST"),
    "begins nowhere": ((202, {}), "POST"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_registry_that_will_not_take_it_is_given_up_with_a_reason(store: Store, kind: str) -> None:
    model = put(store)
    answer, method = REFUSALS[kind]
    with Taking() as registry:
        registry.script = lambda ask: answer if ask.method in method else None
        with pytest.raises((AccessDenied, SourceUnavailable)) as caught:
            push(store, model, registry.host, "ns/tale:v1")
        assert str(caught.value) and not registry.manifests
        assert len(registry.asked) < 60


def with_login(registry: Taking, login: str) -> Network:
    return Network(downloads=FAST, logins={registry.host: login} if login else {})


@pytest.mark.parametrize("lifetime", [1 << 30, 3, 1])
def test_a_token_is_for_this_repository_and_renewed_when_it_expires_in_the_middle(store: Store, lifetime: int) -> None:
    model, tokens = put(store), Tokens(lifetime=lifetime)
    with Taking(tokens=tokens) as registry:
        push(store, model, registry.host, "ns/tale:v1", with_login(registry, "me:secret"))
        assert arrived(registry, model, store)
        pieces = [ask for ask in registry.asked if ask.method == "PATCH"]
    assert set(tokens.wishes) == {"repository:ns/tale:pull", "repository:ns/tale:pull,push"}
    renewed = len(tokens.wishes)
    assert renewed == 2 if lifetime > 3 else renewed >= len(DATA) // PIECE // lifetime
    # A piece is sent again only where its token had expired; the bytes of no other request come twice.
    assert len(pieces) <= len(DATA) // PIECE + 1 + renewed
    assert not any(ask.authorization.startswith("Basic") for ask in registry.asked if not ask.path.startswith("/token"))


@pytest.mark.parametrize(
    ("login", "grants", "said"),
    [
        ("", ("pull", "push"), "wants a login"),
        ("me:wrong", ("pull", "push"), "does not accept"),
        ("me:secret", ("pull",), "does not let this login"),
    ],
    ids=["no login", "wrong login", "may only pull"],
)
def test_a_token_server_that_gives_too_little_ends_the_push_with_the_reason(
    store: Store, login: str, grants: tuple[str, ...], said: str
) -> None:
    model = put(store)
    with Taking(tokens=Tokens(grants=grants)) as registry:
        with pytest.raises(AccessDenied, match=said):
            push(store, model, registry.host, "ns/tale:v1", with_login(registry, login))
        assert not registry.manifests and not registry.uploads and len(registry.asked) < 20


def test_a_push_that_was_cut_off_goes_on_where_it_was_with_another_store_of_the_same_folder(tmp_path: Path) -> None:
    with Taking() as registry:
        registry.script = lambda ask: (403, {}) if ask.method == "PATCH" and ask.index == 3 else None
        with Store.open(tmp_path / "store") as store:
            model = put(store)
            with pytest.raises(AccessDenied):
                push(store, model, registry.host, "ns/tale:v1")
        registry.script = lambda ask: None
        before = len(registry.asked)
        with Store.open(tmp_path / "store") as store:
            push(store, model, registry.host, "ns/tale:v1")
            assert arrived(registry, model, store)
        sent = sum(ask.length for ask in registry.asked[before:] if ask.method == "PATCH")
        assert sent == len(DATA) - 3 * PIECE
        assert not list((tmp_path / "store/uploads").glob(".tmp-*"))


def test_a_login_never_leaves_its_registry(store: Store) -> None:
    model = put(store)
    with Taking() as registry, Taking() as other:

        def elsewhere(ask: Any) -> Any:
            return (307, {"Location": f"http://{other.host}{ask.path}"}) if ask.method == "POST" else None

        registry.script = elsewhere
        login = {registry.host: "me:secret"}
        network = Network(downloads=FAST, logins=login)
        with pytest.raises(RegistryError):  # the upload began elsewhere, and its registry has no such blob
            push(store, model, registry.host, "ns/tale:v1", network)
        assert all(not ask.authorization for ask in other.asked)


def test_ollamas_own_registry_is_refused_before_anything_is_sent(store: Store) -> None:
    model = put(store)
    data, contents = store.manifest(model)
    with pytest.raises(AccessDenied, match="Ollama's registry"):
        Push(store, as_stored(data, contents), Name("registry.ollama.ai", "me", "tale", "v1"), Network())


@pytest.mark.slow
def test_a_hundred_pushes_through_a_bad_network_are_right_or_refused(store: Store) -> None:
    chance, right, refused = random.Random(5), 0, 0
    model = put(store)
    faults = ["reset", "cut", "forget", (429, {"Retry-After": "0"}), (503, {}), (500, {}), (404, {})]
    for _ in range(100):
        with Taking() as registry:
            rate = chance.choice([0.02, 0.1, 0.4])
            registry.script = lambda ask, rate=rate: chance.choice(faults) if chance.random() < rate else None
            try:
                push(store, model, registry.host, "ns/tale:v1")
            except RegistryError as error:
                assert str(error)
                refused += 1
            else:
                assert arrived(registry, model, store)
                right += 1
            for blob, data in registry.kept.get("ns/tale", {}).items():
                assert digest(data) == blob
    print(f"\n100 pushes through a bad network: {right} right, {refused} refused, 0 wrong")
    assert right > 50
