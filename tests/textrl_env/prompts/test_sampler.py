import copy
import json
import pickle
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from textrl_env.prompts.sampler import PromptSampler, SumTree

ORDERS = ("sequential", "random", "shuffled", "weighted", "priority")


def sampler_of(order, num_prompts=7, **kwargs):
    weights = np.arange(1.0, num_prompts + 1) if order == "weighted" else None
    return PromptSampler(num_prompts, order, weights, **kwargs)


def drawn(sampler, count, seed=0):
    generator = np.random.default_rng(seed)
    return [sampler.draw(generator) for _ in range(count)]


def test_sequential_walks_and_starts_over_without_touching_the_generator():
    generator = np.random.default_rng(0)
    before = generator.bit_generator.state
    sampler = PromptSampler(3, "sequential")
    assert [sampler.draw(generator) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert generator.bit_generator.state == before


def test_random_is_one_integer_of_the_rows_own_generator():
    ours = [np.random.default_rng(seed) for seed in (1, 2)]
    theirs = [np.random.default_rng(seed) for seed in (1, 2)]
    sampler = PromptSampler(1000)
    for row in (0, 1, 1, 0, 1):
        assert sampler.draw(ours[row]) == theirs[row].integers(1000)


def test_shuffled_deals_every_prompt_once_per_epoch_in_another_order():
    deals = np.array(drawn(PromptSampler(50, "shuffled"), 4 * 50)).reshape(4, 50)
    assert (np.sort(deals, axis=1) == np.arange(50)).all()
    assert len({tuple(epoch) for epoch in deals}) == 4
    assert list(deals[0]) != sorted(deals[0])


def test_every_permutation_of_an_epoch_is_equally_likely():
    generator = np.random.default_rng(3)
    sampler = PromptSampler(3, "shuffled")
    epochs = Counter(tuple(sampler.draw(generator) for _ in range(3)) for _ in range(6000))
    assert len(epochs) == 6
    assert chisquare(list(epochs.values())).pvalue > 1e-3


def test_weighted_draws_follow_the_weights_and_never_a_zero():
    weights = np.array([0.0, 1.0, 0.25, 0.0, 3.0, 10.0, 0.0])
    counts = np.bincount(drawn(PromptSampler(7, "weighted", weights), 40_000), minlength=7)
    assert (counts[weights == 0] == 0).all()
    kept = weights > 0
    assert chisquare(counts[kept], 40_000 * weights[kept] / weights.sum()).pvalue > 1e-3


def test_priorities_are_drawn_to_the_power_of_alpha():
    priorities = np.array([1.0, 2.0, 4.0, 0.5, 9.0])
    sampler = PromptSampler(5, "priority", alpha=0.6)
    sampler.update_priorities(np.arange(5), priorities)
    counts = np.bincount(drawn(sampler, 40_000), minlength=5)
    expected = priorities**0.6 / (priorities**0.6).sum()
    assert chisquare(counts, 40_000 * expected).pvalue > 1e-3
    assert chisquare(counts, np.full(5, 8000)).pvalue < 1e-6  # the test has the power to tell


def test_unseen_prompts_stand_at_the_maximum_so_far():
    sampler = PromptSampler(4, "priority", alpha=1.0)
    leaves = lambda: sampler._tree.leaves.tolist()  # noqa: E731
    assert leaves() == [1, 1, 1, 1]
    sampler.update_priorities([0], [0.25])  # the first report sets the scale
    assert leaves() == [0.25, 0.25, 0.25, 0.25]
    sampler.update_priorities([1], [5.0])
    assert leaves() == [0.25, 5, 5, 5]
    sampler.update_priorities([1, 2], [2.0, 1.0])  # the maximum so far stays 5
    assert leaves() == [0.25, 2, 1, 5]
    sampler.update_priorities([3, 3], [7.0, 0.5])  # the last one holds
    assert leaves() == [0.25, 2, 1, 0.5]


def test_priority_zero_is_never_drawn_and_all_zero_says_so():
    sampler = PromptSampler(3, "priority")
    sampler.update_priorities([0, 2], [0.0, 0.0])
    assert set(drawn(sampler, 200)) == {1}
    sampler.update_priorities([1], [0.0])
    with pytest.raises(ValueError, match=r"add up to 0\.0: keep at least one above 0"):
        sampler.draw(np.random.default_rng(0))


@pytest.mark.parametrize("order", ORDERS)
def test_groups_repeat_each_prompt_and_draw_the_same_prompts_as_without(order):
    singles = drawn(sampler_of(order), 30)
    groups = drawn(sampler_of(order, group_size=4), 120)
    assert groups == [index for index in singles for _ in range(4)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("count", [0, 5, 21, 26])
def test_a_state_through_json_goes_on_exactly(order, count):
    sampler = sampler_of(order, group_size=3)
    generator = np.random.default_rng(1)
    for i in range(count):
        index = sampler.draw(generator)
        if order == "priority":
            sampler.update_priorities([index], [0.1 + (i * 7919 % 13) / 3])
    resumed = sampler_of(order, group_size=3)
    drawn(resumed, 11, seed=9)  # what it did before does not matter
    resumed.set_state(json.loads(json.dumps(sampler.state())))
    again = copy.deepcopy(generator)
    assert [resumed.draw(again) for _ in range(100)] == [sampler.draw(generator) for _ in range(100)]
    assert again.bit_generator.state == generator.bit_generator.state
    if order == "priority":
        assert resumed._tree._nodes.tobytes() == sampler._tree._nodes.tobytes()


@pytest.mark.parametrize("order", ORDERS)
def test_a_pickled_sampler_goes_on_exactly(order):
    sampler = sampler_of(order)
    drawn(sampler, 10)
    assert drawn(pickle.loads(pickle.dumps(sampler)), 50, seed=4) == drawn(sampler, 50, seed=4)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 64, 100])
def test_the_sum_tree_agrees_with_cumulative_sums_of_integers(size):
    """Integers add exactly, so every mass has one right leaf."""
    generator = np.random.default_rng(size)
    values = generator.integers(0, 4, size).astype(float)
    values[generator.integers(size)] = 2.0
    tree = SumTree(values)
    for _ in range(20):
        assert tree.total == values.sum()
        masses = np.arange(0, values.sum(), 0.5)
        assert [tree.find(mass) for mass in masses] == np.searchsorted(np.cumsum(values), masses, side="right").tolist()
        changed = generator.integers(size, size=3)
        values[changed] = 1 + generator.integers(0, 4, 3)
        tree.update(changed, values[changed])
        assert (tree.leaves == values).all()


def test_rounding_never_leads_to_a_zero():
    """0.1 + 0.7 rounds down: a mass just below the total exceeds what the descent finds on the right."""
    generator = np.random.default_rng(0)
    for _ in range(2000):
        values = generator.random(9) * (generator.random(9) < 0.4)
        values[4] = 1e-9
        tree = SumTree(values)
        assert values[tree.find(np.nextafter(tree.total, 0))] > 0
        assert values[tree.find(tree.total)] > 0


def test_drawing_from_a_million_weights_visits_one_path():
    sampler = PromptSampler(1_000_000, "weighted", np.arange(1_000_000.0))
    mean = np.mean(drawn(sampler, 2000))
    assert abs(mean - 2 / 3 * 1e6) < 5 * 1e6 / np.sqrt(18 * 2000)  # density 2x: mean 2/3, variance 1/18


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"order": "shufled"}, r"order='shufled' is unknown \(did you mean 'shuffled'\?\)"),
        ({"order": "x"}, "order='x' is unknown: choose from 'sequential'"),
        ({"order": "weighted"}, "needs weights="),
        ({"weights": [1.0, 1.0, 1.0]}, "order='random' takes no weights"),
        ({"order": "weighted", "weights": [1.0, 1.0]}, r"weights have shape \(2,\): pass one for each of 3"),
        ({"order": "weighted", "weights": [1.0, -1.0, 1.0]}, r"weights\[1\] is -1.0"),
        ({"order": "weighted", "weights": [1.0, 1.0, np.nan]}, r"weights\[2\] is nan"),
        ({"order": "weighted", "weights": [0.0, 0.0, 0.0]}, "add up to 0.0: at least one must be above 0"),
        ({"order": "weighted", "weights": [1e308, 1e308, 1e308]}, "add up to inf"),
        ({"group_size": 0}, "group_size=0: both must be at least 1"),
        ({"order": "priority", "alpha": -1.0}, "alpha=-1.0: must be at least 0"),
    ],
)
def test_what_cannot_be_dealt_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PromptSampler(3, **kwargs)


@pytest.mark.parametrize(
    ("indices", "priorities", "error", "message"),
    [
        ([0, 1], [1.0], ValueError, r"shape \(2,\) and priorities \(1,\)"),
        ([3], [1.0], ValueError, r"must be in \[0, 3\)"),
        ([-1], [1.0], ValueError, r"must be in \[0, 3\)"),
        ([0.0], [1.0], TypeError, "dtype float64: pass integers"),
        ([0, 1], [1.0, np.nan], ValueError, "the priority of prompt 1 is nan"),
        ([2], [-0.5], ValueError, "the priority of prompt 2 is -0.5"),
        ([2], [np.inf], ValueError, "the priority of prompt 2 is inf"),
    ],
)
def test_bad_priorities_are_refused_and_change_nothing(indices, priorities, error, message):
    sampler = PromptSampler(3, "priority")
    before = sampler.state()
    with pytest.raises(error, match=message):
        sampler.update_priorities(indices, priorities)
    assert sampler.state() == before


def test_only_the_priority_order_takes_priorities():
    with pytest.raises(ValueError, match="choose order='priority'"):
        PromptSampler(3).update_priorities([0], [1.0])


def test_the_state_of_another_sampler_is_refused():
    with pytest.raises(ValueError, match="the state has num_prompts=4, this sampler 3"):
        PromptSampler(3).set_state(PromptSampler(4).state())
