"""What a figure shows, read off its artists: data, labels, and whether two labels cover each other at the size at which it is saved."""

from itertools import combinations

import numpy as np
from matplotlib.text import Text
from matplotlib.transforms import Affine2D


def lines_of(axes):
    """Return the (x, y) data of each line that joins points, shape (n, 2)."""
    return [line.get_xydata() for line in axes.lines if line.get_linestyle() not in ("None", "", " ")]


def bars_of(axes):
    """Return (value, low, high) of each interval bar that lies across, from left to right data coordinates, and its height."""
    rows = []
    for container in axes.containers:
        marker, _, (bars,) = container.lines
        for (x, y), segment in zip(marker.get_xydata(), bars.get_segments(), strict=True):
            across = segment[0][1] == segment[1][1]
            value, place = (x, y) if across else (y, x)
            rows.append((float(place), float(value), *map(float, segment[:, 0 if across else 1])))
    return rows


def tick_labels(axis):
    """Return the texts of the tick labels that lie within the limits."""
    low, high = sorted(axis.get_view_interval())
    labels = [(tick.get_loc(), tick.label1) for tick in axis.get_major_ticks()]
    return [label for place, label in labels if low - 1e-9 <= place <= high + 1e-9 and label.get_text() and label.get_visible()]


def legend_texts(owner):
    """Return what the legends of axes or of a figure say."""
    legends = owner.legends if hasattr(owner, "legends") else [owner.get_legend()]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def texts_of(figure):
    """Return every text that is drawn."""
    legends = [*figure.legends, *filter(None, (axes.get_legend() for axes in figure.axes))]
    texts = [text for legend in legends for text in legend.get_texts()]
    texts += [figure._supxlabel, figure._supylabel]
    for axes in figure.axes:
        if axes.get_visible():
            texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts, *tick_labels(axes.xaxis), *tick_labels(axes.yaxis)]
    return [text for text in texts if text is not None and text.get_text().strip()]


def outline(text: Text):
    """Return the corners of a text's bounding box in pixels, shape (4, 2); the box turns with the text."""
    turned = text.get_rotation()
    if text.get_rotation_mode() != "anchor":
        return text.get_window_extent().corners()[[0, 1, 3, 2]]
    text.set_rotation(0)
    corners = text.get_window_extent().corners()[[0, 1, 3, 2]]
    text.set_rotation(turned)
    anchor = text.get_transform().transform(text.get_unitless_position())
    return Affine2D().rotate_deg_around(*anchor, turned).transform(corners)


def overlap(one, other):
    """Return whether two convex outlines share an area: no side of either has all of the other beyond it."""
    for corners in (one, other):
        for side in np.roll(corners, -1, axis=0) - corners:
            normal = np.array([-side[1], side[0]])
            a, b = one @ normal, other @ normal
            if a.max() <= b.min() + 1e-6 or b.max() <= a.min() + 1e-6:
                return False
    return True


def check_labels(figure):
    """Assert that every label lies within the picture, and that no two cover each other."""
    figure.canvas.draw()
    outlines = [(text.get_text(), outline(text)) for text in texts_of(figure)]
    assert outlines
    for label, corners in outlines:
        assert (corners >= -1).all() and (corners <= figure.bbox.max + 1).all(), f"{label!r} is cut off"
    for (a, one), (b, other) in combinations(outlines, 2):
        assert not overlap(one, other), f"{a!r} and {b!r} cover each other"
