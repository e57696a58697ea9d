"""The model's own instructions begin a conversation that has none."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from registry.names import parse
from registry.store.catalog import Model
from runtime.conversation import Turn
from server.api.request import with_instructions

MODEL = Model("x", parse("demo").name, "", 0, datetime.now(UTC), {}, {}, Path(), "", system="Be brief.")


@pytest.mark.parametrize(
    ("roles", "wanted"),
    [
        (["user"], ["system", "user"]),
        (["system", "user"], ["system", "user"]),
        (["developer", "user"], ["developer", "user"]),
        (["user", "assistant", "user"], ["system", "user", "assistant", "user"]),
    ],
)
def test_a_conversation_begins_with_the_models_instructions_unless_it_has_its_own(
    roles: list[str], wanted: list[str]
) -> None:
    turns = [Turn.of(role, "text") for role in roles]
    assert [turn.role for turn in with_instructions(MODEL, turns)] == wanted
    assert with_instructions(replace(MODEL, system=""), turns) == turns
