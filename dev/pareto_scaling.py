"""Peak memory and time of `rdi pareto` over many runs: python dev/pareto_scaling.py RUN 50 500.

RUN: a finished, attacked run. Each copy has a little noise on its logits, so that the runs differ. One line per number
of runs, and what a run adds to the memory of the line before.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from rdi.banks import LogitsBank


def copy(run: Path, to: Path, seed: int) -> None:
    """Copy what `rdi pareto` reads of a run, with noise of `seed` on its logits."""
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("*.safetensors", "gallery", "evals", "health", ".lock"))
    noise = torch.Generator().manual_seed(seed)
    for path in to.glob("banks/*/bank.npz"):
        bank = LogitsBank.load(path.parent)
        bank.logits.add_(torch.randn(bank.logits.shape, generator=noise), alpha=0.5)
        bank.save(path.parent)


def measure(folder: Path, runs: list[Path]) -> tuple[float, float]:
    """Peak MiB and CPU seconds of `rdi pareto` on the runs."""
    listed = f"runs=[{','.join(map(str, runs))}]"
    command = [sys.executable, "-m", "rdi", "pareto", listed, "name=many", "tracking=none"]
    child = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, "rdi pareto failed"
    return usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime


def main(run: Path, counts: list[int]) -> None:
    """Print a line per number of runs."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for k in range(max(counts)):
            copy(run, folder / "runs" / f"r{k}", k)
        print(f"{'runs':>6} {'peak MiB':>9} {'CPU s':>7} {'KiB a run':>10} {'curves.png':>11}")
        before = None
        for count in counts:
            peak, seconds = measure(folder, [Path("runs") / f"r{k}" for k in range(count)])
            added = "" if before is None else f"{1024 * (peak - before[1]) / (count - before[0]):.0f}"
            size = (folder / "reports" / "many" / "curves.png").stat().st_size // 1024
            print(f"{count:6} {peak:9.0f} {seconds:7.1f} {added:>10} {size:7} KiB", flush=True)
            before = (count, peak)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sorted(map(int, sys.argv[2:])))
