"""`textrl/Json-v0` and `textrl/JsonMasked-v0`: an object of given fields, without and with an action mask that allows only JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from ...constraints import Vocabulary
from ...prompts.prompt import Prompt
from ...task import TextTask
from .common import Corpus, Limited, diagnostic_task

FIELDS: dict[str, tuple[Any, ...]] = {
    "name": ("ann", "bob", "eve", "max", "zoe", "tim"),
    "age": (3, 5, 7, 8, 9, 12),
    "pet": ("cat", "dog", "fish", "hen", "cow", "bat"),
    "city": ("rome", "oslo", "lima", "cairo", "paris", "delhi"),
}
_VALUES = tuple(dict.fromkeys(json.dumps(value) for values in FIELDS.values() for value in values))
_KEYS = tuple(json.dumps(key) for key in FIELDS)
_WRONG, _BROKEN = 0.4, 0.5  # chance in the corpus that a value is another one, and that a token of the text is wrong


@cache
def json_task(size: str, split: str = "train", masked: bool = False) -> TextTask:
    """Return the task.

    ## Description
    The prompt lists fields, `name ann age 7`; the response must be the JSON object that holds them: `{ "name" : "ann" , "age" : 7 }`.
    `JsonMasked` is the same task with a mask under which only objects of the known fields can be written, each with any known value.

    ## Action and observation spaces
    The end of text, braces, colon, comma, 4 keys, 24 values, and the words of the prompts; see `TextGenerationEnv`.

    ## Rewards
    0 unless the text parses as an object; else 1/2, and 1/2 times the right fields as a share of the larger of those asked for and
    those written.  The optimum is 1.

    ## References
    Constrained decoding: Willard and Louf 2023, "Efficient Guided Generation for Large Language Models".

    ## Version History
    * v0: first version.

    Args:
        size: Fields: `"2"`, `"3"` or `"4"`.
        split: `"train"`, `"validation"` or `"test"`; no two share a prompt.
        masked: Whether the mask is there.
    """
    fields = int(size)
    limit = 4 * fields + 2
    values = dict.fromkeys(str(value) for values in FIELDS.values() for value in values)
    words = ("{", "}", ":", ",", *_KEYS, *dict.fromkeys([*_VALUES, *FIELDS, *values]))
    corpus = Corpus(_respond, prompts=3000, context=6 * fields + 4, steps=400)
    constraint = Limited(BoundObjects, limit) if masked else None
    return diagnostic_task(words, split, partial(_prompt, fields), gold, limit, corpus, constraint=constraint)


jsonmasked_task = partial(json_task, masked=True)


def asked(prompt: str) -> dict[str, str]:
    """Return the fields that a prompt asks for, as JSON spells their values."""
    words = prompt.split()
    return {key: json.dumps(type(FIELDS[key][0])(value)) for key, value in zip(words[::2], words[1::2], strict=True)}


def gold(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Return 0 for what is no JSON object, else 1/2 and half the share of right fields."""
    return np.array([_score(asked(p), r) for p, r in zip(prompts, responses, strict=True)])


def _score(wanted: dict[str, str], response: str) -> float:
    try:
        written = json.loads(response)
    except ValueError:
        return 0.0
    if not isinstance(written, dict):
        return 0.0
    right = sum(key in written and json.dumps(written[key]) == value for key, value in wanted.items())
    return 0.5 + 0.5 * right / max(len(wanted), len(written))


class BoundObjects:
    """Only JSON objects of the known fields, at most `limit` tokens long; the state is what comes next, and the number of tokens."""

    def __init__(self, limit: int, vocabulary: Vocabulary) -> None:
        self.limit = limit
        groups = {"{": ["{"], "key": _KEYS, ":": [":"], "value": _VALUES, ",": [","], "}": ["}"]}
        self.ids = {name: vocabulary.tokenizer.encode_batch([" ".join(words)])[0] for name, words in groups.items()}
        self.group_of = {token: name for name, tokens in self.ids.items() for token in tokens}
        self.size, self.eos = vocabulary.size, vocabulary.eos_token_ids

    def start(self, prompt: Prompt) -> tuple[str, int]:
        """Return the state of an empty text."""
        return "start", 0

    def advance(self, state: tuple[str, int], token: int) -> tuple[str, int]:
        """Return the state after one more legal token."""
        return self.group_of.get(token, "end"), state[1] + 1

    def mask(self, state: tuple[str, int]) -> np.ndarray:
        """Return which tokens may come next; a comma only if there is room for a whole field and the brace behind it."""
        last, written = state
        legal = np.zeros(self.size, bool)
        following = {"start": "{", "{": "key", "key": ":", ":": "value", ",": "key"}
        if last in following:
            legal[self.ids[following[last]]] = True
        elif last == "value":
            legal[self.ids["}"]] = True
            legal[self.ids[","]] = written + 5 <= self.limit
        else:
            legal[self.eos] = True
        return legal


def _prompt(fields: int, rng: np.random.Generator) -> str:
    keys = [list(FIELDS)[i] for i in rng.permutation(len(FIELDS))[:fields]]
    return " ".join(f"{key} {FIELDS[key][int(rng.integers(len(FIELDS[key])))]}" for key in keys)


def _respond(prompt: str, rng: np.random.Generator) -> Sequence[str]:
    tokens = ["{"]
    for key, value in asked(prompt).items():
        shown = json.dumps(FIELDS[key][int(rng.integers(len(FIELDS[key])))]) if rng.random() < _WRONG else value
        tokens += [json.dumps(key), ":", shown, ","]
    tokens[-1] = "}"
    if rng.random() < _BROKEN:
        tokens[int(rng.integers(len(tokens)))] = str(rng.choice(["{", "}", ":", ",", *_KEYS]))
    return tokens
