import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest

from rewards.rules.text_rules import (
    ForbiddenReward,
    KeywordReward,
    KnownWordsReward,
    LengthReward,
    RegexReward,
    RepetitionReward,
    VaderReward,
)
from textrl_env.episode import Episode


def said(text):
    return Episode.from_text("a prompt that is good, good, good:", text)


def with_tokens(count, finish_reason):
    ids = np.arange(count)
    return Episode("", "x", ids[:0], ids, np.ones(count, bool), finish_reason)


def test_vader_follows_the_published_normalisation():
    # one lexicon word of valence v scores v / sqrt(v^2 + 15); "good" has 1.9, "horrible" -2.5
    scores = VaderReward().score([said("good"), said("horrible"), said("table"), said("")])
    assert scores == pytest.approx([1.9 / (1.9**2 + 15) ** 0.5, -2.5 / (2.5**2 + 15) ** 0.5, 0.0, 0.0], abs=1e-4)


def test_vader_hears_negation_and_only_the_response():
    plain, negated = VaderReward().score([said("the plot was good"), said("the plot was not good")])
    assert plain > 0 > negated


def test_vader_reads_its_lexicon_once():
    reward = VaderReward()
    assert reward._analyzer is reward._analyzer


@pytest.mark.parametrize(("n", "score"), [(10, 1.0), (5, 0.5), (15, 0.5), (0, 0.0), (20, 0.0), (35, 0.0), (9, 0.9)])
def test_length_falls_in_a_straight_line(n, score):
    assert LengthReward(target=10).score([said("word " * n)]) == pytest.approx([score])


def test_length_counts_tokens_without_the_end():
    assert LengthReward(target=4).score([with_tokens(5, "eos"), with_tokens(4, "length")]) == [1.0, 1.0]


@pytest.mark.parametrize(("target", "error"), [(0, ValueError), (-3, ValueError), (2.5, TypeError), (True, TypeError)])
def test_length_refuses(target, error):
    with pytest.raises(error, match="target="):
        LengthReward(target=target)


def test_keywords_are_whole_words_in_any_case():
    reward = KeywordReward(["Plot", "cast", "c++", "long story"])
    texts = ["the PLOT.", "plotted castle", "c++ and a Long Story, plot; cast", "plot plot plot", ""]
    assert reward.score([said(t) for t in texts]) == [0.25, 0.0, 1.0, 0.25, 0.0]


@pytest.mark.parametrize(("keywords", "error"), [("plot", TypeError), ([], ValueError), ([" "], ValueError), ([3], TypeError)])
def test_keywords_refuse(keywords, error):
    with pytest.raises(error, match="keywords="):
        KeywordReward(keywords)


def test_regex_searches():
    assert RegexReward(r"\d{2}").score([said("in 1999"), said("in 9")]) == [1.0, 0.0]
    assert RegexReward("PLOT", ignore_case=True).score([said("a plot")]) == [1.0]
    assert RegexReward(r"\Aplot\Z").score([said("a plot"), said("plot")]) == [0.0, 1.0]


@pytest.mark.parametrize(("pattern", "error"), [("(", ValueError), (3, TypeError)])
def test_regex_refuses(pattern, error):
    with pytest.raises(error, match="pattern="):
        RegexReward(pattern)


RULES = [VaderReward(), LengthReward(7), KeywordReward(["a", "b"]), RegexReward("a+", ignore_case=True)]
WRITTEN = [
    "VaderReward()",
    "LengthReward(target=7)",
    "KeywordReward(['a', 'b'])",
    "RegexReward('a+', ignore_case=True)",
]


@pytest.mark.parametrize(("rule", "written"), list(zip(RULES, WRITTEN, strict=True)))
def test_rules_copy_as_themselves_pickle_and_print(rule, written):
    episodes = [said("a good day"), said("b")]
    scores = rule.score(episodes)
    assert copy.deepcopy({"reward": rule})["reward"] is rule
    assert pickle.loads(pickle.dumps(rule)).score(episodes) == scores
    assert all(type(s) is float for s in scores)
    assert repr(rule) == written
    assert rule.score([]) == []


def test_rules_and_data_need_no_torch():
    code = "import sys, rewards, rewards.rules.text_rules, rewards.preferences.preference, rewards.rules.verifiers"
    code += ", rewards.metrics.ngram_overlap, rewards.metrics.cider, rewards.analysis.reward_checks"
    code += "; [rewards.make(name).score([]) for name in ('vader', 'numeric', 'bleu', 'rouge', 'cider', 'distinct')]"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=__file__.rsplit("/tests/", 1)[0])


def test_forbidden_words_are_whole_words_in_any_case():
    texts = ["it was fine", "it was Awful.", "awfully good", "a waste  of time", "a Waste of Time", ""]
    assert ForbiddenReward(["awful", "waste of time"]).score([said(t) for t in texts]) == [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]


def test_repetition_by_hand():
    # bigrams of "a b a b a": (a b) (b a) (a b) (b a), 2 new of 4; "a a a a": 1 of 3
    texts = ["a b a b a", "a a a a", "a b c", "a", ""]
    assert RepetitionReward(n=2).score([said(t) for t in texts]) == pytest.approx([0.5, 1 / 3, 1.0, 1.0, 1.0])


def test_repetition_counts_tokens_without_the_end():
    ids = np.array([3, 3, 4, 1])
    texts = [Episode("", "x", ids[:0], ids, np.ones(4, bool), reason) for reason in ("eos", "length")]
    assert RepetitionReward(n=1).score(texts) == pytest.approx([2 / 3, 3 / 4])


def test_known_words_by_hand():
    known = ["The", "film", "don't", "é"]
    texts = ["the film's plot", "THE FILM, 1999!", "don\u2019t don't dont", "é e", "...", ""]
    assert KnownWordsReward(known).score([said(t) for t in texts]) == pytest.approx([2 / 3, 1.0, 2 / 3, 0.5, 0.0, 0.0])


def test_known_words_of_a_file(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes("\ufefffilm\r\n\r\nplot\n".encode())
    assert KnownWordsReward(str(path)).score([said("a film, a plot")]) == [0.5]
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no lines"):
        KnownWordsReward(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="UTF-8"):
        KnownWordsReward(path)


def test_known_words_by_default_are_english():
    pytest.importorskip("spellchecker", reason="pyspellchecker is not installed: pip install 'textrl-env[metrics]'")
    assert KnownWordsReward().score([said("The color of this film isn't grey"), said("zxqv the")]) == [1.0, 0.5]


@pytest.mark.parametrize(
    ("rule", "kwargs", "error"),
    [
        (ForbiddenReward, {"words": "awful"}, TypeError),
        (ForbiddenReward, {"words": []}, ValueError),
        (KnownWordsReward, {"words": [" "]}, ValueError),
        (KnownWordsReward, {"words": [3]}, TypeError),
        (RepetitionReward, {"n": 0}, ValueError),
        (RepetitionReward, {"n": 2.0}, TypeError),
    ],
)
def test_the_rules_of_words_refuse(rule, kwargs, error):
    with pytest.raises(error, match=f"{next(iter(kwargs))}="):
        rule(**kwargs)
