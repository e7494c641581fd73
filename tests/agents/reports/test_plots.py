"""Plots show the numbers that they were given, and every label can be read."""

import base64

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from agents.reports.plots import data_uri, interval_bars, look, new_figure, panel_grid, reach, save
from agents.reports.reward_plots import accuracies, histogram, reliability_diagram
from agents.reports.training_plots import Curve, frontier, learning_curve, running_mean, small_multiples
from rewards.fitting.calibration import reliability
from rewards.utils.intervals import Rate
from tests.figures import bars_of, check_labels, legend_texts, lines_of, overlap, tick_labels

STRAIGHT = np.linspace(0, 5, 30)
CURVES = {"a": Curve("costs $5 and $", STRAIGHT * 100, STRAIGHT, -STRAIGHT, STRAIGHT**2), "b": Curve("_one point", *np.ones((4, 1)))}


def test_running_mean_by_hand():
    np.testing.assert_allclose(running_mean(np.array([0.0, 3.0, 6.0, 0.0]), 3), [0, 3, 3, 3])
    np.testing.assert_allclose(running_mean(np.array([1.0, np.nan, 3.0]), 3), [1, 2, 3])
    np.testing.assert_allclose(running_mean(np.arange(6.0), 5), [0, 1, 2, 3, 3.5, 4])
    assert np.isnan(running_mean(np.array([np.nan]), 1)[0])


def test_intervals_reach_from_their_low_to_their_high_end():
    estimates = [(2.0, 1.0, 5.0), (0.5, 0.6, 0.7)]  # the second value lies below its interval
    np.testing.assert_allclose(reach(estimates), [[1.0, 0.0], [3.0, 0.2]])
    _, (left, right) = panel_grid(2, 2, 3, 3)
    interval_bars(left, [0, 1], estimates)
    interval_bars(right, [0, 1], estimates, across=True)
    for axes in (left, right):
        np.testing.assert_allclose(bars_of(axes), [(0, 2.0, 1.0, 5.0), (1, 0.5, 0.5, 0.7)])


def test_every_look_of_a_legend_is_another():
    assert len({tuple(look(i).values()) for i in range(84)}) == 84


def test_unused_panels_are_hidden():
    figure, panels = panel_grid(5, 4, 2.0, 1.5)
    assert [axes.get_visible() for axes in figure.axes] == [True] * 5 + [False] * 3 and panels == figure.axes[:5]
    assert figure.get_size_inches().tolist() == [8.0, 3.0]


def test_a_saved_picture_has_the_size_of_the_figure_and_nothing_else_is_left(tmp_path):
    before = plt.get_fignums()
    figure = new_figure(2.0, 3.0)
    figure.subplots().plot([0, 1])
    save(figure, tmp_path / "new" / "plot.png")
    with Image.open(tmp_path / "new" / "plot.png") as image:
        assert image.size == (3 * figure.dpi, 2 * figure.dpi)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["plot.png"] and plt.get_fignums() == before
    head, _, data = data_uri(tmp_path / "new" / "plot.png").partition(",")
    assert head == "data:image/png;base64" and base64.b64decode(data) == (tmp_path / "new" / "plot.png").read_bytes()
    assert data_uri(figure).startswith("data:image/png;base64,iVBOR")


def test_labels_that_cover_each_other_are_noticed():
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    diamond = np.array([[1, 0], [2, 1], [1, 2], [0, 1]])
    assert overlap(square, square + 0.9) and not overlap(square, square + np.array([1, 0]))
    assert overlap(square, diamond) and not overlap(square * 0.4, diamond)  # whose bounding boxes do
    figure = new_figure(2.0, 3.0)
    axes = figure.subplots()
    axes.set_xticks([0, 0.1, 1], ["a long label", "and another", "far away"])
    with pytest.raises(AssertionError, match="'a long label' and 'and another' cover each other"):
        check_labels(figure)


def test_frontier_shows_scores_against_the_root_of_kl():
    figure = frontier(CURVES)
    check_labels(figure)
    (axes,) = figure.axes
    learned, gold, *point = lines_of(axes)
    smooth = running_mean(STRAIGHT, 3)
    np.testing.assert_allclose(learned, np.stack([smooth, smooth], 1))  # sqrt(x^2) = x
    np.testing.assert_allclose(gold, np.stack([smooth, -smooth], 1))
    assert [line.tolist() for line in point] == [[[1, 1]], [[1, 1]]]
    ticks = {tick.get_text(): tick.get_position()[0] for tick in tick_labels(axes.xaxis)}
    assert ticks == {"0": 0, "1": 1, "4": 2, "9": 3, "16": 4, "25": 5}
    assert legend_texts(figure) == ["costs $5 and $", "_one point", "learned score", "gold score"]


def test_learning_curve_shows_scores_and_kl_against_texts():
    figure = learning_curve(CURVES)
    check_labels(figure)
    scores, divergence = figure.axes
    for line, y in zip(lines_of(scores)[:2], (STRAIGHT, -STRAIGHT), strict=True):
        np.testing.assert_allclose(line, np.stack([100 * STRAIGHT, running_mean(y, 3)], 1))
    kl, one_point = lines_of(divergence)
    np.testing.assert_allclose(kl, np.stack([100 * STRAIGHT, running_mean(STRAIGHT**2, 3)], 1))
    assert one_point.tolist() == [[1, 1]] and scores.get_xlim() == divergence.get_xlim()
    assert scores.get_xlim()[0] <= 0 and scores.get_xlim()[1] >= 500 and divergence.get_ylim()[1] >= 24


@pytest.mark.parametrize("draw", [frontier, learning_curve])
def test_nothing_to_draw_is_said(draw):
    with pytest.raises(ValueError, match="at least one variant"):
        draw({})
    with pytest.raises(ValueError, match="'a' has no rows"):
        draw({"a": Curve("a", *np.ones((4, 0)))})


@pytest.mark.parametrize("names", [("ppo",), ("ppo", "reinforce++-baseline", "dpo", "expert-iteration", "sft")])
def test_small_multiples_have_a_panel_for_each_algorithm(names):
    figure = small_multiples({name: [[(0.5, i), (1.0, i + 1)], [(0.5, 0), (1.0, 0)]] for i, name in enumerate(names)}, -0.5)
    check_labels(figure)
    for i, (axes, name) in enumerate(zip(figure.axes, names, strict=False)):
        one, other, level = lines_of(axes)
        assert one.tolist() == [[50, i], [100, i + 0.5]] and other.tolist() == [[50, 0], [100, 0]]
        assert level[:, 1].tolist() == [-0.5, -0.5] and axes.get_title() == name


def test_histogram_counts_every_score_and_marks_the_mean():
    values = np.repeat([0.0, 1.0, 4.0], [50, 30, 20])
    figure = histogram(values, "length, 100 texts")
    check_labels(figure)
    (axes,) = figure.axes
    counts = [patch.get_height() for patch in axes.patches]
    assert len(counts) == 10 and [count for count in counts if count] == [50, 30, 20]
    assert lines_of(axes)[0][:, 0].tolist() == [1.1, 1.1] and axes.get_title() == "length, 100 texts"


def test_accuracies_stand_side_by_side_with_their_intervals():
    rows = [("-400 to -120", Rate(0.6, 0.5, 0.7, 90)), ("-119 to -20", Rate(0.7, 0.6, 0.8, 90)), ("-19 to +21", Rate(0.9, 0.8, 0.95, 90))]
    figure = accuracies(rows, "characters that the preferred response is longer")
    check_labels(figure)
    (axes,) = figure.axes
    np.testing.assert_allclose(bars_of(axes), [(0, 0.6, 0.5, 0.7), (1, 0.7, 0.6, 0.8), (2, 0.9, 0.8, 0.95)])
    assert [tick.get_text() for tick in tick_labels(axes.xaxis)] == ["-400\nto -120", "-119\nto -20", "-19\nto +21"]
    assert lines_of(axes)[0][:, 1].tolist() == [0.5, 0.5]


def test_reliability_diagram_shows_each_model_against_the_diagonal():
    margins = np.random.default_rng(0).normal(1, 1.5, 400)
    bins = {name: reliability(margins / scale, np.ones(400)) for name, scale in (("as fitted", 1), ("with temperature", 2))}
    figure = reliability_diagram(bins)
    check_labels(figure)
    (axes,) = figure.axes
    diagonal, *drawn = lines_of(axes)
    assert diagonal.tolist() == [[0.5, 0.5], [1, 1]] and legend_texts(axes) == list(bins)
    for line, own in zip(drawn, bins.values(), strict=True):
        np.testing.assert_array_equal(line, np.stack([own.confidence, own.frequency], 1))
