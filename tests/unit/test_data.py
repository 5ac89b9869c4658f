"""Splits, batches, augmentation, the embedded digits and image folders, all against plain re-computation."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from helpers.counted import Counted
from rdi.data import ArrayFile, Digits, ImageFolder, Raw, Shuffled, Torchvision, augment, to_float
from rdi.data.augment import PADDING
from rdi.data.base import Split, fingerprint
from rdi.errors import UserError
from rdi.folders import RunFolder
from rdi.runs.datasets import read_splits, save_splits

PARTS = ("train", "calibration", "test")


def assert_splits_fit_the_source(data, count, parts=PARTS):
    together = np.concatenate([data.split(name).indices for name in parts])
    assert sorted(together) == list(range(count)), "disjoint and complete"
    for name in parts:
        split = data.split(name)
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.long
        assert split.images[:, 0, 0, 0].tolist() == split.indices.tolist()
        assert split.labels.tolist() == (split.indices % 3).tolist()
        assert list(split.indices) == sorted(split.indices)
        assert len(split) == len(split.indices)


@pytest.mark.parametrize("test_start", [80, None])
def test_splits_are_disjoint_and_complete(test_start):
    data = Counted(test_start=test_start).load()
    assert_splits_fit_the_source(data, 100)
    assert [len(data.split(name)) for name in PARTS] == [60, 20, 20]
    assert data.shape == (1, 4, 4)
    assert data.classes == 3


def test_the_official_test_part_is_the_test_split():
    assert Counted().load().test.indices.tolist() == list(range(80, 100))


def test_held_out_test_images_are_counted_as_asked():
    data = Counted(test_start=None, test=7).load()
    assert [len(data.split(name)) for name in PARTS] == [73, 20, 7]


def test_calibration_can_come_out_of_the_test_part_and_leaves_training_whole():
    data = Counted(calibration_from="test", calibration=5).load()
    assert_splits_fit_the_source(data, 100)
    assert data.train.indices.tolist() == list(range(80))
    assert set(data.calibration.indices) | set(data.test.indices) == set(range(80, 100))
    assert (len(data.calibration), len(data.test)) == (5, 15)


@pytest.mark.parametrize("test_start", [80, None])
def test_the_split_depends_on_its_seed_alone(test_start):
    first, again, other = (Counted(test_start=test_start, split_seed=seed).load().indices() for seed in (3, 3, 4))
    assert all(np.array_equal(first[name], again[name]) for name in PARTS)
    assert not np.array_equal(first["calibration"], other["calibration"])


@pytest.mark.parametrize("part", ["train", "test"])
def test_validation_images_come_out_of_the_same_part_and_leave_the_calibration_images_as_they_were(part):
    plain = Counted(calibration=5, calibration_from=part).load()
    data = Counted(calibration=5, validation=7, calibration_from=part).load()
    assert_splits_fit_the_source(data, 100, (*PARTS, "validation"))
    assert np.array_equal(data.calibration.indices, plain.calibration.indices)
    assert set(plain.split(part).indices) - set(data.split(part).indices) == set(data.validation.indices)
    assert data.samples() == {**plain.samples(), part: plain.samples()[part] - 7, "validation": 7}


def test_without_validation_images_there_are_none_and_stored_splits_of_before_are_whole():
    data = Counted().load()
    with pytest.raises(UserError, match=r"no validation images: train with data\.validation=N"):
        data.split("validation")
    stored = {name: rows for name, rows in data.indices().items() if name != "validation"}
    again = Counted(split_seed=9).load(stored)
    assert np.array_equal(again.train.indices, data.train.indices)
    assert len(again.validation) == 0


def test_stored_indices_reproduce_a_split_whatever_the_seed():
    first = Counted(split_seed=1).load()
    again = Counted(split_seed=2).load(first.indices())
    for name in PARTS:
        assert torch.equal(first.split(name).images, again.split(name).images)
        assert torch.equal(first.split(name).labels, again.split(name).labels)
        assert np.array_equal(first.split(name).indices, again.split(name).indices)


@pytest.mark.parametrize(
    "settings",
    [
        {"calibration": 80},
        {"calibration": 20, "calibration_from": "test"},
        {"calibration": 40, "validation": 40},
        {"test_start": None, "test": 100},
        {"test_start": None, "test": 85},
        # a fifth of four images is none
        {"count": 4, "test_start": None, "calibration": 1},
    ],
)
def test_a_source_too_small_for_its_splits_is_refused(settings):
    with pytest.raises(UserError, match="data=counted has"):
        Counted(**settings).load()


@pytest.mark.parametrize(
    "settings",
    [
        {"calibration": 0},
        {"calibration": 1.5},
        {"validation": -1},
        {"calibration_from": "validation"},
        {"test": 0},
        {"split_seed": -1},
        {"augment": "mixup"},
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings):
    with pytest.raises(UserError, match=f"data.{next(iter(settings))}"):
        Counted(**settings)


def test_a_sample_of_a_split_is_random_and_the_same_every_time():
    split = Counted().load().test
    assert split.sample(None) is split
    assert split.sample(20) is split
    three, five = split.sample(3), split.sample(5)
    assert (len(three), three.name) == (3, "test")
    assert three.indices.tolist() == split.sample(3).indices.tolist() == five.indices[:3].tolist()
    assert len(set(five.indices)) == 5
    rows = [split.indices.tolist().index(index) for index in five.indices]
    assert torch.equal(five.images, split.images[rows])
    assert torch.equal(five.labels, split.labels[rows])
    assert split.sample(21) is split
    with pytest.raises(UserError, match="samples"):
        split.sample(0)


def test_a_sample_of_a_split_that_lies_class_by_class_holds_all_classes():
    labels = torch.arange(10).repeat_interleave(100)
    split = Split("test", torch.zeros(1000, 1, 1, 1, dtype=torch.uint8), labels, torch.arange(1000).numpy())
    counts = torch.bincount(split.sample(200).labels, minlength=10)
    assert counts.min() >= 8


def test_an_unknown_split_is_refused():
    with pytest.raises(UserError, match="train, calibration, validation, test"):
        Counted().load().split("held-out")


def test_the_fingerprint_sees_every_pixel_every_label_and_the_shape():
    raw = Counted().read()
    original = fingerprint(raw)
    assert fingerprint(Counted().read()) == original
    raw.images[57, 0, 3, 3] += 1
    assert fingerprint(raw) != original
    raw.images[57, 0, 3, 3] -= 1
    raw.labels[5] += 1
    assert fingerprint(raw) != original
    raw.labels[5] -= 1
    assert fingerprint(raw) == original
    assert fingerprint(Raw(raw.images.reshape(100, 1, 2, 8), raw.labels, raw.class_names, 80)) != original
    assert Counted(split_seed=5).load().fingerprint == original


def test_digits_are_scikit_learns():
    data = Digits(name="digits", calibration=300, test=400, size=8).load()
    digits = load_digits()
    assert (data.shape, data.classes) == ((1, 8, 8), 10)
    assert [len(data.split(name)) for name in PARTS] == [1797 - 700, 300, 400]
    for name in PARTS:
        split = data.split(name)
        assert split.labels.tolist() == digits.target[split.indices].tolist()
        expected = np.round(digits.images[split.indices] * (255 / 16))
        assert np.array_equal(split.images[:, 0].numpy(), expected.astype(np.uint8))


def test_digits_are_enlarged_to_the_size_asked_for():
    data = Digits(name="digits", calibration=10, size=12).load()
    assert data.shape == (1, 12, 12)
    assert data.train.images.float().std() > 50
    with pytest.raises(UserError, match=r"data\.size"):
        Digits(name="digits", calibration=10, size=4)


def test_to_float_maps_levels_to_the_unit_interval():
    x = to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, torch.tensor([0.0, 0.2, 1.0]))


@pytest.mark.parametrize(("samples", "size"), [(10, 3), (10, 10), (7, 20), (1, 4), (12, 4)])
def test_every_epoch_is_a_fresh_permutation_and_batches_run_on_across_its_end(samples, size):
    stream = Shuffled(samples, size, seed=0)
    epochs = 5
    drawn = torch.cat([stream.indices(step) for step in range(-(-epochs * samples // size))])[: epochs * samples]
    rounds = drawn.view(epochs, samples).tolist()
    assert all(sorted(one) == list(range(samples)) for one in rounds)
    if samples > 5:
        assert len({tuple(one) for one in rounds}) == epochs


def test_a_batch_is_a_pure_function_of_seed_and_step():
    stream = Shuffled(10, 4, seed=7)
    in_order = [stream.indices(step).tolist() for step in range(12)]
    for step in (11, 0, 5, 6, 2, 5):
        assert stream.indices(step).tolist() == in_order[step]
        assert Shuffled(10, 4, seed=7).indices(step).tolist() == in_order[step]
    assert [Shuffled(10, 4, seed=8).indices(step).tolist() for step in range(12)] != in_order
    assert all(len(one) == 4 for one in in_order)


def slices(image, row, column, flip):
    """The plain way: pad, cut out, mirror."""
    channels, height, width = image.shape
    padded = np.zeros((channels, height + 2 * PADDING, width + 2 * PADDING), image.dtype)
    padded[:, PADDING : PADDING + height, PADDING : PADDING + width] = image
    cut = padded[:, row : row + height, column : column + width]
    return cut[:, :, ::-1] if flip else cut


@pytest.mark.parametrize("kind", ["crop", "crop_flip"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_augmentation_equals_a_loop_of_slices(kind, dtype):
    chance = torch.Generator().manual_seed(1)
    images = torch.randint(1, 256, (32, 3, 6, 9), generator=chance).to(dtype)
    result = augment(images, kind, torch.Generator().manual_seed(5))
    draws = torch.Generator().manual_seed(5)
    rows = torch.randint(2 * PADDING + 1, (32,), generator=draws).tolist()
    columns = torch.randint(2 * PADDING + 1, (32,), generator=draws).tolist()
    flips = torch.randint(2, (32,), generator=draws).tolist() if kind == "crop_flip" else [0] * 32
    expected = np.stack(
        [slices(images[n].numpy(), rows[n], columns[n], flips[n]) for n in range(32)],
    )
    assert result.dtype == dtype
    assert result.shape == images.shape
    assert result.is_contiguous()
    assert np.array_equal(result.numpy(), expected)
    assert {0, 2 * PADDING} <= set(rows), "both ends of the range are reached"


def test_augmentation_none_returns_the_images():
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    assert augment(images, "none", torch.Generator()) is images


# image folders ------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """pictures({"train/cat/0.png": level or array}) -> the folder; the cache lies in tmp_path too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "images"

    def make(files, size=(6, 6)):
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not isinstance(content, np.ndarray):
                content = np.full((size[1], size[0], 3), content, np.uint8)
            Image.fromarray(content).save(path)
        return root

    return make


def folder(root, **settings):
    return ImageFolder(name="mine", root=str(root), **{"calibration": 1, **settings})


OFFICIAL = {
    "train/cat/2.png": 2,
    "train/cat/10.png": 10,
    "train/dog/1.png": 101,
    "train/dog/a.png": 100,
    "test/cat/0.png": 50,
    "test/dog/0.png": 150,
}


def test_a_folder_with_train_and_test_keeps_them_apart(pictures):
    raw = folder(pictures(OFFICIAL)).read()
    # numbered files in the order of their numbers, after those without
    assert raw.images[:, 0, 0, 0].tolist() == [2, 10, 100, 101, 50, 150]
    assert raw.labels.tolist() == [0, 0, 1, 1, 0, 1]
    assert raw.class_names == ("cat", "dog")
    assert raw.test_start == 4
    assert raw.images.shape == (6, 3, 6, 6)
    assert raw.images.dtype == np.uint8
    data = folder(pictures({})).load()
    assert data.test.indices.tolist() == [4, 5]
    assert (len(data.train), len(data.calibration)) == (3, 1)


def test_a_folder_without_train_and_test_is_held_out_from(pictures):
    root = pictures({f"{name}/{n}.png": 10 * n for name in ("b", "a") for n in range(5)})
    raw = folder(root).read()
    assert raw.test_start is None
    assert raw.class_names == ("a", "b")
    assert raw.labels.tolist() == [0] * 5 + [1] * 5
    data = folder(root, test=3, calibration=2).load()
    assert [len(data.split(name)) for name in PARTS] == [5, 2, 3]


def test_colours_and_positions_survive(pictures):
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    raw = folder(pictures({"a/0.png": image, "b/0.png": image})).read()
    assert np.array_equal(raw.images[0], image.transpose(2, 0, 1))


def test_grey_mode_has_one_channel_in_pils_conversion(pictures):
    image = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    raw = folder(pictures({"a/0.png": image, "b/0.png": 7}), mode="L").read()
    assert raw.images.shape == (2, 1, 6, 6)
    assert np.array_equal(raw.images[0, 0], np.asarray(Image.fromarray(image).convert("L")))


def test_images_are_resized_on_request(pictures):
    root = pictures({"a/0.png": 10}, size=(6, 6))
    pictures({"b/0.png": 20}, size=(9, 5))
    raw = folder(root, size=4).read()
    assert raw.images.shape == (2, 3, 4, 4)
    assert [sorted(set(image.ravel())) for image in raw.images] == [[10], [20]]


def test_images_of_different_sizes_are_refused_with_what_to_set(pictures):
    root = pictures({"a/0.png": 10}, size=(6, 6))
    pictures({"b/0.png": 20}, size=(9, 5))
    with pytest.raises(UserError, match=r"is 9x5, the first image 6x6: set data\.size=N"):
        folder(root).read()


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no folder .*nowhere: set data\.root=DIR"):
        folder(tmp_path / "nowhere").read()


def test_a_folder_without_images_is_named(pictures):
    root = pictures({})
    (root / "cat").mkdir(parents=True)
    (root / "cat" / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match=r"no images in .*images \(but 1 of .txt\): expected .*<class>"):
        folder(root).read()


@pytest.mark.parametrize("missing", ["test/dog/0.png", "train/dog/1.png"])
def test_a_class_that_only_one_part_has_is_refused(missing, pictures):
    root = pictures({name: level for name, level in OFFICIAL.items() if name.split("/")[:2] != missing.split("/")[:2]})
    with pytest.raises(UserError, match="dog"):
        folder(root).read()


def test_a_file_that_is_no_image_is_named(pictures):
    root = pictures(OFFICIAL)
    (root / "train" / "cat" / "3.png").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"3\.png is not a readable image"):
        folder(root).read()


def cached(tmp_path):
    return sorted((tmp_path / "cache").rglob("*.npz"))


def test_the_second_reading_comes_out_of_the_cache_and_is_equal(pictures, tmp_path, monkeypatch):
    root = pictures(OFFICIAL)
    first = folder(root).read()
    assert len(cached(tmp_path)) == 1

    def no_decoding(*args, **settings):
        raise AssertionError("an image was opened")

    monkeypatch.setattr(Image, "open", no_decoding)
    again = folder(root).read()
    assert np.array_equal(first.images, again.images)
    assert np.array_equal(first.labels, again.labels)
    assert (again.class_names, again.test_start) == (first.class_names, first.test_start)


def test_a_changed_file_another_size_and_another_mode_do_not_hit_the_cache(pictures, tmp_path):
    root = pictures(OFFICIAL)
    folder(root).read()
    changed = root / "train" / "cat" / "2.png"
    Image.fromarray(np.full((6, 6, 3), 77, np.uint8)).save(changed)
    os.utime(changed, ns=(1, 1))
    assert folder(root).read().images[0, 0, 0, 0] == 77
    assert folder(root, mode="L").read().images.shape[1] == 1
    assert folder(root, size=3).read().images.shape[2:] == (3, 3)
    # one for each size and mode: what a change made useless is replaced
    assert len(cached(tmp_path)) == 3


def test_a_cache_that_cannot_be_written_is_done_without(pictures, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(folder(pictures(OFFICIAL)).read().images) == 6


def test_the_folder_below_the_root_is_chosen(pictures):
    root = pictures({"pets/a/0.png": 1, "pets/b/0.png": 2})
    assert folder(root, folder="pets").read().class_names == ("a", "b")


# torchvision --------------------------------------------------------------------------------------------------------


def test_an_unknown_torchvision_set_is_refused():
    with pytest.raises(UserError, match="CIFAR10"):
        Torchvision(name="x", dataset="ImageNet", root="data", calibration=1)


@pytest.mark.parametrize("dataset", ["MNIST", "CIFAR10", "SVHN"])
def test_missing_files_are_named_with_where_to_put_them(dataset, tmp_path):
    with pytest.raises(
        UserError, match=rf"{dataset} is not in .*: put .* there, or set data\.root=DIR or RDI_DATA=DIR"
    ):
        Torchvision(name="x", dataset=dataset, root=str(tmp_path), download=False, calibration=1).read()


def write_mnist(root, train=5, test=3, dataset="MNIST"):
    """A hand-made MNIST in the format of its files (magic number, sizes, bytes) -> part -> images, labels."""
    raw = root / dataset / "raw"
    raw.mkdir(parents=True)
    chance = np.random.default_rng(0)
    parts = {}
    for part, count in (("train", train), ("t10k", test)):
        images = chance.integers(0, 256, (count, 28, 28), np.uint8)
        labels = chance.integers(0, 10, count).astype(np.uint8)
        parts[part] = images, labels
        sizes = np.array([0x803, count, 28, 28], ">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(sizes + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(np.array([0x801, count], ">i4").tobytes() + labels.tobytes())
    return parts


def test_a_torchvision_set_on_disk_is_read_in_nchw(tmp_path):
    parts = write_mnist(tmp_path)
    data = Torchvision(name="mnist", dataset="MNIST", root=str(tmp_path), download=False, calibration=2).read()
    assert data.test_start == 5
    assert data.images.shape == (8, 1, 28, 28)
    assert np.array_equal(data.images[:, 0], np.concatenate([parts["train"][0], parts["t10k"][0]]))
    assert np.array_equal(data.labels, np.concatenate([parts["train"][1], parts["t10k"][1]]))
    assert len(data.class_names) == 10


DAMAGE = {
    "garbage": lambda content: b"garbage, and more of it",
    "nothing": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "one byte less": lambda content: content[:-1],
    "one byte more": lambda content: content + b"x",
    "wrong magic": lambda content: b"\0\0\x0b\x01" + content[4:],
    "another kind of file": lambda content: b"\x1f\x8b" + content[2:],
    "huge sizes": lambda content: content[:4] + b"\x7f\xff\xff\xff" * 3 + content[16:],
    "no images": lambda content: (
        content[:4] + b"\0\0\0\0" + content[8:16] if content[3] == 3 else content[:4] + b"\0" * 4
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"])
@pytest.mark.parametrize("dataset", ["MNIST", "FashionMNIST"])
def test_damaged_mnist_files_are_one_clear_line_and_nothing_is_downloaded(damage, file, dataset, tmp_path, monkeypatch):
    from torchvision import datasets

    monkeypatch.setattr(datasets.MNIST, "download", lambda self: pytest.fail("downloads"))
    write_mnist(tmp_path, dataset=dataset)
    path = tmp_path / dataset / "raw" / file
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(UserError, match=rf"the files of {dataset} in .* are damaged or no {dataset} \(.*\): put "):
        Torchvision(name="x", dataset=dataset, root=str(tmp_path), calibration=1).read()


def test_labels_out_of_range_and_counts_that_differ_are_damage(tmp_path):
    write_mnist(tmp_path, 5, 5)
    raw = tmp_path / "MNIST" / "raw"
    labels = (raw / "train-labels-idx1-ubyte").read_bytes()
    source = Torchvision(name="x", dataset="MNIST", root=str(tmp_path), calibration=1)
    (raw / "train-labels-idx1-ubyte").write_bytes(labels[:-1] + b"\x0a")
    with pytest.raises(UserError, match=r"damaged .*labels must be in 0\.\.9, got \d\.\.10"):
        source.read()
    # one label moved to the other part: as many in all
    (raw / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x04" + labels[8:-1])
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x06" + labels[8:] + labels[-1:])
    with pytest.raises(UserError, match=r"damaged .*\[5, 5\] images, \[4, 6\] labels"):
        source.read()


@pytest.mark.parametrize("dataset", ["CIFAR10", "CIFAR100", "SVHN"])
def test_files_that_fail_their_checksum_are_called_damaged(dataset, tmp_path):
    source = Torchvision(name="x", dataset=dataset, root=str(tmp_path), download=False, calibration=1)
    from torchvision import datasets

    for file in source._files(getattr(datasets, dataset)):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"garbage")
    with pytest.raises(UserError, match=f"the files of {dataset} in .* are damaged"):
        source.read()


@pytest.mark.parametrize("names", [np.array("ab"), np.array([1, 2]), np.array([["a", "b"]])])
def test_names_of_classes_are_one_text_each(names, tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 1, 2, 2), np.uint8), labels=[0, 1, 0, 1], class_names=names)
    with pytest.raises(UserError, match=r"class_names of .* must be texts, one per class, got"):
        ArrayFile(name="x", root=str(tmp_path), file="x.npz", calibration=1).read()


def test_images_to_test_on_are_not_counted_where_the_source_has_its_own(pictures):
    with pytest.raises(UserError, match=r"data\.test=2 changes nothing, as data=mine has test images of its own"):
        folder(pictures(OFFICIAL), test=2).load()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": np.zeros((3, 1, 2, 2), np.float32)}, "uint8 N x C x H x W"),
        ({"images": np.zeros((3, 2, 2), np.uint8)}, "uint8 N x C x H x W"),
        ({"images": np.zeros((0, 1, 2, 2), np.uint8), "labels": np.zeros(0, np.int64)}, "uint8 N x C x H x W"),
        ({"labels": np.zeros(2, np.int64)}, "one label for each of 3 images"),
        ({"labels": np.array([0, 1, 2])}, r"labels must be in 0\.\.1, got 0\.\.2"),
        ({"labels": np.array([0, 1, -1])}, r"labels must be in 0\.\.1, got -1\.\.1"),
        ({"test_start": 3}, "the test part cannot begin at 3"),
        ({"test_start": 0}, "the test part cannot begin at 0"),
    ],
)
def test_images_and_labels_that_no_network_could_be_trained_on_are_refused(change, said):
    whole = {"images": np.zeros((3, 1, 2, 2), np.uint8), "labels": np.array([0, 1, 1])}
    whole |= {"class_names": ("a", "b"), "test_start": 2}
    Raw(**whole)
    with pytest.raises(UserError, match=said):
        Raw(**{**whole, **change})


@pytest.mark.parametrize("size", [100_000, 10**9, 10**30])
def test_digits_that_memory_cannot_hold_are_refused(size):
    with pytest.raises(UserError, match=rf"1797 images of 1x{size}x{size} need .* take a smaller data\.size"):
        Digits(name="digits", calibration=10, size=size).load()


SPOILT = {
    "floats": {"train": np.arange(4.0)},
    "NaN": {"test": np.full(2, np.nan)},
    "no list": {"train": np.array(1)},
    "a table": {"test": np.array([[6], [7]])},
    "yes and no": {"test": np.ones(2, bool)},
    "the end of the source": {"test": np.array([-1, -2])},
    "images of training in the test": {"test": np.array([0, 1])},
    "one image twice": {"test": np.array([6, 6])},
    "another split": {"secret": np.array([8])},
}


@pytest.mark.parametrize("what", SPOILT)
def test_stored_splits_that_are_no_rows_are_damage(what, tmp_path):
    right = {"train": np.arange(4), "calibration": np.array([4, 5]), "test": np.array([6, 7])}
    samples = {name: len(rows) for name, rows in right.items()}
    manifest = SimpleNamespace(data=SimpleNamespace(samples=samples), splits_sha256=None)
    folder = RunFolder(tmp_path)
    save_splits(folder, right)
    assert read_splits(folder, manifest).keys() == right.keys()
    save_splits(folder, {**right, **SPOILT[what]})
    with pytest.raises(UserError, match=r"splits\.npz is damaged .* delete it, and the next command makes it again"):
        read_splits(folder, manifest)


def test_splits_of_a_larger_source_are_refused():
    rows = {"train": np.arange(4), "calibration": np.array([5]), "test": np.array([10**6])}
    with pytest.raises(UserError, match=r"beyond the 1797 that there are: delete the run's splits\.npz"):
        Digits(name="digits", calibration=1).load(rows)
