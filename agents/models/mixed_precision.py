"""Mixed precision: which types the trunk may compute in."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]


def precision_of(name: str) -> torch.dtype | None:
    """Return the type that autocast computes in; None for float32.

    Raises:
        ValueError: There is no such precision, or no algorithm could train in it.
    """
    known = {"float32": None, "bfloat16": torch.bfloat16}
    if name == "float16":
        raise ValueError(
            "precision='float16': small gradients round to 0 in it unless a scaler multiplies every loss, and the train() of "
            "Stable-Baselines3 has none: use 'bfloat16', which has the range of float32 "
            "(of a saved policy: load(..., policy_kwargs={'precision': 'bfloat16'}))"
        )
    if name not in known:
        raise ValueError(f"precision={name!r}: must be one of {', '.join(known)}")
    return known[name]
