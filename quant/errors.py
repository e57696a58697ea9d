"""Errors on the way from a model's source to its GGUF file.

QuantError
├── MalformedFile      a GGUF, safetensors or tokenizer file that breaks its format
├── UnsupportedModel   an architecture, tokenizer or data type that we cannot convert
├── UnknownLevel       a level or type name that does not exist
├── WrongShape         rows or columns that a type cannot hold
├── BadValues          NaN or infinity among the weights
└── BadImportance      a file of importance that is broken, or of another model
"""

from __future__ import annotations


class QuantError(Exception):
    """Base of the tree. `code` is stable and public. `hint` tells the user what to do, and may be empty.

    Messages quote names from strangers' files. So control characters, which a terminal would obey, are escaped.
    """

    code = "conversion_failed"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message if message.isprintable() else message.encode("unicode_escape").decode())
        self.hint = hint


class MalformedFile(QuantError):
    """A file that does not follow its own format; the message names the file and the rule."""

    code = "malformed_file"

    def __init__(self, message: str, hint: str = "the file may be incomplete or damaged; fetch it again") -> None:
        super().__init__(message, hint)


class UnsupportedModel(QuantError):
    """A well-formed model that we do not know how to convert."""

    code = "unsupported_model"

    def __init__(self, message: str, hint: str = "a repository with GGUF files of the model may work") -> None:
        super().__init__(message, hint)


class UnknownLevel(QuantError):
    """A level or type name that is not in the table."""

    code = "unknown_level"


class WrongShape(QuantError):
    """Columns that are no multiple of the block, or blocks of the wrong size."""

    code = "wrong_shape"


class BadValues(QuantError):
    """Weights that are not finite."""

    code = "bad_values"


class BadImportance(QuantError):
    """A file of importance that is broken, not finite, or of another model."""

    code = "bad_importance"
