"""`textrl/Caption-v0`: say what a picture shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import NamedTuple

import numpy as np

from ...prompts.prompt import Prompt
from ...task import BaseRecipe, TextTask
from ...tokenizer import WordTokenizer
from .common import SPLITS, GoldReward, in_split

COLOURS = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (60, 90, 230), "yellow": (230, 210, 50)}
FORMS = ("circle", "square", "triangle", "cross")
AND, PICTURE = "and", "picture"
SIDE = 36  # pixels; Stable-Baselines3's own convolutions need as many
_CELL, _RADIUS, _SHIFT, _NOISE = 12, 4, 1, 40  # pixels; the last is the brightest background, of 255
_NUMBERS = 10_000  # pictures have names of four digits
_KNOWN = 0.6  # chance in the corpus that a fact is the picture's; the others are drawn
_IN_CORPUS = 2000  # pictures


class Thing(NamedTuple):
    """One thing in a picture; `x` and `y` are its middle, in pixels from the upper left corner."""

    colour: str
    form: str
    x: int
    y: int


@cache
def caption_task(size: str, split: str = "train") -> TextTask:
    """Return the task.

    ## Description
    The prompt is a picture of 36 x 36 pixels and its name, `picture 0 4 1 2`: say which coloured shapes the picture shows, from left to
    right: `red circle and blue cross`.  The name tells pictures apart and says nothing about them.  The base policy reads the picture with
    a small vision transformer, and learned from captions in which each fact is right in about seven cases of ten.

    ## Action and observation spaces
    21 tokens: the end of text, 4 colours, 4 shapes, `and`, `picture` and 10 digits.  Beside `prompt` and `response` the observation
    holds `image`, `Box(0, 255, (36, 36, 3), uint8)`; see `TextGenerationEnv`.

    ## Rewards
    Share of the facts (the colour and the shape of each thing, in their order) that are named right, in [0, 1]; things that are not there
    count as facts named wrong.  The optimum is 1.

    ## References
    Johnson et al. 2017, "CLEVR: A Diagnostic Dataset for Compositional Language and Elementary Visual Reasoning", for pictures that are
    generated with all that is known about them; Rennie et al. 2017, "Self-critical Sequence Training for Image Captioning", for captions
    by reinforcement learning.

    ## Version History
    * v0: first version.

    Args:
        size: Things in a picture: `"1"`, `"2"` or `"3"`.
        split: `"train"`, `"validation"` or `"test"`; no two share a scene.
    """
    number = int(size)
    tokenizer = WordTokenizer((*COLOURS, *FORMS, AND, PICTURE, *map(str, range(10))))
    judge = partial(gold, number)
    recipe = BaseRecipe(partial(_corpus, number), _model(tokenizer.vocab_size), steps=600, image=partial(picture, number))
    prompts = tuple(Prompt(name, references=(caption(number, name),), image=picture(number, name)) for name in _names(number, split))
    return TextTask(tokenizer, prompts, 3 * number, reward=GoldReward(judge), gold=judge, optimum=1.0, recipe=recipe)


@cache
def scene(number: int, name: str) -> tuple[Thing, ...]:
    """Return the things in a picture of `number` things, from left to right."""
    rng = _generator(number, name)
    columns = np.sort(rng.permutation(SIDE // _CELL)[:number])
    return tuple(_thing(int(column), rng) for column in columns)


def picture(number: int, name: str) -> np.ndarray:
    """Draw a picture, shape (36, 36, 3), uint8: the things of `scene` before noise."""
    rng = _generator(number, name, 1)
    image = rng.integers(_NOISE, size=(SIDE, SIDE, 3), dtype=np.uint8)
    y, x = np.mgrid[:SIDE, :SIDE]  # (H, W) each
    for thing in scene(number, name):
        image[_covered(thing.form, np.abs(x - thing.x), y - thing.y)] = COLOURS[thing.colour]
    return image


def caption(number: int, name: str) -> str:
    """Return what is right to say about a picture."""
    return f" {AND} ".join(f"{thing.colour} {thing.form}" for thing in scene(number, name))


def gold(number: int, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Return the share of facts that each caption names right."""
    return np.array([_share(scene(number, p), r) for p, r in zip(prompts, responses, strict=True)])


def _share(things: Sequence[Thing], said: str) -> float:
    phrases = [phrase.split() for phrase in said.split(AND)]
    named = [phrase if len(phrase) == 2 else ["", ""] for phrase in phrases]  # anything else names nothing
    right = sum((colour == thing.colour) + (form == thing.form) for thing, (colour, form) in zip(things, named, strict=False))
    return right / (2 * max(len(things), len(named)))


def _generator(number: int, name: str, stream: int = 0) -> np.random.Generator:
    word, *digits = name.split() or [""]
    if word != PICTURE or len(digits) != 4 or not all(len(d) == 1 and d in "0123456789" for d in digits):
        raise ValueError(f"prompt {name!r} names no picture: write '{PICTURE}' and four digits, as in '{PICTURE} 0 4 1 2'")
    return np.random.default_rng([number, int("".join(digits)), stream])


def _thing(column: int, rng: np.random.Generator) -> Thing:
    colour, form = rng.choice(list(COLOURS)), rng.choice(FORMS)
    middle = np.array([column, rng.integers(SIDE // _CELL)]) * _CELL + _CELL // 2 + rng.integers(-_SHIFT, _SHIFT + 1, 2)
    return Thing(str(colour), str(form), *middle.tolist())


def _covered(form: str, across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Return which pixels a shape covers, shape (H, W), bool, given how far they are from its middle."""
    inside = (across <= _RADIUS) & (np.abs(down) <= _RADIUS)
    if form == "circle":
        return across**2 + down**2 <= _RADIUS**2
    if form == "square":
        return inside
    if form == "triangle":
        return inside & (2 * across <= down + _RADIUS)
    return inside & ((across <= 1) | (np.abs(down) <= 1))


def _names(number: int, split: str, count: int | None = None) -> list[str]:
    """Return the names of pictures of a split, in ascending order; no two have the same scene."""
    wanted = SPLITS.get(split, 0) if count is None else count
    scenes: dict[str, str] = {}
    for name in _all_names():
        key = str(list(scene(number, name)))
        if in_split(key, split) and key not in scenes:
            scenes[key] = name
        if len(scenes) == wanted:
            break
    return list(scenes.values())


def _all_names() -> Iterator[str]:
    return (" ".join((PICTURE, *f"{number:04}")) for number in range(_NUMBERS))


def _corpus(number: int) -> list[tuple[str, str]]:
    """Return pictures' names, and captions as a careless writer gives them."""
    rng = np.random.default_rng(0)
    return [(name, f" {_careless(scene(number, name), rng)}") for name in _names(number, "train", _IN_CORPUS)]


def _careless(things: Sequence[Thing], rng: np.random.Generator) -> str:
    def seen(fact: str, all_facts: Sequence[str]) -> str:
        return fact if rng.random() < _KNOWN else str(rng.choice(list(all_facts)))

    return f" {AND} ".join(f"{seen(thing.colour, list(COLOURS))} {seen(thing.form, FORMS)}" for thing in things)


def _model(vocab_size: int) -> dict[str, object]:
    encoder = {
        "model_type": "vit", "image_size": SIDE, "patch_size": 12, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "initializer_range": 0.06,
    }  # fmt: skip
    decoder = {
        "model_type": "gpt2", "vocab_size": vocab_size, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16, "bos_token_id": None,
        "eos_token_id": 0, "initializer_range": 0.06,
    }  # fmt: skip
    return {"model_type": "vision-encoder-decoder", "encoder": encoder, "decoder": decoder}
