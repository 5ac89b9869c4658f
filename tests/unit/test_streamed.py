"""Images that stay on disk give what images in memory give, whoever decodes them."""

import io
import os
import shutil
import signal
import tarfile
import time

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.training import Memory, assert_same_tensors, recipe
from rdi.attacking import attack_split, joined
from rdi.attacks import Average
from rdi.data import ImageFolder, Shards
from rdi.data.batches import Shuffled
from rdi.data.streamed import Streamed, fetch, slices
from rdi.data.workers import ahead
from rdi.defenses import Carried, Composed, CrossEntropy, Standard
from rdi.errors import Interrupted, UserError
from rdi.exits import MultiExitNet
from rdi.runs import preflight
from rdi.thresholds import Entropy, ThresholdPolicy
from rdi.training import fit
from rdi.training_settings import Settings


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """60 pictures of two classes and of many sizes, laid out as ImageNet is."""
    place, rng = tmp_path_factory.mktemp("streamed") / "images", np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 6)):
        for label, name in enumerate(("n01", "n02")):
            (place / part / name).mkdir(parents=True)
            for n in range(count):
                height, width = rng.integers(12, 40, 2)
                pixels = rng.integers(0, 128, (height, width, 3), np.uint8) + np.uint8(100 * label)
                Image.fromarray(pixels).save(place / part / name / f"{n}.jpg")
    return place


def loaded(root, memory, workers=0, **settings):
    source = ImageFolder(
        name="mine", root=str(root), size=16, calibration=12, memory=memory, workers=workers, **settings
    )
    return source.load()


def network():
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.ReLU(), torch.nn.Flatten())
    return MultiExitNet([body], [torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Linear(4 * 7 * 7, 2))])


def trained(data, augment, steps=5, stop=lambda: False, store=None):
    net, store = network(), store or Memory()
    settings = Settings(seed=3, evaluations=1, augment=augment)
    torch.manual_seed(1)
    fit(net, Standard(), data.train, data.calibration, recipe(steps, batch_size=20), settings, store, stop=stop)
    return net.state_dict()


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_streamed_images_are_the_images_in_memory(root, fit):
    held, streamed = loaded(root, "resident", fit=fit), loaded(root, "stream", fit=fit)
    assert isinstance(streamed.train.images, Streamed)
    assert (streamed.fingerprint, streamed.shape) == (held.fingerprint, held.shape)
    assert "held in memory" in held.memory
    assert "decoded when they are needed, by 0 processes" in streamed.memory
    for name in ("train", "calibration", "test"):
        assert np.array_equal(streamed.keys(name), held.keys(name))
        assert torch.equal(streamed.split(name).images[:], held.split(name).images)
    sample = streamed.test.sample(5)
    assert torch.equal(sample.images[:], held.test.sample(5).images)
    assert torch.equal(sample.images[[2, 0]], held.test.sample(5).images[[2, 0]])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_network_is_trained_and_attacked_as_on_images_in_memory(root, workers):
    held, streamed = loaded(root, "resident"), loaded(root, "stream", workers)
    weights = trained(held, "crop_flip")
    assert_same_tensors(trained(streamed, "crop_flip"), weights)
    net = network()
    net.load_state_dict(weights)
    attack = Average(eps=0.1, step_size=0.05, steps=2)
    options = {"seed": 0, "batch_size": 5, "label": "average"}
    expected = joined(attack_split(net, held.test, attack, **options))
    found = joined(attack_split(net, streamed.test, attack, **options))
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.logits, expected.logits)


def test_crops_belong_to_seed_epoch_and_image(root):
    data = [loaded(root, "auto", workers, augment="resized_crop").train for workers in (0, 2)]
    assert isinstance(data[0].images, Streamed), "crops are cut out of the files, so auto streams"
    shuffled = Shuffled(len(data[0]), 20, seed=3)

    def batches(train, rows=slice(0, 20), seed=3):
        wanted = Shuffled(len(train), 20, seed).requests(range(4), rows, "resized_crop", train.indices)
        return list(fetch(train.images, wanted))

    before = torch.random.get_rng_state()
    plain, ahead_of = (batches(one) for one in data)
    assert torch.equal(torch.random.get_rng_state(), before), "dropout draws from this one"
    assert all(torch.equal(one, other) for one, other in zip(plain, ahead_of, strict=True))
    assert torch.equal(batches(data[0], slice(7, 20))[1], plain[1][7:]), "another rank sees the same crops"
    # 36 images: the third batch begins the second epoch with other crops of the same images
    rows, epochs = torch.cat([shuffled.indices(k) for k in range(4)]), [e for k in range(4) for e in shuffled.epochs(k)]
    assert epochs == [0] * 36 + [1] * 36 + [2] * 8
    images = torch.cat(plain)
    first, second = (int((rows[36 * k : 36 * (k + 1)] == 0).nonzero()) + 36 * k for k in (0, 1))
    assert not torch.equal(images[first], images[second])
    assert images.shape[1:] == (3, 16, 16)


def test_a_training_on_crops_goes_on_in_the_middle_of_an_epoch(root):
    streamed = loaded(root, "stream", augment="resized_crop")
    asked, store = [], Memory()

    def stop():
        asked.append(None)
        return len(asked) == 3

    with pytest.raises(Interrupted):
        trained(streamed, "resized_crop", stop=stop, store=store)
    assert_same_tensors(trained(streamed, "resized_crop", store=store), trained(streamed, "resized_crop"))


def test_an_index_is_read_again_and_a_changed_picture_is_noticed(root, tmp_path, monkeypatch):
    first = loaded(root, "stream")
    monkeypatch.setattr("rdi.data.cached.indexed", None)
    again = loaded(root, "stream")
    assert (again.fingerprint, again.memory) == (first.fingerprint, first.memory)
    file = root / "train" / "n01" / "3.jpg"
    whole = file.read_bytes()
    try:
        file.write_bytes(b"no picture")
        index = np.flatnonzero(first.train.indices == 3)
        with pytest.raises(UserError, match=r"n01/3.jpg was a readable image and is none now"):
            list(fetch(first.train.images, slices(len(first.train), range(int(index[0]), int(index[0]) + 1), 1)))
    finally:
        file.write_bytes(whole)


def test_memory_that_is_too_small_streams_and_is_said(root, monkeypatch):
    monkeypatch.setattr("rdi.data.cached.available_memory", lambda: 80_000)
    data = loaded(root, "auto")
    assert isinstance(data.train.images, Streamed)
    assert data.memory.startswith("60 images of 3x16x16 are decoded when they are needed")
    monkeypatch.setattr("rdi.data.cached.available_memory", lambda: 100_000)
    assert torch.is_tensor(loaded(root, "auto").train.images)


def test_what_cannot_be_is_one_line(root):
    with pytest.raises(UserError, match=r"resized_crop cuts crops out of the files: set data.memory=stream"):
        loaded(root, "resident", augment="resized_crop")
    held = loaded(root, "resident")
    with pytest.raises(UserError, match="resized_crop crops picture files"):
        trained(held, "resized_crop")
    for option in ({"memory": "disk"}, {"workers": -1}, {"fit": "pad"}):
        with pytest.raises(UserError, match=rf"data\.{next(iter(option))} must be"):
            loaded(root, **{"memory": "auto", **option})


def squares(keys):
    if 7 in keys:
        raise UserError("seven")
    if 9 in keys:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05 if 0 in keys else 0)  # the first comes last
    return [key**2 for key in keys]


def test_workers_keep_the_order_and_their_failures_are_one_line():
    assert list(ahead(squares, [[0, 1], [2], [3]], 2)) == [[0, 1], [4], [9]]
    with pytest.raises(UserError, match=r"^seven$"):
        list(ahead(squares, [[1], [7]], 2))
    with pytest.raises(UserError, match="a process that decodes images was killed"):
        list(ahead(squares, [[9]], 2))


@pytest.fixture(scope="module")
def shards(root, tmp_path_factory):
    """The pictures of `root` in two training shards and a test shard."""
    place = tmp_path_factory.mktemp("shards")
    for name, files in (
        ("train-00", sorted((root / "train").rglob("*.jpg"))[::2]),
        ("train-01", sorted((root / "train").rglob("*.jpg"))[1::2]),
        ("val-00", sorted((root / "val").rglob("*.jpg"))),
    ):
        with tarfile.open(place / f"{name}.tar", "w") as archive:
            for n, file in enumerate(files):
                for ending, content in (
                    ("cls", str(int(file.parent.name[1:]) - 1).encode()),
                    ("jpg", file.read_bytes()),
                ):
                    member = tarfile.TarInfo(f"{n:04}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return place


def sharded(place, **settings):
    names = {"train_shards": "train-{00..01}.tar", "test_shards": "val-00.tar"}
    return Shards(**{"name": "tar", "root": str(place), "size": 16, "calibration": 12, **names, **settings}).load()


def test_shards_hold_the_images_of_the_files(root, shards):
    held, streamed = sharded(shards, memory="resident"), sharded(shards, memory="stream", workers=0)
    files = loaded(root, "resident")
    assert held.fingerprint == streamed.fingerprint
    assert torch.equal(streamed.train.images[:], held.train.images)
    assert sorted(held.keys("test")[:, 0]) == sorted(files.keys("test")[:, 0])
    assert (len(held.train), len(held.test), held.class_names) == (36, 12, ("0", "1"))
    whole = {data.class_names: (data.test.labels == 1).sum() for data in (held, files)}
    assert set(map(int, whole.values())) == {6}


def test_shards_that_cannot_be_read_are_one_line(shards, tmp_path):
    with pytest.raises(UserError, match=r"2 of 5 shards are missing, .*train-02.tar and 1 others: fetch them"):
        sharded(shards, train_shards="train-{00..03}.tar")
    with pytest.raises(UserError, match=r"must have one range of numbers, the smaller first"):
        sharded(shards, train_shards="train-{01..00}.tar")
    (tmp_path / "bad.tar").write_bytes(b"no tar")
    with pytest.raises(UserError, match=r"bad.tar is no shard that can be read"):
        sharded(tmp_path, train_shards="bad.tar", test_shards=None)
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("a/0001.jpg"))
    with pytest.raises(UserError, match=r"the picture a/0001 has no class: put its number beside it, as a/0001.cls"):
        sharded(tmp_path, train_shards="bad.tar", test_shards=None)
    Image.new("RGB", (16, 16)).save(picture := io.BytesIO(), "PNG")
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        for name, content in {"a.png": picture.getvalue(), "a.cls": b"1"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(UserError, match=r"no image is of class 0: number the classes from 0"):
        sharded(tmp_path, train_shards="bad.tar", test_shards=None)
    (tmp_path / "classes.txt").write_text("cat\n")
    for file in shards.glob("*.tar"):
        (tmp_path / file.name).symlink_to(file)
    with pytest.raises(UserError, match=r"classes.txt names 1 classes, and the shards have class 1"):
        sharded(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert sharded(tmp_path).class_names == ("cat", "dog")
    (tmp_path / "classes.txt").write_text("cat\ndog\ncow\n")
    assert "classes.txt names 3 classes, and no picture is of class 2 or above" in sharded(tmp_path).notes
    (tmp_path / "classes.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"classes.txt is not UTF-8: write it so, or remove it"):
        sharded(tmp_path)


def member(name, content=b"", **header):
    """A member of a tar file as whoever sends it to somebody makes it."""
    made = tarfile.TarInfo(name)
    made.size = len(content)
    for key, value in header.items():
        setattr(made, key, value)
    return made, io.BytesIO(content)


HOSTILE = {
    "a class beyond 64 bits": ([member("a.cls", b"99999999999999999999")], "no class below"),
    "a class of a billion": ([member("a.cls", b"1000000000")], "no class below"),
    "a class in words": ([member("a.cls", b"\x1b[31mcat")], "no class below"),
    "a negative class": ([member("a.cls", b"-1")], "no class below"),
    "a size beyond 64 bits": ([member("a.jpg", pax_headers={"size": "9" * 30})], "no shard that can be read"),
    "a size below 0": ([member("a.jpg", pax_headers={"size": "-1024"})], "no shard that can be read"),
    "a size beyond the file": ([member("a.jpg", pax_headers={"size": "1000000000000"})], "no shard that can be read"),
    "a picture twice": ([member("a.cls", b"1"), member("a.jpg", b"x"), member("a.jpg", b"y")], "it holds a twice"),
    "two classes": ([member("a.cls", b"1"), member("a.cls", b"0")], "it holds two classes of a"),
    "other names": (
        [member("a.left.jpg", b"x"), member("a.cls", b"1")],
        r"\(but 1 of .left.jpg\): expected are <key>.jpg",
    ),
    "no pictures": ([member("../../etc/passwd", b"x"), member("a.cls", b"1")], "no pictures in the shards"),
    "a link": ([member("a.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")], "no pictures in the shards"),
    "a device": ([member("a.jpg", type=tarfile.CHRTYPE)], "no pictures in the shards"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_shard_is_one_line_without_codes(what, tmp_path):
    members, said = HOSTILE[what]
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for made, content in members:
            archive.addfile(made, content)
    with pytest.raises(UserError, match=said) as error:
        sharded(tmp_path, train_shards="x.tar", test_shards=None)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("damage", ["cut between two members", "a header that cannot be read"])
def test_a_shard_is_read_to_its_end_or_refused(damage, shards, tmp_path):
    with tarfile.open(shards / "train-00.tar") as archive:
        begin = archive.getmembers()[6].offset
    whole = (shards / "train-00.tar").read_bytes()
    rest = b"" if damage.startswith("cut") else b"\xff" * tarfile.BLOCKSIZE + whole[begin + tarfile.BLOCKSIZE :]
    (tmp_path / "x.tar").write_bytes(whole[:begin] + rest)
    with pytest.raises(UserError, match=rf"x.tar is no shard that can be read \(damaged or cut at byte {begin}\)"):
        sharded(tmp_path, train_shards="x.tar", test_shards=None)


def test_classes_in_capitals_are_classes_and_one_shard_is_no_two(shards, tmp_path):
    with tarfile.open(shards / "train-00.tar") as archive, tarfile.open(tmp_path / "x.tar", "w") as capitals:
        for one in archive:
            content = archive.extractfile(one)
            one.name = one.name.upper()
            capitals.addfile(one, content)
    lower = sharded(shards, train_shards="train-00.tar", test_shards=None)
    assert sharded(tmp_path, train_shards="x.tar", test_shards=None).fingerprint == lower.fingerprint
    with pytest.raises(UserError, match=r"is among data.train_shards and data.test_shards"):
        sharded(shards, train_shards="train-00.tar", test_shards=f"../{shards.name}/train-00.tar")


def test_what_is_left_out_of_shards_is_said_and_nothing_is_unpacked(shards, tmp_path):
    for file in shards.glob("*.tar"):
        shutil.copy(file, tmp_path)
    others = [
        member("../0000.json", b"{}"),
        member("n\udcff.txt", b"x"),
        member("l.jpg", type=tarfile.LNKTYPE, linkname="0000.jpg"),
    ]
    with tarfile.open(tmp_path / "train-00.tar", "a", format=tarfile.GNU_FORMAT) as archive:
        for made, content in others:
            archive.addfile(made, content)
    found = sharded(tmp_path)
    assert len(found.train) == 36
    (note,) = found.notes
    assert "1 links, devices and folders, 1 of .json, 1 of .txt; read are .jpg" in note
    assert not (tmp_path.parent / "0000.json").exists()


def test_an_export_is_compared_on_streamed_images_as_on_those_in_memory(root, tmp_path):
    pytest.importorskip("onnxruntime")
    from rdi.exporting.write import export

    net, policy = network().eval(), ThresholdPolicy(Entropy(), [])
    found = {}
    for memory, workers in (("resident", 0), ("stream", 0), ("stream", 2)):
        images = loaded(root, memory, workers).test.images
        assert isinstance(images, Streamed) == (memory == "stream")
        found[memory, workers] = export(net, policy, images, tmp_path / f"{memory}{workers}")
    first = found["resident", 0]
    assert first["images"] == 12
    assert all(one == first for one in found.values())


def test_carried_perturbations_that_no_memory_holds_are_refused_before_a_step(root, monkeypatch):
    data = loaded(root, "stream")
    attack = Average(eps=0.03, step_size=0.01, steps=1)
    defense = Composed(attack=attack, terms=[CrossEntropy(images="adversarial")], crafting=Carried())
    given = (network(), defense, recipe(5, batch_size=20), Settings(seed=3, evaluations=1), data, torch.device("cpu"))
    needed = 2 * len(data.train) * 3 * 16 * 16
    monkeypatch.setattr("rdi.runs.preflight.available_memory", lambda: needed)
    preflight.training(*given)
    monkeypatch.setattr("rdi.runs.preflight.available_memory", lambda: needed - 1)
    with pytest.raises(UserError, match="defense=carried keeps two bytes for every number of a training image"):
        preflight.training(*given)
