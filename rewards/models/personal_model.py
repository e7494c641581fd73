"""A reward model with a head for each group of people: what all share, and what is a group's own."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from textrl_env.episode import Episode
from textrl_env.prompts.prompt import Prompt
from textrl_env.prompts.reward_needs import check_no_pictures
from textrl_env.utils.files import new_file, new_folder

from .preference_model import PreferenceRewardModel

_FILE = "groups.json"


class PersonalRewardModel:
    """Scores by `w0 * shared + w1 * own` with the weights and the own model of the episode's group; by `shared` for other groups.

    Args:
        shared: Fitted to everybody's comparisons.
        heads: Own model and the two weights of each group.
        column: The prompt's metadata that names the group.
        pattern: Regular expression that finds the group in the prompt, in its first group, where the metadata does not name one.
    """

    __module__ = "rewards"

    def __init__(
        self,
        shared: PreferenceRewardModel,
        heads: Mapping[str, tuple[PreferenceRewardModel, tuple[float, float]]],
        column: str = "group",
        pattern: str | None = None,
    ) -> None:
        self.shared, self.heads, self.column = shared, dict(heads), column
        self.pattern = None if pattern is None else re.compile(pattern)
        if self.pattern is not None and self.pattern.groups < 1:
            raise ValueError(f"pattern={pattern!r} needs a group in parentheses, such as 'for (\\w+)'")

    def see_prompts(self, prompts: Sequence[Prompt], num_rows: int | None = None) -> None:
        """Raise ValueError if the prompts have pictures, which this model cannot see."""
        check_no_pictures("personal", prompts)

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return one score per episode, in order."""
        scores = np.array(self.shared.score(episodes), float)
        rows: dict[str, list[int]] = defaultdict(list)
        for i, episode in enumerate(episodes):
            if (group := self.group_of(episode)) in self.heads:
                rows[str(group)].append(i)
        for group, own in rows.items():
            model, (both, alone) = self.heads[group]
            scores[own] = both * scores[own] + alone * np.array(model.score([episodes[i] for i in own]))
        return scores.tolist()

    def group_of(self, episode: Episode) -> str | None:
        """Return the group an episode is for."""
        named = episode.metadata.get(self.column)
        if named is None and self.pattern is not None and (match := self.pattern.search(episode.prompt)):
            named = match[1]
        return None if named is None else str(named)

    def save(self, path: str | Path) -> None:
        """Write a folder that `load` reads: safetensors and JSON."""
        with new_folder(path) as folder:
            self.shared.save(folder / "shared")
            groups = {}
            for number, (group, (model, weights)) in enumerate(self.heads.items()):
                model.save(folder / f"group-{number}")
                groups[group] = {"folder": f"group-{number}", "weights": list(weights)}
            pattern = None if self.pattern is None else self.pattern.pattern
            with new_file(folder / _FILE) as file:
                json.dump({"column": self.column, "pattern": pattern, "groups": groups}, file, ensure_ascii=False)

    @classmethod
    def load(cls, path: str | Path, *, device: str | torch.device = "auto") -> PersonalRewardModel:
        """Read a folder that `save` wrote; its networks go to the device, see `rewards.utils.devices.get_device`.

        Raises:
            FileNotFoundError: It is none.
            ValueError: Its description is damaged.
        """
        folder = Path(path)
        if not (folder / _FILE).is_file():
            raise FileNotFoundError(f"{folder} holds no {_FILE}: pass a folder that PersonalRewardModel.save wrote")
        try:
            data = json.loads((folder / _FILE).read_text(encoding="utf-8"))
            groups = {str(g): (str(v["folder"]), (float(v["weights"][0]), float(v["weights"][1]))) for g, v in data["groups"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{folder / _FILE} is damaged ({error}): fit and save the model again") from error
        if not all(re.fullmatch(r"group-\d+", name) for name, _ in groups.values()):
            raise ValueError(f"{folder / _FILE} names a folder outside the model: fit and save the model again")
        heads = {group: (PreferenceRewardModel.load(folder / name, device=device), weights) for group, (name, weights) in groups.items()}
        return cls(PreferenceRewardModel.load(folder / "shared", device=device), heads, data.get("column", "group"), data.get("pattern"))


def load_personal_reward(path: str | Path, device: str | torch.device = "auto") -> PersonalRewardModel:
    """Build the registry's `personal` from a folder that `PersonalRewardModel.save` wrote."""
    return PersonalRewardModel.load(path, device=device)
