"""The quality of levels as llama.cpp's authors measured it on one model: for orientation, nothing is measured here.

Source: the table "Llama 3 8B Scoreboard" in llama.cpp's `tools/perplexity/README.md`: the rows without importance data,
but for IQ4_XS, IQ3_M, IQ2_M, IQ2_XS and IQ1_M, which the table has only with such data. Larger models lose less,
smaller models more.
"""

from __future__ import annotations

from typing import NamedTuple

SOURCE = "published for Llama 3 8B by llama.cpp, not measured on this model"


class Quality(NamedTuple):
    """Rise of the perplexity on Wikitext above 16 bit, and mean Kullback-Leibler divergence from 16 bit in nats."""

    perplexity_increase: float
    divergence: float


PUBLISHED = {
    "Q8_0": Quality(0.0027, 0.0014),
    "Q6_K": Quality(0.022, 0.0055),
    "Q5_K_M": Quality(0.057, 0.0108),
    "Q5_K_S": Quality(0.105, 0.0166),
    "Q5_0": Quality(0.132, 0.0222),
    "Q4_K_M": Quality(0.175, 0.0313),
    "Q4_K_S": Quality(0.269, 0.0431),
    "Q4_0": Quality(0.469, 0.0719),
    "IQ4_XS": Quality(0.228, 0.0363),
    "Q3_K_L": Quality(0.556, 0.0872),
    "Q3_K_M": Quality(0.657, 0.102),
    "IQ3_M": Quality(0.667, 0.103),
    "Q3_K_S": Quality(1.63, 0.228),
    "Q2_K": Quality(3.52, 0.445),
    "IQ2_M": Quality(2.37, 0.326),
    "IQ2_XS": Quality(4.53, 0.546),
    "IQ1_M": Quality(19.3, 1.39),
}
