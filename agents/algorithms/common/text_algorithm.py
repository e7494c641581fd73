"""The base of our on-policy algorithms: Stable-Baselines3's, with rollouts of whole texts and KL to a reference."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.vec_env import VecEnv, VecTransposeImage
from torch import nn

from rewards.utils.devices import get_device
from textrl_env.tokenizer import check_same_tokens
from textrl_env.utils.files import new_path

from ...generation.generator import Generator
from ...models.loading import LMSource
from ...models.lora import without_adapters
from ...models.memory_estimate import MemoryEstimate
from ...policies.transformer_policy import TransformerPolicy
from ...rollouts.collect import play_episodes
from ...rollouts.collect_generated import generated_actions
from ...rollouts.kl_controller import KLController, as_kl_controller
from ...rollouts.reference_model import make_reference, move_reference
from ...rollouts.reward_scaling import ScoreScale
from ...rollouts.rollout_buffer import SequenceRolloutBuffer
from ...rollouts.rollout_samples import RolloutResult
from ...rollouts.text_vec_env import as_text_vec_env, text_env_of
from ...utils.progress import TokenProgressBar
from .changed_arguments import changed_attributes, check_buffer, check_whole, vocabulary_hash
from .distributed_mixin import DistributedMixin, Stopped
from .keyword_arguments import KeywordArguments
from .memory_check import check_memory
from .metric_names import record_padding, record_rollout, rename
from .random_states import generators, restore_generators, seed_of_rows
from .training_warnings import RolloutSymptoms, TrainingChecks, trainable_parameters

if TYPE_CHECKING:
    from typing_extensions import Self

_NOT_SAVED = (
    "reference", "_rollout_start", "last_rollout", "health", "_ptx", "generator", "ranks", "engine", "_wrapped", "memory", "shard",
)  # fmt: skip


class TextAlgorithm(KeywordArguments, DistributedMixin, OnPolicyAlgorithm):
    """Mixin that stands before an SB3 algorithm: rollouts are whole texts, and KL to a frozen reference shapes their rewards.

    Constructors of subclasses end with `_construct`, which calls that of the SB3 algorithm.

    Attributes:
        n_episodes: Texts per rollout.
        num_rollouts: Rollouts so far.
        num_texts: Texts so far.
        last_rollout: The latest finished rollout, for callbacks; None before the first.  It is not saved.
        reference: The frozen model that KL is measured against; None: it is the base model under the policy's adapters.
        reference_source: What the reference was loaded from; None: nothing, it is made of the policy's first weights.
        reference_hash: SHA-256 of that folder.
        reference_mixup: Share of the policy that goes into the reference after each update.
        critic_warmup: Rollouts at the start in which only the critic learns.
        kl_controller: Holds beta.
        score_scale: Holds the running moments of the scores, see `SequenceRolloutBuffer`.
        generator: Writes the texts instead of the policy, see `Generator`; None: the policy writes.  It is not saved.
        vocabulary_hash: SHA-256 of what the tokens meant when it was saved, see `changed_arguments`.
        memory: Estimate of the memory that training takes; None before it begins.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"TransformerPolicy": TransformerPolicy}
    _buffer_class: ClassVar[type[SequenceRolloutBuffer]] = SequenceRolloutBuffer
    _named_apart: ClassVar[tuple[str, ...]] = ("beta", "reference")  # of the buffer's arguments: those that are the algorithm's own
    _meanings: ClassVar[Mapping[str, str]] = {
        "policy": 'Name of the policy class, usually `"TransformerPolicy"`, or a subclass of it.',
        "env": "Id of a text environment, a text environment, or a `TextGenerationVecEnv`.",
    }
    _instead: ClassVar[Mapping[str, str]] = {
        "n_steps": "n_episodes: texts per rollout, not steps", "kl_coef": "beta", "init_kl_coef": "beta", "lr": "learning_rate",
        "model": "policy_kwargs={'model': ...}", "temperature": "policy_kwargs={'temperature': ...}",
        "micro_batch_size": "policy_kwargs={'micro_batch_size': ...}", "total_timesteps": "learn(total_timesteps)",
        "vllm_importance_sampling_mode": "rollout_buffer_kwargs={'importance_sampling_mode': ...}",
    }  # fmt: skip
    policy: TransformerPolicy
    rollout_buffer: SequenceRolloutBuffer
    reference: nn.Module | None
    n_episodes: int
    num_rollouts: int = 0
    num_texts: int = 0
    last_rollout: RolloutResult | None = None
    reference_source: LMSource | None
    reference_hash: str | None = None
    vocabulary_hash: str | None = None
    reference_mixup: float = 0.0
    critic_warmup: int = 0
    kl_controller: KLController
    score_scale: ScoreScale | None = None
    generator: Generator | None = None
    memory: MemoryEstimate | None = None
    reference_name: ClassVar[str] = "reference"  # as messages call it
    _leaves_gradients: ClassVar[bool] = True  # whether parameters have their .grad after train()
    resume_state: dict[str, Any] | None = None  # of a checkpoint, until training goes on from it
    _rollout_start: dict[str, Any] | None = None  # from the start of a rollout to the end of its update

    @property
    def texts_per_update(self) -> int:
        """Texts in each optimizer step of the policy: a minibatch, or all where the algorithm has none."""
        return getattr(self, "batch_size", self.n_episodes)

    @property
    def saved_timesteps(self) -> int:
        """Tokens at which a checkpoint that is saved now goes on: those at the start of the rollout that is under way."""
        return int((self._rollout_start or self.__dict__)["num_timesteps"])

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """Turn a scalar text environment into a batched one, and add episode statistics."""
        wrapped = BaseAlgorithm._wrap_env(as_text_vec_env(env, monitor_wrapper), verbose, monitor_wrapper)
        return wrapped.venv if isinstance(wrapped, VecTransposeImage) else wrapped  # pictures stay as the environment shows them

    def _construct(self, policy: str | type[TransformerPolicy], env: GymEnv | str, settings: Any, **buffer: Any) -> None:
        """Set what all text algorithms take, and hand the rest of `settings` to the constructor of the library's class.

        `buffer` holds arguments of the rollout buffer that `rollout_buffer_kwargs` may overrule.
        """
        check_buffer(settings["rollout_buffer_kwargs"], self._named_apart)
        given = {**settings, "device": get_device(settings["device"])}
        self.n_episodes, self.kl_controller = given.pop("n_episodes"), as_kl_controller(given.pop("beta"))
        self.critic_warmup, reference = given.pop("critic_warmup", 0), given.pop("reference")
        self.reference_source = str(reference) if isinstance(reference, Path) else reference
        lambdas = {name: given.pop(name) for name in ("gae_lambda_critic", "gae_alpha")}
        vars(self).update(lambdas, reference_mixup=given.pop("reference_mixup"), shard=given.pop("shard"))
        if None not in lambdas.values() and given["gae_lambda"] != self._accepted["gae_lambda"].default:
            raise ValueError(f"gae_lambda={given['gae_lambda']} beside {lambdas}, which leave it no use: leave one of the three out")
        if "batch_size" in given:  # `n_steps` is not used; a multiple of batch_size keeps SB3's warning about cut minibatches quiet
            given["n_steps"] = given["batch_size"]
        given |= {
            "normalize_advantage": False,  # the buffer whitens the whole rollout
            "rollout_buffer_class": self._buffer_class,
            "rollout_buffer_kwargs": {**buffer, **lambdas, **(given["rollout_buffer_kwargs"] or {})},
        }
        super().__init__(policy, gym.make(env) if isinstance(env, str) else env, **given)  # SB3 would ask for render_mode="rgb_array"

    def _setup_model(self) -> None:
        self._join_ranks()
        if self.env is not None:
            tokenizer, given, other = text_env_of(self.env).task.tokenizer, self.policy_kwargs, {self.reference_name: self.reference_source}
            for what, folder in {"model": given.get("model"), "critic": given.get("critic"), **other}.items():
                check_same_tokens(folder, tokenizer, what)
        with self._loading_in_shards():
            super()._setup_model()
        self.ranks.share_weights(self.policy)
        self.rollout_buffer.connect(engine=self.engine, kl_controller=self.kl_controller)
        self.score_scale = self.rollout_buffer.kl_shaping.score_scale.going_on(self.score_scale)
        kept = (self.policy_kwargs.get("lora") is not None, self.reference_hash, self.reference_mixup)
        self.reference, self.reference_hash = make_reference(self.reference_source, self.policy, *kept, self.engine)
        self.rollout_buffer.connect(reference=without_adapters(self.policy.backbone) if self.reference is None else self.reference)
        if self.critic_warmup and self.policy.value_head is None:
            raise ValueError(f"critic_warmup={self.critic_warmup}, but critic='none': there is nothing to warm up")
        self.health = TrainingChecks()

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed what SB3 seeds, but the environment's rows far from those of other seeds: theirs would overlap, and so would the prompts."""
        super().set_random_seed(seed)
        if seed is not None and self.env is not None:
            self.env.seed(seed_of_rows(seed))

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int, use_masking: bool = True
    ) -> bool:
        """Write `n_episodes` whole texts; the arguments are SB3's, and `n_rollout_steps` is not used.

        `use_masking`, which MaskablePPO passes, says whether the policy follows the environment's action masks.

        Returns:
            False if a callback asked to stop.
        """
        assert isinstance(rollout_buffer, SequenceRolloutBuffer)
        if self.resume_state is not None:
            restore_generators(self.resume_state, env, self.device)
            self.resume_state = None
        self._rollout_start = {**self._progress(), "resume_state": generators(env, self.device)}
        self._begin_on_ranks(env)
        self.policy.set_training_mode(False)
        self.kl_controller.follow(self._current_progress_remaining)
        callback.on_rollout_start()
        began = perf_counter()
        infos: list[dict[str, Any]] = []  # of each text's last step
        try:
            with self.engine.whole(self.policy):
                self._play(env, callback, rollout_buffer, use_masking, infos)
        except Stopped:
            return False
        finally:
            self._end_on_ranks(env)
        self.num_timesteps = self.saved_timesteps + rollout_buffer.stats.num_tokens
        self.num_rollouts, self.num_texts = self.num_rollouts + 1, self.num_texts + rollout_buffer.stats.num_sequences
        self.last_rollout = RolloutResult(infos, rollout_buffer.stats, perf_counter() - began)
        if self.ranks.is_main:
            approx_kl = self.logger.name_to_value.get("policy/approx_kl")
            self.health.check(RolloutSymptoms.of(self.last_rollout, rollout_buffer, approx_kl, self.generator is not None))
        record_rollout(self.logger, self.last_rollout, self.ranks)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _play(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: SequenceRolloutBuffer, use_masking: bool, finished: list[dict[str, Any]]
    ) -> None:
        """Write the texts, and append the infos of their last steps to `finished`.

        Raises:
            Stopped: A callback asked to stop, on any rank.
        """
        size, writer = rollout_buffer.reference_batch_size, self.generator
        act = None if writer is None else generated_actions(writer, self.policy, env, size)
        for played in play_episodes(self.policy, env, rollout_buffer, self.n_episodes, use_masking, self._end_round, act):
            self.num_timesteps += played.num_live
            infos, dones = played.infos, played.dones
            callback.update_locals(locals())
            if not callback.on_step():
                self.ranks.sums(1)  # what the others do in _end_round
                raise Stopped
            self._update_info_buffer(infos, dones)
            finished += [infos[row] for row in np.flatnonzero(dones)]

    def train(self) -> None:
        """Update the policy as the algorithm does, and log how fast.

        Raises:
            ValueError: The sampling rules are no longer those of the rollout.
        """
        if self.policy.sampler != self.rollout_buffer.sampler:
            raise ValueError(
                f"the rollout was written under {self.rollout_buffer.sampler}, and the policy now has {self.policy.sampler}: the update "
                "would score its tokens under other rules; change them after train(), before the next rollout"
            )
        began = perf_counter()
        waiting = self.policy.actor_parameters() if self.num_rollouts <= self.critic_warmup else []
        trainable = trainable_parameters(self.policy)
        for parameter in waiting:
            parameter.requires_grad_(False)
        try:
            self.policy.backbone.positions[:] = 0
            self._train()
            record_padding(self.logger, self.policy.backbone, self.ranks)
            self._average_log()
            rename(self.logger)
        finally:
            self.engine.rest()
            for parameter in waiting:
                parameter.requires_grad_(True)
        if self._leaves_gradients and not self.health.gradients and not waiting:
            self.health.gradients = self.check_learning(trainable)
        if self.reference_mixup:
            assert self.reference is not None
            move_reference(self.reference, self.policy.lm, self.reference_mixup)
        self._rollout_start = None
        seconds = perf_counter() - began
        self.logger.record("time/update_tokens_per_second", self.rollout_buffer.stats.num_tokens * getattr(self, "n_epochs", 1) / seconds)
        self.logger.record("time/update_seconds", seconds)

    def _train(self) -> None:
        with self._on_engine():
            super().train()

    def _update_learning_rate(self, optimizers: list[torch.optim.Optimizer] | torch.optim.Optimizer) -> None:
        """Follow the schedule, as SB3 does, to its end: the last rollout goes beyond the budget.  A critic's own rate stays."""
        self._current_progress_remaining = max(self._current_progress_remaining, 0.0)  # for all schedules of the update
        super()._update_learning_rate(optimizers)
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            for group in optimizer.param_groups:
                group["lr"] = group.get("own_lr", group["lr"])

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Choose the next token; the arguments are those of `TransformerPolicy.predict`, `action_masks` among them."""
        return self.policy.predict(observation, *args, **kwargs)

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        made: BaseCallback = super()._init_callback(callback, progress_bar=False)
        if progress_bar and self.ranks.is_main:
            made = CallbackList([made, TokenProgressBar()])
            made.init_callback(self)
        return made

    def save(
        self, path: str | Path | io.BufferedIOBase, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None
    ) -> None:
        """Save as SB3 does, to a temporary name first; of several ranks the first writes.  With shards all must call it, for all weights.

        `learn(..., reset_num_timesteps=False)` on what is loaded goes on as if nothing had happened, bit by bit: the file
        holds the state of every generator, the KL controller and the order of the prompts as of the start of the rollout
        that was under way, which is collected again; the reference as folder and SHA-256, or its weights if it was a copy of the
        policy's first ones or moves; and the policy's architecture instead of the folder it was loaded from, which may move.
        """
        if not self.ranks.is_main:
            self.get_parameters()  # the parts of shards
            return
        now = {"resume_state": self.resume_state or (None if self.env is None else generators(self.env, self.device))}
        kept = self._rollout_start or now
        given = {name: getattr(self, name) for name in (*kept, "policy_kwargs")}
        self.__dict__.update(kept)
        self.policy_kwargs = {**self.policy_kwargs, **self.policy.architecture()}
        if self.env is not None:
            self.vocabulary_hash = self.vocabulary_hash or vocabulary_hash(self.env)
        try:
            if not isinstance(path, (str, Path)):
                super().save(path, exclude, include)
                return
            target = Path(path) if Path(path).suffix else Path(f"{path}.zip")
            with new_path(target) as temporary, temporary.open("wb") as file:
                super().save(file, exclude, include)
        finally:
            self.__dict__.update(given)

    @classmethod
    def load(
        cls,
        path: str | Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Load as SB3 does; keyword arguments of the constructor replace what was saved.

        Of `policy_kwargs` and `rollout_buffer_kwargs` only what they name is replaced, such as the temperature; what the file holds
        weights of stays: `model`, `critic`, adapters, the reference.

        The file holds pickled data: load only files you trust.

        Raises:
            TypeError: The class takes no such argument.
            ValueError: An argument does not fit what the file holds, the environment is of another tokenizer or size, or the file is
                damaged or half of one.
        """
        device = get_device(device)
        if isinstance(path, (str, Path)):
            check_whole(Path(path))
        if kwargs:
            data, _, _ = load_from_zip_file(path, device=device, custom_objects=custom_objects)
            assert data is not None
            kwargs = changed_attributes(cls, data, kwargs)
            if "policy_kwargs" in kwargs:  # SB3 takes none that differ
                custom_objects = {**(custom_objects or {}), "policy_kwargs": kwargs.pop("policy_kwargs")}
        loaded = super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        if loaded.env is not None and loaded.vocabulary_hash not in (None, vocabulary_hash(loaded.env)):
            raise ValueError("the environment's tokenizer is another than the policy learned with: its tokens mean other texts")
        return loaded

    def set_parameters(self, *args: Any, **kwargs: Any) -> None:
        """Take over parameters as SB3 does.

        Raises:
            ValueError: They are those of another policy.
        """
        try:
            super().set_parameters(*args, **kwargs)
        except (RuntimeError, ValueError, KeyError) as error:
            first = " ".join(str(error).split())[:300]
            raise ValueError(
                "these are the parameters of another policy, or without a reference that it needs; policy_kwargs, reference and "
                f"reference_mixup must be such as were saved ({first})"
            ) from error

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), *_NOT_SAVED]

    def _progress(self) -> dict[str, Any]:
        """Return what a rollout changes of the algorithm itself."""
        names = ("num_timesteps", "num_rollouts", "num_texts", "_n_updates", "_current_progress_remaining")
        kept = {name: self.__dict__.get(name, getattr(self, name)) for name in names}
        return {**kept, **{name: copy.copy(getattr(self, name)) for name in ("kl_controller", "score_scale", "ep_info_buffer")}}

    def _setup_learn(
        self, total_timesteps: int, callback: MaybeCallback = None, reset_num_timesteps: bool = True, *args: Any, **kwargs: Any
    ) -> Any:
        if reset_num_timesteps:  # a new training, from these weights
            self.resume_state = None
        made = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args, **kwargs)
        self._hand_to_engine()
        self.memory = self.memory or check_memory(self, tell=self.verbose >= 1)
        return made

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        weights = self.reference is not None and (self.reference_source is None or self.reference_mixup > 0)
        return state_dicts + (["reference"] if weights else []), variables
