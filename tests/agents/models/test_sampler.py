"""Sampling rules against distributions worked out by brute force."""

import numpy as np
import pytest
import torch

from agents.models.log_probs import log_prob_and_entropy
from agents.models.sampler import Sampler, draw, invert, pack_kept, restrict, unpack_kept

LOGITS = torch.log(torch.tensor([[0.5, 0.25, 0.15, 0.1], [0.1, 0.2, 0.3, 0.4]]))


def test_temperature_by_hand():
    out = Sampler(temperature=0.5).apply_rules(LOGITS).softmax(-1)
    squares = np.array([0.25, 0.0625, 0.0225, 0.01])
    np.testing.assert_allclose(out[0], squares / squares.sum(), atol=1e-6)


def test_minimum_length_withholds_end_of_text_only_while_too_short():
    sampler = Sampler(min_new_tokens=3, eos_token_id=0)
    withheld = sampler.withheld([np.array([1, 2]), np.array([1, 2, 3])], [np.array([2]), np.array([3])])
    assert withheld.tolist() == [[0], [0]]
    out = sampler.apply_rules(LOGITS, torch.from_numpy(withheld)).softmax(-1)
    np.testing.assert_allclose(out[0], [0, 0.5, 0.3, 0.2], atol=1e-6)
    np.testing.assert_allclose(out[1], [0.1, 0.2, 0.3, 0.4], atol=1e-6)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"top_k": 2}, [[1, 1, 0, 0], [0, 0, 1, 1]]),
        ({"top_k": 9}, [[1, 1, 1, 1], [1, 1, 1, 1]]),
        ({"top_p": 0.4}, [[1, 0, 0, 0], [0, 0, 0, 1]]),
        ({"top_p": 0.74}, [[1, 1, 0, 0], [0, 1, 1, 1]]),
        ({"top_k": 3, "top_p": 0.8}, [[1, 1, 0, 0], [0, 1, 1, 1]]),  # after top-k: .56 .28 .17 and .44 .33 .22
    ],
)
def test_cuts_by_hand(rules, expected):
    assert Sampler(**rules).cut(LOGITS).int().tolist() == expected


def test_nothing_is_cut_by_default():
    assert Sampler().cut(LOGITS) is None


def test_draws_follow_the_distribution_and_never_take_what_is_withheld():
    torch.manual_seed(0)
    probability = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    drawn = draw(probability.log().clamp(min=-1e9).expand(20_000, -1))
    counts = np.bincount(drawn.numpy(), minlength=6)
    assert counts[[0, 2, 5]].sum() == 0
    # chi-square with 2 degrees of freedom exceeds 13.8 once in a thousand
    expected = 20_000 * np.array([0.5, 0.3, 0.2])
    assert ((counts[[1, 3, 4]] - expected) ** 2 / expected).sum() < 13.8


def test_restriction_renormalises():
    kept = torch.tensor([[True, True, False, False], [False, True, True, True]])
    out = restrict(LOGITS, kept).softmax(-1)
    np.testing.assert_allclose(out, [[2 / 3, 1 / 3, 0, 0], [0, 2 / 9, 3 / 9, 4 / 9]], atol=1e-6)


@pytest.mark.parametrize("vocab_size", [8, 9, 24, 31])
def test_kept_sets_survive_packing(vocab_size):
    kept = torch.rand(5, vocab_size) < 0.4
    packed = pack_kept(kept)
    assert packed.shape == (5, -(-vocab_size // 8))
    assert torch.equal(unpack_kept(packed, vocab_size), kept)


def test_log_prob_and_entropy_equal_torch_and_its_gradients():
    raw = torch.randn(6, 11, dtype=torch.float64)
    raw[0, 3] = -1e9  # a token that a rule withholds
    actions = torch.tensor([0, 1, 10, 5, 5, 2])
    weights = torch.randn(2, 6, dtype=torch.float64)
    gradients = []
    for own in (True, False):
        logits = raw.clone().requires_grad_()
        if own:
            log_prob, entropy = log_prob_and_entropy(logits, actions)
        else:
            distribution = torch.distributions.Categorical(logits=logits)
            log_prob, entropy = distribution.log_prob(actions), distribution.entropy()
        ((log_prob * weights[0]).sum() + (entropy * weights[1]).sum()).backward()
        gradients.append((log_prob.detach(), entropy.detach(), logits.grad))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize(
    "rules", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"min_new_tokens": -1}, {"min_new_tokens": 2}]
)
def test_rules_out_of_range_are_refused(rules):
    with pytest.raises(ValueError, match=next(iter(rules))):
        Sampler(**rules)


@pytest.mark.parametrize("columns", [5, 512, 4097, 5000, 8192])
def test_large_vocabularies_are_inverted_block_by_block(columns):
    """Against the running sum over all columns; of small integers every sum is exact, so every draw is the same."""
    rng = np.random.default_rng(columns)
    weights = rng.integers(0, 4, size=(6, columns)).astype(np.float32)
    weights[1, : columns // 2] = weights[2, columns // 2 :] = 0
    weights[3] = np.arange(columns) == columns - 1
    weights[4] = np.arange(columns) == 0
    u = np.concatenate([rng.random((6, 200)), np.zeros((6, 1)), np.full((6, 1), 1 - 2.0**-53)], 1)
    mass = weights.cumsum(1, dtype=np.float64)
    for column in u.T[:, :, None]:
        drawn = invert(torch.from_numpy(weights), torch.from_numpy(np.ascontiguousarray(column))).numpy()
        target = np.minimum(column * mass[:, -1:], np.nextafter(mass[:, -1:], 0))
        assert drawn.ravel().tolist() == [int(np.searchsorted(m, t[0], side="right")) for m, t in zip(mass, target, strict=True)]
        assert (np.take_along_axis(weights, drawn, 1) > 0).all()
