"""The demo page in a browser: it classifies, follows the controls, and works on a narrow screen."""

from urllib.parse import urlsplit

import pytest

from hcal_hf import Taxonomy
from hcal_hf.commands.demo.page import launch
from tests.commands.test_demo import EVIL, TEXT, make_pipe


@pytest.fixture(scope="module")
def served():
    """Serves a page where one label is HTML. Returns (pipeline, address, encoder calls)."""
    pytest.importorskip("gradio")
    paths = [["science", "physics"], ["science", "biology"], ["arts", EVIL], ["arts", "music"], ["${1}", "{{2}}"]]
    pipe = make_pipe(Taxonomy.from_paths(paths), label_mode="multi_path")
    calls = []
    pipe.model.encoder.register_forward_hook(lambda *_: calls.append(1))
    app, address, _ = launch(pipe, examples=["poems in novels of drama"], prevent_thread_lock=True, quiet=True)
    yield pipe, address, calls
    app.blocks.close(verbose=False)


@pytest.fixture
def tab(browser, served):
    """Opens the page in a browser. At the end, checks that it logged no problem and contacted no other host."""
    problems, hosts = [], set()
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.set_default_timeout(60_000)  # for slow machines
    tab.on("console", lambda message: message.type in ("error", "warning") and problems.append(message.text))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    tab.goto(served[1])
    yield tab
    tab.close()
    assert problems == []
    assert hosts - {None} == {"127.0.0.1"}  # data: URLs have no host


def classify(tab, text):
    tab.get_by_label("Text").fill(text)
    tab.get_by_role("button", name="Classify").click()
    tab.locator("[data-reading] .hcal-text", has_text=text[:10]).wait_for()


def labels(tab, selector=".hcal-row"):
    return tab.locator(f"{selector} .hcal-name").all_text_contents()


def set_threshold(tab, value):
    tab.get_by_label("number input for Threshold").fill(str(value))
    tab.get_by_label("number input for Threshold").blur()


def expected(pipe, text, **kwargs):
    return sorted(item["path"][-1] for item in pipe(text, **kwargs))


@pytest.mark.slow
def test_in_a_browser_a_text_is_classified_and_the_threshold_updates_the_tree(tab, served):
    pipe, _, calls = served
    before = len(calls)
    tab.get_by_label("Text").fill(TEXT)
    tab.get_by_label("Text").press("Shift+Enter")
    tab.locator(".hcal-tree").wait_for()
    assert sorted(labels(tab)) == sorted(pipe.model.taxonomy.names)
    assert sorted(labels(tab, ".hcal-predicted")) == expected(pipe, TEXT)
    assert len(calls) == before + 2  # one by the page and one by this test
    roots = tab.locator(".hcal-tree > li > details > summary .hcal-number").all_inner_texts()
    assert roots == sorted(roots, reverse=True)
    assert tab.locator("#hcal-result [role=status]").inner_text().startswith(f"“{TEXT}”")

    text = "poems in novels of drama"
    tab.get_by_text(text).click()  # click the example
    tab.locator(".hcal-text", has_text=text).wait_for()
    one = len(calls)
    scores = sorted(item["score"] for item in pipe(text, threshold=0.0))
    for threshold in (round(sum(scores[-3:-1]) / 2, 2), 0.01):
        set_threshold(tab, threshold)
        wanted = expected(pipe, text, threshold=threshold)
        tab.wait_for_function("n => document.querySelectorAll('.hcal-predicted').length == n", arg=len(wanted))
        assert sorted(labels(tab, ".hcal-predicted")) == wanted
    set_threshold(tab, 1)
    tab.get_by_text("No label reaches its threshold").wait_for()
    tab.get_by_label("fewest wrong and missing labels").check()
    tab.locator(".hcal-predicted").first.wait_for()
    assert sorted(labels(tab, ".hcal-predicted")) == expected(pipe, text, decode="expected_f1")
    assert tab.get_by_label("range slider for Threshold").is_disabled()
    assert len(calls) == one + 4  # all by this test


@pytest.mark.slow
def test_in_a_browser_names_are_escaped_and_folded_branches_stay_folded(tab):
    classify(tab, TEXT)
    assert {EVIL, "${1}", "{{2}}"} <= set(labels(tab))
    assert tab.locator("#hcal-result img").count() == 0
    first = tab.locator("summary").first
    branch = first.locator("xpath=..")
    name, was_open = first.locator(".hcal-name").inner_text(), branch.get_attribute("open") is not None
    first.focus()
    first.press("Enter")
    assert (branch.get_attribute("open") is not None) != was_open
    set_threshold(tab, 1)
    tab.get_by_text("No label reaches its threshold").wait_for()
    assert first.locator(".hcal-name").inner_text() == name
    assert (branch.get_attribute("open") is not None) != was_open
    assert first.evaluate("summary => document.activeElement === summary") is False  # the focus moved to the threshold
    set_threshold(tab, 0.5)
    tab.locator(".hcal-text").wait_for()
    classify(tab, "a new study")
    states = "[...document.querySelectorAll('details')].map(branch => branch.open)"
    fresh = tab.evaluate(states)
    tab.reload()
    classify(tab, "a new study")
    assert tab.evaluate(states) == fresh  # another text resets the folded branches


@pytest.mark.slow
def test_in_a_browser_empty_texts_have_a_message_and_narrow_pages_fit(tab):
    tab.set_viewport_size({"width": 390, "height": 600})
    top = "document.querySelector('.hcal-answer').getBoundingClientRect().top"
    tab.locator(".hcal-answer").wait_for()
    tab.wait_for_function(f"{top} > 600")  # below the visible part, once the layout is complete
    tab.get_by_label("Text", exact=False).first.fill("")
    tab.get_by_role("button", name="Classify").click()
    tab.get_by_text("The text is empty: write one and press Classify.").wait_for()
    tab.evaluate("scrollTo(0, 0)")
    classify(tab, TEXT)
    tab.wait_for_function(f"{top} < 500")  # the page scrolled to the result
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
