"""Action masks against brute force: what is legal, and that nothing else is."""

import copy
import itertools
import json
import pickle
import re
import sys

import numpy as np
import pytest
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported

from textrl_env import IntegerTokenizer, Prompt, TextCore, TextGenerationEnv, TextTask, make_task
from textrl_env.constraints import All, AllowedTokens, BannedTokens, Grammar, JSONSchema, MinNewTokens, Regex, Vocabulary, as_constraint
from textrl_env.constraints.search import EndingSearch
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv
from textrl_env.envs.vector_env import TextGenerationVectorEnv

EOS = 0
INTEGERS = IntegerTokenizer(13)
PROMPT = Prompt("1")


def legal(constraint, tokens):
    """The ids that may follow, from an empty turn."""
    state = constraint.start(PROMPT)
    for token in tokens:
        assert constraint.mask(state)[token], (tokens, token)
        state = constraint.advance(state, token)
    return set(np.flatnonzero(constraint.mask(state)).tolist())


def text_of(tokens):
    return INTEGERS.decode_batch([tokens])[0]


@pytest.mark.parametrize(
    ("spec", "matches"),
    [
        ({"regex": "( 1| 2){1,3} 3"}, lambda text: re.fullmatch("( 1| 2){1,3} 3", text)),
        ({"regex": " 1( 1)?|( 12 1)?"}, lambda text: re.fullmatch(" 1( 1)?|( 12 1)?", text)),
        ({"regex": " (3|1[0-2]?) [45]"}, lambda text: re.fullmatch(" (3|1[0-2]?) [45]", text)),
        (Grammar('start: " 1" inner? " 2"\ninner: " 1" " 2"'), lambda text: text in (" 1 2", " 1 1 2 2")),
        ({"one_of": [" 1 2", " 1", " 12 3", " 5 5 5"]}, lambda text: text in (" 1 2", " 1", " 12 3", " 5 5 5")),
        ([{"one_of": [" 1 2", " 1", " 3"]}, {"banned_tokens": ["3"]}], lambda text: text in (" 1 2", " 1")),
        ({"regex": "( [1-4])*", "min_new_tokens": 2}, lambda text: re.fullmatch("( [1-4]){2,}", text)),
    ],
)
def test_a_token_is_legal_if_and_only_if_some_completion_matches(spec, matches):
    """All texts of up to 4 tokens; each has one spelling here, so that legal prefixes are those of matching texts."""
    constraint = as_constraint(spec, INTEGERS)
    whole = {row for n in range(5) for row in itertools.product(range(1, 13), repeat=n) if matches(text_of(row))}
    prefixes = {row[:n] for row in whole for n in range(len(row) + 1)}
    assert len(whole) > 1
    for prefix in prefixes:
        if len(prefix) > 3:
            continue
        expected = {row[len(prefix)] for row in prefixes if len(row) == len(prefix) + 1 and row[: len(prefix)] == prefix}
        if prefix in whole:
            expected.add(EOS)
        found = legal(constraint, prefix)
        if len(prefix) == 3:  # longer completions than were listed may exist
            assert expected <= found
        else:
            assert found == expected, prefix


REVIEW = make_task("review").tokenizer
SCHEMA = {
    "type": "object",
    "properties": {"stars": {"type": "integer", "minimum": 1, "maximum": 5}, "verdict": {"enum": ["see", "skip"]}},
    "required": ["stars", "verdict"],
    "additionalProperties": False,
}


def walk(constraint, tokenizer, rng, limit=200):
    state, tokens = constraint.start(PROMPT), []
    for _ in range(limit):
        token = int(rng.choice(np.flatnonzero(constraint.mask(state))))
        if token == tokenizer.eos_token_id:
            return tokenizer.decode_batch([tokens])[0]
        tokens.append(token)
        state = constraint.advance(state, token)
    return None


@pytest.mark.parametrize(
    ("spec", "accepts"),
    [
        ({"regex": " was (good|bad)( and (great|awful))?( \\.|!)"}, re.compile(" was (good|bad)( and (great|awful))?( \\.|!)").fullmatch),
        ({"regex": "[a-z]{3} é[0-9]+"}, re.compile("[a-z]{3} é[0-9]+").fullmatch),
        ({"one_of": [" superb .", " super", " sup", "naïve"]}, {" superb .", " super", " sup", "naïve"}.__contains__),
    ],
)
def test_random_masked_walks_end_in_matching_texts(spec, accepts):
    constraint, rng = as_constraint(spec, REVIEW), np.random.default_rng(0)
    texts = [walk(constraint, REVIEW, rng) for _ in range(60)]
    finished = [text for text in texts if text is not None]
    assert len(finished) > 40 and len(set(finished)) > 3
    assert all(accepts(text) for text in finished)


def test_json_schema():
    constraint, rng = as_constraint(JSONSchema(SCHEMA), REVIEW), np.random.default_rng(1)
    finished = [text for text in (walk(constraint, REVIEW, rng) for _ in range(20)) if text is not None]
    assert len(finished) > 10
    for text in finished:
        row = json.loads(text)
        assert set(row) == {"stars", "verdict"} and row["stars"] in range(1, 6) and row["verdict"] in ("see", "skip")


def test_states_never_change_and_masks_are_read_only():
    """One start, all branches in any order; each mask equals the one from scratch, and those of copies."""
    constraint, rng = as_constraint([Regex("( 1| 2){2,6} 3?"), {"min_new_tokens": 3}], INTEGERS), np.random.default_rng(0)
    states = {(): constraint.start(PROMPT)}
    for _ in range(200):
        row = list(states)[rng.integers(len(states))]
        allowed = np.flatnonzero(constraint.mask(states[row]))
        token = int(rng.choice(allowed))
        if token != EOS:
            states[(*row, token)] = constraint.advance(states[row], token)
    assert len(states) > 50
    for row, state in states.items():
        expected = legal(constraint, row)
        mask = constraint.mask(state)
        assert set(np.flatnonzero(mask).tolist()) == expected
        with pytest.raises(ValueError, match="read-only"):
            mask[0] = True
        for part, each in zip(constraint.parts, state, strict=True):
            assert not part.mask(each).flags.writeable
            other_part, other = pickle.loads(pickle.dumps((part, each)))
            np.testing.assert_array_equal(other_part.mask(other), part.mask(each))
            np.testing.assert_array_equal(part.mask(copy.deepcopy(each)), part.mask(each))


def test_a_search_that_is_cut_short_allows_what_it_cannot_decide():
    """No token spells "x" alone: " 9" leads nowhere, but the texts of ones and nines behind it never end."""
    constraint = Regex("( 1| 9)* 9x| 1").bind(Vocabulary(INTEGERS))
    start = constraint.start(PROMPT)
    assert set(np.flatnonzero(constraint.mask(start)).tolist()) == {1, 9}
    search = EndingSearch(constraint._ids, constraint._after, limit=50, depth_first=20)
    assert search.can_end(constraint._after(start.matcher, 9)) and search.left == 0
    finite = Regex(" 9( 1| 9){0,2} 9x| 1").bind(Vocabulary(INTEGERS))
    assert np.flatnonzero(finite.mask(finite.start(PROMPT))).tolist() == [1]


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ImportError, match=r"a regex constraint needs llguidance: pip install 'textrl-env\[constraints\]'"):
        as_constraint({"regex": " 1"}, INTEGERS)
    assert legal(as_constraint({"one_of": [" 1"]}, INTEGERS), []) == {1}


def test_all_nests():
    parts = All(Regex("( [1-4])*"), All(BannedTokens([2]), MinNewTokens(1)))
    assert legal(as_constraint(parts, INTEGERS), []) == {1, 3, 4}
    assert legal(as_constraint([parts, {"allowed_tokens": [4]}], INTEGERS), [4]) == {EOS, 4}


def test_tokens():
    assert legal(as_constraint(AllowedTokens([3, "4"]), INTEGERS), []) == {EOS, 3, 4}
    assert legal(as_constraint(BannedTokens([*range(1, 12)]), INTEGERS), [12]) == {EOS, 12}
    assert EOS not in legal(as_constraint(MinNewTokens(1), INTEGERS), [])
    with pytest.raises(ValueError, match="'4 5' is not one token"):
        as_constraint(AllowedTokens(["4 5"]), INTEGERS)


def test_if_nothing_is_left_end_of_text_alone_is_legal():
    assert legal(as_constraint([{"regex": " 1 2"}, {"banned_tokens": [2]}], INTEGERS), [1]) == {EOS}


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ({"regexp": "a"}, ValueError, "no constraint is called 'regexp' \\(did you mean 'regex'"),
        ("a", TypeError, "pass a Constraint"),
        ({"regex": "(a"}, ValueError, "cannot be compiled"),
        ({"one_of": []}, ValueError, "at least one text"),
        ({"one_of": ["word"]}, ValueError, "no tokens of the vocabulary spell 'word'"),
        ({"min_new_tokens": -1}, ValueError, "min_new_tokens=-1"),
        ({"min_new_tokens": "3"}, TypeError, "min_new_tokens='3' is a str: pass an integer"),
        ({"banned_tokens": "12"}, TypeError, "pass a list of ids or spellings"),
        ({"allowed_tokens": [13]}, ValueError, "13 is not one token of the vocabulary \\[0, 13\\)"),
        ({"regex": 5}, TypeError, "pass the pattern as a string"),
        ({"regex": " 1x"}, ValueError, "no tokens of the vocabulary spell a text that regex ' 1x' matches"),
        ({"regex": "(?=a)"}, ValueError, "cannot be compiled"),
        ({"json_schema": "{"}, ValueError, "is no JSON"),
        ({"json_schema": 3}, TypeError, "pass the schema as a dict"),
        ({"json_schema": {"not": {"const": 3}}}, ValueError, "cannot be compiled"),
        (Regex, TypeError, "pass a Constraint"),
    ],
)
def test_bad_constraints(spec, error, message):
    with pytest.raises(error, match=message):
        as_constraint(spec, INTEGERS)


def test_bytes_of_a_byte_level_vocabulary_are_those_of_the_decoder():
    spellings = Vocabulary(REVIEW).token_bytes
    rng = np.random.default_rng(0)
    for _ in range(50):
        row = rng.integers(2, REVIEW.vocab_size, 12).tolist()
        assert b"".join(spellings[i] for i in row).decode(errors="replace") == REVIEW.decode_batch([row])[0]


def test_masks_in_all_shells():
    task = TextTask(INTEGERS, [PROMPT], 5, constraint={"regex": " 1( 2| 3)"})
    scalar = TextGenerationEnv(task)
    scalar.reset(seed=0)
    assert np.flatnonzero(scalar.action_masks()).tolist() == [1]
    scalar.step(1)
    assert np.flatnonzero(scalar.action_masks()).tolist() == [2, 3]
    vector, sb3 = TextGenerationVectorEnv(2, task), TextGenerationVecEnv(2, task)
    for env in (vector, sb3):
        env.reset()
        env.step(np.array([1, 1]))
        env.step(np.array([2, 3]))
        assert [np.flatnonzero(m).tolist() for m in env.action_masks()] == [[EOS], [EOS]]
    assert is_masking_supported(sb3)
    np.testing.assert_array_equal(get_action_masks(sb3), sb3.action_masks())


def test_an_illegal_token_ends_the_text():
    core = TextCore(TextTask(INTEGERS, [PROMPT], 5, constraint={"one_of": [" 1 2"]}), 2)
    core.restart([0, 1])
    result = core.step(np.array([1, 2]))
    assert result.terminated.tolist() == [False, True]
    assert (result.episodes[1].finish_reason, result.rewards[1]) == ("illegal", -1)


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["deepcopy", "pickle"])
def test_copies_of_environments_keep_the_state_of_their_constraints(twin):
    spec = [{"regex": " 1( 2| 3)+ 4"}, {"min_new_tokens": 4}, {"one_of": [" 1 2 3 4", " 1 2 2 4"]}]
    env = TextGenerationEnv(TextTask(INTEGERS, [PROMPT], 9, constraint=spec))
    env.reset(seed=0)
    env.step(1)
    other = twin(env)
    for token, expected in ((2, [2]), (3, [2, 3]), (4, [4]), (EOS, [EOS])):
        assert np.flatnonzero(other.action_masks()).tolist() == np.flatnonzero(env.action_masks()).tolist() == expected
        assert env.step(token)[1:4] == other.step(token)[1:4]
