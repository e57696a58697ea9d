"""Configurations, tokenizers and headers with one thing wrong give a plan, or an error that says what to do."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.convert.planning import plan_model
from quant.errors import QuantError
from quant.levels.recipes import assign
from tests.quant.make_golden import FAMILIES, family_golden
from tests.quant.support import DEMO, Folder, safetensors
from tests.server.test_rerank import write_ranker

GONE = object()
VALUES: tuple[Any, ...] = (
    GONE,
    None,
    True,
    "x",
    "128",
    -1,
    0,
    1,
    3,
    1 << 40,
    1 << 70,
    0.5,
    1e-30,
    float("inf"),
    float("nan"),
    [],
    [1],
    ["x"],
    [None],
    [[]],
    {},
    {"a": 1},
    {"rope_type": []},
    {"rope_type": "yarn"},
    {"full_attention": 3},
)
# Settings that a model may have beside those in its file.
MORE: dict[str, Any] = {
    "rope_scaling": None,
    "head_dim": 64,
    "layer_types": [],
    "text_config": None,
    "quantization_config": None,
    "id2label": {"0": "a"},
    "pad_token_id": 0,
    "sliding_window": None,
    "num_local_experts": 4,
}
Path_ = tuple[str | int, ...]


def places(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """Where something stands in a JSON document; of long objects and lists only the beginning."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for number, (key, inner) in enumerate(pairs):
        if number < 60:
            yield (*at, key)
            yield from places(inner, (*at, key))


def breakages(document: Any, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """The document with one thing wrong, `count` times, and what that is."""
    chance = random.Random(seed)
    spots = list(places(document))
    for _ in range(count):
        where, value = chance.choice(spots), chance.choice(VALUES)
        copy = json.loads(json.dumps(document))
        inner = copy
        for key in where[:-1]:
            inner = inner[key]
        if value is GONE:
            del inner[where[-1]]
        else:
            inner[where[-1]] = value
        yield f"{where} is {'gone' if value is GONE else value}", json.dumps(copy).encode()


def check(folder: Folder, what: str) -> bool:
    """Whether it is refused; fails where it is refused without saying what to do, or raises anything else."""
    try:
        assign(plan_model(folder), "Q4_K_M")
    except QuantError as error:
        assert error.hint, f"{what}: {error}"
        assert len(str(error)) < 600, what
        return True
    except Exception as error:
        pytest.fail(f"{what}: {error!r}")
    return False


def check_configs(folder: Folder, seed: int, count: int) -> None:
    """Break `config.json`, with more settings than it has; some of it must be refused."""
    document = {**MORE, **folder.json("config.json")}
    tried = [check(folder.with_file("config.json", data), what) for what, data in breakages(document, seed, count)]
    assert any(tried)


def golden(family: str) -> Folder:
    """The folder of a family of which logits are committed, its weights zero."""
    with np.load(family_golden(family)) as file:
        config, shapes = str(file["config"]), json.loads(str(file["shapes"]))
    zeros = {name: ("F32", tuple(shape), bytes(4 * int(np.prod(shape)))) for name, shape in shapes.items()}
    return Folder(DEMO).with_file("config.json", config.encode()).with_file("model.safetensors", safetensors(zeros))


SOURCES: dict[str, Callable[[Path], Folder]] = {
    **{family: lambda path, family=family: golden(family) for family in FAMILIES},  # type: ignore[misc]
    "demo": lambda path: Folder(DEMO),
    "ranker": lambda path: Folder(write_ranker(path / "ranker")),
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_broken_configuration_is_an_error_that_helps(source: str, tmp_path: Path) -> None:
    check_configs(SOURCES[source](tmp_path), 1, 20)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_broken_tokenizer_is_an_error_that_helps(name: str) -> None:
    folder = Folder(DEMO)
    document = folder.json(name) if name in folder.contents else {"eos_token_id": [2, 1], "temperature": 0.5}
    for what, data in breakages(document, 2, 8):
        check(folder.with_file(name, data), f"{name}: {what}")


def test_a_broken_header_is_an_error_that_helps() -> None:
    folder = golden("gpt2")
    whole = folder.contents["model.safetensors"]
    (length,) = struct.unpack_from("<Q", whole)
    for what, data in breakages(json.loads(whole[8 : 8 + length]), 3, 25):
        broken = struct.pack("<Q", len(data)) + data + whole[8 + length :]
        check(folder.with_file("model.safetensors", broken), what)


def test_pickles_are_refused_with_the_reason() -> None:
    folder = Folder(DEMO).with_file("pytorch_model.bin", b"\x80\x04").with_file("model.safetensors", None)
    with pytest.raises(QuantError, match=r"pytorch_model\.bin.*pickle") as caught:
        plan_model(folder)
    assert "safetensors" in caught.value.hint


def test_tensors_without_a_place_are_all_named() -> None:
    folder = golden("gpt2")
    with np.load(family_golden("gpt2")) as file:
        shapes = json.loads(str(file["shapes"]))
    zeros = {name: ("F32", tuple(shape), bytes(4 * int(np.prod(shape)))) for name, shape in shapes.items()}
    more = {f"transformer.h.0.odd.{number}": ("F32", (2,), bytes(8)) for number in range(7)}
    folder = folder.with_file("model.safetensors", safetensors({**zeros, **more}))
    with pytest.raises(QuantError, match=r"odd\.0.*odd\.4.*and 2 more") as caught:
        plan_model(folder)
    assert caught.value.hint
