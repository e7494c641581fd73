"""A rollout buffer that stores each text once and yields whole sequences."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from torch import nn

from ..distributed.ranks import Ranks
from ..models.backbones import Backbone, backbone_of
from ..models.loading import LMSource, frozen, load_lm
from ..models.log_probs import action_log_probs, full_kl
from ..models.sampler import Sampler
from ..models.sequences import SequenceBatch, TextRecord, pack
from ..policies.sampling_record import SamplingRecord
from .kl_controller import Beta, as_kl_controller
from .merge_ranks import RankRecording, merge
from .reward_scaling import ScoreScale
from .rollout_samples import MinibatchShard, MinibatchSize, RolloutStats, Segment, SequenceSamples

KLReward = Literal["k1", "full", "none"]


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
        actor: The policy's backbone; only `kl_reward="full"` asks for it.
        ranks: Of several, each adds its own texts, and all hold the whole rollout from `compute_returns_and_advantage` on.
        score_scale: What the rewards go through first; holds the running moments.
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
        if kl_reward not in ("k1", "full", "none"):
            raise ValueError(f"kl_reward={kl_reward!r}: must be 'k1', 'full' or 'none'")
        self.kl_controller = as_kl_controller(beta)
        self.whiten_advantages = whiten_advantages
        self.reference_batch_size = reference_batch_size
        self.kl_reward = kl_reward
        self.whiten_rewards = whiten_rewards
        self.score_scale = ScoreScale(norm_reward, clip_reward)
        self.actor: Backbone | None = None
        self.ranks = Ranks()
        self.stats: RolloutStats | None = None
        # Not super(): beside contrib's buffer, the next class in line would make room for what is not stored here.
        RolloutBuffer.__init__(self, buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)
        self.vocab_size = int(action_space.n)  # type: ignore[attr-defined]
        self.reference = self.as_reference(reference)

    def as_reference(self, reference: LMSource | nn.Module | Backbone | None) -> Backbone | None:
        """Return the model that KL is measured against, see the class.

        Raises:
            ValueError: Its vocabulary or context is smaller than the environment's.
        """
        if reference is None:
            return None
        if isinstance(reference, Backbone):
            backbone = reference
        else:
            backbone = backbone_of(reference if isinstance(reference, nn.Module) else frozen(load_lm(reference)).to(self.device))
        if backbone.vocab_size < self.vocab_size:
            raise ValueError(
                f"the reference has {backbone.vocab_size} tokens, the environment {self.vocab_size}: they must share a tokenizer"
            )
        backbone.check_room(*(self.observation_space[key].shape[0] for key in ("prompt", "response")))  # type: ignore[index]
        return backbone

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
            self.advantages = (self.advantages - self.advantages.mean()) / np.sqrt(self.advantages.var() + 1e-8)
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
        self.trained = np.arange(len(self.segments))  # texts that `get` yields; an estimator may leave some out
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
        began = perf_counter()
        self.beta = self.kl_controller.beta
        self.kl = np.zeros(self._offsets[-1], np.float32)  # (N,) log(pi / pi_ref) of each action
        self.reference_log_probs: np.ndarray | None = None
        if self.reference is not None:
            self.reference_log_probs = self._reference_log_probs()
            self.kl = self._flat(self.log_probs) - self.reference_log_probs
        if self.reference is not None and self.kl_reward != "none":
            self._penalise(self.kl if self.kl_reward == "k1" else self._full_kl())
        if self.whiten_rewards:
            flat = self._flat(self.rewards)
            self.rewards = (self.rewards - flat.mean()) / np.sqrt(flat.var() + 1e-8) + flat.mean()
        self._reference_seconds = perf_counter() - began

    def _penalise(self, kl: np.ndarray) -> None:
        for index, segment in enumerate(self.segments):
            self.rewards[segment.steps, segment.row] -= self.beta * kl[self._offsets[index] : self._offsets[index + 1]]

    @torch.inference_mode()
    def _reference_log_probs(self) -> np.ndarray:
        """Return the reference's log-probability of every action, shape (N,), float32."""
        assert self.sampler is not None and self.reference is not None
        self.reference.autocast = self.autocast  # or the difference to the policy would be one of rounding
        out = np.empty(self._offsets[-1], np.float32)
        for tokens, batch in self._by_length():
            actions = torch.as_tensor(self.actions[tokens], device=self.device)
            hidden = self.reference.hidden(batch)
            log_probs, _ = action_log_probs(self.reference, hidden, batch, actions, self.sampler, self.vocab_size)
            out[tokens] = log_probs.cpu().numpy()
        return self._gathered(out)

    @torch.inference_mode()
    def _full_kl(self) -> np.ndarray:
        """Return KL(pi || pi_ref) of every step's distribution in nats, shape (N,), float32."""
        if self.actor is None:
            raise ValueError("kl_reward='full' compares whole distributions, and only TextPolicyGradient hands its policy to the buffer")
        assert self.sampler is not None and self.reference is not None
        out = np.empty(self._offsets[-1], np.float32)
        for tokens, batch in self._by_length():
            out[tokens] = full_kl(self.actor, self.reference, batch, self.sampler, self.vocab_size).cpu().numpy()
        return self._gathered(out)

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
        for start in range(0, len(order), self.reference_batch_size):
            indices = order[start : start + self.reference_batch_size]
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
            reference_seconds=self._reference_seconds,
        )
        self.kl_controller.update(self.stats.kl_per_sequence, texts)
