"""Files of every bit depth, palette, colour model and orientation, against the pixel values that they were made of."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from rdi.data.pictures import UnreadableError, decode

RAMP16 = [0, 255, 256, 0x1234, 0xABCD, 65535]
"""Levels of 16 bits; cut to 8: 0, 0, 1, 0x12, 0xAB, 255."""
CUT = [0, 0, 1, 0x12, 0xAB, 255]


def png(bits, kind, width, row, *chunks):
    """A PNG of one row by the specification: bits per sample, colour type, packed bytes of the row, further chunks."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, kind, 0, 0, 0))
    body = b"".join(chunk(*one) for one in (*chunks, (b"IDAT", zlib.compress(b"\0" + bytes(row))), (b"IEND", b"")))
    return b"\x89PNG\r\n\x1a\n" + head + body


def words(levels):
    """Big-endian 16-bit samples."""
    return struct.pack(f">{len(levels)}H", *levels)


def tiff(levels, bits, order="<", photometric=1, kind=1):
    """A TIFF of one row, from its tags. kind: SampleFormat, 1 unsigned, 2 signed, 3 floating point."""
    if bits == 12:
        joined = "".join(f"{level:012b}" for level in levels)
        data = int(joined, 2).to_bytes(len(joined) // 8, "big")
    else:
        code = {(16, 1): "H", (16, 2): "h", (32, 1): "I", (32, 2): "i", (32, 3): "f"}[bits, kind]
        data = struct.pack(f"{order}{len(levels)}{code}", *levels)
    tags = [(256, len(levels)), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 1)]
    tags += [(279, len(data)), (339, kind)]
    at = 8 + len(data) + len(data) % 2
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(f"{order}HI", 42, at) + data + b"\0" * (len(data) % 2)
    return head + struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", 0)


def saved(picture, kind, **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def pixels(tmp_path, content, mode="L"):
    file = tmp_path / "picture"
    file.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return np.asarray(decode(file, mode)[0])


GREY = {
    "1 bit": (png(1, 0, 4, [0b10110000]), [255, 0, 255, 255]),
    "2 bits": (png(2, 0, 4, [0b00011011]), [0, 85, 170, 255]),
    "4 bits": (png(4, 0, 4, [0x05, 0xAF]), [0, 85, 170, 255]),
    "8 bits": (png(8, 0, 4, [0, 1, 128, 255]), [0, 1, 128, 255]),
    "16 bits": (png(16, 0, 6, words(RAMP16)), CUT),
    "16 bits, one level transparent": (png(16, 0, 6, words(RAMP16), (b"tRNS", words([256]))), CUT),
    "8 bits, alpha": (png(8, 4, 4, [0, 255, 1, 0, 128, 3, 255, 255]), [0, 1, 128, 255]),
    "16 bits, alpha": (png(16, 4, 6, words([word for level in RAMP16 for word in (level, 7)])), CUT),
    "pgm of 4 bits": (b"P5 4 1 15\n" + bytes([0, 5, 10, 15]), [0, 85, 170, 255]),
    "pgm of 16 bits": (b"P5 6 1 65535\n" + words(RAMP16), CUT),
    "pbm": (b"P4 4 1\n" + bytes([0b10110000]), [0, 255, 0, 0]),
    "tiff of 12 bits": (tiff([0, 15, 16, 0xABC, 2048, 4095], 12), [0, 0, 1, 0xAB, 128, 255]),
    "tiff of 16 bits": (tiff(RAMP16, 16), CUT),
    "tiff of 16 bits, big-endian": (tiff(RAMP16, 16, ">"), CUT),
    "tiff of 16 bits, white is 0": (tiff([65535 - level for level in RAMP16], 16, photometric=0), CUT),
}


@pytest.mark.parametrize("case", GREY)
def test_grey_of_any_depth_keeps_its_levels_in_both_modes(case, tmp_path):
    content, expected = GREY[case]
    assert pixels(tmp_path, content).tolist() == [expected]
    assert pixels(tmp_path, content, "RGB").tolist() == [[[level] * 3 for level in expected]]


def test_a_ramp_of_all_16_bit_levels_is_cut_to_the_upper_eight(tmp_path):
    content = saved(Image.fromarray(np.arange(65536, dtype=np.uint16).reshape(256, 256)), "PNG")
    assert np.array_equal(pixels(tmp_path, content), np.arange(65536).reshape(256, 256) >> 8)


THREE = [(10, 20, 30), (255, 0, 128), (1, 2, 3), (200, 100, 50)]
FLAT = [level for pixel in THREE for level in pixel]
PALETTE = (b"PLTE", bytes(FLAT))
COLOURS = {
    "rgb": png(8, 2, 4, FLAT),
    "rgb of 16 bits": png(16, 2, 4, words([level << 8 | 0x7F for level in FLAT])),
    "rgba": png(8, 6, 4, [level for n, pixel in enumerate(THREE) for level in (*pixel, 80 * n)]),
    "rgba of 16 bits": png(16, 6, 4, words([w for pixel in THREE for w in (*(v << 8 | 9 for v in pixel), 5)])),
    "palette of 2 bits": png(2, 3, 4, [0b00011011], PALETTE),
    "palette": png(8, 3, 4, [0, 1, 2, 3], PALETTE),
    "palette, one colour transparent": png(8, 3, 4, [0, 1, 2, 3], PALETTE, (b"tRNS", bytes([255, 0]))),
    "palette, several half transparent": png(8, 3, 4, [0, 1, 2, 3], PALETTE, (b"tRNS", bytes([9, 0, 77, 255]))),
    "ppm": b"P6 4 1 255\n" + bytes(FLAT),
    "bmp": saved(Image.frombytes("RGB", (4, 1), bytes(FLAT)), "BMP"),
    "gif": saved(Image.frombytes("RGB", (4, 1), bytes(FLAT)), "GIF"),
    "tiff": saved(Image.frombytes("RGB", (4, 1), bytes(FLAT)), "TIFF"),
    "webp": saved(Image.frombytes("RGB", (4, 1), bytes(FLAT)), "WEBP", lossless=True),
}


@pytest.mark.parametrize("case", COLOURS)
def test_colours_are_kept_and_transparency_is_left_out(case, tmp_path):
    assert pixels(tmp_path, COLOURS[case], "RGB").tolist() == [[list(pixel) for pixel in THREE]]
    weighted = np.array(THREE) @ [0.299, 0.587, 0.114]
    assert np.abs(pixels(tmp_path, COLOURS[case]) - weighted).max() <= 1


def test_a_cmyk_jpeg_is_not_inverted(tmp_path):
    cyan, black = 51, 102
    picture = Image.new("CMYK", (16, 16), (cyan, 0, 255, black))
    found = pixels(tmp_path, saved(picture, "JPEG", quality=100), "RGB")
    light = (255 - black) / 255
    assert np.abs(found - np.array([light * (255 - cyan), light * 255, 0])).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "PNG of 16 bits"])
def test_exif_orientation_is_applied(orientation, kind, tmp_path):
    """The stored rows and columns are turned so that the picture is as it was taken: the tag's definition."""
    upright = np.repeat(np.repeat(np.arange(0, 240, 40).reshape(2, 3), 16, 0), 16, 1)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    deep = kind.endswith("16 bits")
    levels = np.ascontiguousarray(stored << 8 if deep else stored).astype(np.uint16 if deep else np.uint8)
    options = {"quality": 100} if kind == "JPEG" else {}
    found = pixels(tmp_path, saved(Image.fromarray(levels), kind.split()[0], exif=exif, **options))
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).max() <= (2 if kind == "JPEG" else 0)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
def test_metadata_that_cannot_be_read_say_nothing(exif, tmp_path):
    content = saved(Image.new("L", (4, 2), 9), "JPEG", exif=exif)
    assert pixels(tmp_path, content).shape == (2, 4)


def test_of_several_pictures_in_a_file_it_is_the_first_and_their_number_is_told(tmp_path):
    frames = [Image.new("L", (2, 2), level) for level in (7, 80, 200)]
    for kind in ("GIF", "TIFF", "PNG", "WEBP"):
        file = tmp_path / "picture"
        file.write_bytes(
            saved(frames[0], kind, save_all=True, append_images=frames[1:], **(LOSSLESS if kind == "WEBP" else {}))
        )
        picture, several = decode(file, "L")
        assert (int(np.asarray(picture)[0, 0]), several) == (7, 3), kind
    file.write_bytes(saved(frames[0], "PNG"))
    assert decode(file, "L")[1] == 1


LOSSLESS = {"lossless": True}
HUGE = png(8, 2, 30000, b"")[:16] + struct.pack(">II", 30000, 30000)
HUGE += b"\x08\x02\0\0\0" + struct.pack(">I", zlib.crc32(b"IHDR" + HUGE[16:] + b"\x08\x02\0\0\0"))
NOISE = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)), "PNG")
UNREADABLE = {
    "a bomb": (HUGE + png(8, 2, 1, b"")[33:], "it is too large: Image size .900000000 pixels. exceeds limit"),
    "no byte": (b"", "it is empty"),
    "text": (b"hello", "its content is none of BMP"),
    "a PNG cut off": (NOISE[: len(NOISE) // 2], "truncated"),
    "a PNG of its header": (NOISE[:40], "cannot identify|truncated|broken|none of"),
    "a JPEG cut off": (saved(Image.new("L", (64, 64), 9), "JPEG")[:-40], "truncated"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "its content is none of"),
    "integers of 32 bits": (tiff([0, 1, 2**31 - 1], 32, kind=2), "32-bit integers, which do not say what is white"),
    "signed integers of 16 bits": (tiff([-5, 0, 9], 16, kind=2), "do not say what is white"),
    "floating point": (tiff([0.0, 0.5, 1.0], 32, kind=3), "floating point, which do not say what is white"),
    "floating point in a PFM": (b"Pf\n1 1\n-1.0\n" + struct.pack("<f", 0.5), "floating point"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_is_no_picture_of_known_white_is_refused_with_the_reason(case, tmp_path):
    content, reason = UNREADABLE[case]
    with pytest.raises(UnreadableError, match=reason):
        pixels(tmp_path, content)


def test_no_byte_of_a_picture_leads_to_another_error(tmp_path, monkeypatch):
    """Every byte of small files replaced: a picture or an UnreadableError, nothing else."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    chance = np.random.default_rng(0)
    tried = refused = 0
    for content in (COLOURS["palette"], GREY["tiff of 16 bits"][0], COLOURS["gif"], COLOURS["bmp"], b"P6 1 1 255\nabc"):
        for place in range(len(content)):
            damaged = bytearray(content)
            damaged[place] ^= int(chance.integers(1, 256))
            tried += 1
            try:
                pixels(tmp_path, bytes(damaged))
            except UnreadableError:
                refused += 1
    assert 0 < refused < tried


def test_a_file_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    def forbidden(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", forbidden)
    with pytest.raises(UnreadableError, match="it may not be read"):
        decode(tmp_path / "picture", "L")
