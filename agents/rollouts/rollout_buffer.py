"""A rollout buffer that stores each text once and yields whole sequences."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from rewards.utils.devices import get_device

from ..distributed.engine import Engine
from ..distributed.ranks import Ranks
from ..models.backbones import Backbone
from ..models.sampler import Sampler
from ..models.sequences import SequenceBatch, TextRecord, images_of, pack_with
from ..policies.sampling_record import sampling_of
from .generalised_advantages import Lambdas, generalised_advantages
from .kl_controller import Beta, KLController, as_kl_controller
from .kl_shaping import KLReward, KLShaping, RecordedTokens
from .recorded_steps import RecordedSteps
from .reference_model import Reference, as_reference
from .reward_scaling import ScoreScale, whiten
from .rollout_samples import NOTHING, MinibatchPart, MinibatchSize, RolloutStats, SegmentStart, SequenceSamples, cut_segments
from .sampler_mismatch import ImportanceSampling, ImportanceSamplingMode


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
        device: Where minibatches go, see `rewards.utils.devices.get_device`.
        gae_lambda: See SB3, and `Lambdas`.
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
        whiten_rewards: Give the shaped returns of a rollout's texts variance 1, and leave their mean, see `whiten_returns`.
        norm_reward: See `ScoreScale`.
        clip_reward: See `ScoreScale`.
        gae_lambda_critic: See `Lambdas`.
        gae_alpha: See `Lambdas`.
        importance_sampling_mode: Weights against what a generator draws otherwise than the policy, see `ImportanceSampling`:
            `"token_truncate"`, `"token_mask"`, `"sequence_truncate"`, `"sequence_mask"`; None: none.
        importance_sampling_clip_min: See `ImportanceSampling`.
        importance_sampling_clip_max: See `ImportanceSampling`.

    Attributes:
        kl_shaping: Holds the reference, the KL controller and the scale of the scores, and shapes the rewards.
        segments: The S texts of the rollout, in the order in which they began.
        infos: The environment's last info of each text, if it was told.
        scores: Of each text, as the environment paid them, shape (S,).
        kl: log(pi / pi_ref) of each action in nats, shape (N,); 0 without a reference.
        reference_log_probs: log pi_ref of each action, shape (N,); None without a reference.
        trained: Indices of the texts that `get` and `parts` yield, shape (K,), or (K, k) of k that stay together; all, until they are set.
        picked: Tokens that the algorithm's loss treats in another way, shape (N,), bool; None: there are none.
        share: Tokens of the minibatch that `get` yielded last, times the number of ranks divided by the tokens of all their parts: what a
            mean over these tokens counts beside those of other ranks.  1 in one process.
        importance_weights: What `get` and `parts` multiply the advantages with, shape (N,); None: nothing.
        stats: Means over the rollout.

    Raises:
        ValueError: `kl_reward`, `clip_reward`, a lambda or an argument of the weights is out of range.
    """

    __module__ = "agents"
    stats: RolloutStats
    share: float = 1.0
    picked: np.ndarray | None = None

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: torch.device | str = "auto",
        gae_lambda: float = 1.0,
        gamma: float = 1.0,
        n_envs: int = 1,
        reference: Reference | None = None,
        beta: Beta = 0.05,
        whiten_advantages: bool = False,
        reference_batch_size: int = 64,
        kl_reward: KLReward = "k1",
        whiten_rewards: bool = False,
        norm_reward: bool = False,
        clip_reward: float | None = None,
        gae_lambda_critic: float | None = None,
        gae_alpha: float | None = None,
        importance_sampling_mode: ImportanceSamplingMode | None = None,
        importance_sampling_clip_min: float = 0.0,
        importance_sampling_clip_max: float = 2.0,
    ) -> None:
        self.lambdas = Lambdas(gae_lambda, gae_lambda_critic, gae_alpha)
        self.whiten_advantages, self.reference_batch_size = whiten_advantages, reference_batch_size
        self.vocab_size = int(action_space.n)  # type: ignore[attr-defined]
        self._correction = ImportanceSampling(importance_sampling_mode, importance_sampling_clip_min, importance_sampling_clip_max)
        scale = ScoreScale(norm_reward, clip_reward)
        self.kl_shaping = KLShaping(as_kl_controller(beta), scale, self.vocab_size, kl_reward, whiten_rewards)
        # Not super(): beside contrib's buffer, the next class in line would make room for what is not stored here.
        RolloutBuffer.__init__(self, buffer_size, observation_space, action_space, get_device(device), gae_lambda, gamma, n_envs)
        self.connect(reference=reference)

    def connect(
        self,
        *,
        reference: Reference | None = None,
        kl_controller: KLController | None = None,
        actor: Backbone | None = None,
        engine: Engine | None = None,
    ) -> None:
        """Take what our own algorithms have once their policy is built; what is None stays as it is.

        Args:
            reference: What KL is measured against from now on, see the class.
            kl_controller: Holds beta.
            actor: The policy's backbone; only `kl_reward="full"` asks for it.
            engine: How models are held.  Each of several ranks adds and keeps its own texts; what says something of all texts (the scale
                of advantages and scores, KL, `stats`) is made of all ranks' numbers.

        Raises:
            ValueError: The reference's vocabulary or context is smaller than the environment's.
        """
        shaping = self.kl_shaping
        if reference is not None:
            shaping.reference = as_reference(reference, self.observation_space, self.vocab_size, self.device)
        shaping.controller = kl_controller or shaping.controller
        shaping.actor = actor or shaping.actor
        shaping.engine = engine or shaping.engine

    @property
    def reference(self) -> Backbone | None:
        """The model that KL is measured against."""
        return self.kl_shaping.reference

    @property
    def _ranks(self) -> Ranks:
        return self.kl_shaping.engine.ranks

    @property
    def num_texts(self) -> int:
        """Texts that this rank began in this rollout so far."""
        return len(self._openings)

    @property
    def beta(self) -> float:
        """The coefficient that shaped the rewards of this rollout."""
        return self.stats.beta

    def reset(self) -> None:
        """Forget the rollout."""
        self._recorded = RecordedSteps()
        self._steps, self._kept = self._recorded.steps, self._recorded.kept
        self._openings: list[SegmentStart] = []
        self._infos: list[Sequence[Mapping[str, Any]]] = []  # of each step, by row
        self._written = np.zeros(self.n_envs, bool)  # rows with an open segment
        self._lengths = np.zeros(self.n_envs, np.int64)  # (E,) response tokens before the latest action
        self._replies: dict[int, list[tuple[int, np.ndarray]]] = {}  # by row: (step, ids that the environment wrote before it)
        self._drawn: list[np.ndarray] = []  # of each step, if a generator wrote: log-probabilities where its tokens were drawn, (E,)
        self.importance_weights: np.ndarray | None = None
        self.sampler: Sampler | None = None
        self.autocast: torch.dtype | None = None
        self._keeps = False  # whether kept sets come with the log-probabilities
        self.pos, self.full, self._finished = 0, False, False

    def add(
        self,
        obs: Any,
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: torch.Tensor,
        log_prob: torch.Tensor,
        prompt_ids: np.ndarray | None = None,
        infos: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Store one step of all rows; idle rows (an empty prompt) are skipped.

        The arguments are SB3's, `prompt_ids`, which of the task's prompts each row has, shape (E,), and `infos` after the step; these and
        rewards in float32 are kept as they are, so that they can be filled in until the returns are computed.

        Raises:
            TypeError: `log_prob` does not come from a `TransformerPolicy`, or lost what the policy attached to it.
            ValueError: The sampling rules changed within the rollout, or nobody said what drew the tokens and there are weights against it.
            FloatingPointError: A log-probability or value is NaN or infinite; where they lie on a device, `compute_returns_and_advantage`
                says so, or whoever else looks at the rollout.
        """
        acting = sampling_of(log_prob)
        if self.pos and (acting.sampler, acting.autocast, acting.kept is not None) != (self.sampler, self.autocast, self._keeps):
            raise ValueError(
                f"the sampling rules changed within a rollout, at step {self.pos}, to {acting.sampler}: an update would score its tokens "
                "under one set of rules; change them between rollouts"
            )
        self.sampler, self.autocast, self._keeps = acting.sampler, acting.autocast, acting.kept is not None
        prompt, response = obs["prompt"], obs["response"]
        live = prompt[:, 0] >= 0
        self._correction.check_known(acting.drawn, live)
        self._drawn += [] if acting.drawn is None else [acting.drawn]
        starts, lengths, images = np.asarray(episode_start, bool), (response >= 0).sum(1), images_of(obs)  # (E,), (E,), (E, H, W, 3)
        opens = live & (starts | ~self._written)
        for row in np.flatnonzero(opens):
            context = np.concatenate([prompt[row][prompt[row] >= 0], response[row][: lengths[row]]])
            image, prompt_id = None if images is None else images[row].copy(), -1 if prompt_ids is None else int(prompt_ids[row])
            self._openings.append((int(row), self.pos, context, int(lengths[row]), prompt_id, image))
        for row in np.flatnonzero(live & ~opens & (lengths > self._lengths + 1)):  # more than the last action came: a dialogue
            reply = response[row, self._lengths[row] + 1 : lengths[row]].copy()
            self._replies.setdefault(int(row), []).append((self.pos, reply))
        self._written, self._lengths = live, lengths
        self._infos += [] if infos is None else [infos]
        actions, rewards = action.ravel().astype(np.int64), np.asarray(reward, np.float32)
        self._recorded.add(actions, rewards, starts, value, log_prob, live, acting.kept)
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def compute_returns_and_advantage(self, last_values: torch.Tensor, dones: np.ndarray) -> None:
        """Shape the rewards with the reference, then compute GAE(lambda) as SB3 does, or as `gae_lambda_critic` and `gae_alpha` say.

        Afterwards `actions`, `values`, `returns`, `advantages`, `log_probs` and `rewards` (shaped) are flat over the
        tokens, text after text.

        Args:
            last_values: Values of the states after the last step, shape (E,) or (E, 1).
            dones: Whether each row's text ended at the last step, shape (E,).

        Raises:
            RuntimeError: It was called before for this rollout.
            FloatingPointError: A log-probability or value is NaN or infinite.
            ValueError: `whiten_rewards` or `gae_alpha` asks for whole texts, and the rollout cuts one.
        """
        if self._finished:
            raise RuntimeError(
                "compute_returns_and_advantage was called twice for one rollout: its KL would move beta and its scores the running scale "
                "again; call reset() first, or change the advantages with set_advantages()"
            )
        self._finished = True
        self._recorded.fetch()
        columns = [np.stack(column) for column in zip(*self._steps, strict=True)]  # (L, E) each, of L steps
        needs = {"whiten_rewards=True": self.kl_shaping.whiten_rewards, "gae_alpha": self.lambdas.alpha is not None}
        if (columns[-1][-1] & ~np.asarray(dones, bool)).any() and any(needs.values()):
            raise ValueError(
                f"{next(filter(needs.get, needs))} needs whole texts, and this rollout ends in the middle of some: use a Text* algorithm, "
                "whose rollouts are whole texts, or norm_reward=True and gae_lambda, which do not need them"
            )
        self.segments = cut_segments(self._openings, self._replies, columns[-1])
        self.infos = [self._infos[s.steps.stop - 1][s.row] for s in self.segments] if self._infos else []
        self.trained = np.arange(len(self.segments))  # (S,)
        self._offsets = np.cumsum([0] + [s.steps.stop - s.steps.start for s in self.segments])  # (S + 1,)
        number = columns[-1].cumsum().reshape(columns[-1].shape) - 1  # (L, E): of each token, in the order in which they were written
        self.kept = np.concatenate(self._kept)[self._flat(number)] if self._kept else None  # (N, ceil(V / 8))
        actions, rewards, starts, self.values, log_probs, _ = columns  # (L, E) each
        self.episode_starts = starts.astype(np.float32)
        self.buffer_size, self.full = len(actions), True
        self.actions, self.log_probs = self._flat(actions), self._flat(log_probs)  # (N,) each
        self.scores = np.array([rewards[s.steps, s.row].sum(dtype=np.float64) for s in self.segments])  # (S,)
        assert self.sampler is not None
        tokens = RecordedTokens(self.log_probs, self.sampler, self.autocast, self._for_each, self._offsets)
        shaped, self.kl, self.reference_log_probs, self.stats = self.kl_shaping(self._flat(rewards), self.scores, tokens)
        self.rewards = np.zeros_like(rewards)  # (L, E)
        for index, segment in enumerate(self.segments):
            self.rewards[segment.steps, segment.row] = shaped[self._offsets[index] : self._offsets[index + 1]]
        steps = (self.rewards, self.values, starts, last_values.clone().cpu().numpy().flatten(), np.asarray(dones))
        lambdas = self.lambdas.of(self.segments, starts.shape)
        self.advantages, targets = (generalised_advantages(*steps, self.gamma, of) for of in lambdas)  # (L, E) each
        self.returns = targets + self.values  # (L, E)
        for name in ("rewards", "values", "advantages", "returns"):
            setattr(self, name, self._flat(getattr(self, name)))  # (N,)
        if self.whiten_advantages:
            self.advantages = whiten(self.advantages, self._ranks)
        if self._drawn:
            log_ratios = self.log_probs - self._flat(np.stack(self._drawn))  # (N,)
            mismatch, self.importance_weights = self._correction.compare(log_ratios, self._offsets, self._ranks)
            self.stats = replace(self.stats, mismatch=mismatch)

    def so_far(self) -> SequenceRolloutBuffer:
        """Return a buffer as this one would be if the rollout ended here; this one, its controller and its moments stay as they are."""
        ended, shaping = copy.copy(self), copy.copy(self.kl_shaping)
        shaping.controller, shaping.score_scale = copy.deepcopy((shaping.controller, shaping.score_scale))
        if shaping.kl_reward == "none" or not shaping.controller.beta:
            shaping.reference = None  # its KL is no part of the rewards
        ended.kl_shaping = shaping
        ended.compute_returns_and_advantage(torch.zeros(self.n_envs), np.ones(self.n_envs, bool))
        return ended

    def set_advantages(self, advantages: np.ndarray, whitened: bool = False) -> None:
        """Replace the advantages of a finished rollout, shape (N,), by another estimator's; `whitened` gives them mean 0 and variance 1."""
        self.advantages = whiten(advantages, self._ranks) if whitened else advantages

    def get(self, batch_size: int | None = None) -> Generator[SequenceSamples, None, None]:  # type: ignore[override]
        """Yield minibatches of `batch_size` whole texts in random order; None: one batch of all.

        Of several ranks each gets its part, and all as many: one that has no text for a minibatch gets one of `share` 0.
        """
        assert self.full, "compute_returns_and_advantage first"
        for (part,) in self.parts(batch_size):
            self.share = len(part.samples.advantages) * self._ranks.size / part.whole.tokens
            yield part.samples

    def parts(self, batch_size: int | None = None, at_once: int = 0) -> Iterator[list[MinibatchPart]]:
        """Yield this rank's part of each minibatch that `get` yields, in micro-batches of `at_once` texts; 0: in one.

        All ranks get as many minibatches and micro-batches.
        """
        minibatches = list(self._minibatches(batch_size))
        if not minibatches:  # on no rank
            return
        own = [(len(indices), int((self._offsets[indices + 1] - self._offsets[indices]).sum())) for indices in minibatches]
        sizes = self._ranks.numbers(own)  # (R, K, 2): texts and tokens of each rank in K minibatches
        for indices, whole, most in zip(minibatches, sizes.sum(0).tolist(), sizes[:, :, 0].max(0).astype(int), strict=True):
            size = at_once or most
            if len(indices) > size:  # texts of a prompt go through the model together
                indices = indices[np.argsort([self.segments[np.ravel(row)[0]].prompt_id for row in indices], kind="stable")]
            cut = [indices[start : start + size] for start in range(0, most, size)]
            yield [self._part(texts, MinibatchSize(*whole), number == len(cut)) for number, texts in enumerate(cut, 1)]

    def _part(self, indices: np.ndarray, whole: MinibatchSize, last: bool) -> MinibatchPart:
        if not len(indices):
            indices, whole = np.zeros_like(self.trained, shape=(1, *self.trained.shape[1:])), NOTHING
        return MinibatchPart(self.samples(np.ravel(indices)), whole, last)

    def _minibatches(self, batch_size: int | None) -> Iterator[np.ndarray]:
        """Yield this rank's texts of each minibatch: as large a part of its texts as the minibatch is of all ranks' texts."""
        order = np.random.permutation(self.trained)
        number = int(self._ranks.sums(len(order)))
        size = batch_size or number
        edges = [len(order) * min(first, number) // number for first in range(0, number + size, size)] if number else []
        for start, stop in pairwise(edges):
            yield order[start:stop]

    def samples(self, indices: np.ndarray) -> SequenceSamples:
        """Return the texts with these indices as one minibatch."""
        tokens = self._tokens(indices)
        optional = (self.reference_log_probs, self.importance_weights, self.picked)
        columns = (self.actions, self.values, self.log_probs, self.advantages, self.returns, *(it for it in optional if it is not None))
        batch, numbers = self._batch(indices, *(column[tokens] for column in columns))
        rest = iter(numbers[5:])
        samples = SequenceSamples._make([batch, *numbers[:5], None, *(None if it is None else next(rest) for it in optional)])
        weight = samples.importance_weight
        return samples if weight is None else samples._replace(advantages=samples.advantages * weight)

    def record(self, index: int) -> TextRecord:
        """Return what was written of the text with this index."""
        segment = self.segments[index]
        actions = self.actions[self._offsets[index] : self._offsets[index + 1]]
        return TextRecord(segment.context, actions, segment.first_step, segment.replies, segment.image)

    def _tokens(self, indices: np.ndarray) -> np.ndarray:
        """Return where the tokens of these texts lie in the flat arrays, shape (n,)."""
        return np.concatenate([np.arange(0), *(np.arange(self._offsets[i], self._offsets[i + 1]) for i in indices)])  # (n,)

    def _flat(self, array: np.ndarray) -> np.ndarray:
        """Go from (L, E, ...) to (N, ...), text after text."""
        return np.concatenate([array[s.steps, s.row] for s in self.segments])  # (N, ...)

    def _batch(self, indices: np.ndarray, *columns: np.ndarray) -> tuple[SequenceBatch, list[torch.Tensor]]:
        """Return texts packed, and columns of numbers, by one copy to the device."""
        kept = None if self.kept is None else self.kept[self._tokens(indices)]  # (n, ceil(V / 8))
        return pack_with([self.record(int(i)) for i in indices], self.device, kept, self.sampler, *columns)

    @torch.inference_mode()
    def _for_each(self, score: Callable[[SequenceBatch, torch.Tensor], torch.Tensor]) -> np.ndarray:
        """Return the numbers that `score` gives to packed texts and their actions, shape (N,), float32."""
        out = np.empty(self._offsets[-1], np.float32)
        for tokens, batch in self._by_length():
            out[tokens] = score(*batch).cpu().numpy()
        return out

    def _by_length(self) -> Iterator[tuple[np.ndarray, tuple[SequenceBatch, torch.Tensor]]]:
        """Yield where the tokens of texts of like length lie in the flat arrays, and these texts with their actions."""
        lengths = [len(s.context) + s.steps.stop - s.steps.start for s in self.segments]
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), self.reference_batch_size):
            indices = order[start : start + self.reference_batch_size]
            tokens = self._tokens(indices)
            batch, (actions,) = self._batch(indices, self.actions[tokens])
            yield tokens, (batch, actions)
