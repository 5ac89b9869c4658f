"""Answers about runs that are kept from one command to the next, and when they are not."""

import gc
import json
import logging
import os
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rdi.runs import points_index
from rdi.runs.points_index import PointsIndex, state

BANK = "banks/test-clean/bank.npz"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(points_index, "SETTLED", 0)
    folder = tmp_path / "run"
    for name in ("manifest.json", "done", BANK, "bounds/test.npz", "corrupted/test-fog_1/bank.npz", "log.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


class Work:
    """Counts how often it is called, and answers with that."""

    def __init__(self, alone=True):
        self.calls, self.alone = 0, alone

    def __call__(self):
        self.calls += 1
        logging.getLogger("rdi").warning("work %d", self.calls)
        return {"calls": self.calls, "value": 0.1 + 0.2}, self.alone


def ask(place, run, work, question="points"):
    """The answer that a new process would get."""
    index = PointsIndex(place)
    return index.answer(index.ask(run, question, work))


def test_an_answer_is_worked_out_once_and_its_warnings_are_said_each_time(tmp_path, run, caplog):
    work = Work()
    first = ask(tmp_path / "cache", run, work)
    assert [record.getMessage() for record in caplog.records] == ["work 1"]
    assert ask(tmp_path / "cache", run, work) == first == {"calls": 1, "value": 0.1 + 0.2}
    assert [record.getMessage() for record in caplog.records] == ["work 1", "work 1"]
    assert ask(tmp_path / "cache", run, work, question="others")["calls"] == 2


@pytest.mark.parametrize("name", ["manifest.json", "done", BANK, "bounds/test.npz", "corrupted/test-fog_1/bank.npz"])
@pytest.mark.parametrize("how", ["rewritten", "replaced", "removed", "linked"])
def test_a_change_of_any_file_that_is_read_is_noticed(tmp_path, run, name, how):
    work, path = Work(), run / name
    ask(tmp_path / "cache", run, work)
    time.sleep(0.02)  # the clock of files ticks every few milliseconds
    times = path.stat()
    if how == "rewritten":  # as long as before, and its time set back
        path.write_bytes(b"y")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif how == "replaced":
        (run / "other").write_bytes(b"y")
        os.utime(run / "other", ns=(times.st_atime_ns, times.st_mtime_ns))
        os.replace(run / "other", path)
    else:
        path.rename(tmp_path / "away")
        if how == "linked":
            path.symlink_to(tmp_path / "away")
    assert ask(tmp_path / "cache", run, work)["calls"] == 2


def test_files_that_are_not_read_change_nothing(tmp_path, run):
    work = Work()
    ask(tmp_path / "cache", run, work)
    (run / "log.txt").write_bytes(b"more")
    (run / "evals").mkdir()
    (run / "banks" / ".half.partial").write_bytes(b"x")
    assert ask(tmp_path / "cache", run, work)["calls"] == 1
    (run / "banks" / "test-average").mkdir()
    (run / "banks" / "test-average" / "bank.npz").write_bytes(b"x")
    assert ask(tmp_path / "cache", run, work)["calls"] == 2


def test_other_code_or_libraries_ask_anew(tmp_path, run, monkeypatch):
    work = Work()
    ask(tmp_path / "cache", run, work)
    monkeypatch.setattr(points_index, "code", lambda: "other")
    assert ask(tmp_path / "cache", run, work)["calls"] == 2
    monkeypatch.setattr(points_index, "version", lambda name: "other")
    assert ask(tmp_path / "cache", run, work)["calls"] == 3


def test_what_cannot_be_known_again_is_kept_by_this_process_alone(tmp_path, run, monkeypatch):
    outside = Work(alone=False)
    assert [ask(tmp_path / "cache", run, outside)["calls"] for _ in range(2)] == [1, 2]
    monkeypatch.setattr(points_index, "SETTLED", 3600)
    assert state(run) is None, "a file that was written just now may be written again within the same tick"
    new = Work()
    assert [ask(tmp_path / "cache", run, new)["calls"] for _ in range(2)] == [1, 2]


def test_a_run_that_changes_meanwhile_is_not_kept(tmp_path, run):
    work = Work()

    def changing():
        (run / BANK).write_bytes(b"longer")
        return work()

    ask(tmp_path / "cache", run, changing)
    assert ask(tmp_path / "cache", run, work)["calls"] == 2


def test_without_a_cache_folder_each_process_works_for_itself(tmp_path, run):
    (tmp_path / "file").write_bytes(b"")
    work = Work()
    assert [ask(tmp_path / "file" / "cache", run, work)["calls"] for _ in range(2)] == [1, 2]


@pytest.mark.filterwarnings("error")
def test_an_index_may_be_forgotten_by_another_thread(tmp_path, run):
    """The garbage collector runs in whichever thread comes by, wandb's among them."""
    held = [PointsIndex(tmp_path / "cache")]
    held[0].ask(run, "points", Work())
    with ThreadPoolExecutor(1) as pool:
        pool.submit(held.clear).result()
    gc.collect()
    assert ask(tmp_path / "cache", run, Work())["calls"] == 1


def test_a_damaged_file_is_made_again(tmp_path, run):
    work, file = Work(), tmp_path / "cache" / "points.sqlite"
    ask(tmp_path / "cache", run, work)
    file.write_bytes(b"no database" * 1000)
    assert [ask(tmp_path / "cache", run, work)["calls"] for _ in range(2)] == [2, 2]


def test_a_damaged_answer_is_worked_out_again(tmp_path, run):
    work = Work()
    ask(tmp_path / "cache", run, work)
    with sqlite3.connect(tmp_path / "cache" / "points.sqlite") as there:
        (content,) = there.execute("SELECT content FROM answers").fetchone()
        there.execute("UPDATE answers SET content = ?", (content[:-1] + bytes([content[-1] ^ 1]),))
    there.close()
    assert [ask(tmp_path / "cache", run, work)["calls"] for _ in range(2)] == [2, 2]


def test_answers_that_nobody_asks_for_are_dropped_in_the_end(tmp_path, run, monkeypatch):
    now, work = points_index._now(), Work()
    ask(tmp_path / "cache", run, work)
    for days, calls in ((20, 1), (40, 1), (80, 2)):  # asked for after 20 days, it stays for 30 more
        monkeypatch.setattr(points_index, "_now", lambda days=days: now + days * points_index.DAY)
        assert ask(tmp_path / "cache", run, work)["calls"] == calls


def test_nothing_in_the_file_is_code(tmp_path, run):
    ask(tmp_path / "cache", run, Work())
    with sqlite3.connect(tmp_path / "cache" / "points.sqlite") as there:
        (content,) = there.execute("SELECT content FROM answers").fetchone()
    there.close()
    assert json.loads(points_index.zlib.decompress(content))["answer"]["calls"] == 1
