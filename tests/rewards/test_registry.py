import sys
import types

import numpy as np
import pytest

import rewards
from rewards import RewardError, RewardFunction, RewardModel
from textrl_env import reward_model
from textrl_env.episode import Episode
from textrl_env.reward_model import as_reward_model, checked_scores

EPISODES = [
    Episode.from_text("Q1", " the first text", references=("r1",), metadata={"level": 3}),
    Episode.from_text("Q2", " the second text"),
]


class Returns:
    def __init__(self, scores):
        self.scores = scores

    def score(self, episodes):
        return self.scores

    def __repr__(self):
        return "Returns()"


@pytest.fixture(autouse=True)
def same_table(monkeypatch):
    monkeypatch.setattr(reward_model, "_TABLE", dict(reward_model._TABLE))


def test_the_shipped_names():
    assert {"vader", "length", "keyword", "regex", "preference"} <= set(rewards.list())
    assert rewards.list() == sorted(rewards.list())


@pytest.mark.parametrize(
    ("reward", "scores"),
    [
        ({"name": "length", "target": 3}, [1.0, 1.0]),
        ({"name": "keyword", "keywords": ["first"]}, [1.0, 0.0]),
        ({"name": "regex", "pattern": "second"}, [0.0, 1.0]),
        ("vader", [0.0, 0.0]),
    ],
)
def test_make(reward, scores):
    model = as_reward_model(reward)
    assert isinstance(model, RewardModel)
    assert checked_scores(model, EPISODES).tolist() == scores


def test_make_by_name_and_unknown_name():
    assert repr(rewards.make("length", target=9)) == "LengthReward(target=9)"
    with pytest.raises(ValueError, match=r"'vadr' \(did you mean 'vader'\?\); known: .*vader"):
        rewards.make("vadr")


def test_register(monkeypatch):
    monkeypatch.setattr(reward_model, "_TABLE", dict(reward_model._TABLE))  # other tests list what is registered
    rewards.register("always", lambda value=1.0: Returns([value, value]))
    assert checked_scores(rewards.make("always", value=2.0), EPISODES).tolist() == [2.0, 2.0]
    assert "always" in rewards.list()
    with pytest.raises(ValueError, match="already registered"):
        rewards.register("vader", "elsewhere:Other")
    with pytest.raises(ValueError, match="module:attribute"):
        rewards.register("new", "no_colon")
    rewards.register("vader", "rewards.rules.text_rules:VaderReward")  # the same again is no error


def test_functions_get_the_columns_they_name():
    def by_name(completions, level):
        assert level == [3, None]
        return [float(len(c)) for c in completions]

    def all_of_them(prompts, completions, **columns):
        assert prompts == ["Q1", "Q2"] and completions == [" the first text", " the second text"]
        assert columns == {"level": [3, None], "references": [("r1",), ()]}
        return [1.0, 2.0]

    assert checked_scores(as_reward_model(by_name), EPISODES).tolist() == [15.0, 16.0]
    assert checked_scores(as_reward_model(all_of_them), EPISODES).tolist() == [1.0, 2.0]
    with pytest.raises(TypeError, match="completions"):
        RewardFunction(lambda texts: [0.0])


@pytest.mark.parametrize(
    ("reward", "error", "message"),
    [
        ({"target": 3}, ValueError, "'name'"),
        (Returns, TypeError, "is a class"),
        (3.0, TypeError, "reward=3.0 is a float"),
    ],
)
def test_other_things_are_refused(reward, error, message):
    with pytest.raises(error, match=message):
        as_reward_model(reward)


@pytest.mark.parametrize("scores", [[1, 2.5], (1, 2.5), np.array([1, 2.5]), [np.float32(1), np.float64(2.5)]])
def test_checker_takes_numbers_of_any_make(scores):
    checked = checked_scores(Returns(scores), EPISODES)
    assert checked.dtype == np.float64 and checked.tolist() == [1.0, 2.5]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None, True, np.True_, "0.5", [0.5], 1j])
def test_checker_names_the_text_of_a_bad_score(bad):
    with pytest.raises(RewardError, match=r"Returns\(\) returned .* 'Q2 the second text'"):
        checked_scores(Returns([0.0, bad]), EPISODES)


@pytest.mark.parametrize(
    ("scores", "message"),
    [([1.0], "1 scores for 2 episodes"), (0.5, "a float"), (None, "a NoneType"), ("ab", "a str"), ({1: 2.0}, "a dict")],
)
def test_checker_names_a_wrong_shape(scores, message):
    with pytest.raises(RewardError, match=message):
        checked_scores(Returns(scores), EPISODES)


def test_checker_names_the_text_a_model_failed_on():
    def broken(completions):
        raise KeyError("no such thing")

    with pytest.raises(RewardError, match=r"'Q1 the first text'.*no such thing") as caught:
        checked_scores(as_reward_model(broken), EPISODES)
    assert isinstance(caught.value.__cause__, KeyError)


def test_no_episodes_no_call():
    assert checked_scores(Returns(None), []).shape == (0,)


def test_a_foreign_package_of_our_name_is_refused(monkeypatch, tmp_path):
    foreign = types.ModuleType("rewards.rules.text_rules")
    foreign.__file__ = str(tmp_path / "rewards" / "rules.py")
    foreign.VaderReward = lambda: Returns([])
    monkeypatch.setitem(sys.modules, "rewards.rules.text_rules", foreign)
    with pytest.raises(ImportError, match="another package of that name"):
        rewards.make("vader")


def test_lazy_names():
    assert set(rewards.__all__) <= set(dir(rewards))
    assert all(getattr(rewards, name) is not None for name in rewards.__all__)
    with pytest.raises(AttributeError, match="No rewards attribute Nothing"):
        _ = rewards.Nothing
