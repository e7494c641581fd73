import os
import resource
import stat

import pytest

from textrl_env.utils.files import append_csv, new_file, new_folder, new_path, write_jsonl, write_text


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
