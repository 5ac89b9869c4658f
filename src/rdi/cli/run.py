"""`rdi run`: the stages one after the other on one composed config; what is finished is not done again."""

from __future__ import annotations

from omegaconf import DictConfig

from rdi.cli import _edge
from rdi.cli._console import say_all
from rdi.runs.options import Run
from rdi.runs.outcome import Outcome
from rdi.runs.pipeline import Job, run_stages


def run(cfg: DictConfig) -> Outcome:
    """Run the stages that `cfg` lists, in their natural order."""
    _edge.refuse_foreign_radius(cfg, _edge.overrides())
    job = Job(
        options=_edge.options(cfg, Run),
        config=_edge.resolved(cfg),
        choices=_edge.choices(),
        changed=_edge.changed(),
        typed_rule=_edge.typed_rule(),
        data_root=_edge.typed_root(cfg),
    )
    return say_all(run_stages(job))
