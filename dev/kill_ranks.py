"""Kill one of two ranks at random moments: python dev/kill_ranks.py 20 [SEED].

Trains the digits once undisturbed and then as often as asked, each time with a SIGKILL for a random rank at a random
moment of its life; a line per training, and whether its weights are those of the undisturbed one, byte for byte. Ends
with status 1 where they are not.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RANKS = 2
OPTIONS = ["tracking=none", "threads=1", "evaluations=6", "calibration_samples=16", "device=cpu", f"ranks={RANKS}"]
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


def begun(process: subprocess.Popen[bytes]) -> bool:
    """Wait until a training has its ranks; False where it ended before."""
    while process.poll() is None:
        if len(ranks(process.pid)) == RANKS:
            return True
        time.sleep(0.02)
    return False


def main(times: int, seed: int) -> bool:
    """Train undisturbed, then `times` times with a kill; return whether all came to the same weights."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        process = start(Path(place, "whole"))
        begun(process)
        began = time.monotonic()
        if process.wait():
            raise SystemExit(Path(place, "whole.txt").read_text())
        whole = time.monotonic() - began
        weights = Path(place, "whole", "last.safetensors").read_bytes()
        same = number = 0
        while number < times:
            folder = Path(place, str(number))
            process = start(folder)
            begun(process)
            moment, rank = chance.uniform(0, whole), chance.randrange(RANKS)
            time.sleep(moment)
            if process.poll() is not None or len(there := ranks(process.pid)) < RANKS:
                process.wait()  # it was faster than the undisturbed one: another moment
                shutil.rmtree(folder)
                continue
            os.kill(there[rank], signal.SIGKILL)
            status = process.wait()
            alike = status == 0 and (folder / "last.safetensors").read_bytes() == weights
            same, number = same + alike, number + 1
            when = f"rank {rank} killed after {moment:.1f} of {whole:.1f} s"
            print(f"{number}: {when}, status {status}, same weights {alike}", flush=True)
            if not alike:
                print(Path(f"{folder}.txt").read_text())
        print(f"{same} of {times} ended with the weights of the undisturbed training")
        return same == times


if __name__ == "__main__":
    sys.exit(not main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
