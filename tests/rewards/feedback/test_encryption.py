"""Keys: what they hide, and what happens without them."""

import os
import stat

import pytest

from rewards.feedback.encryption import Keys, WrongKeyError


def test_files_and_the_environment(tmp_path, monkeypatch):
    keys = Keys.new()
    keys.save(tmp_path / "keys.json")
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600
    assert Keys.load(tmp_path / "keys.json") == keys and str(keys.seals[0]) not in repr(keys)
    monkeypatch.setenv("TEXTRL_FEEDBACK_KEYS", (tmp_path / "keys.json").read_text())
    assert Keys.load(tmp_path / "none") == keys
    monkeypatch.setenv("TEXTRL_FEEDBACK_KEYS", "{}")
    with pytest.raises(ValueError, match="TEXTRL_FEEDBACK_KEYS holds no keys"):
        Keys.load(tmp_path / "keys.json")
    monkeypatch.delenv("TEXTRL_FEEDBACK_KEYS")
    with pytest.raises(FileNotFoundError, match="none"):
        Keys.load(tmp_path / "none")


def test_sealed_texts():
    keys, others = Keys.new(), Keys.new()
    sealed = keys.seal("straße \ud83d \x00")
    assert b"stra" not in sealed and keys.seal("straße") != keys.seal("straße") and keys.open(sealed) == "straße \ud83d \x00"
    another = b"B" if sealed[20:21] == b"A" else b"A"
    for wrong in (sealed[:-1], b"", sealed[:20] + another + sealed[21:]):
        with pytest.raises(WrongKeyError):
            keys.open(wrong)
    with pytest.raises(WrongKeyError, match="another key"):
        others.open(sealed)
    both = keys.with_new_seal()
    assert both.open(sealed) == keys.open(sealed)
    with pytest.raises(WrongKeyError):
        keys.open(both.seal("x"))
    with pytest.raises(WrongKeyError):
        both.with_newest_seal_only().open(sealed)


def test_pseudonyms():
    keys = Keys.new()
    assert keys.name("Ann  Lee") == keys.name(" ann lee") == keys.with_new_seal().name("ANN LEE") != keys.name("ann le")
    assert keys.name("ann lee") != Keys.new().name("ann lee") and "ann" not in keys.name("ann lee")
