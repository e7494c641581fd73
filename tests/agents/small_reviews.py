"""Film reviews with a base policy that learned for a short while."""

import dataclasses

from agents.training.base_policies import base_policy
from textrl_env import make_task


def small_task(*args, **kwargs):
    """`make_task`, but its base policy learns for 300 steps."""
    task = make_task(*args, **kwargs)
    return dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, steps=300))


def build():
    """Pretrain the base policy, unless the cache folder has it."""
    base_policy(small_task("review"))
