"""Images in [0, 1] as PNG."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def png(image: np.ndarray) -> bytes:
    """Encode image_CHW in [0, 1] as PNG with 8 bits a channel, at its own size; C other than 1 and 3 as their mean."""
    shown = image if len(image) in (1, 3) else image.mean(axis=0, keepdims=True)
    levels = np.rint(np.clip(shown, 0, 1) * 255).astype(np.uint8)
    pixels = levels[0] if len(levels) == 1 else np.moveaxis(levels, 0, -1)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def difference(image: np.ndarray, clean: np.ndarray, most: float) -> np.ndarray:
    """Stretch image - clean, both CHW, to [0, 1]: -most is 0, no change 0.5, +most 1.

    most: above 0.
    """
    return np.clip(0.5 + (image - clean) / (2 * most), 0, 1)
