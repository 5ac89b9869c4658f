"""Files are whole or not there, checksums are looked at, and one process at a time works in a folder."""

import errno
import json
import os
import random
import stat
import subprocess
import sys

import numpy as np
import pytest

from rdi import storage
from rdi.errors import UserError
from rdi.locks import LOCK, hold
from rdi.records import Environment, read, write
from rdi.storage import (
    read_arrays,
    read_json,
    read_sealed,
    sha256,
    write_arrays,
    write_bytes,
    write_folder,
    write_json,
    write_sealed,
)

RECORD = {"name": "a policy", "values": [0.5, -0.25], "nested": {"none": None, "text": "å", "whole": 3}}
ENVIRONMENT = Environment(versions={"python": "3.11.7"}, device="cpu", threads=2, commit=None, dirty=True)
ARRAYS = {"logits": np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 2, 3), "labels": np.arange(4)}


def test_sha256_is_the_known_one(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_write_that_is_interrupted_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def interrupted(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"half of the new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_and_folders_honour_the_umask(mask, tmp_path):
    old = os.umask(mask)
    try:
        write_bytes(tmp_path / "a" / "file", b"old")
        write_bytes(tmp_path / "a" / "file", b"new")
        write_folder(tmp_path / "b", {"file": b"new"})
    finally:
        os.umask(old)
    for path in (tmp_path / "a" / "file", tmp_path / "b" / "file"):
        assert path.read_bytes() == b"new"
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o777 & ~mask


def test_a_name_as_long_as_the_disk_allows_can_be_written(tmp_path):
    path = tmp_path / ("x" * 255)
    write_bytes(path, b"content")
    assert path.read_bytes() == b"content"


@pytest.mark.parametrize(
    "obstacle",
    [errno.ENOSPC, errno.EROFS, errno.EFBIG, errno.EDQUOT, errno.EIO],
    ids=errno.errorcode.get,
)
def test_a_disk_that_refuses_is_one_line_that_names_the_file(obstacle, tmp_path, monkeypatch):
    def refused(handle):
        raise OSError(obstacle, os.strerror(obstacle))

    monkeypatch.setattr(os, "fsync", refused)
    for save in (lambda: write_bytes(tmp_path / "file", b""), lambda: write_folder(tmp_path / "f", {"file": b""})):
        with pytest.raises(UserError, match=rf"cannot write .*file: {os.strerror(obstacle)}"):
            save()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("file/below", "Not a directory|File exists"), ("folder", "Is a directory"), ("x" * 300, "File name too long")],
)
def test_a_path_that_cannot_be_a_file_is_one_line(name, message, tmp_path):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"cannot write .*({message})"):
        write_bytes(tmp_path / name, b"content")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


def test_a_folder_is_replaced_whole_or_stays_as_it_was(tmp_path, monkeypatch):
    folder = tmp_path / "bank"
    write_folder(folder, {"a": b"1", "b": b"2"})
    write_folder(folder, {"a": b"3"})
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("a", b"3")]
    monkeypatch.setattr(storage, "write_bytes", lambda path, content: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_folder(folder, {"a": b"4"})
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("a", b"3")]
    assert [entry.name for entry in tmp_path.iterdir()] == ["bank"]


def test_what_is_written_is_read_back(tmp_path):
    write_json(tmp_path / "json", RECORD)
    assert read_json(tmp_path / "json") == RECORD
    for compress in (False, True):
        write_arrays(tmp_path / "npz", ARRAYS, compress=compress)
        again = read_arrays(tmp_path / "npz", "")
        assert all(np.array_equal(again[name], ARRAYS[name]) for name in ARRAYS)
        assert {name: array.dtype for name, array in again.items()} == {n: a.dtype for n, a in ARRAYS.items()}
    write_sealed(tmp_path / "sealed", b"\nsha256 of this: none\n")
    assert read_sealed(tmp_path / "sealed", "") == b"\nsha256 of this: none\n"


def test_json_without_a_checksum_is_taken_as_it_is(tmp_path):
    (tmp_path / "by-hand.json").write_text(json.dumps(RECORD))
    assert read_json(tmp_path / "by-hand.json") == RECORD
    write_json(tmp_path / "edited.json", RECORD)
    content = json.loads((tmp_path / "edited.json").read_text())
    (tmp_path / "edited.json").write_text(json.dumps({**content, "edited": 1}))
    with pytest.raises(UserError, match="after an edit on purpose set its 'checksum' to null"):
        read_json(tmp_path / "edited.json")
    (tmp_path / "edited.json").write_text(json.dumps({**content, "edited": 1, "checksum": None}))
    assert read_json(tmp_path / "edited.json") == {**RECORD, "edited": 1}


def same(left, right):
    """Whether two contents are equal, arrays included."""
    if isinstance(left, dict) and any(isinstance(value, np.ndarray) for value in left.values()):
        return left.keys() == right.keys() and all(
            left[name].dtype == right[name].dtype and np.array_equal(left[name], right[name]) for name in left
        )
    return left == right


KINDS = {
    "record": (lambda path: write(path, ENVIRONMENT), lambda path: read(path, Environment)),
    "arrays": (lambda path: write_arrays(path, ARRAYS), lambda path: read_arrays(path, "remedy")),
    "compressed": (lambda path: write_arrays(path, ARRAYS, compress=True), lambda path: read_arrays(path, "remedy")),
    "sealed": (lambda path: write_sealed(path, bytes(range(200))), lambda path: read_sealed(path, "remedy")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_bit_is_noticed_or_changes_nothing(kind, tmp_path):
    save, load = KINDS[kind]
    path = tmp_path / "file"
    save(path)
    content, expected = path.read_bytes(), load(path)
    bits = range(8 * len(content))
    noticed = 0
    for bit in random.Random(0).sample(bits, min(len(bits), 1500)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            found = load(path)
        except UserError as error:
            noticed += str(path) in str(error)
        else:
            assert same(found, expected), (bit // 8, bit % 8)
    assert noticed > 500


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_anywhere_is_noticed(kind, tmp_path):
    save, load = KINDS[kind]
    path = tmp_path / "file"
    save(path)
    content = path.read_bytes()
    for length in {0, 1, len(content) // 3, len(content) // 2, len(content) - 2}:
        path.write_bytes(content[:length])
        with pytest.raises(UserError):
            load(path)


def test_pickled_arrays_are_never_loaded(tmp_path):
    np.savez(tmp_path / "a.npz", logits=np.array([{"code": 1}], dtype=object))
    with pytest.raises(UserError, match="damaged: make it again"):
        read_arrays(tmp_path / "a.npz", "make it again")


def test_a_held_folder_is_in_use_until_it_is_left(tmp_path):
    folder = tmp_path / "runs" / "one"
    with hold(folder):
        assert (folder / LOCK).read_text().startswith(f"process {os.getpid()} on ")
        with pytest.raises(UserError, match=f"is in use by process {os.getpid()}"), hold(folder):
            pass
        (folder / "result").write_text("")
    assert [entry.name for entry in folder.iterdir()] == ["result"]
    with hold(folder):
        pass
    assert [entry.name for entry in folder.iterdir()] == ["result"]


@pytest.mark.parametrize("ending", ["raise KeyboardInterrupt", "raise SystemExit(3)", "os._exit(1)", "os.kill(0, 9)"])
def test_no_lock_outlives_its_process(ending, tmp_path):
    code = f"import os\nfrom pathlib import Path\nfrom rdi.locks import hold\nwith hold(Path('run')): {ending}"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, start_new_session=True, check=False
    )
    assert ended.returncode != 0
    with hold(tmp_path / "run"):
        pass
    assert not (tmp_path / "run" / LOCK).exists()


SIGNALLED = """
import os, signal, sys
from pathlib import Path
from rdi import signals
from rdi.locks import hold

left = 0

def hook(event, args):
    global left
    if event == "open" or event in ("os.mkdir", "os.remove", "os.rmdir"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGINT)

sys.addaudithook(hook)
for event in range(1, 99):
    left, raised = event, False
    try:
        with signals.interrupts(), hold(Path("a/b")):
            pass
    except KeyboardInterrupt:
        raised = True
    left, over = 0, left > 0
    assert over != raised, event
    assert os.listdir() == [], event
    if over:
        break
print(event)
"""


def test_a_signal_at_any_moment_of_taking_and_leaving_a_lock_leaves_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", SIGNALLED], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 6


def test_a_folder_that_stays_empty_goes_again(tmp_path):
    with hold(tmp_path / "a" / "b"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_is_a_link_empties_nothing(tmp_path):
    (tmp_path / "thesis").write_text("years of work")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "thesis")
    with pytest.raises(UserError, match=r"run.*\.lock is a link out of its folder"), hold(tmp_path / "run"):
        pass
    assert (tmp_path / "thesis").read_text() == "years of work"
    assert (tmp_path / "run" / LOCK).is_symlink()


@pytest.mark.parametrize("loss", ["deleted", "moved", "replaced"])
def test_a_held_folder_that_goes_away_is_not_made_again(loss, tmp_path):
    folder = tmp_path / "runs" / "one"

    def work():
        with hold(folder):
            write_bytes(folder / "banks" / "file", b"before")
            folder.rename(tmp_path / "elsewhere")
            if loss == "deleted":
                storage.shutil.rmtree(tmp_path / "elsewhere")
            if loss == "replaced":
                folder.mkdir()
            for save in (
                lambda: write_bytes(folder / "done", b""),
                lambda: write_bytes(folder / "banks" / "file", b""),
                lambda: write_folder(folder / "banks" / "bank", {"a": b""}),
            ):
                with pytest.raises(UserError, match=r"one was deleted, moved or replaced while this command worked"):
                    save()

    with pytest.raises(UserError, match="one was deleted, moved or replaced"):
        work()
    assert not folder.exists() or list(folder.iterdir()) == []
