"""The review grammar: balance, variety, neutral openings, disjoint pools, and a tokenizer that fits."""

import ast
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

import textrl_env.tasks.review.grammar as grammar
from textrl_env.tasks.review.annotator import attributes
from textrl_env.tasks.review.build_data import OPENINGS, TOKENIZER, build_openings, build_tokenizer
from textrl_env.tasks.review.grammar import Review, sample_reviews, split
from textrl_env.tasks.review.grammar_sampler import GRADES, fix_articles
from textrl_env.tasks.review.lexicon import parse, polarity, templates, words
from textrl_env.tasks.review.repetition import count_repeats


@pytest.fixture(scope="module")
def corpus() -> list[Review]:
    return sample_reviews(20_000, np.random.default_rng(0))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TOKENIZER))


def test_same_seed_same_reviews(corpus: list[Review]) -> None:
    assert sample_reviews(300, np.random.default_rng(0)) == corpus[:300]
    assert sample_reviews(300, np.random.default_rng(1)) != corpus[:300]


def test_a_generator_goes_on_with_new_reviews() -> None:
    rng = np.random.default_rng(0)
    assert sample_reviews(50, rng) != sample_reviews(50, rng)


def test_variety(corpus: list[Review]) -> None:
    assert len({word for review in corpus for word in review.text.split() if word.isalpha()}) >= 3_000
    assert len({review.text for review in corpus}) >= 19_900


def test_lengths(corpus: list[Review]) -> None:
    assert {len(review.opening.split()) for review in corpus} <= set(range(3, 9))
    lengths = [len(review.text.split()) for review in corpus]
    assert min(lengths) >= 15
    assert max(lengths) <= 30


def test_text_is_clean(corpus: list[Review]) -> None:
    spaced = re.compile(r"(?:[a-z]+|[.,;!])(?: (?:[a-z]+|[.,;!]))*")
    for review in corpus:
        assert spaced.fullmatch(review.text), review.text
        assert review.body[-1] in ".!"
        assert not re.search(r"\ba [aeiou](?!ni|se|ne)", review.text), review.text


def test_latents_are_balanced(corpus: list[Review]) -> None:
    sentiment = np.array([review.attributes.sentiment for review in corpus])
    assert np.mean(sentiment > 0.2) == pytest.approx(0.42, abs=0.015)
    assert np.mean(sentiment < -0.2) == pytest.approx(0.42, abs=0.015)
    assert abs(sentiment.mean()) < 0.02
    for name, levels in (("specificity", (0, 0.5, 1)), ("politeness", (-1, 0, 1)), ("repetition", (0, 0.5, 1))):
        values = np.array([getattr(review.attributes, name) for review in corpus])
        assert set(values) == set(levels)
        assert min(np.mean(values == level) for level in levels) > 0.12
        assert abs(np.corrcoef(values, sentiment)[0, 1]) < 0.03, name


def test_openings_are_neutral(corpus: list[Review]) -> None:
    for review in corpus[:3_000]:
        seen = attributes("", review.opening)
        assert (seen.sentiment, seen.politeness) == (0, 0), review.opening


def test_repetition_latent_is_what_is_written(corpus: list[Review]) -> None:
    for review in corpus[:3_000]:
        repeats = count_repeats(review.body.split())
        assert (repeats > 0) == (review.attributes.repetition > 0), review.body


def test_pools_share_no_film_and_no_opening() -> None:
    pools = [split(name, 1_500) for name in ("train", "validation", "test")]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert {review.film for review in pools[a]}.isdisjoint(review.film for review in pools[b])
        assert {review.opening for review in pools[a]}.isdisjoint(review.opening for review in pools[b])


def test_pool_is_fixed_and_starts_the_same_for_any_n() -> None:
    assert split("validation", 40) == split("validation", 90)[:40]


def test_unknown_pool_and_negative_n_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'dev' does not exist.*'validation'"):
        split("dev", 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n is -1"):
        sample_reviews(-1, np.random.default_rng(0))


def test_articles() -> None:
    assert fix_articles("a useful map , a old hour and a".split()) == "a useful map , an old hour and a".split()
    assert fix_articles("a honest uniform".split()) == "an honest uniform".split()


def test_no_entry_has_two_meanings() -> None:
    entries = [entry for category in words().values() for entry in category]
    assert sorted(entries) == sorted(set(entries))


def test_parse_prefers_the_longest_entry_and_covers_every_token() -> None:
    text = "the sound design was not at all sound ."
    assert [unit.phrase for unit in parse(text.split())] == ["the", "sound design", "was", "not at all", "sound", "."]
    assert [unit.category for unit in parse("not at zyx".split())] == ["negation", "at", "zyx"]


def test_grades_of_polarity() -> None:
    assert polarity()["adj+3"] == 1.1
    assert polarity()["adj-1"] == -0.4
    assert polarity()["verb-"] == -0.6
    assert "craft" not in polarity()
    assert "intensifier" not in polarity()


def test_every_symbol_of_the_templates_is_defined() -> None:
    defined = {*words(), *templates(), "film"} | {
        f"{name[:-1]}{grade:+d}" for name in templates() if name.endswith("~") for grade in GRADES
    }
    for rule, alternatives in templates().items():
        for symbol in re.findall(r"\$(\S+)", " ".join(alternatives)):
            marks = [f"{grade:+d}" for grade in GRADES] if symbol[-1] in "~!" else ["+", "-"]
            wanted = {symbol[:-1] + mark for mark in marks} if symbol[-1] in "~!^" else {symbol}
            assert wanted <= defined, (rule, symbol)


def test_count_repeats_by_hand() -> None:
    assert count_repeats([]) == 0
    assert count_repeats("it was slow and it was dull .".split()) == 0
    assert count_repeats("it was very very slow .".split()) == 2  # one adjacent pair, one further "very"
    # further content words: plot, slow; further trigrams: "the plot was", "plot was slow"
    assert count_repeats("the plot was slow , the plot was slow".split()) == 4
    assert count_repeats("of the of the of the".split()) == 2  # trigrams "of the of" and "the of the", each once more


def test_only_numpy_and_the_standard_library_are_imported() -> None:
    folder = Path(grammar.__file__).parent
    for path in folder.glob("*.py"):
        allowed = {*sys.stdlib_module_names, "numpy"} | ({"tokenizers"} if path.stem == "build_data" else set())
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            assert {name.split(".")[0] for name in names} <= allowed, path


def test_tokenizer_round_trip(corpus: list[Review], tokenizer: Tokenizer) -> None:
    for text in [*(review.text for review in corpus[:500]), "Été à la plage — 42 % !", "no   such\nspacing"]:
        assert tokenizer.decode(tokenizer.encode(text).ids).removeprefix(" ") == text


def test_ids_of_opening_and_body_join_to_the_ids_of_the_text(corpus: list[Review], tokenizer: Tokenizer) -> None:
    for review in corpus[:500]:
        parts = tokenizer.encode(review.opening).ids + tokenizer.encode(review.body).ids
        assert parts == tokenizer.encode(review.text).ids


def test_tokenizer_ids_and_sizes(corpus: list[Review], tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 4096
    assert (tokenizer.token_to_id("<pad>"), tokenizer.token_to_id("<eos>")) == (0, 1)
    bodies = [review.body for review in corpus[:5_000]]
    tokens = np.array([len(encoding.ids) for encoding in tokenizer.encode_batch(bodies)])
    assert tokens.sum() / sum(len(body.split()) for body in bodies) < 1.5
    assert np.mean(tokens <= 26) >= 0.98


@pytest.mark.slow
def test_shipped_tokenizer_is_a_fresh_build() -> None:
    assert TOKENIZER.read_text(encoding="utf-8") == build_tokenizer().to_str(pretty=False) + "\n"


def test_the_openings_file_is_what_the_grammar_draws():
    assert json.loads(OPENINGS.read_text(encoding="utf-8")) == build_openings()
