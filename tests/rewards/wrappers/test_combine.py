"""Rewards made of rewards, against numbers worked out by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
from stable_baselines3.common.logger import Logger

import rewards
from agents.algorithms.common.metric_names import record_rollout
from agents.distributed.ranks import Ranks
from agents.rollouts.rollout_samples import RolloutResult, RolloutStats
from rewards import RewardError
from rewards.wrappers.improvement import ImprovementReward
from textrl_env import Episode, IntegerTokenizer, Prompt, TextGenerationEnv, TextGenerationVectorEnv, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv
from textrl_env.reward_model import as_reward_model, checked_scores
from textrl_env.reward_warnings import RewardWarning


def words(prompts, completions):
    return [float(len(text.split())) for text in completions]


def ayes(prompts, completions):
    return [float(text.count("a")) for text in completions]


def texts(*responses):
    return [Episode.from_text("p", r) for r in responses]


BATCH = texts("a a", "b", "a b c", "")  # words 2, 1, 3, 0; a's 2, 0, 1, 0


@pytest.mark.parametrize(
    ("name", "arguments", "scores"),
    [
        ("sum", {"terms": {"w": words, "a": ayes}}, [4, 1, 4, 0]),
        ("sum", {"terms": {"w": words, "a": ayes}, "weights": {"a": -0.5}}, [1, 1, 2.5, 0]),
        ("product", {"terms": {"w": words, "a": ayes}}, [4, 0, 3, 0]),
        ("minimum", {"terms": {"w": words, "a": ayes}}, [2, 0, 1, 0]),
        ("ensemble", {"members": [words, ayes]}, [2, 0, 1, 0]),  # of two numbers the deviation is half their distance
        ("ensemble", {"members": [words, ayes], "penalty": 0}, [2, 0.5, 2, 0]),
        ("ensemble", {"members": [words, ayes], "penalty": 2}, [2, -0.5, 0, 0]),
        ("gold_and_proxy", {"proxy": words, "gold": ayes}, [2, 1, 3, 0]),
        ("clip", {"reward": words, "low": 0.5, "high": 2}, [2, 1, 2, 0.5]),
        ("clip", {"reward": words, "high": 2}, [2, 1, 2, 0]),
        ("threshold", {"reward": words, "at": 2}, [1, 0, 1, 0]),
    ],
)
def test_scores(name, arguments, scores):
    assert rewards.make(name, **arguments).score(BATCH) == pytest.approx(scores)


def test_plain_data_nests():
    short = {"name": "clip", "reward": {"name": "length", "target": 2}, "high": 0.5}
    terms = {"short": short, "word": {"name": "keyword", "keywords": ["a"]}}
    plain = {"name": "sum", "terms": terms, "weights": {"word": 2}}
    model = rewards.make(**json.loads(json.dumps(plain)))
    assert model.score(BATCH) == pytest.approx([0.5 + 2, 0.5, 0.5 + 2, 0.0])
    assert {name: values.tolist() for name, values in model.last_terms.items()} == {
        "short": [0.5, 0.5, 0.5, 0.0], "word": [1, 0, 1, 0], "short/raw": pytest.approx([1, 0.5, 0.5, 0]),
    }  # fmt: skip


def test_a_curriculum():
    model = rewards.make("sum", terms={"w": words, "a": ayes}, weights={"w": [[4, 1], [12, 0]], "a": [[0, 0], [8, 1]]})
    assert model.score(BATCH) == pytest.approx([2, 1, 3, 0])  # no text scored yet: weights 1 and 0
    assert model.score(BATCH) == pytest.approx([2 + 1, 1, 3 + 0.5, 0])  # 4 texts: 1 and 1/2
    assert model.score(BATCH) == pytest.approx([1 + 2, 0.5, 1.5 + 1, 0])  # 8 texts: 1/2 and 1
    state = model.get_state()
    assert model.weights == {"w": 0, "a": 1}
    again = rewards.make("sum", terms={"w": words, "a": ayes}, weights={"w": [[4, 1], [12, 0]], "a": [[0, 0], [8, 1]]})
    again.set_state(json.loads(json.dumps(state)))
    assert again.weights == {"w": 0, "a": 1} and again.score(BATCH) == model.score(BATCH)


def test_running_normalisation_equals_all_texts_at_once():
    rng = np.random.default_rng(0)
    batches = [texts(*("x " * n for n in rng.integers(0, 30, size))) for size in (5, 1, 7, 20)]
    model = rewards.make("normalize", reward=words)
    for batch in batches:
        scores = model.score(batch)
    seen = np.array([len(e.response.split()) for batch in batches for e in batch])
    np.testing.assert_allclose(scores, (seen[-20:] - seen.mean()) / seen.std())
    assert (model.count, model.mean, model.variance) == pytest.approx((33, seen.mean(), seen.var()))
    other = rewards.make("normalize", reward=words)
    other.set_state(json.loads(json.dumps(model.get_state())))
    assert other.score(BATCH) == model.score(BATCH)


def test_normalisation_by_reference_texts(tmp_path):
    path = tmp_path / "base.jsonl"
    path.write_text("".join(json.dumps({"prompt": "p", "response": "x " * n}) + "\n" for n in (1, 3, 5, 7)), encoding="utf-8")
    for reference in (str(path), texts("x", "x x x", "x x x x x", "x x x x x x x")):
        model = rewards.make("normalize", reward=words, reference=reference)
        for _ in range(2):  # the scale is fixed: mean 4, variance 5
            assert model.score(BATCH) == pytest.approx(np.array([-2, -3, -1, -4]) / np.sqrt(5))
    with pytest.raises(ValueError, match="all score"):
        rewards.make("normalize", reward=words, reference=texts("x", "y"))
    path.write_text('{"prompt": "p", "response": "x"}\n{"prompt": "p", "response": null}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"row 2"):
        rewards.make("normalize", reward=words, reference=path)


def test_lengths_explain_nothing_afterwards():
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 40, 50)
    luck = dict(zip(("x " * n + str(i) for i, n in enumerate(lengths)), rng.normal(size=50), strict=True))

    def biased(prompts, completions):
        return [0.3 * len(text.split()) + luck[text] for text in completions]

    batch = texts(*luck)
    model = rewards.make("debias_length", reward=biased, reference=batch)
    scores = model.score(batch)
    assert np.corrcoef(scores, lengths)[0, 1] == pytest.approx(0, abs=1e-12)
    assert model.slope == pytest.approx(np.polyfit(lengths + 1, biased(None, luck), 1)[0])
    assert np.mean(scores) == pytest.approx(np.mean(biased(None, luck)))
    with pytest.raises(ValueError, match="length"):
        rewards.make("debias_length", reward=ayes, reference=texts("a", "b"))


class Steps:
    def score(self, episodes):
        return [1.0] * len(episodes)

    def score_steps(self, episodes):
        return [0.25] * len(episodes)


def test_only_sums_pass_on_scores_of_steps():
    model = rewards.make("sum", terms={"steps": Steps(), "w": words}, weights={"steps": 2})
    assert model.score_steps(BATCH) == [0.5] * 4 and not hasattr(model, "score_turns")
    assert not hasattr(rewards.make("sum", terms={"w": words}), "score_steps")
    wrong = {"clip": {"reward": Steps(), "high": 1}, "product": {"terms": {"s": Steps()}}, "improvement": {"reward": Steps()}}
    for name, arguments in wrong.items():
        with pytest.raises(ValueError, match=f"{name}.*score_steps"):
            rewards.make(name, **arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("sum", {"terms": {}}, ValueError, "at least one"),
        ("sum", {"terms": [words]}, TypeError, "map names"),
        ("sum", {"terms": {"w": words}, "weights": {"v": 1}}, ValueError, "v, but the terms are w"),
        ("sum", {"terms": {"w": words}, "weights": {"w": "x"}}, ValueError, "give a number"),
        ("sum", {"terms": {"w": words}, "weights": {"w": [[3, 1], [3, 2]]}}, ValueError, "must rise"),
        ("sum", {"terms": {"w": words}, "weights": {"w": float("nan")}}, ValueError, "finite"),
        ("ensemble", {"members": [words]}, ValueError, "two"),
        ("ensemble", {"members": [words, ayes], "penalty": -1}, ValueError, "penalty"),
        ("clip", {"reward": words, "low": 2, "high": 1}, ValueError, "below"),
        ("threshold", {"reward": words, "at": float("nan")}, ValueError, "finite"),
        ("normalize", {"reward": words, "reference": []}, ValueError, "at least 2"),
    ],
)
def test_wrong_arguments(name, arguments, error, message):
    with pytest.raises(error, match=message):
        rewards.make(name, **arguments)


def test_a_term_that_fails_is_named():
    def broken(prompts, completions):
        return [float("nan")] * len(completions)

    with pytest.raises(RewardError, match=r"broken.*nan"):
        rewards.make("sum", terms={"w": words, "b": broken}).score(BATCH)


def play(env, tokens):
    env.reset(seed=0)
    total, steps = 0.0, []
    for token in tokens:
        _, reward, ended, _, info = env.step(token)
        total, steps = total + reward, [*steps, reward]
    return total, steps, ended, info


def sevens(prompts, completions):
    return [float(text.split().count("7")) ** 2 for text in completions]


def test_improvements_sum_to_the_score():
    task = TextTask(IntegerTokenizer(10), [Prompt("1")], 5)
    total, steps, ended, info = play(TextGenerationEnv(task, reward=ImprovementReward(sevens)), [7, 3, 7, 7, 2])
    assert ended and total == 9 and steps == [1, 0, 3, 5, 0]
    assert info["reward_terms"] == {"final": 9.0}


def test_improvements_in_a_batch_of_equal_and_ending_texts():
    task = TextTask(IntegerTokenizer(10), [Prompt("1"), Prompt("2")], 6)
    env = TextGenerationVectorEnv(5, task, reward=rewards.make("improvement", reward=sevens))
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    sums, checked = np.zeros(5), 0
    for _ in range(60):
        _, reward, ended, _, infos = env.step(rng.choice([0, 3, 7], 5, p=[0.1, 0.3, 0.6]))
        sums += reward
        for row in np.flatnonzero(ended):
            response = infos["final_info"]["response"][row]
            assert sums[row] == sevens(None, [response])[0]
            sums[row], checked = 0, checked + 1
    assert checked > 30


class Wanted:
    """Counts the tokens that each prompt's metadata ask for."""

    def score(self, episodes):
        return [float((e.response_ids == e.metadata["wanted"]).sum()) for e in episodes]


@pytest.mark.reports("The improvement reward never takes the earlier score of one text for that of another that looks alike")
def test_improvements_of_texts_that_look_alike():
    def text(prompt, response, wanted):
        asked = Episode.from_text("", "")
        return replace(asked, prompt_ids=np.array(prompt), response_ids=np.array(response), metadata={"wanted": wanted})

    reward = ImprovementReward(Wanted())
    assert reward.score_steps([text([5, 0], [7], 0), text([5], [7], 7)]) == [0, 1]
    assert reward.score_steps([text([5], [0], 0), text([5], [7], 3)]) == [1, 0]  # the second prompt's text, with another wish
    assert reward.score_steps([text([5], [0, 7], 0)]) == [0]  # the ids of the first text, cut elsewhere
    assert reward.score([text([5, 0], [7, 7], 0), text([5], [7, 7], 7)]) == [0, 1]


def test_terms_reach_the_infos_of_every_shell(make_terms_env):
    for env in make_terms_env():
        info = env()
        assert info["reward_terms"] == {"w": 3.0, "s": 4.0} and info["score"] == 7.0


@pytest.fixture
def make_terms_env():
    from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

    task = TextTask(IntegerTokenizer(10), [Prompt("1")], 3)
    reward = {"name": "sum", "terms": {"w": words, "s": sevens}}

    def scalar():
        return play(TextGenerationEnv(task, reward=reward), [7, 7, 2])[3]

    def vector():
        env = TextGenerationVectorEnv(2, task, reward=reward)
        env.reset(seed=0)
        for token in (7, 7, 2):
            infos = env.step(np.full(2, token))[4]
        final = infos["final_info"]
        return {"reward_terms": {k: final["reward_terms"][k][0] for k in ("w", "s")}, "score": final["score"][0]}

    def sb3():
        env = TextGenerationVecEnv(2, task=task, reward=reward)
        env.reset()
        for token in (7, 7, 2):
            infos = env.step(np.full(2, token))[3]
        return infos[1]

    return lambda: (scalar, vector, sb3)


def test_a_state_goes_with_the_environment():
    from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

    task = TextTask(IntegerTokenizer(10), [Prompt("1")], 3)
    one, two = (TextGenerationVecEnv(2, task=task, reward={"name": "normalize", "reward": words}) for _ in range(2))
    one.reset()
    for _, token in zip(range(9), (7, 7, 2) * 3, strict=True):
        one.step(np.array([token, 0]))
    assert one.reward_model.count > 3
    two.reset()
    two.set_random_state(one.random_state())
    assert two.reward_model.get_state() == one.reward_model.get_state()


def test_terms_of_wrong_shape_are_refused():
    class Bad:
        last_terms = {"x": [1.0]}  # noqa: RUF012

        def score(self, episodes):
            return [0.0] * len(episodes)

    with pytest.raises(RewardError, match="last_terms"):
        rewards.make("sum", terms={"bad": Bad()}).score(BATCH)


def test_plug_ins_of_installed_packages(tmp_path, monkeypatch):
    from textrl_env import reward_model

    code = """
def vowels(prompts, completions):
    return [sum(c in "aeiou" for c in text) * 1.0 for text in completions]


def make(scale=1.0):
    return vowels
"""
    (tmp_path / "their_rewards.py").write_text(code)
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[textrl.rewards]\nvowels = their_rewards:make\nvader = their_rewards:make\n")
    monkeypatch.syspath_prepend(tmp_path)
    reward_model._plugins.cache_clear()
    try:
        with pytest.warns(UserWarning, match="'vader' of their_rewards:make is left out"):
            assert "vowels" in rewards.list()
        assert rewards.make("vowels", scale=2.0).score(texts("aei b", "c")) == [3.0, 0.0]
        assert type(rewards.make("vader")).__name__ == "VaderReward"
        with pytest.raises(ValueError, match="already registered"):
            rewards.register("vowels", "x:y")
    finally:
        monkeypatch.undo()
        reward_model._plugins.cache_clear()
    assert "vowels" not in rewards.list()


def test_the_running_scale_never_divides_by_nothing():
    model = rewards.make("normalize", reward=words)
    assert [model.score(texts("x x"))[0] for _ in range(3)] == [0.0, 0.0, 0.0]


def shouts(prompts, completions):
    """Applies to texts with an "a" only."""
    return [float(text.count("a")) if "a" in text else None for text in completions]


def nothing(prompts, completions):
    return [None] * len(completions)


@pytest.mark.parametrize(
    ("name", "arguments", "scores"),
    [
        ("sum", {"terms": {"w": words, "s": shouts}, "weights": {"s": 10}}, [22, 1, 13, 0]),
        ("sum", {"terms": {"s": shouts, "n": nothing}}, [2, None, 1, None]),
        ("product", {"terms": {"w": words, "s": shouts}}, [4, 1, 3, 0]),
        ("minimum", {"terms": {"w": words, "s": shouts}}, [2, 1, 1, 0]),
        ("ensemble", {"members": [words, shouts]}, [2, 1, 1, 0]),
        ("gold_and_proxy", {"proxy": words, "gold": shouts}, [2, 1, 3, 0]),
        ("gold_and_proxy", {"proxy": shouts, "gold": words}, [2, None, 1, None]),
        ("clip", {"reward": shouts, "high": 1.5}, [1.5, None, 1, None]),
        ("threshold", {"reward": shouts, "at": 2}, [1, None, 0, None]),
        ("normalize", {"reward": shouts}, [1, None, -1, None]),  # mean 1.5, deviation .5, of the two texts that it applies to
    ],
)
def test_none_does_not_apply(name, arguments, scores):
    model = rewards.make(name, **arguments)
    assert model.score(BATCH) == [None if score is None else pytest.approx(score) for score in scores]
    outer = rewards.make("sum", terms={"inner": rewards.make(name, **arguments), "a": ayes})
    assert outer.score(BATCH) == pytest.approx([(score or 0) + a for score, a in zip(scores, [2, 0, 1, 0], strict=True)])
    np.testing.assert_array_equal(np.isnan(outer.last_terms["inner"]), [score is None for score in scores])


def test_a_text_without_a_score_is_refused_and_shown():
    task = TextTask(IntegerTokenizer(10), [Prompt("1")], 2)
    half = rewards.make("sum", terms={"few": lambda completions: [1.0 if "7" in text else None for text in completions]})
    env = TextGenerationVectorEnv(2, task, reward=half)
    env.reset(seed=0)
    env.step(np.array([7, 3]))
    with pytest.raises(RewardError, match=r"None for 1 of 2 texts, '1 3 4': no reward applies"):
        env.step(np.array([4, 4]))
    with pytest.raises(RewardError, match=r"None for 4 of 4 texts, 'pa a', 'pb', 'pa b c': no reward applies"):
        checked_scores(as_reward_model(nothing), BATCH)
    with pytest.raises(RewardError, match=r"returned nan for 'pa a'; it must be finite"):
        rewards.make("sum", terms={"w": words, "x": lambda completions: [float("nan")] * len(completions)}).score(BATCH)


def test_a_term_that_applies_to_no_text_is_named():
    model = rewards.make("sum", terms={"w": words, "never": nothing, "s": shouts})
    model.score(BATCH * 15)
    with pytest.warns(RewardWarning, match=r"term 'never' gave None .* first 64 texts, among them 'pa a', 'pb', 'pa b c'"):
        model.score(BATCH)
    model.score(BATCH * 20)  # once


def test_what_does_not_apply_in_the_infos_and_the_log():
    task = TextTask(IntegerTokenizer(10), [Prompt("1"), Prompt("2")], 2, prompt_order="sequential")
    reward = {"name": "sum", "terms": {"w": words, "one": lambda prompts, completions: [3.0 if p == "1" else None for p in prompts]}}
    env = TextGenerationVecEnv(4, task=task, reward=reward)
    env.reset()
    env.step(np.full(4, 5))
    infos = env.step(np.array([5, 5, 5, 0]))[3]
    assert [info["reward_terms"] for info in infos] == [
        {"w": 2.0, "one": 3.0}, {"w": 2.0, "one": None}, {"w": 2.0, "one": 3.0}, {"w": 1.0, "one": None},
    ]  # fmt: skip
    assert [info["score"] for info in infos] == [5.0, 2.0, 5.0, 1.0]
    logger = Logger(None, [])
    stats = RolloutStats(0, 0, 0, 0, 3.25, 0, 0, 8, 4, 0)
    record_rollout(logger, RolloutResult(infos, stats, 1.0), Ranks())
    logged = logger.name_to_value
    assert logged["reward/w"] == 1.75 and logged["reward/one"] == 3.0 and logged["reward_applied/one"] == 0.5
    assert "reward_applied/w" not in logged
