"""A Hydra application without torch, for test_launchers.py: what a job does is its option `do`."""

import os
import signal
import time
from pathlib import Path

import hydra


def saved(number, frame):
    """What a training does on SIGTERM: save, then end."""
    Path(f"saved-{os.getpid()}").touch()
    raise KeyboardInterrupt


@hydra.main(version_base="1.3", config_path=None)
def job(cfg):
    """Do it, and leave a line in `log`."""
    with open("log", "a") as log:
        print(cfg.do, os.environ["CUDA_VISIBLE_DEVICES"] or "none", os.getpid(), file=log)
    print(f"this is {cfg.do}")
    if cfg.do == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg.do == "fail":
        raise ValueError("no such luck")
    if cfg.do.startswith("wait"):
        signal.signal(signal.SIGTERM, saved)
        Path(f"waiting-{os.getpid()}").touch()
        time.sleep(600)
    return 2.0


if __name__ == "__main__":
    job()
