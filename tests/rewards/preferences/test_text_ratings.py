"""Comparisons of rated texts, and how far people agree, against brute force."""

import json

import numpy as np
import pytest

from rewards import read_preference_file
from rewards.preferences.text_ratings import comparisons_of_ratings, has_text_ratings, noise_ceiling, rated_text, rating_reliability
from textrl_env.utils.row_files import RowError


def rows(number, seed=0):
    rng = np.random.default_rng(seed)
    return [{"text": f"text {i}", "ratings": rng.integers(-4, 5, rng.integers(1, 9)).tolist()} for i in range(number)]


def test_a_label_is_the_share_of_pairs_of_people():
    texts = [rated_text(row) for row in ({"text": "a", "ratings": [1, 2, 3]}, {"text": "b", "ratings": [2, 0]})]
    (pair,) = comparisons_of_ratings(texts)
    # 1>2 no, 1>0 yes, 2=2 half, 2>0 yes, 3>2 yes, 3>0 yes: 4.5 of 6
    assert (pair.chosen, pair.rejected, pair.label, pair.prompt) == ("a", "b", 0.75, "")
    assert pair.metadata == {"rating_difference": 1.0} and pair.margin == 0


def test_groups_share_no_text_and_every_label_equals_plain_loops():
    data = rows(20)
    by_text = {row["text"]: row["ratings"] for row in data}
    pairs = comparisons_of_ratings([rated_text(row) for row in data], group_size=4)
    assert len(pairs) == 5 * 6
    groups = {}
    for pair in pairs:
        one, other = by_text[pair.chosen], by_text[pair.rejected]
        wins = sum((a > b) + 0.5 * (a == b) for a in one for b in other) / (len(one) * len(other))
        assert pair.label == pytest.approx(wins, abs=1e-12) and wins >= 0.5
        groups.setdefault(pair.chosen, set()).update((pair.chosen, pair.rejected))
        groups.setdefault(pair.rejected, set()).update((pair.chosen, pair.rejected))
    assert {frozenset(group) for group in groups.values()} and len({frozenset(group) for group in groups.values()}) == 5
    again = comparisons_of_ratings([rated_text(row) for row in data], group_size=4)
    assert again == pairs


def test_texts_are_compared_within_a_prompt_and_equal_texts_are_joined():
    data = [
        {"prompt": p, "text": t, "ratings": r}
        for p, t, r in (("p", "a", [1]), ("p", "a", [3]), ("p", "b", [2]), ("q", "c", [9]), ("q", "d", [9]))
    ]
    pairs = {(pair.prompt, pair.label) for pair in comparisons_of_ratings([rated_text(row) for row in data])}
    assert pairs == {("p", 0.5), ("q", 0.5)}
    with pytest.raises(ValueError, match="hold no comparison"):
        comparisons_of_ratings([rated_text({"prompt": str(i), "text": "a", "ratings": [1]}) for i in range(3)])
    with pytest.raises(ValueError, match="group_size=1"):
        comparisons_of_ratings([rated_text(row) for row in rows(3)], group_size=1)


def test_the_ceiling_equals_the_exact_agreement():
    one, other = np.array([1.0, 2.0, 4.0]), np.array([0.0, 3.0])
    # 7/3 against 3/2: one is preferred.  All 27 * 4 resampled panels, and all 6 pairs of single raters against the rest
    means = [
        (sum(a) / 3, sum(b) / 2)
        for a in np.array(np.meshgrid(one, one, one)).reshape(3, -1).T
        for b in np.array(np.meshgrid(other, other)).reshape(2, -1).T
    ]
    panel = np.mean([(a > b) + 0.5 * (a == b) for a, b in means])
    rater = []
    for i in range(3):
        for j in range(2):
            rest = np.delete(one, i).mean() - np.delete(other, j).mean()
            rater.append(0.5 + np.sign(one[i] - other[j]) * np.sign(rest) / 2)
    ceiling = noise_ceiling([(one, other)] * 50 + [(one, one)], draws=200)
    assert ceiling.comparisons == 50  # equal means prefer neither
    assert ceiling.panel == pytest.approx(panel, abs=0.015) and ceiling.rater == pytest.approx(np.mean(rater), abs=0.015)
    with pytest.raises(ValueError, match="none of 1"):
        noise_ceiling([(one, one)])


def test_a_file_of_ratings_is_read_as_comparisons(tmp_path):
    data = rows(12)
    (tmp_path / "ratings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data) + '{"text": "a", "ratings": []}\n')
    file = read_preference_file(tmp_path / "ratings.jsonl", skip_unreadable=True)
    assert file.preferences == comparisons_of_ratings([rated_text(row) for row in data]) and len(file.preferences) == 2 * 15
    assert (dict(file.forms), file.skipped.total()) == ({"ratings of texts": 12}, 1)
    by_text = {row["text"]: np.array(row["ratings"], float) for row in data}
    assert file.ceiling == noise_ceiling(
        [(by_text[p.chosen], by_text[p.rejected]) for p in file.preferences if p.metadata["rating_difference"]]
    )


def test_which_rows_are_ratings_of_texts():
    assert has_text_ratings({"text": "a", "ratings": [1]}) and not has_text_ratings({"responses": ["a"], "ratings": [1], "text": "b"})
    with pytest.raises(RowError, match="must be texts"):
        rated_text({"text": 3, "ratings": [1]})
    for ratings in ([], [1, None], [float("nan")], 3):
        with pytest.raises(RowError, match="one a person"):
            rated_text({"text": "a", "ratings": ratings})


def test_the_most_that_a_judge_can_agree_equals_a_simulation():
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 1.3, 4000)  # what a perfect judge would say

    def panel(people):
        return truth[:, None] + rng.normal(0, 2.0, (4000, people))

    people, others = panel(12), panel(12)
    found = rating_reliability(list(people))
    means = people.mean(1)
    assert found.half == pytest.approx(np.corrcoef(panel(6).mean(1), panel(6).mean(1))[0, 1], abs=0.015)
    assert found.panel == pytest.approx(np.corrcoef(means, others.mean(1))[0, 1], abs=0.01)
    assert found.panel == pytest.approx(1.3**2 / (1.3**2 + 2.0**2 / 12), abs=0.01)
    assert found.correlation == pytest.approx(np.corrcoef(truth, means)[0, 1], abs=0.01)
    order = np.sign(truth[:2000] - truth[2000:]) == np.sign(means[:2000] - means[2000:])
    assert found.pairs == pytest.approx(order.mean(), abs=0.02)


def test_reliability_by_hand():
    certain = rating_reliability([np.array([1.0, 1.0]), np.array([2.0, 2.0]), np.array([4.0, 4.0, 4.0]), np.array([9.0])])
    assert (certain.half, certain.panel, certain.correlation, certain.pairs) == pytest.approx((1, 1, 1, 1))
    # However the three are dealt, the halves are (0, 0, 4) and (0, 4, 4), which correlate by .5
    half = rating_reliability([np.array([0.0, 0.0]), np.array([0.0, 4.0]), np.array([4.0, 4.0])])
    assert half.half == pytest.approx(0.5) and half.panel == pytest.approx(2 / 3)
    assert half.correlation == pytest.approx((2 / 3) ** 0.5) and half.pairs == pytest.approx(0.5 + np.arcsin((2 / 3) ** 0.5) / np.pi)
    with pytest.raises(ValueError, match="1 texts have two ratings or more: 3 are the least"):
        rating_reliability([np.array([1.0, 2.0]), np.array([1.0]), np.array([2.0])])
    with pytest.raises(ValueError, match="these people do not agree"):
        rating_reliability([np.array([0.0, 4.0]), np.array([4.0, 0.0]), np.array([0.0, 4.0])] * 3)
