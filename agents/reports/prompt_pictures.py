"""The pictures of prompts, as addresses that a page or a row of data can hold."""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode

import numpy as np


def picture_uri(image: np.ndarray) -> str:
    """Return a picture, shape (H, W, 3), uint8, as a `data:` address of a PNG."""
    return f"data:image/png;base64,{b64encode(png(image)).decode()}"


def png(image: np.ndarray) -> bytes:
    """Return the bytes of a PNG: 8 bits a colour, no row filtered (W3C 2003, "Portable Network Graphics Specification")."""
    height, width, _ = image.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), image.reshape(height, -1)], 1)  # (H, 1 + 3 W): each row's filter, none, first
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(rows.tobytes())), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
