"""Labelling suggested texts: the table, the cells, the search, decisions, and requests of the page."""

import json
import re
import threading

import numpy as np
import pytest
import torch

from hcal_hf import Taxonomy, encode_dataset, read_table, write_suggestions
from hcal_hf.commands import main as cli
from hcal_hf.commands.demo.label_cells import LabelCells
from hcal_hf.commands.demo.label_search import MAX_CHILDREN, MAX_HITS, LabelSearch
from hcal_hf.commands.demo.label_tab import Guard, answer
from hcal_hf.commands.demo.labelling import Labelling
from hcal_hf.commands.demo.page import build_page, launch
from hcal_hf.commands.demo.reader import Reader
from hcal_hf.commands.demo.suggestion_table import read_suggestions
from tests.builders import build_model, build_taxonomy, build_tokenizer, random_dag, random_forest
from tests.commands.test_demo import EVIL, make_pipe

TEXTS = ["stars and atoms", "poems in novels", "cells and genes", "music and drama", "a new study"]


def write_table(path, texts=TEXTS, column="text", **columns):
    rows = [
        {"row": 10 + i, column: text, "suggestion": "arts", "confidence": 0.25, "labels": None, **columns}
        for i, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def start(tmp_path):
    """Returns a function that starts labelling, after it has ended an earlier one as the end of its process does."""
    running = []

    def start_again(taxonomy=None, texts=TEXTS, labelled=None, **config):
        while running:
            running.pop().close()
        table = write_table(tmp_path / "to_label.jsonl", texts)
        pipe = make_pipe(taxonomy or build_taxonomy(), **{"label_mode": "multi_path", **config})
        running.append(Labelling(Reader(pipe), table, labelled))
        return running[-1]

    yield start_again
    for labelling in running:
        labelling.close()


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def decide(labelling, shown, action="label", nodes=(), **more):
    return labelling.decide(shown["index"], shown["version"], action, list(nodes), **more)


# ---- The table of suggestions ----


def test_a_table_of_hcal_suggest_is_read_in_its_order(tmp_path, taxonomy):
    model = build_model(taxonomy, label_mode="multi_path")
    model.save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "texts.csv").write_text("text\n" + "\n".join(TEXTS) + "\n", encoding="utf-8")
    for name in ("to_label.csv", "to_label.jsonl"):
        write_suggestions(str(tmp_path / "model"), tmp_path / "texts.csv", tmp_path / name, 3)
        texts = read_suggestions(tmp_path / name, ["text"])
        assert len(texts) == 3
        for suggested in texts:
            assert suggested.text == suggested.cells["text"] == TEXTS[suggested.row]
            assert 0 <= suggested.confidence <= 1


def test_texts_count_once_and_rows_without_a_text_are_left_out(tmp_path, caplog):
    table = write_table(tmp_path / "t.jsonl", ["one", " one ", "", None, "two"])
    assert [text.key for text in read_suggestions(table, ["text"])] == ["one", "two"]
    assert "3 rows are left out" in caplog.text
    # A single text column may be called "text", as hcal suggest calls it for other tables than that of training.
    assert read_suggestions(table, ["Ticket"])[0].cells == {"Ticket": "one"}


def test_other_files_are_refused_with_a_fix(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none.csv. Write such a table with: hcal suggest MODEL"):
        read_suggestions(tmp_path / "none.csv", ["text"])
    (tmp_path / "plain.csv").write_text("text,labels\na,b\n", encoding="utf-8")
    with pytest.raises(
        ValueError,
        match=r"plain.csv is no table of suggestions: it has no column 'row', its columns are 'text', 'labels'\. "
        r"Write such a table with: hcal suggest",
    ):
        read_suggestions(tmp_path / "plain.csv", ["text"])
    tasks = [{"data": {"text": "a", "row": 0}, "predictions": [{"result": [], "score": 0.5}]}]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
    with pytest.raises(ValueError, match=r"no table of suggestions.* Tasks for Label Studio are labelled there"):
        read_suggestions(tmp_path / "tasks.json", ["text"])
    table = write_table(tmp_path / "t.jsonl", column="Body")
    with pytest.raises(
        ValueError,
        match=r"has no column 'Ticket', in which the model reads texts: its columns are 'row', 'Body'.*Rename",
    ):
        read_suggestions(table, ["Ticket"])
    with pytest.raises(ValueError, match="has no row with a text in 'text'"):
        read_suggestions(write_table(tmp_path / "empty.jsonl", ["", " "]), ["text"])


# ---- Cells ----

HARD = [["a;b", "c"], ["x>y", "[z]"], ["x>y", "p, q"], ["plain", "deep", "deeper"], ["[1, 2]"]]
OPTIONS = [
    {},
    {"labels": ["topic"], "delimiter": ";"},
    {"labels": ["topic"], "separator": "/", "empty_means_none": True},
    {"labels": ["one", "two", "three", "four", "five"]},
    {"labels": ["one", "two", "three", "four", "five"], "delimiter": ";"},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("mode", ["single_path", "multi_path"])
@pytest.mark.parametrize("seed", range(3))
def test_training_reads_the_written_cells_as_the_same_labels(options, mode, seed, tmp_path, tokenizer):
    rng = np.random.default_rng(seed)
    taxonomy = [Taxonomy.from_paths(HARD), random_forest(rng, 20), random_dag(rng, 8)][seed]
    if mode == "single_path" and not taxonomy.is_forest:
        mode = "multi_path"
    config = build_model(taxonomy, label_mode=mode, partial_paths=True, table_options=options or None).config
    cells = LabelCells(config, taxonomy)
    sizes = [1] * 15 if mode == "single_path" else rng.integers(0, 4, 15)
    wanted = [cells.ends(rng.integers(0, taxonomy.num_labels, size).tolist()) for size in sizes]
    depth = len(cells.columns) if len(cells.columns) > 1 else 99
    wanted = [ends for ends in wanted if all(len(taxonomy.paths(node, 1)[0]) <= depth for node in ends)]
    assert wanted
    rows = [{"text": f"text {i}", **cells.write(ends)} for i, ends in enumerate(wanted)]
    assert [cells.read(row) for row in rows] == wanted
    path = tmp_path / "labelled.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    labels = cells.columns if len(cells.columns) > 1 else cells.columns[0]
    reading = {name: options[name] for name in ("separator", "delimiter", "empty_means_none") if name in options}
    encoded = encode_dataset(
        read_table(path), taxonomy, tokenizer, labels=labels, label_mode=mode, partial_paths=True, **reading
    )
    assert [row["labels"] for row in encoded] == [taxonomy.complete(ends).tolist() for ends in wanted]


def test_cells_of_one_path_are_plain_text(taxonomy):
    def written(**options):
        config = build_model(taxonomy, label_mode="single_path", table_options=options).config
        return LabelCells(config, taxonomy).write([taxonomy.index("quantum")])

    assert written() == {"labels": "science > physics > quantum"}
    assert written(separator="/") == {"labels": "science / physics / quantum"}
    levels = written(labels=["a", "b", "c", "d"])
    assert levels == {"a": "science", "b": "physics", "c": "quantum", "d": None}
    with pytest.raises(
        ValueError, match=r"A path of 3 levels does not fit into the 2 label columns of the model, 'a', 'b'"
    ):
        written(labels=["a", "b"])


def test_labels_that_a_document_cannot_have_are_refused(taxonomy):
    single = LabelCells(build_model(taxonomy, label_mode="single_path").config, taxonomy)
    several = LabelCells(build_model(taxonomy, label_mode="multi_path").config, taxonomy)
    physics, opera, quantum = (taxonomy.index(name) for name in ("physics", "opera", "quantum"))
    for cells, nodes in ((single, []), (single, [opera, quantum]), (single, [physics]), (several, [physics])):
        with pytest.raises(ValueError, match=r"These labels cannot be saved: .* Choose other labels"):
            cells.write(nodes)
    assert several.write([]) == {"labels": []}
    assert several.write([physics, quantum]) == {"labels": [["science", "physics", "quantum"]]}


# ---- Search ----


def test_the_tree_is_sent_in_parts_with_the_most_probable_first():
    taxonomy = Taxonomy.from_edges([(f"root {i % 3}", f"leaf {i}") for i in range(900)])
    labels = LabelSearch(taxonomy, None, partial_paths=False)
    p = np.random.default_rng(0).random(taxonomy.num_labels)
    roots = labels.children(None, 0, p)
    assert roots["total"] == 3
    assert [item["choosable"] for item in roots["items"]] == [False] * 3
    assert [item["children"] for item in roots["items"]] == [300] * 3
    root = roots["items"][0]["node"]
    pages = [labels.children(root, offset, p) for offset in (0, 100, 200, 300)]
    assert [len(page["items"]) for page in pages] == [MAX_CHILDREN] * 3 + [0]
    found = [item["node"] for page in pages for item in page["items"]]
    assert sorted(found) == taxonomy.edges[taxonomy.edges[:, 0] == root, 1].tolist()
    assert [p[node] for node in found] == sorted(p[found], reverse=True)


def test_the_search_finds_labels_by_words_of_their_paths():
    paths = [
        ["Hardware", "Printer", "Ink and toner"],
        ["Hardware", "Printer", "Paper jam"],
        ["Office", "Ink"],
        ["Office", "Inkwell"],
        ["Office", "Blue ink"],
        ["Office", "Drinks"],
    ]
    taxonomy = Taxonomy.from_paths(paths)
    p = np.linspace(0.9, 0.1, taxonomy.num_labels)

    def found(query, partial=False):
        return [i["path"][-1] for i in LabelSearch(taxonomy, None, partial).search(query, p)["items"]]

    # Equal names, then beginnings of names, then of words, then any letters.
    assert found("INK") == ["Ink", "Inkwell", "Ink and toner", "Blue ink", "Drinks"]
    assert found("ha") == ["Ink and toner", "Paper jam"]
    assert found("in") == [
        "Ink",
        "Inkwell",
        "Ink and toner",
        "Blue ink",
        "Drinks",
        "Paper jam",
    ]
    assert found("printer") == ["Ink and toner", "Paper jam"]
    assert found("printer", partial=True) == ["Printer", "Ink and toner", "Paper jam"]
    assert found(" jam  hardware ") == ["Paper jam"]
    assert found("nothing") == []
    assert found("") == found("   ") == [taxonomy.names[i] for i in np.flatnonzero(taxonomy.is_leaf)]
    named = LabelSearch(taxonomy, [f"{code} Straße {i}" for i, code in enumerate(taxonomy.names)], False)
    assert [i["path"][-1] for i in named.search("inkwell STRASSE", p)["items"]] == [
        named.names[taxonomy.index("Inkwell")]
    ]
    with pytest.raises(ValueError, match="The search has 201 characters, but at most 200 are allowed"):
        named.search("a" * 201, p)


def test_the_search_of_a_large_taxonomy_is_bounded():
    taxonomy = Taxonomy.from_edges([(f"root {i % 100}", f"leaf {i}") for i in range(47_088)])
    labels = LabelSearch(taxonomy, None, True)
    p = np.random.default_rng(0).random(taxonomy.num_labels)
    answer = labels.search("leaf", p)
    assert (len(answer["items"]), answer["total"]) == (MAX_HITS, 47_088)
    assert len(json.dumps(answer)) < 10_000
    best = np.argsort(-np.where(np.arange(len(p)) < 100, 0, p))[:MAX_HITS]
    assert [item["node"] for item in answer["items"]] == best.tolist()


# ---- Decisions ----


def test_decisions_are_written_with_the_columns_of_the_model(start, tmp_path, taxonomy):
    options = {"text": ["Title", "Body"], "labels": ["Area", "Field", "Topic"]}
    pipe = make_pipe(taxonomy, label_mode="multi_path", table_options=options)
    table = tmp_path / "to_label.jsonl"
    row = {"row": 7, "Title": "stars", "Body": "of energy\nand", "suggestion": "", "confidence": 0.5}
    table.write_text(json.dumps(row) + "\n", encoding="utf-8")
    labelling = Labelling(Reader(pipe), table)
    shown = labelling.next_text()
    assert shown["fields"] == [{"name": "Title", "text": "stars"}, {"name": "Body", "text": "of energy\nand"}]
    end = decide(labelling, shown, nodes=[taxonomy.index("quantum"), taxonomy.index("opera")])
    labelling.close()
    path = tmp_path / "to_label.labelled.jsonl"
    assert end == {"finished": True, "counts": {"labelled": 1, "skipped": 0, "open": 0, "total": 1}, "file": str(path)}
    assert lines(path) == [
        {
            "row": 7,
            "Title": "stars",
            "Body": "of energy\nand",
            "Area": ["science", "arts"],
            "Field": ["physics", "stage"],
            "Topic": ["quantum", "opera"],
        }
    ]


def test_the_suggestion_equals_the_prediction_of_the_pipeline(start):
    for config in ({"label_mode": "single_path"}, {"label_mode": "multi_path"}):
        labelling = start(**config)
        taxonomy, pipe = labelling.taxonomy, labelling.reader.pipe
        for index, text in enumerate(TEXTS):
            shown = labelling.show_text(index)
            predicted = {taxonomy.index_path(item["path"]): item["score"] for item in pipe(text)}
            assert [item["node"] for item in shown["suggestion"]] == sorted(
                labelling.cells.ends(predicted), key=lambda node: -predicted[node]
            )
            for item in shown["suggestion"]:
                assert item["probability"] == pytest.approx(predicted[item["node"]], abs=1e-5)
            assert shown["reason"] == "When this text was chosen, the confidence of the model was 0.25."


def test_labelling_resumes_after_a_restart_and_asks_skipped_texts_only_on_request(start, tmp_path, taxonomy):
    labelling = start()
    quantum, opera = taxonomy.index("quantum"), taxonomy.index("opera")
    shown = decide(labelling, labelling.next_text(), nodes=[quantum])
    assert shown["index"] == 1
    shown = decide(labelling, shown, "skip")
    assert (shown["index"], shown["counts"]) == (2, {"labelled": 1, "skipped": 1, "open": 3, "total": 5})
    decide(labelling, shown, nodes=[])

    labelling = start(texts=[TEXTS[0], "between", *TEXTS[1:]])  # rows may move: texts are recognised
    shown = labelling.next_text()
    assert (shown["index"], shown["fields"][0]["text"]) == (1, "between")
    while not shown["finished"]:
        shown = decide(labelling, shown, nodes=[opera])
    assert shown["counts"] == {"labelled": 5, "skipped": 1, "open": 0, "total": 6}
    skipped = tmp_path / "to_label.labelled.skipped.jsonl"
    assert lines(skipped) == [{"row": 11, "text": TEXTS[1]}]  # no labels, in another file
    assert TEXTS[1] not in [line["text"] for line in lines(labelling.labelled.path)]

    shown = labelling.next_text(-1, skipped=True)
    assert (shown["index"], shown["decision"]["state"]) == (2, "skipped")
    assert decide(labelling, shown, "skip", skipped=True)["finished"]  # not asked again and again
    shown = labelling.next_text(-1, skipped=True)
    end = decide(labelling, shown, nodes=[quantum], skipped=True)
    assert end["counts"] == {"labelled": 6, "skipped": 0, "open": 0, "total": 6}
    assert lines(skipped) == []
    by_text = {line["text"]: line["labels"] for line in lines(labelling.labelled.path)}
    assert by_text[TEXTS[1]] == by_text[TEXTS[0]] == [["science", "physics", "quantum"]]
    assert by_text[TEXTS[2]] == []
    assert by_text["between"] == [["arts", "stage", "opera"]]


def test_a_changed_decision_leaves_one_line(start, taxonomy):
    labelling = start()
    quantum, opera = taxonomy.index("quantum"), taxonomy.index("opera")
    decide(labelling, labelling.next_text(), nodes=[quantum])
    decide(labelling, labelling.show_text(1), nodes=[quantum])
    first = labelling.show_text(0)
    assert first["decision"]["state"] == "labelled"
    assert [item["node"] for item in first["decision"]["labels"]] == [quantum]
    decide(labelling, first, nodes=[opera])
    assert [line["labels"][0][-1] for line in lines(labelling.labelled.path)] == ["opera", "quantum"]
    decide(labelling, labelling.show_text(0), "skip")
    assert [line["text"] for line in lines(labelling.labelled.path)] == [TEXTS[1]]
    assert [line["text"] for line in lines(labelling.skipped.path)] == [TEXTS[0]]
    decide(labelling, labelling.show_text(0), nodes=[opera])
    assert sorted(line["text"] for line in lines(labelling.labelled.path)) == sorted(TEXTS[:2])
    assert lines(labelling.skipped.path) == []


def test_a_second_window_cannot_overwrite_a_decision_that_it_has_not_seen(start, taxonomy):
    labelling = start()
    quantum, opera = taxonomy.index("quantum"), taxonomy.index("opera")
    mine, theirs = labelling.next_text(), labelling.next_text()
    decide(labelling, mine, nodes=[quantum])
    late = decide(labelling, theirs, nodes=[opera])
    assert "decided in another window. Nothing was saved" in late["conflict"]
    assert [item["node"] for item in late["decision"]["labels"]] == [quantum]
    assert [line["labels"][0][-1] for line in lines(labelling.labelled.path)] == ["quantum"]
    assert "conflict" not in decide(labelling, late, nodes=[opera])  # after it was seen, it can be changed
    assert [line["labels"][0][-1] for line in lines(labelling.labelled.path)] == ["opera"]


def test_many_windows_at_once_neither_lose_nor_duplicate_lines(start, taxonomy):
    texts = [f"study {i}" for i in range(40)]
    labelling = start(texts=texts)
    leaves = np.flatnonzero(taxonomy.is_leaf).tolist()
    saved, errors = [], []

    def work(seed):
        rng = np.random.default_rng(seed)
        try:
            for _ in range(30):
                shown = labelling.show_text(int(rng.integers(len(texts))))
                action = "label" if rng.random() < 0.7 else "skip"
                after = decide(labelling, shown, action, [int(rng.choice(leaves))])
                saved.append("conflict" not in after)
        except Exception as problem:  # a thread must not fail in silence
            errors.append(problem)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sum(saved) > 40
    labelled = [line["text"] for line in lines(labelling.labelled.path)]
    skipped = [line["text"] for line in lines(labelling.skipped.path)]
    assert len(set(labelled + skipped)) == len(labelled + skipped)
    counts = labelling.counts()
    assert (counts["labelled"], counts["skipped"]) == (len(labelled), len(skipped))


def test_rows_of_an_earlier_round_and_unreadable_ones_are_kept(start, tmp_path, taxonomy):
    path = tmp_path / "labelled.jsonl"
    rows = [
        {"text": "earlier", "labels": [["arts", "stage", "opera"]]},
        {"text": TEXTS[0], "labels": [["sport", "chess"]]},  # a new label, which training would add
        {"text": TEXTS[1], "labels": None},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    labelling = start(labelled=path)
    assert labelling.next_text()["index"] == 1  # without labels it is not decided
    assert "in a way that this model cannot read" in labelling.show_text(0)["decision"]["text"]
    decide(labelling, labelling.show_text(1), nodes=[taxonomy.index("opera")])
    assert lines(path)[:2] == rows[:2]
    assert [line["text"] for line in lines(path)] == ["earlier", TEXTS[0], TEXTS[1]]


def test_a_wrong_labelled_file_is_refused(start, tmp_path):
    with pytest.raises(ValueError, match=r"The labelled file must end in \.jsonl, got .*\.csv"):
        start(labelled=tmp_path / "labelled.csv")
    with pytest.raises(ValueError, match="is the table of suggestions: give another file with --labelled"):
        start(labelled=tmp_path / "to_label.jsonl")
    (tmp_path / "other.jsonl").write_text('{"Body": "a"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"Line 1 of .*other.jsonl has no column 'text', in which the model reads"):
        start(labelled=tmp_path / "other.jsonl")


@pytest.mark.parametrize(
    ("config", "logits", "problem"),
    [
        ({"label_mode": "multi_path"}, {}, None),  # no label is allowed
        ({"label_mode": "multi_path"}, {"science": 3.0}, "stops at an inner label"),
        ({"label_mode": "multi_path", "partial_paths": True}, {"science": 3.0}, None),
    ],
)
def test_a_suggestion_that_cannot_be_saved_cannot_be_accepted(start, monkeypatch, config, logits, problem):
    labelling = start(**config)
    values = torch.full((1, labelling.taxonomy.num_labels), -5.0)
    for name, value in logits.items():
        values[0, labelling.taxonomy.index(name)] = value
    real = labelling.reader.read

    def read(text):
        reading = real(text)
        return type(reading)(text, 1, values, reading.tokens, reading.tokens_read)

    monkeypatch.setattr(labelling.reader, "read", read)
    shown = labelling.next_text()
    if problem:
        assert problem in shown["problem"]
        with pytest.raises(ValueError, match="These labels cannot be saved"):
            decide(labelling, shown, nodes=[item["node"] for item in shown["suggestion"]])
    else:
        assert shown["problem"] is None
        decide(labelling, shown, nodes=[item["node"] for item in shown["suggestion"]])
        assert len(lines(labelling.labelled.path)) == 1


# ---- Requests ----


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("decide", {"index": 0, "version": "?", "action": "label", "nodes": [13]}, "There is no label 13: .* 0 to 12"),
        ("decide", {"index": 0, "version": "?", "action": "label", "nodes": [-1]}, "There is no label -1"),
        (
            "decide",
            {"index": 0, "version": "?", "action": "label", "nodes": ["science"]},
            "There is no label 'science'",
        ),
        ("decide", {"index": 0, "version": "?", "action": "label", "nodes": [True]}, "There is no label True"),
        (
            "decide",
            {"index": 0, "version": "?", "action": "label", "nodes": [0] * 501},
            "a list of at most 500 labels",
        ),
        ("decide", {"index": 0, "version": "?", "action": "label", "nodes": "12"}, "a list of at most 500 labels"),
        ("decide", {"index": 0, "version": "?", "action": "erase"}, "action must be 'label' or 'skip', got 'erase'"),
        (
            "decide",
            {"index": 5, "version": "?", "action": "skip"},
            "There is no text 5: the table has the texts 0 to 4",
        ),
        ("show_text", {"index": -1}, "There is no text -1"),
        ("show_text", {"index": "../../etc"}, "There is no text '../../etc'"),
        ("next_text", {"after": 2.5}, "There is no text 2.5"),
        ("list_children", {"index": 0, "parent": 99}, "There is no label 99"),
        ("list_children", {"index": 0, "offset": -5}, "offset must be a whole number of at least 0, got -5"),
        ("search_labels", {"index": 0, "query": ["a"]}, "query must be a text"),
        ("search_labels", {"index": 0, "query": "a" * 5000}, "at most 200 are allowed"),
        ("show_text", {"wrong": 1}, "does not fit this server"),
        ("show_text", "text", "must hold an object"),
    ],
)
def test_wrong_requests_are_answered_by_a_message_and_change_nothing(start, name, values, message):
    labelling, guard = start(), Guard("127.0.0.1")
    arguments = {**values, "token": guard.token} if isinstance(values, dict) else values
    found = answer(guard, getattr(labelling, name), arguments, {"host": "127.0.0.1:7860"})
    assert list(found) == ["error"]
    assert re.search(message, found["error"])
    assert len(found["error"]) < 300
    assert not labelling.labelled.path.exists()
    assert not labelling.skipped.path.exists()


def test_requests_of_other_pages_are_refused():
    guard = Guard("demo.example")

    def ask(token=guard.token, **headers):
        return answer(guard, lambda: {"done": True}, {"token": token}, {"host": "127.0.0.1:7860", **headers})

    done = {"done": True}
    assert ask() == ask(origin="http://127.0.0.1:7860") == done
    for host in ("localhost:7860", "[::1]:7860", "10.0.0.7", "DEMO.example:80"):
        assert ask(host=host, origin=f"http://{host}") == done
    assert "cannot be used under the name 'evil.example'" in ask(host="evil.example:7860")["error"]  # DNS rebinding
    assert "Requests from 'https://evil.example' are refused" in ask(origin="https://evil.example")["error"]
    assert "Requests from 'null' are refused" in ask(origin="null")["error"]
    assert "Requests from 'http://127.0.0.1:80' are refused" in ask(origin="http://127.0.0.1:80")["error"]
    for token in (None, "", "wrong", 7, guard.token[:-1]):
        assert "Reload the page" in ask(token=token)["error"]
    assert Guard("demo.example").token != guard.token


def test_wrong_options_of_the_command_are_refused(tmp_path, capsys):
    for words, message in (
        (["--labelled", "l.jsonl"], "--labelled needs --suggestions"),
        (["--suggestions", "s.csv", "--export", str(tmp_path / "space")], "--export writes a page without labelling"),
        (["--suggestions", "s.csv", "--share"], "--share cannot be combined with --suggestions"),
    ):
        with pytest.raises(SystemExit) as exit_:
            cli.main(["demo", "model", *words])
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "space").exists()
    with pytest.raises(ValueError, match="has no public link"):
        launch("model", share=True, suggestions="s.csv")


@pytest.mark.slow
def test_only_a_page_with_suggestions_has_the_tab(tmp_path, taxonomy):
    pytest.importorskip("gradio")
    pipe = make_pipe(taxonomy)
    with pytest.raises(ValueError, match="labelled needs suggestions"):
        build_page(pipe, labelled=tmp_path / "labelled.jsonl")
    table = write_table(tmp_path / "to_label.jsonl", [EVIL, "stars"])

    def parts(page):
        return {block.elem_id for block in page.blocks.values()}, str(page.get_config_file())

    ids, config = parts(build_page(pipe))
    assert "hcal-label" not in ids
    assert "search_labels" not in config
    ids, config = parts(build_page(pipe, suggestions=table))
    assert {"hcal-label", "hcal-text"} <= ids
    assert "search_labels" in config
    assert EVIL not in config  # texts are sent one by one
    assert "astronomy" not in config  # and so are labels
