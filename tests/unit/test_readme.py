"""The pages of results/ and the measured parts of the README are what `make results` makes of the records."""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.examples import EXAMPLES
from pages import results
from rdi.errors import UserError
from rdi.records import CorruptionRecord, write

ROOT = Path(__file__).resolve().parents[2]
STRONGEST = "results/official-resnet38/evals/paper_resnet38__test-targeted@paper_resnet38.json"
PAGES = ("README.md", "results/README.md", "results/bench/README.md")


@pytest.fixture(scope="module")
def made():
    """Every page as the committed records make it."""
    return results.pages(ROOT)


@pytest.fixture
def copy(tmp_path):
    """The records and the README, to be changed."""
    shutil.copytree(ROOT / "results", tmp_path / "results", ignore=shutil.ignore_patterns("*.png", "*.html", "runs"))
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_a_committed_page_is_made_from_the_records(page, made):
    assert (ROOT / page).read_text() == made[ROOT / page], "run `make results`"


def test_every_page_that_is_made_is_compared(made):
    assert {path.relative_to(ROOT).as_posix() for path in made} == {*PAGES}


def test_the_committed_headline_is_drawn_from_the_records():
    files = {path.name: content for path, content in results.pictures(ROOT).items()}
    for name in ("headline.json", "headline.tex"):
        assert (ROOT / "results" / name).read_text() == files[name], "run `make results`"
    # how letters are set depends on the fonts of a machine: a picture is known by the figures it was drawn from
    mark = hashlib.sha256(files["headline.json"].encode()).hexdigest().encode()
    assert files.keys() == {"headline.json", "headline.tex", "headline.svg", "headline.pdf"}
    for name in ("headline.svg", "headline.pdf"):
        assert mark in (ROOT / "results" / name).read_bytes(), "run `make results`"
        assert mark in files[name]


def test_a_network_that_is_added_is_in_the_headline_and_has_its_section(copy):
    added = copy / "results" / "mine"
    shutil.copytree(copy / "results" / "mnist-max_avg", added)
    (added / "about.md").unlink()
    slowdown = "paper_smallcnn__test-slowdown@paper_smallcnn"
    (added / "evals" / f"{slowdown}.json").unlink()
    worst = added / "evals" / "paper_smallcnn__test-worst.json"
    record = json.loads(worst.read_text())
    record["attacks"].remove("slowdown@paper_smallcnn")
    worst.write_text(json.dumps({**record, "accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6}))
    readme = results.pages(copy)[copy / "README.md"]
    row = next(line for line in readme.splitlines() if line.startswith("| mine "))
    assert [cell.strip() for cell in row.split("|")][2:6] == ["trained here", "mnist", "99.4", "50.0 (of 14)"]
    assert [cell.strip() for cell in row.split("|")][9] == "-"
    assert "## mine: smallcnn, exits paper, trained here" in results.pages(copy)[copy / "results" / "README.md"]
    svg = results.pictures(copy)[copy / "results" / "headline.svg"].decode()
    assert "mine (trained here)" in svg
    assert "50.0" in svg


def test_a_method_of_the_field_has_its_row_and_section_and_is_not_in_the_headline(copy):
    shutil.copytree(copy / "results" / "mnist-max_avg", copy / "results" / "field" / "mine")
    made = results.pages(copy)
    page = made[copy / "results" / "README.md"].partition("### Other methods of the field")[2]
    assert "| mine | trained here | mnist | 99.4 | 91.7 (of 15) |" in page
    assert "| mine " not in made[copy / "README.md"]
    assert b"mine (trained here)" not in results.pictures(copy)[copy / "results" / "headline.svg"]


@pytest.mark.parametrize("left", ["evals", "health"])
def test_a_network_whose_exit_policy_is_open_is_not_left_out(copy, left):
    added = copy / "results" / "mine"
    shutil.copytree(copy / "results" / "official-resnet38", added)
    shutil.rmtree(added / "health")
    if left == "evals":
        shutil.rmtree(added / "evals")
    with pytest.raises(UserError, match=r"mine: health was checked under no exit policy, worst cases are of"):
        results.pages(copy)


def test_pages_follow_every_record(copy, made):
    record = json.loads((copy / STRONGEST).read_text())
    record.pop("checksum")
    (copy / STRONGEST).write_text(json.dumps({**record, "accuracy": 0.123}))
    after = {path.relative_to(copy).as_posix(): text for path, text in results.pages(copy).items()}
    assert {page for page in PAGES if after[page] != made[ROOT / page]} == {"README.md", "results/README.md"}
    assert "12.3" in after["README.md"]


def test_the_strongest_row_cannot_be_left_out(copy):
    (copy / STRONGEST).unlink()
    with pytest.raises(ValueError, match="the worst case and the records differ in targeted@paper_resnet38"):
        results.results_page(copy / "results")
    with pytest.raises(ValueError, match="the worst case and the records differ in targeted@paper_resnet38"):
        results.pictures(copy)


def test_what_is_typed_into_a_made_part_is_replaced(copy):
    readme = copy / "README.md"
    text = readme.read_text()
    assert "(of 15)" in text
    readme.write_text(text.replace("(of 15)", "(of 16)"))
    assert results.pages(copy)[readme] == text
    readme.write_text(text.replace("<!-- made: demo -->", ""))
    with pytest.raises(ValueError, match="0 places for demo"):
        results.pages(copy)


def test_the_readme_has_no_measured_number_outside_its_made_parts():
    text = re.sub(r"<!-- made: .*?<!-- end -->|```.*?```", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert re.findall(r"[0-9.]+ ?(?:%|M |points|seconds)", text) == []


@pytest.mark.parametrize("page", [*PAGES, "src/rdi/README.md"])
def test_links_of_the_pages_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_other_threat_models_and_corruptions_are_rows_of_their_own(copy, made):
    folder, policy = copy / "results" / "resnet16", "ensemble-41f03d"
    evals = folder / "evals"
    for name in ("average", f"square@{policy}"):
        record = json.loads((evals / f"{policy}__test-{name}.json").read_text())
        del record["checksum"]
        record["attack"] = f"{name}@l2eps0.25098"
        record["settings"] |= {"eps": 64 / 255, "norm": "l2"}
        (evals / f"{policy}__test-{name}@l2eps0.25098.json").write_text(json.dumps({**record, "accuracy": 0.123}))
    worst = json.loads((evals / f"{policy}__test-worst.json").read_text())
    del worst["checksum"]
    attacks = ["average@l2eps0.25098", f"square@{policy}@l2eps0.25098"]
    worst |= {"attacks": attacks, "eps": 64 / 255, "norm": "l2", "accuracy": 0.111, "transfer": None, "others": []}
    (evals / f"{policy}__test-worst@l2eps0.25098.json").write_text(json.dumps(worst))
    example = next(record for record in EXAMPLES if isinstance(record, CorruptionRecord))
    write(folder / "corruptions" / f"{policy}__test.json", replace(example, accuracy=0.666))
    pages = results.pages(copy)
    page = pages[copy / "results" / "README.md"]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if "| L2 eps 64/255" in line]
    assert [row[1:6] for row in rows] == [
        ["average", "20", "1000", "0", "12.3"],
        ["square", "1000 queries", "1000", "0", "12.3"],
        ["worst of 2", "", "1000", "0", "11.1"],
    ]
    assert f"mean of {len(example.kinds)} kinds" in page
    assert "66.6" in page
    # the run's own threat model is judged as before
    assert pages[copy / "README.md"] == made[ROOT / "README.md"]
    own = made[ROOT / "results" / "README.md"]
    # pictures do not lie beside the copy; wider cells make the other rows of their table wider
    kept = {re.sub("[ -]+", " ", line) for line in page.splitlines()}
    lost = [line for line in own.splitlines() if re.sub("[ -]+", " ", line) not in kept]
    assert [line for line in lost if not line.startswith("![")] == []
    (evals / f"{policy}__test-{attacks[0]}.json").unlink()
    with pytest.raises(ValueError, match=r"the worst case and the records differ in average@l2eps0\.25098"):
        results.results_page(copy / "results")
