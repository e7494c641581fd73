"""Supervised training of language models: the base policies, and demonstrations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from textrl_env import Tokenizer

from .backbones import backbone_of
from .lm import LMSource, load_lm, save_lm
from .progress import bar
from .sequences import Written, pack


class SFT:
    """Next-token training on (prompt, response) texts, each closed with the end-of-text token.

    Args:
        model: What `agents.lm.load_lm` takes.
        tokenizer: The environment's; prompt and response are encoded apart, as the environment does.
        learning_rate: Peak of a one-cycle schedule.
        batch_size: Texts per step.
        weight_decay: Of AdamW.
        train_on_prompts: Whether the prompt's tokens count in the loss, as pretraining wants and fine-tuning often not; those
            that an encoder reads never do.
        seed: Of fresh weights and of the order of the texts.
        device: Where to train.

    Raises:
        ValueError: The model has fewer tokens than the tokenizer.
    """

    def __init__(
        self,
        model: LMSource,
        tokenizer: Tokenizer,
        learning_rate: float = 3e-3,
        batch_size: int = 32,
        weight_decay: float = 0.01,
        train_on_prompts: bool = True,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.lm = load_lm(model).to(device)
        self.backbone = backbone_of(self.lm)
        if self.backbone.vocab_size < tokenizer.vocab_size:
            raise ValueError(f"the model has {self.backbone.vocab_size} tokens, the tokenizer {tokenizer.vocab_size}")
        self.tokenizer = tokenizer
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.train_on_prompts = train_on_prompts
        self.seed = seed
        self.losses: list[float] = []

    def learn(self, texts: Sequence[tuple[str, str]], steps: int, progress_bar: bool = False, title: str = "SFT") -> SFT:
        """Take `steps` optimizer steps over the (prompt, response) pairs.

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
        with bar(title, steps, progress_bar) as shown:
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
    def evaluate(self, texts: Sequence[tuple[str, str]]) -> float:
        """Return the mean loss per token, in nats, weighted by batches."""
        rows = self._encode(texts)
        batches = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        return float(np.mean([self._loss(batch).item() for batch in batches]))

    def save(self, folder: str | Path) -> None:
        """Write the model as `save_pretrained` does."""
        save_lm(self.lm, folder)

    def _encode(self, texts: Sequence[tuple[str, str]]) -> list[tuple[list[int], int]]:
        prompts, responses = (self.tokenizer.encode_batch(column) for column in zip(*texts, strict=True))
        eos = self.tokenizer.eos_token_id
        return [(p + r + [eos], len(p)) for p, r in zip(prompts, responses, strict=True)]

    def _batches(self, rows: list[tuple[list[int], int]], steps: int) -> Iterator[list[tuple[list[int], int]]]:
        rng = np.random.default_rng(self.seed)
        order = np.zeros(0, np.int64)
        for _ in range(steps):
            while len(order) < self.batch_size:
                order = np.concatenate([order, rng.permutation(len(rows))])
            chosen, order = order[: self.batch_size], order[self.batch_size :]
            yield [rows[i] for i in chosen]

    def _loss(self, rows: Sequence[tuple[list[int], int]]) -> torch.Tensor:
        texts = []
        for ids, prompt_length in rows:
            # The first token of all has nothing that could predict it; an encoder's prompt is not predicted at all.
            read = 1 if self.train_on_prompts and not self.backbone.reads_prompt_apart else max(prompt_length, 1)
            texts.append(Written(np.asarray(ids[:read]), np.asarray(ids[read:]), 0))
        batch = pack(texts, self.backbone.device)
        targets = torch.as_tensor(np.concatenate([text.actions for text in texts]), device=self.backbone.device)
        return functional.cross_entropy(self.backbone.logits(self.backbone.hidden(batch)), targets)
