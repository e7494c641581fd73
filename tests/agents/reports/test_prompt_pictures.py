"""Pictures of prompts in pages and rows of data."""

import io
from base64 import b64decode

import numpy as np
from PIL import Image

from agents.reports.prompt_pictures import picture_uri


def test_a_picture_comes_back_pixel_by_pixel():
    image = np.random.default_rng(0).integers(256, size=(5, 7, 3), dtype=np.uint8)
    kind, data = picture_uri(image).split(",")
    assert kind == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(b64decode(data)))), image)
