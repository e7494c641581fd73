"""The work of `agents.benchmark.studies.film_reviews` in small, as the processes of its pool run it."""

import functools
from unittest.mock import patch

import agents.pipelines.demo
from agents.benchmark.studies import film_reviews
from agents.pipelines.flags import Demo

from ...small_reviews import small_task

STEPS = {"sft": 10, "dpo": 10, "expert-iteration": 2}
_share, _run_one = film_reviews.share, film_reviews.run_one


def in_small(function):
    """Have a function see a base policy of 300 steps, 200 pairs and short trainings."""

    @functools.wraps(function)
    def small(*arguments):
        few_pairs = functools.partial(Demo, pairs=200)
        with (
            patch.multiple(film_reviews, make_task=small_task, Demo=few_pairs, STEPS=STEPS),
            patch.multiple(agents.pipelines.demo, make_task=small_task, HELD_OUT_PAIRS=40),
        ):
            return function(*arguments)

    return small


@in_small
def share(config, seed):
    return _share(config, seed)


@in_small
def run_one(config, name, seed):
    return _run_one(config, name, seed)
