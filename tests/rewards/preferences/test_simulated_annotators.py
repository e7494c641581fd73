"""Annotators choose with the chances that their settings say."""

import math

import numpy as np
import pytest

from rewards.fitting.simulated_feedback import fitted_reward
from rewards.preferences.simulated_annotators import Annotator
from textrl_env import Episode, make_task
from textrl_env.reward_model import as_reward_model
from textrl_env.tasks.diagnostic import noisy_preferences as noisypref


def length(prompts, responses):
    return np.array([float(len(response)) for response in responses])


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def many(first, second, number=4000):
    return [(f"p{i}", first, second) for i in range(number)]


def share_of(answers, response):
    return np.mean([answer.chosen == response for answer in answers])


def test_chances_by_hand():
    pair = [("p", "aaa", "a")]
    assert Annotator(length).probabilities(pair)[0] == pytest.approx(sigmoid(2))
    assert Annotator(length, temperature=4).probabilities(pair)[0] == pytest.approx(sigmoid(0.5))
    assert Annotator(length, flip=0.25).probabilities(pair)[0] == pytest.approx(0.75 * sigmoid(2) + 0.25 * sigmoid(-2))
    assert Annotator(length, position_bias=1).probabilities([("p", "a", "aaa")])[0] == pytest.approx(sigmoid(-1))
    assert Annotator(length, fatigue=0.5).probabilities(pair * 3).tolist() == pytest.approx([sigmoid(2), sigmoid(2 / 1.5), sigmoid(1)])
    assert Annotator(length, tie=2.5).probabilities(pair)[0] == 0.5
    assert Annotator(length, temperature=1e-9).probabilities([("p", "a" * 500, "a")])[0] == 1  # no overflow


def test_answers_have_these_chances():
    chance, number = sigmoid(1), 4000
    answers = Annotator(length, seed=3).compare(many("aa", "b", number))
    assert share_of(answers, "aa") == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / number))
    biased = Annotator(length, position_bias=0.5).compare(many("a", "b", number))
    assert share_of(biased, "a") == pytest.approx(sigmoid(0.5), abs=4 * 0.5 / math.sqrt(number))
    flipped = Annotator(length, temperature=1e-6, flip=0.2).compare(many("aa", "b", number))
    assert share_of(flipped, "b") == pytest.approx(0.2, abs=4 * 0.4 / math.sqrt(number))


def test_an_answer_depends_on_nothing_but_seed_name_and_comparison():
    pairs = many("aa", "b", 50)
    answers = Annotator(length).compare(pairs)
    assert Annotator(length).compare(pairs[::-1]) == answers[::-1]
    assert Annotator(length, seed=1).compare(pairs) != answers
    assert [a.chosen for a in Annotator(length, name="other").compare(pairs)] != [a.chosen for a in answers]


def test_ties_are_labelled():
    (answer,) = Annotator(length, tie=1.5, name="ann", group="g").compare([("p", "a", "bb")])
    assert answer.is_tie and answer.annotator == "ann" and answer.group == "g"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, "temperature=0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"flip": 0.6}, r"flip=0\.6"),
        ({"fatigue": -1}, "fatigue=-1"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        Annotator(length, **settings)


def test_fitted_reward_finds_the_taste_behind_noisy_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTRL_CACHE", str(tmp_path))
    model = as_reward_model(make_task("noisypref-20").reward)
    worth = noisypref.worths()
    texts = [f" {word} {word} {word}" for word in worth]
    scores = model.score([Episode.from_text("about tin tin oak oak", text) for text in texts])
    assert np.corrcoef(scores, list(worth.values()))[0, 1] > 0.8
    pairs = make_task("noisypref-20").recipe.corpus()[:1000]
    on_corpus = model.score([Episode.from_text(*pair) for pair in pairs])
    assert np.mean(on_corpus) == pytest.approx(0, abs=1e-3) and np.std(on_corpus) == pytest.approx(1, abs=1e-3)
    (folder,) = (tmp_path / "rewards").iterdir()
    when = folder.stat().st_mtime_ns
    as_reward_model(make_task("noisypref-20").reward)
    assert [f.stat().st_mtime_ns for f in (tmp_path / "rewards").iterdir()] == [when]  # found, not fitted again


def test_noise_costs_accuracy(tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTRL_CACHE", str(tmp_path))
    worth = list(noisypref.worths().values())
    agreement = []
    for size in ("0", "40"):
        model = as_reward_model(make_task(f"noisypref-{size}").reward)
        scores = model.score([Episode.from_text("about tin tin oak oak", f" {word} {word}") for word in noisypref.worths()])
        agreement.append(np.corrcoef(scores, worth)[0, 1])
    assert agreement[0] > agreement[1] + 0.1


def test_fitted_reward_refuses_what_cannot_be_compared():
    with pytest.raises(ValueError, match="comparisons=1000000"):
        fitted_reward("noisypref-0", comparisons=1_000_000)
