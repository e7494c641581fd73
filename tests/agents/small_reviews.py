"""Film reviews with a base policy that learned for a short while."""

import dataclasses
import os
from unittest.mock import patch

from agents.training.base_policies import base_policy
from textrl_env import make_task


def small_task(*args, **kwargs):
    """`make_task`, but its base policy learns for 300 steps."""
    task = make_task(*args, **kwargs)
    return dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, steps=300))


def build(folder):
    """Pretrain the base policy in a cache folder."""
    with patch.dict(os.environ, TEXTRL_CACHE=str(folder)):
        base_policy(small_task("review"))
