"""The clipped policy gradient with any estimator of the advantage: RLOO, GRPO, REINFORCE and their relatives.

Here, once, is the `train()` for all that Stable-Baselines3's loop cannot express.  With `estimator="gae"` and every option off it
is `PPO.train` to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import explained_variance
from torch.nn import functional

from textrl_env.envs.env import TextGenerationEnv
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

from ..models.loading import LMSource
from ..models.log_probs import full_kl
from ..policies.transformer_policy import TransformerPolicy
from ..rollouts.kl_controller import Beta
from ..rollouts.rollout_buffer import SequenceRolloutBuffer
from ..rollouts.rollout_samples import MinibatchShard, MinibatchSize, SequenceSamples
from .common.advantage_estimators import ESTIMATORS, GROUPED, Rollout
from .common.text_algorithm import TextAlgorithm
from .sft import SFT

Aggregation = Literal["token", "sequence", "budget"]
KLIn = Literal["reward", "loss"]
KLEstimator = Literal["k1", "k2", "k3", "full"]
UNBIASED = ("gae", "reinforce", "rloo")  # advantages in the units of the reward, whose expected update is the objective's gradient
_SUMMARY = {"ratio_min": np.min, "ratio_max": np.max}  # of minibatches; the mean of all else
_WHY_NOT = {
    ("reward", "k2"): "k2 in the reward does not hold the policy to the reference: its gradient points away from KL's",
    ("reward", "k3"): "k3 in the reward does not hold the policy to the reference: its gradient points away from KL's",
    ("loss", "k1"): "the gradient of k1 in the loss is 0 on average: it does nothing",
}


def check_kl(kl_in: KLIn, kl_estimator: KLEstimator, estimator: str, whiten: bool) -> None:
    """Insist on a KL term that holds the policy to the reference.

    Raises:
        ValueError: It would not, or not with these advantages.
    """
    if kl_in not in ("reward", "loss") or kl_estimator not in ("k1", "k2", "k3", "full"):
        raise ValueError(
            f"kl_in={kl_in!r}, kl_estimator={kl_estimator!r}: KL goes into the 'reward' or the 'loss', as 'k1', 'k2', 'k3' or 'full'"
        )
    if (why := _WHY_NOT.get((kl_in, kl_estimator))) is not None:
        raise ValueError(f"kl_in={kl_in!r} with kl_estimator={kl_estimator!r}: {why}; use k1 in the reward, or k2 or k3 in the loss")
    if (kl_in, kl_estimator) == ("reward", "full") and (whiten or estimator not in UNBIASED):
        raise ValueError(
            f"kl_in='reward' with kl_estimator='full' adds a loss in units of the reward, and estimator={estimator!r} with "
            f"whiten_advantages={whiten} rescales the advantages beside it: take one of {', '.join(UNBIASED)} without whitening"
        )


class TextPolicyGradient(TextAlgorithm, PPO):
    """Policy gradient on texts, clipped as PPO's, with a choice of advantages, averages and places for KL.

    `RLOO`, `GRPO`, `Reinforce` and `ReinforcePlusPlus` (`agents.algorithms.rloo`) are this class with their defaults.  Started by torchrun,
    several processes train one policy with it, see `agents.distributed.process_group`; no argument changes its meaning then.

    Args:
        policy: See `TextPPO`.
        env: See `TextPPO`.
        estimator: Of the advantage, a key of `agents.algorithms.common.advantage_estimators.ESTIMATORS`.
        learning_rate: See SB3.
        n_episodes: Texts per rollout; a multiple of the group size.
        batch_size: Texts per minibatch.
        n_epochs: Passes over a rollout.
        group_size: Texts for each prompt, if `env` is an id; a task's own `group_size` otherwise.
        gamma: Discount, of `gae` only.
        gae_lambda: See SB3, of `gae` only.
        clip_range: How far a ratio may fall, and rise if `clip_range_high` does not say otherwise.
        clip_range_high: How far a ratio may rise (DAPO's clip-higher); None: as far as it may fall.
        clip_range_vf: See SB3.
        dual_clip: Largest ratio that counts where the advantage is negative (Ye et al. 2020); None: any.
        loss_aggregation: `"token"`: mean over the minibatch's tokens; `"sequence"`: mean over each text's tokens, then over texts;
            `"budget"`: sum over a text's tokens divided by the longest text allowed, then mean over texts (Dr. GRPO).
        skip_equal_groups: Leave out groups whose returns are all equal, which teach nothing (DAPO's dynamic sampling).
        max_sampling_rounds: With `skip_equal_groups`, deal as many groups again as had equal scores, until `n_episodes` are left or
            it was dealt this many times.
        whiten_advantages: Give the advantages of a rollout mean 0 and variance 1, after the estimator.
        ent_coef: See SB3.
        vf_coef: Weight of the value loss.
        max_grad_norm: See SB3.
        target_kl: See `TextPPO`.
        beta: See `TextPPO`; with `kl_in="loss"` the weight of that term.
        kl_in: Whether KL to the reference is part of the reward or of the loss.
        kl_estimator: `"k1"` in the reward; in the loss `"k2"` or `"k3"`, the latter times the ratio.  The gradients of these two are
            those of each token's KL on the policy's own samples (Tang and Munos 2025).  `"full"` is the sum over the vocabulary
            instead of an estimate, at the price of a pass of policy and reference more: in the loss it is what k2 and k3
            estimate; in the reward each step pays its KL, which moves what comes before, and the loss takes the KL of the step
            itself, for a reward that ignores the action cannot: together they are the gradient of the objective.  Exact does not
            mean better: at the optimum score - beta * k1 is the same for every text and its noise vanishes, which that of the
            score alone never does (RLOO closes 0.98 of the gap of Exact-Smooth in 40,000 tokens with k1, 0.94 with full).
        ptx_coef: Weight of next-token learning on `ptx_texts` beside the policy's loss (PPO-ptx, Ouyang et al. 2022); 0: none.
        ptx_texts: Texts of (prompt, response), `batch_size` of which are drawn for each step.
        reference: See `TextPPO`.
        reference_mixup: See `TextPPO`.
        critic_warmup: See `TextPPO`.
        rollout_buffer_kwargs: Further arguments of `SequenceRolloutBuffer`: `norm_reward`, `clip_reward`, `whiten_rewards`, ...
        stats_window_size: See SB3.
        tensorboard_log: See SB3.
        policy_kwargs: See `TextPPO`; without `gae` the default is `"critic": "none"`.
        verbose: See SB3.
        seed: See SB3.
        device: See SB3.
        _init_setup_model: See SB3.

    Raises:
        ValueError: An argument is out of range, the estimator needs groups that the task does not deal, or KL would not regularise.
    """

    __module__ = "agents"

    def __init__(
        self,
        policy: str | type[TransformerPolicy],
        env: GymEnv | str,
        estimator: str = "rloo",
        learning_rate: float | Schedule = 3e-4,
        n_episodes: int = 64,
        batch_size: int = 64,
        n_epochs: int = 1,
        group_size: int = 4,
        gamma: float = 1.0,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_high: float | None = None,
        clip_range_vf: float | Schedule | None = None,
        dual_clip: float | None = None,
        loss_aggregation: Aggregation = "token",
        skip_equal_groups: bool = False,
        max_sampling_rounds: int = 1,
        whiten_advantages: bool = False,
        ent_coef: float = 0.0,
        vf_coef: float = 0.1,
        max_grad_norm: float = 1.0,
        target_kl: float | None = None,
        beta: Beta = 0.05,
        kl_in: KLIn = "reward",
        kl_estimator: KLEstimator = "k1",
        ptx_coef: float = 0.0,
        ptx_texts: Sequence[tuple[str, str]] = (),
        reference: LMSource | None = None,
        reference_mixup: float = 0.0,
        critic_warmup: int = 0,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator={estimator!r}: must be one of {', '.join(ESTIMATORS)}")
        if loss_aggregation not in ("token", "sequence", "budget"):
            raise ValueError(f"loss_aggregation={loss_aggregation!r}: must be 'token', 'sequence' or 'budget'")
        if dual_clip is not None and dual_clip <= 1:
            raise ValueError(f"dual_clip={dual_clip}: a ratio above 1, usually 3")
        if max_sampling_rounds < 1 or (max_sampling_rounds > 1 and not skip_equal_groups):
            raise ValueError(f"max_sampling_rounds={max_sampling_rounds}: at least 1, and more only with skip_equal_groups=True")
        if ptx_coef < 0 or (ptx_coef > 0 and not ptx_texts):
            raise ValueError(f"ptx_coef={ptx_coef} with {len(ptx_texts)} ptx_texts: a weight of at least 0, and texts for it")
        check_kl(kl_in, kl_estimator, estimator, whiten_advantages)
        self._set_text(n_episodes, beta, reference, reference_mixup, critic_warmup)
        self.estimator, self.loss_aggregation, self.skip_equal_groups = estimator, loss_aggregation, skip_equal_groups
        self.clip_range_high, self.dual_clip = clip_range_high, dual_clip
        self.kl_in, self.kl_estimator, self.average_return = kl_in, kl_estimator, 0.0
        self.whiten, self.max_sampling_rounds = whiten_advantages, max_sampling_rounds
        self.ptx_coef, self.ptx_texts = ptx_coef, list(ptx_texts)
        kl_reward = "none" if kl_in == "loss" else "full" if kl_estimator == "full" else "k1"
        grouped = estimator in GROUPED
        if isinstance(env, str):
            env = gym.make(env, group_size=group_size if grouped else 1)
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=batch_size,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            normalize_advantage=False,
            ent_coef=ent_coef,
            vf_coef=vf_coef if estimator == "gae" else 0.0,
            max_grad_norm=max_grad_norm,
            rollout_buffer_class=SequenceRolloutBuffer,
            rollout_buffer_kwargs={"kl_reward": kl_reward, **(rollout_buffer_kwargs or {})},
            target_kl=target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs if estimator == "gae" else {"critic": "none", **(policy_kwargs or {})},
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )

    _on_ranks = True

    def _setup_model(self) -> None:
        super()._setup_model()
        self.rollout_buffer.connect(actor=self.policy.backbone)
        self._ptx: SFT | None = None
        if self.estimator in GROUPED and self.env is not None:
            texts = self.env.unwrapped
            assert isinstance(texts, (TextGenerationVecEnv, TextGenerationEnv))
            size = texts.core.task.group_size
            if size < 2 or self.n_episodes % size:
                raise ValueError(
                    f"estimator={self.estimator!r} compares the texts of a prompt: the task deals group_size={size}, a rollout has "
                    f"n_episodes={self.n_episodes}; make the group at least 2, and n_episodes a multiple of it"
                )

    def _more_texts(self, finished: list[dict[str, Any]]) -> int:
        """Count the texts of groups that all scored alike: as many are written again."""
        if not self.skip_equal_groups or len(finished) >= self.max_sampling_rounds * self.n_episodes:
            return 0
        scores: dict[str, list[float]] = {}
        for info in finished:
            scores.setdefault(info["prompt"], []).append(info["score"])
        useful = sum(len(group) for group in scores.values() if max(group) > min(group))
        return max(0, self.n_episodes - useful)

    def _estimate(self) -> None:
        """Replace the buffer's advantages by the estimator's."""
        buffer = self.rollout_buffer
        _, groups = np.unique([s.context[: len(s.context) - s.first_step].tobytes() for s in buffer.segments], return_inverse=True)
        rollout = Rollout(buffer.rewards, buffer._offsets, groups.reshape(-1), buffer.advantages, self.average_return)
        buffer.set_advantages(ESTIMATORS[self.estimator](rollout).astype(np.float32), self.whiten)
        returns = rollout.returns
        self.average_return = 0.9 * self.average_return + 0.1 * float(returns.mean()) if self.num_rollouts > 1 else float(returns.mean())
        if self.skip_equal_groups:
            sums, counts = rollout.group_sums(returns)
            squares, _ = rollout.group_sums((returns - sums / counts) ** 2)
            buffer.trained = np.flatnonzero(squares > 1e-12)
        self.logger.record("tokens/share_trained", len(buffer.trained) / len(buffer.segments))

    def _train(self) -> None:
        self._estimate()
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        trainable = [p for p in self.policy.parameters() if p.requires_grad]
        np.random.set_state(self.ranks.broadcast(np.random.get_state()))  # a rank's reward may have drawn from the generator
        log: dict[str, list[float]] = {}
        go_on = True
        for _ in range(self.n_epochs):
            log["approx_kl"] = []  # as SB3 logs it: of the last epoch
            for part in self.rollout_buffer.parts(self.batch_size) if len(self.rollout_buffer.trained) else ():
                loss, own = self._part_loss(part)
                notes = self.ranks.total(own)  # every rank goes the same way
                for name, value in notes.items():
                    log.setdefault(name, []).append(value)
                if self.target_kl is not None and notes["approx_kl"] > 1.5 * self.target_kl:
                    go_on = False
                    break
                self.policy.optimizer.zero_grad()
                if part.samples is not None or loss.requires_grad:
                    loss.backward()
                norm = self.ranks.step(self.policy.optimizer, trainable, self.max_grad_norm)
                log.setdefault("grad_norm", []).append(float(norm))
            self._n_updates += 1
            if not go_on:
                break
        for name, values in log.items():
            if values:
                self.logger.record(f"train/{name}", _SUMMARY.get(name, np.mean)(values).item())
        self.logger.record("train/explained_variance", explained_variance(self.rollout_buffer.values, self.rollout_buffer.returns))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _part_loss(self, part: MinibatchShard) -> tuple[torch.Tensor, dict[str, float]]:
        """Return what this rank adds to the loss of a minibatch, and to what the log says of it."""
        loss, notes = torch.zeros((), device=self.device), {"loss": 0.0}
        if part.samples is not None:
            loss, notes = self._loss(part.samples, part.whole)
        if self.ptx_coef and (ptx_loss := self._ptx_loss()) is not None:
            loss = loss + self.ptx_coef * ptx_loss
            notes = {**notes, "ptx_loss": ptx_loss.item(), "loss": loss.item()}
        return loss, notes

    def _loss(self, samples: SequenceSamples, whole: MinibatchSize | None = None) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of a minibatch without ptx, and what the log says of it.

        Args:
            samples: The minibatch, or a part of it.
            whole: Its size, if they are a part: the losses of the parts add up to that of the minibatch.
        """
        if whole is None:
            whole = MinibatchSize(len(samples.observations.input_ids), len(samples.advantages))
        share = len(samples.advantages) / whole.tokens  # 1 in a single process
        values, log_prob, entropy = self.policy.evaluate_actions(samples.observations, samples.actions.long())
        assert entropy is not None
        weights = self._weights(samples, whole)
        log_ratio = log_prob - samples.old_log_prob
        ratio = log_ratio.exp()
        low = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        high = low if self.clip_range_high is None else self.clip_range_high
        advantages = samples.advantages
        gain = torch.min(advantages * ratio, advantages * ratio.clamp(1 - low, 1 + high))
        if self.dual_clip is not None:
            gain = torch.where(advantages < 0, torch.max(gain, self.dual_clip * advantages), gain)
        policy_loss = -(weights * gain).sum()
        entropy_loss = -(weights * entropy).sum()
        loss = policy_loss + self.ent_coef * entropy_loss
        notes = {"policy_gradient_loss": policy_loss.item(), "entropy_loss": entropy_loss.item()}
        if self.vf_coef:
            value_loss = share * self._value_loss(values.flatten(), samples)
            loss = loss + self.vf_coef * value_loss
            notes["value_loss"] = value_loss.item()
        if self.kl_in == "loss" or self.kl_estimator == "full":
            kl = self._full_kl(samples) if self.kl_estimator == "full" else self._kl(log_prob, ratio, samples.reference_log_prob)
            kl_loss = (weights * kl).sum()
            loss = loss + self.rollout_buffer.beta * kl_loss
            notes["kl_loss"] = kl_loss.item()
        with torch.no_grad():
            notes["ratio_min"], notes["ratio_max"] = float(ratio.min()), float(ratio.max())
            notes["approx_kl"] = share * float(((ratio - 1) - log_ratio).mean())
            notes["clip_fraction"] = share * float(((ratio > 1 + high) | (ratio < 1 - low)).float().mean())
        return loss, {**notes, "loss": loss.item()}

    def _kl(self, log_prob: torch.Tensor, ratio: torch.Tensor, reference: torch.Tensor | None) -> torch.Tensor:
        """Return per token what has the gradient of KL(pi || pi_ref) in expectation, shape (N,)."""
        assert reference is not None
        difference = log_prob - reference
        if self.kl_estimator == "k2":
            return 0.5 * difference.square()
        return ratio * ((-difference).exp() - 1 + difference)

    def _full_kl(self, samples: SequenceSamples) -> torch.Tensor:
        """Return KL(pi || pi_ref) at each token, shape (N,)."""
        buffer = self.rollout_buffer
        assert buffer.sampler is not None and buffer.reference is not None
        return full_kl(self.policy.backbone, buffer.reference, samples.observations, buffer.sampler, buffer.vocab_size)

    def _ptx_loss(self) -> torch.Tensor | None:
        """Return the next-token loss on texts drawn with NumPy's global generator, whose state a checkpoint holds.

        Ranks draw the same texts, and each adds what its own of them contribute; None: it has none.
        """
        if self._ptx is None:
            assert self.env is not None
            texts = self.env.unwrapped
            assert isinstance(texts, TextGenerationVecEnv)
            self._ptx = SFT(self.policy.lm, texts.core.task.tokenizer)
        drawn = [self.ptx_texts[i] for i in np.random.randint(len(self.ptx_texts), size=self.batch_size)]
        own = drawn[self.ranks.rank :: self.ranks.size]
        if self.ranks.size == 1 or not own:
            return self._ptx.loss_of(own) if own else None
        return self._ptx.loss_of(own) * (self._ptx.num_targets(own) / self._ptx.num_targets(drawn))

    def _value_loss(self, values: torch.Tensor, samples: SequenceSamples) -> torch.Tensor:
        if self.clip_range_vf is not None:
            reach = self.clip_range_vf(self._current_progress_remaining)  # type: ignore[operator]
            values = samples.old_values + (values - samples.old_values).clamp(-reach, reach)
        return functional.mse_loss(samples.returns, values)

    def _weights(self, samples: SequenceSamples, whole: MinibatchSize) -> torch.Tensor:
        """Return what each token counts in a minibatch, shape (N,)."""
        batch = samples.observations
        if self.loss_aggregation == "token":
            return torch.full_like(samples.advantages, 1 / whole.tokens)
        if self.loss_aggregation == "sequence":
            rows = batch.predictor // batch.input_ids.shape[1]
            counts = torch.bincount(rows, minlength=len(batch.input_ids))
            return 1 / (whole.texts * counts[rows].float())
        longest = self.observation_space["response"].shape[0]  # type: ignore[index]
        return torch.full_like(samples.advantages, 1 / (whole.texts * longest))
