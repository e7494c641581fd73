"""Judgements of single texts, from files of every form."""

import json

import numpy as np
import pytest

from rewards import Preference, Thumb, read_thumbs, thumbs_of, thumbs_of_ratings
from rewards.feedback.import_export import rating_rows
from rewards.feedback.items import Answer, Item
from rewards.feedback.study import Study
from rewards.preferences.text_ratings import RatedText


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_ratings_are_judged_by_the_middle_of_their_scale_or_by_a_number():
    rated = [
        RatedText("p", text, np.array(ratings, float)) for text, ratings in (("a", [5, 4, 1]), ("b", [3, 3]), ("c", [1, 3]), ("d", [2]))
    ]
    assert [thumb.good for thumb in thumbs_of_ratings(rated)] == pytest.approx([2 / 3, 0.5, 0.25, 0.0])
    assert [thumb.good for thumb in thumbs_of_ratings(rated, above=1.5)] == pytest.approx([2 / 3, 1.0, 0.5, 1.0])
    with pytest.raises(ValueError, match="all ratings are 4: say above which rating a text is good"):
        thumbs_of_ratings([RatedText("p", "a", np.array([4.0, 4.0]))])


def test_both_texts_of_a_comparison_are_judged():
    pairs = [Preference("p", " a", " b"), Preference("q", " c", " d", label=0.8)]
    assert thumbs_of(pairs) == [Thumb("p", " a", 1.0), Thumb("p", " b", 0.0), Thumb("q", " c", 0.8), Thumb("q", " d", 1 - 0.8)]
    with pytest.raises(ValueError, match="a pair has margin=2"):
        thumbs_of([Preference("p", " a", " b", margin=2.0)])
    with pytest.raises(ValueError, match=r"good=1.2 must be in \[0, 1\]"):
        Thumb("p", " a", 1.2)


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "p", "completion": " a", "label": True}, {"prompt": "q", "completion": " b", "label": False}],
        [{"prompt": "p", "response": " a", "rating": 5}, {"prompt": "q", "response": " b", "rating": "1"}],
        [{"prompt": "p", "text": " a", "ratings": [5, 4]}, {"prompt": "q", "text": " b", "ratings": [1]}],
        [{"prompt": "p", "responses": [" a"], "ratings": [5]}, {"prompt": "q", "responses": [" b"], "ratings": [1]}],
    ],
)
def test_every_form_of_a_row(tmp_path, rows):
    assert read_thumbs(written(tmp_path / "t.jsonl", *rows)) == [Thumb("p", " a", 1.0), Thumb("q", " b", 0.0)]


def test_tables_and_own_columns(tmp_path):
    (tmp_path / "t.csv").write_text("question,answer,label\np, a,true\nq, b,0\n")
    columns = {"prompt": "question", "response": "answer"}
    assert read_thumbs(tmp_path / "t.csv", columns) == [Thumb("p", " a", 1.0), Thumb("q", " b", 0.0)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "response": " a"}, r"line 2: it has \['prompt', 'response'\]: prompt, response and rating or label are needed"),
        ({"prompt": "p", "response": " a", "label": 0.5}, "line 2: label=0.5: must be true or false"),
        ({"prompt": "p", "response": " a", "rating": "good"}, "line 2: ratings=.*a list of numbers"),
        ({"prompt": "p", "responses": [" a"], "ratings": [1, 2]}, "line 2: responses=.*one rating of each is needed"),
        ({"prompt": "p", "response": " a", "label": True}, "holds 1 labels and 1 rated texts"),
    ],
)
def test_rows_that_cannot_be_read_are_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        read_thumbs(written(tmp_path / "t.jsonl", {"prompt": "p", "response": " b", "rating": 3}, row))
    with pytest.raises(ValueError, match="holds no judgements"):
        read_thumbs(written(tmp_path / "empty.jsonl"))


def test_a_study_of_ratings_is_exported_with_all_ratings_of_a_response(tmp_path):
    def answered(response, who, rating, turn=0, gold=None):
        item = Item("the film", (response,), group="x", gold=gold)
        value = {"skip": True} if rating is None else {"rating": rating}
        return Answer(1, item, who, turn, (0,), value, {}, 0.0, 0.0)

    given = [
        answered(" was good", "ann", 5), answered(" was bad", "ann", 1), answered(" was good", "bob", 2), answered(" was bad", "bob", None),
        answered(" was good", "ann", 1, turn=1), answered(" was gold", "ann", 1, gold=1), answered(" was fine", "eve", 3),
    ]  # fmt: skip
    rows = rating_rows(given, Study(kind="rating"))
    assert rows[0] == {"prompt": "the film", "text": " was good", "ratings": [5, 2], "annotators": ["ann", "bob"], "group": "x"}
    assert [row["text"] for row in rows] == [" was good", " was bad", " was fine"]
    assert [(t.response, t.good) for t in read_thumbs(written(tmp_path / "t.jsonl", *rows))] == [
        (" was good", 0.5),
        (" was bad", 0.0),
        (" was fine", 0.5),
    ]
    with pytest.raises(ValueError, match="this study's kind is 'pair'"):
        rating_rows([], Study())
