"""Commands in several processes: started by us, by torchrun, and on the nodes of a (fake) SLURM."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.commands import environment
from helpers.forked import Forked
from helpers.ranks import free_port
from rdi.cli import main

RUN = (
    "run={} tracking=none threads=1 evaluations=4 calibration_samples=16 optim.epochs=null optim.iterations=12 "
    "attack.steps=1 device=cpu"
)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
SRUN = """\
import os, signal, subprocess, sys
words = [word for word in sys.argv[1:] if not word.startswith("--ntasks")]
nodes = [subprocess.Popen(words) for _ in range(int(os.environ["SLURM_NNODES"]))]
signal.signal(signal.SIGTERM, lambda *_: [node.send_signal(signal.SIGTERM) for node in nodes])
sys.exit(max(node.wait() for node in nodes))
"""


def torchrun(words, **more):
    """`torchrun WORDS` in a process of its own."""
    return subprocess.Popen(
        [*TORCHRUN, *shlex.split(words)],
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process, beginning):
    """Read what a command says up to a line that begins so; the lines."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith(beginning):
            return lines
    raise AssertionError("".join(lines))


def weights(run):
    return load_file(f"{run}/last.safetensors")


def assert_trained_alike(run, other):
    """The same training to rounding; dropout and noise are the same numbers, whoever draws them."""
    first, second = weights(run), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A training of one process that nobody stopped."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    main(shlex.split(f"train {RUN.format(folder)}"))
    return folder


def children(process):
    """The processes that a process started, in the order of their start."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(pid) for pid in found if b"rdi.cli._rank" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_run_goes_on_when_its_ranks_are_killed_before_and_after_a_save(unbroken):
    process = Forked(f"train {RUN.format('run')} ranks=2")
    for moment, rank in (("run: smallcnn", 1), ("step 6 ", 0)):
        wait_for(process, moment)
        os.kill(children(process.pid)[rank], signal.SIGKILL)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert "Traceback" not in err, err
    assert_trained_alike("run", unbroken)
    assert not list(Path("run").glob(".lock"))


def test_preempted_on_two_nodes_a_run_goes_on_with_one_process(unbroken, rdi, tmp_path):
    script = tmp_path / "srun.py"
    script.write_text(SRUN)
    words = (
        f"--nnodes=2 --nproc-per-node=1 --rdzv-id=7 --rdzv-backend=c10d --rdzv-endpoint=localhost:{free_port()} "
        f"-m rdi train {RUN.format('run')}"
    )
    process = subprocess.Popen(
        [sys.executable, str(script), "--ntasks-per-node=1", *TORCHRUN, *shlex.split(words)],
        env=environment(SLURM_NNODES="2"),
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = wait_for(process, "step 3 ")
    process.send_signal(signal.SIGTERM)
    lines += process.stderr.read().splitlines(keepends=True)
    assert process.wait() != 0
    said = [line for line in lines if line.startswith("rdi")]
    assert len(said) == 1, "".join(lines)
    assert "everything is saved; go on with `rdi train run=run`" in said[0]
    assert not Path("run/done").exists()
    again = rdi("train run=run threads=1 tracking=none device=cpu")
    assert again.status == 0, again.err
    assert "going on at step" in again.err
    assert_trained_alike("run", unbroken)


def test_banks_of_two_ranks_are_the_bytes_of_one(demo, rdi):
    shutil.copytree(demo, "runs/other")
    line = "suite=quick samples=20 batch_size=6 threads=1 tracking=none threat.test_steps=1 overwrite=true"
    assert rdi(f"attack run=runs/other {line}").status == 0
    process = torchrun(f"--standalone --nproc-per-node=2 -m rdi attack run={demo} {line}")
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert err.count("average on 20 test images") == 1
    for path in sorted(Path("runs/other").glob("*/test-*/bank.npz")) + sorted(Path("runs/other").glob("gallery/*.npz")):
        assert (demo / path.relative_to("runs/other")).read_bytes() == path.read_bytes(), path
