"""What `textrl train` takes; nothing here needs torch, so that its help is quick."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from ..algorithms.registry import ALGORITHMS
from ..training.default_settings import default_settings
from ..training.settings import DEFAULT_TASK, FROM_PAIRS, KEEP, OF_PROMPTS, OFFLINE
from ..utils.device_flag import OnDevice
from ..utils.limits import Above0, AtLeast0, BelowHalf, Count, Finite, Natural, Probability, Seed

# Settings besides those of `default_settings` that only some algorithms take; those that play the environment take these
_OF_PLAYING = {
    "held_out", "stop_at_alarm", "temperature", "top_k", "top_p", "min_new_tokens", "reference", "shard", "eval_every", "keep_best",
}  # fmt: skip
_OF_ALL = {
    "algo", "task", "corpus", "prompts", *OF_PROMPTS, "columns", "model", "lora", "precision", "micro_batch_size", "reward", "eval_texts",
    "device", "out", "overwrite", "dry_run",
}  # fmt: skip

NAMES = (*ALGORITHMS, *OFFLINE)
if TYPE_CHECKING:
    AlgorithmName = str
    Measure = str
else:
    AlgorithmName, Measure = Literal[NAMES], Literal[tuple(KEEP)]  # tyro refuses all others


@dataclass(frozen=True)
class Train(OnDevice):
    """Train a policy on a task or on the sentences of text files.

    A setting that the algorithm does not take is refused.

    Attributes:
        algo: `sft` trains a model on the task's corpus, or on the preferred texts of `preferences`; `dpo`, `ipo`, `robust-dpo` and `simpo`
            on `preferences`; `kto` on `ratings` or `preferences`; `expert-iteration` on the policy's own best texts; all others play the
            environment, `distill` to come near a teacher and not for the reward.
        task: Name of a task; by default `review`.
        prompts: A file of prompts instead of a task: .jsonl, .json, .csv, .tsv, .parquet, .txt (any with .gz), or `hf:ID`; or a folder with
            files named after the splits. A tenth of a file is kept for evaluation. They are read with the tokenizer of `model`.
        test_prompts: Prompts to evaluate on instead of a tenth of `prompts`.
        references: Columns of `prompts` with texts that the reward compares with, and that `sft` learns.
        chat: A prompt that is a text is what a user says, and goes through the chat template; prompts that are messages always do.
        add_bos: Whether plain prompts begin with the beginning-of-text token; by default as the model's tokenizer says.
        max_prompt_tokens: Longest prompt; by default that of the longest.
        over_long: What is done with longer ones: they are refused, or cut on the left or right.
        max_new_tokens: Longest response; by default 64.
        stop_strings: Texts that end a response, and are cut off.
        corpus: Text files, one sentence a line, or tables with a column `text`, instead of a task: a tokenizer and a base model are
            trained on them.
        model: Folder, hub id or `.gguf` file of the first policy, whose tokenizer must be the task's; by default the task's base
            policy, pretrained at first use and cached.
        lora: Train adapters only: a JSON object with arguments of `peft.LoraConfig`, as in '{"r": 8}'.
        reference: Model that KL is measured against; by default the first policy.
        teacher: Folder, hub id or `.gguf` file of the model that `distill` learns from; its tokenizer must be the task's.
        critic: Of algorithms that have one: `shared` (by default: a head on the policy), `separate`, or the folder of a reward model.
        reward: Name of a reward model, the folder of a saved one, a JSON object with `name` and its arguments, or
            `file.py:function`; `distill` and what learns from texts, `preferences` or `ratings` do not learn from it, but the texts are
            measured by it.
        judge: Of `online-dpo`: what compares two texts instead of `reward`, which then only measures: a JSON object as for `reward`, such
            as '{"name": "judge", "mode": "pairwise", "url": ..., "model": ...}'.
        held_out: Another reward model, which is not optimised: an alarm tells when it falls while the reward rises.
        stop_at_alarm: End the training at such an alarm.
        beta: Fixed coefficient of the KL penalty, 0 for none; by default an adaptive one holds `kl_target`, 0 for `dapo`, 0.1 for
            `online-dpo` and all that learn from preferences or ratings, 2 for `simpo`; of `distill` the weight of its
            only loss, 1.
        label_smoothing: Share of the preferences that are wrong, below 0.5: `dpo`, `ipo` and `simpo` learn them with so much doubt,
            `robust-dpo` takes the noise out of its loss, and has 0.1 by default.
        gamma: Margin that every pair has besides its own; by default 0, of `simpo` 1.
        desirable_weight: Of good texts in `kto`; by default 1.
        undesirable_weight: Of bad texts in `kto`; by default 1.
        kl_target: KL per text that the adaptive coefficient steers to, in nats; by default 8.
        total_tokens: Tokens that the policy writes; by default 110,000.
        n_episodes: Texts per rollout; by default 128.
        batch_size: Texts per minibatch; by default 32.
        learning_rate: Falls linearly to 0, or is the peak of a schedule for those that do not play; by default what suits the algorithm
            and the model: 5e-4 for those that play with up to a million parameters, 9.8e-5 with 135 million, ten times that for adapters.
        steps: Optimizer steps of those that do not play, iterations of `expert-iteration`; by default what suits the task and small models.
        preferences: JSON Lines of prompt, chosen and rejected, for those that learn from preferences, `sft` and `kto`.
        ratings: Judgements of single texts for `kto`: JSON Lines of text and ratings, as `textrl feedback export --format ratings` writes
            them, or of prompt, response and `rating` or `label`.
        good_above: Rating above which a text is good; by default the middle between the lowest and the highest of the file.
        columns: The own names of columns in the file of preferences or ratings, or else of prompts, as in
            `prompt=instruction,chosen=output_1`.
        temperature: Of sampling.
        top_k: Sample from the k likeliest tokens; 0 for all.
        top_p: Sample from the likeliest tokens that have this probability together.
        min_new_tokens: No end of text before this many tokens.
        precision: `float32`, or `bfloat16` for the trunk in mixed precision.
        micro_batch_size: Texts that go through the model at once in an update, for less memory; 0: the whole minibatch.
        shard: Of several processes, started by torchrun: each holds a part of weights, gradients and optimizer only.
        seed: Of everything that is drawn.
        eval_every: Rollouts from one validation to the next: texts to prompts of the validation split are measured, as many as `eval_texts`
            (by default 200, and as the split has prompts).
        keep_best: Measure of these texts by which the best policy is kept in the folder `best`, and is the one that is examined at the end;
            `kl_per_sequence`, the less the better, for `distill`.
        eval_texts: Texts that the policy before and after training each write at the end, to say whether it worked; 0: none; by default a
            tenth of those written in training, at least 20 and at most 200.
        out: Folder of the run; running again goes on where it stopped, and raising `total_tokens` goes on from the end. By default
            `runs/train`, with the flags that are given in its name.
        overwrite: Delete the run that is in the folder, with its evaluations, and start anew.
        dry_run: Print the plan of the run, and stop: nothing is written (but for a base policy that is pretrained at first use).
    """

    # With other values of these it is still the same run
    goes_on: ClassVar = ("total_tokens", "shard", "eval_texts", "device", "out", "overwrite", "dry_run")

    algo: AlgorithmName = "ppo"
    task: str | None = None
    prompts: str | None = None
    test_prompts: str | None = None
    references: tuple[str, ...] = ()
    chat: bool = False
    add_bos: bool | None = None
    max_prompt_tokens: Count | None = None
    over_long: Literal["reject", "left", "right"] = "reject"
    max_new_tokens: Count | None = None
    stop_strings: tuple[str, ...] = ()
    corpus: tuple[Path, ...] = ()
    model: str | None = None
    lora: str | None = None
    reference: str | None = None
    teacher: str | None = None
    critic: str | None = None
    reward: str = "vader"
    judge: str | None = None
    held_out: str | None = None
    stop_at_alarm: bool = False
    beta: AtLeast0 | None = None
    label_smoothing: BelowHalf | None = None
    gamma: AtLeast0 | None = None
    desirable_weight: Above0 | None = None
    undesirable_weight: Above0 | None = None
    kl_target: Above0 | None = None
    total_tokens: Count | None = None
    n_episodes: Count | None = None
    batch_size: Count | None = None
    learning_rate: Above0 | None = None
    steps: Count | None = None
    preferences: Path | None = None
    ratings: Path | None = None
    good_above: Finite | None = None
    columns: str | None = None
    temperature: Above0 = 1.0
    top_k: Natural = 0
    top_p: Probability = 1.0
    min_new_tokens: Natural = 0
    precision: str = "float32"
    micro_batch_size: Natural = 0
    shard: bool = False
    seed: Seed = 0
    eval_every: Count | None = None
    keep_best: Measure | None = None
    eval_texts: Natural | None = None
    out: Path | None = None
    overwrite: bool = False
    dry_run: bool = False

    def unused(self) -> list[str]:
        """Return the names of settings that were given and that the algorithm does not use."""
        return [name for name in self.given() if name not in settings_of(self.algo) | _OF_ALL]

    def given(self) -> list[str]:
        """Return the names of settings that are not at their defaults."""
        return [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]

    def check_validation(self) -> None:
        """Insist on a measure that validation can have, and on validation.

        Raises:
            ValueError: There is none.
        """
        if self.keep_best is not None and self.eval_every is None:
            raise ValueError(f"--keep-best {self.keep_best} looks at validations, and there are none: pass --eval-every N, in rollouts")
        if self.eval_every is not None and (self.corpus or self.test_prompts):
            flag, why = ("--corpus", "text files have no splits") if self.corpus else ("--test-prompts", "all other prompts train")
            raise ValueError(
                f"--eval-every with {flag}: there are no validation prompts, for {why}; pass --prompts FILE alone, of which a tenth "
                "validates, or a folder with train, validation and test files"
            )
        if self.keep_best == "held_out" and self.held_out is None:
            raise ValueError("--keep-best held_out: pass --held-out REWARD, by which it is measured")
        if self.keep_best == "kl_per_sequence" and self.algo != "distill":
            raise ValueError("--keep-best kl_per_sequence is for --algo distill: other trainings begin at the least KL; leave it out")

    def check_source(self) -> None:
        """Insist on one source of prompts, and on what it needs.

        Raises:
            ValueError: There are several, or a setting has nothing that it could be for.
        """
        sources = [name for name in ("task", "prompts", "corpus") if name in self.given()]
        if len(sources) > 1 and not (self.corpus and self.task == DEFAULT_TASK):  # which older runs wrote into their files
            raise ValueError(f"{flags(sources)}: each says what the policy goes on with; leave all but one of them out")
        alone = [name for name in self.given() if name in OF_PROMPTS]
        if alone and self.prompts is None:
            raise ValueError(f"{flags(alone)}: for the file of --prompts, which is not given")
        if self.prompts is not None and self.model is None:
            raise ValueError(f"--prompts {self.prompts}: pass --model too, a folder, hub id or .gguf file, whose tokenizer reads them")
        judged = [name for name in ("preferences", "ratings") if getattr(self, name) is not None]
        if self.columns is not None and not judged and self.prompts is None:
            raise ValueError(f"--columns {self.columns} names the columns of --preferences, --ratings or --prompts, and none is given")
        if self.chat and judged:
            raise ValueError(
                f"--chat writes --prompts through the chat template, and {flags(judged)} are learned as they are: leave one out"
            )


def settings_of(algo: str) -> set[str]:
    """Return the names of the settings that an algorithm uses and some others do not."""
    own = set(default_settings(algo)) | (_OF_PLAYING if algo not in OFFLINE else set())
    if algo == "distill":
        own = own - {"reference"} | {"teacher"}
    own |= {"critic"} if algo in ALGORITHMS and ALGORITHMS[algo].critic else set()
    own |= {"judge"} if algo in ALGORITHMS and ALGORITHMS[algo].judge else set()
    own |= {"ratings", "good_above"} if algo == "kto" else set()
    return own | {"preferences", "shard"} if algo in ("sft", "kto", *FROM_PAIRS) else own


def flags(names: Sequence[str]) -> str:
    """Return the names as they are written on the command line."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)
