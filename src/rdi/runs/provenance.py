"""Record where and when numbers are made: versions, device, commit, time."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

from rdi.records import Environment


def environment(device: torch.device) -> Environment:
    """Return versions, device and commit, for records."""
    packages = ("rdi", "torch", "torchvision", "numpy", "hydra-core", "fvcore", "wandb")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit, dirty = _commit()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return Environment(
        versions=versions,
        device=f"{device.type}: {name}",
        threads=torch.get_num_threads(),
        commit=commit,
        dirty=dirty,
    )


def _commit() -> tuple[str | None, bool | None]:
    """Commit of the checkout that this code lies in, and whether it has changes; (None, None) outside one."""
    source = Path(__file__).resolve().parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(source), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", __file__) is None:
        return None, None
    commit = git("rev-parse", "HEAD")
    status = git("status", "--porcelain", "--untracked-files=no")
    return commit, None if status is None else bool(status)


def now() -> str:
    """UTC time, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
