"""The tab of the demo page to label suggested texts, in a browser, until `hcal train --from` trains on the file."""

import json
import re
import threading
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pandas as pd
import pytest

from hcal_hf import HcalForSequenceClassification, Taxonomy, load_model, write_suggestions
from hcal_hf.commands import main as cli
from hcal_hf.commands.demo.page import launch
from tests.builders import WORDS
from tests.commands.test_continued_run import PATHS, write
from tests.commands.test_demo import EVIL, make_pipe
from tests.commands.test_labelling import lines, write_table

pytestmark = pytest.mark.slow


@pytest.fixture
def serve():
    """Returns a function that serves a page and returns its address. It stops the earlier page."""
    pytest.importorskip("gradio")
    served = []

    def stop():
        while served:
            app = served.pop()
            app.blocks.close(verbose=False)
            app.blocks.labelling.close()

    def start(model, **options):
        stop()
        app, address, _ = launch(model, prevent_thread_lock=True, quiet=True, **options)
        served.append(app)
        return address

    yield start
    stop()


@pytest.fixture
def open_tab(browser):
    """Returns a function that opens a page. At the end, checks that no page logged a problem or called another host."""
    problems, hosts, tabs = [], set(), []

    def open_page(address, width=1280, **options):
        tab = browser.new_page(viewport={"width": width, "height": 900}, **options)
        tab.set_default_timeout(60_000)  # for slow machines
        tab.on("console", lambda message: message.type in ("error", "warning") and problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
        tab.goto(address)
        tab.locator("#hcal-label h2:visible").wait_for()
        tabs.append(tab)
        return tab

    yield open_page
    for tab in tabs:
        tab.close()
    assert problems == []
    assert hosts - {None} == {"127.0.0.1"}


def at(tab, number):
    tab.locator("#hcal-label h2:visible", has_text=re.compile(f"^Text {number} of ")).wait_for()


def text_of(tab):
    return tab.locator(".hl-text").inner_text()


def press(tab, name):
    tab.get_by_role("button", name=name, exact=False).locator("visible=true").first.click()


def search(tab, query):
    tab.get_by_label("Search labels").fill(query)
    tab.locator(".hl-found", has_text=re.compile("found")).wait_for()


def test_in_a_browser_suggestions_are_labelled_and_training_continues_from_the_file(
    serve, open_tab, encoder_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    paths = [*PATHS, ["arts", EVIL]]
    write(tmp_path / "old.csv", 0, 75, paths)
    columns = ["--text", "Text", "--labels", "Area", "Topic"]
    fast = ["--encoder", encoder_dir, "--time-budget", "0", "--use_cpu"]
    assert cli.main(["train", "old.csv", *columns, *fast]) == 0
    model = "outputs/old"
    texts = [f"{WORDS[i]} {WORDS[i + 3]} new {i}" for i in range(4)] + [f"{EVIL} stars <script>alert(2)</script>"]
    pd.DataFrame({"Text": texts}).to_csv("texts.csv", index=False)
    write_suggestions(model, "texts.csv", "to_label.csv", 5, use_cpu=True)
    options = {"suggestions": "to_label.csv", "labelled": "labelled.jsonl"}
    tab = open_tab(serve(model, **options))

    # Accept the first text with a key. The heading has the focus, so no click is needed.
    at(tab, 1)
    first, suggested = text_of(tab), tab.locator(".hl-suggestion .hl-path").inner_text()
    tab.keyboard.press("a")
    at(tab, 2)
    assert lines(tmp_path / "labelled.jsonl")[0]["Text"] == first  # on the disc before the next text is shown
    area, topic = suggested.split(" \u203a ")
    assert (lines(tmp_path / "labelled.jsonl")[0]["Area"], lines(tmp_path / "labelled.jsonl")[0]["Topic"]) == (
        area,
        topic,
    )

    # Correct the second one by the search, with the keyboard alone.
    second = text_of(tab)
    tab.keyboard.press("c")
    tab.locator(".hl-hits button").first.wait_for()
    tab.keyboard.type("onerror")
    tab.keyboard.press("Enter")
    tab.locator(".hl-chosen .hl-path", has_text=EVIL).wait_for()
    assert tab.locator("#hcal-label img").count() == 0
    tab.wait_for_function("document.activeElement.dataset.action === 'save'")
    tab.keyboard.press("Enter")
    at(tab, 3)
    assert lines(tmp_path / "labelled.jsonl")[1] == {
        **lines(tmp_path / "labelled.jsonl")[1],
        "Text": second,
        "Area": "arts",
        "Topic": EVIL,
    }

    # Skip the third, correct the fourth in the tree, and go back to change the first.
    third = text_of(tab)
    press(tab, "Skip")
    at(tab, 4)
    assert "2 of 5 labelled, 1 skipped, 2 to go" in tab.locator(".hl-counts").inner_text()
    press(tab, "Correct")
    tab.get_by_text("All labels").click()
    tab.locator(".hl-tree").get_by_role("button", name="science").click()
    tab.locator(".hl-tree").get_by_role("button", name="biology").click()
    tab.get_by_role("button", name="Save").click()
    at(tab, 5)
    for number in (4, 3, 2, 1):
        press(tab, "Back")
        at(tab, number)
    assert tab.get_by_role("button", name="Back").locator("visible=true").is_disabled()
    assert tab.locator(".hl-state").inner_text() == f"Labelled: {suggested}"
    press(tab, "Correct")
    search(tab, "poetry")
    tab.locator(".hl-hits button", has_text="poetry").click()
    tab.get_by_role("button", name="Save").click()
    at(tab, 5)  # the next one without a decision
    assert [line["Text"] for line in lines(tmp_path / "labelled.jsonl")].count(first) == 1
    assert lines(tmp_path / "labelled.jsonl")[0]["Topic"] == "poetry"

    # A reload and a restart continue with the text that is left, which may be the hostile one.
    tab.reload()
    at(tab, 5)
    tab.close()
    tab = open_tab(serve(model, **options))
    at(tab, 5)
    press(tab, "Accept")
    tab.locator("#hcal-label h2:visible", has_text="All texts are decided").wait_for()
    command = tab.locator(".hl-command").inner_text()
    assert command == "hcal train labelled.jsonl --from outputs/old"
    rows = lines(tmp_path / "labelled.jsonl")
    assert sorted(row["Text"] for row in rows) == sorted(set(texts) - {third})
    skipped = lines(tmp_path / "labelled.skipped.jsonl")
    assert [row["Text"] for row in skipped] == [third]
    assert "Area" not in skipped[0]
    press(tab, "Ask the skipped texts again")
    at(tab, 3)
    press(tab, "Accept")
    tab.locator("#hcal-label h2:visible", has_text="All texts are decided").wait_for()
    assert sorted(row["Text"] for row in lines(tmp_path / "labelled.jsonl")) == sorted(texts)

    capsys.readouterr()
    assert cli.main([*command.split()[1:], "--use_cpu"]) == 0
    assert "Rows: 5 new, and 75 that the model was trained on" in capsys.readouterr().out
    before, after = (HcalForSequenceClassification.from_pretrained(f"outputs/{name}") for name in ("old", "labelled"))
    assert after.config.labels == before.config.labels
    assert not after.prototypes.weight.equal(before.prototypes.weight)


def test_in_a_browser_texts_get_several_labels_or_none(serve, open_tab, tmp_path):
    edges = [("science", "physics"), ("science", EVIL), ("arts", "music"), ("arts", "opera")]
    pipe = make_pipe(Taxonomy.from_edges(edges), label_mode="multi_path", partial_paths=True)
    table = write_table(tmp_path / "to_label.jsonl", [f"{EVIL} stars", "poems", "cells"])
    labelled = tmp_path / "to_label.labelled.jsonl"
    tab = open_tab(serve(pipe, suggestions=table))
    assert text_of(tab) == f"{EVIL} stars"
    tab.keyboard.press("c")
    tab.locator(".hl-hits button").first.wait_for()
    while tab.locator(".hl-chosen button").count():
        tab.locator(".hl-chosen button").first.click()
    for query in ("music", "onerror"):
        search(tab, query)
        tab.get_by_label("Search labels").press("Enter")
        tab.locator(".hl-chosen .hl-path", has_text=query).wait_for()
    tab.get_by_text("All labels").click()
    tree = tab.locator(".hl-tree")
    tree.get_by_role("button", name="Labels below arts").click()
    tree.get_by_role("button", name="opera").click()
    tree.get_by_role("button", name="music").click()  # removes it again
    assert tab.locator("#hcal-label img").count() == 0
    tab.keyboard.press("Control+Enter")
    at(tab, 2)
    assert sorted(lines(labelled)[0]["labels"]) == [["arts", "opera"], ["science", EVIL]]

    # An inner label from the tree, with the arrow keys alone.
    tab.keyboard.press("c")
    tab.locator(".hl-hits button").first.wait_for()
    while tab.locator(".hl-chosen button").count():
        tab.locator(".hl-chosen button").first.click()
    tab.locator(".hl-browse summary").focus()
    tab.keyboard.press("Enter")
    tree.locator("button").first.wait_for()
    tab.keyboard.press("ArrowDown")
    name = tab.evaluate("document.activeElement.getAttribute('aria-label')").removeprefix("Labels below ")
    tab.keyboard.press("ArrowRight")
    tree.locator("ul:visible").wait_for()
    tab.keyboard.press("ArrowDown")
    assert tab.evaluate("document.activeElement.innerText").startswith(name)
    tab.keyboard.press("Enter")
    tab.locator(".hl-chosen .hl-path", has_text=name).wait_for()
    tab.keyboard.press("Control+Enter")
    at(tab, 3)
    assert lines(labelled)[1]["labels"] == [[name]]
    tab.keyboard.press("c")
    press(tab, "None of these")
    tab.locator("#hcal-label h2:visible", has_text="All texts are decided").wait_for()
    assert lines(labelled)[2]["labels"] == []


def test_in_a_browser_two_windows_do_not_overwrite_each_other(serve, open_tab, tmp_path, taxonomy):
    table = write_table(tmp_path / "to_label.jsonl")
    address = serve(make_pipe(taxonomy), suggestions=table)
    one, two = open_tab(address), open_tab(address)
    one.keyboard.press("a")
    at(one, 2)
    press(two, "Skip")
    two.get_by_text("This text was decided in another window. Nothing was saved.").wait_for()
    assert two.locator(".hl-state").inner_text().startswith("Labelled: ")
    two.keyboard.press("n")
    at(two, 2)
    assert two.locator(".hl-error").is_hidden()
    assert len(lines(tmp_path / "to_label.labelled.jsonl")) == 1
    assert not (tmp_path / "to_label.labelled.skipped.jsonl").exists()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_a_large_hierarchy_is_loaded_in_parts_and_narrow_pages_fit(serve, open_tab, tmp_path, scheme):
    taxonomy = Taxonomy.from_edges([(f"root {i % 20}", f"leaf {i} {'long' * 12}") for i in range(47_168)])
    table = write_table(tmp_path / "to_label.jsonl", ["stars " * 400])
    address = serve(make_pipe(taxonomy), suggestions=table)
    sizes = []
    tab = open_tab(address, width=400, color_scheme=scheme)
    tab.on("response", lambda response: sizes.append(int(response.headers.get("content-length", 0))))
    assert "The model read only the first 16 of 400 tokens" in tab.locator(".hl-notes").inner_text()
    tab.keyboard.press("c")
    search(tab, "47000")
    assert tab.locator(".hl-hits button").count() == 1
    tab.get_by_text("All labels").click()
    tab.locator(".hl-tree button").first.click()
    tab.get_by_role("button", name="Show more").click()
    tab.wait_for_function("document.querySelectorAll('.hl-tree ul > li:not(.hl-more)').length === 200")
    assert max(sizes) < 60_000
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400
    # Texts and controls are readable in both schemes.
    ratio = tab.evaluate(CONTRAST)
    assert min(ratio.values()) >= 4.5, ratio


CONTRAST = """() => {
    const channels = (color) => {
        const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
        const context = canvas.getContext("2d", { willReadFrequently: true });
        context.fillStyle = color;
        context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data];
    };
    const light = (rgb) => {
        const linear = (v) => v <= 0.04 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        const [r, g, b] = rgb.slice(0, 3).map((v) => linear(v / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (part) => {
        for (; part; part = part.parentElement) {
            const color = channels(getComputedStyle(part).backgroundColor);
            if (color[3] > 250) return color;
        }
        return [255, 255, 255];
    };
    const result = {};
    const parts = [".hl-counts", ".hl-text p", ".hl-notes p", ".hl-above", ".hl-number", ".hl-help", ".hl-found"];
    for (const selector of parts) {
        const part = document.querySelector(selector);
        const [a, b] = [light(channels(getComputedStyle(part).color)), light(behind(part))];
        result[selector] = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    }
    return result;
}"""


def test_the_server_refuses_requests_that_another_site_could_send(serve, tmp_path, taxonomy):
    """gradio reads the body of any type, so that a form of another site reaches the function without a preflight."""
    table = write_table(tmp_path / "to_label.jsonl")
    address = serve(make_pipe(taxonomy), suggestions=table)
    config = json.loads(urllib.request.urlopen(f"{address}config").read())
    part = next(c for c in config["components"] if c["props"].get("elem_id") == "hcal-label")
    token = re.search('data-token="([^"]+)"', part["props"]["value"])[1]

    def send(values, **headers):
        body = {"data": values, "component_id": part["id"], "session_hash": "abc", "fn_name": "decide"}
        request = urllib.request.Request(
            f"{address}gradio_api/component_server",
            json.dumps(body).encode(),
            {"Content-Type": "text/plain", **headers},
        )
        try:
            return json.loads(urllib.request.urlopen(request).read())
        except urllib.error.HTTPError as problem:
            return {"error": str(problem)}

    shown = {"index": 0, "version": "?", "action": "skip"}
    assert "Reload the page" in send(shown)["error"]
    assert "refused" in send({**shown, "token": token}, Origin="https://evil.example")["error"]
    assert (
        "cannot be used under the name 'evil.example'" in send({**shown, "token": token}, Host="evil.example")["error"]
    )
    assert not (tmp_path / "to_label.labelled.skipped.jsonl").exists()
    assert "conflict" in send({**shown, "token": token})  # the page itself


def test_the_command_serves_the_tab_and_ends_with_an_error_for_a_wrong_file(tmp_path, taxonomy, capsys, monkeypatch):
    pytest.importorskip("gradio")
    pipe = make_pipe(taxonomy)
    pipe.model.save_pretrained(tmp_path / "model")
    pipe.tokenizer.save_pretrained(tmp_path / "model")
    assert load_model(str(tmp_path / "model"))
    (tmp_path / "plain.csv").write_text("text\na\n", encoding="utf-8")
    assert cli.main(["demo", str(tmp_path / "model"), "--suggestions", str(tmp_path / "plain.csv")]) == 1
    assert "plain.csv is no table of suggestions" in capsys.readouterr().err
    table, launched = write_table(tmp_path / "to_label.jsonl"), threading.Event()
    import gradio

    def instead(page, **options):
        assert "search_labels" in str(page.get_config_file())
        assert options["server_name"] == "127.0.0.1"
        launched.set()
        page.labelling.close()

    monkeypatch.setattr(gradio.Blocks, "launch", instead)
    words = ["--suggestions", str(table), "--labelled", str(tmp_path / "l.jsonl")]
    assert cli.main(["demo", str(tmp_path / "model"), *words]) == 0
    assert launched.is_set()
