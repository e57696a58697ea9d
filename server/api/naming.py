"""Names of models that are made here."""

from __future__ import annotations

from registry.errors import BadName
from registry.names import LATEST, LIBRARY, LOCAL, Name
from registry.names import parse as parse_name


def new_name(text: str) -> Name:
    """The name under which a model that is made here lies; without a tag it is `latest`. Raises BadName."""
    reference = parse_name(text)
    if reference.kind == "bare":
        return Name(LOCAL, LIBRARY, reference.name.model, reference.name.tag or LATEST)
    if reference.kind not in ("hub", "ollama", "oci"):
        raise BadName(f"`{text[:80]}` cannot be the name of a model that is made here", "names look like `mario:v1`")
    return reference.name.tagged(reference.name.tag or LATEST)
