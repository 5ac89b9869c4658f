"""Committed runs copied as they lay in runs/, and what `rdi list` says of them."""

import os
import shutil
from pathlib import Path

from rdi.cli import main

COMMITTED = Path(__file__).parents[2] / "results" / "tables" / "runs" / "tables" / "cpu"


def copy(source, target, *, weights=True, done=True):
    """A committed run as it lay in runs/."""
    shutil.copytree(COMMITTED / source, target)
    for bank in target.glob("banks/*"):
        (bank / "bank.npz").touch()
        os.utime(bank / "bank.npz", (0, 0))  # made before it was judged
    if weights:
        (target / "checkpoint.safetensors").touch()
    (target / "done").touch() if done else (target / "done").unlink(missing_ok=True)
    return target


def listed(capsys, *words):
    main(["list", *words])
    return capsys.readouterr().out
