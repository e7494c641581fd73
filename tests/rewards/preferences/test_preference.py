import json

import pytest

from rewards import Preference, read_preferences, write_preferences
from textrl_env.utils.files import new_folder

PAIRS = [
    Preference("The film", " was é\u2028 fine.\n", ' said "no" 電'),
    Preference("", "a", "b"),
]


def test_write_then_read(tmp_path):
    path = tmp_path / "new" / "pairs.jsonl"
    write_preferences(path, iter(PAIRS))
    assert read_preferences(path) == PAIRS
    assert [p.name for p in path.parent.iterdir()] == ["pairs.jsonl"]
    assert len(path.read_bytes().strip().split(b"\n")) == 2


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    write_preferences(path, PAIRS)

    def broken():
        yield PAIRS[1]
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        write_preferences(path, broken())
    assert read_preferences(path) == PAIRS
    assert len(list(tmp_path.iterdir())) == 1


def test_blank_lines_other_keys_and_windows_files(tmp_path):
    row = {"prompt": "", "chosen": "a", "rejected": "b", "annotator": 7}
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\xef\xbb\xbf\r\n" + json.dumps(row).encode() + b"\r\n  \r\n")
    assert read_preferences(path) == [Preference("", "a", "b", annotator="7")]


GOOD = '{"prompt": "", "chosen": "a", "rejected": "b"}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "", "chosen": "a"}', "line 3: the key 'rejected' is missing"),
        ('{"prompt": "", "chosen": 1, "rejected": "b"}', r"line 3: 'chosen' is 1 \(int\)"),
        ('{"prompt": null, "chosen": "a", "rejected": "b"}', r"line 3: 'prompt' is None \(NoneType\)"),
        ('["a"]', "line 3: a list"),
        ("{oops", "line 3: not valid JSON"),
    ],
)
def test_errors_name_the_line(tmp_path, line, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n")
    with pytest.raises(ValueError, match=message):
        read_preferences(path)


@pytest.mark.parametrize(("content", "message"), [(b"", "no preferences"), (b"\n \n", "no preferences"), (b"\xff\xfe", "UTF-8")])
def test_empty_or_foreign_files(tmp_path, content, message):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_preferences(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_preferences(tmp_path / "none.jsonl")


def test_new_folder_replaces_whole_or_not_at_all(tmp_path):
    for text in ("first", "second"):
        with new_folder(tmp_path / "model") as folder:
            (folder / "file").write_text(text)
    with pytest.raises(RuntimeError), new_folder(tmp_path / "model") as folder:
        (folder / "file").write_text("third")
        raise RuntimeError
    assert (tmp_path / "model" / "file").read_text() == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
