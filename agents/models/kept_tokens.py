"""The sets of tokens that a sampler kept, packed to one bit a token."""

from __future__ import annotations

import numpy as np
import torch


def pack_kept(kept: torch.Tensor) -> np.ndarray:
    """Pack a boolean (N, V) tensor to bits, shape (N, ceil(V / 8)), uint8."""
    return np.packbits(kept.cpu().numpy(), axis=-1)


def unpack_kept(kept: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Undo `pack_kept`, on the device of `kept`."""
    shifts = torch.arange(7, -1, -1, device=kept.device, dtype=torch.uint8)
    bits = (kept[:, :, None] >> shifts) & 1  # (N, ceil(V / 8), 8)
    return bits.flatten(1)[:, :vocab_size].bool()
