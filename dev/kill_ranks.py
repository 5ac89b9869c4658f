"""Kill one of two ranks at random moments: python dev/kill_ranks.py 20 [SEED].

Trains the digits once undisturbed and then as often as asked, each time with a SIGKILL for a random rank at a random
moment; a line per training, and whether its weights are those of the undisturbed one, byte for byte.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OPTIONS = ["tracking=none", "threads=1", "evaluations=6", "calibration_samples=16", "device=cpu", "ranks=2"]
OPTIONS += ["optim.epochs=null", "optim.iterations=24", "attack.steps=1"]


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Train into `folder`."""
    with Path(f"{folder}.txt").open("wb") as said:
        command = [sys.executable, "-m", "rdi", "train", f"run={folder}", *OPTIONS]
        return subprocess.Popen(command, stdout=said, stderr=said)


def ranks(parent: int) -> list[int]:
    """Return the ranks that a training has started."""
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in found if b"rdi.cli._rank" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def main(times: int, seed: int) -> None:
    """Train undisturbed, then `times` times with a kill."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        began = time.monotonic()
        if start(Path(place, "whole")).wait():
            raise SystemExit(Path(place, "whole.txt").read_text())
        whole = time.monotonic() - began
        weights = Path(place, "whole", "last.safetensors").read_bytes()
        same = 0
        for number in range(times):
            folder = Path(place, str(number))
            process = start(folder)
            moment = chance.uniform(0, whole)
            time.sleep(moment)
            there = ranks(process.pid) if process.poll() is None else []
            if there:
                os.kill(chance.choice(there), signal.SIGKILL)
            status = process.wait()
            alike = status == 0 and (folder / "last.safetensors").read_bytes() == weights
            same += alike
            what = "killed" if there else "no rank there"
            print(f"{number}: {what} after {moment:.1f} of {whole:.1f} s, status {status}, same weights {alike}")
        print(f"{same} of {times} ended with the weights of the undisturbed training")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
