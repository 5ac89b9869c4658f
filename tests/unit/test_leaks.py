"""Images are known by their pixels, wherever they come from, and held-out ones that were trained on are counted."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from helpers.counted import Counted
from rdi.data import Digits, ImageFolder
from rdi.data.identity import key, keys
from rdi.data.leaks import held_out_overlap, train_overlap
from rdi.errors import UserError
from rdi.runs import datasets


def seen(data):
    """What a network has seen that was trained on `data`."""
    return np.unique(data.keys("train"))


def test_a_key_sees_every_pixel_and_the_shape():
    image = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    assert key(image) == key(image.copy()) == key(np.asfortranarray(image))
    assert key(image) != key(image.reshape(3, 4, 1))
    found = {key(image)}
    for place in np.ndindex(image.shape):
        other = image.copy()
        other[place] ^= 1
        found.add(key(other))
    assert len(found) == image.size + 1
    assert keys(image[None]).tolist() == [key(image)]


def test_the_same_split_leaks_nothing_and_another_one_as_many_as_the_indices_say():
    first, again, other = (Counted(test_start=None, split_seed=seed).load() for seed in (1, 1, 2))
    assert held_out_overlap(again, seen(first)) == {}
    expected = {name: len({*other.split(name).indices} & {*first.train.indices}) for name in ("calibration", "test")}
    assert held_out_overlap(other, seen(first)) == expected
    assert all(expected.values())


@pytest.mark.parametrize(
    ("settings", "found"),
    [({"calibration": 25}, {"calibration": 5}), ({"validation": 7}, {"validation": 7}), ({"calibration": 9}, {})],
)
def test_images_that_are_held_out_only_here_count(settings, found):
    assert held_out_overlap(Counted(**settings).load(), seen(Counted().load())) == found


class Doubled(Counted):
    """The last image of the test part is the first of training, and the one before it is its own twin."""

    def read(self):
        raw = super().read()
        raw.images[self.count - 1] = raw.images[0]
        raw.images[self.count - 2] = raw.images[self.count - 3]
        return raw


def test_images_that_the_data_repeat_themselves_are_said_but_are_no_leak_of_a_start():
    data = Doubled(calibration_from="test", calibration=1).load()
    assert sum(train_overlap(data).values()) == 1
    assert held_out_overlap(data, seen(data)) == {}
    assert train_overlap(Counted().load()) == {}


def test_images_are_recognised_before_and_after_they_were_resized(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small = Digits(name="digits", calibration=300, test=400, size=8).load()
    large = Digits(name="digits", calibration=300, test=400, size=12, split_seed=1).load()
    leaked = len({*small.train.indices} & {*large.test.indices})
    assert held_out_overlap(large, seen(small))["test"] == leaked > 0
    # the same pictures as files, in another format and under other names, of either size
    for data in (small, large):
        root = tmp_path / str(data.shape[1])
        for name, rows in (("train", data.test), ("test", data.train)):
            for n, (image, label) in enumerate(
                zip(rows.images[:40, 0].numpy(), rows.labels[:40].tolist(), strict=True)
            ):
                (root / name / f"class{label}").mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(root / name / f"class{label}" / f"file{n}.bmp")
        copied = ImageFolder(name="copy", root=str(root), mode="L", calibration=1, size=12).load()
        assert held_out_overlap(copied, seen(data)) == {"test": 40}


# where the images of a run are ----------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Three folders: the run's, a copy of it, other images; and the working directory is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RDI_DATA", raising=False)
    found = {}
    for name, level in (("first", 0), ("copy", 0), ("other", 1)):
        for label in ("a", "b"):
            (tmp_path / name / label).mkdir(parents=True)
            for n in range(4):
                Image.new("L", (2, 2), 10 * n + level).save(tmp_path / name / label / f"{n}.png")
        found[name] = tmp_path / name
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return found


def node(root):
    settings = {"name": "mine", "root": str(root), "calibration": 1, "mode": "L"}
    return {"data": {"_target_": "rdi.data.ImageFolder", **settings}}


def load(places, **settings):
    expected = ImageFolder(name="mine", root=str(places["copy"]), calibration=1, mode="L").load().fingerprint
    return datasets.load(node(places["first"]), expected, **settings)


def test_a_run_finds_its_images_where_it_found_them_whatever_rdi_data_holds(places, monkeypatch, tmp_path):
    for elsewhere in (places["other"], tmp_path / "nowhere", places["first"], places["copy"]):
        monkeypatch.setenv("RDI_DATA", str(elsewhere))
        assert len(load(places).test) == 1


def test_images_that_have_moved_are_found_in_rdi_data(places, monkeypatch, tmp_path):
    places["first"].rename(tmp_path / "moved")
    monkeypatch.setenv("RDI_DATA", str(tmp_path / "moved"))
    assert len(load(places).test) == 1
    monkeypatch.delenv("RDI_DATA")
    (tmp_path / "moved").rename("data")
    assert len(load(places).test) == 1, "where the configs look by default"


def test_images_that_are_in_neither_place_are_looked_for_in_both_and_both_are_said(places, monkeypatch, tmp_path):
    places["first"].rename(tmp_path / "moved")
    monkeypatch.setenv("RDI_DATA", str(places["other"]))
    with pytest.raises(UserError) as refused:
        load(places)
    said = str(refused.value)
    assert said.startswith(f"looked for the images of the run in {places['other']} and in {places['first']}; ")
    assert "differ from those that the run was made with" in said
    assert f"no folder {places['first']}" in said
    monkeypatch.delenv("RDI_DATA")
    with pytest.raises(UserError, match=f"^no folder {places['first']}"):
        load(places)


def test_what_the_user_typed_is_the_only_place(places, monkeypatch):
    monkeypatch.setenv("RDI_DATA", str(places["copy"]))
    assert len(load(places, root=str(places["copy"])).test) == 1
    with pytest.raises(UserError, match=r"^the images of mine differ"):
        load(places, root=str(places["other"]))


def test_nothing_is_downloaded_while_the_images_are_anywhere(places, monkeypatch, tmp_path):
    """A source that downloads is asked to only after all places were looked in."""
    asked = []

    class Downloading(Counted):
        def __init__(self, *, root, download, **settings):
            super().__init__(calibration=5)
            self.root, self.download = root, download

        def read(self):
            asked.append((self.root, self.download))
            if self.root != "here" and not self.download:
                raise UserError("not there")
            return super().read()

    monkeypatch.setattr(datasets, "build", lambda node, where: Downloading(**node))
    expected = Counted(calibration=5).load().fingerprint
    monkeypatch.setenv("RDI_DATA", "empty")
    assert datasets.load({"data": {"root": "here", "download": True}}, expected).fingerprint == expected
    assert asked == [("empty", False), ("here", False)]
    asked.clear()
    assert datasets.load({"data": {"root": "gone", "download": True}}, expected).fingerprint == expected
    assert asked == [("empty", False), ("gone", False), ("empty", True)]


def test_a_manifest_keeps_the_place_for_every_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    kept = datasets.stored({"data": {"root": "x", "a": 1}, "b": 2})
    assert kept == {"data": {"root": f"{tmp_path}/x", "a": 1}, "b": 2}
    assert datasets.stored({"data": {"root": "~/x"}})["data"]["root"] == "/home/me/x"
    assert datasets.stored({"data": {"size": 8}}) == {"data": {"size": 8}}


# downloads ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def downloads(places, monkeypatch):
    """Folders that torchvision was asked to download into; nothing is fetched."""
    found = []

    def fetch(self):
        found.append(Path(self.root))
        raise RuntimeError("no network")

    monkeypatch.setattr(CIFAR10, "download", fetch)
    return found


@pytest.mark.parametrize("root", ["elsewhere", "~/.config", None, 5, "", "/"])
def test_nothing_is_downloaded_to_where_a_manifest_says(root, downloads, monkeypatch, tmp_path):
    chosen = str(tmp_path / root) if root == "elsewhere" else root
    stored = {"_target_": "rdi.data.Torchvision", "name": "x", "dataset": "CIFAR10", "calibration": 1, "root": chosen}

    def load(**settings):
        with pytest.raises(UserError):
            datasets.load({"data": {**stored, "download": True}}, "0" * 64, **settings)

    load()
    assert downloads == [Path("data")], "where the configs look by default"
    monkeypatch.setenv("RDI_DATA", str(tmp_path / "mine"))
    load()
    assert downloads[1:] == [tmp_path / "mine"]
    load(root=str(tmp_path / "typed"))
    assert downloads[2:] == [tmp_path / "typed"]
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(UserError):
        datasets.load({"data": {**stored, "download": False}}, "0" * 64)
    assert len(downloads) == 3
