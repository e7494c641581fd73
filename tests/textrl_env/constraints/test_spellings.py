"""Action masks and how tokens spell texts: many spellings, spellings with gaps, and files whose decoders drop spaces."""

import json
import re

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

from textrl_env import FileTokenizer, IntegerTokenizer, Prompt
from textrl_env.constraints import Grammar, JSONSchema, OneOf, Regex, as_constraint

from .test_constraints import walk

EOS = 0
PROMPT = Prompt("1")


class SpelledTokenizer:
    """Tokens that spell these texts; id 0 ends."""

    eos_token_id = 0

    def __init__(self, *spellings):
        self.spellings = ("", *spellings)
        self.vocab_size = len(self.spellings)

    def encode_batch(self, texts):
        return [[self.spellings.index(text)] for text in texts]

    def decode_batch(self, ids):
        return ["".join(self.spellings[i] for i in row) for row in ids]


def completions(tokenizer, matches, longest):
    """What may follow each prefix of a matching text of up to `longest` tokens, by enumerating all of them."""
    spelled = list(enumerate(tokenizer.decode_batch([[token] for token in range(1, tokenizer.vocab_size)]), 1))
    follow, rows = {}, [((), "")]  # decoding each row anew would take most of the time
    while rows:
        row, text = rows.pop()
        if matches(text):
            assert tokenizer.decode_batch([row]) == [text]
            follow.setdefault(row, set()).add(EOS)
            for k, token in enumerate(row):
                follow.setdefault(row[:k], set()).add(token)
        if len(row) < longest:
            rows += [((*row, token), text + own) for token, own in spelled]
    return follow


MANY = SpelledTokenizer("a", "b", "ab", "ba", "aba", "c")  # most texts have several spellings
GAPS = SpelledTokenizer("a", "ab", "cd", "x")  # no "b", "c" or "d" alone: bytes can go on where tokens cannot
WIDE = SpelledTokenizer("é", "e", "\u0301", "日本", "日", "\n", "/", "\\", '"')
JSON = SpelledTokenizer("{", "}", '"a"', ":", "1", "[", "]", ",", "tru", "e")


def parses(text, accepts):
    try:
        return accepts(json.loads(text))
    except ValueError:
        return False


def one_or_array(value):
    ones = value if isinstance(value, list) else [value]
    return len(ones) <= 2 and all(type(one) is int and one == 1 for one in ones)  # True == 1 too


NESTED = SpelledTokenizer("a", "b", "c", "cb")
NO_SPACE = {"x-guidance": {"whitespace_flexible": False}}
TRUE_A = {"type": "object", "properties": {"a": {"const": True}}, "required": ["a"], "additionalProperties": False, **NO_SPACE}
ONES = {"anyOf": [{"const": 1}, {"type": "array", "items": {"const": 1}, "maxItems": 2}], **NO_SPACE}
CASES = [
    *((MANY, Regex(p), re.compile(p).fullmatch, 6) for p in ("(ab|ba)*c?", "a(ba)+", "(abc|aab)b*", "(a|ab)(c|bcc)", "[^a]+", "a.b", "")),
    *((GAPS, Regex(p), re.compile(p).fullmatch, 6) for p in ("a(b|c)d?x?", "(ab|acb)x", "ax|abc", "(ac|cd)*x")),
    *((WIDE, Regex(p), re.compile(p).fullmatch, 4) for p in ("é+", "[日本]+é", "[^e]{1,2}", "\\\\/", "\n+", "\\n/", "[/]+", "日本?")),
    (IntegerTokenizer(6), Regex("( 1| 20)( 3)?"), re.compile("( 1| 20)( 3)?").fullmatch, 5),
    (MANY, OneOf(["abab", "aba", "c", "abba"]), ["abab", "aba", "c", "abba"].__contains__, 5),
    (GAPS, OneOf(["abcd", "acd"]), ["abcd", "acd"].__contains__, 5),
    (NESTED, Grammar('start: "c" | "a" start "b"'), ["c", "acb", "aacbb", "aaacbbb"].__contains__, 6),
    (JSON, JSONSchema(TRUE_A), '{"a":true}'.__eq__, 6),
    (JSON, JSONSchema(ONES), lambda text: parses(text, one_or_array), 5),
]  # fmt: skip


@pytest.mark.parametrize(
    ("tokenizer", "spec", "matches", "longest"), CASES, ids=lambda value: repr(value)[:40] if "(" in repr(value) else None
)
def test_masks_are_exact_for_every_spelling(tokenizer, spec, matches, longest):
    """After up to 2 tokens, against all texts of up to `longest` tokens: a completion is never longer than 3 or 4 here."""
    constraint, follow = as_constraint(spec, tokenizer), completions(tokenizer, matches, longest)
    paths, seen = [((), constraint.start(PROMPT))], 0
    while paths:
        row, state = paths.pop()
        found = set(np.flatnonzero(constraint.mask(state)).tolist())
        assert found == follow[row], tokenizer.decode_batch([row])
        seen += 1
        if len(row) < 2:
            paths += [((*row, token), constraint.advance(state, token)) for token in found - {EOS}]
    assert seen == sum(len(row) <= 2 for row in follow)


def saved(words, decoder, folder):
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    if decoder is not None:
        backend.decoder = decoder
    backend.add_special_tokens(["<eos>"])
    backend.save(str(folder / "tokenizer.json"))
    return FileTokenizer(folder)


LLAMA = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])


@pytest.mark.parametrize(
    ("words", "decoder", "spec", "texts"),
    [
        (["was", "good", "bad"], None, " was (good|bad)", {" was good", " was bad"}),
        (["was", "good", "##ly"], decoders.WordPiece(cleanup=False), " was good(ly)?", {" was good", " was goodly"}),
        (["▁was", "▁good", "ly"], decoders.Metaspace(), " was good(ly)?", {" was good", " was goodly"}),
        (["▁caf", "<0xC3>", "<0xA9>", "<0xA8>", "▁"], LLAMA, " caf[éè] ?", {" café", " cafè", " café ", " cafè "}),
    ],
    ids=["no decoder", "WordPiece", "Metaspace", "Llama"],
)
def test_masks_follow_the_text_of_files_whose_decoders_drop_spaces(tmp_path, words, decoder, spec, texts):
    tokenizer = saved(["<unk>", "<eos>", *words], decoder, tmp_path)
    constraint, rng = as_constraint(Regex(spec), tokenizer), np.random.default_rng(0)
    assert {walk(constraint, tokenizer, rng) for _ in range(60)} == texts


@pytest.mark.parametrize(
    ("decode", "message"),
    [
        (lambda row: " ".join(f"w{i}" for i in row), "decodes token 1 as 'w1' at the start of a text and as ' w1' behind another"),
        (lambda row: "a" * min(len(row), 3), "spells a token differently among other tokens"),
        (lambda row: "", "no token that spells anything"),
    ],
)
def test_tokenizers_whose_tokens_have_no_text_of_their_own(decode, message):
    tokenizer = SpelledTokenizer(*"abcdefgh")
    tokenizer.decode_batch = lambda ids: [decode([i for i in row if i]) for row in ids]
    with pytest.raises(ValueError, match=message):
        as_constraint(Regex("a"), tokenizer)
