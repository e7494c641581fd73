"""`textrl/Caption-v0`: what pictures show, and what captions of them are worth."""

import numpy as np
import pytest

from textrl_env import make_task
from textrl_env.tasks.diagnostic import caption
from textrl_env.tasks.diagnostic.caption import COLOURS, Thing

NAME = "picture 0 0 0 7"


def things_in(image):
    """Find the things in a picture by their colours alone: (colour, columns, rows, pixels), from left to right."""
    found = []
    for colour, value in COLOURS.items():
        rows, columns = np.nonzero((image == value).all(-1))
        for cell in np.unique(columns // 12):
            inside = columns // 12 == cell
            found.append((int(cell), colour, np.ptp(columns[inside]) + 1, np.ptp(rows[inside]) + 1, int(inside.sum())))
    return sorted(found)


# Pixels in a box of 9 x 9: a disc of radius 4, all, rows of 1, 1, 3, 3, 5, 5, 7, 7, 9 pixels, and two bars of 3 x 9
PIXELS = {"circle": 49, "square": 81, "triangle": 41, "cross": 45}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_pictures_show_what_the_caption_says(number):
    for name in (f"picture 0 1 2 {digit}" for digit in range(10)):
        things, shown = caption.scene(number, name), things_in(caption.picture(number, name))
        assert [colour for _, colour, *_ in shown] == [thing.colour for thing in things]
        assert [pixels for *_, pixels in shown] == [PIXELS[thing.form] for thing in things]
        assert all((width, height) == (9, 9) for _, _, width, height, _ in shown)
        assert caption.caption(number, name) == " and ".join(f"{thing.colour} {thing.form}" for thing in things)
        np.testing.assert_array_equal(caption.picture(number, name), caption.picture(number, name))


def test_triangles_stand_on_their_base():
    y, x = np.mgrid[-4:5, -4:5]
    assert [int(row.sum()) for row in caption._covered("triangle", np.abs(x), y)] == [1, 1, 3, 3, 5, 5, 7, 7, 9]


def test_facts_in_their_order_are_counted(monkeypatch):
    monkeypatch.setattr(caption, "scene", lambda number, name: [Thing("red", "circle", 6, 6), Thing("blue", "cross", 18, 6)])
    said = {
        " red circle and blue cross": 1,
        " blue cross and red circle": 0,
        " red square and blue cross": 3 / 4,
        " red circle": 1 / 2,
        " red circle and blue cross and red circle": 4 / 6,
        " red circle blue cross": 0,  # no caption of the grammar
        " circle red and blue cross": 1 / 2,
        "": 0,
    }
    np.testing.assert_allclose(caption.gold(2, [NAME] * len(said), list(said)), list(said.values()))


@pytest.mark.parametrize("size", ["1", "2", "3"])
def test_splits_share_no_scene_and_references_reach_the_optimum(size):
    tasks = [make_task(f"caption-{size}", split=split) for split in ("train", "validation", "test")]
    assert [len(task.prompts) for task in tasks] == [512, 128, 256]
    scenes = [str(caption.scene(int(size), prompt.text)) for task in tasks for prompt in task.prompts]
    assert len(set(scenes)) == len(scenes)
    for task in tasks:
        assert task.image_shape == (36, 36, 3)
        responses = [f" {prompt.references[0]}" for prompt in task.prompts]
        np.testing.assert_array_equal(task.gold([p.text for p in task.prompts], responses), 1)
        assert max(map(len, task.tokenizer.encode_batch(responses))) + 1 == task.max_new_tokens


def test_corpus_is_right_in_seven_facts_of_ten():
    task = make_task("caption-2")
    pairs = task.recipe.corpus()
    assert task.gold(*zip(*pairs, strict=True)).mean() == pytest.approx(0.6 + 0.4 / 4, abs=0.02)
    prompt, response = task.recipe.texts()[0]
    assert (prompt.text, response) == pairs[0]
    np.testing.assert_array_equal(prompt.image, caption.picture(2, prompt.text))


@pytest.mark.parametrize("name", ["a red dog", "picture", "picture 1 2 3", "picture 1 2 3 x", "picture 1 2 3 44"])
def test_names_of_no_picture_are_refused(name):
    with pytest.raises(ValueError, match="names no picture: write 'picture' and four digits"):
        caption.picture(1, name)
