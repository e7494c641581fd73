"""The texts that responses are compared with."""

from __future__ import annotations

from collections.abc import Sequence

from textrl_env.episode import Episode
from textrl_env.prompts.prompt import Prompt
from textrl_env.prompts.reward_needs import check_references

from .base import Rule


class ReferenceRule(Rule):
    """A rule that compares each response with the references of its episode.

    Attributes:
        name: What error messages call it: its name in the registry.
    """

    name = ""

    def see_prompts(self, prompts: Sequence[Prompt], num_rows: int | None = None) -> None:
        """Raise ValueError if a prompt has no references."""
        check_references(self.name, prompts)

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return one score per episode, in order.

        Raises:
            ValueError: An episode has no references.
        """
        return [self._compare(e.response, references_of(e, self.name)) for e in episodes]

    def _compare(self, response: str, references: tuple[str, ...]) -> float:
        raise NotImplementedError


def references_of(episode: Episode, name: str) -> tuple[str, ...]:
    """Return the references of an episode.

    Args:
        episode: A text.
        name: What wants to compare it, for the message.

    Raises:
        TypeError: They are one string instead of a tuple of strings.
        ValueError: There are none.
    """
    if isinstance(episode.references, str):
        raise TypeError(f"references={episode.references!r} is a str: give a tuple of texts, such as ({episode.references!r},)")
    if not episode.references:
        raise ValueError(
            f"{name} compares with references, and the prompt {episode.prompt[:100]!r} has none: give Prompt(text, references=(...)), "
            "read_prompts(..., references='column'), or Episode.from_text(..., references=(...))"
        )
    return episode.references
