"""`rdi report` and `rdi pareto` as a user sees them: the page against the records, in a browser, and in wandb."""

import csv
import hashlib
import html
import json
import re
import shutil
from urllib.parse import unquote

import pytest

from helpers.mistakes import refused, snapshot
from helpers.wandb_file import contents
from rdi.banks import LogitsBank
from rdi.gallery import Gallery
from rdi.records import EvalRecord, FrontRecord, WorstRecord, read
from rdi.report import tables


@pytest.fixture
def two(demo, tmp_path):
    """The demo and a copy of it under another name."""
    shutil.copytree(demo, tmp_path / "runs" / "other")
    return tmp_path / "reports" / "both"


def page_of(rdi, line="report runs=[runs/demo] ratios=5"):
    result = rdi(line)
    assert result.status == 0, result.err
    return result


def test_every_figure_of_the_page_leads_to_its_record(rdi, two):
    result = page_of(rdi, "report runs=[runs/demo,runs/other] name=both ratios=5")
    assert f"report:  reports/both/index.html ({(two / 'index.html').stat().st_size / 1e6:.1f} MB" in result.out
    page = (two / "index.html").read_text()
    links = re.findall(r'title="([^"]*), sha256 ([0-9a-f]{64})"[^>]*><a href="([^"]*)">', page)
    assert len(links) > 30
    for path, sha, href in links:
        file = two / unquote(html.unescape(href))
        assert hashlib.sha256(file.read_bytes()).hexdigest() == sha, path
    paths = {path for path, _, _ in links}
    for run in ("demo", "other"):
        for name in ("clean", "average", "worst"):
            assert f"runs/{run}/evals/entropy__test-{name}.json" in paths
        assert {f"runs/{run}/manifest.json", f"runs/{run}/thresholds/entropy.json"} <= paths
    assert {f"reports/both/{name}" for name in ("points.csv", "summary.json")} <= paths
    manifest = json.loads((two.parents[1] / "runs" / "demo" / "manifest.json").read_text())
    for word in (manifest["data"]["fingerprint"], manifest["checkpoint_sha256"], manifest["identity"]):
        assert word in page
    if manifest["environment"]["commit"]:
        assert manifest["environment"]["commit"][:12] in page


def test_the_tables_say_what_the_records_say(rdi, demo, tmp_path):
    page_of(rdi)
    page = (tmp_path / "reports" / "demo" / "index.html").read_text()
    rows = [re.sub(r"<[^>]*>", " ", row).split() for row in re.findall(r"<tr>(.*?)</tr>", page, flags=re.DOTALL)]
    records = [read(path, EvalRecord) for path in (demo / "evals").glob("*.json") if "worst" not in path.name]
    assert len(records) == 2
    for record in records:
        accuracy, share = tables.percent(record.accuracy), [tables.percent(one) for one in record.exit_share]
        mine = [row for row in rows if row[:1] == [record.attack]]
        assert [record.attack, str(record.samples), accuracy] in [row[:3] for row in mine]
        assert [record.attack, *share] in [row[:4] for row in mine]
        each = [tables.percent(one) for one in (*record.exit_accuracy, record.accuracy)]
        assert [record.attack, *each] in [row[:5] for row in mine]
    worst = read(demo / "evals" / "entropy__test-worst.json", WorstRecord)
    assert ["worst", "of", "1", "16", tables.percent(worst.accuracy)] in [row[:5] for row in rows]
    summary = read(tmp_path / "reports" / "demo" / "summary.json", FrontRecord)
    assert f"{100 * summary.hypervolume:.1f}" in next(row for row in rows if row[:2] == ["demo", "entropy"])


def test_the_same_report_twice_is_the_same_file(rdi, demo, tmp_path):
    before = snapshot(demo)
    files = []
    for _ in range(2):
        page_of(rdi)
        files.append(snapshot(tmp_path / "reports" / "demo"))
    assert files[0] == files[1]
    assert snapshot(demo) == before, "a report only reads the run"


def test_the_gallery_shows_the_images_that_were_judged(rdi, demo, tmp_path):
    for name in ("clean", "average"):
        gallery, bank = (
            Gallery.load(demo / "gallery" / f"test-{name}.json"),
            LogitsBank.load(demo / "banks" / f"test-{name}"),
        )
        assert gallery.record.judged
        assert gallery.record.samples == 8
        place = {int(index): row for row, index in enumerate(bank.indices)}
        rows = [place[int(index)] for index in gallery.indices]
        assert (gallery.logits == bank.logits[rows].numpy()).all()
        assert gallery.record.linf <= bank.manifest.linf + 1e-7
    assert gallery.record.linf > 0
    page_of(rdi)
    page = (tmp_path / "reports" / "demo" / "index.html").read_text()
    answers = re.findall(r'alt="(\d), (clean|average): answered (\d) at exit (\d)"', page)
    assert len(answers) == 16
    assert len(re.findall(r'alt="\d, average: what the attack changed"', page)) == 8
    clean = Gallery.load(demo / "gallery" / "test-clean.json")
    assert [int(label) for label, attack, *_ in answers if attack == "clean"] == clean.labels.tolist()
    for (_, attack, answer, exit_), row in zip(answers, [*range(8)] * 2, strict=True):
        logits = Gallery.load(demo / "gallery" / f"test-{attack}.json").logits
        assert logits[row, int(exit_)].argmax() == int(answer)
    assert "Crafted anew" not in page


def test_a_run_without_images_has_no_gallery_until_its_attack_is_called_again(rdi, demo, tmp_path):
    shutil.rmtree(demo / "gallery")
    page_of(rdi)
    file = tmp_path / "reports" / "demo" / "index.html"
    assert "answered" not in file.read_text()
    again = rdi("attack run=runs/demo suite=quick samples=16 threat.test_steps=1 threads=1")
    assert again.status == 0, again.err
    assert again.err.count("is there already") == 2
    page_of(rdi)
    assert file.read_text().count("answered") == 16
    assert (
        "Crafted anew, from another random start than the images that were judged: clean, average." in file.read_text()
    )


def test_what_was_not_judged_is_said(rdi, demo, tmp_path):
    assert rdi("attack run=runs/demo attack=average_fgsm samples=16 threads=1").status == 0
    page_of(rdi)
    text = (tmp_path / "reports" / "demo" / "index.html").read_text()
    assert "demo: average_fgsm attacked but not judged by the policy entropy; " in text
    assert "rdi evaluate run=runs/demo thresholds=entropy does." in text


def test_a_run_that_was_not_evaluated_as_it_is_now_is_refused(rdi, demo, tmp_path):
    remade = "attack run=runs/demo suite=quick samples=12 threat.test_steps=1 threads=1 overwrite=true"
    assert rdi(remade).status == 0
    refused(rdi("report runs=[runs/demo]"), "is of other images than", "rdi evaluate run=runs/demo thresholds=entropy")
    shutil.rmtree(demo / "evals")
    refused(rdi("report runs=[runs/demo]"), "was not evaluated: run `rdi evaluate run=runs/demo` first")
    assert not (tmp_path / "reports").exists()
    assert rdi("evaluate run=runs/demo thresholds=entropy tracking=none").status == 0, "the remedy exists"
    assert rdi("report runs=[runs/demo] ratios=3").status == 0


def test_the_front_is_in_wandb_with_its_rows_its_charts_and_its_summary(rdi, two, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    result = rdi("pareto runs=[runs/demo,runs/other] name=both ratios=5 tracking.mode=offline")
    assert result.status == 0, result.err
    record = read(two / "summary.json", FrontRecord)
    assert f"hypervolume: {tables.percent(record.hypervolume)} % of the box" in result.out
    assert record.hypervolume_of["demo"] == pytest.approx(record.hypervolume)
    assert record.reference == (0.0, 0.0, 11135152.0)
    with (two / "front.csv").open() as stream:
        front = list(csv.DictReader(stream))
    found = contents(two)
    run = found["run"]
    assert (run.job_type, run.display_name, run.run_group) == ("pareto", "both", "both")
    assert found["summary"]["hypervolume"] == record.hypervolume
    assert found["summary"]["hypervolume/demo"] == record.hypervolume_of["demo"]
    assert (found["summary"]["points"], found["summary"]["points_on_front"]) == (10, len(front))
    stored = [json.loads(path.read_text()) for path in two.rglob("*.table.json")]
    (rows,) = [
        table["data"] for table in stored if len(table["data"]) == len(front) and "on_front" not in table["columns"]
    ]
    columns = next(table["columns"] for table in stored if "on_front" not in table["columns"])
    assert [[str(value) for value in row] for row in rows] == [[row[name] for name in columns] for row in front]
    charts = [
        one["panel_config"]["fieldSettings"]
        for name, one in found["config"].items()
        if name.startswith("_wandb/visualize/")
    ]
    pairs = {(chart["x"], chart["y"]) for chart in charts}
    assert pairs == {
        ("mean_macs", "clean_accuracy"),
        ("mean_macs", "worst_accuracy"),
        ("worst_accuracy", "clean_accuracy"),
    }


def test_hypervolumes_from_a_reference_of_ones_own_can_be_compared(rdi, demo, tmp_path):
    volumes = []
    for macs in ("null", "22270304"):
        assert rdi(f"pareto runs=[runs/demo] ratios=5 tracking=none reference_macs={macs}").status == 0
        volumes.append(read(tmp_path / "reports" / "demo" / "summary.json", FrontRecord))
    assert volumes[1].reference == (0.0, 0.0, 22270304.0)
    assert volumes[1].reference_rule == "reference_macs as given"
    assert volumes[0].points_on_front == volumes[1].points_on_front
    assert volumes[0].hypervolume < volumes[1].hypervolume


CONTRAST = """
(() => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const context = canvas.getContext("2d", {willReadFrequently: true});
  const shown = colours => {
    context.fillStyle = "#fff";
    context.fillRect(0, 0, 1, 1);
    for (const colour of colours) { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); }
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = rgb => {
    const [r, g, b] = rgb.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const words = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!words) continue;
    const below = [];
    for (let one = element; one; one = one.parentElement) below.unshift(getComputedStyle(one).backgroundColor);
    const style = getComputedStyle(element);
    const text = element instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(shown(below)), light(shown([...below, text]))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) found.push([element.tagName, element.textContent.trim().slice(0, 30), ratio.toFixed(2)]);
  }
  return found;
})()
"""


def test_the_page_in_a_browser(chromium, rdi, two):
    page_of(rdi, "report runs=[runs/demo,runs/other] name=both ratios=5")
    for width, height, dark in ((375, 812, False), (1280, 900, False), (375, 812, True)):
        chromium.open(two / "index.html", width, height, dark=dark)
        where = f"{width} x {height}, dark {dark}"
        assert chromium.run("matchMedia('(prefers-color-scheme: dark)').matches") is dark
        assert chromium.run("document.scrollingElement.scrollWidth") <= width, where
        assert chromium.run("innerWidth") == width
        images = chromium.run("[...document.images].map(one => one.complete && one.naturalWidth > 0)")
        assert len(images) >= 48
        assert all(images), where
        assert chromium.run("document.querySelectorAll('[role=img] > svg').length") == 7
        assert chromium.run(CONTRAST) == [], where
        assert chromium.messages == [], where
        asked = [address for address in chromium.requests if not address.startswith("data:")]
        assert [address for address in asked if not address.endswith("/reports/both/index.html")] == [], where
    chromium.open(two / "index.html", 375, 812)
    # wide tables scroll inside their own box, and what a row is called stays in sight
    moved = chromium.run(
        "[...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth).map(one => {"
        " one.scrollLeft = 150; const cell = one.querySelector('tbody th').getBoundingClientRect();"
        " return [one.scrollLeft, Math.round(cell.left - one.getBoundingClientRect().left)]; })"
    )
    assert len(moved) >= 6
    assert all(left >= 0 for scrolled, left in moved if scrolled), moved
    assert any(scrolled == 150 for scrolled, _ in moved)
