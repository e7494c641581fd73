"""The work that `agents.benchmark.performance.speed` times, and how TextPPO and SB3's PPO do it."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.vec_env import VecMonitor
from transformers import AutoConfig, AutoModel

from textrl_env import IntegerTokenizer, Prompt, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

from ...algorithms.grpo import GRPO
from ...algorithms.ppo import TextPPO
from ...models.loading import switch_off_dropout
from ...policies.transformer_policy import TransformerPolicy
from ...training.first_texts import timed

Size = Literal["6M", "45M", "135M"]
Shape = Literal["16+48", "256+64", "16+256"]
_SMOLLM = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "max_position_embeddings": 512, "vocab_size": 49152, "tie_word_embeddings": True, "bos_token_id": None,
    "eos_token_id": 0,
}  # fmt: skip
SIZES: dict[Size, dict[str, Any]] = {  # fields of `Speed`
    "6M": {"layers": 4, "width": 256, "heads": 4, "vocabulary": 4096},
    "45M": {"layers": 9, "width": 512, "heads": 8, "vocabulary": 4096},
    "135M": {"model": json.dumps(_SMOLLM), "layers": 30, "width": 576, "heads": 9, "vocabulary": 49152},
}
SHAPES: dict[Shape, dict[str, int]] = {
    "16+48": {"prompt": 16, "new_tokens": 48},
    "256+64": {"prompt": 256, "new_tokens": 64, "group": 8},
    "16+256": {"prompt": 16, "new_tokens": 256},
}


@dataclass(frozen=True)
class Speed:
    """What to measure.

    Attributes:
        size: One of `SIZES`, which says what the next six are; the largest is SmolLM2-135M's architecture.
        architecture: `"llama"` or `"gpt2"`.
        model: Configuration of another model as JSON; architecture, layers, width and heads are not used then.
        vocabulary: Tokens, end-of-text included.
        layers: Transformer blocks.
        width: Hidden size.
        heads: Attention heads.
        shape: One of `SHAPES`, which says what the next three are.
        prompt: Prompt tokens.
        new_tokens: Response tokens; end-of-text is banned, so that all texts are of one length.
        group: Texts for each prompt.
        episodes: Texts per iteration.
        epochs: Passes over them.
        batch: Texts per minibatch.
        repeats: Rounds, after one of warm-up; in each all contenders do one iteration, so that a machine whose speed drifts favours none.
        stock_minibatches: Minibatches of the updates of SB3's PPO, which is slow, that are timed in each round and stand for all of
            them; 0: all.
        stock: Whether SB3's PPO is timed, which takes hours with the larger models.
        trl: Python of an environment with TRL 1.12; by default this one, if TRL is installed.
        trl_newest: Python of another one, from which GRPO and RLOO come.
        trl_trainers: Which of TRL's trainers are timed, see `agents/benchmark/performance/trl_peer.py`.
        threads: Of torch.
        precision: `float32`, or `bfloat16`: ours and TRL train in mixed precision; SB3's PPO always computes in float32.
        compile: Have `torch.compile` translate our updates.
        device: Where the models are.
        out: Folder for `speed.json` and `speed.png`.
    """

    size: Size | None = None
    architecture: Literal["llama", "gpt2"] = "llama"
    model: str | None = None
    vocabulary: int = 4096
    layers: int = 4
    width: int = 256
    heads: int = 4
    shape: Shape | None = None
    prompt: int = 16
    new_tokens: int = 48
    group: int = 1
    episodes: int = 32
    epochs: int = 4
    batch: int = 8
    repeats: int = 6
    stock_minibatches: int = 2
    stock: bool = True
    trl: Path | None = None
    trl_newest: Path | None = None
    trl_trainers: tuple[str, ...] = ("ppo", "ppo-small-critic", "grpo", "rloo")
    threads: int = 2
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    device: str = "cpu"
    out: Path | None = None

    def spelt_out(self) -> Speed:
        """Return the same with what size and shape stand for."""
        chosen = {**(SIZES[self.size] if self.size else {}), **(SHAPES[self.shape] if self.shape else {})}
        return dataclasses.replace(self, size=None, shape=None, **chosen)


def model_config(config: Speed) -> dict[str, Any]:
    """Return the model's configuration as plain data."""
    if config.model is not None:
        return dict(json.loads(config.model))
    common = {"vocab_size": config.vocabulary, "bos_token_id": None, "eos_token_id": 0}
    room = config.prompt + config.new_tokens
    if config.architecture == "gpt2":
        return {
            "model_type": "gpt2", "n_embd": config.width, "n_layer": config.layers, "n_head": config.heads, "n_positions": room, **common
        }  # fmt: skip
    return {
        "model_type": "llama", "hidden_size": config.width, "intermediate_size": 4 * config.width, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "num_key_value_heads": config.heads, "max_position_embeddings": room, **common
    }  # fmt: skip


def make_ours(config: Speed) -> TextPPO:
    """Return a TextPPO that writes and learns as configured, held to a reference."""
    return TextPPO(
        "TransformerPolicy", _env(config), n_episodes=config.episodes, batch_size=config.batch, n_epochs=config.epochs,
        policy_kwargs={**_policy_kwargs(config, config.precision), "compile": config.compile}, seed=0, device=config.device,
    )  # fmt: skip


def make_grpo(config: Speed) -> GRPO:
    """Return a GRPO that writes and learns as configured, with TRL's weight of KL in the loss."""
    return GRPO(
        "TransformerPolicy", _env(config), n_episodes=config.episodes, batch_size=config.batch, n_epochs=config.epochs, beta=0.05,
        policy_kwargs={**_policy_kwargs(config, config.precision), "compile": config.compile}, seed=0, device=config.device,
    )  # fmt: skip


def make_stock(config: Speed, own_policy: bool) -> PPO:
    """Return SB3's PPO, whose minibatches hold as many transitions as ours hold tokens, or as many as read 32,768 tokens.

    Each reads a whole prefix, and with long responses a minibatch of as many would take more memory than there is.

    Args:
        config: The work.
        own_policy: Whether it has our policy, or what SB3's documentation has one do: a features extractor under `MultiInputPolicy`.
    """
    size = config.batch * config.new_tokens
    while size % 2 == 0 and size * (config.prompt + config.new_tokens) > 1 << 15:
        size //= 2
    policy: Any = "MultiInputPolicy"
    kwargs: dict[str, Any] = {
        "features_extractor_class": LastHidden, "features_extractor_kwargs": {"model": model_config(config)}, "net_arch": [],
        "ortho_init": False,
    }  # fmt: skip
    if own_policy:
        policy, kwargs = TransformerPolicy, _policy_kwargs(config)
    return PPO(
        policy, _env(config), n_steps=config.new_tokens, batch_size=size, n_epochs=config.epochs, gamma=1.0, policy_kwargs=kwargs,
        seed=0, device=config.device,
    )  # fmt: skip


class LastHidden(BaseFeaturesExtractor):
    """A features extractor: the last token's hidden state of a transformers model; SB3 adds the layers for actions and value.

    Args:
        observation_space: `prompt`, always full here, and `response`.
        model: Configuration as plain data.
    """

    def __init__(self, observation_space: Any, model: dict[str, Any]) -> None:
        trunk = AutoModel.from_config(AutoConfig.for_model(**model), dtype=torch.float32)
        super().__init__(observation_space, features_dim=trunk.config.hidden_size)
        switch_off_dropout(trunk)
        self.trunk = trunk

    def forward(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return features of shape (B, D)."""
        ids = torch.cat([observations["prompt"], observations["response"]], dim=1).long()  # (B, P + T), -1 behind the text
        hidden = self.trunk(input_ids=ids.clamp(min=0), use_cache=False).last_hidden_state
        return hidden[torch.arange(len(ids)), (ids >= 0).sum(1) - 1]


def _env(config: Speed) -> VecMonitor:
    rng = np.random.default_rng(0)
    prompts = [Prompt(" ".join(map(str, rng.integers(1, config.vocabulary, config.prompt)))) for _ in range(256)]
    task = TextTask(IntegerTokenizer(config.vocabulary), prompts, config.new_tokens, group_size=config.group)
    return VecMonitor(TextGenerationVecEnv(config.episodes, task=task, reward=_parity))


def _parity(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(c) % 2) for c in completions]


def _policy_kwargs(config: Speed, precision: str = "float32") -> dict[str, Any]:
    return {"model": model_config(config), "min_new_tokens": config.new_tokens, "precision": precision}


def iterate(model: TextPPO | GRPO) -> dict[str, float]:
    """Time one rollout, one reference pass and one update."""
    total, _ = timed(lambda: model.learn(1, reset_num_timesteps=False), model.device, 1)  # a whole rollout, for one token
    reference, update = model.rollout_buffer.stats.reference_seconds, model.logger.name_to_value["time/update_seconds"]
    return {"seconds": total, "update_seconds": update, "reference_seconds": reference, "rollout_seconds": total - update - reference}


def iterate_stock(model: PPO, minibatches: int) -> dict[str, float]:
    """Time one rollout and an update, of which so many minibatches stand for the whole; 0: all are timed."""
    began = perf_counter()
    _, callback = model._setup_learn(1)
    assert model.env is not None
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    rollout = perf_counter() - began
    whole = model.n_steps * model.n_envs // model.batch_size * model.n_epochs
    buffer, epochs = model.rollout_buffer, model.n_epochs
    if minibatches:
        model.rollout_buffer, model.n_epochs = _Part(buffer, minibatches), 1  # type: ignore[assignment]
    began = perf_counter()
    model.train()
    update = (perf_counter() - began) * whole / (minibatches or whole)
    model.rollout_buffer, model.n_epochs = buffer, epochs
    return {"seconds": rollout + update, "update_seconds": update, "rollout_seconds": rollout}


class _Part:
    """The first `number` minibatches of a rollout buffer."""

    def __init__(self, buffer: RolloutBuffer, number: int) -> None:
        self.buffer, self.number = buffer, number
        self.values, self.returns = buffer.values, buffer.returns

    def get(self, batch_size: int) -> Iterator[RolloutBufferSamples]:
        return itertools.islice(self.buffer.get(batch_size), self.number)
