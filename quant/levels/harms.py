"""Harms that were measured: the divergence of a model's output that each type of each tensor is expected to cause.

They are kept in a JSON file beside the statistics that they were measured with. `runtime/meter/sensitivity.py` measures
them, `quant/levels/budget.py` makes mixes by them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from quant.errors import BadImportance
from quant.types import QuantType

_FORMAT = 1


@dataclass(frozen=True)
class MeasuredHarms:
    """The expected mean KL divergence in nats, by the tensor's name and the type, for a way of quantizing.

    Tensors that nothing was measured of are absent. `missing` says why there are none at all. `slowness` is how long a
    byte of each type is read, in the fastest type's time; where it is given, types are chosen for speed as well.
    """

    expected: Mapping[str, Mapping[QuantType, float]] = field(default_factory=dict)
    missing: str = ""
    slowness: Mapping[QuantType, float] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> MeasuredHarms:
        """Read a file. Raises BadImportance for any other file, OSError."""
        try:
            data = json.loads(path.read_bytes())
            if data["format"] != _FORMAT:
                raise ValueError("its format is another one")
            expected = {
                str(name): {QuantType[type]: _finite(harm) for type, harm in harms.items()}
                for name, harms in data["expected"].items()
            }
            slowness = {QuantType[type]: _finite(seconds) for type, seconds in data["slowness"].items()}
            return cls(expected, str(data["missing"]), slowness)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadImportance(f"`{path}` holds no measured harms: {error}", "`lm quantize` measures them") from None

    @property
    def data(self) -> bytes:
        """The contents of a file."""
        expected = {name: {type.name: harm for type, harm in harms.items()} for name, harms in self.expected.items()}
        slowness = {type.name: seconds for type, seconds in self.slowness.items()}
        found = {"format": _FORMAT, "expected": expected, "missing": self.missing, "slowness": slowness}
        return json.dumps(found).encode()


def _finite(value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError("a harm is no number")
    return float(value)
