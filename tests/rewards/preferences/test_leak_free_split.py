"""No text, and no prompt that says anything, is on both sides of a split."""

import numpy as np
import pytest

from rewards import Preference, Ranking
from rewards.preferences.leak_free_split import hold_out, overlapping


def texts_of(comparisons):
    """What a model reads, and the responses alone, with case and white space evened out."""
    found = set()
    for c in comparisons:
        for response in getattr(c, "responses", None) or (c.chosen, c.rejected):
            found |= {" ".join(text.lower().split()) for text in (response, c.prompt + response)}
    return found


def split_of(comparisons, share=0.1, seed=0):
    """The two sides, checked to be two sides."""
    order = np.random.default_rng(seed).permutation(len(comparisons)).tolist()
    split = hold_out(comparisons, order, share)
    assert split is not None and split.held and split.kept
    assert len({*split.held, *split.kept}) == len(split.held) + len(split.kept) == len(comparisons) - split.dropped
    assert split.held == [i for i in order if i in split.held] and split.kept == [i for i in order if i in split.kept]
    held, kept = ([comparisons[i] for i in side] for side in (split.held, split.kept))
    assert not texts_of(held) & texts_of(kept)
    if split.prompts_apart:
        assert not {c.prompt for c in held} & {c.prompt for c in kept} - {""}
    return split, held, kept


def compared(number, texts, prompt="", seed=0):
    """Comparisons of texts that each recur in several."""
    rng = np.random.default_rng(seed)
    drawn = [rng.choice(texts, 2, replace=False) for _ in range(number)]
    second = ("sentence {}", "Sentence  {} ")  # the same, by and by
    return [Preference(prompt.format(i), f"sentence {a}", second[i % 2].format(b)) for i, (a, b) in enumerate(drawn)]


@pytest.mark.reports("Held-out comparisons share no text with those learned from; those between the two are dropped and counted")
@pytest.mark.parametrize("prompt", ["", "Which sentence is better?", "question {}"])
@pytest.mark.parametrize("texts", [100, 600, 5000])
def test_no_text_is_on_both_sides(texts, prompt):
    comparisons = compared(1000, texts, prompt)
    split, held, kept = split_of(comparisons)
    assert 50 <= len(held) <= 110 and len(kept) >= 500
    assert split.prompts_apart == (prompt != "Which sentence is better?")
    ours = texts_of(held)
    crossing = [c for i, c in enumerate(comparisons) if i not in {*split.held, *split.kept}]
    assert all(texts_of([c]) & ours for c in crossing)  # nothing is dropped without need
    assert bool(crossing) == (texts < 1000)


def test_what_hangs_together_is_taken_whole():
    comparisons = [Preference("", f"a {i // 5}", f"b {i}") for i in range(200)]  # 40 texts, each in five comparisons
    split, held, _ = split_of(comparisons)
    assert split.dropped == 0 and len(held) == 20 and len({c.chosen for c in held}) == 4


@pytest.mark.parametrize("prompt", ["p {}", "", "the same one"])
def test_distinct_comparisons_are_held_out_in_order(prompt):
    order = np.random.default_rng(0).permutation(50).tolist()
    split = hold_out([Preference(prompt.format(i), f"a{i}", f"b{i}") for i in range(50)], order, 0.1)
    assert (split.held, split.kept, split.dropped, split.prompts_apart) == (order[:5], order[5:], 0, prompt != "the same one")


def test_a_chain_is_cut_at_two_places():
    split, held, _ = split_of([Preference("", f"link {i}", f"link {i + 1}") for i in range(300)])
    assert split.dropped == 2 and len(held) == 30


@pytest.mark.reports("Prompts are on one side of a split; an empty prompt and a template join nothing")
def test_prompts_are_on_one_side_but_templates_join_nothing():
    asked = [Preference(f"p{i % 60}", f"a{i}", f"b{i}") for i in range(200)]
    assert split_of(asked)[0].prompts_apart and split_of(asked)[0].dropped == 0
    eight = [Preference(f"p{i % 8}", f"a{i}", f"b{i}") for i in range(320)]
    split, held, _ = split_of(eight)  # 40 to a prompt, where 32 are wanted
    assert split.prompts_apart and len(held) == 40 and split.dropped == 0
    two = [Preference(f"p{i % 2}", f"a{i}", f"b{i}") for i in range(320)]
    split, held, _ = split_of(two)
    assert not split.prompts_apart and len(held) == 32
    mostly = [Preference("p" if i % 4 else f"p{i}", f"a{i}", f"b{i}") for i in range(320)]
    split, held, _ = split_of(mostly)  # the held-out side is not of odd prompts alone
    assert not split.prompts_apart and 15 <= sum(c.prompt == "p" for c in held) < 32


@pytest.mark.reports("Where one text is in all comparisons, nothing is called held out")
def test_where_all_hangs_together_there_is_no_split():
    order = list(range(100))
    assert hold_out([Preference("", "the hub", f"b{i}") for i in range(100)], order, 0.2) is None
    assert hold_out([Preference(f"{i}", "yes", "no") for i in range(100)], order, 0.2) is None


def test_rankings_and_whole_texts():
    rankings = [Ranking(f"{i}", tuple(f"text {(7 * i + k) % 90}" for k in range(3))) for i in range(60)]
    split_of(rankings, 0.2)
    order = list(range(20))
    moved = [Preference("the film" if i else "", " was good" if i else "The film was good", f"b{i}") for i in range(2)]
    split = hold_out([*moved, *(Preference("", f"c{i}", f"d{i}") for i in range(18))], order, 0.1)
    assert split.held == [0, 1]  # one text, with its beginning in the prompt or in the response


@pytest.mark.reports("A test file's comparisons that share a text or a prompt with the training file are found")
def test_overlap_of_two_files():
    train = [Preference("same", f"a{i}", f"b{i}", annotator="x") for i in range(50)] + [Preference("rare", "r", "s")]
    test = [Preference("same", f"c{i}", f"d{i}") for i in range(20)]
    assert overlapping(train, test) == []
    leaks = [Preference("other", " A7 ", "new"), Preference("same", "x", "B3"), Preference("Rare", "y", "z")]
    assert overlapping(train, [*test[:5], *leaks, *test[5:]]) == [5, 6, 7]
