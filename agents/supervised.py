"""Training by gradient on a fixed set of texts: what supervised and preference-based methods share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from textrl_env import Tokenizer

from .backbones import backbone_of
from .lm import LMSource, load_lm, save_lm
from .progress import bar

if TYPE_CHECKING:
    from typing_extensions import Self


class Supervised(ABC):
    """Minibatches in random order, AdamW, a one-cycle schedule.

    Args:
        model: What `agents.lm.load_lm` takes, or a module, which is trained itself.
        tokenizer: The environment's; prompt and response are encoded apart, as the environment does.
        learning_rate: Peak of the schedule.
        batch_size: Rows per step.
        weight_decay: Of AdamW.
        seed: Of fresh weights and of the order of the rows.
        device: Where to train.

    Raises:
        ValueError: The model has fewer tokens than the tokenizer.
    """

    def __init__(
        self,
        model: LMSource | nn.Module,
        tokenizer: Tokenizer,
        learning_rate: float,
        batch_size: int,
        weight_decay: float,
        seed: int,
        device: torch.device | str,
    ) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.lm = model if isinstance(model, nn.Module) else load_lm(model).to(device)
        self.backbone = backbone_of(self.lm)
        if self.backbone.vocab_size < tokenizer.vocab_size:
            raise ValueError(f"the model has {self.backbone.vocab_size} tokens, the tokenizer {tokenizer.vocab_size}")
        self.tokenizer = tokenizer
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.seed = seed
        self.losses: list[float] = []

    def learn(self, texts: Sequence[Any], steps: int, progress_bar: bool = False, title: str | None = None) -> Self:
        """Take `steps` optimizer steps.

        Raises:
            ValueError: There are no texts.
            FloatingPointError: The loss is NaN or infinite.
        """
        if not texts:
            raise ValueError("no texts to learn from")
        rows = self._encode(texts)
        optimizer = torch.optim.AdamW(self.lm.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=steps, pct_start=0.1)
        self.lm.train()
        with bar(title or type(self).__name__, steps, progress_bar) as shown:
            for batch in self._batches(rows, steps):
                loss = self._loss(batch)
                if not torch.isfinite(loss):
                    raise FloatingPointError(f"loss is {loss.item()} at step {len(self.losses)}: lower learning_rate={self.learning_rate}")
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.lm.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                self.losses.append(loss.item())
                shown.advance(note=f"loss {self.losses[-1]:.2f}")
        self.lm.eval()
        return self

    @torch.inference_mode()
    def evaluate(self, texts: Sequence[Any]) -> float:
        """Return the mean loss over batches."""
        rows = self._encode(texts)
        batches = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        return float(np.mean([self._loss(batch).item() for batch in batches]))

    def save(self, folder: str | Path) -> None:
        """Write the model as `save_pretrained` does."""
        save_lm(self.lm, folder)

    def loss_of(self, texts: Sequence[Any]) -> torch.Tensor:
        """Return the loss of these texts as one minibatch, with gradients."""
        return self._loss(self._encode(texts))

    @abstractmethod
    def _encode(self, texts: Sequence[Any]) -> list[Any]:
        """Turn what the user passes into rows of token ids."""

    @abstractmethod
    def _loss(self, rows: Sequence[Any]) -> torch.Tensor:
        """Return the loss of a minibatch."""

    def _batches(self, rows: list[Any], steps: int) -> Iterator[list[Any]]:
        rng = np.random.default_rng(self.seed)
        order = np.zeros(0, np.int64)
        for _ in range(steps):
            while len(order) < self.batch_size:
                order = np.concatenate([order, rng.permutation(len(rows))])
            chosen, order = order[: self.batch_size], order[self.batch_size :]
            yield [rows[i] for i in chosen]
