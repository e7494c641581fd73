"""The batched Gymnasium environment."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from .base import BatchMixin, TextEnvMixin, refuse_options
from .step_result import StepResult
from .transcript import transcript


class TextGenerationVectorEnv(BatchMixin, VectorEnv[dict[str, np.ndarray], np.ndarray, np.ndarray]):
    """`num_envs` texts written side by side; arguments, spaces and rewards as in `TextGenerationEnv`, and one more.

    All texts that end in one step are scored in one call of the reward model.  Row i seeded with s writes the same texts as the
    scalar environment seeded with s + i, where prompts are drawn at random one by one (`prompt_order="random"`, `group_size=1`); then
    observations, rewards and infos are those of gymnasium's `SyncVectorEnv` in the same mode.  Other orders are shared among the rows.

    Args:
        autoreset_mode: When a row whose text ended starts the next one, a `gymnasium.vector.AutoresetMode` or its value.
            `SAME_STEP`: in the step that ends it; `infos["final_obs"]` and `infos["final_info"]` hold the end.
            `NEXT_STEP`: in the step after it, which ignores the row's action and rewards it with 0.
            `DISABLED`: when `reset(options={"reset_mask": mask})` names it.

    Raises:
        ValueError: There is no such mode.
    """

    metadata: ClassVar[dict[str, Any]] = {**TextEnvMixin.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}  # type: ignore[misc]

    def __init__(self, *args: Any, autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP, **kwargs: Any) -> None:
        modes = {name: mode for mode in AutoresetMode for name in (mode, mode.value)}
        if autoreset_mode not in modes:
            raise ValueError(f"autoreset_mode={autoreset_mode!r}: pass one of {', '.join(map(str, AutoresetMode))}")
        self.autoreset_mode = modes[autoreset_mode]
        super().__init__(*args, **kwargs)
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}  # type: ignore[misc]

    def _set_spaces(self, observation: spaces.Dict, action: spaces.Discrete) -> None:
        self.single_observation_space, self.single_action_space = observation, action
        self.observation_space, self.action_space = (batch_space(space, self.num_envs) for space in (observation, action))

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start a new text in every row.

        Args:
            seed: s seeds row i with s + i; a list gives each row its own; None goes on with the rows' generators.  Seeding row 0 starts
                the order of the prompts anew.
            options: `{"reset_mask": mask}`, shape (B,), bool, starts a new text in these rows only.

        Raises:
            ValueError: Another number of seeds than rows, a mask of another shape or type, or another option.
        """
        given = dict(options or {})
        mask = np.asarray(given.pop("reset_mask", np.ones(self.num_envs, bool)))  # (B,)
        refuse_options(given)
        if mask.shape != (self.num_envs,) or mask.dtype != bool or not mask.any():
            raise ValueError(f"reset_mask={mask}: pass {self.num_envs} bools, at least one of them True")
        seeds = [None if seed is None else seed + i for i in range(self.num_envs)] if not isinstance(seed, list) else seed
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} rows: pass one each, or one integer")
        super().reset(seed=seeds[0])
        rows = np.flatnonzero(mask).tolist()
        for row in rows:
            if (row_seed := seeds[row]) is not None:
                self.core.seed(row, row_seed)
        self.core.restart(rows)
        infos: dict[str, Any] = {}
        for row in rows:
            infos = self._add_info(infos, self.core.start_info(row), row)
        return self.core.observe(), infos

    def step(self, actions: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Append one token to every text; see `gymnasium.vector.VectorEnv.step`.

        Raises:
            RuntimeError: `reset` was not called, or not for a row without a text; in the mode `DISABLED`, for one whose text ended.
            RewardError: The reward model failed; see `TextGenerationEnv.step`.
        """
        result, infos = self._step_and_restart(actions) if self.autoreset_mode is AutoresetMode.SAME_STEP else self._step_apart(actions)
        truncated = np.zeros(self.num_envs, bool)  # (B,)
        return self.core.observe(), result.rewards, result.terminated, truncated, infos

    def _step_and_restart(self, actions: np.ndarray) -> tuple[StepResult, dict[str, Any]]:
        result, last = self._step(actions)
        infos: dict[str, Any] = {}
        for row, observation in last.items():
            infos = self._add_info(infos, {"final_obs": observation, "final_info": result.infos[row]}, row)
        for row in last:
            infos = self._add_info(infos, self.core.start_info(row), row)
        return result, infos

    def _step_apart(self, actions: np.ndarray) -> tuple[StepResult, dict[str, Any]]:
        """Append one token to every text, and in rows whose text ended in the step before start a new one instead."""
        restarted = np.flatnonzero(self.core.waiting)
        if len(restarted) and self.autoreset_mode is AutoresetMode.DISABLED:
            raise RuntimeError(
                f"the texts of rows {restarted.tolist()} ended: call reset(options={{'reset_mask': terminated}}) before step()"
            )
        none = np.zeros(self.num_envs)  # (B,)
        result = self._advance(actions) if len(restarted) < self.num_envs else StepResult(none, none, none > 0, {})
        self.core.restart(restarted)
        given = dict(result.infos)
        given.update((row, self.core.start_info(row)) for row in restarted.tolist())
        infos: dict[str, Any] = {}
        for row, info in sorted(given.items()):
            infos = self._add_info(infos, info, row)
        return result, infos

    def render(self) -> tuple[Any, ...] | None:
        """Return all texts so far (`"ansi"`) or an image of each (`"rgb_array"`), or print them (`"human"`)."""
        if self.render_mode == "rgb_array":
            return tuple(map(self._image, range(self.num_envs)))
        texts = [self._text(row) for row in range(self.num_envs)]
        if self.render_mode == "human":
            self._terminal.show(texts)
            return None
        return tuple(transcript(*text) for text in texts)
