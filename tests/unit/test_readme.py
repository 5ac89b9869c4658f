"""The pages of results/ and the measured parts of the README are what `make results` makes of the records."""

import json
import re
import shutil
from pathlib import Path

import pytest

from rdi.report import results

ROOT = Path(__file__).resolve().parents[2]
STRONGEST = "results/official-resnet38/evals/paper_resnet38__test-confident_wrong@paper_resnet38.json"
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


def test_pages_follow_every_record(copy, made):
    record = json.loads((copy / STRONGEST).read_text())
    (copy / STRONGEST).write_text(json.dumps({**record, "accuracy": 0.123}))
    after = {path.relative_to(copy).as_posix(): text for path, text in results.pages(copy).items()}
    assert {page for page in PAGES if after[page] != made[ROOT / page]} == {"README.md", "results/README.md"}
    assert "12.3" in after["README.md"]


def test_the_strongest_row_cannot_be_left_out(copy):
    (copy / STRONGEST).unlink()
    with pytest.raises(ValueError, match="the worst case and the records differ in confident_wrong@paper_resnet38"):
        results.results_page(copy / "results")
    with pytest.raises(ValueError, match="the worst case and the records differ in confident_wrong@paper_resnet38"):
        results.headline(copy / "results")


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
