"""Small random models of every architecture, by llama.cpp's name for it, and what is particular about the model.

A row (`row.py`) says how transformers makes the model; `making.py` makes it, `reference.py` tells what transformers
computes with it.
"""

from __future__ import annotations

from tests.quant.zoo.decoders import DECODERS
from tests.quant.zoo.encoders import ENCODERS
from tests.quant.zoo.mixtures import MIXTURES
from tests.quant.zoo.recurrent import RECURRENT
from tests.quant.zoo.row import Row
from tests.quant.zoo.seeing import SEEING

ZOO: dict[str, Row] = DECODERS | MIXTURES | RECURRENT | SEEING | ENCODERS
