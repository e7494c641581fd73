"""The pictures of prompts, as addresses that a page or a row of data can hold."""

from __future__ import annotations

import io
from base64 import b64encode

import numpy as np


def png_uri(png: bytes) -> str:
    """Return the bytes of a PNG as a `data:` address."""
    return f"data:image/png;base64,{b64encode(png).decode()}"


def picture_uri(image: np.ndarray) -> str:
    """Return a picture, shape (H, W, 3), uint8, as a `data:` address of a PNG."""
    from PIL import Image  # only texts with pictures pay for it

    Image.fromarray(image).save(drawn := io.BytesIO(), format="PNG")
    return png_uri(drawn.getvalue())
