"""Images of 224 pixels from disk: trained, attacked and judged without being held in memory."""

import json

import numpy as np
import pytest
from PIL import Image

LINE = (
    "run run=runs/large tracking=none threads=1 device=cpu data=imagefolder data.root=pictures data.size=224 "
    "data.fit=crop data.memory=stream data.workers=1 data.augment=resized_crop data.calibration=4 "
    "backbone=torchvision backbone.name=mobilenet_v3_small exits=custom exits.taps=[4] optim.batch_size=4 "
    "optim.accumulate=2 recompute=true optim.epochs=null optim.iterations=2 evaluations=1 calibration_samples=4 "
    "attack=average attack.steps=1 suite=quick samples=4 threat.test_steps=1 batch_size=4 "
    "stages=[train,attack,evaluate]"
)


@pytest.fixture
def pictures(tmp_path):
    """36 JPEGs of two classes, of other sizes than 224 pixels, laid out as ImageNet is."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 6)):
        for label, name in enumerate(("n01440764", "n01443537")):
            (tmp_path / "pictures" / part / name).mkdir(parents=True)
            for n in range(count):
                coarse = rng.integers(0, 128, (6, 8, 3), np.uint8) + np.uint8(120 * label)
                picture = Image.fromarray(coarse).resize((320, 240))
                picture.save(tmp_path / "pictures" / part / name / f"{name}_{n}.JPEG")


def test_large_images_are_trained_attacked_and_judged_from_disk(pictures, rdi, tmp_path):
    result = rdi(LINE)
    assert result.status == 0, result.err
    said = "36 images of 3x224x224 are decoded when they are needed, by 1 processes (0.01 GiB, data.memory=stream)"
    assert said in result.err
    assert "recompute=true: " in result.err
    assert "MiB of activations an image are kept, not " in result.err
    run = tmp_path / "runs" / "large"
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["data"]["shape"] == [3, 224, 224]
    assert manifest["costs"]["macs_plain"] > 5e7, "an image's multiply-adds at this size"
    record = json.loads((run / "evals" / "entropy__test-average.json").read_text())
    assert record["samples"] == 4
    # held in memory they are the same images: what was streamed is not attacked again
    again = rdi("attack run=runs/large suite=quick samples=4 threat.test_steps=1 batch_size=4 tracking=none threads=1")
    assert again.status == 0, again.err
    assert again.err.count("is there already") == 2
    # what is exported is compared on images that are decoded batch by batch, too
    out = rdi("export run=runs/large samples=4")
    assert out.status == 0, out.err
    parity = json.loads((run / "exports" / "onnx" / "parity.json").read_text())
    assert parity["images"] == 4
    assert parity["unexplained"] == []
