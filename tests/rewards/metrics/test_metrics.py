"""Metrics against the libraries they come from, against brute force, and by hand."""

import math

import numpy as np
import pytest

import rewards
from rewards.metrics.diversity import distinct_n
from textrl_env.episode import Episode
from textrl_env.prompts.prompt import Prompt

REFERENCES = ("the cat sat on the mat .", "a cat was on the mat .")
RESPONSES = [
    " the cat sat on the mat .",
    " The cat is on the mat.",
    " on the mat the cat sat .",
    " a dog",
    " the the the the the the the the the the the the",
    "",
]


def said(response, *references):
    return Episode.from_text("", response, references=references)


def scores(name, responses=RESPONSES, references=REFERENCES, **kwargs):
    return rewards.make(name, **kwargs).score([said(response, *references) for response in responses])


@pytest.mark.parametrize("kwargs", [{}, {"lowercase": True}, {"tokenize": "char"}])
def test_bleu_is_sacrebleus(kwargs):
    sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu is not installed: pip install 'textrl-env[metrics]'")
    found = scores("bleu", **kwargs)
    expected = [sacrebleu.sentence_bleu(r, list(REFERENCES), **kwargs, use_effective_order=True).score / 100 for r in RESPONSES]
    assert found == pytest.approx(expected, abs=1e-12) and found[0] == 1.0 and found[-1] == 0.0
    assert len(set(found)) > 3


def test_bleu_by_hand():
    # "a b d": 1-grams 2/3, 2-grams 1/2, 3-grams 0 of 1, smoothed to 1/2; no 4-grams; as long as the reference
    assert scores("bleu", ["a b d"], ["a b c"]) == pytest.approx([(2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3)])


@pytest.mark.parametrize("kwargs", [{}, {"word_order": 2}, {"lowercase": True}])
def test_chrf_is_sacrebleus_best(kwargs):
    sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu is not installed: pip install 'textrl-env[metrics]'")

    alone = np.array([[sacrebleu.CHRF(**kwargs).sentence_score(r, [ref]).score / 100 for ref in REFERENCES] for r in RESPONSES])
    assert scores("chrf", **kwargs) == pytest.approx(alone.max(1).tolist(), abs=1e-12)


def test_chrf_by_hand():
    # "ab" against "ac": 1-grams precision and recall 1/2, 2-grams 0; means over the 2 orders that both have, F2 of 1/4 and 1/4
    assert scores("chrf", ["ab"], ["ac"]) == pytest.approx([0.25])


def test_ter_by_hand():
    # references of 7 words: no edit; "on the mat" moves in one shift; "a dog" needs 5 insertions and 1 substitution
    found = scores("ter", ["the cat sat on the mat .", "on the mat the cat sat .", "a dog", "x " * 20, ""], REFERENCES[:1])
    assert found == pytest.approx([1.0, 1 - 1 / 7, 0.0, 0.0, 0.0])
    assert scores("ter", ["the cat sat on mat ."], REFERENCES) == pytest.approx([1 - 1 / 7])
    assert scores("ter", ["A b c"], ["a b c"]) == pytest.approx([2 / 3])
    assert scores("ter", ["A b c"], ["a b c"], lowercase=True) == [1.0]


@pytest.mark.parametrize("kwargs", [{"variant": "rouge1"}, {"variant": "rouge2", "stem": True}, {}, {"variant": "rougeLsum"}])
def test_rouge_is_rouge_scores_best(kwargs):
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="rouge-score is not installed: pip install 'textrl-env[metrics]'")
    variant = kwargs.get("variant", "rougeL")
    library = scorer.RougeScorer([variant], use_stemmer=kwargs.get("stem", False))
    expected = [max(library.score(ref, r)[variant].fmeasure for ref in REFERENCES) for r in RESPONSES]
    assert scores("rouge", **kwargs) == pytest.approx(expected)


def test_rouge_by_hand():
    # "cats b c" against "a cat b": 1 of 3 words, 2 of 3 with stems; the subsequence "cat b" has 2
    assert scores("rouge", ["cats b c"], ["a cat b"], variant="rouge1") == pytest.approx([1 / 3])
    assert scores("rouge", ["cats b c"], ["a cat b"], stem=True) == pytest.approx([2 / 3])


def test_rouge_does_not_score_a_script_that_it_cannot_read():
    with pytest.raises(ValueError, match="rouge finds none of a to z"):
        scores("rouge", ["電影很好"], ["電影很好"])


@pytest.fixture
def wordnet_folder(tmp_path, monkeypatch):
    """An empty folder where alone NLTK looks for its data, and a WordNet that was not loaded yet."""
    nltk = pytest.importorskip("nltk", reason="nltk is not installed: pip install 'textrl-env[metrics]'")
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    no_other_languages = LazyCorpusLoader("omw-1.4", WordNetCorpusReader)
    wordnet = LazyCorpusLoader("wordnet", WordNetCorpusReader, no_other_languages)
    monkeypatch.setattr(nltk.corpus, "wordnet", wordnet)
    yield tmp_path / "corpora" / "wordnet"
    for file in vars(wordnet).get("_data_file_map", {}).values():  # NLTK leaves them open
        file.close()


def write_wordnet(folder, words):
    """A WordNet of one synset in the format of its database, see wndb(5WN)."""
    folder.mkdir(parents=True)
    head = "  1 WordNet 3.0 Copyright\n"
    for part in ("noun", "verb", "adj", "adv"):
        for kind in ("data", "index"):
            (folder / f"{kind}.{part}").write_text(head)
        (folder / f"{part}.exc").write_text("")
    offset = len(head)
    lemmas = " ".join(f"{word} 0" for word in words)
    (folder / "data.noun").write_text(f"{head}{offset:08d} 06 n {len(words):02d} {lemmas} 000 | a gloss  \n")
    (folder / "index.noun").write_text(head + "".join(f"{word} n 1 0 1 0 {offset:08d}  \n" for word in sorted(words)))
    (folder / "lexnames").write_text("".join(f"{number:02d}\tfile.{number}\t1\n" for number in range(45)))
    for name in ("cntlist.rev", "index.sense"):
        (folder / name).write_text("")


def test_meteor_without_wordnet_says_how_to_get_it(wordnet_folder):
    with pytest.raises(FileNotFoundError, match=r"python -m nltk.downloader wordnet.*NLTK_DATA.*looked in"):
        rewards.make("meteor")


def test_meteor_by_hand(wordnet_folder):
    write_wordnet(wordnet_folder, ["film", "show"])
    # m matches in c chunks, precision and recall P = R = m / 4: F = P, times 1 - (c / m)^3 / 2
    found = scores("meteor", ["The film was good", "the show was good", "good was the film", "a dog", ""], ["the film was good"])
    assert found == pytest.approx([1 - 1 / 128, 1 - 1 / 128, 1 - 27 / 128, 0.0, 0.0])
    # P = 1/2, R = 1: F = 10 P R / (R + 9 P) = 10/11, one chunk of one match
    assert scores("meteor", ["films here"], ["film"]) == pytest.approx([10 / 11 * 0.5])
    assert scores("meteor", ["film"], ["dog", "show"]) == pytest.approx([0.5])


def brute_force_cider(response, references, documents):
    total = 0.0
    for n in (1, 2, 3, 4):

        def grams(text, n=n):
            words = text.lower().split()
            return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]

        vocabulary = sorted({g for text in [response, *references, *(t for d in documents for t in d)] for g in grams(text)})
        idf = np.array([math.log(len(documents) / max(1, sum(any(g in grams(t) for t in d) for d in documents))) for g in vocabulary])

        def vector(text, vocabulary=vocabulary, idf=idf, grams=grams):
            counts = np.array([grams(text).count(g) for g in vocabulary], float)
            return counts / max(counts.sum(), 1) * idf

        for reference in references:
            a, b = vector(response), vector(reference)
            norm = np.linalg.norm(a) * np.linalg.norm(b)
            total += (a @ b / norm if norm else 0.0) / len(references) / 4
    return total


CORPUS = [["the cat sat on the mat", "a cat on a mat"], ["a dog ran in the park"], ["the dog sat", "a dog sat in the park"]]


def test_cider_is_brute_force():
    responses = ["the cat sat on a mat", "a dog sat", "The THE the", "zebra", "", "the cat sat on the mat"]
    found = scores("cider", responses, CORPUS[0], corpus=CORPUS)
    assert found == pytest.approx([brute_force_cider(r, CORPUS[0], CORPUS) for r in responses]) and len(set(found)) > 3
    episodes = [said(r, *CORPUS[i % 3]) for i, r in enumerate(responses)]
    expected = [brute_force_cider(e.response, e.references, CORPUS) for e in episodes]
    assert rewards.make("cider").score(episodes) == pytest.approx(expected)  # the batch's references, each set once


def test_cider_by_hand():
    # two documents without a common word: every IDF is log 2; "a b" equals itself at n = 1 and 2 and has no longer n-grams
    corpus = ["a b", "c d e f"]
    assert scores("cider", ["a b", "c d e f", "a c"], ["a b"], corpus=corpus) == pytest.approx([0.5, 0.0, 1 / 2 / 4])
    assert scores("cider", ["c d e f"], ["c d e f"], corpus=corpus) == pytest.approx([1.0])


def test_cider_reads_a_corpus_from_a_file_and_needs_more_than_one_document(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("a b\nc d e f\n")
    assert scores("cider", ["a b"], ["a b"], corpus=str(path)) == pytest.approx([0.5])
    for corpus in (["a b"], []):
        with pytest.raises(ValueError, match=f"{len(corpus)} tell nothing: give corpus="):
            rewards.make("cider", corpus=corpus)
    with pytest.raises(ValueError, match="1 tell nothing"):
        scores("cider")
    with pytest.raises(TypeError, match="corpus holds 3"):
        rewards.make("cider", corpus=["a", 3])


def test_distinct_n_by_hand():
    # bigrams: (a b) (b a) (a b) | (a b) | none -> 2 different among 4
    assert distinct_n(["a b a b", "a b", "c"], 2) == 0.5
    assert distinct_n(["", "a"], 2) == 0.0
    assert distinct_n(["a a b"], 1) == pytest.approx(2 / 3)


def test_distinct_by_hand():
    texts = ["a b a b", "a b", "c", "c d"]
    assert scores("distinct", texts) == pytest.approx([2 / 3, 1.0, 0.0, 1.0])
    # (a b) occurs 3 times in the batch, (b a) and (c d) once
    assert scores("distinct", texts, over="batch") == pytest.approx([(1 / 3 + 1 + 1 / 3) / 3, 1 / 3, 0.0, 1.0])


def test_distinct_over_the_batch_averages_to_distinct_n():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdef"), rng.integers(0, 12))) for _ in range(30)]
    for n in (1, 2, 3):
        weights = [max(len(text.split()) - n + 1, 0) for text in texts]
        found = scores("distinct", texts, n=n, over="batch")
        assert np.dot(found, weights) / sum(weights) == pytest.approx(distinct_n(texts, n))


def test_self_bleu_is_sacrebleus_against_the_others():
    sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu is not installed: pip install 'textrl-env[metrics]'")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["the", "a", "cat,", "sat.", "the"], rng.integers(1, 10))) for _ in range(25)]
    texts += ["same same words here", "same same words here", "alone"]
    bleu = sacrebleu.BLEU(effective_order=True)
    expected = [1 - bleu.sentence_score(t, texts[:i] + texts[i + 1 :]).score / 100 for i, t in enumerate(texts)]
    assert scores("self_bleu", texts) == pytest.approx(expected, abs=1e-12)
    assert expected[-3:] == pytest.approx([0.0, 0.0, 1.0]) and np.std(expected) > 0.2


def test_self_bleu_of_nothing():
    assert scores("self_bleu", ["", "a b", "c d"]) == [0.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="got one"):
        scores("self_bleu", ["a b"])


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("bleu", {"tokenize": "none such"}),
        ("chrf", {"word_order": -1}),
        ("rouge", {"variant": "rougeX"}),
        ("distinct", {"n": 0}),
        ("distinct", {"over": "all"}),
    ],
)
def test_arguments_are_checked(name, kwargs):
    with pytest.raises(ValueError, match=f"{next(iter(kwargs))}="):
        rewards.make(name, **kwargs)


@pytest.mark.reports("cider without a corpus counts in the references of its task: a text scores the same alone as among others")
def test_cider_counts_in_the_references_of_its_task():
    prompts = [Prompt(str(i), tuple(references)) for i, references in enumerate(CORPUS)]
    episodes = [said(r, *CORPUS[i % 3]) for i, r in enumerate(["the cat sat on a mat", "a dog sat", "the dog sat in the park"])]
    expected = [brute_force_cider(e.response, e.references, CORPUS) for e in episodes]
    model = rewards.make("cider")
    model.see_prompts(prompts)
    assert model.score(episodes) == pytest.approx(expected) == [model.score([episode])[0] for episode in episodes]
    model.see_prompts(prompts[:2])  # another task: the reward stays what it is
    assert model.score(episodes) == pytest.approx(expected)
    with pytest.raises(ValueError, match="1 tell nothing: give corpus= with many, or a task"):
        rewards.make("cider").see_prompts(prompts[:1])
