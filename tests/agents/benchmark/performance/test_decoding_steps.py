"""The measurement of decoding steps, on a tiny model."""

import pytest

from agents.benchmark.performance.decoding_steps import Steps, main
from agents.models.loading import load_lm, save_lm

from ...conftest import LLAMA

pytest.importorskip("peft")


def test_every_kind_is_timed(tmp_path, capsys):
    save_lm(load_lm(LLAMA), tmp_path / "model")
    steps = main(Steps(str(tmp_path / "model"), rows=3, prompt=4, new_tokens=6, rank=2, repeats=1))
    kinds = [f"{name}{how}" for name in ("full weights", "adapters") for how in ("", ", without copies", ", generate")]
    assert list(steps) == kinds
    assert min(steps.values()) > 0
    assert f"{steps['adapters']:.1f}" in capsys.readouterr().out
