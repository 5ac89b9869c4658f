"""Tables and pages under results/ are what their committed records say, and results/README.md shows the tables."""

import hashlib
import html
import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from rdi.records import EvalRecord, Manifest, Size, WorstRecord, read
from rdi.report import tables
from rdi.report.reproduction import Row, Run, table
from rdi.runs import table_specs
from rdi.storage import sha256

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "results" / "tables"
BEFORE_THEIR_ROWS = {f"resnet38-three_epochs{form}-cifar10_jpeg-seed0" for form in ("", "-plain")}
"""Trained when the lines of their own rows in sweeps/tables, and nothing else, were not committed yet: dev/LOG.md."""


def judged(folder):
    """A run's records as a table takes them."""
    evals, worst = {}, None
    for path in folder.glob("evals/*__test-*.json"):
        if path.stem.endswith("-worst"):
            worst = read(path, WorstRecord)
        else:
            record = read(path, EvalRecord)
            evals[record.attack.split("@")[0]] = record
    size = folder / "size.json"
    manifest = read(folder / "manifest.json", Manifest)
    return Run(manifest.costs, evals, worst, read(size, Size) if size.is_file() else None, manifest.seconds)


@pytest.mark.parametrize("path", sorted((HERE / "reports").iterdir()), ids=lambda path: path.name)
def test_a_committed_table_is_made_from_its_records(path):
    name, profile, *data = path.name.split("-")
    stands_in = "".join(f"-{one}" for one in data)
    spec = table_specs.table(name)
    runs = HERE / "runs" / "tables" / profile
    content = json.loads((path / f"{name}.json").read_text())
    # of networks that lie in results/ themselves the folders are named
    named = {
        label: [ROOT / one for one in mine if one.startswith("results/")]
        for label, mine in content.get("rows", {}).items()
    }
    rows = [
        Row(
            label,
            [judged(folder) for folder in named.get(label) or sorted(runs.glob(f"{row.run}{stands_in}-seed*"))],
            row.published,
        )
        for label, row in spec.rows.items()
    ]
    text = tables.text(*table(spec.attacks, rows, spec.extra), "github")
    assert text in (path / f"{name}.md").read_text()
    assert text in (ROOT / "results" / "README.md").read_text()
    sources = content["records"]
    assert sources
    for file, known in sources.items():
        assert sha256((ROOT if file.startswith("results/") else HERE) / file) == known["sha256"], file
    dirty = {folder.name for folder in runs.iterdir() if read(folder / "manifest.json", Manifest).environment.dirty}
    assert dirty <= BEFORE_THEIR_ROWS, "a row is of a commit"


@pytest.mark.parametrize("note", sorted((HERE / "reports").glob("*/notes.md")), ids=lambda path: path.parent.name)
def test_a_figure_in_the_note_on_a_table_stands_in_the_table(note):
    cells = (note.parent / f"{note.parent.name.partition('-')[0]}.md").read_text()
    there = set(re.findall(r"\d+\.\d+", cells))
    # a share of the MACs is what was not saved
    there |= {f"{100 - float(one):.1f}" for one in there}
    assert set(re.findall(r"\d+\.\d+", note.read_text())) <= there


@pytest.mark.parametrize("page", sorted((ROOT / "results").glob("*/reports/*/index.html")), ids=lambda p: p.parent.name)
def test_every_link_of_a_committed_page_leads_to_the_file_that_it_was_made_from(page):
    links = re.findall(r'title="([^"]*), sha256 ([0-9a-f]{64})"[^>]*><a href="([^"]*)">', page.read_text())
    assert len(links) > 20
    for path, sha, href in links:
        file = page.parent / unquote(html.unescape(href))
        assert hashlib.sha256(file.read_bytes()).hexdigest() == sha, path
