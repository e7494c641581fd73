"""The dynamics of text episodes, for B texts at once: the only place where tokens are appended and episodes end."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.utils import seeding

from ..constraints import BoundConstraint, as_constraint
from ..episode import Episode
from ..prompts.prompt import Prompt
from ..prompts.reward_needs import see_prompts
from ..prompts.sampler import PromptSampler
from ..reward_model import RewardModel, as_reward_model, checked_scores
from ..task import TextTask
from .dialogue import next_replies
from .rank_share import RankShare
from .scoring import scored
from .step_result import EOS, GOES_ON, ILLEGAL, LENGTH, REASONS, STOP, TASK, TURNS, StepResult, WrittenStep

PAD = -1  # fills unused positions of observations; no token has this id, so padding never collides with end-of-text


class TextCore:
    """B texts being written, one token of the agent a step.

    A row is live (it has a prompt and takes tokens), or idle (its observation is all `PAD` and its action is ignored).
    Only `begin_rollout` makes idle rows; otherwise callers restart each row that ended.

    Args:
        task: What the texts are.
        num_rows: B, at least 1.
        reward: Anything that `as_reward_model` accepts; None takes the task's own.
    """

    def __init__(self, task: TextTask, num_rows: int, reward: Any = None) -> None:
        if not isinstance(num_rows, int) or num_rows < 1:
            raise ValueError(f"num_envs={num_rows!r}: texts side by side, a whole number of at least 1")
        self.task = task
        self.num_rows = num_rows
        self.reward_model = task.reward if reward is None else reward
        self.generators: list[np.random.Generator | None] = [None] * num_rows
        self.prompt_sampler = PromptSampler(len(task.prompts), task.prompt_order, task.prompt_weights, task.group_size)
        self.undealt: int | None = None  # episodes that `begin_rollout` may still start; None: as many as asked for
        self.share: RankShare | None = None  # set it to play one part of each rollout; others play the rest
        self._dealt: deque[int] | None = None  # prompts of the share that no row took yet; None: rows draw for themselves
        self.prompt = np.full((num_rows, task.prompt_width), PAD, np.int64)  # (B, P)
        self.response = np.full((num_rows, task.max_new_tokens), PAD, np.int64)  # (B, T)
        # (B, H, W, 3), if the prompts have pictures
        self.image = None if task.image_shape is None else np.zeros((num_rows, *task.image_shape), np.uint8)
        self.by_env = np.zeros((num_rows, task.max_new_tokens), bool)  # response tokens that the environment wrote
        self.length = np.zeros(num_rows, np.int64)  # response tokens so far
        self.turns: list[tuple[str, ...]] = [()] * num_rows  # that the agent finished
        self.said = np.zeros(num_rows, np.int64)  # characters of the response before the present turn
        self.returns = np.zeros(num_rows)  # rewards of the text so far, without its score
        self.prompts: list[Prompt | None] = [None] * num_rows
        self.prompt_index = np.zeros(num_rows, np.int64)  # (B,)
        self.live = np.zeros(num_rows, bool)  # (B,)
        self.waiting = np.zeros(num_rows, bool)  # (B,) rows whose text ended and was scored, until they are restarted
        self.unscored: WrittenStep | None = None  # the last step, if the reward model failed on the texts that it ended
        self._closes = np.zeros(task.tokenizer.vocab_size, np.int8)  # (V,) how each token ends a turn
        self._closes[list(task.stop_ids)] = STOP
        self._closes[list(task.eos_token_ids)] = EOS
        self.constraint = as_constraint(task.constraint, task.tokenizer, task.min_new_tokens, np.flatnonzero(self._closes))
        self.states: list[Any] = [None] * num_rows  # of the constraint
        self._masks: list[np.ndarray | None] = [None] * num_rows  # (V,) each: legal tokens in the row's state; None: not yet asked for

    @property
    def reward_model(self) -> RewardModel:
        """The reward model that scores finished texts; assign anything that `as_reward_model` accepts to swap it."""
        return self._reward_model

    @reward_model.setter
    def reward_model(self, reward: Any) -> None:
        model = as_reward_model(reward)
        see_prompts(model, self.task.prompts, self.num_rows)
        self._reward_model = model

    def seed(self, row: int, seed: int | None) -> None:
        """Give a row its own generator, seeded with `seed` (None: from the operating system).

        Seeding row 0 also starts the order of the prompts anew.
        """
        self.generators[row], _ = seeding.np_random(seed)
        if row == 0:
            self.prompt_sampler.restart()

    def seed_from(self, row: int, state: Any) -> None:
        """Put a row's generator in the state of a numpy bit generator; None: it has none yet."""
        self.generators[row] = None if state is None else seeding.np_random(0)[0]
        if state is not None:
            self._generator(row).bit_generator.state = state

    def restart(self, rows: Sequence[int] | np.ndarray) -> None:
        """Start a new text in each of `rows`, or leave it idle when `begin_rollout`'s number is used up.

        What the reward model failed to score is given up, in all rows.
        """
        self.unscored = None
        live, self.live = self.live, np.zeros(self.num_rows, bool)  # should a prompt not be readable, no row goes on
        if self.share is not None and self.undealt is not None and self._dealt is None:
            # a whole rollout's prompts, drawn at its first restart, which may seed the rows
            drawn = [self.prompt_sampler.draw(self._generator(i % self.num_rows)) for i in range(self.undealt)]
            self._dealt = deque(drawn[self.share.of(self.undealt, self.task.group_size)])
            self.undealt = len(self._dealt)
        for row in rows:
            self.prompt[row] = PAD
            self.response[row] = PAD
            self.by_env[row] = False
            self.length[row] = self.said[row] = self.returns[row] = 0
            self.turns[row] = ()
            if self.image is not None:
                self.image[row] = 0
            self.waiting[row] = False
            live[row] = self.undealt is None or self.undealt > 0
            if not live[row]:
                continue
            if self.undealt is not None:
                self.undealt -= 1
            index = self.prompt_sampler.draw(self._generator(int(row))) if self._dealt is None else self._dealt.popleft()
            prompt, ids = self.task.start_of(index)
            self.prompts[row] = prompt
            self.prompt_index[row] = index
            self.prompt[row, : len(ids)] = ids
            if self.image is not None and prompt.image is not None:
                self.image[row] = prompt.image
            self._start_turn(int(row))
        self.live = live

    def begin_rollout(self, num_episodes: int) -> None:
        """Deal exactly `num_episodes` texts to the restarts that follow, then leave rows idle.

        With a `share` the restarts get its part of them only.  The whole rollout's prompts are then drawn at its first restart, the
        i-th from the generator of row i (modulo the number of rows), so that all who play a share draw alike.  Up to one text a
        row these are the prompts that are dealt without shares.
        """
        if num_episodes < 1:
            raise ValueError(f"num_episodes={num_episodes}: a rollout needs at least 1")
        self.undealt, self._dealt = num_episodes, None
        self.prompt_sampler.end_group()  # groups lie whole in a rollout

    def end_rollout(self) -> None:
        """Deal as many texts as restarts ask for, as before `begin_rollout`."""
        self.undealt = self._dealt = None

    def action_masks(self) -> np.ndarray:
        """Return which tokens are legal, shape (B, V), bool; all of them in idle rows and without a constraint."""
        masks = np.ones((self.num_rows, len(self._closes)), bool)  # (B, V)
        if self.constraint is not None:
            for row in np.flatnonzero(self.live):
                masks[row] = self._mask(self.constraint, int(row))
        return masks

    def legal(self) -> np.ndarray | None:
        """Return `action_masks()`, or None where every token is legal everywhere."""
        return None if self.constraint is None else self.action_masks()

    def step(self, actions: np.ndarray) -> StepResult:
        """Append one token to every live row, let the environment reply, and score the texts that end in one call.

        Args:
            actions: Token ids, shape (B,), integers in [0, V); ignored where a row is idle.

        Raises:
            TypeError: Not integers.
            ValueError: Another shape, or an id outside the vocabulary.
            RuntimeError: No row is live, or one has no text although `begin_rollout` left none idle: `restart` first.
            RewardError: The reward model failed.  On finished texts, the next step asks again, without writing its actions; on unfinished
                ones, as when the task's `reply` or `ends` fail, all texts are lost, and `restart` is needed.
        """
        written = self.write(actions) if self.unscored is None else self.unscored._replace(reward_model=self.reward_model)
        self.unscored = written
        result = scored(self.task, written)
        self.unscored = None
        self.waiting[written.rows] = True
        return result

    def write(self, actions: np.ndarray) -> WrittenStep:
        """Do what `step` does before the texts that end are scored; `scored` does the rest."""
        if self.unscored is not None:
            raise RuntimeError("the texts that the last step ended are not scored: step() again, or reset()")
        rows = np.flatnonzero(self.live)  # the live ones
        if len(rows) < self.num_rows and self.undealt is None and len(lost := np.flatnonzero(~(self.live | self.waiting))):
            raise RuntimeError(f"rows {lost.tolist()} have no text: call reset() before step()")
        tokens = _checked(actions, rows, self.num_rows, self.task.tokenizer.vocab_size)  # (B,)
        try:
            reason = np.zeros(self.num_rows, np.int8)  # (B,) how each text ends; 0: it goes on
            illegal = self._advance(rows, tokens)
            self.response[rows, self.length[rows]] = tokens[rows]
            self.length[rows] += 1
            reason[rows[self.length[rows] == self.task.max_new_tokens]] = LENGTH
            reason[rows] = np.where(self._closes[tokens[rows]] > 0, self._closes[tokens[rows]], reason[rows])
            cuts = self._find_stops(rows, reason)
            self._ask_ends(rows, reason)
            reason[illegal] = ILLEGAL
            rewards = np.zeros(self.num_rows)  # (B,)
            if self.task.reply is not None:
                closed = np.flatnonzero((reason == EOS) | (reason == STOP))
                self._take_turns(closed, reason, rewards, {row: end for row, (_, end) in cuts.items()})
            terminated = reason > GOES_ON  # (B,)
            self._add_dense("score_steps", np.flatnonzero(self.live & ~terminated), rewards)
            ended = np.flatnonzero(terminated)
            self.returns += rewards
            # a reply may follow a stop string
            begins = {row: begin for row, (begin, _) in cuts.items() if begin >= self.said[row]}
            episodes = self._episodes(ended, reason, begins) if len(ended) else []
            self.live[ended] = False
            return WrittenStep(rewards, terminated, ended, episodes, self.returns[ended], self.prompt_index[ended], self.reward_model)
        except BaseException:  # tokens are there and what follows them is not
            self.live[rows] = False
            raise

    def observe(self) -> dict[str, np.ndarray]:
        """Return a fresh copy of the observation.

        It is prompt (B, P) and response (B, T), int64, `PAD` where empty; and image (B, H, W, 3), uint8, 0 in idle rows, if the prompts
        have pictures.
        """
        seen = {"prompt": self.prompt.copy(), "response": self.response.copy()}
        return seen if self.image is None else {**seen, "image": self.image.copy()}

    def start_info(self, row: int) -> dict[str, Any]:
        """Return the info of a text that just began; empty for an idle row."""
        prompt = self.prompts[row]
        if not self.live[row] or prompt is None:
            return {}
        return {"prompt": prompt.text, "prompt_id": int(self.prompt_index[row])}

    def text(self, row: int) -> tuple[str, str]:
        """Return prompt and response so far, as text."""
        prompt = self.prompts[row]
        if prompt is None or (self.length[row] == 0 and not self.live[row]):
            return "", ""
        return prompt.text, self._decode([row])[0]

    def _generator(self, row: int) -> np.random.Generator:
        if self.generators[row] is None:
            self.generators[row], _ = seeding.np_random(None)
        generator = self.generators[row]
        assert generator is not None
        return generator

    def _advance(self, rows: np.ndarray, tokens: np.ndarray) -> list[int]:
        """Move the constraint's states on, and return the rows whose token was illegal."""
        if self.constraint is None:
            return []
        illegal = [int(row) for row in rows if not self._mask(self.constraint, row)[tokens[row]]]
        for row in set(rows.tolist()).difference(illegal):
            self.states[row], self._masks[row] = self.constraint.advance(self.states[row], int(tokens[row])), None
        return illegal

    def _mask(self, constraint: BoundConstraint, row: int) -> np.ndarray:
        """Return which tokens are legal in a row, shape (V,); the constraint is asked once for each token of a text."""
        mask = self._masks[row]
        if mask is None:
            mask = self._masks[row] = constraint.mask(self.states[row])
        return mask

    def _start_turn(self, row: int) -> None:
        """Put the constraint in the state of an empty turn."""
        prompt = self.prompts[row]
        if self.constraint is not None and prompt is not None:
            self.states[row], self._masks[row] = self.constraint.start(prompt), None

    def _find_stops(self, rows: np.ndarray, reason: np.ndarray) -> dict[int, tuple[int, int]]:
        """Mark turns that end by a stop string; return where the strings lie in the response, by row."""
        cuts: dict[int, tuple[int, int]] = {}
        if self.task.stop_strings:
            for row, text in zip(rows.tolist(), self._decode(rows), strict=True):
                found = ((text.find(stop, self.said[row]), len(stop)) for stop in self.task.stop_strings)
                stops = [(at, at + length) for at, length in found if at >= 0]
                if stops:
                    cuts[row] = min(stops)
                    reason[row] = STOP
        return cuts

    def _ask_ends(self, rows: np.ndarray, reason: np.ndarray) -> None:
        """Mark the texts in these rows that go on, or reach the limit, and end by the task's `ends`."""
        if self.task.ends is None:
            return
        rows = rows[(reason[rows] == GOES_ON) | (reason[rows] == LENGTH)]
        if not len(rows):
            return
        ends = self.task.ends(self._episodes(rows, np.zeros_like(reason), {}))
        if len(ends) != len(rows):
            raise ValueError(f"the task's `ends` returned {len(ends)} values for {len(rows)} texts; it must return one each")
        reason[rows[np.asarray(ends, bool)]] = TASK

    def _take_turns(self, rows: np.ndarray, reason: np.ndarray, rewards: np.ndarray, cuts: dict[int, int]) -> None:
        """Let the environment answer in rows whose turn is over, cut behind its stop string; `reason` says afterwards which texts go on."""
        for row, text in zip(rows.tolist(), self._decode(rows), strict=True):
            self.turns[row] += (text[self.said[row] : cuts.get(row)],)
            if len(self.turns[row]) == self.task.max_turns:
                reason[row] = TURNS
        rows = rows[reason[rows] != TURNS]
        if not len(rows):
            return
        episodes = self._episodes(rows, np.zeros_like(reason), cuts)
        for row, ids in zip(rows, next_replies(self.task, episodes), strict=True):
            room = self.task.max_new_tokens - self.length[row]
            reason[row] = TASK if ids is None else LENGTH if len(ids) >= room else GOES_ON
            if ids is None or reason[row]:
                continue
            self.response[row, self.length[row] : self.length[row] + len(ids)] = ids
            self.by_env[row, self.length[row] : self.length[row] + len(ids)] = True
            self.length[row] += len(ids)
            self._start_turn(int(row))
        answered = rows[reason[rows] == GOES_ON]
        self.said[answered] = [len(text) for text in self._decode(answered)]
        self._ask_ends(answered, reason)
        going_on = [i for i, row in enumerate(rows) if reason[row] == GOES_ON]
        self._add_dense("score_turns", rows[going_on], rewards, [episodes[i] for i in going_on])

    def _add_dense(self, method: str, rows: np.ndarray, rewards: np.ndarray, episodes: list[Episode] | None = None) -> None:
        """Add the scores of unfinished texts, if the reward model also scores steps or turns."""
        if len(rows) and hasattr(self.reward_model, method):
            unfinished = self._episodes(rows, np.zeros(self.num_rows, np.int8), {}) if episodes is None else episodes
            rewards[rows] += checked_scores(self.reward_model, unfinished, method)

    def _decode(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        return self.task.tokenizer.decode_batch([self.response[row, : self.length[row]].tolist() for row in rows])

    def _episodes(self, rows: np.ndarray, reason: np.ndarray, cuts: dict[int, int]) -> list[Episode]:
        episodes = []
        for row, text in zip(rows.tolist(), self._decode(rows), strict=True):
            prompt, length = self.prompts[row], self.length[row]
            assert prompt is not None
            prompt_row = self.prompt[row]
            episodes.append(
                Episode(
                    prompt=prompt.text,
                    response=text[: cuts[row]] if row in cuts else text,
                    prompt_ids=prompt_row[prompt_row != PAD],
                    response_ids=self.response[row, :length].copy(),
                    action_mask=~self.by_env[row, :length],
                    finish_reason=REASONS[reason[row]],
                    references=prompt.references,
                    metadata=prompt.metadata,
                    typed=prompt.typed,
                    image=prompt.image,
                    turn_start=int(self.said[row]),
                    turns=self.turns[row],
                )
            )
        return episodes


def _checked(actions: np.ndarray, rows: np.ndarray, num_rows: int, vocab_size: int) -> np.ndarray:
    """Return the actions, shape (B,), as token ids; those of rows that are not live may be anything."""
    tokens = np.asarray(actions)
    if tokens.dtype.kind not in "iu":
        raise TypeError(f"actions have dtype {tokens.dtype}: pass integer token ids")
    if tokens.shape != (num_rows,):
        raise ValueError(f"actions have shape {tokens.shape}: pass one token id for each of {num_rows} rows")
    if not len(rows):
        raise RuntimeError("no text is being written: call reset() before step()")
    bad = rows[(tokens[rows] < 0) | (tokens[rows] >= vocab_size)]
    if len(bad):
        raise ValueError(f"token id {tokens[bad[0]]} in row {bad[0]} is outside the vocabulary [0, {vocab_size})")
    return tokens
