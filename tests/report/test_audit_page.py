"""The page of an audit: safe against markup, usable on wide and narrow screens, and it saves decisions."""

import csv

import numpy as np
import pytest

from hcal_hf import Taxonomy, audit_features, write_audit_page
from hcal_hf.report.audit_page import LONGEST_TEXT
from tests.report.test_page import EVIL, EVIL_TAXONOMY, Page

PATHS = [
    *EVIL_TAXONOMY,
    ["a long name of a label at the top", "a " * 30 + "label", "end"],
    ["b", "c", "d"],
    ["b", "c", "e"],
]


@pytest.fixture(scope="module")
def report():
    taxonomy = Taxonomy.from_paths(PATHS)
    rng = np.random.default_rng(0)
    leaves = np.flatnonzero(taxonomy.is_leaf)[rng.integers(taxonomy.is_leaf.sum(), size=120)]
    features = np.eye(taxonomy.num_labels)[leaves] + 0.5 * rng.normal(size=(120, taxonomy.num_labels))
    rows = [[leaf] if i % 9 else [int(taxonomy.parents(leaf)[0])] for i, leaf in enumerate(leaves)]
    found = audit_features(
        features,
        rows,
        taxonomy,
        label_mode="single_path",
        partial_paths=True,
        folds=3,
        top=80,
        strength=16.0,
        quantile=0.9,
    )
    found.texts = [f"{EVIL} </script> {i} " + ("long " * 1000 if i % 2 else "unbroken" * 60) for i in range(120)]
    return found


def test_the_page_escapes_texts_and_labels_and_holds_the_numbers(report, tmp_path):
    page = Page(write_audit_page(tmp_path / "page.html", report, EVIL).read_text(encoding="utf-8"))
    assert len(page.scripts) == 2  # the data and the script of the page
    assert page.all("img") == []
    rows = page.data["suspicions"]
    assert [row["rank"] for row in rows] == list(range(1, len(report.ranking) + 1))
    assert all(EVIL in row["text"] and len(row["text"]) <= LONGEST_TEXT + 2 for row in rows)
    assert EVIL in page.text
    assert len(page.all("button")) >= 1 + (report.ranking.expected_missing > 0).sum()
    assert "default-src 'none'" in next(
        a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )


def test_a_page_without_texts_has_none(report, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "texts", None)
    text = write_audit_page(tmp_path / "page.html", report, "Audit").read_text(encoding="utf-8")
    assert "unbroken" not in text
    assert "text" not in Page(text).data["suspicions"][0]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")], ids=["wide", "narrow"])
def test_the_page_filters_decides_and_fits_the_screen(open_page, report, tmp_path, width, scheme):
    path = write_audit_page(tmp_path / "page.html", report, EVIL)
    with open_page(path, width, 900, scheme, within=("data:", "blob:")) as tab:
        items = tab.locator("#suspicions > li")
        total = len(report.ranking)
        assert items.count() == min(total, 50)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        label = tab.locator("#label option").nth(1).get_attribute("value")
        tab.locator("#label").select_option(label)
        expected = sum(row["path"] == label for row in report.suspicions())
        assert items.count() == min(expected, 50)
        tab.locator("#label").select_option("")
        tab.locator("#search").fill("NOSUCHWORD")
        assert items.count() == 0
        assert "No suspicion" in tab.locator("#found").text_content()
        tab.locator("#search").fill("")
        first, second = list(report.suspicions())[:2]
        items.nth(0).get_by_text("Accept").click()
        items.nth(1).get_by_text("Reject").click()
        assert tab.locator("#decided").text_content() == "1 accepted, 1 rejected"
        tab.locator("#state").select_option("open")
        assert items.count() == min(total - 2, 50)
        with tab.expect_download() as download:
            tab.locator("#save").click()
        download.value.save_as(tmp_path / "decisions.csv")
        with open(tmp_path / "decisions.csv", encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows == [
            {"row": str(row["row"]), "path": row["path"], "decision": value}
            for row, value in ((first, "accept"), (second, "reject"))
        ]
        tab.locator("#row").fill(str(first["row"]))
        tab.locator("#state").select_option("all")
        assert set(tab.locator("#suspicions .row").all_text_contents()) <= {
            f"{row['rank']}. row {row['row']}" for row in report.suspicions() if row["row"] == first["row"]
        }
        tab.locator("[data-path]").first.click()
        tab.screenshot(path=tmp_path / "page.png", full_page=True)
