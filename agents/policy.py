"""A causal language model as the policy and critic of Stable-Baselines3's on-policy algorithms."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from safetensors.torch import load_file
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from .cache import CachedDecoder
from .lm import LMSource, config_of, load_lm, save_lm
from .sampler import Sampler, draw, restrict
from .sequences import SequenceBatch, action_hidden, action_log_probs, action_logits, lm_head, pack_kept, texts_of

_ADAM = {"eps": 1e-5, "fused": True}  # eps: Huang et al. 2024, "N+ implementation details"; fused: 1.3x faster on a CPU


VALUE_HEAD = "value_head.safetensors"


class Acting(NamedTuple):
    """What the buffer must know about the distribution that actions were drawn from.

    `TransformerPolicy.forward` attaches it to the log-probabilities as `log_probs.acting`: SB3 hands that tensor to
    `RolloutBuffer.add` untouched, and there is no other way from a policy to the buffer of an unmodified algorithm.

    Attributes:
        sampler: The sampling rules.
        kept: Packed kept sets, shape (B, ceil(V / 8)), uint8; None if nothing was cut.
    """

    sampler: Sampler
    kept: np.ndarray | None


class TransformerPolicy(ActorCriticPolicy):
    """Any Hugging Face causal language model, with a value head on the shared trunk.

    Works in every on-policy algorithm of Stable-Baselines3: `PPO(TransformerPolicy, env, policy_kwargs={"model": ...})`.
    `forward`, which only `collect_rollouts` calls, and `predict` each keep keys and values between calls.

    Args:
        observation_space: The environment's.
        action_space: The environment's.
        lr_schedule: Given by the algorithm.
        model: A folder or hub id, or an architecture's configuration as plain data with `model_type`.
        temperature: See `Sampler`.
        top_k: See `Sampler`.
        top_p: See `Sampler`.
        min_new_tokens: See `Sampler`.
        eos_token_id: The end-of-text token, if the model's configuration does not name it.
        use_sde: SB3 passes False; there is no state-dependent exploration over tokens.
        optimizer_class: Of the parameters; Adam by default.
        optimizer_kwargs: Its arguments; for Adam, eps 1e-5 and the fused implementation by default.

    Raises:
        ValueError: The model's vocabulary or context is smaller than the environment's, or a sampling rule is invalid.
        TypeError: The spaces are not those of a text environment.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        model: LMSource,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_new_tokens: int = 0,
        eos_token_id: int | None = None,
        use_sde: bool = False,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if not (isinstance(observation_space, spaces.Dict) and set(observation_space.spaces) == {"prompt", "response"}):
            raise TypeError(f"observation space {observation_space}: TransformerPolicy plays text environments (prompt, response)")
        if not isinstance(action_space, spaces.Discrete):
            raise TypeError(f"action space {action_space}: TransformerPolicy needs Discrete(vocabulary size)")
        if use_sde:
            raise ValueError("use_sde=True explores continuous actions; tokens are discrete: leave it False")
        self.vocab_size = int(action_space.n)
        self._source = model
        self._rules = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_new_tokens": min_new_tokens}
        self._eos_token_id = eos_token_id
        if optimizer_kwargs is None and optimizer_class is torch.optim.Adam:
            optimizer_kwargs = dict(_ADAM)
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[],
            features_extractor_class=_NoFeatures,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        self.lm = load_lm(self._source)
        self._check_fit()
        eos = self.lm.config.eos_token_id if self._eos_token_id is None else self._eos_token_id
        self.sampler = Sampler(**self._rules, eos_token_id=eos if isinstance(eos, int) else None)  # type: ignore[arg-type]
        # Zero weights: the value of every state is 0 at the start, so that the critic adds no noise (Ziegler et al. 2019)
        self.value_head = nn.Linear(self.lm.config.hidden_size, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        if isinstance(self._source, (str, Path)) and (Path(self._source) / VALUE_HEAD).is_file():
            self.value_head.load_state_dict(load_file(Path(self._source) / VALUE_HEAD))
        self._acting_cache = CachedDecoder()
        self._predict_cache = CachedDecoder()
        self.register_load_state_dict_post_hook(lambda *_: self.drop_caches())
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _check_fit(self) -> None:
        config = self.lm.config
        if config.vocab_size < self.vocab_size:
            raise ValueError(f"the model has {config.vocab_size} tokens, the environment {self.vocab_size}: use the model's own tokenizer")
        room = getattr(config, "max_position_embeddings", None)
        need = sum(space.shape[0] for space in self.observation_space.spaces.values())  # type: ignore[attr-defined]
        if room is not None and room < need:
            raise ValueError(f"the model reads {room} tokens, prompt and response take {need}: lower max_new_tokens or enlarge the model")

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the language model as transformers does, and the value head beside it (safetensors).

        `AutoModelForCausalLM.from_pretrained` opens the folder, and so does `policy_kwargs={"model": folder}`, value head
        included.  Sampling rules are not part of it.
        """
        save_lm(self.lm, folder, {VALUE_HEAD: self.value_head.state_dict()})

    def drop_caches(self) -> None:
        """Forget keys and values; needed after every change of the weights that does not go through SB3."""
        self._acting_cache.drop()
        self._predict_cache.drop()

    def set_training_mode(self, mode: bool) -> None:
        """Switch between training and evaluation; training changes the weights, so the caches are dropped."""
        if mode:
            self.drop_caches()
        super().set_training_mode(mode)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Choose the next token of every text.

        Rows that are idle (an empty prompt) get action, value and log-probability 0.

        Args:
            obs: `prompt` (B, P) and `response` (B, T).
            deterministic: Take the likeliest token instead of drawing one.

        Returns:
            Actions (B,), values (B, 1) and log-probabilities (B,); the last carries `.acting`, see `Acting`.
        """
        live, hidden, logits, kept = self._next_token(obs, self._acting_cache)
        chosen = self._choose(logits, deterministic)
        actions = torch.zeros(len(live), dtype=torch.int64, device=logits.device)
        values = torch.zeros(len(live), 1, device=logits.device)
        log_probs = torch.zeros(len(live), device=logits.device)
        actions[live] = chosen
        values[live] = self.value_head(hidden.float())
        log_probs[live] = logits.log_softmax(-1).gather(-1, chosen[:, None]).squeeze(-1)
        bits = None
        if kept is not None:
            bits = np.zeros((len(live), (self.vocab_size + 7) // 8), np.uint8)
            bits[live.cpu().numpy()] = pack_kept(kept)
        log_probs.acting = Acting(self.sampler, bits)  # type: ignore[attr-defined]
        return actions, values, log_probs

    def evaluate_actions(
        self, obs: PyTorchObs | SequenceBatch, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Score actions under the current weights.

        Args:
            obs: A `SequenceBatch` of N actions from a `SequenceRolloutBuffer`, or a dict of N observations from SB3's own
                buffers.
            actions: Shape (N,).

        Returns:
            Values (N, 1), log-probabilities (N,) and entropies in nats (N,).

        Raises:
            ValueError: Top-k or top-p is on and `obs` is a dict: SB3's buffers do not keep which tokens were cut.
        """
        batch = obs if isinstance(obs, SequenceBatch) else self._one_action_each(obs)
        if self.sampler.cuts and batch.kept is None:
            raise ValueError(
                f"top_k={self.sampler.top_k}, top_p={self.sampler.top_p}: what the acting policy cut must be cut in training, "
                "and this buffer does not store it; use rollout_buffer_class=SequenceRolloutBuffer"
            )
        hidden = action_hidden(self.lm, batch)  # (N, D)
        log_probs, entropy = action_log_probs(self.lm, hidden, batch, actions, self.sampler, self.vocab_size)
        return self.value_head(hidden.float()), log_probs, entropy

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """Return the distribution over the next token of every text; rows must not be idle."""
        batch = self._one_action_each(obs)
        logits = action_logits(self.lm, action_hidden(self.lm, batch), batch, self.sampler, self.vocab_size)
        return CategoricalDistribution(self.vocab_size).proba_distribution(restrict(logits, self.sampler.cut(logits)))

    def predict_values(self, obs: PyTorchObs) -> torch.Tensor:
        """Return the value of every text, shape (B, 1); that of an idle row means nothing."""
        return self.value_head(action_hidden(self.lm, self._one_action_each(obs)).float())

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> torch.Tensor:
        live, _, logits, _ = self._next_token(observation, self._predict_cache)
        actions = torch.zeros(len(live), dtype=torch.int64, device=logits.device)
        actions[live] = self._choose(logits, deterministic)
        return actions

    def _next_token(self, obs: PyTorchObs, cache: CachedDecoder) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return live rows (B,) bool, their hidden states (R, D), logits (R, V) and kept sets (R, V)."""
        texts, lengths, steps = texts_of(obs)
        if not lengths.any():
            raise ValueError("no row has a prompt: reset the environment before asking for actions")
        hidden = cache.last_hidden(self.lm, texts, lengths)  # (R, D)
        live = torch.as_tensor(lengths > 0, device=hidden.device)
        raw = lm_head(self.lm, hidden)[:, : self.vocab_size]
        logits = self.sampler.apply_rules(raw, torch.as_tensor(steps[lengths > 0], device=hidden.device))
        if not torch.isfinite(logits).all():
            raise FloatingPointError("the policy's logits are NaN or infinite: lower the learning rate or max_grad_norm")
        kept = self.sampler.cut(logits)
        return live, hidden, restrict(logits, kept), kept

    @staticmethod
    def _choose(logits: torch.Tensor, deterministic: bool) -> torch.Tensor:
        return logits.argmax(-1) if deterministic else draw(logits)  # (R,)

    def _one_action_each(self, obs: PyTorchObs) -> SequenceBatch:
        """Read each observation as a text with one action after it."""
        texts, lengths, steps = texts_of(obs)
        width = max(int(lengths.max()), 1)
        last = np.arange(len(texts)) * width + np.maximum(lengths - 1, 0)
        ids = np.maximum(texts[:, :width], 0)
        return SequenceBatch(*(torch.from_numpy(a).to(self.device) for a in (ids, last, steps)))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "model": config_of(self.lm),
            **self._rules,
            "eos_token_id": self._eos_token_id,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
        }


class _NoFeatures(BaseFeaturesExtractor):
    """SB3 insists on a features extractor; token ids need none."""

    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__(observation_space, features_dim=1)
