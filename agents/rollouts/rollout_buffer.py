"""A rollout buffer that stores each text once and yields whole sequences."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from torch import nn

from ..distributed.ranks import Ranks
from ..models.backbones import Backbone
from ..models.loading import LMSource
from ..models.sampler import Sampler
from ..models.sequences import SequenceBatch, TextRecord, pack
from ..policies.sampling_record import SamplingRecord
from .kl_controller import Beta, KLController
from .kl_shaping import KLReward, KLShaping
from .merge_ranks import RankRecording, merge
from .reference_model import as_reference
from .reward_scaling import ScoreScale, whiten
from .rollout_samples import MinibatchShard, MinibatchSize, RolloutStats, Segment, SequenceSamples


class SequenceRolloutBuffer(RolloutBuffer):
    """Stores each text once; `get(batch_size)` yields `batch_size` whole texts.

    Fits every on-policy algorithm of Stable-Baselines3 with `rollout_buffer_class=SequenceRolloutBuffer` and a
    `TransformerPolicy`; one forward pass then scores every token of a text.  With a `reference`, the reward of each token
    becomes `reward - beta * log(pi / pi_ref)` before returns are computed.  Log-probabilities of the reference are those
    of the acting distribution: same rules, renormalised on the tokens the policy kept.

    A text that began before the rollout or goes on after it contributes the tokens inside it; what came before is
    context and not trained.

    Args:
        buffer_size: Steps per row.
        observation_space: The environment's.
        action_space: The environment's.
        device: Where minibatches go.
        gae_lambda: See SB3.
        gamma: See SB3; 1 for texts, or a reward at the end fades toward the start.
        n_envs: Rows.
        reference: What `agents.models.loading.load_lm` takes, a module, or a `Backbone`; None: no KL shaping.
        beta: A number, keyword arguments of `AdaptiveKLController`, or a controller.
        whiten_advantages: Give the advantages of the whole rollout mean 0 and variance 1; switch SB3's
            `normalize_advantage` (per minibatch) off then.
        reference_batch_size: Texts in one pass of the reference.
        kl_reward: How KL shapes the rewards.  `"k1"`: each token's log(pi / pi_ref); `"full"`: the exact KL of each step's
            distribution, which is half of an objective only, see `TextPolicyGradient`, and needs `actor`; `"none"`: it is measured
            only, for losses that hold it down themselves.
        whiten_rewards: Give the shaped rewards of a rollout's tokens variance 1, and leave their mean (Ziegler et al. 2019).
        norm_reward: See `ScoreScale`.
        clip_reward: See `ScoreScale`.

    Attributes:
        kl_shaping: Holds the reference and the KL controller, and measures KL.
        kl: log(pi / pi_ref) of each action, shape (N,), from `compute_returns_and_advantage` on.
        reference_log_probs: Of each action, shape (N,); None without a reference.
        trained: Indices of the texts that `get` yields; an estimator may leave some out.
        scores: Of each text, as the environment paid them, shape (S,).

    Raises:
        ValueError: `kl_reward` or `clip_reward` is out of range.
    """

    __module__ = "agents"

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: torch.device | str = "auto",
        gae_lambda: float = 1.0,
        gamma: float = 1.0,
        n_envs: int = 1,
        reference: LMSource | nn.Module | Backbone | None = None,
        beta: Beta = 0.05,
        whiten_advantages: bool = False,
        reference_batch_size: int = 64,
        kl_reward: KLReward = "k1",
        whiten_rewards: bool = False,
        norm_reward: bool = False,
        clip_reward: float | None = None,
    ) -> None:
        self.vocab_size = int(action_space.n)  # type: ignore[attr-defined]
        self.kl_shaping = KLShaping(beta, kl_reward, reference_batch_size, self.vocab_size)
        self.whiten_advantages, self.whiten_rewards = whiten_advantages, whiten_rewards
        self.score_scale = ScoreScale(norm_reward, clip_reward)
        self.ranks = Ranks()
        self.stats: RolloutStats | None = None
        # Not super(): beside contrib's buffer, the next class in line would make room for what is not stored here.
        RolloutBuffer.__init__(self, buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)
        self.connect(reference=reference)

    @property
    def reference(self) -> Backbone | None:
        """The frozen model that KL is measured against."""
        return self.kl_shaping.reference

    def connect(
        self,
        *,
        reference: LMSource | nn.Module | Backbone | None = None,
        kl_controller: KLController | None = None,
        score_scale: ScoreScale | None = None,
        actor: Backbone | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Share what an algorithm keeps; what is None stays as it is.

        Args:
            reference: What KL is measured against from now on, see the class.
            kl_controller: Holds beta.
            score_scale: What rewards go through first; holds the running moments.
            actor: The policy's backbone; only `kl_reward="full"` asks for it.
            ranks: Of several, each adds its own texts, and all hold the whole rollout from `compute_returns_and_advantage` on.

        Raises:
            ValueError: The reference's vocabulary or context is smaller than the environment's.
        """
        if reference is not None:
            assert isinstance(self.observation_space, spaces.Dict)
            self.kl_shaping.reference = as_reference(reference, self.observation_space, self.vocab_size, self.device)
        self.kl_shaping.controller = kl_controller or self.kl_shaping.controller
        self.kl_shaping.actor = actor or self.kl_shaping.actor
        self.score_scale = score_scale or self.score_scale
        self.ranks = ranks or self.ranks

    def reset(self) -> None:
        """Forget the rollout."""
        self._steps: list[tuple[np.ndarray, ...]] = []  # (actions, rewards, starts, values, log_probs, live), each (E,)
        self._kept: list[np.ndarray] = []
        self._openings: list[tuple[int, int, np.ndarray, int]] = []  # (row, step, context, response length)
        self._written = np.zeros(self.n_envs, bool)  # rows with an open segment
        self._lengths = np.zeros(self.n_envs, np.int64)  # (E,) response tokens before the latest action
        self._replies: dict[int, list[tuple[int, np.ndarray]]] = {}  # by row: (step, ids that the environment wrote before it)
        self.sampler: Sampler | None = None
        self.autocast: torch.dtype | None = None
        self.pos = 0
        self.full = False

    def add(
        self,
        obs: Any,
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: torch.Tensor,
        log_prob: torch.Tensor,
    ) -> None:
        """Store one step of all rows; idle rows (an empty prompt) are skipped.

        Raises:
            TypeError: `log_prob` does not come from a `TransformerPolicy`.
            FloatingPointError: A log-probability or value is NaN or infinite.
        """
        acting = getattr(log_prob, "acting", None)
        if not isinstance(acting, SamplingRecord):
            raise TypeError("SequenceRolloutBuffer needs a TransformerPolicy: its log_probs carry the sampler that drew the tokens")
        self.sampler, self.autocast = acting.sampler, acting.autocast
        if acting.kept is not None:
            self._kept.append(acting.kept)
        prompt, response = obs["prompt"], obs["response"]
        live = prompt[:, 0] >= 0
        starts = np.asarray(episode_start, bool)
        opens = live & (starts | ~self._written)
        lengths = (response >= 0).sum(1)
        for row in np.flatnonzero(opens):
            context = np.concatenate([prompt[row][prompt[row] >= 0], response[row][: lengths[row]]])
            self._openings.append((int(row), self.pos, context, int(lengths[row])))
        for row in np.flatnonzero(live & ~opens & (lengths > self._lengths + 1)):  # more than the last action came: a dialogue
            reply = response[row, self._lengths[row] + 1 : lengths[row]].copy()
            self._replies.setdefault(int(row), []).append((self.pos, reply))
        self._written, self._lengths = live, lengths
        values, log_probs = value.cpu().numpy().ravel(), log_prob.cpu().numpy().ravel()
        if not (np.isfinite(values).all() and np.isfinite(log_probs).all()):
            raise FloatingPointError(f"NaN or infinity in values or log-probabilities at step {self.pos} of the rollout")
        self._steps.append((action.ravel().astype(np.int64), np.asarray(reward, np.float32), starts, values, log_probs, live))
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def compute_returns_and_advantage(self, last_values: torch.Tensor, dones: np.ndarray) -> None:
        """Shape the rewards with the reference, then compute GAE(lambda) as SB3 does.

        Afterwards `actions`, `values`, `returns`, `advantages`, `log_probs` and `rewards` (shaped) are flat over the
        tokens, text after text.

        Args:
            last_values: Values of the states after the last step, shape (E,) or (E, 1).
            dones: Whether each row's text ended at the last step, shape (E,).
        """
        columns = [np.stack(column) for column in zip(*self._steps, strict=True)]  # (S, E) each
        self._cut_segments(columns[-1])
        self._own = slice(0, len(self.segments))
        self.kept = self._flat(np.stack(self._kept)) if self._kept else None  # (N, ceil(V / 8))
        if self.ranks.size > 1:
            columns, dones = self._join(RankRecording(columns, np.asarray(dones, bool), self._openings, self._replies, self.kept))
            last_values = torch.zeros(len(dones))
        actions, self.rewards, starts, self.values, self.log_probs, _ = columns
        self.episode_starts = starts.astype(np.float32)
        self.buffer_size = len(actions)
        self.full = True
        self.actions = self._flat(actions)
        self.scores = np.array([self.rewards[s.steps, s.row].sum() for s in self.segments])
        self.rewards = self.score_scale(self.rewards, self.scores)
        self._shape_rewards()
        self.advantages = np.zeros_like(self.rewards)
        RolloutBuffer.compute_returns_and_advantage(self, last_values, dones)
        for name in ("rewards", "values", "log_probs", "advantages", "returns"):
            setattr(self, name, self._flat(getattr(self, name)))
        if self.whiten_advantages:
            self.advantages = whiten(self.advantages)
        self._note()

    def _join(self, own: RankRecording) -> tuple[list[np.ndarray], np.ndarray]:
        """Take in what the other ranks recorded, whole texts all of them; return columns and last dones as one process has them."""
        parts = self.ranks.gather(own.without_idle_rows())
        whole = merge(parts)
        before = sum(len(part.openings) for part in parts[: self.ranks.rank])
        self._own = slice(before, before + len(own.openings))
        self._openings, self._replies = whole.openings, whole.replies
        self._cut_segments(whole.columns[-1])
        self.kept = whole.kept
        return whole.columns, whole.ended

    def get(self, batch_size: int | None = None) -> Generator[SequenceSamples, None, None]:  # type: ignore[override]
        """Yield minibatches of `batch_size` whole texts in random order; None: one batch of all."""
        assert self.full, "compute_returns_and_advantage first"
        for indices in self._minibatches(batch_size):
            yield self.samples(indices)

    def parts(self, batch_size: int | None = None) -> Iterator[MinibatchShard]:
        """Yield this rank's part of each minibatch that `get` would yield; ranks whose NumPy generators are equal cut alike."""
        for indices in self._minibatches(batch_size):
            own = indices if self.ranks.size == 1 else self._part(indices)
            whole = MinibatchSize(len(indices), int((self._offsets[indices + 1] - self._offsets[indices]).sum()))
            yield MinibatchShard(self.samples(own) if len(own) else None, whole)

    def _minibatches(self, batch_size: int | None) -> Iterator[np.ndarray]:
        order = np.random.permutation(self.trained)
        size = batch_size or len(order)
        for start in range(0, len(order), size):
            yield order[start : start + size]

    def _part(self, indices: np.ndarray) -> np.ndarray:
        """Return every size-th of the texts by length, there and back as cards are dealt, so that the parts are of like length."""
        rank, size = self.ranks.rank, self.ranks.size
        by_length = indices[np.argsort(self._offsets[indices] - self._offsets[indices + 1], kind="stable")]
        turn = np.arange(len(indices)) % (2 * size)
        return by_length[(turn == rank) | (turn == 2 * size - 1 - rank)]

    def samples(self, indices: np.ndarray) -> SequenceSamples:
        """Return the texts with these indices as one minibatch."""
        tokens = self._tokens(indices)
        columns = (self.actions, self.values, self.log_probs, self.advantages, self.returns)
        reference = self.reference_log_probs
        ours = {} if reference is None else {"reference_log_prob": torch.as_tensor(reference[tokens], device=self.device)}
        return SequenceSamples(self._batch(indices), *(torch.as_tensor(c[tokens], device=self.device) for c in columns), **ours)  # type: ignore[arg-type]

    def _tokens(self, indices: np.ndarray) -> np.ndarray:
        """Return where the tokens of these texts lie in the flat arrays."""
        return np.concatenate([np.arange(self._offsets[i], self._offsets[i + 1]) for i in indices])

    def _cut_segments(self, live: np.ndarray) -> None:
        """Say for every text at which steps its tokens were written, in the order in which texts began."""
        steps = np.where(live, len(live), np.arange(len(live))[:, None])
        idle = np.minimum.accumulate(steps[::-1])[::-1]  # (S, E): the first step from here on at which the row is idle
        next_start = dict.fromkeys(range(live.shape[1]), len(live))
        ends = {}
        for index in range(len(self._openings) - 1, -1, -1):
            row, step, *_ = self._openings[index]
            ends[index] = min(next_start[row], int(idle[step, row]))
            next_start[row] = step
        self.segments = []
        for index, (row, step, context, written) in enumerate(self._openings):
            replies = tuple((at - step, ids) for at, ids in self._replies.get(row, ()) if step < at < ends[index])
            self.segments.append(Segment(context, written, row, slice(step, ends[index]), replies))
        self.trained = np.arange(len(self.segments))
        self._offsets = np.cumsum([0] + [s.steps.stop - s.steps.start for s in self.segments])

    def _flat(self, array: np.ndarray) -> np.ndarray:
        """Go from (S, E, ...) to (N, ...), text after text."""
        return np.concatenate([array[s.steps, s.row] for s in self.segments])

    def _batch(self, indices: np.ndarray) -> SequenceBatch:
        chosen = [self.segments[i] for i in indices]
        spans = [slice(self._offsets[i], self._offsets[i + 1]) for i in indices]
        kept = None if self.kept is None else np.concatenate([self.kept[span] for span in spans])
        texts = [TextRecord(s.context, self.actions[span], s.first_step, s.replies) for s, span in zip(chosen, spans, strict=True)]
        return pack(texts, self.device, kept, self.sampler)

    def _shape_rewards(self) -> None:
        """Subtract beta * KL from each token's reward, then whiten if asked; rewards are (S, E)."""
        shaping = self.kl_shaping
        self.beta = shaping.controller.beta
        log_probs = self._flat(self.log_probs)
        penalties = shaping.penalties(self.actions, log_probs, self._by_length, self._gathered, self.sampler, self.autocast)
        self.kl, self.reference_log_probs = shaping.kl, shaping.log_probs
        if penalties is not None:
            for index, segment in enumerate(self.segments):
                self.rewards[segment.steps, segment.row] -= penalties[self._offsets[index] : self._offsets[index + 1]]
        if self.whiten_rewards:
            self.rewards = whiten(self.rewards, over=self._flat(self.rewards), keep_mean=True)

    def set_advantages(self, advantages: np.ndarray, whitened: bool = False) -> None:
        """Replace the advantages of a finished rollout, shape (N,), by another estimator's; `whitened` gives them mean 0 and variance 1."""
        self.advantages = whiten(advantages) if whitened else advantages

    def _gathered(self, per_token: np.ndarray) -> np.ndarray:
        """Return numbers of all tokens from each rank's own, shape (N,)."""
        if self.ranks.size == 1:
            return per_token
        own = slice(self._offsets[self._own.start], self._offsets[self._own.stop])
        return np.concatenate(self.ranks.gather(per_token[own]))

    def _by_length(self) -> Iterator[tuple[np.ndarray, SequenceBatch]]:
        """Yield this rank's texts in batches of like length, for little padding, and where their tokens lie in the flat arrays."""
        lengths = [len(s.context) + s.steps.stop - s.steps.start for s in self.segments[self._own]]
        order = self._own.start + np.argsort(lengths, kind="stable")
        for start in range(0, len(order), self.kl_shaping.batch_size):
            indices = order[start : start + self.kl_shaping.batch_size]
            yield self._tokens(indices), self._batch(indices)

    def _note(self) -> None:
        texts, tokens = len(self.segments), int(self._offsets[-1])
        self.stats = RolloutStats(
            kl_per_sequence=float(self.kl.sum()) / texts,
            kl_per_token=float(self.kl.mean()),
            kl_per_token_k3=float((np.exp(-self.kl) - 1 + self.kl).mean()),
            beta=self.beta,
            score=float(self.scores.mean()),
            shaped_return=float(self.rewards.sum()) / texts,
            num_tokens=tokens,
            num_sequences=texts,
            reference_seconds=self.kl_shaping.seconds,
        )
        self.kl_shaping.controller.update(self.stats.kl_per_sequence, texts)
