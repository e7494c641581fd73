import numpy as np
import pytest

from textrl_env import make_task
from textrl_env.tasks.diagnostic import recall


def test_score_is_one_where_the_first_of_all_words_is_the_cue():
    prompts = ["remember sun tin tin oak"] * 4
    responses = [" sun oak oak oak", " oak sun oak oak", " sun oak oak", ""]
    np.testing.assert_array_equal(recall.gold(4, prompts, responses), [1, 0, 0, 0])


def test_base_policy_learns_from_texts_that_name_the_cue_in_three_of_ten():
    task = make_task("recall-4")
    pairs = task.recipe.corpus()
    scores = task.gold([p for p, _ in pairs], [r for _, r in pairs])
    assert scores.mean() == pytest.approx(0.3 + 0.7 / 16, abs=0.03)
