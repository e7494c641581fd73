"""Text tasks: their fields and limits, and the recipe of a task's base policy."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from .episode import Episode
from .prompts.encoding import encode_prompts
from .prompts.prompt import Prompt
from .prompts.sampler import ORDERS
from .tokenizer import FileTokenizer, Tokenizer, as_tokenizer, ends_of, id_of
from .utils.never_copied import NeverCopied
from .utils.suggestions import did_you_mean

GoldScore = Callable[[Sequence[str], Sequence[str]], np.ndarray]


# Smallest value of each
_COUNTS = {"max_new_tokens": 1, "max_prompt_tokens": 1, "group_size": 1, "min_new_tokens": 0, "max_turns": 1, "soft_max_tokens": 0}
_PENALTIES = {"missing_eos_penalty": 0.0, "soft_penalty": 0.0, "illegal_score": -sys.float_info.max}

_SMALLEST_IMAGE = 4  # pixels a side: the side of 3 is the colours, wherever Stable-Baselines3 puts it

Measure = Callable[[Sequence[str], Sequence[str]], float]


@dataclass(frozen=True)
class BaseRecipe:
    """How the base policy of a task is pretrained.

    Attributes:
        corpus: Returns (prompt, response) pairs to learn from.
        model: Keyword arguments of the architecture's configuration, with `model_type` (plain data).
        steps: Optimizer steps.
        batch_size: Texts per step.
        learning_rate: Peak of the one-cycle schedule.
        seed: Seed of the initial weights and the order of the texts.
        image: Returns the picture of a prompt, given its text; None: prompts have none.
    """

    corpus: Callable[[], list[tuple[str, str]]]
    model: Mapping[str, Any]
    steps: int
    batch_size: int = 32
    learning_rate: float = 3e-3
    seed: int = 0
    image: Callable[[str], np.ndarray] | None = None

    def texts(self) -> list[tuple[Prompt, str]]:
        """Return the corpus as prompts, with their pictures, and responses."""
        return [(self.prompt(text), response) for text, response in self.corpus()]

    def prompt(self, text: str) -> Prompt:
        """Return a text of the corpus as a prompt."""
        return Prompt(text, image=None if self.image is None else self.image(text))


@dataclass(frozen=True, eq=False)
class TextTask(NeverCopied):
    """A text task: where episodes start, in which tokens, how they end, and what shapes their score.

    Every field can be given to `gym.make` as well, as in `gym.make("textrl/Review-v0", stop_strings=["!"])`.

    Attributes:
        tokenizer: Text to ids and back; or what stands for a tokenizer, see `FileTokenizer`: a fast tokenizer of transformers, a folder,
            or a `tokenizer.json`.  It says which tokens end a text (`eos_token_ids`), and what prompts begin with (`bos_ids`).
        prompts: The rows that episodes start from; none may be empty.  A list or tuple is tokenized at once, any other
            sequence (see `read_prompts`) row by row as its rows are drawn.
        max_new_tokens: T, the width of the response observation, tokens of the environment included; reaching it ends
            the episode, and the text is scored.
        max_prompt_tokens: P, the width of the prompt observation; None takes the longest prompt of a list.
        over_long: What happens to a prompt of more than P tokens: `"reject"` it with an error, or cut it on the `"left"`
            or `"right"`.  Everyone then gets the prompt that the policy reads: `Episode.prompt`, info and samples too.  The whole one
            stays in `prompts`, at the index that info calls `prompt_id`.
        prompt_order: `"random"` draws with replacement from the row's own generator; `"sequential"` walks through the
            rows and starts over, as evaluation wants it; `"shuffled"`, `"weighted"` and `"priority"`: see `PromptSampler`.
        prompt_weights: One weight per prompt, for `"weighted"`.
        group_size: Deal each prompt this many times in a row, so that neighbouring rows share it.
        stop_tokens: Ids or spellings of tokens that end the text like end-of-text does (`finish_reason` `"stop"`).
        stop_strings: Texts that end the text wherever they appear in it, across token borders too (`"stop"`); the
            response is cut before them, the ids are kept.  Special tokens are not in texts: they are `stop_tokens`.
        ends: Given all unfinished texts after each step, with the reply where a turn ended, says which end there (`"task"`): one bool each.
        min_new_tokens: End-of-text and stop tokens are illegal before the agent wrote this many tokens of its turn.
        constraint: What the agent may write: a `Constraint`, plain data, or a list of them; see `as_constraint`.
        reply: Makes the task a dialogue.  Given the unfinished texts whose turn just ended with end-of-text or a stop,
            which are cut behind a stop string, it returns what the environment says next, a text, ids, or a `Prompt` that a template wrote
            each (`typed=()` where nothing in it was typed); None ends the episode (`"task"`).
        max_turns: The episode ends (`"turns"`) with the agent's turn of this number.
        missing_eos_penalty: For texts that ran into the length limit.
        missing_eos: `"subtract"` the penalty from the score, or `"replace"` the score by minus the penalty.
        soft_max_tokens: From this many response tokens on, a penalty grows linearly to `soft_penalty` at T (Yu et al. 2025,
            DAPO, eq. 13); None: no such penalty.
        soft_penalty: Its largest value.
        illegal_score: The reward of a text that ended with an illegal action (`"illegal"`); the reward model is not asked.
        reward: The reward if the user names none.
        gold: The task's own judgement of (prompts, responses), one float each, if it has one.
        measure: Its judgement of (prompts, responses) together, where that is more than the mean of `gold`: how many different
            good answers there are, or how the worst group fares.
        optimum: The largest value that `measure`, or else the mean of `gold`, can have; None if nobody knows.
        recipe: How the task's base policy is pretrained, if it has one.
        prompt_ids: Ids of the prompts of a list; None: they are read one by one.
        image_shape: (H, W, 3) of the prompts' pictures, which the observation then holds; None: they have none.

    Raises:
        ValueError: No prompts, an empty one, one longer than `max_prompt_tokens`, pictures of different sizes, or a limit out of range.
    """

    tokenizer: Tokenizer
    prompts: Sequence[Prompt]
    max_new_tokens: int
    max_prompt_tokens: int | None = None
    over_long: Literal["reject", "left", "right"] = "reject"
    prompt_order: Literal["random", "sequential", "shuffled", "weighted", "priority"] = "random"
    prompt_weights: Sequence[float] | None = None
    group_size: int = 1
    stop_tokens: Sequence[int | str] = ()
    stop_strings: Sequence[str] = ()
    ends: Callable[[Sequence[Episode]], Sequence[bool]] | None = None
    min_new_tokens: int = 0
    constraint: Any = None
    reply: Callable[[Sequence[Episode]], Sequence[str | Prompt | Sequence[int] | None]] | None = None
    max_turns: int | None = None
    missing_eos_penalty: float = 0.0
    missing_eos: Literal["subtract", "replace"] = "subtract"
    soft_max_tokens: int | None = None
    soft_penalty: float = 1.0
    illegal_score: float = -1.0
    reward: Any = "length"
    gold: GoldScore | None = None
    measure: Measure | None = None
    optimum: float | None = None
    recipe: BaseRecipe | None = None
    prompt_ids: tuple[np.ndarray, ...] | None = field(init=False, repr=False)
    image_shape: tuple[int, int, int] | None = field(init=False, repr=False)
    stop_ids: tuple[int, ...] = field(init=False, repr=False)
    _starts: tuple[tuple[Prompt, np.ndarray], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokenizer", as_tokenizer(self.tokenizer))
        self._check_limits()
        if not len(self.prompts):
            raise ValueError("a task needs at least one prompt; got none")
        if isinstance(self.prompts, list):
            object.__setattr__(self, "prompts", tuple(self.prompts))  # the caller's list may change
        object.__setattr__(self, "stop_ids", tuple(self._stop_id(token) for token in self.stop_tokens))
        object.__setattr__(self, "prompt_ids", None)
        object.__setattr__(self, "_starts", ())
        object.__setattr__(self, "image_shape", shape_of(self.prompts[0]))
        if isinstance(self.prompts, tuple):
            self._encode_all()
        elif self.max_prompt_tokens is None:
            raise ValueError("prompts are read one by one, so their longest is not known: pass max_prompt_tokens")

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end a text with `finish_reason` `"eos"`."""
        return ends_of(self.tokenizer)

    @property
    def prompt_width(self) -> int:
        """P, the width of the prompt observation."""
        assert self.max_prompt_tokens is not None
        return self.max_prompt_tokens

    def start_of(self, index: int) -> tuple[Prompt, np.ndarray]:
        """Return a prompt and its ids, read-only; both are cut to P tokens if the task says so.

        Raises:
            ValueError: The prompt has no tokens, or too many of them.
        """
        if self._starts:
            return self._starts[index]
        prompt = self.prompts[index]
        return self._fit(prompt, encode_prompts(self.tokenizer, [prompt])[0])

    def _encode_all(self) -> None:
        rows = encode_prompts(self.tokenizer, self.prompts)
        if self.max_prompt_tokens is None:
            object.__setattr__(self, "max_prompt_tokens", max(map(len, rows)))
        object.__setattr__(self, "_starts", tuple(self._fit(p, row) for p, row in zip(self.prompts, rows, strict=True)))
        object.__setattr__(self, "prompt_ids", tuple(ids for _, ids in self._starts))

    def _fit(self, prompt: Prompt, row: list[int]) -> tuple[Prompt, np.ndarray]:
        """Return the prompt as it is read, its text and its ids."""
        width = self.prompt_width
        if shape_of(prompt) != self.image_shape:
            raise ValueError(
                f"prompt {prompt.text[:80]!r} has a picture of shape {shape_of(prompt)}, the first prompt {self.image_shape}: give all of "
                "a task's prompts pictures of one size, or none"
            )
        plain = prompt.typed is None
        opening, closing = (len(getattr(self.tokenizer, name, ())) if plain else 0 for name in ("bos_ids", "closing_ids"))
        if len(row) == opening + closing:
            raise ValueError(f"prompt {prompt.text!r} has no tokens: a policy needs at least one to start from")
        if max(row) >= self.tokenizer.vocab_size:
            raise ValueError(
                f"prompt {prompt.text[:80]!r} has the token id {max(row)}, vocab_size={self.tokenizer.vocab_size}: a tokenizer's "
                "vocab_size is its largest id + 1"
            )
        if len(row) > width:
            if self.over_long == "reject":
                raise ValueError(
                    f"prompt {prompt.text[:80]!r} has {len(row)} tokens, max_prompt_tokens={width}: raise it, shorten the prompt, "
                    "or let over_long cut it on the 'left' or 'right'"
                )
            room, end = width - opening - closing, len(row) - closing
            if room <= 0:
                raise ValueError(f"max_prompt_tokens={width}: {opening + closing} tokens of the tokenizer begin and end a prompt; raise it")
            left = row[end - room : end] if self.over_long == "left" else row[opening : opening + room]
            row = [*row[:opening], *left, *row[end:]]
            prompt = self._cut(prompt, left)
        ids = np.asarray(row, np.int64)
        ids.setflags(write=False)  # episodes hand these out; nobody may change the task through them
        return prompt, ids

    def _cut(self, prompt: Prompt, ids: list[int]) -> Prompt:
        """Return the prompt whose text is what is left of it."""
        if prompt.typed is None or not isinstance(self.tokenizer, FileTokenizer):
            return replace(prompt, text=self.tokenizer.decode_batch([ids])[0])
        text = self.tokenizer.spell(ids)
        gone = len(prompt.text) - len(text) if self.over_long == "left" else 0
        return replace(prompt, text=text, typed=tuple((max(0, start - gone), end - gone) for start, end in prompt.typed if end > gone))

    def _stop_id(self, token: int | str) -> int:
        found = id_of(self.tokenizer, token)
        if found is None:
            raise ValueError(f"stop token {token!r} is not one token of the vocabulary [0, {self.tokenizer.vocab_size}): use stop_strings")
        return found

    def _check_limits(self) -> None:
        self._check_numbers()
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ValueError(f"min_new_tokens={self.min_new_tokens}: must be from 0 to max_new_tokens={self.max_new_tokens}")
        if self.max_turns is not None and self.reply is None:
            raise ValueError(f"max_turns={self.max_turns} needs reply: a text without it has one turn")
        if self.soft_max_tokens is not None and not 0 <= self.soft_max_tokens < self.max_new_tokens:
            raise ValueError(f"soft_max_tokens={self.soft_max_tokens}: must be from 0 to below max_new_tokens={self.max_new_tokens}")
        if self.soft_max_tokens is None and self.soft_penalty != TextTask.soft_penalty:
            raise ValueError(f"soft_penalty={self.soft_penalty}: it grows from soft_max_tokens on, and there is none; pass both")
        choices = {"over_long": ("reject", "left", "right"), "missing_eos": ("subtract", "replace"), "prompt_order": ORDERS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                close = did_you_mean(str(getattr(self, name)), known)
                raise ValueError(f"{name}={getattr(self, name)!r}{close}: choose {', '.join(map(repr, known))}")
        self._check_stops()

    def _check_stops(self) -> None:
        if isinstance(self.stop_strings, str) or not all(isinstance(s, str) and s for s in self.stop_strings):
            raise ValueError(f"stop_strings={self.stop_strings!r}: pass a list of texts, none of them empty")
        if self.stop_strings and isinstance(self.tokenizer, FileTokenizer):
            special = self.tokenizer.special_ids.difference(self.tokenizer.eos_token_ids)  # texts end with those of the end anyway
            for token in map(self.tokenizer.backend.id_to_token, special):
                if any(token in stop for stop in self.stop_strings):
                    raise ValueError(f"stop_strings={self.stop_strings!r}: {token!r} is a special token, not in texts; use stop_tokens")
        if isinstance(self.stop_tokens, (str, int)):
            raise ValueError(f"stop_tokens={self.stop_tokens!r}: pass a list of ids or spellings")

    def _check_numbers(self) -> None:
        """Insist on whole numbers where tokens, texts and turns are counted, and on finite ones elsewhere."""
        for name, least in _COUNTS.items():
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= least):
                raise ValueError(f"{name}={value!r}: must be a whole number of at least {least}")
        for name, least_penalty in _PENALTIES.items():
            value = getattr(self, name)
            if not (isinstance(value, (int, float, np.number)) and least_penalty <= float(value) < math.inf):
                raise ValueError(f"{name}={value!r}: must be a finite number" + (" of at least 0" if least_penalty == 0 else ""))


def shape_of(prompt: Prompt) -> tuple[int, int, int] | None:
    """Return the shape of a prompt's picture, None without one.

    Raises:
        ValueError: It is no picture.
    """
    image = prompt.image
    if image is None:
        return None
    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
        what = f"shape {image.shape}, {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"the picture of prompt {prompt.text[:80]!r} is {what}: pass an array of shape (H, W, 3), uint8")
    if min(image.shape[:2]) < _SMALLEST_IMAGE:
        raise ValueError(f"the picture of prompt {prompt.text[:80]!r} has shape {image.shape}: give it at least 4 x 4 pixels")
    height, width, _ = image.shape
    return height, width, 3
