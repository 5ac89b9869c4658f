"""Processes for jobs: one at a time per slot, their output in order, none left behind. Hydra scans no `_` files."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import cloudpickle
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from tqdm import tqdm

from rdi import signals
from rdi.checks import integer
from rdi.errors import UserError

logger = logging.getLogger("rdi")
GRACE = 300.0
"""Seconds in which a job that is told to stop may come to the end of its step and save its state."""
CPU = "cpu"


def slots(devices: Sequence[str | int] | None, jobs_per_device: int) -> list[str]:
    """One device per job that may run at a time. Raises UserError when there is none."""
    each = integer("hydra.launcher.jobs_per_device", jobs_per_device, 1)
    found = gpus() if devices is None else [str(device) for device in devices]
    if not found:
        raise UserError(
            "there is no GPU here: hydra.launcher.devices=[cpu,cpu] runs two jobs at once without one, or leave out "
            "hydra/launcher=gpu_pool"
        )
    return found * each


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def environment(device: str, at_once: int) -> dict[str, str]:
    """Return the environment of a job's process: its device alone, and without one its share of the cores."""
    found = {**os.environ, "CUDA_VISIBLE_DEVICES": "" if device == CPU else device, "PYTHONUNBUFFERED": "1"}
    if device == CPU:
        found.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // at_once)))
    return found


def run(shared: tuple[Any, ...], jobs: Sequence[list[str]], first: int, slots: Sequence[str]) -> list[JobReturn]:
    """Run `jobs`, each the overrides of one, numbered from `first`; how they ended, in their order.

    shared: Hydra's context, the config and the function to call, all picklable. KeyboardInterrupt, also for SIGTERM,
    tells the jobs to stop, waits for them (a second one kills them) and goes on.
    """
    free: SimpleQueue[str] = SimpleQueue()
    for device in slots:
        free.put(device)
    children = _Children()
    state = Singleton.get_state()

    def one(number: int, overrides: list[str]) -> JobReturn:
        device = free.get()
        try:
            payload = cloudpickle.dumps((*shared, state, overrides, number))
            return children.call(payload, overrides, number, device, len(slots))
        finally:
            free.put(device)

    with signals.interrupts(), ThreadPoolExecutor(len(slots)) as threads:
        futures: list[Future[JobReturn]] = []
        try:
            futures = [threads.submit(one, first + index, words) for index, words in enumerate(jobs)]
            while wait(futures, timeout=0.2).not_done:
                pass  # in short spells: a signal is handled between them
        except BaseException:
            for future in futures:
                future.cancel()
            children.stop(GRACE)
            raise
    return [future.result() for future in futures]


class _Children:
    """The processes that are running. Once stopped, it starts no more."""

    def __init__(self) -> None:
        self.running: set[subprocess.Popen[str]] = set()
        self.lock = threading.Lock()
        self.stopped = False

    def call(self, payload: bytes, overrides: list[str], number: int, device: str, at_once: int) -> JobReturn:
        """Run one job in a process of its own and wait for its end."""
        with tempfile.TemporaryDirectory(prefix="rdi-job-") as place:
            asked, answer, out = (Path(place) / name for name in ("asked", "answer", "out"))
            asked.write_bytes(payload)
            with out.open("w+") as printed:
                child = self._start([str(asked), str(answer)], environment(device, at_once), printed)
                if child is None:
                    return failed(overrides, UserError("not started: the sweep was stopped"))
                try:
                    assert child.stderr is not None, "it is a pipe"
                    for line in child.stderr:
                        tqdm.write(f"[{number} on {device}] {line.rstrip()}", file=sys.stderr)
                    child.wait()
                finally:
                    with self.lock:
                        self.running.discard(child)
                    child.kill()
                    for pipe in (child.stdin, child.stderr):
                        with contextlib.suppress(OSError):
                            pipe.close()  # type: ignore[union-attr]
                printed.seek(0)
                if text := printed.read():  # in one piece, or the tables of several jobs would mix
                    tqdm.write(text.rstrip("\n"), file=sys.stdout)
            return ended(child.returncode, answer, overrides)

    def _start(self, arguments: list[str], env: dict[str, str], out: Any) -> subprocess.Popen[str] | None:
        with self.lock:
            if self.stopped:
                return None
            child = subprocess.Popen(
                [sys.executable, "-m", "hydra_plugins.rdi_launchers._worker", *arguments],
                env=env,
                stdin=subprocess.PIPE,  # its end tells the child that this process is gone
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C comes here alone, and is passed on once
            )
            self.running.add(child)
            return child

    def stop(self, seconds: float) -> None:
        """Tell all to stop, and kill those that have not after `seconds`, or at the next KeyboardInterrupt."""
        with self.lock:
            self.stopped = True
            left = list(self.running)
        for child in left:
            child.terminate()
        if left:
            logger.warning("%d jobs are told to stop and save what they have; once more kills them", len(left))
        end = time.monotonic() + seconds
        try:
            for child in left:
                child.wait(max(0.0, end - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            pass
        finally:
            for child in left:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)


def ended(status: int, answer: Path, overrides: list[str]) -> JobReturn:
    """Read what a process that ended with `status` left in `answer`, or say why it left nothing."""
    if answer.is_file():
        done, value = cloudpickle.loads(answer.read_bytes())
        result = failed(overrides, value)
        if done:
            result.status = JobStatus.COMPLETED
        return result
    if status < 0:
        number = -status
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        why = "; was the memory full?" if number == signal.SIGKILL else ""
        return failed(overrides, UserError(f"its process was killed ({name}){why}"))
    if status == 130:
        return failed(overrides, UserError("its process was told to stop; what it had done is kept"))
    return failed(overrides, RuntimeError(f"its process ended with status {status} and no result"))


def failed(overrides: list[str], error: object) -> JobReturn:
    """A job that came to `error`."""
    result = JobReturn(overrides=overrides, status=JobStatus.FAILED)
    result.return_value = error
    return result
