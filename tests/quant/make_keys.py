"""Writes `quant/convert/keys.json`: which keys of `config.json` each class of transformers reads, and their defaults.

`python -m tests.quant.make_keys` (extra `oracle`). For every class that we convert and transformers knows, this reads
the source of the modules that the class is made of: `config.KEY`, `getattr(config, "KEY", …)`, the fields of its
configuration class, and the keyword arguments that the configuration class takes by another name. A key that only a
field declares and no code reads is not listed: it cannot change a logit.

An entry has `defaults` (keys with the defaults of their fields), `others` (keys without a field, which are read where
they are given, with what the code takes instead), `aliases` (another name of a key), and `rope` (the rotary settings of
a configuration without any).
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

TABLE = Path(__file__).parents[2] / "quant" / "convert" / "keys.json"
# Modules of transformers that compute with a configuration for every class: their functions count where they are used.
# (A cache that forgets what is behind a window is no part of them: what a text means does not depend on a cache.)
SHARED = ("modeling_rope_utils", "masking_utils", "modeling_layers", "activations", "integrations.moe")
# Read by shared code for how a model is run, saved or trained; none of them changes a logit.
_RUNNING = {
    "_attn_implementation", "_experts_implementation", "output_attentions", "output_hidden_states", "use_cache",
    "return_dict", "use_return_dict", "torch_dtype", "dtype", "problem_type", "num_labels", "id2label", "label2id",
    "initializer_range", "gradient_checkpointing", "chunk_size_feed_forward", "get_text_config", "to_dict",
    "pruned_heads", "name_or_path", "_name_or_path", "architectures", "model_type", "is_encoder_decoder",
}  # fmt: skip


class _Source:
    """The definitions at the top of a module, and what each refers to."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        tree = ast.parse(inspect.getsource(module))
        self.nodes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}

    def names(self, name: str) -> set[str]:
        """Every name in a definition."""
        return {node.id for node in ast.walk(self.nodes[name]) if isinstance(node, ast.Name)}


def reached(module: ModuleType, first: str, seen: dict[tuple[str, str], ast.AST]) -> None:
    """Collect the definitions that `first` is made of, in its module and in those of transformers that it imports."""
    stack = [(module, first)]
    while stack:
        here, name = stack.pop()
        source = _source(here)
        if (here.__name__, name) in seen or name not in source.nodes:
            continue
        seen[here.__name__, name] = source.nodes[name]
        for other in source.names(name):
            if other in source.nodes:
                stack.append((here, other))
                continue
            value = getattr(here, other, None)
            home = getattr(value, "__module__", "") or ""
            if (inspect.isclass(value) or inspect.isfunction(value)) and _counts(home):
                stack.append((sys.modules[home], value.__name__))


@cache
def _source(module: ModuleType) -> _Source:
    return _Source(module)


def _counts(home: str) -> bool:
    if not home.startswith("transformers."):
        return False
    rest = home.removeprefix("transformers.")
    return (".modeling_" in home and rest.startswith("models.")) or rest in SHARED


def read_keys(node: ast.AST, owners: set[str]) -> Iterator[tuple[str, Any]]:
    """Attributes read of something that is called a configuration, each with what is taken where it has none."""
    for child in ast.walk(node):
        if isinstance(child, ast.Attribute) and _is_config(child.value, owners):
            yield child.attr, None
        elif (
            (
                isinstance(child, ast.Call)
                and isinstance(child.func, ast.Name)
                and child.func.id in ("getattr", "hasattr")
            )
            and len(child.args) > 1
            and _is_config(child.args[0], owners)
            and isinstance(child.args[1], ast.Constant)
        ):
            instead = child.args[2] if len(child.args) > 2 else None
            yield str(child.args[1].value), instead.value if isinstance(instead, ast.Constant) else None


def _is_config(node: ast.AST, owners: set[str]) -> bool:
    if isinstance(node, ast.Name):
        return node.id in owners
    return isinstance(node, ast.Attribute) and node.attr in owners


def config_keys(config_class: type) -> tuple[set[str], set[str]]:
    """What a configuration class itself reads: of its own fields, and of keyword arguments by other names."""
    own: set[str] = set()
    legacy: set[str] = set()
    for cls in config_class.__mro__:
        if cls.__name__ in ("object", "PreTrainedConfig", "PushToHubMixin") or not cls.__module__.startswith(
            "transformers."
        ):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
        for method in ast.walk(tree):
            if not isinstance(method, ast.FunctionDef) or method.name in ("to_dict", "validate_architecture"):
                continue
            for child in ast.walk(method):
                if (
                    isinstance(child, ast.Attribute)
                    and isinstance(child.value, ast.Name)
                    and child.value.id == "self"
                    and isinstance(child.ctx, ast.Load)
                ):
                    own.add(child.attr)
                if (
                    isinstance(child, ast.Call)
                    and isinstance(child.func, ast.Attribute)
                    and child.func.attr in ("get", "pop")
                ) and (
                    isinstance(child.func.value, ast.Name)
                    and child.func.value.id == "kwargs"
                    and isinstance(child.args[0], ast.Constant)
                ):
                    legacy.add(str(child.args[0].value))
    return own, legacy


def describe(name: str) -> dict[str, Any] | None:
    """The entry of one class, None where transformers does not know it."""
    import transformers

    cls = getattr(transformers, name, None)
    if cls is None or cls.config_class is None:
        return None
    seen: dict[tuple[str, str], ast.AST] = {}
    reached(sys.modules[cls.__module__], name, seen)
    owners = {"config", "text_config", "effective_config", "layer_config"}
    instead = dict(sorted((each for node in seen.values() for each in read_keys(node, owners)), key=_said))
    keys = set(instead)
    own, legacy = config_keys(cls.config_class)
    config_class = cls.config_class
    mapped = dict(getattr(config_class, "attribute_map", {}))
    fields = raw_defaults(config_class)
    read = {mapped.get(key, key) for key in keys}
    # A field that the configuration class turns into another one, which is read.
    read |= {key for key in own if key in fields}
    read |= {"tie_word_embeddings", "max_position_embeddings"} & fields.keys()
    read -= _RUNNING
    read = {key for key in read if not key.startswith("_") and not callable(getattr(config_class, key, None))}
    read -= {key for key in read if isinstance(getattr(config_class, key, None), property)}
    return {
        "aliases": {old: new for old, new in sorted(mapped.items()) if new in read},
        "config": config_class.__name__,
        "defaults": {key: fields[key] for key in sorted(read & fields.keys()) if key != "rope_parameters"},
        "others": {
            key: instead.get(key) for key in sorted(((read - fields.keys()) | legacy) - _RUNNING - fields.keys())
        },
        "partial": _rotates_parts(cls.__module__, seen),
        "rope": getattr(config_class(), "rope_parameters", None),
    }


def _said(each: tuple[str, Any]) -> bool:
    """Reads that say what is taken instead come last, and so count."""
    return each[1] is not None


def _rotates_parts(module: str, seen: dict[tuple[str, str], ast.AST]) -> bool:
    """Whether the class's own code reads what part of a head is rotated."""
    own = (child for (home, _), node in seen.items() if home == module for child in ast.walk(node))
    return any(isinstance(child, ast.Constant) and child.value == "partial_rotary_factor" for child in own)


def raw_defaults(config_class: type) -> dict[str, Any]:
    """The defaults of the fields as they are declared, before `__post_init__` fills in what follows from others."""
    found = {}
    for field in dataclasses.fields(config_class):
        made = field.default_factory
        value = made() if made is not dataclasses.MISSING else field.default
        if value is not dataclasses.MISSING and (
            value is None or isinstance(value, bool | int | float | str | list | dict | tuple)
        ):
            found[field.name] = json.loads(json.dumps(value))
    return found


def table() -> dict[str, Any]:
    """What `quant/convert/keys.json` ought to hold, by the installed version of transformers."""
    import transformers

    from quant.convert.families.table import FAMILIES

    found = {name: describe(name) for name in sorted(FAMILIES)}
    return {
        "transformers": transformers.__version__,
        "classes": {name: entry for name, entry in found.items() if entry is not None},
    }


def main() -> int:
    """Write the table, a default on each line."""
    TABLE.write_text(written(table()))
    return 0


def written(found: dict[str, Any]) -> str:
    """The table as text: lists on one line each, so that a change is a line."""
    lines = [f'{{"transformers": {json.dumps(found["transformers"])},', '"classes": {']
    last = list(found["classes"])[-1]
    for name, entry in found["classes"].items():
        lines.append(f'"{name}": {{')
        lines += [
            f' "{part}": {json.dumps(entry[part])},' for part in ("config", "aliases", "others", "partial", "rope")
        ]
        defaults = [f'  "{key}": {json.dumps(value)}' for key, value in entry["defaults"].items()]
        lines += [' "defaults": {', ",\n".join(defaults), " }", "}" if name == last else "},"]
    return "\n".join([*lines, "}}"]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
