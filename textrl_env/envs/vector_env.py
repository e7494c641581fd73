"""The batched Gymnasium environment."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from .base import BatchMixin, TextEnvMixin, refuse_options, transcript


class TextGenerationVectorEnv(BatchMixin, VectorEnv[dict[str, np.ndarray], np.ndarray, np.ndarray]):
    """`num_envs` texts written side by side; arguments, spaces and rewards as in `TextGenerationEnv`.

    A text that ends is scored and its row starts the next one in the same step (`AutoresetMode.SAME_STEP`): with
    NEXT_STEP an agent would train on the step that is thrown away.  `infos["final_obs"]` and `infos["final_info"]` hold
    the end of each text, in the layout of gymnasium's `SyncVectorEnv`.  All texts that end in one step are scored in one
    call of the reward model.  Row i seeded with s writes the same texts as the scalar environment seeded with s + i.
    """

    metadata: ClassVar[dict[str, Any]] = {**TextEnvMixin.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}  # type: ignore[misc]

    def _set_spaces(self, observation: spaces.Dict, action: spaces.Discrete) -> None:
        self.single_observation_space, self.single_action_space = observation, action
        self.observation_space, self.action_space = (batch_space(space, self.num_envs) for space in (observation, action))

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start a new text in every row.

        Args:
            seed: s seeds row i with s + i; a list gives each row its own; None goes on with the rows' generators.
            options: None, or empty.

        Raises:
            ValueError: There are options, or seeds for another number of rows.
        """
        refuse_options(options)
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
        result, ends = self._step(actions)
        infos: dict[str, Any] = {}
        for row, (observation, info) in ends.items():
            infos = self._add_info(infos, {"final_obs": observation, "final_info": info}, row)
        for row in ends:
            infos = self._add_info(infos, self.core.start_info(row), row)
        truncated = np.zeros(self.num_envs, bool)  # (B,)
        return self.core.observe(), result.rewards, result.terminated, truncated, infos

    def render(self) -> tuple[str, ...] | None:
        """Return all texts so far (`"ansi"`) or print them (`"human"`)."""
        texts = tuple(transcript(*self.core.text(row)) for row in range(self.num_envs))
        if self.render_mode == "human":
            print("\n".join(texts))
            return None
        return texts
