"""Random JSON schemas, drafts 7 and 2020-12, with keywords that can be kept and some that cannot."""

from __future__ import annotations

import random
import string
from typing import Any

DRAFTS = ("http://json-schema.org/draft-07/schema#", "https://json-schema.org/draft/2020-12/schema")
PATTERNS = (
    "^[a-z]{2,5}$",
    "^[0-9]{3}-[0-9]{4}$",
    "x+",
    "^(yes|no)$",
    "^[A-Z][a-z ]{0,8}$",
    "[^a]b?$",
    r"^\d+\.\d{1,2}$",
)
FORMATS = ("date", "time", "date-time", "uuid", "email", "ipv4", "duration", "int32", "password", "hostname")
VALUES: tuple[Any, ...] = (None, True, 0, -7, 2.5, "", "a", 'quote " and \\', "ünï", [], [1, "b"], {}, {"k": None})


class Schemas:
    """Makes one schema after the other from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def schema(self) -> dict[str, Any]:
        """A whole schema, with `$schema` and sometimes definitions that it refers to, itself among them."""
        choice, draft = self._random, self._random.choice(DRAFTS)
        definitions = {f"d{n}": self._node(1) for n in range(choice.randint(0, 2))}
        self._references = [f"#/definitions/{name}" for name in definitions]
        whole: dict[str, Any] = {"$schema": draft, **self._node(3, draft)}
        if definitions:
            whole["definitions"] = definitions
        if choice.random() < 0.1 and "properties" in whole:
            whole["properties"]["again"] = {"$ref": "#"}
        return whole

    _references: list[str] = []

    def _node(self, depth: int, draft: str = "") -> dict[str, Any]:
        kinds = ["string", "integer", "number", "boolean", "null", "enum", "const"]
        if depth > 0:
            kinds += ["object"] * 5 + ["array"] * 3 + ["anyOf", "oneOf", "allOf", "types"]
            kinds += ["ref"] * 2 if self._references else []
        kind = self._random.choice(kinds)
        made: dict[str, Any] = getattr(self, f"_{kind}")(depth, draft)
        if self._random.random() < 0.2:
            made |= {"title": self._word(), "description": "words that say nothing of its form", "x-mine": 1}
        return made

    def _word(self) -> str:
        letters = string.ascii_lowercase + "_ äß\"'\\{"
        return "".join(self._random.choice(letters) for _ in range(self._random.randint(1, 12)))

    def _some(self, **keywords: Any) -> dict[str, Any]:
        return {key: value for key, value in keywords.items() if self._random.random() < 0.4}

    def _string(self, *_: Any) -> dict[str, Any]:
        short, more = self._random.randint(0, 4), self._random.randint(0, 12)
        form = self._random.choice(
            [
                self._some(minLength=short, maxLength=short + more),
                {"maxLength": more},
                {"pattern": self._random.choice(PATTERNS)},
                {"format": self._random.choice(FORMATS)},
            ]
        )
        return {"type": "string", **form}

    def _integer(self, *_: Any) -> dict[str, Any]:
        low = self._random.randint(-1000, 1000)
        return {"type": "integer", **self._some(minimum=low, exclusiveMaximum=low + self._random.randint(2, 5000))}

    def _number(self, *_: Any) -> dict[str, Any]:
        low = self._random.choice([0, -1.5, 0.25, 100])
        step = self._random.choice([1, 5, 0.5, 0.25])
        return {"type": "number", **self._some(exclusiveMinimum=low, maximum=low + 50), **self._some(multipleOf=step)}

    def _boolean(self, *_: Any) -> dict[str, Any]:
        return {"type": "boolean"}

    def _null(self, *_: Any) -> dict[str, Any]:
        return {"type": "null"}

    def _enum(self, *_: Any) -> dict[str, Any]:
        return {"enum": self._random.sample(VALUES, self._random.randint(1, 5))}

    def _const(self, *_: Any) -> dict[str, Any]:
        return {"const": self._random.choice(VALUES)}

    def _types(self, *_: Any) -> dict[str, Any]:
        kinds = self._random.sample(["string", "integer", "boolean", "null", "number"], 2)
        return {"type": kinds, **self._some(maxLength=6, maximum=99)}

    def _ref(self, *_: Any) -> dict[str, Any]:
        return {"$ref": self._random.choice(self._references)}

    def _object(self, depth: int, draft: str) -> dict[str, Any]:
        names = [self._word() for _ in range(self._random.randint(0, 6))]
        properties = {name: self._node(depth - 1, draft) for name in names}
        required = [name for name in properties if self._random.random() < 0.7]
        made: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
        chance = self._random.random()
        if chance < 0.6:
            made["additionalProperties"] = False
        elif chance < 0.75:
            made["additionalProperties"] = self._node(0, draft)
        elif chance < 0.85:
            made |= {"patternProperties": {"^x-[a-z]{1,3}$": self._node(0, draft)}, "additionalProperties": False}
        rare = self._some(minProperties=self._random.randint(1, 3), maxProperties=7)
        if self._random.random() < 0.2:
            made |= rare
        if self._random.random() < 0.05:
            made |= self._random.choice(
                [{"dependencies": {"a": ["b"]}}, {"propertyNames": {"maxLength": 3}}, {"not": {"required": ["a"]}}]
            )
        return made

    def _array(self, depth: int, draft: str) -> dict[str, Any]:
        few, more = self._random.randint(0, 2), self._random.randint(0, 3)
        made: dict[str, Any] = {"type": "array", "items": self._node(depth - 1, draft), "maxItems": few + more}
        made |= self._some(minItems=few)
        if self._random.random() < 0.2:
            tuple_key = "items" if draft == DRAFTS[0] else "prefixItems"
            made[tuple_key] = [self._node(0, draft), self._node(0, draft)]
        if self._random.random() < 0.1:
            made |= self._random.choice([{"uniqueItems": True}, {"uniqueItems": False}, {"contains": {"type": "null"}}])
        return made

    def _anyOf(self, depth: int, draft: str) -> dict[str, Any]:
        return {"anyOf": [self._node(depth - 1, draft) for _ in range(self._random.randint(1, 3))]}

    def _oneOf(self, depth: int, draft: str) -> dict[str, Any]:
        return {"oneOf": [self._node(depth - 1, draft) for _ in range(self._random.randint(1, 3))]}

    def _allOf(self, depth: int, draft: str) -> dict[str, Any]:
        return {"allOf": [self._object(depth - 1, draft), {"properties": {self._word(): self._node(0, draft)}}]}
