"""Peak memory and images a second of streamed training images: python dev/stream_memory.py 20000 [STEPS] [WORKERS].

Makes a few hundred JPEGs of 224 pixels and hard links to them, so many that they count as the number given; indexes
them, trains a small network on random-resized crops of them and crafts FGSM on some, all in one process and its
workers. Memory is the proportional set size (each page once) of all of these, looked at ten times a second. The
decoder's own rate is that of one process that decodes and crops the same files and does nothing else.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rdi.attacking import attack_split
from rdi.attacks import MainExit
from rdi.data import ImageFolder, Split
from rdi.data.batches import Shuffled
from rdi.data.streamed import Streamed, fetch
from rdi.exits import MultiExitNet

SIDE, FILES, CLASSES, BATCH = 224, 300, 4, 64


def make(root: Path, count: int) -> None:
    """Write FILES pictures, which compress as photographs do, and link them to `count` names."""
    rng = np.random.default_rng(0)
    for part, share in (("train", count - count // 20), ("val", count // 20)):
        for label in range(CLASSES):
            (root / part / f"n{label}").mkdir(parents=True)
        for n in range(share):
            file = root / part / f"n{n % CLASSES}" / f"{n}.jpg"
            if n < FILES:
                coarse = Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8))
                coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, quality=90)
            else:
                os.link(root / part / f"n{n % FILES % CLASSES}" / f"{n % FILES}.jpg", file)


def memory() -> int:
    """Bytes that this process and its workers hold, pages that they share counted once."""
    found = 0
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for process in ("self", *children):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        found += next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return found


class Peak:
    """Looks at the memory until it is closed."""

    def __init__(self) -> None:
        self.peak, self._open = 0, True
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while self._open:
            self.peak = max(self.peak, memory())
            time.sleep(0.1)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._open = False
        self._thread.join()


def network() -> MultiExitNet:
    """One exit, hardly any work: what is measured is the feed."""
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 7, stride=8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1))
    return MultiExitNet([body], [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8, CLASSES))])


def train(split: Split, steps: int) -> float:
    """Images a second of steps on random-resized crops."""
    net, began = network(), time.perf_counter()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    shuffled = Shuffled(len(split), BATCH, seed=0)
    requests = list(shuffled.requests(range(steps), slice(0, BATCH), "resized_crop", split.indices))
    for request, images in zip(requests, fetch(split.images, requests), strict=True):
        logits = net(images.float() / 255)[:, 0]
        torch.nn.functional.cross_entropy(logits, split.labels[request.rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return steps * BATCH / (time.perf_counter() - began)


def decoder(images: Streamed, count: int) -> float:
    """Images a second of one process that only decodes and crops."""
    rows, began = np.random.default_rng(1).integers(0, len(images), count), time.perf_counter()
    for seed, row in enumerate(images.rows[rows]):
        images.pictures.image(int(row), images.index.shape, seed)
    return count / (time.perf_counter() - began)


def main(count: int, steps: int, workers: int) -> None:
    """Print what a stage holds at most, and its rate."""
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = f"{place}/cache"
        make(Path(place, "images"), count)
        load = partial(
            ImageFolder, name="many", root=f"{place}/images", size=SIDE, calibration=100, augment="resized_crop"
        )
        print(f"before: {memory() / 2**30:.2f} GiB (Python, torch and numpy)")
        with Peak() as peak:
            began = time.perf_counter()
            data = load(workers=workers).load()
            rate = count / (time.perf_counter() - began)
            print(f"{data.memory}\nindex: {rate:.0f} images/s, peak so far {peak.peak / 2**30:.2f} GiB", flush=True)
            rate = train(data.train, steps)
            print(f"train: {rate:.0f} images/s, peak so far {peak.peak / 2**30:.2f} GiB", flush=True)
            began, few = time.perf_counter(), data.test.sample(BATCH * steps // 4)
            attack = MainExit(eps=0.03, step_size=0.03, steps=1)
            done = sum(
                len(one.logits) for one in attack_split(network(), few, attack, seed=0, batch_size=BATCH, label="main")
            )
            rate = done / (time.perf_counter() - began)
            print(f"attack: {rate:.0f} images/s, peak {peak.peak / 2**30:.2f} GiB", flush=True)
        assert isinstance(data.train.images, Streamed)
        print(f"one process that only decodes and crops: {decoder(data.train.images, 300):.0f} images/s")


if __name__ == "__main__":
    main(int(sys.argv[1]), *(int(word) for word in (*sys.argv[2:], *("100", "2")[len(sys.argv) - 2 :])))
