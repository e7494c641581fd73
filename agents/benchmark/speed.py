"""Whole iterations of TextPPO against stock SB3 PPO on the same model: `python -m agents.benchmark.speed`.

Both write the same number of texts with the same policy class, cached decoding included, and update on them for the same
number of epochs with minibatches of the same number of tokens.  Stock PPO stores transitions, so each of its minibatches
reads every prefix anew; ours reads each text once.  Ours also pays for a reference pass, which stock PPO does not have.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.vec_env import VecMonitor

from textrl_env import IntegerTokenizer, Prompt, TextTask
from textrl_env.sb3_vec_env import TextGenerationVecEnv

from ..policy import TransformerPolicy
from ..ppo import TextPPO


@dataclass(frozen=True)
class Speed:
    """What to measure.

    Attributes:
        architecture: `"llama"` or `"gpt2"`.
        vocabulary: Tokens, end-of-text included.
        layers: Transformer blocks.
        width: Hidden size.
        heads: Attention heads.
        prompt: Prompt tokens.
        new_tokens: Response tokens; end-of-text is banned, so that all texts are of one length.
        episodes: Texts per iteration.
        epochs: Passes over them.
        batch: Texts per minibatch.
        repeats: Iterations of ours, half of them before and half after stock PPO, so that a machine whose speed drifts
            favours neither; one more is warm-up.
        stock_minibatches: Minibatches of stock PPO that are timed, after one of warm-up; 0 times its whole update.
        threads: Of torch.
        precision: `float32`, or `bfloat16`: ours trains in mixed precision; stock PPO always computes in float32.
        out: JSON file to write.
    """

    architecture: Literal["llama", "gpt2"] = "llama"
    vocabulary: int = 4096
    layers: int = 4
    width: int = 256
    heads: int = 4
    prompt: int = 16
    new_tokens: int = 48
    episodes: int = 32
    epochs: int = 4
    batch: int = 8
    repeats: int = 6
    stock_minibatches: int = 0
    threads: int = 2
    precision: Literal["float32", "bfloat16"] = "float32"
    out: Path | None = None


def main(config: Speed) -> dict[str, Any]:
    """Time both, print a table, and return the figures."""
    torch.set_num_threads(config.threads)
    model = _ours(config)
    _iterate(model)
    rows = [_iterate(model) for _ in range(config.repeats // 2)]
    stock = _time_stock(config)
    rows += [_iterate(model) for _ in range(config.repeats - config.repeats // 2)]
    ours = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    tokens = config.episodes * config.new_tokens
    figures = {
        "config": {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()},
        "ours": {**ours, "tokens_per_second": tokens / ours["seconds"]},
        "stock": {**stock, "tokens_per_second": tokens / stock["seconds"]},
        "ratio": stock["seconds"] / ours["seconds"],
    }
    _print(figures)
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps(figures, indent=2))
    return figures


def _model(config: Speed) -> dict[str, Any]:
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


def _env(config: Speed) -> VecMonitor:
    rng = np.random.default_rng(0)
    prompts = [Prompt(" ".join(map(str, rng.integers(1, config.vocabulary, config.prompt)))) for _ in range(256)]
    task = TextTask(IntegerTokenizer(config.vocabulary), prompts, config.new_tokens)
    return VecMonitor(TextGenerationVecEnv(config.episodes, task=task, reward=_parity))


def _parity(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(c) % 2) for c in completions]


def _policy_kwargs(config: Speed, precision: str = "float32") -> dict[str, Any]:
    return {"model": _model(config), "min_new_tokens": config.new_tokens, "precision": precision}


def _ours(config: Speed) -> TextPPO:
    return TextPPO(
        "TransformerPolicy", _env(config), n_episodes=config.episodes, batch_size=config.batch, n_epochs=config.epochs,
        policy_kwargs=_policy_kwargs(config, config.precision), seed=0, device="cpu",
    )  # fmt: skip


def _iterate(model: TextPPO) -> dict[str, float]:
    """Time one rollout, one reference pass and one update."""
    began = perf_counter()
    model.learn(1, reset_num_timesteps=False)  # a whole rollout, however few tokens are asked for
    total = perf_counter() - began
    assert model.rollout_buffer.stats is not None
    reference, update = model.rollout_buffer.stats.reference_seconds, model.logger.name_to_value["time/update_seconds"]
    return {"seconds": total, "update_seconds": update, "reference_seconds": reference, "rollout_seconds": total - update - reference}


def _time_stock(config: Speed) -> dict[str, float]:
    batch = config.batch * config.new_tokens  # the same number of tokens in a minibatch
    model = PPO(
        TransformerPolicy, _env(config), n_steps=config.new_tokens, batch_size=batch, n_epochs=config.epochs, gamma=1.0,
        policy_kwargs=_policy_kwargs(config), seed=0, device="cpu",
    )  # fmt: skip
    began = perf_counter()
    _, callback = model._setup_learn(config.episodes * config.new_tokens)
    assert model.env is not None
    model.collect_rollouts(model.env, callback, model.rollout_buffer, config.new_tokens)
    rollout = perf_counter() - began
    minibatches = config.episodes * config.new_tokens // batch * config.epochs
    timed = minibatches
    if config.stock_minibatches:  # a part of the update stands for the whole
        timed = config.stock_minibatches
        model.rollout_buffer = _Part(model.rollout_buffer, timed)  # type: ignore[assignment]
        model.n_epochs = 1
    began = perf_counter()
    model.train()
    update = (perf_counter() - began) * minibatches / timed
    return {"seconds": rollout + update, "update_seconds": update, "rollout_seconds": rollout}


class _Part:
    """The first `number` minibatches of a rollout buffer."""

    def __init__(self, buffer: RolloutBuffer, number: int) -> None:
        self.buffer, self.number = buffer, number
        self.values, self.returns = buffer.values, buffer.returns

    def get(self, batch_size: int) -> Iterator[RolloutBufferSamples]:
        return itertools.islice(self.buffer.get(batch_size), self.number)


def _print(figures: dict[str, Any]) -> None:
    table = Table(title="Seconds per iteration", caption=f"ratio {figures['ratio']:.1f}x")
    for column in ("", "rollout", "reference", "update", "iteration", "tokens/s"):
        table.add_column(column, justify="left" if not column else "right")
    for name in ("ours", "stock"):
        row = figures[name]
        seconds = (row["rollout_seconds"], row.get("reference_seconds"), row["update_seconds"], row["seconds"])
        table.add_row(name, *("-" if s is None else f"{s:.2f}" for s in seconds), f"{row['tokens_per_second']:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Speed))
