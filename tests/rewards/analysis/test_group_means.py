"""Means by group, and a head for each group."""

import math

import numpy as np
import pytest

import rewards
from rewards import PersonalRewardModel, Preference, fit_personal_model
from rewards.analysis.group_means import by_group
from textrl_env import Episode, make_task


def test_means_and_gap_by_hand():
    found = by_group([1.0, 2.0, 3.0, 10.0, 10.0], ["b", "b", "b", "a", "a"])
    assert [(m.group, m.mean, m.num) for m in found.means] == [("b", 2.0, 3), ("a", 10.0, 2)]
    assert found.gap == 8.0 and (found.means[1].low, found.means[1].high) == (10.0, 10.0)
    assert 1 <= found.means[0].low < 2 < found.means[0].high <= 3 and found.gap_low == pytest.approx(10 - found.means[0].high)
    with pytest.raises(ValueError, match="one group for each"):
        by_group([1.0], ["a", "b"])


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    inside = [(lambda m: m.low <= 0 <= m.high)(by_group(rng.normal(size=60), ["x"] * 60, 400, seed).means[0]) for seed in range(300)]
    assert 0.90 <= np.mean(inside) <= 0.99


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
