"""The wheel carries the configs and works without the checkout."""

import subprocess
import sys
import zipfile

from helpers.commands import ROOT, environment


def test_the_wheel_works_from_anywhere(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)],
        check=True,
        capture_output=True,
        cwd=tmp_path,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "unpacked")
    package = tmp_path / "unpacked" / "rdi"
    for folder in ("conf", "sweeps"):
        source = {str(path.relative_to(ROOT / folder)) for path in (ROOT / folder).rglob("*") if path.is_file()}
        packed = {str(path.relative_to(package / folder)) for path in (package / folder).rglob("*") if path.is_file()}
        assert packed == source
        assert packed
    assert (package / "report" / "page.html.j2").is_file()
    assert (package / "py.typed").is_file()
    (info,) = (tmp_path / "unpacked").glob("rdi-*.dist-info")
    assert "License-Expression: Apache-2.0" in (info / "METADATA").read_text()
    assert (info / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "rdi", "train", "backbone=resnet38", "--cfg", "job"],
        env=environment(PYTHONPATH=str(tmp_path / "unpacked")),
        cwd=elsewhere,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "depth: 38" in done.stdout
    where = subprocess.run(
        [sys.executable, "-c", "from rdi.cli._hydra import conf_dir; print(conf_dir())"],
        env=environment(PYTHONPATH=str(tmp_path / "unpacked")),
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.strip() == str(package / "conf")
    assert list(elsewhere.iterdir()) == []
