"""A training that is stopped in any way goes on with `rdi train run=...` alone, to the very same weights."""

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import rdi as api
from helpers.commands import TINY
from helpers.forked import Forked
from rdi.banks import LogitsBank
from rdi.errors import Interrupted
from rdi.folders import RunFolder
from rdi.gallery import Gallery
from rdi.runs import crafting, evaluate, train

STEPS, EVALUATIONS = 80, 8  # so many that a signal after the second evaluation always comes before the end
LINE = TINY.replace("iterations=2", f"iterations={STEPS}").replace("evaluations=1", f"evaluations={EVALUATIONS}")
LINE += " data.size=16 attack=average"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Folder of a training that nobody disturbed."""
    from rdi.cli import main

    folder = tmp_path_factory.mktemp("unbroken") / "run"
    main(["train", f"run={folder}", *LINE.split()])
    return folder


def same_result(folder, unbroken):
    """Weights bit for bit, the log line for line, the thresholds, and the state of the folder."""
    for name in ("checkpoint", "last", "best"):
        mine, theirs = (load_file(path / f"{name}.safetensors") for path in (folder, unbroken))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine), name
    mine, theirs = (
        [json.loads(line) for line in (path / "train.jsonl").read_text().splitlines()] for path in (folder, unbroken)
    )
    judged = [line["step"] for line in mine if "calibration_clean_accuracy" in line]
    seconds = json.loads((folder / "manifest.json").read_text())["seconds"]
    assert seconds == mine[-1]["seconds"], "of all processes that went on with the training"
    assert judged == [STEPS // EVALUATIONS * (k + 1) for k in range(EVALUATIONS)]
    for line in (*mine, *theirs):
        line.pop("seconds")
    assert mine == theirs
    assert api.load_thresholds(folder).values == api.load_thresholds(unbroken).values
    names = [sorted(path.name for path in where.iterdir()) for where in (folder, unbroken)]
    assert names[0] == names[1]


def lines_of(folder):
    return len((folder / "train.jsonl").read_text().splitlines()) if (folder / "train.jsonl").is_file() else 0


def disturbed(folder, number):
    """Start the training, send it a signal in its middle; its exit status and stderr."""
    process = Forked(f"train run={folder} {LINE}")
    try:
        while lines_of(folder) < 2:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()
        process.communicate()
    return process.returncode, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=["SIGINT", "SIGHUP"])
def test_a_signal_saves_the_state_and_says_how_to_go_on(number, unbroken, rdi, tmp_path):
    folder = tmp_path / "run"
    status, err = disturbed(folder, number)
    assert status == 130, err
    last = [line for line in err.splitlines() if line.startswith("rdi")]
    assert len(last) == 1
    assert "everything is saved" in last[0]
    assert f"go on with `rdi train run={folder}`" in last[0]
    assert "Traceback" not in err
    assert not (folder / "done").exists()
    saved = torch.load(folder / "resume.pt", weights_only=True)["step"]
    result = rdi(f"train run={folder} tracking=none threads=1")
    assert result.status == 0, result.err
    assert f"going on at step {saved}" in result.err
    same_result(folder, unbroken)


def test_a_killed_training_goes_on_from_its_last_evaluation(unbroken, rdi, tmp_path):
    folder = tmp_path / "run"
    status, _ = disturbed(folder, signal.SIGKILL)
    assert status == -signal.SIGKILL
    (folder / ".resume.pt.x.partial").write_text("half a file")
    result = rdi(f"train run={folder} tracking=none threads=1")
    assert result.status == 0, result.err
    same_result(folder, unbroken)


@pytest.mark.parametrize("where", ["state", "bank", "thresholds", "done"])
def test_a_training_killed_near_its_end(where, unbroken, rdi, tmp_path):
    """Nothing but `done` says that a run is whole, and what is missing is made by the next start."""
    from rdi.runs import train

    class Killed(BaseException):
        pass

    def killed(*arguments, **settings):
        raise Killed

    patch = pytest.MonkeyPatch()
    if where == "state":  # the last line of the log is written, its state is not
        save = train.FolderStore.save_state
        patch.setattr(
            train.FolderStore,
            "save_state",
            lambda self, state: save(self, state) if state["step"] < STEPS else killed(),
        )
    elif where == "bank":
        patch.setattr(crafting, "make_bank", killed)
    elif where == "thresholds":
        patch.setattr(evaluate, "fit_thresholds", killed)
    else:
        real = train.write_bytes
        patch.setattr(train, "write_bytes", lambda path, new: killed() if path.name == "done" else real(path, new))
    folder = tmp_path / "run"
    try:
        with pytest.raises(Killed):
            rdi(f"train run={folder} {LINE}")
    finally:
        patch.undo()
    assert "not finished" in rdi(f"attack run={folder}").errors[0]
    with pytest.raises(api.UserError, match="not finished"):
        api.load_thresholds(folder)
    result = rdi(f"train run={folder} tracking=none threads=1")
    assert result.status == 0, result.err
    same_result(folder, unbroken)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])
def test_a_signal_before_the_first_step_leaves_no_lock(number, tmp_path):
    folder = tmp_path / "run"
    process = Forked(f"train run={folder} {LINE}")
    while not ((folder / ".lock").exists() and (folder / ".lock").read_text()):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert not (folder / ".lock").exists()


def test_a_run_goes_on_with_the_same_command(unbroken, rdi, tmp_path):
    folder = tmp_path / "run"
    line = f"run run={folder} {LINE} stages=[train]"
    process = Forked(line)
    while lines_of(folder) < 1:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "or with the same `rdi run` command" in err
    assert rdi(line).status == 0
    same_result(folder, unbroken)


def test_a_run_that_was_killed_after_its_attacks_makes_nothing_again(rdi, demo, monkeypatch):
    from rdi.runs import verdict

    class Killed(BaseException):
        pass

    def killed(*arguments, **options):
        raise Killed

    line = f"run run=runs/demo {TINY} suite=quick samples=16 threat.test_steps=1 stages=[train,attack,evaluate]"
    shutil.rmtree(demo / "banks" / "test-average")
    shutil.rmtree(demo / "evals")
    with monkeypatch.context() as patch:
        patch.setattr(verdict, "thresholds", killed)
        with pytest.raises(Killed):
            rdi(line)
    made = [demo / "checkpoint.safetensors", *sorted(demo.glob("banks/test-*/bank.npz"))]
    assert [path.parent.name for path in made[1:]] == ["test-average", "test-clean"]
    before = [path.stat().st_mtime_ns for path in made]
    result = rdi(line)
    assert result.status == 0, result.err
    assert [path.stat().st_mtime_ns for path in made] == before
    assert (demo / "evals" / "entropy__test-worst.json").is_file()


@pytest.fixture
def cut_off():
    """Have the next training end before its first step is saved."""
    with pytest.MonkeyPatch.context() as patch:

        def once(*rest, **more):
            patch.undo()
            raise Interrupted("killed")

        patch.setattr(train, "fit", once)
        yield


def test_a_run_killed_before_its_first_evaluation_starts_from_the_same_weights(rdi, demo, cut_off, tmp_path):
    options = f"{TINY} start={demo.absolute()}"
    assert rdi(f"train run=a {options}").status == 130
    assert rdi("train run=a").status == 0
    assert rdi(f"train run=b {options}").status == 0
    mine, theirs = (load_file(tmp_path / name / "checkpoint.safetensors") for name in "ab")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_other_weights_to_start_from_are_refused(rdi, demo, cut_off, tmp_path):
    assert rdi(f"train run=a {TINY} start={demo.absolute()}").status == 130
    assert rdi(f"train run={demo} {TINY} seed=8 overwrite=true").status == 0
    done = rdi("train run=a")
    assert done.status == 2
    assert "which this run starts from, is not what it was when the run began" in done.err


def test_an_attack_keeps_what_is_finished(rdi, demo, monkeypatch):
    from rdi import signals

    class Impatient(signals.StopFlag):
        def __call__(self):
            self.asked = getattr(self, "asked", 0) + 1
            return self.asked > 1

    line = "attack run=runs/demo suite=paper samples=16 threat.test_steps=1"
    with monkeypatch.context() as patch:
        patch.setattr(signals, "StopFlag", Impatient)
        result = rdi(f"{line} suite.average.steps=1")
    assert result.status == 130
    assert "the same command goes on with the rest" in result.errors[0]
    result = rdi(line)
    assert result.status == 0
    assert {path.name for path in (demo / "banks").iterdir()} == {
        "calibration-clean",
        *(f"test-{name}" for name in ("clean", "average", "max_avg", "single_exit0", "single_exit1", "single_exit2")),
    }


def test_an_attack_goes_on_batch_by_batch(rdi, demo, tmp_path, monkeypatch):
    from rdi import signals

    class Impatient(signals.StopFlag):
        def __call__(self):
            self.asked = getattr(self, "asked", 0) + 1
            return self.asked > 3

    shutil.copytree(demo, tmp_path / "runs" / "twin")
    line = "samples=16 attack=max_avg threat.test_steps=2 batch_size=4"
    with monkeypatch.context() as patch:
        patch.setattr(signals, "StopFlag", Impatient)
        result = rdi(f"attack run=runs/demo {line}")
    assert result.status == 130
    assert (demo / "banks" / "test-max_avg.begun.npz").is_file()
    result = rdi(f"attack run=runs/demo {line}")
    assert result.status == 0, result.err
    assert "max_avg goes on after 12 of 16 images" in result.err
    assert not (demo / "banks" / "test-max_avg.begun.npz").exists()
    assert rdi(f"attack run=runs/twin {line}").status == 0
    resumed, whole = (LogitsBank.load(tmp_path / "runs" / name / "banks" / "test-max_avg") for name in ("demo", "twin"))
    assert torch.equal(resumed.logits, whole.logits)
    assert resumed.manifest.linf == whole.manifest.linf
    kept, theirs = (Gallery.load(RunFolder(tmp_path / "runs" / n).gallery("test", "max_avg")) for n in ("demo", "twin"))
    assert np.array_equal(kept.images, theirs.images)
    assert kept.record.judged


def test_a_guarded_training_goes_on_with_what_its_guard_knew(rdi, monkeypatch):
    """With guard_ratio=1 every fall is a collapse: triggers lie before and behind the interruption."""
    from rdi import signals

    class Impatient(signals.StopFlag):
        def __call__(self):
            self.asked = getattr(self, "asked", 0) + 1
            return self.asked > STEPS // 2 + 1

    line = LINE.replace("attack.steps=1", "attack.steps=2")
    line += " defense=fast defense.guard_every=2 defense.guard_ratio=1 defense.recover_steps=2 optim.batch_size=16"
    unbroken, folder = Path("unbroken"), Path("run")
    assert rdi(f"train run={unbroken} {line}").status == 0
    with monkeypatch.context() as patch:
        patch.setattr(signals, "StopFlag", Impatient)
        assert rdi(f"train run={folder} {line}").status == 130
    saved = torch.load(folder / "resume.pt", weights_only=True)["defense"]
    assert rdi(f"train run={folder} tracking=none threads=1").status == 0
    same_result(folder, unbroken)
    last = json.loads((folder / "train.jsonl").read_text().splitlines()[-1])
    assert saved["step"] < saved["recover_until"], "stopped in the middle of a recovery"
    assert 0 < saved["triggers"] < last["guard_triggers"]
    assert (unbroken / "log.txt").read_text().count("catastrophic overfitting") == last["guard_triggers"]
