"""Online DPO: the policy writes two texts to each prompt, a reward or a judge prefers one, and DPO learns from them at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from textrl_env import Episode
from textrl_env.reward_model import RewardError, as_reward_model

from ..distributed.ranks import combined
from ..policies.transformer_policy import TransformerPolicy
from ..rollouts.rollout_samples import MinibatchSize, SequenceSamples
from ..rollouts.text_vec_env import text_env_of
from ..utils.limits import Above0, BelowHalf, Count
from .common.text_algorithm import TextAlgorithm
from .common.text_arguments import TextArguments
from .dpo import preference_loss, smoothed

if TYPE_CHECKING:
    from typing_extensions import Unpack

Compare = Callable[[Sequence[Episode], Sequence[Episode]], Sequence[float]]
_OF_RETURNS = ("gamma", "gae_lambda", "gae_lambda_critic", "gae_alpha")


class OnlineDPOArguments(TextArguments, total=False):
    """What `OnlineDPO` takes."""

    batch_size: Annotated[Count, 64, "Texts per minibatch, an even number: both texts of a pair are in the same."]
    n_epochs: Annotated[Count, 1, "Passes over a rollout, at least 1; 1 as in the paper: each pair is of the policy that learns from it."]
    max_grad_norm: Annotated[Above0, 1.0, "Largest norm of the gradient, > 0."]
    loss: Annotated[Literal["sigmoid", "ipo"], "sigmoid", "Loss of a pair, see `DPO`."]
    label_smoothing: Annotated[BelowHalf, 0.0, "Share of the verdicts that are wrong, in [0, 0.5), see `DPO`."]
    judge: Annotated[
        Mapping[str, Any] | str | None,
        None,
        "What compares the two texts instead of the environment's reward: name and arguments of a reward with a method `compare`, such as "
        '`{"name": "judge", "mode": "pairwise", ...}`.  It is given two sequences of `Episode`s, and returns for each pair the probability '
        "that the first is the better one.",
    ]


class OnlineDPO(TextAlgorithm, PPO):
    """Online DPO (Guo et al. 2024): DPO's loss on pairs that the policy itself wrote, judged as soon as they are written.

    The environment deals each prompt twice (`group_size=2`).  Of the two texts the one that the environment pays more for in all is
    preferred, as a certain win, or `judge` says with which probability one is better.  Pairs without a preference are left out.  With
    log(pi / pi_ref) of both texts, under the rules that they were drawn by, the loss is `DPO`'s; no gradient flows through the drawing of
    texts.  `beta` is DPO's, and KL does not shape rewards.

    With certain wins its optimum is not that of the KL-regularised return: how much better a text is does not count.

    Raises:
        ValueError: An argument is out of range or has no use here, the task does not deal pairs, or the judge does not compare.
    """

    __module__ = "agents"
    _arguments = OnlineDPOArguments
    _on_ranks = True

    def __init__(self, policy: str | type[TransformerPolicy], env: GymEnv | str, **arguments: Unpack[OnlineDPOArguments]) -> None:
        settings = self._complete(arguments)
        unused = [name for name in _OF_RETURNS if arguments.get(name, self._accepted[name].default) != self._accepted[name].default]
        unused += [name for name in settings["rollout_buffer_kwargs"] or () if name != "reference_batch_size"]
        if unused:
            raise ValueError(f"{', '.join(unused)}: pairs are compared by what the environment pays in all: leave it out")
        self.loss, self.label_smoothing, self.judge = settings.pop("loss"), settings.pop("label_smoothing"), settings.pop("judge")
        settings["policy_kwargs"] = {"critic": "none", **(settings["policy_kwargs"] or {})}
        if isinstance(env, str):
            env = gym.make(env, group_size=2)
        self._construct(policy, env, settings, kl_reward="none")
        if not self.kl_controller.beta > 0:
            raise ValueError(f"beta={self.kl_controller.beta}: must be positive, for without it every pair has the same loss")

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.env is not None:
            self._check_pairs(self.env)
        self._compare: Compare | None = None
        if self.judge is not None:
            judge: Any = as_reward_model(self.judge)
            if not hasattr(judge, "compare"):
                raise ValueError(
                    f"judge={self.judge}: {judge!r} scores single texts and has no method compare; leave it to the environment"
                )
            self._compare = judge.compare

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_compare"]  # a judge may hold a connection; it is made anew

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Do what SB3 does, if the environment deals pairs."""
        wrapped = self._wrap_env(env, self.verbose)
        self._check_pairs(wrapped)
        super().set_env(wrapped, force_reset)

    def _check_pairs(self, env: VecEnv) -> None:
        size = text_env_of(env).task.group_size
        if size != 2 or self.n_episodes % 2 or self.batch_size % 2:
            raise ValueError(
                f"group_size={size} of the task, n_episodes={self.n_episodes}, batch_size={self.batch_size}: online DPO compares two texts "
                "to each prompt: make the task with group_size=2, and the others even"
            )

    def _prefer(self) -> None:
        """Have the buffer deal pairs, the preferred text first, with the probabilities that each text is the better one as advantages."""
        buffer = self.rollout_buffer
        groups = np.array([segment.prompt_id for segment in buffer.segments])  # (S,)
        pairs = np.argsort(groups, kind="stable").reshape(-1, 2)  # (P, 2): a prompt is dealt twice, or a multiple of that
        one, two = buffer.scores[pairs].T  # (P,) each
        first = (0.5 + 0.5 * np.sign(one - two)) if self._compare is None else self._verdicts(pairs)  # (P,)
        better = np.empty(len(groups))  # (S,)
        better[pairs] = np.stack([first, 1 - first], 1)
        ordered = np.where((first < 0.5)[:, None], pairs[:, ::-1], pairs)[first != 0.5]  # (P', 2)
        buffer.set_advantages(np.repeat(better, np.diff(buffer._offsets)).astype(np.float32))  # (N,)
        buffer.trained = ordered
        trained, written = self.ranks.sums([ordered.size, len(groups)])
        self.logger.record("tokens/share_trained", trained / written)
        if not trained and self.ranks.is_main:
            message = f"no pair of rollout {self.num_rollouts} has a preference, and it has no update: is the reward too coarse?"
            self.health.warn("no preference", message)

    def _verdicts(self, pairs: np.ndarray) -> np.ndarray:
        """Return the probability that the first text of each pair is the better one, as the judge has it, shape (P,)."""
        assert self._compare is not None
        texts = [info["text"] for info in self.rollout_buffer.infos]
        first = np.asarray(self._compare(*([texts[index] for index in column] for column in pairs.T.tolist())), np.float64)  # (P,)
        if first.shape != (len(pairs),) or not ((first >= 0) & (first <= 1)).all():
            raise RewardError(f"the judge {self.judge} gave {first!r:.200} for {len(pairs)} pairs: one probability each is needed")
        return first

    def _train(self) -> None:
        self._prefer()
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        trainable = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        log: dict[str, list[float]] = {}
        at_once = self.policy.settings.micro_batch_size
        for _ in range(self.n_epochs):
            for parts in self.rollout_buffer.parts(self.batch_size // 2, at_once and max(1, at_once // 2)):  # in pairs
                self.policy.optimizer.zero_grad()
                added = [self.engine.add_gradients(self._loss, part.samples, part.whole, last=part.last) for part in parts]
                notes = self.ranks.total(combined(added)) | {"grad_norm": float(self.engine.clip(trainable, self.max_grad_norm))}
                self.policy.optimizer.step()
                for name, value in notes.items():
                    log.setdefault(name, []).append(value)
            self._n_updates += 1
        for name, values in log.items():
            self.logger.record(f"train/{name}", float(np.mean(values)))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _loss(self, samples: SequenceSamples, whole: MinibatchSize | None = None) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of a minibatch of pairs, and the numbers for the log.

        Args:
            samples: 2 B texts with N tokens, the preferred text of each pair before the other.
            whole: Size of the minibatch in pairs, if they are a part: the losses of the parts add up to that of the minibatch.
        """
        _, log_prob, _ = self.policy.evaluate_actions(samples.observations, samples.actions.long())  # (N,)
        assert samples.reference_log_prob is not None
        batch = samples.observations
        rows = batch.rows  # (N,)
        nothing = log_prob.new_zeros(len(batch.input_ids))  # (2 B,)
        chosen, rejected = nothing.index_add(0, rows, log_prob - samples.reference_log_prob).unflatten(0, (-1, 2)).T  # (B,) each
        label = nothing.index_copy(0, rows, samples.advantages.to(nothing.dtype))[::2]  # (B,): the same at all tokens of a text
        label = smoothed(label, self.label_smoothing, robust=False)
        share = len(label) / (len(label) if whole is None else whole.texts)
        loss = share * preference_loss((chosen, rejected), self.rollout_buffer.beta, label, squared=self.loss == "ipo")
        with torch.no_grad():
            log_ratio = log_prob - samples.old_log_prob  # (N,)
            right = 0.5 + 0.5 * (chosen - rejected).sign()  # (B,)
            notes = {"accuracy": share * right.mean(), "approx_kl": share * (log_ratio.expm1() - log_ratio).mean(), "loss": loss}
            told = dict(zip(notes, torch.stack(list(notes.values())).tolist(), strict=True))  # one wait for a GPU
        return loss, told
