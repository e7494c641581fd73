"""Means by group, and a head for each group."""

import math

import numpy as np
import pytest
from scipy import stats

import rewards
from rewards import PersonalRewardModel, Preference, fit_personal_model
from rewards.analysis.group_means import by_group
from rewards.utils.intervals import mean_interval
from textrl_env import Episode, make_task


@pytest.mark.reports("Means of groups have Student's intervals over prompts; a group of one text has none")
def test_means_and_gap_by_hand():
    found = by_group([1.0, 2.0, 3.0, 10.0, 10.0, 13.0], ["b", "b", "b", "a", "a", "a"])
    assert [(m.group, m.mean, m.num) for m in found.means] == [("b", 2.0, 3), ("a", 11.0, 3)]
    # t of 2 degrees is 4.303, and the standard error of 1, 2, 3 is 1 / sqrt(3); Welch's of both by SciPy
    assert (found.means[0].low, found.means[0].high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-3)
    theirs = stats.ttest_ind([10.0, 10, 13], [1.0, 2, 3], equal_var=False).confidence_interval()
    assert (found.gap, found.gap_low, found.gap_high) == pytest.approx((9.0, theirs.low, theirs.high))
    alone = by_group([0.9, 0.1, 0.2, 0.6, 0.4], ["a", "b", "b", "b", "b"])
    assert math.isnan(alone.means[1].low) and math.isnan(alone.gap_low) and alone.gap == pytest.approx(0.575)
    same = by_group([0.0, 0.0, 4.0, 4.0, 1.0, 1.0], ["x"] * 6, ["p", "p", "q", "q", "r", "r"])  # three prompts, not six texts
    assert same.means[0] == by_group([0.0, 4.0, 1.0], ["x"] * 3).means[0].__class__("x", *mean_interval(np.array([0.0, 4, 1])), 6)
    with pytest.raises(ValueError, match="one group for each"):
        by_group([1.0], ["a", "b"])


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    inside = [(lambda m: m.low <= 0 <= m.high)(by_group(rng.normal(size=5), ["x"] * 5).means[0]) for _ in range(600)]
    assert 0.93 <= np.mean(inside) <= 0.97


LIKES = {"warm": "moving", "cool": "clever"}


def world(seed=0, number=300):
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(number):
        group = str(rng.choice(list(LIKES)))
        if rng.random() < 0.5:  # all like this
            chosen, rejected = " was superb .", " was dull ."
        else:  # tastes differ
            other = LIKES["cool" if group == "warm" else "warm"]
            chosen, rejected = f" was {LIKES[group]} .", f" was {other} ."
        pairs.append(Preference("the plot", chosen, rejected, group=group))
    return pairs


def test_heads_serve_their_groups(tmp_path):
    tokenizer = make_task("review").tokenizer
    model = fit_personal_model(world(), tokenizer=tokenizer, pattern=r"for (\w+):")
    model.save(tmp_path / "m")
    loaded = rewards.make("personal", path=tmp_path / "m")
    for group in LIKES:
        other = "cool" if group == "warm" else "warm"
        for make in (
            lambda text, group=group: Episode.from_text("the plot", text, metadata={"group": group}),
            lambda text, group=group: Episode.from_text(f"for {group}: the plot", text),
        ):
            own, others, superb, dull = loaded.score([make(f" was {w} .") for w in (LIKES[group], LIKES[other], "superb", "dull")])
            assert own > others and superb > dull
    stranger = [Episode.from_text("the plot", " was superb .", metadata={"group": "else"}), Episode.from_text("the plot", " was dull .")]
    assert loaded.score(stranger) == loaded.shared.score(stranger) == model.score(stranger)
    episodes = [Episode.from_text("the plot", " was moving .", metadata={"group": "warm"})]
    head, (both, alone) = loaded.heads["warm"]
    assert loaded.score(episodes)[0] == pytest.approx(both * loaded.shared.score(episodes)[0] + alone * head.score(episodes)[0])


def test_small_groups_have_no_head_and_damage_is_told(tmp_path):
    tokenizer = make_task("review").tokenizer
    pairs = [*world(), *[Preference("p", " was moving .", " was dull .", group="rare")] * 20]
    model = fit_personal_model(pairs, tokenizer=tokenizer)
    assert set(model.heads) == set(LIKES) and all(math.isfinite(w) for _, weights in model.heads.values() for w in weights)
    with pytest.raises(ValueError, match="names a group"):
        fit_personal_model([Preference("p", "a", "b")] * 20, tokenizer=tokenizer)
    with pytest.raises(FileNotFoundError, match=r"groups\.json"):
        PersonalRewardModel.load(tmp_path)
    model.save(tmp_path / "m")
    description = tmp_path / "m" / "groups.json"
    for text in ("{", "[]", '{"groups": {"x": {}}}', '{"groups": {"x": {"folder": "../../etc", "weights": [1, 2]}}}'):
        description.write_text(text)
        with pytest.raises(ValueError, match="fit and save"):
            PersonalRewardModel.load(tmp_path / "m")
    with pytest.raises(ValueError, match="parentheses"):
        PersonalRewardModel(model.shared, {}, pattern="for")
