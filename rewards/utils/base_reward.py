"""What the reward models of this package share."""

from __future__ import annotations

import rewards
from textrl_env.utils.never_copied import NeverCopied


class BaseReward(NeverCopied):
    """A reward model that is never copied and is shown with its public attributes; what is exported has the module `rewards`."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.__module__.startswith("rewards.") and cls.__name__ in dir(rewards):
            cls.__module__ = "rewards"  # pickles survive a move of the file

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({arguments})"
