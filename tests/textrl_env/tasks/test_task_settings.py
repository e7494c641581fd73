"""Arguments of tasks and environments: used, or refused by name."""

import gymnasium as gym
import numpy as np
import pytest
from tokenizers import AddedToken

from textrl_env import FileTokenizer, IntegerTokenizer, Prompt, TextGenerationEnv, TextGenerationVecEnv, TextTask, make_task
from textrl_env.utils.train_tokenizer import train_tokenizer

REFUSED = pytest.mark.reports("An argument of make_task or gym.make that cannot be, or would not be used, is refused by name.")


@REFUSED
@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be a whole number of at least 1"),
        ({"max_new_tokens": 4.5}, "max_new_tokens=4.5: must be"),
        ({"max_new_tokens": "4"}, "max_new_tokens='4': must be"),
        ({"max_new_tokens": True}, "max_new_tokens=True: must be"),
        ({"max_prompt_tokens": -1}, "max_prompt_tokens=-1: must be"),
        ({"group_size": 0}, "group_size=0: must be"),
        ({"min_new_tokens": 500}, "min_new_tokens=500: must be from 0 to max_new_tokens="),
        ({"missing_eos_penalty": float("nan")}, "missing_eos_penalty=nan: must be a finite number of at least 0"),
        ({"missing_eos_penalty": -1}, "missing_eos_penalty=-1: must be a finite number of at least 0"),
        ({"illegal_score": float("inf")}, "illegal_score=inf: must be a finite number"),
        ({"soft_penalty": 2.0}, "soft_penalty=2.0: it grows from soft_max_tokens on, and there is none"),
        ({"prompt_order": "sequental"}, "prompt_order='sequental' (did you mean 'sequential'?)"),
        ({"over_long": "lef"}, "over_long='lef' (did you mean 'left'?)"),
        ({"stop_tokens": "."}, "stop_tokens='.': pass a list"),
        ({"split": "tset"}, "split='tset' (did you mean 'test'?): choose one of train, validation, test"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("task", ["exact-smooth", "review", "recall-4"])
def test_what_cannot_be(task, settings, line):
    for made in (
        lambda: make_task(task, **settings),
        lambda: gym.make("textrl/Review-v0", **settings),
        lambda: TextGenerationVecEnv(2, task, **settings),
    ):
        with pytest.raises(ValueError) as error:
            made()
        assert str(error.value).startswith(line)


@REFUSED
def test_numbers_of_numpy_are_numbers():
    assert make_task("recall-4", max_new_tokens=np.int64(3), missing_eos_penalty=np.float32(1)).max_new_tokens == 3


@REFUSED
def test_a_split_of_a_task_that_has_none():
    task = TextTask(IntegerTokenizer(9), [Prompt("1")], 3)
    assert make_task(task) is task
    with pytest.raises(ValueError, match="split='test': a TextTask has prompts of its own"):
        make_task(task, split="test")


@REFUSED
@pytest.mark.parametrize("num_envs", [0, -2, 2.0, "2"])
def test_a_number_of_rows(num_envs):
    with pytest.raises(ValueError, match=f"num_envs={num_envs!r}"):
        TextGenerationVecEnv(num_envs, "exact-smooth")


@REFUSED
def test_options_of_a_reset():
    for env in (gym.make("textrl/Exact-Smooth-v0"), gym.make_vec("textrl/Exact-Smooth-v0", num_envs=2)):
        env.reset(seed=0, options={})
        with pytest.raises(ValueError, match=r"options=\{'prompt_id': 3\}: a reset takes none"):
            env.reset(seed=0, options={"prompt_id": 3})


@pytest.mark.reports("IntegerTokenizer says of words that it reads ids, and which tokenizers read words.")
def test_words_for_an_integer_tokenizer():
    with pytest.raises(
        ValueError, match=r"text '3 be' holds 'be': an IntegerTokenizer reads token ids, such as '3 1 4'; for words take a WordTokenizer"
    ):
        IntegerTokenizer(9).encode_batch(["1 2", "3 be"])
    with pytest.raises(ValueError, match="holds '-1'"):
        IntegerTokenizer(9).encode_batch(["-1"])


@REFUSED
@pytest.mark.parametrize("stop", ["<|im_end|>", "x<|im_end|>\n"])
def test_a_stop_string_that_no_text_holds(stop):
    backend = train_tokenizer((), 258)
    backend.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    tokenizer, prompts = FileTokenizer(backend), [Prompt("a")]
    with pytest.raises(ValueError, match=r"'<\|im_end\|>' is a special token, not in texts; use stop_tokens"):
        TextTask(tokenizer, prompts, 4, stop_strings=[stop])
    task = TextTask(tokenizer, prompts, 4, stop_tokens=["<|im_end|>"], stop_strings=["<", "im_end"])
    assert task.stop_ids == (tokenizer.token_id("<|im_end|>"),)


def test_a_list_of_prompts_that_changes_later():
    rows = [Prompt(str(i)) for i in range(1, 5)]
    env = TextGenerationEnv(TextTask(IntegerTokenizer(9), rows, 2, prompt_order="sequential"), reward="length")
    rows.reverse()
    observation, info = env.reset(seed=0)
    assert env.task.prompts[info["prompt_id"]].text == info["prompt"] == "1"
    assert observation["prompt"].tolist() == [1]
