"""Logits banks: saved whole, read back exactly, damage reported in words."""

import hashlib
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.examples import BANK
from rdi.banks import LogitsBank, PartialBank, bank_sha256, common_images, of_most_images
from rdi.errors import UserError
from rdi.evaluating import judge
from rdi.runs.crafting import _differing
from rdi.storage import read_arrays, write_arrays
from rdi.thresholds import Confidence, Entropy, RandomisedPolicy, ThresholdPolicy


@pytest.fixture
def bank():
    generator = torch.Generator().manual_seed(0)
    return LogitsBank(
        torch.randn(4, 3, 5, generator=generator),
        torch.tensor([0, 1, 2, 3]),
        np.array([10, 3, 7, 5]),
        BANK,
    )


def test_a_bank_is_read_back_as_it_was_saved(bank, tmp_path):
    folder = tmp_path / "banks" / "test-average"
    bank.save(folder)
    again = LogitsBank.load(folder)
    assert torch.equal(again.logits, bank.logits)
    assert again.logits.dtype == torch.float32
    assert torch.equal(again.labels, bank.labels)
    assert again.labels.dtype == torch.long
    assert np.array_equal(again.indices, bank.indices)
    assert again.manifest == replace(bank.manifest, sha256=bank_sha256(folder))


def test_saving_again_replaces_the_bank_and_leaves_nothing_else(bank, tmp_path):
    folder = tmp_path / "test-average"
    bank.save(folder)
    other = LogitsBank(bank.logits + 1, bank.labels, bank.indices, bank.manifest)
    other.save(folder)
    assert torch.equal(LogitsBank.load(folder).logits, bank.logits + 1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["test-average"]
    assert sorted(entry.name for entry in folder.iterdir()) == ["bank.npz", "manifest.json"]


def test_a_failed_save_leaves_the_old_bank(bank, tmp_path, monkeypatch):
    folder = tmp_path / "test-average"
    bank.save(folder)

    def full(*args, **arrays):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match="no space"):
        bank.save(folder)
    monkeypatch.undo()
    assert torch.equal(LogitsBank.load(folder).logits, bank.logits)
    assert [entry.name for entry in tmp_path.iterdir()] == ["test-average"]


def test_a_missing_bank_is_named(tmp_path):
    with pytest.raises(UserError, match="is damaged, it has no manifest"):
        LogitsBank.load(tmp_path / "test-average")


def test_a_bank_without_its_arrays_is_damaged(bank, tmp_path):
    bank.save(tmp_path / "test-average")
    (tmp_path / "test-average" / "bank.npz").unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        LogitsBank.load(tmp_path / "test-average")


def drop_an_array(content, path):
    with np.load(path) as arrays:
        np.savez(path, logits=arrays["logits"], labels=arrays["labels"])


def pickled(content, path):
    np.savez(path, logits=np.array([{"code": 1}], dtype=object), labels=np.zeros(1), indices=np.zeros(1))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content, path: path.write_bytes(b""),
        lambda content, path: path.write_bytes(b"not a zip archive"),
        lambda content, path: path.write_bytes(content[:20]),
        lambda content, path: path.write_bytes(content[: len(content) // 2]),
        lambda content, path: path.write_bytes(content[:-1]),
        lambda content, path: path.write_bytes(content[:200] + b"\xff" * 40 + content[240:]),
        drop_an_array,
        pickled,
    ],
    ids=["empty", "text", "header_only", "half", "last_byte", "flipped", "array_gone", "pickled"],
)
def test_damaged_arrays_say_what_to_do(damage, bank, tmp_path):
    folder = tmp_path / "test-average"
    bank.save(folder)
    path = folder / "bank.npz"
    damage(path.read_bytes(), path)
    with pytest.raises(UserError, match=r"bank\.npz is (missing or )?damaged.*: delete .* and run `rdi attack` again"):
        LogitsBank.load(folder)


@pytest.mark.parametrize(
    ("change", "flaw"),
    [
        (lambda a: a["logits"].__setitem__((1, 2, 3), np.nan), "not finite"),
        (lambda a: a["logits"].__setitem__((1, 2), -np.inf), "not finite"),
        (lambda a: a["labels"].__setitem__(0, 5), "labels outside 0 to 4"),
        (lambda a: a["labels"].__setitem__(0, -1), "labels outside 0 to 4"),
        (lambda a: a["indices"].__setitem__(0, -1), "negative indices"),
        (lambda a: a.update(labels=a["labels"].astype(np.float64)), "types"),
        (lambda a: a.update(logits=a["logits"].astype(np.float16)), "types"),
        (lambda a: a.update(indices=a["indices"][:-1]), "shapes"),
        (lambda a: a.update(logits=a["logits"][:-1]), "shape"),
        (lambda a: a.update(labels=a["labels"][:, None]), "shapes"),
        (lambda a: a["logits"].__setitem__((1, 2, 3), 7), "sha256"),
    ],
)
def test_a_bank_that_no_attack_can_have_made_is_refused(change, flaw, bank, tmp_path):
    """Whole by its own checksum, and yet not what belongs here."""
    folder = tmp_path / "test-average"
    bank.save(folder)
    arrays = read_arrays(folder / "bank.npz", "")
    change(arrays)
    write_arrays(folder / "bank.npz", arrays)
    with pytest.raises(UserError, match=rf"bank\.npz is damaged \(.*{flaw}"):
        LogitsBank.load(folder)


def test_the_hash_is_that_of_the_arrays(bank, tmp_path):
    bank.save(tmp_path / "test-average")
    expected = hashlib.sha256((tmp_path / "test-average" / "bank.npz").read_bytes()).hexdigest()
    assert bank_sha256(tmp_path / "test-average") == expected


def test_half_a_bank_is_found_again_by_its_identity_only(tmp_path):
    half = PartialBank(torch.randn(5, 3, 4), 0.1, 0.1, 2.5, "this attack")
    half.save(tmp_path / "half.npz")
    found = PartialBank.load(tmp_path / "half.npz", "this attack")
    assert torch.equal(found.logits, half.logits)
    assert (found.linf, found.seconds) == (0.1, 2.5)
    assert PartialBank.load(tmp_path / "half.npz", "another attack") is None
    assert PartialBank.load(tmp_path / "none.npz", "this attack") is None
    (tmp_path / "half.npz").write_bytes((tmp_path / "half.npz").read_bytes()[:100])
    assert PartialBank.load(tmp_path / "half.npz", "this attack") is None


def test_a_bank_can_begin_with_some_of_its_samples():
    bank = LogitsBank(torch.arange(12.0).view(4, 1, 3), torch.arange(4), np.array([10, 11, 12, 13]), BANK)
    moved = bank.beginning_with(np.array([13, 11]))
    assert moved.indices.tolist() == [13, 11, 10, 12]
    assert moved.labels.tolist() == [3, 1, 0, 2]
    assert torch.equal(moved.logits, bank.logits[[3, 1, 0, 2]])


@pytest.mark.parametrize("spoilt", [[np.nan], [np.inf], [-np.inf] * 5, [np.nan, -np.inf]])
def test_logits_that_give_no_probabilities_make_no_bank(spoilt, bank, tmp_path):
    logits = bank.logits.clone()
    logits[2, 1, : len(spoilt)] = torch.tensor(spoilt)
    with pytest.raises(UserError, match=r"test-average: the logits of 1 of 4 images are NaN or infinite \(exits 1\)"):
        LogitsBank(logits, bank.labels, bank.indices, bank.manifest).save(tmp_path / "test-average")
    assert list(tmp_path.iterdir()) == []


def test_excluded_classes_are_logits_like_others(bank, tmp_path):
    logits = bank.logits.clone()
    logits[2, 1, 1:] = -torch.inf
    LogitsBank(logits, bank.labels, bank.indices, bank.manifest).save(tmp_path / "test-average")
    assert torch.equal(LogitsBank.load(tmp_path / "test-average").logits, logits)


def test_the_columns_of_a_bank_are_what_each_exit_and_the_policy_say():
    logits = torch.tensor([[[9.0, 0.0], [0.0, 9.0]], [[0.1, 0.0], [0.0, 9.0]], [[0.0, 9.0], [9.0, 0.0]]])
    bank = LogitsBank(logits, torch.tensor([0, 1, 0]), np.array([7, 3, 5]), BANK)
    plain = {
        "sample": [7, 3, 5],
        "label": [0, 1, 0],
        "attack": [BANK.attack] * 3,
        "exit0": [0, 0, 1],
        "exit1": [1, 1, 0],
    }
    judged = {"exit": [0, 1, 0], "predicted": [0, 1, 1], "correct": [True, True, False]}
    assert {name: column.tolist() for name, column in bank.columns().items()} == plain
    columns = bank.columns(ThresholdPolicy(Confidence(), [0.9]))
    assert {name: column.tolist() for name, column in columns.items()} == plain | judged
    with pytest.raises(UserError, match="the thresholds are for 3 exits, the network has 2"):
        bank.columns(ThresholdPolicy(Confidence(), [0.9, 0.9]))


def test_the_columns_under_a_policy_with_chance_are_its_first_draw(bank):
    policy = RandomisedPolicy(Confidence(), [0.2, 0.2], [0.9, 0.9], draws=4)
    assert bank.columns(policy)["exit"].tolist() == policy.with_draw(0).choose(bank.logits).tolist()


def test_a_bank_becomes_a_data_frame_where_pandas_is(bank, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=dict))
    policy = ThresholdPolicy(Confidence(), [0.5, 0.5])
    frame = bank.to_pandas(policy)
    assert list(frame) == ["sample", "label", "attack", "exit0", "exit1", "exit2", "exit", "predicted", "correct"]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"pip install 'rdi\[pandas\]', or take columns"):
        bank.to_pandas()


def test_a_copy_of_a_bank_under_another_name_is_refused(bank, tmp_path):
    bank.save(tmp_path / "test-average")
    for name in ("test-main", "calibration-average", "test-average.bak"):
        shutil.copytree(tmp_path / "test-average", tmp_path / name)
        with pytest.raises(UserError, match="holds the bank test-average: rename it to that, or move it out"):
            LogitsBank.load(tmp_path / name)


def of_images(*indices):
    """A bank of these images; a logit says which one."""
    logits = torch.zeros(len(indices), 3, 5)
    logits[:, 0, 0] = torch.tensor(indices)
    return LogitsBank(logits, torch.zeros(len(indices), dtype=torch.long), np.array(indices), BANK)


@pytest.mark.parametrize(
    ("banks", "kept"),
    [
        ({"a": (7, 3, 5), "b": (7,)}, {"a": (7, 3, 5)}),
        ({"a": (7, 3), "b": (3, 7), "c": (3,)}, {"a": (7, 3), "b": (7, 3)}),
        ({"a": (7, 3), "b": (1, 2), "c": (2, 1)}, {"b": (1, 2), "c": (1, 2)}),
        ({"a": (7,), "b": (1, 2)}, {"b": (1, 2)}),
        ({}, {}),
    ],
)
def test_one_attack_on_fewer_images_leaves_the_others_theirs(banks, kept):
    found = of_most_images({name: of_images(*indices) for name, indices in banks.items()})
    assert {name: tuple(bank.indices) for name, bank in found.items()} == kept
    assert all(bank.logits[:, 0, 0].tolist() == list(bank.indices) for bank in found.values())


def test_banks_without_an_image_in_common_have_none():
    assert common_images({"a": of_images(1, 2), "b": of_images(3)}) == {}
    shared = common_images({"a": of_images(1, 2, 3), "b": of_images(3, 9, 1)})
    assert [tuple(bank.indices) for bank in shared.values()] == [(1, 3), (1, 3)]


def test_a_bank_that_is_in_the_way_is_told_apart_by_what_differs_alone():
    settings = {"attack": "Average", "eps": 0.3, "steps": 20}
    stored = replace(BANK, settings=settings, samples=400, engine={"compile": None})
    wanted = {"samples": 400, "batch_size": stored.batch_size, "seed": stored.seed, **settings}
    weights = stored.checkpoint_sha256
    close = {**wanted, "eps": 0.30000001}
    assert _differing(stored, close, {"compile": None}, weights) == "eps 0.3, not 0.30000001"
    assert _differing(stored, wanted, {"compile": None}, weights) == "of other images"
    further = {**wanted, "seed": 5, "rule": "apgd"}
    assert _differing(stored, further, {"compile": "default"}, "0" * 64) == (
        f"seed {stored.seed}, not 5; rule None, not 'apgd'; engine.compile None, not 'default'; of other weights"
    )


def test_a_large_bank_is_mapped_and_judged_by_parts(bank, tmp_path, monkeypatch):
    plain = tmp_path / "plain" / "test-average"
    bank.save(plain)
    monkeypatch.setattr("rdi.mapped.MAPPED", 200)
    monkeypatch.setattr("rdi.evaluating.PART", 100)
    folder = tmp_path / "test-average"
    bank.save(folder)
    again = LogitsBank.load(folder)
    assert again.manifest.sha256 == bank_sha256(folder)
    assert str(folder / "bank.npz") in Path("/proc/self/maps").read_text()
    assert again.logits.data_ptr() % 64 == 0
    assert torch.equal(again.logits, bank.logits)
    policy = ThresholdPolicy(Entropy(), [0.9, 1.0])
    judged = judge(again.logits, again.labels, policy)
    again.logits.add_(1)  # of the mapping alone
    with np.load(folder / "bank.npz") as stored:
        assert np.array_equal(stored["logits"], bank.logits.numpy())
    # those of before are read where they cannot be mapped, and small ones are written as before
    assert torch.equal(LogitsBank.load(plain).logits, bank.logits)
    monkeypatch.undo()
    whole = judge(bank.logits, bank.labels, policy)
    assert torch.equal(whole.correct, judged.correct)
    assert torch.equal(whole.exits, judged.exits)
    assert LogitsBank.load(plain).manifest.sha256 == bank_sha256(plain)
    damaged = bytearray((folder / "bank.npz").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (folder / "bank.npz").write_bytes(bytes(damaged))
    monkeypatch.setattr("rdi.mapped.MAPPED", 200)
    with pytest.raises(UserError, match=r"bank.npz is missing or damaged"):
        LogitsBank.load(folder)
