"""The target of conf/attack/transfer.yaml: a run folder's name becomes the network to craft on."""

from __future__ import annotations

from rdi.attacks.base import Attack
from rdi.attacks.transfer import Surrogate, Transfer
from rdi.runs.folder import Run


def transfer(surrogate: str, inner: Attack) -> Transfer:
    """Run `inner` on the network of the run folder `surrogate`. Raises UserError for one that is not finished."""
    return Transfer(surrogate=load_surrogate(surrogate), inner=inner)


def load_surrogate(run: str) -> Surrogate:
    """Load the network of a finished run, on the CPU: the attack takes it to where the images are."""
    opened = Run.open(run, "cpu")
    manifest = opened.manifest
    assert manifest.checkpoint_sha256 is not None, "a finished run names its weights"
    return Surrogate(opened.network, opened.folder.name, manifest.checkpoint_sha256, manifest.data.shape)
