"""Verifiers of answers: what they find in a text, and what no text makes them do."""

import copy
import pickle
import sys
import time
from fractions import Fraction

import numpy as np
import pytest

import rewards
from rewards.rules.numeric import find_answer
from rewards.rules.verifiers import normalised
from textrl_env.episode import Episode
from textrl_env.reward_model import RewardError, as_reward_model, checked_scores


def said(response, *references):
    return Episode.from_text("a question", response, references=references)


def scores(name, *responses, **kwargs):
    return rewards.make(name, **kwargs).score([said(response) for response in responses])


def against(name, reference, *responses, **kwargs):
    return rewards.make(name, **kwargs).score([said(response, reference) for response in responses])


@pytest.mark.parametrize(
    ("name", "kwargs", "module", "message"),
    [
        ("known_words", {}, "spellchecker", "pyspellchecker"),
        ("json", {"schema": {}}, "jsonschema", "jsonschema"),
        ("bleu", {}, "sacrebleu.metrics", "sacrebleu"),
        ("rouge", {}, "rouge_score.rouge_scorer", "rouge-score"),
        ("meteor", {}, "nltk", "nltk"),
    ],
)
def test_missing_libraries_are_named(monkeypatch, name, kwargs, module, message):
    monkeypatch.setitem(sys.modules, module, None)  # what Python itself does to block an import
    with pytest.raises(ImportError, match=rf"{name}.* needs {message}: pip install 'textrl-env\[metrics\]'"):
        rewards.make(name, **kwargs)


@pytest.mark.parametrize(
    ("name", "kwargs", "error"),
    [
        ("numeric", {"tolerance": -1}, ValueError),
        ("numeric", {"tolerance": float("nan")}, ValueError),
        ("choice", {"letters": "A"}, ValueError),
        ("choice", {"letters": "AaB"}, ValueError),
        ("choice", {"letters": "A1"}, ValueError),
        ("json", {"schema": "[]"}, TypeError),
        ("json", {"schema": {"type": "number or so"}}, ValueError),
        ("json", {"schema": {"$ref": "#"}}, ValueError),
        ("json", {"schema": {"$ref": "#/nowhere"}}, ValueError),
        ("json", {"schema": {"$ref": "http://example.com/schema"}}, ValueError),
    ],
)
def test_arguments_are_checked(name, kwargs, error):
    with pytest.raises(error, match=f"{next(iter(kwargs))}="):
        rewards.make(name, **kwargs)


@pytest.mark.parametrize("name", ["exact_match", "numeric", "choice", "bleu", "chrf", "ter", "rouge", "cider"])
def test_without_references_the_error_names_metric_and_cure(name):
    with pytest.raises(RewardError, match=rf"{name} compares with references.*'a question' has none.*Prompt\(text, references="):
        checked_scores(rewards.make(name), [said("x")])


def test_one_string_is_no_tuple_of_references():
    with pytest.raises(TypeError, match=r"give a tuple of texts, such as \('abc',\)"):
        rewards.make("exact_match").score([Episode.from_text("", "a", references="abc")])


def test_exact_match():
    assert against("exact_match", "The Cat.", " The Cat.\n", "the cat", "The  Cat.") == [1.0, 0.0, 0.0]
    assert against("exact_match", "The Cat.", "a cat", " cat!", "catthe", "the the CAT", "cats", normalise=True) == [1, 1, 0, 1, 0]
    assert rewards.make("exact_match").score([said("b", "a", "b"), said("", "a", "")]) == [1.0, 1.0]


def test_squad_normalisation_keeps_its_order():
    # lower case, punctuation away, articles away, spaces: "A.D." becomes "ad", "a-b" becomes "ab", "An-" becomes the article "an"
    assert normalised(" The A.D.  a-b An- end, anthem") == "ad ab end anthem"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The answer is 72.", 72),
        ("first 3, then 4", 4),
        ("x = -3", -3),
        ("10-5", 5),
        ("(\u22124)", -4),
        ("it costs $1,234,567.50 in all", Fraction(2469135, 2)),
        ("-$3", -3),
        ("$-3", -3),
        (r"\$5", 5),
        ("1_000", 1000),
        ("1{,}000", 1000),
        (r"10\,000", 10000),
        ("12\u202f345", 12345),
        ("1,2345", 2345),
        (".5", Fraction(1, 2)),
        ("3.", 3),
        ("1.5e-3", Fraction(3, 2000)),
        ("3/4", Fraction(3, 4)),
        ("-3 / 4", Fraction(-3, 4)),
        ("1 1/2 cups", Fraction(3, 2)),
        ("1.5/2", Fraction(3, 4)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"-\dfrac{1}{2}", Fraction(-1, 2)),
        (r"2\frac12", Fraction(5, 2)),
        (r"so \boxed{x = 5}, not 7", 5),
        (r"\boxed{1} or \boxed{\frac{7}{20}}", Fraction(7, 20)),
        ("5 and 6\n#### 1,000 apples, 3 left over", 1000),
        ("#### 3\n#### 4", 4),
        ("5kg", 5),
        ("H2O", None),
        ("####", None),
        (r"7 \boxed{x}", None),
        (r"\boxed{5\sqrt{2}}", None),
        (r"\boxed{7^{10}}", None),
        (r"\boxed{(9,2)}", None),
        (r"\boxed{\frac{\pi}{2}}", None),
        (r"\boxed{x^2 + 1}", None),
        (r"\boxed{2x}", None),
        (r"\boxed{5 - 2}", None),
        (r"\boxed{12\text{ cm}^2}", 12),
        (r"\boxed{90^{\circ}}", 90),
        (r"\boxed{\$1{,}234.50}", Fraction(2469, 2)),
        (r"\boxed{\mathbf{7}}", 7),
        (r"\boxed{1\frac{1}{2} \text{ hours}}", Fraction(3, 2)),
        ("1/0", None),
        ("1e9999", None),
        ("9" * 2000, None),
        ("no number", None),
        ("", None),
    ],
)
def test_the_answer_in_a_text(text, value):
    number = find_answer(text)
    assert (None if number is None else number.value) == value


def test_numeric_compares_within_the_tolerance():
    assert against("numeric", "work ... #### 1,000", "it is 1000.0", "1000.0000005", "1000.1", "ten") == [1.0, 1.0, 0.0, 0.0]
    assert against("numeric", "1/3", "0.33", "0.3", "33%", tolerance=0.01) == [1.0, 0.0, 1.0]
    assert rewards.make("numeric").score([said("2", "1", "2")]) == [1.0]


def test_numeric_is_exact_where_floats_are_not():
    assert against("numeric", "18446744073709551616", "18446744073709551616", "18446744073709551615") == [1.0, 0.0]


def test_percent():
    assert against("numeric", "50", "50%", "0.5%", "0.5") == [1.0, 0.0, 0.0]
    assert against("numeric", "50%", "50", "0.5", r"50\%", "0.5%", "5000%") == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_a_reference_without_a_number_is_an_error():
    with pytest.raises(ValueError, match="numeric finds no number in the reference 'many'"):
        against("numeric", "many", "3")


def test_numbers_survive_any_text():
    """Random strings of the grammar's characters: an answer or None, quickly, never an exception."""
    rng = np.random.default_rng(0)
    parts = [*"0123456789,.-/%$ e\\{}#_+x\u202f\u0663", "\\frac", "\\boxed{", "####", "{,}"]
    began = time.perf_counter()
    for _ in range(3000):
        find_answer("".join(rng.choice(parts, rng.integers(0, 40))))
    for bomb in ("1" * 20000, "1 " * 10000, "1," * 10000, "1/" * 10000, "-" * 20000, "\\frac{" * 5000, "\\boxed{" * 5000, "1,111" * 5000):
        find_answer(bomb)
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" b", "B"),
        ("(c)", "C"),
        ("B. Paris", "B"),
        ("a) yes", "A"),
        ("**D**", "D"),
        ("The answer is B", "B"),
        ("the correct answer is (b).", "B"),
        ("Answer: C, since A fails", "C"),
        ("**Answer:** D", "D"),
        ("The answer is A. No, the answer is C.", "C"),
        ("Option D is right", "D"),
        (r"A or \boxed{\text{(C)}}, not D", "C"),
        ("The answer is B. Option C is wrong.", "B"),
        ("The answer is not C.", None),
        ("Option C is wrong, so B.", "B"),
        ("It isn't C, it is D", "D"),
        ("The answer cannot be C.", None),
        ("The answer can't be C.", None),
        ("The answer can\u2019t be C.", None),
        ("The answer is definitely not C.", None),
        ("The answer isn't C.", None),
        ("The answer is not option C.", None),
        ("It is neither A nor B.", None),
        ("It must be B, for it could not possibly be the option C", "B"),
        ("It cannot be A or C, so B", "B"),
        ("C can't be right, B can", "B"),
        ("B fits; C cannot be the answer.", "B"),
        ("D is definitely wrong, so C", "C"),
        ("I do not know, but I think B", "B"),
        ("Why not? The answer is B", "B"),
        ("The answer is B. Isn't that nice? Can't be easier.", "B"),
        ("The answer is not A but the answer is B", "B"),
        ("I think it's B", "B"),
        ("So it must be A", "A"),
        ("A dog saw the best answer: a cat", None),
        ("don't be bad", None),
        ("E", None),
        ("", None),
    ],
)
def test_the_chosen_letter(text, letter):
    assert rewards.make("choice").find(text) == letter


def test_choice():
    assert against("choice", "(B) Paris", "B", "It is C.", "Paris") == [1.0, 0.0, 0.0]
    assert against("choice", "J", "The answer is J", "I", letters="FGHIJ") == [1.0, 0.0]
    with pytest.raises(ValueError, match="none of the letters ABCD in the reference 'Paris'"):
        against("choice", "Paris", "B")


def test_json():
    deep = "[" * 100_000
    texts = ['{"a": [1, null]}', ' "x"\n', "{'a': 1}", "NaN", "[Infinity]", "[1] and more", "", deep, deep + "]" * 100_000]
    assert scores("json", *texts) == [1, 1, 0, 0, 0, 0, 0, 0, 0]


def test_json_schema():
    schema = {
        "type": "object",
        "required": ["age"],
        "properties": {"age": {"type": "integer", "minimum": 0}},
        "additionalProperties": False,
    }
    texts = ['{"age": 3}', '{"age": -3}', '{"age": "3"}', "{}", '{"age": 3, "x": 0}', "[3]", "{"]
    assert scores("json", *texts, schema=schema) == [1, 0, 0, 0, 0, 0, 0]


def test_json_schema_of_another_draft():
    # "items" as a list is draft 7's tuple; 2020-12 calls it prefixItems and refuses the list
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "string"}, {"type": "integer"}]}
    assert scores("json", '["a", 1]', "[1, 1]", schema=schema) == [1.0, 0.0]
    with pytest.raises(ValueError, match="is not a JSON schema"):
        rewards.make("json", schema={"items": schema["items"]})


@pytest.fixture(params=[1000, 5000])
def pythons_limit(request):
    """Python's limit on recursion: its own, and one that torch.compile may leave behind."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(request.param)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.usefixtures("pythons_limit")
@pytest.mark.parametrize("schema", [None, {"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"}])
def test_json_of_more_than_64_levels_scores_0(schema):
    texts = ["[" * n + "]" * n for n in (1, 64, 65, 900, 100_000)]
    assert scores("json", *texts, "[[], [[]]]", "[1]", schema=schema) == [1, 1, 0, 0, 0, 1, schema is None]
    inside = [f'["{"[" * 99}"]', rf'["\"{"[" * 99}"]', f'["{"[" * 99}', rf'["\\", {"[" * 63}{"]" * 64}', rf'["\\", {"[" * 64}{"]" * 65}']
    assert scores("json", *inside) == [1, 1, 0, 1, 0]  # brackets within strings are none


def test_a_schema_without_end_is_an_error_where_a_text_shows_it():
    endless = rewards.make("json", schema={"type": "array", "allOf": [{"$ref": "#"}]})
    assert endless.score([said("1")]) == [0.0]
    with pytest.raises(ValueError, match=r"schema=.* refers to itself without end"):
        endless.score([said("[1]")])


def test_python_syntax():
    good = [" x = 1\ny = 2", "def f(a):\n    return a\n", "word", "x = '\\d'"]
    assert scores("python_syntax", *good) == [1.0] * 4
    bad = ["def f(:", "x = 1\n  y = 2", "two words", "a\0b", "\ud800", "", "  \n", "# only a remark"]
    assert scores("python_syntax", *bad) == [0.0] * 8


@pytest.mark.usefixtures("pythons_limit")
@pytest.mark.parametrize(("begun", "more", "most"), [("a", ".b", 497), ("if a: b\n", "elif a: b\n", 496), ("x = ", "-", 498)])
def test_python_syntax_of_more_than_500_levels_scores_0(begun, more, most):
    end = "1" if more == "-" else ""
    assert scores("python_syntax", begun + most * more + end, begun + (most + 1) * more + end) == [1.0, 0.0]


@pytest.mark.usefixtures("pythons_limit")
@pytest.mark.parametrize("bomb", ["(" * 9999, "-" * 19_999 + "1", "a" + ".b" * 9999, "9" * 5000, "x = 1\n" * 4000])
def test_python_syntax_outlives_deep_nesting(bomb):
    assert scores("python_syntax", bomb) == [0.0]


@pytest.mark.parametrize(
    "reward",
    [
        {"name": "forbidden", "words": ["x"]},
        {"name": "known_words", "words": ["x"]},
        {"name": "json", "schema": {"type": "integer"}},
        {"name": "choice", "letters": "AB"},
        "repetition",
        "exact_match",
        "numeric",
        "python_syntax",
        "bleu",
        "chrf",
        "ter",
        "rouge",
        "cider",
        "distinct",
        "self_bleu",
    ],
)
def test_copies_pickles_and_prints(reward):
    model = as_reward_model(reward)
    assert copy.deepcopy({"reward": model})["reward"] is model
    again = pickle.loads(pickle.dumps(model))
    episodes = [said("3 A", "3 A"), said("x y z", "so 5 B")]  # a number and a letter for those who want one
    assert again.score(episodes) == model.score(episodes)
    assert repr(again) == repr(model) and type(model).__name__ in repr(model)
    assert model.score([]) == []
