"""`textrl/Translate-v0`: from a language with the verb in the middle to one with the verb at the end, and with agreement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache, partial

import numpy as np

from ...prompts.prompt import Prompt
from ...task import TextTask
from .common import Corpus, diagnostic_task

NOUNS = {"dog": "kano", "cat": "miru", "bird": "tesa", "king": "vodu", "child": "lupe", "horse": "garo"}
ADJECTIVES = {"big": "nim", "old": "sut", "red": "pax", "good": "wel"}
VERBS = {"sees": "bokat", "hears": "dunit", "likes": "femot", "finds": "gilat"}
MANY = "s"  # ends a source noun; its target noun, adjectives and verb end in MANY_OF_TARGET
MANY_OF_TARGET = "zi"
NEAR, NEAR_OF_TARGET = "near", "ob"
_SOURCE_ORDER, _WRONG_FORM, _WRONG_WORD = 0.5, 0.2, 0.15  # chances of the corpus's errors: of a text, and of each word


@cache
def translate_task(size: str, split: str = "train") -> TextTask:
    """Return the task.

    ## Description
    The prompt is a sentence, `big dogs see old cat`: translate it.  The target language puts the verb at the end, adjectives behind their
    nouns and `near` behind its noun, and marks the plural on noun, adjective and verb.  The base policy often keeps the order of the
    source, and gets words and endings wrong.

    ## Action and observation spaces
    58 tokens: the end of text and the words of both languages, each form a token; see `TextGenerationEnv`.

    ## Rewards
    Sentence chrF (6 characters, beta 2) against the only right translation, in [0, 1].  The optimum is 1.

    ## References
    Popovic 2015, "chrF: character n-gram F-score for automatic MT evaluation".

    ## Version History
    * v0: first version.

    Args:
        size: Words of the source: `"3"`, `"5"` or `"7"`.
        split: `"train"`, `"validation"` or `"test"`; no two share a sentence.
    """
    number = int(size)
    words = (*_both(NOUNS, MANY), *ADJECTIVES, *VERBS, NEAR, *_targets(), NEAR_OF_TARGET)
    corpus = Corpus(_spoiled, prompts=1500, responses=2, context=2 * number + 6, steps=500)
    return diagnostic_task(words, split, partial(_prompt, number), gold, number + 2, corpus, _with_translation)


def translation(source: str) -> str:
    """Return the translation of a sentence."""
    words = source.split()
    near = [] if NEAR not in words else [*_phrase(words[words.index(NEAR) + 1 :]), NEAR_OF_TARGET]
    verb = next(i for i, word in enumerate(words) if word in VERBS)
    end = words.index(NEAR) if NEAR in words else len(words)
    many = words[verb - 1] not in NOUNS
    said = VERBS[words[verb]] + (MANY_OF_TARGET if many else "")
    return " ".join([*_phrase(words[:verb]), *_phrase(words[verb + 1 : end]), *near, said])


def gold(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Return the chrF of each response."""
    return np.array([chrf(r, translation(p)) for p, r in zip(prompts, responses, strict=True)])


@lru_cache(4096)  # the benchmark has the texts of a rollout judged twice, and many are equal
def chrf(hypothesis: str, reference: str, order: int = 6, beta: float = 2.0) -> float:
    """Return sentence chrF in [0, 1], as sacrebleu computes it: white space left out, averaged over the orders that both texts have."""
    rows, texts = [], ["".join(text.split()) for text in (hypothesis, reference)]
    for n in range(1, order + 1):
        ours, theirs = (_grams(text, n) for text in texts)
        if ours and theirs:
            match = (ours & theirs).total()
            rows.append((match / ours.total(), match / theirs.total()))
    precision, recall = np.mean(rows, 0) if rows else (0.0, 0.0)
    total = beta**2 * precision + recall
    return float((1 + beta**2) * precision * recall / total) if total else 0.0


def _grams(text: str, n: int) -> Counter[str]:
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))


def _phrase(words: Sequence[str]) -> list[str]:
    """Translate a noun and the adjective before it."""
    *adjectives, noun = words
    many = "" if noun in NOUNS else MANY_OF_TARGET
    return [NOUNS[noun.removesuffix(MANY) if many else noun] + many, *(ADJECTIVES[a] + many for a in adjectives)]


def _both(words: Sequence[str] | dict[str, str], ending: str) -> list[str]:
    return [form for word in words for form in (word, word + ending)]


def _targets() -> list[str]:
    return [form for table in (NOUNS, ADJECTIVES, VERBS) for word in table.values() for form in (word, word + MANY_OF_TARGET)]


def _prompt(words: int, rng: np.random.Generator) -> str:
    def phrase(described: bool) -> list[str]:
        noun = str(rng.choice(list(NOUNS))) + (MANY if rng.random() < 0.5 else "")
        return [str(rng.choice(list(ADJECTIVES))), noun] if described else [noun]

    sentence = [*phrase(words >= 5), str(rng.choice(list(VERBS))), *phrase(words >= 5)]
    return " ".join(sentence if words < 7 else [*sentence, NEAR, *phrase(False)])


def _with_translation(text: str) -> Prompt:
    return Prompt(text, references=(translation(text),))


def _spoiled(prompt: str, rng: np.random.Generator) -> list[str]:
    """Return a translation as a beginner writes it."""
    said = translation(prompt).split()
    if rng.random() < _SOURCE_ORDER:
        verb = next(i for i, word in enumerate(prompt.split()) if word in VERBS)
        said.insert(verb, said.pop())
    for i, word in enumerate(said):
        if rng.random() < _WRONG_WORD:
            said[i] = str(rng.choice(_targets()))
        elif rng.random() < _WRONG_FORM and word != NEAR_OF_TARGET:
            said[i] = word.removesuffix(MANY_OF_TARGET) if word.endswith(MANY_OF_TARGET) else word + MANY_OF_TARGET
    return said
