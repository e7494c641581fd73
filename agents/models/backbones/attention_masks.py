"""Attention masks for rows at different positions."""

from __future__ import annotations

from typing import Any

import torch


def looks_at(positions: torch.Tensor, width: int, window: int | None = None) -> torch.Tensor:
    """Return which of the first `width` columns each token sees: those up to its own position, shape (r, 1, k, width), bool.

    Args:
        positions: Shape (r, k).
        width: Columns in use.
        window: Of sliding-window attention: only the latest `window` positions, a token's own among them.
    """
    columns = torch.arange(width, device=positions.device)  # (width,)
    here = positions[:, None, :, None]  # (r, 1, k, 1)
    seen = columns <= here  # (r, 1, k, width)
    return seen if window is None else seen & (columns > here - window)


def attention_mask(config: Any, positions: torch.Tensor, width: int, dtype: torch.dtype) -> Any:
    """Return the mask in the form that a transformers model takes: one tensor, or one for each kind of layer.

    Args:
        config: The model's.
        positions: Shape (r, k).
        width: Columns in use.
        dtype: Of the hidden states.
    """
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())

    def form(window: int | None) -> torch.Tensor:
        seen = looks_at(positions, width, window)
        if getattr(config, "_attn_implementation", "sdpa") == "sdpa":
            return seen
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)

    if "sliding_attention" in kinds:
        return {"full_attention": form(None), "sliding_attention": form(window)}
    return form(window if not kinds and getattr(config, "use_sliding_window", True) else None)
