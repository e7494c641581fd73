"""`textrl train`: one policy, one task, one reward."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from rewards import Preference
from rewards.models.suited_rate import MILLION
from rewards.preferences.preference_files import read_preferences
from rewards.preferences.thumbs import Thumb, read_thumbs, thumbs_of
from textrl_env import TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv
from textrl_env.reward_model import as_reward_model, own_code
from textrl_env.tokenizer import check_same_tokens
from textrl_env.utils.user_code import absolute, named_object

from ..algorithms.registry import ALGORITHMS, on_ranks
from ..algorithms.sft import SFT
from ..distributed.process_group import ranks, started_again
from ..models.loading import num_parameters
from ..models.mixed_precision import precision_of
from ..training.base_policies import base_policy
from ..training.default_settings import default_settings
from ..training.offline_training import learn_offline, preferred_texts
from ..training.outcome_report import print_outcome, print_tree, write_outcome_page
from ..training.policy_training import Before, train_policy
from ..training.reward_hacking_callback import RewardHackingCallback
from ..training.run_outcome import OUTCOME_FILES, OUTDATED, Exam, num_eval_texts, run_outcome
from ..training.run_plan import DryRun
from ..training.settings import DEFAULT_TASK, FROM_PAIRS, OFFLINE, OfflineTraining, PolicyTraining, check_penalty
from ..training.text_corpus import task_data, task_of
from ..training.trained_run import BEST
from ..training.validation import TEXTS, ValidationCallback, validation_task
from ..utils.device_flag import on_device
from ..utils.run_folder import RunFolder, folder_beside
from ..utils.threads import choose_threads
from .arguments import arguments_of, columns_of, reward_of
from .print_plan import tell_plan
from .train_flags import Train, flags, settings_of

_STEP_TEXTS = 32  # of an optimizer step that does not play
_LOOKED_AT = 64  # comparisons by which a base policy shows whether it knows such texts


@dataclass(frozen=True)
class Job:
    """A training that is about to run: all that was read and checked, and not yet begun.

    Attributes:
        config: The flags.
        run: Where it goes.
        task: What is trained on.
        pairs: Comparisons to learn from, or judgements of single texts, if there are any.
        reward: As plain data.
        held_out: A reward that is not optimised, if there is one.
        training: How.
        validation: The task with the prompts that validate, if there is any validation.
        parameters: Of the model that is trained, where the learning rate was made to suit it.
        console: Of the first rank; of others it prints nothing.
    """

    config: Train
    run: RunFolder
    task: TextTask
    pairs: Sequence[Any] | None
    reward: Any
    held_out: Any
    training: PolicyTraining | OfflineTraining
    validation: TextTask | None
    parameters: int | None
    console: Console

    @property
    def depends_on(self) -> dict[str, Any]:
        """What the result depends on besides model, algorithm and settings, by name."""
        task = task_data(vars(self.config))
        if not isinstance(task, str):  # the model counts by itself, and its tokenizer with it
            task = {name: value for name, value in task.items() if name != "tokenizer"}
        own = {"task": task, "corpus": self.config.corpus, "reward": self.reward, "preferences": self.config.preferences}
        read = ("ratings", "good_above", *(["columns"] if self.pairs is not None else []))
        if self.config.algo == "sft" and not self.learns_corpus:
            own["train_on_prompts"] = False  # earlier versions learned the prompts too
        return {**own, **{name: value for name in read if (value := getattr(self.config, name)) is not None}}

    @property
    def learns_corpus(self) -> bool:
        """Whether it learns whole texts, as a base policy does."""
        return self.config.algo == "sft" and self.pairs is None and self.config.prompts is None

    @property
    def before(self) -> Before:
        """What is called before it trains."""
        return tell_plan(self.console, self.config.dry_run)


@on_device
def run_train(config: Train) -> None:
    """Train, and leave the resolved configuration, the model and the metrics in the run folder.

    Raises:
        ValueError: A setting is out of range, is missing, or is none of the algorithm's.
    """
    together = ranks()
    console = Console(quiet=not together.is_main)
    _check_ranks(config, console, together.size)
    _check_settings(config)
    reward = reward_of(config.reward)
    _check_fitted_elsewhere(config, reward)
    held_out = None if config.held_out is None else reward_of(config.held_out, "--held-out")
    judge = None if config.judge is None else reward_of(config.judge, "--judge")
    for code in own_code([reward, held_out, judge]):
        named_object(code)  # its faults are told before anything is trained
    pairs = _judgements(config)
    if config.dry_run:
        with TemporaryDirectory() as folder, suppress(DryRun):
            _train(_prepared(config, RunFolder(folder), pairs, (reward, held_out), console))
        _tell_dry_run(_folder(config), console)
        return
    run = RunFolder(_folder(config))
    anew = config.overwrite and not started_again()
    with run.begin(f"train --algo {config.algo}", anew, [*OUTCOME_FILES, BEST]) if together.is_main else nullcontext():
        held, compared = (text and absolute(text) for text in (config.held_out, config.judge))
        config = dataclasses.replace(config, out=run.path, reward=absolute(config.reward), held_out=held, judge=compared)
        job = _prepared(config, run, pairs, (reward, held_out), console)
        _train(job)
        if together.is_main:
            _tell_outcome(job)


def _judgements(config: Train) -> Sequence[Preference] | Sequence[Thumb] | None:
    """Read what is learned from, if it is not the corpus."""
    columns = columns_of(config.columns)
    if config.ratings is not None:
        return read_thumbs(config.ratings, columns, config.good_above)
    pairs = None if config.preferences is None else read_preferences(config.preferences, columns)
    return pairs if config.algo != "kto" or pairs is None else thumbs_of(pairs)


def _train(job: Job) -> None:
    _offline(job) if isinstance(job.training, OfflineTraining) else _playing(job)


def _tell_dry_run(out: Path, console: Console) -> None:
    there = f"; {out} holds a run, which would go on (--overwrite: start anew)" if (out / "stages.json").is_file() else ""
    console.print(f"--dry-run: nothing was trained or written{there}", highlight=False, soft_wrap=True)


def _folder(config: Train) -> Path:
    if config.out is not None:
        return config.out
    given = {name: getattr(config, name) for name in config.given() if name not in config.goes_on}
    return folder_beside(Path("runs/train"), given)


def _prepared(config: Train, run: RunFolder, pairs: Sequence[Any] | None, rewards: tuple[Any, Any], console: Console) -> Job:
    """Make the task, and resolve the settings."""
    with ranks().main_first():
        task = task_of(vars(config), run.path)
    if config.prompts is not None:
        task, pairs = _held_apart(config, task, run, pairs, console)
    elif config.model is not None:
        _check_tokens(config.model, task)
    if config.min_new_tokens > task.max_new_tokens:
        raise ValueError(f"--min-new-tokens {config.min_new_tokens}: a text of this task has at most {task.max_new_tokens} tokens")
    size = _size(config, task)
    choose_threads(size or MILLION)
    parameters = size if config.learning_rate is None else None
    recipe = task.recipe if config.algo == "sft" and pairs is None else None
    sized = () if parameters is None else (parameters, config.lora is not None)
    defaults = default_settings(config.algo, recipe, *sized)
    settings = {name: default if getattr(config, name) is None else getattr(config, name) for name, default in defaults.items()}
    training = OfflineTraining(**settings) if config.algo in OFFLINE else PolicyTraining(**settings)
    task_name = None if config.prompts is not None else config.task or DEFAULT_TASK
    run.config = dataclasses.replace(config, task=task_name, **settings)
    return Job(config, run, task, pairs, *rewards, training, _validation(config, run), parameters, console)


def _validation(config: Train, run: RunFolder) -> TextTask | None:
    if config.eval_every is None:
        return None
    task = validation_task(vars(config), run.path, config.eval_texts or TEXTS)
    if config.keep_best == "gold" and task.gold is None:
        raise ValueError("--keep-best gold: this task has no judgement of its own; choose score, or held_out with --held-out REWARD")
    return task


def _held_apart(
    config: Train, task: TextTask, run: RunFolder, pairs: Sequence[Any] | None, console: Console
) -> tuple[TextTask, Sequence[Any] | None]:
    """Return a task as wide as its test prompts, which are read here so that none is missing at the end; and pairs without them."""
    test = task_of(vars(config), run.path, "test")
    console.print(f"{len(task.prompts):,} prompts train, {len(test.prompts):,} evaluate", highlight=False)
    width = max(task.prompt_width, test.prompt_width)
    wide = task if task.prompt_width == width else dataclasses.replace(task, max_prompt_tokens=width)
    if pairs is None:
        return wide, None
    if any(prompt.typed is not None for prompt in test.prompts):
        judged = "--ratings" if config.ratings is not None else "--preferences"
        raise ValueError(
            f"--prompts {config.prompts} holds messages, which go through the chat template, and {judged} are learned as they are: "
            "they are texts of another form, and those of prompts that evaluate could not be left out; give both as texts"
        )
    evaluated = {prompt.text for prompt in test.prompts}
    kept = [pair for pair in pairs if pair.prompt not in evaluated]
    if len(kept) < len(pairs):
        what = "judged texts" if config.algo == "kto" else "comparisons"
        console.print(f"{len(pairs) - len(kept)} of {len(pairs)} {what} are left out: their prompts evaluate", highlight=False)
    return wide, kept


def _playing(job: Job) -> None:
    config, run, task, training = job.config, job.run, job.task, job.training
    assert isinstance(training, PolicyTraining)
    grouped = dataclasses.replace(task, group_size=ALGORITHMS[config.algo].group_size)
    env = TextGenerationVecEnv(training.n_episodes, task=grouped, reward=job.reward)
    watch = RewardHackingCallback(run.path / config.algo, job.held_out, config.stop_at_alarm)
    base = _first_policy(job)
    depends_on = {**job.depends_on, "held_out": job.held_out, "stop_at_alarm": config.stop_at_alarm}
    callbacks: list[BaseCallback] = [watch]
    if job.validation is not None:
        assert config.eval_every is not None
        number, prompts = config.eval_texts or TEXTS, len(job.validation.prompts)
        depends_on["validation"] = {"every": config.eval_every, "keep": config.keep_best, "texts": number}
        how_often = (config.eval_every, config.keep_best, number, watch.held_out, config.seed)
        callbacks.append(ValidationCallback(run.path / config.algo, job.validation, *how_often))
        kept = f", the best by {config.keep_best} is kept in {run.path / BEST}" if config.keep_best else ""
        told = f"every {config.eval_every} rollouts {number} texts to {prompts} prompts of the validation split are measured{kept}"
        job.console.print(told, highlight=False, soft_wrap=True)
    rules = _policy_arguments(job)
    outdated = [*OUTDATED, f"evaluation-{BEST}.*", f"groups-{BEST}.json"]
    how = (config.algo, CallbackList(callbacks), outdated, config.teacher or config.reference, job.before)
    judge = {} if config.judge is None else {"judge": reward_of(config.judge, "--judge")}
    train_policy(run, config.algo, base, env, training, depends_on, rules, *how, judge, shard=config.shard)
    for name, message in watch.alarms.items():
        job.console.print(f"alarm, {name}: {message}", style="bold red", highlight=False, markup=False)


def _tell_outcome(job: Job) -> None:
    """Say whether the training worked, and what it left."""
    config, run, training = job.config, job.run, job.training
    tokens = training.total_tokens if isinstance(training, PolicyTraining) else training.steps * _STEP_TEXTS * job.task.max_new_tokens
    exam = Exam(job.reward, num_eval_texts(config.eval_texts, tokens // job.task.max_new_tokens), job.held_out, config.seed)
    last = None
    if exam.num_texts and ranks().size > 1:  # several processes hold one policy, and could only load it together
        last = "whether it worked: the same command without torchrun goes on from here, and says so"
    elif exam.num_texts:
        name = BEST if config.keep_best else config.algo
        outcome = run_outcome(run, name, exam, job.depends_on)
        last = f"report: {write_outcome_page(run.path, name, outcome)}"
        print_outcome(outcome, job.console)
    job.console.print()
    print_tree(run.path, job.console)
    if last:
        job.console.print(last, highlight=False, soft_wrap=True)


def _check_ranks(config: Train, console: Console, size: int) -> None:
    if size == 1 and config.shard:
        raise ValueError("--shard in one process: there is nobody to hold the other parts; start several with torchrun")
    if size == 1:
        return
    if config.algo in OFFLINE:
        console.print(f"{size} processes train one model{', each holds a part of it' if config.shard else ''}")
        return
    on_ranks(config.algo)
    console.print(f"{size} processes train one policy{', each holds a part of it' if config.shard else ''}")


def _check_settings(config: Train) -> None:
    """Refuse what the algorithm would ignore, and ask for what it needs, before any work begins."""
    precision_of(config.precision)
    if unused := config.unused():
        its = flags(sorted(settings_of(config.algo)))
        raise ValueError(f"leave out {flags(unused)}, which --algo {config.algo} does not use; its settings are {its}")
    config.check_source()
    config.check_validation()
    arguments_of(config.lora, "--lora")
    check_penalty(config.beta, config.kl_target)
    if config.algo in FROM_PAIRS and config.preferences is None:
        raise ValueError(f"--algo {config.algo} learns from preferences: pass --preferences FILE")
    if config.algo == "kto" and (config.preferences is None) == (config.ratings is None):
        raise ValueError("--algo kto learns from single texts: pass --ratings FILE, or else --preferences FILE, of which it judges both")
    if config.good_above is not None and config.ratings is None:
        raise ValueError(f"--good-above {config.good_above:g}: for the file of --ratings, which is not given")
    if config.algo == "distill" and config.teacher is None:
        raise ValueError("--algo distill learns from a teacher: pass --teacher MODEL, a folder, hub id or .gguf file")


def _check_fitted_elsewhere(config: Train, reward: Any) -> None:
    """Refuse openings of film reviews that nobody asked for, under a reward that was fitted to other texts."""
    fitted = isinstance(reward, Mapping) and reward.get("name") in ("preference", "personal")
    if fitted and (config.task, config.prompts, config.corpus, config.preferences) == (None, None, (), None):
        raise ValueError(
            f"--reward {config.reward} was fitted to texts of its own, and nothing says what the policy goes on with: pass --prompts FILE "
            "with --model, --corpus FILE, or --task review for openings of film reviews"
        )


def _check_tokens(model: str, task: TextTask) -> None:
    try:
        check_same_tokens(model, task.tokenizer)
    except ValueError as error:
        raise ValueError(f"{error}; or pass --prompts FILE: they are read with the tokenizer of --model") from error


def _policy_arguments(job: Job) -> dict[str, Any]:
    """Return sampling rules, and of adapters and critic what is asked for."""
    config, ends = job.config, job.task.eos_token_ids
    rules = {name: getattr(config, name) for name in ("temperature", "top_k", "top_p", "min_new_tokens", "precision", "micro_batch_size")}
    given = {"lora": arguments_of(config.lora, "--lora"), "critic": config.critic}
    rules |= {name: value for name, value in given.items() if value is not None}
    return {**rules, "eos_token_id": ends[0] if len(ends) == 1 else list(ends)}


def _offline(job: Job) -> None:
    config, task, pairs, training = job.config, job.task, job.pairs, job.training
    assert isinstance(training, OfflineTraining)
    data: Any = pairs
    model: Any = config.model
    if config.algo == "expert-iteration":
        data = as_reward_model(job.reward)
    elif config.algo == "sft" and pairs is not None:
        data = preferred_texts(pairs)
    elif config.algo == "sft" and config.prompts is not None:
        data = [(task.start_of(i)[0], text) for i, prompt in enumerate(task.prompts) for text in prompt.references]  # as --over-long says
        if not data:
            raise ValueError(
                f"--algo sft learns responses, and {config.prompts} names none: pass --references COLUMN, or --preferences FILE"
            )
    elif config.algo == "sft" and task.recipe is not None:  # as a base policy is made
        data, model = task.recipe.texts(), dict(task.recipe.model) if model is None else model
    elif config.algo == "sft":
        raise ValueError(f"task {config.task or DEFAULT_TASK!r} has no corpus to learn from: pass --corpus FILE... or --preferences FILE")
    if isinstance(model, dict):
        _tell_start(job, f"fresh weights of a {model['model_type']} model")
    else:
        model = _first_policy(job)
    if pairs is not None and config.model is None:
        _tell_strange_texts(model, task, pairs, job.console)
    passes = {"lora": arguments_of(config.lora, "--lora"), "precision": config.precision, "micro_batch_size": config.micro_batch_size}
    how = (job.depends_on, job.learns_corpus, passes, job.before, config.shard)
    learn_offline(config.algo, job.run, config.algo, model, task, data, training, *how)


def _first_policy(job: Job) -> str:
    """Say which model training starts from, and return its folder or hub id."""
    config = job.config
    if config.model is not None:
        _tell_start(job, config.model)
        return config.model
    of = "the text files" if config.corpus else f"task {config.task or DEFAULT_TASK!r}"
    _tell_start(job, f"the base policy of {of}, as there is no --model")
    return str(base_policy(job.task, progress_bar=ranks().is_main))


def _tell_strange_texts(model: str, task: TextTask, pairs: Sequence[Preference] | Sequence[Thumb], console: Console) -> None:
    """Say so where a base policy predicts the preferred texts no better than chance."""
    good = [(it.prompt, it.response) if isinstance(it, Thumb) else (it.prompt, it.chosen) for it in pairs]
    knows = SFT(model, task.tokenizer, train_on_prompts=False, max_new_tokens=task.max_new_tokens)
    nats, chance = knows.evaluate(good[:_LOOKED_AT]), math.log(task.tokenizer.vocab_size)
    if nats > chance:
        console.print(
            f"the base policy does not know such texts: it predicts them at {nats:.1f} nats a token, and guessing among its tokens is "
            f"{chance:.1f}; pass --model of one that does, or --corpus with texts like them",
            style="bold red", highlight=False, soft_wrap=True,
        )  # fmt: skip


def _size(config: Train, task: TextTask) -> int | None:
    """Return the number of parameters of the model that is trained, where it is known before it is there."""
    source = config.model or (None if task.recipe is None else dict(task.recipe.model))
    return None if source is None else num_parameters(source)


def _tell_start(job: Job, start: str) -> None:
    """Say what training starts from, and the learning rate where none is given."""
    job.console.print(f"starts from {start}", highlight=False, soft_wrap=True)
    if job.parameters is not None:
        suits = f"{'adapters of ' if job.config.lora is not None else ''}a model of {job.parameters:,} parameters"
        job.console.print(f"learning rate {job.training.learning_rate:g}, which suits {suits}", highlight=False)
