"""Checked access to a model's JSON files: a missing or wrong value is an error of one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quant.errors import MalformedFile
from quant.plan import Files
from quant.pointers import check_substance
from quant.safetensors import load_json

MAX_JSON = 128 << 20
MAX_TEXT = 1 << 20


class ModelConfig:
    """A JSON object and the name of the file that it is from.

    `looked_at` has every key that was asked for, here or in an object made of this one by `changed` or `filled`. Code
    that only passes values on takes them from `values`, which leaves no trace.
    """

    def __init__(self, name: str, values: Mapping[str, Any], looked_at: set[str] | None = None) -> None:
        self.name = name
        self.values = values
        self.looked_at: set[str] = set() if looked_at is None else looked_at

    @classmethod
    def read(cls, files: Files, name: str) -> ModelConfig:
        """The object in file `name`, empty when there is no such file."""
        if name not in files.names():
            return cls(name, {})
        return cls(name, load_json(read_whole(files, name, MAX_JSON), name))

    def changed(self, values: Mapping[str, Any]) -> ModelConfig:
        """The same object, with `values` added; they replace its own."""
        return ModelConfig(self.name, {**self.values, **values}, self.looked_at)

    def filled(self, values: Mapping[str, Any]) -> ModelConfig:
        """The same object, with `values` added where it has none of its own."""
        return ModelConfig(self.name, {**values, **self.values}, self.looked_at)

    def get(self, key: str, default: Any = None) -> Any:
        """The raw value, `default` when absent."""
        self.looked_at.add(key)
        return self.values.get(key, default)

    def without_effect(self, *keys: str) -> None:
        """Count keys as looked at: with the other settings that this model has, they change nothing."""
        self.looked_at.update(keys)

    def count(self, key: str, default: int | None = None) -> int:
        """A positive whole number below 2^31."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or not 0 < value < 1 << 31:
            raise self.wrong(key, "a positive number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self.get(key)
        if value is None and default is not None:
            return float(default)  # a whole number would be an entry of another type
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e38:
            raise self.wrong(key, "a number")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false; anything else counts as absent, as `transformers` has it."""
        value = self.get(key)
        return value if isinstance(value, bool) else default

    def part(self, key: str) -> ModelConfig:
        """The object under `key`, empty when absent."""
        value = self.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return ModelConfig(f"{self.name}: {key}", value)

    def wrong(self, key: str, wanted: str) -> MalformedFile:
        """The error for a value that is missing or cannot be used; `wanted` is a noun, such as `a positive number`."""
        if key not in self.values:
            hint = f"add it to `{self.name}`, as the makers of the model have it"
            return MalformedFile(f"`{self.name}` has no `{key}`, which must be {wanted}", hint)
        hint = f"correct it in `{self.name}`, or take the model from its makers"
        return MalformedFile(f"`{key}` in `{self.name}` is {ascii(self.values[key])[:60]} and must be {wanted}", hint)


def read_whole(files: Files, name: str, limit: int) -> bytes:
    """All of a small file; MalformedFile when it is larger than `limit` bytes."""
    size = files.size(name)
    if size > limit:
        hint = "no model needs so large a file of this kind; is it another one by this name?"
        raise MalformedFile(f"`{name}` has {size} bytes, and at most {limit} are allowed", hint)
    data = files.read(name, 0, size) if size else b""
    check_substance(data, name)
    return data


def read_text(files: Files, name: str) -> str:
    """A small UTF-8 file, empty when it is not there."""
    if name not in files.names():
        return ""
    try:
        return read_whole(files, name, MAX_TEXT).decode()
    except UnicodeDecodeError:
        raise MalformedFile(f"`{name}` is not UTF-8", "save it as UTF-8, or fetch it again") from None
