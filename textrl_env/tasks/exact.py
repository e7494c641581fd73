"""Tasks so small that everything about them can be computed: all texts, the optimum, and how far a policy is from it.

With a reference policy pi_ref and a coefficient beta > 0, the KL-regularised return of a policy is

    J(pi) = E_pi[R] - beta * KL(pi || pi_ref),

over whole texts.  It is largest for pi*(text) = pi_ref(text) * exp(R / beta) / Z, where it is J* = beta * log E_ref[exp(R / beta)],
and J* - J(pi) = beta * KL(pi || pi*) (Korbak et al. 2022, "RL with KL penalties is better viewed as Bayesian inference").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..episode import Episode
from ..prompts.prompt import Prompt
from ..task import BaseRecipe, TextTask
from ..tokenizer import IntegerTokenizer
from ..utils.never_copied import NeverCopied

EOS = 0
PROMPTS = ("1", "2")
BETA = 0.5  # of the KL-regularised return by which policies are compared

# Given the texts, shape (N, L) with EOS from the end on, and a generator: their rewards, shape (N,).
Rule = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def smooth(texts: np.ndarray, vocab_size: int, rng: np.random.Generator) -> np.ndarray:
    """Each token at each position has a worth, and so has each pair of neighbours; standard deviation about 0.5."""
    length = texts.shape[1]
    single, pair = rng.normal(size=(length, vocab_size)), rng.normal(size=(vocab_size, vocab_size))  # (L, V), (V, V)
    worth = single[np.arange(length), texts].sum(1) + pair[texts[:, :-1], texts[:, 1:]].sum(1)  # (N,)
    return 0.5 * worth / np.sqrt(2 * length - 1)


def rough(texts: np.ndarray, vocab_size: int, rng: np.random.Generator) -> np.ndarray:
    """Every text has a worth of its own, uniform in [0, 3]: nothing can be inferred from other texts."""
    codes = texts @ vocab_size ** np.arange(texts.shape[1])  # (N,)
    return rng.permutation(np.linspace(0, 3, vocab_size ** texts.shape[1]))[codes]


def prefix(texts: np.ndarray, vocab_size: int, rng: np.random.Generator) -> np.ndarray:
    """Number of leading tokens that agree with a secret text: each right token is paid."""
    secret = rng.integers(1, vocab_size, texts.shape[1])  # (L,)
    return (texts == secret).cumprod(1).sum(1).astype(float)


def sparse(texts: np.ndarray, vocab_size: int, rng: np.random.Generator) -> np.ndarray:
    """3 for about one text in twenty, 0 for the others."""
    return 3.0 * (rough(texts, vocab_size, rng) > 2.85)


def needle(texts: np.ndarray, vocab_size: int, rng: np.random.Generator) -> np.ndarray:
    """6 for a single text of full length, 0 for all others."""
    return 6.0 * (texts == rng.integers(1, vocab_size, texts.shape[1])).all(1)


@dataclass(frozen=True)
class ExactTask:
    """A rule on texts of at most `length` of `vocab_size` tokens; token 0 ends a text.

    Attributes:
        name: Short name; the environment's id is `textrl/Exact-{Name}-v0`.
        rule: Rewards of texts.
        vocab_size: V.
        length: L, the longest response.
        seed: Of the rule's numbers; each prompt has its own.
    """

    name: str
    rule: Rule
    vocab_size: int
    length: int
    seed: int = 0

    @property
    def id(self) -> str:
        """The environment's id."""
        return f"textrl/Exact-{self.name}-v0"

    def rewards(self, prompt: int, texts: np.ndarray) -> np.ndarray:
        """Return the rewards of texts, shape (N, L), padded with 0, after prompt number `prompt`."""
        return self.rule(texts, self.vocab_size, np.random.default_rng([self.seed, prompt]))

    def tree(self, prompt: int) -> TokenTree:
        """Return everything that can be written after a prompt."""
        return TokenTree(self.vocab_size, self.length, lambda texts: self.rewards(prompt, texts))


TASKS = {  # a row here is all that a further task needs
    task.name: task
    for task in (
        ExactTask("Smooth", smooth, 6, 4),
        ExactTask("Long", smooth, 4, 6),
        ExactTask("Wide", smooth, 16, 2),
        ExactTask("Rough", rough, 8, 3),
        ExactTask("Prefix", prefix, 6, 4),
        ExactTask("Sparse", sparse, 6, 4),
        ExactTask("Needle", needle, 8, 3),
    )
}


def exact_task(name: str, split: str = "train") -> TextTask:
    """Build one of the exact tasks; every split has the same two prompts."""
    task = TASKS[name]
    prompts = tuple(Prompt(text, metadata={"number": number}) for number, text in enumerate(PROMPTS))
    return TextTask(
        IntegerTokenizer(task.vocab_size, EOS),
        prompts,
        task.length,
        reward=ExactReward(task),
        gold=partial(_gold, task),
        optimum=float(np.mean([max(np.nanmax(level) for level in task.tree(number).rewards) for number in range(len(PROMPTS))])),
        recipe=BaseRecipe(partial(_random_texts, task), _base_model(task), steps=60),
    )


def _random_texts(task: ExactTask) -> list[tuple[str, str]]:
    """Return texts whose tokens are drawn evenly, the end of text among them: the base policy is near to uniform."""
    rng = np.random.default_rng(task.seed)
    drawn = rng.integers(0, task.vocab_size, (1000, task.length))  # (1000, L)
    ended = (drawn == EOS).cumsum(1) > 0  # (1000, L)
    texts = ["".join(f" {token}" for token in row[~stop]) for row, stop in zip(drawn, ended, strict=True)]
    return list(zip(rng.choice(PROMPTS, len(texts)).tolist(), texts, strict=True))


def _base_model(task: ExactTask) -> dict[str, Any]:
    return {
        "model_type": "llama", "vocab_size": task.vocab_size, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16, "bos_token_id": None, "eos_token_id": EOS,
        "initializer_range": 0.2,
    }  # fmt: skip


def _gold(task: ExactTask, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Return the reward of each text."""
    return np.array(ExactReward(task).of([PROMPTS.index(p) for p in prompts], [list(map(int, r.split())) for r in responses]))


class ExactReward(NeverCopied):
    """The task's own reward, by token ids."""

    def __init__(self, task: ExactTask) -> None:
        self.task = task

    def __repr__(self) -> str:
        return f"ExactReward({self.task.name})"

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the reward of each text."""
        numbers = [episode.metadata["number"] for episode in episodes]
        return self.of(numbers, [[token for token in episode.response_ids if token != EOS] for episode in episodes])

    def of(self, numbers: Sequence[int], responses: Sequence[Sequence[int]]) -> list[float]:
        """Return the reward of each response, ids without the end of text, to the prompt of its number."""
        texts = np.zeros((len(responses), self.task.length), np.int64)  # (N, L)
        for row, ids in enumerate(responses):
            texts[row, : len(ids)] = ids
        number_of, scores = np.array(numbers), np.zeros(len(responses))
        for number in np.unique(number_of):
            scores[number_of == number] = self.task.rewards(int(number), texts[number_of == number])
        return scores.tolist()


class Evaluation(NamedTuple):
    """What a policy achieves exactly.

    Attributes:
        objective: J(pi), the KL-regularised return.
        score: E_pi[R].
        kl: KL(pi || pi_ref) of whole texts, in nats.
    """

    objective: float
    score: float
    kl: float


class TokenTree:
    """All texts of at most L of V tokens, level by level.

    Level t holds the (V - 1)^t unfinished texts of t tokens in lexicographic order; writing token a > 0 after text i of level t
    leads to text i * (V - 1) + a - 1 of level t + 1.  A policy is a list of L arrays of log-probabilities, ((V - 1)^t, V).

    Attributes:
        prefixes: Of each level t, the texts, shape ((V - 1)^t, t).
        rewards: Of each level t, the rewards of the texts that end with each token, shape ((V - 1)^t, V); NaN where the text
            goes on.
    """

    def __init__(self, vocab_size: int, length: int, rewards: Callable[[np.ndarray], np.ndarray]) -> None:
        self.vocab_size, self.length = vocab_size, length
        self.prefixes = [np.zeros((1, 0), np.int64)]
        for _ in range(length - 1):
            last = self.prefixes[-1]
            tokens = np.tile(np.arange(1, vocab_size), len(last))
            self.prefixes.append(np.column_stack([np.repeat(last, vocab_size - 1, 0), tokens]))
        self.rewards = []
        for t, texts in enumerate(self.prefixes):
            ends = np.full((len(texts), vocab_size), np.nan)  # ((V - 1)^t, V)
            for token in range(vocab_size) if t == length - 1 else [EOS]:
                full = np.zeros((len(texts), length), np.int64)  # ((V - 1)^t, L)
                full[:, :t], full[:, t] = texts, token
                ends[:, token] = rewards(full)
            self.rewards.append(ends)

    def optimum(self, reference: Sequence[np.ndarray], beta: float) -> tuple[float, list[np.ndarray]]:
        """Return J* and the log-probabilities of pi*."""
        policy: list[np.ndarray] = []
        ahead = np.zeros(0)
        for t in reversed(range(self.length)):
            tilted = reference[t] + self._worth(t, ahead) / beta  # (n, V)
            top = tilted.max(1, keepdims=True)  # (n, 1)
            total = top[:, 0] + np.log(np.exp(tilted - top).sum(1))  # (n,)
            policy.insert(0, tilted - total[:, None])
            ahead = beta * total
        return float(ahead[0]), policy

    def evaluate(self, policy: Sequence[np.ndarray], reference: Sequence[np.ndarray], beta: float) -> Evaluation:
        """Return what a policy achieves."""
        score = kl = np.zeros(0)
        for t in reversed(range(self.length)):
            p = np.exp(policy[t])  # (n, V)
            # 0 * log 0 = 0: a token that the policy never writes may be impossible for the reference
            ratio = np.where(p > 0, policy[t] - np.where(p > 0, reference[t], 0.0), 0.0)  # (n, V)
            kl = (p * (ratio + self._spread(t, kl))).sum(1)
            score = (p * self._worth(t, score)).sum(1)
        return Evaluation(float(score[0] - beta * kl[0]), float(score[0]), float(kl[0]))

    def best_score(self, reference: Sequence[np.ndarray], kl: float) -> float:
        """Return the highest E[R] of a policy whose KL to the reference is at most `kl` nats.

        It is that of pi* for the beta at which pi* is as far away (Lagrange's multiplier is 1 / beta), which bisection finds.
        """
        low, high = 1e-4, 1e6  # of beta: KL falls as it grows
        for _ in range(60):
            beta = float(np.sqrt(low * high))
            found = self.evaluate(self.optimum(reference, beta)[1], reference, beta)
            low, high = (beta, high) if found.kl > kl else (low, beta)
        return found.score

    def _worth(self, t: int, ahead: np.ndarray) -> np.ndarray:
        """Return the reward where a text ends, and what lies ahead of it where it goes on, shape (n, V)."""
        return np.where(np.isnan(self.rewards[t]), self._spread(t, ahead), self.rewards[t])

    def _spread(self, t: int, ahead: np.ndarray) -> np.ndarray:
        """Lay the next level's numbers beside the tokens that lead there, 0 where a text ends."""
        out = np.zeros_like(self.rewards[t])
        if t < self.length - 1:
            out[:, 1:] = ahead.reshape(len(out), -1)  # (n, V - 1)
        return out
