"""One of the ranks that `ranks=N` starts: `python -m rdi.cli._rank PLACE`."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import pickle
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.singleton import Singleton
from hydra.core.utils import setup_globals

from rdi import logs, signals, tracking
from rdi.cli import _console
from rdi.errors import Interrupted, RankLost, UserError

OURS = "RDI_RANKS"
"""Variable of ranks that a job started, not torchrun or srun."""
ASKED = "asked"
"""File with what every rank is to call, its argument, and Hydra's state, pickled."""
PR_SET_PDEATHSIG = 1


def work(place: Path) -> None:
    """Do what was asked for, and leave what came of it in a file that is called as the rank.

    That is "done" and (value, wandb folders), or a kind of failure and its text.
    """
    os.environ[OURS] = "1"
    _end_with_parent()
    answer = _answer(place)
    part = place / f".{os.environ['RANK']}"
    part.write_bytes(cloudpickle.dumps(answer))
    part.replace(place / os.environ["RANK"])


def read(path: Path) -> tuple[str, Any] | None:
    """Return what a rank left; None where it left nothing."""
    with contextlib.suppress(OSError):
        kind, said = pickle.loads(path.read_bytes())
        return kind, said
    return None


def _answer(place: Path) -> tuple[str, Any]:
    try:
        with signals.interrupts():
            function, cfg, state = cloudpickle.loads((place / ASKED).read_bytes())
            setup_globals()
            Singleton.set_state(state)
            return "done", (function(cfg), tracking.left_offline())
    except RankLost as error:
        return "lost", str(error)
    except (Interrupted, KeyboardInterrupt) as error:
        return "interrupted", str(error)
    except UserError as error:
        logs.log_quietly(_console.one_line(error))
        return "user", _console.one_line(error)
    except Exception:
        logs.log_traceback()
        return "bug", traceback.format_exc()
    finally:
        logs.close_log_files()


def _end_with_parent() -> None:
    """Be told to stop when the process that started this one is gone, on Linux."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))


if __name__ == "__main__":
    gc.disable()  # until the command is imported
    work(Path(sys.argv[1]))
