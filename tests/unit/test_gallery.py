"""The few images that a run keeps: the right ones, with the logits that they were judged by."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.examples import BANK, ENVIRONMENT, EXAMPLES
from rdi.attacking import Attacked
from rdi.banks import LogitsBank
from rdi.data.base import Split
from rdi.errors import UserError
from rdi.folders import RunFolder
from rdi.gallery import Gallery
from rdi.records import GalleryRecord
from rdi.runs import galleries

RECORD = next(record for record in EXAMPLES if isinstance(record, GalleryRecord))


def gallery(count=8):
    generator = np.random.default_rng(0)
    return Gallery(
        images=generator.random((count, 1, 4, 4), dtype=np.float32),
        logits=generator.random((count, 2, 3), dtype=np.float32),
        labels=np.arange(count) % 3,
        indices=np.arange(count) + 100,
        record=RECORD,
    )


def test_a_gallery_is_read_back(tmp_path):
    path = tmp_path / "gallery" / "test-average.json"
    gallery().save(path)
    back = Gallery.load(path)
    assert back.record == RECORD
    for name in ("images", "logits", "labels", "indices"):
        assert np.array_equal(getattr(back, name), getattr(gallery(), name)), name


@pytest.mark.parametrize("how", ["missing", "truncated", "short"])
def test_a_damaged_gallery_is_refused_in_one_line(how, tmp_path):
    path = tmp_path / "test-average.json"
    gallery(7 if how == "short" else 8).save(path)
    arrays = path.with_suffix(".npz")
    if how == "missing":
        arrays.unlink()
    elif how == "truncated":
        arrays.write_bytes(arrays.read_bytes()[:200])
    with pytest.raises(UserError, match=r"is missing or damaged: delete .*test-average\.json and run"):
        Gallery.load(path)
    with pytest.raises(UserError, match="does not exist"):
        Gallery.load(tmp_path / "other.json")


def split(count=20, first=0):
    images = (torch.arange(count) % 256).to(torch.uint8)[:, None, None, None].expand(count, 1, 4, 4).contiguous()
    return Split("test", images, torch.arange(count) % 3, np.arange(count) + first)


@pytest.mark.parametrize("samples", [None, 3, 8, 12, 20])
def test_the_images_are_the_same_in_every_sample(samples):
    whole = split()
    part = whole.sample(samples)
    rows = galleries.rows(part, whole)
    wanted = whole.sample(8).indices.tolist()
    assert part.indices[rows].tolist() == wanted[: len(rows)]
    assert len(rows) == min(8, samples or 8)


def test_a_catch_picks_its_rows_out_of_the_batches():
    catch = galleries.ImageRecorder([5, 0, 6])
    for batch in torch.arange(9.0)[:, None, None, None].split(4):
        catch(batch)
    assert catch.images().flatten().tolist() == [5, 0, 6]
    late = galleries.ImageRecorder([5, 0], first=4)
    late(torch.arange(4.0, 9.0)[:, None, None, None])
    assert late.images() is None
    assert galleries.ImageRecorder([]).images() is None


def bank(of, **changes):
    generator = torch.Generator().manual_seed(0)
    manifest = replace(BANK, samples=len(of), **changes)
    return LogitsBank(torch.randn(len(of), 2, 3, generator=generator), of.labels, of.indices, manifest)


def refuse(*_):
    raise AssertionError("nothing is to be crafted")


def test_what_was_caught_is_kept_with_the_logits_of_the_bank(tmp_path):
    folder, of = RunFolder(tmp_path), split()
    rows = galleries.rows(of, of)
    seen = galleries.ImageRecorder(rows)
    seen(of.images.float() / 255 + 0.25)
    made = bank(of)
    galleries.keep(folder, made, of, seen, refuse, refuse)
    found = Gallery.load(folder.gallery("test", "average"))
    assert found.record.judged
    assert found.record.linf == pytest.approx(0.25)
    assert np.array_equal(found.logits, made.logits[rows])
    assert np.array_equal(found.indices, of.indices[rows])
    assert found.images[:, 0, 0, 0].tolist() == pytest.approx([row / 255 + 0.25 for row in rows])


def test_what_was_not_caught_is_crafted_once(tmp_path):
    folder, of, calls = RunFolder(tmp_path), split(), []
    rows = galleries.rows(of, of)

    def craft(few):
        calls.append(few.indices.tolist())
        return Attacked(few.images.float() / 255 + 0.125, torch.full((len(few), 2, 3), 7.0), 0.125, 0.125, 1.0)

    keep = (folder, bank(of), of)
    for _ in range(2):
        galleries.keep(*keep, galleries.ImageRecorder(rows), craft, lambda: ENVIRONMENT)
    assert calls == [of.indices[rows].tolist()], "the second time they are there"
    found = Gallery.load(folder.gallery("test", "average"))
    assert not found.record.judged
    assert (found.logits == 7).all()
    # of another attack, damaged, or stopped: made again, or left
    galleries.keep(
        folder, bank(of, settings={"attack": "Other"}), of, galleries.ImageRecorder(rows), craft, lambda: ENVIRONMENT
    )
    assert len(calls) == 2
    folder.gallery("test", "average").with_suffix(".npz").unlink()
    galleries.keep(
        folder, bank(of, settings={"attack": "Other"}), of, galleries.ImageRecorder(rows), craft, lambda: ENVIRONMENT
    )
    assert len(calls) == 3
    galleries.keep(
        folder, bank(of, attack="b"), of, galleries.ImageRecorder(rows), lambda few: None, lambda: ENVIRONMENT
    )
    assert not folder.gallery("test", "b").exists()
    galleries.keep(folder, bank(of, attack="b"), of, galleries.ImageRecorder([]), refuse, refuse)
    assert not folder.gallery("test", "b").exists()
