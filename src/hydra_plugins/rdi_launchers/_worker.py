"""One job in a process of its own: `python -m hydra_plugins.rdi_launchers._worker ASKED ANSWER`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobStatus, run_job, setup_globals
from omegaconf import open_dict

from rdi import signals


def main(asked: Path, answer: Path) -> None:
    """Run the job that is pickled in `asked`; leave (done, value or exception) in `answer`."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    context, config, function, state, overrides, number = cloudpickle.loads(asked.read_bytes())
    setup_globals()
    Singleton.set_state(state)
    composed = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(composed):
        composed.hydra.job.id = composed.hydra.job.num = number
    HydraConfig.instance().set_config(composed)
    result = run_job(
        task_function=function,
        config=composed,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=context,
    )
    value = result._return_value
    try:
        content = cloudpickle.dumps((result.status == JobStatus.COMPLETED, value))
        cloudpickle.loads(content)
    except Exception:  # an exception that cannot be pickled still tells its story
        content = cloudpickle.dumps((False, RuntimeError(f"{type(value).__name__}: {value}")))
    part = answer.with_suffix(".part")
    part.write_bytes(content)
    part.rename(answer)


def _end_with_parent() -> None:
    """Wait until the process that started this one closes its end of the pipe, or is gone; then stop as by SIGTERM."""
    # below Python's own stdin: its lock, held here, would spoil the end of a job that is done
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    try:
        with signals.interrupts():
            main(Path(sys.argv[1]), Path(sys.argv[2]))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
