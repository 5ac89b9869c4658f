"""Just enough of SLURM for submitit: sbatch, srun, sacct, scontrol; which one it is, is the first argument.

Jobs run at once, as processes of this machine. What was submitted, and how each task ended, lies in FAKE_SLURM.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(os.environ["FAKE_SLURM"])


def sbatch(script):
    """Start every task of the array, or the one task, and say the job's number."""
    text = Path(script).read_text()
    number = 100 + len(list(HOME.glob("*.sbatch")))
    (HOME / f"{number}.sbatch").write_text(text)
    array = re.search(r"--array=0-(\d+)", text)
    for task in range(int(array[1]) + 1) if array else [None]:
        name = f"{number}" if task is None else f"{number}_{task}"
        (HOME / f"{name}.state").write_text("RUNNING")
        env = {**os.environ, "SLURM_JOB_ID": str(number + 1000 * (task or 0)), "SLURM_NTASKS": "1"}
        env |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
        env |= {"SLURM_JOB_NODELIST": "here", "FAKE_NAME": name}
        if task is not None:
            env |= {"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(task)}
        end = f'if bash {script}; then s=COMPLETED; else s=FAILED; fi; printf $s > "{HOME}/{name}.state"'
        # neither stream is ours: who called sbatch reads both to their end
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.Popen(["bash", "-c", end], env=env, start_new_session=True, **quiet)
    print(f"Submitted batch job {number}")


def srun(*words):
    """Run the command behind the options, its output where they say."""
    words, files = list(words), {}
    while words and words[0].startswith("--"):
        option = words.pop(0)
        if option in ("--output", "--error"):
            files[option] = words.pop(0)
    number, _, task = os.environ["FAKE_NAME"].partition("_")
    places = {"%A": number, "%a": task, "%j": os.environ["FAKE_NAME"], "%t": "0"}
    out, err = (re.sub("%[Aajt]", lambda found: places[found[0]], files[name]) for name in ("--output", "--error"))
    # submitit makes the folder after sbatch has said the job's number, and a queue is never empty enough to notice
    for _ in range(600):
        if Path(out).parent.is_dir():
            break
        time.sleep(0.05)
    with open(out, "a") as stdout, open(err, "a") as stderr:
        raise SystemExit(subprocess.run(words, stdout=stdout, stderr=stderr, check=False).returncode)


def sacct(*words):
    """The state of every task, in columns."""
    print("JobID|State|NodeList")
    for path in HOME.glob("*.state"):
        print(f"{path.stem}|{path.read_text()}|here")


def scontrol(*words):
    """The only host."""
    print("here")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
