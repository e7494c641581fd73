"""Prompts dealt to several who share the rollouts are those dealt to one."""

import itertools

import numpy as np
import pytest

from textrl_env import IntegerTokenizer, Prompt, TextCore, TextTask
from textrl_env.envs.rank_share import RankShare
from textrl_env.prompts.sampler import ORDERS


def test_shares_are_contiguous_whole_and_even():
    for episodes, group, size in [(16, 1, 2), (17, 1, 4), (24, 4, 4), (12, 4, 2), (10, 4, 2), (8, 4, 3), (3, 1, 5)]:
        parts = [list(range(episodes))[RankShare(rank, size).of(episodes, group)] for rank in range(size)]
        assert list(itertools.chain(*parts)) == list(range(episodes))
        assert all(part[0] % group == 0 for part in parts if part)
        groups = [-(-len(part) // group) for part in parts]
        assert max(groups) - min(groups) <= 1


def core_of(order, rows, group_size):
    weights = np.arange(1.0, 8.0) if order == "weighted" else None
    prompts = [Prompt(str(i)) for i in range(1, 8)]
    task = TextTask(
        IntegerTokenizer(10, 0), prompts, max_new_tokens=4, prompt_order=order, prompt_weights=weights, group_size=group_size,
        reward=lambda completions: [0.0] * len(completions),
    )  # fmt: skip
    core = TextCore(task, rows)
    for row in range(rows):
        core.seed(row, row)
    return core


def play(core, episodes, rng):
    """Write texts of random length; return the prompts in the order in which they were dealt."""
    core.begin_rollout(episodes)
    core.restart(range(core.num_rows))
    dealt = [int(core.prompt_index[row]) for row in np.flatnonzero(core.live)]
    while core.live.any():
        result = core.step(rng.integers(0, 4, core.num_rows))
        ended = list(result.episodes)
        core.restart(ended)
        dealt += [int(core.prompt_index[row]) for row in ended if core.live[row]]
    core.end_rollout()
    return dealt


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("group_size", [1, 4])
def test_two_shares_deal_what_one_core_deals(order, group_size):
    one, *two = (core_of(order, 12, group_size) for _ in range(3))
    for rank, core in enumerate(two):
        core.share = RankShare(rank, 2)
    rng = np.random.default_rng(0)
    for episodes in (12, 8, 12, 4, 12):
        expected = play(one, episodes, rng)
        dealt = [play(core, episodes, rng) for core in two]
        assert list(itertools.chain(*dealt)) == expected and len(expected) == episodes
        states = [(core.prompt_sampler.state(), [g.bit_generator.state for g in core.generators]) for core in (one, *two)]
        assert states[0] == states[1] == states[2]
        if order == "priority":
            for core in (one, *two):
                core.prompt_sampler.update_priorities(expected[:3], [1.0, 5.0, 2.0])


def test_more_texts_than_rows_take_turns():
    two = [core_of("random", 3, 1) for _ in range(2)]
    for rank, core in enumerate(two):
        core.share = RankShare(rank, 2)
    one = core_of("random", 3, 1)
    expected = [one.prompt_sampler.draw(one.generators[i % 3]) for i in range(11)]
    rng = np.random.default_rng(0)
    assert list(itertools.chain(*(play(core, 11, rng) for core in two))) == expected
