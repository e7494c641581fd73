"""The scaling benchmark counts operations as torch does, and leaves files that can be opened."""

import json

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

from agents.benchmark.performance import scaling
from agents.benchmark.performance.hardware import matmul_peak, update_operations
from agents.benchmark.performance.scaling import Scaling, main
from agents.benchmark.performance.speed_workload import Speed, iterate, make_ours
from tests.figures import check_labels, legend_texts, lines_of, tick_labels


def test_operations_are_those_that_torch_counts():
    speed = Speed(vocabulary=512, layers=2, width=64, heads=2, prompt=8, new_tokens=24, episodes=8, epochs=2, batch=4, threads=1)
    model = make_ours(speed)
    iterate(model)
    with FlopCounterMode(display=False) as counter:
        model.train()
    assert counter.get_total_flops() == pytest.approx(update_operations(speed), rel=0.1)
    assert matmul_peak("float32", 256) > 1e8


def test_the_plot_shows_seconds_and_memory_along_each_axis():
    seconds = {"rollout": 0.01, "update": 0.02, "reference": 0.003}
    rows = [
        {"axis": axis, "value": v, "memory_mib": 100.0 + v, **{f"{part}_seconds": v * each for part, each in seconds.items()}}
        for axis, values in scaling.AXES.items()
        for v in values
    ]
    figure = scaling.draw(rows)
    check_labels(figure)
    assert len(figure.axes) == 2 * len(scaling.AXES) and legend_texts(figure.axes[0]) == list(seconds)
    for values, left, right in zip(scaling.AXES.values(), figure.axes[::2], figure.axes[1::2], strict=True):
        for line, each in zip(lines_of(left), seconds.values(), strict=True):
            np.testing.assert_allclose(line, [(v, v * each) for v in values])
        assert lines_of(right)[0].tolist() == [[v, 100 + v] for v in values]
        assert (left.get_xscale(), left.get_yscale()) == ("log", "log") and right.get_xlim()[0] == right.get_ylim()[0] == 0
        assert [label.get_text() for label in tick_labels(left.xaxis)] == list(map(str, values))


@pytest.mark.slow
def test_points_and_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(scaling.AXES, "new_tokens", (4, 16))
    rows = main(Scaling(axes=("new_tokens",), repeats=1, threads=1, out=tmp_path))
    assert [row["value"] for row in rows] == [4, 16] and all(row["memory_mib"] > 0 and 0 < row["utilisation"] < 1 for row in rows)
    assert rows == json.loads((tmp_path / "scaling.json").read_text())["points"]
    assert (tmp_path / "scaling.png").is_file() and "Seconds per iteration" in capsys.readouterr().out
    with pytest.raises(ValueError, match="colour"):
        main(Scaling(axes=("colour",), out=tmp_path))
