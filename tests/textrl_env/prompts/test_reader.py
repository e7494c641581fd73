import copy
import csv
import io
import json
import os
import pickle
import random
import re
import sys

import numpy as np
import pytest

from textrl_env import GeneratedPrompts, IntegerTokenizer, Prompt, TextTask
from textrl_env.prompts.reader import read_prompts

ROWS = [
    {"question": "two plus two", "answer": "four", "level": "1"},
    {"question": 'say "hi",\nthen\u2028go', "answer": "hi", "level": "2"},
    {"question": "größe 🎬", "answer": "", "level": "3"},
]
EXPECTED = [
    Prompt("two plus two", ("four",), {"level": "1"}),
    Prompt('say "hi",\nthen\u2028go', ("hi",), {"level": "2"}),
    Prompt("größe 🎬", (), {"level": "3"}),
]


def write(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def csv_text(rows, terminator="\r\n"):
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), lineterminator=terminator)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def source_of(kind, folder, rows=ROWS):
    if kind in ("jsonl", "json"):
        return write(folder / f"rows.{kind}", "".join(json.dumps(row) + "\n" for row in rows))
    if kind == "csv":
        return str(write(folder / "rows.CSV", csv_text(rows)))
    if kind == "list":
        return rows
    if kind == "dataset":
        return pytest.importorskip("datasets").Dataset.from_list(rows)
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet", row_group_size=2)
    return folder / "rows.parquet"


KINDS = ("jsonl", "json", "csv", "parquet", "list", "dataset")


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_gives_the_same_prompts(kind, tmp_path):
    prompts = read_prompts(source_of(kind, tmp_path), prompt="question", references="answer")
    assert len(prompts) == 3
    assert [prompts[i] for i in (2, 0, 1, -1, np.int64(1))] == [EXPECTED[i] for i in (2, 0, 1, 2, 1)]
    assert list(prompts) == EXPECTED
    assert list(prompts[1:]) == EXPECTED[1:] and list(prompts[::-2]) == EXPECTED[::-2]
    for outside in (3, -4):
        with pytest.raises(IndexError, match=f"prompt {outside} of 3"):
            prompts[outside]


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_pickle_and_deepcopy_is_the_same_object(kind, tmp_path):
    prompts = read_prompts(source_of(kind, tmp_path), prompt="question", references="answer")
    assert prompts[1] == EXPECTED[1]
    assert copy.deepcopy(prompts) is prompts
    assert list(pickle.loads(pickle.dumps(prompts))) == EXPECTED
    view = prompts[1:]
    assert copy.deepcopy(view) is view
    assert list(pickle.loads(pickle.dumps(view))) == EXPECTED[1:]


@pytest.mark.parametrize("kind", KINDS)
def test_named_columns_become_metadata_and_several_columns_references(kind, tmp_path):
    rows = [{"prompt": "p", "a": "x", "b": ["y", "z"], "n": 3, "unused": "u"}] * 2
    if kind == "csv":
        rows = [{**row, "b": "y", "n": "3"} for row in rows]
    expected = Prompt("p", ("x", "y") if kind == "csv" else ("x", "y", "z"), {"n": rows[0]["n"]})
    assert list(read_prompts(source_of(kind, tmp_path, rows), references=("a", "b"), columns="n")) == [expected] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_column_names_the_columns_there_are(kind, tmp_path):
    message = r"no column 'prompt'; the row has 'question', 'answer', 'level'"
    with pytest.raises(ValueError, match=message):
        read_prompts(source_of(kind, tmp_path), columns="level")


def test_a_list_may_mix_texts_dicts_and_prompts():
    given = Prompt("c", ("r",), {"k": 1})
    assert list(read_prompts(["a", {"prompt": "b", "x": 2}, given])) == [Prompt("a"), Prompt("b", (), {"x": 2}), given]


@pytest.mark.parametrize("text", ["a\n\n  \n b  \r\nc\u2028d", "\ufeffa\n b  \nc\u2028d\n\n", "\n\na\r\n\r\n b  \nc\u2028d\n"])
def test_text_files_hold_one_prompt_a_line(text, tmp_path):
    assert [p.text for p in read_prompts(write(tmp_path / "rows.txt", text))] == ["a", " b  ", "c\u2028d"]


def test_format_overrides_the_suffix(tmp_path):
    path = write(tmp_path / "rows.jsonl", "plain\n")
    assert list(read_prompts(path, format="txt")) == [Prompt("plain")]


def test_a_relative_path_survives_a_change_of_folder(tmp_path, monkeypatch):
    source_of("jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    prompts = read_prompts("rows.jsonl", prompt="question", references="answer")
    monkeypatch.chdir("/")
    assert prompts[2] == EXPECTED[2]


@pytest.mark.parametrize("seed", range(20))
def test_random_access_to_csv_agrees_with_reading_it_through(seed, tmp_path):
    dice = random.Random(seed)
    pieces = ["a", '"', '""', ",", "\n", "\r\n", "\n\n", "é", "🎬", " ", "\u2028", "\x85", "5'"]
    field = lambda: "".join(dice.choices(pieces, k=dice.randrange(6)))  # noqa: E731
    rows = [{"x": field(), "prompt": "p" + field(), "y\n,": field()} for _ in range(60)]
    text = csv_text(rows, dice.choice(["\n", "\r\n"]))
    path = write(tmp_path / "rows.csv", ("\ufeff" if seed % 2 else "") + text + "\n" * (seed % 3))
    whole = list(csv.DictReader(io.StringIO(text, newline="")))
    prompts = read_prompts(path)
    order = dice.sample(range(60), 60)
    assert [prompts[i].text for i in order] == [whole[i]["prompt"] for i in order]
    assert [prompts[i].metadata for i in order] == [{"x": whole[i]["x"], "y\n,": whole[i]["y\n,"]} for i in order]


@pytest.mark.parametrize("seed", range(5))
def test_random_access_to_json_lines_agrees_with_parsing_every_line(seed, tmp_path):
    dice = random.Random(seed)
    rows = [{"prompt": "p" + "".join(dice.choices('ab\n"\\é🎬\u2028', k=dice.randrange(9))), "n": i} for i in range(80)]
    lines = [json.dumps(row, ensure_ascii=dice.random() < 0.5) + dice.choice(["\n", "\r\n", "\n \n", "\n\n\n"]) for row in rows]
    prompts = read_prompts(write(tmp_path / "rows.jsonl", dice.choice(["", "\ufeff", "\n"]) + "".join(lines).rstrip()))
    order = dice.choices(range(80), k=200)
    assert [prompts[i] for i in order] == [Prompt(rows[i]["prompt"], (), {"n": i}) for i in order]


GOOD = '{"prompt": "a"}\n'


@pytest.mark.parametrize(
    ("name", "text", "place", "message"),
    [
        ("r.jsonl", GOOD + "\n{prompt}\n" + GOOD, ", line 3: ", "not one JSON object on one line, Expecting property name"),
        ("r.jsonl", GOOD + "[1]\n", ", line 2: ", "a JSON value (list), not an object with named columns: '[1]'"),
        ("r.jsonl", GOOD + '{"text": "a"}\n', ", line 2: ", "no column 'prompt'; the row has 'text'"),
        ("r.jsonl", GOOD + '{"prompt": " "}\n', ", line 2: ", "column 'prompt' is empty"),
        ("r.jsonl", GOOD + '{"prompt": 7}\n', ", line 2: ", "column 'prompt' is '7' (int): a text is needed"),
        ("r.jsonl", GOOD + '{"prompt": null}\n', ", line 2: ", "column 'prompt' is 'None' (NoneType): a text is needed"),
        ("r.jsonl", GOOD + '{"prompt": "a\\ud83c"}\n', ", line 2: ", "half a character, \\ud83c, at position 2"),
        ("r.jsonl", GOOD * 2 + '{"prompt": "a', ", line 3: ", "the last line is half-written"),
        ("r.jsonl", GOOD.encode() + b'{"prompt": "\xe9"}\n', ", line 2: ", "not UTF-8 (byte 0xe9 at position 13 of the row)"),
        ("r.jsonl", GOOD + '{"prompt": "a", "completions": 1}\n', ", line 2: ", "column 'completions' would be hidden"),
        ("r.json", '[\n{"prompt": "a"}\n', " ", "is no whole JSON array"),
        ("r.json", '[{"prompt": "a"}, {"prompt": 3}]', ", item 1: ", "column 'prompt' is '3' (int)"),
        ("r.json", '[\n{"prompt": "a"}, 4]', ", item 1: ", "a JSON value (int) is no row"),
        ("r.jsonl", "\n \n", " ", "holds no prompts"),
        ("r.csv", 'prompt,b\n"x\ny",1\nz,1,2\n', ", line 4: ", "3 fields, but the header has 2 (prompt, b)"),
        ("r.csv", 'prompt,b\n"x\ny",1\n\nz,"1\n2\n', ", record from line 5: ", "a quote is opened and never closed"),
        ("r.csv", 'prompt,b\n"x"y,1\n', ", record from line 2: ", "',' expected after '\"'"),
        ("r.csv", "prompt,b\nx,1\n ,1\n", ", line 3: ", "column 'prompt' is empty"),
        ("r.csv", "prompt,b,b\nx,1,2\n", ": ", "the header names ['b'] more than once"),
        ("r.csv", "prompt\n" + "x" * 140_000 + "\n", ", record from line 2: ", "csv.field_size_limit"),
        ("r.csv", b"prompt\nx\n\xff\n", ", record from line 3: ", "not UTF-8 (byte 0xff"),
        ("r.csv", "prompt\n", " ", "holds no prompts"),
        ("r.txt", b"a\n\xff\n", ", line 2: ", "not UTF-8 (byte 0xff"),
        ("r.parquet", b"PAR1" + bytes(50), " ", "is no whole Parquet file"),
    ],
)
def test_errors_name_file_and_line(name, text, place, message, tmp_path):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = write(tmp_path / name, text)
    with pytest.raises(ValueError, match=re.escape(f"{path}{place}") + ".*" + re.escape(message)):
        list(read_prompts(path))


def test_the_first_row_is_checked_at_once_and_a_list_whole(tmp_path):
    late = [{"prompt": "a"}, {"prompt": ""}]
    prompts = read_prompts(source_of("jsonl", tmp_path, late))
    assert prompts[0].text == "a"
    with pytest.raises(ValueError, match=r"line 2: column 'prompt' is empty"):
        prompts[1]
    with pytest.raises(ValueError, match=r"line 1: column 'prompt' is empty"):
        read_prompts(source_of("jsonl", tmp_path, late[::-1]))
    with pytest.raises(ValueError, match=r"prompts\[1\]: column 'prompt' is empty"):
        read_prompts(late)
    with pytest.raises(ValueError, match=r"prompts\[1\]: the prompt is empty"):
        read_prompts(["a", Prompt("")])
    with pytest.raises(ValueError, match=r"prompts\[1\]: a row is a text, a dict or a Prompt, not int"):
        read_prompts(["a", 3])


@pytest.mark.parametrize("references", [3, [1], {"text": ["a"]}])
def test_references_that_are_no_texts_are_refused(references):
    with pytest.raises(ValueError, match=r"references 'r' are .*: a text or a list of texts is needed"):
        read_prompts([{"prompt": "a", "r": references}], references="r")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_file_that_changed_is_noticed_by_size_or_time(kind, tmp_path):
    path = source_of(kind, tmp_path)
    prompts = read_prompts(path, prompt="question", references="answer")
    status = os.stat(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    with pytest.raises(ValueError, match=r"changed since it was indexed \(same size, later modification time\): call read_prompts again"):
        prompts[0]
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert prompts[0] == EXPECTED[0]
    with open(path, "ab") as file:
        file.write(b"\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ValueError, match=f"{status.st_size} bytes then, {status.st_size + 1} now"):
        prompts[0]


@pytest.mark.parametrize(
    ("source", "kwargs", "error", "message"),
    [
        ("nowhere.jsonl", {}, FileNotFoundError, "no file of prompts at /.*nowhere.jsonl"),
        ("rows.xml", {}, ValueError, "has the suffix '.xml': choose format= from 'jsonl'"),
        ("rows.csv", {"format": "xlsx"}, ValueError, "format='xlsx': choose format="),
        (["a"], {"format": "csv"}, ValueError, "describes a file, but the source is of type list"),
        ([], {}, ValueError, "the list of prompts holds no prompts"),
        (iter(["a"]), {}, TypeError, "prompts cannot come from list_iterator"),
        (b"rows.csv", {}, TypeError, "prompts cannot come from bytes"),
    ],
)
def test_sources_that_are_none(source, kwargs, error, message):
    with pytest.raises(error, match=message):
        read_prompts(source, **kwargs)


def test_a_named_dataset_is_loaded_with_its_split(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "test"):
        write(folder / f"{split}.jsonl", "".join(json.dumps({"prompt": f"{split} {i}"}) + "\n" for i in range(4)))
    assert [p.text for p in read_prompts(f"hf:{folder}")] == [f"train {i}" for i in range(4)]
    assert [p.text for p in read_prompts(f"hf:{folder}:test[:2]")] == ["test 0", "test 1"]
    with pytest.raises(ValueError, match=r"the dataset has the splits 'train', 'test': pass one of them, as dataset\['train'\]"):
        read_prompts(datasets.load_dataset(str(folder)))
    with pytest.raises(TypeError, match="cannot come from IterableDataset: pass a path, a list, or a dataset that has a length"):
        read_prompts(datasets.load_dataset(str(folder), split="train", streaming=True))


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"'hf:x' needs the package datasets: pip install 'textrl-env\[datasets\]'"):
        read_prompts("hf:x")
    with pytest.raises(ImportError, match=r"pip install 'textrl-env\[parquet\]'"):
        read_prompts(write(tmp_path / "rows.parquet", "PAR1"))


def test_a_task_takes_lazy_prompts(tmp_path):
    path = source_of("jsonl", tmp_path, [{"prompt": "1 2 3"}, {"prompt": "4"}])
    with pytest.raises(ValueError, match="pass max_prompt_tokens"):
        TextTask(IntegerTokenizer(10), read_prompts(path), max_new_tokens=3)
    task = TextTask(IntegerTokenizer(10), read_prompts(path), max_new_tokens=3, max_prompt_tokens=2, over_long="left")
    assert [task.start_of(i)[1].tolist() for i in (0, 1)] == [[2, 3], [4]]


def test_a_function_writes_prompts():
    def sums(rng):
        a, b = rng.integers(1, 5, 2)
        return Prompt(f"{a} {b}", (str(a + b),))

    prompts = GeneratedPrompts(sums, 1000, seed=3)
    assert len(prompts) == 1000 and prompts[7] == prompts[7] and prompts[-1] == prompts[999]
    assert len({prompts[i].text for i in range(200)}) == 16
    assert all(int(p.references[0]) == sum(map(int, p.text.split())) for p in (prompts[i] for i in range(50)))
    with pytest.raises(TypeError, match="returned 5 for row 0"):
        GeneratedPrompts(lambda rng: 5)[0]
