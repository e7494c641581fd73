"""Modules of a user's own, as `agents.LanguageModel` asks for them."""

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "examples"))

from custom_transformer import Nano

__all__ = ["Nano", "Recurrent", "Sloppy"]


class Recurrent(nn.Module):
    """No attention and no cache: a GRU."""

    hidden_size = 16

    def __init__(self, vocab_size):
        super().__init__()
        self.vocab_size = vocab_size
        self.embedding, self.gru, self.head = nn.Embedding(vocab_size, 16), nn.GRU(16, 16, batch_first=True), nn.Linear(16, vocab_size)

    def forward(self, input_ids, positions, mask=None):
        return self.gru(self.embedding(input_ids))[0]

    def logits(self, hidden):
        return self.head(hidden)


class Sloppy(Nano):
    """Ignores the positions it is given."""

    def forward(self, input_ids, positions, mask=None, cache=None):
        return super().forward(input_ids, torch.arange(input_ids.shape[1]).expand_as(input_ids), mask, cache)


class Noisy(Recurrent):
    """Leaves dropout on where nobody can switch it off."""

    def forward(self, input_ids, positions, mask=None):
        return nn.functional.dropout(super().forward(input_ids, positions, mask), 0.5, self.training)
