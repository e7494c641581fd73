"""What a generator of another temperature makes of the optimum, and what importance weights make of that, where both can be computed.

    python -m agents.benchmark.studies.sampler_mismatch

The generator draws every token at temperature T from the policy's own logits, and the policy's temperature is 1.  *Exact*: the expected
update is summed over all texts, and followed until it is 0.  *Trained*: RLOO with such a generator.  The score is the share closed of the
gap between the reference and where the exact update without a mismatch ends: 0 is the reference, 1 that optimum.

Two places for KL: `k1`, its estimate in the reward, and `full`, that of whole distributions in reward and loss.  A policy that can be
anything is immune with k1: at the optimum score - beta * log(pi / pi_ref) is the same for every text, so every advantage is 0 however
often a text is drawn.  With the full KL advantages are 0 only on average, and it matters what draws.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
import tyro

from agents import RLOO, LocalDecoder, Response
from textrl_env.tasks.exact import BETA, PROMPTS, TASKS, TokenTree

from ...distributed.ranks import Ranks
from ...evaluation.exact_optimum import distributions
from ...generation.generator import Request
from ...models.backbones import Backbone
from ...reports.tables import markdown_table
from ...rollouts.sampler_mismatch import ImportanceSampling
from ...utils.fresh_processes import fresh_pool
from ..aggregate_statistics import interval, mean
from .study import side_by_side

Setting = Literal["k1", "full"]
UNCAPPED = 1e9
TINY = np.finfo(float).tiny  # of what is never drawn any more, the update is 0 too
CORRECTIONS = {
    "none": ImportanceSampling(),
    "token_truncate": ImportanceSampling("token_truncate"),
    "token_mask, IcePop": ImportanceSampling("token_mask", 0.5, 5.0),
    "sequence_truncate": ImportanceSampling("sequence_truncate"),
    "sequence_mask": ImportanceSampling("sequence_mask"),
    "sequence_truncate, no cap": ImportanceSampling("sequence_truncate", clip_max=UNCAPPED),
}


class Tempered(LocalDecoder):
    """Draws at a temperature of its own, and says so.

    Args:
        temperature: Of every token, > 0.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def generate(self, request: Request) -> list[Response]:
        """Return one response for each prompt, see `Generator`."""
        sampler = dataclasses.replace(request.sampler, temperature=self.temperature)
        return super().generate(dataclasses.replace(request, sampler=sampler))


class Texts(NamedTuple):
    """All M finished texts of a tree with n unfinished ones, as their N tokens, text after text.

    Attributes:
        nodes: Number of the unfinished text before each token, shape (N,).
        tokens: Shape (N,).
        offsets: Where each text's tokens begin, and N, shape (M + 1,).
        scores: Of each text, shape (M,).
    """

    nodes: np.ndarray
    tokens: np.ndarray
    offsets: np.ndarray
    scores: np.ndarray


def texts_of(tree: TokenTree) -> Texts:
    """List all finished texts of a tree."""
    starts = np.cumsum([0] + [len(level) for level in tree.prefixes])
    nodes, tokens, scores = [], [], []
    for t, (prefixes, rewards) in enumerate(zip(tree.prefixes, tree.rewards, strict=True)):
        index, last = np.nonzero(~np.isnan(rewards))
        before = [starts[s] + index // (tree.vocab_size - 1) ** (t - s) for s in range(t + 1)]
        nodes += list(np.stack(before, 1))
        tokens += list(np.column_stack([prefixes[index], last]))
        scores.append(rewards[index, last])
    return Texts(np.concatenate(nodes), np.concatenate(tokens), np.cumsum([0] + [len(n) for n in nodes]), np.concatenate(scores))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities, same shape."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


class Arm(NamedTuple):
    """What is compared.

    Attributes:
        setting: See the module.
        temperature: Of the generator; 1 is no mismatch.
        correction: Of its mismatch, a key of `CORRECTIONS`.
    """

    setting: Setting
    temperature: float
    correction: str


def expected_update(logits: np.ndarray, reference: np.ndarray, texts: Texts, arm: Arm, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Return RLOO's expected update of the logits after each unfinished text, shape (n, V), and how often each counts, shape (n,).

    The latter is how often it is visited, or what the weights make of that if it is more.

    Args:
        logits: Of the policy, shape (n, V).
        reference: Log-probabilities, shape (n, V).
        texts: All texts.
        arm: See `Arm`.
        beta: Coefficient of KL.
    """
    nodes, tokens, offsets, scores = texts
    policy, drawn = log_softmax(logits), log_softmax(logits / arm.temperature)  # (n, V) each
    log_ratios = (policy - drawn)[nodes, tokens]  # (N,)
    lengths = np.diff(offsets)
    share = np.exp(np.add.reduceat(drawn[nodes, tokens], offsets[:-1]))  # (M,): how often the generator writes each text
    _, weights = CORRECTIONS[arm.correction].compare(log_ratios, offsets, Ranks())
    counts = np.repeat(share, lengths) * (1.0 if weights is None else weights)  # (N,)
    local = (np.exp(policy) * (policy - reference)).sum(1)  # (n,): KL of each distribution
    paid = local[nodes] if arm.setting == "full" else (policy - reference)[nodes, tokens]  # (N,)
    returns = scores - beta * np.add.reduceat(paid, offsets[:-1])  # (M,)
    pushed = counts * np.repeat(returns - share @ returns, lengths)  # (N,): the mean of others of the group is independent of a text
    update = np.zeros_like(logits)
    np.add.at(update, (nodes, tokens), pushed)
    update -= np.exp(policy) * np.bincount(nodes, pushed)[:, None]
    if arm.setting == "full":
        update -= beta * np.bincount(nodes, counts)[:, None] * np.exp(policy) * (policy - reference - local[:, None])
    return update, np.maximum(np.bincount(nodes, np.repeat(share, lengths)), np.bincount(nodes, counts))


def fixed_point(references: Sequence[np.ndarray], texts: Sequence[Texts], arm: Arm, beta: float) -> list[np.ndarray] | None:
    """Follow the expected update from the reference until the policy rests, and return its log-probabilities for each prompt, (n, V) each.

    Logits may go on: those of tokens that the update drives out for good fall without end.  None: the policy does not come to rest. A
    mask may push a token over its limit from both sides, so that the update jumps to and fro there.
    """
    logits = [reference.copy() for reference in references]
    for _ in range(20_000):
        told = [expected_update(own, reference, of, arm, beta) for own, reference, of in zip(logits, references, texts, strict=True)]
        # As large where the texts seldom come, and for tokens that are seldom written: where it is 0 stays the same
        often = [np.exp(np.maximum(log_softmax(own), log_softmax(own / arm.temperature))) for own in logits]
        weights = [np.maximum(visits[:, None] * tokens, TINY) for (_, visits), tokens in zip(told, often, strict=True)]
        steps = [update / weight for (update, _), weight in zip(told, weights, strict=True)]
        logits = [own + 0.5 * step for own, step in zip(logits, steps, strict=True)]
        moved = max(np.abs(np.exp(log_softmax(own)) * step).max() for own, step in zip(logits, steps, strict=True))
        if moved < 1e-7:  # weights are float32
            return [log_softmax(own) for own in logits]
    return None


def objective(policies: Sequence[np.ndarray], references: Sequence[np.ndarray], trees: Sequence[TokenTree], beta: float) -> float:
    """Return the KL-regularised return, as a mean over prompts."""

    def levels(tree: TokenTree, flat: np.ndarray) -> list[np.ndarray]:
        return np.split(flat, np.cumsum([len(level) for level in tree.prefixes])[:-1])

    rows = zip(policies, references, trees, strict=True)
    return float(np.mean([tree.evaluate(levels(tree, own), levels(tree, ref), beta).objective for own, ref, tree in rows]))


def measure(arm: Arm, seed: int, tokens: int, task: str, beta: float) -> tuple[Arm, float, float]:
    """Solve and train one arm with one seed; return it, and the shares of the gap that are closed, exact (NaN: no rest) and trained."""
    torch.set_num_threads(1)
    exact = TASKS[task]
    model = {"class": "agents.evaluation.exact_optimum:Table", "vocab_size": exact.vocab_size, "length": exact.length + 1}
    weights = dataclasses.asdict(CORRECTIONS[arm.correction])
    agent = RLOO(
        "TransformerPolicy",
        exact.id,
        learning_rate=lambda left: 0.05 * left,
        seed=seed,
        n_episodes=64,
        batch_size=64,
        beta=beta,
        kl_estimator=arm.setting,
        policy_kwargs={"model": model},
        rollout_buffer_kwargs={f"importance_sampling_{name}": value for name, value in weights.items()},
    )
    agent.generator = Tempered(arm.temperature)
    agent.learn(tokens)
    trees = [exact.tree(number) for number in range(len(PROMPTS))]

    def flat(model: Backbone) -> list[np.ndarray]:
        rows = zip(PROMPTS, trees, strict=True)
        return [np.concatenate(distributions(model, int(prompt), tree.prefixes, exact.vocab_size)) for prompt, tree in rows]

    assert agent.rollout_buffer.reference is not None
    reference, texts = flat(agent.rollout_buffer.reference), [texts_of(tree) for tree in trees]
    ends = [fixed_point(reference, texts, of, beta) for of in (Arm(arm.setting, 1.0, "none"), arm)]
    policies = (reference, *ends, flat(agent.policy.backbone))
    first, best, *found = (np.nan if own is None else objective(own, reference, trees, beta) for own in policies)
    solved, trained = ((value - first) / (best - first) for value in found)
    return arm, solved, trained


@dataclass(frozen=True)
class Mismatch:
    """What to run.

    Attributes:
        settings: See the module.
        temperatures: Of the generator; 1 is no mismatch.
        corrections: Keys of `CORRECTIONS`.
        seeds: Runs of each arm.
        tokens: Tokens that a run writes.
        task: An exact task.
        beta: Coefficient of KL.
        processes: Runs side by side, one thread each.
    """

    settings: tuple[Setting, ...] = ("k1", "full")
    temperatures: tuple[float, ...] = (0.7, 1.5)
    corrections: tuple[str, ...] = tuple(CORRECTIONS)
    seeds: int = 5
    tokens: int = 40_000
    task: str = "Smooth"
    beta: float = BETA
    processes: int = 2


def main(config: Mismatch) -> None:
    """Run all arms, and print the table."""
    arms = [Arm(setting, 1.0, "none") for setting in config.settings]
    arms += [Arm(*arm) for arm in itertools.product(config.settings, config.temperatures, config.corrections)]
    calls = [partial(measure, arm, seed, config.tokens, config.task, config.beta) for arm in arms for seed in range(config.seeds)]
    with fresh_pool(config.processes) as pool:
        results = list(side_by_side(pool, "train", calls))
    rows = []
    for arm in arms:
        solved, trained = np.transpose([shares for own, *shares in results if own == arm])
        exact = "no rest" if np.isnan(solved).any() else f"{solved.mean():.3f}"
        rows.append([*arm, exact, "{:.3f} [{:.3f}, {:.3f}]".format(*interval(mean, trained[None]))])
    print(markdown_table(("KL", "temperature of the generator", "importance sampling", "exact", "trained"), rows))


if __name__ == "__main__":
    main(tyro.cli(Mismatch))
