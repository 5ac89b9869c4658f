"""Jobs of a sweep in other processes: a pool of devices, joblib, SLURM (a fake one), ray."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.commands import ROOT, TINY, environment
from helpers.forked import Forked
from hydra_plugins.rdi_launchers import _pool
from rdi.errors import UserError

HERE = Path(__file__).parent
SMALL = f"{TINY} data.size=16 data.test=40 data.calibration=40 attack=average"


@pytest.fixture(autouse=True)
def this_checkout(monkeypatch):
    """The jobs' processes import what this one does."""
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])


def plugin(name, extra):
    """Skip where the plugin of an extra is not installed."""
    if importlib.util.find_spec(f"hydra_plugins.{name}") is None:
        pytest.skip(f"{name} is not installed: pip install 'rdi[{extra}]'")


def pool(words, devices="cpu,cpu"):
    """The application without torch under the pool, in a process of its own."""
    options = ["--config-dir", str(ROOT / "conf"), "-m", "hydra/launcher=gpu_pool", "hydra.sweep.dir=out"]
    return subprocess.Popen(
        [sys.executable, str(HERE / "pooled.py"), *options, f"hydra.launcher.devices=[{devices}]", *words],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def log():
    """Lines of `log`: what was done, the devices seen, the process."""
    return [line.split() for line in Path("log").read_text().splitlines()]


def until(condition, seconds=300):
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)


def alive(pid):
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_killed_and_a_failed_job_leave_the_others_alone():
    process = pool(["+do=a,die,fail,b"], devices="3,cpu")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "its process was killed (SIGKILL)" in err
    assert sorted(line[0] for line in log()) == ["a", "b", "die", "fail"]
    assert {line[1] for line in log()} == {"3", "none"}, "both devices were used"
    assert sorted(out.split("\n")) == ["", "this is a", "this is b", "this is die", "this is fail"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_job_outlives_the_sweep(number):
    """Ctrl-C, kill, kill -9: jobs are told once, may save what they have, and those that wait are not started."""
    process = pool(["+do=wait1,wait2,never"])
    until(lambda: len(list(Path().glob("waiting-*"))) == 2)
    process.send_signal(number)
    process.communicate(timeout=300)
    assert process.returncode != 0
    pids = [int(line[2]) for line in log()]
    until(lambda: not any(alive(pid) for pid in pids))
    assert sorted(line[0] for line in log()) == ["wait1", "wait2"]
    assert len(list(Path().glob("saved-*"))) == 2


def test_devices(monkeypatch):
    assert _pool.slots(["cpu", "cpu"], 1) == ["cpu", "cpu"]
    assert _pool.slots([0, 2], 2) == ["0", "2", "0", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, GPU-abc")
    assert _pool.slots(None, 1) == ["1", "GPU-abc"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(UserError, match=r"hydra\.launcher\.devices=\[cpu,cpu\]"):
        _pool.slots(None, 1)
    with pytest.raises(UserError, match="jobs_per_device must be at least 1"):
        _pool.slots([0], 0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert _pool.environment("cpu", 2)["OMP_NUM_THREADS"] == "4"
    assert "OMP_NUM_THREADS" not in _pool.environment("0", 2)


def runs():
    """Seeds of the finished runs."""
    return sorted(
        json.loads((done.parent / "manifest.json").read_text())["seed"] for done in Path("runs").glob("*/done")
    )


def both(result, launcher):
    """One job failed, the other finished, and the end says so."""
    assert result.status == 2, result.err
    assert len(result.errors) == 1, result.err
    assert "1 of 2 jobs failed, the first: seed must be at least 0, got -1" in result.errors[0], launcher
    assert "sweep: 1 of 2 jobs are finished, 1 failed:" in result.err
    assert runs() == [1]


def test_the_pool_runs_our_commands(rdi):
    line = f"train -m hydra/launcher=gpu_pool hydra.launcher.devices=[cpu,cpu] seed=1,-1 {SMALL}"
    first = rdi(line)
    both(first, "gpu_pool")
    assert "[0 on cpu] runs/digits-smallcnn-adversarial-average-" in first.err
    assert "1 of 2 were finished before: skipped" in rdi(line).err


def test_joblib(rdi):
    plugin("hydra_joblib_launcher", "joblib")
    both(rdi(f"train -m hydra/launcher=joblib hydra.launcher.n_jobs=2 seed=1,-1 {SMALL}"), "joblib")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The commands of a cluster on PATH; the folder where it keeps its jobs."""
    home, commands = tmp_path / "slurm", tmp_path / "commands"
    home.mkdir()
    commands.mkdir()
    for name in ("sbatch", "srun", "sacct", "scontrol"):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{HERE / "slurm.py"}" {name} "$@"\n')
        (commands / name).chmod(0o755)
    monkeypatch.setenv("FAKE_SLURM", str(home))
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    return home


def test_slurm(rdi, slurm):
    plugin("hydra_submitit_launcher", "slurm")
    line = "train -m hydra/launcher=submitit_slurm hydra.launcher.gpus_per_node=1 hydra.launcher.timeout_min=30"
    result = rdi(f"{line} seed=1,-1 {SMALL}")
    both(result, "submitit_slurm")
    (said,) = [text for text in result.err.splitlines() if text.startswith("submitted")]
    assert said.startswith("submitted 2 jobs (slurm): 100_0, 100_1; logs in runs/.multirun/.submitit")
    assert list(Path(said.rpartition(" ")[2]).glob("100_*_log.out"))
    (script,) = slurm.glob("*.sbatch")
    for option in ("--array=0-1", "--gpus-per-node=1", "--time=30"):
        assert option in script.read_text()


def test_slurm_is_asked_for_where_there_is_none(rdi, monkeypatch):
    plugin("hydra_submitit_launcher", "slurm")
    monkeypatch.setenv("PATH", str(Path(shutil.which("sh")).parent))
    result = rdi(f"train -m hydra/launcher=submitit_slurm seed=1,2 {SMALL}")
    assert result.status == 2, result.err
    assert 'Could not detect "srun"' in result.errors[0]


def test_ray(rdi, monkeypatch):
    plugin("hydra_ray_launcher", "ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    line = "train -m hydra/launcher=ray +hydra.launcher.ray.init.num_cpus=2 +hydra.launcher.ray.remote.num_cpus=1"
    both(rdi(f"{line} seed=1,-1 {SMALL}"), "ray")


def test_a_launcher_of_an_extra_that_is_missing_names_it(rdi):
    if importlib.util.find_spec("hydra_plugins.hydra_ray_launcher"):
        pytest.skip("ray is installed")
    assert "pip install 'rdi[ray]'" in rdi(f"train -m hydra/launcher=ray seed=1,2 {SMALL}").errors[0]


def test_ctrl_c_ends_a_pool_of_trainings():
    long = SMALL.replace("iterations=2", "iterations=100000")
    process = Forked(f"train -m hydra/launcher=gpu_pool hydra.launcher.devices=[cpu,cpu] seed=1,2 {long}")
    seen = set()
    for line in process.stderr:
        if "parameters" in line:
            seen.add(line.split()[0])
        if len(seen) == 2:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=_pool.GRACE)
    assert process.returncode == 130
    assert "2 jobs are told to stop and save what they have" in err
    assert "the same command again goes on" in err
    assert not list(Path("runs").glob("*/.lock")), "nobody holds a run folder"
    assert len(list(Path("runs").glob("*/resume.pt"))) == 2, "both saved what they had"
