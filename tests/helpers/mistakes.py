"""What holds for every refused command, and folders of random images."""

import hashlib

import numpy as np
from PIL import Image

from helpers.commands import TINY


def snapshot(folder):
    """Relative path -> content hash of every file below."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refused(result, *phrases):
    """One line, status 2, no traceback; all phrases in the line."""
    assert result.status == 2, result.err
    assert len(result.errors) == 1, result.err
    assert "Traceback" not in result.err
    for phrase in phrases:
        assert phrase in result.errors[0]


def images(folder, classes=("cat", "dog"), count=12, size=(20, 20), offset=0):
    """Write `count` random images per class below `folder`."""
    chance = np.random.default_rng(offset)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            pixels = chance.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{k + offset}.png")


FOLDER = f"data=imagefolder data.root=pictures data.calibration=4 data.test=4 optim.batch_size=8 {TINY}"
