"""Environments that take a whole text a step, as tasks in which a step is a token."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..episode import Episode
from ..prompts.prompt import Prompt
from ..task import TextTask
from ..tokenizer import as_tokenizer
from ..utils.never_copied import NeverCopied

_OPEN = 1024  # games that are kept open; older ones are closed, and played again if they go on after all

_Key = tuple[int, bytes]


class Observed(NamedTuple):
    """What a step of a turn-level environment gives, whatever its shape.

    Attributes:
        text: What it says.
        reward: Of the turn.
        done: Whether the episode is over.
    """

    text: str
    reward: float
    done: bool


@dataclass(eq=False)
class _Game:
    env: Any
    first: str  # observation
    seen: str  # the observation before, which some environments show again, with all before it
    total: float = 0.0
    done: bool = False
    answer: bytes = b""  # ids of what it said to the last turn, if it goes on


class FromTurns(NeverCopied):
    """Makes a task of an environment whose `reset()` shows a text and whose `step(text)` takes one.

    These shapes are known: Gymnasium's and GEM's, `reset() -> (observation, info)` and `step(action) -> (observation, reward, terminated,
    truncated, info)`; OpenEnv's client, both of which return an object with `observation`, `reward` and `done`; and TextArena's games of
    one player, `get_observation()`, `step(action) -> (done, info)` and `close() -> (rewards, info)`.

    A prompt is what the environment shows after a reset with one of the seeds.  The agent's turn goes to `step` when it ends, and what the
    environment says next is context.  Where each observation begins with all that was shown before, only what is new is.  The score is
    the sum of the rewards; a turn that the length limit cuts short is not sent, one that ends at `max_turns` is, and so is one whose
    answer does not fit.  Turns end behind their stop string, also where a token holds more.

    The object is both the task's `reply` and its reward.  An episode is found again by its seed and its tokens, so any number of rows play
    side by side; one that is not open here (in another process, or after 1024 others) is played again from its seed.  So an
    environment has to say the same after the same seed and the same turns, or all its texts have to end where they began.

    Args:
        env_factory: Makes an environment.
        tokenizer: The policy's, or what `FileTokenizer` takes.
        seeds: What `reset(seed=...)` gets, one for each prompt: one range for training, another for the test.
        act: Makes the action of the agent's text, white space around it left out.
        show: Makes a text of an observation.

    Raises:
        ValueError: No seeds, or several, and `reset` takes none.
        TypeError: The environment has none of these shapes.
    """

    def __init__(
        self,
        env_factory: Callable[[], Any],
        tokenizer: Any,
        seeds: Sequence[int] = range(256),
        act: Callable[[str], Any] = str,
        show: Callable[[Any], str] = str,
    ) -> None:
        self.env_factory, self.tokenizer, self.seeds = env_factory, as_tokenizer(tokenizer), tuple(seeds)
        self.act, self.show = act, show
        if not self.seeds:
            raise ValueError("seeds: pass at least one, each begins an episode")
        self._open: OrderedDict[_Key, list[_Game]] = OrderedDict()
        for seed in self.seeds:
            self._keep((seed, b""), self._begin(seed))
        self.prompts = tuple(Prompt(games[0].seen, metadata={"seed": seed}) for (seed, _), games in self._open.items())
        self._trim()

    def task(self, max_new_tokens: int, **fields: Any) -> TextTask:
        """Return the task; `fields` are those of `TextTask`: `stop_strings` end a turn too, `max_turns` ends the episode."""
        return TextTask(self.tokenizer, self.prompts, max_new_tokens, **({"reply": self, "reward": self} | fields))

    def __call__(self, episodes: Sequence[Episode]) -> list[str | None]:
        """Send each turn to its environment, and return what it says; None where the episode is over."""
        return [self._turn(episode) for episode in episodes]

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the rewards of each episode, summed."""
        return [self._total(episode) for episode in episodes]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open environments here; what goes on elsewhere is played again."""
        return {**self.__dict__, "_open": OrderedDict()}

    def _turn(self, episode: Episode) -> str | None:
        game = self._take(episode, len(episode.turns) - 1)
        said = self._step(game, episode.turns[-1])
        ids = np.asarray(self.tokenizer.encode_batch([said])[0], np.int64)
        if not game.done and not len(ids):
            raise ValueError(f"the environment said {said!r}, which has no tokens: let `show` write something, so that turns stay apart")
        game.answer = b"" if game.done else ids.tobytes()
        self._keep((_seed(episode), episode.response_ids.tobytes()), game)
        self._trim()
        return None if game.done else said

    def _total(self, episode: Episode) -> float:
        sent = len(episode.turns) - (episode.finish_reason == "turns")
        game = self._take(episode, sent)
        for turn in episode.turns[sent:]:
            self._step(game, turn)
        _close(game)
        return game.total

    def _take(self, episode: Episode, sent: int) -> _Game:
        """Return the game of an episode after this many of its turns."""
        told, answer = _told(episode, sent)
        key = _seed(episode), told
        games = self._open.get(key, [])
        if episode.finish_reason == "length" and not answer:  # it did not fit, so it is none of those that are part of their texts
            answer = max((game.answer for game in games), key=len, default=answer)
        for game in reversed(games):
            if game.answer == answer:
                games.remove(game)
                if not games:
                    del self._open[key]
                return game
        return self._replayed(episode, sent)

    def _replayed(self, episode: Episode, sent: int) -> _Game:
        """Play an episode anew, as far as this many of its turns."""
        game = self._begin(_seed(episode))
        if game.seen != episode.prompt:
            raise ValueError(
                f"after reset(seed={_seed(episode)}) the environment shows {game.seen[:80]!r} and not {episode.prompt[:80]!r} as before: "
                "an episode that is no longer open can only go on where a seed repeats it"
            )
        for turn in episode.turns[:sent]:
            self._step(game, turn)
        return game

    def _begin(self, seed: int) -> _Game:
        env = self.env_factory()
        takes = inspect.signature(env.reset).parameters
        seeded = "seed" in takes or any(p.kind is p.VAR_KEYWORD for p in takes.values())
        if not seeded and len(self.seeds) > 1:
            raise ValueError(
                f"{type(env).__name__}.reset() takes no seed, so all of {len(self.seeds)} prompts would be one: pass seeds=[0]"
            )
        settings = ({"seed": seed} if seeded else {}) | ({"num_players": 1} if "num_players" in takes else {})
        out = env.reset(**settings)
        if hasattr(env, "get_observation"):
            out = env.get_observation()[1]
        elif isinstance(out, tuple):
            out = out[0]
        first = self.show(getattr(out, "observation", out))
        return _Game(env, first, first)

    def _step(self, game: _Game, text: str) -> str:
        """Send a turn, and return what is new in what the environment says."""
        observed = self._observed(game.env, game.env.step(self.act(text.strip())))
        grown = game.seen.startswith(game.first) and observed.text.startswith(game.seen) and len(observed.text) > len(game.seen)
        new = observed.text[len(game.seen) :] if grown else observed.text
        game.seen, game.total, game.done = observed.text, game.total + observed.reward, observed.done
        return new

    def _observed(self, env: Any, out: Any) -> Observed:
        if hasattr(env, "get_observation") and isinstance(out, tuple) and len(out) == 2:
            done = bool(out[0])
            return Observed("", float(env.close()[0][0]), True) if done else Observed(self.show(env.get_observation()[1]), 0.0, False)
        if isinstance(out, tuple) and len(out) == 5:
            return Observed(self.show(out[0]), float(out[1]), bool(out[2] or out[3]))
        if isinstance(out, tuple) and len(out) == 4:
            return Observed(self.show(out[0]), float(out[1]), bool(out[2]))
        if all(hasattr(out, name) for name in ("observation", "reward", "done")):
            return Observed(self.show(out.observation), float(out.reward or 0.0), bool(out.done))
        raise TypeError(f"{type(env).__name__}.step() returned {out!r}: it has to return what one of the shapes of `FromTurns` does")

    def _keep(self, key: _Key, game: _Game) -> None:
        self._open.setdefault(key, []).append(game)
        self._open.move_to_end(key)

    def _trim(self) -> None:
        while len(self._open) > _OPEN:
            for game in self._open.popitem(last=False)[1]:
                _close(game)


def _seed(episode: Episode) -> int:
    return int(episode.metadata["seed"])


def _told(episode: Episode, sent: int) -> tuple[bytes, bytes]:
    """Return the ids of the response as far as the turn of this number, and those of the answer to it."""
    borders = np.flatnonzero(np.diff(episode.action_mask)) + 1  # between the agent's tokens and the environment's, which take turns
    edges = [0, 0, *borders.tolist(), *[len(episode.response_ids)] * 2]  # where turn 0, which nobody wrote, its answer, turn 1, ... end
    turn, answer = edges[2 * sent : 2 * sent + 2]
    return episode.response_ids[:turn].tobytes(), episode.response_ids[turn:answer].tobytes()


def _close(game: _Game) -> None:
    if hasattr(game.env, "close") and not (game.done and hasattr(game.env, "get_observation")):  # TextArena's is closed for its rewards
        game.env.close()
