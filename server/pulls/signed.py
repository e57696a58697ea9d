"""Signatures of a model that a puller brings: whether one of them can count, asked before a weight moves."""

from __future__ import annotations

from quant.stream.copying import FileCopy
from quant.stream.pipeline import Conversion
from registry.signatures.attaching import foreseen
from registry.sources.opening import Source
from server.policy.rules import PolicyRules


def check_signatures(rules: PolicyRules, source: Source, conversion: Conversion | FileCopy) -> None:
    """Raise PolicyRefused, before a weight moves, where no signature that counts will be on the model.

    It can only be on weights that are taken as they are, by the digest that the source declares.
    """
    shards, digest = conversion.plan.shards, ""
    if isinstance(conversion, FileCopy) and len(shards) == 1:
        digest = (source.digest(shards[0]) or "").removeprefix("sha256:")
    rules.check_signature(source.title, [foreseen(data, digest) for data in source.companions.signatures])
