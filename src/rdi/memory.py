"""The memory of the process: keep what was freed, as crafting takes large buffers again and again; what is left."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc not to hand large buffers back to the kernel after every use; True where that worked.

    By default each buffer over 32 MiB is mapped, page by page zeroed, and unmapped at every step; that costs the
    nested attack up to half of its time on a CPU. Elsewhere than on glibc this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1) and mallopt(M_TOP_PAD, 64 << 20))


def available_memory() -> int | None:
    """Return the bytes that this process may still take without pushing others out; None where it is not known."""
    found = [_from_meminfo(), *(_from_cgroup(*files) for files in _CGROUPS)]
    return min((value for value in found if value is not None), default=None)


_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def _from_meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration, IndexError):
        return None


def _from_cgroup(limit: Path, used: Path) -> int | None:
    """Return what a container's limit leaves; its page cache counts as used, so at least half of the limit is said."""
    try:
        most = int(limit.read_text())
        return max(most - int(used.read_text()), most // 2)
    except (OSError, ValueError):  # no limit: the file says max
        return None
