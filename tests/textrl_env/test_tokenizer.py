"""Tokenizers: round trips and errors."""

from pathlib import Path

import pytest

import textrl_env.tasks.review
from textrl_env import FileTokenizer, IntegerTokenizer, Tokenizer

FILE = Path(textrl_env.tasks.review.__file__).with_name("tokenizer.json")


def test_file_tokenizer_round_trip():
    tokenizer = FileTokenizer(FILE.parent)
    texts = ["the score was superb , yet slow .", "zyx Qq ünïcode 7"]
    ids = tokenizer.encode_batch(texts)
    assert tokenizer.decode_batch(ids) == [" " + text for text in texts]
    assert tokenizer.decode_batch([[*ids[0], tokenizer.eos_token_id]]) == [" " + texts[0]]
    assert max(max(row) for row in ids) < tokenizer.vocab_size
    assert isinstance(tokenizer, Tokenizer)


def test_a_text_may_be_cut_between_any_two_words():
    tokenizer = FileTokenizer(FILE)
    words = "a friend lent me the sapphire moon , and the props were good !".split()
    whole = tokenizer.encode_batch([" ".join(words)])[0]
    for cut in range(1, len(words)):
        left, right = tokenizer.encode_batch([" ".join(words[:cut]), " ".join(words[cut:])])
        assert left + right == whole


def test_integer_tokenizer():
    tokenizer = IntegerTokenizer(10, eos_token_id=3)
    assert tokenizer.encode_batch(["3 1 4", ""]) == [[3, 1, 4], []]
    assert tokenizer.decode_batch([[1, 5, 3], []]) == [" 1 5", ""]
    with pytest.raises(ValueError, match=r"outside \[0, 10\)"):
        tokenizer.encode_batch(["1 10"])


def test_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer file"):
        FileTokenizer(tmp_path / "nothing.json")
    (tmp_path / "bad.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(ValueError, match=r"bad\.json is not a tokenizer\.json"):
        FileTokenizer(tmp_path / "bad.json")
    with pytest.raises(ValueError, match=r"no token '</s>'.*eos_token="):
        FileTokenizer(FILE, eos_token="</s>")
    with pytest.raises(ValueError, match="eos_token_id=10"):
        IntegerTokenizer(10, 10)
