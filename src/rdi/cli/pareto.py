"""`rdi pareto`: operating points of one or more runs, their front, as table, CSV and picture."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from rdi.cli import _edge, _words
from rdi.cli._console import say
from rdi.config import build
from rdi.report import tables, terminal
from rdi.runs import front
from rdi.runs.folder import Run
from rdi.runs.options import Pareto
from rdi.tracking import Wandb


def run(cfg: DictConfig) -> None:
    """Draw the front of the runs that `cfg` names."""
    options = _edge.options(cfg, Pareto)
    draw(front.opened(_words.run_folders(options.runs)), options)


def draw(runs: Sequence[Run], options: Pareto) -> front.Front:
    """Work out the front, write its files, send it to the tracking, and print it."""
    tracking: Wandb = build(options.tracking, "tracking")
    found = front.compute(runs, options)
    front.write(found)
    out, record, best = found.out, found.record, found.front
    with tracking.start(out, "pareto", {"runs": list(record.runs)}, front.group(runs, out)) as log:
        front.track(found, log)
    say(f"\nfront: {len(best)} of {len(found.points)} operating points ({found.conditions})")
    say(terminal.table(*front.table(best[:: max(1, len(best) // 8)])))
    say(f"\n{tables.hypervolume(record)}")
    say(f"\npicture: {out / 'front.png'} (.svg, .pdf)\ntable:   {out / 'table.md'}\npoints:  {out / 'points.csv'}")
    say(f"curves:  {out / 'curves.png'} (.svg, .pdf), {out / 'curves.csv'}\nsummary: {out / 'summary.json'}")
    return found
