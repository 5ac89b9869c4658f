"""Peak memory and time of `rdi pareto` over many runs: python dev/pareto_scaling.py RUN 50 500.

RUN: a finished, attacked run. Each copy has a little noise on its logits, so that the runs differ. One line per number
of runs: peak memory and CPU seconds of the first command and of the same one again, which finds all points in the
index; then what a run adds to memory and seconds of the line before.
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


def measure(folder: Path, runs: list[Path], cache: Path) -> tuple[float, float]:
    """Peak MiB and CPU seconds of `rdi pareto` on the runs."""
    command = [sys.executable, "-m", "rdi", "pareto", f"runs={folder / 'some'}/*", "name=many", "tracking=none"]
    shutil.rmtree(folder / "some", ignore_errors=True)
    (folder / "some").mkdir()
    for run in runs:
        (folder / "some" / run.name).symlink_to(run)
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    child = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, "rdi pareto failed"
    return usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime


def main(run: Path, counts: list[int]) -> None:
    """Print a line per number of runs."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for k in range(max(counts)):
            copy(run, folder / "runs" / f"r{k}", k)
        print(f"{'runs':>6} {'first: MiB':>10} {'s':>7} {'again: MiB':>10} {'s':>7} {'KiB a run':>10} {'ms a run':>9}")
        before = None
        for count in counts:
            runs = [folder / "runs" / f"r{k}" for k in range(count)]
            first, again = (measure(folder, runs, folder / f"cache{count}") for _ in range(2))
            each = ["", ""]
            if before is not None:
                more = count - before[0]
                each = [f"{1024 * (again[0] - before[1]) / more:.0f}", f"{1000 * (again[1] - before[2]) / more:.1f}"]
            sizes = f"{first[0]:10.0f} {first[1]:7.1f} {again[0]:10.0f} {again[1]:7.1f}"
            print(f"{count:6} {sizes} {each[0]:>10} {each[1]:>9}", flush=True)
            before = (count, *again)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sorted(map(int, sys.argv[2:])))
