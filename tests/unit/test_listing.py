"""Folders of pictures as they are found in the wild: what is read, what is left out with a word, what is refused."""

import os
import shutil
import socket
import threading

import numpy as np
import pytest
from PIL import Image

from rdi.data import ImageFolder
from rdi.data.listing import listing
from rdi.data.pictures import SUFFIXES
from rdi.errors import UserError

CLASSES = ("train/cat", "train/dog", "test/cat", "test/dog")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path):
    """Two classes, three pictures each in train, one each in test."""
    folder = tmp_path / "images"
    level = 0
    for part in CLASSES:
        (folder / part).mkdir(parents=True)
        for n in range(3 if part.startswith("train") else 1):
            level += 10
            draw(folder / part / f"{n}.png", level)
    return folder


def draw(path, level, kind=None):
    Image.new("RGB", (4, 4), (level, level, level)).save(path, kind)


def read(root, **settings):
    return ImageFolder(name="mine", root=str(root), calibration=1, **settings).read()


def firsts(raw):
    return raw.images[:, 0, 0, 0].tolist()


WHOLE = [10, 20, 30, 40, 50, 60, 70, 80]


def test_nothing_is_said_of_a_folder_of_pictures_alone(root):
    raw = read(root)
    assert (firsts(raw), raw.notes) == (WHOLE, ())


def pipe(path):
    os.mkfifo(path)


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(path.parent)  # the address has little room
        try:
            one.bind(path.name)
        finally:
            os.chdir(here)


def circle(path):
    path.symlink_to(path.name)


ODD = {
    "a pipe": ("x.png", pipe, "1 pipe"),
    "a link to a pipe": ("x.png", lambda path: (pipe(path.with_name("p")), path.symlink_to("p")), "2 pipe"),
    "a socket": ("x.png", unix_socket, "1 socket"),
    "a device": ("x.png", lambda path: path.symlink_to("/dev/zero"), "1 device"),
    "a dangling link": ("x.png", lambda path: path.symlink_to("nowhere.png"), "1 dangling link"),
    "links in a circle": ("x.png", circle, "1 link in a circle"),
    "a folder called as a picture": ("x.png", lambda path: path.mkdir(), "1 folder inside a class"),
    "a folder": ("more", lambda path: path.mkdir(), "1 folder inside a class"),
    "another ending": ("x.HEIC", lambda path: path.write_text("x"), "1 of .heic"),
    "no ending": ("x", lambda path: path.write_text("x"), "1 without an ending"),
    "a hidden picture": ("._0.png", lambda path: path.write_text("x"), "1 hidden"),
    "an ending that is no text": (os.fsdecode(b"x.\xff"), lambda path: path.write_text("x"), r"1 of .\udcff"),
    "an ending with an escape code": ("x.\x1b[31m", lambda path: path.write_text("x"), r"1 of .\x1b[31m"),
}


@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("where", ["train/cat", "test/dog"])
def test_what_is_no_file_of_a_picture_is_left_out_with_a_word(case, where, root):
    name, make, expected = ODD[case]
    make(root / where / name)
    raw = []
    # a pipe that is opened waits for ever
    reader = threading.Thread(target=lambda: raw.append(read(root)), daemon=True)
    reader.start()
    reader.join(60)
    assert raw, "still reading"
    assert firsts(raw[0]) == WHOLE
    (note,) = raw[0].notes
    assert note.startswith(f"left out of {root}: {expected}; read are .jpg, ")
    assert note.isprintable()


@pytest.mark.parametrize(
    "make", [pipe, circle, lambda path: path.symlink_to("nowhere"), lambda path: path.write_text("x")]
)
def test_what_lies_beside_the_classes_is_left_out_with_a_word(make, root):
    make(root / "train" / "bird")
    draw(root / "train" / "stray.png", 1)
    (root / "val").mkdir()
    raw = read(root)
    assert (firsts(raw), raw.class_names) == (WHOLE, ("cat", "dog"))
    assert "1 beside the class folders" in raw.notes[0]
    assert "1 folder val/" in raw.notes[0]


def test_what_was_left_out_is_counted_by_ending(root):
    for n in range(3):
        (root / "train" / "cat" / f"{n}.heic").touch()
        (root / "test" / "dog" / f"{n}.HEIC").touch()
    (root / "train" / "dog" / "notes.txt").touch()
    assert read(root).notes[0].startswith(f"left out of {root}: 6 of .heic, 1 of .txt; ")


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".JPG", ".Jfif", ".TIF", ".PNG"])
def test_every_ending_that_is_promised_is_read_in_any_case(suffix, root):
    draw(root / "train" / "cat" / f"9{suffix}", 99, Image.registered_extensions()[suffix.lower()])
    raw = read(root)
    assert raw.notes == ()
    assert len(raw.images) == len(WHOLE) + 1
    # .pbm has two levels
    assert abs(firsts(raw)[3] - 99) <= 2


def test_names_that_are_not_utf8_are_read(root, cache):
    name = os.fsdecode(b"\xff\xfe.png")
    draw(root / "train" / "cat" / "9.png", 99)
    (root / "train" / "cat" / "9.png").rename(root / "train" / "cat" / name)
    assert sorted(firsts(read(root))) == sorted([*WHOLE, 99])
    assert sorted(firsts(read(root))) == sorted([*WHOLE, 99]), "out of the cache"
    (root / "train" / "cat" / name).write_text("no picture")
    with pytest.raises(UserError, match=r"udcff.*is not a readable image") as refused:
        read(root)
    assert str(refused.value).isprintable()


def test_a_class_name_that_is_not_utf8_is_refused(root):
    for part in ("train", "test"):
        shutil.copytree(root / part / "cat", root / part / os.fsdecode(b"\xff"))
    with pytest.raises(UserError, match=r"name that is not UTF-8: rename it") as refused:
        read(root)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("layout", ["official", "plain"])
@pytest.mark.parametrize("beside", [None, "x.heic"])
def test_a_class_without_pictures_to_train_on_is_refused(layout, beside, root):
    top = root / "train" if layout == "official" else root
    if layout == "plain":
        shutil.move(root / "train", root / "cat2")
        shutil.move(root / "test", root / "dog2")
        for part in ("cat2", "dog2"):
            for file in (root / part / "cat").iterdir():
                file.rename(root / part / file.name)
            shutil.rmtree(root / part / "cat")
            shutil.rmtree(root / part / "dog")
    (top / "bird").mkdir()
    if layout == "official":
        shutil.copytree(root / "test" / "cat", root / "test" / "bird")
    if beside:
        (top / "bird" / beside).touch()
    said = r"bird has no images \(but 1 of .heic\): put some there" if beside else "bird has no images: put some there"
    with pytest.raises(UserError, match=said):
        read(root)


def test_a_class_without_test_pictures_is_said(root):
    (root / "test" / "cat" / "0.png").unlink()
    raw = read(root)
    assert raw.notes == (f"{root / 'test'} has no images of cat",)
    assert raw.test_start == 6


def test_a_folder_with_train_alone_is_refused_with_the_layout(root):
    shutil.rmtree(root / "test")
    with pytest.raises(
        UserError,
        match=r"no images in .*: expected train/<class>/ and test/<class>/ \(or val/<class>/\), or <class>/ al",
    ):
        read(root)


def test_a_folder_that_may_not_be_listed_is_named(root, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", forbidden)
    with pytest.raises(UserError, match=r"the folder .* cannot be read \(Permission denied\)"):
        read(root)


@pytest.mark.parametrize("root", ["\0", "x" * 5000, "/dev/null", "~nobody-of-that-name/x"])
def test_a_root_that_cannot_be_a_folder_is_refused(root):
    with pytest.raises(UserError, match=r"data\.root"):
        read(root)


@pytest.mark.parametrize(
    "settings", [{"root": 1}, {"root": None}, {"folder": 3}, {"root": ""}, {"name": 1}, {"name": ""}]
)
def test_texts_that_are_none_are_refused_by_name(settings):
    with pytest.raises(UserError, match=rf"data\.{next(iter(settings))} must be text"):
        ImageFolder(**{"name": "mine", "root": "x", "calibration": 1, **settings})


def test_the_order_of_the_files_in_the_folder_means_nothing(root, tmp_path, monkeypatch):
    expected = listing(root)
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listed(path), reverse=True))
    assert listing(root) == expected


def test_a_copy_of_the_folder_is_the_same_data(root, tmp_path):
    first = ImageFolder(name="mine", root=str(root), calibration=1).load()
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    second = ImageFolder(name="mine", root=str(tmp_path / "copy"), calibration=1).load()
    assert second.fingerprint == first.fingerprint
    assert all(np.array_equal(second.indices()[name], rows) for name, rows in first.indices().items())


def test_unreadable_files_are_counted_and_the_first_is_named(root):
    for n in (5, 6, 7):
        (root / "train" / "dog" / f"{n}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"dog/5.png is not a readable image \(it is empty\), nor are 2 others of 11: "):
        read(root)


# the cache ----------------------------------------------------------------------------------------------------------


def the_cache(cache):
    (file,) = cache.rglob("*.npz")
    return file


def test_a_damaged_cache_is_noticed_and_made_again(root, cache):
    expected = read(root)
    file = the_cache(cache)
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    damages = [whole[: len(whole) // 2], b"", b"garbage", whole[:-1], whole + whole]
    for place in rng.integers(0, len(whole), 150):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        damages.append(bytes(flipped))
    for damage in damages:
        file.write_bytes(damage)
        again = read(root)
        assert np.array_equal(again.images, expected.images)
        assert np.array_equal(again.originals, expected.originals)
        assert again.notes == expected.notes


def test_a_folder_where_the_cache_belongs_is_done_without(root, cache):
    expected = read(root)
    file = the_cache(cache)
    file.unlink()
    file.mkdir()
    assert np.array_equal(read(root).images, expected.images)


def test_a_file_replaced_under_its_old_size_and_time_is_seen(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        draw(tmp_path / "images" / name / "0.bmp", 10)
    file = tmp_path / "images" / "a" / "0.bmp"
    assert firsts(read(tmp_path / "images")) == [10, 10]
    before = file.stat()
    draw(file, 200)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert firsts(read(tmp_path / "images")) == [200, 10]


@pytest.mark.parametrize("size", [100_000, 10**12, 10**30])
def test_images_that_memory_cannot_hold_are_refused_before_they_are_decoded(size, root):
    with pytest.raises(
        UserError, match=rf"8 images of 3x{size}x{size} need .* GiB of memory .*: take a smaller data.size"
    ):
        read(root, size=size)
