"""The report in a browser: it loads and runs nothing else, and works by keyboard and on a narrow screen."""

import re

import pytest

from hcal_hf import Taxonomy
from tests.report.test_page import EVIL, EVIL_TAXONOMY, written

PATHS = [
    *EVIL_TAXONOMY,
    ["a long name of a label at the top", "a " * 30 + "label", "end"],
    ["b", "c", "d"],
    ["b", "c", "e"],
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    pytest.importorskip("plotly")
    path = tmp_path_factory.mktemp("report") / "report.html"
    texts = lambda rows: [f"{EVIL} </script> <b>text</b> {row}" for row in rows]  # noqa: E731
    written(path, Taxonomy.from_paths(PATHS), texts, mode="single_path", documents=200, title=EVIL)
    return path


@pytest.fixture(params=[(1280, "light"), (360, "dark")], ids=["wide", "narrow"])
def tab(open_page, report, request):
    """A loaded report. At its end it must have logged nothing and requested no other address."""
    width, scheme = request.param
    with open_page(report, width, 800, scheme) as tab:
        tab.locator("[data-figure=tree] .slice").first.wait_for()
        yield tab


def labels(tab):
    return tab.locator("#children th").all_text_contents()


def wait_for_top(tab, label):
    """Waits until the plot shows a label at its top. The page forbids the evaluation that `wait_for_function` uses."""
    for _ in range(100):
        if tab.evaluate("document.querySelector('[data-figure=tree]').data[0].labels[0]") == label:
            return
        tab.wait_for_timeout(100)
    pytest.fail(f"the tree does not open {label}")


@pytest.mark.slow
def test_the_page_is_not_wider_than_the_screen_and_has_its_plots(tab):
    width = tab.viewport_size["width"]
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.locator(".figure .main-svg").count() >= 4
    assert EVIL in tab.title()
    assert tab.locator("main b").count() == 0
    tab.evaluate("document.documentElement.style.fontSize = '200%'")  # magnified text
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_the_tree_opens_by_keyboard_and_by_click(tab):
    top = labels(tab)
    assert "b" in top
    button = tab.get_by_role("button", name="b", exact=True)
    button.focus()
    tab.keyboard.press("Enter")
    assert labels(tab) == ["c"]
    assert tab.locator("#crumbs [aria-current]").inner_text() == "b"
    assert tab.evaluate("document.activeElement.textContent") == "b"
    # The plot follows: its first box is the opened label.
    wait_for_top(tab, "b")
    tab.locator("[data-figure=tree] .slice", has_text=re.compile("^d")).click()
    wait_for_top(tab, "d")
    assert tab.locator("#crumbs button").all_text_contents() == ["all labels", "b", "c", "d"]
    tab.locator("[data-figure=tree] .slice", has_text=re.compile("^d")).click()  # the top of the tree leads back
    wait_for_top(tab, "c")
    assert set(labels(tab)) == {"d", "e"}
    tab.get_by_role("button", name="all labels").click()
    assert labels(tab) == top


@pytest.mark.slow
def test_texts_have_enough_contrast(tab):
    ratios = tab.evaluate(
        """() => {
            const channel = (c) => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
            const light = (color) => {
                const [r, g, b] = color.match(/[\\d.]+/g).map(Number).map(channel);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const ground = (element) => {
                for (; element; element = element.parentElement) {
                    const color = getComputedStyle(element).backgroundColor;
                    if (!color.endsWith(', 0)')) return color;
                }
            };
            return [...document.querySelectorAll('h1, p, a, th, td, dt, dd, button, summary, li, caption')].map((e) => {
                const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
                return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            });
        }"""
    )
    assert len(ratios) > 100
    assert min(ratios) >= 4.5
