"""Named random streams: every use of randomness has its own generator, so that adding one does not shift the others."""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *names: object) -> int:
    """Derive a 63-bit seed for the stream `names` of a run with `seed`; stable across machines and versions."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(device: torch.device | str, seed: int, *names: object) -> torch.Generator:
    """Return a torch.Generator on `device` at the start of the stream `names`."""
    return torch.Generator(device).manual_seed(derive(seed, *names))
