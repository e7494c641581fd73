"""Times a trainer of TRL on the work of `agents.benchmark.performance.speed`; runs alone, in an environment that need not have textrl.

    python -I agents/benchmark/performance/trl_peer.py ppo --iterations 7

`-I` keeps this folder off the path of modules.  TRL 1.12 is the last version with
`trl.experimental.ppo`.  A line of JSON says when all is ready, one follows each iteration (the first is warm-up), one ends it.

The same as there: the model's configuration (handed over as data), 16-token prompts, 48 new tokens, 32 texts an iteration, 4 epochs of
minibatches of 8 texts (one optimizer step each), KL to a frozen reference, fused Adam, float32, threads.  Every line counts what was
done: `tokens` that were generated, `optimizer_steps`, and `positions`, the tokens that went through each network's trunk.  Left out are
evaluation, saving, printing and gradient checkpointing.  The reward is a parity, and PPO handles all texts of an iteration at once.

No text ends early.  Padding and end-of-text have ids beyond the model's vocabulary, so they are never drawn, and PPO has no stop token
(its default): nothing masks the logits, while ours bans end-of-text.

What differs, because the trainers are made so:

- PPO's critic is a network of its own, as large as the policy (`ppo`) or of 1 layer (`ppo-small-critic`); ours is a head on the policy.
- PPO takes the old log-probabilities from the logits of generation, as ours does, but reads all texts again for the values; GRPO and
  RLOO have no critic, and read all texts again for the old log-probabilities.
- PPO's updates send prompts through the head too.  All compute entropies for their logs; ours computes them as well.
- PPO does not clip the gradient's norm; the others do, and ours does.
- GRPO and RLOO write several texts for each prompt, 8 at most; GRPO's KL is a term of the loss.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from math import gcd
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any, TextIO

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
)

TRAINERS = ("ppo", "ppo-small-critic", "grpo", "rloo")
_PROMPTS = 256
_GROUP = 8  # GRPO's default


@dataclass(frozen=True)
class Work:
    """What an iteration does; the defaults are those of `agents.benchmark.performance.speed`.

    Attributes:
        model: Configuration of the model, as plain data with `model_type`.
        prompt: Prompt tokens.
        new_tokens: Response tokens.
        episodes: Texts per iteration.
        epochs: Passes over them.
        batch: Texts per minibatch.
        threads: Of torch.
        precision: `float32`, or `bfloat16` for mixed precision.
        lora: Fields of peft's LoraConfig: GRPO and RLOO train adapters, and their reference is the model without them.
        device: `cpu` or `cuda`.
    """

    model: dict[str, Any] = field(
        default_factory=lambda: {
            "model_type": "llama", "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 4, "max_position_embeddings": 64, "vocab_size": 4096, "bos_token_id": None, "eos_token_id": 0,
        }
    )  # fmt: skip
    prompt: int = 16
    new_tokens: int = 48
    episodes: int = 32
    epochs: int = 4
    batch: int = 8
    threads: int = 2
    precision: str = "float32"
    lora: dict[str, Any] | None = None
    device: str = "cpu"

    @property
    def minibatches(self) -> int:
        """Minibatches in an epoch."""
        return self.episodes // self.batch

    def config(self, **changes: Any) -> Any:
        """Return the model's configuration with changes, without an end of text: TRL's newest trainers stop where the model names one."""
        return AutoConfig.for_model(**{**self.model, "eos_token_id": None, **changes})


def main() -> None:
    """Read the command line, and run the trainer."""
    parser = argparse.ArgumentParser(description="Time a trainer of TRL.")
    parser.add_argument("trainer", choices=TRAINERS)
    parser.add_argument("--iterations", type=int, default=7, help="the first is warm-up")
    parser.add_argument("--work", type=json.loads, default={}, help="fields of Work as JSON")
    parser.add_argument("--lockstep", action="store_true", help="wait for a line on standard input before each iteration and the end")
    given = parser.parse_args()
    lines = _claim_stdout()
    work = Work(**given.work)
    torch.set_num_threads(work.threads)
    torch.manual_seed(0)
    _import_trainer(given.trainer)
    idle = 0.0 if work.device == "cuda" else _memory_mib("VmRSS")
    meter = Meter(work, lines, 1 if given.trainer.startswith("ppo") else work.minibatches * work.epochs, given.lockstep)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _make(given.trainer, work, given.iterations, folder, meter)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    versions = {name: version(name) for name in ("trl", "transformers", "torch", "accelerate")}
    peak = torch.cuda.max_memory_allocated() / 2**20 if work.device == "cuda" else _memory_mib("VmHWM")
    _write(lines, {"memory_mib": peak - idle, "versions": versions})


def _claim_stdout() -> TextIO:
    """Return standard output, and send to standard error whatever else is printed there."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return lines


def _write(lines: TextIO, row: dict[str, Any]) -> None:
    lines.write(json.dumps(row) + "\n")
    lines.flush()


def _memory_mib(kind: str) -> float:
    """Return the resident memory now (VmRSS) or at its highest (VmHWM).

    Not by getrusage, which on Linux counts the peak of the process that started this one as well.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes
    return next(int(line.split()[1]) / 1024 for line in status.read_text(encoding="ascii").splitlines() if line.startswith(kind))


class Meter(TrainerCallback):
    """Times iterations, from the word to go on to the end of the last optimizer step, and counts what they do.

    `rollout_seconds` are those of generation, `update_seconds` begin with the update's first pass, `reference_seconds` lie between.
    """

    def __init__(self, work: Work, lines: TextIO, steps: int, lockstep: bool) -> None:
        self.work, self.lines, self.steps, self.lockstep = work, lines, steps, lockstep
        self.done = 0
        self._clear()
        register_optimizer_step_post_hook(lambda *_: self.counts.update(optimizer_steps=1))

    def _clear(self) -> None:
        self.counts: Counter[str] = Counter()
        self.positions: Counter[str] = Counter()
        self.generating = 0.0
        self.updating: float | None = None

    def _begin(self) -> None:
        self._clear()
        if self.lockstep and not sys.stdin.readline():
            sys.exit("nobody is waiting")
        self.began = perf_counter()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Say that all is ready, and begin when told to."""
        _write(self.lines, {"ready": True})
        self._begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Write the iteration's line after its last step."""
        self.done += 1
        if self.done % self.steps:
            return
        if self.work.device == "cuda":
            torch.cuda.synchronize()
        end = perf_counter()
        assert self.updating is not None
        total, update = end - self.began, end - self.updating
        seconds = {"rollout_seconds": self.generating, "update_seconds": update, "reference_seconds": total - update - self.generating}
        _write(self.lines, {"seconds": total, **seconds, **self.counts, "positions": dict(self.positions)})
        self._begin()  # after the last one too: what ends a process must not disturb the others

    def time_generation(self, model: Any) -> None:
        """Time the model's `generate`, and count the tokens that it writes, padding excepted."""
        generate = model.generate

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = perf_counter()
            output = generate(*args, **kwargs)
            self.generating += perf_counter() - began
            ids = output if torch.is_tensor(output) else output.sequences
            self.counts["tokens"] += int((ids[:, self.work.prompt :] < self.work.model["vocab_size"]).sum())
            return output

        model.generate = timed

    def count_positions(self, name: str, trunk: torch.nn.Module) -> None:
        """Count the tokens that go through a trunk, those of the update (with a gradient) apart."""

        def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
            self.positions[f"{name}, update" if torch.is_grad_enabled() else name] += ids.numel()

        trunk.register_forward_pre_hook(count, with_kwargs=True)

    def update_begins(self, *_: Any) -> None:
        """Remember when the first pass of an update began."""
        if self.updating is None:
            self.updating = perf_counter()

    def after_update_begins(self, function: Any) -> Any:
        """Return the function with `update_begins` before it."""

        def both(*args: Any, **kwargs: Any) -> Any:
            self.update_begins()
            return function(*args, **kwargs)

        return both


def _import_trainer(name: str) -> Any:
    """Return the classes of trainer and settings."""
    if name.startswith("ppo"):
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        try:
            from trl.experimental.ppo import PPOConfig, PPOTrainer
        except ImportError as error:
            raise SystemExit(f"TRL {version('trl')} has no trl.experimental.ppo ({error}): install trl==1.12.0") from error
        return PPOTrainer, PPOConfig
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    return (GRPOTrainer, GRPOConfig) if name == "grpo" else (RLOOTrainer, RLOOConfig)


def _make(name: str, work: Work, iterations: int, folder: str, meter: Meter) -> Any:
    common: dict[str, Any] = {
        "output_dir": folder, "use_cpu": work.device == "cpu", "bf16": work.precision == "bfloat16",
        "gradient_checkpointing": False, "report_to": "none",
        "logging_strategy": "no", "save_strategy": "no", "eval_strategy": "no", "disable_tqdm": True, "optim": "adamw_torch_fused",
        "gradient_accumulation_steps": 1, "temperature": 1.0,
    }  # fmt: skip
    make = _make_ppo if name.startswith("ppo") else _make_critic_free
    return make(name, work, iterations, common, meter)


def _make_ppo(name: str, work: Work, iterations: int, common: dict[str, Any], meter: Meter) -> Any:
    """With one micro-batch as large as the iteration, TRL's minibatches are one optimizer step each; accumulation would merge them."""
    trainer_class, config_class = _import_trainer(name)
    policy = AutoModelForCausalLM.from_config(work.config())
    layers = {"gpt2": "n_layer"}.get(work.model["model_type"], "num_hidden_layers")
    smaller = {layers: 1} if name == "ppo-small-critic" else {}
    critic = AutoModelForSequenceClassification.from_config(work.config(**smaller, num_labels=1))
    reference = copy.deepcopy(policy).eval()
    config = config_class(
        **common, per_device_train_batch_size=work.episodes, num_mini_batches=work.minibatches, num_ppo_epochs=work.epochs,
        total_episodes=iterations * work.episodes, local_rollout_forward_batch_size=work.episodes, num_sample_generations=0,
        response_length=work.new_tokens,
    )  # fmt: skip
    trainer = trainer_class(
        args=config, processing_class=_tokenizer(work), model=policy, ref_model=reference, reward_model=Parity(), value_model=critic,
        train_dataset=Dataset.from_dict({"input_ids": _prompts(work)}), callbacks=[meter],
    )  # fmt: skip
    meter.time_generation(policy)
    for part, model in (("policy", policy), ("reference", reference), ("critic", critic)):
        meter.count_positions(part, model.base_model)
    trainer.model.register_forward_pre_hook(meter.update_begins)
    return trainer


def _make_critic_free(name: str, work: Work, iterations: int, common: dict[str, Any], meter: Meter) -> Any:
    trainer_class, config_class = _import_trainer(name)
    source = f"{common['output_dir']}/model"  # the reference is read from where the policy was
    AutoModelForCausalLM.from_config(work.config()).save_pretrained(source)
    config = config_class(
        **common, per_device_train_batch_size=work.batch, steps_per_generation=work.minibatches, num_iterations=work.epochs,
        num_generations=gcd(_GROUP, work.episodes), max_steps=iterations * work.minibatches * work.epochs, beta=0.05,
        max_completion_length=work.new_tokens, disable_dropout=True, model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    texts = [" ".join(map(str, ids)) for ids in _prompts(work)]
    trainer = trainer_class(
        model=source, args=config, processing_class=_tokenizer(work), reward_funcs=_parity, callbacks=[meter],
        train_dataset=Dataset.from_dict({"prompt": texts}), peft_config=None if work.lora is None else _lora(work.lora),
    )  # fmt: skip
    meter.time_generation(trainer.model)
    for part, model in (("policy", trainer.model), ("reference", trainer.ref_model)):
        if model is not None:  # under adapters the policy's trunk reads for both
            meter.count_positions(part, model.base_model)
    trainer.compute_loss = meter.after_update_begins(trainer.compute_loss)
    return trainer


def _lora(settings: dict[str, Any]) -> Any:
    from peft import LoraConfig

    return LoraConfig(**settings, task_type="CAUSAL_LM")


class Parity(torch.nn.Module):
    """The cheapest reward model that PPO accepts: 1 for a text whose last token is odd."""

    base_model_prefix = "trunk"

    def __init__(self) -> None:
        super().__init__()
        self.score = torch.nn.Identity()

    def trunk(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        """Return the parities in the place of hidden states, shape (B, T, 1)."""
        return SimpleNamespace(hidden_states=((input_ids % 2).float().unsqueeze(-1),))


def _parity(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text) % 2) for text in completions]


def _tokenizer(work: Work) -> PreTrainedTokenizerFast:
    """Return a tokenizer of integers, its padding and end-of-text beyond the model's vocabulary."""
    size = work.model["vocab_size"]
    vocabulary = {**{str(i): i for i in range(size)}, "<pad>": size, "<eos>": size + 1}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def _prompts(work: Work) -> list[list[int]]:
    draws = torch.randint(1, work.model["vocab_size"], (_PROMPTS, work.prompt), generator=torch.Generator().manual_seed(0))
    return [list(map(int, row)) for row in draws]


if __name__ == "__main__":
    main()
