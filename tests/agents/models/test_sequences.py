"""Scoring in chunks equals scoring at once."""

import numpy as np
import pytest
import torch

from agents.models import log_probs
from agents.models.backbones import backbone_of
from agents.models.loading import load_lm
from agents.models.log_probs import action_log_probs
from agents.models.sampler import Sampler, pack_kept
from agents.models.sequences import TextRecord, pack

from ..conftest import LLAMA, VOCAB


@pytest.mark.parametrize("cut", [False, True], ids=["all tokens", "kept sets"])
@pytest.mark.parametrize("at_once", [VOCAB, 5 * VOCAB, VOCAB - 1])
def test_chunks_change_neither_numbers_nor_gradients(monkeypatch, cut, at_once):
    """Of a head that is called; what `agents.models.lm_head` does is in test_head.py."""
    rng = np.random.default_rng(0)
    lm = load_lm(LLAMA)
    backbone = backbone_of(lm)
    monkeypatch.setattr(type(backbone), "head", None)
    texts = [TextRecord(rng.integers(1, VOCAB, 3), rng.integers(1, VOCAB, n), 0) for n in (4, 1, 7)]
    actions = torch.from_numpy(np.concatenate([t.actions for t in texts]))
    kept = torch.rand(12, VOCAB) < 0.6
    kept[torch.arange(12), actions] = True
    sampler = Sampler(temperature=0.7, min_new_tokens=2, eos_token_id=0)
    batch = pack(texts, "cpu", pack_kept(kept).numpy() if cut else None, sampler)

    def outcome():
        lm.zero_grad()
        found, entropies = action_log_probs(backbone, backbone.hidden(batch), batch, actions, sampler, VOCAB)
        (found.sum() + 0.3 * entropies.square().sum()).backward()
        return found, entropies, [p.grad.clone() for p in lm.parameters()]

    whole, entropies, gradients = outcome()
    monkeypatch.setattr(log_probs, "LOGITS_AT_ONCE", at_once)
    with torch.no_grad():
        plain = action_log_probs(backbone, backbone.hidden(batch), batch, actions, sampler, VOCAB)
    chunked = outcome()
    for found in (plain, chunked[:2]):
        torch.testing.assert_close(found[0], whole, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(found[1], entropies, atol=1e-6, rtol=1e-6)
    for one, two in zip(gradients, chunked[2], strict=True):
        torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-5)
    assert all(g.abs().max() > 0 for g in gradients)


@pytest.mark.slow
def test_the_memory_benchmark_measures(capsys):
    from agents.benchmark.performance.updates.large_vocabulary import Memory, main

    main(Memory(vocabulary=65_536, width=16, layers=1, texts=8, new_tokens=64, repeats=1))
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    peak = {row[1].strip(): float(row[2].replace(",", "")) for row in rows}
    assert peak["blocks"] < 0.6 * peak["plain"]  # 128 MiB of logits, several times over, against those that are kept
    assert peak["chunks"] < 0.6 * peak["plain"]
