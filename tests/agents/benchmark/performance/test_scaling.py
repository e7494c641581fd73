"""The scaling benchmark counts operations as torch does, and leaves files that can be opened."""

import json

import pytest
from torch.utils.flop_counter import FlopCounterMode

from agents.benchmark.performance import scaling
from agents.benchmark.performance.hardware import matmul_peak, update_operations
from agents.benchmark.performance.scaling import Scaling, main
from agents.benchmark.performance.speed_workload import Speed, iterate, make_ours


def test_operations_are_those_that_torch_counts():
    speed = Speed(vocabulary=512, layers=2, width=64, heads=2, prompt=8, new_tokens=24, episodes=8, epochs=2, batch=4, threads=1)
    model = make_ours(speed)
    iterate(model)
    with FlopCounterMode(display=False) as counter:
        model.train()
    assert counter.get_total_flops() == pytest.approx(update_operations(speed), rel=0.1)
    assert matmul_peak("float32", 256) > 1e8


@pytest.mark.slow
def test_points_and_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(scaling.AXES, "new_tokens", (4, 16))
    rows = main(Scaling(axes=("new_tokens",), repeats=1, threads=1, out=tmp_path))
    assert [row["value"] for row in rows] == [4, 16] and all(row["memory_mib"] > 0 and 0 < row["utilisation"] < 1 for row in rows)
    assert rows == json.loads((tmp_path / "scaling.json").read_text())["points"]
    assert (tmp_path / "scaling.png").stat().st_size > 1000 and "Seconds per iteration" in capsys.readouterr().out
    with pytest.raises(ValueError, match="colour"):
        main(Scaling(axes=("colour",), out=tmp_path))
