import numpy as np
import pytest

from textrl_env import Prompt
from textrl_env.prompts.reader import read_prompts, split_prompts


def test_a_split_depends_on_text_and_seed_alone():
    texts = [f"prompt {i % 3000}" for i in range(6000)]
    parts = split_prompts(read_prompts(texts))
    assert {name: part.indices.tolist() for name, part in parts.items()} == {
        name: part.indices.tolist() for name, part in split_prompts([Prompt(text) for text in texts]).items()
    }
    sets = {name: {p.text for p in part} for name, part in parts.items()}
    assert sum(map(len, sets.values())) == len(set(texts)) == 3000  # no text in two parts, none lost
    assert sorted(np.concatenate([part.indices for part in parts.values()])) == list(range(6000))
    for name, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        assert abs(len(sets[name]) - 3000 * share) < 5 * np.sqrt(3000 * share * (1 - share))
    grown = split_prompts(read_prompts([f"new {i}" for i in range(500)] + texts))
    assert all({p.text for p in grown[name] if not p.text.startswith("new")} == sets[name] for name in sets)
    other = split_prompts(read_prompts(texts), seed=1)
    assert {p.text for p in other["test"]} != sets["test"]


def test_a_split_is_the_same_on_every_machine():
    """Keyed 64-bit BLAKE2b of a, b, c, d as a share of 2**64: 0.5095, 0.9548, 0.6823 and 0.9392 under seed 0."""
    parts = split_prompts([Prompt(text) for text in "abcd"], {"low": 0.5094, "middle": 0.4297, "high": 0.0609})  # edges 0.5094, 0.9391
    assert {name: [p.text for p in part] for name, part in parts.items()} == {"low": [], "middle": ["a", "c"], "high": ["b", "d"]}


@pytest.mark.parametrize("fractions", [{"a": 0.5, "b": 0.4}, {"a": 1.0, "b": 0.0}, {"a": 1.5, "b": -0.5}, {"a": float("nan")}, {}])
def test_fractions_must_add_up(fractions):
    with pytest.raises(ValueError, match="each must be above 0, and their sum 1"):
        split_prompts([Prompt("a")], fractions)
