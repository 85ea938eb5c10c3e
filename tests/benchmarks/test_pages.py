"""The pages show what the code says now."""

import re

import pytest

from benchmarks import measured, pages
from benchmarks.pages import PAGES, TABLES, fill
from benchmarks.records import RESULTS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_holds_what_its_code_makes(page):
    """When this fails: python -m benchmarks.pages"""
    content = page.read_text(encoding="utf-8")
    assert content == fill(content)


def test_the_page_of_results_has_no_figure_but_those_of_records():
    page = (pages.DOCS / "performance.md").read_text(encoding="utf-8")
    words = re.sub(r"^    .*$", "", pages.BLOCK.sub("", page), flags=re.MULTILINE)
    for name in (f"{measured.CALLERS} callers", "Llama Guard 4", "/v1/", "AVX2", "Zen 5", "float32", "p99"):
        words = words.replace(name, "")
    assert re.findall(r".*\d.*", words) == []


def test_each_row_of_the_notebook_links_its_record_or_says_that_there_is_none():
    page = (RESULTS.parent / "NOTEBOOK.md").read_text(encoding="utf-8")
    rows = [
        line for line in page.splitlines() if line.startswith("|") and not line.startswith(("| change", "| run", "|-"))
    ]
    assert len(rows) > 50
    assert [row for row in rows if ("not recorded" in row) == ("](" in row)] == []


def test_every_table_is_on_a_page():
    shown = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in TABLES if shown.count(f"<!-- made by benchmarks.pages: {name} -->") != 1] == []
    assert shown.count("<!-- made by") == shown.count("<!-- end -->") == len(TABLES)


def test_a_stale_table_is_made_anew_and_nothing_else(monkeypatch):
    monkeypatch.setitem(TABLES, "limit", lambda: "new")
    start = "<!-- made by benchmarks.pages: limit -->\n"
    assert fill(f"before\n{start}old\nlines\n<!-- end -->\nafter") == f"before\n{start}new\n<!-- end -->\nafter"
    assert fill(f"{start}<!-- end -->\nwords\n{start}<!-- end -->").count("words") == 1


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0086, "0.0086"), (1.04, "1"), (9.96, "10"), (177.8, "180"), (871_460, "870,000")]
)
def test_numbers_have_two_digits(value, shown):
    assert pages.number(value) == shown
