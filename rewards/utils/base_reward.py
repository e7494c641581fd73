"""What the reward models of this package share."""

from __future__ import annotations

from textrl_env.utils.never_copied import NeverCopied


class BaseReward(NeverCopied):
    """A reward model that is exported as `rewards.Name`, is never copied, and is shown with its public attributes."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.__module__.startswith("rewards."):  # a user's own subclass keeps its module
            cls.__module__ = "rewards"  # pickles survive a move of the file

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({arguments})"
