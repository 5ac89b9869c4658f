"""Energy that the processor packages say they used (Intel's and AMD's RAPL, as Linux shows it)."""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


def microjoules(root: Path = POWERCAP) -> dict[str, int]:
    """Read the counter of every processor package; empty where the machine shows none, or not to this user."""
    found = {}
    for zone in sorted(root.glob("intel-rapl:*")):
        try:
            if (zone / "name").read_text().startswith("package"):
                found[zone.name] = int((zone / "energy_uj").read_text())
        except (OSError, ValueError):
            return {}
    return found


def joules(before: dict[str, int], after: dict[str, int]) -> float | None:
    """Return the energy between two readings; None without counters, or where one began again at zero."""
    if not before or before.keys() != after.keys() or any(after[zone] < before[zone] for zone in before):
        return None
    return sum(after[zone] - before[zone] for zone in before) / 1e6
