import gzip
import json
import os
import resource
import stat

import pytest

from agents.training.text_corpus import task_of
from rewards import read_preferences
from textrl_env import read_prompts
from textrl_env.utils.files import append_csv, new_file, new_folder, new_path, read_lines, write_jsonl, write_text
from textrl_env.utils.tables import read_rows


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "made" / "a.txt"
    write_text(path, "first\r\nhalf \ud83c\n")
    with pytest.raises(RuntimeError), new_file(path) as file:
        file.write("second")
        raise RuntimeError
    with pytest.raises(TypeError):
        write_jsonl(path, [{"a": 1}, {"b": object()}])
    assert path.read_bytes() == b"first\r\nhalf \\ud83c\n"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.reports("A disk without room leaves the old file as it was, and the error names the file")
def test_a_full_disk_leaves_the_old_file(tmp_path):
    path, table = tmp_path / "a.txt", tmp_path / "t.csv"
    write_text(path, "first")
    append_csv(table, ["a"], {"a": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match=f"File too large: {path} could not be written, what was there before is unchanged; make room"):
            write_text(path, "second" * 100)
        with pytest.raises(OSError, match=f"File too large: {table} could not be written, its last row may be cut; make room"):
            append_csv(table, ["a"], {"a": "x" * 200})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "first" and table.read_text().startswith("a\n1\n")
    assert {p.name for p in tmp_path.iterdir()} == {"a.txt", "t.csv"}


def test_a_folder_replaces_what_had_its_name_and_leftovers_of_a_killed_process(tmp_path):
    write_text(tmp_path / "model", "a file")
    for end in ("tmp", "old"):
        (tmp_path / f".model.{os.getpid()}.{end}").mkdir()
        (tmp_path / f".model.{os.getpid()}.{end}" / "left").touch()
    for text in ("first", "second"):
        with new_folder(tmp_path / "model") as folder:
            (folder / "weights").write_text(text)
    assert [p.name for p in tmp_path.rglob("*")] == ["model", "weights"]
    assert (tmp_path / "model" / "weights").read_text() == "second"


def test_the_mode_holds_from_the_first_byte(tmp_path):
    leftover = tmp_path / f".keys.{os.getpid()}.tmp"
    leftover.touch(0o644)
    with new_file(tmp_path / "keys", mode=0o600) as file:
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o600


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), new_path(tmp_path / "a"):
        pass


ROWS = [{"prompt": "the film; really", "chosen": "good, and", "rejected": "bad"}, {"prompt": "x", "chosen": 'it "was"', "rejected": "y"}]


def table(folder, name, rows=ROWS):
    """Write rows as the name of the file says: the separator, BOM and line ends too."""
    path = folder / name
    if name.endswith(".parquet"):
        import pyarrow

        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    mark = {"semi": ";", "tabs": "\t"}.get(name.split(".")[0], "\t" if ".tsv" in name else ",")
    ends = "\r\n" if name.startswith("windows") else "\n"
    if ".json" in name:
        lines = [json.dumps(row) for row in rows]
    else:
        lines = [mark.join('"' + str(v).replace('"', '""') + '"' for v in values) for values in ([*rows[0]], *(r.values() for r in rows))]
        lines[0] = lines[0].replace('"', "")
    content = ("\ufeff" if "windows" in name else "").encode() + (ends.join(lines) + ends).encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


NAMES = (
    "a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.csv.gz", "a.tsv", "a.tsv.gz", "a.parquet", "semi.csv", "tabs.csv", "semi.csv.gz",
    "windows.csv", "windows.jsonl", "windows.csv.gz", "A.CSV.GZ",
)  # fmt: skip


@pytest.mark.reports(
    "Every reader takes the same files: JSON Lines, Parquet, CSV by commas, semicolons or tabs; gzip, BOM, Windows line ends"
)
@pytest.mark.parametrize("name", NAMES)
def test_every_reader_takes_the_same_files(tmp_path, name):
    path = table(tmp_path, name)
    assert read_rows(path) == ROWS
    assert [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in read_preferences(path)] == ROWS
    assert [{"prompt": p.text, **p.metadata} for p in read_prompts(path)] == ROWS


def test_a_header_of_one_column_and_a_wrong_row(tmp_path):
    (tmp_path / "a.csv").write_text("prompt\nthe film; really\n")
    assert read_rows(tmp_path / "a.csv") == [{"prompt": "the film; really"}]
    (tmp_path / "a.csv").write_text("prompt;response\nx;y;z\n")
    with pytest.raises(ValueError, match=r"line 2: 3 fields, but the header has 2 \(prompt, response\): quote fields that hold ';'"):
        read_rows(tmp_path / "a.csv")


@pytest.mark.reports("A corpus in a table is its column of texts, never its header and its quotes; without such a column it is refused")
@pytest.mark.parametrize("name", NAMES)
def test_a_corpus_in_a_table(tmp_path, name):
    sentences = ["the film, it was good and long", "an actor who was quite bad in it"]
    path = table(tmp_path, name, [{"text": text, "id": str(i)} for i, text in enumerate(sentences)])
    assert read_lines(path) == sentences
    task = task_of({"corpus": [path]}, tmp_path / "run")
    assert [prompt.text for prompt in task.prompts] == ["the film, it was", "an actor who was"]
    assert read_lines(table(tmp_path, name, [{"sentence": text} for text in sentences])) == sentences  # the only column
    with pytest.raises(ValueError, match=r"must be in a column called 'text', and it has prompt, chosen, rejected"):
        read_lines(table(tmp_path, name))


def test_lines_of_a_gzip(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("\ufeffone \r\n\n two\n".encode()))
    assert read_lines(tmp_path / "a.txt.gz") == ["one", "two"]
    assert [p.text for p in read_prompts(tmp_path / "a.txt.gz")] == ["one ", " two"]
