"""From a dataset of reasoning-gym to a task: its questions, dealt to splits, from one difficulty or from several."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np

from ...chat import chat_template, render
from ...prompts.prompt import Prompt
from ...task import BaseRecipe, TextTask
from ...tokenizer import FileTokenizer, Tokenizer, as_tokenizer
from ...utils.optional_imports import optional_import
from ...utils.suggestions import did_you_mean
from ..diagnostic.common import GoldReward
from .verifier import UNFIT, Verifier

_SPLITS = ("train", "train", "validation", "test")  # two bits of a hash of the question say which
_SEED_STRIDE = 2**20  # its item i of seed s is item 0 of seed s + i: neighbouring seeds are nearly the same items
_LIMITS = {"size": (1, 100_000), "seed": (0, 4095), "levels": (1, 100)}
_PATIENCE = 1000  # items in a row without a new question, after which a small world counts as exhausted
_LONGEST = 512  # bytes of a question that the small base policy still reads


def reasoning_task(
    name: str,
    dataset: str,
    size: int = 1000,
    seed: int = 0,
    split: str = "train",
    levels: int | None = None,
    tokenizer: Any = None,
    max_new_tokens: int = 64,
    chat: bool = False,
    **options: Any,
) -> TextTask:
    """Return a task of questions that reasoning-gym generates (Stojanovski et al. 2025, "Reasoning Gym").

    The reward is the dataset's own verifier, partial credit as it gives it, in [0, 1].  It reads what stands in the last
    `<answer>...</answer>`, or else the whole response.  Nothing that a policy writes is run as code: where a verifier would do so,
    answers that are not plain data count as empty, and datasets where that is not possible are refused, see `UNFIT`.

    Questions are drawn from `seed` one after the other, each once.  Which split one belongs to, a hash of its text decides (train two in
    four, validation and test one each), so that no seed, size or level ever puts the same question into two splits.

    Args:
        name: `"reasoning"`.
        dataset: Its name in reasoning-gym, such as `"leg_counting"`.
        size: Questions of the split, all different.
        seed: From 0 to 4095; two seeds share no items, though a small world may give the same question again, in the same split.
        split: `"train"`, `"validation"` or `"test"`.
        levels: Take the questions in equal shares from this many levels of the dataset's own curriculum, from easy to hard.  `levels_of`
            says which is of which, and `prompt_order` is `"priority"` unless it is named.
        tokenizer: The policy's, or what `FileTokenizer` takes; None: one token a byte, 258 in all.  Only then has the task a base policy.
        max_new_tokens: Longest response, with room for each right answer.
        chat: Show each question as a user's message in the tokenizer's chat template.
        **options: Settings of the dataset, or fields of `TextTask`.

    Raises:
        ImportError: reasoning-gym is not installed.
        ValueError: The dataset is unknown or refused, it has no such setting or curriculum, it has fewer different questions, or a right
            answer is longer than `max_new_tokens`.
    """
    for key, value in (("size", size), ("seed", seed), ("levels", levels)):
        least, most = _LIMITS[key]
        if value is not None and not (type(value) is int and least <= value <= most):
            raise ValueError(f"{key}={value!r}: pass a whole number from {least} to {most}")
    if options.get("over_long", "reject") != "reject":
        raise ValueError(f"over_long={options['over_long']!r}: a question that is cut has no right answer; raise max_prompt_tokens")
    of_task = {f.name for f in fields(TextTask) if f.init}
    configurations = _configurations(dataset, {key: value for key, value in options.items() if key not in of_task}, levels)
    reader = _bytes() if tokenizer is None else as_tokenizer(tokenizer)
    entries: dict[str, tuple[int, dict[str, Any]]] = {}
    for level, configuration in enumerate(configurations):
        share = size * (level + 1) // len(configurations) - len(entries)
        for entry in _drawn(dataset, configuration, seed, split, share, entries):
            entries[entry["question"]] = (level, entry)
    prompts = tuple(_prompt(entry, level, reader if chat else None) for level, entry in entries.values())
    _check_room(prompts, reader, max_new_tokens)
    gold = Verifier(dataset, configurations, dict(zip([prompt.text for prompt in prompts], entries.values(), strict=True)))
    own: dict[str, Any] = {"reward": GoldReward(gold), "gold": gold, "optimum": 1.0}
    if levels is not None:
        own["prompt_order"] = "priority"
    task = TextTask(reader, prompts, max_new_tokens, **(own | {key: value for key, value in options.items() if key in of_task}))
    return replace(task, recipe=_recipe(task)) if tokenizer is None and "recipe" not in options else task


def levels_of(task: TextTask) -> np.ndarray:
    """Return the level of each prompt of a reasoning task, shape (N,), 0 the easiest: for `update_priorities`."""
    return np.array([prompt.metadata["level"] for prompt in task.prompts])


def _configurations(dataset: str, settings: dict[str, Any], levels: int | None) -> list[Any]:
    """Return the dataset's configurations, one for each level.

    Raises:
        ValueError: There is no such dataset, or it refuses the settings.
    """
    with optional_import("reasoning", "reasoning tasks need reasoning-gym"):
        from reasoning_gym.factory import CURRICULA, DATASETS
    if dataset in UNFIT:
        raise ValueError(f"dataset={dataset!r} is not offered: {UNFIT[dataset]}")
    if dataset not in DATASETS:
        known = ", ".join(sorted(DATASETS.keys() - UNFIT))
        raise ValueError(f"reasoning-gym has no dataset {dataset!r}{did_you_mean(dataset, DATASETS)}; it has {known}")
    made = DATASETS[dataset][1]
    known_settings = [f.name for f in fields(made) if f.name not in ("size", "seed")]
    for key in settings:
        if key not in known_settings:
            raise ValueError(f"{dataset} has no setting {key!r}{did_you_mean(key, known_settings)}; it has {', '.join(known_settings)}")
    if levels is not None and dataset not in CURRICULA:
        raise ValueError(f"levels={levels}: reasoning-gym has no curriculum for {dataset}; set {', '.join(known_settings)} instead")
    try:
        steps = range(levels or 0)
        configurations = [_at_level(CURRICULA[dataset](), level, settings, len(steps)) for level in steps] or [made(**settings)]
        for configuration in configurations:
            getattr(configuration, "validate", bool)()  # a few have none
        return configurations
    except (AssertionError, TypeError) as error:  # how its configurations check themselves
        raise ValueError(f"{dataset} refuses {settings}: {error}") from error


def _at_level(curriculum: Any, level: int, settings: dict[str, Any], levels: int) -> Any:
    """Return the configuration in which every knob of the curriculum stands at one level, and at no lower one."""
    from reasoning_gym.coaching.base_curriculum import DefaultCurriculumContext, RangeAttributeMode

    most = min(len(knob.levels) for knob in curriculum.attributes.values())
    if levels > most:
        raise ValueError(f"levels={levels}: {curriculum.name} has {most}")
    for knob in curriculum.attributes:
        curriculum.set_attr_level(knob, level)
    made = curriculum.generate_configuration(settings, DefaultCurriculumContext(RangeAttributeMode.UPPER_BOUND))
    for key, value in settings.items():
        if getattr(made, key) != value:
            raise ValueError(f"{key}={value!r}: with levels={levels} the curriculum sets it, to {getattr(made, key)!r}; leave one out")
    return made


def _drawn(dataset: str, configuration: Any, seed: int, split: str, count: int, taken: Any) -> Iterator[dict[str, Any]]:
    """Yield so many new questions of a split; those of the others are passed over."""
    from reasoning_gym.factory import DATASETS

    at, idle, found, chunk = seed * _SEED_STRIDE, 0, set(taken), max(count, 8)
    wanted = len(found) + count
    while len(found) < wanted:
        part = DATASETS[dataset][0](replace(configuration, seed=at, size=chunk))
        at += chunk
        for entry in (part[i] for i in range(chunk)):
            new = entry["question"] not in found and _split_of(entry["question"]) == split
            idle = 0 if new else idle + 1
            if idle >= _PATIENCE:
                there = len(found) - wanted + count
                raise ValueError(
                    f"{dataset} has only {there} different questions in its {split} split, and {count} are wanted: lower size, or change "
                    "its settings"
                )
            if new:
                found.add(entry["question"])
                yield entry
            if len(found) == wanted:
                return


def _split_of(question: str) -> str:
    return _SPLITS[hashlib.sha256(question.encode()).digest()[0] % len(_SPLITS)]


def _prompt(entry: dict[str, Any], level: int, tokenizer: Tokenizer | None) -> Prompt:
    """Return a question as a prompt, in the chat template of a tokenizer if there is one."""
    answers = (entry["answer"],) if isinstance(entry["answer"], str) else ()  # some have many right answers, and name none
    if tokenizer is None:
        return Prompt(entry["question"], answers, {"level": level})
    if not isinstance(tokenizer, FileTokenizer):
        raise ValueError(f"chat=True: a {type(tokenizer).__name__} has no chat template; pass the folder of the model's tokenizer")
    text, typed = render(chat_template(tokenizer.files), [{"role": "user", "content": entry["question"]}])
    return Prompt(text, answers, {"level": level}, typed)


def _check_room(prompts: Sequence[Prompt], tokenizer: Tokenizer, max_new_tokens: int) -> None:
    """Insist that each right answer can be written, with the token that ends it."""
    answers = [prompt.references[0] for prompt in prompts if prompt.references]
    longest = max(map(len, tokenizer.encode_batch(answers)), default=0) + 1
    if longest > max_new_tokens:
        raise ValueError(f"max_new_tokens={max_new_tokens}: a right answer takes {longest} tokens with its end; raise it to that or more")


def _bytes() -> FileTokenizer:
    from ...utils.train_tokenizer import train_tokenizer

    return FileTokenizer(train_tokenizer((), 258))  # a token a byte, padding and the end of text: nothing is merged


def _recipe(task: TextTask) -> BaseRecipe | None:
    """Return a small base policy's: it learns from right answers; none where a question is too long for it, or names no answer."""
    if task.prompt_width > _LONGEST or not all(prompt.references for prompt in task.prompts):
        return None
    model = {
        "model_type": "llama", "vocab_size": task.tokenizer.vocab_size, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 2 * _LONGEST + task.max_new_tokens,
        "bos_token_id": None, "eos_token_id": task.tokenizer.eos_token_id, "tie_word_embeddings": True, "initializer_range": 0.06,
    }  # fmt: skip
    return BaseRecipe(partial(_pairs, task.prompts), model, steps=500)


def _pairs(prompts: Sequence[Prompt]) -> list[tuple[str, str]]:
    return [(prompt.text, prompt.references[0]) for prompt in prompts]
