"""The study of feedback rounds: its interval by hand, and its plot."""

import numpy as np
import pytest
from scipy import stats

from agents.benchmark.studies.feedback_rounds import ARMS, draw, interval
from tests.figures import bars_of, check_labels, tick_labels


def test_interval_is_students():
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(stats.t.ppf(0.975, 2) / np.sqrt(3))


def test_the_plot_has_a_row_for_each_arm():
    rng = np.random.default_rng(0)
    gains = {arm.name: rng.normal(0.5, 0.1, 5) for arm in ARMS}
    figure = draw(gains)
    check_labels(figure)
    (axes,) = figure.axes
    assert {label.get_text(): label.get_position()[1] for label in tick_labels(axes.yaxis)} == {
        arm.name: 6 - i for i, arm in enumerate(ARMS)
    }
    for (place, mean, low, high), (i, values) in zip(bars_of(axes), enumerate(gains.values()), strict=True):
        half = interval(values)[1]
        assert (place, mean, low, high) == pytest.approx((6 - i, values.mean(), values.mean() - half, values.mean() + half))
    ticks = [line.get_xdata() for line in axes.lines if line.get_marker() == "|" and len(line.get_xdata()) == 5]
    assert [list(x) for x in ticks] == [list(values) for values in gains.values()]
