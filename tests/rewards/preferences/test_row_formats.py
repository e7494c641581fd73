import csv
import gzip
import json
import random

import pytest

from rewards import Preference, Ranking, read_preference_file, read_preferences, read_rankings, write_preferences
from rewards.preferences.transcripts import render, split_transcripts
from textrl_env import read_prompts

ASKED = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:"
ONCE = "\n\nHuman: Hi\n\nAssistant:"


def read(tmp_path, *rows, name="pairs.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_preferences(path)


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        (f"{ASKED} Because.", f"{ASKED} No idea.", ASKED),
        (f"{ASKED} Because A.", f"{ASKED} Because B.", ASKED),  # answers that begin alike stay whole
        (f"{ASKED}", f"{ASKED} No idea.", ASKED),  # an empty answer
        (f"{ASKED} Yes", f"{ASKED} Yes, but", ASKED),  # one is the beginning of the other
        (f"{ASKED} Yes", f"{ASKED} Yes\n\nHuman: So?\n\nAssistant: So.", ASKED),
        (f"{ASKED} same", f"{ASKED} same", ASKED),
        (ASKED, ASKED, ASKED),
        # they part in the user's second turn: the prompt ends with the assistant's first
        (f"{ONCE} Hello.\n\nHuman: A?\n\nAssistant: a", f"{ONCE} Hello.\n\nHuman: B?\n\nAssistant: b", ONCE),
        ("\n\nHuman: A\n\nAssistant: a", "\n\nHuman: B\n\nAssistant: a", ""),  # and here in the first
        ("\n\nHuman: A\n\nAssistant", "\n\nHuman: A\n\nAssistant: a", ""),  # half a marker is none
        ("one text", "one tale", ""),
        ("", "", ""),
        ("", "x", ""),
        ("Human: A\r\nAssistant: a", "Human: A\r\nAssistant: b", "Human: A\r\nAssistant:"),
        ("\n\nHuman: é電🙂\n\nAssistant: 🙂a", "\n\nHuman: é電🙂\n\nAssistant: 🙂b", "\n\nHuman: é電🙂\n\nAssistant:"),
    ],
)  # fmt: skip
def test_two_transcripts_share_a_prompt(tmp_path, chosen, rejected, prompt):
    (pair,) = read(tmp_path, {"chosen": chosen, "rejected": rejected})
    assert pair.prompt == prompt
    assert (pair.prompt + pair.chosen, pair.prompt + pair.rejected) == (chosen, rejected)
    assert pair.label == (0.5 if chosen == rejected else 1.0)


def test_split_by_brute_force():
    # against the definition: the longest common beginning of all that ends with the marker
    rng = random.Random(0)
    pieces = ["\n\nAssistant:", "\n\nHuman:", " a", " b", "\n\nAssist"]
    for _ in range(500):
        texts = ["".join(rng.choices(pieces, k=rng.randrange(7))) for _ in range(rng.randrange(1, 4))]
        ends = [
            n for n in range(len(texts[0]) + 1) if all(t[:n] == texts[0][:n] for t in texts) and texts[0][:n].endswith("\n\nAssistant:")
        ]
        prompt, rest = split_transcripts(texts)
        assert prompt == texts[0][: max(ends, default=0)]
        assert [prompt + r for r in rest] == texts


def message(role, content):
    return {"role": role, "content": content}


HI, HELLO, WHY = message("user", "Hi"), message("assistant", "Hello."), message("user", "Why?")
A, B, GO = (message("assistant", text) for text in ("A", "B", "Go"))


@pytest.mark.parametrize(
    ("row", "prompt", "chosen", "rejected"),
    [
        ({"prompt": [HI, HELLO, WHY], "chosen": [A], "rejected": [B]}, ASKED, " A", " B"),
        ({"chosen": [HI, HELLO, WHY, A], "rejected": [HI, HELLO, WHY, B]}, ASKED, " A", " B"),
        # the prompt is repeated in the answers, once as messages and once as text
        ({"prompt": [HI], "chosen": [HI, HELLO], "rejected": [HI, GO]}, ONCE, " Hello.", " Go"),
        ({"prompt": "Hi", "chosen": [HI, HELLO], "rejected": [HI, GO]}, ONCE, " Hello.", " Go"),
        ({"prompt": "Hi", "chosen": [HELLO], "rejected": [GO]}, ONCE, " Hello.", " Go"),
        ({"prompt": [HI, HELLO, WHY], "chosen": "A", "rejected": " B"}, ASKED, " A", " B"),
        ({"prompt": [HI, HELLO, WHY], "chosen": [], "rejected": [B]}, ASKED, "", " B"),
        ({"prompt": f"{ASKED}", "chosen": f"{ASKED} A", "rejected": f"{ASKED} B"}, ASKED, " A", " B"),
        ({"prompt": [message("system", "Be."), message("user", [{"type": "text", "text": "Hi"}])], "chosen": "A", "rejected": "B"},
         "\n\nSystem: Be.\n\nHuman: Hi\n\nAssistant:", " A", " B"),
    ],
)  # fmt: skip
def test_conversations(tmp_path, row, prompt, chosen, rejected):
    assert read(tmp_path, row) == [Preference(prompt, chosen, rejected)]


def test_messages_and_transcripts_read_alike(tmp_path):
    a, b = ([HI, HELLO, WHY, message("assistant", text)] for text in ("Because.", "No."))
    assert read(tmp_path, {"chosen": a, "rejected": b}) == read(tmp_path, {"chosen": render(a), "rejected": render(b)})


def pair(**columns):
    return {"prompt": "p", "chosen": "a", "rejected": "b", **columns}


def test_optional_columns(tmp_path):
    rows = [
        pair(label=0.8, margin=2, annotator=7, group="news", id=3),
        pair(label="Tie"),
        pair(preference=0.5),
        pair(label=0.25),
        pair(preference="rejected"),
        pair(label=None, margin=None, annotator=None, group=""),
    ]
    assert read(tmp_path, *rows) == [
        Preference("p", "a", "b", 0.8, 2.0, "7", "news", {"id": 3}),
        Preference("p", "a", "b", 0.5),
        Preference("p", "a", "b", 0.5),
        Preference("p", "b", "a", 0.75),
        Preference("p", "b", "a", 1.0),
        Preference("p", "a", "b"),
    ]


def test_all_columns_are_written_and_read_back(tmp_path):
    pairs = [Preference("p", "a", "b", 0.8, 2.0, "7", "news", {"id": 3}), Preference("", "a", "b"), Preference("p", "x", "x", 0.5)]
    write_preferences(tmp_path / "pairs.jsonl", pairs)
    assert read_preferences(tmp_path / "pairs.jsonl") == pairs
    assert json.loads((tmp_path / "pairs.jsonl").read_text().split("\n")[1]) == {"prompt": "", "chosen": "a", "rejected": "b"}


def test_ratings_ranks_and_orders_become_pairs(tmp_path):
    texts = {"prompt": "p", "responses": ["a", "b", "c"]}
    rated, ranked, ordered = ([(q.chosen, q.rejected, q.label) for q in read(tmp_path, row)] for row in (
        {**texts, "ratings": [1, 5, 5]}, {**texts, "ranks": [3, 1, 2]}, texts
    ))  # fmt: skip
    assert rated == [("b", "a", 1.0), ("c", "a", 1.0), ("b", "c", 0.5)]
    assert ranked == [("b", "a", 1.0), ("c", "a", 1.0), ("b", "c", 1.0)]
    assert ordered == [("a", "b", 1.0), ("a", "c", 1.0), ("b", "c", 1.0)]


def test_rankings(tmp_path):
    path = tmp_path / "rankings.jsonl"
    rows = [
        {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [3, 1, 2], "annotator": "x"},
        {"prompt": "q", "responses": ["a", "b"]},
        pair(),
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_rankings(path) == [Ranking("p", ("b", "c", "a"), "x"), Ranking("q", ("a", "b")), Ranking("p", ("a", "b"))]
    path.write_text(json.dumps({"prompt": "p", "responses": ["a", "b"], "ratings": [1, 1]}))
    with pytest.raises(ValueError, match="line 1: two responses are equally good"):
        read_rankings(path)
    path.write_text(json.dumps(pair(label=0.8)))
    with pytest.raises(ValueError, match=r"line 1: the label 0\.8 is a probability"):
        read_rankings(path)


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.json.gz", "zipped.jsonl"])
def test_gzip_is_told_by_its_bytes(tmp_path, name):
    content = (json.dumps(pair()) + "\n").encode()
    (tmp_path / name).write_bytes(content if name == "p.jsonl" else gzip.compress(content))
    assert read_preferences(tmp_path / name) == [Preference("p", "a", "b")]


def test_gzip_that_was_not_copied_whole(tmp_path):
    whole = gzip.compress("".join(json.dumps(pair(id=i)) + "\n" for i in range(999)).encode())
    (tmp_path / "p.jsonl.gz").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"p\.jsonl\.gz is damaged gzip"):
        read_preferences(tmp_path / "p.jsonl.gz")


@pytest.mark.parametrize("zipped", [False, True])
def test_csv(tmp_path, zipped):
    path = tmp_path / ("p.csv.gz" if zipped else "p.csv")
    long = 'said "no",\n' * 20_000  # longer than the csv module takes by default
    with gzip.open(path, "wt", newline="", encoding="utf-8-sig") if zipped else open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerows(
            [["chosen", "rejected", "label", "margin", "topic"], [f"{ASKED} é", f"{ASKED} b", "", "", ""], [long, "b", "tie", "", "x"]]
        )
    first, second = read_preferences(path)
    assert first == Preference(ASKED, " é", " b", metadata={"topic": ""})
    assert second == Preference("", long, "b", 0.5, metadata={"topic": "x"})
    assert csv.field_size_limit() == 131072


def test_csv_faults_name_the_line(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("prompt,chosen,rejected\np,a,b\np,a\n")
    with pytest.raises(ValueError, match=r"line 3: 2 fields, but the header has 3"):
        read_preferences(path)
    path.write_text('prompt,chosen,rejected\np,a,"b\n')
    with pytest.raises(ValueError, match="line 2: unexpected end of data"):
        read_preferences(path)
    path.write_text("chosen,chosen\na,b\n")
    with pytest.raises(ValueError, match="names a column twice"):
        read_preferences(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (pair(label=1.5), r"'label' is 1.5 \(float\); it must be a number in \[0, 1\], or one of tie"),
        (pair(label="maybe"), "'label' is 'maybe'"),
        (pair(margin=-1), "'margin' is -1"),
        (pair(margin="inf"), "'margin' is 'inf'"),
        (pair(chosen=[message("robot", "x")]), "role='robot'"),
        (pair(chosen=["x"]), "must be an object with 'role' and 'content'"),
        (pair(chosen=[message("assistant", None)]), r"content is 'None' \(NoneType\)"),
        ({"chosen": "a", "rejected": None}, "'rejected' is None"),
        ({"prompt": "p", "responses": ["a"]}, "a list of at least 2 texts"),
        ({"prompt": "p", "responses": ["a", "b"], "ranks": [1]}, r"'ranks' is \[1\] \(list\); it must be a list of 2 numbers"),
        ({"prompt": "p", "responses": ["a", "b"], "ratings": [1, "x"]}, "'ratings'"),
        ({"text": "a"}, r"the key 'chosen' is missing; it has \['text'\]"),
    ],
)
def test_errors_name_line_and_value(tmp_path, row, message):
    with pytest.raises(ValueError, match=rf"pairs\.jsonl, line 2: .*{message}"):
        read(tmp_path, pair(), row)


@pytest.mark.reports("One JSON array is read like JSON Lines, by every reader of preferences and prompts")
def test_json_arrays(tmp_path):
    (tmp_path / "lines.jsonl").write_text(json.dumps(pair()) + "\n" + json.dumps(pair(chosen="c")) + "\n")
    for text in (json.dumps([pair(), pair(chosen="c")]), json.dumps([pair(), pair(chosen="c")], indent=2)):
        (tmp_path / "p.json").write_text(text, encoding="utf-8-sig")
        assert read_preferences(tmp_path / "p.json") == read_preferences(tmp_path / "lines.jsonl")
        assert [p.text for p in read_prompts(tmp_path / "p.json")] == [pair()["prompt"]] * 2
    (tmp_path / "p.json").write_text(json.dumps([pair(), 3]))
    with pytest.raises(ValueError, match=r"p\.json, item 1: a JSON value \(int\) is no row"):
        read_preferences(tmp_path / "p.json")
    (tmp_path / "p.json").write_text(json.dumps([pair()])[:-1])
    with pytest.raises(ValueError, match="is no whole JSON array"):
        read_preferences(tmp_path / "p.json")


@pytest.mark.reports("Columns of other names are given with columns=, and a column that is not there is named")
def test_columns_of_other_names(tmp_path):
    row = {"instruction": "p", "output_1": "good", "output_2": "bad", "preference": 0.75, "chosen": "a column that means something else"}
    columns = {"prompt": "instruction", "chosen": "output_1", "rejected": "output_2"}
    (tmp_path / "p.json").write_text(json.dumps([row]))
    (read,) = read_preferences(tmp_path / "p.json", columns)
    assert (read.prompt, read.chosen, read.rejected, read.label, dict(read.metadata)) == ("p", "good", "bad", 0.75, {})
    with pytest.raises(ValueError, match=r"item 0: there is no column 'output_3'; it has 'instruction', 'output_1'"):
        read_preferences(tmp_path / "p.json", {**columns, "chosen": "output_3"})


def test_unreadable_rows_are_counted_by_reason(tmp_path):
    rows = [
        json.dumps(pair()),
        "{oops",
        json.dumps(["a"]),
        json.dumps({"chosen": "a"}),
        json.dumps(pair(chosen=3)),
        "{oops",
        json.dumps(pair(label="tie")),
    ]
    rows += [json.dumps({"chosen": "a", "rejected": "a"}), json.dumps({"chosen": f"{ASKED} ", "rejected": f"{ASKED} a"})]
    path = tmp_path / "pairs.jsonl"
    path.write_bytes("\n".join(rows).encode() + b'\n{"prompt": "\xff"}\n')
    found = read_preference_file(path, skip_unreadable=True)
    reasons = {
        "not valid JSON": 2,
        "not an object": 1,
        "no 'rejected'": 1,
        "'chosen' is not a string, or a list of messages": 1,
        "not UTF-8": 1,
    }
    assert found.skipped == reasons
    assert found.forms == {"pair": 2, "two transcripts": 2}
    assert found.counts() == {"rows": 10, "skipped": 6, "pairs": 4, "ties": 1, "identical": 1, "one_empty": 1, "no_prompt": 1}
    assert len(found.examples) == 5 and found.examples[0].startswith(f"{path}, line 2: not valid JSON")
    path.write_text("{oops\n")
    with pytest.raises(ValueError, match=r"no preferences.*first of 1 unreadable rows: .*line 1"):
        read_preference_file(path, skip_unreadable=True)


def test_half_a_character_is_replaced(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "", "chosen": "a\\ud83d", "rejected": "\\ud83d\\ude42"}')
    assert read_preferences(path) == [Preference("", "a\ufffd", "🙂")]


def test_labels_and_margins_are_checked():
    for wrong in ({"label": 0.4}, {"label": float("nan")}, {"margin": -1.0}, {"margin": float("inf")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Preference("", "a", "b", **wrong)
    with pytest.raises(ValueError, match="at least 2"):
        Ranking("", ("a",))
