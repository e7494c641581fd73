"""A language model as the policy and critic of Stable-Baselines3's on-policy algorithms."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.common.utils import is_vectorized_observation

from rewards.models.lora import add_adapters
from textrl_env import TokenSpace
from textrl_env.utils.suggestions import did_you_mean

from ..models.backbones import backbone_of
from ..models.cached_decoder import CachedDecoder
from ..models.decoding_weights import DecodingWeights
from ..models.loading import LMSource, agreed_ends, config_of, is_in_shards, load_lm, save_lm, set_ends, switch_off_dropout
from ..models.log_probs import action_log_probs, action_logits, in_parts
from ..models.mixed_precision import precision_of
from ..models.model_checks import check_lengths
from ..models.sampler import ids_of, pack_kept, restrict
from ..models.sequences import PartialTexts, SequenceBatch, image_shape_of, one_action_each, texts_of, withheld_after
from ..models.upload import Upload
from .critic import NONE, SEPARATE, SHARED, VALUE_HEAD, load_head, saved_head, separate_critic, value_head, values_of
from .learned_mask import LearnedMask
from .next_tokens import NextTokens, cut
from .policy_settings import PolicySettings, check_names, with_own_settings
from .sampling_record import NoFeatures, SamplingRecord

_ADAM = {"eps": 1e-5, "fused": True}  # eps: Huang et al. 2024, "N+ implementation details"; fused: 1.3x faster on a CPU


class TransformerPolicy(ActorCriticPolicy):
    """Any language model of transformers, decoder-only or encoder-decoder, or a module of your own; and a critic.

    Works in every on-policy algorithm of Stable-Baselines3: `PPO(TransformerPolicy, env, policy_kwargs={"model": ...})`.
    `forward`, which only `collect_rollouts` calls, and `predict` each keep keys and values between calls.

    Args:
        observation_space: The environment's.
        action_space: The environment's.
        lr_schedule: Given by the algorithm.
        model: See `agents.models.loading.load_lm`: a folder or hub id, an architecture as plain data with `model_type`, or the import
            string of a class of your own.  What ends a text, the environment says: it overwrites the `eos_token_id` of a dict with fresh
            weights, and must name every end that a folder's `config.json` and `generation_config.json` name.
        use_sde: SB3 passes False; there is no state-dependent exploration over tokens.
        optimizer_class: Of the parameters; Adam by default.
        optimizer_kwargs: Its arguments; for Adam, eps 1e-5 and the fused implementation by default.
        **settings: Fields of `PolicySettings`, such as `temperature`, `critic` or `precision`.

    Attributes:
        critic_by_name: Whether who trains it may tell the critic's parameters by their names, as sb3-contrib's own TRPO does: then models
            with "value" in their names, such as GPT-NeoX, are refused where its update begins.

    Raises:
        ValueError: The model's vocabulary or context is smaller than the environment's, or an argument is out of range.
        TypeError: The spaces are not those of a text environment.
    """

    __module__ = "agents"
    critic_by_name = True

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        model: LMSource | None = None,
        use_sde: bool = False,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        if not (isinstance(observation_space, spaces.Dict) and set(observation_space.spaces) - {"image"} == {"prompt", "response"}):
            raise TypeError(f"observation space {observation_space}: TransformerPolicy plays text environments (prompt, response, image)")
        if not isinstance(action_space, spaces.Discrete):
            raise TypeError(f"action space {action_space}: TransformerPolicy needs Discrete(vocabulary size)")
        if use_sde:
            raise ValueError("use_sde=True explores continuous actions; tokens are discrete: leave it False")
        if model is None:
            raise ValueError(
                "no model: pass policy_kwargs={'model': ...}, a folder, a hub id, or an architecture as a dict with 'model_type'"
            )
        known = [*(field.name for field in dataclasses.fields(PolicySettings)), "model", "optimizer_class", "optimizer_kwargs"]
        for name in settings.keys() - set(known):
            raise TypeError(f"the policy has no setting {name!r}{did_you_mean(name, known)}; it takes {', '.join(known)}")
        self.vocab_size = int(action_space.n)
        self._source: LMSource = model
        self.settings = PolicySettings(**settings)
        if optimizer_kwargs is None and optimizer_class is torch.optim.Adam:
            optimizer_kwargs = dict(_ADAM)
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[],
            features_extractor_class=NoFeatures,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        settings = self.settings
        self.lm = load_lm(self._source)
        self.backbone = backbone_of(self.lm)
        self._check_fit()
        ends = agreed_ends(self.lm, self._source, getattr(self.action_space, "eos_token_ids", None), ids_of(settings.eos_token_id))
        set_ends(self.lm, ends)
        pictures = [token for token in self.backbone.placeholders if token < self.vocab_size]
        self.sampler = settings.sampler(ends, (*getattr(self.action_space, "unused_ids", ()), *pictures))
        if max(self.sampler.banned_tokens, default=0) >= self.vocab_size:
            raise ValueError(f"banned_tokens={self.sampler.banned_tokens}: ids go up to {self.vocab_size - 1}")
        # Built before the adapters: a critic of its own trains all its weights.
        self.value_head, self.value_trunk, self._value_backbone = None, None, None
        if settings.critic == SHARED:
            self.value_head = value_head(self.backbone.hidden_size)
        elif settings.critic != NONE:
            self.value_trunk, self.value_head = separate_critic(settings.critic, self.backbone)
            self._value_backbone = backbone_of(self.value_trunk, head=False)
        if self.value_head is not None and (saved := saved_head(self._source)) is not None and self.value_trunk is None:
            load_head(self.value_head, saved)
        if settings.lora is not None:
            add_adapters(self.lm, settings.lora)
            switch_off_dropout(self.lm)
        for backbone in self._backbones():
            backbone.check_images(image_shape_of(self.observation_space))
            if not is_in_shards(self.lm):  # or all processes together check it when training begins
                check_lengths(backbone, *(self.observation_space[key].shape[0] for key in ("prompt", "response")))  # type: ignore[index]
            backbone.autocast = precision_of(settings.precision)
            if settings.gradient_checkpointing:
                backbone.checkpoint_layers()
            if settings.compile:
                backbone.compile()
        self.mask: LearnedMask | None = None  # NLPO's
        self._weights = {backbone: DecodingWeights(backbone) for backbone in self._backbones()}
        reads = {"acting": self.backbone, "predict": self.backbone, "values": self._backbones()[-1]}
        self._caches = {name: CachedDecoder(settings.cuda_graphs, self._weights[backbone]) for name, backbone in reads.items()}
        self.register_load_state_dict_post_hook(lambda *_: self.drop_caches())
        self.optimizer = self.optimizer_class(self._parameter_groups(lr_schedule(1)), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]
        self.optimizer.register_load_state_dict_pre_hook(with_own_settings)

    def _backbones(self) -> list[Any]:
        return [self.backbone] if self._value_backbone is None else [self.backbone, self._value_backbone]

    def _parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        own, actor, critic = self.settings.critic_learning_rate, self.actor_parameters(), self._critic_parameters()
        if own is None or not critic:
            return [{"params": actor + critic}]
        return [{"params": actor, "lr": rate}, {"params": critic, "lr": own, "own_lr": own}]

    def actor_parameters(self) -> list[torch.nn.Parameter]:
        """Return the trainable parameters that are not the critic's own: those that stand still while it warms up."""
        critic = {id(p) for p in self._critic_parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in critic]

    def _critic_parameters(self) -> list[torch.nn.Parameter]:
        return [p for part in (self.value_trunk, self.value_head) if part is not None for p in part.parameters()]

    def _check_fit(self) -> None:
        if self.backbone.vocab_size < self.vocab_size:
            raise ValueError(
                f"the model has {self.backbone.vocab_size} tokens, the environment {self.vocab_size} (the largest id + 1): use the model's "
                "own tokenizer"
            )
        response = self.observation_space["response"].shape[0]  # type: ignore[index]
        if self.settings.min_new_tokens > response:
            raise ValueError(f"min_new_tokens={self.settings.min_new_tokens}: a text of this task has at most {response} tokens")

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the language model and the tokenizer as transformers does, and a shared value head beside them (safetensors).

        `AutoModelForCausalLM.from_pretrained` opens the folder, and so does `policy_kwargs={"model": folder}`, value head
        included; for encoder-decoder models `AutoModelForSeq2SeqLM`.  `config.json` and `generation_config.json` name the task's ends
        of text, so that `generate` of transformers stops where the policy does; `AutoTokenizer.from_pretrained` opens the folder if
        the task's tokenizer has `pretrained_files`, as those of this package have.  Adapters are folded in.  Sampling rules and a
        critic of its own are not part of it.
        """
        beside = {VALUE_HEAD: self.value_head.state_dict()} if self.value_head is not None and self.value_trunk is None else {}
        save_lm(self.lm, folder, beside, self.tokenizer_files())

    def tokenizer_files(self) -> dict[str, str]:
        """Return the task's tokenizer as files by name, as transformers saves it; none if it is not known."""
        return self.action_space.tokenizer_files() if isinstance(self.action_space, TokenSpace) else {}

    def architecture(self) -> dict[str, Any]:
        """Return the arguments that name models, as configurations instead of folders, which may move."""
        critic = self.settings.critic
        if self.value_trunk is not None and critic != SEPARATE:
            critic = config_of(self.value_trunk)
        return {"model": config_of(self.lm), "critic": critic}

    def drop_caches(self) -> None:
        """Forget keys, values and copied weights; needed after every change of the weights that does not go through SB3."""
        for cache in self._caches.values():
            cache.drop()
        for weights in self._weights.values():
            weights.drop()
        if self.mask is not None:
            self.mask.drop()

    def set_training_mode(self, mode: bool) -> None:
        """Switch between training and evaluation; training changes the weights, so the caches are dropped."""
        if mode:
            self.drop_caches()
        super().set_training_mode(mode)

    def forward(
        self, obs: PyTorchObs, deterministic: bool = False, action_masks: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Choose the next token of every text.

        Rows that are idle (an empty prompt) get action, value and log-probability 0.

        Args:
            obs: `prompt` (B, P) and `response` (B, T), and `image` (B, H, W, 3) if the prompts have pictures.
            deterministic: Take the likeliest token instead of drawing one.
            action_masks: Which tokens are legal, shape (B, V), bool; None: all.

        Returns:
            Actions (B,) on the host, values (B, 1) and log-probabilities (B,); the last carries `.acting`, see `SamplingRecord`.
        """
        texts = texts_of(obs)
        live, upload = self._live(texts), Upload(self.device)
        place = None if len(live) == len(texts.ids) else upload.add(live)
        critic = None if self._value_backbone is None else self._caches["values"].plan(self._value_backbone, texts, upload)
        tokens = self._next_tokens(texts, "acting", action_masks, upload)

        def in_rows(numbers: torch.Tensor) -> torch.Tensor:  # from (R, ...) to (B, ...)
            return numbers if place is None else numbers.new_zeros(len(texts.ids), *numbers.shape[1:]).index_copy(0, place(), numbers)

        chosen = tokens.choose(deterministic)  # (R,)
        values = values_of(self.value_head, tokens.hidden if critic is None else critic(), self.settings.detach_critic)  # (R, 1)
        log_probs = in_rows(tokens.logits.log_softmax(-1).gather(-1, chosen[:, None]).squeeze(-1).float())  # (R, V), (R, 1), (B,)
        kept = None if tokens.kept is None else in_rows(pack_kept(tokens.kept))  # (B, ceil(V / 8))
        log_probs.acting = SamplingRecord(self.sampler, kept, self.backbone.autocast)  # type: ignore[attr-defined]
        return tokens.fetch(chosen), in_rows(values.float()), log_probs  # last: until here the host waits for nothing

    def evaluate_actions(
        self, obs: PyTorchObs | SequenceBatch, actions: torch.Tensor, action_masks: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Score actions under the current weights.

        Args:
            obs: A `SequenceBatch` of N actions from a `SequenceRolloutBuffer`, or a dict of N observations from SB3's own
                buffers.
            actions: Shape (N,).
            action_masks: Which tokens were legal, shape (N, V), if `obs` does not hold them; None: all.

        Returns:
            Values (N, 1), log-probabilities (N,) and entropies in nats (N,).

        Raises:
            ValueError: Top-k, top-p or min-p is on and `obs` is a dict: SB3's buffers do not keep which tokens were cut.
        """
        batch = self._as_batch(obs, action_masks)
        if (self.sampler.cuts or self.mask is not None) and (batch.kept is None or not isinstance(obs, SequenceBatch)):
            raise ValueError(
                f"top_k={self.sampler.top_k}, top_p={self.sampler.top_p}, min_p={self.sampler.min_p}: what the acting policy cut must "
                "be cut in training, and this buffer does not store it; use rollout_buffer_class=SequenceRolloutBuffer"
            )
        values, log_probs, entropies = self.in_micro_batches(self._score, batch, actions)
        return values, log_probs, entropies

    def in_micro_batches(
        self, score: Callable[..., tuple[torch.Tensor, ...]], batch: SequenceBatch, *columns: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return what `score` makes of a batch and of columns with a number for each of its N actions, `micro_batch_size` texts at once."""
        size = self.settings.micro_batch_size or len(batch.input_ids)
        if len(batch.input_ids) <= size:
            return score(batch, *columns)
        return in_parts(score, [(part, *(column[span] for column in columns)) for part, span in batch.split(size)])

    def _score(self, batch: SequenceBatch, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden = self.backbone.hidden(batch)  # (N, D)
        log_probs, entropies = action_log_probs(self.backbone, hidden, batch, actions, self.sampler, self.vocab_size)
        return self._values(hidden, batch), log_probs, entropies

    def _values(self, hidden: torch.Tensor, batch: SequenceBatch) -> torch.Tensor:
        if self._value_backbone is not None:
            hidden = self._value_backbone.hidden(batch)  # (N, D)
        return values_of(self.value_head, hidden, self.settings.detach_critic)

    def get_distribution(self, obs: PyTorchObs | SequenceBatch, action_masks: Any = None) -> Distribution:
        """Return the distribution over the next token of every text; rows must not be idle.

        Arguments are those of `evaluate_actions`.  Without kept sets in `obs`, top-k, top-p, min-p and NLPO's mask cut here.
        """
        if self.critic_by_name and self.training and torch.is_grad_enabled():
            check_names(self.lm)
        batch = self._as_batch(obs, action_masks)

        def score(part: SequenceBatch) -> tuple[torch.Tensor]:
            return (action_logits(self.backbone, self.backbone.hidden(part), part, self.sampler, self.vocab_size),)

        (logits,) = self.in_micro_batches(score, batch)  # (N, V)
        if not isinstance(obs, SequenceBatch):
            mask = None if self.mask is None else self.mask.plan(texts_of(obs), Upload(self.device))
            logits, _ = cut(self.sampler, logits, None, mask)
        return CategoricalDistribution(self.vocab_size).proba_distribution(logits)

    def predict_values(self, obs: PyTorchObs | SequenceBatch) -> torch.Tensor:
        """Return the value of every text, shape (B, 1) or (N, 1); that of an idle row means nothing."""
        batch = self._as_batch(obs)
        if self.value_head is None:
            return torch.zeros(len(batch.predictor), 1, device=self.device)
        backbone = self._value_backbone or self.backbone

        def score(part: SequenceBatch) -> tuple[torch.Tensor]:
            return (values_of(self.value_head, backbone.hidden(part), self.settings.detach_critic),)

        return self.in_micro_batches(score, batch)[0]

    def _as_batch(self, obs: PyTorchObs | SequenceBatch, action_masks: Any = None) -> SequenceBatch:
        if isinstance(obs, SequenceBatch):
            return obs
        texts = texts_of(obs)
        batch = one_action_each(texts, self.device, self.sampler)
        if action_masks is None:
            return batch
        legal = torch.as_tensor(action_masks, device=self.device).reshape(-1, self.vocab_size).bool()  # (N, V)
        ruled = self.sampler.apply_rules(torch.zeros(legal.shape, device=self.device), batch.withheld)  # (N, V)
        self.sampler.check_choice(restrict(ruled, legal), texts.steps, legal)
        return batch._replace(kept=pack_kept(legal))

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Choose the next token of one text or of many, as SB3's `predict` does.

        Args:
            observation: `prompt` (P,) and `response` (T,), or with a batch dimension in front.
            state: Handed back; what the policy remembers is keyed by the texts themselves.
            episode_start: Not needed.
            deterministic: Take the likeliest token instead of drawing one.
            action_masks: Which tokens are legal, as sb3-contrib's `predict` takes them: shape (V,) or (B, V), bool.
        """
        self.set_training_mode(False)
        sides = {key: space for key, space in self.observation_space.spaces.items() if key != "image"}  # type: ignore[attr-defined]
        tokens: Any = {key: observation[key] for key in sides}  # a picture's colours may come first or last
        vectorized = is_vectorized_observation(tokens, spaces.Dict(sides))
        rows = observation if vectorized else {key: np.asarray(ids)[None] for key, ids in observation.items()}  # type: ignore[union-attr]
        actions = self._predict(rows, deterministic, action_masks).numpy()  # type: ignore[arg-type]
        return (actions if vectorized else actions.squeeze(0)), state

    @torch.no_grad()
    def _predict(self, observation: PyTorchObs, deterministic: bool = False, action_masks: Any = None) -> torch.Tensor:
        tokens = self._next_tokens(texts_of(observation), "predict", action_masks, Upload(self.device))
        return tokens.fetch(tokens.choose(deterministic))  # (B,)

    def _live(self, texts: PartialTexts) -> np.ndarray:
        """Return the rows that hold a text, shape (R,), at least one."""
        live = np.flatnonzero(texts.lengths)
        if not len(live):
            raise ValueError("no row has a prompt: reset the environment before asking for actions")
        return live

    def _next_tokens(self, texts: PartialTexts, cache: str, masks: Any, upload: Upload) -> NextTokens:
        """Compute the distribution of the next token, with all that the host knows of it in one copy to the device."""
        live = self._live(texts)
        last_hidden = self._caches[cache].plan(self.backbone, texts, upload)
        mask = None if self.mask is None else self.mask.plan(texts, upload)
        withheld = upload.add(withheld_after(texts.only(live), self.sampler))
        masked = upload.add(None if masks is None else np.asarray(masks, bool).reshape(-1, self.vocab_size)[live])  # (R, V)
        hidden = last_hidden()  # (R, D)
        with self._weights[self.backbone]:
            raw = self.backbone.logits(hidden)[:, : self.vocab_size]  # (R, V)
        ruled, legal = self.sampler.apply_rules(raw, withheld()), masked()
        logits, kept = cut(self.sampler, restrict(ruled, legal), legal, mask)
        return NextTokens(texts, live, hidden, raw, ruled, legal, logits, kept, self.sampler)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            **vars(self.settings),
            **self.architecture(),
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
        }
