"""One picture file -> 8-bit pixels, whatever its bit depth, palette, colours and orientation. Formats are Pillow's."""

from __future__ import annotations

import io
import warnings
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".webp"),
    *(".gif", ".tif", ".tiff"),
)
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow looks at the content, not at the name: without this list it starts Ghostscript for PostScript called x.png."""
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0
"""Tags of TIFF."""


class UnreadableError(Exception):
    """A file that is no picture that can be used; the text says why."""


def decode(file: Path | bytes, mode: str) -> tuple[Image.Image, int]:
    """Decode the first picture in a file, upright; return it and the number of pictures in the file.

    file: its path, or its content.
    mode: of the result, "L" (grey) or "RGB". More than 8 bits are cut to the upper 8, fewer are stretched to 0..255;
        transparency is left out, as torchvision's loader does.
    Raises UnreadableError, also for integers of 32 bits and for floating point: no such file says what is white.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large pictures, odd metadata and palettes, a line for each file
        try:
            # a stream: what Pillow maps into memory by name, a turned TIFF, comes out in wrong rows
            with (
                io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as stream,
                Image.open(stream, formats=_formats()) as opened,
            ):
                return _upright(_eight_bits(opened)).convert(mode), getattr(opened, "n_frames", 1)
        except UnreadableError:
            raise
        except MemoryError:
            raise UnreadableError("memory is too small for it") from None
        except Image.UnidentifiedImageError:
            raise UnreadableError(_nature(file)) from None
        except Image.DecompressionBombError as error:
            raise UnreadableError(f"it is too large: {str(error).partition(',')[0]}") from None
        except PermissionError:
            raise UnreadableError("it may not be read") from None
        # Pillow's decoders raise whatever a bad byte leads to: OSError, SyntaxError, ValueError, struct.error, ...
        except Exception as error:
            raise UnreadableError(str(error).splitlines()[0] if str(error) else type(error).__name__) from None


@cache
def _formats() -> list[str]:
    """Those of FORMATS that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _eight_bits(opened: Image.Image) -> Image.Image:
    """Return the picture with 8 bits a channel; the metadata come along."""
    if opened.mode.startswith("I;16") or (opened.mode == "I" and opened.format in ("PNG", "PPM")):
        levels = np.asarray(opened).astype(np.int64)
        tags = getattr(opened, "tag_v2", {})
        bits = int(tags.get(BITS_PER_SAMPLE, (16,))[0])
        if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
            levels = 2**bits - 1 - levels
        grey = Image.fromarray((levels >> (bits - 8)).astype(np.uint8))
        grey.getexif().update(_exif(opened))
        return grey
    if opened.mode in ("I", "F"):
        kind = "32-bit integers" if opened.mode == "I" else "floating point"
        raise UnreadableError(f"it holds {kind}, which do not say what is white: convert it to 8 or 16 bits")
    # a palette's colours may be transparent; through RGBA they keep their values
    return opened.convert("RGBA") if opened.mode in ("P", "PA") else opened


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says; metadata that cannot be read say nothing."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:
        return picture


def _exif(opened: Image.Image) -> dict[int, object]:
    try:
        return dict(opened.getexif())
    except Exception:
        return {}


def _nature(file: Path | bytes) -> str:
    size = len(file) if isinstance(file, bytes) else file.stat().st_size
    return "it is empty" if size == 0 else f"its content is none of {', '.join(FORMATS)}"
