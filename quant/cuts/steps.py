"""How wide the feed-forwards of a model are, and how narrow they may become: whole steps of a block."""

from __future__ import annotations

import re

from quant.errors import UnsupportedModel
from quant.plan import ModelPlan

# Tensors of a layer with a row, or a value, for each channel; and the one with a column for each.
ROWS = re.compile(r"blk\.\d+\.ffn_(gate|up)\.(weight|bias)")
DOWN = re.compile(r"blk\.\d+\.ffn_down\.weight")
# Channels of a step: blocks of K types have 256 weights, and blocks of the types for other widths have 32.
STEP, SMALL_STEP = 256, 32


def width_of(plan: ModelPlan) -> int:
    """The channels of every layer's feed-forward. Raises UnsupportedModel where layers differ, or channels are not
    known well enough.
    """
    width = plan.metadata.get(f"{plan.architecture}.feed_forward_length")
    widths = set(width) if isinstance(width, list) else {width}
    if any("_exps." in tensor.name for tensor in plan.tensors):
        raise UnsupportedModel("a mixture is not made narrower", "drop experts: `--experts`")
    if len(widths) != 1 or not isinstance(channels := widths.pop(), int):
        raise UnsupportedModel("layers of this model differ in width, so none is made narrower")
    for tensor in plan.tensors:
        if tensor.layer is None or channels not in (*tensor.shape, tensor.shape[0] // 2):
            continue
        known = ROWS.fullmatch(tensor.name) or (DOWN.fullmatch(tensor.name) and tensor.shape[-1] == channels)
        if not known and "ffn" in tensor.name and "norm" not in tensor.name.replace("sub_norm", ""):
            raise UnsupportedModel(f"`{tensor.name}` has a value for each channel, and is not known")
    if not any(DOWN.fullmatch(tensor.name) for tensor in plan.tensors):
        raise UnsupportedModel("the model has no feed-forward that is known")
    return channels


def kept_of(width: int, share: float) -> int:
    """How many of `width` channels stay at a share: whole steps. Raises UnsupportedModel where none or all would."""
    step = STEP if width % STEP == 0 else SMALL_STEP
    kept = round(share * width / step) * step
    if not 0 < kept < width:
        what = "no channel" if kept <= 0 else f"all {width:,} channels"
        raise UnsupportedModel(
            f"{what} would stay: the width goes in steps of {step}",
            f"the next share is {(width - step) / width:.3g}" if width > step else "it is as narrow as can be",
        )
    return kept
