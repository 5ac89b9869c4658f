"""The folders conf/ and sweeps/, wherever rdi is installed."""

from __future__ import annotations

from pathlib import Path


def packaged(name: str) -> Path:
    """Return the folder conf/ or sweeps/: inside the package (wheel), else at the repository root."""
    inside = Path(__file__).parent / name
    return inside if inside.is_dir() else Path(__file__).resolve().parents[2] / name
