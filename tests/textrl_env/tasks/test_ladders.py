"""What holds for every task of the diagnostic suite."""

from functools import cache

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tests.slow_cases import slow_but
from textrl_env import LADDERS, make_task

NAMES = [f"{ladder.name.lower()}-{size}" for ladder in LADDERS for size in ladder.sizes]
DEFAULTS = [f"{ladder.name.lower()}-{ladder.default}" for ladder in LADDERS]


@cache
def corpus_of(name):
    return tuple(make_task(name).recipe.corpus())


@pytest.mark.parametrize("ladder", LADDERS, ids=lambda ladder: ladder.name)
def test_environment_passes_gymnasiums_checker(ladder):
    env = gym.make(f"textrl/{ladder.name}-v0")
    check_env(env.unwrapped, skip_render_check=True)
    assert env.unwrapped.task is make_task(f"{ladder.name.lower()}-{ladder.default}")


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_prompt_and_every_prompt_fits(name):
    splits = [{prompt.text for prompt in make_task(name, split=split).prompts} for split in ("train", "validation", "test")]
    assert all(splits)
    assert not splits[0] & splits[1] and not splits[0] & splits[2] and not splits[1] & splits[2]


@pytest.mark.parametrize("name", slow_but(DEFAULTS, NAMES))
def test_corpus_is_in_the_vocabulary_and_keeps_off_the_other_splits(name):
    task = make_task(name)
    pairs = corpus_of(name)
    held_out = {p.text for split in ("validation", "test") for p in make_task(name, split=split).prompts}
    assert not held_out & {prompt for prompt, _ in pairs}
    lengths = [len(row) for row in task.tokenizer.encode_batch([response for _, response in pairs])]
    assert max(lengths) <= task.max_new_tokens


@pytest.mark.parametrize("name", slow_but(DEFAULTS, NAMES))
def test_corpus_scores_below_the_optimum_and_within_range(name):
    task = make_task(name)
    pairs = corpus_of(name)[:512]
    prompts, responses = [p for p, _ in pairs], [r for _, r in pairs]
    gold = np.asarray(task.gold(prompts, responses))
    assert gold.shape == (len(pairs),)
    assert 0 <= gold.min() and gold.max() <= 1
    value = task.measure(prompts, responses) if task.measure else gold.mean()
    assert value < task.optimum <= 1


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_split_is_named(name):
    with pytest.raises(ValueError, match="split='dev'"):
        make_task(name, split="dev")
