"""The clipped policy gradient with any estimator of the advantage: RLOO, GRPO, REINFORCE and their relatives.

Its `train()` serves all algorithms that Stable-Baselines3's loop cannot express.  With `estimator="gae"` and every option off it equals
`PPO.train` up to rounding.  In the comments on shapes, a rollout has S texts, a minibatch B texts with N tokens that are actions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from ..distributed.ranks import combined
from ..policies.transformer_policy import TransformerPolicy
from ..rollouts.reward_scaling import moments
from ..rollouts.rollout_buffer import SequenceRolloutBuffer
from ..rollouts.rollout_samples import MinibatchPart, MinibatchSize, SequenceSamples
from ..rollouts.text_vec_env import text_env_of
from .common.advantage_estimators import ESTIMATORS, GROUPED, Rollout
from .common.policy_gradient_arguments import PolicyGradientArguments, check_arguments
from .common.policy_loss import OF_COVARIANCE, Clip, PolicyLoss, pick_tokens
from .common.reward_parts import reward_parts, weights_of
from .common.supervised import SFTText
from .common.text_algorithm import TextAlgorithm
from .sft import SFT

if TYPE_CHECKING:
    from typing_extensions import Unpack

_NO_UPDATE = {
    "equal groups": "all texts to a prompt have equal returns in rollout {rollout}, with every prompt: it has no update; is the reward too "
    "coarse, or the policy too far from any success? raise the group size or max_sampling_rounds",
    "over-long texts": "all texts of rollout {rollout} that overlong_filtering looks at were cut at {limit} tokens without an end: it has "
    "no update; raise the task's max_new_tokens, or leave overlong_filtering out",
}
_SUMMARY = {"ratio_min": np.min, "ratio_max": np.max}  # of minibatches; the mean of all else


class TextPolicyGradient(TextAlgorithm, PPO):
    """Policy gradient on texts, clipped as PPO's, with a choice of advantages, averages and places for KL.

    `RLOO`, `GRPO`, `Reinforce` and `ReinforcePlusPlus` are this class with their defaults.  Started by torchrun, several processes
    train one policy with it, see `agents.distributed.process_group`; no argument changes its meaning then.

    `gamma`, `gae_lambda`, `vf_coef` and `clip_range_vf` count with `estimator="gae"` only; every other estimator has no critic, unless
    `policy_kwargs` asks for one, and needs `n_episodes` to be a multiple of the group size if it compares the texts of a group.  With
    `kl_in="loss"`, `beta` is the weight of that term.

    `kl_estimator="full"` in the loss is what k2 and k3 estimate.  In the reward, each step pays its KL, which moves what comes before,
    and the loss takes the KL of the step itself, which a reward that ignores the action cannot: together they are the gradient of the
    objective.  Exact does not mean better: at the optimum score - beta * k1 is the same for every text and its noise vanishes, which
    that of the score alone never does (RLOO closes 0.98 of the gap of Exact-Smooth in 40,000 tokens with k1, 0.94 with full).

    Raises:
        ValueError: An argument is out of range, the estimator needs groups that the task does not deal, or KL would not regularise.
    """

    __module__ = "agents"
    _arguments = PolicyGradientArguments
    _defaults: ClassVar[PolicyGradientArguments] = {
        "batch_size": 64,  # all texts of a rollout in one pass: a step on samples of the very policy that it changes
        "n_epochs": 1,
        "whiten_advantages": False,  # most estimators have a baseline or a scale of their own
    }
    _on_ranks = True
    _named_apart = ("beta", "reference", "whiten_advantages", "kl_reward")

    def __init__(self, policy: str | type[TransformerPolicy], env: GymEnv | str, **arguments: Unpack[PolicyGradientArguments]) -> None:
        settings = self._complete(arguments)
        check_arguments(settings, {name: value for name, value in arguments.items() if value != self._accepted[name].default})
        self.estimator, self.loss_aggregation = settings.pop("estimator"), settings.pop("loss_aggregation")
        self.clip_range_high, self.dual_clip = settings.pop("clip_range_high"), settings.pop("dual_clip")
        self.skip_equal_groups, self.max_sampling_rounds = settings.pop("skip_equal_groups"), settings.pop("max_sampling_rounds")
        self.kl_in, self.kl_estimator, self.average_return = settings.pop("kl_in"), settings.pop("kl_estimator"), 0.0
        self.surrogate, self.off_policy_mask = settings.pop("surrogate"), settings.pop("off_policy_mask")
        self.overlong_filtering, self.kl_cov_coef = settings.pop("overlong_filtering"), settings.pop("kl_cov_coef")
        self.cov_share, self.cov_low, self.cov_high = settings.pop("cov_share"), settings.pop("cov_low"), settings.pop("cov_high")
        self.entropy_target, self.ent_coef_step = settings.pop("entropy_target"), settings.pop("ent_coef_step")
        self.ent_coef_max = settings.pop("ent_coef_max")
        self.ptx_coef, self.ptx_texts = settings.pop("ptx_coef"), list(settings.pop("ptx_texts"))
        self.whiten, group_size = settings.pop("whiten_advantages"), settings.pop("group_size")
        if self.estimator != "gae":
            settings["vf_coef"] = 0.0
            settings["policy_kwargs"] = {"critic": "none", **(settings["policy_kwargs"] or {})}
        core: Any = getattr(getattr(env, "unwrapped", None), "core", None)  # of an environment that writes texts
        if core is not None and "group_size" in arguments and (size := core.task.group_size) != group_size:
            raise ValueError(f"group_size={group_size}: the environment deals groups of {size}; make it with group_size={group_size}")
        if isinstance(env, str):
            env = gym.make(env, group_size=group_size if self.estimator in GROUPED else 1)
        kl_reward = "none" if self.kl_in == "loss" else "full" if self.kl_estimator == "full" else "k1"
        self._construct(policy, env, settings, kl_reward=kl_reward)

    def _setup_model(self) -> None:
        super()._setup_model()
        self.rollout_buffer.connect(actor=self.policy.backbone)
        self._ptx: SFT | None = None
        if self.env is not None:
            self._check_groups(self.env)

    def _hand_to_engine(self) -> None:
        if self.ptx_coef and self._ptx is None:
            assert self.env is not None
            self._ptx = SFT(self.policy.lm, text_env_of(self.env).task.tokenizer)
            self._ptx.backbone = self.policy.backbone  # with its precision
        super()._hand_to_engine()

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Do what SB3 does, if the environment deals the groups that texts are compared in."""
        wrapped = self._wrap_env(env, self.verbose)
        self._check_groups(wrapped)
        super().set_env(wrapped, force_reset)

    def _check_groups(self, env: VecEnv) -> None:
        size = text_env_of(env).task.group_size
        if self.estimator in GROUPED and (size < 2 or self.n_episodes % size):
            raise ValueError(
                f"estimator={self.estimator!r} compares the texts of a prompt: the task deals group_size={size}, a rollout has "
                f"n_episodes={self.n_episodes}; make the group at least 2, and n_episodes a multiple of it"
            )
        if self.estimator == "gdpo":
            weights_of(text_env_of(env).core.reward_model)

    def _more_texts(self) -> int:
        """Count the texts of groups with equal returns: as many are written again."""
        if not self.skip_equal_groups:
            return 0
        most = self.max_sampling_rounds * self.n_episodes - int(self.ranks.sums(self.rollout_buffer.num_texts))
        if most <= 0:
            return 0
        buffer = self.rollout_buffer.so_far()
        useful = int(self.ranks.sums(len(self._unequal(self._rollout(buffer), buffer.beta))))
        return min(max(0, self.n_episodes - useful), most)

    @property
    def _longest(self) -> int:
        """Tokens of the longest text allowed."""
        return int(self.observation_space["response"].shape[0])  # type: ignore[index]

    def _rollout(self, buffer: SequenceRolloutBuffer) -> Rollout:
        _, groups = np.unique([segment.prompt_id for segment in buffer.segments], return_inverse=True)  # (S,)
        parts = reward_parts(text_env_of(self.env).core.reward_model, buffer.infos, buffer.scores) if self.estimator == "gdpo" else None
        return Rollout(buffer.rewards, buffer._offsets, groups, buffer.advantages, self.average_return, self.ranks, parts)

    def _unequal(self, rollout: Rollout, beta: float) -> np.ndarray:
        """Return the indices of the texts in groups whose returns (`gdpo`: any part of them) differ by more than rounding, ascending."""
        if rollout.parts is not None:
            differ, _ = rollout.group_sums(np.any([np.abs(rollout.standardised(part)) > 1e-6 for part in rollout.parts.values], 0))  # (S,)
            return np.flatnonzero(differ)
        returns = rollout.returns  # (S,)
        sums, counts = rollout.group_sums(returns)  # (S,) each
        means = sums / counts
        # A log-probability is right to about 1e-6.  Adam makes whole steps of advantages that are rounding only
        rounding = 1e-6 * (np.abs(means) + beta * rollout.lengths * (self.kl_in == "reward"))
        differ, _ = rollout.group_sums(np.abs(returns - means) > rounding)  # (S,)
        return np.flatnonzero(differ)

    def _estimate(self) -> None:
        """Replace the buffer's advantages by the estimator's."""
        buffer = self.rollout_buffer
        rollout = self._rollout(buffer)
        buffer.set_advantages(ESTIMATORS[self.estimator](rollout).astype(np.float32), self.whiten)  # (N,)
        mean = float(moments(rollout.returns, self.ranks).mean)  # of (S,)
        self.average_return = 0.9 * self.average_return + 0.1 * mean if self.num_rollouts > 1 else mean
        self._leave_out(rollout)
        buffer.picked = None
        if self.surrogate in OF_COVARIANCE:
            tokens, bounds = buffer._tokens(buffer.trained), (self.cov_low, self.cov_high)
            found = pick_tokens(self.surrogate, buffer.log_probs[tokens], buffer.advantages[tokens], self.cov_share, bounds, self.ranks)
            buffer.picked = np.zeros(len(buffer.advantages), bool)
            buffer.picked[tokens] = found

    def _leave_out(self, rollout: Rollout) -> None:
        """Leave texts out of the update that the algorithm is not to learn from, and tell how many."""
        buffer, why = self.rollout_buffer, ""
        if self.skip_equal_groups:
            buffer.trained = self._unequal(rollout, buffer.beta)
            why = "equal groups"
        if self.overlong_filtering and len(buffer.trained):
            buffer.trained = buffer.trained[~self._overlong()[buffer.trained]]
            why = why if len(buffer.trained) else "over-long texts"
        trained, written = self.ranks.sums([len(buffer.trained), len(buffer.segments)])
        if self.skip_equal_groups or self.overlong_filtering:
            self.logger.record("policy/update_skipped", float(not trained))
            if not trained and self.ranks.is_main:
                self.health.warn(why, _NO_UPDATE[why].format(rollout=self.num_rollouts, limit=self._longest))
        self.logger.record("tokens/share_trained", trained / written)

    def _overlong(self) -> np.ndarray:
        """Return whether each text was cut at the longest length, without an end, shape (S,)."""
        return np.array([info["finish_reason"] == "length" for info in self.rollout_buffer.infos], bool)

    @property
    def _ent_coef_now(self) -> float:
        """The weight of the entropy in this update."""
        above = self.entropy_target is not None and self.rollout_buffer.stats.entropy > self.entropy_target
        return 0.0 if above else self.ent_coef

    def _follow_entropy(self) -> None:
        """Set the weight of the entropy for the next update."""
        if self.entropy_target is not None:
            self.logger.record("policy/ent_coef", self._ent_coef_now)
            step = self.ent_coef_step * float(np.sign(self.entropy_target - self.rollout_buffer.stats.entropy))
            self.ent_coef = float(np.clip(self.ent_coef + step, 0.0, self.ent_coef_max))

    def _train(self) -> None:
        self._estimate()
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        log: dict[str, list[float]] = {}
        compared = (self.reference,) if self.kl_estimator == "full" and self.reference is not None else ()
        with self.engine.whole(*compared):
            norms = self._run_epochs([p for p in self.policy.parameters() if p.requires_grad], log)
        self._follow_entropy()
        log["grad_norm"] = torch.stack(norms).tolist() if norms else []
        if self.num_rollouts > self.critic_warmup and any(norm > 0 for norm in log["grad_norm"]):
            self.health.gradients = True  # the last step alone would not show it where all its ratios are clipped
        for name in filter(log.get, log):
            self.logger.record(f"train/{name}", _SUMMARY.get(name, np.mean)(log[name]).item())
        returns = self.rollout_buffer.returns
        missed, there = (moments(of, self.ranks).variance for of in (returns - self.rollout_buffer.values, returns))
        self.logger.record("train/explained_variance", float(1 - missed / there) if there else math.nan)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _run_epochs(self, trainable: list[torch.nn.Parameter], log: dict[str, list[float]]) -> list[torch.Tensor]:
        """Take all steps, add the numbers of each to `log`, and return the norms of their gradients."""
        norms: list[torch.Tensor] = []  # fetched together: a GPU would stop the host for each
        for _ in range(self.n_epochs):
            log["approx_kl"] = []  # as SB3 logs it: of the last epoch
            for parts in self.rollout_buffer.parts(self.batch_size, self.policy.settings.micro_batch_size):
                self.policy.optimizer.zero_grad()
                notes = self.ranks.total(self._add_gradients(parts))  # every rank goes the same way
                for name, value in notes.items():
                    log.setdefault(name, []).append(value)
                if self.target_kl is not None and notes["approx_kl"] > 1.5 * self.target_kl:
                    self._n_updates += 1
                    return norms
                norms.append(self.engine.clip(trainable, self.max_grad_norm))
                self.policy.optimizer.step()
            self._n_updates += 1
        return norms

    def _add_gradients(self, parts: Sequence[MinibatchPart]) -> dict[str, float]:
        """Add up the gradients of this rank's summand of the loss of a minibatch, and return its summand of the numbers for the log."""
        drawn = self._ptx_parts() if self.ptx_coef else ()
        notes = [self.engine.add_gradients(self._ptx_loss, *texts, last=False) for texts in drawn]
        notes += [self.engine.add_gradients(self._loss, part.samples, part.whole, last=part.last) for part in parts]
        return combined(notes)

    def _loss(self, samples: SequenceSamples, whole: MinibatchSize | None = None) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of a minibatch, or of a part of it, without ptx, and the numbers for the log; see `PolicyLoss`."""
        left = self._current_progress_remaining
        low = math.inf if self.surrogate == "kl-cov" else self.clip_range(left)  # type: ignore[operator]
        high = low if self.clip_range_high is None else self.clip_range_high
        loss = PolicyLoss(
            policy=self.policy,
            buffer=self.rollout_buffer,
            surrogate=self.surrogate,
            clip=Clip(low, high, self.dual_clip, self.kl_cov_coef),
            aggregation=self.loss_aggregation,
            longest=self._longest,
            ent_coef=self._ent_coef_now,
            vf_coef=self.vf_coef,
            clip_vf=None if self.clip_range_vf is None else self.clip_range_vf(left),  # type: ignore[operator]
            kl_estimator=self.kl_estimator,
            kl_in_loss=self.kl_in == "loss" or self.kl_estimator == "full",
            off_policy_mask=self.off_policy_mask,
        )
        return loss(samples, whole)

    def _ptx_parts(self) -> list[tuple[list[SFTText], int]]:
        """Draw texts for the next-token loss with NumPy's global generator; return micro-batches, and the target tokens of all of them.

        A checkpoint holds the generator's state.  Each rank draws as many.
        """
        assert self._ptx is not None
        number = -(-self.batch_size // self.ranks.size)
        drawn = [self.ptx_texts[i] for i in np.random.randint(len(self.ptx_texts), size=number)]
        targets, size = int(self.ranks.sums(self._ptx.num_targets(drawn))), self.policy.settings.micro_batch_size or number
        return [(drawn[start : start + size], targets) for start in range(0, number, size)]

    def _ptx_loss(self, texts: list[SFTText], targets: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Return a summand of the next-token loss, and the numbers for the log."""
        assert self._ptx is not None
        ptx_loss = self._ptx.loss_of(texts) * (self._ptx.num_targets(texts) / targets)
        loss = self.ptx_coef * ptx_loss
        return loss, {"ptx_loss": ptx_loss.item(), "loss": loss.item()}
