"""The uniform policy: the baseline that any agent must beat."""

from __future__ import annotations

import torch
from torch import nn


class Uniform(nn.Module):
    """A language model to which all tokens are equally likely: `{"class": "agents.policies.uniform:Uniform", "vocab_size": V}`.

    Args:
        vocab_size: V.
    """

    hidden_size = 1
    ignores_images = True

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.level = nn.Parameter(torch.zeros(vocab_size))  # a policy without weights has no device

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return nothing of interest, shape (B, L, 1)."""
        return torch.zeros(*input_ids.shape, 1, device=input_ids.device)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the same logit for every token, shape (..., V)."""
        return self.level.expand(*hidden.shape[:-1], self.vocab_size)
