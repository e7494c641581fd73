"""The batched Gymnasium environment."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ..task import TextTask
from .base import TextEnvMixin, spaces_of, transcript


class TextGenerationVectorEnv(TextEnvMixin, VectorEnv[dict[str, np.ndarray], np.ndarray, np.ndarray]):
    """`num_envs` texts written side by side; arguments, spaces and rewards as in `TextGenerationEnv`.

    A text that ends is scored and its row starts the next one in the same step (`AutoresetMode.SAME_STEP`): with
    NEXT_STEP an agent would train on the step that is thrown away.  `infos["final_obs"]` and `infos["final_info"]` hold
    the end of each text, in the layout of gymnasium's `SyncVectorEnv`.  All texts that end in one step are scored in one
    call of the reward model.  Row i seeded with s writes the same texts as the scalar environment seeded with s + i.
    """

    metadata: ClassVar[dict[str, Any]] = {**TextEnvMixin.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}  # type: ignore[misc]

    def __init__(
        self,
        num_envs: int = 1,
        task: str | TextTask = "review",
        reward: Any = None,
        split: str = "train",
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        self._make_core(num_envs, task, reward, split, settings)
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = spaces_of(self.task)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start a new text in every row.

        Args:
            seed: s seeds row i with s + i; a list gives each row its own; None goes on with the rows' generators.
            options: Not used.
        """
        seeds = [None if seed is None else seed + i for i in range(self.num_envs)] if not isinstance(seed, list) else seed
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} rows: pass one each, or one integer")
        super().reset(seed=seeds[0])
        for row, row_seed in enumerate(seeds):
            if row_seed is not None:
                self.core.seed(row, row_seed)
        self.core.restart(range(self.num_envs))
        infos: dict[str, Any] = {}
        for row in range(self.num_envs):
            infos = self._add_info(infos, self.core.start_info(row), row)
        return self.core.observe(), infos

    def step(self, actions: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Append one token to every text; see `gymnasium.vector.VectorEnv.step`."""
        result = self.core.step(actions)
        infos: dict[str, Any] = {}
        if result.episodes:
            final = self.core.observe()
            for row in result.episodes:
                end = {
                    "final_obs": {key: value[row] for key, value in final.items()},
                    "final_info": self.core.final_info(row, result),
                }
                infos = self._add_info(infos, end, row)
            self.core.restart(list(result.episodes))
            for row in result.episodes:
                infos = self._add_info(infos, self.core.start_info(row), row)
        truncated = np.zeros(self.num_envs, bool)
        return self.core.observe(), result.rewards, result.terminated, truncated, infos

    def action_masks(self) -> np.ndarray:
        """Return which tokens are legal now, shape (B, V), bool."""
        return self.core.action_masks()

    def render(self) -> tuple[str, ...] | None:
        """Return all texts so far (`"ansi"`) or print them (`"human"`)."""
        texts = tuple(transcript(*self.core.text(row)) for row in range(self.num_envs))
        if self.render_mode == "human":
            print("\n".join(texts))
            return None
        return texts
