"""The gold annotator: attributes by hand, degenerate texts at the bottom, and noise whose size is known."""

import math
import time

import numpy as np
import pytest

from textrl_env.tasks.review.annotator import Attributes, SimulatedAnnotator, attributes, gold_score
from textrl_env.tasks.review.coherence import coherence
from textrl_env.tasks.review.grammar import Review, split
from textrl_env.tasks.review.lexicon import parse

PROMPT = "the second act of amber lake"
SUPERB, DULL, SLOW = 1.1, -0.75, -0.4  # grades 3, 2 and 1

DEGENERATE = [
    "superb superb superb superb",
    "superb superb superb superb .",
    "wonderful and wonderful and wonderful and wonderful",
    "was wonderful and wonderful and wonderful and wonderful .",
    "was " + "wonderful and " * 9 + "wonderful .",
    "very very very very very very superb .",
    "marta lind oslo baker violin script lighthouse comedy",
    "in fairness in fairness in fairness in fairness .",
    "the the the the the the the the",
    "of the of the of the of the .",
    "superb brilliant moving tender witty wise dazzling",
    "zq xv zq kk jj",
    ".",
    "\ufffd\ufffd \x00 \U0001f3ac",
    "",
]


@pytest.fixture(scope="module")
def reviews() -> list[Review]:
    return split("test", 3_000)


@pytest.fixture(scope="module")
def utilities(reviews: list[Review]) -> np.ndarray:
    return _scores(reviews)


def _scores(reviews: list[Review]) -> np.ndarray:
    return gold_score([review.opening for review in reviews], [review.body for review in reviews])


@pytest.mark.parametrize(
    ("response", "total"),
    [
        ("was dull .", DULL),
        ("Was DULL.", DULL),
        ("was very dull .", 1.3 * DULL),
        ("was somewhat slow .", 0.6 * SLOW),
        ("was not dull .", -0.8 * DULL),
        ("was not very dull .", -0.8 * 1.3 * DULL),
        ("was not dull and it was slow .", -0.8 * DULL + SLOW),  # a negation ends with its clause
        ("was more superb than dull .", SUPERB - 0.8 * DULL),
        ("was very , dull .", DULL),
        ("the film paid off .", 0.6),
        ("was long ago in a zyx .", -0.4),
        ("the plot .", 0.0),
    ],
)
def test_sentiment_by_hand(response: str, total: float) -> None:
    assert attributes(PROMPT, response).sentiment == pytest.approx(math.tanh(total))


def test_praise_stops_paying_after_two_words() -> None:
    one, two, six = (
        attributes(PROMPT, text).sentiment
        for text in ("superb .", "superb , brilliant .", "superb , brilliant , dazzling , moving , tender , witty .")
    )
    assert two - one > 0.15
    assert six - two < 0.03


def test_specificity_counts_distinct_terms_up_to_four() -> None:
    def specificity(text: str) -> float:
        return attributes(PROMPT, text).specificity

    assert specificity("the script was dull .") == 0.25
    assert specificity("the script , the script , the script .") == 0.25
    assert specificity("the script in the kitchen in lisbon .") == 0.75
    assert specificity("the script , costumes , violin , lisbon , kitchen and baker .") == 1.0


def test_politeness_is_capped_and_insults_cancel_courtesies() -> None:
    def politeness(text: str) -> float:
        return attributes(PROMPT, text).politeness

    assert politeness("in fairness , it was dull .") == 1
    assert politeness("in fairness , with respect , it was dull .") == 1
    assert politeness("give me a break , it was dull .") == -1
    assert politeness("in fairness , it was dull . give me a break .") == 0


def test_repetition_is_a_third_per_repeat_and_capped() -> None:
    assert attributes(PROMPT, "it was very very dull .").repetition == pytest.approx(2 / 3)
    assert attributes(PROMPT, "dull " * 100).repetition == 4.0


def test_the_prompt_earns_nothing() -> None:
    body = "was dull , and it felt slow ."
    rude = attributes("give me a break , superb marta", body)
    neutral = attributes(PROMPT, body)
    assert (rude.sentiment, rude.specificity, rude.politeness) == (neutral.sentiment, 0, 0)


def test_coherence_of_fragments_truncation_and_shuffles(reviews: list[Review]) -> None:
    rng = np.random.default_rng(0)
    whole, cut, shuffled = [], [], []
    for review in reviews[:300]:
        prompt, tokens = parse(review.opening.split()), review.body.split()
        whole.append(coherence(prompt, parse(tokens)))
        cut.append(coherence(prompt, parse(tokens[:-1])))
        shuffled.append(coherence(prompt, parse([tokens[i] for i in rng.permutation(len(tokens))])))
    assert np.mean(whole) > 0.98
    assert np.mean(whole) - np.mean(cut) > 0.15
    assert np.mean(shuffled) < 0.35
    assert coherence(parse(PROMPT.split()), []) == 0


def test_utility_by_hand() -> None:
    seen = Attributes(sentiment=0.5, specificity=0.25, politeness=1.0, repetition=0.5, coherence=0.75)
    # 0.85 * 0.5 + 1.2 * 0.25 + 0.5 * 1 - 0.8 * 0.5 + 4 * (0.75 - 1) - 0.3
    assert seen.utility == pytest.approx(-0.475)


def test_utility_is_centred_with_unit_spread(utilities: np.ndarray) -> None:
    assert abs(utilities.mean()) < 0.1
    assert utilities.std() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("name", "recovery", "contribution"),
    [
        ("sentiment", 0.9, 0.6),
        ("specificity", 0.8, 0.35),
        ("politeness", 0.99, 0.3),
        ("repetition", 0.85, -0.2),
    ],
)
def test_each_latent_is_recovered_and_counts(
    reviews: list[Review], utilities: np.ndarray, name: str, recovery: float, contribution: float
) -> None:
    seen = [getattr(attributes(review.opening, review.body), name) for review in reviews]
    latent = [getattr(review.attributes, name) for review in reviews]
    assert np.corrcoef(seen, latent)[0, 1] > recovery
    assert np.corrcoef(seen, utilities)[0, 1] * np.sign(contribution) > abs(contribution)


def test_the_order_of_fluent_reviews(reviews: list[Review], utilities: np.ndarray) -> None:
    sentiment = np.array([review.attributes.sentiment for review in reviews])
    positive, negative = utilities[sentiment > 0.2].mean(), utilities[sentiment < -0.2].mean()
    mixed = utilities[np.abs(sentiment) < 0.2].mean()
    assert positive > mixed + 0.5
    assert mixed > negative + 0.5


@pytest.mark.parametrize("response", DEGENERATE)
def test_degenerate_text_scores_below_an_average_fluent_pan(response: str, reviews: list[Review], utilities: np.ndarray) -> None:
    negative = utilities[[review.attributes.sentiment < -0.2 for review in reviews]].mean()
    score = gold_score([PROMPT], [response])[0]
    assert math.isfinite(score)
    assert score < negative - 0.2


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("was dull , and in fairness , it was slow .", "was dull , and oh please , it was slow ."),
        ("was superb . the script by marta lind was moving .", "was superb . the whole thing was moving ."),
        ("was superb , and it was dazzling .", "was superb , and it was superb ."),
        ("was superb , and it was moving .", "was superb , and it was"),
    ],
)
def test_one_attribute_at_a_time(better: str, worse: str) -> None:
    high, low = gold_score([PROMPT] * 2, [better, worse])
    assert high > low + 0.1


def test_boltzmann_probability_by_hand() -> None:
    a, b = "was dull , and it was slow .", "was superb , and it was moving ."
    low, high = gold_score([PROMPT] * 2, [a, b])
    annotator = SimulatedAnnotator(np.random.default_rng(0), temperature=high - low)
    assert annotator.probability([PROMPT] * 3, [a, b, a], [b, a, a]) == pytest.approx([0.7310586, 0.2689414, 0.5])
    assert annotator.best_accuracy([PROMPT] * 3, [a, b, a], [b, a, a]) == pytest.approx((2 * 0.7310586 + 0.5) / 3)
    frequency = annotator.compare([PROMPT] * 4_000, [a] * 4_000, [b] * 4_000).mean()
    assert frequency == pytest.approx(0.7310586, abs=4 * math.sqrt(0.73 * 0.27 / 4_000))


def test_tiny_temperature_gives_the_sign_without_overflow() -> None:
    a, b = "was dull , and it was slow .", "was superb , and it was moving ."
    annotator = SimulatedAnnotator(np.random.default_rng(0), temperature=1e-9)
    assert annotator.compare([PROMPT] * 2, [a, b], [b, a]).tolist() == [1, 0]


def test_comparisons_are_seeded(reviews: list[Review]) -> None:
    prompts, bodies = [review.opening for review in reviews[:400]], [review.body for review in reviews[:400]]

    def draw(seed: int) -> list[int]:
        return SimulatedAnnotator(np.random.default_rng(seed)).compare(prompts, bodies, bodies[::-1]).tolist()

    assert draw(0) == draw(0) != draw(1)


def test_default_temperature_allows_85_percent(reviews: list[Review]) -> None:
    prompts, bodies = [review.opening for review in reviews], [review.body for review in reviews]
    best = SimulatedAnnotator(np.random.default_rng(0)).best_accuracy(prompts, bodies, bodies[1:] + bodies[:1])
    assert best == pytest.approx(0.85, abs=0.01)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_bad_temperatures_are_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature is {temperature}"):
        SimulatedAnnotator(np.random.default_rng(0), temperature)


def test_unequal_lengths_and_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="2 prompts for 1 responses"):
        gold_score([PROMPT] * 2, ["was dull ."])
    with pytest.raises(ValueError, match="0 pairs"):
        SimulatedAnnotator(np.random.default_rng(0)).best_accuracy([], [], [])


def test_scores_5000_texts_per_second(reviews: list[Review], utilities: np.ndarray) -> None:
    start = time.process_time()
    again = _scores(reviews)  # the fixture has built the caches
    assert len(reviews) / (time.process_time() - start) > 5_000
    np.testing.assert_array_equal(again, utilities)
