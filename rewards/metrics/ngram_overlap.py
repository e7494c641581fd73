"""Metrics of machine translation and summarisation as reward models: BLEU, chrF, TER, ROUGE, METEOR.

All of them compare each response with the references of its episode and lie in [0, 1], higher being better.  The libraries that compute
them come with `pip install 'textrl-env[metrics]'`.
"""

from __future__ import annotations

import re

from ..rules.references import ReferenceRule
from ..utils.optional_imports import needed


class BleuReward(ReferenceRule):
    """Sentence BLEU by sacrebleu, with effective order: n-grams longer than the response are left out rather than smoothed.

    Papineni et al. 2002, Post 2018.  Several references are one set: an n-gram counts as often as the reference that holds it most.

    Args:
        tokenize: sacrebleu's tokenizer: `"13a"`, `"intl"`, `"char"`, `"zh"`, and others that need packages of their own.
        lowercase: Disregard case.

    Raises:
        ImportError: sacrebleu is not installed.
        ValueError: sacrebleu knows no such tokenizer.
    """

    name = "bleu"

    def __init__(self, tokenize: str = "13a", lowercase: bool = False) -> None:
        known = needed("sacrebleu.metrics.bleu", "bleu").BLEU.TOKENIZERS
        if tokenize not in known:
            raise ValueError(f"tokenize={tokenize!r}: sacrebleu has {', '.join(known)}")
        self.tokenize, self.lowercase = tokenize, lowercase
        self._bleu = needed("sacrebleu.metrics", "bleu").BLEU(effective_order=True, tokenize=tokenize, lowercase=lowercase)

    def _compare(self, response: str, references: tuple[str, ...]) -> float:
        return min(1.0, self._bleu.sentence_score(response, list(references)).score / 100)  # sacrebleu's 100 has rounding errors


class ChrfReward(ReferenceRule):
    """Sentence chrF by sacrebleu: the F2 score of character n-grams up to 6 (Popovic 2015); of several references the best.

    Args:
        word_order: Longest word n-grams to take in; 2 is chrF++ (Popovic 2017).
        lowercase: Disregard case.

    Raises:
        ImportError: sacrebleu is not installed.
        ValueError: `word_order` is negative.
    """

    name = "chrf"

    def __init__(self, word_order: int = 0, lowercase: bool = False) -> None:
        if word_order < 0:
            raise ValueError(f"word_order={word_order} must be 0 or more; 2 is chrF++")
        self.word_order, self.lowercase = word_order, lowercase
        self._chrf = needed("sacrebleu.metrics", "chrf").CHRF(word_order=word_order, lowercase=lowercase)

    def _compare(self, response: str, references: tuple[str, ...]) -> float:
        return min(1.0, self._chrf.sentence_score(response, list(references)).score / 100)


class TerReward(ReferenceRule):
    """1 - TER, at least 0: TER is the edits (with shifts of phrases) that turn the response into a reference, per reference word.

    Snover et al. 2006, by sacrebleu.  Of several references the one with the fewest edits counts, divided by their mean length.  A text
    that needs as many edits as the reference has words scores 0, and so does every worse one.

    Args:
        lowercase: Disregard case.

    Raises:
        ImportError: sacrebleu is not installed.
    """

    name = "ter"

    def __init__(self, lowercase: bool = False) -> None:
        self.lowercase = lowercase
        self._ter = needed("sacrebleu.metrics", "ter").TER(case_sensitive=not lowercase)

    def _compare(self, response: str, references: tuple[str, ...]) -> float:
        return max(0.0, 1.0 - self._ter.sentence_score(response, list(references)).score / 100)


class RougeReward(ReferenceRule):
    """F-measure of ROUGE by rouge-score (Lin 2004); of several references the best.

    rouge-score reads the letters a to z and digits only, in lower case: a reference in another script is an error.

    Args:
        variant: `"rouge1"` to `"rouge9"` (n-grams), `"rougeL"` (longest common subsequence), or `"rougeLsum"` (the same, line by line).
        stem: Compare Porter stems of words of more than three letters.

    Raises:
        ImportError: rouge-score is not installed.
        ValueError: There is no such variant.
    """

    name = "rouge"

    def __init__(self, variant: str = "rougeL", stem: bool = False) -> None:
        if not re.fullmatch("rouge([1-9]|L|Lsum)", variant):
            raise ValueError(f"variant={variant!r}: choose rouge1 to rouge9, rougeL or rougeLsum")
        self.variant, self.stem = variant, stem
        self._rouge = needed("rouge_score.rouge_scorer", "rouge").RougeScorer([variant], use_stemmer=stem)

    def _compare(self, response: str, references: tuple[str, ...]) -> float:
        for reference in references:
            if not re.search("[a-z0-9]", reference.lower()):
                raise ValueError(f"rouge finds none of a to z and 0 to 9 in the reference {reference[:100]!r}: take bleu or chrf")
        return float(self._rouge.score_multi(references, response)[self.variant].fmeasure)

    def __repr__(self) -> str:
        return f"RougeReward({self.variant!r}, stem={self.stem})"


class MeteorReward(ReferenceRule):
    """METEOR by NLTK: matches of words, of Porter stems and of WordNet's synonyms, with a penalty for scattered ones.

    Lavie and Agarwal 2007, with alpha 0.9, beta 3 and gamma 0.5; English; words are runs of letters and digits, or single signs; of several
    references the best.  NLTK looks for synonyms of the stem, so that "movie" (stem "movi") has none.

    Raises:
        ImportError: NLTK is not installed.
        FileNotFoundError: WordNet is not where NLTK looks for it.
    """

    name = "meteor"

    def __init__(self) -> None:
        _find_wordnet()

    def _compare(self, response: str, references: tuple[str, ...]) -> float:
        meteor_score = needed("nltk.translate.meteor_score", self.name).meteor_score
        wordnet = needed("nltk.corpus", self.name).wordnet
        return float(meteor_score([_words(reference) for reference in references], _words(response), wordnet=wordnet))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def _find_wordnet() -> None:
    nltk = needed("nltk", "meteor")
    try:
        needed("nltk.corpus", "meteor").wordnet.ensure_loaded()
    except LookupError as error:
        raise FileNotFoundError(
            "meteor needs the WordNet data: run `python -m nltk.downloader wordnet`, or without network unpack wordnet.zip as "
            f"corpora/wordnet in a folder that the variable NLTK_DATA names; looked in {', '.join(nltk.data.path)}"
        ) from error
