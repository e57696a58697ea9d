"""The signatures of a model as routes tell of them, and its files by name as a tar, for other programs to check."""

from __future__ import annotations

import json
from typing import Any

from registry.signatures.attaching import FoundSignature, signatures_of
from registry.signatures.files import signed_files
from registry.store.catalog import Catalog
from registry.store.model import Model
from server.policy.rules import PolicyRefused, PolicyRules


def row(found: FoundSignature) -> dict[str, Any]:
    """A signature: by what it is, the key's fingerprint, and `fault`, the reason for which it cannot count."""
    signed = found.signed
    about = {"by": signed.by, "key": signed.key, "signer": signed.signer} if signed else {}
    return about | {"fault": str(found.fault or "")}


def described(catalog: Catalog, model: Model, rules: PolicyRules, whole: bool) -> dict[str, Any]:
    """The signatures of a model, and what the rules say of them; with `whole` its files too. Raises as `contents`."""
    found = signatures_of(catalog, model)
    policy = ""
    try:
        rules.check_signature(model.name, found)
    except PolicyRefused as refused:
        policy = str(refused)
    rows = [row(each) | ({"bundle": json.loads(each.data)} if whole and each.signed else {}) for each in found]
    files = {"files": signed_files(catalog.contents(model).layers)} if whole else {}
    return {"signatures": rows, "policy": policy} | files
