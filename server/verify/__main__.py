"""`python -P -m server.verify FOLDER [NAME]`: compares a model with its original, and prints the report as JSON.

A process of its own, because transformers takes seconds to import, and the weights a lot of memory. It needs the extra
`oracle`, and no daemon.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quant.errors import UnsupportedModel
from registry.errors import ModelNotFound
from registry.store.catalog import Model
from registry.store.finding import Finder
from server.config import Config
from server.errors import PUBLIC_ERRORS, Unsupported

PACKAGES = ("torch", "transformers")


def main(arguments: list[str]) -> int:
    """Print the report; the exit status is 0 where the model is right, 1 where it is not, or an error is printed."""
    folder, name = Path(arguments[0]).resolve(), arguments[1] if len(arguments) > 1 else ""
    try:
        report = verify(folder, name)
    except PUBLIC_ERRORS as error:
        print(json.dumps({"error": str(error), "hint": error.hint, "code": error.code}))
        return 1
    print(json.dumps(report))
    return 0 if report["right"] else 1


def verify(folder: Path, name: str) -> dict[str, Any]:
    """The report on the model `name`; without a name, on the newest model that was made of `folder`.

    Raises Unsupported where packages are missing, or transformers does not know the model; ModelNotFound, BadName,
    LoadFailed.
    """
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        hint = "install it beside lm: `pip install 'lm[oracle]'`, or `pip install -e '.[oracle]'` in a checkout"
        raise Unsupported(f"the extra `oracle` is missing: no {' and no '.join(missing)}", hint)
    if not (folder / "config.json").is_file():
        raise ModelNotFound(f"there is no `config.json` in `{folder}`", "give the folder of the original")
    model = _model(Finder(Config.load().store), folder, name)
    if "completion" not in (model.config.get("capabilities") or ["completion"]):
        raise Unsupported(f"`{model.name}` does not write text, and only such models are compared", "")
    from server.verify.comparing import compare
    from server.verify.running import run

    try:
        theirs, ours, stages = run(model.blob, folder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedModel(
            f"transformers does not run `{folder}`: {words[0]}", "give the original's folder"
        ) from None
    level = str(model.config.get("file_type", ""))
    return {"model": model.name, "level": level, "folder": str(folder)} | compare(theirs, ours, level, stages)


def _model(catalog: Finder, folder: Path, name: str) -> Model:
    if name:
        return catalog.resolve(name)
    made = [model for model in catalog.models() if model.own.get("source") == str(folder) and not model.problem]
    if not made:
        raise ModelNotFound(
            f"no model here was made of `{folder}`", f"bring it in: `lm pull {folder}`; or give its name"
        )
    return max(made, key=lambda model: model.modified)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # PyTorch's threads and llama.cpp's are not waited for
