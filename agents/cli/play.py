"""`textrl play`: a person plays an environment in the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import gymnasium as gym
import numpy as np
import tyro
from rich.console import Console
from rich.text import Text

import textrl_env
from textrl_env import TextGenerationEnv
from textrl_env.envs.bare_env import bare_text_env

from ..utils.device_flag import OnDevice, on_device
from ..utils.limits import Seed
from .arguments import reward_of

SHOWN = 8  # spellings that are offered


@dataclass(frozen=True)
class Play(OnDevice):
    """Play an environment: go on with its prompts, and see the score.

    Attributes:
        id: Of the environment.
        reward: Name of a reward model, the folder of a saved one, a JSON object with `name` and its arguments, or
            `file.py:function`; by default the task's own.
        by: `text`: a line is encoded and written token by token.  `token`: a line is the spelling of one token, or #ID.
        split: Prompts to play; by default the environment's own.
        seed: Of the prompts.
    """

    id: Annotated[str, tyro.conf.Positional] = "textrl/Review-v0"
    reward: str | None = None
    by: Literal["text", "token"] = "text"
    split: str | None = None
    seed: Seed | None = None


@on_device
def run_play(config: Play) -> None:
    """Play until the person stops, then print the mean score.

    Raises:
        ValueError: There is no such environment, or it is no text environment.
    """
    env = _make(config)
    console = Console(highlight=False)
    close = "empty line: end the text" if config.by == "text" else "#ID or a spelling: one token, empty line: end the text"
    console.print(f"[dim]{close}, :n: next prompt, :q or Ctrl-D: stop[/dim]")
    scores: list[float] = []
    seed = config.seed
    try:
        while True:
            env.reset(seed=seed)
            seed = None  # of the first prompt only: again, it would draw the same one
            score = _play_one(env, config.by, console)
            if score is not None:
                scores.append(score)
    except (EOFError, KeyboardInterrupt):
        console.print()
    if scores:
        console.print(f"{len(scores)} text(s), mean score {np.mean(scores):.3f}")


def _make(config: Play) -> TextGenerationEnv:
    assert textrl_env.__name__  # imported for its registrations
    settings: dict[str, Any] = {"reward": None if config.reward is None else reward_of(config.reward), "split": config.split}
    try:
        env = gym.make(config.id, **{name: value for name, value in settings.items() if value is not None})
    except gym.error.Error as error:
        known = ", ".join(name for name in gym.registry if name.startswith("textrl/"))
        raise ValueError(f"{error} Text environments: {known}") from error
    if not isinstance(env.unwrapped, TextGenerationEnv):
        raise ValueError(f"{config.id} is a {type(env.unwrapped).__name__}, no text environment")
    return bare_text_env(env)


def _play_one(env: TextGenerationEnv, by: str, console: Console) -> float | None:
    """Play one text; return its score, or None if the person wants another prompt.

    Raises:
        EOFError: The person wants to stop.
    """
    while True:
        prompt, response = env.core.text(0)
        console.print(Text(prompt, style="dim").append(response, style="not dim"))
        line = input("> ")
        if line.strip() == ":q":
            raise EOFError
        if line.strip() == ":n":
            return None
        for token in _tokens(env, by, line, console):
            if not env.action_masks()[token]:
                console.print(Text(_not_legal(env, token), style="red"))
                break  # played, it would end the text
            _, reward, ended, _, info = env.step(token)
            if ended:
                console.print(Text(info["prompt"], style="dim").append(info["response"], style="not dim"))
                console.print(Text(f"{info['finish_reason']}, score {info['score']:.3f}, reward {reward:.3f}\n", style="bold"))
                return float(info["score"])


def _tokens(env: TextGenerationEnv, by: str, line: str, console: Console) -> list[int]:
    """Return what a line stands for; nothing, and a hint, if it cannot be read."""
    tokenizer = env.task.tokenizer
    if not line.strip():
        return [tokenizer.eos_token_id]
    if by == "text":
        try:
            return tokenizer.encode_batch([line])[0]
        except ValueError as error:
            console.print(Text(str(error), style="red"))
            return []
    if line.startswith("#"):
        if line[1:].isdecimal() and int(line[1:]) < tokenizer.vocab_size:
            return [int(line[1:])]
        console.print(Text(f"{line}: ids go from #0 to #{tokenizer.vocab_size - 1}", style="red"))
        return []
    return _by_spelling(env, line, console)


def _not_legal(env: TextGenerationEnv, token: int) -> str:
    tokenizer = env.task.tokenizer
    named = "the end" if token in env.task.eos_token_ids else repr(tokenizer.decode_batch([[token]])[0])
    legal = np.flatnonzero(env.action_masks())
    some = ", ".join(f"#{i} {text!r}" for i, text in zip(legal, tokenizer.decode_batch([[int(i)] for i in legal[:SHOWN]]), strict=False))
    return f"{named} is not legal here; {len(legal)} tokens are: {some}{', ...' if len(legal) > SHOWN else ''}"


def _by_spelling(env: TextGenerationEnv, line: str, console: Console) -> list[int]:
    spellings = _spellings(env.task.tokenizer)
    exact = [i for wanted in (line, f" {line}") for i, text in enumerate(spellings) if text == wanted]
    if exact:
        return exact[-1:]  # the one with the space, if both exist
    close = [f"#{i} {text!r}" for i, text in enumerate(spellings) if text.lstrip().startswith(line.lstrip())][:SHOWN]
    console.print(Text(f"no token is spelled {line!r}" + (f"; there are {', '.join(close)}" if close else ""), style="red"))
    return []


def _spellings(tokenizer: Any) -> list[str]:
    return tokenizer.decode_batch([[i] for i in range(tokenizer.vocab_size)])
