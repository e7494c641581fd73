"""Policies on exact tasks: a table as a model, and how far a policy is from the optimum.

`optimality_gap(policy, "Smooth", beta)` asks the policy for its distribution after every unfinished text, and compares what it
achieves with the best that is possible, both by enumeration (see `textrl_env.tasks.exact`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from textrl_env.tasks.exact import PROMPTS, TASKS, Evaluation

from ..models.backbones import Backbone
from ..models.log_probs import action_logits
from ..models.sampler import Sampler
from ..models.sequences import PartialTexts, one_action_each


class Table(nn.Module):
    """A language model that is a table: one row of logits for each text, so that every policy can be written down.

    Args:
        vocab_size: V.
        length: Longest text it reads, prompt included.
        scale: Standard deviation of the first logits.
        eos_token_id: The end-of-text token.
    """

    def __init__(self, vocab_size: int, length: int, scale: float = 1.0, eos_token_id: int = 0) -> None:
        super().__init__()
        self.vocab_size = self.hidden_size = vocab_size
        self.context_length, self.eos_token_id = length, eos_token_id
        self.rows = nn.Embedding((vocab_size + 1) ** length, vocab_size)
        nn.init.normal_(self.rows.weight, std=scale)

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return the logits after each text, shape (B, L, V): they are the hidden states."""
        digits = (input_ids + 1) * (self.vocab_size + 1) ** positions  # (B, L): the tokens as digits of a number
        return self.rows(digits.cumsum(1) % self.rows.num_embeddings)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the hidden states."""
        return hidden


class Gap(NamedTuple):
    """How good a policy is on one exact task, as a mean over its prompts.

    Attributes:
        achieved: What the policy achieves.
        optimum: J*, the best KL-regularised return.
        reference: That of the reference, which is its mean reward.
        kl_to_optimum: KL(pi || pi*) in nats; `optimum - achieved.objective` is beta times this.
        best_score: The highest score of policies that are as far from the reference, prompt by prompt, as the policy.
    """

    achieved: Evaluation
    optimum: float
    reference: float
    kl_to_optimum: float
    best_score: float

    @property
    def closed(self) -> float:
        """Share of the gap between reference and optimum that is closed: 1 at the optimum, 0 at the reference."""
        return (self.achieved.objective - self.reference) / (self.optimum - self.reference)

    @property
    def of_best_score(self) -> float:
        """Share of the rise in score that is possible at the policy's own KL: 1 for pi* of any beta, whatever the policy maximises."""
        return (self.achieved.score - self.reference) / (self.best_score - self.reference)


def optimality_gap(policy: Backbone, reference: Backbone, name: str, beta: float, sampler: Sampler | None = None) -> Gap:
    """Compare a policy with the optimum of the KL-regularised return, by enumeration of all texts.

    Args:
        policy: Who writes.
        reference: What KL is measured against.
        name: Of the exact task, a key of `textrl_env.tasks.exact.TASKS`.
        beta: Coefficient of KL, > 0.
        sampler: Static rules of both.
    """
    return gap_between(policies_of(policy, name, sampler), policies_of(reference, name, sampler), name, beta)


Levels = Sequence[np.ndarray]  # log-probabilities of the next token after every unfinished text, level by level, (n, V) each


def policies_of(model: Backbone, name: str, sampler: Sampler | None = None) -> list[Levels]:
    """Return the distributions of a model after each prompt of an exact task."""
    task = TASKS[name]
    prefixes = task.tree(0).prefixes
    return [distributions(model, int(prompt), prefixes, task.vocab_size, sampler) for prompt in PROMPTS]


def gap_between(policies: Sequence[Levels], references: Sequence[Levels], name: str, beta: float) -> Gap:
    """Compare a policy with the optimum, both given by their distributions after each prompt; see `optimality_gap`."""
    rows = []
    for number, (own, theirs) in enumerate(zip(policies, references, strict=True)):
        tree = TASKS[name].tree(number)
        optimum, best = tree.optimum(theirs, beta)
        achieved = tree.evaluate(own, theirs, beta)
        start = tree.evaluate(theirs, theirs, beta).objective
        rows.append((*achieved, optimum, start, tree.evaluate(own, best, 1.0).kl, tree.best_score(theirs, achieved.kl)))
    objective, score, kl, *rest = np.mean(rows, 0).tolist()
    return Gap(Evaluation(objective, score, kl), *rest)


@torch.no_grad()
def distributions(
    model: Backbone, prompt: int, prefixes: list[np.ndarray], vocab_size: int, sampler: Sampler | None = None
) -> list[np.ndarray]:
    """Return the log-probabilities of the next token after every unfinished text, level by level, (n, V) float64 each."""
    levels = []
    for responses in prefixes:
        ids = np.column_stack([np.full(len(responses), prompt), responses])  # (n, t + 1)
        lengths = np.full(len(ids), ids.shape[1])
        batch = one_action_each(PartialTexts(ids, lengths, np.ones_like(lengths)), model.device, sampler)
        logits = action_logits(model, model.hidden(batch), batch, sampler or Sampler(), vocab_size)  # (n, V)
        levels.append(logits.cpu().double().log_softmax(-1).numpy())
    return levels
