"""One of the ranks that `ranks=N` starts, in a process of its own."""

from __future__ import annotations

import os
import pickle
import threading
import traceback
from collections.abc import Callable
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
LINGER = 5.0
"""Seconds in which the launcher takes what a rank returned, unless it is waiting for its end."""


def work(payload: bytes, place: str) -> tuple[str, Any]:
    """Call the pickled (function, argument, Hydra's state), and return what came of it.

    That is "done" and (value, wandb folders), or a kind of failure and its text.
    place: folder in which an interrupted rank leaves that, too, for a launcher that was interrupted itself.
    """
    os.environ[OURS] = "1"
    function, cfg, state = cloudpickle.loads(payload)
    setup_globals()
    Singleton.set_state(state)
    answer = _answer(function, cfg)
    if answer[0] == "interrupted":
        part = Path(place, f".{os.environ['RANK']}")
        part.write_bytes(pickle.dumps(answer))
        part.replace(Path(place, os.environ["RANK"]))
        timer = threading.Timer(LINGER, os._exit, (signals.STATUS,))
        timer.daemon = True
        timer.start()
    return answer


def _answer(function: Callable[[Any], Any], cfg: Any) -> tuple[str, Any]:
    try:
        with signals.interrupts():
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
